"""ArtGPT-4: a picture goes in, words about it come out. The whole model in one file, to be read from top to bottom.

    pixels (B, 3, S, S) -> vit -> ln_vision -> qformer -> proj -> vectors among the prompt's words -> llama -> text

Paper: ArtGPT-4 (2023). It is MiniGPT-4 (EVA-ViT-g, BLIP-2's Q-Former, one linear layer, Vicuna) with a small image
adapter in every block of Vicuna. What is notable here:

- Only the projection, the adapters and some of the norms train (ArtGPT4.freeze). They stay float32 whatever the
  frozen weights are, and are cast where they are used, so no autocast and no gradient lost to half precision.
- The adapters start at zero: an untrained ArtGPT-4 is MiniGPT-4, to the bit.
- Text never becomes a special token. The one marker, <ImageHere>, is cut out of a prompt before it is tokenised.
- Weights are mapped from disk, not read: a model is in memory once, and only the pages that were used.

Shapes: B images or sequences, T tokens, Q queries, P patches + 1, D width, H heads, V vocabulary.
"""
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.files import load_tokenizer, read_tensors, save_tensors, to_rgb, weight_files, written_beside
from common.int8 import Int8Linear, quantise

# ---- Configuration: every size, as weights/NAME/config.json holds them. The defaults are those of the 13B model.


@dataclass
class ViTConfig:
    """EVA-ViT-g."""
    width: int = 1408
    layers: int = 39          # the public file holds 40; BLIP-2 reads the features of block 39
    heads: int = 16
    mlp_width: int = 6144
    patch_size: int = 14
    int8: bool = False        # ours: the matrices of the blocks are Int8Linear


@dataclass
class QFormerConfig:
    """The Q-Former's query path."""
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    queries: int = 32
    cross_every: int = 2      # layers 0, 2, 4, ... look at the image


@dataclass
class LlamaConfig:
    """LLaMA; the names are those of its public config.json."""
    hidden_size: int = 5120
    intermediate_size: int = 13824
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    num_key_value_heads: int = 40
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    vocab_size: int = 32001
    tie_word_embeddings: bool = False
    int8: bool = False        # ours: the matrices of the blocks and the head are Int8Linear


@dataclass
class Config:
    """All sizes of an ArtGPT-4. `adapter_width` is D/4 in the paper; 0 means no adapters, which is MiniGPT-4."""
    image_size: int = 224
    ln_vision_eps: float = 1e-5
    adapter_width: int = 1280
    vit: ViTConfig = field(default_factory=ViTConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    llama: LlamaConfig = field(default_factory=LlamaConfig)
    prompt: str = "vicuna_v0"   # how the language model was taught to converse: a key of PROMPTS

    @classmethod
    def from_dict(cls, values):
        """Config from what json.load gives. Raises ValueError for a name that is unknown."""
        def build(part, values):
            known = {f.name for f in fields(part)}
            if unknown := set(values) - known:
                raise ValueError(f"unknown {', '.join(sorted(unknown))} (known: {', '.join(sorted(known))})")
            return part(**values)
        parts = {"vit": ViTConfig, "qformer": QFormerConfig, "llama": LlamaConfig}
        return build(cls, values | {name: build(part, values.get(name, {})) for name, part in parts.items()})


# ---- Pixels

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, as EVA-ViT was trained
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(image, size):
    """A PIL image -> float32 (3, size, size), resized without regard to its aspect ratio and normalised."""
    image = to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]


# ---- EVA-ViT: an image as P vectors, one for every 14 x 14 patch and one for the class token


