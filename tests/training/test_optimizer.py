"""training/optimizer.py: AdamW with moments of 8 bits, beside torch's."""
import pytest
import torch

from tests.training.short_runs import log_of, short_run
from training.optimizer import AdamW8bit, moment_bytes, pack, unpack


@pytest.mark.parametrize("moment, error", [("exp_avg", 0.02), ("exp_avg_sq", 0.04)])
def test_a_packed_moment_is_right_on_average_and_small_values_keep_their_digits(moment, error):
    values = torch.logspace(-3, 0, 300)
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([unpack(*pack(values, moment, generator), moment) for _ in range(400)])
    assert found.shape == (400, 300)
    torch.testing.assert_close(found.mean(dim=0), values, rtol=error, atol=2e-5)
    assert (found[0] / values - 1).abs().median() < 0.08
    assert not unpack(*pack(torch.zeros(300), moment, generator), moment).any()


def test_minima_are_found_as_by_torch_s_adamw_and_a_repeated_run_has_the_same_bits():
    def run(kind):
        torch.manual_seed(0)
        weight, target = torch.zeros(80, 100, requires_grad=True), torch.randn(80, 100)
        curvature = torch.logspace(-2, 2, 100)
        optimizer = kind([weight], lr=0.02, weight_decay=0.01)
        for _ in range(300):
            optimizer.zero_grad()
            noise = torch.randn(80, 100)
            (curvature * ((weight - target) ** 2 / 2 + 0.1 * noise * weight)).sum().backward()
            optimizer.step()
        return weight.detach(), (weight - target).square().mean().item()

    ours, error = run(AdamW8bit)
    theirs, expected = run(torch.optim.AdamW)
    assert expected < 0.001 and error < 2 * expected          # of 1 at the start
    assert (ours - theirs).square().mean() < 0.002
    again, _ = run(AdamW8bit)
    assert torch.equal(again, ours)


def test_training_with_8_bits_has_the_losses_of_32_and_resumes_to_the_same_bits(tmp_path, gallery):
    whole, out = tmp_path / "whole", tmp_path / "run"
    short_run(tmp_path / "adamw", gallery)
    short_run(whole, gallery, optimizer_bits=8)
    losses = [[entry["loss"] for entry in log_of(tmp_path / name)] for name in ("adamw", "whole")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)

    def stop_in_step_4(losses):
        stop_in_step_4.forwards += 1
        if stop_in_step_4.forwards == 4:
            raise KeyboardInterrupt

    stop_in_step_4.forwards = 0
    with pytest.raises(KeyboardInterrupt):
        short_run(out, gallery, optimizer_bits=8, loss=stop_in_step_4)
    short_run(out, gallery, optimizer_bits=8, resume=True)
    for file in ("adapter.safetensors", "samples.png"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    checkpoint = out / "checkpoint-0000006-of-0000006.pt"
    state = torch.load(checkpoint, weights_only=True)["optimizer"]["proj.weight"]
    size = sum(tensor.nbytes for name, tensor in state.items() if name != "step")
    assert size == moment_bytes(192 * 128) == 2 * (192 * 128 + 4 * 96)
