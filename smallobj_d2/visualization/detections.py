"""What runs found and what they missed, to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.matches import Outcome, match_detections
from smallobj_d2.evaluation.run_folder import runs_of_one_test_set
from smallobj_d2.masks.shapes import Bitmap
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
from smallobj_d2.visualization.texts import counted


def detection_sheet(
    folders: Mapping[str, Path],
    *,
    images: Sequence[Any] = (),
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
        images: ids of the images, or these as text; none for `num` images with small objects,
            chosen at random.
        num, seed: see `images`.
        score: leave out detections below.
        iou: for a match.
        width: of one picture, in pixels.

    Returns:
        The sheet, and what to say about all images of the test set.

    Raises:
        SmallObjError: naming what a run lacks, or an image that is not in the test set; or if no
            images are given and none has small objects.
    """
    truth, found = runs_of_one_test_set(folders)
    first, *_ = found.values()
    runs = {
        name: match_detections(truth, run.results, score=score, iou=iou, detections=run.detections)
        for name, run in found.items()
    }
    names = {c: str(cat["name"]) for c, cat in truth.cats.items()} if len(truth.cats) > 1 else {}
    records = {r["image_id"]: r for r in load_coco(first.json_file, first.images).records}
    by_text = {str(image): image for image in records}
    for image in images:
        if str(image) not in by_text:
            raise SmallObjError(f"There is no image {image} in {first.json_file}.")
    chosen = [by_text[str(image)] for image in images]
    rows = []
    for image in chosen or _some_with_small_objects(truth, num, seed):
        pixels = read_rgb(records[image])
        own = [truth.anns[i] for i in truth.getAnnIds(imgIds=[image], iscrowd=0)]
        annotated = _view(pixels, {ORIGINAL: own}, names)
        views = [*zoom(annotated, annotated.outlines)]
        for outcomes in runs.values():
            outcome = outcomes[image]
            missed = [truth.anns[i] for i in outcome.missed]
            groups = {FOUND: outcome.found, MISSED: missed, WRONG: outcome.wrong}
            views.append(_view(pixels, groups, names))
        rows.append((views, f"image {image}: {_summary(truth, runs, [image])}"))
    titles = ["annotated", "enlarged (white frame)", *runs]
    legend = {"annotated": ORIGINAL, "found": FOUND, "missed": MISSED, "wrong": WRONG}
    everywhere = _summary(truth, runs, truth.getImgIds())
    sheet = contact_sheet(rows, titles=titles, legend=legend, width=width)
    return sheet, f"{first.dataset}, detections with a score of {score} or more: {everywhere}"


def _some_with_small_objects(truth: COCO, num: int, seed: int) -> list[Any]:
    having = sorted({a["image_id"] for a in truth.anns.values() if is_small(a)})
    if not having:
        raise SmallObjError(
            "The test set has no small objects: name the images to show by their ids."
        )
    return [having[i] for i in np.random.default_rng(seed).permutation(len(having))[:num]]


def _summary(truth: COCO, runs: Mapping[str, dict[Any, Outcome]], images: Sequence[Any]) -> str:
    """How many small objects there are in some images; how many were found, how many invented."""
    total = sum(is_small(truth.anns[i]) for i in truth.getAnnIds(imgIds=images))
    said = []
    for name, outcomes in runs.items():
        chosen = [outcomes[i] for i in images]
        missed = sum(is_small(truth.anns[a]) for outcome in chosen for a in outcome.missed)
        wrong = sum(is_small(result) for outcome in chosen for result in outcome.wrong)
        said.append(f"{name} found {total - missed:,}, {wrong:,} wrong")
    return f"{counted(total, 'small object')}; {'; '.join(said)}"


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
    return _view(pixels, {FOUND: results}, categories)


def _view(
    pixels: NDArray[np.uint8],
    groups: Mapping[Style, Sequence[Mapping[str, Any]]],
    names: Mapping[Any, str],
) -> View:
    """Annotations or detections by their style, with scores, and categories if these have names."""
    things = [(style, thing) for style, group in groups.items() for thing in group]
    return View(
        pixels,
        [_outlines(thing) for _, thing in things],
        [style for style, _ in things],
        [_label(names, thing) for _, thing in things],
    )


def _label(names: Mapping[Any, str], thing: Mapping[str, Any]) -> str:
    words = [names[thing["category_id"]]] if names else []
    if "score" in thing:
        words.append(f"{thing['score']:.2f}")
    return " ".join(words)


def _outlines(thing: Mapping[str, Any]) -> Outlines:
    """The outline of an annotation or a detection: of its mask, or of its box."""
    segmentation = thing.get("segmentation")
    if not segmentation:
        x, y, w, h = thing["bbox"]
        return outlines_of_box(x, y, x + w, y + h)
    if isinstance(segmentation, list):
        return [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in segmentation]
    bitmap = Bitmap.decode(segmentation)
    return [part + (bitmap.x, bitmap.y) for part in outlines_of_mask(bitmap.mask)]
