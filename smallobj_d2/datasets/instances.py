"""What is wrong with annotations: their masks, their boxes, their areas, and the rest."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.datasets.habits import Habit, area_habit, box_habits, polygon_habits
from smallobj_d2.datasets.measure import FARTHEST, Masks, measure, numbers

Annotations = Sequence[dict[str, Any]]
Floats = NDArray[np.float64]
Sizes = NDArray[np.int64]
"""(N, 2) height and width of each annotation's image; 0, 0 where they mean nothing."""

_AREA_SLACK = 16.0  # pixels; what ways of counting a small mask differ by


class Blame(Protocol):
    """Takes findings about annotations, beginning with the value of a key where one is given."""

    def __call__(
        self, kind: str, which: Iterable[int], what: str, key: str | None = None
    ) -> None: ...


def check_instances(annotations: Annotations, size: Sizes, blame: Blame) -> Masks:
    """Check annotations that have the keys they need; returns what their masks come to."""
    masks = _check_masks(annotations, size, blame)
    boxes = _read_boxes(annotations, blame)
    _check_places(annotations, boxes, masks.bounds, size, blame)
    _check_areas(annotations, boxes, masks, blame)
    _check_others(annotations, blame)
    return masks


# --- Masks


def _check_masks(annotations: Annotations, size: Sizes, blame: Blame) -> Masks:
    given = [a.get("segmentation") for a in annotations]
    for i in np.flatnonzero(size[:, 0] == 0).tolist():
        if isinstance(given[i], dict):  # an RLE for an image of unknown size
            given[i] = None
    absent = [i for i, a in enumerate(annotations) if not a.get("segmentation")]
    if len(absent) < len(given):  # else the file as a whole has none
        blame("mask-missing", absent, "it has no mask, as others have")
    masks = measure(given, size)
    for i, kind, what in masks.defects:
        blame(kind, [i], what)
    blame("mask-empty", np.flatnonzero(masks.area == 0).tolist(), "its mask has no area")
    short = {d.number for d in masks.defects if d.kind == "polygon-short"}
    corners = [
        i for i in sorted(short) if all(type(p) is list and len(p) == 4 for p in given[i] or ())
    ]
    if len(corners) >= 3 and 2 * len(corners) >= sum(type(s) is list for s in given):
        blame("polygon-corners", corners, "two corners of a box stand for its polygon")
    return masks


# --- Boxes


def _read_boxes(annotations: Annotations, blame: Blame) -> Floats:
    """(N, 4) as they are given, NaN where a box means nothing."""
    mode = [i for i, a in enumerate(annotations) if a.get("bbox_mode", 1) != 1]
    blame("bbox-mode", mode, "says that its box is not XYWH", "bbox_mode")
    boxes, bad = _table_of([a["bbox"] for a in annotations], 4)
    blame("bbox-form", bad, "is not [x, y, width, height]", "bbox")
    wild = np.asarray(~np.isfinite(boxes).all(axis=1))
    wild[bad] = False
    blame("bbox-not-finite", np.flatnonzero(wild), "is not finite", "bbox")
    negative = (boxes[:, 2:] < 0).any(axis=1) & ~wild
    blame("bbox-negative", np.flatnonzero(negative), "has a negative side", "bbox")
    boxes[wild | negative] = np.nan
    empty = (boxes[:, 2:] == 0).any(axis=1)
    blame("bbox-zero", np.flatnonzero(empty), "has a side of 0", "bbox")
    return boxes


