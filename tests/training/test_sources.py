"""sources.py: pictures and captions in tar files and folders, whole and damaged."""
import io
import json
import os
import random
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from training import sources
from training.sources import SampleError, Shards

RED = (200, 30, 40)


def picture_file(image=None, kind="JPEG", **options):
    """The bytes of a picture file; of 40 x 30 red pixels if no image is given."""
    file = io.BytesIO()
    (image or Image.new("RGB", (40, 30), RED)).save(file, kind, **options)
    return file.getvalue()


def write_tar(tar, members, **options):
    """A tar file with the members {name: bytes}."""
    with tarfile.open(tar, "w", **options) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return tar


def img2dataset(first, count):
    """The members of a tar file of img2dataset, with `count` samples."""
    members = {}
    for i in range(first, first + count):
        members[f"{i:09}.jpg"] = picture_file(Image.new("RGB", (40 + i, 30), RED))
        members[f"{i:09}.json"] = json.dumps({"caption": f"Picture {i}", "status": "success"}).encode()
        members[f"{i:09}.txt"] = f"Picture {i}, from the text".encode()
    return members


def words(source, i, stage=2):
    return source.words(i, stage, random.Random(0), random.Random(0))[1]


def faults(source):
    """{name: reason} of the samples that raise SampleError when read."""
    found = {}
    for i in range(len(source)):
        try:
            words(source, i)
            source.picture(i)
        except SampleError as error:
            found[source.name(i)] = str(error)
    return found


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
    with pytest.raises(ValueError, match=r"a/00011.tar: no such file, but a/\{00008..00011\}.tar stands for it too"):
        expanded("a/{00008..00011}.tar")
    with pytest.raises(ValueError, match=r"c/\*.tar: no such file"):
        expanded("c/*.tar")


def test_samples_of_tar_files_are_read_at_random_with_the_caption_of_the_json_or_else_of_the_text(tmp_path):
    members = img2dataset(0, 3) | {"p.PNG": picture_file(kind="PNG"), "p.txt": "\ufeffein Bild für dich\n".encode(),
                                   "w.webp": picture_file(kind="WEBP"), "w.json": b'{"caption": null}', "w.txt": b"w"}
    tars = [write_tar(tmp_path / "0.tar", members), write_tar(tmp_path / "1.tar", img2dataset(3, 2))]
    source = Shards(tars, tmp_path)
    assert len(source) == 7 and faults(source) == {}
    assert [words(source, i) for i in (6, 0, 3, 4)] == ["Picture 4", "Picture 0", "ein Bild für dich", "w"]
    assert words(source, 6, stage=1) == "picture 4"
    assert [source.picture(i).size for i in (6, 0, 3)] == [(44, 30), (40, 30), (40, 30)]
    assert source.name(6) == "1.tar:000000004" and source.text_length(6) == len("Picture 4, from the text")


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_foreign_letters_and_paths_that_lead_out_are_but_names(tmp_path, kind):
    keys = ["../../outside", "/absolute", "näme", "folder/" * 40 + "long", "line\nbreak"]
    members = {key + suffix: content for key in keys
               for suffix, content in ((".jpg", picture_file()), (".txt", key.strip().encode()))}
    (tmp_path / "run").mkdir()
    source = Shards([write_tar(tmp_path / "run/0.tar", members, format=kind)], tmp_path / "run/index")
    assert [words(source, i) for i in range(5)] == keys and faults(source) == {}
    assert [source.name(i) for i in range(4)] == [f"0.tar:{key}" for key in keys[:4]]
    assert source.name(4) == r"0.tar:'line\nbreak'"
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and len(list((tmp_path / "run").iterdir())) == 2


def test_an_index_is_kept_until_the_tar_s_size_or_time_differs(tmp_path):
    tar, index = write_tar(tmp_path / "0.tar", img2dataset(0, 2)), tmp_path / "index"
    Shards([tar], index)
    [file] = index.iterdir()
    file.write_bytes(file.read_bytes().replace(b"000000001", b"abcdefghi"))        # to see that it is read
    assert Shards([tar], index).name(1) == "0.tar:abcdefghi"
    os.utime(tar, ns=(0, 1))
    assert Shards([tar], index).name(1) == "0.tar:000000001"
    [file] = index.iterdir()
    write_tar(tar, img2dataset(0, 12))
    os.utime(tar, ns=(0, 1))
    assert len(Shards([tar], index)) == 12
    [other] = index.iterdir()
    assert other != file
    other.write_bytes(other.read_bytes()[:100])
    assert len(Shards([tar], index)) == 12                    # a damaged index is made again


