"""Sections 4 and 5.3: which small objects of an image are copied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from fvcore.common.registry import Registry

from smallobj_d2.copy_paste.checks import require
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.copy_paste.shapes import Window
from smallobj_d2.sizes import SMALL_AREA, is_small

Strategy = Callable[[list[int], float, np.random.Generator], Sequence[int]]

STRATEGIES: "Registry[str, Strategy]" = Registry("STRATEGY")
"""Functions ``(candidates, share, rng) -> chosen``, looked up by ``SMALLOBJ.STRATEGY``.

``candidates`` are indices of annotations, never empty; ``share`` is ``SMALLOBJ.MULTIPLE_SHARE``.
"""


def single(candidates: list[int], share: float, rng: np.random.Generator) -> Sequence[int]:
    """One small object (Table 5)."""
    return [candidates[rng.integers(len(candidates))]]


def multiple(candidates: list[int], share: float, rng: np.random.Generator) -> Sequence[int]:
    """Several small objects (Table 6): a share of them, rounded up, two at least if there are."""
    n = ceil(round(share * len(candidates), 6))  # 0.07 times 100 is a little more than 7
    n = min(len(candidates), max(2, n))
    return [candidates[i] for i in rng.permutation(len(candidates))[:n]]


def every(candidates: list[int], share: float, rng: np.random.Generator) -> Sequence[int]:
    """Each small object (Tables 4 and 7)."""
    return candidates


for _name, _strategy in (("single", single), ("multiple", multiple), ("all", every)):
    STRATEGIES._do_register(_name, _strategy)


@dataclass(frozen=True)
class SourceRule:
    """Which instances may be copied: small ones, no crowds, with a mask, not occluded.

    Whatever the criteria, an object without area or reaching out of the image is never copied:
    there are no pixels to copy.

    Args:
        small_area: upper limit of ``area``, in pixels of the original image.
        connected: the mask must be one connected piece, as a single polygon is.
        inside: at least a pixel must lie between the object and each border of the image.
        max_covered: the share of its mask that other instances may claim; 1 allows all.
        boxes: accept instances without a mask (not in the paper).
    """

    small_area: float = SMALL_AREA
    connected: bool = True
    inside: bool = True
    max_covered: float = 0.1
    boxes: bool = False

    def __post_init__(self) -> None:
        require(self.small_area > 0, "SMALL_AREA", self.small_area, "must be above 0")
        require(0 <= self.max_covered <= 1, "MAX_COVERED", self.max_covered, "is a share, 0 to 1")

    def candidates(self, scene: Scene) -> list[int]:
        """Indices of the instances of an image that may be copied, in their order."""
        return [
            i
            for i, annotation in enumerate(scene.annotations)
            if is_small(annotation, self.small_area)
            and annotation["area"] > 0
            and (annotation.get("segmentation") or self.boxes)
            and self._is_inside(scene, i)
            and (not self.connected or scene.shape(i).is_connected())
            and (self.max_covered >= 1 or self._is_uncovered(scene, i))
        ]

    def _is_inside(self, scene: Scene, i: int) -> bool:
        x0, y0, x1, y1 = scene.boxes[i].tolist()
        away = 1 if self.inside else -0.5  # half a pixel outside owns no pixel there
        return bool(min(x0, y0) >= away and x1 <= scene.width - away and y1 <= scene.height - away)

    def _is_uncovered(self, scene: Scene, i: int) -> bool:
        near = [j for j in scene.meeting(scene.boxes[i]).tolist() if j != i]
        if not near:
            return True
        shape = scene.shape(i)
        window = Window.around(*shape.bounds())
        claimed = np.zeros((window.height, window.width), np.uint8)
        for j in near:
            claimed |= scene.shape(j).centres(window)
        if not claimed.any():
            return True
        own = shape.pixels(window)
        return np.count_nonzero(own & claimed) <= self.max_covered * np.count_nonzero(own)
