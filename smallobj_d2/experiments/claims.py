"""The paper's conclusions, judged by what was measured.

A conclusion is made of comparisons, such as "AP_S of row A is above that of row B". Each seed gives
one number for each comparison: by how much it holds there. Runs of one seed share their initial
weights, so they are compared in pairs; the paired t interval says which differences the number of
seeds can tell from chance.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

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


@dataclass(frozen=True)
class Verdict:
    """A conclusion for one metric."""

    status: Status
    mean: float = math.nan
    """By how much it holds on average, in the comparison where that is least."""
    half: float = math.nan
    """Half of the 95% interval of that mean; NaN for one seed."""
    seeds: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    """Rows without which it cannot be judged; where it is not measured for none, no object has the
    size that it is about."""


def judge(claim: Claim, metric: str, results: Results) -> Verdict:
    """Whether a conclusion holds in what was measured; see `decide`."""
    missing = tuple(row for row in claim.all_rows if not results.seeds(row))
    seeds = tuple(results.seeds(*claim.all_rows, metrics=claim.looks_at(metric)))
    if missing or not seeds:
        return Verdict(Status.UNMEASURED, missing=missing)
    try:
        margins = [claim.margins(results.of_seed(seed), metric) for seed in seeds]
    except ZeroDivisionError:  # a gain over nothing
        return Verdict(Status.OPEN, seeds=seeds)
    return replace(decide(np.array(margins)), seeds=seeds)


def decide(margins: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> Verdict:
    """The verdict on (seeds, comparisons) margins.

    A conclusion holds if the 95% interval of each of its comparisons is above zero. It does not
    hold if that of any is below zero, the level being shared among the comparisons (Bonferroni), so
    that it is not refuted by chance because it makes many. Otherwise, and with fewer than three
    seeds, it is not decided.
    """
    seeds, comparisons = margins.shape
    means = margins.mean(axis=0)
    alone = np.array([half_width(m.tolist()) for m in margins.T])
    shared = np.array([half_width(m.tolist(), 1 - (1 - LEVEL) / comparisons) for m in margins.T])
    status = Status.OPEN
    if seeds >= FEWEST and (means - alone > 0).all():
        status = Status.HOLDS
    elif seeds >= FEWEST and (means + shared < 0).any():
        status = Status.FAILS
    least = means.argmin()
    return Verdict(status, float(means[least]), float(alone[least]))
