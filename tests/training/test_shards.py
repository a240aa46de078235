"""training/shards.py: samples in img2dataset's tar files, whole and damaged."""
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.training.small_files import faults, img2dataset, picture_file, words, write_tar
from training import shards
from training.shards import Shards
from training.sources import SampleError, usable


def test_samples_are_read_at_random_with_the_caption_of_the_json_or_else_of_the_text(tmp_path):
    members = img2dataset(0, 3) | {
        "p.PNG": picture_file(kind="PNG"), "p.txt": "\ufeffein Bild für dich\n".encode(),
        "w.webp": picture_file(kind="WEBP"), "w.json": b'{"caption": null}', "w.txt": b"w"}
    first = write_tar(tmp_path / "0.tar", members)
    second = write_tar(tmp_path / "1.tar", img2dataset(3, 2))
    source = Shards([first, second], tmp_path)
    assert len(source) == 7 and faults(source) == {}
    captions = [words(source, i) for i in (6, 0, 3, 4)]
    assert captions == ["Picture 4", "Picture 0", "ein Bild für dich", "w"]
    assert words(source, 6, stage=1) == "picture 4"
    assert [source.picture(i).size for i in (6, 0, 3)] == [(44, 30), (40, 30), (40, 30)]
    assert source.name(6) == "1.tar:000000004"
    assert source.text_length(6) == len("Picture 4, from the text")


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_foreign_letters_and_paths_that_lead_out_are_only_names(tmp_path, kind):
    keys = ["../../outside", "/absolute", "näme", "folder/" * 40 + "long", "line\nbreak"]
    members = {key + suffix: content for key in keys
               for suffix, content in ((".jpg", picture_file()), (".txt", key.strip().encode()))}
    (tmp_path / "run").mkdir()
    tar = write_tar(tmp_path / "run/0.tar", members, format=kind)
    source = Shards([tar], tmp_path / "run/index")
    assert [words(source, i) for i in range(5)] == keys and faults(source) == {}
    assert [source.name(i) for i in range(4)] == [f"0.tar:{key}" for key in keys[:4]]
    assert source.name(4) == r"0.tar:'line\nbreak'"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_an_index_is_kept_until_the_tar_s_size_or_time_differs(tmp_path):
    tar, index = write_tar(tmp_path / "0.tar", img2dataset(0, 2)), tmp_path / "index"
    Shards([tar], index)
    [file] = index.iterdir()
    changed = file.read_bytes().replace(b"000000001", b"abcdefghi")
    file.write_bytes(changed)                        # to see that it is read
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
        rows = shards.index_tar(tmp_path / "cut.tar")
        expected = [f"{i:09}".encode() for i in range(3) if ends[f"{i:09}.json"] <= size]
        ended = size >= -(-ends["000000002.txt"] // 512) * 512 + 512
        if not ended:
            expected.append(b"")
        assert rows["key"].tolist() == expected, size


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
    reason = "the tar file is empty, cut short or damaged from byte"
    assert faults(source) == {"1.tar": f"{reason} {at} on", "2.tar": f"{reason} 0 on",
                              "3.tar": f"{reason} 0 on"}
    with pytest.raises(ValueError, match="2.tar: no picture in it, nor in the 1 others"):
        Shards([tmp_path / "2.tar", tmp_path / "3.tar"], tmp_path / "index")


def test_what_macos_adds_is_no_sample_and_a_bad_json_hides_no_text(tmp_path):
    members = img2dataset(0, 1) | {
        "._000000000.jpg": b"x", "a/._b.txt": b"x", "b.jpg": picture_file(), "b.txt": b"good",
        "b.json": b'{"caption": "half', "c.jpg": picture_file(), "d.txt": b"lonely"}
    source = Shards([write_tar(tmp_path / "0.tar", members)], tmp_path / "index")
    assert [source.name(i) for i in range(4)] == [
        f"0.tar:{key}" for key in ("000000000", "b", "c", "d")]
    assert words(source, 1) == "good"
    good, line = usable(source)
    assert [good.name(i) for i in range(2)] == ["0.tar:000000000", "0.tar:b"] and len(good) == 2
    assert line == "2 of 4 samples left out (0.tar:c: no caption, 0.tar:d: no picture)"


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_called_compressed(tmp_path, kind):
    with tarfile.open(tmp_path / "0.tar", f"w:{kind}"):
        pass
    with pytest.raises(ValueError, match="0.tar: compressed with .*; samples are read in place"):
        shards.index_tar(tmp_path / "0.tar")


def png(width, height, depth=8):
    """A PNG file of a greyscale picture of any size, whose pixels are missing."""
    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
            + chunk(b"IEND", b""))


