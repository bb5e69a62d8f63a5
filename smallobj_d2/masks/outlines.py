"""Masks to polygons that are the same masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely
from pycocotools import mask as coco_mask

from smallobj_d2.masks.rle import decode


def outline_of(rle: Mapping[str, Any]) -> list[list[float]]:
    """The outline of a mask along the edges of its pixels, as COCO polygons; holes are filled.

    But for holes, pycocotools makes the same mask of it again. (An outline through the centers of
    pixels, such as OpenCV's, loses a pixel of the width and one of the height.)

    Args:
        rle: COCO's ``size`` and ``counts``.
    """
    x, y, width, height = map(int, coco_mask.toBbox(rle).tolist())
    inside = np.pad(decode(rle, x, y, width, height), ((1, 1), (0, 0))).astype(np.int8)
    edges = np.diff(inside, axis=0).T
    column, top = (edges == 1).nonzero()
    bottom = (edges == -1).nonzero()[1]
    runs = shapely.box(x + column, y + top, x + column + 1, y + bottom)
    merged = shapely.union_all(runs)
    parts = [] if merged.is_empty else getattr(merged, "geoms", [merged])
    return [shapely.get_coordinates(part.exterior)[:-1].ravel().tolist() for part in parts]
