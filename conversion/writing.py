"""The weights folder, written tensor after tensor; it appears when it is complete."""
import contextlib
import json
import os
import shutil
import struct
from dataclasses import asdict

import torch

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


def packed_rows(tensor):
    """Yield (some rows as they are to be written, the part they come from) of a Fused.

    Raises ValueError for a NaN or an infinity.
    """
    for part in tensor.parts:
        for rows in part.read().split(ROWS):
            if not torch.stack(rows.aminmax()).isfinite().all():
                raise ValueError(f"{part.where}: holds NaN or infinity; the file is damaged")
            yield tensor.pack(rows).contiguous(), part
        del rows                                              # a view that keeps the part in memory


def write_safetensors(file, tensors, written):
    """Write {name: Fused} to a safetensors file: the header, then a few rows at a time.

    written(bytes, where) is called after each of them.
    """
    with open(file, "wb") as out:
        out.write(safetensors_header(tensors))
        for tensor in tensors.values():
            for packed, part in packed_rows(tensor):
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


@contextlib.contextmanager
def folder_beside(out, size):
    """A folder beside `out`, to write `size` bytes to. It is renamed to `out` at the end of the
    block, or removed if that fails. Raises ValueError if the disk is too small."""
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        free = shutil.disk_usage(beside).free
        if free < size:
            raise ValueError(f"{out}: needs {size / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free")
        yield beside
        beside.rename(out)
    except OSError as error:
        raise ValueError(f"{out}: {error.strerror}; nothing was kept") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class Written:
    """Shows the progress of writing. It is called with bytes, and the source they come from."""

    def __init__(self, total):
        self.progress, self.done = Progress("written", total / 1e9, "GB"), 0

    def __call__(self, size, where):
        self.done += size
        self.progress.show(self.done / 1e9, where.rpartition(" ")[2])


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
        print(f"{out / file}  {size / 1e9:.3f} GB  {', '.join(dtypes)}")
