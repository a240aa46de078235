"""What the gallery can say of each subject, style, palette, mood and place: rules of its grammar.

A rule is a name and the texts that may stand for it; see grammar.py and words.py. Each table here
gives rules of its own to every value of one attribute of a scene.

No text contains another value's word of the same kind: "rose", for one, is said of the palette
alone. So `words.named` can read a scene's attributes from any text about it.
"""

# stands: what the subject does, and where. detail: a clause about its parts. doing: what it does or
# is about to do. verse: the beginning of a poem.
SUBJECT_RULES = {
    "mountain": {
        "stands": ("rises steeply to its peak", "lifts its slopes into the sky"),
        "detail": ("snow lies on the heights", "light falls on one of its sides"),
        "doing": (
            "waits for the next snow, as it has always done",
            "keeps its place and lets the clouds pass by"),
        "verse": (
            "The mountain stands where eagles fly\n"
            "and writes its name across the sky,",)},
    "lighthouse": {
        "stands": ("stands on a rock above the water", "keeps watch above the water"),
        "detail": ("light and dark bands climb its tower", "a lamp crowns the banded tower"),
        "doing": (
            "sends its beam out and waits for ships",
            "is lighting the way home for late ships"),
        "verse": (
            "The lighthouse lifts its patient light\n"
            "and counts the ships that pass by night,",)},
    "sailing boat": {
        "stands": ("glides over the water", "drifts across the water"),
        "detail": ("two full sails rise above the hull", "a small flag flies above its two sails"),
        "doing": ("is sailing out before the wind", "catches the wind and heads for another shore"),
        "verse": (
            "A sailing boat with nothing planned\n"
            "leaves far behind the sleeping land,",)},
    "windmill": {
        "stands": ("stands on open land", "stands open to the wind"),
        "detail": (
            "four ribbed sails cross above a small door",
            "the sturdy tower narrows towards the sails"),
        "doing": (
            "is turning its sails to grind the corn",
            "waits for the next wind to grind the corn"),
        "verse": (
            "The windmill turns and turns again\n"
            "through years of sun and years of rain,",)},
    "cottage": {
        "stands": ("stands on open land", "sits snugly on the land"),
        "detail": ("smoke curls up from its chimney", "small windows look out from under the roof"),
        "doing": ("keeps its people warm by the fire", "is waiting for somebody to come home"),
        "verse": (
            "The cottage keeps its fire low\n"
            "for everyone who has to go,",)},
    "tree": {
        "stands": ("stands on open land", "spreads its branches over the land"),
        "detail": ("a dark trunk carries the round crown", "its leaves form a full, round crown"),
        "doing": ("is growing quietly, ring by ring", "gives its shade and prepares its fruit"),
        "verse": (
            "The tree has neither haste nor pride\n"
            "and shade for all who rest beside,",)},
    "bridge": {
        "stands": ("spans the water", "carries its path over the water"),
        "detail": ("the deck bends in a gentle curve", "a low rail runs along the top"),
        "doing": (
            "carries travellers from one bank to the other",
            "is waiting for the next travellers to cross"),
        "verse": (
            "The bridge will ask of none his name\n"
            "and carries all of us the same,",)},
    "vase of flowers": {
        "stands": ("stands on a table", "rests on a table"),
        "detail": ("round blooms open above the narrow neck", "petals and leaves spread freely"),
        "doing": ("is opening its last buds", "shows its bloom and will soon drop petals"),
        "verse": (
            "A vase of flowers, cut today,\n"
            "gives all its summer days away,",)},
    "cat": {
        "stands": ("sits upright and looks at us", "sits still and watches us"),
        "detail": ("two pointed ears frame the wide eyes", "a pale patch shines on the chest"),
        "doing": ("keeps watch and may soon jump", "is listening, and prepares to jump"),
        "verse": (
            "The cat looks up, then looks away,\n"
            "and will not say what cats could say,",)},
    "castle": {
        "stands": ("stands on open land", "stands guard over the land"),
        "detail": (
            "two towers flank the keep with its flag",
            "a dark gate opens between two towers"),
        "doing": (
            "guards its gate against enemies",
            "is keeping its gate shut until the king returns"),
        "verse": (
            "The castle counts its kings of old\n"
            "and guards what never will be told,",)},
    "dancer": {
        "stands": ("leaps into the air", "dances over the open land"),
        "detail": ("both arms are thrown high", "one leg swings out under the skirt"),
        "doing": ("is leaping, and about to spin around", "dances on and prepares the next leap"),
        "verse": (
            "The dancer leaps, the ground lets go,\n"
            "the sky bends down to say hello,",)},
    "mourner": {
        "stands": ("sits bent upon a stone", "sits alone upon a stone"),
        "detail": ("the head is bowed into the hand", "the bent back hides half of the face"),
        "doing": ("is weeping, and will not look up", "remembers somebody and holds back tears"),
        "verse": (
            "The mourner bows his heavy head\n"
            "for every word he left unsaid,",)},
    "wanderer": {
        "stands": ("walks over the open land", "walks on with a staff"),
        "detail": ("a hat shades the face above a long coat", "a bundle hangs on the back"),
        "doing": ("is walking on to a distant place", "strides on and will walk until night"),
        "verse": (
            "The wanderer with staff and sack\n"
            "goes on and on and looks not back,",)},
    "couple": {
        "stands": ("stands in a close embrace", "stands heart to heart"),
        "detail": ("a man and a woman hold each other", "her arm lies around his shoulder"),
        "doing": ("embraces, and is about to kiss", "holds still and prepares to say goodbye"),
        "verse": (
            "The couple hold what time would part,\n"
            "so close, with heart on beating heart,",)},
}

