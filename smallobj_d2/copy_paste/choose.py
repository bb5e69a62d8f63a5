"""Sections 4 and 5.3: which small objects of an image are copied."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from math import ceil
from typing import overload

import numpy as np
from fvcore.common.registry import Registry
from numpy.typing import NDArray

from smallobj_d2.copy_paste.checks import require
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.masks.shapes import Centres, Window
from smallobj_d2.sizes import SMALL_AREA, is_small


class Candidates(Sequence[int]):
    """The objects of an image that may be copied: indices of annotations, in their order.

    Whether an object may be is found out when it first matters, because that costs time. `pick`
    looks at few objects; everything else at all of them.

    Args:
        possible: indices in their order, among them all that may be copied.
        allowed: whether an index may.
    """

    def __init__(self, possible: list[int], allowed: Callable[[int], bool]) -> None:
        self._possible, self._allowed = possible, cache(allowed)

    def pick(self, n: int, rng: np.random.Generator) -> list[int]:
        """So many of them, in random order, or all if there are fewer."""
        order = rng.permutation(self._possible).tolist()
        return list(islice(filter(self._allowed, order), n))

    def __iter__(self) -> Iterator[int]:
        return filter(self._allowed, self._possible)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return list(iter(self))[index]


Strategy = Callable[[Candidates, float, np.random.Generator], Sequence[int]]

STRATEGIES: "Registry[str, Strategy]" = Registry("STRATEGY")
"""Functions ``(candidates, share, rng) -> chosen``, looked up by ``SMALLOBJ.STRATEGY``.

``candidates`` are indices of annotations, perhaps none; ``share`` is ``SMALLOBJ.MULTIPLE_SHARE``.
"""


def single(candidates: Candidates, share: float, rng: np.random.Generator) -> Sequence[int]:
    """One small object (Table 5)."""
    return candidates.pick(1, rng)


def multiple(candidates: Candidates, share: float, rng: np.random.Generator) -> Sequence[int]:
    """Several small objects (Table 6): a share of them, rounded up, two at least if there are."""
    n = ceil(round(share * len(candidates), 6))  # 0.07 times 100 is a little more than 7
    return candidates.pick(max(2, n), rng)


def every(candidates: Candidates, share: float, rng: np.random.Generator) -> Sequence[int]:
    """Each small object (Tables 4 and 7)."""
    return list(iter(candidates))


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

    def candidates(self, scene: Scene) -> Candidates:
        """The instances of an image that may be copied."""
        possible = [
            i
            for i, (annotation, box) in enumerate(
                zip(scene.annotations, scene.boxes.tolist(), strict=True)
            )
            if is_small(annotation, self.small_area)
            and annotation["area"] > 0
            and (annotation.get("segmentation") or self.boxes)
            and self._is_inside(box, scene)
        ]
        near = dict(zip(possible, scene.neighbours(possible), strict=True))

        def allowed(i: int) -> bool:
            return (not self.connected or scene.shape(i).is_connected()) and (
                self.max_covered >= 1 or self._is_uncovered(scene, i, near[i])
            )

        return Candidates(possible, allowed)

    def _is_inside(self, box: Sequence[float], scene: Scene) -> bool:
        x0, y0, x1, y1 = box
        away = 1 if self.inside else -0.5  # half a pixel outside owns no pixel there
        return min(x0, y0) >= away and x1 <= scene.width - away and y1 <= scene.height - away

    def _is_uncovered(self, scene: Scene, i: int, near: NDArray[np.bool_]) -> bool:
        others = near.nonzero()[0].tolist()
        if not others:
            return True
        shape = scene.shape(i)
        window = Window.around(*shape.bounds())
        claimed = Centres(window)
        for j in others:
            scene.shape(j).mark(claimed)
        if not claimed.mask.any():
            return True
        own = shape.pixels(window)
        covered = np.count_nonzero(own & claimed.mask)
        return covered <= self.max_covered * np.count_nonzero(own)
