"""common/page.py: a page needs no other file, runs nothing, and shows what it was given."""
import re

from PIL import Image

from common import page


def test_a_page_holds_all_it_needs_and_escapes_what_it_is_given():
    bad = '" onload="alert(1)"><script>'
    body = [page.paragraph(bad, bad), page.html_table([bad], [[bad, bad]]),
            page.picture_tag(Image.new("RGB", (9, 9)), 4, bad)]
    text = page.page(bad, "".join(body), ".mine { color: red; }")
    assert bad[:12] not in text and "<script" not in text
    assert text.count("alert(1)&quot;&gt;&lt;script&gt;") == 8 and ".mine" in text
    assert re.findall('(?:src|href)="(.{22})', text) == ["data:image/jpeg;base64"]


def test_a_cell_of_a_markdown_table_is_one_line_without_markup():
    table = page.markdown_table(["a"], [["x|<b>\ny"]])
    assert table == "| a |\n| --- |\n| x\\|&lt;b&gt; y |"
