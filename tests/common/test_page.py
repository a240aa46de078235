"""common/page.py: a page needs no other file, runs nothing, and shows what it was given."""
from html.parser import HTMLParser

from PIL import Image

from common import page


class Elements(HTMLParser):
    """The tags of a page, and its attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def test_a_page_holds_all_it_needs_and_escapes_what_it_is_given():
    bad = '<script>alert("1")</script>'
    body = [page.paragraph(bad, bad), page.html_table([bad], [[bad, bad]]),
            page.picture_tag(Image.new("RGB", (9, 9)), 4, bad)]
    elements = Elements(page.page(bad, "".join(body), ".mine { color: red; }"))
    assert "script" not in elements.tags and {"table", "img", "p"} <= set(elements.tags)
    assert not any(name.startswith("on") for name, _ in elements.attributes)
    sources = [value for name, value in elements.attributes if name in ("src", "href")]
    assert [source[:22] for source in sources] == ["data:image/jpeg;base64"]


def test_a_cell_of_a_markdown_table_is_one_line_without_markup():
    table = page.markdown_table(["a"], [["x|<b>\ny"]])
    assert table == "| a |\n| --- |\n| x\\|&lt;b&gt; y |"
