"""img2dataset's tar files: an index of each, and samples read from them at random.

A tar file is never unpacked, and nothing is written under a name from inside one.
"""
import contextlib
import json
import os
import random
import tarfile
import zlib
from bisect import bisect_right
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from glob import escape
from itertools import accumulate
from pathlib import Path

import numpy as np

from common.files import written_beside
from common.progress import Progress
from training.sources import PICTURES, Captioned, caption_text, is_macos_extra

PARTS = ("picture", "json", "txt")      # of a sample
VERSION = 2             # of the index files
ABSENT = -1             # the size of a part that is not there
AT_ONCE = 4             # tar files shuffled together: several to mix, few to keep reads close
COMPRESSED = {          # the first bytes of a file
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}


def read_members(tar):
    """({key: {part: (offset, size)}}, the key of the last sample, where the whole members end).

    Offsets and sizes are in bytes. Stops where the tar file is cut short or damaged.
    """
    samples, key, at, size = {}, None, 0, os.path.getsize(tar)
    with contextlib.suppress(tarfile.TarError, ValueError), tarfile.open(tar, "r:") as members:
        for member in members:
            at = member.offset
            if member.size < 0 or member.offset_data + member.size > size:
                break
            stem, suffix = os.path.splitext(member.name)
            part = "picture" if suffix.lower() in PICTURES else suffix.lower()[1:]
            is_file = member.isreg() and not member.issparse()
            if part in PARTS and is_file and not is_macos_extra(member.name):
                key = os.fsencode(stem)
                samples.setdefault(key, {})[part] = member.offset_data, member.size
        else:
            at = members.offset
    return samples, key, at


def index_tar(tar):
    """The samples of a tar file, as an array with the fields key and, for each of PARTS, (offset,
    size) in bytes.

    If the tar file is cut short, damaged or empty, a row without a key follows its whole samples.
    It stands for all that is lost; the offset of its picture says from which byte on. Raises
    ValueError if the file is compressed.
    """
    with open(tar, "rb") as file:
        head = file.read(8)
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(f"{tar}: compressed with {kind}; samples are read in place, so "
                             "decompress it first")
    samples, last_key, at = read_members(tar)
    with open(tar, "rb") as file:       # tarfile takes a damaged header for the end
        file.seek(at)
        whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    last = samples.get(last_key, {})
    if last and not whole and ("picture" not in last or len(last) == 1):
        del samples[last_key]           # its other parts are lost
    if not whole or not samples:
        samples[b""] = {"picture": (at, ABSENT)}
    longest = max(map(len, samples))
    fields = [("key", f"S{longest + 1}")] + [(part, "<i8", 2) for part in PARTS]
    rows = np.zeros(len(samples), fields)
    for row, (key, parts) in zip(rows, samples.items(), strict=True):
        row["key"] = key
        for part in PARTS:
            row[part] = parts.get(part, (0, ABSENT))
    return rows


def keep_index(tar, folder):
    """The file in `folder` that holds the index of a tar file.

    Its name holds the tar's size and time, so it is made for a new tar and for a changed one.
    """
    tar = Path(tar).absolute()
    name, status = f"{tar.name}-{zlib.crc32(os.fsencode(tar)):08x}", tar.stat()
    file = Path(folder) / f"{name}-{VERSION}-{status.st_size}-{status.st_mtime_ns}.npy"
    try:
        np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):      # not there, or damaged
        rows = index_tar(tar)
        with written_beside(file) as path, open(path, "wb") as opened:
            np.save(opened, rows)
        for former in set(file.parent.glob(f"{escape(name)}-*.npy")) - {file}:
            former.unlink(missing_ok=True)
    return file


class Shards(Captioned):
    """img2dataset's tar files, whose indices are kept in `folder`.

    Raises ValueError if they hold no picture.
    """

    def __init__(self, tars, folder):
        self.tars, self.indices = tars, []
        progress = Progress("indexing", len(tars), "tar files")
        with ProcessPoolExecutor() as pool:
            for file in pool.map(partial(keep_index, folder=folder), tars):
                self.indices.append(np.load(file, mmap_mode="r"))
                progress.show(len(self.indices))
        self.starts = [0, *accumulate(map(len, self.indices))]
        if all((rows["picture"][:, 1] == ABSENT).all() for rows in self.indices):
            others = f", nor in the {len(tars) - 1} others" if len(tars) > 1 else ""
            raise ValueError(f"{tars[0]}: no picture in it{others}; img2dataset's tar files hold "
                             "KEY.jpg, KEY.txt and KEY.json")

    def __len__(self):
        return self.starts[-1]

    def locate(self, i):
        """The tar file of sample i and its row in the index."""
        shard = bisect_right(self.starts, i) - 1
        return self.tars[shard], self.indices[shard][i - self.starts[shard]]

    def name(self, i):
        tar, row = self.locate(i)
        key = os.fsdecode(row["key"].item())
        if not key:
            return tar.name
        return f"{tar.name}:{key if key.isprintable() else ascii(key)}"

    def read(self, i, part):
        """The bytes of a part of sample i, or None if it is not there.

        Raises ValueError if the tar file is cut short or damaged there.
        """
        tar, row = self.locate(i)
        at, size = row[part].tolist()
        if not row["key"]:
            lost = row["picture"][0]
            raise ValueError(f"the tar file is empty, cut short or damaged from byte {lost} on")
        if size == ABSENT:
            return None
        with open(tar, "rb", buffering=0) as file:
            file.seek(at)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"{part} of {size} bytes, of which the tar file holds {len(content)}")
        return content

    def content(self, i):
        content = self.read(i, "picture")
        if content is None:
            raise ValueError("no picture")
        return content

    def caption(self, i):
        content = self.read(i, "json") or "{}"
        try:
            about = json.loads(content)
            caption = caption_text(about.get("caption") if isinstance(about, dict) else None)
        except (ValueError, RecursionError):
            _, row = self.locate(i)
            if row["txt"][1] == ABSENT:
                raise
            caption = None
        return caption or self.read(i, "txt")                 # the text may be good

    def known_bad(self):
        bad = {}
        for start, rows in zip(self.starts, self.indices, strict=False):
            no_picture = rows["picture"][:, 1] == ABSENT
            no_caption = (rows["txt"][:, 1] == ABSENT) & (rows["json"][:, 1] == ABSENT)
            for at in (no_picture | no_caption).nonzero()[0]:
                reason = "no picture" if no_picture[at] else "no caption"
                if not rows[at]["key"]:
                    reason = f"empty, cut short or damaged from byte {rows[at]['picture'][0]} on"
                bad[start + int(at)] = reason
        return bad

    def fingerprint(self):
        crc = 0
        for tar, rows in zip(self.tars, self.indices, strict=True):
            crc = zlib.crc32(f"{tar.name} {tar.stat().st_size}".encode(), crc)
            crc = zlib.crc32(np.ascontiguousarray(rows).tobytes(), crc)
        return crc

    def text_length(self, i):
        _, row = self.locate(i)
        _, size = row["txt"]
        if size == ABSENT:
            _, size = row["json"]
        return int(size)

    def order(self, seed, epoch):
        """The tar files in random order, and the samples of every AT_ONCE of them shuffled."""
        rng, orders = random.Random(f"{seed} epoch {epoch}"), []
        shards = rng.sample(range(len(self.tars)), len(self.tars))
        for first in range(0, len(shards), AT_ONCE):
            block = []
            for shard in shards[first:first + AT_ONCE]:
                block += range(self.starts[shard], self.starts[shard + 1])
            orders.append(np.array(rng.sample(block, len(block)), dtype=np.int64))
        return np.concatenate(orders)
