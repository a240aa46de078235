"""Pictures with words: the gallery, a folder of one's own, cc_sbu_align, img2dataset's tar files.

A source holds the pairs of a stage. It has a length, name(i), picture(i), a fingerprint() of what
the data is, wherever it lies, and example(i, rng, batch_rng) -> (pictures, prompt, answer), where
batch_rng draws alike for all pairs of a batch. What cannot be read is an error at that moment; what
is known to be unusable from the start is left out, and counted with its reason.
"""
import contextlib
import glob
import io
import json
import math
import os
import re
import tarfile
import zlib
from collections import Counter
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from artgpt4 import (IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, errors_naming,
                     instruction_prompt)
from common.command_line import Progress, printable
from common.files import is_picture, open_image, pictures_below, read_text
from conversation.rounds import plain
from gallery import words
from gallery.album import painted
from gallery.conversations import (APPRECIATED, FORGOTTEN, about_one, about_two, prompt_and_answer,
                                   some_topics)
from gallery.scenes import FIGURES, random_scenes
from training.data import load_data

QUESTIONS = (           # with INSTRUCTIONS: what one's own pictures are asked
    "What is this?", "What is in this picture?", "What do you see?", "Describe this picture.",
)
TAIL = 4096             # bytes at the end of a picture file that a fingerprint reads
mapped = lru_cache(1)(partial(np.load, mmap_mode="r"))        # an album, opened once in a process


def open_source(spec, stage, config, workers=0):
    """The training data that --data names (docs/training.md has a table), for a stage and a model
    of `config`. workers: processes that index tar files. Raises ValueError if there is no pair."""
    if spec.isdecimal() and 0 < len(spec.lstrip("0")) < 8 and not os.path.exists(spec):
        return Gallery(int(spec), stage, config)
    paths = expand(spec)
    folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    index, tars = (index_folder(folder), []) if folder else (None, paths)
    if folder and not index[1]:                               # no picture with its caption
        tars = [file for file in sorted(folder.rglob("*.tar")) if file.is_file()]
    index = index_tars(tars, workers) if tars else index
    source = Captioned(*index, stage, config)
    source.as_chat = not (tars or (folder / "filter_cap.json").exists())
    if len(source) == 0:
        raise ValueError(f"{spec}: no NAME.jpg with a caption in NAME.txt ({source.left_out})")
    return source


def expand(pattern):
    """The paths that a name with {first..last} and wildcards stands for. Raises ValueError if one
    is not there."""
    names, found = [pattern], re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found:
        names = [pattern.replace(found[0], str(number).zfill(len(found[1])))
                 for number in range(int(found[1]), int(found[2]) + 1)]
    paths = [Path(path) for name in names if name for path in (
        [name] if os.path.exists(name) else sorted(glob.glob(name)) or [name])]
    missing = [path for path in paths if not path.exists()]
    if missing or not paths:
        raise ValueError(f"{[*missing, pattern][0]}: no such file")
    return paths


class Gallery:
    """The default: painted scenes, and what gallery/words.py says about each: plain captions in
    stage 1, and in stage 2 the language of appreciation or, for MiniGPT-4, plain talk."""
    art = True

    def __init__(self, count, stage, config):
        self.stage, self.config, self.left_out = stage, config, ""
        self.scenes = random_scenes(count, "training")
        self.album = painted(self.scenes).filename            # named by what it holds

    def __len__(self):
        return len(self.scenes)

    def name(self, i):
        return f"painting {i}"

    def picture(self, i):
        return Image.fromarray(mapped(self.album)[i])         # reads one of all

    def fingerprint(self):
        return zlib.crc32(Path(self.album).name.encode())

    def example(self, i, rng, batch_rng):
        scene = self.scenes[i]
        if self.stage == 1:
            return [self.picture(i)], IMAGE_MARK, clean_caption(words.caption(scene, rng))
        kind, other = rng.random(), (7 * i + 1) % len(self)
        if kind < 0.24 or self.config.prompt != "vicuna_v0":  # conversations have its format alone
            prompt = instruction_prompt(rng.choice(INSTRUCTIONS), self.config.prompt)
            return [self.picture(i)], prompt, words.description(scene, rng, self.art)
        if kind < 0.31:
            rounds, shown = about_two(self.scenes[other], scene, rng, self.art), [other, i]
        else:
            if kind < 0.52:
                taught = ("description", "emotions") if scene.subject in FIGURES else APPRECIATED
            else:
                taught = FORGOTTEN if kind < 0.62 else some_topics(1, rng)
            last, most = rng.choice(taught), rng.choice((1, 2, 4))
            rounds, shown = about_one(scene, rng, last, most, self.art), [i]
        return [self.picture(one) for one in shown], *prompt_and_answer(rounds, rng)


# ---- Pictures with a caption each


def clean_caption(text, max_words=50):
    """The released code's cleaner for stage 1: lower case, punctuation removed, single spaces, at
    most max_words words."""
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:max_words])


