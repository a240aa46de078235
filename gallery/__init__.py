"""The gallery: painted scenes whose subject, style, palette, mood and composition are known, with words for each.

scenes.py says what a scene is, painting.py paints it, words.py writes about it, pretrain.py makes the frozen parts
of weights/tiny. `python -m gallery` paints the contact sheet.
"""
