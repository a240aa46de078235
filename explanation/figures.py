"""What stands in the chapters: code of the model, the picture lit where something looks, a map of
vectors; and the frame of a chapter."""
import inspect
import io
import keyword
import tokenize
from html import escape
from textwrap import dedent

import numpy as np
from PIL import Image

from common.page import data_url, label, png_url

STYLE = """
body { max-width: 82rem; }
section { border-top: 2px solid var(--line); margin-top: 2.6rem; }
footer { border-top: 2px solid var(--line); margin-top: 2.6rem; }
section > h2 { margin-top: 1.2rem; }
.beside > div > h3 { margin-top: 1.2rem; } .beside > div > h3:first-child { margin-top: .4rem; }
section p, .lead { max-width: 46rem; }
a { color: var(--s0); }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1.2rem 0; }
nav a { border: 1px solid var(--line); border-radius: 1rem; padding: .15rem .8rem;
 background: var(--card); text-decoration: none; font-size: .9rem; }
.start { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.start > .lit { width: 15rem; } .start > div { flex: 1 1 18rem; }
.beside { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem 2rem; }
@media (min-width: 75rem) {
 .beside { grid-template-columns: minmax(0, 1.12fr) minmax(0, 1fr); align-items: start; }
 .beside > .told { position: sticky; top: 1rem; } }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
 padding: .7rem .9rem; margin: .3rem 0 .8rem; max-height: 40rem;
 font: 11.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; tab-size: 4; }
pre .c, pre .d { color: var(--faint); } pre .k { color: var(--s3); } pre .s { color: var(--s2); }
.where { font-size: .8rem; color: var(--faint); margin: .6rem 0 0; }
.try { border-left: 3px solid var(--s1); padding: .1rem .8rem; margin: 1.2rem 0; }
.try code, p code, td code { background: var(--card); border-radius: 3px; padding: .05rem .25rem;
 overflow-wrap: anywhere; font: 13px ui-monospace, "DejaVu Sans Mono", monospace; }
figure { margin: 0; }
figcaption { font-size: .82rem; color: var(--faint); line-height: 1.35; margin: .25rem 0 .4rem; }
.lits { display: grid; gap: .6rem; margin: .8rem 0;
 grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); }
.lits.few { grid-template-columns: repeat(3, 1fr); }
.picture { aspect-ratio: 1; background-size: cover; border-radius: 4px; overflow: hidden;
 position: relative; transition: transform .15s; }
.picture:hover { transform: scale(1.6); z-index: 2; }
.start .picture:hover { transform: none; }
.picture img { width: 100%; height: 100%; display: block; image-rendering: pixelated;
 border-radius: 0; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; }
section tbody th, section td { white-space: nowrap; }
@media (max-width: 40rem) {
 section table { font-size: .74rem; } section th, section td { padding: .2rem .3rem; }
 section tbody th { white-space: normal; } }
details { margin: .5rem 0; }
summary { cursor: pointer; }
.words { display: grid; gap: 0 1.5rem; align-items: start;
 grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.words p { margin: .4rem 0 0; }
.tall { max-height: 34rem; overflow: auto; border: 1px solid var(--line); border-radius: 6px; }
.tall table { margin: 0; } .tall th, .tall td { padding: .1rem .5rem; white-space: pre; }
.tall thead th { position: sticky; top: 0; background: var(--card); }
.two { display: grid; gap: 0 1.5rem;
 grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
svg.map { width: 100%; max-width: 40rem; background: var(--card); border-radius: 6px; }
svg.map .word { fill: var(--faint); opacity: .45; }
svg.map .near { fill: var(--s0); } svg.map .image { fill: var(--s1); opacity: .7; }
"""


def picture_style(image, size=336):
    """CSS that puts the picture, as the model sees it (square), behind every class="picture"."""
    return f'.picture {{ background-image: url("{data_url(image.resize((size, size)), size)}"); }}'


def percent(share, digits=1):
    """0.125 as "12.5 %"."""
    return f"{100 * share:.{digits}f} %"


# ---- Chapters and code


def section(number, name, title, texts, code, figures, task):
    """A chapter in HTML. texts: sentences; code: functions or classes of artgpt4.py; figures:
    HTML; task: HTML of the one thing to try."""
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in texts)
    listings = "".join(map(listing, code))
    return (f'<section id="{name}"><h2>{number}. {escape(title)}</h2>\n<div class="beside">'
            f'<div class="told">{paragraphs}{listings}</div>\n'
            f'<div>{figures}<p class="try"><b>Try:</b> {task}</p></div></div></section>\n')


def listing(thing):
    """The source of a function or class of the model, as it stands there now."""
    lines, first = inspect.getsourcelines(thing)
    where = f"artgpt4.py, line {first}: {thing.__qualname__}"
    return (f'<p class="where">{escape(where)}</p>'
            f'<pre tabindex="0">{coloured(dedent("".join(lines)))}</pre>')


