"""Pictures with captions in files: img2dataset's tar files, cc_sbu_align, a folder of one's own pictures.

What is wrong with a sample is found when it is read, and raised as a SampleError. Nothing is ever unpacked, or written
by a name from a tar.
"""
import contextlib
import io
import json
import os
import random
import re
import tarfile
import warnings
import zlib
from bisect import bisect_right
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from glob import escape, glob
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from artgpt4 import INSTRUCTIONS, instruction_prompt
from common.files import to_rgb, written_beside
from common.progress import Progress

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PARTS = ("picture", "json", "txt")      # of a sample in a tar file
ABSENT = -1                             # the size of a part that is not there
AT_ONCE = 4             # tar files to mix: several, so that they mix; few, so that reads stay near each other
DRAFT = 4               # see decode()


class SampleError(ValueError):
    """Why a sample cannot be trained on: it will be skipped."""


@contextlib.contextmanager
def sample_errors():
    """Whatever goes wrong with a sample, a damaged file can raise anything, becomes a SampleError of one line."""
    try:
        yield
    except Exception as error:
        raise SampleError(" ".join(str(error).split()) or repr(error)) from None


def decode(content, size=0):
    """The bytes of a picture file -> RGB: upright (EXIF), on white where transparent; CMYK, palette, 16 bits converted.

    Raises ValueError, or whatever Pillow does, if it is damaged, has more pixels than Pillow thinks safe (89 million)
    or a side of 1 pixel. With a size, a JPEG comes at 1/2, 1/4 or 1/8 if that leaves DRAFT * size pixels a side: what
    is resized to `size` then, whole or cropped, differs by 4 of 255 at most and by 0.6 in the mean.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            raise ValueError("not a picture that Pillow can read") from None
    if min(image.size) < 2:
        raise ValueError(f"{image.width} x {image.height} pixels are no picture")
    if size:
        image.draft(None, (DRAFT * size, DRAFT * size))
    if image.format == "JPEG" and image.mode == "RGB" and not {"exif", "xmp"} & image.info.keys():
        image.load()                                          # to_rgb would copy it twice, which takes time
        return image
    return to_rgb(image)


def clean_caption(text, max_words=50):
    """The caption cleaner of stage 1: lower case, marks to spaces, runs of spaces to one, at most max_words words."""
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:max_words])


class Source:
    """What sources share. Each has len, name(i), picture(i, size) and words(i, ...), which may raise SampleError."""

    def text_length(self, i):
        """About how long the text of pair i will be, in any unit, known without reading it."""
        return 0

    def order(self, seed, epoch):
        """The numbers of all pairs, in the order of an epoch."""
        return random.Random(f"{seed} epoch {epoch}").sample(range(len(self)), len(self))


class Part(Source):
    """The pairs first, ..., last - 1 of a source, as a source."""

    def __init__(self, source, first, last):
        self.source, self.first, self.last = source, first, last

    def __len__(self):
        return self.last - self.first

    def order(self, seed, epoch):
        order = np.asarray(self.source.order(seed, epoch))
        return order[(self.first <= order) & (order < self.last)] - self.first

    def name(self, i):
        return self.source.name(self.first + i)

    def text_length(self, i):
        return self.source.text_length(self.first + i)

    def picture(self, i, size=0):
        return self.source.picture(self.first + i, size)

    def words(self, i, *arguments):
        return self.source.words(self.first + i, *arguments)


class Captioned(Source):
    """A picture file and a caption each. A subclass gives content(i), the bytes of the file, and caption(i)."""

    def picture(self, i, size=0):
        with sample_errors():
            return decode(self.content(i), size)

    def words(self, i, stage, rng, batch_rng):
        with sample_errors():
            caption = self.caption(i)
            if isinstance(caption, bytes):
                caption = caption.decode("utf-8-sig").strip()
            if not isinstance(caption, str):
                raise ValueError("no caption" if caption is None else f"the caption is {caption!r:.40}, not a text")
            caption.encode()                                  # JSON can hold what UTF-8 cannot
            text = clean_caption(caption) if stage == 1 else caption
            if not text.strip():
                raise ValueError("the caption is empty")
        return (None if stage == 1 else instruction_prompt(batch_rng.choice(INSTRUCTIONS))), text


# ---- Folders


class PictureFiles(Captioned):
    """Pairs (path of a picture, its caption: a text, or UTF-8 in bytes, or None)."""
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def name(self, i):
        return self.pairs[i][0].name

    def content(self, i):
        return self.pairs[i][0].read_bytes()

    def caption(self, i):
        return self.pairs[i][1]

    def text_length(self, i):
        return len(str(self.pairs[i][1]))


def cc_sbu_align(folder):
    """The folder with image/ID.jpg and filter_cap.json. Raises ValueError if that file is not a list of captions."""
    file = folder / "filter_cap.json"
    try:
        annotations = json.loads(file.read_text(encoding="utf-8"))["annotations"]
        pairs = [(folder / "image" / f"{pair['image_id']}.jpg", pair["caption"]) for pair in annotations]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a list of annotations ({error!r})") from None
    if not pairs:
        raise ValueError(f"{file}: no annotations in it")
    return PictureFiles(pairs)


def own_pictures(folder):
    """A folder of NAME.jpg (.png, .webp, ...) each with its caption NAME.txt. Raises ValueError if there is no pair."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    texts = [file.with_suffix(".txt") for file in files]
    pairs = [(file, text.read_bytes() if text.is_file() else None) for file, text in zip(files, texts, strict=True)]
    if not any(text for _, text in pairs):
        raise ValueError(f"{folder}: {len(files)} pictures, none with a caption NAME.txt beside it; --data takes such "
                         "a folder, one of img2dataset's tar files, or cc_sbu_align")
    return PictureFiles(pairs)


