"""ArtGPT-4: a picture goes in, words about it come out. The whole model, to be read top to bottom.

    pixels -> vit -> ln_vision -> qformer -> proj -> image vectors in a prompt -> llama -> text

Paper: ArtGPT-4 (2023). It is MiniGPT-4 (EVA-ViT-g, BLIP-2's Q-Former, one linear layer, Vicuna)
with a small image adapter in every block of Vicuna. What is notable here:
- Only the projection, the adapters and some norms are trained (ArtGPT4.freeze). They stay float32
  whatever the frozen weights are, and are cast where they are used.
- The last matrix of every adapter starts at zero: an untrained ArtGPT-4 is exactly MiniGPT-4.
- Text never becomes a special token. The marks <ImageHere> and END are cut out before tokenising.

Shapes: B sequences, N images, T tokens, Q queries, P patches + 1, D width, H heads, d = D / H,
        V vocabulary, S pixels per side.
"""
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import nn
from torch.nn.utils.rnn import pad_sequence

@dataclass
class Config:
    """Every size, as in weights/NAME/config.json; the 13B model's where nothing else is said."""
    image_size: int = 224
    patch_size: int = 14
    vit_width: int = 1408             # EVA-ViT-g
    vit_layers: int = 39              # the public file holds 40; BLIP-2 leaves out the last
    vit_heads: int = 16
    vit_mlp_width: int = 6144
    ln_vision_eps: float = 1e-5
    queries: int = 32                 # the Q-Former
    qformer_width: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    qformer_mlp_width: int = 3072
    llama_width: int = 5120           # Vicuna
    llama_layers: int = 40
    llama_heads: int = 40
    llama_kv_heads: int = 40          # fewer than llama_heads: grouped-query attention
    llama_mlp_width: int = 13824
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    context: int = 2048               # tokens
    vocab_size: int = 32001
    adapter_width: int = 1280         # D / 4 in the paper; 0: no adapters, which is MiniGPT-4
    prompt: str = "vicuna_v0"         # the language model's conversation format: a key of PROMPTS

    def __post_init__(self):
        for name, value in vars(self).items():
            default, least = getattr(Config, name), 0 if name == "adapter_width" else 1e-12
            if type(value) is not type(default) or (name != "prompt" and not least <= value < 1e12):
                raise ValueError(f"{name} is {value!r}; of the 13B model it is {default!r}")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt is {self.prompt!r}, expected {' or '.join(PROMPTS)}")
        if (self.vit_width % self.vit_heads or self.qformer_width % self.qformer_heads
                or self.image_size % self.patch_size or self.llama_width / 2 % self.llama_heads):
            raise ValueError("image_size is no multiple of patch_size, or a width of its heads")

# ---- Pixels, with the mean and standard deviation of CLIP's images, as EVA-ViT was trained
PIXEL_MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
PIXEL_STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]

def normalise(pixels):
    """uint8 (..., S, S, 3) -> float32 (..., 3, S, S), in deviations from the mean."""
    pixels = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    return (pixels / 255 - PIXEL_MEAN) / PIXEL_STD

def preprocess(image, size):
    """A PIL image -> float32 (3, size, size), resized whatever its aspect ratio, normalised."""
    image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return normalise(torch.from_numpy(np.array(image)))

# ---- EVA-ViT: an image as P vectors, one for each 14 x 14 patch and one for the class token
def split_heads(x, heads):                                    # (B, T, H * d) -> (B, H, T, d)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)

class Attention(nn.Module):
    """Every vector of x looks at all of `source`: at x itself, or in the Q-Former at the image."""
    def __init__(self, width, source_width, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)             # EVA-ViT has no bias here: it is 0
        self.value = nn.Linear(source_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x, source):         # (N, T, D), (N, T of source, source_width) -> (N, T, D)
        q = split_heads(self.query(x), self.heads)
        k = split_heads(self.key(source), self.heads)
        v = split_heads(self.value(source), self.heads)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

class ViTBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.vit_width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, width, config.vit_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, config.vit_mlp_width)
        self.fc2 = nn.Linear(config.vit_mlp_width, width)

    def forward(self, x):                                     # (N, P, D) -> (N, P, D)
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

class ViT(nn.Module):
    """pixels (N, 3, S, S) -> (N, P, D), P = (S / patch_size)^2 + 1, before any final norm."""
    def __init__(self, config):
        super().__init__()
        patch, width = config.patch_size, config.vit_width
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.image_size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(ViTBlock(config) for _ in range(config.vit_layers)))

    def forward(self, pixels):
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)        # (N, P - 1, D)
        class_token = self.cls_token.expand(len(pixels), -1, -1)
        return self.blocks(torch.cat((class_token, patches), dim=1) + self.pos_embed)  # (N, P, D)

# ---- Q-Former: P features of the ViT become Q vectors. As in BERT, norms follow the residuals
class QFormerLayer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        width, heads = config.qformer_width, config.qformer_heads
        self.self_attn = Attention(width, width, heads)
        self.self_norm = nn.LayerNorm(width, eps=1e-12)
        self.cross_attn = None
        if layer % 2 == 0:                                    # layers 0, 2, 4, ... see the image
            self.cross_attn = Attention(width, config.vit_width, heads)
            self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.fc1 = nn.Linear(width, config.qformer_mlp_width)
        self.fc2 = nn.Linear(config.qformer_mlp_width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, features):       # (N, Q, D), (N, P, D of the ViT) -> (N, Q, D)
        x = self.self_norm(x + self.self_attn(x, x))
        if self.cross_attn is not None:
            x = self.cross_norm(x + self.cross_attn(x, features))
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))

class QFormer(nn.Module):
    """Features (N, P, D of the ViT), after ln_vision -> (N, Q, D): what Q learned queries found."""
    def __init__(self, config):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, config.queries, config.qformer_width))
        self.norm = nn.LayerNorm(config.qformer_width, eps=1e-12)
        self.layers = nn.ModuleList(QFormerLayer(config, i) for i in range(config.qformer_layers))

    def forward(self, features):
        x = self.norm(self.queries).expand(len(features), -1, -1)            # (N, Q, D)
        for layer in self.layers:
            x = layer(x, features)
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
    """Keys and values of the `length` tokens so far, in every layer: a new token costs one token.
    Memory for `room` tokens of `rows` sequences is set aside at once. Each layer writes after the
    first `length`; then Llama.hidden advances length. To forget tokens, lower it."""
    def __init__(self, llama, room=None, rows=1):
        config, self.length = llama.config, 0
        d = config.llama_width // config.llama_heads
        shape = (2, config.llama_layers, rows, config.llama_kv_heads, room or config.context, d)
        self.kv = llama.embed.weight.new_empty(shape)         # of its dtype, on its device

    def append(self, layer, k, v):
        """Keys and values (B, H, T, d) of new tokens -> of all tokens, (B, H, length + T, d)."""
        end = self.length + k.shape[2]
        self.kv[:, layer, :, :, self.length:end] = torch.stack((k, v))
        return self.kv[:, layer, :, :, :end]

