"""Pictures with captions: what all sources share, cc_sbu_align, a folder of one's own pictures.

A bad sample is found when it is read; it then raises SampleError.
"""
import contextlib
import io
import itertools
import json
import os
import random
import re
import warnings
import zlib
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from artgpt4 import INSTRUCTIONS, instruction_prompt, to_rgb

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DRAFT = 4               # see decode()


def is_macos_extra(name):
    """Whether a file is what macOS writes beside a copied file NAME: ._NAME, with its metadata."""
    return os.path.basename(name).startswith("._")


class SampleError(ValueError):
    """Why a sample cannot be trained on; it will be skipped."""


@contextlib.contextmanager
def sample_errors():
    """Turn any error into a SampleError of one line: a damaged file can raise anything."""
    try:
        yield
    except Exception as error:
        raise SampleError(" ".join(str(error).split()) or repr(error)) from None


def decode(content, size=0):
    """The bytes of a picture file as an RGB image.

    Rotated as EXIF says, on white where transparent; CMYK, palettes and 16 bits are converted.
    With a size, a JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves at least DRAFT * size pixels a
    side; once resized to `size`, whole or cropped, a pixel differs by at most 4 of 255, by 0.6 on
    average. Raises ValueError, or any error of Pillow, if the file is damaged, has more pixels
    than Pillow considers safe (89 million) or a side of 1 pixel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            raise ValueError("not a picture that Pillow can read") from None
    if min(image.size) < 2:
        raise ValueError(f"{image.width} x {image.height} pixels are no picture")
    if size:
        image.draft(None, (DRAFT * size, DRAFT * size))
    if image.format == "JPEG" and image.mode == "RGB" and not {"exif", "xmp"} & image.info.keys():
        image.load()                    # to_rgb gives the same, but copies it twice
        return image
    return to_rgb(image)


def clean_caption(text, max_words=50):
    """The released code's cleaner for stage 1: lower case, punctuation removed, single spaces.

    At most max_words words are kept.
    """
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:max_words])


class Source:
    """The base of all sources: each has len, name(i), picture(i, size) and words(i, ...).

    picture and words may raise SampleError.
    """

    def known_bad(self):
        """{i: reason} of the pairs that are known to be bad without reading their pictures."""
        return {}

    def fingerprint(self):
        """A checksum of what the data is, wherever it lies."""
        crc = 0
        for i in range(len(self)):
            crc = zlib.crc32(os.fsencode(self.name(i)) + b"\n", crc)
        return crc

    def text_length(self, i):
        """About how long the text of pair i is, in any unit, known without reading it."""
        return 0

    def shown(self, i, prompt):
        """The numbers of the pairs whose pictures the prompt of pair i shows, in order."""
        return [i]

    def pictures(self, i, size, prompt):
        """The pictures that the prompt of pair i shows, in order."""
        return [self.picture(shown, size) for shown in self.shown(i, prompt)]

    def features(self, i, prompt):
        """What the frozen towers found in those pictures, if a file keeps it
        (training/cached_vision.py): (N, Q, D of the Q-Former). Else None."""
        return None

    def order(self, seed, epoch):
        """The numbers of all pairs, in the order of an epoch."""
        return random.Random(f"{seed} epoch {epoch}").sample(range(len(self)), len(self))


class Part(Source):
    """Some pairs of a source, as a source. numbers: theirs in that source, rising."""

    def __init__(self, source, numbers):
        self.source = source
        self.numbers = np.asarray(numbers, dtype=np.int64)
        self.places = np.full(len(source), -1)                # of the source's pairs in this one
        self.places[self.numbers] = np.arange(len(self.numbers))

    def __len__(self):
        return len(self.numbers)

    def order(self, seed, epoch):
        places = self.places[np.asarray(self.source.order(seed, epoch))]
        return places[places >= 0]

    def fingerprint(self):
        return zlib.crc32(self.numbers.tobytes(), self.source.fingerprint())

    def name(self, i):
        return self.source.name(self.numbers[i])

    def text_length(self, i):
        return self.source.text_length(self.numbers[i])

    def picture(self, i, size=0):
        return self.source.picture(self.numbers[i], size)

    def pictures(self, i, *arguments):
        return self.source.pictures(self.numbers[i], *arguments)

    def features(self, i, prompt):
        return self.source.features(self.numbers[i], prompt)

    def words(self, i, *arguments):
        return self.source.words(self.numbers[i], *arguments)


def usable(source):
    """(the source without the pairs that are known to be bad, a line that says which were left
    out). Raises ValueError if all are bad."""
    bad = source.known_bad()
    if not bad:
        return source, ""
    named = [f"{source.name(i)}: {reason}" for i, reason in itertools.islice(bad.items(), 3)]
    more = f", and {len(bad) - 3} more" if len(bad) > 3 else ""
    line = f"{len(bad)} of {len(source)} samples left out ({', '.join(named)}{more})"
    if len(bad) == len(source):
        raise ValueError(f"nothing usable in the training data: {line}")
    good = np.ones(len(source), dtype=bool)
    good[list(bad)] = False
    return Part(source, good.nonzero()[0]), line


class Captioned(Source):
    """Picture files with a caption each.

    A subclass gives content(i), the bytes of the picture file, and caption(i).
    """

    def picture(self, i, size=0):
        with sample_errors():
            return decode(self.content(i), size)

    def words(self, i, stage, rng, batch_rng):
        with sample_errors():
            caption = caption_text(self.caption(i))
            text = clean_caption(caption) if stage == 1 else caption
            if not text.strip():
                raise ValueError("the caption is empty")
        prompt = None if stage == 1 else instruction_prompt(batch_rng.choice(INSTRUCTIONS))
        return prompt, text


def caption_text(caption):
    """A caption as text, from text or from bytes (UTF-8). Raises ValueError if it is neither."""
    if isinstance(caption, bytes):
        caption = caption.decode("utf-8-sig").strip()
    if caption is None:
        raise ValueError("no caption")
    if not isinstance(caption, str):
        raise ValueError(f"the caption is {caption!r:.40}, not a text")
    caption.encode()                    # JSON can hold what UTF-8 cannot: half a surrogate pair
    return caption


# ---- Folders


class PictureFiles(Captioned):
    """Pairs (path of a picture, its caption as text, UTF-8 bytes or None)."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def name(self, i):
        file, _ = self.pairs[i]
        return file.name

    def content(self, i):
        file, _ = self.pairs[i]
        return file.read_bytes()

    def caption(self, i):
        _, caption = self.pairs[i]
        return caption

    def text_length(self, i):
        _, caption = self.pairs[i]
        return len(str(caption))

    def known_bad(self):
        bad = {}
        for i, (file, caption) in enumerate(self.pairs):
            try:
                if not caption_text(caption).strip():
                    bad[i] = "the caption is empty"
                elif not file.is_file():
                    bad[i] = "no such file"
            except ValueError as error:
                bad[i] = str(error)
        return bad

    def fingerprint(self):
        crc = 0
        for file, caption in self.pairs:
            size = file.stat().st_size if file.is_file() else None
            crc = zlib.crc32(repr((file.name, size, caption)).encode(), crc)
        return crc


