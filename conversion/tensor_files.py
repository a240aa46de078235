"""The tensors of one file, safetensors or torch.save, still in that file.

A file is opened as {name: Stored}. A tensor is read when it is written, and nothing is mapped, so a
file may be larger than the machine's memory. Offsets are those that the archive or the header
states, and are checked before they are used; the checksums of a torch.save archive are compared
while its bytes are read. torch.load runs with weights_only=True: no code of a pickle is run.
"""
import builtins
import io
import json
import math
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common.files import check_file, tensor_dtypes

DTYPES = {                                                    # by their names in safetensors
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}
PIECE = 1 << 24                                               # bytes checked at a time
RUNS_CODE = {                                                 # modules whose functions act
    "posix", "nt", "os", "sys", "subprocess", "importlib", "runpy", "pty", "socket", "shutil",
    "code", "ctypes", "webbrowser", "pickle", "timeit", "pdb", "commands", "multiprocessing",
    "operator", "functools", "torch.hub", "numpy.testing",
}
UNPACK = "; unpack it first"
FOREIGN = [  # the first bytes of what is often given by mistake, what it is, what to do
    (rb"version https://git-lfs",
     "a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    (rb"GGUF|GGML|lmgg|fmgg|tjgg",
     "a GGUF file, for llama.cpp; give the model in transformers' or Meta's format"),
    (rb"\x1f\x8b", "compressed with gzip" + UNPACK),
    (rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed archive" + UNPACK),
    (rb".{257}ustar", "a tar archive" + UNPACK),
    (rb"(?i)\s*<(!doctype|html|head|\?xml)",
     "a web page, not the file itself; the download failed; it may need a login"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF", "a picture or a PDF, not a checkpoint"),
    (rb"\x93NUMPY|\x89HDF", "a NumPy or HDF5 file; give the checkpoint that torch.save wrote"),
    (rb"\s*[{\[]", "JSON, not a checkpoint; give the file of tensors beside it"),
]


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


def in_file(file, name, dtype, shape, stride, offset, section, checksum=None):
    """The Stored whose bytes begin at `offset` of a file; stride in elements, offset in bytes.

    section: the first byte and the end of what the tensor may lie in. checksum: a Checksum of that
    section. Raises ValueError if the tensor lies outside of it.
    """
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    nbytes = (last + 1) * dtype.itemsize if math.prod(shape) else 0
    start, end = section
    if offset < start or offset + nbytes > end:
        raise ValueError(f"{file}: damaged: {name} ends beyond its part of the file")

    def read():
        values = np.fromfile(file, np.uint8, nbytes, offset=offset)
        if len(values) < nbytes:
            raise ValueError(f"{file}: damaged, cut short: {name} ends beyond the end of the file")
        if checksum is not None:
            checksum.check(name, values if (offset, offset + nbytes) == section else None)
        return torch.from_numpy(values).view(dtype).as_strided(shape, stride)
    return Stored(f"{file}: {name}", tuple(shape), dtype, read)


class Checksum:
    """The CRC-32 of a section of a file, which is compared once."""

    def __init__(self, file, section, expected):
        self.file, self.section, self.expected = file, section, expected
        self.checked = False

    def check(self, name, values=None):
        """Raises ValueError unless the section matches. values: its bytes, if they are read."""
        if self.checked:
            return
        found = zlib.crc32(values) if values is not None else self.read()
        if found != self.expected:
            raise ValueError(f"{self.file}: damaged: {name} does not match its checksum; "
                             "download the file again")
        self.checked = True

    def read(self):
        """The CRC-32 of the section in the file."""
        (position, end), found = self.section, 0
        with open(self.file, "rb") as opened:
            opened.seek(position)
            while position < end:
                piece = opened.read(min(PIECE, end - position))
                if not piece:
                    return None                               # the file has become shorter
                found, position = zlib.crc32(piece, found), position + len(piece)
        return found


def read_head(file):
    """The first 512 bytes of a file.

    Raises ValueError if there are none, and if they are those of something else than tensors.
    """
    check_file(file)
    with open(file, "rb") as opened:
        head = opened.read(512)
    if not head:
        raise ValueError(f"{file}: empty (0 bytes); download it again")
    for pattern, what in () if is_safetensors(head) else FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise ValueError(f"{file}: {what}")
    return head


def is_safetensors(head):
    """Whether these first bytes are a length and the beginning of a JSON object."""
    return head[8:9] == b"{"


def open_safetensors(file):
    """The tensors of a safetensors file, {name: Stored}, as its header lists them.

    The library checks the header: names, sizes, offsets that neither overlap nor leave a gap.
    """
    try:
        dtypes = tensor_dtypes(file)
    except ValueError as error:
        raise ValueError(f"{file}: damaged, cut short{str(error).removeprefix(str(file))}"
                         ) from None
    with open(file, "rb") as opened:
        size, = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(size))
    tensors = {}
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(f"{file}: {name} is {dtype}; expected one of {', '.join(DTYPES)}")
        shape = header[name]["shape"]
        stride = torch.empty(shape, device="meta").stride()
        start, end = (8 + size + offset for offset in header[name]["data_offsets"])
        tensors[name] = in_file(file, name, DTYPES[dtype], shape, stride, start, (start, end))
    return tensors


def runs_code(name):
    """Whether the global `name` of a pickle, such as "posix.system", is there to run code; classes
    of the language are not."""
    module, _, name = name.rpartition(".")
    if module in ("", "builtins", "__builtin__"):             # torch names these without a module
        return not isinstance(getattr(builtins, name, None), type)
    return module in RUNS_CODE or module.partition(".")[0] in RUNS_CODE


def load_torch(file, source):
    """torch.load of `source`, which comes from `file`. Raises ValueError if nothing comes of it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:                                # a damaged pickle can raise anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not isinstance(error, pickle.UnpicklingError) or not found:
            raise ValueError(f"{file}: damaged, cut short, or not a checkpoint") from error
        if runs_code(found[1]):
            raise ValueError(f"{file}: would run code ({found[1]}); refused, nothing was run"
                             ) from None
        raise ValueError(f"{file}: holds {found[1]}, which is neither a tensor "
                         "nor a plain value; save its tensors alone, with torch.save") from None


def open_old(file):
    """The tensors of a file of torch.save before torch 1.6, {name: Stored}.

    It is read as a whole. It has no checksums; so that a changed shape or stride is noticed, each
    tensor must fill its storage.
    """
    tensors = named_tensors(file, load_torch(file, file))
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or tensor.nbytes != tensor.untyped_storage().nbytes():
            raise ValueError(f"{file}: {name} is a part of a larger tensor, or its sizes are "
                             "damaged; save the file again with a newer torch")
    return {name: in_memory(f"{file}: {name}", tensor) for name, tensor in tensors.items()}


def open_archive(file):
    """The tensors of a zip archive of torch.save, {name: Stored}.

    torch.load reads the pickle from a copy in memory, in which the members that hold values are
    empty (FakeTensorMode asks for none). Where a storage begins in that copy tells which member
    it is; where that member begins in the file is what the archive says.
    """
    copy, members = io.BytesIO(), {}
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as empty:
            root = root_of(file, archive)
            for member in archive.infolist():
                name = member.filename.removeprefix(root)
                check_member(file, member)
                if re.fullmatch(r"data/\d+", name):
                    members[name] = stored_member(file, archive, member)
                    empty.writestr(f"copy/{name}", b"")
                elif name in ("data.pkl", "version", "byteorder"):
                    content = archive.read(member)            # this compares its checksum
                    if name == "byteorder" and content != b"little":
                        raise ValueError(f"{file}: of a big-endian machine, which is not supported")
                    empty.writestr(f"copy/{name}", content)
            starts = {data_start(copy, member): member.filename.removeprefix("copy/")
                      for member in empty.infolist()}
    except (zipfile.BadZipFile, EOFError, struct.error, OSError,
            UnicodeDecodeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{file}: damaged, cut short, or not a checkpoint ({error})") from None
    copy.seek(0)
    with FakeTensorMode():
        loaded = load_torch(file, copy)

    tensors = {}
    for name, tensor in named_tensors(file, loaded).items():
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if starts.get(start) not in members:
            raise ValueError(f"{file}: damaged: the archive has no values of {name}")
        section, checksum = members[starts[start]]
        offset = section[0] + tensor.storage_offset() * tensor.dtype.itemsize
        tensors[name] = in_file(file, name, tensor.dtype, tuple(tensor.shape), tensor.stride(),
                                offset, section, checksum)
    return tensors


def root_of(file, archive):
    """The folder inside a zip archive that holds data.pkl. Raises ValueError unless there is one,
    and each member once."""
    names = [member.filename for member in archive.infolist()]
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if not roots:
        raise ValueError(f"{file}: a zip archive, but not one of torch.save{UNPACK}")
    if len(roots) > 1 or len(set(names)) < len(names):
        raise ValueError(f"{file}: damaged: two members of the archive have one name")
    return roots[0]


def check_member(file, member):
    """Raises ValueError if a member of a zip archive is compressed or encrypted."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"{file}: {member.filename} is compressed or encrypted inside the "
                         "archive; load the file with torch and torch.save it again")


