"""What runs found and what they missed, to look at.

A run leaves its detections in ``inference/coco_instances_results.json``, whatever its engine.
pycocotools matches them with the annotations, as it does for AP, at one threshold of IoU.
"""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smallobj_d2.coco import dataset_info, load_dataset, register_dataset
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation import COCO_DETECTIONS, load_ground_truth
from smallobj_d2.images import read_rgb
from smallobj_d2.sizes import is_small
from smallobj_d2.visualization import (
    FOUND,
    MISSED,
    ORIGINAL,
    WRONG,
    Outlines,
    View,
    contact_sheet,
    outlines_of_mask,
)

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
        truth: what `smallobj_d2.evaluation.load_ground_truth` gives.
        results: detections in COCO's result format, with or without masks.
        score: leave out those below.
        iou: of mask and mask, or of box and box where there are no masks, for a match.
        detections: how many of an image and category count.

    Returns:
        By image id.
    """
    kept = [dict(r) for r in results if r["score"] >= score]
    outcomes: dict[int, Outcome] = {i: Outcome([], [], []) for i in truth.getImgIds()}
    masks = bool(kept) and all("segmentation" in r for r in kept)
    if masks:
        for result in kept:  # given a box, pycocotools would measure a mask's size by it
            result.pop("bbox", None)
    matched: set[int] = set()
    if kept:
        with contextlib.redirect_stdout(io.StringIO()):
            found = truth.loadRes(kept)
            evaluation = COCOeval(truth, found, "segm" if masks else "bbox")
            evaluation.params.iouThrs = np.array([iou])
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.params.maxDets = [detections]
            evaluation.evaluate()
        for entry in filter(None, evaluation.evalImgs):
            outcome = outcomes[entry["image_id"]]
            pairs = zip(entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True)
            for detection, annotation, ignored in pairs:
                right = annotation > 0 or ignored
                (outcome.found if right else outcome.wrong).append(found.anns[detection])
            matched |= {
                a for a, d in zip(entry["gtIds"], entry["gtMatches"][0], strict=True) if d > 0
            }
    for annotation in truth.anns.values():
        if not annotation["iscrowd"] and annotation["id"] not in matched:
            outcomes[annotation["image_id"]].missed.append(annotation["id"])
    return outcomes


def dataset_of_run(folder: Path) -> str:
    """The name of the first test set of a run, registered.

    Args:
        folder: a run's ``OUTPUT_DIR``.

    Raises:
        SmallObjError: if there is no run, or it has not evaluated anything yet.
    """
    for name, json_file, images in _config(folder)["SMALLOBJ"]["DATASETS"]:
        register_dataset(name, json_file, images)
    dataset: str = json.loads((folder / "row.json").read_bytes())["dataset"]
    return dataset


def _config(folder: Path) -> dict[str, Any]:
    """The config of a run's last evaluation, with training (run.json) or alone (eval.json)."""
    records = [p for p in (folder / "run.json", folder / "eval.json") if p.is_file()]
    if not records or not (folder / "row.json").is_file():
        raise SmallObjError(
            f"{folder} has no row.json with a run.json or eval.json beside it: it is no folder of "
            "a run that was evaluated."
        )
    last = max(records, key=lambda path: path.stat().st_mtime)
    config: dict[str, Any] = yaml.safe_load(json.loads(last.read_bytes())["config"])
    return config


def results_of_run(folder: Path, dataset: str) -> tuple[list[Result], int]:
    """The detections that a run has left, and how many of an image and category its AP counts.

    Args:
        folder: a run's ``OUTPUT_DIR``.
        dataset: that it was evaluated on.

    Raises:
        SmallObjError: if they are not there.
    """
    name = "coco_instances_results.json"
    places = [folder / "inference" / dataset / name, folder / "inference" / name]
    path = next(filter(Path.is_file, places), None)
    if path is None:
        raise SmallObjError(f"{folder} has no inference/{name}: evaluate it with --eval-only.")
    limit = max(COCO_DETECTIONS, _config(folder)["TEST"]["DETECTIONS_PER_IMAGE"])
    results: list[Result] = json.loads(path.read_bytes())
    return results, limit


