"""What differences between rows say, over seeds: paired, common seeds only.

Two rows of one seed share their initial weights, so each seed gives one difference. Their mean has
a t interval, and a p-value by the paired t test. Planned comparisons of one family are corrected
together (Holm); others were looked at afterwards, and decide nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
"""Of all intervals."""

FEWEST = 3
"""Seeds without which nothing is decided."""


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; NaN for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def half_width(values: Sequence[float], level: float = LEVEL) -> float:
    """Half of the t interval of a mean: the smallest mean that this spread tells from zero.

    NaN for fewer than two values.
    """
    if len(values) < 2:
        return math.nan
    return _quantile((1 + level) / 2, len(values) - 1) * spread(values) / math.sqrt(len(values))


@lru_cache
def _quantile(probability: float, freedom: int) -> float:
    from scipy import stats  # here, so that a sweep needs no scipy

    return float(stats.t.ppf(probability, freedom))


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The t interval of a mean; NaN for fewer than two values."""
    mean, half = float(np.mean(values)), half_width(values, level)
    return mean - half, mean + half


def p_value(values: Sequence[float]) -> float:
    """Of a mean of zero, by the t test, two-sided; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    if spread(values) == 0:
        return 1.0 if values[0] == 0 else 0.0
    t = float(np.mean(values)) / (spread(values) / math.sqrt(len(values)))
    from scipy import stats

    return float(2 * stats.t.sf(abs(t), len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of one family, adjusted for their number (Holm 1979); NaN stays, and counts."""
    order = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    adjusted, least = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p_values[i]):
            least = adjusted[i] = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
    return adjusted


def holm_factor(others: Sequence[float]) -> int:
    """By what a p-value is multiplied where it decides whether Holm's correction passes it.

    Args:
        others: the p-values of the rest of its family; NaN is never passed, and counts.
    """
    factor = len(others) + 1
    for p in sorted(p for p in others if not math.isnan(p)):
        if factor * p >= 1 - LEVEL:
            break
        factor -= 1
    return factor


@dataclass(frozen=True)
class Difference:
    """How far something is from zero, over seeds: a row from another, or a slope."""

    values: tuple[float, ...]
    """Of each seed."""
    seeds: tuple[int, ...]
    planned: bool = False
    adjusted: float = math.nan
    """If it was planned, its p-value among those of its family; NaN for one seed."""
    factor: int = 1
    """If it was planned, `holm_factor` of the others of its family."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def least(self) -> float:
        """The smallest mean that this spread tells from zero, corrected; NaN for too few seeds."""
        if len(self.values) < FEWEST:
            return math.nan
        return half_width(self.values, 1 - (1 - LEVEL) / self.factor)

    @property
    def decided(self) -> bool:
        """Planned, and significant after the correction, by more than two seeds."""
        return self.adjusted < 1 - LEVEL and len(self.values) >= FEWEST


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line through the points, by least squares."""
    x = np.asarray(at, dtype=np.float64)
    x = x - x.mean()
    # Exactly 0 for equal values, in whatever order a CPU would add them.
    return math.fsum(a * v for a, v in zip(x.tolist(), values, strict=True)) / float(x @ x)


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds in short: ``0-3, 7``."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
