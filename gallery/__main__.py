"""The gallery's contact sheet: `python -m gallery [FILE.png]`; with --samples FOLDER the pictures that are shipped."""
import argparse
from pathlib import Path

from command import run_command, written_beside
from gallery.painting import contact_sheet, paint
from gallery.scenes import COMPOSITIONS, PALETTES, STYLES, SUBJECTS, Scene

# Held-out pictures, of pairs that training has seen in other pictures.
SAMPLES = (Scene("lighthouse", "watercolour", "moonlight", "to the right", 7),
           Scene("sailing boat", "oil", "ember", "in the centre", 3),
           Scene("castle", "stained glass", "rose", "in the centre", 12))


def sheet():
    """Every subject in every style, palettes and compositions in turn."""
    scenes = [Scene(subject, style, list(PALETTES)[(row + column) % len(PALETTES)],
                    COMPOSITIONS[column % len(COMPOSITIONS)], 100 * row + column)
              for row, style in enumerate(STYLES) for column, subject in enumerate(SUBJECTS)]
    return contact_sheet([paint(scene).reduce(2) for scene in scenes], len(SUBJECTS))


def main(args):
    if args.samples:
        pictures = {args.samples / f"{scene.subject.replace(' ', '-')}.png": paint(scene) for scene in SAMPLES}
    else:
        pictures = {args.file: sheet()}
    for file, picture in pictures.items():
        with written_beside(file) as path:
            picture.save(path, format="PNG", optimize=True)
        print(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("runs/gallery.png"), help="(default: %(default)s)")
    parser.add_argument("--samples", type=Path, metavar="FOLDER", help="paint the samples into it instead")
    run_command(main, parser)
