"""Files that the commands read and write: pictures, tensors, tokenizers; whole or not at all."""
import contextlib
import os
from pathlib import Path

import sentencepiece
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from artgpt4 import to_rgb


def open_image(path):
    """The picture in a file, as an RGB image. Raises ValueError if Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:                                # a damaged file can raise anything
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture that Pillow can read"
        raise ValueError(f"{path}: {reason}; "
                         "give another picture, a PNG or JPEG for example") from None


@contextlib.contextmanager
def written_beside(file):
    """A path beside `file` to write to: fsynced and renamed to `file` after the block, or removed.

    Raises ValueError, naming the file, if the disk does not take it.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        beside.touch()
        mode = beside.stat().st_mode                          # the umask's; some writers change it
        yield beside
        beside.chmod(mode)
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())
        beside.replace(file)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename or not error.strerror:
            raise                                             # it names its own file
        raise ValueError(f"{file}: could not be written ({error.strerror})") from None
    except (RuntimeError, SafetensorError) as error:          # so torch and safetensors report it
        raise ValueError(f"{file}: could not be written ({error})") from None
    finally:
        beside.unlink(missing_ok=True)


def load_tokenizer(file, config):
    """The sentencepiece model in `file`.

    Raises ValueError if there is none, or if it has more pieces than the embedding has rows.
    """
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=Path(file).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except RuntimeError:
        raise ValueError(f"{file}: not a sentencepiece model") from None
    pieces, rows = tokenizer.get_piece_size(), config.llama.vocab_size
    if pieces > rows:
        raise ValueError(f"{file}: {pieces} pieces, but the language model has an embedding for "
                         f"{rows}")
    return tokenizer


def weight_files(folder, adapter=True):
    """The safetensors files of a weights folder, the adapter last."""
    llama = sorted(folder.glob("llama*.safetensors")) or [folder / "llama.safetensors"]
    files = [folder / "vision.safetensors", *llama]
    if adapter:
        files.append(folder / "adapter.safetensors")
    return files


def read_tensors(file):
    """Yield (name, tensor) of a safetensors file, mapped from disk.

    Raises ValueError if it is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from None


def save_tensors(tensors, file):
    """Write tensors to a safetensors file, whole or not at all."""
    with written_beside(file) as path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def save_adapter(model, file):
    """Write all trainable weights, float32, to an adapter.safetensors."""
    names = model.trainable_names()
    save_tensors({name: model.get_parameter(name).data for name in names}, file)
