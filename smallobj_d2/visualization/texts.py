"""Texts with numbers in them, apart from the code that counts."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from smallobj_d2.errors import clock


class Texts:
    """The blocks of ``templates/report.txt`` of a package, in Jinja."""

    def __init__(self, package: str) -> None:
        environment = Environment(
            loader=PackageLoader(package),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # plain text, which a document escapes
            finalize=_line,
        )
        filters = {"percent": percent, "number": "{:,}".format, "counted": counted, "clock": clock}
        environment.filters |= filters
        self._template = environment.get_template("report.txt")

    def __call__(self, block: str, **facts: Any) -> list[str]:
        """The paragraphs of a block, filled in, each a line of plain text."""
        text = "".join(self._template.blocks[block](self._template.new_context(facts)))
        return [_line(paragraph) for paragraph in re.split(r"\n{2,}", text.strip())]


def _line(value: Any) -> Any:
    """A text in one line, so that nothing that is filled in makes paragraphs of its own."""
    return " ".join(value.split()) if isinstance(value, str) else value


def percent(share: float) -> str:
    """A share for a sentence: whole per cent, but never 0% or 100% of what is not."""
    text = f"{share:.0%}"
    return f"{share:.1%}" if text in ("0%", "100%") and share not in (0, 1) else text


def counted(count: int, what: str) -> str:
    """A number of things: ``1 seed``, ``2 seeds``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
