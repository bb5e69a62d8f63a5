"""A small scene as arrays, as other libraries have it, and the law that masks are apart."""

from collections import Counter

import numpy as np

from proofs.copy_paste_laws import check_apart
from proofs.random_scenes import raster, rle_of

__all__ = ["raster"]
HEIGHT, WIDTH = 90, 110
PLACES = ((9, 12, 10, 8), (40, 30, 7, 9), (60, 45, 40, 35), (44, 32, 9, 11))
"""x, y, width, height of rectangles. Only the first is copied: two overlap, one is not small."""


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def masks(dtype=np.uint8) -> np.ndarray:
    """(4, H, W) of 0 and 1."""
    all_masks = np.zeros((len(PLACES), HEIGHT, WIDTH), dtype)
    for mask, (x, y, w, h) in zip(all_masks, PLACES, strict=True):
        mask[y : y + h, x : x + w] = 1
    return all_masks


def boxes() -> list[list[int]]:
    """XYXY."""
    return [[x, y, x + w, y + h] for x, y, w, h in PLACES]


def tight(mask: np.ndarray) -> list[float]:
    """The XYXY box of a mask."""
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def require_apart(after, originals=4, gap=0) -> int:
    """Assert that copies overlap nothing; returns how many there are.

    Args:
        after: (M, H, W), masks of the originals, then of the copies.
    """
    masks = np.asarray(after).astype(np.uint8)
    annotations = [{"segmentation": rle_of(m)} for m in masks]
    counts: Counter = Counter()

    def law(name, holds, detail=""):
        counts[name] += 1
        assert holds, (name, detail)

    copies = annotations[originals:]
    check_apart(law, annotations[:originals], copies, gap, *masks.shape[1:])
    assert counts or not copies
    return len(copies)
