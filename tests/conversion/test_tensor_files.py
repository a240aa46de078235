"""Files of tensors: damaged, cut short, hostile, or something else."""
import os
import pickle
import shutil

import pytest
import torch

from tests.conftest import GOLDEN, VICUNA_SHARDS, released


def cut(source, out):
    """A copy of a file without its last tenth."""
    out.write_bytes(source.read_bytes()[:source.stat().st_size * 9 // 10])
    return out


def save_old(file):
    """The golden ViT as torch.save wrote it before 1.6."""
    torch.save(released("eva_vit_g.pth"), file, _use_new_zipfile_serialization=False)
    return file


def test_files_cut_short_are_refused(refused, checkpoints, vicuna, tmp_path):
    vit = cut(checkpoints / "eva_vit_g.pth", tmp_path / "vit.pth")
    assert "vit.pth: damaged, cut short" in refused(vit=vit)
    folder = vicuna()
    cut(checkpoints / "vicuna" / VICUNA_SHARDS[1], folder / VICUNA_SHARDS[1])
    assert f"{VICUNA_SHARDS[1]}: damaged, cut short" in refused(llm=folder)
    shutil.copytree(checkpoints / "blip2-hf", tmp_path / "hf")
    file = "model.safetensors"
    cut(checkpoints / "blip2-hf" / file, tmp_path / "hf" / file)
    assert "model.safetensors: damaged, cut short" in refused(vit=tmp_path / "hf")
    old = save_old(tmp_path / "old.pth")
    assert "old.pth: damaged, cut short" in refused(vit=cut(old, old))


def test_the_format_of_torch_before_1_6_is_read(convert, weights, tmp_path):
    out = convert(tmp_path / "out", vit=save_old(tmp_path / "old.pth"))
    same = weights["artgpt4"] / "vision.safetensors"
    assert (out / "vision.safetensors").read_bytes() == same.read_bytes()


def test_a_git_lfs_pointer_is_named_as_such(refused, vicuna, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2030000000\n"
    (tmp_path / "eva_vit_g.pth").write_text(pointer)
    assert "eva_vit_g.pth: a Git LFS pointer" in refused(vit=tmp_path / "eva_vit_g.pth")
    folder = vicuna()
    (folder / "tokenizer.model").write_text(pointer)
    assert "tokenizer.model: a Git LFS pointer" in refused(llm=folder)


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(refused, tmp_path, as_zip):
    code = RunsCode(tmp_path / "ran")
    trap = {"model": released("pretrained_minigpt4.pth"), "config": code}
    torch.save(trap, tmp_path / "trap.pth", _use_new_zipfile_serialization=as_zip)
    assert "trap.pth: would run code (posix.system)" in refused(adapter=tmp_path / "trap.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(code))
    assert "bare.pth: " in refused(adapter=tmp_path / "bare.pth")
    assert not (tmp_path / "ran").exists()


def test_rubbish_is_refused_in_one_line(refused, tmp_path):
    files = {
        "empty": b"",
        "text": b"hello",
        "zip": b"PK\x03\x04" * 20,
        "pickle": pickle.dumps([1, 2]),
        "header": b"\xff" * 7 + b"\x7f{",
        "page": b"<!doctype html><html>not found</html>",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert str(tmp_path / name) in refused(vit=tmp_path / name)
    assert "no such file or folder" in refused(vit=tmp_path / "nowhere")
    assert "no model.safetensors and no pytorch_model.bin" in refused(llm=GOLDEN)
