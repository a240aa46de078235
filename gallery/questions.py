"""What a model answers to people's questions about fresh paintings: `python -m gallery.questions`.

The wordings are those of held_out.ini, the paintings new ones of seen pairs. All is asked twice: at
temperature 0, and at the temperature that the weights folder's about.json gives, or 1.

- topic: the answer is one that the gallery's grammar has for the topic; see `belongs`.
- yes or no: the answer begins with the right one of the two.
- description: "Describe this image in detail." names subject, style, palette and mood rightly.
- second picture: after a round about one picture, a second is described; the share of its four
  attributes named rightly. which: "Which of them is ...?" is answered by the right one, or both.
- web page: it names the subject that the description names, asked for after that description or by
  itself; no two pages are alike.
- broken: the share of all these answers that the grammar cannot produce for any topic.
"""
import argparse
import random
import re
from functools import cache
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image

from artgpt4 import IMAGE_SLOT, INSTRUCTIONS, chat_prompt, preprocess
from common.command_line import number, run_command
from common.files import read_json
from common.models import answers, load, model_flags
from gallery import words
from gallery.album import painted
from gallery.scenes import COMPOSITIONS, EMOTION_OF, SUBJECTS, THINGS, random_scenes

HELD_OUT = words.read_phrases(Path(__file__).with_name("held_out.ini"))["questions"]
SINGLE = tuple(topic for topic in HELD_OUT if topic not in words.PAIR_TOPICS)
YES_OR_NO = ("presence", "kind")

# ---- The grammar read backwards, as regular expressions


def all_rules():
    """Rule -> the texts that may stand for it in any scene, as words.rules_of has them for one."""
    rules = dict(words.RULES)
    for row in words.PHRASES.values():
        for name, texts in row.items():
            rules[name] = rules.get(name, ()) + texts
    names = [words.slots_of(name)
             for name in (*SUBJECTS, *THINGS, *words.FOREIGN, "person", "people")]
    slots = {slot: [name[slot][0] for name in names] for slot in ("x", "any", "xs")}
    page = {"title": "{page title}", "heading": "{page heading}", "making": "{page making}",
            "content": "{page text}"} | dict.fromkeys(("sky", "ground", "main", "accent", "dark"),
                                                      "{hue}")
    return rules | {name: list(values) for name, values in words.VALUES.items()} | slots | {
        "xs": [*slots["xs"], "things", "objects"], "it": ["it", "he", "she"],
        "place": COMPOSITIONS, "emotion": list(EMOTION_OF.values()), "is": ["is", "are"],
        "number": words.NUMBERS, "spot": list(words.SPOTS.values()), "nth": ["first", "second"],
        "kind": ["a {work}", "{mood}", "a painting of a {subject}", "in {palette} colours"],
        "truth": ["{kind}"],
        "description": [text.removesuffix(".") for text in rules["description"]],
        "tell description": ["{description}.", "{description}. {around}."],
        "tell around": ["{around}.", "{tell alone}"],
        "tell spot": ["{tell where}", "{tell absent}"],
        "tell emotions": ["{tell figure}", "{tell nobody}"],
        "tell count": ["{tell total}", "{tell only}", "{tell a single}", "{tell number}",
                       "{tell none}"],
        "tell kind": ["{tell so}", "{tell not so}"],
        "tell presence": ["{tell present}", "{tell missing}"],
        "tell both": ["the first is {half}, the second {half}."],
        "tell which": [*rules["tell which"], "both of them.", "neither of them."],
        "page text": ["{page content}", "{page content with things}"],
        "tell page": [words.PAGE.format(**page)]}


def pattern(rule, rules):
    """A regular expression for all texts of a rule."""
    if rule == "hue":
        return "#[0-9a-f]{6}"
    if rule in ("things", "inventory"):
        names = (*THINGS, *SUBJECTS) if rule == "inventory" else THINGS
        name = "|".join(re.sub("^a ", "an? ", words.some(name)) for name in names)
        return f"(?:{name})(?:, (?:{name}))*(?: and (?:{name}))?"
    texts = []
    for text in rules[rule]:
        pieces = re.split(r"{([a-z ]+)}", text)
        for i, piece in enumerate(pieces):
            if i % 2:
                pieces[i] = f"(?:{pattern(piece, rules)})"
            else:
                pieces[i] = re.sub(r"\b([Aa])\\ ", r"\1n?\\ ", re.escape(piece))
        texts.append("".join(pieces))
    return "|".join(texts)


@cache
def expression(topic):
    return re.compile(pattern(f"tell {topic}", all_rules()), re.IGNORECASE)


def belongs(text, topic):
    """Whether the grammar can produce the text as an answer about the topic, in whatever scene each
    of its parts is true."""
    return expression(topic).fullmatch(text.strip()) is not None


def is_broken(text):
    """Whether the grammar cannot produce the text as an answer about any topic."""
    return not any(belongs(text, topic)
                   for topic in ("description", *words.TOPICS, *words.PAIR_TOPICS))


# ---- Asking


