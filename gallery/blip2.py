"""BLIP-2's three objectives in small: what the real Q-Former learned from.

Li et al. 2023 (BLIP-2), section 3.2. Pictures and texts go through one transformer: queries and
words share the self-attention of the Q-Former, the queries alone look at the picture, and the words
have feed-forward layers of their own. An objective is a question together with a mask, which says
who may see whom:

    contrastive    which text belongs to which picture of the batch?     queries and words apart
    matching       does this text belong to this picture?                all see all
    captioning     what does the text say, word by word?                 words see the queries and
                                                                         the words before them

In captioning the words see no picture; all they know of it, the queries have to tell them. All that
is for words is thrown away afterwards.

What is simplified: a text is a few facts, and a word is a whole fact ("vase of flowers"); the words
start untrained and not as BERT; the similarity has 64 dimensions and not 256; there is no label
smoothing; captions are predicted by the word vectors alone, without BERT's extra layer. The ViT
learns too, while BLIP-2's was frozen.
"""
import torch
import torch.nn.functional as F
from torch import nn

from artgpt4 import join_heads, split_heads
from gallery.effects import EFFECTS
from gallery.scenes import COMPOSITIONS, PALETTES, SUBJECTS, THINGS
from gallery.vision import SETTINGS

# ---- Texts

NOTHING, SUMMARY, SPEAK, END = "", "[CLS]", "[DEC]", "."
WORDS = (NOTHING, SUMMARY, SPEAK, END, *SUBJECTS, *COMPOSITIONS, *THINGS, "alone", *SETTINGS,
         *PALETTES, *EFFECTS)
NUMBER_OF = {word: number for number, word in enumerate(WORDS)}
LENGTH = 11                     # words of the longest text: three things, two effects


def text_of(scene, effects=()):
    """The words about a plain scene, and about the effects in its photograph.

    These are the facts of words.facts but for style and mood, which a plain scene does not show.
    """
    things = scene.things or ("alone",)
    return [SUMMARY, scene.subject, scene.composition, *things, scene.setting, scene.palette,
            *effects, END]


def ids_of(texts):
    """Texts as numbers of WORDS (B, LENGTH); short ones are filled with NOTHING."""
    ids = torch.full((len(texts), LENGTH), NUMBER_OF[NOTHING])
    for row, text in zip(ids, texts, strict=True):
        row[:len(text)] = torch.tensor([NUMBER_OF[word] for word in text])
    return ids


# ---- Who sees whom


def masks(queries, words):
    """{objective: bool (Q + T, Q + T)}: may the query or word of this row see that of the column?
    """
    apart = torch.block_diag(torch.ones(queries, queries), torch.ones(words, words)).bool()
    captioning = torch.ones_like(apart).tril()
    captioning[:queries, :queries] = True
    return {"contrastive": apart, "matching": torch.ones_like(apart), "captioning": captioning}


def self_attention(attention, x, mask):
    """A QFormerAttention of x (B, Q + T, D) to itself, under a mask."""
    q, k, v = (split_heads(linear(x), attention.heads)
               for linear in (attention.query, attention.key, attention.value))
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.norm(x + attention.out(join_heads(seen)))


