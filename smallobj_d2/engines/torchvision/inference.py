"""Evaluation: a trained model over a test set, its detections in COCO's form, and their AP."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody calls it that
from torch.utils.data import DataLoader
from tqdm import tqdm

from smallobj_d2.datasets.records import PackedRecords
from smallobj_d2.engines import processes
from smallobj_d2.engines.loader import settle_worker
from smallobj_d2.engines.torchvision.model import of_like_size
from smallobj_d2.masks.rle import encode

logger = logging.getLogger(__name__)

_LOG_PERIOD = 20.0  # seconds


def detect(
    model: nn.Module,
    records: Sequence[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    category_ids: Sequence[int],
    *,
    num_workers: int = 0,
) -> list[dict[str, Any]]:
    """Detections in all images, in COCO's result format.

    Process r of n takes images r, r + n, ..., and the first process gathers what all have found.

    Args:
        model: what `build_model` gives; is in evaluation mode afterwards.
        records: dataset dicts.
        mapper: dataset dict to a resized image.
        category_ids: the JSON's category id of each contiguous id.
        num_workers: loader processes.

    Returns:
        All detections in process 0, sorted by image and score; none in the others.
    """
    device = next(model.parameters()).device
    mine = range(processes.rank(), len(records), processes.world_size())
    packed: Any = PackedRecords(records)
    of_one: Any = mapper  # without batches, collating is mapping
    loader: Any = DataLoader(
        packed,
        sampler=mine,
        batch_size=None,
        collate_fn=of_one,
        num_workers=num_workers,
        worker_init_fn=settle_worker,
    )
    found: list[dict[str, Any]] = []
    model.eval()
    with torch.no_grad():
        for sample in _progress(loader, len(mine)):
            detections = model([sample["image"].to(device).float()])[0]
            size = sample["image"].shape[-2:]
            found += coco_results(detections, size, sample, category_ids)
    everything = [r for part in processes.gather(found) for r in part]
    order = {record["image_id"]: i for i, record in enumerate(records)}
    return sorted(everything, key=lambda r: (order[r["image_id"]], -r["score"]))


def _progress(loader: Any, total: int) -> Iterator[Any]:
    if processes.rank() != 0:
        yield from loader
    elif sys.stderr.isatty():
        yield from tqdm(loader, total=total, unit="img", desc="evaluate", leave=False)
    else:
        said = time.monotonic()
        for i, sample in enumerate(loader):
            yield sample
            if time.monotonic() - said > _LOG_PERIOD:
                said = time.monotonic()
                logger.info("evaluated %d of %d images", i + 1, total)


def coco_results(
    detections: Mapping[str, Tensor],
    size: Sequence[int],
    record: Mapping[str, Any],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """One image's detections in COCO's result format, in pixels of the original image.

    Args:
        detections: what the model gives for an image of `size`.
        size: height and width of the image as the model saw it.
        record: ``image_id``, ``height`` and ``width`` of the original.
        category_ids: the JSON's category id of each contiguous id.
    """
    height, width = record["height"], record["width"]
    scale = detections["boxes"].new_tensor([width / size[1], height / size[0]] * 2)
    limit = detections["boxes"].new_tensor([width, height] * 2)
    boxes = torch.minimum((detections["boxes"] * scale).clamp(min=0), limit)
    keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    boxes = boxes[keep]
    scores, labels = (detections[k][keep].tolist() for k in ("scores", "labels"))
    results: list[dict[str, Any]] = [
        {
            "image_id": record["image_id"],
            "category_id": category_ids[label - 1],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for (x0, y0, x1, y1), label, score in zip(boxes.tolist(), labels, scores, strict=True)
    ]
    if "masks" in detections:
        pasted = paste_masks(detections["masks"][keep], boxes, height, width)
        for result, (window, left, top) in zip(results, pasted, strict=True):
            rle = encode(window, left, top, width, height)
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return results


def paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int
) -> "list[tuple[np.ndarray[Any, np.dtype[np.uint8]], int, int]]":
    """Masks within boxes in pixels of the image, sampled at their centres.

    Boxes of about the same size are pasted at a time.

    Args:
        masks: (N, S, S) probabilities.
        boxes: (N, 4) x0, y0, x1, y1 within the image, with fractions.
        height, width: of the image.

    Returns:
        For each the part of the image's bitmap that may hold the mask, uint8 of 0 and 1, and the
        column and the row of its corner.
    """
    low = (boxes[:, :2].long() - 1).clamp(min=0)
    high = torch.minimum(boxes[:, 2:].long() + 2, low.new_tensor([width, height]))
    sides = high - low
    windows: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
    for these in of_like_size(sides.amax(dim=1)):
        along = []
        for axis, most in enumerate(sides[these].amax(dim=0).tolist()):
            first, last = boxes[these, axis, None], boxes[these, axis + 2, None]
            centres = low[these, axis, None] + torch.arange(most, device=boxes.device) + 0.5
            along.append((centres - first) / (last - first) * 2 - 1)
        x, y = along
        shape = (len(these), y.shape[1], x.shape[1])
        grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=-1)
        inside = F.grid_sample(masks[these, None], grid, align_corners=False)[:, 0] >= 0.5
        windows |= zip(these.tolist(), inside.byte().cpu().numpy(), strict=True)
    corners_and_sides = torch.cat([low, sides], dim=1).tolist()
    return [
        (windows[i][:h, :w], left, top) for i, (left, top, w, h) in enumerate(corners_and_sides)
    ]
