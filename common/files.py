"""Files that the commands read and write: pictures, tensors, tokenizers; whole or not at all."""
import contextlib
import io
import json
import os
import re
import secrets
import stat
from pathlib import Path

import sentencepiece
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from artgpt4 import to_rgb


# Formats that are no pictures to Pillow, or not to every build of it: how a file begins, what it is
# and what to do. The brands of HEIC and AVIF follow a length of four bytes.
OTHER_FORMATS = (
    (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)",
     "a HEIC picture, as phones take them; export it as JPEG (heif-convert does, and macOS sips)"),
    (rb"....ftyp(avif|avis)",
     "an AVIF picture, which this Pillow cannot read; a newer one can, or export it as PNG"),
    (rb"\s*(<\?xml.*?)?(<!--.*?-->|<!DOCTYPE svg.*?>|\s)*<svg\b",
     "an SVG drawing; export it as PNG (rsvg-convert or Inkscape do)"),
    (rb"%PDF-", "a PDF document; export the page as PNG (pdftoppm -png does)"),
)
LARGE = 2 ** 25               # pixels; a JPEG of more is decoded at a half, a quarter or an eighth
WITH_FRAMES = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")          # elsewhere they are previews, layers
ANOTHER = "give another picture, a PNG or JPEG for example"
SIDE = 2048                   # pixels that its shorter side keeps at least


def other_format(begin):
    """What a file is that Pillow could not read, and what to do, by its first bytes. None if
    OTHER_FORMATS does not have it."""
    for pattern, what in OTHER_FORMATS:
        if re.match(pattern, begin, re.DOTALL):
            return what
    return None


@contextlib.contextmanager
def any_size():
    """Let Pillow open a picture of any size in the block; decoding it is still up to the caller."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def decoded(file):
    """The picture in a binary stream, as open_image returns it."""
    with any_size():
        image = Image.open(file)
    size = image.size
    frames = getattr(image, "n_frames", 1) if image.format in WITH_FRAMES else 1
    if image.width * image.height > LARGE:
        factor = SIDE / min(size)
        image.draft(None, [round(side * factor) for side in size])
    limit = 2 * Image.MAX_IMAGE_PIXELS                        # where Pillow itself refuses
    if image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"{size[0]} x {size[1]} pixels, and more than {limit:,} are not safe to decode; scale "
            "it down")
    image = to_rgb(image)
    image.info |= {"size": size, "frames": frames}
    return image


def open_image(path, stream=None):
    """The picture in a file, as an RGB image; of an animation or of several pages the first.

    image.info has its "size" in the file, as a large JPEG is decoded at reduced size, and its
    number of "frames". stream: a binary one to read instead; path is then its name. Raises
    ValueError if Pillow cannot read it, or if it has more pixels than Pillow takes for safe.
    """
    try:
        with stream or open(path, "rb") as file:
            if not file.seekable():
                file = io.BytesIO(file.read())
            begin = file.read(2000)
            file.seek(0)
            return decoded(file)
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = other_format(begin) or f"not a picture that Pillow can read; {ANOTHER}"
    except Image.DecompressionBombError as error:
        reason = error
    except Exception as error:                                # a damaged file can raise anything
        reason = f"{getattr(error, 'strerror', None) or error}; {ANOTHER}"
    raise ValueError(f"{path}: {reason}")


LONGEST_JSON = 100_000_000                                    # bytes


def check_file(path):
    """Raises ValueError, naming it, unless `path` is a regular file that can be read."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
            raise ValueError(f"{path}: {kind}; expected a file")
        path.open("rb").close()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(file):
    """The dictionary in a JSON file. Raises ValueError, naming the file, if there is none."""
    check_file(file)
    try:
        if file.stat().st_size > LONGEST_JSON:
            raise ValueError(f"longer than {LONGEST_JSON:,} bytes")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: not a JSON object")
    return values


