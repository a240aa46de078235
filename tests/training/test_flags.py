"""training/flags.py: what is chosen where no flag says it, and what is refused."""
import json

import pytest

from common.command_line import Misuse
from train import RECIPES
from training.flags import chosen_recipe, train_parser


def parsed(*flags):
    args = train_parser("", RECIPES).parse_args(list(map(str, flags)))
    chosen_recipe(args, RECIPES)
    return args


@pytest.mark.parametrize("flags, parts", [
    (["--stage", 2], 2), (["--stage", 2, "--batch-size", 15], 1), (["--stage", 1], 1),
    (["--stage", 2, "--recipe", "paper"], 1), (["--stage", 2, "--accumulate", 4], 4)])
def test_a_batch_is_in_two_parts_where_the_tiny_recipe_has_texts_of_all_lengths(flags, parts):
    assert parsed(*flags).accumulate == parts


def test_stage_2_is_refused_to_a_model_of_another_prompt(tmp_path):
    config = {"llama": {"hidden_size": 8, "num_hidden_layers": 1}, "prompt": "llama2_chat"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    parsed("--stage", 1, "--weights", tmp_path)
    with pytest.raises(Misuse, match="in Vicuna's format, but .* is for llama2_chat"):
        parsed("--stage", 2, "--weights", tmp_path)
