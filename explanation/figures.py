"""A page of HTML and what stands on it: texts, tables, pictures; code of the model, a picture lit
where something looks, bars, strips of tokens, drawings. A page needs no other file and runs no
script. (evaluate.py makes its report of the first of these.)

    python -m explanation.figures > docs/model.svg       the drawing of the 13B model
"""
import base64
import inspect
import io
from html import escape
from textwrap import dedent

import numpy as np
from PIL import Image

from artgpt4 import Config

PLAIN_STYLE = """
:root { --faint: #5d6670; --line: #d8dde2; --card: #f5f7f8; --accent: #2868a8; --second: #c8641b; }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1.2rem; background: #fff; color: #1c2024;
 font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h2 { margin-top: 2.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0 1.2rem; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
 vertical-align: top; font-variant-numeric: tabular-nums; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem;
 margin: 1rem 0; }
.side { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.side > * { flex: 1 1 16rem; min-width: 0; }
.side > img { flex: 0 0 auto; align-self: flex-start; }
img { max-width: 100%; border-radius: 4px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.faint { color: var(--faint); }
.name { font-weight: 600; margin-top: 0; }
"""
STYLE = """
body { max-width: 76rem; } p { max-width: 46rem; } a { color: var(--accent); }
section, footer { border-top: 2px solid var(--line); margin-top: 2.6rem; }
section > h2 { margin-top: 1.2rem; } h3 { font-size: 1rem; margin: .8rem 0 .4rem; }
nav, .drawings { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1.2rem 0; }
nav { gap: .4rem 1.2rem; } .drawings > svg { width: 25rem; max-width: 100%; margin: 0; }
.drawings > div { flex: 1 1 18rem; } .drawings > figure { width: 16rem; }
.beside { display: grid; grid-template-columns: minmax(0, 1fr); gap: .4rem 2.2rem; }
.beside > div > :first-child { margin-top: .3rem; }
@media (min-width: 62rem) {
 .beside { grid-template-columns: minmax(0, 25rem) minmax(0, 1fr); align-items: start; } }
details { margin: .5rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
 padding: .7rem .9rem; font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.warning { border-left: 3px solid var(--second); padding-left: .8rem; }
figure { margin: 0; } figure > img { display: block; }
figcaption { font-size: .82rem; color: var(--faint); margin: .25rem 0 .4rem; }
.lits { display: grid; gap: .6rem; margin: .5rem 0;
 grid-template-columns: repeat(auto-fill, minmax(4.9rem, 1fr)); }
.large { column-gap: 1.2rem;
 grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 42vw), 1fr)); }
.largest { grid-template-columns: repeat(auto-fill, minmax(min(13.5rem, 40vw), 1fr)); }
.picture { aspect-ratio: 1; background-size: cover; position: relative; }
.picture > * { position: absolute; inset: 0; width: 100%; height: 100%; border-radius: 0; }
.picture > img { image-rendering: pixelated; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding: .2rem .4rem; } }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15rem .6rem;
 align-items: center; font-size: .85rem; margin: .5rem 0 1rem; }
.bars i { background: var(--accent); height: .8rem; border-radius: 2px; min-width: 1px; }
.strip { display: flex; flex-wrap: wrap; gap: 3px; font-size: .85rem; margin: .8rem 0; }
.strip span { border: 1px solid var(--line); border-radius: 4px; padding: .1rem .35rem;
 text-align: center; white-space: pre; }
.strip small { display: block; opacity: .75; font-size: .68rem; }
.cases { display: grid; gap: 1rem 1.6rem; margin: 1rem 0;
 grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.case { display: flex; gap: .7rem; align-items: flex-start; font-size: .9rem; }
.case > figure, .case > img { flex: 0 0 6rem; width: 6rem; } .case p { margin: 0; }
mark { background: rgb(200 100 27/.3); color: inherit; }
"""


# ---- HTML; every text is escaped here, so callers pass it as it is


