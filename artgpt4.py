"""ArtGPT-4: a picture goes in, words about it come out. The whole model, to be read top to bottom.

    pixels -> vit -> ln_vision -> qformer -> proj -> image vectors among the words of a prompt
    -> llama -> text

Paper: ArtGPT-4 (2023). It is MiniGPT-4 (EVA-ViT-g, BLIP-2's Q-Former, one linear layer, Vicuna)
with a small image adapter in every block of Vicuna. What is notable here:

- Only the projection, the adapters and some norms are trained (ArtGPT4.freeze). They stay float32
  whatever the frozen weights are, and are cast where they are used.
- The last matrix of every adapter starts at zero: an untrained ArtGPT-4 is exactly MiniGPT-4.
- Text never becomes a special token. The one marker, <ImageHere>, is cut out before tokenising.
- Weights are mapped from disk, not read: only the pages that are used take memory.

Shapes: B images or sequences, N images of a prompt, T tokens, Q queries, P patches + 1, D width,
        H heads, d = D / H, V vocabulary, S pixels per side.
"""
import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence

# ---- Configuration: every size, as in weights/NAME/config.json. Defaults: the 13B model.

@dataclass
class ViTConfig:
    """EVA-ViT-g."""
    width: int = 1408
    layers: int = 39          # the public file holds 40; BLIP-2 reads the features of block 39
    heads: int = 16
    mlp_width: int = 6144
    patch_size: int = 14
    int8: bool = False        # the matrices of the blocks are stored as int8 (common/int8.py)


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
    int8: bool = False        # the matrices of the blocks and the head are stored as int8


@dataclass
class Config:
    """All sizes of an ArtGPT-4."""
    image_size: int = 224
    ln_vision_eps: float = 1e-5
    adapter_width: int = 1280   # D / 4 in the paper; 0 means no adapters, which is MiniGPT-4
    vit: ViTConfig = field(default_factory=ViTConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    llama: LlamaConfig = field(default_factory=LlamaConfig)
    prompt: str = "vicuna_v0"   # the conversation format LLaMA was tuned with: a key of PROMPTS
    about: dict = field(default_factory=dict)        # not of the model: what chat.py should know

    @classmethod
    def from_dict(cls, values):
        """Config from what json.load gives. Raises TypeError for a name that is unknown."""
        return cls(**values | {
            "vit": ViTConfig(**values.get("vit", {})),
            "qformer": QFormerConfig(**values.get("qformer", {})),
            "llama": LlamaConfig(**values.get("llama", {}))})


# ---- Pixels

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's images, as EVA-ViT was trained
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def to_rgb(image):
    """A PIL image of any mode as RGB: upright (EXIF), on white where transparent, 8 bits."""
    with contextlib.suppress(Exception):                  # a damaged EXIF block spoils no picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):                        # 16 bits a pixel
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preprocess(image, size):
    """A PIL image -> float32 (3, size, size), resized whatever its aspect ratio, normalised."""
    image = to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


# ---- EVA-ViT: an image as P vectors, one for each 14 x 14 patch and one for the class token

def split_heads(x, heads):                                    # (B, T, H * d) -> (B, H, T, d)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x):                                            # (B, H, T, d) -> (B, T, H * d)
    return x.transpose(1, 2).flatten(2)


class ViTAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)  # k's bias is zero in released files
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x):                                     # (B, P, D)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))


class ViTBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = ViTAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x):                                     # (B, P, D)
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """pixels (B, 3, S, S) -> (B, P, D), P = (S / patch_size)^2 + 1, before any final norm."""

    def __init__(self, config, image_size):
        super().__init__()
        positions = (image_size // config.patch_size) ** 2 + 1
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.width))
        self.blocks = nn.Sequential(*(ViTBlock(config) for _ in range(config.layers)))

    def forward(self, pixels):
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)        # (B, P - 1, D)
        class_token = self.cls_token.expand(len(pixels), -1, -1)
        return self.blocks(torch.cat((class_token, patches), dim=1) + self.pos_embed)  # (B, P, D)


# ---- Q-Former: P image vectors read into Q

class QFormerAttention(nn.Module):
    """Attention of the queries to `source`, the residual, then a norm (post-norm, as in BERT)."""

    def __init__(self, config, source_width):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(source_width, config.width)
        self.value = nn.Linear(source_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x, source):                             # (B, Q, D), (B, Q or P, source_width)
        q = split_heads(self.query(x), self.heads)
        k = split_heads(self.key(source), self.heads)
        v = split_heads(self.value(source), self.heads)
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
    """Image vectors (B, P, D of the ViT), after ln_vision -> (B, Q, D): what Q queries found."""

    def __init__(self, config, image_width):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, config.queries, config.width))
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.layers = nn.ModuleList(
            QFormerLayer(config, image_width, looks_at_image=i % config.cross_every == 0)
            for i in range(config.layers))

    def forward(self, image):
        x = self.norm(self.queries).expand(len(image), -1, -1)
        for layer in self.layers:
            x = layer(x, image)
        return x


