"""Files that the commands read and write: pictures, texts, tensors; whole or not at all."""
import contextlib
import io
import json
import math
import os
import re
import secrets
import stat
import struct
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import save_file

# ---- Pictures

# Raster formats only: Pillow hands others to programs, PostScript to Ghostscript above all.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
PICTURE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pnm", ".jp2", ".heic", ".heif"))
FOREIGN = (                   # what files begin with that are taken for pictures or weights
    (rb"\Z", "empty; download it again"),
    (rb"version https://git-lfs", "a git-lfs pointer, not the file itself; download that"),
    (rb"(?i)\s*<(!doctype )?html", "a web page; download the file itself"),
    (rb"PK|\x80\x02", "a checkpoint that torch.save wrote; convert_weights.py reads it"),
    (rb"[{\[]", "JSON"), (rb"%PDF-", "a PDF document"), (rb"\s*<", "an SVG drawing, or XML"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript program, which is not run"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC picture, as phones take them"),
    (rb"....ftypavi", "an AVIF picture, which this Pillow cannot read"))
MOST_PIXELS = 50_000_000      # that are decoded
SIDE = 2048                   # pixels that the shorter side of a large JPEG keeps at least
MOST_FRAMES = 100             # that are counted
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
         6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}    # EXIF's orientation
ORIENTATION = 0x0112
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
    begin = b""
    try:
        with stream:
            content = stream if stream.seekable() else io.BytesIO(stream.read())
            begin = content.read(300)
            return decoded(content, side)
    except UnidentifiedImageError:
        reason = f"{foreign(begin) or 'no picture'}; expected a PNG or JPEG"
    except Exception as error:                                # a damaged file can raise anything
        reason = str(error) or repr(error)
    raise ValueError(f"{path}: {reason}")


def decoded(content, side):
    """The picture in a binary stream, as open_image returns it."""
    content.seek(0)
    image = Image.open(content, formats=FORMATS)
    if image.format == "PNG":                                 # decoding alone compares no checksums
        image.verify()
        content.seek(0)
        image = Image.open(content, formats=FORMATS)
    size, frames = image.size, count_frames(image)
    image.draft(None, [round(side / min(size) * length) for length in size])
    if math.prod(image.size) > MOST_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} pixels, and at most {MOST_PIXELS:,} are decoded; "
                         "scale it down")
    image.load()
    orientation = orientation_of(image)
    image = to_rgb(image)
    if orientation in TURNS:
        image = image.transpose(Image.Transpose[TURNS[orientation]])
        size = size[::-1] if orientation > 4 else size
    image.info = {"size": size, "frames": frames}
    return image


def orientation_of(image):
    """EXIF's orientation of a picture, a key of TURNS, or another value where it has none. Pillow
    gives up at an odd entry before it."""
    with contextlib.suppress(struct.error):
        block = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        order = ">" if block.startswith(b"MM") else "<"
        start, = struct.unpack_from(f"{order}I", block, 4)
        count, = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, at)
            if (tag, kind) == (ORIENTATION, 3):
                return value
    with contextlib.suppress(Exception):                      # a TIFF file's own, XMP's
        return image.getexif().get(ORIENTATION)


def count_frames(image):
    """How many frames an animation, or pages a TIFF has; MOST_FRAMES may be more."""
    if image.format != "TIFF":                                # elsewhere they are previews, layers
        return image.n_frames if image.format in ("GIF", "WEBP", "PNG", "AVIF") else 1
    with contextlib.suppress(EOFError):                       # n_frames would read all of them
        for frame in range(1, MOST_FRAMES):
            image.seek(frame)
    frames = image.tell() + 1
    image.seek(0)
    return frames


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
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path}: a folder, a pipe or a device; expected a file")
        open(path, "rb").close()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def read_text(file):
    """The text in a UTF-8 file, without a byte order mark. Raises ValueError, naming the file."""
    check_file(file)
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text; save it in that encoding") from None


def read_json(file):
    """The dictionary in a JSON file. Raises ValueError, naming the file, if there is none."""
    text = read_text(file)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: JSON, but not an object in braces")
    return values


def foreign(begin):
    """What a file is, by its first bytes, that was taken for another: in words, or None."""
    return next((what for pattern, what in FOREIGN if re.match(pattern, begin, re.DOTALL)), None)


def what_it_is(file):
    """What a regular file is that was taken for safetensors, in words, or None."""
    with open(file, "rb") as opened:
        return foreign(opened.read(300))


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
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{file}: could not be written ({reason})") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def save_tensors(tensors, file):
    """Write {name: tensor} to a safetensors file, whole or not at all."""
    with written_beside(file) as path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
