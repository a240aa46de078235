"""Random single faults in the golden checkpoints: one line of refusal, or the same tensors.

    python tests/robustness/fuzz_weights.py 2000            faults 0 to 1999; the seeds are fixed
    python tests/robustness/fuzz_weights.py 1 --first 357   fault 357 alone

A fault changes a byte, cuts, fills or lengthens a file, or changes one value of its JSON (also that
of a safetensors header: an offset, a shape, a dtype). The golden checkpoints are there in every
format. A changed file is converted; one of a weights folder is loaded. What may come of it: an
error in one line that names the changed folder, or tensors equal to the original's.

safetensors and torch.save before 1.6 keep no checksums, so that nobody can tell a changed value:
bytes are changed in all of an archive of torch.save, but only in the headers of those.
"""
import argparse
import contextlib
import io
import json
import random
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import convert_weights  # noqa: E402
from common.loading import load_folder  # noqa: E402
from tests import conftest  # noqa: E402
from tests.conversion.test_language_models import save_meta  # noqa: E402

VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, 1e30, float("nan"), float("inf"), 10**9, 10**30,
    "", "x", "../x", [], [1], {}, {"type": "linear"}, {"a": {"b": 1}}, "F16", "I32", [96, 96],
]
LIMIT = 60                                                    # seconds; a hang is a failure
PARTS = {"vit": "eva_vit_g.pth", "qformer": "blip2_pretrained_flant5xxl.pth",
         "adapter": "ArtGPT-4.pth"}


def make_sources(folder):
    """Write the golden checkpoints in every format, and a weights folder in shards.

    Returns {name: {flag: path within folder/name}}; "loaded" has no flags, and is for load_folder.
    """
    for name in ("released", "old", "hf", "gqa", "meta"):
        (folder / name).mkdir(parents=True)
    for file in PARTS.values():
        tensors = {"model": conftest.released(file)}
        torch.save(tensors, folder / "released" / file)
        torch.save(tensors, folder / "old" / file, _use_new_zipfile_serialization=False)
    config, vicuna = conftest.RELEASED["llama_config"], conftest.released("vicuna")
    conftest.save_llama(folder / "released/vicuna", config, vicuna)
    for name, values, file in (("hf", "blip2_config", "blip2-hf"),
                               ("gqa", "llama_gqa_config", "llama-gqa")):
        tensors = conftest.golden_tensors(conftest.HUB, f"{file}/model.safetensors")
        conftest.save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(conftest.HUB[values]))
    shutil.copy(conftest.GOLDEN / "tokenizer.model", folder / "gqa")
    save_meta(folder / "meta/13B", config, vicuna, shards=2)
    shutil.copy(conftest.GOLDEN / "tokenizer.model", folder / "meta/13B")
    sources = {
        "released": PARTS | {"llm": "vicuna"},
        "old": PARTS,
        "hf": {"vit": "", "qformer": ""},
        "gqa": {"llm": "", "adapter": None},
        "meta": {"llm": "13B"},
        "loaded": {},
    }
    with mock.patch("conversion.writing.SHARD", 300_000):
        convert(folder / "released", sources["released"], folder / "loaded", folder)
    return sources


def convert(case, flags, out, originals):
    """Convert what `flags` name in the folder `case`; the rest is from originals/released."""
    arguments = ["--out", str(out)]
    for flag, file in (PARTS | {"llm": "vicuna"} | flags).items():
        if file is not None:
            whole = case if flag in flags else originals / "released"
            arguments += [f"--{flag}", str(whole / file)]
    convert_weights.main(arguments)


def tensors_of(name, flags, case, originals, scratch):
    """{name: tensor} of the weights folder that is made of a case, or of the model it loads as."""
    if not flags:
        return dict(load_folder(case).state_dict())
    out = scratch / "made" / "out"
    try:
        convert(case, flags, out, originals)
        return {key: tensor.clone() for file in sorted(out.glob("*.safetensors"))
                for key, tensor in load_file(file).items()}
    finally:
        shutil.rmtree(out, ignore_errors=True)


# ---- Faults


def header_end(file, content):
    """Where the values without checksums begin in a file; its end if there are none."""
    if file.suffix == ".safetensors":
        return 8 + struct.unpack("<Q", content[:8])[0]
    if "/old/" in str(file):
        values = sum(8 + tensor.nbytes for tensor in conftest.released(file.name).values())
        return len(content) - values
    return len(content)


