"""Exporters' habits: boxes and polygons in other units or another order than COCO's.

One box proves little. What boxes have in common over a whole file proves much: that they fit their
masks only when read in another way, or that they would all do in another way while as they are
many of them leave the image, or lie in its first pixel.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_NEAR = 2.0  # pixels; what exporters make of a corner by rounding
_FAR = 16.0
"""Beyond this one box is certain to be two corners; nearer to the image's corner, where both
readings say about the same, a loose box may fit its mask by chance."""
_UNITS = {"pixels": 0.0, "fractions of the image": 1.0, "per cent": 100.0, "a grid of 1000": 1000.0}
"""The number that stands for the whole width and height; 0 for their number of pixels."""
_ORDERS: dict[str, Callable[[Floats, Floats, Floats, Floats], tuple[Floats, ...]]] = {
    "corner and size": lambda a, b, c, d: (a, b, a + c, b + d),
    "two corners": lambda a, b, c, d: (a, b, c, d),
    "centre and size": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    "corner and size, y first": lambda a, b, c, d: (b, a, b + d, a + c),
    "two corners, y first": lambda a, b, c, d: (b, a, d, c),
}


class Habit(NamedTuple):
    """What some boxes or polygons seem to be."""

    order: str
    units: str
    found: Bools
    """Which of them."""

    @property
    def name(self) -> str:
        """Of the kind of finding, after ``bbox-`` or ``polygon-``."""
        if self.units != "pixels":
            return "normalized"
        return {"two corners": "xyxy", "centre and size": "center"}.get(self.order, "y-first")

    @property
    def words(self) -> str:
        return f"{self.order} in {self.units}"


def habits_of(what: str, values: Floats, size: NDArray[np.int64], others: Floats) -> list[Habit]:
    """What boxes are that are not corner and size in pixels, or polygons that are not x, y.

    Args:
        what: "bbox" or "polygon".
        values: (N, 4) boxes as they are given, or XYXY of polygons; NaN where unknown.
        size: (N, 2) height and width of their images; 0 where unknown.
        others: (N, 4) XYXY in pixels to compare with: of the masks, or the boxes; NaN where
            unknown.
    """
    orders = list(_ORDERS) if what == "bbox" else ["two corners", "two corners, y first"]
    known = ~np.isnan(values[:, 0]) & (size.min(axis=1, initial=1 << 30) > 0)
    corners = _read(values, size, orders[0], "pixels")
    fits = np.abs(corners - others).max(axis=1, initial=0) < _NEAR
    compared = known & ~np.isnan(others[:, 0])
    habits = list(_by_comparison(values, size, others, orders, compared, compared & ~fits))

    tiny = known & (values >= 0).all(axis=1) & (values <= 1.001).all(axis=1)
    tiny &= size.min(axis=1, initial=1 << 30) >= 8
    if _enough(tiny, known) and (values[tiny] % 1).any():
        return [*habits, Habit("numbers", "fractions of the image", tiny)]
    alone = known & np.isnan(others[:, 0])
    if what == "polygon":  # they may agree with their boxes, and both be wrong
        alone |= compared & fits
    return habits + list(_by_place(values, size, corners, orders, alone))


def area_habit(area: Floats, measured: Floats) -> Bools:
    """Which areas are fractions of an image.

    Args:
        area: (N,) as they are given; NaN where unknown.
        measured: (N,) of masks or boxes, in pixels.
    """
    judged = (area > 0) & (measured > 4)
    tiny = judged & (area <= 1)
    return tiny if _enough(tiny, judged) else np.zeros_like(tiny)


def _enough(found: Bools, among: Bools) -> bool:
    """Three at least and one in ten, or all where there are fewer."""
    count, of = int(found.sum()), int(among.sum())
    return count > 0 and count >= max(min(3, of), of / 10)


def _read(values: Floats, size: NDArray[np.int64], order: str, units: str) -> Floats:
    """XYXY in pixels of boxes in some order and units."""
    corners = np.stack(_ORDERS[order](*values.T), axis=1)
    if whole := _UNITS[units]:
        corners *= size[:, [1, 0, 1, 0]] / whole
    return corners


def _by_comparison(
    values: Floats,
    size: NDArray[np.int64],
    others: Floats,
    orders: list[str],
    compared: Bools,
    unlike: Bools,
) -> Iterator[Habit]:
    """What fits the other half of its annotation only when it is read in another way."""
    which = np.flatnonzero(unlike)
    best: Habit | None = None
    for units in _UNITS if len(which) else ():
        for order in orders[:1] if len(orders) == 2 else orders:  # of box and mask, blame the box
            near = np.abs(_read(values[which], size[which], order, units) - others[which])
            found = np.zeros(len(values), dtype=bool)
            found[which] = near.max(axis=1) < _NEAR
            habit = Habit(order, units, found)
            xyxy = (order, units) == ("two corners", "pixels") and len(orders) > 2
            if xyxy and (np.abs(values[found, :2]) > _FAR).any():
                yield habit
            elif best is None or found.sum() > best.found.sum():
                best = habit
    if best is not None and _enough(best.found, compared) and 2 * best.found.sum() >= len(which):
        yield best


def _by_place(
    values: Floats, size: NDArray[np.int64], corners: Floats, orders: list[str], alone: Bools
) -> Iterator[Habit]:
    """What has nothing to be compared with, but is not where objects of images would be."""
    which = np.flatnonzero(alone)
    if not len(which):
        return
    limits = size[:, ::-1] + 1
    high = values[which].max(axis=0)
    leaves = alone & (corners[:, 2:] > limits).any(axis=1)
    if leaves.sum() >= max(3, len(which) / 3):
        for units in ("pixels", "a grid of 1000", "per cent"):
            whole = _UNITS[units]
            if whole and not 0.9 * whole < high.max() <= 1.001 * whole:
                continue
            for order in orders:
                read = _read(values[which], size[which], order, units)
                inside = (read >= -1).all() and (read[:, 2:] <= limits[which]).all()
                if inside and (read[:, 2:] > read[:, :2]).all():
                    yield Habit(order, units, leaves if units == "pixels" else alone)
                    return
    several = len(which) >= 20 and len(np.unique(size[which], axis=0)) >= 3
    for units in ("per cent", "a grid of 1000"):
        whole = _UNITS[units]
        if several and size[which].min() >= 1.5 * whole:
            far = corners[which][:, 2:].max(axis=0)
            if (far > 0.9 * whole).all() and (far <= 1.001 * whole).all():
                yield Habit("numbers", units, alone)
