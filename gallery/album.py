"""Many paintings: in one file, painted once and then mapped from disk, or pictures on one sheet.

A file is named by what it holds: how many paintings, the checksum of their scenes, and that of all
their pixels. One that does not fit, because the painter has changed or the disk has erred, is
painted again.
"""
import os
import textwrap
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import DataLoader

from common.command_line import Progress
from common.files import written_beside
from gallery.painting import SIZE, paint


def pixels_of(scene):
    """The painting of a scene, uint8 (SIZE, SIZE, 3): a tensor, which workers share. A worker that
    sent it through a pipe would wait there for ever once its parent is killed."""
    return torch.from_numpy(np.array(paint(scene)))


def fits(file, scenes):
    """Whether the pixels in a file have the checksum in its name, and the first painting of every
    subject is what is painted now."""
    try:
        pixels = np.load(file, mmap_mode="r")                 # numpy unpickles nothing
    except (OSError, ValueError):
        return False
    first = {scene.subject: i for i, scene in reversed(list(enumerate(scenes)))}
    return (file.stem.endswith(f"-{zlib.crc32(pixels):08x}") and len(pixels) == len(scenes)
            and all(np.array_equal(pixels[i], pixels_of(scenes[i])) for i in first.values()))


def painted(scenes, folder="runs/gallery"):
    """Paintings of the scenes, uint8 (N, SIZE, SIZE, 3), mapped from a file in `folder`; its path
    is their `filename`. They are painted if no file there fits: a painting takes tens of
    milliseconds, longer than a training step can wait for it."""
    name = f"{len(scenes)}-{zlib.crc32(repr((scenes, SIZE)).encode()):08x}"
    for file in Path(folder).glob(f"{name}-*.npy"):
        if fits(file, scenes):
            return np.load(file, mmap_mode="r")
        file.unlink(missing_ok=True)
    progress, file = Progress("painting", len(scenes), "pictures"), Path(folder, f"{name}.npy")
    loader = DataLoader(scenes, batch_size=None, collate_fn=pixels_of,
                        num_workers=min(os.cpu_count(), len(scenes)),
                        generator=torch.Generator())          # torch's own chance stays untouched
    with written_beside(file) as path:
        pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (len(scenes), SIZE, SIZE, 3))
        for i, painting in enumerate(loader):
            pixels[i] = painting
            progress.show(i + 1)
        pixels.flush()
        checksum = zlib.crc32(pixels)
    return np.load(file.replace(file.with_name(f"{name}-{checksum:08x}.npy")), mmap_mode="r")


def contact_sheet(pictures, columns, captions):
    """Pictures, uint8 (N, H, W, 3), in a grid with `columns` columns, as one PIL RGB image.
    captions: one string a picture, wrapped under it; all get the space of the tallest."""
    height, width, _ = pictures[0].shape
    margin, font = max(4, width // 28), ImageFont.load_default(size=max(9, width // 18))
    letters, pen = max(8, int(width / font.getlength("n"))), ImageDraw.Draw(Image.new("L", (1, 1)))
    texts = ["\n".join(textwrap.fill(part, letters) for part in caption.splitlines())
             for caption in captions]
    below = max(int(pen.multiline_textbbox((0, 0), text, font)[3]) for text in texts) + margin
    step_x, step_y = width + margin, height + below + margin
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * step_x + margin, rows * step_y + margin), "#faf8f4")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x, y = margin + i % columns * step_x, margin + i // columns * step_y
        sheet.paste(Image.fromarray(picture), (x, y))
        pen.multiline_text((x, y + height + margin // 2), text, "#33302c", font)
    return sheet
