"""common/files.py: pictures that Pillow reads, and what is said of those that it does not."""
import io

import pytest
from PIL import Image

from artgpt4 import to_rgb
from common import files
from common.files import open_image
from tests.conftest import draw


@pytest.mark.parametrize("begin, what", [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
    (b"\0\0\0\x20ftypavif\0\0\0\0mif1", "an AVIF picture"),
    (b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg width="9">', "an SVG drawing"),
    (b"  <svg>", "an SVG drawing"),
    (b"%PDF-1.7\n", "a PDF document"),
])
def test_other_formats_are_named_with_what_to_do(tmp_path, begin, what):
    file = tmp_path / "picture"
    file.write_bytes(begin)
    with pytest.raises(ValueError) as refused:
        open_image(file)
    assert str(refused.value).startswith(f"{file}: {what}")
    assert "export" in str(refused.value)


def test_a_picture_of_too_many_pixels_is_refused_with_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    Image.new("L", (1000, 801)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large.png: 1000 x 801 pixels, and more than 800,000"):
        open_image(tmp_path / "large.png")
    assert Image.MAX_IMAGE_PIXELS == 400_000


def test_a_large_jpeg_is_decoded_at_reduced_size(tmp_path, monkeypatch):
    file = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((1000, 801)).convert("RGB").save(file)
    assert open_image(file).size == (1000, 801)
    monkeypatch.setattr(files, "LARGE", 700_000)
    monkeypatch.setattr(files, "SIDE", 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)   # too few for the whole picture
    image = open_image(file)
    assert image.size == (250, 201) and image.info["size"] == (1000, 801)
    assert abs(image.getpixel((100, 100))[0] - 127) < 3


def test_an_ordinary_picture_is_decoded_as_ever(tmp_path):
    file = tmp_path / "picture.jpg"
    draw().save(file)
    with Image.open(file) as image:
        assert open_image(file).tobytes() == to_rgb(image).tobytes()


@pytest.mark.parametrize("name, frames", [("a.gif", 3), ("a.webp", 3), ("a.tiff", 3), ("a.png", 1)])
def test_of_an_animation_it_is_the_first_frame(tmp_path, name, frames):
    red, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue"))
    red.save(tmp_path / name, save_all=frames > 1, append_images=others[:frames - 1])
    image = open_image(tmp_path / name)
    red, green, _ = image.getpixel((4, 4))
    assert red > 240 and green < 15 and image.info["frames"] == frames


def test_a_stream_need_not_be_seekable():
    content = io.BytesIO()
    draw().save(content, "PNG")
    pipe = io.BytesIO(content.getvalue())
    pipe.seekable = lambda: False
    assert open_image("-", pipe).tobytes() == draw().tobytes()
