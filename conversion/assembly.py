"""From their names to ours: the tensors of the weights folder, put together from the checkpoints'.

A fused matrix stays a list of parts, which are written one after the other: one tensor of the
source is in memory at a time. All shapes and dtypes are checked here, before anything is written.
"""
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from artgpt4 import Adapter, CastLinear
from common.int8 import quantise
from conversion.formats import FORMATS, their_names
from conversion.tensor_files import Stored, in_memory


@dataclass
class Fused:
    """A tensor of the output: parts (Stored) along its first dimension.

    pack: what is applied to the rows of a part before they are written.
    """
    shape: tuple
    dtype: torch.dtype
    parts: list
    pack: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous

    @property
    def nbytes(self):
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def fuse(parts, shape):
    """The Fused of some parts. Raises ValueError unless they make up `shape` in one float dtype."""
    where, dtypes = parts[0].where, {part.dtype for part in parts}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float16, torch.bfloat16}:
        raise ValueError(f"{where}: {', '.join(map(str, dtypes))}; "
                         "expected float16, bfloat16 or float32")
    rows = sum(part.shape[0] for part in parts if part.shape)
    stacked = (rows, *parts[0].shape[1:])
    if stacked != shape or any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        found = " + ".join(str(part.shape) for part in parts)
        raise ValueError(f"{where}: {found}; expected {shape}")
    return Fused(shape, parts[0].dtype, parts)


def zeros_like(part):
    """A part of zeros, of the same shape and dtype as another."""
    def read():
        return torch.zeros_like(part.read())
    return replace(part, read=read)


def take(checkpoint, shapes, only=""):
    """The tensors of a checkpoint whose names in artgpt4.py begin with `only`, {name: Fused}.

    shapes: {name: shape} of all that the checkpoint may hold. Raises ValueError, naming them, for
    tensors that are missing, unknown, or of the wrong shape or dtype.
    """
    taken, known, missing = {}, set(), []
    for name, shape in shapes.items():
        sources, parts = their_names(checkpoint.kind, name), []
        known.update(sources)
        if not name.startswith(only):
            continue
        for source in sources:
            if source == "zeros":
                parts.append(zeros_like(parts[-1]))
            elif source in checkpoint.tensors:
                parts.append(checkpoint.tensors[source])
            else:
                missing.append(source)
        if parts and not missing:
            taken[name] = fuse(parts, shape)
    refuse(checkpoint, missing, "is missing")
    form = FORMATS[checkpoint.kind]
    unknown = [name for name in checkpoint.tensors
               if name not in known and not re.fullmatch(form.unused, name)]
    refuse(checkpoint, unknown, f"is not part of {form.what}")
    return taken


def refuse(checkpoint, names, what):
    """Raises ValueError for the first of some names, and says how many more there are."""
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ValueError(f"{checkpoint.path}: {names[0]} {what}{more}")


def settle_head(llm, config):
    """Tied embeddings: drop a head that is equal to the embedding; keep one that differs, untied.

    Changes the tensors of the Checkpoint `llm` and config.llama.
    """
    embed, head = (llm.tensors.get(their_names("llama", name)[0])
                   for name in ("llama.embed.weight", "llama.head.weight"))
    if not config.llama.tie_word_embeddings or head is None:
        return
    if embed is not None and torch.equal(head.read(), embed.read()):
        del llm.tensors["lm_head.weight"]
    else:
        config.llama.tie_word_embeddings = False
        print(f"warning: {llm.config_file}: tie_word_embeddings is true, but {head.where} is not "
              "the embedding; it is kept, untied", file=sys.stderr)


def untrained_adapter(config):
    """Yield (name, float32 tensor) of projection and adapters as training starts them.

    One module at a time is in memory.
    """
    width, blocks = config.llama.hidden_size, config.llama.num_hidden_layers
    yield from CastLinear(config.qformer.width, width).state_dict(prefix="proj.").items()
    for i in range(blocks if config.adapter_width else 0):
        adapter = Adapter(width, config.adapter_width)
        yield from adapter.state_dict(prefix=f"llama.blocks.{i}.adapter.").items()


