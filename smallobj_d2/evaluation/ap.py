"""COCO AP to the eight numbers of a table row: masks and boxes by small, medium, large and all."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smallobj_d2.datasets.coco import read_coco, repaired
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sizes import BANDS

SIZES = ("small", "medium", "large", "all")
"""Columns of a table row, in the paper's order."""

TITLES = {"segm": "Segmentation AP", "bbox": "Detection AP"}
"""The paper's names of the two halves of a row, by COCO's names of what is compared."""

Row = dict[str, Any]
"""``segm`` and ``bbox``: size to AP as a fraction, or None if there are no objects of that size;
``ground_truth``: size to the number of objects."""

COCO_DETECTIONS = 100
"""Of an image and category, in COCO's own evaluation."""

# Detectron2's names of the numbers: the IoU threshold (None: the mean over all) and the size.
_STATS: dict[str, tuple[float | None, str]] = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}
_NAMES = {"small": "APs", "medium": "APm", "large": "APl", "all": "AP"}


def load_ground_truth(json_file: str | Path) -> COCO:
    """Read a COCO JSON to evaluate against, with what is missing filled in as the loader does.

    Annotations are numbered from 1: COCO's tools take an id of 0 for "not found", and cannot count
    with strings. Polygons of under three points go, and so do instances left without any.

    Raises:
        SmallObjError: as `smallobj_d2.datasets.coco.load_coco`, which reads and checks it as well.
    """
    checked = read_coco(json_file)
    images = [{**i, "height": int(i["height"]), "width": int(i["width"])} for i in checked.images]
    kept = [{**a, "id": i} for i, (_, a) in enumerate(repaired(checked), 1)]
    truth = COCO()
    truth.dataset = {**checked.data, "images": images, "annotations": kept}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def count_objects(ground_truth: COCO) -> dict[str, int]:
    """How many objects of each size there are, crowds left out."""
    areas = [a["area"] for a in ground_truth.anns.values() if not a.get("iscrowd", 0)]
    counts = {size: sum(low <= a < high for a in areas) for size, (low, high) in BANDS.items()}
    return {**counts, "all": len(areas)}


def counted_detections(cfg: Any) -> int:
    """How many detections of an image and category the evaluation of a config counts.

    COCO's 100, or all that the network gives where TEST.DETECTIONS_PER_IMAGE asks for more.
    """
    return max(COCO_DETECTIONS, int(cfg.TEST.DETECTIONS_PER_IMAGE))


def coco_metrics(
    ground_truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    detections: int = COCO_DETECTIONS,
) -> dict[str, float | None]:
    """AP, AP50, AP75, APs, APm and APl as fractions, by pycocotools.

    Args:
        ground_truth: what `load_ground_truth` gives.
        results: detections in COCO's result format; may be none.
        iou_type: "segm" or "bbox".
        detections: how many of an image and category count, the best ones.

    Returns:
        None in place of an AP over sizes that no object has.
    """
    if iou_type == "segm" and any(not a.get("segmentation") for a in ground_truth.anns.values()):
        number = next(i for i, a in ground_truth.anns.items() if not a.get("segmentation"))
        raise SmallObjError(
            f"Annotation {number} has no mask to evaluate masks against. Set MODEL.MASK_ON False, "
            "or add `segmentation` to the annotations."
        )
    counts = count_objects(ground_truth)
    if not results or not counts["all"]:
        sizes = {name: size for size, name in _NAMES.items()}
        return {n: 0.0 if counts[sizes.get(n, "all")] else None for n in _STATS}
    evaluation = matched(ground_truth, results, iou_type, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return {name: _mean(evaluation, *what) for name, what in _STATS.items()}


def matched(
    ground_truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    detections: int,
    *,
    iou: float | None = None,
    ranges: Sequence[tuple[float, float]] = (),
    relative: bool = False,
) -> COCOeval:
    """Detections matched with annotations by pycocotools: a COCOeval with its ``evalImgs``.

    Args:
        ground_truth, results, iou_type, detections: see `coco_metrics`; at least one detection.
        iou: the only threshold, and all sizes together; None for COCO's ten and for each size.
        ranges: lowest and highest area of each size, in place of COCO's.
        relative: areas are shares of the image's, in `ground_truth` and in `ranges`.
    """
    own = [dict(r) for r in results]
    if iou_type == "segm":
        for result in own:  # given a box, pycocotools would measure a mask's size by it
            result.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        found = ground_truth.loadRes(own)
        if relative:
            for result in found.anns.values():
                image = found.imgs[result["image_id"]]
                result["area"] /= image["height"] * image["width"]
        evaluation = COCOeval(ground_truth, found, iou_type)
        evaluation.params.maxDets = [detections]
        if ranges:
            evaluation.params.areaRng = list(map(list, ranges))
            evaluation.params.areaRngLbl = list(map(str, range(len(ranges))))
        if iou is not None:
            evaluation.params.iouThrs = np.array([iou])
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return evaluation


def _mean(evaluation: COCOeval, iou: float | None, size: str) -> float | None:
    """COCOeval's own summary, which insists on 100 detections."""
    at = evaluation.params.areaRngLbl.index(size)
    precision = evaluation.eval["precision"][:, :, :, at, -1]
    if iou is not None:
        precision = precision[np.isclose(evaluation.params.iouThrs, iou)]
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else None


def row_of(metrics: Mapping[str, Mapping[str, float | None]], counts: Mapping[str, int]) -> Row:
    """The numbers of a table row from what `coco_metrics` gives for each half."""
    row: Row = {t: {size: m[_NAMES[size]] for size in SIZES} for t, m in metrics.items()}
    return {**row, "ground_truth": dict(counts)}


def from_detectron2(results: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> Row:
    """The numbers of a table row from what Detectron2's COCOEvaluator returns.

    Args:
        results: per cent by task and name; NaN where there are no objects or no detections.
        counts: what `count_objects` gives.
    """

    def fraction(value: float, size: str) -> float | None:
        if not counts[size]:
            return None
        return 0.0 if math.isnan(value) else value / 100

    row: Row = {
        task: {size: fraction(results[task][_NAMES[size]], size) for size in SIZES}
        for task in TITLES
        if task in results
    }
    return {**row, "ground_truth": dict(counts)}


def as_detectron2(
    metrics: Mapping[str, Mapping[str, float | None]],
) -> dict[str, float]:
    """What goes into metrics.json: per cent under Detectron2's names, such as ``segm/APs``."""
    return {
        f"{task}/{name}": math.nan if ap is None else 100 * ap
        for task, aps in metrics.items()
        for name, ap in aps.items()
    }


def table(row: Row) -> str:
    """A row as text for the terminal; "-" where there are no objects of a size."""
    lines = [["", *SIZES]]
    for task, title in TITLES.items():
        if task in row:
            lines.append(
                [title, *("-" if row[task][s] is None else f"{row[task][s]:.3f}" for s in SIZES)]
            )
    lines.append(["objects", *(str(row["ground_truth"][s]) for s in SIZES)])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join(
            [words[0].ljust(first), *(w.rjust(n) for w, n in zip(words[1:], others, strict=True))]
        ).rstrip()
        for words in lines
    )
