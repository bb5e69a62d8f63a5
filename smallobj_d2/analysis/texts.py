"""Texts with numbers in them: files of ``templates/``, in Jinja."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from smallobj_d2.analysis.table2 import percent


def paragraphs(template: str, **facts: Any) -> list[str]:
    """The paragraphs of a template, filled in, each a line of plain text."""
    text = _environment().get_template(template).render(facts)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n{2,}", text.strip())]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("smallobj_d2.analysis"),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # plain text, which a document escapes
    )
    environment.filters |= {"percent": percent, "number": "{:,}".format}
    return environment