def take_adapter(checkpoint, config, shapes, llm):
    """The trainable parameters, float32, {name: Fused}.

    checkpoint: ArtGPT-4.pth, pretrained_minigpt4.pth or None. Norms that it lacks are those of
    `llm`, {name: Fused}; other parameters that it lacks start as training starts them. Raises
    ValueError if the checkpoint was made for another language model.
    """
    taken = {}
    if checkpoint is not None:
        check_adapter(checkpoint, config)
        taken = take(checkpoint, shapes, only="proj." if checkpoint.kind == "minigpt4" else "")
    torch.manual_seed(42)
    untrained = untrained_adapter(config)                     # yields in the order of `shapes`

    def initial(name):
        return next(tensor for produced, tensor in untrained if produced == name)
    tensors = {}
    for name, shape in shapes.items():
        at_start = Stored(name, shape, torch.float32, partial(initial, name))
        source = taken.get(name) or llm.get(name) or Fused(shape, torch.float32, [at_start])
        tensors[name] = replace(source, dtype=torch.float32, pack=torch.Tensor.float)
    return tensors


def check_adapter(checkpoint, config, flag="--llm"):
    """Raises ValueError if an adapter's checkpoint was made for another language model.

    flag: the one that names the language model, for the message.
    """
    llama = config.llama
    sizes = [("width", checkpoint.shape("proj.weight")[0], llama.hidden_size)]
    if checkpoint.kind == "artgpt4":
        blocks = checkpoint.count("llama.blocks.{i}.adapter.down.weight")
        sizes.append(("number of blocks", blocks, llama.num_hidden_layers))
    for size, made_for, given in sizes:
        if made_for != given:
            raise ValueError(f"{checkpoint.path}: made for a language model whose {size} is "
                             f"{made_for}; that of {flag} is {given}")


# ---- Changes on the way: fewer ViT blocks, another image size, int8


def resize_pos_embed(pos_embed, patches):
    """Position embedding (1, P, D) -> (1, patches + 1, D), for another square grid of patches.

    The row of the class token stays as it is.
    """
    cls_row, grid = pos_embed[:, :1], pos_embed[:, 1:]
    old, new = math.isqrt(grid.shape[1]), math.isqrt(patches)
    if old == new:
        return pos_embed
    grid = grid.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    grid = grid.flatten(2).transpose(1, 2)                    # (1, patches, D)
    return torch.cat((cls_row, grid.to(cls_row.dtype)), dim=1)


def fit_vit(vit, qformer, config):
    """Drop the ViT blocks that are not kept from two Checkpoints, and resize the position
    embedding of the first to the image size."""
    for checkpoint in (vit, qformer):                         # BLIP-2 of transformers may be both
        for name in list(checkpoint.tensors):
            block = re.match(r"(?:blocks|vision_model\.encoder\.layers)\.(\d+)\.", name)
            if block and int(block[1]) >= config.vit.layers:
                del checkpoint.tensors[name]
    name, = their_names(vit.kind, "vit.pos_embed")
    patches = (config.image_size // config.vit.patch_size) ** 2
    trained = vit.tensors[name]

    def read():
        return resize_pos_embed(trained.read(), patches)
    shape = (1, patches + 1, config.vit.width)
    vit.tensors[name] = replace(trained, shape=shape, read=read)


class Int8Rows:
    """Packs a matrix as int8, some rows at a time, and keeps the scale of each row.

    All scales (rows,) are in one tensor: small ones would fragment memory.
    """

    def __init__(self, rows):
        self.scales, self.done = torch.empty(rows), 0

    def pack(self, rows):
        packed, scale = quantise(rows)
        self.scales[self.done:self.done + len(rows)] = scale[:, 0]
        self.done += len(rows)
        return packed


def to_int8(tensors):
    """{name: Fused} of the language model, with the matrices of its blocks as int8.

    Each has one float32 scale a row, absmax / 127, which is written after its matrix. Wide dtypes
    come first among the rest, which keeps the tensors aligned.
    """
    matrices, rest = {}, {}
    for name, tensor in tensors.items():
        if re.search(r"\.(attn|mlp)\.", name):
            rows = Int8Rows(tensor.shape[0])
            matrices[name] = replace(tensor, dtype=torch.int8, pack=rows.pack)
            scale = in_memory(f"{name}, scale", rows.scales)
            rest[name.replace(".weight", ".scale")] = fuse([scale], scale.shape)
        else:
            rest[name] = tensor
    widest_first = sorted(rest, key=lambda name: -rest[name].dtype.itemsize)
    return matrices | {name: rest[name] for name in widest_first}
