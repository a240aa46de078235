"""Pictures with words: the gallery, a folder of one's own, cc_sbu_align, img2dataset's tar files.

What cannot be read raises an error at that moment; what is known to be unusable from the start is
left out, and counted with its reason.
"""
import contextlib
import glob
import io
import json
import os
import random
import re
import tarfile
import zlib
from collections import Counter
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from artgpt4 import (
    IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, instruction_prompt, plain,
)
from common.command_line import Progress, printable
from common.files import check_file, is_picture, open_image, pictures_below, read_text
from gallery import words
from gallery.album import painted
from gallery.conversations import about_one, about_two, prompt_and_answer, some_topics
from gallery.scenes import random_scenes
from training.processes import RANK, WORLD, gathered

PARTS = ("picture", "json", "txt")                            # of a sample in a tar file
TAIL = 4096             # bytes at the end of a picture file that a fingerprint reads


def open_source(spec, stage, config, load):
    """The training data that --data names, for a stage and a model of `config`.

    spec: a number of the gallery's paintings; tar files by name or pattern
    ('laion/{00000..00301}.tar', 'laion/*.tar') or a folder with some below it; the folder
    cc_sbu_align; or a folder of pictures with captions. load: training.data.load_data, with a
    number of workers. Raises ValueError for anything else, and if there is no pair.
    """
    if spec.isdecimal() and not os.path.exists(spec):
        return Gallery(int(spec), stage, config)
    files = []
    for path in expand(spec):
        tars = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        files += [file for file in tars if not file.is_dir()] or [path]
    others = [file for file in files if file.suffix != ".tar" or file.is_dir()]
    if not others:
        source = Tars(files, stage, config, load)
    elif len(files) == 1 and files[0].is_dir():
        source = Files(files[0], stage, config)
    else:
        raise ValueError(f"{others[0]}: not a tar file; --data takes img2dataset's tar files, one "
                         "folder of them or of pictures with captions, or cc_sbu_align")
    if len(source) == 0:
        raise ValueError(f"{spec}: no picture with a caption in it ({source.what_is_left_out}); "
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


class Source:
    """Pairs of a stage: len, name(i), picture(i), fingerprint() of what the data is, wherever it
    lies, and example(i, rng, batch_rng) -> (pictures, prompt, answer). batch_rng draws alike for
    all pairs of a batch."""

    def __init__(self, stage, config):
        self.stage, self.config, self.left_out = stage, config, Counter()

    @property
    def what_is_left_out(self):
        return ", ".join(f"{count} {printable(what)}" for what, count in self.left_out.items())

    def order(self, seed, epoch):
        """The numbers of all pairs, in the order of an epoch."""
        return random.Random(f"{seed} epoch {epoch}").sample(range(len(self)), len(self))


class Gallery(Source):
    """The default: painted scenes, and what gallery/words.py says about each."""

    def __init__(self, count, stage, config):
        super().__init__(stage, config)
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
            return [self.picture(i)], IMAGE_MARK, clean_caption(words.caption(scene, rng))
        kind = batch_rng.random()
        if kind < 0.25:
            prompt = instruction_prompt(batch_rng.choice(INSTRUCTIONS), self.config.prompt)
            return [self.picture(i)], prompt, words.description(scene, rng)
        # All pairs of a batch ask the same kind of question, so their texts have like lengths.
        [topic] = some_topics(1, batch_rng)
        other = (7 * i + 1) % len(self)
        if kind < 0.42:
            last = batch_rng.choice(("both", "which", "which", "one", "description", topic))
            rounds, shown = about_two(self.scenes[other], scene, rng, last), [other, i]
        else:
            if kind < 0.67:
                topic = batch_rng.choice(("presence", "kind"))
            rounds, shown = about_one(scene, rng, topic, most=2), [i]
        return [self.picture(one) for one in shown], *prompt_and_answer(rounds, rng)


# ---- Pictures with a caption each


def clean_caption(text, max_words=50):
    """The released code's cleaner for stage 1: lower case, punctuation removed, single spaces.

    At most max_words words are kept.
    """
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:max_words])


class Captioned(Source):
    """A subclass has stream(i), the picture file of a pair, binary, and caption(i), a text."""

    def prompt(self, instruction):
        """As the released code asks in stage 2."""
        return instruction_prompt(instruction, self.config.prompt)

    def picture(self, i):
        """A large JPEG is decoded at reduced size: once resized, a pixel differs by 0.6 of 255 on
        average."""
        return open_image(self.name(i), self.stream(i), side=4 * self.config.image_size)

    def example(self, i, rng, batch_rng):
        caption, prompt = plain(self.caption(i)), IMAGE_MARK
        if self.stage == 1:
            caption = clean_caption(caption)
        else:
            prompt = self.prompt(batch_rng.choice(INSTRUCTIONS))
        if not caption.strip():
            raise ValueError("the caption is empty")
        return [self.picture(i)], prompt, caption


