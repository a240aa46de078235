"""What a test asks about a page: which elements and attributes it has."""
from html.parser import HTMLParser


class Elements(HTMLParser):
    """tags: the names of all elements; attributes: all (name, value)."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handlers(self):
        """The attributes that run scripts, such as onerror."""
        return [name for name, _ in self.attributes if name.startswith("on")]

    def addresses(self):
        """All that is loaded or linked."""
        return [value for name, value in self.attributes if name in ("src", "href")]
