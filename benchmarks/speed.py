"""Tables of speed: the parts of a model beside the machine's limits and beside other programs, the
rounds of a conversation. And the table of what int8 costs in accuracy."""
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from artgpt4 import preprocess
from benchmarks.models import LanguageModel, in_turns, matrix_weights, seconds
from benchmarks.peers import peers
from common.files import load_tokenizer, open_image
from common.int8 import Int8Linear, quantise, quantise_adapters
from common.loading import load_folder
from common.page import markdown_table
from conversation.beams import beam_search
from conversation.rounds import Conversation, Round
from gallery import words
from gallery.scenes import SEEN_PAIRS
from gallery.score import held_out

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "weights" / "tiny"


def sample_images():
    """The pictures of samples/, PIL images."""
    return [open_image(file) for file in sorted((ROOT / "samples").glob("*.png"))]


# ---- Beside the machine's limits


def limits_table(limits):
    """limits: what machine_limits returns."""
    rows = [["reads memory", f"{limits['read'] / 1e9:.1f} GB/s"],
            ["float32 matrix product", f"{limits['float32'] / 1e9:.0f} Gop/s"],
            ["int8 matrix product, 128 rows", f"{limits['int8'] / 1e9:.0f} Gop/s"],
            ["int8 matrix product, one row, reads",
             f"{limits['int8, one row'] / 1e9:.1f} GB/s"]]
    return markdown_table(["limit of this machine", f"{torch.get_num_threads()} threads"], rows)


def model_table(model, limits, prompt, new, turns):
    """Encode, prefill and decode of an ArtGPT4, and the share of the machine that each uses.

    prompt, new: tokens of prefill and decode.
    """
    size, device = model.config.image_size, model.llama.embed.weight.device
    pixels = torch.randn(1, 3, size, size, device=device)
    with torch.inference_mode():
        encode = 1 / seconds(lambda: model.encode_image(pixels))
    (prefill, decode), = in_turns([LanguageModel(model.llama)], prompt, new, turns).values()

    vision_weights, _ = matrix_weights(model.vit)
    weights, weight_bytes = matrix_weights(model.llama)
    patches = model.vit.pos_embed.shape[1]
    vision_limit = limits["int8" if model.config.vit.int8 else "float32"]
    limit = limits["int8" if model.config.llama.int8 else "float32"]
    rows = [["encode", f"{encode:.2f} images/s",
             f"{2 * vision_weights * patches * encode / vision_limit:.0%} of the matrix product"],
            [f"prefill, {prompt} tokens", f"{prefill:.1f} tokens/s",
             f"{2 * weights * prefill / limit:.0%} of the matrix product"],
            [f"decode, {new} tokens", f"{decode:.2f} tokens/s",
             f"{weight_bytes * decode / limits['read']:.0%} of the read bandwidth"]]
    return markdown_table(["part", "speed", "of the machine's limit"], rows)


# ---- Beside other programs


def peers_table(llama, prompt, new, turns):
    """The language model without its adapters, which the others do not know, in turns with them."""
    for block in llama.blocks:
        block.adapter = nn.Identity()
    with tempfile.TemporaryDirectory() as folder:
        runners = [LanguageModel(llama), *peers(llama.config, folder)]
        speeds = in_turns(runners, prompt, new, turns)
    ours, *_ = speeds.values()
    rows = []
    for runner, theirs in speeds.items():
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        prefill, decode = theirs
        rows.append([runner.name, f"{prefill:.1f}", f"{decode:.2f}",
                     *(f"{ratio:.2f} x" for ratio in ratios)])
    return markdown_table(["language model alone", "prefill, tokens/s", "decode, tokens/s",
                           "ours: prefill", "decode"], rows)


# ---- Beams

@torch.inference_mode()
def beams_table(model, beams, prompt, new):
    """Tokens/s of an answer by beam search, beside the likeliest next token alone."""
    speak_without_tokenizer(model)
    ids = torch.arange(prompt, device=model.llama.embed.weight.device)[None]
    embeds = model.llama.embed(ids % model.config.llama.vocab_size)

    def speed(count):
        start = time.perf_counter()
        beam_search(model, embeds, count, max_new_tokens=1)
        first = time.perf_counter()
        beam_search(model, embeds, count, max_new_tokens=new + 1)
        return new / (time.perf_counter() - first - (first - start))
    speeds = {}
    for count in (1, beams):
        speed(count)                                          # to warm up
        speeds[count] = statistics.median(speed(count) for _ in range(3))
    rows = [[str(count), f"{speed:.2f}", f"{speed / speeds[1]:.2f} x"]
            for count, speed in speeds.items()]
    return markdown_table(["beams", "tokens/s", "of the speed of one"], rows)


# ---- What int8 costs


