"""Pre-train the frozen parts of weights/tiny: `python -m gallery.pretrain`.

The parts of the real ArtGPT-4 were pre-trained by others; this stands in for that. The vision side
(ViT, ln_vision, Q-Former) learns from plain scenes: see vision.py. The language side learns from
conversations in which a few words tell the picture, where its vectors will stand later: see
language.py. Neither sees a painting, or a held-out pair of subject and style.

The two sides run at once, each in one thread of its own process. So the same seed gives the same
weights with any number of cores. On a GPU the random numbers are the same, but not the rounding.
"""
import math
import re
import signal
from pathlib import Path

import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessException, spawn

from artgpt4 import TRAINABLE, ArtGPT4, Config
from common.command_line import Progress, command_parser, number, run_command
from common.files import save_tensors, write_json, written_beside
from common.models import device
from gallery.familiarity import FILE, fitted
from gallery.language import batches, gallery_tokenizer, language_loss
from gallery.vision import photographs, plain_scenes, task_heads, vision_loss

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
BRANCHES = {"vit": (2 * TINY.vit_layers) ** -0.5, "qformer": 0.4}      # factors: see initialise
SIDES = {"vision": r"(vit|ln_vision|qformer|heads)\.",        # how the names of each begin
         "language": r"llama\.(?!.*\.adapter\.)"}


def parameters_of(model, names):
    """{name: parameter} of those whose names begin as the pattern `names` says."""
    return {name: parameter for name, parameter in model.named_parameters()
            if re.match(names, name)}


def initialise(parameters):
    """Linear weights of variance 1 / inputs, other matrices of deviation 0.2, biases zero. BRANCHES
    makes those small that end a residual branch, so that every layer adds little at first: the
    Q-Former's self-attention else adds several times its input and averages the queries away."""
    for name, parameter in parameters.items():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            linear = name.endswith("weight") and name != "llama.embed.weight"
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if linear else 0.2)
        if name.endswith(("attn.out.weight", "fc2.weight")):
            parameter.data *= BRANCHES.get(name.split(".")[0], 1)


def train(model, side, loss_of, batches, steps):
    """A run with a warm-up of 2 % and a cosine to zero: Muon for the hidden matrices, AdamW for all
    else. loss_of: a function (model, batch) -> loss."""
    parameters, hidden, others = parameters_of(model, SIDES[side]), [], []
    for name, parameter in parameters.items():
        is_hidden = parameter.ndim == 2 and not re.search("embed|head", name)
        (hidden if is_hidden else others).append(parameter)
    optimizers = (                                            # each after its highest rate
        (8e-3, torch.optim.Muon(hidden, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")),
        (4e-3, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.05)))
    progress = Progress(side, steps, "steps")
    for step in range(steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        loss = loss_of(model, next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for peak, optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = peak * min((step + 1) / (1 + steps // 50), cosine)
            optimizer.step()
            optimizer.zero_grad()
        progress.show(step + 1, f"loss {loss.item():.3f}")


def pretrain_side(rank, sides, model, args):
    """Train sides[rank] in this process, in one thread. Its parameters go into `model`, whose
    memory all processes share."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # on Linux torch sends it if the parent ends
    torch.set_num_threads(1)
    side, trained = sides[rank], ArtGPT4(model.config, model.tokenizer)
    torch.manual_seed(args.seed)              # so late that no size of the other side counts
    initialise(parameters_of(trained, SIDES[side]))
    if side == "vision":
        nn.init.normal_(trained.qformer.queries)              # of deviation 1
        trained.heads = task_heads(model.config)
        scenes = plain_scenes(args.pictures, args.seed, model.config.image_size)
        loss_of, steps = vision_loss, args.vision_steps
        made = photographs(scenes, model.config, args.seed, steps, args.batch_size or 48)
    else:
        loss_of, steps = language_loss, args.language_steps
        made = batches(trained, args.seed, args.batch_size or 16)
    if args.init:
        trained.load_state_dict(model.state_dict(), strict=False)     # all but the heads
    train(trained.to(args.device), side, loss_of, made, steps)
    model.load_state_dict(parameters_of(trained, SIDES[side]), strict=False)


def main(args):
    torch.manual_seed(args.seed)
    if args.init:
        model = ArtGPT4.from_pretrained(args.init, dtype=torch.float32, adapter=False)
    else:
        model = ArtGPT4(TINY, gallery_tokenizer(args.seed, TINY.vocab_size))
    steps = {"vision": args.vision_steps, "language": args.language_steps}
    sides = [side for side in SIDES if steps[side]]
    try:
        spawn(pretrain_side, (sides, model.share_memory(), args), len(sides), daemon=True)
    except ProcessException as error:                         # its last line is the cause
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    for parameter in {*model.parameters()} - {*model.freeze()}:
        parameter.data = parameter.data.half()                # what is trainable stays float32
    for file, names in (("vision", SIDES["vision"]), ("llama", SIDES["language"]),
                        ("adapter", TRAINABLE["artgpt4"])):
        save_tensors(parameters_of(model, names), args.out / f"{file}.safetensors")
    with written_beside(args.out / "tokenizer.model") as path:
        path.write_bytes(model.tokenizer.serialized_model_proto())
    write_json(vars(model.config), args.out / "config.json")
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
