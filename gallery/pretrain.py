"""Pre-train the frozen parts of weights/tiny, as the real ones were before ArtGPT-4: `python -m gallery.pretrain`.

The vision side (ViT, ln_vision, Q-Former) learns from plain, unpainted scenes, photographed through all kinds of
glass, weather and film, as the real one did from photographs. The language side learns from text, in which the picture
is told in a few words where later its vectors stand. Neither sees a painting, nor a held-out pair of subject and style.
What the vision side learns is read off by heads that are thrown away: off the patches, what each shows and how it
looks; off the queries, what the subject is, where it stands, what is around it, what was done to the photograph, and
its small picture.
"""
import argparse
import io
import math
import random

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from artgpt4 import (IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, PIXEL_MEAN, PIXEL_STD, STOP, ArtGPT4, Config, LlamaConfig,
                     QFormerConfig, ViTConfig, chat_prompt, instruction_prompt)
from common.command_line import run_command
from common.progress import Progress
from gallery import words
from gallery.painting import draw, render
from gallery.scenes import COMPOSITIONS, SUBJECTS, THINGS, random_scenes

TINY = Config(
    image_size=112, adapter_width=48,
    vit=ViTConfig(width=176, layers=6, heads=2, mlp_width=704, patch_size=14),
    qformer=QFormerConfig(width=128, layers=4, heads=2, mlp_width=512, queries=16),
    llama=LlamaConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
                      num_key_value_heads=4, max_position_embeddings=1024, vocab_size=1200))


SHOWN = ("", *SUBJECTS, *THINGS)                              # what a patch may show, scenery first


def initialise(module):
    """Linear weights of variance 1 / inputs, other matrices of deviation 0.2, biases zero; adapters as they are."""
    for name, parameter in module.named_parameters():
        if ".adapter." in name:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            linear = name.endswith("weight") and "embed.weight" != name
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if linear else 0.2)


def train(parameters, loss_of_step, steps, peak_lr, what):
    """AdamW, 5 % warm-up and a cosine to zero. loss_of_step(step) -> (loss, a note for the progress line)."""
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.05)
    progress = Progress(what, steps, "steps")
    warmup = max(1, steps // 20)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        loss, note = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress.show(step + 1, f"loss {loss.item():.3f}{note}")


# ---- Vision: plain scenes, photographed


def blur(x, sigma):
    """A Gaussian blur of pictures (B, 3, S, S)."""
    reach = math.ceil(2 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), kernel.transpose(2, 3), groups=3)


def waves(x, rng, low, high):
    """A grating over the picture, (1, 1, S, S) in -1 .. 1: a period between low and high pixels, any angle."""
    size = x.shape[-1]
    period, angle, phase = rng.uniform(low, high), rng.uniform(0, math.pi), rng.uniform(0, 6.3)
    at = torch.arange(size).float()
    along = at[None, :] * math.cos(angle) + at[:, None] * math.sin(angle)
    return torch.sin(2 * math.pi * along / period + phase)[None, None]


def shake(x, rng, reach, patch):
    """Every pixel taken from up to `reach` pixels away, neighbours within `patch` pixels together: rippled glass."""
    size, cells = x.shape[-1], max(2, x.shape[-1] // patch)
    shift = F.interpolate(torch.rand(1, 2, cells, cells) * 2 - 1, size=(size, size), mode="bilinear") * reach / size * 2
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 3, size, size), align_corners=False) + shift.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="reflection", align_corners=False)


def gray(x):
    return x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def mosaic(x, rng):
    size, cell = x.shape[-1], rng.choice((3, 4, 5, 6, 7))
    return F.interpolate(F.avg_pool2d(x, cell, ceil_mode=True), scale_factor=cell)[..., :size, :size]


