"""A conversation about a picture, in a terminal or through pipes.

    python chat.py picture.jpg                             several rounds; Ctrl-C stops an answer, Ctrl-D or /quit ends
    python chat.py picture.jpg --prompt "What is this?"    one answer, alone on stdout
    python chat.py picture.jpg < questions.txt             a question a line, an answer to each, one conversation
"""
import argparse
import contextlib
import os
import re
import sys
import warnings
from pathlib import Path

import torch

from artgpt4 import IMAGE_MARK, IMAGE_SLOT, ArtGPT4, chat_prompt, preprocess
from command import open_image, run_command

HERE = Path(__file__).resolve().parent
MAX_CONTEXT = 2000                                            # tokens of prompt and answer, as in the released code
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")        # control characters but tab and newline


def plain(text):
    """Text as it may stand in a prompt: a "###" in it starts no message and <ImageHere> is no image; a space breaks
    them. Control characters go, and what is not Unicode becomes "?"."""
    text = CONTROL.sub("", text.encode(errors="replace").decode())
    return re.sub("#(?=##)", "# ", text).replace(IMAGE_MARK, f"< {IMAGE_MARK[1:]}").strip()


class Conversation:
    """Rounds of question and answer about one picture.

    image: PIL; sampling: what ArtGPT4.generate takes beside the prompt and max_new_tokens.
    """

    def __init__(self, model, image, max_new_tokens, sampling):
        self.model, self.max_new_tokens, self.sampling = model, max_new_tokens, sampling
        self.context = min(MAX_CONTEXT, model.config.llama.max_position_embeddings)
        self.rounds = []                                      # (question, answer), oldest first
        with torch.inference_mode():
            self.image_embeds = model.encode_image(preprocess(image, model.config.image_size)[None])

    @torch.inference_mode()
    def embed(self, rounds, question):
        """The prompt's embeds (1, T, D). The image stands in the first question, whichever that is by now."""
        messages = [plain(text) for text in (*(text for pair in rounds for text in pair), question)]
        messages[0] = f"{IMAGE_SLOT} {messages[0]}"
        return self.model.embed_prompt(chat_prompt(messages), self.image_embeds)

    def fit(self, question):
        """Forget the oldest rounds until prompt and answer fit into the context -> embeds (1, T, D), room for the
        answer in tokens. Raises ValueError if the question alone is too long."""
        rounds, embeds = self.rounds, self.embed(self.rounds, question)
        while rounds and embeds.shape[1] + self.max_new_tokens > self.context:
            rounds = rounds[1:]
            embeds = self.embed(rounds, question)
        room = self.context - embeds.shape[1]
        if room < 1:
            raise ValueError(f"the question makes a prompt of {embeds.shape[1]} tokens, but the context is "
                             f"{self.context}; ask a shorter one")
        if dropped := len(self.rounds) - len(rounds):
            print(f"(the context of {self.context} tokens is full: the oldest {dropped} of {len(self.rounds)} rounds "
                  "dropped)", file=sys.stderr)
        self.rounds = rounds
        return embeds, min(room, self.max_new_tokens)

    def say(self, question):
        """Print the answer as it comes, and keep the round; of an answer that Ctrl-C stops, what was said."""
        embeds, max_new_tokens = self.fit(question)
        text = said = ""
        try:
            for piece in self.model.generate(embeds, max_new_tokens, **self.sampling):
                text += piece
                printable = CONTROL.sub("", text).strip()
                print(printable[len(said):], end="", flush=True)
                said = printable
        finally:
            if said:
                self.rounds = [*self.rounds, (question, said)]
            print(flush=True)


def typed_line():
    """A line typed at the prompt, which is on stderr if stdout is not the terminal; Ctrl-C and Ctrl-D are /quit."""
    try:
        if sys.stdout.isatty():
            return input("> ")
        print("> ", end="", file=sys.stderr, flush=True)
        return input()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return "/quit"


