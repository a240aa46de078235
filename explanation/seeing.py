"""Chapters 1 to 4: from the picture to vectors that the language model can read. Each is a function
from a Tour to HTML."""
from html import escape

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import artgpt4
from common.page import heatmap, html_table
from explanation.figures import (
    gridded, lit, own_picture, percent, scatter, section, two_directions)

MAP_WORDS = 1200                                              # at most, on the map of vectors


# ---- 1


def patches(tour):
    config, grid = tour.model.config, tour.grid
    size, patch = config.image_size, config.vit.patch_size
    pixels = tour.seen.pixels[0]
    low, high = pixels.min().item(), pixels.max().item()
    shown = ((pixels - low) / (high - low + 1e-30) * 255).byte().permute(1, 2, 0).numpy()
    original = tour.image.copy()
    original.thumbnail((336, 336))
    square = Image.new("RGB", (max(original.size),) * 2, "#808890")
    square.paste(original, ((square.width - original.width) // 2,
                            (square.height - original.height) // 2))
    figures = '<div class="lits few">' + "".join((
        own_picture(square, square.width, "The picture as it was given",
                    f"As given: {tour.image.width} × {tour.image.height} pixels"),
        gridded(grid, f"The picture, resized, with a grid of {grid} by {grid} patches",
                f"Resized to {size} × {size}, and cut: {grid} × {grid} patches"),
        own_picture(Image.fromarray(shown), 336, "The normalised numbers, shown as a picture",
                    f"Normalised: numbers from {low:.2f} (black) to {high:.2f} (white)"),
    )) + "</div>"
    rows = [(name, f"{mean:.3f}", f"{std:.3f}", f"{channel.mean():.2f}", f"{channel.std():.2f}")
            for name, mean, std, channel in zip(("red", "green", "blue"), artgpt4.PIXEL_MEAN,
                                                artgpt4.PIXEL_STD, pixels, strict=True)]
    table = html_table(("colour", "subtract", "divide by", "mean of this picture", "spread of it"),
                       rows)
    arithmetic = (f"{size} / {patch} = {grid} patches along a side;  {grid} × {grid} = "
                  f"{grid * grid} patches;  and one more vector makes P = {grid * grid} + 1 = "
                  f"{grid * grid + 1}.")
    texts = (
        f"The model reads pictures of one size only. So the picture is resized to {size} × {size} "
        "pixels, whatever its shape was. Each colour is then normalised: its average over many "
        "pictures is subtracted, and the rest is divided by its usual spread. That leaves numbers "
        "around 0.",
        f"The square is cut into patches of {patch} × {patch} pixels. Each patch becomes a vector: "
        f"a list of {config.vit.width} numbers. One more vector, the class token, stands for the "
        f"picture as a whole; no pixel goes into it at first. {arithmetic}",
    )
    task = (f"give it a photo that is much wider than high: <code>{escape('python explain.py')} "
            "your-photo.jpg</code>. What does the resizing do to it?")
    return section(1, "patches", "Pixels and patches", texts,
                   (artgpt4.preprocess, artgpt4.ViT.forward), figures + table, task)


# ---- 2


def likeness(vectors, chosen):
    """Vectors (P, D) -> the cosine of each with the chosen one, (P,): 1 is the same direction."""
    return F.cosine_similarity(vectors, vectors[chosen:chosen + 1], dim=-1)


def likeness_row(tour, patch):
    """The picture once for each recorded block, lit where patches are like one patch."""
    row, column = patch
    chosen = 1 + row * tour.grid + column                     # 0 is the class token
    parts = []
    for block, vectors in tour.seen.patches.items():
        values = tour.on_picture(likeness(vectors, chosen))
        text = (f"Block {block}: how alike the patches are to the one in row {row}, column "
                f"{column}, from {values.min():.2f} to {values.max():.2f}")
        parts.append(lit(values, text, f"Block {block}: from {values.min():.2f} (dark) to "
                         f"{values.max():.2f} (bright)", patch))
    return f'<div class="lits few">{"".join(parts)}</div>'


def vit(tour):
    layers, heads = tour.model.config.vit.layers, tour.model.config.vit.heads
    row, column = tour.patch
    last = tour.grid - 1
    others = [(0, 0), (tour.grid // 4, tour.grid // 2), (last, last)]
    more = "".join(f"<p>Row {a}, column {b}:</p>{likeness_row(tour, (a, b))}" for a, b in others)
    figures = (likeness_row(tour, tour.patch)
               + f"<details><summary>Three other patches</summary>{more}</details>")
    texts = (
        f"The vision transformer (ViT) is a stack of {layers} equal blocks. In a block every patch "
        "first looks at all patches and takes from them what it needs. This is called attention; "
        f"it happens in {heads} heads at once, and each may look for something else. Then a small "
        "network, the MLP, works on each patch by itself. What comes out is added to what went in.",
        "In the figure the picture is bright where a patch's vector points in the same direction "
        f"as that of the framed patch (row {row}, column {column}; both count from 0). The numbers "
        "are cosines: 1 means the same direction, 0 nothing in common. Early blocks tend to find "
        "patches of the same colour, late ones patches of the same thing. See whether that is so "
        "here.",
    )
    task = (f"choose another patch: <code>{escape(tour.command(flags='--patch 0,0'))}</code>.")
    return section(2, "vit", "The vision transformer: patches find each other", texts,
                   (artgpt4.ViTAttention.forward, artgpt4.ViTBlock.forward), figures, task)


# ---- 3


def effective_patches(row):
    """Over how many patches weights are spread: 1 if all lies on one; the number of patches if it
    is the same everywhere (exp of the entropy)."""
    share = row / row.sum()
    return torch.exp(-(share * share.clamp(min=1e-30).log()).sum()).item()


def common_part(vectors):
    """Vectors (N, D) -> how much they share: the length of their mean over their mean length. 1 if
    they are all the same, about 1 / sqrt(N) if they have nothing in common."""
    return (vectors.mean(dim=0).norm() / vectors.norm(dim=-1).mean()).item()


def qformer(tour):
    config, seen = tour.model.config, tour.seen
    maps, rows = [], []
    for layer, weights in enumerate(seen.looked_at):
        number = layer * config.qformer.cross_every + 1
        parts = []
        for query, row in enumerate(weights, start=1):
            values = tour.on_picture(row)
            text = (f"Layer {number}, query {query}: its attention over the picture, at most "
                    f"{percent(values.max())} on a patch")
            parts.append(lit(values, text, f"query {query}, {percent(values.max(), 0)}"))
        inside = f'<div class="lits">{"".join(parts)}</div>'
        is_last = layer == len(seen.looked_at) - 1
        opened = " open" if is_last else ""
        maps.append(f"<details{opened}><summary>Layer {number} of {config.qformer.layers}"
                    f"</summary>{inside}</details>")
    for query, row in enumerate(seen.looked_at[-1], start=1):
        best = int(row[1:].argmax())
        rows.append((f"query {query}", f"row {best // tour.grid}, column {best % tour.grid}",
                     percent(row[1 + best]), f"{effective_patches(row[1:]):.1f}",
                     percent(row[0])))
    table = html_table(("", "brightest patch", "its share", "spread over patches", "class token"),
                       rows)
    alike = F.normalize(seen.queries, dim=-1)
    alike = np.asarray((alike @ alike.T).clamp(min=0).cpu())
    names = [str(i) for i in range(1, len(alike) + 1)]
    shared = common_part(seen.queries)
    figures = (
        "".join(maps)
        + "<h3>What the queries bring back, compared</h3>"
        + heatmap(alike, names, names, "How alike the vectors of the queries are", high=1.0)
        + f"<p>Dark blue: two queries bring back the same. The mean of all their vectors is "
        f"{shared:.3f} times as long as one of them. With 1 they would all be the same, with about "
        f"{len(alike) ** -0.5:.2f} they would have nothing in common.</p>"
        + f"<details><summary>Each query in numbers</summary>{table}</details>")
    count, patches_count = config.qformer.queries, tour.grid ** 2 + 1
    texts = (
        f"{patches_count} vectors are more than the language model needs. The Q-Former has "
        f"{count} queries: vectors that were learned once and are the same for every picture, "
        "like questions that are always asked. In some of its layers each query looks at the "
        "patches (cross-attention) and takes what answers its question; in every layer the "
        "queries look at each other.",
        "Each small picture shows where one query looks: bright patches get most of its "
        "attention. The number is the share of the brightest patch. Values are means over the "
        "heads; the attention of a query, to the class token too, adds up to 100 %.",
    )
    task = ("run it on another picture of <code>samples/</code> and find a query that looks at the "
            "same kind of thing in both: <code>python explain.py samples/lighthouse.png</code>.")
    return section(3, "qformer", "The Q-Former: a few queries read the picture", texts,
                   (artgpt4.QFormerAttention.forward, artgpt4.QFormer.forward), figures, task)


# ---- 4


@torch.inference_mode()
def nearest_words(model, vectors, count=3):
    """Vectors (N, D) -> ids and cosines, both (N, count), of the word vectors that point most
    nearly where they do. The embedding is read in parts."""
    embedding, size = model.llama.embed.weight, 4096
    words = model.tokenizer.get_piece_size()
    directions = F.normalize(vectors.float(), dim=-1)
    found = []
    for start in range(0, words, size):
        part = F.normalize(embedding[start:min(start + size, words)].float(), dim=-1)
        best = (directions @ part.T).topk(min(count, len(part)))
        found.append((best.indices + start, best.values))
    ids, cosines = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    best = cosines.topk(count)
    return ids.gather(1, best.indices).cpu(), best.values.cpu()


def projection(tour):
    model = tour.model
    embedding, images = model.llama.embed.weight, tour.seen.image_embeds[0]
    ids, cosines = nearest_words(model, images)
    near = sorted(set(ids.flatten().tolist()))
    words = model.tokenizer.get_piece_size()
    others = sorted(set(range(0, words, -(-words // MAP_WORDS))) - set(near))
    with torch.inference_mode():
        sample = embedding[torch.tensor(others + near, device=embedding.device)].float()
        vectors = F.normalize(torch.cat((sample, images.float())), dim=-1).cpu().numpy()
        word_length = sample.norm(dim=-1).mean().item()
    image_length = images.float().norm(dim=-1).mean().item()
    points, shown = two_directions(vectors)
    kinds = ["word"] * len(others) + ["near"] * len(near) + ["image"] * len(images)
    names = [None] * len(others) + [tour.piece(i) for i in near] + [
        str(i) for i in range(1, len(images) + 1)]
    title = (f"Map of {len(others) + len(near)} word vectors and {len(images)} image vectors in "
             "two dimensions")
    rows = [(f"image vector {i}", ", ".join(f"{tour.piece(word)} ({cosine:.2f})" for word, cosine
                                            in zip(row.tolist(), values.tolist(), strict=True)))
            for i, (row, values) in enumerate(zip(ids, cosines, strict=True), start=1)]
    figures = (
        scatter(points, kinds, names, title)
        + f"<p>Grey: words. Blue: the words nearest to the image vectors. Orange: the {len(images)}"
        f" image vectors. These two directions show {percent(shown, 0)} of how the vectors differ. "
        f"An image vector is {image_length:.1f} long, a word vector {word_length:.1f}.</p>"
        + "<details><summary>The nearest words of each image vector</summary>"
        + html_table(("", "nearest words, with the cosine"), rows) + "</details>")
    width = model.config.llama.hidden_size
    texts = (
        f"The language model reads vectors of {width} numbers, one for each token; a token is a "
        "word or a part of one, and its vector is called its embedding. One matrix, the "
        f"projection, turns what each query brought back ({model.config.qformer.width} numbers) "
        "into a vector of that width. It is the only bridge between the two sides.",
        f"{width} dimensions cannot be drawn. Principal component analysis (PCA) finds the two "
        "directions in which the vectors differ most, and the map shows these. All vectors were "
        "made equally long before. Image vectors need not lie near words: the language model "
        "learned to read them, not to see them as words.",
    )
    task = ("project with MiniGPT-4's weights and compare the nearest words: <code>"
            + escape(tour.minigpt4_command("explain.py")) + "</code>.")
    return section(4, "projection", "The projection: a picture among words", texts,
                   (artgpt4.ArtGPT4.encode_image, artgpt4.CastLinear.forward), figures, task)
