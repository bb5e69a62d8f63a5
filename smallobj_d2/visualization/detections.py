"""What runs found and what they missed, to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from smallobj_d2.datasets.coco import dataset_info, load_dataset
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import counted_detections, load_ground_truth
from smallobj_d2.evaluation.matches import Detections, Outcome, match_detections
from smallobj_d2.evaluation.run_folder import results_of_run, runs_of_one_test_set
from smallobj_d2.masks.rle import decode
from smallobj_d2.sizes import is_small
from smallobj_d2.visualization.sheets import (
    FOUND,
    MISSED,
    ORIGINAL,
    WRONG,
    Outlines,
    Style,
    View,
    contact_sheet,
    outlines_of_box,
    outlines_of_mask,
    zoom,
)


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
    dataset, configs = runs_of_one_test_set(folders)
    truth = load_ground_truth(dataset_info(dataset).json_file)
    runs = []
    for name, folder in folders.items():
        matches = match_detections(
            truth,
            results_of_run(folder, dataset),
            score=score,
            iou=iou,
            detections=counted_detections(configs[name]),
        )
        runs.append(Detections(name, matches))
    records = {r["image_id"]: r for r in load_dataset(dataset).records}
    for image in images:
        if image not in records:
            raise SmallObjError(f"There is no image {image} in {dataset}.")
    rows = []
    for image in images or _some_with_small_objects(truth, num, seed):
        pixels = read_rgb(records[image])
        annotated = _truth_view(truth, image, pixels)
        views = [*zoom(annotated, annotated.outlines)]
        views += [_run_view(truth, run.outcomes[image], pixels) for run in runs]
        rows.append((views, f"image {image}: {_summary(truth, runs, [image])}"))
    titles = ["annotated", "enlarged (white frame)", *(run.name for run in runs)]
    legend = {"annotated": ORIGINAL, "found": FOUND, "missed": MISSED, "wrong": WRONG}
    everywhere = _summary(truth, runs, truth.getImgIds())
    sheet = contact_sheet(rows, titles=titles, legend=legend, width=width)
    return sheet, f"{dataset}, detections with a score of {score} or more: {everywhere}"


def _some_with_small_objects(truth: COCO, num: int, seed: int) -> list[int]:
    having = sorted({a["image_id"] for a in truth.anns.values() if is_small(a)})
    return [int(i) for i in np.random.default_rng(seed).permutation(having)[:num]]


def _summary(truth: COCO, runs: Sequence[Detections], images: Sequence[int]) -> str:
    ids = truth.getAnnIds(imgIds=images)
    total = sum(is_small(truth.anns[i]) for i in ids)
    said = []
    for run in runs:
        missed, wrong = run.count(truth, images)
        said.append(f"{run.name} found {total - missed:,}, {wrong:,} wrong")
    return f"{total:,} small objects; {'; '.join(said)}"


def _truth_view(truth: COCO, image: int, pixels: NDArray[np.uint8]) -> View:
    annotations = [truth.anns[i] for i in truth.getAnnIds(imgIds=[image], iscrowd=0)]
    return _view(truth, pixels, ((ORIGINAL, annotations),))


def _run_view(truth: COCO, outcome: Outcome, pixels: NDArray[np.uint8]) -> View:
    missed = [truth.anns[i] for i in outcome.missed]
    groups = ((FOUND, outcome.found), (MISSED, missed), (WRONG, outcome.wrong))
    return _view(truth, pixels, groups)


def _view(
    truth: COCO,
    pixels: NDArray[np.uint8],
    groups: Sequence[tuple[Style, Sequence[Mapping[str, Any]]]],
) -> View:
    things = [(style, thing) for style, group in groups for thing in group]
    return View(
        pixels,
        [_outlines(truth, thing) for _, thing in things],
        [style for style, _ in things],
        [_label(truth, thing) for _, thing in things],
    )


def prediction_view(
    pixels: NDArray[np.uint8],
    results: Sequence[Mapping[str, Any]],
    categories: Mapping[Any, str],
) -> View:
    """Detections in an image that need no annotations, with their categories and scores.

    Args:
        pixels: (H, W, 3) RGB.
        results: in COCO's result format; masks as compressed RLE.
        categories: names by category id.
    """
    outlines = [
        _outlines_of_rle(mask) if (mask := r.get("segmentation")) else _outlines_of_box(r["bbox"])
        for r in results
    ]
    labels = [f"{categories[r['category_id']]} {r['score']:.2f}" for r in results]
    return View(pixels, outlines, [FOUND] * len(results), labels)


def _outlines_of_rle(rle: Mapping[str, Any]) -> Outlines:
    x, y, width, height = map(int, coco_mask.toBbox(rle).tolist())
    return [part + (x, y) for part in outlines_of_mask(decode(rle, x, y, width, height))]


def _outlines_of_box(box: Sequence[float]) -> Outlines:
    x, y, w, h = box
    return outlines_of_box(x, y, x + w, y + h)


def _label(truth: COCO, thing: Mapping[str, Any]) -> str:
    """The category, unless there is but one, and a detection's score."""
    words = [str(truth.cats[thing["category_id"]]["name"])] if len(truth.cats) > 1 else []
    if "score" in thing:
        words.append(f"{thing['score']:.2f}")
    return " ".join(words)


def _outlines(truth: COCO, thing: Mapping[str, Any]) -> Outlines:
    """The outline of an annotation or a detection: of its mask, or of its box."""
    segmentation = thing.get("segmentation")
    if not segmentation:
        return _outlines_of_box(thing["bbox"])
    if isinstance(segmentation, list):
        return [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in segmentation]
    return outlines_of_mask(truth.annToMask(thing))