def detection_sheet(
    folders: Mapping[str, Path],
    *,
    images: Sequence[int] = (),
    num: int = 4,
    seed: int = 0,
    score: float = 0.5,
    iou: float = 0.5,
    width: int = 480,
) -> tuple[Image.Image, str]:
    """What runs found on validation images, side by side, beside the annotations.

    The text counts small objects, and detections of small area; the picture shows all.

    Args:
        folders: ``OUTPUT_DIR`` of each run by what to call it; all with the same test set.
        images: ids of the images; none for `num` images with small objects, chosen at random.
        num, seed: see `images`.
        score: leave out detections below.
        iou: for a match.
        width: of one picture, in pixels.

    Returns:
        The sheet, and what to say about all images of the test set.

    Raises:
        SmallObjError: naming what a run lacks, or an image that is not in the test set.
    """
    names = {dataset_of_run(folder) for folder in folders.values()}
    if len(names) > 1:
        raise SmallObjError(f"The runs have different test sets: {', '.join(sorted(names))}.")
    dataset = names.pop()
    truth = load_ground_truth(dataset_info(dataset).json_file)
    runs = []
    for name, folder in folders.items():
        results, limit = results_of_run(folder, dataset)
        matches = match_detections(truth, results, score=score, iou=iou, detections=limit)
        runs.append(Detections(name, matches))
    records = {r["image_id"]: r for r in load_dataset(dataset).records}
    for image in images:
        if image not in records:
            raise SmallObjError(f"There is no image {image} in {dataset}.")
    rows = []
    for image in images or _some_with_small_objects(truth, num, seed):
        views = [_truth_view(truth, records[image])]
        views += [_run_view(truth, records[image], run.outcomes[image]) for run in runs]
        rows.append((views, f"image {image}: {_summary(truth, runs, [image])}"))
    titles = ["annotated", *(run.name for run in runs)]
    legend = {"annotated": ORIGINAL, "found": FOUND, "missed": MISSED, "wrong": WRONG}
    everywhere = _summary(truth, runs, truth.getImgIds())
    sheet = contact_sheet(rows, titles=titles, legend=legend, width=width)
    return sheet, f"{dataset}, detections with a score of {score} or more: {everywhere}"


def _some_with_small_objects(truth: COCO, num: int, seed: int) -> list[int]:
    having = sorted({a["image_id"] for a in truth.anns.values() if is_small(a)})
    return np.random.default_rng(seed).permutation(having)[:num].tolist()


def _summary(truth: COCO, runs: Sequence[Detections], images: Sequence[int]) -> str:
    ids = truth.getAnnIds(imgIds=images)
    total = sum(is_small(truth.anns[i]) for i in ids)
    said = []
    for run in runs:
        missed, wrong = run.count(truth, images)
        said.append(f"{run.name} found {total - missed:,}, {wrong:,} wrong")
    return f"{total:,} small objects; {'; '.join(said)}"


def _truth_view(truth: COCO, record: Mapping[str, Any]) -> View:
    annotations = [truth.anns[i] for i in truth.getAnnIds(imgIds=[record["image_id"]], iscrowd=0)]
    outlines = [_outlines(a, record) for a in annotations]
    return View(read_rgb(record), outlines, [ORIGINAL] * len(outlines))


def _run_view(truth: COCO, record: Mapping[str, Any], outcome: Outcome) -> View:
    missed = [truth.anns[i] for i in outcome.missed]
    groups = ((FOUND, outcome.found), (MISSED, missed), (WRONG, outcome.wrong))
    outlines = [_outlines(thing, record) for _, things in groups for thing in things]
    styles = [style for style, things in groups for _ in things]
    return View(read_rgb(record), outlines, styles)


def _outlines(thing: Mapping[str, Any], record: Mapping[str, Any]) -> Outlines:
    """The outline of an annotation or a detection: of its mask, or of its box."""
    segmentation = thing.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        return [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in segmentation]
    if segmentation:
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, record["height"], record["width"])
        return outlines_of_mask(coco_mask.decode(segmentation))
    x, y, w, h = thing["bbox"]
    return [np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], dtype=np.float64)]
