"""The arms of gallery/ablation.py: what is trained beside the projection, in equal numbers.

Each arm changes a model that starts as MiniGPT-4 (adapters that are the identity) and says which
modules are trained. Every one but "projection" and "norms" has as many trainable parameters as
ArtGPT-4, to the nearest width, so that a difference is not one of size. The modules here exist for
this comparison alone.
"""
from typing import NamedTuple

import torch
from torch import nn

from artgpt4 import IMAGE_ID, Adapter


def count(modules):
    """The number of parameters of some modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def beside_projection(model):
    """The number of parameters that ArtGPT-4 trains beside the projection, which all arms train."""
    return count(model.trainable_modules("artgpt4")) - count([model.proj])


def nearest_width(goal, parameters):
    """The width w >= 1 whose parameters(w) are nearest to the goal; parameters rises with w."""
    width = 1
    while parameters(width) < goal:
        width += 1
    return min((max(1, width - 1), width), key=lambda w: abs(parameters(w) - goal))


# ---- Modules


class LowRank(nn.Module):
    """LoRA on the queries and values of a fused qkv matrix: W x + B A x, B zero at first.

    widths: of q, k and v in the output.
    """

    def __init__(self, qkv, widths, rank):
        super().__init__()
        self.qkv, self.widths = qkv, widths
        q, _, v = widths
        self.down = nn.ModuleList(nn.Linear(qkv.in_features, rank, bias=False) for _ in "qv")
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for width in (q, v))
        for up in self.up:
            nn.init.zeros_(up.weight)

    def forward(self, x):
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q = q + self.up[0](self.down[0](x))
        v = v + self.up[1](self.down[1](x))
        return torch.cat((q, k, v), dim=-1)


class AtImages(nn.Module):
    """An adapter that acts where image vectors stand, and is the identity at every other token.

    places: the ImagePlaces of the model. A token that comes alone, as those of an answer do and in
    the last block the prompt's last one, counts as none.
    """

    def __init__(self, adapter, places):
        super().__init__()
        self.adapter, self.places = adapter, places

    def forward(self, x):
        is_image = self.places.is_image
        tokens = x.shape[1]
        if is_image is None or tokens == 1:
            return x
        is_image = is_image[:, -tokens:, None]                # the last block: of a text's end
        return torch.where(is_image, self.adapter(x), x)


class ImagePlaces:
    """Remembers where image vectors stand in what embed_ids was last given, bool (B, T)."""

    def __init__(self, model):
        self.is_image, self.embed_ids = None, model.embed_ids
        model.embed_ids = self

    def __call__(self, ids, image_embeds):
        ids = torch.atleast_2d(torch.as_tensor(ids, dtype=torch.long))
        self.is_image = (ids == IMAGE_ID).to(image_embeds.device)
        return self.embed_ids(ids, image_embeds)


# ---- Arms


def with_mlp(model):
    """An MLP of one hidden layer after the projection, with a residual connection."""
    width = model.config.llama.hidden_size
    inner = nearest_width(beside_projection(model), lambda w: 2 * width * w + w + width)
    mlp = Adapter(width, inner)
    model.proj = nn.Sequential(model.proj, mlp)
    return [model.proj]


def with_low_rank(model):
    """LoRA on q and v of every block."""
    blocks, goal = model.llama.blocks, beside_projection(model)
    inputs, (q, _, v) = blocks[0].attn.qkv.in_features, blocks[0].attn.widths
    rank = nearest_width(goal, lambda w: len(blocks) * w * (2 * inputs + q + v))
    trained = [model.proj]
    for block in blocks:
        block.attn.qkv = LowRank(block.attn.qkv, block.attn.widths, rank)
        trained += [block.attn.qkv.down, block.attn.qkv.up]
    return trained


def with_adapters(model):
    """Adapters without norms, wider by as much as the norms were."""
    blocks, width = model.llama.blocks, model.config.llama.hidden_size
    goal = beside_projection(model)
    inner = nearest_width(goal, lambda w: len(blocks) * (2 * width * w + w + width))
    for block in blocks:
        block.adapter = Adapter(width, inner)
    return [model.proj, *(block.adapter for block in blocks)]


def at_images(model):
    """ArtGPT-4 whose adapters act at image positions alone. The last block's then does next to
    nothing, since no later block reads what it changes."""
    trained, places = list(model.trainable_modules("artgpt4")), ImagePlaces(model)
    for block in model.llama.blocks:
        block.adapter = AtImages(block.adapter, places)
    return trained


def of_mode(mode):
    """What artgpt4.MODES has."""
    return lambda model: list(model.trainable_modules(mode))


class Arm(NamedTuple):
    """label: for tables. attach: changes a model and returns the modules to train. shuffled: train
    with the pictures of a batch moved on by half of it, so that no text belongs to its picture."""
    label: str
    attach: object
    shuffled: bool = False


ARMS = {
    "artgpt4": Arm("projection, norms and adapters (ArtGPT-4)", of_mode("artgpt4")),
    "projection": Arm("projection alone (MiniGPT-4)", of_mode("minigpt4")),
    "mlp": Arm("projection and an MLP after it", with_mlp),
    "lora": Arm("projection and LoRA on q and v", with_low_rank),
    "norms": Arm("projection and norms", of_mode("norms")),
    "adapters": Arm("projection and adapters", with_adapters),
    "shuffled": Arm("ArtGPT-4, trained with shuffled pictures", of_mode("artgpt4"), shuffled=True),
    "at-images": Arm("ArtGPT-4, adapters at image positions alone", at_images),
}


def attach(model, arm):
    """Make a model an arm: only the arm's modules are trainable, in float32. Returns their
    parameters."""
    device = model.llama.embed.weight.device
    model.requires_grad_(False)
    trained = arm.attach(model)
    for module in trained:
        module.to(device, torch.float32).requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
