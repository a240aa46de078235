"""With no argument: what checkpoints/ holds, what is missing, and the command that converts it."""
import pytest

import convert_weights


@pytest.fixture
def found(checkpoints, tmp_path, monkeypatch):
    """found({name: golden checkpoint}): an empty working directory, with links of these names in
    checkpoints/."""
    monkeypatch.chdir(tmp_path)

    def place(names):
        for name, source in names.items():
            path = tmp_path / "checkpoints" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(checkpoints / source)
    return place


def test_checkpoints_are_recognised_by_content_and_converted(found, weights, tmp_path, capsys):
    found({
        "a.bin": "eva_vit_g.pth",
        "b": "blip2_pretrained_flant5xxl.pth",
        "deep/er/c": "vicuna",
        "d.pth": "ArtGPT-4.pth",
        "e.pth": "pretrained_minigpt4.pth",
    })
    (tmp_path / "checkpoints" / "f.pth").write_text("not a checkpoint")
    convert_weights.main(["--yes"])
    said = capsys.readouterr().out
    for line in (
            "a.bin: EVA-ViT-g, 0.01 GB",
            "b: BLIP-2's Q-Former",
            "deep/er/c: LLaMA or Vicuna in transformers' format",
            "d.pth: ArtGPT-4's adapter",
            "e.pth: MiniGPT-4's projection",
            "not usable: checkpoints/f.pth:",
            "--vit checkpoints/a.bin",
            "--llm checkpoints/deep/er/c",
            "--adapter checkpoints/d.pth"):
        assert line in said
    out = tmp_path / "weights/artgpt4"
    for file in ("adapter.safetensors", "llama.safetensors", "vision.safetensors"):
        assert (out / file).read_bytes() == (weights["artgpt4"] / file).read_bytes()


def test_what_is_missing_is_said_with_its_owner_and_size(found, capsys):
    convert_weights.main([])
    said = capsys.readouterr().out
    for line in (
            "eva_vit_g.pth, 2.03 GB",
            "blip2_pretrained_flant5xxl.pth, 0.43 GB",
            "consolidated.*.pth",
            "lmsys/vicuna-13b-delta-v0, 26.0 GB",
            "ArtGPT-4.pth, 6.34 GB, Tyrannosaurus/ArtGPT-4",
            "Hugging Face"):
        assert line in said
    assert "http" not in said
    with pytest.raises(SystemExit):
        convert_weights.main(["--yes"])
    assert "not complete" in capsys.readouterr().err


def test_a_complete_folder_prints_the_command_and_does_nothing(found, tmp_path, capsys):
    found({"hf": "blip2-hf", "vicuna": "vicuna"})
    convert_weights.main([])
    said = capsys.readouterr().out
    assert ("next: python convert_weights.py --vit checkpoints/hf --qformer checkpoints/hf "
            "--llm checkpoints/vicuna --out weights/artgpt4") in said
    assert "without it the adapters start untrained" in said
    assert not (tmp_path / "weights").exists()
