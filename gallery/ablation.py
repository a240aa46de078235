"""When do adapters matter? A dial: `python -m gallery.ablation`.

From MiniGPT-4, which reads pictures and talks plainly, every arm trains other weights on the same
answers, of whose sentences none, a quarter, a half or all are new to the frozen language side; at
last the names of what is seen are new as well. Fixed before any run:
- Measure: how often two answers, a description and one on the mood, name all four attributes of a
  fresh painting of an unseen pair rightly, under training's prompt and under chat.py's.
- Comparisons: ArtGPT-4 with the projection alone, and with LoRA on q and v, at each level and under
  each prompt. All intervals hold at once: by t over seeds, and by a bootstrap over the pairs.
- Rates: each arm's best of three, by one run each at SWEEP_LEVEL, on paintings of seen pairs.
"""
import random
import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from artgpt4 import (IGNORE, IMAGE_SLOT, INSTRUCTIONS, STOP, TRAINABLE, Adapter, ArtGPT4,
                     chat_prompt, example, instruction_prompt, pad_examples)
from common.command_line import Progress, command_parser, markdown_table, number, run_command
from common.files import read_json, write_json, written_beside
from common.models import TINY, answers
from common.paired import student
from gallery.album import painted
from gallery.scenes import UNSEEN_PAIRS, random_scenes
from gallery.score import ATTRIBUTES, rightly, seen
from gallery.words import VALUES, fill, rules_of, sentences

# ---- The dial: each attribute is told in a sentence of plain talk, or in a new one

QUESTIONS = ((INSTRUCTIONS, ("style", "subject", "palette")),     # wordings, what the answer tells
             (("What is the mood?", "How does it feel?", "Which mood is it?"), ("mood",)))
SENTENCES = {
    "subject": ("the (picture|painting) shows a {subject} {place}: {detail}",
                "(the eye is led to|what counts here is) a {subject} {place}"),
    "style": ("this is a {work}", "one would know this fine {work} at once: {technique}"),
    "palette": ("{colouring}", "{tinting}"),
    "mood": ("(it is|the mood is) {mood}", "its {mood} mood rewards a second look: {feeling}")}
LEVELS = {"0 %": (), "25 %": ("mood",), "50 %": ("mood", "style"), "100 %": ATTRIBUTES,
          "new words too": ATTRIBUTES}
NAMES = "|".join(form for name in sum(VALUES.values(), ()) for form in (name, name[::-1]))

def backwards(text):
    """The text in lower case, the names of all values spelt backwards, and such forwards."""
    return re.sub(rf"\b({NAMES})(?=s?\b)", lambda name: name[0][::-1], text.lower())

def told(attributes, scene, level, rng):
    """What all arms learn to say of a scene's attributes at a level of the dial."""
    texts = [SENTENCES[name][name in LEVELS[level]] + "." for name in attributes]
    text = fill(" ".join(texts), rules_of(scene, art=True), rng)
    return sentences(backwards(text) if level == "new words too" else text)

# ---- Arms: how the names of what is trained begin; a rank, and where LoRA has it; a colour

Q_AND_V = (("attn.qkv", 0, 192), ("attn.qkv", 384, 576))      # rows of matrices of weights/tiny
ALL = ("attn.qkv", 0, 576), ("attn.out", 0, 192), ("mlp.gate_up", 0, 1024), ("mlp.down", 0, 192)
ARMS = {  # their ranks give LoRA and the MLP as many weights as ArtGPT-4 has
    "projection, adapters, norms (ArtGPT-4)": (TRAINABLE["artgpt4"], 0, (), "#c8641b"),
    "projection, adapters": (r"proj\.|.*\.adapter\.", 0, (), "#b8860b"),
    "projection, LoRA on q and v": (r"proj\.|.*\.low\d", 25, Q_AND_V, "#1f5fa8"),
    "projection, LoRA on all matrices": (r"proj\.|.*\.low\d", 6, ALL, "#3aa0c9"),
    "projection, norms": (TRAINABLE["artgpt4"].replace("adapter|", ""), 0, (), "#3f8f3f"),
    "projection, an MLP after it": (r"proj\.", 196, (), "#8a56b8"),
    "projection (MiniGPT-4)": (r"proj\.", 0, (), "#333333")}
