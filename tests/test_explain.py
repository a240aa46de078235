"""explain.py as a command: its page holds every chapter, and numbers that are computed here without
it; for any picture and any weights folder."""
import os
import re
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
from PIL import Image

import explain
from artgpt4 import (
    END, IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, chat_prompt, example, instruction_prompt, preprocess,
)
from explanation import chapters, recording
from tests.conftest import run

ROOT = Path(__file__).parent.parent
COUPLE, LIGHTHOUSE = (ROOT / "samples" / name for name in ("couple.png", "lighthouse.png"))
NAMES = ["patches", "vit", "qformer", "prompt", "looking", "adapter", "next_word", "surgery",
         "loss", "costs"]


def made(folder, *arguments):
    """The page that a command makes, with scripts and pictures looked for in it."""
    out = folder / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "LONGEST", 24)               # a shorter answer
        patch.setattr(sys, "argv", ["explain.py", *map(str, arguments)])
        assert run(explain.main, explain.command_line(), *arguments, "--out", out) == 0
    html = out.read_text(encoding="utf-8")
    assert not re.search("<script|<[^>]* on[a-z]+=", html)
    addresses = re.findall('<[^>]* (?:src|href)="([^"]*)', html)
    assert all(address.startswith(("data:image/", "#")) for address in addresses) and addresses
    assert not re.search("<img (?![^>]*alt=)|<svg (?![^>]*aria-(label|hidden)=)", html)
    assert re.findall('<section id="(\\w+)">', html) == NAMES
    assert len(html.encode()) < 3e6
    assert "nan" not in re.sub("base64,[^\"')]*", "", html).replace("finance", "")
    return html


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return made(tmp_path_factory.mktemp("explain"), COUPLE)


@pytest.fixture(scope="module")
def embeds(tiny):
    """The image vectors of the picture, and of the one that it is compared with."""
    return [tiny.encode_image(preprocess(Image.open(file), tiny.config.image_size)[None])
            for file in (COUPLE, LIGHTHOUSE)]


@pytest.fixture(scope="module")
def prompt(tiny):
    return chat_prompt([f"{IMAGE_SLOT} {explain.QUESTION}"], tiny.config.prompt)


def chapter(html, name):
    return re.search(f'<section id="{name}">.*?</section>', html, re.DOTALL)[0]


def strips(html):
    """[[(token, what stands below it)]] of each strip of tokens."""
    return [[(unescape(token), below) for token, below in
             re.findall(r"<span[^>]*>([^<]*)<small>([^<]*)</small>", strip)]
            for strip in re.findall('<div class="strip">(.*?)</div>', html, re.DOTALL)]


@torch.inference_mode()
def test_the_candidates_of_the_first_token_are_those_of_the_model(html, tiny, embeds, prompt):
    best = tiny.llama(tiny.embed_prompt(prompt, embeds[0]))[0, -1].softmax(dim=-1).max(dim=-1)
    token, below = strips(chapter(html, "next_word"))[0][0]
    assert token == tiny.tokenizer.id_to_piece(best.indices.item())
    assert below == f"{100 * best.values.item():.0f} %"


def test_the_prompt_shows_every_vector_at_its_position(html, tiny, prompt):
    shown = strips(chapter(html, "prompt"))[0]
    ids = tiny.prompt_ids(prompt)
    assert [below for _, below in shown] == [str(i) for i in range(len(ids))]
    assert sum(token.startswith("image ") for token, _ in shown) == ids.count(-1) == 16


@torch.inference_mode()
def test_the_loss_of_a_sentence_is_that_of_the_model_before_both_pictures(html, tiny, embeds):
    shown = strips(chapter(html, "loss"))
    prompt = instruction_prompt(INSTRUCTIONS[0], tiny.config.prompt)
    text = tiny.tokenizer.decode([tiny.tokenizer.piece_to_id(token) for token, _ in shown[0]])
    ids, targets = example(tiny.tokenizer, tiny.config.queries, prompt, text, 200)
    for strip, image in zip(shown, embeds, strict=True):
        logits = tiny.llama(tiny.embed_ids(ids, image))[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none")
        expected = losses[torch.tensor(targets) >= 0].tolist()
        assert [float(below) for _, below in strip] == pytest.approx(expected, abs=0.0051)


def test_a_vector_of_the_other_picture_changes_the_answer(html):
    """Of weights/tiny: vector 0 has the subject; all vectors together tell the other picture."""
    cases = re.findall("<b>(vector \\d+|all vectors):</b> (.*?)</p>", chapter(html, "surgery"))
    assert [name for name, _ in cases] == [*(f"vector {i}" for i in range(16)), "all vectors"]
    told = re.sub("<[^>]*>", "", cases[-1][1])
    assert "<mark>" in cases[-1][1] and "lighthouse" in told and "couple" not in told


def test_the_adapters_are_shown_beside_what_they_would_lack(html):
    text = chapter(html, "adapter")
    assert [len(strip) for strip in strips(text)] == [len(strips(chapter(html, "next_word"))[0])]
    assert text.count('class="card"') == 3 and "MiniGPT-4" in text


def test_the_page_has_the_shapes_of_the_model_and_the_command_that_made_it(html):
    assert "65 × 176" in html and "16 × 192" in html and "192 → 48" in html
    assert "8 × 8 + 1 = 65" in html
    assert f"python explain.py {COUPLE}<" in unescape(html)
    assert "seen" not in html.partition("<nav>")[0]           # no warning


def test_a_strange_picture_is_said_to_be_strange(tmp_path):
    picture = tmp_path / "wide.png"
    Image.effect_noise((400, 30), 90).convert("RGB").save(picture)
    html = made(tmp_path, picture, "--prompt", f"###Human: {IMAGE_MARK}{END} <b>?", "--int8")
    assert "no painting that the model knows" in html and "400 × 30 pixels" in html
    assert "language in int8" in html and "<b>?" not in html.partition("<nav>")[0]
    assert html.count(">image 15<") == 1                      # the prompt's mark is none


@pytest.mark.parametrize("name, flags, cases", [("artgpt4", ["--surgery"], 7),
                                                ("minigpt4", ["--dtype", "bfloat16"], 0)])
def test_other_weights_are_explained(name, flags, cases, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "LARGE", 0)
    html = made(tmp_path, LIGHTHOUSE, "--weights", weights[name], *flags)
    assert chapter(html, "surgery").count('class="case"') == cases
    assert ("bfloat16" in html) == (cases == 0) and f"--weights {weights[name]}" in html


@pytest.mark.parametrize("arguments, named", [
    (["missing.png"], "missing.png"), (["text.png"], "text.png"),
    ([COUPLE, "--weights", "nowhere"], "nowhere"), ([COUPLE, "--out", "page.png"], "page.png"),
    ([COUPLE, "--prompt", "word " * 2000], "--prompt"),
    ([COUPLE, "--out", "text.png/page.html"], "text.png"),
    ([COUPLE, "--out", "pipe"], "pipe"),
])
def test_what_cannot_be_done_is_one_line(arguments, named, here, capsys):
    Path("text.png").write_text("no picture")
    os.mkfifo("pipe")
    out = [] if "--out" in arguments else ["--out", "page.html"]
    assert run(explain.main, explain.command_line(), *arguments, *out) == 1
    line, = capsys.readouterr().err.splitlines()
    assert named in line
    assert {path.name: path.is_fifo() for path in here.iterdir()} == {
        "text.png": False, "pipe": True}
