"""explain.py as a command: the page of a sample holds ten chapters, and numbers that are computed
here without it."""
import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import torch
from PIL import Image

import artgpt4
import explain
from artgpt4 import IMAGE_SLOT, ArtGPT4, chat_prompt, preprocess
from common.command_line import run_command
from gallery.pretrain import save_pretrained
from tests.common.html_elements import Elements

ROOT = Path(__file__).parent.parent
TINY = ROOT / "weights" / "tiny"
COUPLE = ROOT / "samples" / "couple.png"
CAPTION = "an oil painting of a couple"


def run_explain(*arguments):
    run_command(explain.main, explain.command_line(), list(map(str, arguments)))


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The page of a sample, of 20 tokens."""
    file = tmp_path_factory.mktemp("explain") / "new" / "page.html"
    run_explain(COUPLE, "--out", file, "--max-new-tokens", 20, "--caption", CAPTION, "--dtype",
                "float32")
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny():
    return ArtGPT4.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="module")
def pixels(tiny):
    return preprocess(Image.open(COUPLE), tiny.config.image_size)[None]


def chapter(html, name):
    return re.search(f'<section id="{name}">.*?</section>', html, re.DOTALL)[0]


def shown_numbers(html, pattern):
    return [float(number) for number in re.findall(pattern, html)]


def test_ten_chapters_each_have_text_code_a_figure_and_something_to_try(html):
    sections = re.findall('<section id="(\\w+)"><h2>(\\d+)\\. ', html)
    assert [int(number) for _, number in sections] == list(range(1, 11))
    assert [name for name, _ in explain.LINKS] == [name for name, _ in sections]
    for name, _ in sections:
        text = chapter(html, name)
        assert text.count("<pre") >= 1 and "Try:" in text and text.count("<p>") >= 2
        assert any(mark in text for mark in ("<svg", "<img", 'class="strip"', 'class="bars"'))


def test_the_page_is_one_file_without_scripts_that_loads_nothing(html):
    elements = Elements(html)
    assert "script" not in elements.tags and not elements.handlers()
    addresses = [a for a in elements.addresses() if not a.startswith("#")]
    assert addresses and all(a.startswith("data:image/") for a in addresses)
    assert all(url.strip('"').startswith("data:image/") for url in
               re.findall(r"url\(([^)]*)\)", html))
    assert len(html.encode()) < 3e6


def test_every_picture_has_a_text_for_those_who_cannot_see_it(html):
    assert html.count('class="picture" role="img" aria-label="') == html.count('class="picture"')
    figures = re.findall("<svg[^>]*>", html)
    assert all("aria-label" in tag or "aria-hidden" in tag for tag in figures)
    assert html.count("<img") == html.count(' alt=')


@torch.no_grad()
def test_the_ten_likeliest_first_tokens_are_those_of_the_model(html, tiny, pixels):
    prompt = chat_prompt([f"{IMAGE_SLOT} {explain.QUESTION}"])
    embeds = tiny.embed_prompt(prompt, tiny.encode_image(pixels))
    best = tiny.llama(embeds)[0, -1].softmax(dim=-1).topk(10)
    every = re.search("The ten likeliest at each of the 20 steps(.*?)</details>", html, re.DOTALL)
    rows = re.findall(r"<span>([^<]*)</span><i [^>]*></i><span>([\d.]+) %</span>", every[1])
    assert len(rows) == 200
    names = [tiny.tokenizer.id_to_piece(i) for i in best.indices.tolist()]
    assert [unescape(name) for name, _ in rows[:10]] == names
    assert [float(p) for _, p in rows[:10]] == pytest.approx(
        [100 * p for p in best.values.tolist()], abs=0.051)


@torch.no_grad()
def test_the_loss_of_the_caption_is_that_of_the_model(html, tiny, pixels):
    losses = tiny(pixels, [CAPTION])
    text = chapter(html, "loss")
    shown = float(re.search(r"The loss is the mean: <b>([\d.]+)</b>", text)[1])
    assert shown == pytest.approx(losses.mean().item(), abs=1e-4)
    each = shown_numbers(text, r"cross-entropy ([\d.]+): probability")
    assert each == pytest.approx(losses.tolist(), abs=1e-3)


@torch.no_grad()
def test_the_share_of_the_adapters_is_that_of_the_model(html, tiny, pixels):
    prompt = chat_prompt([f"{IMAGE_SLOT} {explain.QUESTION}"])
    embeds = tiny.embed_prompt(prompt, tiny.encode_image(pixels))
    ids = [token.item() for token in tiny.generate_ids(embeds, 20, temperature=0)]
    embeds = torch.cat((embeds, tiny.llama.embed(torch.tensor([ids[:-1]]))), dim=1)
    expected, adapters = [], [block.adapter for block in tiny.llama.blocks]
    handles = [adapter.register_forward_hook(lambda module, inputs, output: expected.append(
        ((output - inputs[0]).norm(dim=-1) / inputs[0].norm(dim=-1)).mean().item()))
        for adapter in adapters]
    tiny.llama(embeds)
    for handle in handles:
        handle.remove()
    bars = re.search("mean over all tokens</h3>(.*?)</div>", html, re.DOTALL)[1]
    shown = shown_numbers(bars, r"([\d.]+) %</span>")
    assert shown == pytest.approx([100 * share for share in expected], abs=0.06)


def test_the_prompt_shows_every_token_at_its_position(html, tiny):
    ids = tiny.prompt_ids(chat_prompt([f"{IMAGE_SLOT} {explain.QUESTION}"]))
    text = chapter(html, "prompt")
    assert shown_numbers(text, r"<small>(\d+)</small>") == list(range(len(ids)))
    assert text.count('class="image"') == ids.count(artgpt4.IMAGE_ID) == 16
    assert "112 / 14 = 8" in html and "P = 64 + 1 = 65" in html


def test_the_answers_with_and_without_the_adapters_are_shown(html):
    text = chapter(html, "adapter")
    assert text.count('class="card"') == 3
    assert "MiniGPT-4" in text


def test_the_page_says_by_which_command_it_was_made(html):
    footer = unescape(re.search("<footer>(.*?)</footer>", html)[1])
    assert f"python explain.py {COUPLE} --out " in footer
    assert f"--caption '{CAPTION}'" in footer


def test_a_sample_has_the_caption_of_the_gallery():
    assert "couple" in explain.sample_caption(COUPLE)
    assert explain.sample_caption(Path("elsewhere/couple.png")) is None


def test_other_models_are_explained_too(talker, talker_weights, picture, tmp_path):
    """No adapters, fewer heads of keys, a tied head, Llama-2's prompt, an embedding in bfloat16."""
    config = json.loads((talker_weights / "config.json").read_text())
    config |= {"adapter_width": 0, "prompt": "llama2_chat"}
    config["llama"] |= {"num_key_value_heads": 2, "tie_word_embeddings": True}
    torch.manual_seed(1)
    model = ArtGPT4(artgpt4.Config.from_dict(config), talker.tokenizer)
    torch.nn.init.normal_(model.llama.embed.weight)
    save_pretrained(model, tmp_path / "weights")
    out = tmp_path / "page.html"
    run_explain(picture, "--weights", tmp_path / "weights", "--out", out, "--max-new-tokens", 4,
                "--dtype", "bfloat16")
    html = out.read_text(encoding="utf-8")
    assert "These weights have no adapters" in html
    assert html.count("<section") == 10
    assert "bfloat16" in html and "nan" not in re.sub("base64,[^\")]*", "", html)


