"""The paper's conclusions, judged by what was measured.

A conclusion is made of comparisons, such as "AP_S of row A is above that of row B". Each seed gives
one number for each comparison: by how much it holds there. Runs of one seed share their initial
weights, so they are compared in pairs; the paired t interval says which differences the number of
seeds can tell from chance.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from smallobj_d2.experiments.paper import Claim
from smallobj_d2.experiments.results import Results
from smallobj_d2.experiments.statistics import FEWEST, LEVEL, half_width


class Status(Enum):
    """What the measurements say of a conclusion."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "not decided"
    UNMEASURED = "not measured"


class Why(Enum):
    """For want of what a conclusion is not measured."""

    ROWS = "rows"
    SEEDS = "seeds that its rows have in common"
    KIND = "masks, or boxes"
    SIZE = "objects of the size that it is about"


@dataclass(frozen=True)
class Verdict:
    """A conclusion for one metric."""

    status: Status
    mean: float = math.nan
    """By how much it holds on average, in the comparison that decides."""
    half: float = math.nan
    """Half of the interval of that mean by which it is decided; NaN for one seed."""
    seeds: tuple[int, ...] = ()
    why: Why | None = None
    """If it is not measured."""


def judge(claim: Claim, metric: str, results: Results) -> Verdict:
    """Whether a conclusion holds in what was measured; see `decide`."""
    rows, kind = claim.all_rows, metric.partition(".")[0]
    seeds = tuple(results.seeds(*rows, metrics=claim.looks_at(metric)))
    if not seeds:
        why = Why.SIZE
        if not all(results.seeds(row) for row in rows):
            why = Why.ROWS
        elif not results.seeds(*rows):
            why = Why.SEEDS
        elif not results.seeds(*rows, metrics=[f"{kind}.all"]):
            why = Why.KIND
        return Verdict(Status.UNMEASURED, why=why)
    margins = [claim.alternatives(results.of_seed(seed), metric) for seed in seeds]
    return replace(decide(np.array(margins)), seeds=seeds)


def decide(margins: "np.ndarray[tuple[int, int, int], np.dtype[np.float64]]") -> Verdict:
    """The verdict on (seeds, alternatives, comparisons) margins.

    A conclusion holds if the 95% interval of each comparison of an alternative is above zero, the
    level being shared among the alternatives (Bonferroni), so that one is not found by chance
    because there are many. It does not hold if each alternative has a comparison whose interval is
    below zero, the level being shared among its comparisons. Either is wrong in 2.5% of cases at
    most. Otherwise, and with fewer than three seeds, it is not decided.
    """
    seeds, alternatives, comparisons = margins.shape
    means = margins.mean(axis=0)
    holds, fails = _half_widths(margins, alternatives), _half_widths(margins, comparisons)
    # Of each alternative the comparison that decides it; then the alternative nearest to holding.
    refuted = means + fails
    if seeds >= FEWEST and (refuted.min(axis=1) < 0).all():
        status, ends, half = Status.FAILS, refuted, fails
    else:
        ends, half = means - (holds if seeds > 1 else 0), holds
        status = Status.HOLDS if seeds >= FEWEST and ends.min(axis=1).max() > 0 else Status.OPEN
    alternative = ends.min(axis=1).argmax()
    at = alternative, ends[alternative].argmin()
    return Verdict(status, float(means[at]), float(half[at]))


def _half_widths(margins: Any, parts: int) -> Any:
    """Over seeds, of each comparison's interval, if as many share the level."""
    level = 1 - (1 - LEVEL) / parts
    return np.apply_along_axis(lambda values: half_width(values.tolist(), level), 0, margins)
