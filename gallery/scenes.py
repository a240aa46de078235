"""What a gallery scene is: its attributes and a seed, and which of them training never sees."""
import random
from dataclasses import dataclass

# Each subject, with the settings it may stand in.
SETTINGS_OF = {
    "mountain": ("land", "water"), "lighthouse": ("water",), "sailing boat": ("water",),
    "windmill": ("land",), "cottage": ("land",), "tree": ("land",), "bridge": ("water",),
    "vase of flowers": ("room",), "cat": ("room", "land"), "castle": ("land",),
    "dancer": ("land",), "mourner": ("land",), "wanderer": ("land",), "couple": ("land",),
}
SUBJECTS = tuple(SETTINGS_OF)

# The figures among the subjects, with what each feels; its posture shows it.
EMOTION_OF = {"dancer": "joy", "mourner": "grief", "wanderer": "longing", "couple": "love"}
FIGURES = tuple(EMOTION_OF)

# What may stand around the subject, and in which settings.
THINGS = {
    "birds": ("land", "water"), "balloon": ("land", "water"), "rainbow": ("land", "water"),
    "firs": ("land",), "fence": ("land",), "rowboat": ("water",),
    "candle": ("room",), "apples": ("room",),
}

STYLES = ("ink wash", "pointillism", "stained glass", "woodcut", "oil", "watercolour")
COMPOSITIONS = ("in the centre", "to the left", "to the right", "far away")

# The roles of colours, each "#rrggbb": the upper background; the lower one, which is land, water or
# table; the subject's body; its details, sun or moon; outlines and shadows.
ROLES = ("sky", "ground", "main", "accent", "dark")
PALETTES = {palette: dict(zip(ROLES, colours, strict=True)) for palette, colours in {
    "ember": ("#f2b366", "#a63a24", "#d9622b", "#ffe08a", "#3b1512"),
    "moonlight": ("#1f3566", "#14223f", "#5b7fb8", "#f4f0c8", "#0a1024"),
    "meadow": ("#cfe8c0", "#5f9e3f", "#2f7a3a", "#f6d743", "#173b1c"),
    "rose": ("#f8d3dd", "#c98bb0", "#d4507f", "#fff3e6", "#54213f"),
    "desert": ("#8fd0cc", "#dfb878", "#b9763a", "#fff0c2", "#4f3018"),
    "storm": ("#aab2ba", "#5d6770", "#7d8994", "#e9ecef", "#20262c"),
}.items()}

# The mood follows from the palette and from the style's voice: soft, bright or hard.
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

# One style of each subject is held out from all training: training sees the subject in other styles
# and the style with other subjects, but never the pair.
UNSEEN_PAIRS = tuple((subject, STYLES[i % len(STYLES)]) for i, subject in enumerate(SUBJECTS))
SEEN_PAIRS = tuple((subject, style) for subject in SUBJECTS for style in STYLES
                   if (subject, style) not in UNSEEN_PAIRS)


@dataclass(frozen=True)
class Scene:
    """A painting before it is painted; the same Scene is the same picture, to the pixel."""
    subject: str
    style: str
    palette: str
    composition: str
    seed: int            # decides all that has no name: exact places, sizes, shades, strokes
    things: tuple = ()   # of THINGS, all of them possible in one setting

    @property
    def setting(self):
        """"land", "water" or "room": one of the subject's settings that suit every thing."""
        settings = [setting for setting in SETTINGS_OF[self.subject]
                    if all(setting in THINGS[thing] for thing in self.things)]
        return settings[self.seed % len(settings)]

    @property
    def mood(self):
        return MOOD_OF[self.palette][VOICES[self.style]]

    @property
    def attributes(self):
        """The four attributes that an answer is checked for: name -> value."""
        return {name: getattr(self, name) for name in ("subject", "style", "palette", "mood")}


def random_scenes(count, seed, pairs=SEEN_PAIRS, alone=0.5):
    """`count` scenes, of the arguments alone: each (subject, style) of `pairs` about equally often,
    the subject alone in a share `alone` of them, in the others with one to three things."""
    rng = random.Random(seed)
    scenes = []
    while len(scenes) < count:
        for subject, style in rng.sample(pairs, len(pairs)):
            setting = rng.choice(SETTINGS_OF[subject])
            possible = [thing for thing, settings in THINGS.items() if setting in settings]
            number = 0 if rng.random() < alone else rng.randint(1, min(3, len(possible)))
            palette, composition = rng.choice(list(PALETTES)), rng.choice(COMPOSITIONS)
            scene_seed = rng.randrange(2**31)
            things = tuple(sorted(rng.sample(possible, number)))
            scenes.append(Scene(subject, style, palette, composition, scene_seed, things))
    return scenes[:count]
