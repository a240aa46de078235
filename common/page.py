"""Reports: an HTML page that needs no other file and runs no script, and what may stand on it.

Every text is escaped here, so callers pass it as it is. Only page() takes HTML, which is made by
these functions.
"""
import base64
import io
from html import escape

STYLE = """
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


def markdown_table(header, rows):
    """A table of texts in Markdown; nothing in a cell is HTML or a bar."""
    def line(cells):
        texts = (escape(" ".join(str(cell).split()), quote=False) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


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
