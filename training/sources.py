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
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from artgpt4 import (
    IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, instruction_prompt, plain,
)
from common.command_line import Progress, printable
from common.files import is_picture, open_image, pictures_below, read_text
from gallery import words
from gallery.album import painted
from gallery.conversations import about_one, about_two, prompt_and_answer, some_topics
from gallery.scenes import random_scenes

QUESTIONS = (           # with INSTRUCTIONS: what one's own pictures are asked
    "What is this?", "What is in this picture?", "What do you see?", "Describe this picture.",
)
LONGEST = 2 ** 20       # bytes of a caption's file that are read
TAIL = 4096             # bytes at the end of a picture file that a fingerprint reads


def open_source(spec, stage, config, load):
    """The training data that --data names, for a stage and a model of `config`.

    spec: a number of the gallery's paintings; tar files by name or pattern
    ('laion/{00000..00301}.tar', 'laion/*.tar') or a folder with some below it; the folder
    cc_sbu_align; or a folder of pictures with captions. load: training.data.load_data, with a
    number of workers. Raises ValueError for anything else, and if there is no pair.
    """
    if spec.isdecimal() and int(spec) > 0 and not os.path.exists(spec):
        return Gallery(int(spec), stage, config)
    files = []
    for path in expand(spec):
        tars = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        files += [file for file in tars if not file.is_dir()] or [path]
    others = [file for file in files if file.suffix != ".tar" or file.is_dir()]
    if not others:
        source = Captioned(*index_tars(files, load), stage, config)
    elif len(files) == 1 and files[0].is_dir():
        source = Captioned(*index_folder(files[0]), stage, config)
        source.as_chat = not (files[0] / "filter_cap.json").exists()
    else:
        raise ValueError(f"{others[0]}: not a tar file; --data takes img2dataset's tar files, one "
                         "folder of them or of pictures with captions, or cc_sbu_align")
    if len(source) == 0:
        raise ValueError(f"{spec}: no picture with a caption in it ({source.left_out}); "
                         "the caption of NAME.jpg is in NAME.txt beside it")
    return source


def expand(pattern):
    """The paths that a name with {first..last} and wildcards stands for. Raises ValueError if there
    is none for one of the names."""
    names, found = [pattern], re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found and not os.path.exists(pattern):
        numbers = range(int(found[1]), int(found[2]) + 1)
        names = [pattern.replace(found[0], f"{n:0{len(found[1])}}") for n in numbers]
    paths = []
    for name in names:
        matching = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not matching:
            raise ValueError(f"{name}: no such file")
        paths += map(Path, matching)
    return paths


class Gallery:
    """The default: painted scenes, and what gallery/words.py says about each: in the language of
    appreciation or, for MiniGPT-4, in plain talk."""
    art = True

    def __init__(self, count, stage, config):
        self.stage, self.config, self.left_out = stage, config, ""
        self.scenes = random_scenes(count, "training")
        self.album = painted(self.scenes).filename            # named by what it holds

    @cached_property
    def paintings(self):                                      # uint8 (N, S, S, 3)
        return np.load(self.album, mmap_mode="r")

    def __getstate__(self):                                   # a worker maps the file itself
        return {name: value for name, value in vars(self).items() if name != "paintings"}

    def __len__(self):
        return len(self.scenes)

    def name(self, i):
        return f"painting {i}"

    def picture(self, i):
        return Image.fromarray(self.paintings[i])

    def fingerprint(self):
        return zlib.crc32(Path(self.album).name.encode())

    def example(self, i, rng, batch_rng):
        scene = self.scenes[i]
        if self.stage == 1:
            return [self.picture(i)], IMAGE_MARK, clean_caption(words.caption(scene, rng, self.art))
        kind = batch_rng.random()
        if kind < 0.25 or self.config.prompt != "vicuna_v0":  # conversations have its format alone
            prompt = instruction_prompt(batch_rng.choice(INSTRUCTIONS), self.config.prompt)
            return [self.picture(i)], prompt, words.description(scene, rng, self.art)
        # All pairs of a batch ask the same kind of question, so their texts have like lengths.
        [topic] = some_topics(1, batch_rng)
        other = (7 * i + 1) % len(self)
        if kind < 0.42:
            last = batch_rng.choice(("both", "which", "which", "one", "description", topic))
            rounds = about_two(self.scenes[other], scene, rng, last, self.art)
            shown = [other, i]
        else:
            if kind < 0.55:
                topic = batch_rng.choice(("presence", "kind"))
            rounds = about_one(scene, rng, topic, batch_rng.choice((1, 3, 8)), self.art)
            shown = [i]
        return [self.picture(one) for one in shown], *prompt_and_answer(rounds, rng)


# ---- Pictures with a caption each


def clean_caption(text, max_words=50):
    """The released code's cleaner for stage 1: lower case, punctuation removed, single spaces.

    At most max_words words are kept.
    """
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:max_words])


