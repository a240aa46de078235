"""gallery/conversations.py: rounds about one scene or two, as people type."""
import itertools
import random
import re

from gallery import conversations
from gallery.scenes import random_scenes

SCENES = random_scenes(60, "conversations")


def test_case_marks_and_typos_vary_independently_of_each_other():
    rng, asked = random.Random(0), "How was this painting made?"
    forms = [conversations.typed(asked, rng) for _ in range(2000)]
    lower = [form for form in forms if form == form.lower()]
    marked = [form for form in forms if form.endswith("?")]
    both = [form for form in lower if form.endswith("?")]
    exact = [form for form in forms if re.search("how was this painting made", form, re.IGNORECASE)]
    assert abs(len(both) / len(lower) - len(marked) / len(forms)) < 0.05
    assert 0.2 < len(lower) / len(forms) < 0.6 < len(exact) / len(forms) < 0.9
    assert forms.count(asked) > 200


def test_a_typo_never_touches_a_name_that_must_be_told():
    rng = random.Random(0)
    for _ in range(200):
        assert "bodulo" in conversations.typed("Is there a bodulo in the picture?", rng).lower()


def test_each_scene_is_shown_once_and_follow_ups_keep_to_the_last_answer():
    rng = random.Random(0)
    for first, second in itertools.pairwise(SCENES):
        rounds = conversations.about_two(first, second, rng)
        assert [scene for new, _, _ in rounds for scene in new] == [first, second]
        rounds = conversations.about_one(first, rng, art=False)
        assert rounds[0][0] == [first] and not any(new for new, _, _ in rounds[1:])
        prompt, answer = conversations.prompt_and_answer(rounds, rng)
        assert prompt.count("<ImageHere>") == 1 and answer == rounds[-1][2]
        for (_, _, before), (_, _, after) in itertools.pairwise(rounds):
            last = after.removeprefix("I am quite sure: ").removesuffix(".")
            if last != after.removesuffix(".") and last in ("yes", "no"):
                assert last in before.lower().rstrip(".").split()