COMPARED = [6, 2]                                             # these arms, with the first

def add_low_rank(linear, rank, start, end):
    """LoRA: add B A x, with B zero at first, to the elements `start` to `end` of W x."""
    low = nn.Sequential(nn.Linear(linear.in_features, rank, bias=False),
                        nn.Linear(rank, end - start, bias=False))
    nn.init.zeros_(low[1].weight)
    linear.add_module(f"low{start}", low)
    linear.register_forward_hook(lambda _, x, y: y + F.pad(low(*x), (start, y.shape[-1] - end)))

def attach(model, arm):
    """Make a model that starts as MiniGPT-4 an arm. Returns what is trained, in float32."""
    names, rank, spans, _ = ARMS[arm]
    if rank and not spans:
        model.proj = nn.Sequential(model.proj, Adapter(model.config.llama_width, rank))
    for block in model.llama.blocks:
        for name, start, end in spans:
            add_low_rank(block.get_submodule(name), rank, start, end)
    model.requires_grad_(False)
    return [parameter.requires_grad_(True) for name, parameter in model.named_parameters()
            if re.match(names, name)]

# ---- Runs, each named "arm | level | rate | seed"; those of the sweep have seed 0

BATCH, LONGEST = 12, 120                    # answers of a step; tokens of one at most
RATES, SWEEP_LEVEL = (1e-3, 4e-3, 1.6e-2), "50 %"
PROMPTS = {"training's prompt": instruction_prompt,
           "chat.py's prompt": lambda question: chat_prompt([f"{IMAGE_SLOT} {question}"])}

