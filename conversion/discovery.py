"""What lies in a folder of downloads, what is missing, and which of it to convert."""
from conversion.checkpoints import open_checkpoint
from conversion.formats import FORMATS

NO_CHECKPOINTS = (".model", ".json", ".txt", ".md")           # of the files beside them
NEEDED = {"vit": ["eva"], "qformer": ["blip2"], "llm": ["meta", "delta"], "adapter": ["artgpt4"]}


def candidates(folder):
    """Yield the files and the model folders in `folder`, at any depth, by name."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not any(path.glob("*.json")):
            yield from candidates(path)
        elif path.is_dir() or not (path.name.startswith(".") or path.suffix in NO_CHECKPOINTS):
            yield path


def list_checkpoints(folder):
    """Print a line about each candidate in `folder`, and return the Checkpoints."""
    found = []
    for path in candidates(folder) if folder.is_dir() else ():
        try:
            checkpoint = open_checkpoint(path, *FORMATS)
            print(f"{path}: {describe(checkpoint)}")
            found.append(checkpoint)
        except ValueError as error:
            print(f"not usable: {error}")
    return found


def describe(checkpoint):
    """What a Checkpoint is, in words, and its size on disk."""
    path, what = checkpoint.path, FORMATS[checkpoint.kind].what
    size = sum(file.stat().st_size for file in (path, *path.glob("*")) if file.is_file())
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
