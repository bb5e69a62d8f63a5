"""Which detections found which annotations.

pycocotools matches them, as it does for AP, at one threshold of IoU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO

from smallobj_d2.evaluation.ap import Result, matched


@dataclass(frozen=True)
class Outcome:
    """What a run made of one image, above a score."""

    found: list[Result]
    """Detections of an object that is annotated, or of a part of a crowd."""
    wrong: list[Result]
    """Detections of nothing."""
    missed: list[int]
    """Ids of the annotations that no detection found; no crowds."""


def match_detections(
    truth: COCO, results: Sequence[Mapping[str, Any]], *, score: float, iou: float, detections: int
) -> dict[Any, Outcome]:
    """Match detections with annotations of their category, the surest first.

    Args:
        truth: what `smallobj_d2.evaluation.ap.load_ground_truth` gives.
        results: detections in COCO's result format, with or without masks.
        score: leave out those below.
        iou: of mask and mask, or of box and box where there are no masks, for a match.
        detections: how many of an image and category count.

    Returns:
        By image id.
    """
    kept = [r for r in results if r["score"] >= score]
    outcomes: dict[Any, Outcome] = {i: Outcome([], [], []) for i in truth.getImgIds()}
    seen: set[int] = set()
    if kept:
        masks = all("segmentation" in r for r in kept)
        evaluation = matched(truth, kept, "segm" if masks else "bbox", detections, iou=iou)
        found = evaluation.cocoDt.anns
        for entry in filter(None, evaluation.evalImgs):
            outcome = outcomes[entry["image_id"]]
            pairs = zip(entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True)
            for detection, annotation, ignored in pairs:
                right = annotation > 0 or ignored
                (outcome.found if right else outcome.wrong).append(found[detection])
            seen |= {a for a, d in zip(entry["gtIds"], entry["gtMatches"][0], strict=True) if d > 0}
    for annotation in truth.anns.values():
        if not annotation["iscrowd"] and annotation["id"] not in seen:
            outcomes[annotation["image_id"]].missed.append(annotation["id"])
    return outcomes