def test_int8_weights_are_explained(talker_weights, picture, tmp_path):
    out = tmp_path / "page.html"
    run_explain(picture, "--weights", talker_weights, "--int8", "--out", out,
                "--max-new-tokens", 4, "--patch", "3,0")
    html = out.read_text(encoding="utf-8")
    assert "language in int8" in html and "row 3, column 0" in html


@pytest.mark.parametrize("arguments, code, message", [
    (["missing.png"], 1, "missing.png: no such file"),
    (["text.png"], 1, "text.png: not a picture that Pillow can read"),
    ([COUPLE, "--weights", "nowhere"], 1, "nowhere: no weights folder"),
    ([COUPLE, "--patch", "8,0"], 1, "the grid has 8 rows and columns, which are counted from 0"),
    ([COUPLE, "--patch", "one"], 2, "'one' is not ROW,COLUMN, such as 3,4"),
    ([COUPLE, "--prompt", " "], 2, "the text is empty"),
    ([COUPLE, "--prompt", "<ImageHere>"], 1, "2 <ImageHere>, but there are 1 images"),
    ([COUPLE, "--max-new-tokens", "0"], 2, "'0' is not a whole number"),
    ([COUPLE, "--out", "text.png/page.html"], 1, "text.png"),
    ([COUPLE, "--out", "folder"], 1, "folder"),
])
def test_what_cannot_be_done_is_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    Path("folder").mkdir()
    if "--out" not in arguments:
        arguments = [*arguments, "--out", "page.html"]
    with pytest.raises(SystemExit) as stopped:
        run_explain(*arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == code
    assert message in lines[-1] and lines[-1].startswith("explain.py: ")
    assert len(lines) == 1 or code == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "text.png"]


def test_weights_without_minigpt4_have_two_answers(tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(TINY, weights, ignore=lambda *_: ["minigpt4.safetensors"])
    out = tmp_path / "page.html"
    run_explain(COUPLE, "--weights", weights, "--out", out, "--max-new-tokens", 3)
    html = out.read_text(encoding="utf-8")
    assert chapter(html, "adapter").count('class="card"') == 2