@contextlib.contextmanager
def parents_of(path):
    """Make the folders above `path`. Those that were made are removed if the block fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:                                # the nearest first
            with contextlib.suppress(OSError):
                folder.rmdir()                                # only an empty one goes
        raise


def path_beside(path):
    """A hidden path beside `path` that nothing has yet: PIDs repeat, in containers above all."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.part")


@contextlib.contextmanager
def written_beside(file):
    """A path beside `file` to write to: fsynced and renamed to `file` after the block, or removed.

    Raises ValueError, naming the file, if the disk does not take it.
    """
    file = Path(file)
    beside = path_beside(file)
    with parents_of(file):
        beside.touch(exist_ok=False)
        try:
            mode = beside.stat().st_mode                      # the umask's; some writers change it
            yield beside
            beside.chmod(mode)
            with open(beside, "rb+") as written:
                os.fsync(written.fileno())
            beside.replace(file)
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.filename or not error.strerror:
                raise                                         # it names its own file
            raise ValueError(f"{file}: could not be written ({error.strerror})") from None
        except (RuntimeError, SafetensorError) as error:      # so torch and safetensors report it
            raise ValueError(f"{file}: could not be written ({error})") from None
        finally:
            beside.unlink(missing_ok=True)


def load_tokenizer(file, config):
    """The sentencepiece model in `file`.

    Raises ValueError if there is none, if it lacks BOS or EOS, or if it has more pieces than the
    embedding has rows.
    """
    file = Path(file)
    if not file.exists() and file.with_name("tokenizer.json").exists():
        raise ValueError(f"{file}: no such file; tokenizer.json is not supported, add the "
                         "sentencepiece tokenizer.model of the same language model")
    check_file(file)
    content = file.read_bytes()
    if not content:
        raise ValueError(f"{file}: not a sentencepiece model (it is empty); download it again")
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError):                        # ValueError: a piece is no UTF-8
        raise ValueError(f"{file}: not a sentencepiece model") from None
    pieces, rows = tokenizer.get_piece_size(), config.llama.vocab_size
    for name, piece in (("BOS", tokenizer.bos_id()), ("EOS", tokenizer.eos_id())):
        if not 0 <= piece < pieces:
            raise ValueError(f"{file}: has no {name}; a LLaMA tokenizer.model has <s> and </s>")
    if pieces > rows:
        raise ValueError(f"{file}: {pieces} pieces, but the language model has an embedding for "
                         f"{rows}")
    return tokenizer


# ---- Tensors


def shard_files(index, needed=list):
    """{name of a tensor: its file} from an index of shards, for the converter and the loader.

    A shard lies beside its index, or is a link there, as download caches have it. needed: names ->
    those whose shards are asked for. Raises ValueError, naming the index, for anything else and
    for a shard that is missing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or Path(shard).name != shard:
            raise ValueError(f"{index}: {name} is in {json.dumps(shard)}; "
                             "expected the name of a file beside it")
    weight_map = {name: weight_map[name] for name in needed(weight_map)}
    for shard in sorted(set(weight_map.values())):
        if not (index.parent / shard).exists():
            raise ValueError(f"{index}: names {shard}, which is not there; "
                             "the download is incomplete")
    return {name: index.parent / shard for name, shard in weight_map.items()}


def check_shards(names, where=None):
    """Raises ValueError if a tensor is in two files, or not where the index says.

    names: {file: the names of its tensors}. where: what shard_files returned, or None.
    """
    found = {}
    for file, in_file in names.items():
        for name in in_file:
            if name in found:
                raise ValueError(f"{file}: {name} is also in {found[name].name}; "
                                 "each tensor may be in one file only")
            found[name] = file
    for name, file in (where or {}).items():
        if found.get(name) != file:
            raise ValueError(f"{file}: {name} is not in it, but the index says so")


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
    check_file(file)
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from None


def tensor_dtypes(file):
    """{name: dtype, as safetensors names it} from the header of a safetensors file.

    Raises ValueError if it is missing or damaged: offsets that overlap, for example.
    """
    check_file(file)
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}
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
