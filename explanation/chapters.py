"""The chapters, in the order in which the model works: each a function from a Tour to HTML, and the
code that it is about. A function's docstring is its title."""
import argparse
import difflib
import math
import re
from html import escape

import torch

import artgpt4
from artgpt4 import IMAGE_ID, INSTRUCTIONS, ArtGPT4, Config, instruction_prompt
from common.models import answers, load
from explanation import figures
from explanation.figures import (
    bars, beside, html_table, listing, lit, lits, paragraph, percent, picture_tag, token_strip,
)
from explanation.recording import WITHOUT_ADAPTERS, chances

PARTS = {"vit": "ViT", "ln_vision": "ViT", "qformer": "Q-Former", "proj": "projection",
         "llama": "language model"}
SHOWN = 6                                                     # words, and steps
LARGE = 1e9                                                   # parameters
ROWS = 17                                                     # answers at once


# ---- From pixels to vectors


def patches(tour):
    """Pixels and patches"""
    config, grid, (width, height) = tour.model.config, tour.grid, tour.image.size
    size, patch, low, high = config.image_size, config.patch_size, *tour.pixels.aminmax()
    text = (
        f"The picture, {width} × {height} pixels, becomes {size} × {size}, whatever its shape was. "
        "Each colour is normalised with the mean and the spread that it has in many pictures: "
        f"numbers around 0, here from {low:.2f} to {high:.2f}.\n\n"
        f"The square is cut into patches of {patch} × {patch} pixels. Each becomes a vector, "
        f"{config.vit_width} numbers; one more, the class token, stands for the whole picture. "
        f"{size} / {patch} = {grid} patches along a side: {grid} × {grid} + 1 = {grid ** 2 + 1}.")
    given = (f"<figure>{picture_tag(tour.image, 300, 'The picture as given')}<figcaption>As given"
             "</figcaption></figure>")
    cut = figures.gridded(grid, "The picture in patches", f"As the model sees it: {grid} × {grid}")
    return beside(text, lits((given, cut), "large")), artgpt4.preprocess, artgpt4.ViT


