"""chat.py: one question, pictures, files that cannot be read, precision."""
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import artgpt4
import chat
from artgpt4 import IMAGE_SLOT, ArtGPT4
from common.files import save_adapter
from gallery.pretrain import save_pretrained
from tests.conftest import draw

# One question


def test_prompt_prints_the_answer_alone_and_the_same_for_the_same_seed(run_chat, picture):
    code, out, err = run_chat(picture, "--prompt", "What is this?", "--seed", 7)
    assert (code, err) == (0, "")
    assert out.endswith("\n") and len(out.strip()) > 10
    _, again, _ = run_chat(picture, "--prompt", "What is this?", "--seed", 7)
    assert again == out
    _, other, _ = run_chat(picture, "--prompt", "What is this?", "--seed", 8)
    assert other != out


def test_a_large_folder_is_named_before_it_is_loaded(run_chat, picture, weights, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(weights["artgpt4"], folder)
    with open(folder / "llama.safetensors", "ab") as file:
        file.truncate(3 * 10 ** 9)                            # a hole takes no room on the disk
    code, _, err = run_chat(picture, "--prompt", "What is this?", "--weights", folder)
    loading, error = err.splitlines()
    assert code == 1 and loading == f"loading {folder}, 3.0 GB" and "llama.safetensors" in error


def test_without_a_seed_every_run_answers_differently(run_chat, picture):
    _, first, _ = run_chat(picture, "--prompt", "What is this?")
    _, second, _ = run_chat(picture, "--prompt", "What is this?")
    assert first != second


def test_the_answer_is_what_the_model_generates(run_chat, picture, talker):
    _, out, _ = run_chat(picture, "--prompt", "What is this?", "--temperature", 0)
    with torch.inference_mode():
        pixels = artgpt4.preprocess(draw(), 56)[None]
        prompt = artgpt4.chat_prompt([f"{IMAGE_SLOT} What is this?"])
        embeds = talker.embed_prompt(prompt, talker.encode_image(pixels))
    assert out == "".join(talker.generate(embeds, 20, temperature=0)).strip() + "\n"


def test_an_adapter_file_replaces_the_one_in_the_weights(run_chat, picture, talker, talker_weights,
                                                         tmp_path):
    save_adapter(talker, tmp_path / "same.safetensors")
    other = ArtGPT4.from_pretrained(talker_weights)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        other.proj.bias.add_(torch.randn(other.proj.bias.shape, generator=generator))
    save_adapter(other, tmp_path / "other.safetensors")

    def answer(*flags):
        return run_chat(picture, "--prompt", "What?", "--temperature", 0, *flags)[1]
    stored = answer()
    assert answer("--adapter", tmp_path / "same.safetensors") == stored
    assert answer("--adapter", tmp_path / "other.safetensors") != stored


def test_without_a_picture_it_takes_the_first_sample_and_says_so(run_chat, monkeypatch, tmp_path,
                                                                 picture):
    monkeypatch.setattr(chat, "HERE", tmp_path)
    code, out, err = run_chat("--prompt", "What?")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and "chat.py picture.jpg" in err

    (tmp_path / "samples").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "samples" / "b.png")
    draw().save(tmp_path / "samples" / "a.png")
    code, out, err = run_chat("--prompt", "What?", "--seed", 1)
    _, same, _ = run_chat(picture, "--prompt", "What?", "--seed", 1)
    assert code == 0 and out == same
    assert err.count("\n") == 1 and str(tmp_path / "samples" / "a.png") in err


def test_a_last_argument_that_sounds_like_one_is_the_question(run_chat, picture, tmp_path):
    question = ("--prompt", "What is this?", "--temperature", 0)
    _, answer, _ = run_chat(picture, *question)
    assert run_chat(picture, "What is this?", "--temperature", 0) == (0, answer, "")
    _, other, _ = run_chat(picture, "Why?", "--temperature", 0)
    assert other not in ("", answer)
    for gone in ("my picture.png", "picture", "http://a.b/c d.png"):
        code, out, err = run_chat(picture, tmp_path / gone if "/" not in gone else gone)
        assert (code, out, err.count("\n")) == (1, "", 1) and gone in err