class Asker:
    """A model, the vectors of its paintings, and all that it has answered."""

    @torch.inference_mode()
    def __init__(self, model, scenes, temperature, seed=0):
        self.model, self.scenes, self.temperature = model, scenes, temperature
        self.generator = torch.Generator(model.llama.embed.weight.device).manual_seed(seed)
        self.answers = []
        self.images = torch.cat([
            model.encode_image(preprocess(Image.fromarray(painting), model.config.image_size)[None])
            for painting in painted(scenes)])

    @torch.inference_mode()
    def ask(self, prompts, max_new_tokens=100):
        """Prompts [(numbers of the paintings, messages of chat_prompt), ...] -> their answers.
        Prompts of equal length are answered together."""
        by_length, texts = {}, [None] * len(prompts)
        for i, (shown, messages) in enumerate(prompts):
            embeds = self.model.embed_prompt(chat_prompt(messages), self.images[list(shown)])
            by_length.setdefault(embeds.shape[1], []).append((i, embeds))
        for rows in by_length.values():
            places, embeds = zip(*rows, strict=True)
            found = answers(self.model, torch.cat(embeds), max_new_tokens,
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


def topics(asker, rng, times=3):
    """Each held-out wording is asked about `times` paintings."""
    asked, prompts = [(topic, text) for topic in SINGLE for text in HELD_OUT[topic]] * times, []
    for topic, wording in asked:
        i = rng.randrange(len(asker.scenes))
        question, _ = words.question(topic, asker.scenes[i], rng, (wording,))
        prompts.append(([i], [f"{IMAGE_SLOT} {question}"]))
    right = {topic: [] for topic in SINGLE}
    for (topic, _), text in zip(asked, asker.ask(prompts, 180), strict=True):
        right[topic].append(belongs(text, topic))
    return {"topic": fmean(sum(right.values(), []))} | {
        f"topic: {topic}": fmean(rights) for topic, rights in right.items()}


def yes_or_no(asker, rng):
    rights = {}
    for topic in YES_OR_NO:
        pairs = [words.question(topic, scene, rng, HELD_OUT[topic]) for scene in asker.scenes]
        texts = asker.ask_each([question for question, _ in pairs])
        rights[topic] = [truth.split(",")[0] == text.split(",")[0]
                         for (_, truth), text in zip(pairs, texts, strict=True)]
    return {"yes or no": fmean(sum(rights.values(), []))} | {
        f"yes or no: {topic}": fmean(right) for topic, right in rights.items()}


def descriptions(asker, rng):
    question = "Write a web page for this painting."
    texts = asker.ask_each([INSTRUCTIONS[0]] * len(asker.scenes), 160)
    pages = asker.ask_each([question] * len(asker.scenes), 200)
    later = asker.ask([([i], [f"{IMAGE_SLOT} {INSTRUCTIONS[0]}", text, question])
                       for i, text in enumerate(texts)], 200)
    told = list(zip(map(words.named, texts), asker.scenes, strict=True))

    def same_subject(pages):
        return fmean(words.named(page)["subject"] == found["subject"] is not None
                     for page, (found, _) in zip(pages, told, strict=True))

    return {
        "description: all four": fmean(found == scene.attributes for found, scene in told),
        "description: subject": fmean(found["subject"] == scene.subject for found, scene in told),
        "web page after its description: same subject": same_subject(later),
        "web page by itself: same subject": same_subject(pages),
        "web page: whole": fmean(belongs(page, "page") for page in pages),
        "web page: alike": 1 - fmean(pages.count(page) == 1 for page in pages)}


def two_pictures(asker, rng):
    """The paintings in pairs, each with the next: a round about the first, then the second."""
    first = f"{IMAGE_SLOT} What is this?"
    shown = [(i, (i + 1) % len(asker.scenes)) for i in range(len(asker.scenes))]
    before = asker.ask([([i], [first]) for i, _ in shown])
    texts = asker.ask([(pair, [first, text, f"{IMAGE_SLOT} {INSTRUCTIONS[0]}"])
                       for pair, text in zip(shown, before, strict=True)], 160)
    rights = []
    for (_, second), text in zip(shown, texts, strict=True):
        found, true = words.named(text), asker.scenes[second].attributes
        rights += [found[attribute] == true[attribute] for attribute in true]

    asked = [words.pair_question("which", [asker.scenes[i] for i in pair], rng, HELD_OUT["which"])
             for pair in shown]
    texts = asker.ask([(pair, [f"{IMAGE_SLOT} {IMAGE_SLOT} {question}"])
                       for pair, (question, _) in zip(shown, asked, strict=True)])
    which = [re.findall(r"\w+", text)[:2] == re.findall(r"\w+", truth)[:2]
             for text, (_, truth) in zip(texts, asked, strict=True)]
    return {"second picture": fmean(rights), "which of them": fmean(which)}


def measured(model, scenes, temperature):
    """All shares at one temperature: {name: share}, and the number of answers."""
    asker, shares = Asker(model, scenes, temperature), {}
    for measure in (topics, yes_or_no, descriptions, two_pictures):
        shares |= measure(asker, random.Random(f"{measure.__name__}"))
    return shares | {"broken": fmean(map(is_broken, asker.answers))}, len(asker.answers)


def main(args):
    model, about = load(args), args.weights / "about.json"
    settings = read_json(about).get("settings", {}) if about.is_file() else {}
    default = settings.get("temperature", 1.0)
    scenes = random_scenes(args.pictures, "questions")
    greedy, asked = measured(model, scenes, 0)
    sampled, _ = measured(model, scenes, default)
    print(f"{asked} answers about {len(scenes)} paintings at each temperature\n")
    print(f"| | temperature 0 | default, {default:g} |\n|---|---|---|")
    for name, share in greedy.items():
        print(f"| {name} | {share:.1%} | {sampled[name]:.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gallery.questions",
                                     description=__doc__.partition("\n")[0])
    model_flags(parser)
    parser.add_argument("--pictures", type=number(int, 2, 1000), default=60,
                        help="fresh paintings (default: %(default)s)")
    run_command(main, parser)