def relative_error(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


def layer_errors():
    """{way: relative error} of one int8 layer, beside its own int8 matrix, on activations with
    outliers: one column in a thousand at 60 times the rest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 5120, generator=generator)
    x[:, ::1000] *= 60
    matrix = torch.randn(1024, 5120, generator=generator) / 5120 ** 0.5
    weight, scale = quantise(matrix)
    held = weight.float() * scale
    layer = Int8Linear(5120, 1024, bias=False)
    layer.load_state_dict({"weight": weight, "scale": scale[:, 0]})

    def one_digit(x):
        rows, steps = quantise(x)
        return rows.float() * steps @ held.t()
    outliers = x.abs().amax(dim=0) > 6.0                      # LLM.int8(): computed exactly
    rest = x.masked_fill(outliers, 0)
    answers = {"two digits": layer(x),
               "one digit, outlier columns exact (LLM.int8)":
                   one_digit(rest) + (x - rest) @ held.t(),
               "one digit": one_digit(x)}
    return {way: relative_error(found, x @ held.t()) for way, found in answers.items()}


def perplexity(model, scenes):
    """exp of the mean cross-entropy of a token in what the gallery says about scenes."""
    losses = []
    for i, scene in enumerate(scenes):
        ids = model.prompt_ids(words.description(scene, random.Random(i)))
        logits = model.llama(model.llama.embed(torch.tensor([ids[:-1]])))
        losses.append(F.cross_entropy(logits[0], torch.tensor(ids[1:]), reduction="none"))
    return torch.cat(losses).mean().exp().item()


@torch.inference_mode()
def int8_error_table(weights):
    """What int8 costs: in a layer, in the image embeddings, and in the perplexity of texts."""
    rows = [["a layer, one column in a thousand at 60 times the rest", way, f"{error:.2%}"]
            for way, error in layer_errors().items()]
    name = Path(weights).name
    exact = load_folder(weights, dtype=torch.float32)
    in_int8 = load_folder(weights, dtype=torch.float32, int8=True, vision_int8=True)
    pixels = torch.stack([preprocess(image, exact.config.image_size) for image in sample_images()])
    error = relative_error(in_int8.encode_image(pixels), exact.encode_image(pixels))
    rows.append([f"image embeddings of {name}", "ViT in int8", f"{error:.2%}"])
    scenes = held_out(SEEN_PAIRS, 50)
    what = f"perplexity of 50 descriptions, {name}"
    rows.append([what, "float32", f"{perplexity(exact, scenes):.4f}"])
    rows.append([what, "int8", f"{perplexity(in_int8, scenes):.4f}"])
    quantise_adapters(in_int8)
    rows.append([what, "int8, the adapters too", f"{perplexity(in_int8, scenes):.4f}"])
    return markdown_table(["what", "how", "error or value"], rows)


# ---- A conversation


def speak_without_tokenizer(model):
    """Let a model of random weights take part in a conversation: each token it says is an "x"."""
    model.tokenizer = load_tokenizer(TINY / "tokenizer.model", model.config)
    model.decode = lambda ids, whole=False: "x" * len(ids)
    model.has_ended = lambda ids: False


def common_prefix(a, b):
    """The number of ids with which both lists begin."""
    same = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        same += 1
    return same


def first_token(conversation, question):
    """(seconds until the first piece of the answer, the pieces that follow)"""
    start = time.perf_counter()
    pieces = conversation.answer(question)
    next(pieces)
    return time.perf_counter() - start, pieces


def rounds_table(model, rounds):
    """A conversation about one picture: the time to the first token of each round, with the keys
    and values of the earlier rounds in the cache and without.

    Raises ValueError if the context cannot hold so many rounds.
    """
    talk, lines = Conversation(model, temperature=0.0, min_new_tokens=24, max_new_tokens=24), []
    talk.add_image(sample_images()[0])
    for i in range(1, rounds + 1):
        question, earlier = f"What do you see in part {i} of this painting?", talk.rounds
        ids = talk.prompt_ids([*earlier, Round(talk.waiting, question)])
        new = len(ids) - common_prefix(talk.cached, ids)

        uncached = Conversation(model, temperature=0.0)
        uncached.image_embeds = talk.image_embeds
        uncached.rounds, uncached.waiting = earlier, talk.waiting
        without_cache, _ = first_token(uncached, question)
        with_cache, rest = first_token(talk, question)
        list(rest)
        lines.append([str(i), str(len(ids)), str(new), f"{with_cache:.3f} s",
                      f"{without_cache:.3f} s"])
        if talk.dropped:
            raise ValueError(f"--rounds: after {i - 1} rounds the context of {talk.context} tokens "
                             "is full")
    return markdown_table(["round", "prompt, tokens", "of them new", "first token after",
                           "without the cache"], lines)