def rotate(x, cos, sin):
    """Rotary position embedding of queries or keys (B, H, T, d): elements i and i + d/2 are a
    point, turned by an angle that grows with the token's position. cos, sin (T, d/2), float32."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

class LlamaAttention(nn.Module):
    """Causal attention. With fewer kv_heads than heads, a group of query heads shares one."""
    def __init__(self, config, layer):
        super().__init__()
        self.layer, heads, kv_heads = layer, config.llama_heads, config.llama_kv_heads
        self.heads = [heads, kv_heads, kv_heads]              # of queries, of keys, of values
        d = config.llama_width // heads
        self.qkv = nn.Linear(config.llama_width, sum(self.heads) * d, bias=False)
        self.out = nn.Linear(config.llama_width, config.llama_width, bias=False)

    def forward(self, x, cos, sin, cache):                    # (B, T, D) -> (B, T, D)
        q, k, v = split_heads(self.qkv(x), sum(self.heads)).split(self.heads, dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        new, total = q.shape[2], k.shape[2]
        mask = None                                           # one new token looks at all before it
        if 1 < new < total:                                   # several, after those in the cache
            mask = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        x = F.scaled_dot_product_attention(q, k, v, mask, is_causal=new == total,
                                           enable_gqa=q.shape[1] != k.shape[1])
        return self.out(x.transpose(1, 2).flatten(2))

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
    def __init__(self, config, layer):
        super().__init__()
        width, inner_width = config.llama_width, config.adapter_width
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.attn = LlamaAttention(config, layer)
        self.adapter = Adapter(width, inner_width) if inner_width > 0 else nn.Identity()
        self.mlp_norm = RMSNorm(width, config.rms_norm_eps)
        self.mlp = nn.ModuleDict({
            "gate_up": nn.Linear(width, 2 * config.llama_mlp_width, bias=False),
            "down": nn.Linear(config.llama_mlp_width, width, bias=False)})

    def forward(self, x, cos, sin, cache):                    # (B, T, D) -> (B, T, D)
        x = x + self.attn(self.attn_norm(x), cos, sin, cache)
        x = self.adapter(x)
        gate, up = self.mlp.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)         # SwiGLU
        return x + self.mlp.down(F.silu(gate) * up)

class Llama(nn.Module):
    """embeds (B, T, D), after the tokens of a KVCache -> logits (B, T, V), float32."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        zeros = torch.zeros(config.vocab_size, config.llama_width)
        self.embed = nn.Embedding.from_pretrained(zeros, freeze=False)   # faster than random ones
        self.blocks = nn.ModuleList(LlamaBlock(config, i) for i in range(config.llama_layers))
        self.norm = RMSNorm(config.llama_width, config.rms_norm_eps)
        self.head = nn.Linear(config.llama_width, config.vocab_size, bias=False)

    def hidden(self, embeds, cache=None):                     # (B, T, D) -> (B, T, D), for the head
        start = 0 if cache is None else cache.length
        d = self.config.llama_width // self.config.llama_heads
        pairs = torch.arange(0, d, 2, device=embeds.device)
        positions = start + torch.arange(embeds.shape[1], device=embeds.device)
        angles = positions[:, None] * self.config.rope_theta ** (-pairs / d)       # (T, d/2)
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:
            embeds = block(embeds, cos, sin, cache)
        if cache is not None:
            cache.length += embeds.shape[1]
        return self.norm(embeds)

    def forward(self, embeds, cache=None):
        return self.head(self.hidden(embeds, cache)).float()