def coloured(source):
    """Python in HTML: comments, texts and keywords in classes of their own."""
    lines, parts = source.splitlines(keepends=True), []
    row, column = 1, 0

    def copy_to(end_row, end_column):
        nonlocal row, column
        while (row, column) < (end_row, end_column):
            stop = end_column if row == end_row else len(lines[row - 1])
            parts.append(escape(lines[row - 1][column:stop]))
            row, column = (row, stop) if row == end_row else (row + 1, 0)

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        style = None
        if token.type == tokenize.COMMENT:
            style = "c"
        elif token.type == tokenize.STRING:
            style = "d" if token.string.startswith('"""') else "s"
        elif token.type == tokenize.NAME and keyword.iskeyword(token.string):
            style = "k"
        if style is not None:
            copy_to(*token.start)
            parts.append(f'<span class="{style}">')
            copy_to(*token.end)
            parts.append("</span>")
    copy_to(len(lines), len(lines[-1]))
    return "".join(parts).rstrip()


# ---- The picture, lit


def lit(values, text, caption="", mark=None):
    """The picture, bright where `values` (rows, columns), numpy, are high, and dark where low.

    text: for those who cannot see it. mark: (row, column) of a patch to draw a frame around.
    """
    low, high = float(values.min()), float(values.max())
    share = (values - low) / max(high - low, 1e-30)
    veil = np.zeros((*values.shape, 2), np.uint8)
    veil[..., 1] = (1 - share) * 215
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (f'<figure class="lit"><div class="picture" role="img" aria-label="{escape(text)}">'
            f'<img src="{png_url(veil)}" alt="">{frame(values.shape, mark)}</div>{below}</figure>')


def frame(shape, mark):
    """The SVG of a frame around one patch of a grid; nothing if mark is None."""
    if mark is None:
        return ""
    rows, columns = shape
    row, column = mark
    return (f'<svg viewBox="0 0 {columns} {rows}" aria-hidden="true"><rect x="{column}" y="{row}" '
            'width="1" height="1" fill="none" stroke="#fff" stroke-width=".3"/>'
            f'<rect x="{column}" y="{row}" width="1" height="1" fill="none" stroke="#c8231b" '
            'stroke-width=".14"/></svg>')


def gridded(grid, text, caption):
    """The picture with the lines between its patches."""
    lines = "".join(f"M{i} 0V{grid}M0 {i}H{grid}" for i in range(1, grid))
    return (f'<figure class="lit"><div class="picture" role="img" aria-label="{escape(text)}">'
            f'<svg viewBox="0 0 {grid} {grid}" aria-hidden="true"><path d="{lines}" '
            'fill="none" stroke="#fff" stroke-width=".05"/></svg></div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def own_picture(image, size, text, caption):
    """Another PIL image than the page's, in the frame of those."""
    shown = image.resize((size, size), Image.Resampling.NEAREST)
    return (f'<figure class="lit"><div class="picture" role="img" aria-label="{escape(text)}" '
            f'style="background-image:url({data_url(shown, size)})"></div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


# ---- A map of vectors


def two_directions(vectors):
    """PCA: vectors (N, D), numpy -> (N, 2), the two directions in which they differ most, and the
    share of their spread that these show."""
    centred = vectors - vectors.mean(axis=0)
    spread, directions = np.linalg.eigh(centred @ centred.T)  # (N,), rising; (N, N)
    points = directions[:, :-3:-1] * np.sqrt(spread[:-3:-1].clip(0))
    points *= np.where(points[-1] < 0, -1, 1)                 # the last vector: right and below
    return points, spread[-2:].sum() / max(spread.sum(), 1e-30)


def scatter(points, kinds, names, title, width=480, height=380):
    """SVG of points (N, 2), numpy. kinds: the CSS class of each: "word", "near" or "image"; names:
    what to write beside it, or None."""
    low, high = points.min(axis=0), points.max(axis=0)
    places = (points - low) / np.maximum(high - low, 1e-30)
    xs, ys = 20 + places[:, 0] * (width - 40), 20 + places[:, 1] * (height - 40)
    radius = {"word": 2, "near": 4, "image": 6}
    shapes, groups = [], []                                   # of points at almost the same place
    for x, y, kind, name in zip(xs, ys, kinds, names, strict=True):
        shapes.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius[kind]}"/>')
        if name is None:
            continue
        near = [group for group in groups if abs(group[0] - x) < 30 and abs(group[1] - y) < 12]
        if near:
            near[0][2].append(name)
        else:
            groups.append((x, y, [name]))
    taken = []                                                # the boxes of labels so far
    for x, y, members in reversed(groups):                    # the image vectors first
        more = f" and {len(members) - 2} more" if len(members) > 2 else ""
        text = ", ".join(members[:2]) + more
        anchor, away = ("end", -10) if x > 0.75 * width else ("start", 10)
        left = x + away - (7 * len(text) if anchor == "end" else 0)
        right = left + 7 * len(text)
        if all(right < a or left > b or abs(y - c) > 12 for a, b, c in taken):
            taken.append((left, right, y))
            shapes.append(label(text, x + away, y + 4, anchor))
    return (f'<svg class="map" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(title)}">{"".join(shapes)}</svg>')
