"""What the frozen towers find in each picture, computed once: `train.py --cache-vision`.

Without a random crop a picture is the same in every epoch, and so are its features: the output of
the Q-Former, before the projection, which is trained. They are kept in a file in half precision, as
in `image_features`: bfloat16 for a bfloat16 model, which is exact, and float16 for a float32 model,
which rounds a feature by at most one part in 2,000. Training then needs neither ViT nor Q-Former.

    source = cached_vision(model, Gallery(3000))               # computes the features or finds them
    release_vision(model)                                      # if nothing else needs the towers
    for [batch] in batches(source, ..., min_crop_area=1):      # batch.pixels are features
        model.loss(batch.pixels, ...)
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.files import written_beside
from common.progress import Progress
from training.checkpoints import frozen_checksum, not_finite
from training.data import grouped, load, random_crop
from training.sources import Part, SampleError

TOWERS = ("vit", "ln_vision", "qformer")
BATCH = 16                                                    # pictures that are encoded at once


class CachedVision(Part):
    """All pairs of a source, with the features of its pictures.

    file: of the features, (number of pictures, Q, D of the Q-Former), mapped from disk; those of a
    picture that could not be read are NaN.
    """

    def __init__(self, source, file):
        super().__init__(source, range(len(source)))
        self.file, self.stored = file, np.load(file, mmap_mode="r")

    def known_bad(self):
        return self.source.known_bad()

    def fingerprint(self):
        return self.source.fingerprint()

    def features(self, i, prompt):
        found = []
        for shown in self.source.shown(i, prompt):
            features = torch.from_numpy(np.array(self.stored[shown]))
            if features.dtype == torch.int16:
                features = features.view(torch.bfloat16)
            if features.isnan().any():
                self.source.picture(shown)                    # raises what is wrong with it
                raise SampleError(f"could not be read when {self.file} was made; remove that file")
            found.append(features)
        return torch.stack(found)


def cached_vision(model, source, folder="runs/vision", workers=1, device=None):
    """The source with the features of its pictures, which are computed if no file in `folder` has
    them.

    device: where the towers are put, to compute; default: where they are. The file's name has the
    checksums of the data and of the towers, the image size and the dtype: a change of any makes a
    new file. Raises ValueError if a feature is not finite.
    """
    for name in TOWERS if device else ():
        getattr(model, name).to(device)
    kind = str(model.qformer.queries.dtype).removeprefix("torch.")
    checksum = frozen_checksum(model, TOWERS)
    file = Path(folder) / (f"{source.fingerprint():08x}-{checksum}-{model.config.image_size}-"
                           f"{kind}.npy")
    if not file.is_file():
        write_features(model, source, file, workers)
    return CachedVision(source, file)


@torch.inference_mode()
def write_features(model, source, file, workers):
    config, is_bfloat16 = model.config, model.qformer.queries.dtype == torch.bfloat16
    shape = (len(source), config.qformer.queries, config.qformer.width)
    numbers = [part.tolist() for part in torch.arange(len(source)).split(BATCH)]
    progress, done = Progress("encoding", len(source), "pictures"), 0
    with written_beside(file) as path:
        stored = np.lib.format.open_memmap(
            path, "w+", np.int16 if is_bfloat16 else np.float16, shape)
        for [batch] in grouped(load(Pictures(source, config.image_size), numbers, workers), 1):
            features = model.image_features(batch.pixels).cpu()
            half = features if is_bfloat16 else features.half()
            check_finite(model, half)
            is_bad = torch.tensor([text is None for text in batch.texts])
            half[is_bad] = torch.nan
            bits = half.view(torch.int16) if is_bfloat16 else half         # numpy has no bfloat16
            stored[done:done + len(bits)] = bits.numpy()
            done += len(half)
            progress.show(done)
        stored.flush()


class Pictures(torch.utils.data.Dataset):
    """Each picture of a source, whole, as training.data.Pairs gives it, without words; the text of
    one that cannot be read is None."""

    def __init__(self, source, size):
        self.source, self.size = source, size

    def __getitem__(self, i):
        size = (self.size, self.size)
        try:
            picture, text = self.source.picture(i, self.size), ""
        except SampleError:
            picture, text = Image.new("RGB", size), None
        whole = random_crop(picture, None, min_area=1)
        pixels = np.array(whole.resize(size, Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels)[None], None, text, []


def check_finite(model, features):
    """Raises ValueError if a feature is not finite: the weights are damaged, or too large a value
    for half precision."""
    if not features.isfinite().all():
        name = not_finite(model)
        if name:
            raise ValueError(f"the weights hold NaN or infinity, in {name}; the file given as "
                             "--weights is damaged: make or download it again")
        raise ValueError("what the Q-Former finds is too large for half precision; leave out "
                         "--cache-vision")


def release_vision(model):
    """Let go of the ViT and the Q-Former; the model then takes features in place of pixels."""
    for name in TOWERS:
        setattr(model, name, None)
