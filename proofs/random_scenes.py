"""Random images and annotations of every kind that copy-paste has to cope with."""

from math import pi
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from smallobj_d2 import Jitter, SameImage, SourceRule

KINDS = ("polygon", "parts", "rle", "uncompressed", "box")


def star(rng, x, y, radius):
    """A polygon that may be round, spiky, or flat, around a point."""
    n = int(rng.integers(3, 14))
    angles = np.sort(rng.uniform(0, 2 * pi, n))
    radii = radius * rng.uniform(rng.choice([0.05, 0.5, 0.9]), 1, n)
    stretch = np.array([1, rng.choice([0.02, 0.3, 1, 1])])
    points = np.column_stack([np.cos(angles), np.sin(angles)]) * radii[:, None] * stretch
    turn = rng.uniform(0, 2 * pi)
    c, s = np.cos(turn), np.sin(turn)
    return points @ np.array([[c, s], [-s, c]]) + (x, y)


def outline(rng, height, width, radius):
    """Points of one polygon inside the image; some cross themselves, some lie on the grid."""
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    points = star(rng, x, y, radius)
    kind = rng.random()
    if kind < 0.15:  # a rectangle of whole pixels
        x0, y0 = np.floor([x, y])
        w, h = rng.integers(1, max(2, int(radius)), 2)
        points = np.array([(x0, y0), (x0 + w, y0), (x0 + w, y0 + h), (x0, y0 + h)], float)
    elif kind < 0.25:
        points = rng.permutation(points)
    elif kind < 0.35:
        points = np.round(points)
    elif kind < 0.5:
        points = np.round(points, 2)  # as COCO writes them
    return np.clip(points, 0, (width, height))


def rle_of(mask, *, compressed=True) -> dict[str, Any]:
    if compressed:
        return coco_mask.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    counts = np.diff(edges, prepend=0, append=len(flat)).tolist()
    return {"size": list(mask.shape), "counts": counts}


def raster(segmentation, height, width):
    """(H, W) uint8: a COCO segmentation on the whole image, by COCO's own tools."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
        return coco_mask.decode(segmentation)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))


def annotation_of(rng, parts, height, width, kind, **more) -> dict[str, Any]:
    """An annotation of one instance, with area and box as COCO counts them."""
    points = np.concatenate(parts)
    polygons = [p.ravel().tolist() for p in parts]
    mask = raster(polygons, height, width)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    mode = int(rng.integers(2))
    box = [x0, y0, x1, y1] if mode == 0 else [x0, y0, x1 - x0, y1 - y0]
    annotation = {
        "id": int(rng.integers(1 << 30)),
        "category_id": int(rng.integers(5)),
        "iscrowd": 0,
        "area": float(mask.sum()) if kind != "box" else float((x1 - x0) * (y1 - y0)),
        "bbox": [float(v) for v in box],
        "bbox_mode": mode,
        "track": {"of": ["the", "user"]},
    }
    if kind in ("polygon", "parts"):
        annotation["segmentation"] = polygons
    elif kind != "box":
        annotation["segmentation"] = rle_of(mask, compressed=kind == "rle")
    if rng.random() < 0.3:
        spots = rng.uniform((x0, y0), (x1 + 1e-3, y1 + 1e-3), (5, 2))
        seen = rng.integers(0, 3, 5)
        spots[seen == 0] = 0
        annotation["keypoints"] = np.column_stack([spots, seen]).ravel().tolist()
        annotation["num_keypoints"] = int((seen > 0).sum())
    return annotation | more


def random_scene(rng, *, kinds=KINDS, low=1, high=120, most=12):
    """An image (H, W, 3) of noise and up to ``most`` instances, of all sizes and kinds."""
    height, width = (int(v) for v in rng.integers(low, high, 2))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    annotations = []
    for _ in range(int(rng.integers(0, most + 1))):
        kind = str(rng.choice(kinds))
        radius = rng.choice([0.4, 2, 6, 12, 40])
        parts = [
            outline(rng, height, width, radius)
            for _ in range(int(rng.integers(2, 4)) if kind == "parts" else 1)
        ]
        crowd = int(kind != "box" and rng.random() < 0.1)
        annotations.append(annotation_of(rng, parts, height, width, kind, iscrowd=crowd))
    return image, annotations


def rectangle(x, y, width, height, **more) -> dict[str, Any]:
    """An annotation whose mask is a rectangle."""
    x1, y1 = x + width, y + height
    return {
        "bbox": [x, y, width, height],
        "bbox_mode": 1,
        "area": float(width * height),
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": [[x, y, x1, y, x1, y1, x, y1]],
    } | more


def random_options(rng) -> dict[str, Any]:
    """Arguments of CopyPaste, all at random, the defaults most often."""

    def one_of(*values):
        return values[rng.integers(len(values))]

    return {
        "strategy": one_of("single", "multiple", "all"),
        "copies": one_of(1, 2, 3),
        "multiple_share": one_of(0.01, 0.5, 1),
        "margin": one_of(5, 5, 0),
        "gap": one_of(1, 1, 0, 2),
        "blur": one_of(0, 0, 0, 3, 5),
        "allow_overlap": one_of(False, False, True),
        "covered_labels": one_of("visible", "visible", "untouched"),
        "max_pastes": one_of(300, 300, 300, 2),
        "sources": SameImage(
            SourceRule(
                connected=one_of(True, False),
                inside=one_of(True, False),
                max_covered=one_of(0.1, 0, 1),
                boxes=one_of(True, False),
            )
        ),
        "jitter": one_of(Jitter(), Jitter(), Jitter((0.3, 3), (-180, 180))),
    }