def cc_sbu_align(folder):
    """The folder with image/ID.jpg and filter_cap.json.

    Raises ValueError if that file is not a list of captions.
    """
    file, pairs = folder / "filter_cap.json", []
    try:
        for pair in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
            pairs.append((folder / "image" / f"{pair['image_id']}.jpg", pair["caption"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a list of annotations ({error!r})") from None
    if not pairs:
        raise ValueError(f"{file}: no annotations in it")
    return PictureFiles(pairs)


def own_pictures(folder):
    """A folder of NAME.jpg (.png, .webp, ...), each with its caption in NAME.txt.

    Raises ValueError if no picture has a caption.
    """
    pairs = []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in PICTURES and not is_macos_extra(file.name):
            text = file.with_suffix(".txt")
            pairs.append((file, text.read_bytes() if text.is_file() else None))
    if not any(text for _, text in pairs):
        raise ValueError(
            f"{folder}: {len(pairs)} pictures, none with a caption NAME.txt beside it; --data "
            "takes such a folder, one of img2dataset's tar files, or cc_sbu_align")
    return PictureFiles(pairs)


# ---- Names of files


def braces(text):
    """'{00..02}/{a,b}.tar' -> ['00/a.tar', '00/b.tar', '01/a.tar', ...]; other braces are kept."""
    group = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if not group:
        return [text]
    first, last, words = group.groups()
    if words:
        words = words.split(",")
    else:
        words = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    before, after = text[:group.start()], text[group.end():]
    return [found for word in words for found in braces(before + word + after)]


def expand(pattern):
    """The files or folders that a name with braces and wildcards stands for.

    Raises ValueError if one of them is not there.
    """
    files = []
    for name in [pattern] if os.path.exists(pattern) else braces(pattern):
        found = [name] if os.path.exists(name) else sorted(glob(name, recursive=True))
        if not found and name == pattern:
            raise ValueError(f"{name}: no such file")
        if not found:
            raise ValueError(f"{name}: no such file, but {pattern} stands for it too")
        files += found
    return [Path(file) for file in dict.fromkeys(files)]
