"""training/sources.py: captions, pictures of every kind, folders."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.small_files import RED, faults, picture_file, words
from training import sources

GOLDEN = Path(__file__).parent.parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("text, cleaned", EXPECTED["caption_processor"])
def test_captions_are_cleaned_as_the_released_code_does(text, cleaned):
    assert sources.clean_caption(text) == cleaned


def test_braces_and_wildcards_stand_for_what_a_shell_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/00008.tar", "a/00009.tar", "a/00010.tar", "b/00009.tar", "{x}.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def expanded(pattern):
        return [str(path) for path in sources.expand(pattern)]
    assert expanded("a/{00008..00010}.tar") == ["a/00008.tar", "a/00009.tar", "a/00010.tar"]
    assert expanded("{b,a}/00009.tar") == ["b/00009.tar", "a/00009.tar"]
    assert expanded("{b,a}/*.tar") == ["b/00009.tar", "a/00008.tar", "a/00009.tar", "a/00010.tar"]
    assert expanded("{*,b}/00009.tar") == ["a/00009.tar", "b/00009.tar"]
    assert expanded("{x}.tar") == ["{x}.tar"] and expanded("a") == ["a"]
    message = r"a/00011.tar: no such file, but a/\{00008..00011\}.tar stands for it too"
    with pytest.raises(ValueError, match=message):
        expanded("a/{00008..00011}.tar")
    with pytest.raises(ValueError, match=r"c/\*.tar: no such file"):
        expanded("c/*.tar")


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


RANDOM = np.random.RandomState(0)
NOISE = Image.fromarray(RANDOM.randint(0, 255, (64, 64, 3), dtype=np.uint8))
HALVES = Image.new("RGB", (40, 20), "blue")          # red above, blue below
HALVES.paste(RED, (0, 0, 40, 10))
SEE_THROUGH = Image.new("RGBA", (40, 30), (*RED, 0))
SEE_THROUGH.paste((*RED, 255), (0, 0, 40, 15))
CMYK_RED = Image.new("CMYK", (40, 30), (0, 255, 255, 0))
GREY_16_BITS = Image.fromarray(np.full((30, 40), 200 * 257, np.uint16))
GREY, WHITE, BLUE = (200, 200, 200), (255, 255, 255), (0, 0, 255)


KINDS = {       # name: (file, size, the colour above, the colour below)
    "cmyk": (picture_file(CMYK_RED), (40, 30), (255, 0, 0), (255, 0, 0)),
    "alpha": (picture_file(SEE_THROUGH, "PNG"), (40, 30), RED, WHITE),
    "webp-alpha": (picture_file(SEE_THROUGH, "WEBP", lossless=True), (40, 30), RED, WHITE),
    "palette": (picture_file(HALVES.quantize(4), "PNG"), (40, 20), RED, BLUE),
    "palette-alpha": (picture_file(SEE_THROUGH.quantize(4), "PNG"), (40, 30), RED, WHITE),
    "16-bit": (picture_file(GREY_16_BITS, "PNG"), (40, 30), GREY, GREY),
    "1-bit": (picture_file(Image.new("1", (40, 30), 1), "PNG"), (40, 30), WHITE, WHITE),
    "exif-180": (picture_file(HALVES, quality=95, exif=exif(3)), (40, 20), BLUE, RED),
    "exif-90": (picture_file(HALVES.rotate(90, expand=True), "PNG", exif=exif(6)), (40, 20),
                RED, BLUE),
    "wide": (picture_file(Image.new("RGB", (30000, 2), RED), "PNG"), (30000, 2), RED, RED),
    "high": (picture_file(Image.new("RGB", (2, 30000), RED)), (2, 30000), RED, RED),
}


@pytest.mark.parametrize("file, size, above, below", KINDS.values(), ids=KINDS)
def test_other_kinds_of_pictures_are_converted(file, size, above, below):
    image = sources.decode(file)
    assert image.mode == "RGB" and image.size == size
    for row, colour in ((0, above), (size[1] - 1, below)):
        assert np.abs(np.subtract(image.getpixel((size[0] // 2, row)), colour)).max() <= 4


def test_a_large_jpeg_comes_smaller_and_alike_but_never_below_what_is_asked(tmp_path):
    image = NOISE.resize((2400, 1800), Image.Resampling.BICUBIC)
    file = picture_file(image, quality=92)
    assert sources.decode(file).size == sources.decode(file, 800).size == (2400, 1800)
    small = sources.decode(file, 224)
    assert small.size == (1200, 900) and min(small.size) >= sources.DRAFT * 224
    pixels = [np.asarray(decoded.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
              for decoded in (small, sources.decode(file))]
    assert np.abs(pixels[0] - pixels[1]).max() <= 2


def test_own_pictures_are_those_with_a_text_beside(tmp_path):
    for name in ("b.JPG", "a.v2.png", "c.webp", "d.jpg"):
        kind = {".png": "PNG", ".webp": "WEBP"}.get(Path(name).suffix, "JPEG")
        (tmp_path / name).write_bytes(picture_file(kind=kind))
    for name, text in (("b", "Bee."), ("a.v2", "Ay"), ("c", "")):
        (tmp_path / f"{name}.txt").write_text(text + "\n")
    source = sources.own_pictures(tmp_path)
    assert [source.name(i) for i in range(4)] == ["a.v2.png", "b.JPG", "c.webp", "d.jpg"]
    assert words(source, 0) == "Ay" and words(source, 1) == "Bee."
    assert source.picture(1).size == (40, 30)
    assert faults(source) == {"c.webp": "the caption is empty", "d.jpg": "no caption"}
    assert source.text_length(1) > source.text_length(0)
    (tmp_path / "._b.JPG").write_bytes(b"of macOS")
    good, line = sources.usable(sources.own_pictures(tmp_path))
    assert [good.name(i) for i in range(len(good))] == ["a.v2.png", "b.JPG"]
    assert line == "2 of 4 samples left out (c.webp: the caption is empty, d.jpg: no caption)"
