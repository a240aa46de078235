"""What a run needs, before it starts: memory while it trains, and room for its checkpoints."""
import os
import shutil
import sys

import torch

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, ArtGPT4, chat_prompt, instruction_prompt
from common.int8 import ROWS, replace_linears
from training.cached_vision import release_vision
from training.optimizer import moment_bytes
from training.processes import RANK, WORLD, say

QUESTION = "What kind of painting is this, and what does one feel on looking at it?"


def block_memory(config, act):
    """Bytes of activations that one block of the language model keeps for a token: up to its
    queries, keys and values, and after them. act: bytes of an activation."""
    llama = config.llama
    width, inner, adapter = llama.hidden_size, llama.intermediate_size, config.adapter_width
    kv_width = width * llama.num_key_value_heads // llama.num_attention_heads
    # Both norms keep their input in float32; those with a trainable weight, three in four, also
    # the normalised values
    attn_norm, mlp_norm = 1.5 * 4 * width, 2 * 4 * width
    q_k_v = width + 2 * kv_width
    rotated = width + kv_width                                # q and k
    attention_output = width
    adapter_values = width + 2 * adapter                      # its input; before and after GELU
    mlp_values = 3 * inner                                    # gate, up, silu(gate)
    return (attn_norm + act * (q_k_v + rotated),
            mlp_norm + act * (attention_output + adapter_values + mlp_values))


def training_memory(config, batch, tokens, text_tokens, frozen_bytes=2, checkpointing=False,
                    cards=1, mode="artgpt4", optimizer_bits=32, vision=True):
    """{part: bytes} of one card while it trains.

    config: of the model, whose int8 flags count. batch: sequences on this card at once. tokens: of
    a sequence, image vectors included. text_tokens: of the caption, which is learned.
    frozen_bytes: of a frozen weight that is not int8, and of an activation, 4 or 2. cards: over how
    many fully_shard spreads the parameters. vision: whether ViT and Q-Former are kept.

    Only what the backward pass needs counts as activations: those of the image encoder and of the
    Q-Former are not kept, since nothing before the projection is trainable.
    """
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    replace_linears(model)
    names, in_float32 = set(model.trainable_names(mode)), set(model.trainable_names())
    sizes, bytes_of = {}, {}
    if not vision:
        release_vision(model)
    for name, tensor in model.state_dict().items():
        width = frozen_bytes
        if tensor.dtype == torch.int8:
            width = 1
        elif name in in_float32 or name.endswith(".scale"):   # also what this mode does not train
            width = 4
        sizes[name], bytes_of[name] = tensor.numel(), width * tensor.numel()
    trainable = sum(sizes[name] for name in names)
    frozen = sum(size for name, size in bytes_of.items() if name not in names)
    moments = 8 * trainable
    if optimizer_bits == 8:
        moments = sum(moment_bytes(sizes[name]) for name in names)

    llama, act = config.llama, frozen_bytes
    attention, rest = block_memory(config, act)
    block, blocks = attention + rest, llama.num_hidden_layers
    kept = blocks * block * tokens - rest * (tokens - text_tokens)  # the last: the rest at texts
    if checkpointing:                                         # the inputs, and one block at a time
        kept = (blocks * act * llama.hidden_size + block) * tokens
    logits = 3 * 4 * batch * text_tokens * llama.vocab_size   # and their softmax, their gradient
    widened = 0
    if llama.int8:                                            # rows that are floats for a moment
        widened = 4 * ROWS * max(llama.intermediate_size, llama.hidden_size)
    gathered = 0
    if cards > 1:                                             # the present block and the next one
        gathered = 2 * sum(size for name, size in bytes_of.items()
                           if name.startswith("llama.blocks.0."))
    return {
        "frozen weights": frozen / cards + gathered,
        "trainable weights": trainable * 4 / cards,
        "gradients": trainable * 4 / cards,
        "AdamW's two moments": moments / cards,
        "activations": batch * kept + logits + widened,
    }


def sequence_length(model, stage, max_text_tokens, gallery):
    """The tokens of the longest sequence that training can meet, nearly."""
    prompts = [IMAGE_MARK]
    if stage == 2:
        prompts = [instruction_prompt(instruction) for instruction in INSTRUCTIONS]
        if gallery:                                           # three rounds, then two about another
            with_picture = f"{IMAGE_SLOT} {QUESTION}"
            prompts = [chat_prompt([with_picture, *5 * [QUESTION], with_picture, *2 * [QUESTION]])]
    return max(len(model.prompt_ids(prompt)) for prompt in prompts) + max_text_tokens


def room_of(device):
    """(bytes, name) of the memory that training has: the GPU's, or the machine's."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory, "this GPU"
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine"


def in_units(size):
    """Bytes as "1.23 GB" or "4.5 MB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def check_room(model, recipe, args, device, out):
    """Print what the run needs, and warn if that is about what there is.

    Raises ValueError if the device is clearly too small, or the disk for three checkpoints.
    """
    frozen_bytes = torch.finfo(getattr(torch, args.dtype)).bits // 8
    batch = recipe.batch_size // (WORLD * args.accumulate)
    tokens = sequence_length(model, args.stage, recipe.max_text_tokens, args.data is None)
    parts = training_memory(
        model.config, batch, tokens, recipe.max_text_tokens, frozen_bytes, args.checkpointing,
        WORLD if args.fsdp else 1, recipe.mode, args.optimizer_bits, not args.cache_vision)
    needed = sum(parts.values())
    checkpoint = (parts["trainable weights"] + parts["AdamW's two moments"]) * (
        WORLD if args.fsdp else 1)
    named = ", ".join(f"{name} {in_units(size)}" for name, size in parts.items())
    say(f"memory: about {in_units(needed)} ({named}); each checkpoint {in_units(checkpoint)} on "
        "disk, and as much of the machine's memory while it is saved")
    room, where = room_of(device)
    advice = ("--int8, --vision-int8, --checkpointing, a higher --accumulate, --optimizer-bits 8 "
              "or --mode norms take less")
    if where == "this GPU" and needed > 1.1 * room:
        raise ValueError(f"training needs about {needed / 1e9:.1f} GB; {where} has "
                         f"{room / 1e9:.1f} GB; {advice}")
    if needed > 0.9 * room:
        say(f"warning: {where} has {room / 1e9:.1f} GB of memory; {advice}", sys.stderr)
    if RANK == 0:
        present = sum(file.stat().st_size for file in out.glob("checkpoint-*.pt"))
        free = shutil.disk_usage(out).free + present
        if free < 3 * checkpoint:
            raise ValueError(f"{out}: {in_units(free)} are free; a run needs "
                             f"{in_units(3 * checkpoint)}, for two checkpoints and the next one")
