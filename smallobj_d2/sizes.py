"""Table 1 of the paper: what small, medium and large mean.

COCO measures an object by the area of its mask in pixels of the original image, not by its box, and
so does everything here.
"""

from collections.abc import Mapping
from math import inf
from typing import Any

SMALL_AREA = 32.0**2
"""Upper limit (exclusive) of a small object's area, in pixels of the original image."""

MEDIUM_AREA = 96.0**2
"""Upper limit (exclusive) of a medium object's area."""

BANDS: dict[str, tuple[float, float]] = {
    "small": (0.0, SMALL_AREA),
    "medium": (SMALL_AREA, MEDIUM_AREA),
    "large": (MEDIUM_AREA, inf),
}
"""Each band of Table 1 as ``[lowest, highest)`` area."""


def is_small(annotation: Mapping[str, Any], limit: float = SMALL_AREA) -> bool:
    """Whether an annotation is a small object: no crowd, and ``area`` below ``limit``."""
    return not annotation.get("iscrowd", 0) and annotation["area"] < limit


def has_small(annotations: list[Any], limit: float = SMALL_AREA) -> bool:
    """Whether these annotations of one image make it a *small-object image*."""
    return any(is_small(a, limit) for a in annotations)
