"""The settings of answers, and what a weights folder says about its model."""
import argparse
from typing import Any, NamedTuple

from common.command_line import number

MAX_CONTEXT = 2000            # tokens of prompt and answer, as in the released code


class Setting(NamedTuple):
    parse: Any                # an argparse type
    default: Any
    help: str


SETTINGS = {
    "temperature": Setting(number(float, 0, 10), 1.0, "0: always the likeliest token"),
    "top_p": Setting(
        number(float, 0.001, 1), 0.9,
        "draw from the likeliest tokens that hold this share of the probability"),
    "repetition_penalty": Setting(
        number(float, 0.1, 10), 1.0,
        "above 1: tokens that the answer already holds become less likely"),
    "min_new_tokens": Setting(
        number(int, 0, MAX_CONTEXT), 0, "the least length of an answer, in tokens"),
    "max_new_tokens": Setting(
        number(int, 1, MAX_CONTEXT), 300, "the greatest length of an answer, in tokens"),
    "beams": Setting(
        number(int, 1, 16), 1,
        "above 1: beam search of this width; the answer then comes all at once"),
    "seed": Setting(number(int, 0, 2 ** 63 - 1), None, "the same seed gives the same answers"),
}


def is_number(value):
    """Whether a value of a JSON file is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_settings(values):
    """{name: value} of settings in a JSON file; null leaves one out. Raises ValueError, in words,
    for an unknown name or a value that does not fit."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError('"settings" should be an object of names and values')
    settings = {}
    for name, value in values.items():
        if name not in SETTINGS:
            raise ValueError(f"setting {name}: there are {', '.join(SETTINGS)}")
        if value is None:
            continue
        if not is_number(value):
            raise ValueError(f"setting {name}: should be a number")
        try:
            settings[name] = SETTINGS[name].parse(str(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"setting {name}: {error}") from None
    return settings


class About(NamedTuple):
    """What "about" in a weights folder's config.json may say of its model. Other keys are ignored.

    knows: a sentence. examples: questions to begin with. settings: defaults in place of those in
    SETTINGS. pictures: how many pictures a conversation had at most in training.
    """
    knows: str = ""
    examples: tuple = ()
    settings: dict = {}
    pictures: int = 4


def read_about(values):
    """About of the dictionary in config.json. Raises ValueError, in words, for what does not
    fit."""
    fields = {name: value for name, value in values.items()
              if name in About._fields and value is not None}
    about = About(**fields)
    examples = about.examples
    try:
        if not isinstance(about.knows, str):
            raise ValueError('"knows" should be a sentence')
        if not isinstance(examples, (list, tuple)) or not all(isinstance(e, str) for e in examples):
            raise ValueError('"examples" should be a list of questions')
        if not is_number(about.pictures):
            raise ValueError('"pictures" should be a number')
        return about._replace(settings=read_settings(about.settings))
    except ValueError as error:
        raise ValueError(f"config.json, about: {error}") from None