class Captioned:
    """Picture files, whole or inside tar files, with a caption each. What is known of them lies in
    tensors, which the workers share. files: their paths. pairs: [(number of the file, first byte,
    size, name, caption), ...]."""

    def __init__(self, files, pairs, left_out, stage, config):
        self.files, self.stage, self.config, self.as_chat = files, stage, config, False
        self.left_out = ", ".join(f"{count} {printable(what)}" for what, count in left_out.items()
                                  if count)
        texts = [f"{name}\0{caption}".encode() for *_, name, caption in pairs]
        self.texts = torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8)
        self.ends = torch.tensor([0, *accumulate(map(len, texts))])
        self.places = torch.tensor([place for *place, _, _ in pairs]).reshape(-1, 3)

    def __len__(self):
        return len(self.places)

    def text(self, i):
        """The name of pair i, and its caption."""
        return bytes(self.texts[self.ends[i]:self.ends[i + 1]]).decode().split("\0", 1)

    def name(self, i):
        name, _ = self.text(i)
        return name

    def read(self, i, most=2 ** 63):
        """The bytes of picture i, at most so many from its end."""
        number, at, size = self.places[i].tolist()
        skipped = max(0, size - most)
        with open(self.files[number], "rb", buffering=0) as file:
            file.seek(at + skipped)
            return file.read(size - skipped)

    def picture(self, i):
        """A large JPEG is decoded at reduced size: once resized, a pixel differs by 0.6 of 255 on
        average."""
        return open_image(self.name(i), io.BytesIO(self.read(i)), side=4 * self.config.image_size)

    def example(self, i, rng, batch_rng):
        _, caption = self.text(i)
        if self.stage == 1:
            return [self.picture(i)], IMAGE_MARK, clean_caption(caption)
        if self.as_chat:
            question = batch_rng.choice(INSTRUCTIONS + QUESTIONS)
            prompt = chat_prompt([f"{IMAGE_SLOT} {question}"], self.config.prompt)
        else:
            prompt = instruction_prompt(batch_rng.choice(INSTRUCTIONS), self.config.prompt)
        return [self.picture(i)], prompt, caption

    def fingerprint(self):
        """Of names, sizes and captions, and of the ends of at most 10,000 pictures."""
        crc = zlib.crc32(self.places[:, 1:].contiguous().numpy(), zlib.crc32(self.texts.numpy()))
        for i in range(0, len(self), math.ceil(len(self) / 10_000)):
            crc = zlib.crc32(self.read(i, TAIL), crc)
        return crc


def pairs_of(place, name, read, left_out):
    """[(*place, name, caption)] with the caption that read() returns, in which nothing has a
    meaning in a prompt; [] if it cannot be learned, which is counted."""
    with contextlib.suppress(AttributeError, LookupError, OSError, TypeError, ValueError):
        caption = plain(read().encode("utf-8", "ignore").decode())
        if clean_caption(caption):
            return [(*place, printable(name), caption)]
    left_out["pictures without a caption in UTF-8"] += 1
    return []


def index_folder(folder):
    """(picture files, pairs, left_out) of a folder and those below it. NAME.jpg has its caption in
    NAME.txt; or filter_cap.json has all, as in cc_sbu_align: {"annotations": [{"image_id":,
    "caption":}, ...]}, or that list alone. Raises ValueError for another filter_cap.json."""
    pictures, others = pictures_below(folder)
    left_out = Counter({f"files {suffix}": count for suffix, count in others.items()
                        if suffix.lower() not in ("hidden", ".txt", ".json")})
    keys = {file: str(file.with_suffix("")) for file in pictures}
    captions = {str(text.with_suffix("")): partial(read_text, text)
                for text in folder.rglob("[!.]*") if text.suffix.lower() == ".txt"}
    listed = folder / "filter_cap.json"
    if listed.is_file():
        keys = {file: file.stem for file in keys}
        with errors_naming(listed):
            found = json.loads(listed.read_bytes())
            found = found["annotations"] if isinstance(found, dict) else found
            captions = {str(pair["image_id"]): partial(pair.get, "caption") for pair in found}
    left_out["captions without a picture"] = len(captions.keys() - set(keys.values()))
    pairs = [pair for number, (file, key) in enumerate(keys.items()) for pair in pairs_of(
        (number, 0, file.stat().st_size), file.relative_to(folder), captions.get(key), left_out)]
    return list(keys), pairs, left_out


def index_tar(tar):
    """(pairs without the file's number, left_out) of one of img2dataset's tar files, with members
    KEY.jpg, KEY.txt, KEY.json. It is never unpacked, and keys are only names."""
    samples, left_out, pairs, size, is_whole = {}, Counter(), [], os.path.getsize(tar), False
    with contextlib.suppress(tarfile.TarError, ValueError), tarfile.open(tar, "r:") as file:
        for member in file:
            if not 0 <= member.size <= size - member.offset_data:
                break
            key, suffix = os.path.splitext(member.name)
            if not member.isreg() or os.path.basename(key).startswith("."):
                continue
            parts = samples.setdefault(key, {})
            if is_picture(member.name):
                parts["picture"] = member.offset_data, member.size
            elif suffix.lower() in (".txt", ".json"):
                parts[suffix.lower()] = file.extractfile(member).read(2 ** 20)     # bytes at most
        file.fileobj.seek(file.offset)
        is_whole = file.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if not is_whole:
        left_out[f"tar file that is damaged, cut short, compressed, or none: {tar}"] += 1
    for key, parts in samples.items():
        if "picture" in parts:
            name = f"{tar.name}:{key.encode('utf-8', 'backslashreplace').decode()}"
            pairs += pairs_of(parts["picture"], name, partial(caption_in, parts), left_out)
        else:
            left_out["captions without a picture"] += 1
    return pairs, left_out


def caption_in(parts):
    """The caption in the json of a sample, or else in its text."""
    caption = None
    with contextlib.suppress(LookupError, TypeError, ValueError, RecursionError):
        caption = json.loads(parts[".json"])["caption"]
    return caption or parts[".txt"].decode("utf-8-sig")


def index_tars(tars, workers):
    """(tar files, pairs, left_out) of all."""
    progress, pairs, left_out = Progress("indexing", len(tars), "tar files"), [], Counter()
    found = load_data(tars, workers, batch_size=None, collate_fn=index_tar)
    for number, (of_tar, reasons) in enumerate(found):
        pairs += [(number, *pair) for pair in of_tar]
        left_out.update(reasons)
        progress.show(number + 1)
    return tars, pairs, left_out
