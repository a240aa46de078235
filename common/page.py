"""Reports: one HTML page that needs no other file and runs no script; tables, pictures and charts (inline SVG) for it.

Every text is escaped here, so callers pass it as it is; only page() takes HTML, made of these functions.
"""
import base64
import io
import math
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --faint: #5d6670; --line: #d8dde2; --card: #f5f7f8;
 --s0: #2868a8; --s1: #c8641b; --s2: #2f8a4c; --s3: #8d4c9e; --s4: #a8323e; --s5: #6b6f1d; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e4e8eb; --faint: #98a2ab; --line: #343b42;
 --card: #1e2327; --s0: #6aa9e6; --s1: #ee9a57; --s2: #69c288; --s3: #c48ad4; --s4: #e9767f; --s5: #c0c45a; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1.2rem; background: var(--paper); color: var(--ink);
 font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; } h3 { font-size: 1rem; margin: 0 0 .5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .8rem 0 1.2rem; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
 font-variant-numeric: tabular-nums; } th { font-weight: 600; } thead th { border-bottom: 2px solid var(--line); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
.side { display: flex; flex-wrap: wrap; gap: 1.2rem; } .side > * { flex: 1 1 16rem; min-width: 0; }
.side > img { flex: 0 0 auto; align-self: flex-start; } img { max-width: 100%; border-radius: 4px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; } .faint { color: var(--faint); }
.name { font-weight: 600; margin-top: 0; } .score { border-left: 3px solid var(--s0); padding-left: .7rem; }
svg { display: block; max-width: 100%; height: auto; margin: 1rem 0; fill: var(--ink);
 font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg .grid { stroke: var(--line); fill: none; } svg .axis { stroke: var(--faint); fill: none; }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; } svg .faint { fill: var(--faint); }
""" + "".join(f"svg .s{i} {{ fill: var(--s{i}); }} svg .curve.s{i} {{ fill: none; stroke: var(--s{i}); }}\n"
              for i in range(6))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 340, 64, 16, 66, 48          # of a chart and its margins, pixels


def page(title, body):
    """A whole HTML document. title: text; body: HTML. The policy in its head lets nothing run, nor load."""
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            'style-src \'unsafe-inline\'">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
            f"{body}\n</body>\n</html>\n")


def paragraph(text, style=""):
    """A paragraph that keeps the line breaks of its text."""
    return f'<p class="text {escape(style)}">{escape(text)}</p>'


def html_table(header, rows):
    """A table of texts; the first of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
    lines = [f'<tr><th scope="row">{escape(str(first))}</th>'
             + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest) + "</tr>" for first, *rest in rows]
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>' + "\n".join(lines)
            + "</tbody></table></div>")


def markdown_text(text):
    """Text for a Markdown file: one line, nothing in it is markup or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else escape(c, quote=False) for c in " ".join(str(text).split()))


def markdown_table(header, rows):
    """The same table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell if cell == "---" else markdown_text(cell) for cell in line) + " |"
                     for line in lines)


