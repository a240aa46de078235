"""The figures of a page: code as it stands in the model, pictures lit by values, a map."""
import base64
import inspect
import io
import re
from html import unescape
from textwrap import dedent

import numpy as np
from PIL import Image

import artgpt4
from explanation import figures


def plain(html):
    return unescape(re.sub("<[^>]*>", "", html))


def test_a_listing_is_the_source_of_the_model_at_this_moment():
    for thing in (artgpt4.preprocess, artgpt4.Adapter, artgpt4.ArtGPT4.generate_ids,
                  artgpt4.LlamaConfig):
        source, first = inspect.getsourcelines(thing)
        html = figures.listing(thing)
        shown = plain(re.search("<pre[^>]*>(.*)</pre>", html, re.DOTALL)[1])
        assert shown == dedent("".join(source)).rstrip()
        assert f"line {first}:" in html


def test_comments_texts_and_keywords_have_colours_and_all_is_escaped():
    html = figures.coloured('def f(x):\n    return x < "<b>"  # why\n')
    assert '<span class="k">return</span> x &lt; <span class="s">&quot;&lt;b&gt;&quot;' in html
    assert '<span class="c"># why</span>' in html


def test_the_veil_is_clear_at_the_highest_value_and_darkest_at_the_lowest():
    html = figures.lit(np.array([[0.0, 1.0], [0.5, 0.0]]), "a<b", "below", (1, 0))
    data = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", html)[1])
    veil = np.array(Image.open(io.BytesIO(data)))
    assert veil[..., 1].tolist() == [[215, 0], [107, 215]]
    assert 'aria-label="a&lt;b"' in html and "below" in html
    assert '<rect x="0" y="1" width="1"' in html              # row 1, column 0


def test_two_directions_are_those_of_principal_components():
    random = np.random.RandomState(0)
    plane = random.standard_normal((50, 2)) @ random.standard_normal((2, 7))
    points, share = figures.two_directions(plane)
    assert abs(share - 1) < 1e-6
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    assert np.allclose(np.linalg.norm(points[:, None] - points[None], axis=-1), distances)
    assert (points[-1] >= 0).all()


def test_points_at_one_place_share_a_label():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    html = figures.scatter(points, ["word", "image", "image", "image"], [None, "1", "2", "3"], "t")
    assert re.findall("<text[^>]*>([^<]*)<", html) == ["1, 2 and 1 more"]
    assert html.count("<circle") == 4
