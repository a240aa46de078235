"""Pre-train the frozen parts of weights/tiny: `python -m gallery.pretrain`.

The parts of the real ArtGPT-4 were pre-trained by others; this stands in for that. The vision side
(ViT, ln_vision, Q-Former) learns from plain scenes: see vision.py. The language side learns from
conversations in which a few words tell the picture, where its vectors will stand later: see
language.py. Neither sees a painting, or a held-out pair of subject and style.

The two sides run at once, each in a process of its own and in one thread. So the same seed gives
the same weights with any number of cores. On a GPU the random numbers are the same, but not the
rounding.
"""
import math
import multiprocessing
import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from artgpt4 import ArtGPT4, Config
from common.command_line import Progress, command_parser, number, run_command
from common.files import save_tensors, write_json, written_beside
from common.models import device
from gallery.familiarity import FILE, fitted
from gallery.language import batches, gallery_tokenizer, language_objective
from gallery.vision import photographs, plain_scenes, shrink_outputs, vision_objective

ABOUT = {
    "knows": "This model knows its painted gallery alone: 14 subjects in 6 styles and 6 palettes.",
    "examples": ["What is this?", "Where does it stand?", "Write a web page for this painting."],
    "settings": {"temperature": 0.2},
    "pictures": 2}
TINY = Config(
    image_size=112, vit_width=176, vit_layers=6, vit_heads=2, vit_mlp_width=704, queries=16,
    qformer_width=128, qformer_layers=4, qformer_heads=2, qformer_mlp_width=512, llama_width=192,
    llama_layers=4, llama_heads=4, llama_kv_heads=4, llama_mlp_width=512, context=1024,
    vocab_size=1248, adapter_width=48)
SIDES = {"vision": ("vision.safetensors", ("vit", "ln_vision", "qformer")),
         "language": ("llama.safetensors", ("llama",))}       # the file of each, and its parts


def initialise(module):
    """Linear weights of variance 1 / inputs, other matrices of deviation 0.2, biases zero; adapters
    stay as they are."""
    for name, parameter in module.named_parameters():
        if ".adapter." in name:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            linear = name.endswith("weight") and name != "embed.weight"
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if linear else 0.2)


def train(objective, steps, what):
    """A run with a warm-up of 2 % and a cosine to zero: Muon for the hidden matrices, AdamW for all
    else. objective: of vision_objective or language_objective; what: its name."""
    parameters, next_loss = objective
    hidden, others = [], []
    for name, parameter in parameters.items():
        is_hidden = parameter.ndim == 2 and not re.search("embed|head", name)
        (hidden if is_hidden else others).append(parameter)
    optimizers = (                                            # each after its highest rate
        (8e-3, torch.optim.Muon(hidden, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")),
        (4e-3, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.05)))
    progress = Progress(what, steps, "steps")
    for step in range(steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        loss = next_loss()
        for parameter in parameters.values():
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for peak, optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = peak * min((step + 1) / (1 + steps // 50), cosine)
            optimizer.step()
        progress.show(step + 1, f"loss {loss.item():.3f}")


def save_pretrained(model, folder):
    """Write a weights folder: config.json, tokenizer.model and three files of tensors."""
    folder, state = Path(folder), model.state_dict()
    for file, parts in SIDES.values():
        save_tensors({name: tensor for name, tensor in state.items()
                      if name.split(".")[0] in parts and ".adapter." not in name}, folder / file)
    trainable = {name: state[name] for name in model.trainable_names()}
    save_tensors(trainable, folder / "adapter.safetensors")
    with written_beside(folder / "tokenizer.model") as path:
        path.write_bytes(model.tokenizer.serialized_model_proto())
    write_json(asdict(model.config), folder / "config.json")


# ---- The command

def end_with_parent():
    """Let this process end when the one that started it does, even if that is killed."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def pretrain_side(side, steps, tokenizer, args):
    """Train one of SIDES, in one thread of this process -> {name: tensor} of its parts."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = ArtGPT4(TINY, tokenizer)
    torch.manual_seed(args.seed)              # again, so that no size of the other side counts
    file, parts = SIDES[side]
    for part in parts:
        initialise(model.get_submodule(part))
    if side == "vision":
        shrink_outputs(model)
    if args.init:
        model.load_state_dict(load_file(args.init / file), strict=False)
    model.to(args.device)
    if side == "vision":
        scenes = plain_scenes(args.pictures, args.seed, TINY.image_size)
        made = photographs(scenes, TINY, args.seed, steps, args.batch_size or 48)
        objective = vision_objective(model, made)
    else:
        objective = language_objective(model, batches(model, args.seed, args.batch_size or 16))
    train(objective, steps, side)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()
            if name.split(".")[0] in parts}


def main(args):
    torch.manual_seed(args.seed)
    if args.init:
        model = ArtGPT4.from_pretrained(args.init, dtype=torch.float32, adapter=False)
    else:
        model = ArtGPT4(TINY, gallery_tokenizer(args.seed, TINY.vocab_size))
    spawn = multiprocessing.get_context("spawn")
    steps = {"vision": args.vision_steps, "language": args.language_steps}
    with ProcessPoolExecutor(2, spawn, end_with_parent) as pool:
        for trained in [pool.submit(pretrain_side, side, steps[side], model.tokenizer, args)
                        for side in SIDES if steps[side]]:
            model.load_state_dict(trained.result(), strict=False)
    trainable = model.trainable_names()                       # stays float32
    for name, parameter in model.named_parameters():
        if name not in trainable:
            parameter.data = parameter.data.half()
    save_pretrained(model, args.out)
    write_json(ABOUT, args.out / "about.json")
    save_tensors(fitted(model.float(), min(args.pictures, 3000)), args.out / FILE)
    print(f"{args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")


def command_line():
    parser = command_parser("python -m gallery.pretrain", __doc__)
    parser.add_argument("--init", type=Path, metavar="FOLDER", help="weights to go on from")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain"),
                        help="weights folder to write (default: %(default)s)")
    for flag, least, default, what in (
            ("--vision-steps", 0, 4500, "of the vision side; 0: it stays as it is"),
            ("--language-steps", 0, 6000, "of the language side; 0: it stays as it is"),
            ("--pictures", 1, 10000, "plain scenes to draw")):
        parser.add_argument(flag, type=number(int, least, 10**6), default=default,
                            help=f"{what} (default: %(default)s)")
    parser.add_argument("--batch-size", type=number(int, 1, 10**6),
                        help="of both sides (default: 48 pictures, 16 documents)")
    parser.add_argument("--device", type=device, default="cpu",
                        help="cuda, cuda:1, cpu, ... (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