# ---- LLaMA, with the paper's image adapter in every block

class CastLinear(nn.Linear):
    """A Linear with float32 weights for the optimizer, cast to the input's dtype when used."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32."""

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class KVCache:
    """Keys and values of the first `length` tokens in every layer, so a new token costs one token.

    Every layer appends after the same `length`; then Llama.hidden advances it, once for all.
    Setting it back forgets the tokens after it. Room is doubled when it runs out."""

    def __init__(self):
        self.length = 0
        self.layers = {}                                      # layer -> (2, B, H, room, d)

    def append(self, layer, k, v):
        """Keys and values (B, H, T, d) of new tokens -> of all tokens, (B, H, length + T, d)."""
        end = self.length + k.shape[2]
        stored = self.layers.get(layer, k.new_empty(2, *k.shape[:2], 0, k.shape[3]))
        if stored.shape[3] < end:
            larger = k.new_empty(2, *k.shape[:2], max(end + 64, 2 * self.length), k.shape[3])
            larger[:, :, :, :self.length] = stored[:, :, :, :self.length]
            self.layers[layer] = stored = larger
        keys, values = stored
        keys[:, :, self.length:end] = k
        values[:, :, self.length:end] = v
        return keys[:, :, :end], values[:, :, :end]


def rotate(x, cos, sin):
    """Rotary positions on queries or keys (B, H, T, d): elements i and i + d/2 are a point, turned
    by an angle that grows with the token's position. cos, sin (T, d/2), float32: of the angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class LlamaAttention(nn.Module):
    """Causal attention. With fewer kv_heads than heads, a group of query heads shares one."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        head_width = config.hidden_size // self.heads
        self.widths = [heads * head_width for heads in (self.heads, self.kv_heads, self.kv_heads)]
        self.qkv = nn.Linear(config.hidden_size, sum(self.widths), bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, first, cache):             # (B, T, D) -> (B, T - first, D)
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q = rotate(split_heads(q, self.heads), cos, sin)[:, :, first:]      # of wanted tokens
        k = rotate(split_heads(k, self.kv_heads), cos, sin)
        v = split_heads(v, self.kv_heads)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        new, end, mask = q.shape[2], k.shape[2], None         # the last `new` of `end` tokens ask
        if 1 < new < end:                                     # query i sees end - new + i + 1 keys
            mask = torch.ones(new, end, dtype=torch.bool, device=x.device).tril(end - new)
        x = F.scaled_dot_product_attention(q, k, v, mask, is_causal=(new == end),
                                           enable_gqa=self.kv_heads != self.heads)
        return self.out(join_heads(x))


class LlamaMLP(nn.Module):                                    # SwiGLU
    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Adapter(nn.Module):
    """The image adapter (paper, equation 1): up(gelu(down(x))) + x, the identity at first."""

    def __init__(self, width, inner_width):
        super().__init__()
        self.down = CastLinear(width, inner_width)
        self.up = CastLinear(inner_width, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return self.up(F.gelu(self.down(x))) + x


class LlamaBlock(nn.Module):                                  # paper, figure 2
    def __init__(self, config, layer, inner_width):
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = LlamaAttention(config, layer)
        self.adapter = Adapter(config.hidden_size, inner_width) if inner_width else nn.Identity()
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x, cos, sin, first, cache):             # (B, T, D) -> (B, T - first, D)
        x = x[:, first:] + self.attn(self.attn_norm(x), cos, sin, first, cache)
        x = self.adapter(x)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """embeds (B, T, D) -> logits (B, T, V)."""

    def __init__(self, config, adapter_width):
        super().__init__()
        self.config = config
        weight = torch.zeros(config.vocab_size, config.hidden_size)     # nn.Embedding(V, D) would
        self.embed = nn.Embedding.from_pretrained(weight, freeze=False)   # draw it: 1 s on "meta"
        self.blocks = nn.ModuleList(
            LlamaBlock(config, i, adapter_width) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings                     # then the embedding is the head
        self.head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, embeds, cache=None, first=0):
        """embeds (B, T, D), after the cache's tokens -> (B, T - first, D) after the last norm, from
        `first` on (-1: the last alone). Before it the last block takes keys and values alone."""
        start = 0 if cache is None else cache.length
        end = start + embeds.shape[1]
        d = self.config.hidden_size // self.config.num_attention_heads
        pairs = torch.arange(0, d, 2, device=embeds.device).float()
        positions = torch.arange(start, end, device=embeds.device).float()
        angles = positions[:, None] * self.config.rope_theta ** (-pairs / d)       # (T, d/2)
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:                             # only the last may leave out tokens
            left_out = first if block is self.blocks[-1] else 0
            embeds = block(embeds, cos, sin, left_out, cache)
        if cache is not None:
            cache.length = end
        return self.norm(embeds)

    def logits(self, hidden):
        """(..., D) -> (..., V), float32."""
        tied = self.head is None
        return (F.linear(hidden, self.embed.weight) if tied else self.head(hidden)).float()

    def forward(self, embeds, cache=None):
        return self.logits(self.hidden(embeds, cache))