def vit(tour):
    """The vision transformer: where a patch looks"""
    layers, rows = tour.model.config.vit_layers, []
    sought = tour.query_looks.mean(dim=(0, 1))[1:]            # by the queries, in the next chapter
    for name, chosen in (("most", int(sought.argmax())), ("least", int(sought.argmin()))):
        place, pictures = divmod(chosen, tour.grid), []
        for block in sorted({1, (layers + 1) // 2, layers}):
            row = tour.patch_looks[block - 1, 1 + chosen]
            pictures.append(lit(tour.on_picture(row), f"Where the patch in row {place[0]}, column "
                                f"{place[1]} looks in block {block}",
                                f"Block {block}: at most {percent(row[1:].max())}", place))
        rows.append(f"<h3>The patch that the next chapter looks at {name}</h3>"
                    + lits(pictures, "large"))
    text = (
        f"The vision transformer (ViT) is a stack of {layers} blocks. In each, every patch looks "
        "at all patches and takes from each a share of what it has: this is attention, in "
        f"{tour.model.config.vit_heads} heads at once. Then a small network, the MLP, works on "
        "each patch alone. What comes out is added to what went in.\n\n"
        "The picture is bright where the framed patch looks, a mean over the heads. Some blocks "
        "look nearby, others at patches of the same thing.")
    return beside(text, "".join(rows)), artgpt4.Attention, artgpt4.ViTBlock


def qformer(tour):
    """The Q-Former: a few queries read the picture"""
    pictures = [lit(tour.on_picture(row), f"Where query {i} looks", f"{i}: "
                    f"{percent(row[1:].max(), 0)}") for i, row in enumerate(tour.query_looks[-1])]
    text = (
        f"The Q-Former has {len(pictures)} queries: vectors that were learned once and are the "
        "same for every picture, like questions that are always asked. In every other layer they "
        f"look at the {tour.grid ** 2 + 1} vectors of the picture (cross-attention), in every "
        "layer at each other. Shown is where each looks in the last layer with cross-attention, "
        "and the share of the brightest patch; means over the heads.\n\nOne matrix makes of what "
        "looks a vector q, two others make of all that is looked at keys k and values v. A key "
        "that points where q points gives a high product q·k. The softmax makes of all products "
        "shares that add up to 100 %. What is found is the sum of the values, each times its "
        "share.")
    return beside(text, lits(pictures)), artgpt4.QFormerLayer


# ---- The language model


def prompt(tour):
    """The prompt: a picture among words"""
    config = tour.model.config
    tokens = [(f"image {i - tour.slot.start}", str(i), None) if token == IMAGE_ID
              else (tour.piece(token), str(i), 0) for i, token in enumerate(tour.prompt_ids)]
    text = (
        "The language model continues a text. It reads vectors of "
        f"{config.llama_width} numbers, one for each token: a word or a part of one. One matrix, "
        f"the projection, makes of what each query found ({config.qformer_width} numbers) such a "
        "vector. It is the only bridge between the two sides, and all that MiniGPT-4 trains.\n\n"
        f"Here are all {len(tokens)} vectors, each with its position: the same sentences for every "
        "picture, the image vectors (orange), the question, and the word that asks for an answer; "
        "“▁” marks a space. From here on words and image vectors are treated alike.")
    pairs = config.llama_width // config.llama_heads // 2
    turned = (
        "Attention alone does not know the order of words. So each query and key is turned by its "
        f"position. Its {2 * pairs} numbers are {pairs} pairs, each a point in a plane; position p "
        "turns pair i by the angle p · θ<sup>-i/n</sup>, the first pairs fast, the last hardly at "
        "all. The product of two turned vectors depends on how far apart they stand, not on where."
        f" Here n is {pairs}, θ is {config.rope_theta:,.0f}.")
    return (beside(text, token_strip(tokens)) + figures.paragraphs(turned),
            artgpt4.ArtGPT4.encode_image, artgpt4.ArtGPT4.embed_ids, artgpt4.rotate)


def looking(tour):
    """Each token looks back"""
    config, to_image = tour.model.config, torch.stack(tour.looks)
    words = tour.words() or [("(nothing)", [0])]
    rows = torch.stack([to_image[tokens].mean(dim=0) for _, tokens in words])
    more = (rows - rows.mean(dim=0)).clamp(0) @ tour.query_looks.mean(dim=0)   # (words, P)
    long = [i for i, (word, _) in enumerate(words) if len(word) > 4]
    most = sorted(sorted(long, key=lambda i: -rows[i].sum())[:SHOWN])
    pictures = [lit(tour.on_picture(more[i]), f"Where “{words[i][0]}” looks",
                    f"{words[i][0].strip('.,:;')}: {percent(rows[i].sum())}") for i in most]
    text = (
        "To find the next token, the newest one looks back at all tokens before it, in every block "
        "and head. A part of that attention goes to the image vectors, and each of these was a "
        "query that looked at patches. Multiplied, the two say where in the picture a word comes "
        "from.\n\nHere are long words that look at the picture most, each with that part of its "
        "attention, bright where it looks more than the others do. Take it as a hint: attention "
        "shows where the model looked, not what it understood.")
    bytes_kept = 4 * config.llama_layers * config.llama_kv_heads * (
        config.llama_width // config.llama_heads)
    kept = (
        "A token can only look back, so what was computed for those before it stays as it is. "
        "Their keys and values are kept: this is the cache. Each new token is computed alone, and "
        f"looks at what is kept, {short(bytes_kept)}B a token at 2 bytes a number. Without it, "
        f"each would cost as much as the whole prompt, {len(tour.prompt_ids)} tokens.")
    return (beside(text, lits(pictures, "largest")) + figures.paragraphs(kept),
            artgpt4.LlamaAttention, artgpt4.KVCache)


def adapter(tour):
    """The adapter: a small step in every block"""
    model, config, said = tour.model, tour.model.config, {"With the adapters": tour.text}
    if config.adapter_width == 0:
        return "<p>These weights have no adapters: they are a MiniGPT-4.</p>", artgpt4.LlamaBlock
    given = chances(model, tour.embeds, tour.ids)             # (N,), of the answer's tokens
    with WITHOUT_ADAPTERS:
        without = chances(model, tour.embeds, tour.ids)
        said["The adapters taken out"], = answers(model, tour.embeds, tour.room, temperature=0)
    file = tour.args.weights / "minigpt4.safetensors"
    if file.is_file():                                        # loaded as a second model
        model = load(argparse.Namespace(**vars(tour.args) | {"adapter": file}))
        embeds = model.embed_ids(tour.prompt_ids, model.encode_image(tour.pixels[None]))
        said["MiniGPT-4: a projection of its own, no adapters"], = answers(
            model, embeds, tour.room, temperature=0)
    cards = "".join(f'<div class="card"><h3>{name}</h3>{paragraph(text or "(nothing)")}</div>'
                    for name, text in said.items())
    owed = (without / given.clamp(1e-30)).clamp(1e-30, 1)
    strip = [(tour.piece(token), f"{100 * a:.0f} → {100 * b:.0f}" if b < 0.9 * a else "·",
              1 - share) for token, a, b, share in zip(
                  tour.ids, given, without, owed.tolist(), strict=True)]
    text = (
        "Between attention and MLP ArtGPT-4 puts a step in every block, the image adapter: from "
        f"{config.llama_width} numbers down to {config.adapter_width}, and up again. It is the "
        "paper's idea: the matrices of the language model never change, and what it has to learn "
        "about art goes into the adapters, the projection and some norms.\n\n"
        "Below a token stands how likely it was, in percent, and how likely it would be without "
        "the adapters, where that is less; the bluer, the more it owes to them. "
        f"{int((owed < 0.5).sum())} of {len(owed)} tokens would be less than half as likely.")
    return (beside(text, token_strip(strip)) + f'<div class="side">{cards}</div>', artgpt4.Adapter,
            artgpt4.LlamaBlock)


def next_word(tour):
    """The next token: candidates at every step"""
    chosen = [best[0][1] for best in tour.top]
    strip = token_strip([(tour.piece(token), percent(p, 0), p)
                         for token, p in zip(tour.ids, chosen, strict=True)])
    steps = []
    for i in sorted(sorted(range(len(chosen)), key=chosen.__getitem__)[:SHOWN]):
        steps.append(f"<div>{bars([(tour.piece(word), p) for word, p in tour.top[i]])}</div>")
    text = (
        f"The last vector is compared with one for each of the {tour.model.config.vocab_size:,} "
        "tokens of the vocabulary. That gives each a score, and all scores together become "
        "probabilities. Here the likeliest token is taken, then read like all before it, and so on "
        "until the answer has ended. Below are the candidates where the model was least sure.")
    return (beside(text, strip) + lits(steps, "large"),
            artgpt4.ArtGPT4.generate, artgpt4.sample)


def changed(text, before):
    """The sentences of a text as HTML that are not all in the text before; what is new is marked,
    and "…" stands for the others. Nothing if no word is new."""
    words, parts = text.split(), [""]
    matcher = difflib.SequenceMatcher(None, before.split(), words, False)
    for kind, _, _, start, end in matcher.get_opcodes():
        for word in words[start:end]:
            parts[-1] += f"{escape(word)} " if kind == "equal" else f"<mark>{escape(word)}</mark> "
            if word.endswith((".", "!", "?")):
                parts.append("")
    told = "".join(part if "<mark>" in part else "… " for part in parts if part)
    return re.sub("(… )+", "… ", told) if "<mark>" in told else ""


def surgery(tour):
    """Surgery: what each image vector says"""
    text = (
        "What does an image vector say? Take another picture (the last one below), put one of "
        "its vectors in the place of ours, and ask again. What changes in the answer is marked; … "
        "stands for sentences that stay. That is what this vector says for these two pictures: an "
        "observation, not a law.\n\nBeside each answer is where the query of that number looks in "
        "our picture.")
    if not tour.args.surgery and counts(tour.model.config)["together"][0] > LARGE:
        return beside(text, "Not computed for a model of this size: it takes minutes. The flag "
                      "--surgery asks for it."), artgpt4.ArtGPT4.embed_ids
    each = torch.arange(tour.model.config.queries)
    embeds = tour.embeds.repeat(len(each) + 1, 1, 1)          # (Q + 1, T, D): a row for each case
    vectors = embeds[:, tour.slot]                            # (Q + 1, Q, D), a view
    vectors[each, each] = vectors[-1] = tour.other_embeds[0]
    *single, every = (changed(answer, tour.text) for part in embeds.split(ROWS)
                      for answer in answers(tour.model, part, tour.room, temperature=0))
    cases = [(f"vector {i}", lit(tour.on_picture(row), f"Where query {i} looks"), answer)
             for i, (row, answer) in enumerate(zip(tour.query_looks[-1], single, strict=True))]
    cases.append(("all vectors", picture_tag(tour.other, 180, "The other picture"), every))
    parts = "".join(f'<div class="case">{picture}<p><b>{name}:</b> {answer or "no new word"}</p>'
                    "</div>" for name, picture, answer in cases)
    return f'{figures.paragraphs(text)}<div class="cases">{parts}</div>', artgpt4.ArtGPT4.embed_ids


# ---- Training and costs


def loss(tour):
    """The loss: how surprised the model is"""
    model, config, figure = tour.model, tour.model.config, ""
    asked = instruction_prompt(INSTRUCTIONS[0], config.prompt)
    ids = model.tokenizer.encode(tour.text.split(".")[0].strip() or "a picture")
    for name, image_embeds in (("This picture", tour.image_embeds),
                               ("The other picture", tour.other_embeds)):
        found = chances(model, model.embed_prompt(asked, image_embeds), ids).clamp(1e-30)
        values = (-found.log()).tolist()                      # the cross-entropy of each token
        figure += f"<h3>{name}: {sum(values) / len(values):.4f}, the mean</h3>" + token_strip(
            [(tour.piece(token), f"{value:.2f}", value / 4.6)
             for token, value in zip(ids, values, strict=True)])
    parameters, trainable, _ = counts(config)["together"]
    text = (
        "In training the model is shown a picture and a text, and asked at each token how likely "
        "it found it. The loss is minus the natural logarithm of that probability: 0 for a token "
        "that was certain, 4.6 for a chance of 1 % (full blue); a guess among all would get "
        f"{math.log(config.vocab_size):.2f}.\n\nHere is the first sentence of the answer, before "
        "this picture and before another one: what turns blue is what only the picture tells. A "
        f"step of training moves {trainable:,} parameters ({percent(trainable / parameters)}) a "
        "little, so that the loss falls; the others are frozen.")
    return beside(text, figure), artgpt4.ArtGPT4.forward, artgpt4.ArtGPT4.freeze


def short(number):
    """12,345,678 as "12.3 M"."""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}\N{NO-BREAK SPACE}{name}"
    return f"{number:.0f} "


def counts(config):
    """{part: [parameters, trainable ones, bytes: 4 of a trainable one, 2 of another]}."""
    with torch.device("meta"):                                # names and shapes, no memory
        model = ArtGPT4(config, None)
    trainable, parts = set(model.trainable_names()), {}
    for name, parameter in model.named_parameters():
        part = "adapters" if ".adapter." in name else PARTS[name.partition(".")[0]]
        n, trained = parameter.numel(), name in trainable
        added = n, n * trained, n * (4 if trained else 2)
        parts[part] = [a + b for a, b in zip(parts.get(part, [0] * 3), added, strict=True)]
    return parts | {"together": [sum(column) for column in zip(*parts.values(), strict=True)]}


def costs(tour):
    """The costs: parameters and bytes"""
    tables = ""
    for name, config in (("This model", tour.model.config), ("The paper's, of 13B", Config())):
        rows = [(part, *map(short, row)) for part, row in counts(config).items()]
        tables += f"<h3>{name}</h3>" + html_table(("", "parameters", "trainable", "bytes"), rows)
    text = (
        "Almost everything above is a matrix times vectors, and each number of a matrix is "
        f"multiplied once for each vector that passes: {tour.grid ** 2 + 1} in the ViT, "
        f"{tour.model.config.queries} in the Q-Former and the projection, {len(tour.prompt_ids)} "
        "in the language model to read the prompt, and one for each further token. Attention "
        "itself adds a few percent.\n\nBytes: 2 for a frozen number (with --int8 1), 4 for a "
        "trainable one; k, M, G are thousands, millions, billions. For one more token almost all "
        "bytes of the language model are read: the speed of memory limits that of the answer.")
    return beside(text, tables), artgpt4.Config


def chapters(tour):
    """(links to the chapters, the chapters), HTML."""
    links, parts = "", ""
    for number, chapter in enumerate((patches, vit, qformer, prompt, looking, adapter, next_word,
                                      surgery, loss, costs), start=1):
        name, title = chapter.__name__, f"{number}. {chapter.__doc__}"
        figure, *code = chapter(tour)
        links += f'<a href="#{name}">{title.partition(":")[0]}</a>'
        parts += (f'<section id="{name}"><h2>{title}</h2>\n{figure}{"".join(map(listing, code))}'
                  "</section>\n")
    return f"<nav>{links}</nav>", parts
