"""Files that the commands read and write: pictures, texts, tensors; whole or not at all."""
import contextlib
import io
import json
import math
import os
import re
import secrets
import stat
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import save_file

from artgpt4 import errors_naming

# ---- Pictures

# Raster formats only: Pillow hands others to programs, PostScript to Ghostscript above all.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
PICTURE_SUFFIXES = {".heic", ".heif", ".avif"} | {     # of which Pillow may read none
    suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
FOREIGN = (                   # what files begin with that are taken for pictures or weights
    (rb"\Z", "empty; download it again"),
    (rb"version https://git-lfs", "a git-lfs pointer, not the file itself; download that"),
    (rb"(?i)\s*<(!doctype )?html", "a web page; download the file itself"),
    (rb"PK|\x80\x02", "a checkpoint that torch.save wrote; convert_weights.py reads it"),
    (rb"[{\[]", "JSON"), (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC picture, as phones take them"))
MOST_PIXELS = 50_000_000      # that are decoded
SIDE = 2048                   # pixels that the shorter side of a large JPEG keeps at least
Image.MAX_IMAGE_PIXELS = None                                 # MOST_PIXELS is in its place
warnings.filterwarnings("ignore", module="PIL")               # on metadata that nobody needs


def is_picture(path):
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def open_image(path, stream=None, side=SIDE):
    """The picture in a file, as an upright RGB image, on white where it is transparent; of an
    animation or of several pages the first.

    image.info has its "size" in the file, since a large JPEG is decoded at reduced size, and its
    number of "frames". stream: a binary one to read instead; path is then its name. side: what a
    JPEG's shorter side keeps, pixels. Raises ValueError, naming the file, for what is no picture,
    damaged, or larger than MOST_PIXELS.
    """
    if stream is None:
        check_file(path)
        stream = open(path, "rb")
    with errors_naming(path), stream:                         # a damaged file can raise anything
        content = io.BytesIO(stream.read())
        try:
            image = Image.open(content, formats=FORMATS)      # decodes nothing yet
        except UnidentifiedImageError:
            reason = what_it_is(content.getvalue()[:300]) or "no picture"
            raise ValueError(f"{reason}; expected a PNG or JPEG") from None
        if image.format == "PNG":                             # decoding alone compares no checksums
            image.verify()
            image = Image.open(content, formats=FORMATS)
        size, frames = image.size, getattr(image, "n_frames", 1)
        image.draft(None, [round(side / min(size) * length) for length in size])
        decoded = image.size
        if math.prod(decoded) > MOST_PIXELS:
            raise ValueError(f"{size[0]} x {size[1]} pixels, and at most {MOST_PIXELS:,} are "
                             "decoded; scale it down")
        image.load()
        with contextlib.suppress(Exception):                  # odd EXIF turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        upright = to_rgb(image)
        upright.info = {"size": size if image.size == decoded else size[::-1],
                        "frames": 1 if image.format == "MPO" else frames}    # a JPEG's previews
        return upright


def to_rgb(image):
    """A PIL image of any mode as RGB. Numbers that are no bytes are scaled so that white is their
    largest if that is at most 1, else the least of 255, 511, 1023, ... that holds them all."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        low, top = values.min(), values.max()
        if not 0 <= low <= top < math.inf:                    # nor is NaN
            raise ValueError(f"a picture of mode {image.mode} with values that are no shades")
        scale = max(255, 2.0 ** math.frexp(top)[1] - 1) if top > 1 else top or 1
        image = Image.fromarray((values / scale * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pictures_below(folder):
    """(the pictures in a folder and below it, sorted; {reason: how many files are left out}).
    Links to folders are not followed."""
    found, left_out = [], Counter()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(place, name) for name in names):
            if file.name.startswith("."):
                left_out["hidden"] += 1
            elif is_picture(file):
                found.append(file)
            else:
                left_out[file.suffix or "no suffix"] += 1
    return sorted(found), dict(left_out)


# ---- Texts


def check_file(path):
    """Raises ValueError, naming it, unless `path` is a regular file that can be read."""
    with errors_naming(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("a folder, a pipe or a device; expected a file")
        open(path, "rb").close()


def read_text(file):
    """The text in a UTF-8 file, without a byte order mark. Raises ValueError, naming the file."""
    check_file(file)
    with errors_naming(file):
        return Path(file).read_text(encoding="utf-8-sig")


def read_json(file):
    """The dictionary in a JSON file. Raises ValueError, naming the file, if there is none."""
    text = read_text(file)
    with errors_naming(file):
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("JSON, but not an object in braces")
    return values


def what_it_is(begin):
    """What a file is, by its first bytes, that was taken for another: in words, or None."""
    return next((what for pattern, what in FOREIGN if re.match(pattern, begin, re.DOTALL)), None)


@contextlib.contextmanager
def written_beside(file):
    """A path beside `file` to write to: fsynced and renamed to `file` after the block, or removed.

    Raises ValueError, naming the file, if it exists and is no regular file, or if the disk does
    not take it.
    """
    file = Path(file)
    if file.is_symlink() or file.exists() and not file.is_file():
        raise ValueError(f"{file}: a link, a folder or a device; expected a file to replace")
    beside = file.with_name(f".{file.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.touch(exist_ok=False)
        mode = beside.stat().st_mode                          # the umask's; some writers change it
        yield beside
        beside.chmod(mode)
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())
        beside.replace(file)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file}: could not be written ({error})") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def save_tensors(tensors, file):
    """Write {name: tensor} to a safetensors file, whole or not at all."""
    with written_beside(file) as path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_json(values, file):
    """Write values to a JSON file, whole or not at all."""
    with written_beside(file) as path:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
