"""Bounds, areas and defects of many masks at once.

COCO's training set has 860,000 masks of 40 million numbers. Looked at one by one in Python they
take minutes; as long arrays, seconds.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from smallobj_d2.errors import shown
from smallobj_d2.masks.rle import runs_of
from smallobj_d2.masks.shapes import FARTHEST

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_AT_ONCE = 20_000  # masks; bounds the memory that the long arrays take


class Defect(NamedTuple):
    """What is wrong with one mask."""

    number: int
    """Which of the masks."""
    kind: str
    """A key of `smallobj_d2.datasets.findings.KINDS`."""
    what: str


class Masks(NamedTuple):
    """What N masks come to. A mask that is absent or unusable has NaN for numbers."""

    bounds: Floats
    """(N, 4) XYXY; NaN also for an RLE without a pixel."""
    area: Floats
    """(N,) in pixels: by the shoelace formula for polygons, by counting for RLE."""
    defects: list[Defect]


def measure(segmentations: Sequence[Any], sizes: Ints) -> Masks:
    """Measure masks, and name what is wrong with them.

    Args:
        segmentations: N values of ``segmentation`` as JSON has them, whatever they are.
        sizes: (N, 2) height and width of the image of each; RLE for 0, 0 is passed over.
    """
    masks = Masks(np.full((len(sizes), 4), np.nan), np.full(len(sizes), np.nan), [])
    polygons = [i for i, s in enumerate(segmentations) if s and type(s) is list]
    for start in range(0, len(polygons), _AT_ONCE):
        _measure_polygons(segmentations, polygons[start : start + _AT_ONCE], masks)
    for i, s in enumerate(segmentations):
        if s is None or type(s) is list:
            continue
        if type(s) is not dict:
            masks.defects.append(Defect(i, "mask-form", f"segmentation is {shown(s)}"))
        elif sizes[i].any():
            try:
                masks.area[i], masks.bounds[i] = _measure_rle(s, sizes[i].tolist())
            except _UnusableError as e:
                masks.defects.append(Defect(i, *e.args))
    return masks


def numbers(value: Any) -> Floats | None:
    """A flat list of numbers as an array, or None if it is not one; booleans are not numbers."""
    if type(value) is not list or not {int, float}.issuperset(map(type, value)):
        return None
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return np.array([float(v) if abs(v) < 1e300 else np.inf for v in value])


# --- Polygons


def _measure_polygons(given: Sequence[Any], which: list[int], masks: Masks) -> None:
    """Measure the masks that are lists of polygons."""
    owners = [i for i in which for _ in given[i]]
    parts = [p for i in which for p in given[i]]
    flat, counts = _flatten(parts, owners, masks.defects)
    own = np.array(owners, dtype=np.int64)[counts > 0]
    counts = counts[counts > 0]
    if not len(own):
        return
    starts = np.cumsum(counts) - counts
    points, first, lengths = flat.reshape(-1, 2), starts // 2, counts // 2

    far = np.logical_or.reduceat(np.abs(flat) >= FARTHEST, starts)
    fine = np.logical_and.reduceat(np.isfinite(flat), starts)
    good = fine & ~far
    low = np.minimum.reduceat(points, first)
    high = np.maximum.reduceat(points, first)
    behind = np.arange(1, len(points) + 1)
    behind[first + lengths - 1] = first
    near = points - points[np.repeat(first, lengths)]  # keeps the products small
    cross = near[:, 0] * near[behind, 1] - near[behind, 0] * near[:, 1]
    shoelace = np.abs(np.add.reduceat(cross, first)) / 2
    rings = shapely.linearrings(
        points[np.repeat(good, lengths)],
        indices=np.repeat(np.arange(good.sum()), lengths[good]),
    )
    crossing = np.zeros(len(good), dtype=bool)
    crossing[good] = ~shapely.is_simple(rings)
    bows = crossing & (shoelace == 0)  # which may have an area nevertheless
    shoelace[bows] = shapely.area(shapely.make_valid(shapely.polygons(rings[bows[good]])))
    for kind, bad, what in (
        ("polygon-not-finite", ~fine, "a polygon has NaN or infinity among its numbers"),
        ("polygon-off-image", fine & far, f"a polygon has a coordinate beyond {FARTHEST:.0f}"),
        ("polygon-crossing", crossing, "a polygon touches or crosses itself"),
    ):
        masks.defects.extend(Defect(i, kind, what) for i in np.unique(own[bad]).tolist())

    # A mask of which one polygon cannot be used is not measured at all.
    whole = ~np.isin(own, own[~good])
    own, low, high, shoelace = own[whole], low[whole], high[whole], shoelace[whole]
    if len(own):
        measured, first = np.unique(own, return_index=True)
        masks.bounds[measured, :2] = np.minimum.reduceat(low, first)
        masks.bounds[measured, 2:] = np.maximum.reduceat(high, first)
        masks.area[measured] = np.add.reduceat(shoelace, first)


def usable(polygon: Sequence[float]) -> bool:
    """Whether a polygon has three points or more, each of two numbers."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _flatten(parts: list[Any], owners: list[int], defects: list[Defect]) -> tuple[Floats, Ints]:
    """All numbers of all usable polygons, and how many each polygon has of them."""
    good = parts
    if not (
        {list}.issuperset(map(type, parts))
        and {int, float}.issuperset(map(type, chain.from_iterable(parts)))
    ):
        good = [part if numbers(part) is not None else [] for part in parts]
    counts = np.fromiter(map(len, good), dtype=np.int64, count=len(good))
    pairs = _all_pairs(counts, owners)
    defects += [Defect(i, "polygon-pairs", "its polygon is a list of points") for i in pairs]
    for i in np.flatnonzero((counts < 6) | (counts % 2 == 1)).tolist():
        length, counts[i] = int(counts[i]), 0
        if good[i] is not parts[i]:
            kind = "polygon-pairs" if _is_points(parts[i]) else "polygon-form"
            defects.append(Defect(owners[i], kind, f"a polygon is {shown(parts[i])}"))
        elif owners[i] not in pairs:
            odd = length % 2 == 1
            kind = "polygon-odd" if odd else "polygon-short"
            number = f"{length} numbers" if odd else f"{length // 2} points"
            defects.append(Defect(owners[i], kind, f"a polygon has {number}"))
    kept = [p for p, n in zip(good, counts.tolist(), strict=True) if n]
    try:
        flat = np.fromiter(chain.from_iterable(kept), dtype=np.float64, count=int(counts.sum()))
    except OverflowError:
        flat = np.concatenate([n for p in kept if (n := numbers(p)) is not None])
    return flat, counts


