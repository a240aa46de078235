"""Write synthetic checkpoints of the real sizes in the public formats, to measure conversion.

    python -m tests.make_checkpoints OUT --size 13b     26 GB in OUT/vicuna, 2.5 GB beside it

The values are noise. Sizes, names, dtypes and files are those of the released checkpoints, but a
shard holds one block, to be written in little memory, and the embedding has 321 rows.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch

from artgpt4 import ArtGPT4, Config
from conversion.formats import LLAMA_SIZES, parts_of

GOLDEN = Path(__file__).parent / "golden"
SIZES = {  # of the language model: width, width of the MLP, layers and heads
    "13b": (5120, 13824, 40, 40), "7b": (4096, 11008, 32, 32), "1b": (2048, 5504, 16, 16)}


def noise(shapes, dtype=torch.float16):
    """{name: a tensor of noise} for {name: shape}; norms are around 1."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).mul_(0.02).add_("norm" in name).to(dtype)
            for name, shape in shapes.items()}


def public_shapes(kind, shapes):
    """{public name: shape} of what artgpt4.py calls {name: shape}."""
    found = {}
    for name, shape in shapes.items():
        parts = parts_of(kind, name)
        for source, number, of in parts:
            if number:
                found[source] = (shape[0] * of // len(parts), *shape[1:])
    return found


def main(out, size):
    """Write OUT/vicuna, OUT/eva_vit_g.pth and OUT/blip2_pretrained_flant5xxl.pth."""
    width, mlp_width, layers, heads = SIZES[size]
    config = Config(llama_width=width, llama_mlp_width=mlp_width, llama_layers=layers,
                    llama_heads=heads, llama_kv_heads=heads, vocab_size=321, vit_layers=40,
                    adapter_width=0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ArtGPT4(config, None).state_dict().items()}
    folder, llama = out / "vicuna", public_shapes("llama", shapes)
    folder.mkdir(parents=True)
    where = {name: f"{name.split('.')[2] if '.layers.' in name else 'rest'}.bin" for name in llama}
    for file in set(where.values()):
        torch.save(noise({name: llama[name] for name in llama if where[name] == file}),
                   folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    values = {theirs: getattr(config, ours) for theirs, ours in LLAMA_SIZES.items()}
    values |= {"model_type": "llama", "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(values))
    shutil.copy(GOLDEN / "tokenizer.model", folder)
    torch.save(noise(public_shapes("eva", shapes)), out / "eva_vit_g.pth")
    qformer = noise(public_shapes("blip2", shapes), torch.float32)
    torch.save({"model": qformer}, out / "blip2_pretrained_flant5xxl.pth")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1b")
    main(**vars(parser.parse_args()))
