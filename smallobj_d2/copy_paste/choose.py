"""Sections 4 and 5.3: which small objects of an image are copied."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from math import ceil
from typing import Any, overload

import numpy as np

from smallobj_d2.copy_paste.blend import Image
from smallobj_d2.copy_paste.checks import require
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.masks.rle import Mask
from smallobj_d2.masks.shapes import Annotation, Centres, Shape, Window, has_mask
from smallobj_d2.registry import Registry
from smallobj_d2.sizes import SMALL_AREA, is_small


class Candidate:
    """An object that may be copied.

    Args:
        annotation: its annotation.
        shape: gives its shape, in the annotation's coordinates.
        origin: where it comes from, for the label of a copy: ``source``, its place in the image's
            list of annotations; or what an `ObjectBank` says.
        pixels: (h, w, 3) uint8, what copies are cut from, in the annotation's coordinates; None for
            the image that is augmented.
        corner: (x, y), where these pixels lie in the image that the object comes from.
    """

    def __init__(
        self,
        annotation: Annotation,
        shape: Callable[[], Shape],
        origin: Mapping[str, Any],
        pixels: Image | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        self.annotation, self.origin = annotation, origin
        self.pixels, self.corner = pixels, corner
        self._shape = shape

    @property
    def shape(self) -> Shape:
        """Its shape, unpacked when it is first asked for."""
        return self._shape()


class Candidates(Sequence[Candidate]):
    """The objects that may be copied, in the order of their annotations.

    Whether an object may be copied is found out when it first matters, because that costs time.
    `pick` looks at few objects; everything else at all of them.

    Args:
        possible: numbers in their order, among them those of all that may be copied.
        allowed: whether the object of a number may.
        candidate: the object of a number.
    """

    def __init__(
        self,
        possible: Sequence[int],
        allowed: Callable[[int], bool],
        candidate: Callable[[int], Candidate],
    ) -> None:
        self._possible, self._allowed, self._candidate = possible, cache(allowed), cache(candidate)

    def pick(self, n: int, rng: np.random.Generator) -> list[Candidate]:
        """So many of them, in random order, or all if there are fewer."""
        order = rng.permutation(self._possible).tolist()
        return [self._candidate(i) for i in islice(filter(self._allowed, order), n)]

    def __iter__(self) -> Iterator[Candidate]:
        return map(self._candidate, filter(self._allowed, self._possible))

    def __bool__(self) -> bool:
        return any(map(self._allowed, self._possible))

    def __len__(self) -> int:
        return sum(map(self._allowed, self._possible))

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> list[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | list[Candidate]:
        return list(self)[index]


Strategy = Callable[[Candidates, np.random.Generator], Sequence[Candidate]]
"""Chooses among the candidates, of which there may be none; the generator is the draw's."""

STRATEGIES: Registry[Strategy] = Registry("strategy", "SMALLOBJ.STRATEGY")
"""Strategies by name; ``SMALLOBJ.STRATEGY`` chooses."""


@STRATEGIES.register()
def single(candidates: Candidates, rng: np.random.Generator) -> Sequence[Candidate]:
    """One small object (Table 5)."""
    return candidates.pick(1, rng)


@STRATEGIES.register()
def multiple(
    candidates: Candidates, rng: np.random.Generator, share: float = 0.5
) -> Sequence[Candidate]:
    """Several small objects (Table 6): a share of them, rounded up, two at least if there are."""
    n = ceil(round(share * len(candidates), 6))  # 0.07 times 100 is a little more than 7
    return candidates.pick(max(2, n), rng)


@STRATEGIES.register("all")
def every(candidates: Candidates, rng: np.random.Generator) -> Sequence[Candidate]:
    """Each small object (Tables 4 and 7)."""
    return list(candidates)


@dataclass(frozen=True)
class SourceRule:
    """Which instances may be copied: small ones, no crowds, with a mask, not occluded.

    Whatever the criteria, an object without area or reaching out of the image is never copied:
    there are no pixels to copy.

    Args:
        small_area: upper limit of ``area``, in pixels of the original image.
        connected: the mask must be one connected piece. A single polygon counts as one, though its
            pixels may fall apart where it is thinner than a pixel; unless it comes to a point
            twice, as parts do that were joined by lines (YOLO has one polygon for each object).
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

    @classmethod
    def from_config(cls, cfg: Any) -> "SourceRule":
        """The rule of a config's ``SMALLOBJ`` node."""
        s = cfg.SMALLOBJ
        return cls(
            small_area=s.SMALL_AREA,
            connected=s.REQUIRE_CONNECTED,
            inside=s.REQUIRE_INSIDE,
            max_covered=s.MAX_COVERED,
            boxes=s.PASTE_BOXES,
        )

    def candidates(self, scene: Scene) -> Candidates:
        """The instances of an image that may be copied."""
        possible = [
            i
            for i, (annotation, box) in enumerate(
                zip(scene.annotations, scene.boxes.tolist(), strict=True)
            )
            if is_small(annotation, self.small_area)
            and annotation["area"] > 0
            and (self.boxes or has_mask(annotation))
            and self._is_inside(box, scene)
        ]
        neighbours = scene.neighbours(possible)

        def allowed(i: int) -> bool:
            shape = scene.shape(i)
            return (
                self._is_inside(shape.bounds(), scene)  # its box may be short of a pixel
                and (not self.connected or shape.is_connected())
                and (self.max_covered >= 1 or self._is_uncovered(scene, i, neighbours(i)))
            )

        def candidate(i: int) -> Candidate:
            return Candidate(scene.annotations[i], partial(scene.shape, i), {"source": i})

        return Candidates(possible, allowed, candidate)

    def _is_inside(self, box: Sequence[float], scene: Scene) -> bool:
        x0, y0, x1, y1 = box
        away = 1 if self.inside else -0.5  # half a pixel outside owns no pixel there
        return min(x0, y0) >= away and x1 <= scene.width - away and y1 <= scene.height - away

    def _is_uncovered(self, scene: Scene, i: int, others: Iterable[list[int]]) -> bool:
        claimed: Centres | None = None
        own: Mask | None = None
        for batch in others:
            if not batch:
                continue
            if claimed is None:
                claimed = Centres(Window.around(*scene.shape(i).bounds()))
            for j in batch:
                scene.shape(j).mark(claimed)
            if not claimed.mask.any():
                continue
            if own is None:
                own = scene.shape(i).pixels(claimed.window)
            covered = np.count_nonzero(own & claimed.mask)
            if covered > self.max_covered * np.count_nonzero(own):
                return False  # and more neighbours would only cover more
        return True
