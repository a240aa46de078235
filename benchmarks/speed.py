"""Speed: a model of random weights beside the limits of the machine, and beside other programs,
transformers and llama.cpp, which are no dependencies: what cannot be imported is left out."""
import importlib.util
import tempfile
import timeit
from functools import partial

import numpy as np
import torch
from torch import nn

from artgpt4 import ArtGPT4, Config, KVCache
from common.command_line import markdown_table
from common.int8 import Int8Linear, is_int8, quantised

SHAPES = {
    "1b": Config(llama_width=2048, llama_mlp_width=5632, llama_layers=22, llama_heads=16,
                 llama_kv_heads=16, vocab_size=32000, adapter_width=512),
    "7b": Config(llama_width=4096, llama_mlp_width=11008, llama_layers=32, llama_heads=32,
                 llama_kv_heads=32, adapter_width=1024),
    "13b": Config(),
}
PROMPT, NEW, TURNS = 128, 32, 5                               # tokens, tokens, a median of so many


def empty_model(config, dtype, int8=False, vision_int8=False):
    """An ArtGPT4 on "meta", ready to train. dtype: of its frozen floats."""
    with torch.device("meta"):
        model = ArtGPT4(config, None).to(dtype)
    quantised(int8, vision_int8)(model, {})                   # after the cast: scales are float32
    model.freeze()
    return model.eval()


def random_model(config, dtype=torch.float32, device="cpu", int8=False, vision_int8=False):
    """An ArtGPT4 with random weights, each in memory of its own: it is as fast as a trained one."""
    model = empty_model(config, dtype, int8, vision_int8).to_empty(device=device)
    noise = torch.randn(2 ** 20, device=device)
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2:
            tensor.fill_({"weight": 1.0, "bias": 0.0, "scale": 0.001}[name.rpartition(".")[2]])
        else:
            values = noise * (20 if tensor.dtype == torch.int8 else 0.02)
            for part in tensor.view(-1).split(len(values)):   # drawing them all would take minutes
                part.copy_(values[:len(part)])
    return model


def matrix_weights(module):
    """(count, bytes) of the weights in matrices that a token goes through."""
    sizes = [(m.in_features * m.out_features, m.weight.element_size())   # packed: no elements left
             for m in module.modules() if isinstance(m, nn.Linear | Int8Linear)]
    return sum(count for count, _ in sizes), sum(count * width for count, width in sizes)


def seconds(run, repeats=3):
    """The shortest time of `repeats` runs after one to warm up: what the machine can do, whatever
    else it did. run: a function that returns a tensor."""
    def whole():
        run().flatten()[0].item()                             # a GPU works while Python runs on
    return min(timeit.repeat(whole, number=1, repeat=repeats + 1)[1:])


def in_turns(runners):
    """{name: (prefill, decode)} in tokens/s, the median over the turns. Each of them runs every
    runner once; one more turn comes first, to warm up. runners: {name: a function (ids, fresh) that
    reads ids after those before, or as the first}."""
    speeds = {name: [] for name in runners}
    for turn in range(TURNS + 1):
        for name, run in runners.items():
            prefill = timeit.timeit(partial(run, list(range(PROMPT)), True), number=1)
            decode = timeit.timeit(partial(run, [0], False), number=NEW)
            if turn > 0:
                speeds[name].append((PROMPT / prefill, NEW / decode))
    return {name: tuple(np.median(rows, axis=0)) for name, rows in speeds.items()}


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


def machine_limits(device):
    """{limit: value a second}: bytes read from memory; operations of matrix products."""
    memory = torch.ones(2 ** 27, dtype=torch.int64, device=device)               # 1 GiB
    square = torch.randn(2048, 2048, device=device)
    layer = Int8Linear(2048, 11264).to(device)
    layer.pack()
    x, digits = torch.randn(128, 2048, device=device), 1 if layer.packed is None else 2
    return {
        "bytes read": memory.nbytes / seconds(memory.amax),
        "float32 operations": 2 * 2048 ** 3 / seconds(lambda: square @ square),
        "int8 operations": digits * 2 * 128 * 2048 * 11264 / seconds(lambda: layer(x), 20),
    }


@torch.inference_mode()
def model_table(model):
    """Encode, prefill and decode of an ArtGPT4, and the share of the machine that each uses."""
    limits, size = machine_limits(model.proj.weight.device), model.config.image_size
    pixels = torch.randn(1, 3, size, size)
    encode = 1 / seconds(lambda: model.encode_image(pixels))
    [(prefill, decode)] = in_turns({"llama": language_model(model.llama)}).values()
    vision, _ = matrix_weights(model.vit)
    language, language_bytes = matrix_weights(model.llama)
    patches = model.vit.pos_embed.shape[1]

    def row(part, speed, used, limit):                        # used: operations or bytes a second
        share = f"{used / limits[limit]:.0%} of {limits[limit] / 1e9:,.1f} G/s"
        return [part, speed, f"{share}, {limit}"]

    of_vision, of_language = ("int8 operations" if is_int8(part) else "float32 operations"
                              for part in (model.vit, model.llama))
    return markdown_table(["part", "speed", "of the machine's limit"], [
        row("encode", f"{encode:.2f} images/s", 2 * vision * patches * encode, of_vision),
        row(f"prefill, {PROMPT} tokens", f"{prefill:.1f} tokens/s", 2 * language * prefill,
            of_language),
        row(f"decode, {NEW} tokens", f"{decode:.2f} tokens/s", language_bytes * decode,
            "bytes read")])


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
    """Write a language model for llama.cpp. Its matrices are zeros, which take no less time."""
    import gguf
    width, inner, vocab = config.llama_width, config.llama_mlp_width, config.vocab_size
    out = gguf.GGUFWriter(file, "llama")
    out.add_tokenizer_model("no_vocab")
    for name, size in {"vocab_size": vocab, "context_length": config.context,
                       "embedding_length": width, "block_count": config.llama_layers,
                       "feed_forward_length": inner, "head_count": config.llama_heads,
                       "layer_norm_rms_eps": config.rms_norm_eps}.items():
        getattr(out, f"add_{name}")(size)
    shapes = {"token_embd": (vocab, width), "output": (vocab, width), "output_norm": (width,)}
    for i in range(config.llama_layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}"] = (width, width)
        shapes |= {f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,),
                   f"blk.{i}.ffn_gate": (inner, width), f"blk.{i}.ffn_up": (inner, width),
                   f"blk.{i}.ffn_down": (width, inner)}
    for name, (rows, *columns) in shapes.items():
        if columns:                                           # 32 weights and a scale: 34 bytes
            values = np.zeros((rows, columns[0] // 32 * 34), np.uint8)
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
    rows = [[name, f"{prefill:.1f}", f"{decode:.2f}"]
            for name, (prefill, decode) in in_turns(runners).items()]
    return markdown_table(["language model alone", "prefill, tokens/s", "decode, tokens/s"], rows)