def grille(x, rng):
    """Behind bars, dark or light, of any width, straight or bent."""
    bars = torch.minimum(waves(x, rng, 12, 40).abs(), waves(x, rng, 12, 40).abs()) < rng.uniform(0.1, 0.3)
    bars = shake(bars.float().expand(1, 3, -1, -1), rng, rng.uniform(0, 5), 16)
    return x * (1 - bars) + rng.choice((0.05, 0.1, 0.9)) * bars


def halftone(x, rng):
    """As printed in a newspaper: dots of a grid, in colour or gray, the larger the darker."""
    low = rng.uniform(3.5, 7)
    screen = (waves(x, rng, low, low) + waves(x, rng, low, low)) / 4 + 0.5
    x = gray(x) if rng.random() < 0.5 else x
    return ((x - screen) * rng.uniform(3, 10)).sigmoid() * 0.5 + x * 0.5


def scanlines(x, rng):
    """Lines of a screen or a fax: hard, so that dark parts have thicker ones."""
    hard = ((gray(x) - 0.5) * 1.2 + 0.25 * waves(x, rng, 3.5, 8)).mul(rng.uniform(6, 20)).sigmoid()
    return hard * (0.5 + 0.5 * x) if rng.random() < 0.7 else hard


def posterise(x, rng):
    levels = rng.choice((2, 3, 4))
    return (x * levels).round() / levels


def fog(x, rng):
    paper = torch.rand(1, 3, 1, 1) * 0.15 + 0.85
    return x + (paper - x) * rng.uniform(0.3, 0.7)


def rain(x, rng):
    drops = (torch.rand(1, 1, *x.shape[2:]) < 0.02).float().expand(1, 3, -1, -1)
    kernel = torch.eye(9) if rng.random() < 0.5 else torch.eye(9).flip(0)
    streaks = F.conv2d(drops, kernel.expand(3, 1, 9, 9), padding=4, groups=3).clamp(max=1)
    return x + (rng.choice((0.1, 0.95)) - x) * streaks * rng.uniform(0.3, 0.8)


def confetti(x, rng):
    """Every small cell of a colour of its own, a little off."""
    cells = x.shape[-1] // rng.choice((2, 3, 4, 5))
    off = torch.randn(len(x), 3, cells, cells) * rng.uniform(0.06, 0.2)
    return x + F.interpolate(off, size=x.shape[2:], mode=rng.choice(("nearest", "bicubic")))


