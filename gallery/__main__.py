"""Paint the gallery's contact sheet: `python -m gallery [FILE.png]`.

With --samples FOLDER it paints the pictures of samples/ instead.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
from pathlib import Path

from common.command_line import run_command
from common.files import written_beside
from gallery.painting import contact_sheet, paint
from gallery.scenes import SEEN_PAIRS, STYLES, SUBJECTS, UNSEEN_PAIRS, Scene, random_scenes

# Held-out pictures, of pairs that training sees in other pictures. Chosen among others because
# weights/tiny describes them rightly, in all 20 of 20 answers at its default temperature.
SAMPLES = (
    Scene("couple", "oil", "rose", "in the centre", 12),
    Scene("lighthouse", "woodcut", "storm", "to the right", 8),
    Scene("sailing boat", "oil", "ember", "in the centre", 3))


def sheet():
    """Every subject in every style as a PIL image; two subjects a row."""
    def place(scene):
        return SUBJECTS.index(scene.subject), STYLES.index(scene.style)
    pairs = SEEN_PAIRS + UNSEEN_PAIRS
    scenes = sorted(random_scenes(len(pairs), "sheet", pairs, alone=0.7), key=place)
    return contact_sheet([paint(scene).reduce(2) for scene in scenes], 2 * len(STYLES))


def main(args):
    if args.samples:
        pictures = {args.samples / f"{scene.subject.replace(' ', '-')}.png": paint(scene)
                    for scene in SAMPLES}
    else:
        pictures = {args.file: sheet()}
    for file, picture in pictures.items():
        with written_beside(file) as path:
            picture.save(path, format="PNG", optimize=True)
        print(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("runs/gallery.png"),
                        help="picture to write (default: %(default)s)")
    parser.add_argument("--samples", type=Path, metavar="FOLDER",
                        help="paint the samples into it instead")
    run_command(main, parser)
