"""Paintings of many scenes in one file: painted once, then mapped."""
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from common.files import written_beside
from common.progress import Progress
from gallery import painting
from gallery import scenes as scenes_module


def painted(scenes, folder="runs/gallery", size=224):
    """Paintings of the scenes, uint8 (N, size, size, 3), mapped from a file in `folder`; painted when it is not there.

    A painting takes tens of milliseconds, more than a training step has for it: hence the file.
    """
    sources = Path(painting.__file__).read_bytes() + Path(scenes_module.__file__).read_bytes()
    key = zlib.crc32(sources + repr((scenes, size)).encode())
    file = Path(folder) / f"{len(scenes)}-{key:08x}.npy"
    if not file.is_file():
        progress = Progress("painting", len(scenes), "pictures")
        with written_beside(file) as path, ProcessPoolExecutor() as pool:
            array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(scenes), size, size, 3))
            for i, image in enumerate(pool.map(painting.paint, scenes, [size] * len(scenes), chunksize=16)):
                array[i] = image
                progress.show(i + 1)
            array.flush()
    return np.load(file, mmap_mode="r")