def split_heads(x, heads):
    """(B, T, heads * d) -> (B, heads, T, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x):
    """(B, H, T, d) -> (B, T, H * d)"""
    return x.transpose(1, 2).flatten(2)


class ViTAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        linear = Int8Linear if config.int8 else nn.Linear
        self.qkv = linear(config.width, 3 * config.width)     # the released weights have no bias on k: it is zero
        self.proj = linear(config.width, config.width)

    def forward(self, x):                                     # (B, P, D)
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))


class ViTBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = ViTAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        linear = Int8Linear if config.int8 else nn.Linear
        self.fc1 = linear(config.width, config.mlp_width)
        self.fc2 = linear(config.mlp_width, config.width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """pixels (B, 3, S, S) -> (B, P, D) with P = (S / patch)^2 + 1, before any final norm."""

    def __init__(self, config, image_size):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // config.patch_size) ** 2 + 1, config.width))
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.layers))

    def forward(self, pixels):
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)                    # (B, P - 1, D)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


# ---- Q-Former: P image vectors read into Q


class QFormerAttention(nn.Module):
    """Attention of the queries to themselves or to the image, then the residual and its norm (post-norm, as BERT)."""

    def __init__(self, config, source_width):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(source_width, config.width)
        self.value = nn.Linear(source_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x, source):                             # x (B, Q, D), source (B, Q or P, source_width)
        q, k, v = (split_heads(t, self.heads) for t in (self.query(x), self.key(source), self.value(source)))
        return self.norm(x + self.out(join_heads(F.scaled_dot_product_attention(q, k, v))))


class QFormerLayer(nn.Module):
    def __init__(self, config, image_width, looks_at_image):
        super().__init__()
        self.self_attn = QFormerAttention(config, config.width)
        self.cross_attn = QFormerAttention(config, image_width) if looks_at_image else None
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x, image):
        x = self.self_attn(x, x)
        if self.cross_attn is not None:
            x = self.cross_attn(x, image)
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))


class QFormer(nn.Module):
    """Image vectors (B, P, Dv), after ln_vision -> (B, Q, D): what Q learned queries found in them."""

    def __init__(self, config, image_width):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, config.queries, config.width))
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.layers = nn.ModuleList(QFormerLayer(config, image_width, i % config.cross_every == 0)
                                    for i in range(config.layers))

    def forward(self, image):
        x = self.norm(self.queries).expand(len(image), -1, -1)
        for layer in self.layers:
            x = layer(x, image)
        return x


# ---- LLaMA, with the paper's image adapter in every block


class CastLinear(nn.Linear):
    """A Linear whose weights stay float32 for the optimizer and are cast to the input's dtype in the computation."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class KVCache:
    """The keys and values of the first `length` tokens, for every layer. Setting `length` back forgets what came after.
    Room is doubled when it runs out, so a token's cost does not grow with copying."""

    def __init__(self):
        self.length = 0
        self.layers = {}                                      # layer -> keys and values, (2, B, H, room, d)

    def append(self, layer, k, v):
        """Keys and values (B, H, T, d) of new tokens -> those of all tokens so far, (B, H, length + T, d)."""
        end = self.length + k.shape[2]
        stored = self.layers.get(layer)
        if stored is None or stored.shape[3] < end:
            room = max(end + 64, 2 * self.length)
            grown = k.new_empty(2, *k.shape[:2], room, k.shape[3])
            if stored is not None:
                grown[:, :, :, :self.length] = stored[:, :, :, :self.length]
            self.layers[layer] = stored = grown
        stored[0, :, :, self.length:end], stored[1, :, :, self.length:end] = k, v
        return stored[0, :, :, :end], stored[1, :, :, :end]

    def select(self, rows):
        """A cache of the given rows of this one's batch, one for each entry of `rows`."""
        chosen = KVCache()
        chosen.length = self.length
        chosen.layers = {layer: stored[:, rows] for layer, stored in self.layers.items()}
        return chosen


