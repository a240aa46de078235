"""Small picture files and tar files, and how a source reads them."""
import io
import json
import random
import tarfile

from PIL import Image

from training.sources import SampleError

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
        about = {"caption": f"Picture {i}", "status": "success"}
        members[f"{i:09}.json"] = json.dumps(about).encode()
        members[f"{i:09}.txt"] = f"Picture {i}, from the text".encode()
    return members


def words(source, i, stage=2):
    """The text of pair i."""
    _, text = source.words(i, stage, random.Random(0), random.Random(0))
    return text


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
