"""The figures of an experiment; where it has the same rows, the paper's numbers stand beside."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smallobj_d2.evaluation.by_size import side
from smallobj_d2.experiments.paper import Paper
from smallobj_d2.experiments.plan import above
from smallobj_d2.experiments.results import Results
from smallobj_d2.experiments.statistics import spread
from smallobj_d2.visualization.plots import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    WINE,
    YELLOW,
    file_of,
    panels,
    plain,
    styled,
)

_GROUPS = {
    "beyond/": (WINE, "*", "beyond the paper"),
    "baseline": (BLACK, "D", "baseline"),
    "oversample": (BLUE, "o", "oversampling"),
    "orig_aug_single": (YELLOW, "^", "one object pasted"),
    "orig_aug_multi": (GREEN, "v", "several objects pasted"),
    "orig_aug_all": (PINK, "P", "all objects pasted"),
    "orig_aug_": (SKY, "X", "how to paste"),
    "": (ORANGE, "s", "augmentation"),
}
"""Which of the paper's ideas rows belong to, by how they begin; the first that fits."""

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
"""A difference to the baseline, and the length of its error bar (0: there is none)."""
Source = Callable[[str, str], Point | None]
"""(row, metric) to a difference in AP points, or None where there is none."""


def short_name(config: str) -> str:
    """A label for a point."""
    text = config.removeprefix("beyond/").removeprefix("orig_aug_")
    return text.replace("oversample_", "oversampling ").replace("_", " ")


def published(paper: Paper) -> Source:
    """The paper's numbers."""

    def point(row: str, metric: str) -> Point | None:
        if row not in paper.numbers:
            return None
        return 100 * (paper.ap(row, metric) - paper.ap("baseline", metric)), 0.0

    return point


def measured(results: Results) -> Source:
    """Means over the seeds that row and baseline have in common, with their standard errors."""

    def point(row: str, metric: str) -> Point | None:
        change = above(row, "baseline", metric).difference(results)
        if change is None:
            return None
        values = [100 * d for d in change.values]
        error = spread(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return float(np.mean(values)), error

    return point


@styled
def trade_off(paper: Paper, results: Results, *, beside: bool) -> bytes:
    """Change in mask AP of small against large objects, for every row (section 6.1), as SVG.

    Args:
        paper, results: what to show.
        beside: whether to show the paper's numbers in a panel of their own.
    """
    figure, shown = _panels(paper, results, beside)
    for axis, source in shown:
        for row in (*paper.configs(), *(r for r in results.rows if r.startswith("beyond/"))):
            small, large = source(row, "segm.small"), source(row, "segm.large")
            if small is None or large is None:
                continue
            at = large[0], small[0]
            colour = _plot(axis, row, *at, small[1] or None, large[1] or None, lw=0)
            if row in _NAMED or row not in paper.numbers:
                offset = _NAMED.get(row, _BEYOND)
                axis.annotate(
                    *(plain(short_name(row)), at),
                    xytext=offset,
                    textcoords="offset points",
                    ha="left" if offset[0] > 0 else "right",
                    fontsize=8,
                    color=colour,
                )
        axis.axhline(0, color=GREY, lw=0.8, ls=":")
        axis.axvline(0, color=GREY, lw=0.8, ls=":")
        axis.set_xlabel("AP of large objects, against the baseline")
        axis.margins(0.12)
    return _finished(figure, shown)


@styled
def copies(paper: Paper, results: Results, *, beside: bool) -> bytes:
    """Change in mask AP of small objects by copies of each source (Tables 5 to 7), as SVG.

    Args:
        paper, results, beside: see `trade_off`.
    """
    figure, shown = _panels(paper, results, beside)
    for axis, source in shown:
        for table, rows_of in ((5, "orig_aug_single"), (6, "orig_aug_multi"), (7, "orig_aug_all")):
            rows = [r for r in paper.tables[table]["rows"] if "pasted" in r]
            found = [(r["pasted"], source(r["config"], "segm.small")) for r in rows]
            points = [(n, *point) for n, point in found if point]
            if points:
                _plot(axis, rows_of, *zip(*points, strict=True), capsize=2)
        axis.axhline(0, color=GREY, lw=0.8, ls=":")
        axis.set_xlabel("copies of each chosen object")
        axis.set_xticks(range(1, 6))
        axis.set_xlim(0.7, 5.3)
    return _finished(figure, shown)


MOST_ROWS = len(COLOURS) - 1
"""That `gain_by_size` can tell apart."""


@styled
def gain_by_size(
    results: Results, rows: Sequence[str], base: str, bands: Sequence[Mapping[str, Any]]
) -> bytes:
    """Change in AP against a row by octaves of size, with standard errors over seeds, as SVG.

    Octaves without objects are left out.

    Args:
        results: what to show.
        rows: which rows, `MOST_ROWS` at most, with runs that kept their AP by size.
        base: the row that they are compared with.
        bands: the octaves, as `smallobj_d2.evaluation.by_size.by_size` gives them.
    """
    held = [i for i, band in enumerate(bands) if band["objects"]]
    figure, ((axis,),) = panels(9.6, 4.4, columns=1)
    apart = 0.6 / len(rows)
    for k, (row, colour) in enumerate(zip(rows, COLOURS[1:], strict=False)):
        _, measured = results.by_size(row, base)
        gains = 100 * (measured[:, 0] - measured[:, 1])[:, held]
        error = gains.std(axis=0, ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else None
        at = np.arange(len(held)) + (k - (len(rows) - 1) / 2) * apart
        style = {"color": colour, "ms": 5, "elinewidth": 1, "lw": 0.8, "label": plain(row)}
        axis.errorbar(at, gains.mean(axis=0), error, marker="o", **style)
    axis.axhline(0, color=GREY, lw=0.8, ls=":")
    shown = (bands[i] for i in held)
    axis.set_xticks(range(len(held)), [f"{side(b)}\n{b['objects']:,} objects" for b in shown])
    axis.set_xlabel("side in pixels, square root of the area")
    axis.set_ylabel(f"AP in points, against {base}")
    figure.legend(loc="outside lower center", ncols=4)
    return file_of(figure, "svg")


def _plot(axis: Axes, row: str, *points: Any, **style: Any) -> str:
    """Points of rows, given as `Axes.errorbar` takes them; their colour."""
    colour, mark, label = next(g for start, g in _GROUPS.items() if row.startswith(start))
    style |= {"ms": 6, "elinewidth": 1, "ecolor": (colour, 0.4)}
    axis.errorbar(*points, color=colour, marker=mark, label=label, **style)
    return colour


def _panels(
    paper: Paper, results: Results, beside: bool
) -> tuple[Figure, list[tuple[Axes, Source]]]:
    sources = {f"measured on {results.about['validation']}": measured(results)}
    if beside:
        sources = {"the paper (COCO, one run each)": published(paper), **sources}
    figure, axes = panels(4.8 * len(sources), 4.2, columns=len(sources))
    for axis, title in zip(axes[0], sources, strict=True):
        axis.set_title(plain(title))
    return figure, [*zip(axes[0], sources.values(), strict=True)]


def _finished(figure: Figure, shown: list[tuple[Axes, Source]]) -> bytes:
    legend: dict[str, Any] = {}
    for axis, _ in shown:
        handles, labels = axis.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    shown[0][0].set_ylabel("AP of small objects, against the baseline")
    columns = 2 * len(shown)
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=columns)
    return file_of(figure, "svg")
