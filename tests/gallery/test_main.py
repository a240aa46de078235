"""python -m gallery: the samples and the contact sheet."""
import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from artgpt4 import ArtGPT4
from conversation.rounds import Conversation
from gallery import __main__ as gallery_command
from gallery import words
from gallery.painting import paint
from gallery.recognise import belongs
from gallery.scenes import COMPOSITIONS, SEEN_PAIRS, SUBJECTS, THINGS
from gallery.score import describe

SAMPLES = Path(__file__).parent.parent.parent / "samples"


def test_the_shipped_samples_are_what_the_gallery_paints(tmp_path):
    gallery_command.main(argparse.Namespace(samples=tmp_path, file=None))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["couple.png", "lighthouse.png", "sailing-boat.png"]
    for file in files:
        shipped = np.asarray(Image.open(SAMPLES / file.name))
        assert np.array_equal(np.asarray(Image.open(file)), shipped), file.name


def test_the_included_model_describes_the_samples_rightly():
    model = ArtGPT4.from_pretrained(SAMPLES.parent / "weights" / "tiny", dtype=torch.float32)
    scenes = gallery_command.SAMPLES
    texts = describe(model, [np.asarray(paint(scene)) for scene in scenes], stage=2)
    for scene, text in zip(scenes, texts, strict=True):
        assert (scene.subject, scene.style) in SEEN_PAIRS
        assert words.named(text) == scene.attributes, text
        assert words.mentioned(text, COMPOSITIONS) == {scene.composition}
        assert words.mentioned(text, THINGS) == set(scene.things)


def test_the_included_model_answers_what_people_ask_of_the_samples():
    model = ArtGPT4.from_pretrained(SAMPLES.parent / "weights" / "tiny", dtype=torch.float32)
    asked = ("What is this?", "Who painted this?", "hello", "Write a web page for this painting.")
    for scene in gallery_command.SAMPLES:
        answers = []
        for question in asked:
            conversation = Conversation(model, temperature=0)
            conversation.add_image(paint(scene))
            answers.append("".join(conversation.answer(question)))
        subject, painter, greeting, page = answers
        assert words.mentioned(subject, SUBJECTS) == {scene.subject}
        assert painter.endswith("the picture does not say.") or painter.startswith("The picture")
        assert greeting.startswith("Hello!")
        assert belongs(page, "page") and words.named(page)["subject"] == scene.subject