class Files(Captioned):
    """The pictures in a folder and below it. NAME.jpg (or another of PICTURE_SUFFIXES) has its
    caption in NAME.txt, or all captions are in filter_cap.json, as cc_sbu_align has them."""

    def __init__(self, folder, stage, config):
        super().__init__(stage, config)
        pictures, others = pictures_below(folder)
        for reason, count in others.items():
            if not reason.lower().startswith(("hidden", ".txt", ".json")):
                self.left_out[reason] = count
        self.is_cc_sbu_align = (folder / "filter_cap.json").is_file()
        if self.is_cc_sbu_align:
            captions = annotations(folder / "filter_cap.json")
            named = {file: file.stem for file in pictures}
        else:
            captions = {text.with_suffix(""): text for text in sorted(folder.rglob("[!.]*"))
                        if text.suffix.lower() == ".txt"}
            named = {file: file.with_suffix("") for file in pictures}
        self.left_out["captions without a picture"] = len(captions.keys() - set(named.values()))
        self.pairs = []
        for file, name in named.items():
            try:
                caption = captions.get(name)
                caption = read_text(caption) if isinstance(caption, Path) else caption
            except ValueError:
                self.left_out["captions that are no UTF-8"] += 1
                continue
            if isinstance(caption, str) and caption.strip():
                self.pairs.append((file, caption.strip()))
            else:
                self.left_out["pictures without a caption"] += 1
        self.left_out = +self.left_out                        # without those of count 0

    def __len__(self):
        return len(self.pairs)

    def name(self, i):
        file, _ = self.pairs[i]
        return printable(file)

    def stream(self, i):
        file, _ = self.pairs[i]
        check_file(file)
        return open(file, "rb")

    def caption(self, i):
        _, caption = self.pairs[i]
        return caption

    def prompt(self, instruction):
        """Of one's own pictures: as chat.py will ask."""
        if self.is_cc_sbu_align:
            return super().prompt(instruction)
        return chat_prompt([f"{IMAGE_SLOT} {instruction}"], self.config.prompt)

    def fingerprint(self):
        crc = 0
        for file, caption in self.pairs:
            check_file(file)
            with open(file, "rb") as opened:
                size = opened.seek(0, os.SEEK_END)
                opened.seek(max(0, size - TAIL))
                crc = zlib.crc32(opened.read(), crc)
            crc = zlib.crc32(repr((file.name, size, caption)).encode(), crc)
        return crc


def annotations(file):
    """{image_id: caption} of a filter_cap.json: a list of them, or {"annotations": the list}.
    Raises ValueError."""
    try:
        found = json.loads(read_text(file))
        found = found["annotations"] if isinstance(found, dict) else found
        return {str(pair["image_id"]): pair["caption"] for pair in found}
    except (LookupError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a list of annotations ({error!r})") from None


# ---- Tar files: never unpacked, and nothing is written under a name from inside one


def index_tar(tar):
    """The samples of a tar file that have a picture and a caption -> int64 (N, 6), the place and
    the size in bytes of each of PARTS, 0 for one that is not there; and {reason: count} of what is
    left out."""
    check_file(tar)
    samples, left_out, size = {}, Counter(), os.path.getsize(tar)
    try:
        with tarfile.open(tar, "r:") as members, open(tar, "rb") as file:
            with contextlib.suppress(tarfile.TarError, ValueError):      # a damaged header
                for member in members:
                    if not 0 <= member.size <= size - member.offset_data:
                        break
                    stem, suffix = os.path.splitext(member.name)
                    part = "picture" if is_picture(member.name) else suffix.lower()[1:]
                    hidden = os.path.basename(stem).startswith(".")
                    if part in PARTS and member.isreg() and not hidden:
                        samples.setdefault(stem, {})[part] = member.offset_data, member.size
            file.seek(members.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                left_out[f"tar file that is cut short or damaged before its end: {tar}"] += 1
    except tarfile.TarError:
        left_out[f"no tar file, or a compressed one, which cannot be read in place: {tar}"] += 1
    rows = []
    for parts in samples.values():
        if "picture" in parts and len(parts) > 1:
            rows.append([number for part in PARTS for number in parts.get(part, (0, 0))])
        else:
            left_out["samples without a picture or a caption"] += 1
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2 * len(PARTS)), left_out


class Tars(Captioned):
    """img2dataset's tar files, with members KEY.jpg, KEY.txt, KEY.json. Their headers are read at
    every start; samples are then read in place."""

    def __init__(self, tars, stage, config, load):
        super().__init__(stage, config)
        self.tars, own, indices = tars, tars[RANK::WORLD], []
        progress = Progress("indexing", len(own), "tar files")
        for index in load(own, batch_size=None, collate_fn=index_tar):
            indices.append(index)
            progress.show(len(indices))
        found = dict(gathered(list(zip(own, indices, strict=True))))
        for _, left_out in found.values():
            self.left_out.update(left_out)
        ordered = [found[tar][0] for tar in tars]
        self.index = torch.cat(ordered)                       # (N, 6), shared with the workers
        self.starts = torch.tensor([0, *accumulate(map(len, ordered))])

    def __len__(self):
        return len(self.index)

    def read(self, i, part):
        """(tar file, the 512 bytes of the tar header, the content) of one of PARTS of sample i; the
        last two are empty if it is not there."""
        tar = self.tars[int(torch.searchsorted(self.starts, i, right=True)) - 1]
        at, size = self.index[i].view(len(PARTS), 2)[PARTS.index(part)].tolist()
        with open(tar, "rb", buffering=0) as file:
            file.seek(max(0, at - tarfile.BLOCKSIZE))
            content = file.read(tarfile.BLOCKSIZE + size if at else 0)
        return tar, content[:tarfile.BLOCKSIZE], content[tarfile.BLOCKSIZE:]

    def name(self, i):
        try:
            tar, header, _ = self.read(i, "picture")
        except OSError as error:
            return printable(f"{error.filename}, sample {i}")
        key, _, _ = header[:100].partition(b"\0")
        return printable(f"{tar.name}:{key.decode('utf-8', 'backslashreplace')}")

    def stream(self, i):
        return io.BytesIO(self.read(i, "picture")[-1])

    def caption(self, i):
        _, _, about = self.read(i, "json")
        _, _, text = self.read(i, "txt")
        return json.loads(about or "{}").get("caption") or text.decode("utf-8-sig").strip()

    def fingerprint(self):
        named = repr([(tar.name, os.path.getsize(tar)) for tar in self.tars]).encode()
        return zlib.crc32(self.index.numpy(), zlib.crc32(named))
