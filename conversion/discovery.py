"""What lies in a folder of downloads, what is missing, and which of it to convert."""
import stat

from common.command_line import one_line, printable
from conversion.checkpoints import open_checkpoint
from conversion.formats import FORMATS

NO_CHECKPOINTS = (".model", ".json", ".txt", ".md")           # of the files beside them
NEEDED = {"vit": ["eva"], "qformer": ["blip2"], "llm": ["meta", "delta"], "adapter": ["artgpt4"]}
UNUSABLE_LINES = 10                                           # more are summed up


def candidates(folder, seen=None):
    """Yield the regular files and the model folders in `folder`, at any depth, by name: each file
    and each folder once, however many links lead there, and none above `folder`."""
    try:
        if seen is None:
            here = folder.resolve(strict=True)
            seen = {identity(path.stat()) for path in (here, *here.parents)}
        paths = sorted(folder.iterdir())
    except OSError:
        return
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue                                          # a link to nothing, or to itself
        if identity(status) in seen:
            continue
        seen.add(identity(status))
        if stat.S_ISDIR(status.st_mode):
            if is_model(path):
                yield path
            else:
                yield from candidates(path, seen)
        elif stat.S_ISREG(status.st_mode) and not path.name.startswith("."):
            if path.suffix not in NO_CHECKPOINTS:
                yield path


def identity(status):
    """What all names of one file have in common."""
    return status.st_dev, status.st_ino


def is_model(folder):
    """Whether a folder is a model of several files: it has a .json."""
    try:
        return any(path.suffix == ".json" for path in folder.iterdir())
    except OSError:
        return False


def list_checkpoints(folder):
    """Print a line about each candidate in `folder`, and return the Checkpoints."""
    found, unusable = [], 0
    for path in candidates(folder):
        try:
            checkpoint = open_checkpoint(path, *FORMATS)
            print(printable(f"{path}: {describe(checkpoint)}"))
            found.append(checkpoint)
        except Exception as error:                            # its neighbours may be whole
            unusable += 1
            if unusable <= UNUSABLE_LINES:
                text = one_line(error)
                known = isinstance(error, ValueError) and text.startswith(printable(folder))
                print(f"not usable: {text if known else printable(f'{path}: {text}')}")
    if unusable > UNUSABLE_LINES:
        print(f"not usable: {unusable - UNUSABLE_LINES:,} more")
    return found


def describe(checkpoint):
    """What a Checkpoint is, in words, and its size on disk."""
    path, what = checkpoint.path, FORMATS[checkpoint.kind].what
    size = sum(file.stat().st_size for file in (path, *path.glob("*")) if file.is_file())
    if checkpoint.kind in ("artgpt4", "minigpt4"):
        checkpoint.shape("proj.weight")                       # raises ValueError without one
    if checkpoint.kind in ("llama", "meta", "delta"):
        rows, _ = checkpoint.shape("llama.embed.weight")      # Vicuna v0 has one more than the rest
        what += f", {rows:,} tokens"
    return f"{what}, {size / 1e9:.2f} GB"


def language_models(found):
    """The language models among Checkpoints, fewest tokens first.

    Those whose width is that of the delta, or else of the adapter, if there are any.
    """
    models = [each for each in found if "llm" in FORMATS[each.kind].flags]
    models.sort(key=lambda model: model.shape("llama.embed.weight"))
    widths = [each.shape("llama.embed.weight")[1] for each in found if each.kind == "delta"]
    widths += [each.shape("proj.weight")[0] for each in found
               if each.kind in ("artgpt4", "minigpt4")]
    fitting = [model for model in models if model.shape("llama.embed.weight")[1] in widths[:1]]
    return fitting or models


def choose(found):
    """{flag: path} of what to convert, from Checkpoints. Released files are preferred."""
    chosen, kinds = {}, list(FORMATS)
    for checkpoint in sorted(found, key=lambda each: kinds.index(each.kind)):
        for flag in FORMATS[checkpoint.kind].flags:
            chosen.setdefault(flag, checkpoint.path)
    models = language_models(found)
    if models:                                # LLaMA for a delta, else the Vicuna with most tokens
        chosen["llm"] = models[0 if "delta" in chosen else -1].path
    return chosen


def alternatives(found, chosen):
    """[(flag, path)] of Checkpoints that are as good as a chosen one: of its kind, and for --llm
    of as many tokens."""
    def rank(checkpoint, flag):
        rows = checkpoint.shape("llama.embed.weight") if flag == "llm" else None
        return checkpoint.kind, rows
    by_path = {checkpoint.path: checkpoint for checkpoint in found}
    return [(flag, each.path) for flag, path in chosen.items() for each in found
            if each.path != path and flag in FORMATS[each.kind].flags
            and rank(each, flag) == rank(by_path[path], flag)]


def missing_kinds(found, chosen):
    """The keys of FORMATS that are still to be downloaded."""
    missing = []
    for flag, kinds in NEEDED.items():
        if flag not in chosen:
            missing += [kind for kind in kinds if kind not in chosen]
    only_meta = {model.kind for model in language_models(found)} == {"meta"}
    if only_meta and "delta" not in chosen:                   # it is no Vicuna
        missing.append("delta")
    return missing
