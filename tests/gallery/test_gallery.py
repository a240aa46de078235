"""gallery/: scenes, paintings, words, scores."""
import random
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from artgpt4 import ArtGPT4
from gallery import benchmark, painting, pretrain, score, words
from gallery.scenes import (FIGURES, MOODS, PALETTES, SEEN_PAIRS, SETTINGS_OF, STYLES, SUBJECTS, THINGS, UNSEEN_PAIRS,
                            Scene, random_scenes)

SCENES = random_scenes(60, "test", SEEN_PAIRS + UNSEEN_PAIRS)


def test_the_gallery_has_the_variety_it_claims_and_holds_a_pair_of_every_subject_out():
    assert len(SUBJECTS) >= 8 and len(STYLES) >= 6 and len(PALETTES) >= 6 and len(MOODS) >= 6
    assert {subject for subject, _ in UNSEEN_PAIRS} == set(SUBJECTS)
    assert {style for _, style in UNSEEN_PAIRS} == set(STYLES)
    assert not set(UNSEEN_PAIRS) & set(SEEN_PAIRS)
    assert len(UNSEEN_PAIRS) + len(SEEN_PAIRS) == len(SUBJECTS) * len(STYLES)


def test_random_scenes_cover_all_pairs_and_are_a_pure_function_of_the_seed():
    assert random_scenes(50, 7) == random_scenes(50, 7) != random_scenes(50, 8)
    assert {(scene.subject, scene.style) for scene in random_scenes(len(SEEN_PAIRS), 7)} == set(SEEN_PAIRS)


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_is_painted_the_same_every_time_and_another_seed_differently(style):
    scene = replace(SCENES[0], style=style)
    first, again, other = (np.asarray(painting.paint(s)) for s in (scene, scene, replace(scene, seed=scene.seed + 1)))
    assert first.shape == (224, 224, 3) and np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 3


def test_palettes_differ_in_every_style():
    for style in STYLES:
        means = [np.asarray(painting.paint(replace(SCENES[0], style=style, palette=palette))).mean(axis=(0, 1))
                 for palette in PALETTES]
        apart = min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i])
        assert apart > 4, style


def test_the_plain_scene_does_not_depend_on_the_style():
    drawings = [np.asarray(painting.draw(replace(SCENES[0], style=style), 56)) for style in STYLES]
    assert drawings[0].shape == (56, 56, 3) and all(np.array_equal(drawings[0], other) for other in drawings)


def test_captions_and_descriptions_name_their_scene_and_nothing_else_of_the_kind():
    rng = random.Random(0)
    for scene in random_scenes(500, "words", SEEN_PAIRS + UNSEEN_PAIRS):
        caption, description = words.caption(scene, rng), words.description(scene, rng)
        assert words.named(caption) == words.named(description) == scene.attributes
        assert words.mentioned(caption, THINGS) == words.mentioned(description, THINGS) == set(scene.things)
        more = 8 if scene.things else 0                       # words about the things
        assert 8 <= len(caption.split()) <= 16 + more and 45 <= len(description.split()) <= 72 + more


def test_questions_are_answered_by_the_scene():
    rng = random.Random(0)
    for scene in SCENES:
        asked = words.questions(scene, rng)
        answers = [answer for _, answer in asked]
        assert len(asked) == len(words.TOPICS) and answers.count(words.page(scene)) == 1
        for attribute in ("subject", "style", "palette", "mood"):
            assert sum(words.named(answer)[attribute] == scene.attributes[attribute] for answer in answers) >= 2
        assert any(scene.composition in answer for answer in answers)
        assert len({question for question, _ in words.dialogue(scene, rng)}) == 5


def test_the_questions_of_the_benchmarks_are_taught():
    rng = random.Random(0)
    taught = {question for scene in SCENES for _ in range(5)
              for question, _ in [*words.questions(scene, rng), *words.dialogue(scene, rng)]}
    for question in benchmark.QUESTIONS.values():
        assert set(question if isinstance(question, list) else [question]) <= taught


def test_things_stand_only_where_they_are_at_home_and_are_seen():
    for scene in random_scenes(300, "things", alone=0):
        assert len(scene.things) in (1, 2, 3) and all(scene.setting in THINGS[thing] for thing in scene.things)
        assert scene.setting in SETTINGS_OF[scene.subject]
    for scene in random_scenes(40, "seen", alone=0):
        plate = painting.render(scene, 112)
        for name in (scene.subject, *scene.things):
            share = plate.per_shape(lambda shape, name=name: shape.name == name).mean()
            assert share > (0.004 if name in THINGS else 0.02), (scene, name)


