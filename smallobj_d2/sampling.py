"""Section 5.1: how often each image is drawn, and the order of the draws.

The stream of draws is infinite and shuffled, and any position of it can be asked for on its own:
what stands at position ``k`` follows from the repeat factors, the seed and ``k`` alone. So a
resumed run continues at the position where it stopped, and every process and every loader worker
looks up its own positions.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smallobj_d2.copy_paste.checks import require
from smallobj_d2.errors import SmallObjError
from smallobj_d2.registry import Registry
from smallobj_d2.sizes import SMALL_AREA, has_small, is_small

logger = logging.getLogger(__name__)

_ONE = 1 << 20
"""Repeat factors are kept in units of 2**-20, so that epochs add up exactly, however many."""

RepeatFactors = Callable[[Sequence[Mapping[str, Any]], Any], ArrayLike]
"""A function of N dataset dicts, whose annotations carry ``area``, and the config: (N,) factors."""

REPEAT_FACTORS: Registry[RepeatFactors] = Registry("repeat-factor function", "SMALLOBJ.SAMPLER")
"""Repeat-factor functions by name; ``SMALLOBJ.SAMPLER`` chooses."""

_LONGEST = 1 << 30
"""Draws in an epoch, at most; their indices and visits take 8 bytes each."""


class Draw(NamedTuple):
    """One draw of the stream."""

    position: int
    """Where in the stream it stands; with the seed, all that its sample depends on."""
    index: int  # type: ignore[assignment]  # hides tuple.index
    """Which record is drawn."""
    visit: int
    """Which of the record's draws in this epoch: 0, 1, ..., each once, in random order."""
    epoch: int = -1
    """The epoch that the position belongs to; -1 in the samplers of others, which have none."""


def repeat_factors(
    records: Sequence[Mapping[str, Any]], factor: float, small_area: float = SMALL_AREA
) -> NDArray[np.float64]:
    """Repeat factor per image: ``factor`` for small-object images, 1 for the others.

    Args:
        records: N dataset dicts whose annotations carry ``area``.
        factor: the oversampling factor, any real number from 1 to 1000 (Table 3 has 2, 3 and 4).
        small_area: what counts as small, in pixels of the original image.

    Returns:
        (N,) float64.
    """
    require(
        1 <= factor <= 1000,
        "OVERSAMPLING_FACTOR",
        factor,
        "must be 1 (off) or more, and at most 1000",
    )
    small = [has_small(r["annotations"], small_area) for r in records]
    return np.where(small, float(factor), 1.0)


@REPEAT_FACTORS.register()
def SmallObjectOversampling(  # noqa: N802 - a name in configs, like a class of Detectron2's
    records: Sequence[Mapping[str, Any]], cfg: Any
) -> NDArray[np.float64]:
    """The paper's oversampling: ``SMALLOBJ.OVERSAMPLING_FACTOR`` for small-object images."""
    s = cfg.SMALLOBJ
    factors = repeat_factors(records, s.OVERSAMPLING_FACTOR, s.SMALL_AREA)
    if s.OVERSAMPLING_FACTOR > 1 and len(set(factors.tolist())) == 1:
        logger.warning(
            "SMALLOBJ.OVERSAMPLING_FACTOR is %g, but draws no image more often than another: %s "
            "has an object of an area below SMALLOBJ.SMALL_AREA, %g.",
            s.OVERSAMPLING_FACTOR,
            "none" if factors[0] == 1 else "each",
            s.SMALL_AREA,
        )
    return factors


@REPEAT_FACTORS.register()
def RareSmallObjects(  # noqa: N802
    records: Sequence[Mapping[str, Any]], cfg: Any
) -> NDArray[np.float64]:
    """LVIS's repeat factors, of small objects only: not in the paper.

    A category's factor is ``sqrt(t / f)`` or 1 if that is more, where ``f`` is the share of the
    images with a small object of it, and ``t`` is ``DATALOADER.REPEAT_THRESHOLD``. An image has the
    largest factor of its small objects' categories.
    """
    area = cfg.SMALLOBJ.SMALL_AREA
    found = [{a["category_id"] for a in r["annotations"] if is_small(a, area)} for r in records]
    images = Counter(chain.from_iterable(found))
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD * len(records)
    factors = {category: max(1.0, sqrt(threshold / n)) for category, n in images.items()}
    return np.array([max((factors[c] for c in f), default=1.0) for f in found])


