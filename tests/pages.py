"""Texts that would be more than text, and what a page is made of."""

import re
from html.parser import HTMLParser

HOSTILE = (
    "<script>alert(1)</script>",
    '[x](" onmouseover="alert(1)).png',
    "[y](javascript:alert(1))",
    "![z](javascript:alert(1))",
    '"><img src=x onerror=alert(1)>',
    "`</code><script>`",
    "a|b\nerror: forged\x1b[31m\u202e",
    "**<b onclick=x>**",
    "<javascript:alert(1)>",
    "{{ 7 * 7 }}",
)


class Page(HTMLParser):
    """What is in a page; every element is closed, and nothing in it can run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        assert tag not in ("script", "iframe", "object", "embed", "svg", "a", "form", "base")
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert value.startswith("data:image/"), value
                self.links.append(value)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def assert_inert(text: str, *, pictures: bool = False) -> None:
    """Markdown has no HTML but `code`, no link and no image but those of its own figures."""
    assert not re.search(r"<(?!/?code>)", text)
    for link in re.findall(r"\]\(([^)]*)\)", text):
        assert re.fullmatch(r"files/[\w-]+\.svg" if pictures else r"files/_a_\.svg", link)
    assert all(c.isprintable() or c == "\n" for c in text)