def test_an_answer_that_names_two_of_a_kind_or_none_names_nothing():
    assert words.named("A cat and a castle in oil.") == {"subject": None, "style": "oil", "palette": None, "mood": None}
    assert words.named("Catalogue of oily things")["subject"] is None


def test_pages_are_whole_html_in_the_paintings_own_colours():
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)
    for scene in SCENES:
        page, seen = words.page(scene), []
        assert page.startswith("```html\n") and page.rstrip().endswith("```") and "###" not in page
        Tags().feed(page)
        assert {"title", "style", "h1", "p"} <= set(seen)
        for colour in vars(PALETTES[scene.palette]).values():
            assert colour in page
        assert words.named(page)["subject"] == scene.subject


def test_scores_count_what_texts_name_rightly():
    scenes = random_scenes(4, "score")
    texts = [words.caption(scene, random.Random(0)) for scene in scenes]
    assert score.named_rightly(scenes, texts) == dict.fromkeys((*score.ATTRIBUTES, "all"), 1.0)
    texts[0] = "nothing"
    assert score.named_rightly(scenes, texts) == dict.fromkeys((*score.ATTRIBUTES, "all"), 0.75)


def test_held_out_paintings_are_in_no_training_set():
    training = set(random_scenes(5000, "training"))
    assert not training & set(score.held_out(SEEN_PAIRS)) and len(score.held_out(UNSEEN_PAIRS)) == 200


def test_contact_sheets_take_captions_of_any_length():
    pictures = [Image.new("RGB", (64, 64), "red")] * 3
    bare = painting.contact_sheet(pictures, 2)
    captioned = painting.contact_sheet(pictures, 2, captions=["", "word " * 60, "short"])
    assert bare.width == captioned.width and captioned.height > bare.height + 100


# ---- the benchmark and its rules

STAIRS = Scene("lighthouse", "oil", "storm", "in the centre", 1, ("birds", "rowboat"))
GRIEF = Scene("mourner", "woodcut", "ember", "in the centre", 1)      # its viewer: passionate


def test_the_benchmark_is_the_same_bytes_each_time_and_knows_its_truth(tmp_path):
    for name in ("first", "again"):
        benchmark.make(tmp_path / name)
    files = sorted(file.relative_to(tmp_path / "first") for file in (tmp_path / "first").rglob("*") if file.is_file())
    assert len(files) == 10 + 10 + 5 + 2 + 2
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    truth = benchmark.truth(tmp_path / "first")
    assert truth == benchmark.scenes() and len(truth) == 27
    assert all(scene.subject in FIGURES for (name, _), scene in truth.items() if name == "ISAC")
    assert all(len(scene.things) >= 2 for (name, _), scene in truth.items() if name == "ICRC")
    assert not set(truth.values()) & set(random_scenes(5000, "training"))
    for name in ("IDC/1.png", "MDIUC/2.png"):
        assert Image.open(tmp_path / "first" / name).size == (224, 224)


@pytest.mark.parametrize("content", [None, "[]", "{", '{"IDC": {"1": {"subject": "cat"}}}', '{"IDC": 5}'])
def test_a_folder_that_is_no_gallery_benchmark_is_said_so(tmp_path, content):
    if content:
        (tmp_path / "truth.json").write_text(content)
    with pytest.raises(ValueError, match="truth.json"):
        benchmark.truth(tmp_path)


def test_what_the_gallery_itself_says_gets_four_or_five():
    rng = random.Random(0)
    for scene in random_scenes(200, "judged", SEEN_PAIRS + UNSEEN_PAIRS):
        assert benchmark.idc(scene, None, [words.description(scene, rng)])[0] >= 4
        assert benchmark.icrc(scene, None, [words.answer("objects", scene, rng)])[0] == 5
        assert benchmark.mdiuc(scene, None, [answer for _, answer in words.dialogue(scene, rng)])[0] == 5
        if scene.subject in FIGURES:
            assert benchmark.isac(scene, None, [words.answer("emotions", scene, rng)])[0] >= 4


PARROT = " ".join((*SUBJECTS, *STYLES, *PALETTES, *MOODS, *THINGS, "joy grief longing love"))


