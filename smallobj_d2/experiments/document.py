"""A text with tables and pictures, as Markdown with files beside it or as one HTML file."""

import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

_CSS = """
:root { --ink: #1c2330; --soft: #5b6472; --line: #dde1e8; --back: #ffffff; --tint: #f5f7fa; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 76rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; } h2 { margin-top: 2.8rem; font-size: 1.35rem; }
h3 { margin: 1.8rem 0 .4rem; font-size: 1.05rem; } p, li { max-width: 50rem; }
code { background: var(--tint); padding: .1em .3em; border-radius: 3px; font-size: .9em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th.text, td.text { text-align: left; } td.long { white-space: normal; min-width: 17rem; }
tbody tr:hover { background: var(--tint); }
td.good { color: #00704f; font-weight: 600; } td.bad { color: #b23c00; font-weight: 600; }
td.none { color: var(--soft); }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 50rem; }
"""


@dataclass
class Table:
    """A table. In its cells, as in all texts, bold, italics, code and links are as in Markdown."""

    header: list[str]
    rows: list[list[str]]
    text: int = 1
    """How many of the first columns are words, to be set to the left."""
    long: tuple[int, ...] = ()
    """Columns of sentences, which may be broken."""
    tones: dict[str, str] = field(default_factory=dict)
    """Cells by their text to a tone: good, bad, none."""


@dataclass
class Picture:
    """A picture as SVG."""

    name: str
    svg: str
    caption: str


@dataclass
class Document:
    """Headings, paragraphs, lists, tables and pictures, in order."""

    title: str
    blocks: list[tuple[str, str] | list[str] | Table | Picture] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self.blocks.append((f"h{level}", text))

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.blocks.append(("p", text))

    def add(self, block: list[str] | Table | Picture) -> None:
        """Add a list, a table or a picture."""
        self.blocks.append(block)

    def markdown(self, pictures: str) -> str:
        """As Markdown.

        Args:
            pictures: folder of the pictures, relative to the text.
        """
        parts = [f"# {self.title}"]
        for block in self.blocks:
            match block:
                case Table():
                    parts.append(_markdown_table(block))
                case Picture():
                    parts.append(f"![{block.caption}]({pictures}/{block.name}.svg)")
                case list():
                    parts.append("\n".join(f"* {item}" for item in block))
                case ("p", text):
                    parts.append(text)
                case (heading, text):
                    parts.append(f"{'#' * int(heading[1])} {text}")
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """As one HTML page that needs nothing else."""
        parts = [f"<h1>{_inline(self.title)}</h1>"]
        for block in self.blocks:
            match block:
                case Table():
                    parts.append(_html_table(block))
                case Picture():
                    svg = block.svg[block.svg.index("<svg") :]
                    caption = f"<figcaption>{_inline(block.caption)}</figcaption>"
                    parts.append(f'<figure id="{block.name}">{svg}{caption}</figure>')
                case list():
                    items = "".join(f"<li>{_inline(item)}</li>" for item in block)
                    parts.append(f"<ul>{items}</ul>")
                case (tag, text):
                    parts.append(f"<{tag}>{_inline(text)}</{tag}>")
        head = f'<meta charset="utf-8"><title>{escape(self.title)}</title><style>{_CSS}</style>'
        width = '<meta name="viewport" content="width=device-width, initial-scale=1">'
        body = "\n".join(parts)
        return (
            f'<!doctype html><html lang="en"><head>{head}{width}</head><body>{body}</body></html>\n'
        )

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``name.md``, ``name.html`` and the pictures of the former; the paths of both."""
        pictures = folder / f"{name}_files"
        pictures.mkdir(parents=True, exist_ok=True)
        for block in self.blocks:
            if isinstance(block, Picture):
                (pictures / f"{block.name}.svg").write_text(block.svg)
        files = [folder / f"{name}.md", folder / f"{name}.html"]
        files[0].write_text(self.markdown(pictures.name))
        files[1].write_text(self.html())
        return files


def _markdown_table(table: Table) -> str:
    rule = ["---" if i < table.text else "---:" for i in range(len(table.header))]
    lines = [table.header, rule, *table.rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)


def _html_table(table: Table) -> str:
    def cell(tag: str, at: int, text: str) -> str:
        classes = ["text"] * (at < table.text or at in table.long) + ["long"] * (at in table.long)
        if tag == "td" and text in table.tones:
            classes.append(table.tones[text])
        own = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{own}>{_inline(text)}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(table.header))
    rows = ("".join(cell("td", i, text) for i, text in enumerate(row)) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{inside}</table></div>'


def _inline(text: str) -> str:
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text, quote=False))
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\*(\S[^*]*)\*", r"<em>\1</em>", text)
