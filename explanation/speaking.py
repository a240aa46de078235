"""Chapters 5 to 8: the language model reads the prompt and answers, one token after another. Each
is a function from a Tour to HTML."""
from html import escape

import numpy as np

import artgpt4
from common.page import bars, heat, heatmap, html_table, paragraph, token_strip
from explanation.figures import lit, percent, section
from explanation.recording import logit_lens

WORDS = 60                                                    # of the answer, shown as pictures
LOOKING_MOST = 15                                             # of them, shown at once
LEAST_SURE = 6                                                # steps that are shown at once


# ---- 5


def prompt_names(tour):
    """What stands at each position of the prompt: a piece of text, or "image 3"."""
    names, image = [], 0
    for token in tour.answer.prompt_ids:
        if token == artgpt4.IMAGE_ID:
            image += 1
            names.append(f"image {image}")
        else:
            names.append(tour.piece(token))
    return names


def prompt(tour):
    tokens = []
    for position, (token, name) in enumerate(zip(tour.answer.prompt_ids, prompt_names(tour),
                                                 strict=True)):
        is_image = token == artgpt4.IMAGE_ID
        about = f"position {position}: " + (name if is_image else f"token {token}, {name}")
        tokens.append((name, str(position), None, about, "image" if is_image else "word"))
    images = sum(token == artgpt4.IMAGE_ID for token in tour.answer.prompt_ids)
    texts = (
        "The prompt is the text that the language model continues. It begins with the same "
        "sentences for every picture, then come the image vectors, the question, and the word "
        "that asks for an answer. The text is cut into tokens; \"▁\" marks a space before one.",
        f"Here are all {len(tokens)} vectors in the order in which the model reads them, each with "
        f"its position below. {images} of them (orange) are the image vectors: they stand where "
        "words stand, and from here on the model treats all vectors alike.",
    )
    task = ("ask something else: <code>"
            + escape(tour.command(flags='--prompt "What is the mood of this painting?"'))
            + "</code>. Which positions change?")
    return section(5, "prompt", "The prompt: words with a picture among them", texts,
                   (artgpt4.ArtGPT4.prompt_ids, artgpt4.ArtGPT4.embed_ids),
                   token_strip(tokens), task)


# ---- 6


def adapter(tour):
    config, answer = tour.model.config, tour.answer
    shares = np.asarray(answer.adapter)
    blocks = [f"block {i}" for i in range(1, len(shares) + 1)]
    fed = prompt_names(tour) + [tour.piece(i) for i in answer.ids[:-1]]
    rows = [(name, float(row.mean()), percent(row.mean()))
            for name, row in zip(blocks, shares, strict=True)]
    answers = [("With the adapters", answer.text), ("The adapters taken out", tour.without)]
    if tour.minigpt4 is not None:
        answers.append(("MiniGPT-4: its own projection and norms, no adapters", tour.minigpt4))
    said = "".join(f'<div class="card"><h3>{escape(name)}</h3>{paragraph(text or "(nothing)")}'
                   "</div>" for name, text in answers)
    figures = (
        "<h3>What the adapter adds, as a share of what it is given: mean over all tokens</h3>"
        + bars(rows)
        + "<h3>The same for each block (row) and each token (column)</h3>"
        + heatmap(shares, blocks, fed, "Share that the adapter adds, by block and token")
        + f"<p>No colour: nothing is added. Full blue: {percent(shares.max())}.</p>"
        + "<h3>The answer, with and without</h3>" + said)
    if config.adapter_width == 0:
        figures = "<p>These weights have no adapters: they are a MiniGPT-4.</p>" + said
    texts = (
        "A block of the language model adds to each token's vector twice: once what the attention "
        "found in earlier tokens, once what the MLP made of it. ArtGPT-4 puts one more step "
        f"between the two, the image adapter: from {config.llama.hidden_size} numbers down to "
        f"{config.adapter_width}, and up again. It is the paper's whole idea. The "
        "matrices of the language model itself never change: what it has to learn about art goes "
        "into the adapters, the projection and some norms.",
        "The share is the length of what the adapter adds, divided by the length of the vector "
        "that it is given. Before any training it is 0, because the last matrix starts at zero.",
    )
    task = ("talk to the model without what the adapters learned: <code>"
            + escape(tour.minigpt4_command("chat.py")) + "</code>.")
    return section(6, "adapter", "The adapter: a small step in every block", texts,
                   (artgpt4.Adapter, artgpt4.LlamaBlock.forward), figures, task)


# ---- 7


