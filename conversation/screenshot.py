"""A real session of chat.py for the docs, as a picture and as text.

    python -m conversation.screenshot

It runs chat.py in a pseudo-terminal, types the lines below, draws what was shown as an SVG, and
puts the text into the page that shows it, between two marks.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import os
import re
import shutil
import sys
from html import escape
from pathlib import Path

from common.command_line import run_command
from common.files import written_beside

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("samples/couple.png", "--temperature", "0", "--no-history")
TYPED = (
    "Describe this image in detail.",
    "What is the mood of this painting?",
    "/image samples/lighthouse.png",
    "What does the second picture show?",
    "/set temperature 0.2",
    "/set seed 1",
    "Write a poem about this painting.",
    "/save talk.md",
    "/quit",
)
PROMPT = "\n> "
COLUMNS, LINES = 88, 40
SESSION = re.compile(r"(?<=<!-- session -->\n```\n).*?(?=\n```\n<!-- end -->)", re.DOTALL)

CELL, LINE, MARGIN = 8.4, 17, 14                              # pixels; at 14 pixels a letter
PAPER, INK, DIM = "#1e1e1e", "#d4d4d4", "#8a8a8a"
BLOCK = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m\u2580")


def run_session(flags, typed, folder):
    """What a terminal shows of a session in a folder: chat.py, then the typed lines, each after a
    prompt."""
    import pty                                                # not on Windows
    command = [sys.executable, str(ROOT / "chat.py"), *flags]
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor",
                                "COLUMNS": str(COLUMNS), "LINES": str(LINES),
                                "LC_ALL": "C.UTF-8"}
    environment.pop("NO_COLOR", None)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(command[0], command, environment)
    shown, left = "", list(typed)
    content = b""
    while True:
        try:
            content += os.read(terminal, 4096)
        except OSError:                                       # the end of a terminal on Linux
            break
        shown = re.sub(r"\x1b\[\?\d+[hl]|\r", "", content.decode(errors="ignore"))
        if left and shown.endswith(PROMPT) and shown.count(PROMPT) > len(typed) - len(left):
            os.write(terminal, f"{left.pop(0)}\n".encode())
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    if status or left:
        raise ValueError(f"chat.py ended with {os.waitstatus_to_exitcode(status)}: {shown[-300:]}")
    return shown


def to_text(shown):
    """What a terminal shows without its picture and colours."""
    lines = [line for line in shown.splitlines() if "\u2580" not in line]
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(lines)).strip()


def to_svg(shown):
    """What a terminal shows as an SVG. It knows the sequences that chat.py prints: half blocks,
    dim and reset."""
    parts, y, dim = [], MARGIN, False
    for line in shown.splitlines():
        blocks = BLOCK.findall(line)
        if blocks:                                            # a row of them is two rows of pixels
            parts.append(f'<g transform="translate({MARGIN} {y}) scale({CELL} {LINE / 2})">')
            for x, colours in enumerate(blocks):
                values = [f"{int(value):02x}" for value in colours]
                for row, colour in enumerate(("".join(values[:3]), "".join(values[3:]))):
                    parts.append(f'<path fill="#{colour}" d="M{x} {row}h1.1v1.1h-1.1z"/>')
            parts.append("</g>")
        else:
            dim = dim or "\x1b[2m" in line
            text = escape(re.sub(r"\x1b\[[\d;]*m", "", line))
            parts.append(f'<text x="{MARGIN}" y="{y + 13}" fill="{DIM if dim else INK}" '
                         f'xml:space="preserve">{text}</text>')
            dim = dim and "\x1b[0m" not in line
        y += LINE
    width, height = round(2 * MARGIN + CELL * COLUMNS), y + MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="14" '
        'shape-rendering="crispEdges">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>', *parts, "</svg>\n"])


def main(args):
    page = args.page.read_text(encoding="utf-8")
    if not SESSION.search(page):
        raise ValueError(f"{args.page}: no place for a session, <!-- session --> and a code block")
    flags = [*FLAGS, "--weights", str(args.weights)]
    folder = args.picture.parent / "session"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "samples").mkdir(parents=True)
    try:
        for name in ("couple.png", "lighthouse.png"):
            shutil.copy(ROOT / "samples" / name, folder / "samples")
        shown = run_session(flags, TYPED, folder)
    finally:
        shutil.rmtree(folder)
    command = f"$ python chat.py {' '.join(FLAGS[:3])}\n"
    text = command + to_text(shown)
    for file, content in ((args.picture, to_svg(command + shown)),
                          (args.page, SESSION.sub(lambda _: text, page))):
        with written_beside(file) as beside:
            beside.write_text(content, encoding="utf-8")
        print(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m conversation.screenshot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "terminal.svg",
                        help="default: docs/terminal.svg")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "conversation.md",
                        help="the page with the two marks; default: docs/conversation.md")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "tiny",
                        help="default: weights/tiny")
    run_command(main, parser)