def change_value(chance, values):
    """Change one value, at any depth, of a parsed JSON file. Returns what was changed."""
    if isinstance(values, dict | list) and values:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = chance.choice(keys)
        inner = values[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.8:
            return f"{key}, {change_value(chance, inner)}"
        if chance.random() < 0.1:
            del values[key]
            return f"{key} left out"
        near = []
        if isinstance(inner, int | float) and not isinstance(inner, bool):
            near = [inner + 1, inner - 1, inner + 4, inner * 2, -inner, float(inner), str(inner)]
        values[key] = chance.choice(VALUES + near * 3)
        return f"{key}: {inner!r} is {values[key]!r}"
    return "nothing"


def spoil(chance, file, content):
    """A file's bytes with one fault, and what it is. chance: a random.Random."""
    end = header_end(file, content)
    kinds = ["byte"] * 3 + ["cut", "fill", "insert"]
    if file.suffix in (".json", ".safetensors"):
        kinds += ["value"] * 6
    kind = chance.choice(kinds)
    edge = min(4096, end)                                     # the ends hold most of the structure
    place = chance.choice((chance.randrange(end), chance.randrange(edge),
                           end - 1 - chance.randrange(edge)))
    if kind == "cut":
        place = chance.randrange(len(content))
        return content[:place], f"cut at {place}"
    if kind == "fill":
        size = min(chance.randrange(1, 4096), end - place)
        return content[:place] + bytes(size) + content[place + size:], f"{size} zeros at {place}"
    if kind == "insert":
        more = chance.randbytes(chance.randrange(1, 9))
        return content[:place] + more + content[place:], f"{len(more)} bytes more at {place}"
    if kind == "value":
        if file.suffix == ".json":
            values = json.loads(content)
            said = change_value(chance, values)
            return json.dumps(values).encode(), said
        header = json.loads(content[8:end])
        said = change_value(chance, header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[end:], f"header, {said}"
    changed = bytes([content[place] ^ chance.randrange(1, 256)])
    return content[:place] + changed + content[place + 1:], f"byte {place}"


def link_all(source, case):
    """A copy of a folder whose files are links to the original's."""
    for path in source.rglob("*"):
        link = case / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            link.symlink_to(path)


def try_fault(number, sources, originals, expected, scratch):
    """Make fault `number`. Returns what it was, and "refused", "same", or what went wrong."""
    chance = random.Random(f"weights {number}")
    name = chance.choice(list(sources))
    files = sorted(path for path in (originals / name).rglob("*") if path.is_file())
    file = chance.choice(files)
    content, what = spoil(chance, file, file.read_bytes())
    case = scratch / name
    link_all(originals / name, case)
    changed = case / file.relative_to(originals / name)
    changed.unlink()
    changed.write_bytes(content)
    said = io.StringIO()
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            found = tensors_of(name, sources[name], case, originals, scratch)
        end = "same" if same(found, expected[name]) else "OTHER TENSORS"
    except SystemExit as stopped:
        lines = said.getvalue().splitlines()
        line = lines[-1] if lines else ""
        good = stopped.code == 1 and str(case) in line and "internal error" not in line
        end = "refused" if good and "Traceback" not in said.getvalue() else f"SAID {line}"
    except ValueError as error:
        line = str(error)
        end = "refused" if not sources[name] and str(case) in line else f"RAISED {line}"
    except BaseException as error:
        traceback.print_exc()
        end = f"RAISED {type(error).__name__}"
    signal.alarm(0)
    if (scratch / "made").exists() and any((scratch / "made").iterdir()):
        end = "LEFT BEHIND"
    shutil.rmtree(case)
    return f"{name}/{file.relative_to(originals / name)}: {what}", end


def same(found, expected):
    """Whether two dictionaries hold the same tensors, in the same dtypes."""
    return found.keys() == expected.keys() and all(
        tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name])
        for name, tensor in found.items())


def fuzz(count, first=0, shown=sys.stdout):
    """Try faults. Returns a Counter of how they ended, and [what went wrong]."""
    ends, wrong = Counter(), []
    quiet = mock.patch("conversion.writing.Progress.show")
    with quiet, tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        originals, scratch = Path(folder) / "originals", Path(folder) / "scratch"
        with contextlib.redirect_stderr(io.StringIO()), \
                contextlib.redirect_stdout(io.StringIO()):
            sources = make_sources(originals)
            expected = {name: tensors_of(name, flags, originals / name, originals, scratch)
                        for name, flags in sources.items()}
        for number in range(first, first + count):
            what, end = try_fault(number, sources, originals, expected, scratch)
            ends[end if end in ("refused", "same") else "wrong"] += 1
            if end not in ("refused", "same"):
                wrong.append(f"{number}: {what}: {end}")
                print(wrong[-1], file=shown, flush=True)
    return ends, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    ends, wrong = fuzz(given.count, given.first)
    print(f"{given.count} faults: " + ", ".join(f"{end} {count}" for end, count in ends.items()))
    sys.exit(bool(wrong))