def one_run(run, weights, paintings, steps):
    """Train and score a run in one thread. Returns what is kept, where a painting is a hexadecimal
    digit: the sum of 8 for the right subject, 4 for the style, 2 for the palette, 1 for the mood.
    paintings: of prepared()."""
    (arm, level, rate, seed), right = run.split(" | "), {}
    torch.set_num_threads(1)
    torch.manual_seed(int(seed))
    model = ArtGPT4.from_pretrained(weights, dtype=torch.float32, adapter=False)
    read = load_file(weights / "minigpt4.safetensors")                    # it reads pictures
    model.proj.load_state_dict({name: read[f"proj.{name}"] for name in ("weight", "bias")})
    parameters, (scenes, queries) = attach(model, arm), paintings["training"]
    model.encode_image = lambda queries: model.proj(queries)  # the towers have done their part
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    for step in range(steps):
        rng, (wordings, attributes) = random.Random(f"{seed} {step}"), QUESTIONS[step % 3 // 2]
        numbers, question = rng.sample(range(len(scenes)), BATCH), rng.choice(wordings)
        ids, targets = pad_examples([example(
            model.tokenizer, model.config.queries, instruction_prompt(question),
            told(attributes, scenes[i], level, rng) + STOP, LONGEST) for i in numbers])
        loss = model(queries[numbers], ids, targets) / (targets != IGNORE).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = float(rate) * min(20 * (step + 1), steps - step) / steps
        optimizer.step()
    scenes, queries = paintings["validation" if seed == "0" else "pair by pair"]
    for name, prompt in PROMPTS.items():
        said = []
        for wordings, _ in QUESTIONS:
            ids = [model.prompt_ids(prompt(wordings[0]))] * len(scenes)
            embeds = model.embed_ids(ids, model.proj(queries))
            said.append(answers(model, embeds, LONGEST, temperature=0))
        texts = map(" ".join, zip(*said, strict=True))
        found = rightly(scenes, map(backwards, texts) if level == "new words too" else texts)
        digits = sum(found[name].astype(int) << 3 - i for i, name in enumerate(ATTRIBUTES))
        right[name] = "".join(f"{digit:x}" for digit in digits)
    return {"weights": sum(parameter.numel() for parameter in parameters), "right": right}

def prepared(args):
    """{name: (scenes, their queries, which no arm changes)}, and a checksum of all that makes the
    runs what they are: weights, painter, texts, settings."""
    torch.set_num_threads(1)
    model, found = ArtGPT4.from_pretrained(args.weights, dtype=torch.float32), {}
    files = [*sorted(args.weights.glob("[lmv]*")), Path(__file__).with_name("painting.py")]
    same = [BATCH, LONGEST, RATES, SWEEP_LEVEL, QUESTIONS, args.steps, *map(Path.read_bytes, files)]
    unseen = random_scenes(14 * args.pictures, "dial", UNSEEN_PAIRS)
    for name, scenes in (("training", random_scenes(args.paintings, "dial")),
                         ("validation", random_scenes(14 * args.pictures, "validation")),
                         ("pair by pair", sorted(unseen, key=lambda scene: scene.subject))):
        found[name] = scenes, seen(model, painted(scenes))[0].clone()
        same += [told(ATTRIBUTES, scene, level, random.Random(scene.seed))
                 for scene in scenes for level in LEVELS]
    return found, f"{zlib.crc32(repr(same).encode()):08x}"

def planned(runs, seeds):
    """The names of the runs of all seeds, (seeds, levels, arms), each arm at the rate of the sweep
    with the most paintings all right under the training's prompt, then the most attributes."""
    def order(arm, rate):
        digits = runs[f"{arm} | {SWEEP_LEVEL} | {rate} | 0"]["right"]["training's prompt"]
        return digits.count("f"), sum(int(digit, 16).bit_count() for digit in digits)
    best = {arm: max(RATES, key=partial(order, arm)) for arm in ARMS}
    return np.array([[[f"{arm} | {level} | {rate} | {seed}" for arm, rate in best.items()]
                      for level in LEVELS] for seed in range(1, seeds + 1)])

def make_all(kept, args):
    """Make the runs that `kept` lacks, and write it to args.scores after each."""
    paintings, identity = prepared(args)
    if kept.setdefault("identity", identity) != identity:
        raise ValueError(f"{args.scores}: of other weights, texts or settings; remove it")
    make = partial(one_run, weights=args.weights, paintings=paintings, steps=args.steps)
    runs = kept["runs"]
    sweep = [f"{arm} | {SWEEP_LEVEL} | {rate} | 0" for arm in ARMS for rate in RATES]
    total = len(sweep) + args.seeds * len(LEVELS) * len(ARMS)
    progress = Progress("ablation", total, "runs", before=len(runs))
    for plan in (lambda: sweep, lambda: planned(runs, args.seeds).flatten().tolist()):
        left = [run for run in plan() if run not in runs]
        made = DataLoader(left, batch_size=None, collate_fn=make, num_workers=args.jobs)
        for run, found in zip(left, made, strict=True):
            runs[run] = found
            write_json(kept, args.scores)
            progress.show(len(runs))

# ---- Tables and figure

def differences(right):
    """Rows of a table: the first arm minus others. right: (seeds, levels, arms, prompts, pairs)."""
    rows = [(level, list(ARMS)[arm], prompt)
            for level in LEVELS for arm in COMPARED for prompt in PROMPTS]
    points = 100 * (right[:, :, :1] - right[:, :, COMPARED]).reshape(len(right), len(rows), -1)
    means, by_pair = points.mean(axis=(0, 2)), points.mean(axis=0)
    over_seeds = points.mean(axis=2).std(axis=0, ddof=1) / len(right) ** 0.5
    over_seeds *= student(1 - 0.05 / len(rows), len(right) - 1)
    drawn = np.random.default_rng(0).integers(by_pair.shape[1], size=(10_000, by_pair.shape[1]))
    away = abs(by_pair[:, drawn].mean(axis=2).T - means)      # (10,000, rows)
    over_pairs = (away ** 2).mean(axis=0) ** 0.5 + 1e-9
    over_pairs *= np.quantile((away / over_pairs).max(axis=1), 0.95)
    return [(*row, f"{mean:+.1f}", *(f"{mean - half:+.1f} to {mean + half:+.1f}" for half in both))
            for row, mean, *both in zip(rows, means, over_seeds, over_pairs, strict=True)]

def figure(shares):
    """A chart for each prompt with a line for each arm, as SVG. shares: (levels, arms, prompts)."""
    parts, colours = [], [colour for *_, colour in ARMS.values()]
    for left, prompt, lines in zip((70, 460), PROMPTS, shares.transpose(2, 1, 0), strict=True):
        parts += [f'<text x="{left + 150}" y="20">all right by new sentences, {prompt}</text>']
        parts += [f'<text x="{left + 75 * i}" y="258">{new}</text>' for i, new in enumerate(LEVELS)]
        parts += [f'<path d="M{left} {240 - 2 * share}h300" stroke="#ddd"/><text x="{left - 24}" '
                   f'y="{244 - 2 * share}">{share} %</text>' for share in range(0, 101, 25)]
        for line, colour in zip(lines, colours, strict=True):
            points = " ".join(f"{left + 75 * i},{240 - 200 * y:.1f}" for i, y in enumerate(line))
            parts += [f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>']
    parts += [f'<text x="{150 + 250 * (i % 3)}" y="{290 + 20 * (i // 3)}" fill="{colours[i]}">'
               f"{arm}</text>" for i, arm in enumerate(ARMS)]
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 340" text-anchor="middle" '
            f'style="background:#fff;font:12px sans-serif">{"".join(parts)}</svg>\n')

def main(args):
    kept = read_json(args.scores) if args.scores.exists() else {"runs": {}}
    make_all(kept, args)
    runs, names = kept["runs"], planned(kept["runs"], args.seeds)
    right = np.array([[list(row) for row in runs[name]["right"].values()] for name in names.flat])
    right = (right == "f").reshape(*names.shape, 2, 14, -1).mean(axis=-1)
    shares = right.mean(axis=(0, 4))                          # (levels, arms, prompts)
    rows = [(arm, runs[name]["weights"], name.split(" | ")[2],
             *(", ".join(f"{100 * share:.1f}" for share in level[i]) for level in shares))
            for i, (arm, name) in enumerate(zip(ARMS, names[0, 0], strict=True))]
    columns = "level", "ArtGPT-4 minus", "prompt", "points", "over seeds", "over pairs"
    print(markdown_table((f"all four right, %: {', '.join(PROMPTS)}", "weights", "rate", *LEVELS),
                         rows), markdown_table(columns, differences(right)), sep="\n\n")
    with written_beside(args.scores.with_suffix(".svg")) as path:
        path.write_text(figure(shares), encoding="utf-8")

if __name__ == "__main__":
    parser = command_parser("python -m gallery.ablation", __doc__)
    parser.add_argument("--weights", type=Path, default=TINY, help="default: weights/tiny")
    parser.add_argument("--scores", type=Path, default=Path("docs/ablation.json"), help="the runs")
    for flag, least, default, what in (
            ("--jobs", 1, 2, "processes, of one thread each"), ("--seeds", 2, 3, "runs of a kind"),
            ("--steps", 3, 150, "of training"), ("--paintings", BATCH, 1500, "to train on"),
            ("--pictures", 1, 8, "to be described, of each unseen pair")):
        parser.add_argument(flag, type=number(int, least, 10**6), default=default,
                            help=f"{what} (default: %(default)s)")
    run_command(main, parser)
