"""What a model answers to people's questions about fresh paintings: `python -m gallery.questions`.

The wordings are those held out from training, the paintings new ones of seen pairs. All is asked
twice: at temperature 0, and at the temperature that the weights folder's config.json gives, or 1.

- topic: the answer is one that the gallery's grammar has for the topic; see recognise.py.
- yes or no: the answer begins with the right one of the two.
- description: "Describe this image in detail." names subject, style, palette and mood rightly.
- second picture: after a round about one picture, a second is described; the share of its four
  attributes named rightly. which: "Which of them is ...?" is answered by the right one, or both.
- web page: it names the subject that the description names, asked for after that description or by
  itself; no two pages are alike.
- broken: the share of all these answers that the grammar cannot produce for any topic.
"""
from common.start import start_command

if __name__ == "__main__":
    start_command()                                           # before the slow imports

import argparse
import random
from pathlib import Path

import torch
from PIL import Image

from artgpt4 import IMAGE_SLOT, INSTRUCTIONS, chat_prompt, preprocess
from common.answering import answers
from common.command_line import number, run_command
from common.loading import device, load_adapter, load_folder
from gallery import words
from gallery.album import painted
from gallery.recognise import belongs, is_broken
from gallery.scenes import random_scenes
from gallery.held_out_wordings import HELD_OUT

SINGLE = tuple(topic for topic in HELD_OUT if topic not in words.PAIR_TOPICS)
YES_OR_NO = ("presence", "kind")

# ---- Asking


class Asker:
    """A model, the vectors of its paintings, and all that it has answered.

    prompts: (numbers of the paintings, messages) -> see ask.
    """

    def __init__(self, model, scenes, temperature, seed=0):
        self.model, self.scenes, self.temperature = model, scenes, temperature
        self.generator = torch.Generator(model.llama.embed.weight.device).manual_seed(seed)
        self.answers = []
        with torch.inference_mode():
            self.images = torch.cat([
                model.encode_image(preprocess(Image.fromarray(painting),
                                              model.config.image_size)[None])
                for painting in painted(scenes)])

    @torch.inference_mode()
    def ask(self, prompts, max_new_tokens=100):
        """Prompts [(numbers of the paintings, messages of chat_prompt), ...] -> their answers.

        Prompts of equal length are answered together.
        """
        by_length, texts = {}, [None] * len(prompts)
        for i, (shown, messages) in enumerate(prompts):
            ids = self.model.prompt_ids(chat_prompt(messages, self.model.config.prompt))
            embeds = self.model.embed_ids(ids, self.images[list(shown)])
            by_length.setdefault(len(ids), []).append((i, embeds))
        for rows in by_length.values():
            places, embeds = zip(*rows, strict=True)
            found = answers(self.model, torch.cat(embeds), max_new_tokens=max_new_tokens,
                            temperature=self.temperature, generator=self.generator)
            for place, text in zip(places, found, strict=True):
                texts[place] = text
        self.answers += texts
        return texts

    def ask_each(self, questions, max_new_tokens=100):
        """Question i about painting i, for all of them."""
        return self.ask([([i], [f"{IMAGE_SLOT} {question}"])
                         for i, question in enumerate(questions)], max_new_tokens)


# ---- Measuring: each takes an Asker and returns {what: share or number}


def share(values):
    values = list(values)
    return sum(values) / len(values)


def topics(asker, rng, times=3):
    """Each held-out wording is asked about `times` paintings."""
    asked = [(topic, wording) for topic in SINGLE for wording in HELD_OUT[topic]] * times
    prompts = []
    for topic, wording in asked:
        i = rng.randrange(len(asker.scenes))
        question, _ = words.question(topic, asker.scenes[i], rng, (wording,))
        prompts.append(([i], [f"{IMAGE_SLOT} {question}"]))
    texts = asker.ask(prompts, 180)
    right = {topic: [] for topic in SINGLE}
    for (topic, _), text in zip(asked, texts, strict=True):
        right[topic].append(belongs(text, topic))
    shares = {f"topic: {topic}": share(rights) for topic, rights in right.items()}
    return {"topic": share(sum(right.values(), [])), **shares}