def _is_points(part: Any) -> bool:
    """Whether a polygon is [[x, y], [x, y], ...] or [{"x": x, "y": y}, ...]."""
    return (
        type(part) is list
        and len(part) > 0
        and all(type(p) in (list, dict) and len(p) == 2 for p in part)
    )


def _all_pairs(counts: Ints, owners: list[int]) -> set[int]:
    """The masks with three polygons or more that are each of two numbers: points, it seems."""
    if not (counts == 2).any():
        return set()
    masks, first = np.unique(np.array(owners, dtype=np.int64), return_index=True)
    both = np.maximum.reduceat(counts, first) == np.minimum.reduceat(counts, first)
    found = both & (counts[first] == 2) & (np.diff(first, append=len(counts)) >= 3)
    return set(masks[found].tolist())


# --- Run-length encodings


class _UnusableError(Exception):
    """Kind of defect, and what is wrong."""


def _measure_rle(rle: dict[str, Any], size: list[int]) -> tuple[float, list[float]]:
    """Area and XYXY bounds of an RLE, compressed or not.

    COCO's own tools are not asked: given counts that do not add up they read and write beyond
    their memory.

    Args:
        rle: whatever the JSON has.
        size: height and width of its image.
    """
    if not {"size", "counts"} <= set(rle):
        raise _UnusableError("rle-form", f"its RLE has the keys {shown(sorted(rle))}")
    if rle["size"] != size:
        swapped = ", the other way round" if rle["size"] == size[::-1] else ""
        raise _UnusableError(
            "rle-size",
            f"its RLE is for an image of size {shown(rle['size'])}, but its image has height and "
            f"width {size}{swapped}",
        )
    counts, height, width = rle["counts"], *size
    if type(counts) not in (str, list):
        raise _UnusableError("rle-form", f"counts of its RLE are {shown(counts)}")
    if wrong := _wrong_counts(counts) if type(counts) is list else _wrong_text(counts):
        raise _UnusableError("rle-counts", f"counts of its RLE {wrong}")
    runs = runs_of(counts)
    if (runs < 0).any():
        raise _UnusableError("rle-counts", "counts of its RLE are negative")
    if runs.sum() != height * width:
        raise _UnusableError(
            "rle-counts",
            f"counts of its RLE add up to {runs.sum()}, not to {height} x {width} pixels",
        )
    return _extent(runs, height)


def _wrong_counts(counts: list[Any]) -> str:
    if {int}.issuperset(map(type, counts)) and all(abs(c) < 1 << 40 for c in counts):
        return ""
    return f"are no whole numbers: {shown(counts)}"


def _wrong_text(counts: str) -> str:
    text = counts.encode("utf-8", "replace")
    code = np.frombuffer(text, np.uint8).astype(np.int16) - 48
    if not len(code) or code.min() < 0 or code.max() > 63:
        return f"have characters that mean nothing: {shown(text[:40])}"
    if code[-1] & 32:
        return "break off in the middle of a number"
    if np.diff(np.flatnonzero(code & 32 == 0), prepend=-1).max() > 8:
        return "have a number beyond all images"  # forty bits are more than any has pixels
    return ""


def _extent(runs: Ints, height: int) -> tuple[float, list[float]]:
    """Area and XYXY bounds of runs that go down the columns, background first."""
    ends = np.cumsum(runs)
    begin, end = ends[:-1][::2], ends[1::2]  # of the object's runs
    kept = end > begin
    begin, last = begin[kept], end[kept] - 1
    if not len(begin):
        return 0.0, [np.nan] * 4
    left, right = begin // height, last // height
    whole = right > left  # a run over the end of a column touches top and bottom
    top = 0 if whole.any() else (begin % height).min()
    bottom = height - 1 if whole.any() else (last % height).max()
    box = [left.min(), top, right.max() + 1, bottom + 1]
    return float((last - begin + 1).sum()), [float(v) for v in box]