def test_several_pictures_come_with_the_first_question(run_chat, picture, tmp_path, script):
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    asked = script(["One."])
    assert run_chat(picture, tmp_path / "white.png", "Which of them?") == (0, "One.\n", "")
    assert asked == [[f"{IMAGE_SLOT} {IMAGE_SLOT} Which of them?"]]


def test_more_pictures_than_in_training_are_a_note(run_chat, picture, script):
    script(["One."], ["One."])
    code, _, err = run_chat(*[picture] * 4, "Which of them?")
    assert (code, err) == (0, "")
    code, _, err = run_chat(*[picture] * 6, "Which of them?")
    assert code == 0 and err.count("\n") == 1 and "taught with at most 4" in err


def test_json_is_the_answer_with_how_it_was_made(run_chat, picture, talker, talker_weights):
    flags = ("--temperature", 0, "--seed", 3)
    _, answer, _ = run_chat(picture, "What is this?", *flags)
    code, out, err = run_chat(picture, "What is this?", "--json", *flags)
    found = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert found.pop("seconds") > 0
    assert found == {
        "images": [str(picture)], "question": "What is this?", "answer": answer.strip(),
        "tokens": 20, "model": talker_weights.name,
        "settings": {"temperature": 0.0, "top_p": 0.9, "repetition_penalty": 1.0,
                     "min_new_tokens": 0, "max_new_tokens": 20, "beams": 1, "seed": 3},
    }


def test_json_names_a_picture_as_often_as_it_is_given(run_chat, picture):
    _, out, _ = run_chat(picture, picture, "Which of them?", "--json")
    assert json.loads(out)["images"] == [str(picture), str(picture)]


def test_the_weights_folder_sets_defaults_and_flags_set_others(run_chat, picture, talker, tmp_path):
    about = {"settings": {"temperature": 0.0, "seed": None}, "pictures": 1, "more": ["ignored"]}
    save_pretrained(ArtGPT4(replace(talker.config, about=about), talker.tokenizer), tmp_path)

    def settings(*flags):
        _, out, err = run_chat(picture, picture, "What is this?", "--json", "--weights", tmp_path,
                               *flags)
        assert "taught with at most 1" in err
        return json.loads(out)["settings"]
    assert settings()["temperature"] == 0 and settings()["seed"] is None
    assert settings("--temperature", 0.5)["temperature"] == 0.5


