"""common/files.py: pictures are read right or refused, files are whole or not there."""
import io
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.files import open_image, pictures_below, read_json, read_text, written_beside

# ---- Pictures


@pytest.mark.parametrize("make", [
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"<svg>", b"junk", b"", b"\x89PNG\r\n\x1a\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n", Path.mkdir, os.mkfifo, str])
def test_what_is_no_raster_picture_is_refused_by_name(tmp_path, make):
    file = tmp_path / "a.jpg"
    if callable(make):
        make(file)                                            # str makes none
        with pytest.raises(ValueError, match="a.jpg: "):
            read_text(file)
    else:
        file.write_bytes(make)
    with pytest.raises(ValueError, match="a.jpg: "):
        open_image(file)


@pytest.mark.parametrize("mode, value, seen", [
    ("RGB", (10, 200, 30), (10, 200, 30)), ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
    ("LA", (0, 0), (255, 255, 255)), ("1", 1, (255,) * 3), ("I;16", 40000, (155, 155, 155)),
    ("I;16", 2048, (127, 127, 127)), ("I;16B", 40000, (155, 155, 155)),
    ("I", 200, (200, 200, 200)), ("F", 0.5, None), ("F", 128.0, None), ("I", -5, None),
    ("CMYK", (0, 255, 255, 0), (254, 0, 0))])
def test_any_mode_becomes_the_colours_one_sees_or_is_refused(tmp_path, mode, value, seen):
    Image.new(mode, (9, 7), value).save(tmp_path / "a.tiff")
    if seen is None:
        with pytest.raises(ValueError, match="a.tiff"):
            open_image(tmp_path / "a.tiff")
    else:
        (_, colour), = open_image(tmp_path / "a.tiff").getcolors()
        assert np.abs(np.subtract(colour, seen)).max() <= 1


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
def test_a_photo_is_turned_as_its_exif_says_whatever_else_that_holds(tmp_path, name):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))                      # lies on its side: black on top
    turn = struct.pack("<HHII", 0x0112, 3, 1, 6)
    odd = struct.pack("<HHII", 0x0110, 5, 1, 10 ** 9)         # values whose place is past the end
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0" + turn + odd + bytes(4)
    own = {"tiffinfo": {0x0112: 6}} if name == "a.tiff" else {"exif": exif}
    image.save(tmp_path / name, **own)
    opened = open_image(tmp_path / name)
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 5))[0] < 30 and opened.getpixel((10, 35))[0] > 220


def test_a_png_is_read_from_a_pipe_too_and_a_damaged_one_is_not_described_as_if_whole():
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    pipe = io.BytesIO()
    Image.fromarray(noise).save(pipe, "PNG")
    whole = pipe.getvalue()
    pipe = io.BytesIO(whole)
    pipe.seek = None
    assert np.array_equal(open_image("-", pipe), noise)
    for damaged in (whole[:9000] + bytes(4096) + whole[13096:], whole[:9000],
                    whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:]):
        with pytest.raises(ValueError, match="a.png"):
            open_image("a.png", io.BytesIO(damaged))


def test_a_jpeg_may_be_decoded_smaller_and_too_many_pixels_are_refused(tmp_path, monkeypatch):
    picture = Image.linear_gradient("L").resize((1000, 801)).convert("RGB")
    for name, size in (("a.jpg", (250, 201)), ("a.png", (1000, 801))):
        picture.save(tmp_path / name)
        assert open_image(tmp_path / name).size == (1000, 801)
        image = open_image(tmp_path / name, side=200)
        assert image.size == size and abs(image.getpixel((100, size[1] // 2))[0] - 127) < 3
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    with pytest.raises(ValueError, match=r"a.png: .*801000 pixels"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("name, frames", [("a.gif", 3), ("a.webp", 3), ("a.png", 1), ("a.tiff", 3)])
def test_of_an_animation_it_is_the_first_frame(tmp_path, name, frames):
    red, *others = (Image.new("RGB", (8, 8), (255 - i, i, 0)) for i in range(0, frames * 100, 100))
    red.save(tmp_path / name, save_all=frames > 1, append_images=others)
    image = open_image(tmp_path / name)
    red, green, _ = image.getpixel((4, 4))
    assert red > 240 and green < 15


def test_pictures_of_a_folder_are_found_below_it_and_the_rest_is_counted(tmp_path):
    for name in ("b.JFIF", "sub/a.png", "sub/deep/c.heic", ".hidden/d.png", "notes.txt", "._b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(".")
    found, left_out = pictures_below(tmp_path)
    names = [str(file.relative_to(tmp_path)) for file in found]
    assert names == ["b.JFIF", "sub/a.png", "sub/deep/c.heic"]
    assert left_out == {".txt": 1, "hidden": 2}


# ---- Texts and weights

def test_texts_are_utf_8_with_or_without_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}
    for wrong in (b"{", b"[]", b'{"a": "\xe9"}', "{}".encode("utf-16"), b"[" * 10 ** 5):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match="a.json"):
            read_json(file)


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_a_full_disk_is_reported_with_the_name_of_the_file_and_leaves_nothing(tmp_path, write):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ValueError, match="big: "), written_beside(tmp_path / "big") as path:
            write({"x": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_only_a_file_is_replaced_and_only_by_a_whole_one(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    _, terminal = os.openpty()                                # a device that no error can replace
    for name in ("link", "pipe", "folder", os.ttyname(terminal)):
        with pytest.raises(ValueError, match=name), written_beside(tmp_path / name):
            pass
    with pytest.raises(KeyError), written_beside(tmp_path / "file") as path:
        path.write_text("half")
        raise KeyError
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 4
