"""img2dataset's tar files, read at random: what lies where in each is found once, from its headers.

A sample is KEY.jpg (or another of PICTURES) with its caption, "caption" in KEY.json or else the text KEY.txt. Nothing
is ever unpacked or written by a name from a tar.
"""
import json
import os
import random
import re
import tarfile
import zlib
from bisect import bisect_right
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from glob import escape, glob
from itertools import accumulate
from pathlib import Path

import numpy as np

from command import Progress, written_beside

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PARTS = ("picture", "json", "txt")
ABSENT = -1             # as the size of a part
AT_ONCE = 4             # tar files to mix: several, so that they mix; few, so that reads stay near each other


def braces(text):
    """'{00..02}/{a,b}.tar' -> 00/a.tar, 00/b.tar, 01/a.tar, ... as a shell does; other braces mean themselves."""
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
    return [Path(file) for file in files]


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


class TarFiles:
    """The samples of tar files, whose indices are kept in `folder`. Raises ValueError if they hold no picture."""

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
        """The bytes of a part of sample i. Raises ValueError if they are not there, OSError if they cannot be read."""
        tar, row = self.locate(i)
        at, size = row[part].tolist()
        if not row["key"]:
            raise ValueError(f"the tar file is empty, cut short or damaged from byte {row['picture'][0]} on")
        if size == ABSENT:
            raise ValueError(f"no {part}" if part == "picture" else "no caption")
        with open(tar, "rb", buffering=0) as file:
            file.seek(at)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"a {part} of {size} bytes, of which {len(content)} are in the tar file")
        return content

    def picture_file(self, i):
        return self.read(i, "picture")

    def caption(self, i):
        about = json.loads(self.read(i, "json")) if self.locate(i)[1]["json"][1] != ABSENT else None
        if isinstance(about, dict) and about.get("caption") is not None:
            return about["caption"]
        return self.read(i, "txt").decode("utf-8-sig").strip()

    def text_length(self, i):
        """Of KEY.txt, else of KEY.json, in bytes."""
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
