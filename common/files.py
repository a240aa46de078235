"""Files of every kind that the commands read and write: pictures, tensors, tokenizers; whole or not there at all."""
import contextlib
import json
import os
from pathlib import Path

import numpy as np
import sentencepiece
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def to_rgb(image):
    """A PIL image of any mode as RGB: upright (EXIF), on white where it is transparent, 16 bits scaled to 8."""
    with contextlib.suppress(Exception):                      # a damaged EXIF block spoils no picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def open_image(path):
    """The picture in a file, as an RGB image. Raises ValueError, in one line, if Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:                                # a damaged file can raise anything
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture that Pillow can read"
        raise ValueError(f"{path}: {reason}; give another picture, a PNG or JPEG for example") from None


@contextlib.contextmanager
def written_beside(file):
    """A path beside `file` to write to; once the block is done it is fsynced and renamed to `file`, else removed.
    Raises ValueError, naming the file, if the disk does not take it."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        beside.touch()
        mode = beside.stat().st_mode                          # what the user's umask says; some writers are stricter
        yield beside
        beside.chmod(mode)
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())
        beside.replace(file)
    except (RuntimeError, SafetensorError, OSError) as error:  # how torch, safetensors and Python say: the disk is full
        if isinstance(error, OSError) and (error.filename or not error.strerror or isinstance(error, BrokenPipeError)):
            raise                                             # it names its own file, or is of no disk
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{file}: could not be written ({reason})") from None
    finally:
        beside.unlink(missing_ok=True)


def load_tokenizer(file, config):
    """The sentencepiece model in `file`. Raises ValueError if it is none or has more pieces than the embedding rows."""
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=Path(file).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except RuntimeError:
        raise ValueError(f"{file}: not a sentencepiece model") from None
    if tokenizer.get_piece_size() > config.llama.vocab_size:
        raise ValueError(f"{file}: {tokenizer.get_piece_size()} pieces, but the language model has an embedding for "
                         f"{config.llama.vocab_size}")
    return tokenizer


def weight_files(folder, adapter=True):
    """The safetensors files of a weights folder, adapter last. llama may be one file or shards with an index."""
    index = folder / "llama.safetensors.index.json"
    shards = ["llama.safetensors"]
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index of shards ({error!r})") from None
    return [folder / name for name in ("vision.safetensors", *shards, *["adapter.safetensors"] * adapter)]


def read_tensors(file):
    """Yield (name, tensor) of a safetensors file, mapped from disk. Raises ValueError if it is missing or damaged."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from None


def save_tensors(tensors, file):
    """Write tensors to a safetensors file, whole or not at all. Raises ValueError if the disk does not take it."""
    with written_beside(file) as path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
