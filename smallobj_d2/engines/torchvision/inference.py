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
        packed, sampler=mine, batch_size=None, collate_fn=of_one, num_workers=num_workers
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
    boxes = torch.minimum((detections["boxes"] * scale).clamp(min=0), limit).cpu()
    keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1).nonzero().flatten().tolist()
    scores, labels = detections["scores"].tolist(), detections["labels"].tolist()
    masks = detections.get("masks")
    results = []
    for i in keep:
        x0, y0, x1, y1 = boxes[i].tolist()
        result = {
            "image_id": record["image_id"],
            "category_id": category_ids[labels[i] - 1],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": scores[i],
        }
        if masks is not None:
            window, left, top = paste_mask(masks[i], (x0, y0, x1, y1), height, width)
            rle = encode(window, left, top, width, height)
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        results.append(result)
    return results


def paste_mask(
    mask: Tensor, box: tuple[float, float, float, float], height: int, width: int
) -> "tuple[np.ndarray[Any, np.dtype[np.uint8]], int, int]":
    """A mask within a box in pixels of the image, sampled at their centres.

    Args:
        mask: (S, S) probabilities.
        box: x0, y0, x1, y1 in pixels, with fractions.
        height, width: of the image.

    Returns:
        The part of the image's bitmap that may hold the mask, uint8 of 0 and 1, and the column and
        the row of its corner.
    """
    x0, y0, x1, y1 = box
    left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
    right, bottom = min(int(x1) + 2, width), min(int(y1) + 2, height)
    x = (torch.arange(left, right, device=mask.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(top, bottom, device=mask.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    inside = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= 0.5
    return inside.cpu().numpy().astype(np.uint8), left, top
