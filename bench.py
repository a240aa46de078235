"""Speed beside the machine's limits, measured in one run.

    python bench.py --shape 1b --int8            random weights of a shape: tiny, 1b, 7b, 13b
    python bench.py --weights FOLDER             a weights folder
    python bench.py --shape 1b --int8 --peers    the language model alone, in turns with llama.cpp and transformers
    python bench.py --rounds 10                  time to the first word of each round of a conversation
    python bench.py --int8-error                 what int8 costs in accuracy, on outliers and in the ViT
    python bench.py --train                      a training step, at the sizes at which the released code was timed
    python bench.py --loader                     pictures read from a tar file, beside what Pillow alone does
    python bench.py --memory                     what training takes: 13B on paper, small sizes measured too

A share says how much of the machine a part uses: encode and prefill of its matrix product, decode of its memory's
read bandwidth, since every weight is read once for a token. Run under /usr/bin/time -v for the memory.
"""
import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from artgpt4 import ArtGPT4, Config, KVCache, LlamaConfig, preprocess
from benchmarks.peers import peers
from benchmarks.training_cost import loader_table, memory_table, train_table
from common.command_line import run_command
from common.files import load_tokenizer, open_image
from conversation.rounds import Conversation, Round
from common.int8 import Int8Linear, int8_linear, int_matmul, quantise, replace_linears

HERE = Path(__file__).resolve().parent
LLAMAS = {"1b": LlamaConfig(2048, 5632, 22, 16, 16, vocab_size=32000),
          "7b": LlamaConfig(4096, 11008, 32, 32, 32),
          "13b": LlamaConfig()}


def seconds(run, repeats=3):
    """The shortest time of `repeats` runs, after one to warm up: what the machine can do, not what else it did."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


# ---- The machine's limits


def machine(device):
    """{limit: value}: bytes/s read from memory; operations/s of the float32 and the int8 matrix product."""
    memory = torch.ones(2 ** 27, dtype=torch.int64, device=device)                         # 1 GiB
    square = torch.randn(2048, 2048, device=device)
    rows = torch.randint(-127, 128, (128, 2048), dtype=torch.int8, device=device)
    matrices = [torch.randint(-127, 128, (11264, 2048), dtype=torch.int8, device=device) for _ in range(12)]

    def timed(run):
        def waited():
            result = run()
            return result.flatten()[0].item()                 # a GPU computes while Python goes on
        return seconds(waited)

    int8_time = timed(lambda: [int_matmul(rows, matrix) for matrix in matrices][-1])
    one_row = timed(lambda: [int_matmul(rows[:1], matrix) for matrix in matrices][-1])
    return {"read": memory.nbytes / timed(lambda: memory.amax()),
            "float32": 2 * 2048 ** 3 / timed(lambda: square @ square),
            "int8": 2 * 128 * sum(m.numel() for m in matrices) / int8_time,
            "int8, one row": sum(m.nbytes for m in matrices) / one_row}


# ---- What is measured


def random_model(config, dtype, device):
    """An ArtGPT4 with random weights, each in memory of its own: noise, at the speed of the shape."""
    with torch.device("meta"):
        model = ArtGPT4(config, None)
    replace_linears(model)
    model.to_empty(device=device)
    noise = torch.randn(2 ** 20, device=device)

    def fill(tensor, values):
        for part in tensor.view(-1).split(len(values)):
            part.copy_(values[:len(part)])
    for name, module in model.named_modules():
        for part, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dtype == torch.int8:
                fill(tensor.data, (noise * 32).clamp(-127, 127).to(torch.int8))
            elif part == "scale":
                few_outliers = 0.5 if "gate_up" in name else 1.0
                tensor.fill_(few_outliers * module.weight.shape[1] ** -0.5 / 32)
            elif tensor.ndim < 2:
                tensor.data.fill_(part == "weight")           # norms 1, biases 0
            else:
                fill(tensor.data, noise * (0.02 if name == "llama.embed" else tensor[0].numel() ** -0.5))
    return model.to(dtype).eval()


def matrix_weights(module):
    """The number of weights in matrices that a token goes through, and their bytes with the scales."""
    matrices = [m for m in module.modules() if isinstance(m, nn.Linear | Int8Linear)]
    return (sum(m.weight.numel() for m in matrices),
            sum(p.nbytes for m in matrices for p in (*m.parameters(), *m.buffers())))


class Ours:
    """prefill(tokens) and decode(tokens) of an ArtGPT4's language model; decode goes on from the prefill."""

    def __init__(self, llama):
        self.llama, self.name, self.cache = llama, "this project", KVCache()

    @torch.inference_mode()
    def prefill(self, tokens):
        self.cache.length = 0                                 # as llama.cpp, which keeps its room too
        ids = torch.arange(tokens, device=self.llama.embed.weight.device)[None] % self.llama.config.vocab_size
        self.next(ids)

    @torch.inference_mode()
    def decode(self, tokens):
        for _ in range(tokens):
            self.next(self.last)

    def next(self, ids):
        self.last = self.llama.logits(self.llama.hidden(self.llama.embed(ids), self.cache)[:, -1:]).argmax(dim=-1)
        return self.last.item()


