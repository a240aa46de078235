"""The weights folder, written tensor after tensor; it appears when it is complete."""
import contextlib
import fcntl
import json
import os
import shutil
import struct
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from common.command_line import printable
from common.files import parents_of, path_beside
from common.progress import Progress
from conversion.tensor_files import DTYPES

SHARD = 4_000_000_000                                         # bytes
ROWS = 256                                                    # checked, packed, written at a time


def safetensors_header(tensors):
    """The first bytes of a safetensors file that holds {name: Fused}, in this order."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def check_rows(where, rows):
    """Whether any of some rows is not 0. Raises ValueError for a NaN or an infinity."""
    extremes = torch.stack(rows.aminmax())
    if not extremes.isfinite().all():
        raise ValueError(f"{where}: holds NaN or infinity; the file is damaged")
    return bool(extremes.any())


def may_be_zero(name):
    """Whether a tensor of artgpt4.py may be 0 in all places: biases may, and the second matrix of
    an adapter, which is 0 before training."""
    return name.endswith((".bias", ".up.weight"))


def packed_rows(name, tensor):
    """Yield (some rows as they are to be written, the part they come from) of a Fused.

    Raises ValueError for a NaN or an infinity, and for a part that is 0 in all places.
    """
    for part in tensor.parts:
        filled = may_be_zero(name)
        try:
            values = part.read()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{part.where}: cannot be read ({error})") from error
        for rows in values.split(ROWS):
            filled = check_rows(part.where, rows) or filled
            yield tensor.pack(rows).contiguous(), part
        del values, rows                                      # before the next part is read
        if not filled:
            raise ValueError(f"{part.where}: is 0 in all places; the file is damaged")


def write_safetensors(file, tensors, written):
    """Write {name: Fused} to a safetensors file: the header, then a few rows at a time.

    written(bytes, where) is called after each of them.
    """
    with open(file, "wb") as out:
        out.write(safetensors_header(tensors))
        for name, tensor in tensors.items():
            for packed, part in packed_rows(name, tensor):
                out.write(packed.view(torch.uint8).numpy().data)
                written(packed.nbytes, part.where)
                del packed                                    # before the next part is read
        out.flush()
        os.fsync(out.fileno())


def in_shards(tensors):
    """{file: {name: Fused}} of the language model: one file, or shards of at most SHARD bytes,
    which a small machine can map."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return {"llama.safetensors": tensors}
    return {f"llama-{number:05d}-of-{len(shards):05d}.safetensors": shard
            for number, shard in enumerate(shards, 1)}


LOCK = ".convert_weights.lock"                                # held while its folder is written


@contextlib.contextmanager
def folder_beside(out, size):
    """A folder beside `out`, to write `size` bytes to. It is renamed to `out` at the end of the
    block, or removed if that fails. Raises ValueError if the disk is too small."""
    try:
        with parents_of(out):
            beside = path_beside(out)
            beside.mkdir()
            try:
                with open(beside / f"{LOCK}.new", "wb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    Path(lock.name).rename(beside / LOCK)     # held before anyone can see it
                    free = shutil.disk_usage(beside).free
                    if free < size:
                        raise ValueError(f"{out}: needs {size / 1e9:.2f} GB, but {free / 1e9:.2f} "
                                         "GB are free")
                    yield beside
                    beside.rename(out)
                    (out / LOCK).unlink()
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"{out}: {error.strerror}; nothing was kept") from error


def remove_leftovers(folder):
    """Remove what killed conversions left in a folder, and say so on stderr.

    Only folders with a LOCK are theirs, and only one whose lock nobody holds is removed.
    """
    for lock in sorted(folder.glob(f".*.part/{LOCK}")):
        left = lock.parent
        with contextlib.suppress(OSError), open(lock, "rb+") as opened:
            size = sum(file.stat().st_size for file in left.iterdir()) / 1e9
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{printable(left)}: {size:.2f} GB so far, is being written by another "
                      "process", file=sys.stderr)
                continue
            shutil.rmtree(left)
            print(f"removed {printable(left)}: {size:.2f} GB, left by a conversion that was killed",
                  file=sys.stderr)


class Written:
    """Shows the progress of writing. It is called with bytes, and the source they come from."""

    def __init__(self, total):
        self.progress, self.done = Progress("written", total / 1e9, "GB"), 0

    def __call__(self, size, where):
        self.done += size
        self.progress.show(self.done / 1e9, printable(where.rpartition(" ")[2]))


def write_folder(out, files, config, tokenizer):
    """Write a weights folder, then print what was written.

    files: {file: {name: Fused}}. config: the Config. tokenizer: the path of its tokenizer.model.
    """
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    written = Written(total)
    with folder_beside(out, total) as folder:
        for file, tensors in files.items():
            write_safetensors(folder / file, tensors, written)
        weight_map = {name: file for file, tensors in files.items() if file.startswith("llama-")
                      for name in tensors}
        if weight_map:
            index = json.dumps({"metadata": {}, "weight_map": weight_map})
            (folder / "llama.safetensors.index.json").write_text(index)
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    for file, tensors in files.items():
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
        size = (out / file).stat().st_size
        print(f"{printable(out / file)}  {size / 1e9:.3f} GB  {', '.join(dtypes)}")
