"""Pages, tables and charts: they need no other file, run nothing, and show what they were given."""
import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from common import page
from tests.common.html_elements import Elements


def test_a_page_holds_all_it_needs_and_escapes_what_it_is_given():
    bad = '<script>alert("1")</script>'
    body = [page.paragraph(bad, bad), page.html_table([bad], [[bad, bad]]),
            page.picture_tag(Image.new("RGB", (9, 9)), 4, bad),
            page.line_chart({bad: [(0, 1), (1, 2)]}, bad, bad, bad),
            page.bar_chart([bad], {bad: [1]}, bad, bad)]
    elements = Elements(page.page(bad, "".join(body)))
    assert "script" not in elements.tags
    assert {"table", "img", "svg", "polyline", "rect"} <= set(elements.tags)
    assert not elements.handlers()
    assert [address[:22] for address in elements.addresses()] == ["data:image/jpeg;base64"]


def test_a_cell_of_a_markdown_table_is_one_line_without_markup():
    table = page.markdown_table(["a"], [["x|<b>*\ny"]])
    assert table == "| a |\n| --- |\n| x\\|&lt;b&gt;\\* y |"


def test_ticks_are_round_numbers():
    assert page.ticks(0, 5) == [0, 1, 2, 3, 4, 5]
    assert page.ticks(0, 663) == [0, 200, 400, 600]
    powers = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert page.ticks(1e-6, 1e-1, log=True) == pytest.approx(powers)


def test_a_line_chart_leaves_out_what_it_cannot_show():
    points = [(0, 4.0), (1, float("nan")), (2, 2.0), (3, 0.0)]
    chart = page.line_chart({"loss": points}, "t", log_y=True)
    assert len(re.search('points="([^"]*)"', chart)[1].split()) == 2
    for points in ([], [(3, 2.0)], [(0, 1.0), (1, 1.0)]):
        assert "nan" not in page.line_chart({"loss": points}, "title")


def test_a_bar_chart_has_a_dash_for_a_missing_value():
    chart = page.bar_chart(["a", "b"], {"x": [1.5, None]}, "t", spread={"x": [0.5, None]})
    assert chart.count('<rect class="s0"') == 2               # one in the legend, one bar
    assert "1.50" in chart and "–" in chart


def test_bars_are_as_long_as_their_values():
    html = page.bars([("a<b", 3.0, "three"), ("c", 1.5, "half")])
    assert re.findall(r"width:([\d.]+)%", html) == ["100.0", "50.0"]
    assert "a&lt;b" in html and "half" in html
    assert re.findall(r"width:([\d.]+)%", page.bars([("a", 3.0, "")], 12)) == ["25.0"]
    assert re.findall(r"width:([\d.]+)%", page.bars([("a", 0.0, "")])) == ["0.0"]


def test_a_strip_shows_every_token_and_colours_it_by_its_value():
    html = page.token_strip([("<s>", "0", None, "first", "word"), ("a", "1", 1.0, '"', "image")])
    assert "&lt;s&gt;<small>0</small>" in html and 'title="&quot;"' in html
    assert html.count("background") == 1 and page.heat(1.0) in html
    assert page.heat(0.0).endswith("/0.00)") and page.heat(7.0) == page.heat(1.0)


def test_a_heat_map_holds_its_values_in_a_picture():
    values = np.array([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]])
    html = page.heatmap(values, ["r1", "r2"], ["c1", "c2", "<c3>"], "title")
    data = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", html)[1])
    alpha = np.array(Image.open(io.BytesIO(data)))[..., 3]
    assert alpha.tolist() == [[0, 127, 255], [255, 0, 63]]
    assert "&lt;c3&gt;" in html and 'aria-label="title"' in html


def test_a_page_takes_a_style_of_its_own():
    assert ".mine { color: red; }</style>" in page.page("t", "", ".mine { color: red; }")
