"""AP and recall by size, octave by octave: which small objects a run finds, and which it does not.

Small, medium and large are three bands. Here are as many as one likes, by the side of a square of
an object's area, in pixels of the original image and relative to it. With the usual limits they
contain AI-TOD's very tiny (below 8 pixels; AI-TOD has none below 2), tiny (8 to 16), small (16 to
32) and medium (32 to 64) (Wang et al., 2021).
"""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smallobj_d2.evaluation.ap import COCO_DETECTIONS, TITLES, aligned, matched
from smallobj_d2.sizes import SMALL_AREA

RELATIVE_LIMITS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Sides relative to that of a square of the image's area."""

Band = dict[str, Any]
"""``from`` and ``to`` (None: no limit), sides; ``objects``, how many there are, crowds left out;
``AP``, ``AP50`` and ``AR`` (COCO's average recall) as fractions, None where there are no objects.
"""


def by_size(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    limits: Sequence[float],
    detections: int = COCO_DETECTIONS,
) -> dict[str, Any]:
    """AP, AP50 and recall by bands of size, matched and summarised by pycocotools.

    An object belongs to the band ``from <= sqrt(area) < to``. As in COCO's AP_S, detections of
    another band are neither right nor wrong.

    Args:
        truth: what `smallobj_d2.evaluation.ap.load_ground_truth` gives.
        results: detections in COCO's result format; may be none.
        iou_type: "segm" or "bbox".
        limits: sides in pixels of the original image, ascending: n of them make n + 1 bands.
        detections: how many of an image and category count, the best ones.

    Returns:
        ``pixels`` and ``relative``: a `Band` each; ``small``: that of Table 1's small objects;
        ``categories``: by name, ``objects`` and ``AP`` of its small objects, where it has any.
    """
    ranges = _ranges(limits) | {"small": (0.0, SMALL_AREA)}
    pixels = _evaluated(truth, results, iou_type, ranges, detections)
    relative = _evaluated(
        relative_to_image(truth),
        results,
        iou_type,
        _ranges(RELATIVE_LIMITS),
        detections,
        to_image=True,
    )
    small = pixels.pop("small")
    by_category = small.pop("categories")
    for band in (*pixels.values(), *relative.values()):
        del band["categories"]
    return {
        "pixels": [_sides(limits)[i] | pixels[str(i)] for i in range(len(limits) + 1)],
        "relative": [
            _sides(RELATIVE_LIMITS)[i] | relative[str(i)] for i in range(len(RELATIVE_LIMITS) + 1)
        ],
        "small": small,
        "categories": by_category,
    }


def _ranges(limits: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Areas of the bands between limits; pycocotools' ranges include both ends."""
    ends = [0.0, *(side * side for side in limits), math.inf]
    return {str(i): (a, float(np.nextafter(b, 0))) for i, (a, b) in enumerate(pairwise(ends))}


def _sides(limits: Sequence[float]) -> list[Band]:
    return [{"from": a, "to": b} for a, b in pairwise([0, *limits, None])]


def relative_to_image(truth: COCO) -> COCO:
    """The same ground truth, whose areas are shares of their image's."""
    image = {i: entry["height"] * entry["width"] for i, entry in truth.imgs.items()}
    annotations = [
        {**a, "area": a["area"] / image[a["image_id"]]} for a in truth.dataset["annotations"]
    ]
    other = COCO()
    other.dataset = {**truth.dataset, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        other.createIndex()
    return other


def _evaluated(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    ranges: Mapping[str, tuple[float, float]],
    detections: int,
    *,
    to_image: bool = False,
) -> dict[str, Band]:
    """By name of the range: objects, AP, AP50, AR, and the same by category where there are any."""
    names = {c["id"]: str(c["name"]) for c in truth.dataset["categories"]}
    objects = {name: dict.fromkeys(names, 0) for name in ranges}
    for a in truth.anns.values():
        for name, (low, high) in ranges.items():
            if low <= a["area"] <= high and not a.get("iscrowd", 0):
                objects[name][a["category_id"]] += 1
    found: COCOeval | None = None
    if results and truth.anns:
        found = matched(truth, results, iou_type, detections, ranges=ranges, relative=to_image)
        with contextlib.redirect_stdout(io.StringIO()):
            found.accumulate()
    bands: dict[str, Band] = {}
    for at, name in enumerate(ranges):
        total = sum(objects[name].values())
        band: Band = {"objects": total, "AP": None, "AP50": None, "AR": None, "categories": {}}
        if total and found is None:
            band.update({"AP": 0.0, "AP50": 0.0, "AR": 0.0})
        elif found is not None:
            precision = found.eval["precision"][:, :, :, at, -1]
            band["AP"], band["AP50"] = _mean(precision), _mean(precision[:1])
            band["AR"] = _mean(found.eval["recall"][:, :, at, -1])
        for k, (number, called) in enumerate(sorted(names.items())):
            if count := objects[name][number]:
                ap = 0.0 if found is None else _mean(precision[:, :, k])
                band["categories"][called] = {"objects": count, "AP": ap}
        bands[name] = band
    return bands


def _mean(values: "np.ndarray[Any, Any]") -> float | None:
    known = values[values > -1]
    return round(float(known.mean()), 5) if len(known) else None


def side(band: Mapping[str, Any], *, percent: bool = False) -> str:
    """What a band is called: ``8 to 16``, ``below 8``, ``from 256``."""
    low, high = (
        None if end is None else f"{100 * end:g}%" if percent else f"{end:g}"
        for end in (band["from"], band["to"])
    )
    if not band["from"]:
        return f"below {high}"
    return f"from {low}" if high is None else f"{low} to {high}"


def size_table(measures: Mapping[str, Mapping[str, Any]]) -> str:
    """AP and recall by octaves as text for the terminal, of masks or else of boxes."""
    task = next(t for t in TITLES if t in measures)
    bands = measures[task]["pixels"]
    lines = [["side in pixels", *map(side, bands)]]
    for title, key in ((TITLES[task], "AP"), ("recall", "AR")):
        lines.append([title, *("-" if b[key] is None else f"{b[key]:.3f}" for b in bands)])
    lines.append(["objects", *(str(b["objects"]) for b in bands)])
    return aligned(lines)
