"""Files that the commands read and write: pictures, texts, tensors; whole or not at all."""
import contextlib
import io
import json
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
    (rb"PK|\x80\x02", "a checkpoint of torch.save; convert_weights.py reads the public ones"),
    (rb"[{\[]", "JSON"), (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC picture, as phones take them"))
Image.MAX_IMAGE_PIXELS = 100_000_000                          # Pillow refuses twice as many
warnings.filterwarnings("ignore", module="PIL")               # on metadata that nobody needs


def is_picture(path):
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def open_image(path, stream=None, side=2048):
    """The picture in a file, as an upright RGB image, on white where it is transparent; of an
    animation or of several pages the first. stream: a binary one to read instead; path is then its
    name. side: the least of its shorter side, in pixels, to which a JPEG may be scaled while it is
    decoded. Raises ValueError, naming the file, for what is no picture, damaged or too large."""
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
        image.draft(None, (side, side))
        image.load()
        with contextlib.suppress(Exception):                  # odd EXIF turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def to_rgb(image):
    """A PIL image as RGB. Of whole numbers that are no bytes white is the least of 255, 511, 1023,
    ... that holds them all. What scientific TIFFs may have besides is a ValueError."""
    if image.mode[0] in "IF":
        shades, tags = np.asarray(image, np.float64), getattr(image, "tag_v2", {})     # of a TIFF
        if image.mode == "F" or shades.min() < 0 or tags.get(262) == 0:                # white is 0
            raise ValueError("a picture of fractions, of shades below 0 or of 32 bits, or whose "
                             "white is 0; save it with shades of 8 bits")
        white = max(2 ** int(shades.max()).bit_length() - 1, 255)
        shades[shades == image.info.get("transparency")] = white
        image = Image.fromarray((shades * 255 / white).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pictures_below(folder):
    """(the pictures in a folder and below it, sorted; {reason: how many files are left out}).
    Links to folders are not followed."""
    found, left_out = [], Counter()
    for file in sorted(Path(folder).rglob("*")):
        hidden = any(name.startswith(".") for name in file.relative_to(folder).parts)
        if is_picture(file) and file.is_file() and not hidden:
            found.append(file)
        elif not file.is_dir():
            left_out["hidden" if hidden else file.suffix or "no suffix"] += 1
    return found, dict(left_out)


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
    Raises ValueError, naming the file, if that is no regular file, or if the disk does not take it.
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