# it: the figure's pronoun. posture: how the figure shows what it feels.
FIGURE_RULES = {
    "dancer": {
        "it": ("she",),
        "posture": ("raised arms and a kicking leg", "the arms in the air and the high leap")},
    "mourner": {
        "it": ("he",),
        "posture": ("a bowed head and a bent back", "the sunken head and the hidden face")},
    "wanderer": {
        "it": ("he",),
        "posture": (
            "long strides and a staff in the hand",
            "the steady walk and the heavy bundle")},
    "couple": {
        "it": ("it",),
        "posture": (
            "a tight embrace and faces close together",
            "two bodies and the arms that hold them")},
}

SETTING_RULES = {
    "land": {"setting": ("in open country",)},
    "water": {"setting": ("at the waterside",)},
    "room": {"setting": ("in a room",)},
}

THING_PHRASES = {
    "birds": "birds", "balloon": "a balloon", "rainbow": "a rainbow", "firs": "firs",
    "fence": "a fence", "rowboat": "a rowboat", "candle": "a candle", "apples": "apples"}

# Where a thing is, in every picture that shows it, and how many of it there are.
THING_SPOTS = {
    "birds": "in the sky", "balloon": "in the sky", "rainbow": "in the sky",
    "firs": "beside the {subject}", "fence": "in the foreground", "rowboat": "on the water",
    "candle": "beside the {subject}", "apples": "beside the {subject}"}
THING_NUMBERS = {"birds": 4, "firs": 2, "apples": 4}          # of all others one
PEOPLE = {"dancer": 1, "mourner": 1, "wanderer": 1, "couple": 2}
NUMBERS = ("no", "one", "two", "three", "four")
PLURALS = ("birds", "firs", "apples", "people")               # names that are plural already

# What people ask for, and what no painting of the gallery shows.
FOREIGN = ("dog", "horse", "cow", "car", "train", "elephant")

# work: a picture in this style. technique: a clause about how it is made. handling: the same in two
# or three words.
STYLE_RULES = {
    "ink wash": {
        "work": ("ink wash", "ink wash painting"),
        "technique": (
            "a few brush lines hold pale, wet tones on bare paper",
            "soft tones blur into the paper around a few dry lines"),
        "handling": ("pale, wet tones", "quick brush lines")},
    "pointillism": {
        "work": ("pointillism painting", "pointillism picture"),
        "technique": (
            "dots of pure colour meet and mix in the eye",
            "countless dots flicker, and at a distance turn into forms"),
        "handling": ("small, lively dots", "dots of pure colour")},
    "stained glass": {
        "work": ("stained glass window", "stained glass panel"),
        "technique": (
            "black lead lines hold the pieces, and light glows through them",
            "clear pieces fit like a puzzle, each set in black lead"),
        "handling": ("firm lead lines", "clear pieces in black lead")},
    "woodcut": {
        "work": ("woodcut", "woodcut print"),
        "technique": (
            "carved lines swell and narrow over flat colour, with firm edges",
            "bold lines, cut with a knife, run in rows over flat colour"),
        "handling": ("firm carved lines", "bold cuts of the knife")},
    "oil": {
        "work": ("oil", "oil painting"),
        "technique": (
            "thick strokes follow the forms, and ridges of paint catch the light",
            "rich paint lies in short strokes that one would like to touch"),
        "handling": ("thick, rich strokes", "short strokes of heavy paint")},
    "watercolour": {
        "work": ("watercolour", "watercolour painting"),
        "technique": (
            "clear washes run into each other and dry with darker edges",
            "thin paint flows freely, and white paper shines at the borders"),
        "handling": ("clear, thin washes", "flowing washes")},
}

