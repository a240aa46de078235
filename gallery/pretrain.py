"""Pre-train the frozen parts of weights/tiny: `python -m gallery.pretrain`.

The parts of the real ArtGPT-4 were pre-trained by others; this stands in for that.

The vision side (ViT, ln_vision, Q-Former) learns from plain, unpainted scenes, photographed through
all kinds of glass, weather and film, as the real one learned from photographs: see vision.py. The
language side learns from conversations in which a few words tell the picture, where its vectors
will stand later: see language.py. Neither side sees a painting, or a held-out pair of subject and
style.

The two sides run at once, each in a process of its own and in one thread. So the same seed gives
the same weights with any number of cores, and whether the sides run together or one by one. On a
GPU the random numbers are the same, but not the rounding.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from artgpt4 import ArtGPT4, Config, LlamaConfig, QFormerConfig, ViTConfig
from common.command_line import number, run_command
from common.files import save_tensors, written_beside
from common.loading import device
from common.progress import Progress
from gallery.language import Documents, gallery_tokenizer, language_objective
from gallery.vision import shrink_outputs, vision_objective

ABOUT = {
    "knows": "This model knows its painted gallery alone: 14 subjects in 6 styles and 6 palettes.",
    "examples": ["What is this?", "Where does it stand?", "Write a web page for this painting."],
    "settings": {"temperature": 0.2},
    "pictures": 2}
TINY = Config(
    image_size=112, adapter_width=48, about=ABOUT,
    vit=ViTConfig(width=176, layers=6, heads=2, mlp_width=704, patch_size=14),
    qformer=QFormerConfig(width=128, layers=4, heads=2, mlp_width=512, queries=16),
    llama=LlamaConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=4,
                      num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
                      vocab_size=1248))

SIDES = ("vision", "language")

# ---- What both sides share


def initialise(module):
    """Linear weights of variance 1 / inputs, other matrices of deviation 0.2, biases zero.

    Adapters stay as they are.
    """
    for name, parameter in module.named_parameters():
        if ".adapter." in name:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            linear = name.endswith("weight") and name != "embed.weight"
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if linear else 0.2)


def updates(parameters, steps, peak_lr):
    """update(step, loss): AdamW with 5 % warm-up and a cosine to zero after `steps`."""
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = max(1, steps // 20)

    def update(step, loss):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min((step + 1) / warmup, cosine)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return update


def train(parameters, loss_of_step, steps, peak_lr, what):
    """Train with `updates`.

    loss_of_step(step) -> (loss, a note for the progress line, which is called `what`).
    """
    update, progress = updates(parameters, steps, peak_lr), Progress(what, steps, "steps")
    for step in range(steps):
        loss, note = loss_of_step(step)
        update(step, loss)
        if step % 20 == 0 or step + 1 == steps:               # a GPU need not wait every step
            note_of_loss = f"loss {loss.item():.3f}{note}"
        progress.show(step + 1, note_of_loss)


def save_side(model, folder, side):
    """Write one side's files of a weights folder.

    "vision": vision.safetensors. "language": the language model, the trainable parameters,
    tokenizer.model and config.json.
    """
    folder, state = Path(folder), model.state_dict()
    if side == "vision":
        names = [name for name in state if name.startswith(("vit.", "ln_vision.", "qformer."))]
        save_tensors({name: state[name] for name in names}, folder / "vision.safetensors")
        return
    llama = [name for name in state if name.startswith("llama.") and ".adapter." not in name]
    for part, names in (("llama", llama), ("adapter", model.trainable_names())):
        save_tensors({name: state[name] for name in names}, folder / f"{part}.safetensors")
    with written_beside(folder / "tokenizer.model") as path:
        path.write_bytes(model.tokenizer.serialized_model_proto())
    with written_beside(folder / "config.json") as path:
        path.write_text(json.dumps(asdict(model.config), indent=1) + "\n")


def save_pretrained(model, folder):
    """Write a weights folder: config.json, tokenizer.model and three files of tensors."""
    for side in SIDES:
        save_side(model, folder, side)


# ---- The command


def pretrain_side(side, args):
    """Train one side and write its files to args.out. Sets the threads of this process to one."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(args.seed)
    if side == "vision":
        model = ArtGPT4(TINY, None)
        torch.manual_seed(args.seed)          # again, so that no size of the other side counts
        for part in (model.vit, model.qformer):
            initialise(part)
        shrink_outputs(model)
        model.to(args.device)
        parameters, loss_of_step = vision_objective(
            model, args.vision_steps, args.vision_batch, args.pictures, args.seed, args.workers)
        train(parameters, loss_of_step, args.vision_steps, 1e-3, side)
    else:
        model = ArtGPT4(TINY, gallery_tokenizer(args.seed, TINY.llama.vocab_size))
        torch.manual_seed(args.seed)
        initialise(model.llama)
        model.llama.to(args.device)
        documents = Documents(model.tokenizer, args.language_batch, TINY.qformer.queries,
                              TINY.llama.hidden_size, args.seed, args.quizzes)
        parameters, loss_of_step = language_objective(
            model, documents.batches(args.workers), args.deciding_weight)
        train(parameters, loss_of_step, args.language_steps, args.language_rate, side)
    model.cpu()
    trainable = {id(parameter) for parameter in model.freeze()}
    for parameter in model.parameters():
        if id(parameter) not in trainable:
            parameter.data = parameter.data.half()
    save_side(model, args.out, side)


def main(args):
    sides = SIDES if args.side == "both" else (args.side,)
    args.out.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(sides), mp_context=spawn) as pool:
        for done in [pool.submit(pretrain_side, side, args) for side in sides]:
            done.result()
    names = sorted(path.name for path in args.out.iterdir())
    print(f"{args.out}: {', '.join(names)}")


def command_line():
    parser = argparse.ArgumentParser(prog="python -m gallery.pretrain",
                                     description=__doc__.partition("\n")[0])
    count = number(int, 1, 10**9)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain"),
                        help="weights folder to write (default: %(default)s)")
    parser.add_argument("--side", choices=("both", *SIDES), default="both",
                        help="the side to train; each writes its own files (default: %(default)s)")
    parser.add_argument("--vision-steps", type=count, default=2400, help="(default: %(default)s)")
    parser.add_argument("--vision-batch", type=count, default=48,
                        help="pictures in a batch (default: %(default)s)")
    parser.add_argument("--pictures", type=number(int, 1, 10**6), default=10000,
                        help="plain scenes to draw (default: %(default)s)")
    parser.add_argument("--language-steps", type=count, default=2700,
                        help="(default: %(default)s)")
    parser.add_argument("--language-batch", type=count, default=64,
                        help="documents in a batch (default: %(default)s)")
    parser.add_argument("--language-rate", type=number(float, 0, 1), default=2e-3,
                        help="highest learning rate (default: %(default)s)")
    parser.add_argument("--quizzes", type=number(float, 0, 1), default=0.5, metavar="SHARE",
                        help="share of documents that are quizzes (default: %(default)s)")
    parser.add_argument("--deciding-weight", type=number(float, 1, 1000), default=8,
                        metavar="WEIGHT",
                        help="of the words that decide an answer (default: %(default)s)")
    parser.add_argument("--device", type=device, default="cpu",
                        help="cuda, cuda:1, cpu, ... (default: %(default)s)")
    parser.add_argument("--workers", type=number(int, 0, 100), default=0,
                        help="processes that make the batches of a side; 0: its own "
                             "(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
