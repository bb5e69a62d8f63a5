"""Sections 4 and 5.3: which small objects of an image are copied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from fvcore.common.registry import Registry
from numpy.typing import NDArray

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
    n = min(len(candidates), max(2, ceil(share * len(candidates))))
    return [candidates[i] for i in rng.permutation(len(candidates))[:n]]


def every(candidates: list[int], share: float, rng: np.random.Generator) -> Sequence[int]:
    """Each small object (Tables 4 and 7)."""
    return candidates


for _name, _strategy in (("single", single), ("multiple", multiple), ("all", every)):
    STRATEGIES._do_register(_name, _strategy)


@dataclass(frozen=True)
class SourceRule:
    """Which instances may be copied: small ones, no crowds, with a mask, not occluded.

    Args:
        small_area: upper limit of ``area``, in pixels of the original image.
        connected: the mask must be one connected piece.
        inside: the image border must not cut the object off.
        max_covered: the share of its mask that other instances may claim; 1 allows all.
        boxes: accept instances without a mask (not in the paper).
    """

    small_area: float = SMALL_AREA
    connected: bool = True
    inside: bool = True
    max_covered: float = 0.1
    boxes: bool = False

    def candidates(self, scene: Scene) -> list[int]:
        """Indices of the instances of an image that may be copied, in their order."""
        return [
            i
            for i, annotation in enumerate(scene.annotations)
            if is_small(annotation, self.small_area)
            and (annotation.get("segmentation") or self.boxes)
            and (not self.inside or _is_inside(scene, i))
            and (not self.connected or scene.shape(i).is_connected())
            and (self.max_covered >= 1 or self._is_uncovered(scene, i))
        ]

    def _is_uncovered(self, scene: Scene, i: int) -> bool:
        near = scene.meeting(scene.boxes[i])
        if len(near) == 1:  # the object itself
            return True
        window = Window.around(*scene.boxes[i].tolist())
        claimed = np.zeros((window.height, window.width), np.uint8)
        for j in near.tolist():
            if j != i:
                claimed |= scene.shape(j).centres(window)
        if not claimed.any():
            return True
        own = scene.shape(i).pixels(window)
        return np.count_nonzero(own & claimed) <= self.max_covered * np.count_nonzero(own)


def _is_inside(scene: Scene, i: int) -> bool:
    """Whether a pixel at least lies between the object and each border of the image."""
    x0, y0, x1, y1 = scene.boxes[i].tolist()
    return x0 >= 1 and y0 >= 1 and x1 <= scene.width - 1 and y1 <= scene.height - 1