def converse(conversation):
    """Answer the lines of stdin up to /quit. On a terminal neither Ctrl-C nor a question too long ends it."""
    terminal = sys.stdin.isatty()
    sys.stdin.reconfigure(errors="replace")
    for line in iter(typed_line, None) if terminal else sys.stdin:
        if line.strip() in ("/quit", "/exit"):
            return
        try:
            if plain(line):
                conversation.say(line)
        except (KeyboardInterrupt, ValueError) as error:
            if not terminal:
                raise
            if isinstance(error, ValueError):
                print(error, file=sys.stderr)


def sample_image():
    """The first picture in samples/. Raises ValueError if there is none."""
    files = sorted((HERE / "samples").glob("*.png"))
    if not files:
        raise ValueError(f"no picture given, and none in {HERE / 'samples'}; name one: python chat.py picture.jpg")
    print(f"no picture given: this is about {files[0]}", file=sys.stderr)
    return files[0]


def load_model(args):
    """The model that the flags describe. Without --dtype a CPU computes in float32 if half of its memory holds that:
    it is slow in half precision."""
    model = ArtGPT4.from_pretrained(args.weights, args.device, args.dtype and getattr(torch, args.dtype))
    if args.adapter:
        model.load_adapter(args.adapter)
    if not args.dtype and torch.device(args.device).type == "cpu" and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 4 * sum(parameter.numel() for parameter in model.parameters()) <= memory / 2:
            model.float()
    return model


def main(args):
    warnings.filterwarnings("ignore", module="PIL")
    sys.stdout.reconfigure(errors="replace")
    file = args.image or sample_image()
    image = open_image(file)
    model = load_model(args)
    generator = torch.Generator(args.device)
    generator.seed() if args.seed is None else generator.manual_seed(args.seed)
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "generator": generator}
    conversation = Conversation(model, image, args.max_new_tokens, sampling)
    if args.prompt:
        conversation.say(args.prompt)
        return
    if sys.stdin is None:
        raise ValueError("standard input is closed; ask with --prompt TEXT")
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):                # some builds of Python have none
            import readline  # noqa: F401 - input() edits lines with it
        dtype = str(model.llama.embed.weight.dtype).removeprefix("torch.")
        print(f"{file}, {image.width} x {image.height}; {args.weights} in {dtype}.\n"
              "Ctrl-C stops an answer, Ctrl-D or /quit ends.", file=sys.stderr)
    converse(conversation)


def number(kind, low, high):
    """An argparse type: an int or float from low to high."""
    def parse(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__} from {low} to {high}")
    return parse


def device(text):
    """An argparse type: a device on which this machine can compute."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return text


def question_text(text):
    """An argparse type: a question that is not empty."""
    if not plain(text):
        raise argparse.ArgumentTypeError("the question is empty")
    return text


def command_line():
    parser = argparse.ArgumentParser(prog="chat.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="a picture in any format that Pillow reads; default: one of samples/")
    parser.add_argument("--prompt", type=question_text, metavar="TEXT", help="ask this, print the answer alone and end")
    parser.add_argument("--weights", type=Path, default=HERE / "weights" / "tiny", metavar="FOLDER",
                        help="default: weights/tiny")
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="another adapter.safetensors, as train.py writes")
    parser.add_argument("--temperature", type=number(float, 0, 10), default=1.0, metavar="X",
                        help="0: always the likeliest word; default: 1.0")
    parser.add_argument("--top-p", type=number(float, 0.001, 1), default=0.9, metavar="X",
                        help="draw from the likeliest words that hold this share of the probability; default: 0.9")
    parser.add_argument("--max-new-tokens", type=number(int, 1, MAX_CONTEXT), default=300, metavar="N",
                        help="the longest answer; default: 300")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), metavar="N", help="same seed, same answers")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="default: on a CPU float32 if half of its memory holds that, else as stored")
    return parser


if __name__ == "__main__":
    run_command(main, command_line())