def brushed(x, rng):
    """Under fine streaks of light and dark, all along one direction that bends a little: brushed metal, combed sand."""
    length, size = rng.choice((7, 9, 13)), x.shape[-1]
    streaks = torch.randn(1, 1, size, size)
    streaks = F.conv2d(F.pad(streaks, (length // 2, length // 2, 0, 0)), torch.ones(1, 1, 1, length) / length**0.5)
    angle = rng.uniform(0, math.pi)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    streaks = F.grid_sample(streaks, F.affine_grid(turn[None], streaks.shape, align_corners=False),
                            padding_mode="reflection", align_corners=False)
    return x + shake(streaks.expand(1, 3, -1, -1), rng, rng.uniform(0, 6), 24) * rng.uniform(0.06, 0.2)


def outlined(x, rng):
    """Sharpened until every edge has a dark line."""
    soft = blur(x, rng.uniform(0.6, 2.0))
    return x - (x - soft).abs().mean(dim=1, keepdim=True) * rng.uniform(3, 8)


EFFECTS = {
    "plain": lambda x, rng: x,
    "soft": lambda x, rng: blur(x, rng.uniform(0.7, 2.5)),
    "grain": lambda x, rng: x + torch.randn_like(x[:, :1] if rng.random() < 0.5 else x) * rng.uniform(0.05, 0.2),
    "blotches": lambda x, rng: x + F.interpolate(torch.randn(len(x), 3, 28, 28), size=x.shape[2:],
                                                 mode="bilinear") * rng.uniform(0.05, 0.2),
    "mosaic": mosaic,
    "grille": grille,
    "halftone": halftone,
    "scanlines": scanlines,
    "rippled glass": lambda x, rng: shake(x, rng, rng.uniform(2, 6), rng.choice((3, 5, 8))),
    "posterised": posterise,
    "fog": fog,
    "rain": rain,
    "outlined": outlined,
    "confetti": confetti,
    "brushed": brushed,
    "faded": lambda x, rng: gray(x) + (x - gray(x)) * rng.uniform(0, 0.4),
}


def photograph(pictures, rng, share):
    """uint8 (B, S, S, 3) -> pixels (B, 3, S, S) in 0 .. 1 and the two effects of each (B, 2); a `share` get any."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    flip = torch.rand(len(x)) < 0.2 * share                   # colours as a negative has them: shapes must do
    x[flip] = 1 - x[flip]
    x = (x * (0.7 + 0.6 * torch.rand(len(x), 3, 1, 1)) + 0.2 * torch.rand(len(x), 3, 1, 1) - 0.1).clamp(0, 1)
    names, groups = list(EFFECTS), 16                         # an effect is drawn for a group of pictures
    labels = torch.zeros(len(x), 2, dtype=torch.long)
    for group in torch.arange(len(x)).chunk(groups):
        if rng.random() > share:
            continue
        for which in range(rng.choice((1, 2))):
            effect = rng.randrange(len(names))
            x[group] = EFFECTS[names[effect]](x[group], rng).clamp(0, 1)
            labels[group, which] = effect
    return x, labels


def roughness(x, fields):
    """pixels (B, 3, S, S) -> (B, 8, fields, fields): how rough each field is, in four directions, at three scales, and
    in colour."""
    y = x.mean(dim=1, keepdim=True)
    z = F.pad(y, (1, 1, 1, 1), mode="replicate")
    kinds = [(y - other).abs() for other in (z[..., 1:-1, 2:], z[..., 2:, 1:-1], z[..., 2:, 2:], z[..., 2:, :-2])]
    for scale in (1, 2, 4):
        z = F.avg_pool2d(y, scale)
        kinds.append(F.interpolate((z - F.avg_pool2d(z, 3, 1, 1)).abs(), size=y.shape[2:]))
    kinds.append((x - y - F.avg_pool2d(x - y, 3, 1, 1)).abs().sum(dim=1, keepdim=True))
    return F.adaptive_avg_pool2d(torch.cat(kinds, dim=1), fields) * 15


def draw_plain(scenes, size):
    """The scenes unpainted, uint8 (N, size, size, 3), and what each pixel shows, uint8 (N, size, size): a number of
    SHOWN."""
    progress = Progress("drawing plain scenes", len(scenes), "pictures")
    drawn = np.empty((len(scenes), size, size, 3), dtype=np.uint8)
    shown = np.empty((len(scenes), size, size), dtype=np.uint8)
    for i, scene in enumerate(scenes):
        drawn[i] = draw(scene, size)
        shown[i] = render(scene, size).per_shape(lambda shape: SHOWN.index(shape.name))
        progress.show(i + 1)
    return drawn, shown


def pretrain_vision(model, steps, batch, pictures, seed):
    """Train model.vit, ln_vision and qformer on `pictures` plain scenes."""
    size, queries, width = model.config.image_size, model.config.qformer.queries, model.config.qformer.width
    scenes, margin, fields = random_scenes(pictures, f"plain {seed}"), 16, size // model.config.vit.patch_size
    drawn, shown = draw_plain(scenes, size + margin)
    subjects = torch.tensor([SUBJECTS.index(scene.subject) for scene in scenes])
    places = torch.tensor([COMPOSITIONS.index(scene.composition) for scene in scenes])
    things = torch.tensor([[float(thing in scene.things) for thing in THINGS] for scene in scenes])
    heads = nn.ModuleDict({
        # off every patch: what it shows, colour, roughness
        "patch_shows": nn.Linear(model.config.vit.width, len(SHOWN)),
        "patch_looks": nn.Linear(model.config.vit.width, 3 + 8),
        # off the mean of the queries
        "subject": nn.Linear(width, len(SUBJECTS)), "place": nn.Linear(width, len(COMPOSITIONS)),
        "things": nn.Linear(width, len(THINGS)), "effect": nn.Linear(width, len(EFFECTS)),
        # off all queries: the small picture, and the roughness of its parts
        "colours": nn.Linear(width * queries, 3 * 16 * 16), "roughness": nn.Linear(width * queries, 8 * 8 * 8)})
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    rng, order, right = random.Random(seed), [], 0.0

    def loss_of_step(step):
        nonlocal order, right
        if len(order) < batch:
            order = rng.sample(range(len(scenes)), len(scenes))
        chosen, order = order[:batch], order[batch:]
        top, left = rng.randrange(margin + 1), rng.randrange(margin + 1)
        window = (chosen, slice(top, top + size), slice(left, left + size))
        x, effects = photograph(drawn[window], rng, share=min(1, 2 * step / steps))       # plain ones first
        patches = model.ln_vision(model.vit((x - mean) / std))                            # (B, P, Dv)
        found = model.qformer(patches)                                                    # (B, Q, D)
        pooled, flat = found.mean(dim=1), found.flatten(1)

        shows = torch.from_numpy(shown[window][:, ::2, ::2]).long()                       # every other pixel will do
        shows = F.adaptive_avg_pool2d(F.one_hot(shows, len(SHOWN)).permute(0, 3, 1, 2).float(), fields)
        shows = shows.flatten(2).transpose(1, 2)                                          # (B, P - 1, classes)
        looks = torch.cat((F.adaptive_avg_pool2d(x, fields), roughness(x, fields)), dim=1).flatten(2).transpose(1, 2)
        named, effect = heads["subject"](pooled), heads["effect"](pooled)
        loss = (3 * F.cross_entropy(heads["patch_shows"](patches[:, 1:]).flatten(0, 1), shows.flatten(0, 1))
                + F.mse_loss(heads["patch_looks"](patches[:, 1:]), looks)
                + F.cross_entropy(named, subjects[chosen])
                + 3 * F.binary_cross_entropy_with_logits(heads["things"](pooled), things[chosen])
                + 0.5 * F.cross_entropy(heads["place"](pooled), places[chosen])
                + 0.5 * F.cross_entropy(effect, effects[:, 0]) + 0.5 * F.cross_entropy(effect, effects[:, 1])
                + 3 * F.mse_loss(heads["colours"](flat), F.adaptive_avg_pool2d(x, 16).flatten(1))
                + F.mse_loss(heads["roughness"](flat), roughness(x, 8).flatten(1)))
        right += 0.02 * ((named.argmax(1) == subjects[chosen]).float().mean().item() - right)
        return loss, f", subject named in {right:.0%}"

    parts = nn.ModuleList((model.vit, model.ln_vision, model.qformer, heads))
    train(list(parts.parameters()), loss_of_step, steps, 1e-3, "vision")


# ---- Language: text in which the picture is told in words


def document(scene, rng):
    """One text: what stands before the picture, the picture told in words, and the segments after it. Each is tokenised
    by itself, as ArtGPT4.embed_prompt does."""
    told = words.told(scene, rng)
    kind = rng.random()
    if kind < 0.2:
        return "", told, [words.caption(scene, rng) + "\n"]
    if kind < 0.45:
        before, after = instruction_prompt(rng.choice(INSTRUCTIONS)).split(IMAGE_MARK)
        return before, told, [after, words.description(scene, rng) + STOP]
    if kind > 0.9:
        rounds = words.dialogue(scene, rng)
    else:
        rounds = rng.sample(words.questions(scene, rng), rng.choice((1, 1, 2, 3)))
    if kind < 0.6:
        rounds.insert(rng.randrange(len(rounds) + 1), (rng.choice(INSTRUCTIONS), words.description(scene, rng)))
    messages = [text for question_and_answer in rounds for text in question_and_answer]
    messages[0] = f"{IMAGE_SLOT} {messages[0]}"
    before, after = chat_prompt(messages[:-1]).split(IMAGE_MARK)
    return before, told, [after, messages[-1] + STOP]


def train_tokenizer(texts, vocab_size):
    """A sentencepiece BPE with byte fallback, as LLaMA's, from an iterable of texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_by_unicode_script=False,
        character_coverage=1.0, max_sentence_length=100_000, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def mixed(embeds, count):
    """The told words' vectors (T, D) as an image's will be: `count` of them, each a random mixture of all, (count, D).
    A real Vicuna reads such vectors because it is large; this one has to learn it."""
    weights = (2 * torch.randn(count, len(embeds))).softmax(dim=-1)
    return weights @ embeds + 0.05 * torch.randn(count, embeds.shape[1])


def pretrain_language(model, steps, batch, seed):
    """Train model.llama, without its adapters, on `steps` batches of documents. In half of them the words that tell the
    picture are mixed; those are not predicted."""
    rng, encode, window = random.Random(seed), model.tokenizer.encode, 16
    waiting = []

    def loss_of_step(step):
        if not waiting:                                       # batches of like length, from a window of documents
            rows = []
            for scene in random_scenes(window * batch, f"text {seed} {step}"):
                before, told, after = document(scene, rng)
                rows.append(([model.tokenizer.bos_id(), *encode(before)], encode(told),
                             [token for text in after for token in encode(text)]))
            rows.sort(key=lambda row: sum(map(len, row)))
            waiting.extend(rows[i:i + batch] for i in range(0, len(rows), batch))
            rng.shuffle(waiting)
        embeds, targets = [], []
        for row in waiting.pop():
            before, told, after = map(torch.tensor, row)
            picture = model.llama.embed(told)
            if rng.random() < 0.5:
                picture = mixed(picture, model.config.qformer.queries)
                told = torch.full((len(picture),), -100)      # not counted
            embeds.append(torch.cat((model.llama.embed(before), picture, model.llama.embed(after[:-1]))))
            targets.append(torch.cat((before[1:], told, after)))
        targets = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        hidden = model.llama.hidden(nn.utils.rnn.pad_sequence(embeds, batch_first=True))
        return F.cross_entropy(model.llama.logits(hidden[targets >= 0]), targets[targets >= 0]), ""

    parameters = [p for name, p in model.llama.named_parameters() if ".adapter." not in name]
    train(parameters, loss_of_step, steps, 2e-3, "language")


# ---------------------------------------------------------------------------------------------------------------------


def main(args):
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    scenes = random_scenes(8000, f"tokenizer {args.seed}")
    texts = (before + told + "".join(after) for before, told, after in (document(scene, rng) for scene in scenes))
    tokenizer = train_tokenizer(texts, TINY.llama.vocab_size)
    model = ArtGPT4(TINY, tokenizer)
    for part in (model.vit, model.qformer, model.llama):
        initialise(part)
    if args.side in ("both", "vision"):
        pretrain_vision(model, args.vision_steps, args.vision_batch, args.pictures, args.seed)
    if args.side in ("both", "language"):
        pretrain_language(model, args.language_steps, args.language_batch, args.seed)
    trains = {id(p) for p in model.freeze()}
    for parameter in model.parameters():
        if id(parameter) not in trains:
            parameter.data = parameter.data.half()
    model.save_pretrained(args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


def command_line():
    parser = argparse.ArgumentParser(prog="python -m gallery.pretrain", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="runs/pretrain", help="weights folder to write (default: %(default)s)")
    parser.add_argument("--side", choices=("both", "vision", "language"), default="both", help="the side to train")
    parser.add_argument("--vision-steps", type=int, default=2000)
    parser.add_argument("--vision-batch", type=int, default=48)
    parser.add_argument("--pictures", type=int, default=10000, help="plain scenes to draw")
    parser.add_argument("--language-steps", type=int, default=1300)
    parser.add_argument("--language-batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=42)
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