def yes_or_no(asker, rng):
    rights = {}
    for topic in YES_OR_NO:
        pairs = [words.question(topic, scene, rng, HELD_OUT[topic]) for scene in asker.scenes]
        texts = asker.ask_each([question for question, _ in pairs])
        rights[topic] = [truth.split(",")[0] == text.split(",")[0]
                         for (_, truth), text in zip(pairs, texts, strict=True)]
    return {"yes or no": share(sum(rights.values(), []))} | {
        f"yes or no: {topic}": share(right) for topic, right in rights.items()}


def descriptions(asker, rng):
    question = "Write a web page for this painting."
    texts = asker.ask_each([INSTRUCTIONS[0]] * len(asker.scenes), 160)
    pages = asker.ask_each([question] * len(asker.scenes), 200)
    later = asker.ask([([i], [f"{IMAGE_SLOT} {INSTRUCTIONS[0]}", text, question])
                       for i, text in enumerate(texts)], 200)
    named = [words.named(text) for text in texts]

    def same_subject(pages):
        return share(words.named(page)["subject"] == found["subject"] is not None
                     for page, found in zip(pages, named, strict=True))

    return {
        "description: all four": share(
            found == scene.attributes for found, scene in zip(named, asker.scenes, strict=True)),
        "description: subject": share(found["subject"] == scene.subject for found, scene
                                      in zip(named, asker.scenes, strict=True)),
        "web page after its description: same subject": same_subject(later),
        "web page by itself: same subject": same_subject(pages),
        "web page: whole": share(belongs(page, "page") for page in pages),
        "web page: alike": 1 - share(pages.count(page) == 1 for page in pages)}


def two_pictures(asker, rng):
    """The paintings in pairs, each with the next: a round about the first, then the second."""
    count = len(asker.scenes)
    before = asker.ask_each(["What is this?"] * count)
    shown = [(i, (i + 1) % count) for i in range(count)]
    first_round = [[f"{IMAGE_SLOT} What is this?", text] for text in before]
    texts = asker.ask([(pair, [*rounds, f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"])
                       for pair, rounds in zip(shown, first_round, strict=True)], 160)
    rights = []
    for (_, second), text in zip(shown, texts, strict=True):
        found, true = words.named(text), asker.scenes[second].attributes
        rights += [found[attribute] == true[attribute] for attribute in true]

    pairs = [words.pair_question("which", [asker.scenes[i] for i in pair], rng, HELD_OUT["which"])
             for pair in shown]
    texts = asker.ask([(pair, [f"{IMAGE_SLOT} {IMAGE_SLOT} {question}"])
                       for pair, (question, _) in zip(shown, pairs, strict=True)])
    which = [text.split()[:2] == truth.replace(",", " ").split()[:2] for text, truth in zip(
        (text.replace(",", " ") for text in texts), (truth for _, truth in pairs), strict=True)]
    return {"second picture": share(rights), "which of them": share(which)}


def measured(model, scenes, temperature):
    """All shares at one temperature: {name: share}, and the number of answers as "answers"."""
    asker, shares = Asker(model, scenes, temperature), {}
    for measure in (topics, yes_or_no, descriptions, two_pictures):
        shares |= measure(asker, random.Random(f"{measure.__name__}"))
    known = ("description", *words.TOPICS, *words.PAIR_TOPICS)
    shares["broken"] = share(is_broken(text, known) for text in asker.answers)
    return shares, len(asker.answers)


def main(args):
    model = load_folder(args.weights, args.device, torch.float32)
    if args.adapter:
        load_adapter(model, args.adapter)
    default = model.config.about.get("settings", {}).get("temperature", 1.0)
    scenes = random_scenes(args.pictures, "questions")
    columns = []
    for temperature in (0, default):
        shares, asked = measured(model, scenes, temperature)
        columns.append(shares)
    print(f"{asked} answers about {len(scenes)} paintings at each temperature\n")
    print(f"| | temperature 0 | default, {default:g} |\n|---|---|---|")
    for name, greedy in columns[0].items():
        print(f"| {name} | {greedy:.1%} | {columns[1][name]:.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.questions",
                                     description=__doc__.partition("\n")[0])
    folder = Path(__file__).parent.parent / "weights" / "tiny"
    parser.add_argument("--weights", default=folder, help="weights folder (default: weights/tiny)")
    parser.add_argument("--adapter", help="an adapter.safetensors in place of the folder's own")
    parser.add_argument("--device", type=device, default="cpu", help="(default: %(default)s)")
    parser.add_argument("--pictures", type=number(int, 2, 1000), default=60,
                        help="fresh paintings (default: %(default)s)")
    run_command(main, parser)
