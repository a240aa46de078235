"""The language model of bench.py in other programs, to be timed beside ours: transformers and
llama.cpp.

Neither is a dependency of this project. What cannot be imported is left out.
"""
import importlib.util
from pathlib import Path

import numpy as np
import torch


class Transformers:
    """The same shape in the transformers library, float32."""

    def __init__(self, config):
        import transformers
        self.name = f"transformers {transformers.__version__}, float32"
        sizes = {name: value for name, value in vars(config).items() if name != "int8"}
        config = transformers.LlamaConfig(**sizes, attn_implementation="sdpa")
        self.model = transformers.LlamaForCausalLM(config).eval()

    @torch.inference_mode()
    def prefill(self, tokens):
        self.cache = None
        self.next(torch.arange(tokens)[None])

    @torch.inference_mode()
    def decode(self, tokens):
        for _ in range(tokens):
            self.next(self.last)

    def next(self, ids):
        out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache, self.last = out.past_key_values, out.logits.argmax(dim=-1)


BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}                        # 32 weights, and a float16 scale


class LlamaCpp:
    """The same shape in llama.cpp. kind: a key of BLOCK_BYTES, weights of 8 or of 4 bits."""

    def __init__(self, config, folder, kind):
        import llama_cpp
        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__}), {kind}"
        file = Path(folder) / f"{kind}.gguf"
        write_gguf(config, file, kind)
        threads = torch.get_num_threads()
        self.model = llama_cpp.Llama(str(file), n_ctx=1024, n_batch=512, n_threads=threads,
                                     n_threads_batch=threads, verbose=False)

    def prefill(self, tokens):
        self.model.reset()
        self.model.eval(list(range(tokens)))

    def decode(self, tokens):
        for i in range(tokens):
            self.model.eval([i])


def gguf_fields(config):
    """{name: value} of a GGUF file's header, for a LlamaConfig."""
    vocab = config.vocab_size
    return {
        "context_length": 2048,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": config.rope_theta,
        "rope_dimension_count": config.hidden_size // config.num_attention_heads,
        "vocab_size": vocab,
        "tokenizer_model": "llama",
        "token_list": [f"t{i}".encode() for i in range(vocab)],
        "token_scores": [0.0] * vocab,
        "token_types": [1] * vocab,
    }


def gguf_matrices(config):
    """{name: (rows, columns)} of a language model's matrices in GGUF's names."""
    width, inner = config.hidden_size, config.intermediate_size
    kv_width = config.num_key_value_heads * width // config.num_attention_heads
    block = {
        "attn_q": (width, width),
        "attn_k": (kv_width, width),
        "attn_v": (kv_width, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    shapes = {"token_embd": (config.vocab_size, width), "output": (config.vocab_size, width)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def write_gguf(config, file, kind):
    """Write a model of random weights for llama.cpp. kind: a key of BLOCK_BYTES."""
    import gguf
    out = gguf.GGUFWriter(str(file), "llama")
    for name, value in gguf_fields(config).items():
        getattr(out, f"add_{name}")(value)

    random = np.random.default_rng(0)
    size = BLOCK_BYTES[kind]
    blocks = random.integers(0, 256, (2 ** 16, size)).astype(np.uint8)
    blocks[:, :2] = np.array([0.0004], np.float16).view(np.uint8)                # the scale
    for name, (rows, columns) in gguf_matrices(config).items():
        data = np.resize(blocks, (rows, columns // 32 * size))
        out.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    norms = ["output_norm"]
    for i in range(config.num_hidden_layers):
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
    for name in norms:
        out.add_tensor(f"{name}.weight", np.ones(config.hidden_size, np.float32))

    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def peers(config, folder):
    """The peers that can be imported, on the shape of a LlamaConfig; their files go to `folder`.

    Raises ValueError if there are none.
    """
    found = []
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        found += [LlamaCpp(config, folder, kind) for kind in BLOCK_BYTES]
    if importlib.util.find_spec("transformers"):
        found.append(Transformers(config))
    if not found:
        raise ValueError("--peers: neither transformers nor llama_cpp (with gguf) can be imported; "
                         "install one")
    return found