# ---- Prompts

IMAGE_MARK = "<ImageHere>"                                    # where the Q image vectors go
IMAGE_SLOT = f"<Img>{IMAGE_MARK}</Img>"
IMAGE_ID = -1                                                 # "an image vector" among token ids
STOP = "###"                                                  # ends a message in Vicuna's format
SYSTEM = ("Give the following image: <Img>ImageContent</Img>. You will be able to see the image "
          "once I provide it to you. Please answer my questions.")
INSTRUCTIONS = (                                              # stage 2 draws one for every batch
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
PROMPTS = {                 # what stands before a question, before an answer, and at the open end
    "vicuna_v0": ("###Human: ", "###Assistant: ", "###Assistant:"),
    "llama2_chat": ("[INST] ", " [/INST] ", " [/INST] "),     # as MiniGPT-4 writes it
}


def instruction_prompt(instruction):
    """The prompt of stage 2, in Vicuna's format; the description is the answer."""
    return f"###Human: {IMAGE_SLOT} {instruction} ###Assistant: "


def chat_prompt(messages, style="vicuna_v0"):
    """The prompt of a conversation: question, answer, ..., question. A question that comes with an
    image begins with IMAGE_SLOT and a space. style: a key of PROMPTS."""
    before_question, before_answer, open_end = PROMPTS[style]
    prompt = SYSTEM
    for question, answer in zip(messages[:-1:2], messages[1::2], strict=True):
        prompt += before_question + question + before_answer + answer
    return prompt + before_question + messages[-1] + open_end


# ---- The whole

MODES = {"artgpt4": ("norms", "adapters"), "minigpt4": (),    # trained beside the projection
         "norms": ("norms",), "adapters": ("adapters",)}


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
    def image_features(self, pixels):
        """pixels (B, 3, S, S) -> what the Q-Former says of them, (B, Q, D of the Q-Former)."""
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels are {tuple(pixels.shape)}, expected (B, 3, {size}, {size})")
        x = self.vit(pixels.to(self.vit.pos_embed.device, self.vit.pos_embed.dtype))
        return self.qformer(self.ln_vision(x.to(self.qformer.queries.dtype)))

    def encode_image(self, pixels):
        """pixels, or image_features of them -> image_embeds (B, Q, D). Each part has its dtype."""
        embed, sizes = self.llama.embed.weight, self.config.qformer
        is_features = pixels.shape[1:] == (sizes.queries, sizes.width)
        features = pixels.to(embed) if is_features else self.image_features(pixels)
        return self.proj(features).to(embed.dtype)

    def prompt_ids(self, prompt):
        """A prompt -> its token ids: BOS, and for each <ImageHere> Q times IMAGE_ID. As in the
        released code, each text between images is tokenised by itself."""
        ids, llama2 = [], self.config.prompt == "llama2_chat"
        for turn in re.split(r"(?=\[INST\])", prompt) if llama2 else [prompt]:
            ids.append(self.tokenizer.bos_id())               # Llama-2: before every question
            for i, text in enumerate(turn.split(IMAGE_MARK)):
                if i > 0:
                    ids += [IMAGE_ID] * self.config.qformer.queries
                ids += self.tokenizer.encode(text)
        return ids

    def embed_ids(self, ids, image_embeds):
        """ids (T,) or (B, T), image_embeds (N, Q, D) of their images in order -> (B, T, D). Where a
        cache holds the start of a prompt, ids are its rest and take the last of the vectors."""
        ids = torch.atleast_2d(torch.as_tensor(ids, dtype=torch.long, device=image_embeds.device))
        is_image = ids == IMAGE_ID
        embeds = self.llama.embed(ids.clamp(min=0))
        image_vectors = image_embeds.flatten(0, 1)
        embeds[is_image] = image_vectors[len(image_vectors) - int(is_image.sum()):]
        return embeds

    def embed_prompt(self, prompt, image_embeds):
        """A prompt with N <ImageHere> and their image_embeds (N, Q, D) -> (1, T, D)."""
        marks, images = prompt.count(IMAGE_MARK), len(image_embeds)
        if marks != images:
            raise ValueError(f"the prompt has {marks} {IMAGE_MARK}, but there are {images} images")
        return self.embed_ids(self.prompt_ids(prompt), image_embeds)

    # Training
    def trainable_modules(self, mode="artgpt4"):
        """Yield the modules that are trained (paper, section 3.2). mode: a key of MODES."""
        yield self.proj
        for i, block in enumerate(self.llama.blocks):
            if "norms" in MODES[mode]:
                yield block.mlp_norm
                if i % 2 == 0:
                    yield block.attn_norm                     # in every other block
            if "adapters" in MODES[mode]:
                yield block.adapter

    def trainable_names(self, mode="artgpt4"):
        """The names of all trainable parameters, in the order of the model."""
        trainable = {id(p) for module in self.trainable_modules(mode) for p in module.parameters()}
        return [name for name, p in self.named_parameters() if id(p) in trainable]

    def freeze(self, mode="artgpt4"):
        """Freeze all but the trainable modules, which become float32. Returns their parameters."""
        self.requires_grad_(False)
        for module in self.trainable_modules(mode):
            module.float().requires_grad_(True)
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, pixels, captions, prompt=None, end="\n", max_text_tokens=32):
        """pixels as for encode_image, B captions -> the loss of each caption token, a vector. Not a
        mean: a batch may be computed in parts, and only sums over all tokens give its mean. Stage 1
        has no prompt; stage 2 has one, or a list of B, with all the <ImageHere>, and end="###"."""
        prompts = prompt if isinstance(prompt, list) else [prompt] * len(captions)
        rows, targets = [], []
        for before, caption in zip(prompts, captions, strict=True):
            before = self.prompt_ids(before or IMAGE_MARK)
            text = self.tokenizer.encode(caption + end)[:max_text_tokens]
            rows.append(torch.tensor(before + text[:-1]))     # nothing follows the last token
            targets.append(torch.tensor([-100] * (len(before) - 1) + text))
        ids = pad_sequence(rows, batch_first=True)            # on the right, where no token looks
        targets = pad_sequence(targets, batch_first=True, padding_value=-100)
        keep = targets != -100                                # not the prompt, nor the padding
        first = int(keep.any(dim=0).int().argmax())           # before it no row is kept
        embeds = self.embed_ids(ids, self.encode_image(pixels))
        logits = self.llama.logits(self.llama.hidden(embeds, first=first)[keep[:, first:]])
        return F.cross_entropy(logits, targets[keep].to(logits.device), reduction="none")

    def loss(self, *batch, **text):
        """The mean over all caption tokens of the batch; the arguments are forward's."""
        return self(*batch, **text).mean()

    # Answering
    @torch.inference_mode()
    def generate_ids(self, embeds, max_new_tokens=300, temperature=1.0, top_p=0.9, generator=None,
                     cache=None, adjust=None):
        """Yield the next token of each row of embeds (B, T, D), (B,) ids, max_new_tokens times.

        temperature, top_p, generator: see sample. cache: a KVCache of the text before embeds;
        afterwards it holds embeds too, and every token but the last. adjust: a function (logits
        (B, V), ids so far (B, n)) -> logits (B, V), for penalties."""
        cache = KVCache() if cache is None else cache
        chosen = torch.empty(len(embeds), 0, dtype=torch.long, device=embeds.device)
        for _ in range(max_new_tokens):
            logits = self.llama.logits(self.llama.hidden(embeds, cache, first=-1)[:, 0])
            if adjust is not None:
                logits = adjust(logits, chosen)
            ids = sample(logits, temperature, top_p, generator)
            yield ids
            chosen = torch.cat((chosen, ids[:, None]), dim=1)
            embeds = self.llama.embed(ids[:, None])

    def generate(self, embeds, max_new_tokens=300, answer_ids=None, **sampling):
        """Yield the answer to embeds (1, T, D) in pieces of text, as they come. answer_ids: a list
        to which the answer's ids are added. sampling: see generate_ids."""
        ids = [] if answer_ids is None else answer_ids
        shown = 0
        for token in self.generate_ids(embeds, max_new_tokens, **sampling):
            ids.append(token.item())
            text = self.decode(ids, whole=len(ids) == max_new_tokens)
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
            if self.has_ended(ids):
                return

    def decode(self, ids, whole=False):
        """The text of an answer's first tokens, as far as it is certain: half a character and a
        part of "###" wait for the next token, unless ids are the whole answer."""
        eos = self.tokenizer.eos_id()
        if eos in ids:
            ids, whole = ids[:ids.index(eos)], True
        pieces = [i for i in ids if i < self.tokenizer.get_piece_size()]     # Vicuna v0: an id more
        text, stop, _ = self.tokenizer.decode(pieces).partition(STOP)
        if not (whole or stop):
            text = text.rstrip("#")
        return text.rstrip("\N{REPLACEMENT CHARACTER}")

    def has_ended(self, ids):
        """Whether an answer's ids hold EOS or "###", however that was tokenised."""
        pieces = [i for i in ids if i < self.tokenizer.get_piece_size()]
        return self.tokenizer.eos_id() in ids or STOP in self.tokenizer.decode(pieces)

    # Loading: strict, in plain errors; common/loading.py says them in one line for a command
    @classmethod
    def from_pretrained(cls, folder, device="cpu", dtype=None, adapter=True, int8=False,
                        vision_int8=False):
        """The model of a weights folder, in evaluation mode. Raises ValueError for what does not
        fit its config.json. dtype None keeps frozen weights as stored, which on a CPU maps them
        from disk without a copy; trainable ones are always float32. adapter=False starts those as
        training does. int8, vision_int8: quantise the matrices of the language model, of the ViT.
        """
        folder = Path(folder)
        config = Config.from_dict(json.loads((folder / "config.json").read_text("utf-8")))
        config.llama.int8 = config.llama.int8 or int8
        config.vit.int8 = config.vit.int8 or vision_int8
        with torch.device("meta"):                            # names and shapes, no memory
            model = cls(config, None)
        model.tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        if (not 0 < config.llama.rms_norm_eps < 1 <= config.llama.rope_theta < float("inf")
                or min(model.tokenizer.bos_id(), model.tokenizer.eos_id()) < 0):
            raise ValueError(f"{folder}: no BOS or EOS, or an eps or theta that makes no sense")
        files = [folder / "vision.safetensors", *sorted(folder.glob("llama*.safetensors"))]
        if adapter:
            files.append(folder / "adapter.safetensors")      # last: its norms replace LLaMA's
        state = {} if adapter else model.start_adapter()
        for file in files:
            state |= load_file(file)                          # mapped from disk
        if config.llama.int8 or config.vit.int8:
            from common.int8 import quantise_model            # the one file of ours that is needed
            quantise_model(model, state)
        check_state(state, model.state_dict(), folder)
        trainable = set(model.trainable_names())
        for name, tensor in state.items():
            if name in trainable:
                tensor = tensor.float()
            elif dtype and tensor.is_floating_point() and not name.endswith(".scale"):    # of int8
                tensor = tensor.to(dtype)
            state[name] = tensor.to(device)
        model.load_state_dict(state, assign=True)
        return model.eval()

    def start_adapter(self):
        """Make projection and adapters as training starts them -> their {name: tensor}."""
        width, inner_width = self.config.llama.hidden_size, self.config.adapter_width
        self.proj = CastLinear(self.config.qformer.width, width)
        for block in self.llama.blocks if inner_width > 0 else ():
            block.adapter = Adapter(width, inner_width)
        return {name: p.data for name, p in self.named_parameters() if not p.is_meta}

    def load_adapter(self, file):
        """Take all trainable weights from an adapter.safetensors of a model of the same sizes."""
        state = load_file(file)
        check_state(state, {n: self.get_parameter(n) for n in self.trainable_names()}, file)
        self.load_state_dict(state, strict=False)


def check_state(found, expected, where):
    """Raises ValueError, naming a tensor, unless both have the same names and shapes."""
    for name in sorted(found.keys() | expected.keys()):
        shape = tuple(found[name].shape) if name in found else "missing"
        needed = tuple(expected[name].shape) if name in expected else "not part of the model"
        if shape != needed:
            raise ValueError(f"{where}: {name} is {shape}, but by config.json it is {needed}")


def sample(logits, temperature, top_p, generator=None):
    """logits (B, V) -> ids (B,): the likeliest at temperature 0; else drawn, with `generator`, from
    the smallest set of tokens that holds a share top_p of the probability."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs, ids = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    outside = probs.cumsum(dim=-1) - probs >= top_p
    outside[:, 0] = False                                     # the likeliest token always stays
    probs[outside] = 0
    return ids.gather(1, torch.multinomial(probs, 1, generator=generator))[:, 0]
