"""Two pictures of an experiment, each with the paper's numbers beside the measured ones."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smallobj_d2.experiments.paper import Paper
from smallobj_d2.experiments.results import Results

# Okabe and Ito's colours, which people who see fewer colours can tell apart.
_GROUPS = {
    "baseline": ("#000000", "D", "baseline"),
    "oversample": ("#0072B2", "o", "oversampling (Table 3)"),
    "aug": ("#D55E00", "s", "augmentation (Table 4)"),
    "single": ("#E69F00", "^", "one object pasted (Table 5)"),
    "multi": ("#009E73", "v", "several objects pasted (Table 6)"),
    "all": ("#CC79A7", "P", "all objects pasted (Table 7)"),
    "how": ("#56B4E9", "X", "how to paste (Table 8)"),
    "beyond": ("#882255", "*", "beyond the paper"),
}
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "svg.hashsalt": "smallobj_d2",  # else every drawing has ids of its own
}

# Rows that get a label in the first picture, and where it is set from its point.
_NAMED = {
    "baseline": (6, 5),
    "oversample_2x": (6, 5),
    "oversample_3x": (-6, 5),
    "oversample_4x": (6, -11),
    "aug": (-6, 5),
    "aug_oversample_2x": (-6, -11),
    "orig_aug": (-6, 5),
    "orig_aug_multi3x": (6, 5),
    "orig_aug_overlap": (6, -11),
}
_BEYOND = (6, 5)

Point = tuple[float, float]
"""A value and the length of its error bar, which is 0 where there is none."""
Source = Callable[[str, str], Point | None]
"""(row, metric) to an AP in points, or None where there is none."""


def group_of(config: str) -> str:
    """Which of the paper's ideas a row belongs to, if any."""
    if config.startswith("beyond/"):
        return "beyond"
    if config == "baseline":
        return "baseline"
    if config.startswith("oversample"):
        return "oversample"
    for key in ("single", "multi", "all"):
        if config.startswith(f"orig_aug_{key}"):
            return key
    return "how" if config.startswith("orig_aug_") else "aug"


def short_name(config: str) -> str:
    """A label for a point."""
    text = (
        config.removeprefix("beyond/")
        .removeprefix("orig_aug_")
        .replace("oversample_", "oversampling ")
    )
    return text.replace("_", " ")


def published(paper: Paper) -> Source:
    """The paper's numbers."""

    def point(row: str, metric: str) -> Point | None:
        return (100 * paper.ap(row, metric), 0.0) if row in paper.numbers else None

    return point


def measured(results: Results) -> Source:
    """Means over seeds, with their standard errors."""

    def point(row: str, metric: str) -> Point | None:
        values = [100 * ap for ap in results.values(row, metric)]
        if not values:
            return None
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return float(np.mean(values)), error

    return point


def trade_off(paper: Paper, results: Results, kind: str) -> str:
    """AP of small against large objects, for every row: section 6.1's trade-off, as SVG."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(results)
        drawn: dict[str, Any] = {}
        for axis, source in zip(axes, (published(paper), measured(results)), strict=True):
            for row in (*paper.configs(), *(r for r in results.rows if r.startswith("beyond/"))):
                small, large = source(row, f"{kind}.small"), source(row, f"{kind}.large")
                if small is None or large is None:
                    continue
                colour, mark, label = _GROUPS[group_of(row)]
                drawn[label] = axis.errorbar(
                    *(large[0], small[0], small[1] or None, large[1] or None),
                    color=colour,
                    marker=mark,
                    ms=6,
                    lw=0,
                    elinewidth=1,
                    alpha=0.9,
                )
                if row in _NAMED or row not in paper.numbers:
                    offset = _NAMED.get(row, _BEYOND)
                    axis.annotate(
                        *(short_name(row), (large[0], small[0])),
                        xytext=offset,
                        textcoords="offset points",
                        ha="left" if offset[0] > 0 else "right",
                        fontsize=8,
                        color=colour,
                    )
            if base := source("baseline", f"{kind}.small"):
                axis.axhline(base[0], color="#888888", lw=0.8, ls=":")
            axis.set_xlabel("AP of large objects")
            axis.margins(0.12)
        axes[0].set_ylabel("AP of small objects")
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4)
        return _svg(figure)


def copies(paper: Paper, results: Results, kind: str) -> str:
    """AP of small objects against copies of each source (Tables 5 to 7), as SVG."""
    lines = {
        key: [
            (row["pasted"], row["config"]) for row in paper.tables[table]["rows"] if "pasted" in row
        ]
        for key, table in (("single", 5), ("multi", 6), ("all", 7))
    }
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(results)
        drawn: dict[str, Any] = {}
        for axis, source in zip(axes, (published(paper), measured(results)), strict=True):
            for key, rows in lines.items():
                points = [(n, point) for n, row in rows if (point := source(row, f"{kind}.small"))]
                if not points:
                    continue
                colour, mark, label = _GROUPS[key]
                drawn[label] = axis.errorbar(
                    [n for n, _ in points],
                    [p[0] for _, p in points],
                    [p[1] for _, p in points],
                    color=colour,
                    marker=mark,
                    ms=6,
                    capsize=2,
                    elinewidth=1,
                )
            if base := source("baseline", f"{kind}.small"):
                drawn["baseline"] = axis.axhline(base[0], color="#000000", lw=1, ls=":")
            axis.set_xlabel("copies of each chosen object")
            axis.set_xticks(range(1, 6))
            axis.set_xlim(0.7, 5.3)
        axes[0].set_ylabel("AP of small objects")
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4)
        return _svg(figure)


def _panels(results: Results) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    axes[0].set_title("the paper (COCO, one run each)")
    axes[1].set_title(f"measured ({results.about['scale']} scale, {results.about['engine']})")
    return figure, axes


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