def in_turns(runners, prompt, new, turns):
    """{runner: (prefill, decode)} in tokens/s, the median over the turns; every turn runs each once."""
    speeds = {runner: [] for runner in runners}
    for turn in range(turns + 1):
        for runner in runners:
            start = time.perf_counter()
            runner.prefill(prompt)
            middle = time.perf_counter()
            runner.decode(new)
            if turn:                                          # the first warms up
                speeds[runner].append((prompt / (middle - start), new / (time.perf_counter() - middle)))
    return {runner: [statistics.median(column) for column in zip(*rows, strict=True)] for runner, rows in
            speeds.items()}


# ---- Tables


def table(head, rows):
    """Rows of cells as a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def limits_table(limits):
    return table(["limit of this machine", f"{torch.get_num_threads()} threads"],
                 [["reads memory", f"{limits['read'] / 1e9:.1f} GB/s"],
                  ["float32 matrix product", f"{limits['float32'] / 1e9:.0f} Gop/s"],
                  ["int8 matrix product, 128 rows", f"{limits['int8'] / 1e9:.0f} Gop/s"],
                  ["int8 matrix product, one row, reads", f"{limits['int8, one row'] / 1e9:.1f} GB/s"]])


def model_table(model, limits, prompt, new, turns):
    """Encode, prefill and decode of an ArtGPT4, with what they use of the machine."""
    device = model.llama.embed.weight.device
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size, device=device)
    with torch.inference_mode():
        encode_time = seconds(lambda: model.encode_image(pixels)[0, 0, 0].item())
    (prefill, decode), = in_turns([Ours(model.llama)], prompt, new, turns).values()
    (weights, size), (vision, _) = matrix_weights(model.llama), matrix_weights(model.vit)
    patches = model.vit.pos_embed.shape[1]
    rate, vit_rate = (limits["int8" if part.int8 else "float32"] for part in (model.config.llama, model.config.vit))
    return table(["part", "speed", "of the machine's limit"], [
        ["encode", f"{1 / encode_time:.2f} images/s",
         f"{2 * vision * patches / encode_time / vit_rate:.0%} of the matrix product"],
        [f"prefill, {prompt} tokens", f"{prefill:.1f} tokens/s",
         f"{2 * weights * prefill / rate:.0%} of the matrix product"],
        [f"decode, {new} tokens", f"{decode:.2f} tokens/s",
         f"{size * decode / limits['read']:.0%} of the read bandwidth"]])


def peers_table(llama, prompt, new, turns):
    """The language model without adapters, which the peers do not know, in turns with them."""
    for block in llama.blocks:
        block.adapter = nn.Identity()
    with tempfile.TemporaryDirectory() as folder:
        others = peers(llama.config, folder)
        speeds = in_turns([Ours(llama), *others], prompt, new, turns)
    (prefill, decode), *_ = speeds.values()
    return table(["language model alone", "prefill, tokens/s", "decode, tokens/s", "ours: prefill", "decode"],
                 [[runner.name, f"{a:.1f}", f"{b:.2f}", f"{prefill / a:.2f} x", f"{decode / b:.2f} x"]
                  for runner, (a, b) in speeds.items()])


def int8_error_table(model, weights):
    """The relative error of one layer on activations with outliers, and of image_embeds with the ViT in int8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 5120, generator=generator)
    x[:, ::1000] *= 60
    matrix = torch.randn(1024, 5120, generator=generator) / 5120 ** 0.5
    weight, scale = quantise(matrix)
    exact = x @ matrix.t()

    def error(found, exact):
        return f"{((found - exact).norm() / exact.norm()).item():.2%}"
    rows = [["a layer, one column in a thousand at 60 times the rest", name,
             error(int8_linear(x, weight, scale[:, 0], outlier), exact)]
            for name, outlier in (("LLM.int8", 6.0), ("plain int8", torch.inf))]
    images = [open_image(file) for file in sorted((HERE / "samples").glob("*.png"))]
    pixels = torch.stack([preprocess(image, model.config.image_size) for image in images])
    small = ArtGPT4.from_pretrained(weights, vision_int8=True)
    with torch.inference_mode():
        found, exact = small.encode_image(pixels), model.encode_image(pixels)
    rows.append([f"image_embeds of {Path(weights).name}", "ViT in int8", error(found, exact)])
    return table(["what", "how", "relative error"], rows)


