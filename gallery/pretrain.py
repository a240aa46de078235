"""Pre-train the frozen parts of weights/tiny: `python -m gallery.pretrain`.

The parts of the real ArtGPT-4 were pre-trained by others; this stands in for that.

The vision side (ViT, ln_vision, Q-Former) learns from plain, unpainted scenes, photographed through
all kinds of glass, weather and film (effects.py), as the real one learned from photographs. The
language side learns from text in which a few words tell the picture, where its vectors will stand
later. Neither side sees a painting, or a held-out pair of subject and style.

The vision side is trained through heads that are thrown away afterwards. From each patch they read
what it shows and how it looks; from the queries they read what the subject is, where it stands,
what is around it, which effects the photograph has, and a thumbnail of it.
"""
from common.command_line import run_command, start_command

if __name__ == "__main__":
    start_command()                                           # first: Ctrl-C during the imports

import argparse
import io
import itertools
import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from artgpt4 import (IMAGE_MARK, IMAGE_SLOT, INSTRUCTIONS, PIXEL_MEAN, PIXEL_STD, STOP, ArtGPT4,
                     Config, LlamaConfig, QFormerConfig, ViTConfig, chat_prompt, instruction_prompt)
from common.files import save_tensors, written_beside
from common.progress import Progress
from gallery import words
from gallery.effects import EFFECTS, photograph, roughness
from gallery.painting import draw, render
from gallery.scenes import COMPOSITIONS, SUBJECTS, THINGS, random_scenes

TINY = Config(
    image_size=112, adapter_width=48,
    vit=ViTConfig(width=176, layers=6, heads=2, mlp_width=704, patch_size=14),
    qformer=QFormerConfig(width=128, layers=4, heads=2, mlp_width=512, queries=16),
    llama=LlamaConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=4,
                      num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
                      vocab_size=1200))

# ---- What both sides share


def initialise(module):
    """Linear weights of variance 1 / inputs, other matrices of deviation 0.2, biases zero.

    Adapters stay as they are.
    """
    for name, parameter in module.named_parameters():
        if ".adapter." in name:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            linear = name.endswith("weight") and name != "embed.weight"
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if linear else 0.2)


