"""Reports: an HTML page that needs no other file and runs no script, and what may stand on it:
tables, pictures, charts (inline SVG), bars, heat maps, strips of tokens.

Every text is escaped here, so callers pass it as it is. Only page() takes HTML, which is made by
these functions.
"""
import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image

# The colours s0 to s7 are for the series of charts.
STYLE = """
:root { color-scheme: light dark;
 --paper: #fff; --ink: #1c2024; --faint: #5d6670; --line: #d8dde2; --card: #f5f7f8;
 --s0: #2868a8; --s1: #c8641b; --s2: #2f8a4c; --s3: #8d4c9e; --s4: #a8323e; --s5: #6b6f1d;
 --s6: #0f8b8d; --s7: #6d5a4b; }
@media (prefers-color-scheme: dark) { :root {
 --paper: #15181b; --ink: #e4e8eb; --faint: #98a2ab; --line: #343b42; --card: #1e2327;
 --s0: #6aa9e6; --s1: #ee9a57; --s2: #69c288; --s3: #c48ad4; --s4: #e9767f; --s5: #c0c45a;
 --s6: #4cc9cb; --s7: #bfa68f; } }

body { margin: 2rem auto; max-width: 70rem; padding: 0 1.2rem;
 background: var(--paper); color: var(--ink);
 font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0 1.2rem; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
 vertical-align: top; font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
thead th { border-bottom: 2px solid var(--line); }

.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
 padding: 1rem; margin: 1rem 0; }
.side { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.side > * { flex: 1 1 16rem; min-width: 0; }
.side > img { flex: 0 0 auto; align-self: flex-start; }
img { max-width: 100%; border-radius: 4px; }
iframe { width: 100%; height: 24rem; border: 1px solid var(--line); border-radius: 4px;
 background: #fff; color-scheme: light; }

.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.faint { color: var(--faint); }
.name { font-weight: 600; margin-top: 0; }
.score { border-left: 3px solid var(--s0); padding-left: .7rem; }

svg { display: block; margin: 1rem 0; fill: var(--ink);
 font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg .grid { stroke: var(--line); fill: none; }
svg .axis { stroke: var(--faint); fill: none; }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .faint { fill: var(--faint); }

.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15rem .6rem;
 align-items: center; font-size: .85rem; margin: .5rem 0 1rem; }
.bars i { background: var(--s0); height: .8rem; border-radius: 2px; min-width: 1px; }
.scroll > svg { max-width: none; }
.strip { display: flex; flex-wrap: wrap; gap: 3px; font-size: .85rem; margin: .8rem 0; }
.strip span { border: 1px solid var(--line); border-radius: 4px; padding: .1rem .35rem;
 text-align: center; white-space: pre; }
.strip small { display: block; opacity: .75; font-size: .68rem; }
.strip .image { background: var(--s1); color: var(--paper); border-color: var(--s1); }
"""
COLOURS = 8
STYLE += "".join(
    f"svg .s{i} {{ fill: var(--s{i}); }}\nsvg .curve.s{i} {{ fill: none; stroke: var(--s{i}); }}\n"
    for i in range(COLOURS))

# Of a chart and its margins, pixels
WIDTH, HEIGHT = 960, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 66, 48

# ---- Text


def page(title, body, style=""):
    """A whole HTML document. title: text; body: HTML; style: CSS beside that of every page. The
    policy in its head forbids it to run or load anything."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n")


def frame(document, title):
    """A frame that shows an HTML document from elsewhere. It runs no script, opens nothing, and by
    the policy that it takes over from page() loads nothing."""
    return (f'<iframe sandbox="" srcdoc="{escape(document)}" title="{escape(title)}" '
            'loading="lazy"></iframe>')


def paragraph(text, style=""):
    """A paragraph that keeps the line breaks of its text. style: its CSS classes."""
    return f'<p class="text {escape(style)}">{escape(text)}</p>'


def html_table(header, rows):
    """A table of texts; the first of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>")


def markdown_text(text):
    """Text for a Markdown file: one line, in which nothing is markup or HTML."""
    one_line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else escape(c, quote=False) for c in one_line)