# colours: the colours of a palette. tone: what they have in common.
PALETTE_RULES = {
    "ember": {
        "colours": ("amber, orange and brick red", "gold, orange and deep red"),
        "tone": ("warm and glowing", "rich and fiery")},
    "moonlight": {
        "colours": ("deep blue, navy and ivory", "dark blues with pale ivory"),
        "tone": ("cool and hushed", "still and quiet")},
    "meadow": {
        "colours": ("pale green, leaf green and yellow", "spring greens with a touch of yellow"),
        "tone": ("fresh and bright", "clear and young")},
    "rose": {
        "colours": ("blush, deep pink and cream", "pink, mauve and pale cream"),
        "tone": ("warm and delicate", "soft and sweet")},
    "desert": {
        "colours": ("sand, copper and turquoise", "warm browns under pale turquoise"),
        "tone": ("dry and bright", "sunny and open")},
    "storm": {
        "colours": ("slate, silver and white", "greys from slate to silver"),
        "tone": ("cold and heavy", "cool and stern")},
}

# feeling: a clause that says what the mood does to the viewer. ending: the second half of a poem.
MOOD_RULES = {
    "nostalgic": {
        "feeling": ("it recalls a day of long ago", "one thinks of places left behind"),
        "ending": (
            "and we, nostalgic, stop to gaze\n"
            "along the road of other days.",)},
    "passionate": {
        "feeling": ("every part of it seems to burn", "nothing in it is timid"),
        "ending": (
            "in passionate and burning tones\n"
            "that warm the very walls and stones.",)},
    "serene": {
        "feeling": ("nothing hurries here", "one breathes more slowly"),
        "ending": (
            "serene as water, cool and deep,\n"
            "that hums a world of cares to sleep.",)},
    "dreamy": {
        "feeling": ("it floats between sleep and waking", "the world has lost its weight"),
        "ending": (
            "a dreamy hour, light as air,\n"
            "half here with us and half elsewhere.",)},
    "mysterious": {
        "feeling": ("it hides more than it tells", "one wonders what waits in the shade"),
        "ending": (
            "mysterious, it lets us guess\n"
            "and never answers no or yes.",)},
    "joyful": {
        "feeling": ("one cannot help smiling", "it seems to sing aloud"),
        "ending": (
            "a joyful hour, made to sing\n"
            "of every bright and simple thing.",)},
    "tender": {
        "feeling": ("it speaks in a low, loving voice", "all is treated with gentle care"),
        "ending": (
            "a tender light on all that lives,\n"
            "that asks for little, and forgives.",)},
    "solemn": {
        "feeling": ("it asks for silence", "it is as grave as a hymn"),
        "ending": (
            "a solemn hour, grave and still,\n"
            "like bells at dusk behind a hill.",)},
    "melancholy": {
        "feeling": ("something seems to be over", "it is lovely like a rainy evening"),
        "ending": (
            "and melancholy, soft as rain,\n"
            "taps once upon the window pane.",)},
}

# space: how much room the composition leaves around the subject.
PLACE_RULES = {
    "in the centre": {
        "space": ("with the same room on both sides", "so that the eye goes straight to it")},
    "to the left": {"space": ("with more room on the right", "and the eye then wanders across")},
    "to the right": {"space": ("with more room on the left", "and the eye then wanders across")},
    "far away": {"space": ("small, with much room around it", "small in a wide space")},
}
