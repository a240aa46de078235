"""Paintings of many scenes in one file: painted once, then mapped from disk."""
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from common.files import written_beside
from common.progress import Progress
from gallery import painting
from gallery import scenes as scenes_module


def album_file(scenes, folder="runs/gallery", size=224):
    """The file of the paintings of some scenes. Its name depends on the scenes and on the source
    of the painter, so that a change of either paints new ones."""
    sources = Path(painting.__file__).read_bytes() + Path(scenes_module.__file__).read_bytes()
    key = zlib.crc32(sources + repr((scenes, size)).encode())
    return Path(folder) / f"{len(scenes)}-{key:08x}.npy"


def painted(scenes, folder="runs/gallery", size=224):
    """Paintings of the scenes, uint8 (N, size, size, 3), mapped from a file in `folder`.

    They are painted if the file is not there. A painting takes tens of milliseconds, longer than a
    training step can wait for it.
    """
    file = album_file(scenes, folder, size)
    if not file.is_file():
        progress = Progress("painting", len(scenes), "pictures")
        with written_beside(file) as path, ProcessPoolExecutor() as pool:
            shape = (len(scenes), size, size, 3)
            array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            images = pool.map(painting.paint, scenes, [size] * len(scenes), chunksize=16)
            for i, image in enumerate(images):
                array[i] = image
                progress.show(i + 1)
            array.flush()
    return np.load(file, mmap_mode="r")
