"""Small training data, and short runs of train.py in this process."""
import io
import tarfile
from dataclasses import replace

import torch
from PIL import Image

import train
from artgpt4 import ArtGPT4, Config
from common.files import read_json
from common.models import TINY
from tests.conftest import json_lines, run
from training.data import Examples
from training.sources import open_source


def jpeg(*size):
    """The bytes of a JPEG file."""
    file = io.BytesIO()
    Image.new("RGB", size or (40, 30), (200, 30, 40)).save(file, "JPEG")
    return file.getvalue()


def write_tar(tar, members, **options):
    """A tar file with the members {name: bytes}."""
    with tarfile.open(tar, "w", **options) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return tar


def write_files(folder, files):
    """A folder with files {name: bytes}, perhaps in folders of their own."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tiny_model():
    return ArtGPT4.from_pretrained(TINY, dtype=torch.float32)


def source_of(spec, stage=2, config=None):
    return open_source(str(spec), stage, config or Config(**read_json(TINY / "config.json")))


def examples_of(source, model, **changes):
    """All pairs of a source as Examples of a short recipe."""
    recipe = replace(train.RECIPES["tiny", source.stage], steps=4, batch_size=4, **changes)
    return Examples(source, range(len(source)), recipe, model)


def train_py(*flags):
    """train.py with flags, in this process. Returns its exit code."""
    return run(train.main, train.command_line(), *flags)


def log_of(out):
    """The entries of a run's log."""
    return json_lines(out / "log.jsonl")
