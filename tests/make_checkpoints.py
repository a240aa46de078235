"""Write synthetic checkpoints of the real sizes in the public formats, to measure conversion.

    python -m tests.make_checkpoints OUT --size 13b            26 GB in OUT/vicuna, 2.5 GB beside it
    python -m tests.make_checkpoints OUT --size 13b --delta    also a delta, with links to Vicuna's
                                                               matrices

The values are noise of the right magnitude. The sizes, names, dtypes and files are those of the
released checkpoints, except that each shard holds one block: this needs little memory itself.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch

from artgpt4 import ArtGPT4, Config, LlamaConfig, ViTConfig
from conversion.formats import their_names

GOLDEN = Path(__file__).parent / "golden"
SIZES = {
    "13b": LlamaConfig(),
    "7b": LlamaConfig(4096, 11008, 32, 32, 32),
    "1b": LlamaConfig(2048, 5504, 16, 16, 16),
}
NOISE = torch.randn(1 << 27, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()


def noise(shape, dtype=torch.float16, mean=0.0):
    """A tensor of noise around `mean`; float16 is a copy of NOISE."""
    count = torch.Size(shape).numel()
    repeated = NOISE.repeat(-(-count // len(NOISE))) if count > len(NOISE) else NOISE
    return (repeated[:count].clone() + mean).reshape(shape).to(dtype)


def save_llama(folder, config, delta_of=None):
    """Write a language model in transformers' format: a shard for each block's matrices, and one
    for the rest."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = ArtGPT4(Config(llama=config, vit=ViTConfig(layers=1), adapter_width=0), None)
    where, rest, shapes = {}, {}, {}
    for name, tensor in model.llama.state_dict().items():
        parts = their_names("llama", f"llama.{name}")
        for part in parts:
            rows = tensor.shape[0] // len(parts)
            shapes[part] = (rows, *tensor.shape[1:])
    shards = config.num_hidden_layers + 1
    for i in range(config.num_hidden_layers):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        names = [name for name in shapes if f".layers.{i}." in name and "norm" not in name]
        if delta_of:
            (folder / file).symlink_to((delta_of / file).resolve())
        else:
            torch.save({name: noise(shapes[name]) for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    file = f"pytorch_model-{shards:05d}-of-{shards:05d}.bin"
    for name in shapes.keys() - where.keys():
        is_norm = "norm" in name and not delta_of
        rest[name] = noise(shapes[name], mean=1.0 if is_norm else 0.0)
    torch.save(rest, folder / file)
    where |= dict.fromkeys(rest, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    values = {key: value for key, value in vars(config).items() if key != "int8"}
    values |= {"model_type": "llama", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(values))
    shutil.copy(GOLDEN / "tokenizer.model", folder)


def save_vision(folder):
    """eva_vit_g.pth with 40 blocks and blip2_pretrained_flant5xxl.pth."""
    with torch.device("meta"):
        small_llama = LlamaConfig(768, 1024, 1, 12, 12)
        model = ArtGPT4(Config(vit=ViTConfig(layers=40), llama=small_llama), None)
    vit, qformer = {}, {}
    for name, tensor in model.state_dict().items():
        if name.startswith("vit."):
            parts = [part for part in their_names("eva", name) if part != "zeros"]
            shape = (model.config.vit.width,) if len(parts) > 1 else tensor.shape
            vit |= {part: noise(shape) for part in parts}
        elif name.startswith(("ln_vision.", "qformer.")):
            name, = their_names("blip2", name)
            qformer[name] = noise(tensor.shape, torch.float32)
    torch.save(vit, folder / "eva_vit_g.pth")
    torch.save({"model": qformer}, folder / "blip2_pretrained_flant5xxl.pth")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--delta", action="store_true", help="also OUT/delta, for OUT/vicuna")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "eva_vit_g.pth").exists():
        save_vision(args.out)
    if not (args.out / "vicuna").exists():
        save_llama(args.out / "vicuna", SIZES[args.size])
    if args.delta:
        save_llama(args.out / "delta", SIZES[args.size], delta_of=args.out / "vicuna")