def sample(logits, temperature=1.0, top_p=0.9, generator=None):
    """logits (B, V) -> ids (B,): the likeliest at temperature 0; else drawn, with `generator`, from
    the smallest set of tokens that holds a share top_p of the probability."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs, ids = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = probs.cumsum(dim=-1) - probs                     # 0 for the likeliest, which stays
    probs[(before >= top_p) & (before > 0)] = 0
    return ids.gather(1, torch.multinomial(probs, 1, generator=generator))[:, 0]

# ---- Prompts are text, with two marks for what is not: IMAGE_MARK and END
IMAGE_MARK = "<ImageHere>"                                    # the Q vectors of an image
IMAGE_SLOT = f"<Img>{IMAGE_MARK}</Img>"
END = "\N{END OF TEXT}"                                       # the token EOS, which is "</s>"
IMAGE_ID = -1                                                 # an image vector, among token ids
IGNORE = -100                                                 # PyTorch's ignore_index, in targets
STOP = "###"                                                  # ends a message of Vicuna v0
SYSTEM = ("Give the following image: <Img>ImageContent</Img>. You will be able to see the image "
          "once I provide it to you. Please answer my questions.")
SYSTEM_V1 = ("A chat between a curious user and an artificial intelligence assistant. The assistant"
             " gives helpful, detailed, and polite answers to the user's questions. ")
INSTRUCTIONS = ("Describe this image in detail.",             # stage 2 draws one for every batch
                "Take a look at this image and describe what you notice.",
                "Please provide a detailed description of the picture.",
                "Could you describe the contents of this image for me?")
PROMPTS = {  # start, before a question, before an answer, between rounds, what ends an answer
    "vicuna_v0": (SYSTEM, "###Human: ", "###Assistant: ", "", STOP),
    "vicuna_v1": (SYSTEM_V1, "USER: ", " ASSISTANT: ", END, END)}       # of v1.1, v1.3 and v1.5

def chat_prompt(messages, style="vicuna_v0"):
    """The prompt of a conversation: question, answer, ..., question. A question that comes with an
    image begins with IMAGE_SLOT and a space. No text that somebody typed may have a mark in it."""
    prompt, before_question, before_answer, between_rounds, _ = PROMPTS[style]
    for question, answer in zip(messages[:-1:2], messages[1::2], strict=True):
        prompt += before_question + question + before_answer + answer + between_rounds
    return prompt + before_question + messages[-1] + before_answer.rstrip()

def instruction_prompt(instruction, style="vicuna_v0"):
    """The prompt of stage 2; the description is the answer."""
    if style == "vicuna_v0":                                  # as released: no system message
        return f"###Human: {IMAGE_SLOT} {instruction} ###Assistant: "
    return chat_prompt([f"{IMAGE_SLOT} {instruction}"], style)

def token_ids(tokenizer, queries, text):
    """A text's token ids, with `queries` times IMAGE_ID for each <ImageHere> and EOS for END. As in
    the released code, each part between the marks is tokenised by itself."""
    marks = {IMAGE_MARK: [IMAGE_ID] * queries, END: [tokenizer.eos_id()]}
    return [token for part in re.split(f"({IMAGE_MARK}|{END})", text)
            for token in (marks[part] if part in marks else tokenizer.encode(part))]

def example(tokenizer, queries, prompt, text, longest):
    """A prompt and its answer, at most `longest` tokens of it -> ids, targets: lists of T. A target
    is the token after, where that is one of the answer's, and IGNORE elsewhere."""
    before = [tokenizer.bos_id(), *token_ids(tokenizer, queries, prompt)]
    answer = token_ids(tokenizer, queries, text)[:longest]
    return before + answer[:-1], [IGNORE] * (len(before) - 1) + answer

def pad_examples(examples):
    """B pairs of ids and targets -> both (B, T), padded on the right: no token looks there."""
    ids, targets = ([torch.tensor(row) for row in rows] for rows in zip(*examples, strict=True))
    return pad_sequence(ids, True), pad_sequence(targets, True, IGNORE)    # True: B comes first

# ---- The whole
TRAINABLE = {  # how names begin (paper, section 3.2); attn_norm in every other block
    "artgpt4": r"proj\.|llama\.blocks\.(\d+\.(adapter|mlp_norm)|\d*[02468]\.attn_norm)\.",
    "minigpt4": r"proj\."}

@contextmanager
def errors_naming(file):
    """Within the block, what a wrong file causes becomes a ValueError that begins with its name."""
    try:
        yield file
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or repr(error)
        raise ValueError(f"{file}: {reason}") from error