def rotate(x, cos, sin):
    """Rotary positions on queries or keys (B, H, T, d): i and i + d/2 are a pair. cos and sin: (T, d), float32."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


class LlamaAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.heads, self.kv_heads = layer, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        linear = Int8Linear if config.int8 else nn.Linear
        self.qkv = linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask, cache):              # (B, T, D)
        qk, v = split_heads(self.qkv(x), self.heads + 2 * self.kv_heads).split(
            (self.heads + self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(qk, cos, sin).split((self.heads, self.kv_heads), dim=1)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=1 < q.shape[2] == k.shape[2],
                                           enable_gqa=self.kv_heads != self.heads)
        return self.out(join_heads(x))


class LlamaMLP(nn.Module):  # SwiGLU
    def __init__(self, config):
        super().__init__()
        linear = Int8Linear if config.int8 else nn.Linear
        self.gate_up = linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Adapter(nn.Module):
    """The image adapter (paper, equation 1): up(gelu(down(x))) + x. It starts as the identity."""

    def __init__(self, width, inner_width):
        super().__init__()
        self.down = CastLinear(width, inner_width)
        self.up = CastLinear(inner_width, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return self.up(F.gelu(self.down(x))) + x


class LlamaBlock(nn.Module):
    """Paper, figure 2: attention, image adapter, MLP."""

    def __init__(self, config, layer, adapter_width):
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = LlamaAttention(config, layer)
        self.adapter = Adapter(config.hidden_size, adapter_width) if adapter_width else nn.Identity()
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x, cos, sin, mask, cache):
        x = x + self.attn(self.attn_norm(x), cos, sin, mask, cache)
        x = self.adapter(x)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """embeds (B, T, D) -> logits (B, T, V)."""

    def __init__(self, config, adapter_width):
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.hidden_size).uniform_(-1, 1)
        self.embed = nn.Embedding.from_pretrained(weight, freeze=False)  # its own normal_ takes a second on "meta"
        self.blocks = nn.ModuleList(LlamaBlock(config, i, adapter_width) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        linear = Int8Linear if config.int8 else nn.Linear
        self.head = None if config.tie_word_embeddings else linear(config.hidden_size, config.vocab_size, bias=False)
        self.checkpointing = False    # True: training keeps each block's input alone and computes the rest again

    def hidden(self, embeds, cache=None):
        """embeds (B, T, D) -> (B, T, D) after the last norm. With a KVCache the T tokens follow those it holds."""
        start, new = (cache.length if cache is not None else 0), embeds.shape[1]
        dim = self.config.hidden_size // self.config.num_attention_heads
        frequency = self.config.rope_theta ** (-torch.arange(0, dim, 2, device=embeds.device).float() / dim)
        angle = torch.arange(start, start + new, device=embeds.device).float()[:, None] * frequency    # (T, d/2)
        cos, sin, mask = angle.cos(), angle.sin(), None
        cos, sin = torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)                         # (T, d)
        if start and new > 1:                                 # else nothing is hidden, or what is_causal hides
            mask = torch.ones(new, start + new, dtype=torch.bool, device=embeds.device).tril(start)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                embeds = checkpoint(block, embeds, cos, sin, mask, None, use_reentrant=False)
            else:
                embeds = block(embeds, cos, sin, mask, cache)
        if cache is not None:
            cache.length += new
        return self.norm(embeds)

    def logits(self, hidden):
        """(..., D) -> (..., V), float32."""
        return (F.linear(hidden, self.embed.weight) if self.head is None else self.head(hidden)).float()

    def forward(self, embeds, cache=None):
        return self.logits(self.hidden(embeds, cache))


# ---- Prompts

IMAGE_MARK = "<ImageHere>"                                    # where the Q image vectors go
IMAGE_SLOT = f"<Img>{IMAGE_MARK}</Img>"
SYSTEM = ("Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to "
          "you. Please answer my questions.")
INSTRUCTIONS = (                                              # stage 2 draws one of them for every batch
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
STOP = "###"                                                  # ends a message, however it was tokenised
BOS_MARK = "\x02"                                             # BOS; a control character, which no user's text holds
PROMPTS = {                                                   # before a question, before an answer, at the end
    "vicuna_v0": ("###Human: ", "###Assistant: ", "###Assistant:"),
    "llama2_chat": (f"{BOS_MARK}[INST] ", " [/INST] ", " [/INST] "),         # as MiniGPT-4 writes it
}


def instruction_prompt(instruction):
    """The prompt of stage 2, to which the description is the answer."""
    return f"###Human: {IMAGE_SLOT} {instruction} ###Assistant: "


def chat_prompt(messages, style="vicuna_v0"):
    """The prompt of a conversation. messages: question, answer, question, ...; it ends with a question. A question that
    comes with an image begins with IMAGE_SLOT and a space. style: a key of PROMPTS."""
    turns = "".join(PROMPTS[style][i % 2] + message for i, message in enumerate(messages))
    return f"{SYSTEM}{turns}{PROMPTS[style][2]}"


# ---- The whole

# What trains beside the projection, which is all that trains in "minigpt4"; the last two are the paper's halves.
TRAINS = {"artgpt4": ("norms", "adapters"), "minigpt4": (), "norms": ("norms",), "adapters": ("adapters",)}


def trainable_names(config, mode="artgpt4"):
    """The names of all that trains (paper, section 3.2), in the order of the way through the model."""
    names = ["proj.weight", "proj.bias"]
    for i in range(config.llama.num_hidden_layers):
        parts = []
        if "norms" in TRAINS[mode]:                           # before every MLP; before the attention of every other
            parts += ["attn_norm.weight", "mlp_norm.weight"] if i % 2 == 0 else ["mlp_norm.weight"]
        if "adapters" in TRAINS[mode] and config.adapter_width:
            parts += ["adapter.down.weight", "adapter.down.bias", "adapter.up.weight", "adapter.up.bias"]
        names += [f"llama.blocks.{i}.{part}" for part in parts]
    return names


def initial_adapter(config):
    """Yield (name, float32 tensor) of projection and adapters as training starts them; the norms start as LLaMA's own.
    One module at a time is in memory."""
    width = config.llama.hidden_size
    yield from CastLinear(config.qformer.width, width).state_dict(prefix="proj.").items()
    for i in range(config.llama.num_hidden_layers if config.adapter_width else 0):
        yield from Adapter(width, config.adapter_width).state_dict(prefix=f"llama.blocks.{i}.adapter.").items()


class ArtGPT4(nn.Module):
    """The model and its tokenizer (a sentencepiece processor)."""

    def __init__(self, config, tokenizer):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.vit = ViT(config.vit, config.image_size)
        self.ln_vision = nn.LayerNorm(config.vit.width, eps=config.ln_vision_eps)
        self.qformer = QFormer(config.qformer, config.vit.width)
        self.proj = CastLinear(config.qformer.width, config.llama.hidden_size)
        self.llama = Llama(config.llama, config.adapter_width)

    # From a picture and a prompt to what llama reads

    def encode_image(self, pixels):
        """pixels (B, 3, S, S) -> image_embeds (B, Q, D)"""
        x = self.vit(pixels.to(self.vit.pos_embed.device, self.vit.pos_embed.dtype))
        x = self.qformer(self.ln_vision(x.to(self.qformer.queries.dtype)))   # each may be stored in its own dtype
        return self.proj(x).to(self.llama.embed.weight.dtype)

    def prompt_ids(self, prompt):
        """BOS and the prompt's tokens. Vector q of the image at the i-th <ImageHere> has the id -(1 + i * Q + q).
        Each text between images is tokenised by itself, as the released code does."""
        queries, ids = self.config.qformer.queries, []
        for i, text in enumerate(prompt.split(IMAGE_MARK)):
            ids += range(-1 - (i - 1) * queries, -1 - i * queries, -1) if i else ()
            for j, part in enumerate(text.split(BOS_MARK)):
                ids += [self.tokenizer.bos_id()] * (i == 0 or j > 0) + self.tokenizer.encode(part)
        return ids

    def embed_ids(self, ids, image_embeds):
        """A list of ids of prompt_ids, or B of one length; image_embeds (N, Q, D) of all images in it -> (B, T, D)"""
        ids = torch.atleast_2d(torch.tensor(ids, dtype=torch.long, device=image_embeds.device))
        embeds, images = self.llama.embed(ids.clamp(min=0)), ids < 0
        embeds[images] = image_embeds.flatten(0, 1)[-1 - ids[images]]
        return embeds

    def embed_prompt(self, prompt, image_embeds):
        """A prompt with N <ImageHere> and its image_embeds (N, Q, D) -> (1, T, D). Raises ValueError for another N."""
        if (marks := prompt.count(IMAGE_MARK)) != len(image_embeds):
            raise ValueError(f"the prompt has {marks} {IMAGE_MARK}, but there are {len(image_embeds)} images")
        return self.embed_ids(self.prompt_ids(prompt), image_embeds)

    # Training

    def freeze(self, mode="artgpt4"):
        """Leave training what mode, a key of TRAINS, says beside the projection, in float32. Returns its parameters."""
        self.requires_grad_(False)
        parameters = [self.get_parameter(name) for name in trainable_names(self.config, mode)]
        for parameter in parameters:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        return parameters

    def forward(self, pixels, captions, prompt=None, end="\n", max_text_tokens=32):
        """Cross-entropy of every caption token of the batch, (N,); prompt, image and padding are not counted.
        pixels (B, 3, S, S); captions: B strings. Stage 1: no prompt. Stage 2: a prompt with one <ImageHere> (or a list
        of B of them) and end="###"."""
        prompts = prompt if isinstance(prompt, list) else [prompt] * len(captions)
        rows, positions, targets = [], [], []
        for i, caption in enumerate(captions):
            text = self.tokenizer.encode(caption + end)[:max_text_tokens]
            before = self.prompt_ids(prompts[i] or IMAGE_MARK)
            before = [id - i * self.config.qformer.queries if id < 0 else id for id in before]   # of the i-th image
            rows.append(before + text[:-1])                   # nothing follows the last token
            positions.append(range(len(before) - 1, len(rows[-1])))
            targets += text
        width = max(len(row) for row in rows)
        rows = [row + [0] * (width - len(row)) for row in rows]              # padded on the right: causal, no mask
        hidden = self.llama.hidden(self.embed_ids(rows, self.encode_image(pixels))).flatten(0, 1)
        at_text = torch.tensor([i * width + j for i, row in enumerate(positions) for j in row], device=hidden.device)
        targets = torch.tensor(targets, device=hidden.device)
        return F.cross_entropy(self.llama.logits(hidden[at_text]), targets, reduction="none")

    def loss(self, *batch, **text):
        """The mean over all caption tokens of the batch, as forward has them."""
        return self(*batch, **text).mean()

    # Answering

    @cached_property
    def ending_ids(self):
        """The tokens that an answer can end with: EOS, and every piece with a "#"."""
        pieces = range(self.tokenizer.get_piece_size())
        return [self.tokenizer.eos_id(), *(i for i in pieces if "#" in self.tokenizer.id_to_piece(i))]

    def next_logits(self, embeds, cache, chosen, repetition_penalty, min_new_tokens):
        """Logits (B, V) of the token after embeds (B, T, D). chosen: the ids (B, n) of the answer so far; their logits
        are divided by the penalty (negative ones multiplied); before min_new_tokens no answer can end."""
        logits = self.llama.logits(self.llama.hidden(embeds, cache)[:, -1])
        if repetition_penalty != 1:
            scores = logits.gather(1, chosen)
            scores = torch.where(scores < 0, scores * repetition_penalty, scores / repetition_penalty)
            logits = logits.scatter(1, chosen, scores)
        if chosen.shape[1] < min_new_tokens:
            logits[:, self.ending_ids] = -torch.inf
        return logits

    @torch.inference_mode()
    def generate_ids(self, embeds, max_new_tokens=300, temperature=1.0, top_p=0.9, repetition_penalty=1.0,
                     min_new_tokens=0, generator=None, cache=None):
        """Yield the next token of each row, (B,) ids, up to max_new_tokens times. embeds: (B, T, D), all of length T.
        temperature 0 takes the likeliest token; else the next token is drawn, with `generator`, from the smallest set
        of tokens that holds a share top_p of the probability. cache: a KVCache with what comes before embeds; it then
        holds embeds too, and every token but the last."""
        cache = KVCache() if cache is None else cache
        chosen = torch.empty(len(embeds), 0, dtype=torch.long, device=embeds.device)
        for _ in range(max_new_tokens):
            logits = self.next_logits(embeds, cache, chosen, repetition_penalty, min_new_tokens)
            ids = sample(logits, temperature, top_p, generator)
            yield ids
            chosen, embeds = torch.cat((chosen, ids[:, None]), dim=1), self.llama.embed(ids[:, None])

    @torch.inference_mode()
    def beam_search(self, embeds, beams, max_new_tokens=300, repetition_penalty=1.0, min_new_tokens=0, cache=None,
                    length_penalty=1.0):
        """The ids of the likeliest answer that keeping the best `beams` beginnings finds. embeds: (1, T, D). Its score
        is log-probability / length ** length_penalty. cache: as in generate_ids, but afterwards without the answer."""
        cache = KVCache() if cache is None else cache
        rows, scores, ended = [[]], torch.zeros(1, device=embeds.device), []
        for length in range(1, max_new_tokens + 1):
            chosen = torch.tensor(rows, dtype=torch.long, device=embeds.device)
            logits = self.next_logits(embeds, cache, chosen, repetition_penalty, min_new_tokens)
            best, where = (scores[:, None] + logits.log_softmax(dim=-1)).flatten().topk(2 * beams)
            alive = []
            for rank, (score, at) in enumerate(zip(best.tolist(), where.tolist(), strict=True)):
                parent, token = divmod(at, logits.shape[1])
                row = rows[parent] + [token]
                if not self.readable(row)[1]:
                    alive = [*alive, (score, parent, row)][:beams]
                elif rank < beams:
                    ended.append((score / length ** length_penalty, row))
            if sum(score >= alive[0][0] / length ** length_penalty for score, _ in ended) >= beams:
                break
            scores, parents, rows = zip(*alive, strict=True)
            scores = torch.tensor(scores, device=embeds.device)
            cache = cache.select(list(parents))
            embeds = self.llama.embed(torch.tensor(rows, device=embeds.device)[:, -1:])
        return max(ended + [(score / length ** length_penalty, row) for score, _, row in alive])[1]

    def readable(self, ids, whole=False):
        """The text of an answer's first tokens as far as it is sure, and whether the answer has ended. Not sure are
        half a character and a part of "###"; they wait for the next token, unless this is the whole answer."""
        eos, pieces = self.tokenizer.eos_id(), self.tokenizer.get_piece_size()
        ended = eos in ids
        ids = ids[:ids.index(eos)] if ended else ids
        text = self.tokenizer.decode([i for i in ids if i < pieces])         # Vicuna v0 has a token that is no piece
        if STOP in text:
            return text.partition(STOP)[0], True
        return (text if ended or whole else text.rstrip("#")).rstrip("\N{REPLACEMENT CHARACTER}"), ended

    def generate(self, embeds, max_new_tokens=300, beams=1, cache=None, **sampling):
        """Yield the answer to a prompt's embeds (1, T, D) in pieces of text as they come; see generate_ids. With
        several beams it comes at once: see beam_search, which draws nothing."""
        if beams > 1:
            sampling = {name: sampling[name] for name in ("repetition_penalty", "min_new_tokens") if name in sampling}
            yield self.readable(self.beam_search(embeds, beams, max_new_tokens, cache=cache, **sampling), whole=True)[0]
            return
        ids, shown = [], 0
        for token in self.generate_ids(embeds, max_new_tokens, cache=cache, **sampling):
            ids.append(token.item())
            text, ended = self.readable(ids, whole=len(ids) == max_new_tokens)
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
            if ended:
                return

    def answers(self, embeds, **sampling):
        """The whole answers to B prompts of equal length, embeds (B, T, D) -> B strings; sampling: see generate_ids."""
        rows, ended = [[] for _ in embeds], [False] * len(embeds)
        for ids in self.generate_ids(embeds, **sampling):
            for i, token in enumerate(ids.tolist()):
                if not ended[i]:
                    rows[i].append(token)
                    ended[i] = self.readable(rows[i])[1]
            if all(ended):
                break
        return [self.readable(row, whole=True)[0].strip() for row in rows]

    # Loading and saving

    @classmethod
    def from_pretrained(cls, folder, device="cpu", dtype=None, adapter=True, int8=False, vision_int8=False):
        """The model of a weights folder, in evaluation mode. dtype None keeps the frozen weights as they are stored,
        which on a CPU maps them from disk without a copy. What trains is float32 always; adapter=False leaves
        adapter.safetensors aside and starts it anew. int8 and vision_int8: the matrices of the language model, and of
        the ViT, are quantised while they are read, unless they are stored so.

        Raises ValueError, naming the file, for a folder that is missing, incomplete, or does not fit its config.json.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: no weights folder (no config.json); make one with convert_weights.py")
        try:
            config = Config.from_dict(json.loads((folder / "config.json").read_text()))
            chat_prompt([], config.prompt)                    # is it one of PROMPTS?
            config.llama.int8, config.vit.int8 = int8 or config.llama.int8, vision_int8 or config.vit.int8
            with torch.device("meta"):
                model = cls(config, None)
        except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, KeyError) as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        model.tokenizer = load_tokenizer(folder / "tokenizer.model", config)
        state = {} if adapter else {name: tensor.to(device) for name, tensor in initial_adapter(config)}
        trains, expected = set(trainable_names(config)), model.state_dict()
        for file in weight_files(folder, adapter):            # adapter.safetensors comes last and replaces the norms
            for name, tensor in read_tensors(file):
                scale = name.removesuffix("weight") + "scale"
                if scale in expected and tensor.is_floating_point():
                    tensor, scales = quantise(tensor)
                    state[scale] = scales.flatten().to(device)
                quantised = tensor.dtype == torch.int8 or name.endswith(".scale")
                frozen = tensor.dtype if quantised else dtype or tensor.dtype
                state[name] = tensor.to(device, torch.float32 if name in trains else frozen)
        wrong = [f"{name} is missing" for name in expected.keys() - state.keys()]
        wrong += [f"{name} is not part of the model" for name in state.keys() - expected.keys()]
        wrong += [f"{name} is {tuple(state[name].shape)}, config.json says {tuple(expected[name].shape)}"
                  for name in expected.keys() & state.keys() if state[name].shape != expected[name].shape]
        if wrong:
            raise ValueError(f"{folder}: {min(wrong)}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
        model.load_state_dict(state, assign=True)
        return model.eval()

    def save_pretrained(self, folder):
        """Write a weights folder: config.json, tokenizer.model and the three files of tensors."""
        folder, state = Path(folder), self.state_dict()
        vision = [name for name in state if name.startswith(("vit.", "ln_vision.", "qformer."))]
        llama = [name for name in state if name.startswith("llama.") and ".adapter." not in name]
        for part, names in (("vision", vision), ("llama", llama), ("adapter", trainable_names(self.config))):
            save_tensors({name: state[name] for name in names}, folder / f"{part}.safetensors")
        with written_beside(folder / "tokenizer.model") as path:
            path.write_bytes(self.tokenizer.serialized_model_proto())
        with written_beside(folder / "config.json") as path:
            path.write_text(json.dumps(asdict(self.config), indent=1) + "\n")

    def save_adapter(self, file):
        """Write all that trains, float32, to an adapter.safetensors."""
        save_tensors({name: self.get_parameter(name).data for name in trainable_names(self.config)}, file)

    def load_adapter(self, file):
        """Take all that trains from an adapter.safetensors. Raises ValueError if it belongs to another model."""
        state, names = dict(read_tensors(file)), trainable_names(self.config)
        if unknown := state.keys() - set(names):
            raise ValueError(f"{file}: {min(unknown)} does not train in this model")
        for name in names:
            parameter = self.get_parameter(name)
            if name not in state or state[name].shape != parameter.shape:
                found = tuple(state[name].shape) if name in state else "missing"
                raise ValueError(f"{file}: {name} is {found}, this model needs {tuple(parameter.shape)}")
            parameter.data = state[name].to(parameter.device, torch.float32, copy=True)


def sample(logits, temperature, top_p, generator=None):
    """logits (B, V) -> ids (B,): argmax at temperature 0, else drawn from the top_p share (the "nucleus")."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs, ids = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    outside = probs.cumsum(dim=-1) - probs >= top_p
    outside[:, 0] = False                                     # the likeliest token always stays
    probs[outside] = 0
    return ids.gather(1, torch.multinomial(probs, 1, generator=generator))[:, 0]