def train(parameters, loss_of_step, steps, peak_lr, what):
    """AdamW with 5 % warm-up and a cosine to zero.

    loss_of_step(step) -> (loss, a note for the progress line, which is called `what`).
    """
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.05)
    progress = Progress(what, steps, "steps")
    warmup = max(1, steps // 20)
    for step in range(steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min((step + 1) / warmup, cosine)
        loss, note = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress.show(step + 1, f"loss {loss.item():.3f}{note}")


def save_pretrained(model, folder):
    """Write a weights folder: config.json, tokenizer.model and three files of tensors."""
    folder, state = Path(folder), model.state_dict()
    vision = [name for name in state if name.startswith(("vit.", "ln_vision.", "qformer."))]
    llama = [name for name in state if name.startswith("llama.") and ".adapter." not in name]
    adapter = model.trainable_names()
    for part, names in (("vision", vision), ("llama", llama), ("adapter", adapter)):
        save_tensors({name: state[name] for name in names}, folder / f"{part}.safetensors")
    with written_beside(folder / "tokenizer.model") as path:
        path.write_bytes(model.tokenizer.serialized_model_proto())
    with written_beside(folder / "config.json") as path:
        path.write_text(json.dumps(asdict(model.config), indent=1) + "\n")


# ---- Vision: plain scenes, photographed

SHOWN = ("", *SUBJECTS, *THINGS)    # what a patch may show; scenery comes first


def draw_plain(scenes, size):
    """The scenes unpainted, uint8 (N, size, size, 3), and what each pixel shows.

    The latter is uint8 (N, size, size), a number of SHOWN.
    """
    progress = Progress("drawing plain scenes", len(scenes), "pictures")
    drawn = np.empty((len(scenes), size, size, 3), dtype=np.uint8)
    shown = np.empty((len(scenes), size, size), dtype=np.uint8)
    for i, scene in enumerate(scenes):
        drawn[i] = draw(scene, size)
        shown[i] = render(scene, size).per_shape(lambda shape: SHOWN.index(shape.name))
        progress.show(i + 1)
    return drawn, shown


class PlainScenes:
    """Plain scenes, drawn once with a margin around what a batch crops, and their labels."""

    MARGIN = 16

    def __init__(self, count, size, seed):
        scenes = random_scenes(count, f"plain {seed}")
        self.size = size
        self.drawn, self.shown = draw_plain(scenes, size + self.MARGIN)
        self.subjects = torch.tensor([SUBJECTS.index(scene.subject) for scene in scenes])
        self.places = torch.tensor([COMPOSITIONS.index(scene.composition) for scene in scenes])
        self.things = torch.tensor([[float(thing in scene.things) for thing in THINGS]
                                    for scene in scenes])
        self.rng = random.Random(seed)
        self.order = []

    def batch(self, count, share):
        """Photographs of `count` scenes, a share of them with effects; see `photograph`.

        Returns:
            (pixels (B, 3, S, S) in 0 .. 1, the targets by name)
        """
        if len(self.order) < count:
            self.order = self.rng.sample(range(len(self.drawn)), len(self.drawn))
        chosen, self.order = self.order[:count], self.order[count:]
        top, left = self.rng.randrange(self.MARGIN + 1), self.rng.randrange(self.MARGIN + 1)
        window = (chosen, slice(top, top + self.size), slice(left, left + self.size))
        x, effects = photograph(self.drawn[window], self.rng, share)
        return x, {"shown": torch.from_numpy(self.shown[window]), "effects": effects,
                   "subject": self.subjects[chosen], "place": self.places[chosen],
                   "things": self.things[chosen]}


def vision_heads(config):
    """The heads that are thrown away after pre-training."""
    width, queries = config.qformer.width, config.qformer.queries
    return nn.ModuleDict({
        # from each patch: what it shows; its colour and roughness
        "patch_shows": nn.Linear(config.vit.width, len(SHOWN)),
        "patch_looks": nn.Linear(config.vit.width, 3 + 8),
        # from the mean of the queries
        "subject": nn.Linear(width, len(SUBJECTS)),
        "place": nn.Linear(width, len(COMPOSITIONS)),
        "things": nn.Linear(width, len(THINGS)),
        "effect": nn.Linear(width, len(EFFECTS)),
        # from all queries: a thumbnail, and the roughness of its parts
        "colours": nn.Linear(width * queries, 3 * 16 * 16),
        "roughness": nn.Linear(width * queries, 8 * 8 * 8)})


def patch_loss(heads, patches, x, shown):
    """What the patches (B, P - 1, Dv) say of pixels x (B, 3, S, S) and of what those show."""
    fields = math.isqrt(patches.shape[1])
    shown = F.one_hot(shown[:, ::2, ::2].long(), len(SHOWN))           # every other pixel will do
    shares = F.adaptive_avg_pool2d(shown.permute(0, 3, 1, 2).float(), fields)
    shares = shares.flatten(2).transpose(1, 2)                          # (B, P - 1, classes)
    looks = torch.cat((F.adaptive_avg_pool2d(x, fields), roughness(x, fields)), dim=1)
    looks = looks.flatten(2).transpose(1, 2)                            # (B, P - 1, 3 + 8)
    shows = heads["patch_shows"](patches)
    return (3 * F.cross_entropy(shows.flatten(0, 1), shares.flatten(0, 1))
            + F.mse_loss(heads["patch_looks"](patches), looks))


def query_losses(heads, queries, x, targets):
    """What the queries (B, Q, D) say of pixels x (B, 3, S, S).

    Returns:
        (the terms of the loss, the share of subjects named rightly)
    """
    pooled, flat = queries.mean(dim=1), queries.flatten(1)
    subject, effect = heads["subject"](pooled), heads["effect"](pooled)
    first, second = targets["effects"].T
    terms = (
        F.cross_entropy(subject, targets["subject"]),
        3 * F.binary_cross_entropy_with_logits(heads["things"](pooled), targets["things"]),
        0.5 * F.cross_entropy(heads["place"](pooled), targets["place"]),
        0.5 * F.cross_entropy(effect, first),
        0.5 * F.cross_entropy(effect, second),
        3 * F.mse_loss(heads["colours"](flat), F.adaptive_avg_pool2d(x, 16).flatten(1)),
        F.mse_loss(heads["roughness"](flat), roughness(x, 8).flatten(1)))
    return terms, (subject.argmax(dim=1) == targets["subject"]).float().mean().item()


def pretrain_vision(model, steps, batch, pictures, seed):
    """Train model.vit, ln_vision and qformer on `pictures` plain scenes."""
    scenes = PlainScenes(pictures, model.config.image_size, seed)
    heads = vision_heads(model.config)
    mean = torch.tensor(PIXEL_MEAN)[:, None, None]
    std = torch.tensor(PIXEL_STD)[:, None, None]
    named_rightly = 0.0                                                 # a running mean

    def loss_of_step(step):
        nonlocal named_rightly
        share = min(1, 2 * step / steps)                                # plain pictures come first
        x, targets = scenes.batch(batch, share)
        patches = model.ln_vision(model.vit((x - mean) / std))          # (B, P, Dv)
        queries = model.qformer(patches)                                # (B, Q, D)
        loss = patch_loss(heads, patches[:, 1:], x, targets["shown"])   # without the class token
        terms, right = query_losses(heads, queries, x, targets)
        for term in terms:
            loss = loss + term
        named_rightly += 0.02 * (right - named_rightly)
        return loss, f", subject named in {named_rightly:.0%}"

    parts = nn.ModuleList((model.vit, model.ln_vision, model.qformer, heads))
    train(list(parts.parameters()), loss_of_step, steps, 1e-3, "vision")


# ---- Language: text in which the picture is told in words


def document(scene, rng):
    """One text about a scene: (text before the picture, the picture in words, [texts after it]).

    Each part is tokenised by itself, as ArtGPT4.embed_prompt does. Of the documents 20 % are stage
    1's captions, 25 % stage 2's descriptions, 45 % conversations of one to four rounds, some with a
    description among them, and 10 % long dialogues.
    """
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
        place = rng.randrange(len(rounds) + 1)
        rounds.insert(place, (rng.choice(INSTRUCTIONS), words.description(scene, rng)))
    messages = [text for question_and_answer in rounds for text in question_and_answer]
    messages[0] = f"{IMAGE_SLOT} {messages[0]}"
    before, after = chat_prompt(messages[:-1]).split(IMAGE_MARK)
    return before, told, [after, messages[-1] + STOP]


def train_tokenizer(texts, vocab_size):
    """A sentencepiece BPE with byte fallback, as LLaMA's, from an iterable of texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_by_unicode_script=False, character_coverage=1.0, max_sentence_length=100_000,
        minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def mixed(embeds, count):
    """Turn the vectors of the words that tell a picture into `count` vectors like an image's.

    Each is a random mixture of all: (T, D) -> (count, D). A real Vicuna reads such vectors because
    it is large; this small one has to learn it.
    """
    weights = (2 * torch.randn(count, len(embeds))).softmax(dim=-1)
    return weights @ embeds + 0.05 * torch.randn(count, embeds.shape[1])


def document_batches(tokenizer, batch, seed, rng, window=16):
    """Yield batches of documents as token ids: [(before, told, after), ...], each a list of ids.

    A batch holds documents of similar length, out of `window` batches of them.
    """
    for step in itertools.count(0, window):
        rows = []
        for scene in random_scenes(window * batch, f"text {seed} {step}"):
            before, told, after = document(scene, rng)
            before = [tokenizer.bos_id(), *tokenizer.encode(before)]
            after = [token for text in after for token in tokenizer.encode(text)]
            rows.append((before, tokenizer.encode(told), after))
        rows.sort(key=lambda row: sum(map(len, row)))
        waiting = [rows[i:i + batch] for i in range(0, len(rows), batch)]
        rng.shuffle(waiting)
        yield from reversed(waiting)


def pretrain_language(model, steps, batch, seed):
    """Train model.llama, without its adapters, on `steps` batches of documents.

    In half of the documents the words that tell the picture are mixed; those are not predicted.
    """
    rng = random.Random(seed)
    batches = document_batches(model.tokenizer, batch, seed, rng)

    def loss_of_step(step):
        embeds, targets = [], []
        for row in next(batches):
            before, told, after = map(torch.tensor, row)
            picture = model.llama.embed(told)
            if rng.random() < 0.5:
                picture = mixed(picture, model.config.qformer.queries)
                told = torch.full((len(picture),), -100)      # -100: not predicted
            parts = (model.llama.embed(before), picture, model.llama.embed(after[:-1]))
            embeds.append(torch.cat(parts))
            targets.append(torch.cat((before[1:], told, after)))
        targets = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        hidden = model.llama.hidden(nn.utils.rnn.pad_sequence(embeds, batch_first=True))
        keep = targets != -100
        return F.cross_entropy(model.llama.logits(hidden[keep]), targets[keep]), ""

    parameters = [p for name, p in model.llama.named_parameters() if ".adapter." not in name]
    train(parameters, loss_of_step, steps, 2e-3, "language")


# ---- The command


def main(args):
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    documents = (document(scene, rng) for scene in random_scenes(8000, f"tokenizer {args.seed}"))
    texts = (before + told + "".join(after) for before, told, after in documents)
    model = ArtGPT4(TINY, train_tokenizer(texts, TINY.llama.vocab_size))
    for part in (model.vit, model.qformer, model.llama):
        initialise(part)
    if args.side in ("both", "vision"):
        pretrain_vision(model, args.vision_steps, args.vision_batch, args.pictures, args.seed)
    if args.side in ("both", "language"):
        pretrain_language(model, args.language_steps, args.language_batch, args.seed)
    trainable = {id(parameter) for parameter in model.freeze()}
    for parameter in model.parameters():
        if id(parameter) not in trainable:
            parameter.data = parameter.data.half()
    save_pretrained(model, args.out)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{args.out}: {millions:.2f} M parameters")


def command_line():
    parser = argparse.ArgumentParser(prog="python -m gallery.pretrain",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="runs/pretrain",
                        help="weights folder to write (default: %(default)s)")
    parser.add_argument("--side", choices=("both", "vision", "language"), default="both",
                        help="the side to train (default: %(default)s)")
    parser.add_argument("--vision-steps", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--vision-batch", type=int, default=48,
                        help="pictures in a batch (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=10000,
                        help="plain scenes to draw (default: %(default)s)")
    parser.add_argument("--language-steps", type=int, default=1300, help="(default: %(default)s)")
    parser.add_argument("--language-batch", type=int, default=32,
                        help="documents in a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