def markdown_table(header, rows):
    """A table of texts in Markdown."""
    lines = [map(markdown_text, header), ["---"] * len(header)]
    lines += [map(markdown_text, row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- Pictures


def data_url(image, size):
    """A PIL image (RGB) as the data URL of a JPEG of at most size x size pixels."""
    image, file = image.copy(), io.BytesIO()
    image.thumbnail((size, size))
    image.save(file, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_tag(image, size, text=""):
    """The <img> of a PIL image, at most size x size pixels. text: for those who cannot see it."""
    return f'<img src="{data_url(image, size)}" alt="{escape(text)}">'


def png_url(pixels):
    """uint8 (rows, columns, 2 grey and alpha, 3 RGB or 4 RGBA) as the data URL of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def heat(value):
    """A value from 0 to 1 as a CSS colour that text can be read on, light or dark."""
    return f"rgb(40 104 168/{0.65 * min(max(value, 0), 1):.2f})"


# ---- Bars, strips of tokens, heat maps: as wide as they need, whatever the screen


def bars(rows, high=None):
    """Lines of name, bar and text. rows: [(name, value, text)]; high: the value of a whole line."""
    high = high or max([value for _, value, _ in rows] + [1e-30])
    lines = [f'<span>{escape(name)}</span><i style="width:{100 * value / high:.1f}%"></i>'
             f"<span>{escape(text)}</span>" for name, value, text in rows]
    return f'<div class="bars">{"".join(lines)}</div>'


def token_strip(tokens):
    """Tokens one after another. tokens: [(text, text below, value from 0 to 1 or None, what to
    say of it where the mouse rests, CSS class)]; the value colours it."""
    parts = []
    for text, below, value, about, style in tokens:
        colour = "" if value is None else f' style="background:{heat(value)}"'
        parts.append(f'<span class="{style}" title="{escape(about)}"{colour}>{escape(text)}'
                     f"<small>{escape(below)}</small></span>")
    return f'<div class="strip">{"".join(parts)}</div>'


def heatmap(values, rows, columns, title, high=None, cell=14):
    """A map of values (rows, columns), numpy, from 0 to `high` (default: the largest).

    rows, columns: their names; those of columns are written upwards. cell: its size in pixels.
    """
    high = high or max(float(values.max()), 1e-30)
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = (40, 104, 168)
    pixels[..., 3] = (values / high).clip(0, 1) * 255
    left = 8 + 7 * max(map(len, rows))
    top = 8 + 7 * max(map(len, columns))
    width, height = cell * len(columns), cell * len(rows)
    shapes = [f'<image href="{png_url(pixels)}" x="{left}" y="{top}" width="{width}" '
              f'height="{height}" preserveAspectRatio="none" style="image-rendering:pixelated"/>'
              f'<rect class="axis" x="{left}" y="{top}" width="{width}" height="{height}"/>']
    for i, name in enumerate(rows):
        shapes.append(label(name, left - 5, top + (i + 0.75) * cell, "end"))
    for i, name in enumerate(columns):
        x = left + (i + 0.75) * cell
        shapes.append(label(name, 0, 0, "start",
                            f'transform="translate({x:.0f} {top - 5}) rotate(-90)"'))
    return (f'<div class="scroll" tabindex="0"><svg viewBox="0 0 {left + width + 2} '
            f'{top + height + 2}" width="{left + width + 2}" role="img" '
            f'aria-label="{escape(title)}">{"".join(shapes)}</svg></div>')


# ---- Charts


def ticks(low, high, log=False):
    """About five round numbers in [low, high]; on a logarithmic axis powers of ten, and 2 and 5
    times these if there are few."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1,) if len(powers) > 4 else (1, 2, 5)
        values = [factor * 10.0 ** power for power in powers for factor in factors]
        return [value for value in values if low * 0.999 <= value <= high * 1.001]
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / 5.001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(text, x, y, anchor="middle", attributes=""):
    """SVG text at (x, y) pixels; anchor: which part of it is there."""
    return (f'<text {attributes} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(str(text))}</text>")


def svg(title, names, shapes, x_label="", y_label=""):
    """The frame of a chart: title, legend and labels around `shapes` (SVG).

    A narrow window scrolls it: scaled down, its text could not be read.
    """
    legend, x = [], LEFT
    for i, name in enumerate(names):
        legend.append(f'<rect class="s{i % COLOURS}" x="{x}" y="31" width="12" height="12"/>'
                      f'<text x="{x + 17}" y="41">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    width = max(WIDTH, x)
    turned = f"translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"
    heading = f'<text x="{LEFT}" y="18" font-weight="600" font-size="14">{escape(title)}</text>'
    below = label(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, attributes='class="faint"')
    beside = label(y_label, 0, 0, attributes=f'class="faint" transform="{turned}"')
    return (f'<div class="scroll"><svg viewBox="0 0 {width} {HEIGHT}" width="{width}" '
            f'height="{HEIGHT}" role="img" '
            f'aria-label="{escape(title)}">\n{heading}{"".join(legend)}\n'
            f'{"".join(shapes)}\n{below}{beside}</svg></div>')


def axes():
    """The lines on the left and at the bottom."""
    return f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'


def y_axis(low, high, log=False):
    """(y, shapes): a function from a value to its height in the chart; the SVG of ticks and grid.
    """
    position = math.log10 if log else float
    scale = (HEIGHT - TOP - BOTTOM) / (position(high) - position(low))

    def y(value):
        return HEIGHT - BOTTOM - (position(value) - position(low)) * scale

    shapes = []
    for tick in ticks(low, high, log):
        at = y(tick)
        shapes.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                      f'y1="{at:.1f}" y2="{at:.1f}"/>')
        shapes.append(label(f"{tick:.4g}", LEFT - 8, at + 4, "end", 'class="faint"'))
    return y, shapes


def x_axis(left, right):
    """(x, shapes): a function from a value to its place in the chart; the SVG of the ticks."""
    scale = (WIDTH - LEFT - RIGHT) / (right - left)

    def x(value):
        return LEFT + (value - left) * scale

    shapes, bottom = [], HEIGHT - BOTTOM
    for tick in ticks(left, right):
        at = x(tick)
        shapes.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" '
                      f'y2="{bottom + 5}"/>')
        shapes.append(label(f"{tick:.6g}", at, bottom + 18, attributes='class="faint"'))
    return x, shapes


def line_chart(series, title, x_label="", y_label="", log_y=False):
    """series: {name: [(x, y), ...]}; points that are not finite, or not above 0 where log_y, are
    left out."""
    def can_be_shown(x, y):
        return math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)

    series = {name: [point for point in points if can_be_shown(*point)]
              for name, points in series.items()}
    every = [point for points in series.values() for point in points] or [(0, 1)]
    xs, ys = zip(*every, strict=True)
    left, right = min(xs), max(xs)
    if right == left:
        right = left + 1
    low, high = y_range(ys, log_y)
    (x, x_shapes), (y, y_shapes) = x_axis(left, right), y_axis(low, high, log_y)
    shapes = [*y_shapes, *x_shapes, axes()]
    for i, points in enumerate(series.values()):
        places = [(f"{x(a):.1f}", f"{y(b):.1f}") for a, b in points]
        path = " ".join(f"{a},{b}" for a, b in places)
        shapes.append(f'<polyline class="curve s{i % COLOURS}" points="{path}"/>')
        if len(places) == 1:                                  # a line of one point shows nothing
            (a, b), = places
            shapes.append(f'<circle class="s{i % COLOURS}" cx="{a}" cy="{b}" r="3"/>')
    return svg(title, series, shapes, x_label, y_label)


def y_range(ys, log):
    """(low, high) of an axis with some room below and above the values."""
    low, high = min(ys), max(ys)
    if log:
        return low / 1.1, high * 1.1
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1
    return low - margin, high + margin


def bar_chart(groups, series, title, y_label="", high=None, spread=None):
    """Bars from 0, side by side.

    groups: names along the axis. series: {name: [a value or None for each group]}. spread: {name:
    [half the height of an error bar, or None, for each group]}. high: where the axis ends; default:
    above all bars.
    """
    values = [value for row in series.values() for value in row if value is not None]
    y, shapes = y_axis(0, high or 1.15 * max([*values, 1e-9]))
    room = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    width = min(0.86 * room / max(len(series), 1), 60)
    for g, group in enumerate(groups):
        middle = LEFT + (g + 0.5) * room
        shapes.append(label(group, middle, HEIGHT - BOTTOM + 18))
        for i, (name, row) in enumerate(series.items()):
            spreads = (spread or {}).get(name) or [None] * len(groups)
            x = middle + (i - len(series) / 2) * width
            shapes += bar(y, x, width, row[g], spreads[g], f"s{i % COLOURS}")
    return svg(title, series, [*shapes, axes()], "", y_label)


def bar(y, x, width, value, spread, style):
    """SVG of one bar with its error bar and its value; a dash if the value is None.

    y: from y_axis; x: of its left side, pixels.
    """
    centre, bottom = x + width / 2, y(0)
    if value is None:
        return [label("–", centre, bottom - 5)]
    top, above = y(value), 0
    shapes = [f'<rect class="{style}" x="{x + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" '
              f'height="{bottom - top:.1f}"/>']
    if spread:
        above = bottom - y(spread)
        shapes.append(f'<path class="axis" d="M{centre:.1f} {top - above:.1f}V{top + above:.1f}"/>')
    shapes.append(label(f"{value:.2f}", centre, top - above - 5))
    return shapes
