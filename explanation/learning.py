"""Chapters 9 and 10: how the model learns from a caption, and what everything costs. Each is a
function from a Tour to HTML."""
import math
from html import escape

import artgpt4
from common.page import bars, html_table, token_strip
from explanation.costs import Cost, cache_bytes, costs
from explanation.figures import percent, section

SURPRISE = 4.6                                                # cross-entropy of the full colour
KINDS = {"projection": "proj.", "adapters": ".adapter.", "norms before the MLP": ".mlp_norm.",
         "norms before the attention": ".attn_norm."}


# ---- 9


def trainable_rows(model):
    """[(kind of parameter, count in ArtGPT-4, count in MiniGPT-4)], the sum last."""
    def count(mode, mark):
        names = model.trainable_names(mode)
        return sum(model.get_parameter(name).numel() for name in names if mark in name)

    rows = [(kind, count("artgpt4", mark), count("minigpt4", mark)) for kind, mark in KINDS.items()]
    _, ours, theirs = zip(*rows, strict=True)
    return [*rows, ("together", sum(ours), sum(theirs))]


def gradient_norms(gradients):
    """{name of a tensor: norm} -> {"projection", "block 1", ...: {kind: norm}}, the norm of all
    tensors of a kind as if they were one vector."""
    squares = {}
    for name, norm in gradients.items():
        place = "projection"
        if name.startswith("llama.blocks."):
            place = f"block {int(name.split('.')[2]) + 1}"
        kind = next(kind for kind, mark in KINDS.items() if mark in name)
        kinds = squares.setdefault(place, {})
        kinds[kind] = kinds.get(kind, 0.0) + norm ** 2

    def order(place):
        return 0 if place == "projection" else int(place.split()[1])
    return {place: {kind: math.sqrt(square) for kind, square in squares[place].items()}
            for place in sorted(squares, key=order)}


def loss(tour):
    model, lesson = tour.model, tour.lesson
    mean = sum(lesson.losses) / len(lesson.losses)
    guess = math.log(model.config.llama.vocab_size)
    tokens = []
    for token, value in zip(lesson.ids, lesson.losses, strict=True):
        about = f"cross-entropy {value:.4f}: probability {percent(math.exp(-value), 2)}"
        piece = tour.piece(token).replace("\n", "↵")
        tokens.append((piece, f"{value:.2f}", value / SURPRISE, about, "word"))
    total = sum(p.numel() for p in model.parameters())
    rows = [(kind, f"{ours:,} ({percent(ours / total, 3)})", f"{theirs:,} "
             f"({percent(theirs / total, 3)})") for kind, ours, theirs in trainable_rows(model)]
    norms = gradient_norms(lesson.gradients)
    lines = []
    for place, kinds in norms.items():
        whole = math.sqrt(sum(norm ** 2 for norm in kinds.values()))
        lines.append((place, whole, f"{whole:#.3g}"))
    detail = html_table(("", *KINDS), [
        (place, *(f"{kinds[kind]:#.3g}" if kind in kinds else "–" for kind in KINDS))
        for place, kinds in norms.items()])
    figures = (
        f"<p>The caption: “{escape(tour.caption)}”</p>" + token_strip(tokens)
        + f"<p>The loss is the mean: <b>{mean:.4f}</b>. A model that only guesses among all "
        f"{model.config.llama.vocab_size:,} tokens gets {guess:.2f}.</p>"
        + "<h3>Trainable parameters, the same in stage 1 and stage 2</h3>"
        + html_table(("", "ArtGPT-4", "MiniGPT-4"), rows)
        + f"<p>In brackets: the share of all {total:,} parameters.</p>"
        + "<h3>How strongly this one picture pulls: the norm of the gradient</h3>"
        + bars(lines)
        + f"<details><summary>By kind of parameter</summary>{detail}</details>")
    texts = (
        "In training the model is shown a picture and a caption, and at each token it is asked how "
        "likely it found that token. Its penalty is the cross-entropy: minus the natural "
        "logarithm of the probability. It is 0 for a token that was certain, 0.69 for one chance "
        "in two, 4.6 for one in a hundred. The deeper the blue, the greater the surprise.",
        "Stage 1 shows pictures with short captions, stage 2 a question and a long answer. Both "
        "train the same few parameters, and all others are frozen. The gradient says for each "
        "trainable number in which direction, and how strongly, it should move so that the loss "
        "falls; its norm is its length.",
    )
    task = ("tell the model something wrong, and see which tokens surprise it: <code>"
            + escape(tour.command(flags='--caption "a woodcut of a castle under a rainbow"'))
            + "</code>.")
    return section(9, "loss", "The loss: how surprised the model is, and what it learns", texts,
                   (artgpt4.ArtGPT4.forward, artgpt4.ArtGPT4.trainable_modules), figures, task)


# ---- 10


def short(number, unit=""):
    """12,345,678 as "12.3 M"."""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}{unit}"
    return f"{number:.0f} {unit}".strip()


def cost_tables(config, tokens):
    """HTML of a model's costs: what is stored, what is computed, and the share of each part."""
    parts = costs(config, tokens)
    together = Cost(*(sum(values) for values in zip(*parts.values(), strict=True)))
    stored, computed = [], []
    for part, cost in [*parts.items(), ("together", together)]:
        stored.append((part, short(cost.parameters), short(cost.trainable), short(cost.size, "B"),
                       short(cost.size_int8, "B")))
        computed.append((part, short(cost.multiplications), short(cost.for_a_word)))
    shares = [(part, cost.multiplications, percent(cost.multiplications / together.multiplications))
              for part, cost in parts.items()]
    return (html_table(("", "parameters", "trainable", "bytes", "with int8"), stored)
            + html_table(("multiplications", "for picture and prompt", "for one more word"),
                         computed)
            + "<p>Multiplications for picture and prompt, by part:</p>" + bars(shares))


def bill(tour):
    config, largest = tour.model.config, artgpt4.Config()
    tokens = len(tour.answer.prompt_ids)
    of_largest = tokens - config.qformer.queries + largest.qformer.queries
    cache = cache_bytes(config), cache_bytes(largest)
    figures = (
        f"<h3>This model, for this prompt of {tokens} tokens</h3>"
        + cost_tables(config, tokens)
        + f"<h3>The 13B model of the paper, for the same words: {of_largest} tokens</h3>"
        + cost_tables(largest, of_largest)
        + f"<p>The keys and values of each token are kept too, so that it need not be read again: "
        f"{short(cache[0], 'B')} per token in this model, {short(cache[1], 'B')} in the 13B.</p>")
    texts = (
        "Everything above is multiplication and addition. These tables count the multiplications "
        "of each part, by running the model on shapes alone, without any numbers. A picture and "
        "its prompt are read once, all tokens together (of them the last block computes the last "
        "one alone, since only that is needed); each further word costs one run of the language "
        "model for one token.",
        "Bytes are those of the parameters: 2 for a frozen number, 4 for a trainable one. With "
        "int8 the matrices of the language model take 1 byte a number. To say one word, almost "
        "every byte of the language model must be read from memory, so the speed of memory limits "
        "the speed of the answer. k, M, G and T are thousands, millions, billions and trillions.",
    )
    task = ("measure how near a machine comes to its limits: <code>python bench.py --shape 1b "
            "--int8</code>. Or change a number in the configuration and count again.")
    return section(10, "costs", "The costs: parameters, multiplications, bytes", texts,
                   (artgpt4.LlamaConfig, artgpt4.LlamaMLP), figures, task)