class WordLayer(nn.Module):
    """The feed-forward layer of the words, as a QFormerLayer has one for its queries."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x):                                     # (B, T, D)
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))


# ---- The objectives


def contrastive_loss(image, text, same, temperature):
    """Image-text contrastive loss, and its logits (B pictures, B texts).

    A picture and a text are as similar as the query that is most similar to the text. Each picture
    should find its text, and each text its picture.

    image (B, Q, E) and text (B, E), of length 1; same (B, B): which texts of the batch are equal.
    """
    similarity = (image @ text.T).max(dim=1).values           # (B, Q, B) -> (B, B)
    logits = similarity / temperature
    targets = same / same.sum(dim=1, keepdim=True)
    loss = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
    return loss / 2, logits


def hard_negatives(logits, same):
    """For each row of contrastive logits (B, B) the number of another text, the more likely the
    more similar it is."""
    weights = logits.detach().masked_fill(same, -1e4).softmax(dim=1)
    return weights.multinomial(1).squeeze(1)


class Blip2(nn.Module):
    """The words' side of the Q-Former and the three heads. config: a QFormerConfig."""

    def __init__(self, config, similarity_width=64):
        super().__init__()
        self.words = nn.Embedding(len(WORDS), config.width)
        self.places = nn.Parameter(torch.empty(1, LENGTH, config.width))
        for vectors in (self.words.weight, self.places):
            nn.init.normal_(vectors, std=config.width ** -0.5)
        self.norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(WordLayer(config) for _ in range(config.layers))
        self.image_proj = nn.Linear(config.width, similarity_width)
        self.text_proj = nn.Linear(config.width, similarity_width)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        self.match = nn.Linear(config.width, 2)
        for objective, mask in masks(config.queries, LENGTH).items():
            self.register_buffer(objective, mask)

    def together(self, qformer, patches, ids, mask):
        """Queries and words through the layers of the Q-Former.

        patches (B, P, Dv), after ln_vision; ids (B, T); mask (Q + T, Q + T) -> queries (B, Q, D)
        and words (B, T, D).
        """
        queries = qformer.norm(qformer.queries).expand(len(ids), -1, -1)
        words = self.norm(self.words(ids) + self.places)
        sizes = [queries.shape[1], words.shape[1]]
        for layer, word_layer in zip(qformer.layers, self.layers, strict=True):
            x = torch.cat((queries, words), dim=1)
            queries, words = self_attention(layer.self_attn, x, mask).split(sizes, dim=1)
            if layer.cross_attn is not None:
                queries = layer.cross_attn(queries, patches)
            queries = layer.norm(queries + layer.fc2(F.gelu(layer.fc1(queries))))
            words = word_layer(words)
        return queries, words

    def forward(self, qformer, patches, ids):
        """{objective: its loss}; patches (B, P, Dv), after ln_vision, and the ids (B, T) of their
        texts."""
        same = (ids[:, None] == ids).all(dim=-1)              # (B, B)
        queries, words = self.together(qformer, patches, ids, self.contrastive)
        image = F.normalize(self.image_proj(queries), dim=-1)
        text = F.normalize(self.text_proj(words[:, 0]), dim=-1)          # at SUMMARY
        contrastive, logits = contrastive_loss(image, text, same, self.log_temperature.exp())
        return {"contrastive": contrastive,
                "matching": self.matching_loss(qformer, patches, ids, logits, same),
                "captioning": self.captioning_loss(qformer, patches, ids)}

    def matching_loss(self, qformer, patches, ids, logits, same):
        """Each picture with its text, with a similar wrong text, and its text with a similar wrong
        picture: which of them match? The mean over the queries answers."""
        wrong_texts = ids[hard_negatives(logits, same)]
        wrong_pictures = patches[hard_negatives(logits.T, same)]
        queries, _ = self.together(qformer, torch.cat((patches, patches, wrong_pictures)),
                                   torch.cat((ids, wrong_texts, ids)), self.matching)
        matches = torch.zeros(len(queries), dtype=torch.long, device=ids.device)
        matches[:len(ids)] = 1
        return F.cross_entropy(self.match(queries).mean(dim=1), matches)

    def captioning_loss(self, qformer, patches, ids):
        """Every word from the queries and the words before it, from SPEAK on."""
        spoken = ids.clone()
        spoken[:, 0] = NUMBER_OF[SPEAK]
        _, words = self.together(qformer, patches, spoken, self.captioning)
        logits = F.linear(words[:, :-1], self.words.weight)   # (B, T - 1, V)
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(),
                               ignore_index=NUMBER_OF[NOTHING])
