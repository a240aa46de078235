"""What --data can name: folders and tar files, whole, odd and damaged; what is left out of them."""
import json
import os
import random
import re
import tarfile

import pytest

from artgpt4 import INSTRUCTIONS, chat_prompt, instruction_prompt
from gallery.scenes import UNSEEN_PAIRS
from tests.training.small_files import jpeg, source_of, write_files, write_tar
from training.sources import QUESTIONS

PAIR = {"a.jpg": jpeg(), "a.txt": b"mine"}


def texts(source):
    """The answers of all pairs that can be read."""
    return [source.example(i, random.Random(0), random.Random(0))[2] for i in range(len(source))]


def left_out_of(source):
    """How much is left out, of all reasons."""
    return sum(map(int, re.findall(r"(?:^|, )(\d+) ", source.left_out)))


def align(*annotations):
    """The files of a folder in the layout of cc_sbu_align, with pictures 0, 1 and 2."""
    content = {"annotations": [{"image_id": i, "caption": text} for i, text in annotations]}
    return {f"image/{i}.jpg": jpeg(40 + i, 30) for i in range(3)} | {
        "filter_cap.json": json.dumps(content).encode()}


BAD_CAPTIONS = {
    "blank": {"txt": b" \n\t "}, "marks": {"txt": b"..!"},
    "latin-1": {"txt": "für".encode("latin-1")},
    "null": {"json": b'{"caption": null}'}, "surrogate": {"json": br'{"caption": "\ud800"}'},
    "number": {"json": b'{"caption": 5}'}, "list": {"json": b"[1]"}, "half": {"json": b'{"caption'},
    "deep": {"json": b"[" * 100000}, "utf-8": {"json": b'{"caption": "f\xfcr"}'},
}
FOLDERS = {             # what is in it: the captions that are read, how many files are left out
    "a pair": (PAIR, ["mine"], 0),
    "suffixes and folders": (
        {"B.JFIF": jpeg(), "B.TXT": b"one", "c/d.PNG": jpeg(), "c/d.txt": b"two",
         "00000/000000001.jpg": jpeg(), "00000/000000001.txt": b"three",
         "00000/000000001.json": b"{}"}, ["three", "one", "two"], 0),
    "a byte order mark": ({"a.jpg": jpeg(), "a.txt": b"\xef\xbb\xbfmine\r\n"}, ["mine"], 0),
    "what is no pair": (
        PAIR | {"lonely.jpg": jpeg(), "empty.png": jpeg(), "empty.txt": b" ",
                "b.txt": b"no picture", "raw.cr2": b"x", "latin.gif": jpeg(), "._a.jpg": b"x",
                "latin.txt": "für".encode("latin-1"), "wide.bmp": jpeg(),
                "wide.txt": "wide".encode("utf-16")}, ["mine"], 6),
    "what has a meaning in a prompt": (
        {"a.jpg": jpeg(), "a.txt": b"one ###Human: two <ImageHere>\x03"},
        ["one # ##Human: two <Image Here>"], 0),
    "cc_sbu_align": (align(("2", "two"), (0, "zero")), ["zero", "two"], 1),
    "a plain list": (
        align() | {"filter_cap.json": b'\xef\xbb\xbf[{"image_id": 1, "caption": "x"}]'}, ["x"], 2),
    "odd annotations": (align(("../../image/1", "x"), ("1", None), ("2", "two"), ("9", "9")),
                        ["two"], 4),
    "a tar with captions that cannot be learned, of which one has a text beside a bad json": (
        {f"{key}.{suffix}": content for key, parts in BAD_CAPTIONS.items()
         for suffix, content in (parts | {"jpg": jpeg()}).items()} | PAIR | {"half.txt": b"text"},
        ["text", "mine"], len(BAD_CAPTIONS) - 1),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_read_and_what_is_left_out_is_counted(tmp_path, name):
    files, expected, left_out = FOLDERS[name]
    write = write_tar if name.startswith("a tar") else write_files
    source = source_of(write(tmp_path / "data.tar", files))
    assert texts(source) == expected
    assert left_out_of(source) == left_out, source.left_out


@pytest.mark.parametrize("files, named", [
    ({}, ""), ({"a.jpg": jpeg()}, "1 pictures without a caption"),
    ({"filter_cap.json": b""}, "filter_cap.json"), ({"filter_cap.json": b"[5]"}, "filter_cap.json"),
    ({"filter_cap.json": b'{"annotations": [{"image_id": "1"}]}'}, "1 captions without a picture"),
    ({"0.tar": b"no tar file " * 100}, "0.tar"), ({"0.tar": b""}, "0.tar"),
])
def test_a_folder_without_a_pair_is_refused_by_name(tmp_path, files, named):
    with pytest.raises(ValueError) as error:
        source_of(write_files(tmp_path / "data", files))
    assert str(tmp_path / "data") in str(error.value) and named in str(error.value)


def test_cc_sbu_align_is_asked_as_released_and_own_pictures_as_chat_py_asks(tmp_path):
    own = source_of(write_files(tmp_path / "own", PAIR))
    released = source_of(write_files(tmp_path / "align", align(("1", "Two: 'x'!"))))
    asked = {source.example(0, random.Random(0), random.Random(seed))[1]
             for source in (own, released) for seed in range(80)}
    assert asked == {*map(instruction_prompt, INSTRUCTIONS), *(
        chat_prompt([f"<Img><ImageHere></Img> {text}"]) for text in INSTRUCTIONS + QUESTIONS)}
    first_stage = source_of(tmp_path / "align", stage=1)
    [picture], prompt, text = first_stage.example(0, random.Random(0), random.Random(0))
    assert (picture.size, prompt, text) == ((41, 30), "<ImageHere>", "two 'x'")


def test_a_fingerprint_tells_other_pictures_and_captions_and_not_another_place(tmp_path):
    def fingerprint(place, **changes):
        return source_of(write_files(tmp_path / place, PAIR | changes)).fingerprint()

    other = bytearray(jpeg())
    other[-40] ^= 1                                           # of the same size
    found = fingerprint("one")
    assert found == fingerprint("two")
    assert len({found, fingerprint("three", **{"a.txt": b"nice"}),
                fingerprint("four", **{"a.jpg": bytes(other)})}) == 3


def test_a_fingerprint_of_the_gallery_is_that_of_its_paintings(here):
    gallery = source_of("4", stage=1)
    assert gallery.fingerprint() == source_of("4").fingerprint() != source_of("3").fingerprint()
    assert gallery.picture(3).size == (224, 224)
    assert not {(scene.subject, scene.style) for scene in gallery.scenes} & set(UNSEEN_PAIRS)


def img2dataset(first, count):
    """The members of a tar file of img2dataset, with `count` samples."""
    members = {}
    for i in range(first, first + count):
        about = {"caption": f"Picture {i}", "status": "success"}
        members |= {f"{i:09}.jpg": jpeg(40 + i, 30), f"{i:09}.txt": f"Text {i}".encode(),
                    f"{i:09}.json": json.dumps(about).encode()}
    return members


def test_tar_files_are_found_by_pattern_by_braces_and_in_folders(tmp_path):
    tars = [write_tar(tmp_path / f"{n:02}.tar", img2dataset(4 * n, 4)) for n in range(3)]
    write_files(tmp_path, {"00_stats.json": b"{}"})
    for spec, pairs in ((tmp_path, 12), (f"{tmp_path}/*.tar", 12), (tars[1], 4),
                        (f"{tmp_path}/{{01..02}}.tar", 8)):
        assert len(source_of(spec)) == pairs
    assert "none: " + str(tmp_path / "00_stats.json") in source_of(tmp_path / "*").left_out
    source = source_of(tmp_path)
    assert source.picture(5).size == (45, 30)
    assert source.text(5) == ["01.tar:000000005", "Picture 5"]
    for spec, named in ((tmp_path / "{01..03}.tar", "03.tar"), (tmp_path / "none*", "none*"),
                        (tmp_path / "gone", "gone")):
        with pytest.raises(ValueError, match=named.replace("*", r"\*")):
            source_of(spec)


def test_a_tar_that_is_cut_or_damaged_keeps_its_whole_samples_and_is_named(tmp_path):
    tar = write_tar(tmp_path / "whole.tar", img2dataset(0, 3))
    with tarfile.open(tar) as file:
        members = {member.name: member for member in file}
    content, last = tar.read_bytes(), members["000000002.json"]
    for size in range(members["000000001.jpg"].offset, last.offset_data + last.size, 700):
        (tmp_path / "cut.tar").write_bytes(content[:size])
        source = source_of(tmp_path / "cut.tar")
        ends = [members[f"{i:09}.txt"].offset_data + members[f"{i:09}.txt"].size for i in range(3)]
        assert len(texts(source)) == sum(end <= size for end in ends)
        assert "cut.tar" in source.left_out
    damaged, at = bytearray(content), members["000000001.jpg"].offset
    damaged[at:at + 512] = os.urandom(512)
    (tmp_path / "damaged.tar").write_bytes(damaged)
    source = source_of(tmp_path / "damaged.tar")
    assert texts(source) == ["Picture 0"] and "damaged.tar" in source.left_out


def test_a_tar_of_what_is_no_sample_and_one_that_disappears(tmp_path):
    members = img2dataset(0, 1) | {
        "._000000000.jpg": b"x", "a/._b.txt": b"x", "b.jpg": jpeg(), "b.txt": b"good",
        "c.jpg": jpeg(), "d.txt": b"lonely", "../../out/" + 30 * "long/" + "\n.jpg": jpeg(),
        "../../out/" + 30 * "long/" + "\n.txt": b"outside"}
    write_tar(tmp_path / "0.tar", members)
    with tarfile.open(tmp_path / "1.tar", "w:gz"):
        pass
    source = source_of(tmp_path)
    assert texts(source) == ["Picture 0", "good", "outside"]
    assert source.name(2).endswith(r"long/\n") and len(list(tmp_path.iterdir())) == 2
    assert left_out_of(source) == 3
    (tmp_path / "0.tar").unlink()
    assert source.name(1) == "0.tar:b"
    with pytest.raises(OSError):
        source.picture(1)
