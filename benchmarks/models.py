"""What bench.py times and what it compares that to: models of random weights, clocks, the limits of
the machine."""
import statistics
import time

import torch
from torch import nn

from artgpt4 import ArtGPT4, KVCache, LlamaConfig
from common.int8 import Int8Linear, replace_linears, two_digits

SHAPES = {
    "1b": LlamaConfig(2048, 5632, 22, 16, 16, vocab_size=32000),
    "7b": LlamaConfig(4096, 11008, 32, 32, 32),
    "13b": LlamaConfig(),
}

# ---- Models


def random_model(config, dtype=torch.float32, device="cpu"):
    """An ArtGPT4 with random weights, each in memory of its own; it is as fast as a trained one."""
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    replace_linears(model)
    model.to_empty(device=device)
    noise = torch.randn(2 ** 20, device=device)
    noise_int8 = (noise * 32).clamp(-127, 127).to(torch.int8)
    for name, module in model.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for part, tensor in tensors:
            if tensor.dtype == torch.int8:
                repeat_into(tensor.data, noise_int8)
            elif part == "scale":
                few_outliers = 0.5 if "gate_up" in name else 1.0
                tensor.fill_(few_outliers * module.weight.shape[1] ** -0.5 / 32)
            elif tensor.ndim < 2:
                tensor.data.fill_(1.0 if part == "weight" else 0.0)              # norms, biases
                if name.startswith("llama.") and part == "weight":
                    tensor.data[::1000] = 60.0                # outliers, as LLaMA has them
            else:
                deviation = 0.02 if name == "llama.embed" else tensor[0].numel() ** -0.5
                repeat_into(tensor.data, noise * deviation)
    return model.to(dtype).eval()


def repeat_into(tensor, values):
    """Fill a tensor with a vector, over and over."""
    for part in tensor.view(-1).split(len(values)):
        part.copy_(values[:len(part)])


def matrix_weights(module):
    """(count, bytes) of the weights in matrices that a token goes through; bytes with scales."""
    matrices = [m for m in module.modules() if isinstance(m, nn.Linear | Int8Linear)]
    count = sum(matrix.in_features * matrix.out_features for matrix in matrices)
    size = 0
    for matrix in matrices:                                   # a packed weight has no elements left
        size += matrix.in_features * matrix.out_features * matrix.weight.element_size()
        size += sum(tensor.nbytes for tensor in (*matrix.parameters(), *matrix.buffers())
                    if tensor is not matrix.weight)
    return count, size


class LanguageModel:
    """prefill(tokens) and decode(tokens) of an ArtGPT4's language model.

    decode continues after the prefill, or after the last decode.
    """
    name = "this project"

    def __init__(self, llama):
        self.llama = llama
        self.cache = KVCache()

    @torch.inference_mode()
    def prefill(self, tokens):
        self.cache.length = 0                                 # its memory stays, as llama.cpp's
        ids = torch.arange(tokens, device=self.llama.embed.weight.device)[None]
        self.next(ids % self.llama.config.vocab_size)

    @torch.inference_mode()
    def decode(self, tokens):
        for _ in range(tokens):
            self.next(self.last)

    def next(self, ids):
        hidden = self.llama.hidden(self.llama.embed(ids), self.cache, first=-1)
        self.last = self.llama.logits(hidden).argmax(dim=-1)
        wait_for(self.last)


# ---- Clocks


def wait_for(tensor):
    """Wait until a tensor is computed: a GPU works while Python runs on."""
    tensor.flatten()[0].item()


def seconds(run, repeats=3):
    """The shortest time of `repeats` runs after one to warm up: what the machine can do, whatever
    else it did. run: a function that returns a tensor."""
    wait_for(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        wait_for(run())
        times.append(time.perf_counter() - start)
    return min(times)


def in_turns(runners, prompt, new, turns):
    """{runner: (prefill, decode)} in tokens/s, the median over the turns.

    Every turn runs each runner once; one more turn comes first, to warm up.
    """
    speeds = {runner: [] for runner in runners}
    for turn in range(turns + 1):
        for runner in runners:
            start = time.perf_counter()
            runner.prefill(prompt)
            middle = time.perf_counter()
            runner.decode(new)
            end = time.perf_counter()
            if turn > 0:
                speeds[runner].append((prompt / (middle - start), new / (end - middle)))
    return {runner: tuple(map(statistics.median, zip(*rows, strict=True)))
            for runner, rows in speeds.items()}


# ---- The limits of the machine


def machine_limits(device):
    """{limit: value}: bytes/s that are read from memory; operations/s of the float32 and the int8
    matrix product; bytes/s of int8 weights that a product with one row reads."""
    memory = torch.ones(2 ** 27, dtype=torch.int64, device=device)               # 1 GiB
    square = torch.randn(2048, 2048, device=device)
    layers = [random_int8_layer(2048, 11264, device) for _ in range(12)]         # beyond any cache
    weights = 12 * 2048 * 11264

    @torch.inference_mode()
    def products(rows):
        digits, _ = two_digits(torch.randn(rows, 2048, device=device))
        for layer in layers:
            product = layer.product(digits[:rows])            # in the memory of the one before
        return product

    return {
        "read": memory.nbytes / seconds(memory.amax),
        "float32": 2 * 2048 ** 3 / seconds(lambda: square @ square),
        "int8": 2 * 128 * weights / seconds(lambda: products(128)),
        "int8, one row": weights / seconds(lambda: products(1)),
    }


def random_int8_layer(inputs, outputs, device):
    layer = Int8Linear(inputs, outputs, bias=False)
    layer.weight.data = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    return layer.to(device)