@pytest.mark.parametrize("text, score", [
    ("", 0), ("I do not know what this is.", 0), (PARROT, 1),
    ("A castle in oil, in storm colours, mysterious.", 1),
    ("A lighthouse by the sea.", 2), ("A lighthouse in oil, in rose colours, mysterious.", 2),
    ("A mysterious oil of a lighthouse in storm colours, with a balloon.", 2),
    ("A lighthouse in oil, in storm colours.", 3), ("A joyful oil of a lighthouse in storm colours.", 3),
    ("A mysterious oil of a lighthouse in storm colours.", 4),
    ("A mysterious oil of a lighthouse in storm colours: thick strokes follow the forms, and ridges of paint catch the "
     "light. One wonders what waits in the shade. Birds circle, and a rowboat passes.", 5)])
def test_idc_scores(text, score):
    assert benchmark.idc(STAIRS, None, [text])[0] == score


@pytest.mark.parametrize("text, score", [
    ("", 0), ("There is a stone.", 0), (PARROT, 0), ("The figure feels joy; the viewer feels serene.", 0),
    ("The dancer feels grief.", 0),
    ("The man feels grief.", 1), ("This makes me feel passionate.", 1), ("It is grief, and the viewer is joyful.", 1),
    ("His head is bowed, his back is bent: this is grief. The viewer feels serene.", 2),
    ("His head is bowed, his back is bent: this is grief.", 3),
    ("His head is bowed, his back is bent: this is grief. It leaves me passionate.", 3),
    ("His head is bowed, his back is bent: this is grief. The colours are warm and glowing, so I feel passionate.", 4),
    ("His head is bowed, his back is bent: this is grief. The colours are warm and glowing, so I feel passionate, and "
     "firm carved lines sharpen the pain.", 5)])
def test_isac_scores(text, score):
    assert benchmark.isac(GRIEF, None, [text])[0] == score


@pytest.mark.parametrize("text, score", [
    ("", 0), ("A castle with a fence.", 0), (PARROT, 1), ("A lighthouse.", 1), ("A lighthouse, a cat and firs.", 1),
    ("A lighthouse and birds.", 2), ("A lighthouse, birds, a rowboat and a balloon.", 3),
    ("A lighthouse, birds and a rowboat.", 4), ("At the waterside: a lighthouse, birds and a rowboat.", 5)])
def test_icrc_scores(text, score):
    assert benchmark.icrc(STAIRS, None, [text])[0] == score


ROUNDS = ["A lighthouse in oil, in storm colours.", "It is a mysterious moment.",
          "The lighthouse waits for ships and sends its beam out.", "An oil in the storm palette.",
          "The lighthouse lifts its patient light\nand counts the ships that pass by night."]


@pytest.mark.parametrize("changes, score", [
    ({}, 5), ({4: "It is a poem."}, 4), ({0: "A castle."}, 3), ({0: "A castle.", 1: "It is joyful."}, 2),
    ({0: "A castle.", 1: "It is joyful.", 3: "A woodcut."}, 1), ({2: ""}, 1), ({1: ROUNDS[0]}, 1),
    (dict.fromkeys(range(5), ""), 0), (dict.fromkeys(range(5), PARROT), 0),
    ({i: f"{PARROT} {i}" for i in range(5)}, 0)])
def test_mdiuc_scores(changes, score):
    answers = [changes.get(i, text) for i, text in enumerate(ROUNDS)]
    assert benchmark.mdiuc(STAIRS, None, answers)[0] == score


def test_pre_training_moves_both_sides_alone_and_writes_a_folder_that_loads(tmp_path):
    out = str(tmp_path / "tiny")
    flags = "--vision-steps 2 --vision-batch 4 --pictures 6 --language-steps 2 --language-batch 2 --out"
    pretrain.main(pretrain.command_line().parse_args([*flags.split(), out]))
    model = ArtGPT4.from_pretrained(out, dtype=torch.float32)
    assert model.config == pretrain.TINY and model.tokenizer.get_piece_size() == pretrain.TINY.llama.vocab_size
    torch.manual_seed(42)
    before = ArtGPT4(pretrain.TINY, model.tokenizer)
    for part in (before.vit, before.qformer, before.llama):
        pretrain.initialise(part)
    trained = dict(model.named_parameters())
    moved = {name for name, parameter in before.named_parameters()                   # more than halving rounds them
             if not torch.allclose(trained[name], parameter, atol=2e-4, rtol=2e-3)}
    assert {"vit.blocks.0.attn.qkv.weight", "qformer.queries", "llama.embed.weight"} <= moved
    assert not any(".adapter." in name or name.startswith("proj.") for name in moved)