@pytest.mark.parametrize("about", [
    {"settings": {"temperature": "hot"}},
    {"settings": {"warmth": 1}},
    {"settings": [1]},
    {"knows": 1},
    {"examples": "What?"},
    {"pictures": "two"},
])
def test_what_is_wrong_in_about_is_one_line(run_chat, picture, talker, tmp_path, about):
    save_pretrained(ArtGPT4(replace(talker.config, about=about), talker.tokenizer), tmp_path)
    code, out, err = run_chat(picture, "What is this?", "--weights", tmp_path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("chat.py: config.json, about: ")


# Pictures


def test_a_picture_comes_through_standard_input(run_chat, picture):
    question = ("--prompt", "What?", "--temperature", 0)
    _, answer, _ = run_chat(picture, *question)
    assert run_chat("-", *question, lines=picture.read_bytes()) == (0, answer, "")
    code, out, err = run_chat("-", *question, lines=b"words")
    assert (code, out) == (1, "") and err.startswith("chat.py: standard input: not a picture")
    code, out, err = run_chat("-", lines=picture.read_bytes())
    assert (code, out) == (2, "") and "--prompt" in err


def test_of_an_animation_the_first_frame_is_seen_and_that_is_said(run_chat, picture, tmp_path):
    file = tmp_path / "moving.gif"
    first = draw().convert("P", palette=Image.Palette.ADAPTIVE)
    first.save(file, save_all=True, append_images=[Image.new("RGB", first.size, "white")])
    question = ("--prompt", "What?", "--temperature", 0)
    _, answer, _ = run_chat(picture, *question)
    assert run_chat(file, *question) == (0, answer, f"{file}: the first of 2 frames\n")


def test_pictures_of_every_kind_are_seen_alike(run_chat, picture, tmp_path):
    rotated = Image.Exif()
    rotated[0x112] = 6                                        # the reader turns it clockwise
    palette = draw().convert("P", palette=Image.Palette.ADAPTIVE)
    pictures = {
        "alpha.png": (draw().convert("RGBA"), {}),
        "alpha.webp": (draw().convert("RGBA"), {"lossless": True}),
        "palette.png": (palette, {}),
        "palette.gif": (palette, {}),
        "cmyk.tiff": (draw().convert("CMYK"), {}),
        "exif.png": (draw().transpose(Image.Transpose.ROTATE_90), {"exif": rotated}),
        "no_suffix": (draw(), {"format": "BMP"}),
    }
    question = ("--prompt", "What?", "--temperature", 0)
    _, answer, _ = run_chat(picture, *question)
    for name, (image, options) in pictures.items():
        image.save(tmp_path / name, **options)
        assert run_chat(tmp_path / name, *question) == (0, answer, ""), name
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    _, other, _ = run_chat(tmp_path / "white.png", *question)
    assert other != answer


def test_sixteen_bits_are_seen_as_eight(run_chat, tmp_path):
    grey = np.asarray(draw().convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    question = ("--prompt", "What?", "--temperature", 0)
    code, *eight = run_chat(tmp_path / "8.png", *question)
    assert code == 0
    assert run_chat(tmp_path / "16.png", *question) == (code, *eight)


# Errors that a user can cause


def broken_files(folder):
    """{name: arguments} that must fail with one line that has the name in it."""
    picture = folder / "picture.jpg"
    draw().save(picture)
    (folder / "truncated.jpg").write_bytes(picture.read_bytes()[:-40])
    (folder / "words.png").write_text("no picture")
    (folder / "no.safetensors").write_text("no tensors")
    Image.new("L", (900, 900)).save(folder / "bomb.png")
    (folder / "empty").mkdir()
    return {
        "missing.png": [folder / "missing.png"],
        "words.png": [folder / "words.png"],
        "truncated.jpg": [folder / "truncated.jpg"],
        "bomb.png": [folder / "bomb.png"],
        "empty": [folder / "empty"],
        "an argument is empty": [""],
        "no_weights": [picture, "--weights", folder / "no_weights"],
        "no.safetensors": [picture, "--adapter", folder / "no.safetensors"],
        "gone.safetensors": [picture, "--adapter", folder / "gone.safetensors"],
    }


def test_a_broken_or_missing_file_is_one_line_that_names_it(run_chat, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    for name, arguments in broken_files(tmp_path).items():
        code, out, err = run_chat(*arguments, "--prompt", "What?")
        assert (code, out, err.count("\n")) == (1, "", 1), name
        assert err.startswith("chat.py: ") and name in err


def test_missing_weights_say_how_to_get_some(run_chat, picture, tmp_path):
    _, _, err = run_chat(picture, "--weights", tmp_path / "none", "--prompt", "What?")
    assert "convert_weights.py" in err


@pytest.mark.parametrize("arguments", [
    ("--temperature", "-1"),
    ("--temperature", "nan"),
    ("--top-p", "0"),
    ("--top-p", "1.5"),
    ("--max-new-tokens", "0"),
    ("--max-new-tokens", "2.5"),
    ("--seed", "-1"),
    ("--seed", "x"),
    ("--dtype", "int4"),
    ("--device", "abacus"),
    ("--device", "meta"),
    ("--prompt", "  "),
    ("--json",),
    ("--each",),
    ("--replace", "a.png=b.png"),
    ("--surprise",),
])
def test_misuse_is_exit_code_2_and_names_the_flag(run_chat, picture, arguments):
    code, out, err = run_chat(picture, *arguments)
    assert (code, out) == (2, "")
    assert arguments[0] in err and "Traceback" not in err


# Precision


def test_a_cpu_computes_in_float32_if_half_of_its_memory_holds_that(run_chat, picture, talker,
                                                                    tmp_path, monkeypatch):
    save_pretrained(ArtGPT4(talker.config, talker.tokenizer).bfloat16(), tmp_path)

    def dtype(*flags):
        arguments = ["--weights", str(tmp_path), "--device", "cpu", *flags]
        args = chat.command_line().parse_args(arguments)
        return chat.load_model(args).llama.embed.weight.dtype
    assert dtype() == torch.float32
    assert dtype("--dtype", "float16") == torch.float16
    code, _, _ = run_chat(picture, "--weights", tmp_path, "--dtype", "bfloat16",
                          "--prompt", "What?", "--seed", 1)
    assert code == 0
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)     # a machine of a million bytes
    assert dtype() == torch.bfloat16
