"""What is wrong with annotations: their masks, their boxes, their areas, and the rest."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.datasets.habits import area_habit, habits_of
from smallobj_d2.datasets.measure import Masks, measure, numbers, usable
from smallobj_d2.masks.outlines import bounds_inside
from smallobj_d2.masks.shapes import FARTHEST, Outline

Annotations = Sequence[dict[str, Any]]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Sizes = NDArray[np.int64]
"""(N, 2) height and width of each annotation's image; 0, 0 where they mean nothing."""

Blame = Callable[..., None]
"""Takes findings: their kind, which annotations they are about (numbers, or N booleans), what is
wrong (a text, or a function of the number), and the key whose value the text is to begin with."""

_AREA_SLACK = 16.0  # pixels; what ways of counting a small mask differ by


class Measured(NamedTuple):
    """What the boxes and masks of N annotations come to; NaN where that is unknown."""

    boxes: Floats
    """(N, 4) XYXY."""
    masks: Masks
    inside: Floats
    """(N, 4) XYXY of the masks, as far as they lie in the image; NaN where they do not."""

    @property
    def not_held(self) -> Bools:
        """(N,) whether the box leaves out a pixel or more of the mask."""
        return does_not_hold(self.boxes, self.inside)


def check_instances(annotations: Annotations, size: Sizes, blame: Blame) -> Measured:
    """Check annotations that have the keys they need, and measure them."""
    with np.errstate(all="ignore"):  # damaged files have any number
        masks = _check_masks(annotations, size, blame)
        boxes = _read_boxes(annotations, blame)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        inside = _inside(annotations, masks.bounds, size)
        _check_places(annotations, boxes, corners, masks.bounds, inside, size, blame)
        _check_areas(annotations, boxes, masks, blame)
        _check_others(annotations, blame)
    return Measured(corners, masks, inside)


def _check_masks(annotations: Annotations, size: Sizes, blame: Blame) -> Masks:
    given = [a.get("segmentation") for a in annotations]
    absent = [i for i, s in enumerate(given) if not s]
    if len(absent) < len(given):  # else the file as a whole has none
        blame("mask-missing", absent, "it has no mask, as others have")
    masks = measure(given, size)
    for i, kind, what in masks.defects:
        blame(kind, [i], what)
    blame("mask-empty", masks.area == 0, "its mask has no area")
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
    boxes, bad = _fours([a["bbox"] for a in annotations])
    blame("bbox-form", bad, "is not [x, y, width, height]", "bbox")
    wild = ~np.isfinite(boxes).all(axis=1) & ~bad
    blame("bbox-not-finite", wild, "is not finite", "bbox")
    negative = (boxes[:, 2:] < 0).any(axis=1) & ~wild
    blame("bbox-negative", negative, "has a negative side", "bbox")
    boxes[wild | negative] = np.nan
    blame("bbox-zero", (boxes[:, 2:] == 0).any(axis=1), "has a side of 0", "bbox")
    return boxes


