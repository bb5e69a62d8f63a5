"""The paper's conclusions, judged by what was measured.

A conclusion is made of comparisons, such as "AP_S of row A is above that of row B". Each seed gives
one number for each comparison: by how much it holds there. Runs of one seed share their initial
weights, so they are compared in pairs; the paired t interval says which differences the number of
seeds can tell from chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from smallobj_d2.experiments.paper import Claim
from smallobj_d2.experiments.results import Results

LEVEL = 0.95
"""Of all intervals."""


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
    seeds: int = 0
    mean: float = math.nan
    """By how much it holds on average, in the comparison where that is least."""
    low: float = math.nan
    high: float = math.nan
    """The 95% interval of that mean; NaN for one seed."""
    missing: tuple[str, ...] = ()
    """Rows without which it cannot be judged; where it is not measured for none, no object has the
    size that it is about."""


def judge(claim: Claim, metric: str, results: Results) -> Verdict:
    """Whether a conclusion holds in what was measured.

    It holds if the 95% interval of each of its comparisons is above zero. It does not hold if that
    of any is below zero, the level being shared among the comparisons (Bonferroni), so that it is
    not refuted by chance because it makes many. Otherwise it is not decided.
    """
    rows = claim.all_rows
    missing = tuple(row for row in rows if not results.seeds(row))
    seeds = results.seeds(*rows)
    known = all(results.values(row, m) for row in rows for m in claim.looks_at(metric))
    if missing or not seeds or not known:
        return Verdict(Status.UNMEASURED, missing=missing)
    try:
        margins = [claim.margins(results.of_seed(seed), metric) for seed in seeds]
    except ZeroDivisionError:  # a gain over nothing
        return Verdict(Status.OPEN, len(seeds))
    return decide(np.array(margins))


def decide(margins: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> Verdict:
    """The verdict on (seeds, comparisons) margins; see `judge`."""
    seeds, comparisons = margins.shape
    means = margins.mean(axis=0)
    least = int(means.argmin())
    if seeds < 2:
        return Verdict(Status.OPEN, seeds, float(means[least]))
    errors = margins.std(axis=0, ddof=1) / math.sqrt(seeds)
    alone = t_quantile(0.5 + LEVEL / 2, seeds - 1)
    shared = t_quantile(1 - (1 - LEVEL) / 2 / comparisons, seeds - 1)
    status = Status.OPEN
    if (means - alone * errors > 0).all():
        status = Status.HOLDS
    elif (means + shared * errors < 0).any():
        status = Status.FAILS
    half = alone * float(errors[least])
    mean = float(means[least])
    return Verdict(status, seeds, mean, mean - half, mean + half)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% t interval of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = t_quantile(0.5 + LEVEL / 2, len(values) - 1) * spread(values) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; NaN for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution, for a probability above one half."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def t_cdf(t: float, freedom: int) -> float:
    """Distribution function of Student's t, for whole degrees of freedom and t >= 0.

    It is a finite sum of cosines then (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cos = math.cos(angle)
    odd = freedom % 2
    term, total = (cos, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return 0.5 + inside / 2
