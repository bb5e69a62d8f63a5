"""Bounds, areas and defects of many masks at once.

COCO's training set has 860,000 masks of 40 million numbers. Looked at one by one in Python they
take minutes; as long arrays, seconds.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from smallobj_d2.errors import shown
from smallobj_d2.masks.rle import read_numbers, undo_differences

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FARTHEST = 1e5
"""No coordinate may be larger; COCO's tools count fifths of a pixel in 32 bits."""
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
    """(N, 4) XYXY."""
    area: Floats
    """(N,) in pixels: by the shoelace formula for polygons, by counting for RLE."""
    defects: list[Defect]


def measure(segmentations: Sequence[Any], sizes: Ints) -> Masks:
    """Measure masks, and name what is wrong with them.

    Args:
        segmentations: N values of ``segmentation`` as JSON has them, whatever they are.
        sizes: (N, 2) height and width of the image of each.
    """
    bounds = np.full((len(segmentations), 4), np.nan)
    area = np.full(len(segmentations), np.nan)
    defects: list[Defect] = []
    for start in range(0, len(segmentations), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        given = segmentations[part]
        polygons = [i for i, s in enumerate(given) if s and type(s) is list]
        rles = [i for i, s in enumerate(given) if type(s) is dict]
        found = [
            Defect(i, "mask-form", f"segmentation is {shown(s)}")
            for i, s in enumerate(given)
            if s is not None and type(s) not in (list, dict)
        ]
        found += _polygons(given, polygons, bounds[part], area[part])
        found += _rles(given, rles, sizes[part], bounds[part], area[part])
        defects += [Defect(d.number + start, d.kind, d.what) for d in found]
    return Masks(bounds, area, defects)


def numbers(value: Any) -> Floats | None:
    """A flat list of numbers as an array, or None if it is not one; booleans are not numbers."""
    if type(value) is not list or not {int, float}.issuperset(map(type, value)):
        return None
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return np.array([float(v) if abs(v) < 1e300 else np.inf for v in value])


# --- Polygons


def _polygons(given: Sequence[Any], which: list[int], bounds: Floats, area: Floats) -> list[Defect]:
    """Measure the masks that are lists of polygons."""
    owners = [i for i in which for _ in given[i]]
    parts = [p for i in which for p in given[i]]
    flat, counts, defects = _flatten(parts, owners)
    usable = counts > 0
    own = np.array(owners, dtype=np.int64)[usable]
    counts = counts[usable]
    if not len(own):
        return defects
    starts = np.cumsum(counts) - counts
    points = flat.reshape(-1, 2)
    part_of = np.repeat(np.arange(len(own)), counts // 2)

    far = np.logical_or.reduceat(np.abs(flat) >= FARTHEST, starts)
    fine = np.logical_and.reduceat(np.isfinite(flat), starts)
    for kind, bad, what in (
        ("polygon-not-finite", ~fine, "a polygon has NaN or infinity among its numbers"),
        ("polygon-off-image", fine & far, f"a polygon has a coordinate beyond {FARTHEST:.0f}"),
    ):
        defects += [Defect(int(i), kind, what) for i in np.unique(own[bad])]
    good = fine & ~far
    with np.errstate(all="ignore"):
        low = np.minimum.reduceat(points, starts // 2)
        high = np.maximum.reduceat(points, starts // 2)
        behind = np.arange(1, len(points) + 1)
        behind[(starts + counts) // 2 - 1] = starts // 2
        near = points - points[np.repeat(starts // 2, counts // 2)]  # keeps the products small
        cross = near[:, 0] * near[behind, 1] - near[behind, 0] * near[:, 1]
        shoelace = np.abs(np.add.reduceat(cross, starts // 2)) / 2

    rings = shapely.linearrings(points[good[part_of]], indices=_renumbered(part_of[good[part_of]]))
    crossing = np.unique(own[good][~shapely.is_simple(rings)])
    defects += [
        Defect(int(i), "polygon-crossing", "a polygon touches or crosses itself") for i in crossing
    ]

    # A mask of which one polygon cannot be used is not measured at all.
    spoilt = np.zeros(len(area), dtype=bool)
    spoilt[own[~good]] = True
    whole = good & ~spoilt[own]
    own, low, high, shoelace = own[whole], low[whole], high[whole], shoelace[whole]
    if len(own):
        masks, first = np.unique(own, return_index=True)
        bounds[masks, :2] = np.minimum.reduceat(low, first)
        bounds[masks, 2:] = np.maximum.reduceat(high, first)
        area[masks] = np.add.reduceat(shoelace, first)
    return defects


def usable(polygon: Sequence[float]) -> bool:
    """Whether a polygon has three points or more, each of two numbers."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _flatten(parts: list[Any], owners: list[int]) -> tuple[Floats, Ints, list[Defect]]:
    """All numbers of all usable polygons, and how many each polygon has of them."""
    defects: list[Defect] = []
    lists = [type(p) is list for p in parts]
    if all(lists) and {int, float}.issuperset(map(type, chain.from_iterable(parts))):
        good = parts
    else:
        good = []
        for part, owner in zip(parts, owners, strict=True):
            is_good = numbers(part) is not None
            good.append(part if is_good else [])
            if not is_good:
                kind = "polygon-pairs" if _is_points(part) else "polygon-form"
                defects.append(Defect(owner, kind, f"a polygon is {shown(part)}"))
    counts = np.fromiter(map(len, good), dtype=np.int64, count=len(good))
    pairs = _all_pairs(counts, owners)
    defects += [Defect(i, "polygon-pairs", "its polygon is a list of points") for i in pairs]
    for i in np.flatnonzero((counts < 6) | (counts % 2 == 1)).tolist():
        if good[i] is parts[i] and owners[i] not in pairs:
            odd = len(good[i]) % 2 == 1
            kind = "polygon-odd" if odd else "polygon-short"
            number = f"{len(good[i])} numbers" if odd else f"{len(good[i]) // 2} points"
            defects.append(Defect(owners[i], kind, f"a polygon has {number}"))
        counts[i] = 0
    kept = [p for p, n in zip(good, counts.tolist(), strict=True) if n]
    try:
        flat = np.fromiter(chain.from_iterable(kept), dtype=np.float64, count=int(counts.sum()))
    except OverflowError:
        flat = np.concatenate([n for p in kept if (n := numbers(p)) is not None])
    return flat, counts, defects


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


def _renumbered(groups: Ints) -> Ints:
    """0, 0, 1, 1, 1, ... for sorted groups such as 3, 3, 7, 7, 7."""
    if not len(groups):
        return groups
    return np.cumsum(np.diff(groups, prepend=groups[0]) > 0)


# --- Run-length encodings


def _rles(
    given: Sequence[Any], which: list[int], sizes: Ints, bounds: Floats, area: Floats
) -> list[Defect]:
    """Measure the masks that are RLE, compressed or not.

    COCO's own tools are not asked: given counts that do not add up they read and write beyond
    their memory.
    """
    defects: list[Defect] = []
    lists: list[int] = []
    strings: list[int] = []
    for i in which:
        rle = given[i]
        if set(rle) != {"size", "counts"} and not {"size", "counts"} <= set(rle):
            defects.append(Defect(i, "rle-form", f"its RLE has the keys {shown(sorted(rle))}"))
        elif rle["size"] != sizes[i].tolist():
            defects.append(Defect(i, "rle-size", _unlike(rle["size"], sizes[i].tolist())))
        elif type(rle["counts"]) is str:
            strings.append(i)
        elif type(rle["counts"]) is list:
            lists.append(i)
        else:
            what = f"counts of its RLE are {shown(rle['counts'])}"
            defects.append(Defect(i, "rle-form", what))

    for i, runs in chain(_plain(given, lists), _packed(given, strings)):
        height, width = sizes[i].tolist()
        if isinstance(runs, str):
            defects.append(Defect(i, "rle-counts", runs))
        elif (runs < 0).any() or runs.sum() != height * width:
            what = f"counts of its RLE add up to {runs.sum()}, not to {height} x {width} pixels"
            if (runs < 0).any():
                what = "counts of its RLE are negative"
            defects.append(Defect(i, "rle-counts", what))
        else:
            area[i], bounds[i] = _extent(runs, height)
    return defects


def _unlike(given: Any, size: list[int]) -> str:
    what = f"its RLE is for an image of size {shown(given)}, but its image has height and width"
    return f"{what} {size}" + (", the other way round" if given == size[::-1] else "")


def _plain(given: Sequence[Any], which: list[int]) -> Iterator[tuple[int, Ints | str]]:
    """The runs of uncompressed RLE, or what is wrong with them."""
    for i in which:
        counts = given[i]["counts"]
        if not {int}.issuperset(map(type, counts)) or any(abs(c) >= 1 << 40 for c in counts):
            yield i, f"counts of its RLE are no whole numbers: {shown(counts)}"
        else:
            yield i, np.array(counts, dtype=np.int64)


def _packed(given: Sequence[Any], which: list[int]) -> Iterator[tuple[int, Ints | str]]:
    """The runs of compressed RLE, or what is wrong with them."""
    texts = []
    for i in which:
        text = given[i]["counts"].encode("utf-8", "replace")
        code = np.frombuffer(text, np.uint8).astype(np.int64) - 48
        if not len(code) or code.min() < 0 or code.max() > 63:
            yield i, f"counts of its RLE have characters that mean nothing: {shown(text[:40])}"
        elif code[-1] & 32:
            yield i, "counts of its RLE break off in the middle of a number"
        else:
            texts.append((i, code))
    if not texts:
        return
    code = np.concatenate([c for _, c in texts])
    value, length = read_numbers(code)
    too_long = length > 8  # forty bits are more than any image has pixels
    ends = np.cumsum([np.count_nonzero((c & 32) == 0) for _, c in texts])
    for (i, _), begin, end in zip(texts, np.concatenate([[0], ends[:-1]]), ends, strict=True):
        if too_long[begin:end].any():
            yield i, "counts of its RLE have a number beyond all images"
            continue
        runs = value[begin:end].copy()
        undo_differences(runs)
        yield i, runs


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
