"""training/cached_vision.py: what the frozen towers find, computed once and kept in a file."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from artgpt4 import ArtGPT4, preprocess
from gallery.score import held_out_features, score
from tests.training.short_runs import TINY, log_of, train_py
from training import cached_vision as module
from training.cached_vision import cached_vision, release_vision
from training.data import Gallery, batches, held_out_batches, open_source, split
from training.validation import token_losses


@pytest.fixture
def count(monkeypatch):
    """A list that fills with the number of pictures that the towers see at a time."""
    seen, image_features = [], ArtGPT4.image_features

    def counted(self, pixels):
        seen.append(len(pixels))
        return image_features(self, pixels)

    monkeypatch.setattr(ArtGPT4, "image_features", counted)
    return seen


@torch.no_grad()
def losses(model, source, stage, min_crop_area=1):
    """The token losses of two batches of 6 pairs and of 12 held-out pairs, with one worker."""
    size, (_, held_out) = model.config.image_size, split(source, 12)
    found = [batch for [batch] in batches(source, stage, size, 6, 2, 5, min_crop_area)]
    found += [batch for batch, _ in held_out_batches(held_out, stage, size, 6)]
    return torch.cat([token_losses(model, batch, stage, 240) for batch in found])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-3), (torch.bfloat16, 0)])
def test_losses_are_those_of_pictures_in_bfloat16_to_the_bit_and_without_any_tower(
        gallery, tmp_path, dtype, tolerance, count):
    model = ArtGPT4.from_pretrained(TINY, dtype=dtype)
    expected = {stage: losses(model, gallery, stage) for stage in (1, 2)}
    source = cached_vision(model, gallery, tmp_path)
    release_vision(model)
    assert not any(name.startswith(module.TOWERS) for name in model.state_dict())
    count.clear()
    for stage in (1, 2):                    # in stage 2 some prompts show the picture of another
        found = losses(model, source, stage)
        torch.testing.assert_close(found, expected[stage], rtol=0, atol=tolerance)
        assert found.mean().item() == pytest.approx(expected[stage].mean().item(),
                                                    abs=tolerance / 20)
    assert count == []
    with pytest.raises(AttributeError):     # a random crop needs the pictures and the towers
        losses(model, source, 1, min_crop_area=0.5)


def test_parts_of_a_source_have_its_features_and_its_other_pictures(gallery, tmp_path):
    model = ArtGPT4.from_pretrained(TINY, dtype=torch.float32)
    source = cached_vision(model, gallery, tmp_path)
    part, held_out = split(source, 8)
    one, two = "<ImageHere>", "<ImageHere> <ImageHere>"
    for kept in (part, held_out):
        for i, number in enumerate(kept.numbers):
            first, last = kept.features(i, two)
            assert torch.equal(last, source.features(number, one)[0])
            assert torch.equal(first, source.features(gallery.other(number), one)[0])
    pixels = preprocess(gallery.picture(0), model.config.image_size)[None]
    features = model.image_features(pixels)
    torch.testing.assert_close(source.features(0, one).float(), features, rtol=1e-3, atol=1e-3)


def test_a_file_is_found_again_and_made_anew_for_other_data_weights_dtype_or_size(
        gallery, pairs, tmp_path, count):
    model = ArtGPT4.from_pretrained(TINY)
    first = cached_vision(model, gallery, tmp_path)
    assert sum(count) == 24 and first.fingerprint() == gallery.fingerprint()
    again = cached_vision(ArtGPT4.from_pretrained(TINY), Gallery(24), tmp_path)
    assert sum(count) == 24 and again.file == first.file

    other = ArtGPT4.from_pretrained(TINY)
    other.qformer.layers[-1].fc1.bias = torch.nn.Parameter(other.qformer.layers[-1].fc1.bias + 1)
    for changed, source in ((other, gallery), (model, Gallery(8)), (model, open_source(pairs)),
                            (ArtGPT4.from_pretrained(TINY, dtype=torch.bfloat16), gallery)):
        before = sum(count)
        cached_vision(changed, source, tmp_path, workers=0)
        assert sum(count) == before + len(source)
    model.config.image_size = 28
    model.vit.pos_embed = torch.nn.Parameter(model.vit.pos_embed[:, :5])
    assert "-28-" in cached_vision(model, gallery, tmp_path, workers=0).file.name
    model.llama.embed.weight = torch.nn.Parameter(model.llama.embed.weight + 1)     # not a tower
    before = sum(count)
    cached_vision(model, gallery, tmp_path)
    assert sum(count) == before and len(list(tmp_path.iterdir())) == 6


def test_half_a_file_is_never_left_and_nan_in_a_tower_is_named(gallery, tmp_path):
    model = ArtGPT4.from_pretrained(TINY)
    model.qformer.layers[0].fc2.weight = torch.nn.Parameter(
        model.qformer.layers[0].fc2.weight * torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity, in qformer.layers.0.fc2.weight"):
        cached_vision(model, gallery, tmp_path)
    model = ArtGPT4.from_pretrained(TINY, dtype=torch.float32)
    model.qformer.layers[-1].norm.weight = torch.nn.Parameter(
        model.qformer.layers[-1].norm.weight + 1e6)
    with pytest.raises(ValueError, match="too large for half precision; leave out --cache-vision"):
        cached_vision(model, gallery, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_score_needs_the_features_of_its_paintings_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gallery.score.held_out", lambda pairs: Gallery(2).scenes)
    model = ArtGPT4.from_pretrained(TINY)
    expected, features = score(model, 1), held_out_features(model)
    release_vision(model)
    assert score(model, 1, features) == expected


# ---- The command


def test_train_py_skips_the_same_samples_resumes_to_the_same_bits_and_trains_the_same(
        training_folder, pairs, monkeypatch, capsys):
    copy, runs = training_folder / "damaged", training_folder / "cached-runs"
    shutil.copytree(pairs, copy)
    (copy / "image" / "3.jpg").write_bytes(b"no picture")
    flags = ["--stage", 2, "--data", copy, "--init", TINY / "adapter.safetensors", "--val", 3,
             "--batch-size", 4, "--steps", 4, "--warmup-steps", 1, "--eval-every", 2,
             "--min-crop-area", 1]
    assert train_py(monkeypatch, *flags, "--out", runs / "plain") is None
    cached = [*flags, "--cache-vision", "--out"]
    assert train_py(monkeypatch, *cached, runs / "whole") is None
    [file] = (runs / "vision").iterdir()
    made = file.stat().st_mtime_ns
    skipped = [json.loads(line) for line in (runs / "whole/skipped.jsonl").read_text().splitlines()]
    assert {entry["sample"] for entry in skipped} == {"3.jpg"}
    assert (runs / "plain/skipped.jsonl").read_text() == (runs / "whole/skipped.jsonl").read_text()
    plain, whole = log_of(runs / "plain"), log_of(runs / "whole")
    for key in ("loss", "grad_norm", "val_loss"):
        assert [entry.get(key, 0) for entry in whole] == pytest.approx(
            [entry.get(key, 0) for entry in plain], rel=1e-3), key

    shutil.copytree(runs / "whole", runs / "resumed")
    (runs / "resumed" / "checkpoint-0000004-of-0000004.pt").unlink()
    assert train_py(monkeypatch, *cached, runs / "resumed", "--resume", "--workers", 0) is None
    assert [file] == list((runs / "vision").iterdir()) and file.stat().st_mtime_ns == made
    for name in ("adapter.safetensors", "samples.png"):
        assert (runs / "resumed" / name).read_bytes() == (runs / "whole" / name).read_bytes()
    assert [entry["loss"] for entry in log_of(runs / "resumed")] == [e["loss"] for e in whole]
    plain_again = [*flags, "--out", runs / "whole", "--resume"]
    assert train_py(monkeypatch, *plain_again) == 1
    assert "that run has --cache-vision True, this one None" in capsys.readouterr().err
    moved = load_file(runs / "whole" / "adapter.safetensors")["proj.weight"]
    assert not torch.equal(moved, load_file(TINY / "adapter.safetensors")["proj.weight"])


def test_a_random_crop_is_refused(monkeypatch, capsys):
    assert train_py(monkeypatch, "--stage", 1, "--cache-vision") == 2
    error = capsys.readouterr().err.splitlines()
    assert "--min-crop-area is 0.8: pictures are cropped at random; give --min-crop-area 1" in (
        error[-1])
