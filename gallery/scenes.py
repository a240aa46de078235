"""What a gallery scene is: its attributes and a seed, and which of them training never sees."""
import random
from dataclasses import dataclass

# What stands in a picture, and the settings it may stand in. A figure's posture tells what it feels.
SETTINGS_OF = {
    "mountain": ("land", "water"), "lighthouse": ("water",), "sailing boat": ("water",), "windmill": ("land",),
    "cottage": ("land",), "tree": ("land",), "bridge": ("water",), "vase of flowers": ("room",),
    "cat": ("room", "land"), "castle": ("land",),
    "dancer": ("land",), "mourner": ("land",), "wanderer": ("land",), "couple": ("land",),
}
SUBJECTS = tuple(SETTINGS_OF)
EMOTION_OF = {"dancer": "joy", "mourner": "grief", "wanderer": "longing", "couple": "love"}
FIGURES = tuple(EMOTION_OF)

# What may stand around the subject, and in which settings.
THINGS = {"birds": ("land", "water"), "balloon": ("land", "water"), "rainbow": ("land", "water"), "firs": ("land",),
          "fence": ("land",), "rowboat": ("water",), "candle": ("room",), "apples": ("room",)}

STYLES = ("ink wash", "pointillism", "stained glass", "woodcut", "oil", "watercolour")
COMPOSITIONS = ("in the centre", "to the left", "to the right", "far away")


@dataclass(frozen=True)
class Palette:
    """Five colours by their part in a picture, each as "#rrggbb"."""
    sky: str      # the upper background
    ground: str   # the lower background: land, water, table
    main: str     # the subject's body
    accent: str   # the subject's details, sun or moon
    dark: str     # outlines and shadows


PALETTES = {
    "ember": Palette(sky="#f2b366", ground="#a63a24", main="#d9622b", accent="#ffe08a", dark="#3b1512"),
    "moonlight": Palette(sky="#1f3566", ground="#14223f", main="#5b7fb8", accent="#f4f0c8", dark="#0a1024"),
    "meadow": Palette(sky="#cfe8c0", ground="#5f9e3f", main="#2f7a3a", accent="#f6d743", dark="#173b1c"),
    "rose": Palette(sky="#f8d3dd", ground="#c98bb0", main="#d4507f", accent="#fff3e6", dark="#54213f"),
    "desert": Palette(sky="#8fd0cc", ground="#dfb878", main="#b9763a", accent="#fff0c2", dark="#4f3018"),
    "storm": Palette(sky="#aab2ba", ground="#5d6770", main="#7d8994", accent="#e9ecef", dark="#20262c"),
}

# The mood follows from the palette and from how the style speaks: softly, brightly or in hard lines.
VOICES = {"ink wash": "soft", "watercolour": "soft", "pointillism": "bright", "oil": "bright",
          "stained glass": "hard", "woodcut": "hard"}
MOOD_OF = {
    "ember": {"soft": "nostalgic", "bright": "passionate", "hard": "passionate"},
    "moonlight": {"soft": "serene", "bright": "dreamy", "hard": "mysterious"},
    "meadow": {"soft": "serene", "bright": "joyful", "hard": "joyful"},
    "rose": {"soft": "tender", "bright": "tender", "hard": "dreamy"},
    "desert": {"soft": "nostalgic", "bright": "joyful", "hard": "solemn"},
    "storm": {"soft": "melancholy", "bright": "mysterious", "hard": "solemn"},
}
MOODS = tuple(sorted({mood for row in MOOD_OF.values() for mood in row.values()}))

# One style of each subject is held out from all training: the pair has never been seen, each half of it has.
UNSEEN_PAIRS = tuple((subject, STYLES[i % len(STYLES)]) for i, subject in enumerate(SUBJECTS))
SEEN_PAIRS = tuple((subject, style) for subject in SUBJECTS for style in STYLES if (subject, style) not in UNSEEN_PAIRS)


@dataclass(frozen=True)
class Scene:
    """A painting before it is painted; the same Scene is the same picture, to the pixel."""
    subject: str
    style: str
    palette: str
    composition: str
    seed: int     # decides everything that has no name: exact places, sizes, shades, strokes
    things: tuple = ()   # of THINGS, all of them at home in one setting

    @property
    def setting(self):
        """"land", "water" or "room": one of the subject's settings that hold every thing."""
        settings = [setting for setting in SETTINGS_OF[self.subject]
                    if all(setting in THINGS[thing] for thing in self.things)]
        return settings[self.seed % len(settings)]

    @property
    def mood(self):
        return MOOD_OF[self.palette][VOICES[self.style]]

    @property
    def attributes(self):
        """The four attributes that an answer is checked for: {"subject": ..., "style", "palette", "mood"}."""
        return {"subject": self.subject, "style": self.style, "palette": self.palette, "mood": self.mood}


def random_scenes(count, seed, pairs=SEEN_PAIRS, alone=0.5):
    """`count` scenes, each (subject, style) of `pairs` about equally often; a pure function of its arguments. In a
    share `alone` of them the subject stands alone, in the others with one to three things."""
    rng = random.Random(seed)
    scenes = []
    while len(scenes) < count:
        for subject, style in rng.sample(pairs, len(pairs)):
            setting = rng.choice(SETTINGS_OF[subject])
            around = [thing for thing, settings in THINGS.items() if setting in settings]
            number = 0 if rng.random() < alone else rng.randint(1, min(3, len(around)))
            scenes.append(Scene(subject, style, rng.choice(list(PALETTES)), rng.choice(COMPOSITIONS),
                                rng.randrange(2**31), tuple(sorted(rng.sample(around, number)))))
    return scenes[:count]
