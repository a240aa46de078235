"""The paper's four benchmarks and what the scores 0 to 5 mean in each (its tables of criteria).

PAGES is a fifth, after the paper's figure 5, which has no scores; so its rubric is ours, and it is
no part of the overall mean.
"""

RUBRICS = {
    "IDC": ("image depiction capability", (
        "No image description capability",
        "Description does not match real image representation",
        "Partial image description",
        "Complete image description without appreciation information",
        "Complete image description at the human level of appreciation",
        "Complete image description surpassing the human level of appreciation, such as an artist",
    )),
    "ISAC": ("image sentiment analysis capability", (
        "Can't describe the feelings about the picture",
        "Can describe the relevant emotion but no logical proof",
        "Can describe the relevant emotion and justify it, but the description is not perfect",
        "The individuals in the images or the viewer's emotions can be described perfectly and "
        "justified",
        "Can describe all the emotions as an ordinary person and justify them",
        "Can describe all emotions perfectly and justifiably and full of art",
    )),
    "ICRC": ("image content recognition capability", (
        "No image content recognition capability",
        "Some objects/scenes are recognized but with significant errors or omissions",
        "Most objects/scenes are recognized with some errors or omissions",
        "All objects/scenes are recognized with few errors or omissions",
        "All objects/scenes are recognized with high accuracy and speed, comparable to a human "
        "observer",
        "All objects/scenes are recognized with high accuracy, speed, and contextual "
        "understanding, surpassing a human observer",
    )),
    "MDIUC": ("multi-round dialogue image understanding capability", (
        "No image understanding capability in the dialogue",
        "Partial image understanding, but unable to carry on the dialogue smoothly",
        "Able to understand the image to some extent and carry on the dialogue with some "
        "coherence, but lacks understanding of some key points",
        "Can understand the image and carry on the dialogue smoothly, but with some minor "
        "misunderstandings or mistakes",
        "Can understand the image and carry on the dialogue smoothly, with accurate understanding "
        "and good coherence",
        "Can understand the image and carry on the dialogue smoothly, with accurate "
        "understanding, good coherence, and creative responses",
    )),
}
BENCHMARKS = tuple(RUBRICS)
PAGES = "PAGES"
RUBRICS[PAGES] = ("web page writing capability", (
    "No web page",
    "A web page that has nothing to do with the picture",
    "A web page that names what the picture shows, with significant errors or omissions",
    "A web page that describes the picture rightly, in plain form",
    "A web page that describes the picture rightly, in a form and colours that suit it",
    "A web page that presents the picture as a designer would, in words, form and colours",
))