def test_a_tar_cut_anywhere_keeps_its_whole_samples_and_counts_the_rest_as_one(tmp_path):
    tar = write_tar(tmp_path / "whole.tar", img2dataset(0, 3))
    with tarfile.open(tar) as file:
        ends = {member.name: member.offset_data + member.size for member in file}
    content = tar.read_bytes()
    for size in range(0, ends["000000002.txt"] + 700, 300):
        (tmp_path / "cut.tar").write_bytes(content[:size])
        rows = sources.index_tar(tmp_path / "cut.tar")
        whole = [f"{i:09}".encode() for i in range(3) if ends[f"{i:09}.json"] <= size]
        ended = size >= -(-ends["000000002.txt"] // 512) * 512 + 512
        assert rows["key"].tolist() == whole + [b""] * (not ended), size


def test_damaged_tar_files_among_others_cost_one_skipped_entry_each(tmp_path):
    good, damaged = write_tar(tmp_path / "0.tar", img2dataset(0, 4)), tmp_path / "1.tar"
    content = bytearray(good.read_bytes())
    with tarfile.open(good) as file:
        at = file.getmember("000000002.jpg").offset
    content[at:at + 512] = os.urandom(512)
    damaged.write_bytes(content)
    (tmp_path / "2.tar").touch()
    (tmp_path / "3.tar").write_bytes(b"no tar file " * 100)
    source = Shards([good, damaged, tmp_path / "2.tar", tmp_path / "3.tar"], tmp_path / "index")
    assert len(source) == 4 + 3 + 1 + 1
    assert faults(source) == {f"{name}.tar": f"the tar file is empty, cut short or damaged from byte {byte} on"
                              for name, byte in ((1, at), (2, 0), (3, 0))}
    with pytest.raises(ValueError, match="2.tar: no picture in it, nor in the 1 others"):
        Shards([tmp_path / "2.tar", tmp_path / "3.tar"], tmp_path / "index")


def png(width, height, depth=8):
    """A PNG file of a greyscale picture of any size, whose pixels are missing."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


NOISE = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8))

BAD = {
    "cut": ({"jpg": picture_file(NOISE)[:2000], "txt": b"x"}, "truncated"),
    "broken": ({"jpg": b"\xff\xd8\xff\xe0" + b"no picture" * 50, "txt": b"x"}, "Truncated File Read"),
    "empty": ({"jpg": b"", "txt": b"x"}, "not a picture that Pillow can read"),
    "html": ({"jpg": b"<html>404</html>", "txt": b"x"}, "not a picture that Pillow can read"),
    "bomb": ({"png": png(30000, 30000), "txt": b"x"}, "900000000 pixels"),
    "large": ({"png": png(10000, 9000), "txt": b"x"}, "90000000 pixels"),
    "thin": ({"png": picture_file(Image.new("L", (1, 80)), "PNG"), "txt": b"x"}, "1 x 80 pixels are no picture"),
    "no-picture": ({"txt": b"x"}, "no picture"),
    "no-caption": ({"jpg": picture_file()}, "no caption"),
    "null": ({"jpg": picture_file(), "json": b'{"caption": null}'}, "no caption"),
    "blank": ({"jpg": picture_file(), "txt": b" \n\t "}, "the caption is empty"),
    "latin-1": ({"jpg": picture_file(), "txt": "für".encode("latin-1")}, "'utf-8' codec can't decode"),
    "utf-8": ({"jpg": picture_file(), "json": b'{"caption": "f\xfcr"}'}, "'utf-8' codec can't decode"),
    "surrogate": ({"jpg": picture_file(), "json": br'{"caption": "\ud800"}'}, "'utf-8' codec can't encode"),
    "number": ({"jpg": picture_file(), "json": b'{"caption": 5}'}, "the caption is 5, not a text"),
    "json": ({"jpg": picture_file(), "json": b'{"caption": "half'}, "Unterminated string"),
    "deep": ({"jpg": picture_file(), "json": b"[" * 100000}, "recursion"),
}


@pytest.fixture(scope="module")
def bad_samples(tmp_path_factory):
    """A tar file with a sample for each of BAD, and a good one."""
    folder = tmp_path_factory.mktemp("bad")
    members = {f"{key}.{suffix}": content for key, (parts, _) in BAD.items() for suffix, content in parts.items()}
    return Shards([write_tar(folder / "0.tar", members | img2dataset(0, 1))], folder)


def test_every_bad_sample_is_told_in_one_line(bad_samples):
    found = faults(bad_samples)
    assert set(found) == {f"0.tar:{key}" for key in BAD}
    for key, (_, reason) in BAD.items():
        assert reason in found[f"0.tar:{key}"] and "\n" not in found[f"0.tar:{key}"]


def test_marks_alone_are_no_caption_in_stage_1(tmp_path):
    source = Shards([write_tar(tmp_path / "0.tar", {"0.jpg": picture_file(), "0.txt": b"...!"})], tmp_path)
    assert words(source, 0, stage=2) == "...!"
    with pytest.raises(SampleError, match="the caption is empty"):
        words(source, 0, stage=1)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


HALVES = Image.new("RGB", (40, 20), "blue")                   # red above, blue below
HALVES.paste(RED, (0, 0, 40, 10))
SEE_THROUGH = Image.new("RGBA", (40, 30), (*RED, 0))
SEE_THROUGH.paste((*RED, 255), (0, 0, 40, 15))


@pytest.mark.parametrize("file, size, above, below", [
    (picture_file(Image.new("CMYK", (40, 30), (0, 255, 255, 0))), (40, 30), (255, 0, 0), (255, 0, 0)),
    (picture_file(SEE_THROUGH, "PNG"), (40, 30), RED, (255, 255, 255)),
    (picture_file(SEE_THROUGH, "WEBP", lossless=True), (40, 30), RED, (255, 255, 255)),
    (picture_file(HALVES.quantize(4), "PNG"), (40, 20), RED, (0, 0, 255)),
    (picture_file(SEE_THROUGH.quantize(4), "PNG"), (40, 30), RED, (255, 255, 255)),
    (picture_file(Image.fromarray(np.full((30, 40), 200 * 257, np.uint16)), "PNG"), (40, 30), (200,) * 3, (200,) * 3),
    (picture_file(Image.new("1", (40, 30), 1), "PNG"), (40, 30), (255,) * 3, (255,) * 3),
    (picture_file(HALVES, quality=95, exif=exif(3)), (40, 20), (0, 0, 255), RED),
    (picture_file(HALVES.rotate(90, expand=True), "PNG", exif=exif(6)), (40, 20), RED, (0, 0, 255)),
    (picture_file(Image.new("RGB", (30000, 2), RED), "PNG"), (30000, 2), RED, RED),
    (picture_file(Image.new("RGB", (2, 30000), RED)), (2, 30000), RED, RED)],
    ids="cmyk alpha webp-alpha palette palette-alpha 16-bit 1-bit exif-180 exif-90 wide high".split())
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


def test_a_tar_that_shrinks_or_goes_while_it_is_used_makes_bad_samples(tmp_path):
    tar = write_tar(tmp_path / "0.tar", img2dataset(0, 2))
    source = Shards([tar], tmp_path / "index")
    os.truncate(tar, source.indices[0]["picture"][1][0] + 100)
    assert faults(source) == {"0.tar:000000001": "json of 45 bytes, of which the tar file holds 0"}
    tar.unlink()
    assert "No such file" in faults(source)["0.tar:000000000"]


def test_an_epoch_has_every_sample_once_in_blocks_of_few_tar_files(tmp_path):
    tars = [write_tar(tmp_path / f"{n}.tar", {f"{i}.jpg": b"" for i in range(n + 1)}) for n in range(9)]
    source = Shards(tars, tmp_path / "index")
    orders = [source.order(seed, epoch).tolist() for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]
    assert all(sorted(order) == list(range(45)) for order in orders)
    tar_of = [source.locate(i)[0] for i in orders[0]]
    at, blocks = 0, []
    while at < 45:
        block = list(dict.fromkeys(tar_of[at:]))[:sources.AT_ONCE]
        held = sum(int(tar.stem) + 1 for tar in block)
        blocks.append(len(set(tar_of[at:at + held])))
        at += held
    assert blocks == [4, 4, 1]
    assert tar_of != sorted(tar_of) and orders[0] != sorted(orders[0])


def test_own_pictures_are_those_with_a_text_beside(tmp_path):
    for name in ("b.JPG", "a.v2.png", "c.webp", "d.jpg"):
        (tmp_path / name).write_bytes(picture_file(kind={"p": "PNG", "w": "WEBP"}.get(name.split(".")[-1][0], "JPEG")))
    for name, text in (("b", "Bee."), ("a.v2", "Ay"), ("c", "")):
        (tmp_path / f"{name}.txt").write_text(text + "\n")
    source = sources.own_pictures(tmp_path)
    assert [source.name(i) for i in range(4)] == ["a.v2.png", "b.JPG", "c.webp", "d.jpg"]
    assert words(source, 0) == "Ay" and words(source, 1) == "Bee." and source.picture(1).size == (40, 30)
    assert faults(source) == {"c.webp": "the caption is empty", "d.jpg": "no caption"}
    assert source.text_length(1) > source.text_length(0)
