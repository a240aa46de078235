"""The gallery: painted scenes of which everything is known, with words for each.

scenes.py       what a scene is: subject, style, palette, mood, composition, things
painting.py     draws and paints it
album.py        many paintings in one file
phrases.py      what can be said of each subject, style, palette, mood
grammar.py      sentences and answers made of those
wordings.py     what people ask; held_out_wordings.py: what no training text asks
words.py        captions, descriptions, questions with answers; what a text names
conversations.py  rounds of questions and answers, about one scene or two
recognise.py    which topics an answer may belong to; whether it is broken
questions.py    what a model answers to people's questions
familiarity.py  whether a picture is like those in training
benchmark.py    the paper's four benchmarks on such paintings, and rules that judge answers
score.py        what a model names rightly of held-out paintings, and where it looks
ablation.py     the same for ArtGPT-4's parts one by one
effects.py      turns a plain scene into a photograph, for pre-training
pretrain.py     makes the frozen parts of weights/tiny
language.py     its language half: documents in which words tell the picture
vision.py       its vision half: what the queries of the Q-Former are taught to see
attention.py    where those queries look

`python -m gallery` paints a contact sheet.
"""
