"""What training costs in memory, and what int8 costs in accuracy."""
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from artgpt4 import INSTRUCTIONS, PROMPTS, ArtGPT4, Config, instruction_prompt, preprocess
from benchmarks.speed import empty_model
from common.command_line import markdown_table
from common.files import open_image
from common.int8 import quantised
from common.models import answers

TOKENS, TEXT_TOKENS = 230, 160      # of a sequence with its image vectors; of these, learned ones
WAYS = {                            # to train the 13B
    "one 80 GB card, batch 12": {"batch": 12},
    "one 80 GB card, batch 32, --checkpointing": {"batch": 32, "checkpointing": True},
    "8 x 24 GB, --fsdp, batch 16 in all": {"batch": 2, "cards": 8},
    "one 24 GB card, batch 1, --int8 --checkpointing":
        {"batch": 1, "int8": (True, False), "checkpointing": True},
    "the same, --vision-int8 --moments bfloat16":
        {"batch": 1, "int8": (True, True), "checkpointing": True, "moments": 4},
}


def activations(config, layers, batch):
    """Bytes that the backward pass keeps of a batch, with so many layers of the language model, in
    bfloat16: counted in a forward pass without numbers. What comes before it needs no gradient."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    model = empty_model(replace(config, llama_layers=layers, vit_layers=1), torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")       # on "meta" attention keeps other tensors than on a CPU
        embeds = model.llama.embed(torch.zeros(batch, TOKENS, dtype=torch.long))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model.llama(embeds.requires_grad_())[:, -TEXT_TOKENS:].flatten(0, 1)
            F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        for parameter in model.parameters():
            kept.pop(parameter.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def training_memory(config, batch, int8=(False, False), checkpointing=False, moments=8, cards=1):
    """{part: bytes} of one card while it trains in bfloat16. batch: on this card. int8: of the
    language model, of the ViT. moments: bytes of AdamW's two for a weight. cards: over which FSDP
    spreads the parameters."""
    model = empty_model(config, torch.bfloat16, *int8)
    sizes = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    trainable = sum(sizes[name] for name in model.trainable_names())
    frozen = (sum(sizes.values()) - trainable) / cards
    if cards > 1:                                             # the present block and the next one
        frozen += 2 * sum(sizes[name] for name in sizes if name.startswith("llama.blocks.0."))
    one, three = (activations(config, layers, batch) for layers in (1, 3))
    block = (three - one) / 2
    if checkpointing:                                         # its input; then one block at a time
        block = 2 * batch * TOKENS * config.llama_width
    return {"frozen weights": frozen, "trainable weights": trainable / cards,
            "gradients": trainable / cards, "moments": trainable / 4 * moments / cards,
            "activations": one + (config.llama_layers - 1) * block}


def memory_table():
    rows = []
    for name, way in WAYS.items():
        parts = training_memory(Config(), **way)
        sizes = [*parts.values(), sum(parts.values())]
        rows.append([name, *(f"{size / 1e9:.1f}" for size in sizes)])
    return markdown_table(["13B, GB on each card", *parts, "sum"], rows)


@torch.inference_mode()
def int8_error_table(weights, pictures):
    """What int8 changes in a model's image vectors, and in what it thinks of its own answers."""
    exact = ArtGPT4.from_pretrained(weights, dtype=torch.float32)
    small = ArtGPT4.from_pretrained(weights, dtype=torch.float32, prepare=quantised(True, True))
    pixels = torch.stack([preprocess(open_image(file), exact.config.image_size)
                          for file in pictures])
    right = exact.encode_image(pixels)
    prompt = instruction_prompt(INSTRUCTIONS[0], exact.config.prompt)
    embeds = torch.cat([exact.embed_prompt(prompt, one[None]) for one in right])
    said = answers(exact, embeds, temperature=0)
    rows = []
    for name, model in (("float32", exact), ("int8", small)):
        error = ((model.encode_image(pixels) - right).norm() / right.norm()).item()
        loss = model.loss(pixels, said, prompt, PROMPTS[exact.config.prompt][-1], 300)
        rows.append([name, f"{error:.2%}", f"{loss.exp():.4f}"])
    return markdown_table(["in", "error of image vectors", "perplexity of float32's answers"], rows)
