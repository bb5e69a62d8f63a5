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
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from smallobj_d2.errors import printable

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


def plain(text: str) -> str:
    """A text without markup."""
    return text.striptags() if isinstance(text, Markup) else text


def markdown(text: object) -> str:
    """A text as Markdown; what Markdown or HTML would take for markup is escaped."""
    if isinstance(text, _Ready):
        return text
    if not isinstance(text, Markup):
        return printable(text).translate(_SPECIAL)
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

    def to_left(self, column: int) -> bool:
        """Whether a column is set to the left."""
        return column < self.text or column in self.long

    def classes(self, column: int, cell: str = "") -> str:
        """The classes of a cell in HTML."""
        found = ["text"] * self.to_left(column) + ["long"] * (column in self.long)
        return " ".join([*found, *filter(None, [self.tones.get(cell)])])

    def markdown(self) -> str:
        """As Markdown, padded where that helps to read it as it is."""
        header, *rows = [[markdown(c) for c in row] for row in (self.header, *self.rows)]
        columns = [*zip(header, *rows, strict=True)]
        wide = [3 if self.long else max(3, *map(len, column)) for column in columns]
        rule = [
            ("" if self.to_left(at) else ":").rjust(width, "-") for at, width in enumerate(wide)
        ]
        padded = [
            [
                cell.ljust(width) if self.to_left(at) else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, wide, strict=True))
            ]
            for row in (header, rule, *rows)
        ]
        return _Ready("\n".join(f"| {' | '.join(row)} |" for row in padded))


@dataclass
class Picture:
    """A figure."""

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
class Document:
    """Headings, paragraphs, lists, tables and figures, in order."""

    title: str
    blocks: list[tuple[str, Any]] = field(default_factory=list)
    """Each with its kind: ``h2``, ``h3``, ``p``, ``list``, ``answer``, ``table`` or ``picture``."""

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self.blocks.append((f"h{level}", text))

    def text(self, *paragraphs: str) -> None:
        """Add paragraphs."""
        self.blocks += [("p", text) for text in paragraphs]

    def items(self, items: Sequence[str], *, answer: bool = False) -> None:
        """Add a list; an answer, which a page opens with, is set apart."""
        self.blocks.append(("answer" if answer else "list", items))

    def add(self, block: Table | Picture) -> None:
        """Add a table or a figure."""
        self.blocks.append(("table" if isinstance(block, Table) else "picture", block))

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
        pictures = [block for kind, block in self.blocks if kind == "picture"]
        files = [folder / f"{picture.name}.{picture.suffix}" for picture in pictures]
        for file, picture in zip(files, pictures, strict=True):
            file.write_bytes(picture.data)
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
