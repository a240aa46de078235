"""training/checkpoints.py: damaged checkpoints, and checkpoints that mean harm."""
import os

import pytest
import torch

from training import checkpoints as checkpoints_module
from training.checkpoints import checkpoints, frozen_checksum, load_checkpoint, save_checkpoint


def saved(out, *steps):
    """The checkpoints in `out` after checkpoints of these steps were saved."""
    for step in steps:
        weights = {"proj.bias": torch.full((500,), float(step))}
        save_checkpoint(out, step, 9, run={"stage": 1}, weights=weights)
    return checkpoints(out)


@pytest.mark.parametrize("damage", ["cut", "empty", "a flipped bit", "another file"])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(tmp_path, capsys, damage):
    first, last = saved(tmp_path, 1, 2, 3)
    assert first.name == "checkpoint-0000002-of-0000009.pt"
    assert last.name == "checkpoint-0000003-of-0000009.pt"
    for file in (last, first):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        damaged = {"cut": content[:-100], "empty": b"", "a flipped bit": content,
                   "another file": b"x" * 999}
        file.write_bytes(damaged[damage])
        if file == last:
            checkpoint = load_checkpoint(tmp_path, {"stage": 1})
            assert checkpoint["weights"]["proj.bias"].tolist() == [2] * 500
            error = capsys.readouterr().err
            assert error.startswith(f"{last}: damaged (") and error.count("\n") == 1
    with pytest.raises(ValueError, match="all its checkpoints are damaged"):
        load_checkpoint(tmp_path, {"stage": 1})


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)
    torch.save({"step": 1, "run": Evil()}, tmp_path / "checkpoint-0000001-of-0000009.pt")
    with pytest.raises(ValueError, match="all its checkpoints are damaged"):
        load_checkpoint(tmp_path, {})
    assert not (tmp_path / "evil").exists()


@torch.no_grad()
def test_a_changed_frozen_weight_changes_the_checksum_and_a_trainable_one_does_not(
        talker, monkeypatch):
    frozen = talker.llama.blocks[-1].mlp.down.weight.view(-1)
    monkeypatch.setattr(checkpoints_module, "CHECKED", len(frozen) // 7 + 1)  # every seventh value
    before = frozen_checksum(talker)
    for tensor, index, seen in (
            (frozen, 0, True), (frozen, 1, False), (frozen, 7 * (len(frozen) // 14), True),
            (frozen, 7 * ((len(frozen) - 1) // 7), True), (talker.proj.weight.view(-1), 0, False)):
        value = tensor[index].clone()
        tensor[index] += 1
        assert (frozen_checksum(talker) != before) == seen
        tensor[index] = value
    assert frozen_checksum(talker) == before
