"""What files once converted or loaded as a wrong model: .pth archives and safetensors."""
import json
import shutil
import struct
import zipfile

import pytest
import torch

from common.loading import load_folder
from tests.conftest import released, same_tensors


# ---- torch.save


def rezipped(source, out, compression=zipfile.ZIP_STORED, padding=b""):
    """A .pth whose members are written anew by zipfile, with `padding` as their extra field."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            info = zipfile.ZipInfo(member.filename)
            info.compress_type, info.extra = compression, padding
            new.writestr(info, old.read(member))
    return out


@pytest.mark.parametrize("padding", [b"", b"\x99\x99\x03\x00abc"])
def test_a_repacked_archive_is_read_where_its_members_are(
        convert, checkpoints, weights, tmp_path, padding):
    vit = rezipped(checkpoints / "eva_vit_g.pth", tmp_path / "vit.pth", padding=padding)
    out = convert(tmp_path / "out", vit=vit)
    assert same_tensors(out, weights["artgpt4"], "vision.safetensors")


def test_a_compressed_archive_is_refused_by_name(refused, checkpoints, tmp_path):
    vit = rezipped(checkpoints / "eva_vit_g.pth", tmp_path / "vit.pth", zipfile.ZIP_DEFLATED)
    line = refused(vit=vit)
    assert "vit.pth: " in line and "is compressed or encrypted inside the archive" in line


def test_a_changed_byte_in_an_archive_is_found(refused, checkpoints, tmp_path):
    content = (checkpoints / "eva_vit_g.pth").read_bytes()
    qkv = released("eva_vit_g.pth")["blocks.1.attn.qkv.weight"].numpy().tobytes()
    start = content.index(qkv)
    for change in (bytes(4096), bytes([content[start + 5000] ^ 1])):
        middle = start + 5000
        spoilt = content[:middle] + change + content[middle + len(change):]
        (tmp_path / "vit.pth").write_bytes(spoilt)
        line = refused(vit=tmp_path / "vit.pth")
        assert "blocks.1.attn.qkv.weight does not match its checksum" in line


def test_a_part_of_a_storage_is_checked_with_all_of_it(convert, refused, weights, tmp_path):
    tensors = released("eva_vit_g.pth")
    both = torch.stack((tensors["blocks.0.norm1.bias"], tensors["blocks.0.norm2.bias"]))
    tensors |= {"blocks.0.norm1.bias": both[0], "blocks.0.norm2.bias": both[1]}
    torch.save(tensors, tmp_path / "vit.pth")
    assert same_tensors(convert(tmp_path / "good", vit=tmp_path / "vit.pth"), weights["artgpt4"],
                        "vision.safetensors")
    content = bytearray((tmp_path / "vit.pth").read_bytes())
    content[content.index(both.numpy().tobytes()) + 1] ^= 1
    (tmp_path / "vit.pth").write_bytes(content)
    assert "norm1.bias does not match its checksum" in refused(vit=tmp_path / "vit.pth")


def test_tensors_without_values_of_their_own_are_refused(refused, tmp_path):
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.zeros(3, device="meta"),
    }
    for name, tensor in odd.items():
        file = tmp_path / f"{name}.pth"
        for as_zip in (True, False):
            changed = released("eva_vit_g.pth") | {"cls_token": tensor}
            torch.save(changed, file, _use_new_zipfile_serialization=as_zip)
            assert f"{name}.pth: cls_token is a sparse, quantised or" in refused(vit=file)


@pytest.mark.parametrize("content", [{"model": None}, {"model": [1]}, {1: torch.ones(2)}, [1], None,
                                     {"model": {("a",): torch.ones(2)}}])
def test_a_file_that_is_no_state_dict_is_refused(refused, tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    assert "odd.pth: " in refused(vit=tmp_path / "odd.pth")


def test_matrices_of_zeros_are_refused(refused, spoiled, vicuna):
    name = "model.layers.1.self_attn.k_proj.weight"
    assert f"{name}: is 0 in all places" in refused(llm=vicuna(tensors={name: torch.zeros(96, 96)}))
    name = "blocks.0.norm1.weight"
    line = refused(vit=spoiled("eva_vit_g.pth", {name: torch.zeros(176)}))
    assert f"{name}: is 0 in all places" in line


# ---- safetensors


def with_header(source, out, change):
    """A safetensors file with another header: change(header) -> header."""
    content = source.read_bytes()
    size, = struct.unpack("<Q", content[:8])
    header = json.dumps(change(json.loads(content[8:8 + size]))).encode()
    out.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size:])


OFFSETS = {
    "overlapping": lambda start, end, size: [0, end - start],
    "negative": lambda start, end, size: [start - size, end - size],
    "shifted": lambda start, end, size: [start + 4, end + 4],
    "reversed": lambda start, end, size: [end, start],
    "floating": lambda start, end, size: [float(start), float(end)],
    "beyond": lambda start, end, size: [start + size, end + size],
    "short": lambda start, end, size: [start, end - 4],
}


@pytest.mark.parametrize("fault", OFFSETS)
def test_offsets_are_checked(refused, checkpoints, weights, tmp_path, fault):
    def change(header):
        name = list(header)[5]
        start, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = OFFSETS[fault](start, end, 10_000_000)
        return header
    shutil.copytree(checkpoints / "llama-gqa", tmp_path / "gqa")
    file = "model.safetensors"
    with_header(checkpoints / "llama-gqa" / file, tmp_path / "gqa" / file, change)
    assert f"{file}: damaged" in refused(llm=tmp_path / "gqa", adapter=None)
    shutil.copytree(weights["artgpt4"], tmp_path / "weights")
    file = "llama.safetensors"
    with_header(weights["artgpt4"] / file, tmp_path / "weights" / file, change)
    with pytest.raises(ValueError, match="llama.safetensors: not a whole safetensors file"):
        load_folder(tmp_path / "weights")