RANDOM = np.random.RandomState(0)
NOISE = Image.fromarray(RANDOM.randint(0, 255, (64, 64, 3), dtype=np.uint8))
JPEG = picture_file()
THIN = picture_file(Image.new("L", (1, 80)), "PNG")
BROKEN = b"\xff\xd8\xff\xe0" + b"no picture" * 50

BAD = {     # key: (the parts of a sample, what its error says)
    "cut": ({"jpg": picture_file(NOISE)[:2000], "txt": b"x"}, "truncated"),
    "broken": ({"jpg": BROKEN, "txt": b"x"}, "Truncated File Read"),
    "empty": ({"jpg": b"", "txt": b"x"}, "not a picture that Pillow can read"),
    "html": ({"jpg": b"<html>404</html>", "txt": b"x"}, "not a picture that Pillow can read"),
    "bomb": ({"png": png(30000, 30000), "txt": b"x"}, "900000000 pixels"),
    "large": ({"png": png(10000, 9000), "txt": b"x"}, "90000000 pixels"),
    "thin": ({"png": THIN, "txt": b"x"}, "1 x 80 pixels are no picture"),
    "no-picture": ({"txt": b"x"}, "no picture"),
    "no-caption": ({"jpg": JPEG}, "no caption"),
    "null": ({"jpg": JPEG, "json": b'{"caption": null}'}, "no caption"),
    "blank": ({"jpg": JPEG, "txt": b" \n\t "}, "the caption is empty"),
    "latin-1": ({"jpg": JPEG, "txt": "für".encode("latin-1")}, "'utf-8' codec can't decode"),
    "utf-8": ({"jpg": JPEG, "json": b'{"caption": "f\xfcr"}'}, "'utf-8' codec can't decode"),
    "surrogate": ({"jpg": JPEG, "json": br'{"caption": "\ud800"}'}, "'utf-8' codec can't encode"),
    "number": ({"jpg": JPEG, "json": b'{"caption": 5}'}, "the caption is 5, not a text"),
    "json": ({"jpg": JPEG, "json": b'{"caption": "half'}, "Unterminated string"),
    "deep": ({"jpg": JPEG, "json": b"[" * 100000}, "recursion"),
}


@pytest.fixture(scope="module")
def bad_samples(tmp_path_factory):
    """A tar file with a sample for each of BAD, and a good one."""
    folder = tmp_path_factory.mktemp("bad")
    members = img2dataset(0, 1)
    for key, (parts, _) in BAD.items():
        for suffix, content in parts.items():
            members[f"{key}.{suffix}"] = content
    return Shards([write_tar(folder / "0.tar", members)], folder)


def test_the_error_of_every_bad_sample_is_one_line(bad_samples):
    found = faults(bad_samples)
    assert set(found) == {f"0.tar:{key}" for key in BAD}
    for key, (_, reason) in BAD.items():
        assert reason in found[f"0.tar:{key}"] and "\n" not in found[f"0.tar:{key}"]


def test_marks_alone_are_no_caption_in_stage_1(tmp_path):
    tar = write_tar(tmp_path / "0.tar", {"0.jpg": JPEG, "0.txt": b"...!"})
    source = Shards([tar], tmp_path)
    assert words(source, 0, stage=2) == "...!"
    with pytest.raises(SampleError, match="the caption is empty"):
        words(source, 0, stage=1)


def test_a_tar_file_that_shrinks_or_disappears_during_a_run_makes_bad_samples(tmp_path):
    tar = write_tar(tmp_path / "0.tar", img2dataset(0, 2))
    source = Shards([tar], tmp_path / "index")
    os.truncate(tar, source.indices[0]["picture"][1][0] + 100)
    assert faults(source) == {"0.tar:000000001": "json of 45 bytes, of which the tar file holds 0"}
    tar.unlink()
    assert "No such file" in faults(source)["0.tar:000000000"]


def test_an_epoch_has_every_sample_once_in_blocks_of_few_tar_files(tmp_path):
    tars = []
    for n in range(9):
        tars.append(write_tar(tmp_path / f"{n}.tar", {f"{i}.jpg": b"" for i in range(n + 1)}))
    source = Shards(tars, tmp_path / "index")
    orders = [source.order(seed, epoch).tolist()
              for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]
    assert all(sorted(order) == list(range(45)) for order in orders)
    tar_of = [tar for tar, _ in map(source.locate, orders[0])]
    at, blocks = 0, []
    while at < 45:
        block = list(dict.fromkeys(tar_of[at:]))[:shards.AT_ONCE]
        held = sum(int(tar.stem) + 1 for tar in block)
        blocks.append(len(set(tar_of[at:at + held])))
        at += held
    assert blocks == [4, 4, 1]
    assert tar_of != sorted(tar_of) and orders[0] != sorted(orders[0])
