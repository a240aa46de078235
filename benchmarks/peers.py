"""The language model of bench.py in other people's programs, to be timed beside ours: transformers and llama.cpp.

They are no dependency of this project: a peer that cannot be imported is left out.
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
        self.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            **{key: value for key, value in vars(config).items() if key != "int8"}, attn_implementation="sdpa")).eval()

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


class LlamaCpp:
    """The same shape in llama.cpp, Q8_0: blocks of 32 int8 weights with a float16 scale."""

    def __init__(self, config, folder):
        import llama_cpp
        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__}), Q8_0"
        file = Path(folder) / "model.gguf"
        self.write(config, file)
        threads = torch.get_num_threads()
        self.model = llama_cpp.Llama(str(file), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads,
                                     verbose=False)

    def write(self, config, file):
        import gguf
        out = gguf.GGUFWriter(str(file), "llama")
        for key, value in (("context_length", 2048), ("embedding_length", config.hidden_size),
                           ("block_count", config.num_hidden_layers), ("feed_forward_length", config.intermediate_size),
                           ("head_count", config.num_attention_heads), ("head_count_kv", config.num_key_value_heads),
                           ("layer_norm_rms_eps", config.rms_norm_eps), ("rope_freq_base", config.rope_theta),
                           ("rope_dimension_count", config.hidden_size // config.num_attention_heads),
                           ("vocab_size", config.vocab_size), ("tokenizer_model", "llama"),
                           ("token_list", [f"t{i}".encode() for i in range(config.vocab_size)]),
                           ("token_scores", [0.0] * config.vocab_size), ("token_types", [1] * config.vocab_size)):
            getattr(out, f"add_{key}")(value)
        width = config.hidden_size
        kv_width = config.num_key_value_heads * width // config.num_attention_heads
        matrices = {"token_embd": (config.vocab_size, width), "output": (config.vocab_size, width)}
        norms = ["output_norm"]
        for i in range(config.num_hidden_layers):
            norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
            matrices |= {f"blk.{i}.attn_q": (width, width), f"blk.{i}.attn_k": (kv_width, width),
                         f"blk.{i}.attn_v": (kv_width, width), f"blk.{i}.attn_output": (width, width),
                         f"blk.{i}.ffn_gate": (config.intermediate_size, width),
                         f"blk.{i}.ffn_up": (config.intermediate_size, width),
                         f"blk.{i}.ffn_down": (width, config.intermediate_size)}
        block = np.random.default_rng(0).integers(-127, 128, (2 ** 16, 34)).astype(np.int8).view(np.uint8)
        block[:, :2] = np.array([0.0004], np.float16).view(np.uint8)
        for name, (rows, columns) in matrices.items():
            data = np.resize(block, (rows, columns // 32 * 34))
            out.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        for name in norms:
            out.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()

    def prefill(self, tokens):
        self.model.reset()
        self.model.eval(list(range(tokens)))

    def decode(self, tokens):
        for i in range(tokens):
            self.model.eval([i])


def peers(config, folder):
    """The peers that can be imported, on the shape of a LlamaConfig."""
    found = []
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        found.append(LlamaCpp(config, folder))
    if importlib.util.find_spec("transformers"):
        found.append(Transformers(config))
    if not found:
        raise ValueError("--peers: neither transformers nor llama_cpp (with gguf) can be imported; install one")
    return found