# ---- Tar files


def braces(text):
    """'{00..02}/{a,b}.tar' -> 00/a.tar, 00/b.tar, 01/a.tar, ... other braces mean themselves."""
    group = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if not group:
        return [text]
    first, last, words = group.groups()
    words = words.split(",") if words else (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
    return (whole for word in words for whole in braces(text[:group.start()] + word + text[group.end():]))


def expand(pattern):
    """The files or folders that a name with braces and wildcards stands for. Raises ValueError if one is not there."""
    files = []
    for name in [pattern] if os.path.exists(pattern) else braces(pattern):
        found = [name] if os.path.exists(name) else sorted(glob(name, recursive=True))
        if not found:
            raise ValueError(f"{name}: no such file" + f", but {pattern} stands for it too" * (name != pattern))
        files += found
    return [Path(file) for file in dict.fromkeys(files)]


def index_tar(tar):
    """The samples of a tar file as an array with a field key, and for each of PARTS (offset, size) in bytes. If the tar
    is cut short, damaged or empty, its whole samples are followed by a row without a key, for all that is lost: the
    offset of its picture says from which byte on."""
    samples, key, at, whole, end = {}, None, 0, False, os.path.getsize(tar)
    try:
        with tarfile.open(tar, "r:") as members:
            for member in members:
                at = member.offset
                if member.size < 0 or member.offset_data + member.size > end:
                    break
                stem, suffix = os.path.splitext(member.name)
                part = "picture" if suffix.lower() in PICTURES else suffix.lower()[1:]
                if part in PARTS and member.isreg() and not member.issparse():
                    key = os.fsencode(stem)
                    samples.setdefault(key, {})[part] = member.offset_data, member.size
            else:
                at = members.offset
        with open(tar, "rb") as file:                         # tarfile takes a damaged header for the end
            file.seek(at)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError):
        pass
    last = samples.get(key, {})
    if last and not whole and ("picture" not in last or len(last) == 1):
        del samples[key]                                      # its other parts are lost
    if not whole or not samples:
        samples[b""] = {"picture": (at, ABSENT)}
    rows = np.zeros(len(samples), [("key", f"S{max(map(len, samples)) + 1}")] + [(part, "<i8", 2) for part in PARTS])
    for row, (key, parts) in zip(rows, samples.items(), strict=True):
        row["key"] = key
        for part in PARTS:
            row[part] = parts.get(part, (0, ABSENT))
    return rows


