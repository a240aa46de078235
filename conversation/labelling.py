"""One question about many pictures: an answer for each, in batches, as text or JSON lines."""
import json
import sys
import time
from pathlib import Path

import torch

from artgpt4 import preprocess
from common.answering import answer_rows, penalties
from common.progress import Progress
from conversation.beams import beam_search
from conversation.pictures import open_picture
from conversation.rounds import Round
from conversation.terminal import clean
from gallery.familiarity import unfamiliar

NAMED = 3               # unfamiliar pictures that are named at the end; --json marks them all


def json_text(conversation, model, images, question, answer, tokens, seconds):
    """An answer as one line of JSON. model: the name of the weights. images: pairs of a file and
    whether it looks like none of the pictures in training, None if the weights folder has no
    measure."""
    values = {
        "images": [str(file) for file, _ in images],
        "question": question,
        "answer": answer,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "model": model,
        "settings": conversation.settings,
    }
    if all(is_unfamiliar is not None for _, is_unfamiliar in images):
        values["unfamiliar"] = [str(file) for file, is_unfamiliar in images if is_unfamiliar]
    return json.dumps(values)


@torch.inference_mode()
def answer_batch(conversation, images, question):
    """[(text, number of tokens, whether the picture is unfamiliar)]: an answer about each of some
    PIL images, by the conversation's model and settings. Its rounds are neither read nor changed.

    All prompts are equally long, so they are one batch. Only beam search takes them one by one.
    """
    model, settings = conversation.model, dict(conversation.settings)
    ids = conversation.prompt_ids([Round([""], question)])
    settings["max_new_tokens"] = conversation.room(ids)
    pixels = [preprocess(image, model.config.image_size) for image in images]
    image_embeds = model.encode_image(torch.stack(pixels))
    embeds = torch.cat([model.embed_ids(ids, image[None]) for image in image_embeds])

    beams, _ = settings.pop("beams"), settings.pop("seed")
    if beams > 1:                                             # which draws nothing
        del settings["temperature"], settings["top_p"]
        rows = [beam_search(model, row[None], beams, **settings) for row in embeds]
    else:
        adjust = penalties(model, settings.pop("repetition_penalty"),
                           settings.pop("min_new_tokens"))
        rows = answer_rows(model, embeds, generator=conversation.generator, adjust=adjust,
                           **settings)
    return [(clean(model.decode(row, whole=True)).strip(), len(row), unfamiliar(model, vectors))
            for row, vectors in zip(rows, image_embeds, strict=True)]


def opened(files, failed):
    """{file: image} of those that can be read; the errors of the others go to failed(file,
    error)."""
    images = {}
    for file in files:
        try:
            images[file] = open_picture(file)
        except ValueError as error:
            failed(file, error)
    return images


def label(conversation, files, question, batch_size, model=None):
    """Print an answer about each of some picture files: its name, a tab, the answer in one line.

    A file that cannot be read is a line on stderr; pictures that look like none in training are
    named there at the end. model: the name of the weights; with it the lines are JSON, those of bad
    files too. Returns whether all were answered.
    """
    progress = Progress("labelling", len(files), "pictures", sys.stderr)
    follow = not sys.stdout.isatty()                          # there the answers are the progress
    done, bad, foreign = 0, [], []

    def failed(file, error):
        bad.append(file)
        progress.say(str(error))
        if model:
            print(json.dumps({"images": [str(file)], "error": str(error)}))

    for i in range(0, len(files), batch_size):
        batch, start = files[i:i + batch_size], time.perf_counter()
        images = opened(batch, failed)
        found = answer_batch(conversation, images.values(), question) if images else []
        seconds = (time.perf_counter() - start) / max(1, len(images))
        for file, (text, tokens, is_unfamiliar) in zip(images, found, strict=True):
            if is_unfamiliar:
                foreign.append(file)
            if model:
                print(json_text(conversation, model, [(file, is_unfamiliar)], question, text,
                                tokens, seconds))
            else:
                print(f"{file}\t{' '.join(text.split())}")
        sys.stdout.flush()
        done += len(batch)
        if follow:
            progress.show(done)
    if foreign:
        named = ", ".join(Path(file).name for file in foreign[:NAMED])
        more = f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else ""
        progress.say(f"{len(foreign)} of {len(files)} pictures look like nothing that this model "
                     f"has seen ({named}{more}); its answers to them may be wrong")
    if bad:
        progress.say(f"{len(bad)} of {len(files)} pictures could not be read")
    return not bad