def _check_places(
    annotations: Annotations, boxes: Floats, bounds: Floats, size: Sizes, blame: Blame
) -> None:
    """Where boxes and masks lie, in their image and with each other."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    polygons = np.array([type(a.get("segmentation")) is list for a in annotations], dtype=bool)
    outlines = np.where(polygons[:, None], bounds, np.nan)
    odd_masks = _blame_habits("polygon", polygon_habits(outlines, size, corners), blame)
    bounds = np.where(odd_masks[:, None], np.nan, bounds)
    odd_boxes = _blame_habits("bbox", box_habits(boxes, size, bounds), blame)
    off, out = _outside(bounds, size)
    blame("polygon-off-image", off, "its mask lies outside the image")
    for i in out:
        limits = [round(v, 1) for v in bounds[i].tolist()]
        blame("polygon-outside", [i], f"its mask leaves the image: its corners are {limits}")

    far = (np.abs(corners) >= FARTHEST).any(axis=1)
    blame("bbox-off-image", np.flatnonzero(far), f"reaches beyond {FARTHEST:.0f}", "bbox")
    empty = (boxes[:, 2:] == 0).any(axis=1)
    judged = np.where((odd_boxes | empty | far)[:, None], np.nan, corners)
    off, out = _outside(judged, size)
    blame("bbox-off-image", off, "lies outside the image", "bbox")
    blame("bbox-outside", out, "leaves the image", "bbox")
    for i in np.flatnonzero(does_not_hold(judged, bounds)).tolist():
        limits = [round(v, 1) for v in bounds[i].tolist()]
        blame("bbox-mask", [i], f"does not hold its mask, whose corners are {limits}", "bbox")


def _blame_habits(what: str, habits: list[Habit], blame: Blame) -> NDArray[np.bool_]:
    """Findings about boxes or polygons that are not what COCO has; returns which these are."""
    odd = np.zeros(len(habits[0].found) if habits else 1, dtype=bool)
    for habit in habits:
        words = f"is {habit.words}, it seems"
        new = np.flatnonzero(habit.found & ~odd)
        if what == "bbox":
            blame(f"bbox-{habit.name}", new, words, "bbox")
        else:
            blame(f"polygon-{habit.name}", new, f"its polygon {words}")
        odd |= habit.found
    return odd


def _outside(corners: Floats, size: Sizes) -> tuple[list[int], list[int]]:
    """Which XYXY boxes lie outside their image, and which leave it by more than a pixel."""
    height, width = size[:, 0], size[:, 1]
    x0, y0, x1, y1 = corners.T
    known = height > 0
    with np.errstate(invalid="ignore"):
        off = known & ((x0 >= width) | (y0 >= height) | (x1 <= 0) | (y1 <= 0))
        out = known & ~off & ((x0 < -1) | (y0 < -1) | (x1 > width + 1) | (y1 > height + 1))
    return np.flatnonzero(off).tolist(), np.flatnonzero(out).tolist()


def does_not_hold(box: Floats, mask: Floats) -> NDArray[np.bool_]:
    """Whether boxes leave out a pixel or more of their masks; False where one of the two is NaN.

    Args:
        box, mask: (..., 4) XYXY.
    """
    with np.errstate(invalid="ignore"):
        low = mask[..., :2] < box[..., :2] - 1
        high = mask[..., 2:] > box[..., 2:] + 1
    return np.asarray((low | high).any(axis=-1))


def _table_of(rows: Sequence[Any], columns: int) -> tuple[Floats, list[int]]:
    """Rows of numbers as an array, NaN for those that are not, and which these are."""
    good = (
        {list}.issuperset(map(type, rows))
        and {columns}.issuperset(map(len, rows))
        and {int, float}.issuperset(map(type, chain.from_iterable(rows)))
    )
    if good:
        try:
            return np.array(rows, dtype=np.float64).reshape(-1, columns), []
        except OverflowError:
            pass
    table = np.full((len(rows), columns), np.nan)
    bad = []
    for i, row in enumerate(rows):
        values = numbers(row)
        if values is None or len(values) != columns:
            bad.append(i)
        else:
            table[i] = values
    return table, bad


# --- Areas and the rest


def _check_areas(annotations: Annotations, boxes: Floats, masks: Masks, blame: Blame) -> None:
    missing = [i for i, a in enumerate(annotations) if "area" not in a]
    blame("area-missing", missing, "it has no area")
    given = [a.get("area", np.nan) for a in annotations]
    bad = [i for i, v in enumerate(given) if type(v) not in (int, float)]
    for i in bad:
        given[i] = np.nan
    area = numbers(given)
    assert area is not None
    wrong = ~np.isfinite(area) | (area < 0)
    wrong[missing] = False
    wrong[bad] = True
    blame("area-form", np.flatnonzero(wrong), "means nothing", "area")
    measured = masks.area.copy()
    crossing = [i for i, kind, _ in masks.defects if kind == "polygon-crossing"]
    measured[crossing] = np.nan  # of these the shoelace formula knows nothing
    with np.errstate(invalid="ignore"):
        box = boxes[:, 2] * boxes[:, 3]
        true = np.where(np.isnan(measured), box, measured)
        fraction = area_habit(area, true)
        zero = (area == 0) & (true > 0)
        unlike = (area > 0) & (np.abs(area - measured) > _AREA_SLACK) & ~fraction
        unlike &= (area > 1.5 * measured) | (1.5 * area < measured)
        of_box = unlike & (np.abs(area - box) < 1)
    blame(
        "area-normalized", np.flatnonzero(fraction), "is a fraction of the image, it seems", "area"
    )
    blame("area-zero", np.flatnonzero(zero), "its area is 0")
    for i in np.flatnonzero(unlike).tolist():
        whose = " (that of its box)" if of_box[i] else ""
        what = f"its area is {area[i]:.0f}{whose}, but its mask has {measured[i]:.0f} pixels"
        blame("area-mask", [i], what)


def _check_others(annotations: Annotations, blame: Blame) -> None:
    crowds = [a.get("iscrowd", 0) for a in annotations]
    missing = [i for i, a in enumerate(annotations) if "iscrowd" not in a]
    blame("iscrowd-missing", missing, "it has no iscrowd")
    bad = [i for i, v in enumerate(crowds) if not isinstance(v, int | float) or v not in (0, 1)]
    blame("iscrowd-form", bad, "is neither 0 nor 1", "iscrowd")
    for i, a in enumerate(annotations):
        points = a.get("keypoints")
        if points is None or points == []:
            continue
        values = numbers(points)
        if values is None or len(values) % 3 or not np.isfinite(values).all():
            blame("keypoints-form", [i], "are not x, y, v, ...", "keypoints")