def data_start(opened, member):
    """Where the bytes of a zip member begin: behind its own header, whose length varies."""
    opened.seek(member.header_offset)
    header = opened.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header of {member.filename}")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    return member.header_offset + 30 + name_length + extra_length


def stored_member(file, archive, member):
    """The section of a file that holds a member's bytes, and its Checksum."""
    start = data_start(archive.fp, member)
    section = start, start + member.file_size
    if section[1] > archive.start_dir:
        raise zipfile.BadZipFile(f"{member.filename} ends beyond the archive")
    return section, Checksum(file, section, member.CRC)


def named_tensors(file, loaded):
    """{name: dense tensor} of what torch.load returned; what is not a tensor is left out.

    Raises ValueError if there are no names, or for a tensor without values of its own.
    """
    values = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds no tensors by name; expected a state_dict")
    tensors = {}
    for name, tensor in values.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if not isinstance(name, str):
            raise ValueError(f"{file}: a tensor's name is {name!r}; expected text")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{file}: {name} is a sparse, quantised or empty (meta) tensor; "
                             "expected a dense one")
        tensors[name] = tensor
    return tensors


def open_file(file):
    """The tensors of one file, {name: Stored}; recognised by content, not by its suffix."""
    head = read_head(file)
    if is_safetensors(head):
        return open_safetensors(file)
    return open_archive(file) if head.startswith(b"PK") else open_old(file)