class ArtGPT4(nn.Module):
    """The model and its tokenizer, a SentencePieceProcessor."""
    def __init__(self, config, tokenizer):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.vit = ViT(config)
        self.ln_vision = nn.LayerNorm(config.vit_width, eps=config.ln_vision_eps)
        self.qformer = QFormer(config)
        self.proj = CastLinear(config.qformer_width, config.llama_width)
        self.llama = Llama(config)

    def encode_image(self, pixels):
        """pixels (N, 3, S, S) -> image_embeds (N, Q, D of LLaMA). Each part has its dtype."""
        if pixels.shape[1:] != (3, self.config.image_size, self.config.image_size):
            raise ValueError(f"pixels {tuple(pixels.shape)}: expected S = {self.config.image_size}")
        x = self.vit(pixels.to(self.vit.pos_embed.device, self.vit.pos_embed.dtype))
        x = self.qformer(self.ln_vision(x.to(self.qformer.queries.dtype)))
        return self.proj(x).to(self.llama.embed.weight.dtype)

    def prompt_ids(self, prompt):
        """The token ids of a prompt, with BOS before them and IMAGE_ID at the image vectors."""
        return [self.tokenizer.bos_id(), *token_ids(self.tokenizer, self.config.queries, prompt)]

    def embed_ids(self, ids, image_embeds):
        """ids (T,) or (B, T), image_embeds (N, Q, D) of their images in order -> (B, T, D). Raises
        ValueError unless there are N images among the ids."""
        ids = torch.atleast_2d(torch.as_tensor(ids, dtype=torch.long, device=image_embeds.device))
        is_image = ids == IMAGE_ID
        expected = int(is_image.sum()) / self.config.queries
        if expected != len(image_embeds):
            raise ValueError(f"{expected:g} images in the prompt, {len(image_embeds)} are given")
        embeds = self.llama.embed(ids.clamp(min=0))           # IMAGE_ID is no row of embed
        embeds[is_image] = image_embeds.flatten(0, 1)
        return embeds

    def embed_prompt(self, prompt, image_embeds):
        """A prompt with N <ImageHere> and their image_embeds (N, Q, D) -> (1, T, D)."""
        return self.embed_ids(self.prompt_ids(prompt), image_embeds)

    def trainable_names(self, mode="artgpt4"):
        """The names of the trainable parameters, in the order of the model. mode: of TRAINABLE."""
        return [name for name, _ in self.named_parameters() if re.match(TRAINABLE[mode], name)]

    def freeze(self, mode="artgpt4"):
        """Freeze all but the trainable parameters, which become float32. Returns those."""
        self.requires_grad_(False)
        parameters = [self.get_parameter(name) for name in self.trainable_names(mode)]
        for parameter in parameters:                          # the optimizer's master weights
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        return parameters

    def forward(self, pixels, ids, targets):
        """pixels (N, 3, S, S) of the images among ids (B, T); targets (B, T), of example() -> the
        sum of the cross-entropy over all targets, a scalar. A batch may be computed in parts."""
        hidden = self.llama.hidden(self.embed_ids(ids, self.encode_image(pixels)))
        targets = targets.to(hidden.device)
        keep = targets != IGNORE
        logits = self.llama.head(hidden[keep]).float()        # (tokens, V): the answers' alone
        return F.cross_entropy(logits, targets[keep], reduction="sum")

    def loss(self, pixels, captions, prompt=IMAGE_MARK, end="\n", max_text_tokens=32):
        """The mean cross-entropy over all tokens of B captions, each with an image of pixels
        (B, 3, S, S). Stage 1 has no prompt; stage 2 has an instruction_prompt and end="###"."""
        ids, targets = pad_examples([
            example(self.tokenizer, self.config.queries, prompt, caption + end, max_text_tokens)
            for caption in captions])
        return self(pixels, ids, targets) / (targets != IGNORE).sum()

    @torch.inference_mode()
    def generate(self, embeds, max_new_tokens=300, cache=None,
                 adjust=lambda logits, chosen: logits, **sampling):
        """Yield the next token of each row of embeds (B, T, D), (B,) ids, max_new_tokens times.
        cache: a KVCache of the text before embeds; afterwards it holds embeds too, and every token
        but the last. adjust: a function (logits (B, V), ids so far (B, n)) -> logits (B, V), for
        penalties. sampling: see sample(). The caller stops where decode() says that all ended."""
        cache = cache or KVCache(self.llama, embeds.shape[1] + max_new_tokens, len(embeds))
        chosen = torch.empty(len(embeds), 0, dtype=torch.long, device=embeds.device)     # (B, n)
        for _ in range(max_new_tokens):
            logits = self.llama.head(self.llama.hidden(embeds, cache)[:, -1]).float()
            ids = sample(adjust(logits, chosen), **sampling)
            yield ids
            chosen = torch.cat((chosen, ids[:, None]), dim=1)
            embeds = self.llama.embed(ids[:, None])

    def decode(self, ids):
        """The ids of an answer so far -> its text, as far as it is certain, and whether it has
        ended: with EOS, or for Vicuna v0 with "###", however that was tokenised."""
        eos, mark = self.tokenizer.eos_id(), PROMPTS[self.config.prompt][-1]
        known = ids[:ids.index(eos)] if eos in ids else ids
        known = [i for i in known if i < self.tokenizer.get_piece_size()]    # v0 has an id more
        text, stop, _ = self.tokenizer.decode(known).partition(mark)
        ended = eos in ids or stop != ""
        waits = "\N{REPLACEMENT CHARACTER}" + ("" if ended else mark[0])     # half a character
        return text.rstrip(waits), ended                                     # or half a mark

    @classmethod
    def from_pretrained(cls, folder, device="cpu", dtype=None, adapter=None, prepare=None):
        """The model of a weights folder, frozen, in evaluation mode. Raises ValueError, naming the
        file, for what is missing, damaged, twice there, or does not fit config.json. dtype None
        keeps frozen weights as stored; on a CPU they are then mapped from disk, and only the pages
        in use take memory. Trainable ones are float32, and come from the file `adapter`, by default
        the folder's adapter.safetensors; False starts them as training does.
        prepare: a function (model on "meta", its {name: tensor}) that may exchange modules."""
        folder, shards, state = Path(folder), ["llama.safetensors"], {}
        with errors_naming(folder / "config.json") as file, torch.device("meta"):
            model = cls(Config(**json.loads(file.read_text("utf-8-sig"))), None)     # no memory
        with errors_naming(folder / "tokenizer.model") as file:
            spm = model.tokenizer = SentencePieceProcessor(model_proto=file.read_bytes())
            more = model.config.vocab_size - len(spm)         # Vicuna v0 has a token more
            if min(spm.bos_id(), spm.eos_id()) < 0 or not 0 <= more < 64:
                raise ValueError("no BOS, no EOS, or not the pieces of config.json's vocab_size")
        with errors_naming(folder / "llama.safetensors.index.json") as file:
            if file.exists():
                shards = sorted({*map(str, json.loads(file.read_text())["weight_map"].values())})
        for name in ("vision.safetensors", *shards):
            with errors_naming(folder / name) as file:
                tensors = load_file(file)                     # mapped from disk
                if tensors.keys() & state.keys():
                    raise ValueError("holds a tensor that another file holds too")
            state |= tensors
        with errors_naming(adapter or folder / "adapter.safetensors") as file:
            trained = model.start_adapter() if adapter is False else load_file(file)
            found = {name: tensor.shape for name, tensor in trained.items()
                     if tensor.is_floating_point() and tensor.isfinite().all()}
            expected = {name: model.get_parameter(name).shape for name in model.trainable_names()}
            if adapter is not False and found != expected:
                raise ValueError("expected finite floats for all trainable parameters, and no more")
            state |= trained                                  # its norms replace LLaMA's
        with errors_naming(folder):
            if prepare is not None:
                prepare(model, state)
            model.load_state_dict(state, assign=True)         # names what is missing or foreign
        model.freeze()                                        # makes what is trainable float32
        for parameter in model.parameters():
            if dtype and parameter.is_floating_point() and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        return model.to(device).eval()

    def start_adapter(self):
        """Of a model on "meta": projection and adapters as training starts them, {name: tensor}."""
        self.proj = CastLinear(self.config.qformer_width, self.config.llama_width)
        for block in self.llama.blocks if self.config.adapter_width else ():
            block.adapter = Adapter(self.config.llama_width, self.config.adapter_width)
        return {name: each.data for name, each in self.named_parameters() if not each.is_meta}