class Captioned:
    """Picture files, whole or inside tar files, with a caption each. What is known of them lies in
    tensors, which the workers share.

    files: their paths. pairs: [(number of the file, first byte, size, name, caption), ...].
    """

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
        name, _, caption = bytes(self.texts[self.ends[i]:self.ends[i + 1]]).partition(b"\0")
        return name.decode(), caption.decode()

    def name(self, i):
        name, _ = self.text(i)
        return name

    def picture(self, i):
        """A large JPEG is decoded at reduced size: once resized, a pixel differs by 0.6 of 255 on
        average."""
        number, at, size = self.places[i].tolist()
        with open(self.files[number], "rb", buffering=0) as file:
            file.seek(at)
            content = io.BytesIO(file.read(size))
        return open_image(self.name(i), content, side=4 * self.config.image_size)

    def example(self, i, rng, batch_rng):
        _, caption = self.text(i)
        if self.stage == 1:
            return [self.picture(i)], IMAGE_MARK, clean_caption(caption)
        style = self.config.prompt
        if self.as_chat:
            question = batch_rng.choice(INSTRUCTIONS + QUESTIONS)
            prompt = chat_prompt([f"{IMAGE_SLOT} {question}"], style)
        else:
            prompt = instruction_prompt(batch_rng.choice(INSTRUCTIONS), style)
        return [self.picture(i)], prompt, caption

    def fingerprint(self):
        """Of names, sizes and captions, and of the ends of at most 10,000 pictures."""
        crc = zlib.crc32(self.places.numpy(), zlib.crc32(self.texts.numpy()))
        for i in range(0, len(self), math.ceil(len(self) / 10_000)):
            number, at, size = self.places[i].tolist()
            with open(self.files[number], "rb", buffering=0) as file:
                file.seek(at + max(0, size - TAIL))
                crc = zlib.crc32(file.read(min(size, TAIL)), crc)
        return crc


def caption_of(read, left_out):
    """The caption that read() returns, in which nothing has a meaning in a prompt; "" for one that
    cannot be learned, which is counted."""
    try:
        caption = plain(read()).encode("utf-8", "ignore").decode().strip()
    except (AttributeError, OSError, TypeError, ValueError):
        caption, reason = "", "pictures whose caption is no UTF-8 text"
    else:
        reason = "pictures with an empty caption"
    if not clean_caption(caption):
        left_out[reason] += 1
        return ""
    return caption


def index_folder(folder):
    """(picture files, pairs, left_out) of a folder and those below it. NAME.jpg (or another of
    PICTURE_SUFFIXES) has its caption in NAME.txt, or all captions are in filter_cap.json, as
    cc_sbu_align has them."""
    pictures, others = pictures_below(folder)
    left_out = Counter({f"files {suffix}": count for suffix, count in others.items()
                        if suffix.lower() not in ("hidden", ".txt", ".json")})
    if (folder / "filter_cap.json").is_file():
        captions = annotations(folder / "filter_cap.json")
        named = {file: file.stem for file in pictures}
    else:
        captions = {text.with_suffix(""): partial(read_text, text)
                    for text in sorted(folder.rglob("[!.]*")) if text.suffix.lower() == ".txt"}
        named = {file: file.with_suffix("") for file in pictures}
    left_out["captions without a picture"] = len(captions.keys() - set(named.values()))
    pairs = []
    for number, (file, key) in enumerate(named.items()):
        if key not in captions or not file.is_file():
            left_out["pictures without a caption"] += 1
            continue
        caption, name = caption_of(captions[key], left_out), printable(file.relative_to(folder))
        if caption:
            pairs.append((number, 0, file.stat().st_size, name, caption))
    return pictures, pairs, left_out


def annotations(file):
    """{image_id: function that returns its caption} of a filter_cap.json: a list of them, or
    {"annotations": the list}. Raises ValueError."""
    try:
        found = json.loads(read_text(file))
        found = found["annotations"] if isinstance(found, dict) else found
        return {str(pair["image_id"]): partial(pair.get, "caption") for pair in found}
    except (AttributeError, LookupError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a list of annotations ({error!r})") from None


def index_tar(tar):
    """(pairs without the file's number, left_out) of one of img2dataset's tar files, with members
    KEY.jpg, KEY.txt, KEY.json. It is never unpacked: samples are read in place, and keys are only
    names."""
    samples, left_out, pairs, size = {}, Counter(), [], os.path.getsize(tar)
    try:
        with tarfile.open(tar, "r:") as members, open(tar, "rb") as file:
            with contextlib.suppress(tarfile.TarError, ValueError):      # a damaged header
                for member in members:
                    if not 0 <= member.size <= size - member.offset_data:
                        break
                    key, suffix = os.path.splitext(member.name)
                    part = "picture" if is_picture(member.name) else suffix.lower()[1:]
                    if member.isreg() and not os.path.basename(key).startswith("."):
                        place = member.offset_data, member.size
                        samples.setdefault(key, {})[part] = place
                        if part in ("txt", "json"):
                            file.seek(member.offset_data)
                            samples[key][part] = file.read(min(member.size, LONGEST))
            file.seek(members.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                left_out[f"tar file that is cut short or damaged before its end: {tar}"] += 1
    except tarfile.TarError:
        left_out[f"no tar file, or a compressed one, which cannot be read in place: {tar}"] += 1
    for key, parts in samples.items():
        if "picture" not in parts or not {"json", "txt"} & parts.keys():
            left_out["samples without a picture or a caption"] += 1
            continue
        caption = caption_of(partial(caption_in, parts), left_out)
        if caption:
            name = f"{tar.name}:{key.encode('utf-8', 'backslashreplace').decode()}"
            pairs.append((*parts["picture"], printable(name), caption))
    return pairs, left_out


def caption_in(parts):
    """The caption in the json of a sample, or else in its text."""
    with contextlib.suppress(LookupError, TypeError, ValueError, RecursionError):
        return json.loads(parts["json"])["caption"] or parts["txt"].decode("utf-8-sig")
    return parts["txt"].decode("utf-8-sig") if "txt" in parts else None


def index_tars(tars, load):
    """(tar files, pairs, left_out) of all."""
    progress, pairs, left_out = Progress("indexing", len(tars), "tar files"), [], Counter()
    for number, (found, reasons) in enumerate(load(tars, batch_size=None, collate_fn=index_tar)):
        pairs += [(number, *pair) for pair in found]
        left_out.update(reasons)
        progress.show(number + 1)
    return tars, pairs, left_out
