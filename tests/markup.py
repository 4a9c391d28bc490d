"""Whether HTML is put together as it must be, as far as the standard library's parser can tell."""

import html.parser

VOID = {"meta", "br", "wbr", "img", "input", "hr", "link", "source"}
#: What stands in no paragraph, and in no summary, of an HTML page.
_BLOCKS = {"p", "div", "table", "ul", "ol", "dl", "section", "figure", "figcaption", "h1", "h2", "h3", "pre", "details"}
_CHILDREN = {
    "ul": {"li"},
    "ol": {"li"},
    "table": {"thead", "tbody"},
    "thead": {"tr"},
    "tbody": {"tr"},
    "tr": {"td", "th"},
    "dl": {"dt", "dd"},
}


class Parsed(html.parser.HTMLParser):
    """A page's tags.

    Attributes:
        problems: what is wrong with it.
        tags: list of (name, attributes) in order.
        texts: list of (name of the innermost tag, text).
    """

    def __init__(self, text):
        super().__init__()
        self.problems, self.tags, self.texts, self._open, self._ids = [], [], [], [], set()
        self.feed(text)
        self.close()
        self.problems += [f"<{name}> is never closed" for name in self._open]
        names = {value.removeprefix("#") for _, given in self.tags for key, value in given.items() if key == "href"}
        self.problems += [f"a link leads to {name}, which is nowhere" for name in names - self._ids]

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        if len(given) < len(attributes):
            self.problems.append(f"<{tag}> has an attribute twice")
        if (name := given.get("id")) is not None:
            if name in self._ids:
                self.problems.append(f"two elements have the id {name}")
            self._ids.add(name)
        inner = self._open[-1] if self._open else None
        if inner in _CHILDREN and tag not in _CHILDREN[inner]:
            self.problems.append(f"<{tag}> right in <{inner}>")
        if tag in _BLOCKS and {"p", "summary", "span", "code", "button"} & set(self._open):
            self.problems.append(f"<{tag}> in {self._open}")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.problems.append(f"<{tag}/>")

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes another one")

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    @property
    def text(self):
        """All that a reader sees, and titles."""
        return "".join(data for name, data in self.texts if name not in ("script", "style"))

    def all(self, name, **given):
        """The attributes of all tags of a name that have these ones."""
        return [each for tag, each in self.tags if tag == name and given.items() <= each.items()]