def page(title, body, style=""):
    """A whole HTML document. title: text; body: HTML; style: CSS beside that of every page. The
    policy in its head forbids it to run or load anything."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{PLAIN_STYLE}{style}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n")


def paragraph(text, style=""):
    """A paragraph that keeps the line breaks of its text. style: its CSS classes."""
    return f'<p class="text {escape(style)}">{escape(text)}</p>'


def html_table(header, rows):
    """A table of texts; the first of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>\n'
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def data_url(image, size=None):
    """The data URL of a PIL image: a JPEG of at most size x size pixels (RGB), or a whole PNG."""
    image, file, kind = image.copy(), io.BytesIO(), "jpeg" if size else "png"
    if size:
        image.thumbnail((size, size))
    image.save(file, kind, quality=88, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_tag(image, size, text=""):
    """The <img> of a PIL image, at most size x size pixels. text: for those who cannot see it."""
    return f'<img src="{data_url(image, size)}" alt="{escape(text)}">'


def picture_style(image):
    """CSS that puts the picture, as the model sees it (square), behind every class="picture"."""
    return f'.picture {{ background-image: url("{data_url(image.resize((336, 336)), 336)}"); }}'


def percent(share, digits=1):
    """0.125 as "12.5 %"."""
    return f"{100 * share:.{digits}f} %"


# ---- Text and code


def paragraphs(text):
    """HTML, its paragraphs divided by empty lines."""
    return f"<p>{text}</p>".replace("\n\n", "</p><p>")


def beside(text, figure):
    """A text (as of paragraphs) with its figure (HTML) on the right, on a narrow screen below."""
    return f'<div class="beside"><div>{paragraphs(text)}</div><div>{figure}</div></div>'


def listing(thing):
    """The source of a function or class of the model, as it stands there now, folded."""
    lines, first = inspect.getsourcelines(thing)
    return (f"<details><summary>The code: {thing.__qualname__}, artgpt4.py, line {first}</summary>"
            f'<pre tabindex="0">{escape(dedent("".join(lines)).rstrip())}</pre></details>')


# ---- The picture, lit


def framed(over, text, caption):
    """The picture with HTML over it. text: for those who cannot see it."""
    return (f'<figure><div class="picture" role="img" aria-label="{escape(text)}">{over}</div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def lit(values, text, caption="", mark=None):
    """The picture, bright where `values` (rows, columns), numpy, are high, and dark where low.
    mark: (row, column) of a patch to draw a frame around."""
    low, high = float(values.min()), float(values.max())
    veil = np.zeros((*values.shape, 2), np.uint8)
    veil[..., 1] = 215 * (high - values) / max(high - low, 1e-30)
    over = f'<img src="{data_url(Image.fromarray(veil))}" alt="">'
    if mark is not None:
        frame = f'<path d="M{mark[1]} {mark[0]}h1v1h-1z" fill="none" stroke='
        over += (f'<svg viewBox="0 0 {values.shape[1]} {values.shape[0]}" aria-hidden="true">'
                 f'{frame}"#fff" stroke-width=".3"/>{frame}"#c8231b" stroke-width=".14"/></svg>')
    return framed(over, text, caption)


def gridded(grid, text, caption):
    """The picture with the lines between its patches."""
    lines = "".join(f"M{i} 0V{grid}M0 {i}H{grid}" for i in range(1, grid))
    return framed(f'<svg viewBox="0 0 {grid} {grid}" aria-hidden="true"><path d="{lines}" '
                  'fill="none" stroke="#fff" stroke-width=".05"/></svg>', text, caption)


def lits(pictures, style=""):
    return f'<div class="lits {style}">{"".join(pictures)}</div>'


# ---- Bars, strips of tokens


def bars(rows):
    """Lines of name, bar and percent. rows: [(name, share of 1)]."""
    lines = [f'<span>{escape(name)}</span><i style="width:{100 * share:.1f}%"></i>'
             f"<span>{percent(share)}</span>" for name, share in rows]
    return f'<div class="bars">{"".join(lines)}</div>'


def token_strip(tokens):
    """Tokens one after another: [(text, text below, value)]. A value from 0 to 1 colours it blue,
    None orange, so that the text can be read, light or dark."""
    parts = ""
    for text, below, value in tokens:
        colour = "200 100 27/.45"
        if value is not None:
            colour = f"40 104 168/{0.65 * min(max(value, 0), 1):.2f}"
        parts += (f'<span style="background:rgb({colour})">{escape(text)}'
                  f"<small>{escape(below)}</small></span>")
    return f'<div class="strip">{parts}</div>'


# ---- Drawings


def words(x, y, text, anchor="middle", style=""):
    return (f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(str(text))}</text>")


DRAWING_STYLE = (
    "<style>.model { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: #1c2024; }"
    ".model .name { font-weight: 600; } .model .about { font-size: 10.5px; } "
    ".model .frozen { fill: #dbe6f0; stroke: #2868a8; } .model .plain { fill: #eceff1; "
    "stroke: #8a939b; } .model .trained { fill: #f7d9bd; stroke: #c8641b; } "
    ".model .way { fill: none; stroke: #7d8790; stroke-width: 1.4; }</style><defs>"
    "<marker id='tip' viewBox='0 0 6 6' refX='5' refY='3' markerWidth='6' markerHeight='6' "
    "orient='auto'><path d='M0 0L6 3L0 6z' fill='#7d8790'/></marker></defs>")


def box(x, y, width, name, about, kind):
    """A box of the drawing of the model, with a name and a line about it."""
    return (f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="40" rx="6"/>'
            + words(x + width / 2, y + 17, name, style="name")
            + words(x + width / 2, y + 32, about, style="about"))


def arrow(path):
    return f'<path class="way" d="{path}" marker-end="url(#tip)"/>'


def whole_model(c):
    """The shapes of the drawing of a model, given its Config."""
    size, patches = c.image_size, (c.image_size // c.patch_size) ** 2 + 1
    rows = (
        ("a picture", "resized, normalised", "plain", f"3 × {size} × {size}"),
        (f"ViT, {c.vit_layers} blocks", f"{c.vit_heads} heads, MLP of {c.vit_mlp_width}", "frozen",
         f"{patches} × {c.vit_width}"),
        (f"Q-Former, {c.qformer_layers} layers", f"{c.queries} queries read the patches", "frozen",
         f"{c.queries} × {c.qformer_width}"),
        ("projection", "one matrix", "trained", f"{c.queries} × {c.llama_width}"),
        ("the prompt", f"words, {c.queries} image vectors, words", "plain", f"T × {c.llama_width}"),
        (f"LLaMA, {c.llama_layers} blocks", "each as in the other drawing", "frozen",
         f"{c.llama_width}, the last one"),
        ("head", "one matrix", "frozen", f"{c.vocab_size:,} scores"),
        ("the next token", "the likeliest, or drawn", "plain", None))
    shapes = [box(0, 224, 122, "the question", "its tokens", "plain"),
              box(0, 290, 122, "word vectors", f"{c.vocab_size:,} × {c.llama_width}", "frozen"),
              arrow("M61 264v25"), arrow("M122 310h27"), arrow("M150 508H61V331"),
              words(68, 428, "and again", "start")]
    for y, (name, about, kind, below) in zip(range(26, 550, 66), rows, strict=True):
        shapes.append(box(150, y, 250, name, about, kind))
        if below:
            shapes += [arrow(f"M275 {y + 40}v25"), words(284, y + 57, below, "start")]
    return shapes


def one_block(c):
    """The shapes of the drawing of a block of the language model: three additions."""
    width, inner, y = c.llama_width, c.adapter_width, 50
    steps = [("norm", "trained in blocks 1, 3, 5, ...", "trained", "attention",
              f"{c.llama_heads} heads: looks at the tokens before", "frozen"),
             ("adapter: down", f"{width} → {inner}, then GELU", "trained", "adapter: up",
              f"{inner} → {width}; zeros before training", "trained"),
             ("norm", "trained in every block", "trained", "MLP",
              f"{width} → {c.llama_mlp_width} → {width}, each token alone", "frozen")]
    if inner == 0:
        del steps[1]
    shapes = [arrow(f"M30 26v{24 + 160 * len(steps)}"), words(38, 38, f"T × {width}", "start")]
    for first, second in ((step[:3], step[3:]) for step in steps):
        shapes += [box(110, y, 280, *first), box(110, y + 62, 280, *second),
                   arrow(f"M30 {y + 20}h79"), arrow(f"M250 {y + 40}v21"),
                   arrow(f"M250 {y + 102}v26H40"),
                   f'<circle class="plain" cx="30" cy="{y + 128}" r="9"/>',
                   words(30, y + 132, "+", style="name")]
        y += 160
    for x, kind in ((110, "frozen"), (190, "trained")):
        shapes += [f'<rect class="{kind}" x="{x}" y="{y}" width="14" height="14" rx="3"/>',
                   words(x + 20, y + 11, kind, "start")]
    return shapes


def drawings(config):
    """Two drawings (SVG), of the whole model and of one block, with a model's shapes."""
    return [f'<svg class="model" xmlns="http://www.w3.org/2000/svg" viewBox="-1 0 404 556" '
            f'role="img" aria-label="{title}">{DRAWING_STYLE}'
            f'{words(0, 14, title, "start", "name")}{"".join(shapes)}</svg>'
            for title, shapes in (("The whole model", whole_model(config)),
                                  ("One block of the language model", one_block(config)))]


if __name__ == "__main__":
    left, right = (part.replace("<svg ", f'<svg x="{x}" y="16" width="402" height="556" ')
                   for x, part in zip((20, 460), drawings(Config()), strict=True))
    print('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 882 588" width="882">'
          f'<rect width="882" height="588" rx="8" fill="#fff"/>{left}{right}</svg>')