def data_url(image, size):
    """A PIL image (RGB) as the data URL of a JPEG of at most size x size pixels."""
    image, file = image.copy(), io.BytesIO()
    image.thumbnail((size, size))
    image.save(file, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_tag(image, size, text=""):
    """The <img> of a PIL image, at most size x size pixels; text stands for it where it cannot be seen."""
    return f'<img src="{data_url(image, size)}" alt="{escape(text)}">'


# ---- Charts


def ticks(low, high, log=False):
    """Round numbers in [low, high], about five; for a logarithmic axis powers of ten, and their 2 and 5 if few."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        parts = (1,) if len(powers) > 4 else (1, 2, 5)
        return [m * 10.0 ** p for p in powers for m in parts if low * 0.999 <= m * 10.0 ** p <= high * 1.001]
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / 5.001)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def svg(title, names, shapes, x_label="", y_label=""):
    """The frame of a chart: title, legend and labels around `shapes` (SVG)."""
    at, legend = LEFT, []
    for i, name in enumerate(names):
        legend.append(f'<rect class="s{i % 6}" x="{at}" y="31" width="12" height="12"/>'
                      f'<text x="{at + 17}" y="41">{escape(name)}</text>')
        at += 34 + 7 * len(name)
    return (f'<svg viewBox="0 0 {max(WIDTH, at)} {HEIGHT}" width="{max(WIDTH, at)}" role="img" '
            f'aria-label="{escape(title)}">\n<text x="{LEFT}" y="18" font-weight="600" font-size="14">{escape(title)}'
            f'</text>{"".join(legend)}\n{"".join(shapes)}\n'
            f'<text class="faint" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
            f'{escape(x_label)}</text><text class="faint" text-anchor="middle" '
            f'transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{escape(y_label)}</text></svg>')


def y_axis(low, high, log=False):
    """(function from a value to its height in the chart, the SVG of ticks and grid)"""
    at = math.log10 if log else float
    scale = (HEIGHT - TOP - BOTTOM) / (at(high) - at(low))

    def y(value):
        return HEIGHT - BOTTOM - (at(value) - at(low)) * scale
    lines = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
             f'<text class="faint" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
             for tick in ticks(low, high, log)]
    return y, lines


def line_chart(series, title, x_label="", y_label="", log_y=False):
    """series: {name: [(x, y), ...]}; points that are no number, or not above 0 where log_y, are left out."""
    series = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]
              for name, points in series.items()}
    xs, ys = zip(*[point for points in series.values() for point in points] or [(0, 1)], strict=True)
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    margin = (max(ys) - min(ys)) * 0.05 or abs(max(ys)) * 0.1 or 1
    low, high = (min(ys) / 1.1, max(ys) * 1.1) if log_y else (min(ys) - margin, max(ys) + margin)
    y, shapes = y_axis(low, high, log_y)

    def x(value):
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)
    for tick in ticks(left, right):
        shapes.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{HEIGHT - BOTTOM}" '
                      f'y2="{HEIGHT - BOTTOM + 5}"/><text class="faint" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" '
                      f'text-anchor="middle">{tick:.6g}</text>')
    shapes.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for i, points in enumerate(series.values()):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        shapes.append(f'<polyline class="curve s{i % 6}" points="{path}"/>')
        if len(points) == 1:
            shapes.append(f'<circle class="s{i % 6}" cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="3"/>')
    return svg(title, series, shapes, x_label, y_label)


def bar_chart(groups, series, title, y_label="", high=None, spread=None):
    """Bars from 0 side by side. groups: names along the axis; series: {name: [a value or None for each group]};
    spread: {name: [half the height of an error bar, or None]}; high: where the axis ends (default: above all bars)."""
    high = high or 1.15 * max([value for row in series.values() for value in row if value is not None] + [1e-9])
    y, shapes = y_axis(0, high)
    room = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    bar = min(0.86 * room / max(len(series), 1), 60)
    for g, group in enumerate(groups):
        middle = LEFT + (g + 0.5) * room
        shapes.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(group)}</text>')
        for i, (name, row) in enumerate(series.items()):
            at, value = middle + (i - len(series) / 2) * bar, row[g]
            top, centre, above = y(value or 0), at + bar / 2, 0
            if value is not None:
                shapes.append(f'<rect class="s{i % 6}" x="{at + 1:.1f}" y="{top:.1f}" width="{bar - 2:.1f}" '
                              f'height="{HEIGHT - BOTTOM - top:.1f}"/>')
            if value is not None and spread and spread.get(name) and spread[name][g]:
                above = y(0) - y(spread[name][g])
                shapes.append(f'<path class="axis" d="M{centre:.1f} {top - above:.1f}V{top + above:.1f}"/>')
            shapes.append(f'<text x="{centre:.1f}" y="{top - above - 5:.1f}" text-anchor="middle" font-size="11">'
                          f'{"–" if value is None else f"{value:.2f}"}</text>')
    shapes.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    return svg(title, series, shapes, "", y_label)