def _fours(rows: Sequence[Any]) -> tuple[Floats, Bools]:
    """Lists of four numbers as (N, 4), NaN for what is none, and which these are."""
    if (
        {list}.issuperset(map(type, rows))
        and {4}.issuperset(map(len, rows))
        and (flat := numbers(list(chain.from_iterable(rows)))) is not None
    ):
        return flat.reshape(-1, 4), np.zeros(len(rows), dtype=bool)
    table, bad = np.full((len(rows), 4), np.nan), np.ones(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        values = numbers(row)
        if values is not None and len(values) == 4:
            table[i], bad[i] = values, False
    return table, bad


def _check_places(
    annotations: Annotations,
    boxes: Floats,
    corners: Floats,
    bounds: Floats,
    inside: Floats,
    size: Sizes,
    blame: Blame,
) -> None:
    """Where boxes and masks lie, in their image and with each other."""
    polygons = np.array([type(a.get("segmentation")) is list for a in annotations], dtype=bool)
    outlines = np.where(polygons[:, None], bounds, np.nan)
    odd = _blame_habits("polygon", outlines, size, corners, blame)
    bounds, inside = (np.where(odd[:, None], np.nan, of) for of in (bounds, inside))
    odd = _blame_habits("bbox", boxes, size, bounds, blame)

    def limits(of: Floats, i: int) -> list[float]:
        return [round(v, 1) for v in of[i].tolist()]

    off, out = _outside(bounds, size)
    blame("polygon-off-image", off, "its mask lies outside the image")
    blame(
        "polygon-outside",
        out,
        lambda i: f"its mask leaves the image: its corners are {limits(bounds, i)}",
    )
    far = (np.abs(corners) >= FARTHEST).any(axis=1)
    blame("bbox-off-image", far, f"reaches beyond {FARTHEST:.0f}", "bbox")
    odd |= far | (boxes[:, 2:] == 0).any(axis=1)
    judged = np.where(odd[:, None], np.nan, corners)
    off, out = _outside(judged, size)
    blame("bbox-off-image", off, "lies outside the image", "bbox")
    blame("bbox-outside", out, "leaves the image", "bbox")
    blame(
        "bbox-mask",
        does_not_hold(judged, inside),
        lambda i: f"does not hold its mask, whose corners are {limits(inside, i)}",
        "bbox",
    )


def _blame_habits(what: str, values: Floats, size: Sizes, others: Floats, blame: Blame) -> Bools:
    """Findings about boxes or polygons that are not what COCO has; returns which these are."""
    odd = np.zeros(len(size), dtype=bool)
    for habit in habits_of(what, values, size, others):
        words = f"is {habit.words}, it seems"
        about = (words, "bbox") if what == "bbox" else (f"its polygon {words}",)
        blame(f"{what}-{habit.name}", habit.found & ~odd, *about)
        odd |= habit.found
    return odd


def _outside(corners: Floats, size: Sizes) -> tuple[Bools, Bools]:
    """Which XYXY boxes lie outside their image, and which leave it by more than a pixel."""
    height, width = size[:, 0], size[:, 1]
    x0, y0, x1, y1 = corners.T
    known = height > 0
    off = known & ((x0 >= width) | (y0 >= height) | (x1 <= 0) | (y1 <= 0))
    out = known & ~off & ((x0 < -1) | (y0 < -1) | (x1 > width + 1) | (y1 > height + 1))
    return off, out


def _inside(annotations: Annotations, bounds: Floats, size: Sizes) -> Floats:
    """(N, 4) XYXY of masks, as far as they lie in their image; NaN for those that do not."""
    found = bounds.copy()
    leave = (bounds[:, :2] < 0).any(axis=1) | (bounds[:, 2:] > size[:, ::-1]).any(axis=1)
    for i in np.flatnonzero(leave & size.any(axis=1)).tolist():
        parts = [p for p in annotations[i]["segmentation"] if numbers(p) is not None and usable(p)]
        points = [np.reshape(np.array(p, dtype=np.float64), (-1, 2)) for p in parts]
        found[i] = bounds_inside(Outline(points), *size[i].tolist())
    return found


def does_not_hold(box: Floats, mask: Floats) -> Bools:
    """Whether boxes leave out a pixel or more of their masks; False where one of the two is NaN.

    A box with a side of 0 holds no mask that is wider there.

    Args:
        box, mask: (N, 4) XYXY; masks as far as they lie in the image.
    """
    low, high = mask[:, :2] < box[:, :2] - 1, mask[:, 2:] > box[:, 2:] + 1
    flat = (box[:, :2] == box[:, 2:]) & (mask[:, :2] < mask[:, 2:])
    return np.asarray((low | high | flat).any(axis=1))


# --- Areas and the rest


def _check_areas(annotations: Annotations, boxes: Floats, masks: Masks, blame: Blame) -> None:
    given = [a.get("area", np.nan) for a in annotations]
    missing = np.array(["area" not in a for a in annotations], dtype=bool)
    blame("area-missing", missing, "it has no area")
    area = numbers([v if type(v) in (int, float) else np.nan for v in given])
    assert area is not None
    wrong = (~np.isfinite(area) | (area < 0)) & ~missing
    blame("area-form", wrong, "means nothing", "area")
    measured = masks.area.copy()
    crossing = [i for i, kind, _ in masks.defects if kind == "polygon-crossing"]
    measured[crossing] = np.nan  # these are filled in ways that differ
    box = boxes[:, 2] * boxes[:, 3]
    true = np.where(np.isnan(measured), box, measured)
    fraction = area_habit(area, true)
    unlike = (area > 0) & (np.abs(area - measured) > _AREA_SLACK) & ~fraction
    unlike &= (area > 1.5 * measured) | (1.5 * area < measured)

    def what(i: int) -> str:
        whose = " (that of its box)" if abs(area[i] - box[i]) < 1 else ""
        return f"its area is {area[i]:.0f}{whose}, but its mask has {measured[i]:.0f} pixels"

    blame("area-normalized", fraction, "is a fraction of the image, it seems", "area")
    blame("area-zero", (area == 0) & (true > 0), "its area is 0")
    blame("area-mask", unlike, what)


def _check_others(annotations: Annotations, blame: Blame) -> None:
    missing = [i for i, a in enumerate(annotations) if "iscrowd" not in a]
    blame("iscrowd-missing", missing, "it has no iscrowd")
    crowds = [a.get("iscrowd", 0) for a in annotations]
    bad = [i for i, v in enumerate(crowds) if not isinstance(v, int | float) or v not in (0, 1)]
    blame("iscrowd-form", bad, "is neither 0 nor 1", "iscrowd")
    ignored = [i for i, a in enumerate(annotations) if a.get("ignore")]
    blame("ignore", ignored, "says that it is to be ignored", "ignore")
    bad = [i for i, a in enumerate(annotations) if not _are_keypoints(a.get("keypoints"))]
    blame("keypoints-form", bad, "are not x, y, v, ...", "keypoints")


def _are_keypoints(points: Any) -> bool:
    if points is None or points == []:
        return True
    values = numbers(points)
    return values is not None and len(values) % 3 == 0 and bool(np.isfinite(values).all())
