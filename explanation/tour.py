"""A picture's way through a model: everything that the chapters show, computed once."""
import shlex
from typing import NamedTuple

import numpy as np
from PIL import Image

from artgpt4 import IMAGE_SLOT, ArtGPT4, chat_prompt
from common.loading import load_adapter
from explanation import recording

MINIGPT4 = "minigpt4.safetensors"                             # beside adapter.safetensors, if any


class Tour(NamedTuple):
    """What explain.py was given, and what was recorded of the model's work on it."""
    model: ArtGPT4
    image: Image.Image
    question: str
    caption: str
    patch: tuple                  # row and column of the chosen patch, from 0
    seen: recording.Seen
    answer: recording.Answer
    without: str                  # the answer without the adapters
    minigpt4: str | None          # the answer with MiniGPT-4's weights, if the folder has them
    lesson: recording.Lesson
    file: str                     # of the picture, and the folder of weights, as they were named
    weights: str

    @property
    def grid(self):
        """Patches along a side of the picture."""
        return self.model.config.image_size // self.model.config.vit.patch_size

    def on_picture(self, row):
        """One number for each of the P patches and the class token -> numpy (grid, grid)."""
        return np.asarray(row[1:].float().cpu()).reshape(self.grid, self.grid)

    def piece(self, token):
        """A token as text. "▁" is a space before it."""
        tokenizer = self.model.tokenizer
        known = 0 <= token < tokenizer.get_piece_size()
        return tokenizer.id_to_piece(token) if known else f"token {token}"

    def words(self):
        """[(word, [numbers of its tokens])] of the answer, without what ends it."""
        words = []
        for i, token in enumerate(self.answer.ids):
            if self.model.has_ended(self.answer.ids[:i + 1]):
                break
            piece = self.piece(token)
            if piece.startswith("▁") or not words:
                words.append([piece.lstrip("▁"), [i]])
            else:
                words[-1][0] += piece
                words[-1][1].append(i)
        return words

    def command(self, script="explain.py", flags=""):
        """A command about this picture and these weights."""
        parts = ["python", script, shlex.quote(self.file), flags]
        if self.weights:
            parts.append(f"--weights {shlex.quote(self.weights)}")
        return " ".join(filter(None, parts))

    def minigpt4_command(self, script):
        """A command that takes MiniGPT-4's weights: those of the folder, else of weights/tiny."""
        folder = self.weights if self.weights and self.minigpt4 is not None else "weights/tiny"
        own = self._replace(weights="" if folder == "weights/tiny" else folder)
        return own.command(script, f"--adapter {shlex.quote(folder + '/' + MINIGPT4)}")


def default_patch(grid):
    """Row and column of a patch at the middle of the picture."""
    return grid // 2, grid // 2


def take(model, image, question, caption, patch, max_new_tokens, folder, names):
    """Run everything -> Tour. The model stays as it was.

    caption: None for the first sentence of the answer. folder: of the weights. names: (file of the
    picture, folder of the weights or "" for the default), as they stand in commands.
    """
    grid = model.config.image_size // model.config.vit.patch_size
    patch = default_patch(grid) if patch is None else patch
    if max(patch) >= grid:
        raise ValueError(f"--patch {patch[0]},{patch[1]}: the grid has {grid} rows and columns, "
                         f"which are counted from 0 to {grid - 1}")
    prompt = chat_prompt([f"{IMAGE_SLOT} {question}"], model.config.prompt)
    seen = recording.see(model, image)
    answer = recording.answer(model, prompt, seen.image_embeds, max_new_tokens)
    without = recording.plain_answer(model, prompt, seen.image_embeds, max_new_tokens, False)
    if caption is None:
        caption = answer.text.split(".")[0].strip() or "a picture"
    lesson = recording.teach(model, seen.pixels, caption)
    minigpt4 = None
    if (folder / MINIGPT4).is_file():
        trained = {name: model.get_parameter(name).detach().clone()
                   for name in model.trainable_names()}
        load_adapter(model, folder / MINIGPT4)
        image_embeds = recording.see(model, image).image_embeds
        minigpt4 = recording.plain_answer(model, prompt, image_embeds, max_new_tokens)
        model.load_state_dict(trained, strict=False)
    return Tour(model, image, question, caption, patch, seen, answer, without, minigpt4, lesson,
                *names)
