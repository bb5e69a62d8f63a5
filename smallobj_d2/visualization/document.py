"""A text with tables and figures, as Markdown with files beside it and as one HTML page.

Whatever is put in is data and is escaped, for either format, unless it is `markupsafe.Markup`.
`Markup("The row <em>{}</em>").format(name)` escapes ``name``; of tags it may have ``code``,
``strong`` and ``em``.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import unescape
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

_MARKS = {"strong": "**", "em": "*"}
_PLAIN = re.compile(r"[\w ./@:+=,-]+")
_SPECIAL = str.maketrans({c: f"&#{ord(c)};" for c in "&<[]*|\\#"})


class _Ready(str):
    """Markdown, which needs no escapes any more."""


def code(text: str) -> Markup:
    """A name as it is typed."""
    return Markup("<code>{}</code>").format(text)


def strong(text: str) -> Markup:
    """In bold."""
    return Markup("<strong>{}</strong>").format(text)


def emphasis(text: str) -> Markup:
    """In italics."""
    return Markup("<em>{}</em>").format(text)


def visible(text: str) -> str:
    """One line of what can be printed: newlines and control characters as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def plain(text: str) -> str:
    """A text without markup."""
    return text.striptags() if isinstance(text, Markup) else text


def markdown(text: object) -> str:
    """A text as Markdown; what Markdown or HTML would take for markup is escaped."""
    if isinstance(text, _Ready):
        return text
    if not isinstance(text, Markup):
        return visible(str(text)).translate(_SPECIAL)
    parts = []
    for part in re.split(r"(<code>.*?</code>|</?strong>|</?em>)", text, flags=re.DOTALL):
        inside = unescape(part.removeprefix("<code>").removesuffix("</code>"))
        if not part.startswith("<code>"):
            mark = _MARKS.get(part.strip("</>"))
            parts.append(mark or markdown(unescape(part)))
        elif _PLAIN.fullmatch(inside):
            parts.append(f"`{inside}`")
        else:
            parts.append(f"<code>{markdown(inside)}</code>")
    return "".join(parts)


@dataclass
class Table:
    """A table."""

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1
    """How many of the first columns are words, to be set to the left."""
    long: tuple[int, ...] = ()
    """Columns of sentences, which may be broken."""
    tones: Mapping[str, str] = field(default_factory=dict)
    """Cells by their text to a tone: good, bad, none."""
    rules: Sequence[int] = ()
    """Rows that a group starts with, which a line sets off."""

    def classes(self, at: int, cell: str = "") -> str:
        """The classes of a cell in HTML."""
        found = ["text"] * (at < self.text or at in self.long) + ["long"] * (at in self.long)
        return " ".join([*found, *filter(None, [self.tones.get(cell)])])

    def markdown(self) -> str:
        """As Markdown, padded where that helps to read it as it is."""
        rows = [[markdown(c) for c in row] for row in (self.header, *self.rows)]
        wide = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        if self.long:
            wide = [3] * len(wide)
        left = [at < self.text or at in self.long for at in range(len(wide))]
        pad = [str.ljust if to_left else str.rjust for to_left in left]
        rule = [
            ("" if to_left else ":").rjust(n, "-") for n, to_left in zip(wide, left, strict=True)
        ]
        rows = [
            [to(cell, n) for to, cell, n in zip(pad, row, wide, strict=True)]
            for row in (rows[0], rule, *rows[1:])
        ]
        return _Ready("\n".join(f"| {' | '.join(row)} |" for row in rows))


@dataclass
class Picture:
    """A figure."""

    kind: ClassVar = "picture"
    name: str
    """Of its file, without the suffix; what is no letter, digit or hyphen becomes ``_``."""
    data: bytes
    suffix: str
    """``svg`` or ``png``."""
    caption: str

    def __post_init__(self) -> None:
        self.name = re.sub(r"[^\w-]", "_", self.name)

    @property
    def source(self) -> str:
        """The picture as a link that holds it. Scripts in an SVG do not run there."""
        media = {"svg": "image/svg+xml", "png": "image/png"}[self.suffix]
        return f"data:{media};base64,{base64.b64encode(self.data).decode()}"


@dataclass
class Words:
    """A heading (``h2``, ``h3``), a paragraph (``p``), or the answer that a page opens with."""

    kind: str
    text: str


@dataclass
class Items:
    """A list; ``answer`` sets it apart."""

    kind: ClassVar = "list"
    items: Sequence[str]
    answer: bool = False


Block = Table | Picture | Words | Items


@dataclass
class Document:
    """Headings, paragraphs, lists, tables and figures, in order."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self.blocks.append(Words(f"h{level}", text))

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.blocks.append(Words("p", text))

    def add(self, block: Block | Sequence[str]) -> None:
        """Add a table, a figure or a list."""
        self.blocks.append(block if isinstance(block, Block) else Items(block))

    def markdown(self, pictures: str | None) -> str:
        """As Markdown.

        Args:
            pictures: folder of the figures, relative to the text; None leaves them out.
        """
        return _render("document.md", self, pictures)

    def html(self) -> str:
        """As one HTML page that needs nothing else."""
        return _render("document.html", self, None)

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``name.md``, ``name.html`` and the figures of the former; the paths of both."""
        files = [folder / f"{name}.md", folder / f"{name}.html"]
        pictures = self.write_pictures(folder / f"{name}_files")
        files[0].write_text(self.markdown(f"{name}_files" if pictures else None), "utf-8")
        files[1].write_text(self.html(), "utf-8")
        return files

    def write_pictures(self, folder: Path) -> list[Path]:
        """Write each figure to a file."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for block in self.blocks:
            if isinstance(block, Picture):
                files.append(folder / f"{block.name}.{block.suffix}")
                files[-1].write_bytes(block.data)
        return files


def _render(template: str, document: Document, pictures: str | None) -> str:
    return (
        _environment(template.endswith(".html"))
        .get_template(template)
        .render(document=document, pictures=pictures)
    )


@lru_cache
def _environment(html: bool) -> Environment:
    """For HTML or Markdown; in both, all that is filled in is escaped by default."""
    finalize: Any = None if html else markdown
    environment = Environment(
        loader=PackageLoader("smallobj_d2.visualization"),
        autoescape=html,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    return environment
