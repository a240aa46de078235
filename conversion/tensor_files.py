"""The tensors of one file, safetensors or torch.save, still in that file.

A file is opened as {name: Stored}. A tensor is read when it is written, and nothing is mapped, so a
file may be larger than the machine's memory. All offsets pass through `in_file`, which checks them.
torch.load runs with weights_only=True: a pickle that would run code is refused.
"""
import contextlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

DTYPES = {                                                    # by their names in safetensors
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000                                  # bytes; safetensors' own limit


@dataclass
class Stored:
    """A tensor that has not been read yet. `where` names its file and itself, for messages."""
    where: str
    shape: tuple
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def in_memory(where, tensor):
    """The Stored of a tensor that is in memory already."""
    def read():
        return tensor
    return Stored(where, tuple(tensor.shape), tensor.dtype, read)


def in_file(file, name, dtype, shape, stride, offset):
    """The Stored whose bytes begin at `offset` of a file; stride in elements, offset in bytes.

    Raises ValueError if the file ends before the tensor does.
    """
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    nbytes = (last + 1) * dtype.itemsize
    if offset + nbytes > file.stat().st_size:
        raise ValueError(f"{file}: damaged, cut short: {name} ends beyond the end of the file")

    def read():
        values = torch.from_numpy(np.fromfile(file, np.uint8, nbytes, offset=offset)).view(dtype)
        return values.as_strided(shape, stride)
    return Stored(f"{file}: {name}", tuple(shape), dtype, read)


def read_json(file):
    """The dictionary in a JSON file. Raises ValueError, naming the file, if there is none."""
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: not a JSON object")
    return values


def read_head(file):
    """The first 64 bytes of a file. Raises ValueError if it is a Git LFS pointer."""
    with open(file, "rb") as opened:
        head = opened.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file}: a Git LFS pointer, not the file itself; "
                         "fetch it with: git lfs pull")
    return head


def open_safetensors(file):
    """The tensors of a safetensors file, {name: Stored}, as its header lists them."""
    try:
        with open(file, "rb") as opened:
            size, = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(size, LONGEST_HEADER)))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
            stride = torch.empty(shape, device="meta").stride()
            offset = 8 + size + entry["data_offsets"][0]
            tensors[name] = in_file(file, name, dtype, shape, stride, offset)
        return tensors
    except (struct.error, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError,
            TypeError, RuntimeError):
        raise ValueError(f"{file}: damaged, cut short, or of an unknown dtype") from None


def open_torch(file):
    """The tensors of a torch.save file, {name: Stored}. Nothing in it is executed.

    Since torch 1.6 such a file is a zip: its tensors are loaded without values (FakeTensorMode),
    but each storage knows its offset in the file. An older file is read as a whole.
    """
    is_zip = zipfile.is_zipfile(file)
    without_values = FakeTensorMode() if is_zip else contextlib.nullcontext()
    try:
        with warnings.catch_warnings(action="ignore"), without_values:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:                                # a damaged pickle can raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise ValueError(f"{file}: would run code ({code[1]}); refused, nothing was run"
                             ) from None
        raise ValueError(f"{file}: damaged, cut short, or not a checkpoint") from error

    loaded = loaded.get("model", loaded) if isinstance(loaded, dict) else {}
    tensors = {}
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if is_zip:
            offset = tensor.untyped_storage()._checkpoint_offset
            offset += tensor.storage_offset() * tensor.dtype.itemsize
            tensors[name] = in_file(
                file, name, tensor.dtype, tensor.shape, tensor.stride(), offset)
        else:
            tensors[name] = in_memory(f"{file}: {name}", tensor)
    return tensors


def open_file(file):
    """The tensors of one file, {name: Stored}; recognised by content, not by its suffix."""
    is_safetensors = read_head(file)[8:9] == b"{"
    return open_safetensors(file) if is_safetensors else open_torch(file)
