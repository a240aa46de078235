"""One picture's way through a model. What a chapter alone shows in a few lines, it computes itself.

Shapes: N answer tokens, T tokens, L blocks, H heads, Q queries, P patches + 1, D width.
"""
from unittest import mock

import torch

from artgpt4 import IMAGE_ID, IMAGE_SLOT, Adapter, chat_prompt, preprocess
from conversation.rounds import plain
from gallery.attention import recorded_attention

LONGEST = 120                                                 # tokens of an answer
TOP = 5                                                       # likely tokens that are shown
WITHOUT_ADAPTERS = mock.patch.object(Adapter, "forward", lambda adapter, x: x)  # in a with


def chances(model, embeds, ids):
    """The probability of each of N ids after what embeds (1, T, D) hold -> (N,)."""
    ids = torch.tensor(ids, device=embeds.device)
    fed = torch.cat((embeds, model.llama.embed(ids[None, :-1])), dim=1)
    logits = model.llama.head(model.llama.hidden(fed)[0, -len(ids):]).float()
    return logits.softmax(dim=-1).gather(1, ids[:, None])[:, 0].cpu()


class Tour:
    """What explain.py was given, and what is recorded of the model's work on it.

    args: of explain.py. images: the picture and another one, PIL."""

    def __init__(self, args, model, images):
        self.args, self.model = args, model
        self.image, self.other = images
        self.grid = model.config.image_size // model.config.patch_size   # patches along a side
        prompt = chat_prompt([f"{IMAGE_SLOT} {plain(args.prompt)}"], model.config.prompt)
        self.prompt_ids = model.prompt_ids(prompt)
        start = self.prompt_ids.index(IMAGE_ID)
        self.slot = slice(start, start + model.config.queries)     # the places of the image vectors
        self.other_embeds = self.see(self.other)              # (1, Q, D)
        self.image_embeds = self.see(self.image)
        self.embeds = model.embed_ids(self.prompt_ids, self.image_embeds)            # (1, T, D)
        self.answer()

    def see(self, image):
        """Encode a PIL image -> its image vectors (1, Q, D). Kept: `pixels` (3, S, S), normalised;
        where patches look, `patch_looks` (L of the ViT, P, P), and queries, `query_looks` (layers
        with cross-attention, Q, P), both means over the heads."""
        self.pixels = preprocess(image, self.model.config.image_size)
        with recorded_attention() as weights:
            image_embeds = self.model.encode_image(self.pixels[None])
        blocks = self.model.config.vit_layers                 # then, of each two layers of the
        self.patch_looks, self.query_looks = (                # Q-Former: self, cross, self
            torch.cat(looks).mean(dim=1).cpu()
            for looks in (weights[:blocks], weights[blocks + 1::3]))
        return image_embeds

    def answer(self):
        """Answer at temperature 0: `ids`, the N tokens, and `text`. Kept of each step: `top`, the
        TOP likeliest tokens, [(id, probability)]; `looks`, N times (Q,), the attention of the token
        before to each image vector, a mean over blocks and heads. Raises ValueError if there is no
        room for an answer."""
        model = self.model
        self.room = min(LONGEST, model.config.context - len(self.prompt_ids))
        if self.room < 1:
            raise ValueError(f"--prompt: {len(self.prompt_ids)} tokens with the picture, and the "
                             f"model reads {model.config.context}; ask a shorter question")
        self.top, self.ids, self.looks = [], [], []

        def keep_likeliest(logits, chosen):
            best = logits[0].softmax(dim=-1).topk(min(TOP, logits.shape[-1]))
            self.top.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            return logits

        with recorded_attention() as weights:
            for token in model.generate(self.embeds, self.room, adjust=keep_likeliest,
                                        temperature=0):
                self.ids.append(token.item())
                looks = [each[0, :, -1, self.slot].mean(dim=0).cpu() for each in weights]
                self.looks.append(torch.stack(looks).mean(dim=0))
                weights.clear()
                self.text, self.ended = model.decode(self.ids)
                if self.ended:
                    break
        self.text = self.text.strip()

    # In words
    def on_picture(self, row):
        """One number for each of the P patches and the class token -> numpy (grid, grid)."""
        return row[1:].float().numpy().reshape(self.grid, self.grid)

    def piece(self, token):
        """A token as text. "▁" is a space before it."""
        known = 0 <= token < self.model.tokenizer.get_piece_size()
        return self.model.tokenizer.id_to_piece(token) if known else f"token {token}"

    def words(self):
        """[(word, [numbers of its tokens])] of the answer, without what ends it."""
        words = []
        for i, token in enumerate(self.ids[:-1] if self.ended else self.ids):
            piece = self.piece(token)
            if piece.startswith("▁") or not words:
                words.append(["", []])
            words[-1][0] += piece.lstrip("▁")
            words[-1][1].append(i)
        return words
