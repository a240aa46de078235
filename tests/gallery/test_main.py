"""python -m gallery: the samples and the contact sheet."""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from gallery import __main__ as gallery_command

SAMPLES = Path(__file__).parent.parent.parent / "samples"


def test_the_shipped_samples_are_what_the_gallery_paints(tmp_path):
    gallery_command.main(argparse.Namespace(samples=tmp_path, file=None))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["couple.png", "lighthouse.png", "sailing-boat.png"]
    for file in files:
        shipped = np.asarray(Image.open(SAMPLES / file.name))
        assert np.array_equal(np.asarray(Image.open(file)), shipped), file.name
