"""How much AP depends on the images that happen to be in the validation set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from smallobj_d2.evaluation.ap import matched

_CHUNK = 100  # resamples at a time, for memory


def resampled_images(images: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """(resamples, images): how often each image is in each resample."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)


def resampled_ap(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    counts: NDArray[np.int64],
    *,
    iou_type: str = "segm",
    size: str = "small",
    detections: int = 100,
) -> NDArray[np.float64]:
    """COCO's AP on each resample of the images.

    Args:
        truth: what `smallobj_d2.evaluation.ap.load_ground_truth` gives.
        results: detections in COCO's result format; at least one.
        counts: (B, I) how often each image, in the order of their sorted ids, is in a resample.
        iou_type, size: ``segm`` or ``bbox``; whose AP.
        detections: how many of an image and category count.

    Returns:
        (B,) APs; NaN where a resample has no object of that size.
    """
    evaluation = matched(truth, results, iou_type, detections)
    params = evaluation.params
    shape = len(params.catIds), len(params.areaRngLbl), len(params.imgIds)
    entries = np.array(evaluation.evalImgs, dtype=object).reshape(shape)
    sums, known = np.zeros(len(counts)), np.zeros(len(counts))
    for of_category in entries[:, params.areaRngLbl.index(size)]:
        found = {i: e for i, e in enumerate(of_category) if e is not None}
        objects = np.array([np.sum(np.logical_not(e["gtIgnore"])) for e in found.values()])
        if not objects.any():
            continue
        total = counts[:, [*found]] @ objects
        precision = _precision(found, counts, total, params.recThrs)
        sums += np.where(total > 0, precision, 0)
        known += total > 0
    means = np.full(len(counts), np.nan)
    np.divide(sums, known, out=means, where=known > 0)
    return means


def _precision(
    found: dict[int, dict[str, Any]],
    counts: NDArray[np.int64],
    total: NDArray[np.int64],
    recalls: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(B,) mean precision of one category over IoU thresholds and recalls."""
    image = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in found.items()]).astype(int)
    if not len(image):
        return np.zeros(len(counts))
    order = np.argsort(-np.concatenate([e["dtScores"] for e in found.values()]), kind="mergesort")
    image = image[order]
    hits = np.concatenate([e["dtMatches"] for e in found.values()], axis=1)[:, order] > 0
    ignored = np.concatenate([e["dtIgnore"] for e in found.values()], axis=1)[:, order] > 0
    means = np.zeros((len(hits), len(counts)))
    for at, (hit, ignore) in enumerate(zip(hits, ignored, strict=True)):
        kept = np.flatnonzero(~ignore)
        right = np.flatnonzero(hit[kept])
        if not len(right):
            continue
        # Recall grows and precision peaks at what is right: only there need they be known.
        of_kept, of_right = image[kept[: right[-1] + 1]], image[kept[right]]
        starts = np.concatenate([[0], right[:-1] + 1])
        for low in range(0, len(counts), _CHUNK):
            chunk = counts[low : low + _CHUNK]
            found_so_far = np.cumsum(chunk[:, of_right], axis=1)
            every = np.cumsum(np.add.reduceat(chunk[:, of_kept], starts, axis=1), axis=1)
            best = np.divide(found_so_far, every, out=np.zeros(every.shape), where=every > 0)
            best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
            recall = found_so_far / np.maximum(total[low : low + _CHUNK, None], 1)
            reached = np.searchsorted(recalls, recall, side="right")
            first = np.diff(reached, axis=1, prepend=0)  # how many recalls are reached here first
            means[at, low : low + _CHUNK] = (best * first).sum(axis=1) / len(recalls)
    return np.asarray(means.mean(axis=0), np.float64)
