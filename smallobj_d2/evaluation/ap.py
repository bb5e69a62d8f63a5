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

try:  # the same precisions and recalls, many times as fast
    from faster_coco_eval import COCOeval_faster as Fastest
except ImportError:
    Fastest = COCOeval

SIZES = ("small", "medium", "large", "all")
"""Columns of a table row, in the paper's order."""

TITLES = {"segm": "Segmentation AP", "bbox": "Detection AP"}
"""The paper's names of the two halves of a row, by COCO's names of what is compared."""

Row = dict[str, Any]
"""``segm`` and ``bbox``: size to AP as a fraction, or None if there are no objects of that size;
``ground_truth``: size to the number of objects."""

Result = dict[str, Any]
"""A detection in COCO's result format."""

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
_NAMES = {size: name for name, (iou, size) in _STATS.items() if iou is None}


def load_ground_truth(json_file: str | Path) -> COCO:
    """Read a COCO JSON to evaluate against, with what is missing filled in as the loader does.

    Annotations are numbered from 1: COCO's tools take an id of 0 for "not found", and cannot count
    with strings. Polygons of under three points go, and so do instances left without any.

    Raises:
        SmallObjError: as `smallobj_d2.datasets.coco.load_coco`, which reads and checks it as well.
    """
    checked = read_coco(json_file, images=False)
    images = [{**i, "height": int(i["height"]), "width": int(i["width"])} for i in checked.images]
    kept = [{**a, "id": i} for i, a in enumerate(repaired(checked), 1)]
    return indexed({**checked.data, "images": images, "annotations": kept})


def indexed(dataset: dict[str, Any]) -> COCO:
    """The content of a COCO JSON as pycocotools takes it."""
    truth = COCO()
    truth.dataset = dataset
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
    found = accumulated(ground_truth, results, iou_type, detections)
    if found is None:
        return {name: 0.0 if counts[size] else None for name, (_, size) in _STATS.items()}
    # COCO's ranges have both ends, so an object of 32 x 32 pixels would be small there, too.
    return {name: _ap(found, *what) if counts[what[1]] else None for name, what in _STATS.items()}


def _ap(found: COCOeval, iou: float | None, size: str) -> float | None:
    """COCOeval's own summary, which insists on 100 detections."""
    precision = found.eval["precision"][:, :, :, found.params.areaRngLbl.index(size), -1]
    if iou is not None:
        precision = precision[np.isclose(found.params.iouThrs, iou)]
    return mean_known(precision)


def mean_known(values: "np.ndarray[Any, Any]") -> float | None:
    """The mean of precisions or recalls without COCO's -1 for what has no object."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else None


def accumulated(
    ground_truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    detections: int,
    *,
    ranges: Sequence[tuple[float, float]] = (),
    relative: bool = False,
) -> COCOeval | None:
    """A COCOeval with its ``eval``; None where there is nothing to match.

    Args:
        ground_truth, results, iou_type, detections: see `coco_metrics`.
        ranges: lowest and highest area of each size, in place of COCO's.
        relative: areas are shares of the image's, in `ground_truth` and in `ranges`.
    """
    if not results or not any(not a.get("iscrowd", 0) for a in ground_truth.anns.values()):
        return None
    ids = (*ground_truth.imgs, *ground_truth.cats)
    counted = all(isinstance(i, int) and 0 <= i < 2**53 for i in ids)  # as C++ takes them
    kind = Fastest if counted else COCOeval
    evaluation = _evaluation(kind, ground_truth, results, iou_type, detections)
    if relative:
        for result in evaluation.cocoDt.anns.values():
            image = ground_truth.imgs[result["image_id"]]
            result["area"] /= image["height"] * image["width"]
    if ranges:
        evaluation.params.areaRng = list(map(list, ranges))
        evaluation.params.areaRngLbl = list(map(str, range(len(ranges))))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def matched(
    ground_truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    detections: int,
    *,
    iou: float | None = None,
) -> COCOeval:
    """Detections matched with annotations by pycocotools: a COCOeval with its ``evalImgs``.

    Args:
        ground_truth, results, iou_type, detections: see `coco_metrics`; at least one detection.
        iou: the only threshold, and all sizes together; None for COCO's ten and for each size.
    """
    evaluation = _evaluation(COCOeval, ground_truth, results, iou_type, detections)
    if iou is not None:
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return evaluation


def _evaluation(
    kind: type[COCOeval],
    ground_truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    detections: int,
) -> COCOeval:
    own = [dict(r) for r in results]
    if iou_type == "segm":
        for result in own:  # given a box, pycocotools would measure a mask's size by it
            result.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = kind(ground_truth, ground_truth.loadRes(own), iou_type)
    evaluation.params.maxDets = [detections]
    return evaluation


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
    metrics = {
        task: {
            name: None if not counts[size] else 0.0 if math.isnan(ap[name]) else ap[name] / 100
            for size, name in _NAMES.items()
        }
        for task, ap in results.items()
        if task in TITLES
    }
    return row_of(metrics, counts)


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
    return aligned(
        [
            ["", *SIZES],
            *(
                [title, *(cell(row[task][size], "{:.3f}") for size in SIZES)]
                for task, title in TITLES.items()
                if task in row
            ),
            ["objects", *(str(row["ground_truth"][size]) for size in SIZES)],
        ]
    )


def cell(value: float | None, form: str) -> str:
    """A number in a table; "-" where there is none, which None and NaN say."""
    return "-" if value is None or math.isnan(value) else form.format(value)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join(
            [words[0].ljust(first), *(w.rjust(n) for w, n in zip(words[1:], others, strict=True))]
        ).rstrip()
        for words in lines
    )
