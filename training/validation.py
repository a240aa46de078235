"""What a run is judged by: the loss of held-out pairs, what the model says of some pictures, how
much of held-out paintings it names."""
import json
from dataclasses import dataclass

import numpy as np
import torch

from artgpt4 import IMAGE_MARK, STOP
from common.files import written_beside
from gallery.score import features_of, held_out_features, score, table
from training.data import held_out_batches
from training.processes import RANK, WORLD, on_rank_0, total
from training.report import draw_samples
from training.sources import Source

END = {1: "\n", 2: STOP}        # what ends the text of a stage


def token_losses(module, batch, stage, max_text_tokens):
    """The cross-entropy of every caption token of a Batch, (N,). A mean is taken over all parts
    and processes at the end, because each has another number of tokens."""
    return module(batch.pixels, batch.texts, batch.prompts, END[stage], max_text_tokens)


def count_tokens(model, parts, stage, max_text_tokens):
    """(tokens, texts that are cut) of some Batches; tokens with prompts and image vectors."""
    tokens, cut, prompts = 0, 0, {}
    for batch in parts:
        for prompt, text in zip(batch.prompts, batch.texts, strict=True):
            if prompt not in prompts:
                prompts[prompt] = len(model.prompt_ids(prompt or IMAGE_MARK))
            length = len(model.tokenizer.encode(text + END[stage]))
            tokens += prompts[prompt] + min(length, max_text_tokens)
            cut += length > max_text_tokens
    return tokens, cut


@dataclass
class Evaluation:
    """What is evaluated during a run, the same every time.

    pictures: uint8 (N, 224, 224, 3), to be described; held_out: pairs that are not trained on.
    """
    model: torch.nn.Module
    stage: int
    recipe: object              # the batch size and max_text_tokens of a train.Recipe
    pictures: list[np.ndarray]
    held_out: Source | None = None
    workers: int = 1
    features: torch.Tensor | None = None            # of the pictures, and those that are scored:
    features_to_score: dict | None = None           # for a model without its towers

    def keep_features(self, to_score):
        """Compute what the towers find in the pictures, and if to_score in those of score(), for
        the time when the model has let go of them."""
        self.features = features_of(self.model, self.pictures)
        self.features_to_score = held_out_features(self.model) if to_score else None

    @torch.no_grad()
    def losses(self, module):
        """{"val_loss": mean loss of the held-out pairs, uncropped}; {} if there are none."""
        if not self.held_out:
            return {}
        loss, tokens = 0.0, 0
        loader = held_out_batches(self.held_out, self.stage, self.model.config.image_size,
                                  self.recipe.batch_size, self.workers, RANK, WORLD)
        for batch, counts in loader:
            losses = token_losses(module, batch, self.stage, self.recipe.max_text_tokens)
            if counts:
                loss += losses.sum().item()
                tokens += len(losses)
        loss, tokens = total([loss, tokens], next(self.model.parameters()).device)
        return {"val_loss": loss / tokens}

    def draw(self, file):
        """Write the pictures, each with what the model says of it, as one picture."""
        draw_samples(self.model, self.pictures, self.stage, file, self.features)

    def score(self, file):
        """Print and write how much of held-out paintings the model names (gallery/score.py)."""
        shares = on_rank_0(score, self.model, self.stage, self.features_to_score)
        if RANK == 0:
            with written_beside(file) as path:
                path.write_text(json.dumps(shares, indent=1) + "\n")
            print(table(shares))