def lens_table(tour):
    """What each block would have said: a row for each token of the answer."""
    blocks = tour.answer.hidden.shape[1]
    head = "".join(f'<th scope="col">block {i}</th>' for i in range(1, blocks + 1))
    lines = []
    for number, (token, hidden) in enumerate(zip(tour.answer.ids, tour.answer.hidden,
                                                 strict=True), start=1):
        cells = "".join(
            f'<td style="background:{heat(p)}" title="{percent(p)}">{escape(tour.piece(word))}</td>'
            for word, p in zip(*logit_lens(tour.model, hidden), strict=True))
        lines.append(f'<tr><th scope="row">{number} {escape(tour.piece(token))}</th>{cells}</tr>')
    return (f'<div class="tall" tabindex="0"><table><thead><tr><th scope="col">answer</th>{head}'
            f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>")


def next_word(tour):
    answer = tour.answer
    chosen = [best[0][1] for best in answer.top]
    strip = token_strip([(tour.piece(token), percent(p, 0), p, percent(p), "word")
                         for token, p in zip(answer.ids, chosen, strict=True)])
    parts = []
    for i, best in enumerate(answer.top, start=1):
        rows = [(tour.piece(word), p, percent(p)) for word, p in best]
        heading = f"{i} <b>{escape(tour.piece(best[0][0]))}</b>"
        parts.append(f"<div><p>{heading}</p>{bars(rows, 1.0)}</div>")
    least_sure = sorted(sorted(range(len(chosen)), key=chosen.__getitem__)[:LEAST_SURE])
    figures = (
        "<h3>The answer: each token with its probability</h3>" + strip
        + "<h3>The ten likeliest tokens, where the model was least sure</h3>"
        + f'<div class="words">{"".join(parts[i] for i in least_sure)}</div>'
        + f"<details><summary>The ten likeliest at each of the {len(parts)} steps</summary>"
        + f'<div class="words">{"".join(parts)}</div></details>'
        + "<h3>What each block would have said</h3>" + lens_table(tour))
    texts = (
        "The last token's vector is compared with a vector for each of the "
        f"{tour.model.config.llama.vocab_size:,} tokens of the vocabulary. That gives a score "
        "for each, called a logit, and all scores together become probabilities that add up to "
        "100 %. The likeliest token is taken here; then it is read like all tokens before it, "
        "and so on until the model says that it has ended.",
        "A block only adds to the vector, so one can ask after each block: if this were the last "
        "one, which token would be said? That is the logit lens. Early blocks often have no idea "
        "yet, or think of another word. The bluer a cell, the surer the block would have been.",
    )
    task = ("draw less likely tokens too, and see the answer change: <code>"
            + escape(tour.command("chat.py", "--temperature 1.5"))
            + "</code>.")
    return section(7, "next", "The next word: ten candidates at every step", texts,
                   (artgpt4.ArtGPT4.generate_ids, artgpt4.Llama.logits), figures, task)


# ---- 8


def looking(tour):
    answer, seen = tour.answer, tour.seen
    to_image = answer.attention.mean(dim=1)                   # (N, Q)
    to_patches = seen.looked_at.mean(dim=0).cpu()             # (Q, P)
    words, pictures, amounts = tour.words(), [], []
    for word, tokens in words:
        row = to_image[tokens].float().mean(dim=0)
        amounts.append(row.sum().item())
        values = tour.on_picture(row @ to_patches.float())
        pictures.append(lit(values, f"Where the model looks as it says {word}",
                            f"{word} {percent(amounts[-1])}"))
    most = sorted(sorted(range(len(words)), key=lambda i: -amounts[i])[:LOOKING_MOST])
    image = answer.attention.sum(dim=-1, keepdim=True)
    shares = np.asarray(np.concatenate((image, answer.others), axis=-1).mean(axis=0))
    table = html_table(
        ("", "image vectors", "first token", "other words of the prompt", "answer so far"),
        [(f"block {i}", *(percent(share) for share in row)) for i, row in enumerate(shares, 1)])
    names = [f"image {i}" for i in range(1, to_image.shape[1] + 1)]
    pieces = [tour.piece(token) for token in answer.ids]
    figures = (
        "<h3>The words for which the model looked at the picture most</h3>"
        f'<div class="lits">{"".join(pictures[i] for i in most)}</div>'
        f"<details><summary>The first {min(WORDS, len(words))} of {len(words)} words</summary>"
        f'<div class="lits">{"".join(pictures[:WORDS])}</div></details>'
        "<details><summary>The attention to each image vector (row) for each token (column)"
        "</summary>"
        + heatmap(np.asarray(to_image.float().T), names, pieces,
                  "Attention of the answer's tokens to the image vectors")
        + f"<p>Full blue: {percent(to_image.max(), 2)} of the attention of a token.</p></details>"
        + "<h3>Where the attention goes, by block: mean over the answer</h3>" + table)
    texts = (
        "To find the next token, the newest one looks back at all tokens before it, in every block "
        f"and head. A part of that attention goes to the {len(names)} image vectors. Each of these "
        "was a query that looked at patches (chapter 3). Multiplied, the two say where in the "
        "picture a word comes from.",
        "Under each picture stand the word that was said next and the share of attention that went "
        "to image vectors, as a mean over heads and blocks. Take it as a hint: the patches already "
        "know of each other, and so do the queries. Attention shows where the model looked, not "
        "what it understood. A head that needs nothing often gives much of its attention to the "
        "very first token.",
    )
    task = ("paint a grey box over the brightest place of the picture and run explain.py on it "
            "again. Which words change?")
    return section(8, "looking", "Where the answer looks", texts,
                   (artgpt4.LlamaAttention.forward,), figures, task)
