"""Speed: a model of random weights beside the limits of the machine, and beside other programs.

The others, transformers and llama.cpp, are no dependencies: what cannot be imported is left out.
"""
import importlib.util
import statistics
import tempfile
import time

import numpy as np
import torch
from torch import nn

from artgpt4 import ArtGPT4, Config, KVCache
from common.int8 import Int8Linear, is_int8, quantised, two_digits
from common.page import markdown_table

SHAPES = {
    "1b": Config(llama_width=2048, llama_mlp_width=5632, llama_layers=22, llama_heads=16,
                 llama_kv_heads=16, vocab_size=32000, adapter_width=512),
    "7b": Config(llama_width=4096, llama_mlp_width=11008, llama_layers=32, llama_heads=32,
                 llama_kv_heads=32, adapter_width=1024),
    "13b": Config(),
}
PROMPT, NEW, TURNS = 128, 32, 5                               # tokens, tokens, a median of so many


def random_model(config, dtype=torch.float32, device="cpu", int8=False, vision_int8=False):
    """An ArtGPT4 with random weights, each in memory of its own: it is as fast as a trained one.
    dtype: of frozen weights."""
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    quantised(int8, vision_int8)(model, {})
    trainable = set(model.trainable_names())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and name not in trainable:
            parameter.data = parameter.data.to(dtype)
    model.to_empty(device=device)
    noise = torch.randn(2 ** 20, device=device)
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2:
            tensor.fill_({"weight": 1.0, "bias": 0.0, "scale": 0.001}[name.rpartition(".")[2]])
        else:
            values = noise * (20 if tensor.dtype == torch.int8 else 0.02)
            for part in tensor.view(-1).split(len(values)):   # drawing them all would take minutes
                part.copy_(values[:len(part)])
    return model.eval()


def matrix_weights(module):
    """(count, bytes) of the weights in matrices that a token goes through; bytes with scales."""
    count = size = 0
    for matrix in module.modules():
        if isinstance(matrix, nn.Linear | Int8Linear):
            weights = matrix.in_features * matrix.out_features           # packed: no elements left
            others = [*matrix.parameters(), *matrix.buffers()]
            count += weights
            size += weights * matrix.weight.element_size()
            size += sum(tensor.nbytes for tensor in others if tensor is not matrix.weight)
    return count, size


# ---- Clocks


