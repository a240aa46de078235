"""Which pictures are meant: paths as they are typed, dropped or given, folders, patterns."""
import contextlib
import glob
import re
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from common.files import open_image

STDIN = "-"
NEWER = {".heic", ".heif", ".avif"}                           # pictures, whether Pillow reads them


def local_path(text):
    """The path that a text names: a path, or a file:// address as file managers drop it.

    Raises ValueError for a web address.
    """
    if re.match(r"(https?|ftp):", text, re.IGNORECASE):
        raise ValueError(f"{text}: a web address, and nothing here downloads; save the picture "
                         "first, then give its file")
    if text.lower().startswith("file:"):
        text = url2pathname(urlsplit(text).path)
    return Path(text)


def typed_path(text):
    """A path as it was typed or dropped onto the terminal: with quotes, escaped spaces or ~."""
    path = local_path(text).expanduser()
    if not path.exists():
        with contextlib.suppress(ValueError):                 # one quotation mark alone is a letter
            path = local_path(" ".join(shlex.split(text))).expanduser()
    return path


def dropped_path(line):
    """The file that a whole line names, as a file dropped onto the terminal does, or None."""
    if not line.lower().startswith(("/", "~", "'", '"', "file:")):
        return None
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = typed_path(line)
        return path if path.is_file() else None


def suffixes():
    """The suffixes of pictures, in lower case."""
    known = Image.registered_extensions()
    return {suffix for suffix, name in known.items() if name in Image.OPEN} | NEWER


def split_question(texts):
    """Arguments -> those that are pictures, and the question or None.

    The question is a last argument that is no file, and has a space in it or ends with a question
    mark.
    """
    if not texts or not texts[-1].strip():
        return texts, None
    *others, last = texts
    sounds_like_one = " " in last or last.endswith("?")
    names_a_picture = Path(last).suffix.lower() in suffixes() or "://" in last
    if not sounds_like_one or names_a_picture or Path(last).exists() or glob.glob(last):
        return texts, None
    return others, last


def in_folder(folder):
    """The pictures in a folder, by their suffixes, sorted by name. Says how many files it leaves
    out. Raises ValueError if there is none."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    known = suffixes()
    pictures = [file for file in files if file.suffix.lower() in known]
    if not pictures:
        raise ValueError(f"{folder}: a folder without pictures")
    others = sum(file.is_file() for file in files if file not in pictures)
    if others:
        print(f"{folder}: {others} files that are no pictures are left out", file=sys.stderr)
    return pictures


def named_files(texts):
    """Arguments -> the picture files they name, and whether one of them names a collection, which
    is a folder or a pattern with * ? or [ ]."""
    files, collection = [], False
    for text in texts:
        if text == STDIN:
            files.append(text)
            continue
        if not text.strip():
            raise ValueError("an argument is empty; give the name of a picture, or a question")
        path = local_path(text)
        pattern = not path.exists() and re.search(r"[*?[]", text)
        found = [path]
        if path.is_dir():
            found = in_folder(path)
        elif pattern:
            found = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
            if not found:
                raise ValueError(f"{text}: no file fits this pattern")
        collection = collection or path.is_dir() or bool(pattern)
        files += found
    return files, collection


def open_picture(file):
    """open_image of a file, or of standard input if that is "-"."""
    if str(file) == STDIN:
        return open_image("standard input", sys.stdin.buffer)
    return open_image(file)


def open_given(file, resumed):
    """open_picture. If a conversation is resumed, a ValueError says what to do about a picture that
    is gone."""
    try:
        return open_picture(file)
    except ValueError as error:
        if not resumed:
            raise
        name = Path(file).name
        raise ValueError(f"{error}; with --replace '{name}=FILE' it is taken from FILE, with "
                         f"--replace '{name}=' it is left out") from None


def picture_text(image, file):
    """A picture in words: its file, its size there, and of how many frames it is the first."""
    width, height = image.info.get("size", image.size)
    text = f"{file}, {width} x {height}"
    return f"{text}, {frames_text(image)}" if frames_text(image) else text


def frames_text(image):
    """"the first of 12 frames", or "" for a picture that does not move."""
    frames = image.info.get("frames", 1)
    return f"the first of {frames} frames" if frames > 1 else ""
