"""One style for all figures."""

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from smallobj_d2.errors import printable

# Okabe and Ito's colours, which people who see fewer colours can tell apart.
BLACK, BLUE, ORANGE, YELLOW = "#000000", "#0072B2", "#D55E00", "#E69F00"
GREEN, PINK, SKY, WINE = "#009E73", "#CC79A7", "#56B4E9", "#882255"
GREY = "#888888"
COLOURS = (BLACK, BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, WINE)
"""In turn, where each line is one of many."""

_STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "smallobj_d2",  # else every figure has ids of its own
}

styled = matplotlib.rc_context(_STYLE)
"""Decorates what makes a figure."""


def panels(
    width: float, height: float, columns: int = 1, rows: int = 1, **more: Any
) -> tuple[Figure, Any]:
    """A figure of so many inches, and its (rows, columns) axes."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


@styled
def file_of(figure: Figure, suffix: str) -> bytes:
    """A figure as the content of a file, ``svg`` or ``png``; the same for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
    return out.getvalue()


def plain(text: str) -> str:
    """A text for a figure, where a dollar sign would start a formula."""
    return printable(text).replace("$", r"\$")