def seconds(run, repeats=3):
    """The shortest time of `repeats` runs after one to warm up: what the machine can do, whatever
    else it did. run: a function that returns a tensor."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run().flatten()[0].item()                             # a GPU works while Python runs on
        times.append(time.perf_counter() - start)
    return min(times[1:])


def in_turns(runners):
    """{name: (prefill, decode)} in tokens/s, the median over the turns.

    runners: {name: a function (ids, fresh) that reads ids after those before, or as the first}.
    Every turn runs each of them once; one more turn comes first, to warm up.
    """
    speeds = {name: [] for name in runners}
    for turn in range(TURNS + 1):
        for name, run in runners.items():
            start = time.perf_counter()
            run(list(range(PROMPT)), True)
            middle = time.perf_counter()
            for i in range(NEW):
                run([i], False)
            end = time.perf_counter()
            if turn > 0:
                speeds[name].append((PROMPT / (middle - start), NEW / (end - middle)))
    return {name: tuple(map(statistics.median, zip(*rows, strict=True)))
            for name, rows in speeds.items()}


def language_model(llama):
    """The language model of an ArtGPT4 as a runner of in_turns."""
    cache = KVCache(llama, PROMPT + NEW)

    @torch.inference_mode()
    def run(ids, fresh):
        if fresh:
            cache.length = 0
        embeds = llama.embed(torch.tensor([ids], device=llama.embed.weight.device))
        llama.head(llama.hidden(embeds, cache)[:, -1]).argmax().item()
    return run


# ---- Beside the limits of the machine


def machine_limits(device):
    """{limit: value}: bytes/s that are read from memory; operations/s of the float32 and the int8
    matrix product."""
    memory = torch.ones(2 ** 27, dtype=torch.int64, device=device)               # 1 GiB
    square = torch.randn(2048, 2048, device=device)
    digits, _ = two_digits(torch.randn(64, 2048, device=device))
    layers = [Int8Linear(2048, 11264).to(device) for _ in range(12)]             # beyond any cache
    for layer in layers:
        layer.weight.data.random_(-127, 128)
        layer.pack()

    def int8_products():
        for layer in layers:
            product = layer.product(digits)                   # in the memory of the one before
        return product

    return {
        "read": memory.nbytes / seconds(memory.amax),
        "float32": 2 * 2048 ** 3 / seconds(lambda: square @ square),
        "int8": 2 * 12 * 2048 * 11264 * len(digits) / seconds(int8_products),
    }


@torch.inference_mode()
def model_table(model):
    """Encode, prefill and decode of an ArtGPT4, and the share of the machine that each uses."""
    size = model.config.image_size
    pixels, limits = torch.randn(1, 3, size, size), machine_limits(model.proj.weight.device)
    encode = 1 / seconds(lambda: model.encode_image(pixels))
    [(prefill, decode)] = in_turns({"llama": language_model(model.llama)}).values()
    weights, size = matrix_weights(model.llama)
    operations = 2 * model.vit.pos_embed.shape[1] * matrix_weights(model.vit)[0]
    read = limits["read"]
    rows = [["encode", f"{encode:.2f} images/s", product(model.vit, operations * encode, limits)],
            [f"prefill, {PROMPT} tokens", f"{prefill:.1f} tokens/s",
             product(model.llama, 2 * weights * prefill, limits)],
            [f"decode, {NEW} tokens", f"{decode:.2f} tokens/s",
             f"{size * decode / read:.0%} of the {read / 1e9:.1f} GB/s that memory is read at"]]
    return markdown_table(["part", "speed", "of the machine's limit"], rows)


def product(part, operations, limits):
    """What a part of a model uses of a matrix product. operations: a second."""
    dtype = "int8" if is_int8(part) else "float32"
    limit = limits[dtype]
    return f"{operations / limit:.0%} of the {dtype} product's {limit / 1e9:.0f} Gop/s"


# ---- Beside other programs


def transformers_model(config):
    """The same shape in the transformers library, float32, as a runner."""
    import transformers
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=config.llama_width, intermediate_size=config.llama_mlp_width,
        num_hidden_layers=config.llama_layers, num_attention_heads=config.llama_heads,
        vocab_size=config.vocab_size)).eval()
    cache = None

    @torch.inference_mode()
    def run(ids, fresh):
        nonlocal cache
        out = model(torch.tensor([ids]), past_key_values=None if fresh else cache, use_cache=True,
                    logits_to_keep=1)
        cache = out.past_key_values
    return run


def llama_cpp_model(config):
    """The same shape in llama.cpp, 8 bits a weight, as a runner."""
    import llama_cpp
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/random.gguf"
        write_gguf(config, file)
        model = llama_cpp.Llama(file, use_mmap=False, n_ctx=PROMPT + NEW, n_threads=threads,
                                n_threads_batch=threads, verbose=False)

    def run(ids, fresh):
        if fresh:
            model.reset()
        model.eval(ids)
    return run


def write_gguf(config, file):
    """Write a language model of random weights for llama.cpp."""
    import gguf
    width, inner, vocab = config.llama_width, config.llama_mlp_width, config.vocab_size
    out = gguf.GGUFWriter(file, "llama")
    out.add_vocab_size(vocab)
    out.add_tokenizer_model("no_vocab")
    out.add_context_length(config.context)
    out.add_embedding_length(width)
    out.add_block_count(config.llama_layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(config.llama_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    shapes = {"token_embd": (vocab, width), "output": (vocab, width), "output_norm": (width,)}
    for i in range(config.llama_layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}"] = (width, width)
        shapes |= {f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,),
                   f"blk.{i}.ffn_gate": (inner, width), f"blk.{i}.ffn_up": (inner, width),
                   f"blk.{i}.ffn_down": (width, inner)}
    blocks = np.random.default_rng(0).integers(0, 256, (2 ** 16, 34)).astype(np.uint8)
    blocks[:, :2] = np.array([0.0004], np.float16).view(np.uint8)        # a scale for 32 weights
    for name, (rows, *columns) in shapes.items():
        if columns:
            values = np.resize(blocks, (rows, columns[0] // 32 * 34))
            out.add_tensor(f"{name}.weight", values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            out.add_tensor(f"{name}.weight", np.ones(rows, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


PEERS = {"transformers": transformers_model, "llama_cpp": llama_cpp_model}


def peers_table(llama):
    """A language model without its adapters, which the others do not know, in turns with them."""
    for block in llama.blocks:
        block.adapter = nn.Identity()
    runners = {"this project": language_model(llama)}
    runners |= {name: make(llama.config) for name, make in PEERS.items()
                if importlib.util.find_spec(name)}
    if len(runners) == 1:
        raise ValueError("--peers: install transformers, or llama-cpp-python and gguf")
    speeds = in_turns(runners)
    ours, *_ = speeds.values()
    rows = []
    for name, theirs in speeds.items():
        ratios = [f"{a / b:.2f} x" for a, b in zip(ours, theirs, strict=True)]
        rows.append([name, f"{theirs[0]:.1f}", f"{theirs[1]:.2f}", *ratios])
    return markdown_table(["language model alone", "prefill, tokens/s", "decode, tokens/s",
                           "ours: prefill", "decode"], rows)
