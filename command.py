"""What the commands share: pictures, tensors and tokenizers from files; files that are whole or not there; progress;
errors in one line."""
import contextlib
import json
import os
import sys
import time
import traceback
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


class Progress:
    """What, how far, how fast, how long still: a line rewritten on a terminal, a plain one every 10 seconds elsewhere.

    show(done, note) may be called as often as one likes; `total` and `done` count in `unit`. before: what was done
    earlier, by a run that this one goes on with.
    """

    def __init__(self, what, total, unit, stream=sys.stderr, before=0):
        self.what, self.total, self.unit, self.stream, self.before = what, total, unit, stream, before
        self.start, self.last = time.monotonic(), 0.0

    def show(self, done, note=""):
        now = time.monotonic()
        terminal, finished = self.stream.isatty(), done >= self.total
        if now - self.last < (0.2 if terminal else 10) and not finished:
            return
        self.last = now
        speed = (done - self.before) / max(now - self.start, 1e-9)
        left = (self.total - done) / max(speed, 1e-9)
        time_text = f"{now - self.start:.0f} s" if finished else f"{int(left) // 60}:{int(left) % 60:02d} left"
        line = f"{self.what} {done:g}/{self.total:g} {self.unit}, {speed:.3g} {self.unit}/s, {time_text}"
        line += f", {note}" if note else ""
        print(f"\r\033[K{line}" if terminal else line, end="\n" if finished or not terminal else "", file=self.stream,
              flush=True)


def run_command(main, parser, arguments=None):
    """Run main(args) as a command: an error that a user can cause is one line on stderr and exit code 1, with
    --debug also its traceback; Ctrl-C is code 130; a closed pipe ends quietly."""
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    args = parser.parse_args(arguments)
    try:
        main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if args.debug:
            traceback.print_exc()
        message = (str(error).strip() or repr(error)).splitlines()[-1]       # a worker's error brings its traceback
        print(f"{parser.prog}: {message}", file=sys.stderr)
        sys.exit(1)
