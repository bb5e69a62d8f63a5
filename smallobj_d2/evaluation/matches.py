"""Which detections found which annotations.

pycocotools matches them, as it does for AP, at one threshold of IoU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO

from smallobj_d2.evaluation.ap import matched
from smallobj_d2.sizes import is_small

Result = dict[str, Any]
"""A detection in COCO's result format."""


@dataclass(frozen=True)
class Outcome:
    """What a run made of one image, above a score."""

    found: list[Result]
    """Detections of an object that is annotated, or of a part of a crowd."""
    wrong: list[Result]
    """Detections of nothing."""
    missed: list[int]
    """Ids of the annotations that no detection found; no crowds."""


@dataclass(frozen=True)
class Detections:
    """The detections of one run, matched with the annotations.

    Attributes:
        name: of the run.
        outcomes: by image id; every image has one.
    """

    name: str
    outcomes: dict[int, Outcome]

    def count(self, truth: COCO, images: Sequence[int]) -> tuple[int, int]:
        """How many small objects of some images were missed, and how many small detections wrong.

        Args:
            truth: what the detections were matched with.
            images: ids.
        """
        chosen = [self.outcomes[i] for i in images]
        missed = sum(is_small(truth.anns[a]) for outcome in chosen for a in outcome.missed)
        wrong = sum(is_small(result) for outcome in chosen for result in outcome.wrong)
        return missed, wrong


def match_detections(
    truth: COCO, results: Sequence[Mapping[str, Any]], *, score: float, iou: float, detections: int
) -> dict[int, Outcome]:
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
    outcomes: dict[int, Outcome] = {i: Outcome([], [], []) for i in truth.getImgIds()}
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
