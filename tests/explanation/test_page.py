"""The HTML of a page: it needs no other file, runs nothing, and shows what it was given."""
import re

from PIL import Image

from explanation import figures


def test_a_page_holds_all_it_needs_and_escapes_what_it_is_given():
    bad = '" onload="alert(1)"><script>'
    body = [figures.paragraph(bad, bad), figures.html_table([bad], [[bad, bad]]),
            figures.picture_tag(Image.new("RGB", (9, 9)), 4, bad)]
    text = figures.page(bad, "".join(body), ".mine { color: red; }")
    assert bad[:12] not in text and "<script" not in text
    assert text.count("alert(1)&quot;&gt;&lt;script&gt;") == 8 and ".mine" in text
    assert re.findall('(?:src|href)="(.{22})', text) == ["data:image/jpeg;base64"]