def rounds_table(model, rounds):
    """A conversation about one picture: how long its rounds wait for their first token, and how long each would if
    nothing were kept of the ones before."""
    talk, rows = Conversation(model, temperature=0.0, min_new_tokens=24, max_new_tokens=24), []
    talk.add_image(open_image(sorted((HERE / "samples").glob("*.png"))[0]))
    for i in range(1, rounds + 1):
        question, before = f"What do you see in part {i} of this painting?", talk.rounds
        ids = talk.prompt_ids([*before, Round(talk.waiting, question)])
        known = next((j for j, (a, b) in enumerate(zip(talk.cached, ids, strict=False)) if a != b), len(talk.cached))
        anew = Conversation(model, temperature=0.0)
        anew.image_embeds, anew.rounds, anew.waiting = talk.image_embeds, before, talk.waiting
        times = []
        for each in (anew, talk):
            start = time.perf_counter()
            pieces = each.answer(question)
            next(pieces)
            times.append(time.perf_counter() - start)
        list(pieces)
        rows.append([str(i), str(len(ids)), str(len(ids) - known), f"{times[1]:.3f} s", f"{times[0]:.3f} s"])
        if talk.dropped:
            raise ValueError(f"--rounds: after {i - 1} rounds the context of {talk.context} tokens is full")
    return table(["round", "prompt, tokens", "of them new", "first token after", "without the cache"], rows)


def main(args):
    for wanted, make, argument in ((args.memory, memory_table, table), (args.train, train_table, random_model),
                                   (args.loader, loader_table, table)):
        if wanted:
            print(make(argument))
            return
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype)
    if args.shape in LLAMAS and not args.weights:
        llama = replace(LLAMAS[args.shape], int8=args.int8)
        config = Config(adapter_width=llama.hidden_size // 4, llama=llama)
        config.vit.int8 = args.vision_int8
        model, name = random_model(config, dtype, device), f"random weights of shape {args.shape}"
    else:
        weights = args.weights or HERE / "weights" / "tiny"
        model = ArtGPT4.from_pretrained(weights, device, dtype, int8=args.int8, vision_int8=args.vision_int8)
        name = weights.name
    if args.rounds:
        if model.tokenizer is None:                           # noise, a letter a token
            model.tokenizer = load_tokenizer(HERE / "weights/tiny/tokenizer.model", model.config)
            model.decode = lambda ids, whole=False: "x" * len(ids)
            model.has_ended = lambda ids: False
        print(rounds_table(model, args.rounds))
        return
    if args.int8_error:
        print(int8_error_table(model, args.weights or HERE / "weights" / "tiny"))
        return
    limits = machine(device)
    print(limits_table(limits), "", sep="\n", flush=True)
    precision = "int8" if model.config.llama.int8 else args.dtype
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{name}, {parameters:,.0f} M parameters, language model in {precision}\n", flush=True)
    if args.peers:
        print(peers_table(model.llama, args.prompt_tokens, args.new_tokens, args.turns))
    else:
        print(model_table(model, limits, args.prompt_tokens, args.new_tokens, args.turns))


def command_line():
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *LLAMAS), default="tiny", help="(default: %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="a weights folder in place of random weights")
    parser.add_argument("--int8", action="store_true", help="the language model in int8")
    parser.add_argument("--vision-int8", action="store_true", help="the ViT in int8")
    parser.add_argument("--peers", action="store_true", help="also transformers and llama.cpp, if installed")
    parser.add_argument("--rounds", type=int, metavar="N", help="a conversation of N rounds")
    parser.add_argument("--int8-error", action="store_true", help="relative errors of int8")
    parser.add_argument("--train", action="store_true", help="a training step")
    parser.add_argument("--loader", action="store_true", help="reading pictures for training")
    parser.add_argument("--memory", action="store_true", help="memory of training")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="medians of so many (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