def factors_from_config(records: Sequence[Mapping[str, Any]], cfg: Any) -> NDArray[np.float64]:
    """Repeat factors of the function that ``SMALLOBJ.SAMPLER`` names.

    Args:
        records: N dataset dicts whose annotations carry ``area``.
        cfg: a config with ``SMALLOBJ``.

    Returns:
        (N,) float64.

    Raises:
        SmallObjError: if the function does not exist, or does not return a number for each record.
    """
    name = cfg.SMALLOBJ.SAMPLER
    factors = np.asarray(REPEAT_FACTORS[name](records, cfg), dtype=np.float64)
    if factors.shape != (len(records),):
        raise SmallObjError(
            f"The repeat-factor function {name!r} (SMALLOBJ.SAMPLER) returned an array of shape "
            f"{factors.shape} for {len(records)} images; it must return a number for each."
        )
    return factors


class Stream:
    """The infinite, shuffled, seeded stream of draws.

    In every epoch record ``i`` is drawn ``floor(r_i)`` or ``ceil(r_i)`` times, ``r_i`` on average;
    the epoch is then shuffled. The length of an epoch is the sum of the factors, the broken rest
    being carried over to the next, so where an epoch begins is a formula, not a walk.

    Args:
        factors: (N,) repeat factors, each >= 0 and at least one above 0.
        seed: a non-negative integer; the same seed gives the same stream everywhere.
    """

    def __init__(self, factors: ArrayLike, seed: int) -> None:
        values = np.asarray(factors, dtype=np.float64)
        if values.ndim != 1 or not len(values):
            raise SmallObjError("There is no image to draw from: the list of records is empty.")
        if not np.isfinite(values).all() or values.min() < 0 or values.max() < 1 / _ONE:
            raise SmallObjError("Repeat factors must be finite, not negative, and not all zero.")
        if values.sum() > _LONGEST:
            raise SmallObjError(
                f"An epoch would have {values.sum():.3g} draws, the sum of the repeat factors; it "
                f"may have {_LONGEST:.1e} at most."
            )
        if seed < 0:
            raise SmallObjError(f"The seed is {seed}; it must not be negative.")
        units = np.rint(values * _ONE).astype(np.int64)
        self._whole = units // _ONE
        self._rest = units % _ONE
        self._broken = np.flatnonzero(self._rest)
        self._total = int(units.sum())
        self._seed = seed
        self._epoch: tuple[int, NDArray[np.int32], NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        """Draws in the first epoch: the sum of the repeat factors, rounded down."""
        return self.epoch_start(1)

    @property
    def drawn(self) -> NDArray[np.intp]:
        """(M,) the records that are drawn at all: those whose factor is not 0, in order."""
        return np.flatnonzero(self._whole + self._rest)

    def epoch_start(self, epoch: int) -> int:
        """Position of the first draw of an epoch."""
        return epoch * self._total // _ONE

    def epoch_of(self, position: int) -> int:
        """The epoch that a position belongs to."""
        return -(-(position + 1) * _ONE // self._total) - 1

    def epoch(self, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """All draws of one epoch, in order: record indices and visits, int32 each."""
        rng = np.random.default_rng((self._seed, 0, epoch))
        counts = self._whole.copy()
        if len(self._broken):
            # Systematic sampling in random order: a ruler with one mark per whole draw is put
            # over the broken rests, and whoever lies under a mark is drawn once more. The ruler
            # starts at random among those starts that give the epoch its length.
            order = rng.permutation(self._broken)
            ends = np.cumsum(self._rest[order])
            spare = int(ends[-1]) % _ONE
            length = self.epoch_start(epoch + 1) - self.epoch_start(epoch)
            more = length - int(self._whole.sum()) > int(ends[-1]) // _ONE
            start = rng.integers(_ONE - spare, _ONE) if more else rng.integers(_ONE - spare)
            counts[order] += np.diff((start + ends) // _ONE, prepend=0)
        # Each draw is a pair (index, visit) in eight bytes, so that repeating and shuffling move
        # pairs as one.
        pairs = np.empty((len(counts), 2), dtype=np.int32)
        pairs[:, 0] = np.arange(len(counts))
        pairs[:, 1] = counts - np.cumsum(counts)
        packed = np.repeat(pairs.view(np.int64)[:, 0], counts)
        draws = packed.view(np.int32).reshape(-1, 2)
        draws[:, 1] += np.arange(len(draws), dtype=np.int32)
        rng.shuffle(packed)
        return draws[:, 0], draws[:, 1]

    def __getitem__(self, position: int) -> Draw:
        """The draw at a position, 0 or more, at the cost of one epoch's order where it changes."""
        if position < 0:
            raise IndexError("positions of the stream start at 0")
        epoch = self.epoch_of(position)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self.epoch(epoch))
        _, indices, visits = self._epoch
        at = position - self.epoch_start(epoch)
        return Draw(position, int(indices[at]), int(visits[at]), epoch)