def keep_index(tar, folder):
    """The file in `folder` that holds the index of a tar file; made when the tar is new or has changed: the file's name
    holds its size and time."""
    tar = Path(tar).absolute()
    name, status = f"{tar.name}-{zlib.crc32(os.fsencode(tar)):08x}", tar.stat()
    file = Path(folder) / f"{name}-{status.st_size}-{status.st_mtime_ns}.npy"
    try:
        np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):                   # none yet, or not what was written
        rows = index_tar(tar)
        with written_beside(file) as path, open(path, "wb") as opened:
            np.save(opened, rows)
        for former in set(file.parent.glob(f"{escape(name)}-*.npy")) - {file}:
            former.unlink(missing_ok=True)
    return file


class Shards(Captioned):
    """img2dataset's tar files, whose indices are kept in `folder`. Raises ValueError if they hold no picture."""

    def __init__(self, tars, folder):
        self.tars, self.indices = tars, []
        progress = Progress("indexing", len(tars), "tar files")
        with ProcessPoolExecutor() as pool:
            for file in pool.map(partial(keep_index, folder=folder), tars):
                self.indices.append(np.load(file, mmap_mode="r"))
                progress.show(len(self.indices))
        self.starts = [0, *accumulate(map(len, self.indices))]
        if all((rows["picture"][:, 1] == ABSENT).all() for rows in self.indices):
            raise ValueError(f"{tars[0]}: no picture in it" + f", nor in the {len(tars) - 1} others" * (len(tars) > 1)
                             + "; img2dataset's tar files hold KEY.jpg, KEY.txt and KEY.json")

    def __len__(self):
        return self.starts[-1]

    def locate(self, i):
        """The tar file of sample i and its row in the index."""
        shard = bisect_right(self.starts, i) - 1
        return self.tars[shard], self.indices[shard][i - self.starts[shard]]

    def name(self, i):
        tar, row = self.locate(i)
        key = os.fsdecode(row["key"].item())
        return tar.name + (f":{key if key.isprintable() else ascii(key)}" if key else "")

    def read(self, i, part):
        """The bytes of a part of sample i, or None. Raises ValueError if the tar file is cut short there."""
        tar, row = self.locate(i)
        at, size = row[part].tolist()
        if not row["key"]:
            raise ValueError(f"the tar file is empty, cut short or damaged from byte {row['picture'][0]} on")
        if size == ABSENT:
            return None
        with open(tar, "rb", buffering=0) as file:
            file.seek(at)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"{part} of {size} bytes, of which the tar file holds {len(content)}")
        return content

    def content(self, i):
        if (content := self.read(i, "picture")) is None:
            raise ValueError("no picture")
        return content

    def caption(self, i):
        about = json.loads(self.read(i, "json") or "{}")
        caption = about.get("caption") if isinstance(about, dict) else None
        return self.read(i, "txt") if caption is None else caption

    def text_length(self, i):
        row = self.locate(i)[1]
        return int(row["txt" if row["txt"][1] != ABSENT else "json"][1])

    def order(self, seed, epoch):
        """The tar files in random order, and so the samples of every AT_ONCE of them."""
        rng, found = random.Random(f"{seed} epoch {epoch}"), []
        shards = rng.sample(range(len(self.tars)), len(self.tars))
        for first in range(0, len(shards), AT_ONCE):
            block = [np.arange(self.starts[s], self.starts[s + 1]) for s in shards[first:first + AT_ONCE]]
            block = np.concatenate(block).tolist()
            found.append(np.array(rng.sample(block, len(block))))
        return np.concatenate(found)
