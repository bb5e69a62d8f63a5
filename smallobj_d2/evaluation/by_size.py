"""AP and recall by size, octave by octave: which small objects a run finds, and which it does not.

Small, medium and large are three bands. Here are as many as one likes, by the side of a square of
an object's area, in pixels of the original image and relative to it. With the usual limits they
contain AI-TOD's very tiny (below 8 pixels; AI-TOD has none below 2), tiny (8 to 16), small (16 to
32) and medium (32 to 64) (Wang et al., 2021).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smallobj_d2.evaluation.ap import (
    COCO_DETECTIONS,
    TITLES,
    accumulated,
    aligned,
    cell,
    indexed,
    mean_known,
)
from smallobj_d2.sizes import SMALL_AREA

RELATIVE_LIMITS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Sides relative to that of a square of the image's area."""

Range = tuple[float, float]
"""Lowest and highest area."""

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
    ranges = [*_ranges(limits), (0.0, SMALL_AREA)]
    found = accumulated(truth, results, iou_type, detections, ranges=ranges)
    *pixels, small = _bands(truth, found, ranges)
    shares, share_truth = _ranges(RELATIVE_LIMITS), relative_to_image(truth)
    of_shares = accumulated(
        share_truth, results, iou_type, detections, ranges=shares, relative=True
    )
    return {
        "pixels": _with_sides(limits, pixels),
        "relative": _with_sides(RELATIVE_LIMITS, _bands(share_truth, of_shares, shares)),
        "small": small,
        "categories": _by_category(truth, found, ranges),
    }


def _ranges(limits: Sequence[float]) -> list[Range]:
    """Areas of the bands between limits; pycocotools' ranges include both ends."""
    ends = [0.0, *(side * side for side in limits), math.inf]
    return [(a, float(np.nextafter(b, 0))) for a, b in pairwise(ends)]


def _with_sides(limits: Sequence[float], bands: Sequence[Band]) -> list[Band]:
    ends = pairwise([0, *limits, None])
    return [{"from": a, "to": b, **band} for (a, b), band in zip(ends, bands, strict=True)]


def relative_to_image(truth: COCO) -> COCO:
    """The same ground truth, whose areas are shares of their image's."""
    image = {i: entry["height"] * entry["width"] for i, entry in truth.imgs.items()}
    annotations = [
        {**a, "area": a["area"] / image[a["image_id"]]} for a in truth.dataset["annotations"]
    ]
    return indexed({**truth.dataset, "annotations": annotations})


def _inside(truth: COCO, area: Range) -> Counter[Any]:
    """How many objects of each category there are in a range, crowds left out."""
    low, high = area
    return Counter(
        a["category_id"]
        for a in truth.anns.values()
        if low <= a["area"] <= high and not a.get("iscrowd", 0)
    )


def _bands(truth: COCO, found: COCOeval | None, ranges: Sequence[Range]) -> list[Band]:
    bands = []
    for at, area in enumerate(ranges):
        total = _inside(truth, area).total()
        aps = dict.fromkeys(("AP", "AP50", "AR"), 0.0 if total else None)
        if found is not None:
            precision = found.eval["precision"][:, :, :, at, -1]
            recall = found.eval["recall"][:, :, at, -1]
            aps = {"AP": _mean(precision), "AP50": _mean(precision[:1]), "AR": _mean(recall)}
        bands.append({"objects": total, **aps})
    return bands


def _by_category(truth: COCO, found: COCOeval | None, ranges: Sequence[Range]) -> dict[str, Band]:
    """Objects and AP of each category in the last range, where it has any."""
    inside = _inside(truth, ranges[-1])
    names = sorted((c["id"], str(c["name"])) for c in truth.dataset["categories"])
    return {
        name: {
            "objects": inside[number],
            "AP": 0.0 if found is None else _mean(found.eval["precision"][:, :, k, -1, -1]),
        }
        for k, (number, name) in enumerate(names)
        if inside[number]
    }


def _mean(values: "np.ndarray[Any, Any]") -> float | None:
    mean = mean_known(values)
    return None if mean is None else round(mean, 5)


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
    return aligned(
        [
            ["side in pixels", *map(side, bands)],
            [TITLES[task], *(cell(band["AP"], "{:.3f}") for band in bands)],
            ["recall", *(cell(band["AR"], "{:.3f}") for band in bands)],
            ["objects", *(str(band["objects"]) for band in bands)],
        ]
    )
