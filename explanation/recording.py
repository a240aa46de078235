"""What is kept of a run of the model, by hooks on its modules. The model itself is not changed.

Only what the page shows is kept: of attention the row of the newest token, of a stream of vectors
the last one. So a large model needs little more memory than for its answer.

Shapes: N answer tokens, T prompt tokens, L blocks, Q queries, P patches + 1, D width, V vocabulary.
"""
import contextlib
from typing import NamedTuple

import torch

from artgpt4 import KVCache, preprocess
from explanation.attention import last_token_weights, qformer_weights

TOP = 10                                                      # likely tokens that are shown


@contextlib.contextmanager
def hooked(*pairs):
    """Forward hooks while the block runs. pairs: (module, function (module, inputs, output))."""
    handles = [module.register_forward_hook(function) for module, function in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Seen(NamedTuple):
    """What the vision side made of a picture."""
    pixels: torch.Tensor          # (1, 3, S, S), normalised
    patches: dict                 # number of a ViT block: what it gives, (P, width of the ViT)
    looked_at: torch.Tensor       # (cross-attention layers, Q, P), the mean over the heads
    queries: torch.Tensor         # (Q, width of the Q-Former)
    image_embeds: torch.Tensor    # (1, Q, D)


@torch.inference_mode()
def see(model, image):
    """Encode a PIL image -> Seen."""
    blocks = model.vit.blocks
    patches, looked_at, queries = {}, [], []

    def keep_patches(number):
        def keep(module, inputs, output):
            patches[number] = output[0].float()
        return blocks[number - 1], keep

    def keep_attention(module, inputs, output):
        looked_at.append(qformer_weights(module, *inputs)[0].mean(dim=0))

    def keep_queries(module, inputs, output):
        queries.append(output[0].float())

    numbers = sorted({1, (len(blocks) + 1) // 2, len(blocks)})
    cross = [layer.cross_attn for layer in model.qformer.layers if layer.cross_attn is not None]
    pixels = preprocess(image, model.config.image_size)[None]
    with hooked(*map(keep_patches, numbers), *((layer, keep_attention) for layer in cross),
                (model.qformer, keep_queries)):
        image_embeds = model.encode_image(pixels)
    return Seen(pixels, patches, torch.stack(looked_at), queries[0], image_embeds)


class Answer(NamedTuple):
    """An answer at temperature 0, and what happened while it was made."""
    prompt_ids: list
    ids: list                     # the N tokens of the answer
    text: str
    top: list                     # for each token the TOP likeliest: [(id, probability)]
    hidden: torch.Tensor          # (N, L, D): what each block gave for the token before
    attention: torch.Tensor       # (N, L, Q): from the token before to the image vectors
    others: torch.Tensor          # (N, L, 3): to the first token, other prompt, answer so far
    adapter: torch.Tensor         # (L, T + N - 1): what the adapter adds / what it was given


@torch.inference_mode()
def answer(model, prompt, image_embeds, max_new_tokens):
    """Answer a prompt with one image -> Answer. Raises ValueError if it has no room for that."""
    prompt_ids = model.prompt_ids(prompt)
    room = model.config.llama.max_position_embeddings
    if len(prompt_ids) + max_new_tokens > room:
        raise ValueError(f"the prompt has {len(prompt_ids)} tokens; with an answer of "
                         f"{max_new_tokens} that is more than the model's {room}; "
                         "give a shorter --prompt or --max-new-tokens")
    blocks = model.llama.blocks
    is_image = torch.tensor(prompt_ids) < 0
    top, hidden, attention, others = [], [], [], []
    adapter = [[] for _ in blocks]
    qkv = {}

    def keep_likeliest(logits, chosen):
        best = logits[0].softmax(dim=-1).topk(TOP)
        top.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        return logits

    def keep_qkv(module, inputs, output):
        qkv["now"] = output

    def keep_attention(module, inputs, output):
        _, cos, sin, _, cache = inputs
        row = last_token_weights(module, qkv["now"], cos, sin, cache)[0].mean(dim=0).cpu()
        of_prompt = row[:len(prompt_ids)]
        first, image = of_prompt[0], of_prompt[is_image]
        words = of_prompt.sum() - first - image.sum()
        attention.append(image)
        others.append(torch.stack((first, words, row[len(prompt_ids):].sum())))

    def keep_hidden(module, inputs, output):
        hidden.append(output[0, -1].cpu())

    def keep_adapter(number):
        def keep(module, inputs, output):
            before, after = inputs[0][0].float(), output[0].float()
            share = (after - before).norm(dim=-1) / before.norm(dim=-1)
            adapter[number].append(share.nan_to_num(0, 0).cpu())      # a share of nothing
        return blocks[number].adapter, keep

    ids = []
    embeds, cache = model.embed_prompt(prompt, image_embeds), KVCache()
    with hooked(*map(keep_adapter, range(len(blocks)))):
        model.llama.hidden(embeds[:, :-1], cache)             # generate's last block skips those
        with hooked(*((block.attn.qkv, keep_qkv) for block in blocks),
                    *((block.attn, keep_attention) for block in blocks),
                    *((block, keep_hidden) for block in blocks)):
            text = "".join(model.generate(embeds[:, -1:], max_new_tokens, ids, cache=cache,
                                          temperature=0, adjust=keep_likeliest))
    by_token = len(ids), len(blocks), -1
    return Answer(
        prompt_ids, ids, text.strip(), top,
        torch.stack(hidden).view(by_token),
        torch.stack(attention).view(by_token),
        torch.stack(others).view(by_token),
        torch.stack([torch.cat(parts) for parts in adapter]))


@torch.inference_mode()
def plain_answer(model, prompt, image_embeds, max_new_tokens, adapters=True):
    """The text of an answer at temperature 0. adapters=False: each gives back what it is given."""
    def pass_on(module, inputs, output):
        return inputs[0]

    skipped = [] if adapters else [(block.adapter, pass_on) for block in model.llama.blocks]
    with hooked(*skipped):
        embeds = model.embed_prompt(prompt, image_embeds)
        return "".join(model.generate(embeds, max_new_tokens, temperature=0)).strip()


@torch.inference_mode()
def logit_lens(model, hidden):
    """The word that each block would have said: hidden (L, D) of one token, as blocks gave it ->
    (ids (L,), probabilities (L,)). The last is what the model says."""
    device = model.llama.embed.weight.device
    logits = model.llama.logits(model.llama.norm(hidden.to(device)))
    best = logits.softmax(dim=-1).max(dim=-1)
    return best.indices.tolist(), best.values.tolist()


class Lesson(NamedTuple):
    """What training would learn from one caption."""
    ids: list                     # its tokens, with the end of line
    losses: list                  # the cross-entropy of each
    gradients: dict               # name of a trainable tensor: the norm of its gradient


def teach(model, pixels, caption):
    """The loss of stage 1 on a caption, and its gradients, of which only the norms are kept."""
    ids = model.tokenizer.encode(caption + "\n")
    names = {id(p): name for name, p in model.named_parameters()}
    gradients, handles = {}, []

    def keep_norm(parameter):
        gradients[names[id(parameter)]] = parameter.grad.norm().item()
        parameter.grad = None

    for parameter in model.freeze():
        handles.append(parameter.register_post_accumulate_grad_hook(keep_norm))
    losses = model(pixels, [caption], max_text_tokens=len(ids))
    losses.mean().backward()
    for handle in handles:
        handle.remove()
    model.requires_grad_(False)
    return Lesson(ids, losses.tolist(), gradients)
