"""Sections 4 and 5.4: where a copy goes.

A position is valid if the copy lies ``margin`` pixels inside the image, and if more than ``gap``
pixels lie between any pixel that it covers and any that another instance covers. "More", because
outlines can be turned into pixels in ways that differ by one: so with a gap of 0 masks are apart
in all of them, and COCO's masks are apart by ``gap`` pixels at least.

`Placer.find` chooses uniformly among the valid positions, and finds one whenever there is one.
The rule is the same for RLE, so a place that touches a neighbour without sharing a pixel is not
valid.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.masks.rle import Mask
from smallobj_d2.masks.shapes import Bitmap

_TRIES = 256
"""Random positions tried before all valid ones are listed instead."""
_BATCH = 16
"""Random positions generated at once."""
_CORRELATED = 256
"""Positions that a correlation looks at in the time that one takes to look at by itself."""


class Placer:
    """Finds free places for copies in one image, and remembers which are taken.

    Where a candidate position is near no instance's box it is valid. Otherwise the instances that
    it is near are rasterized on a map of taken pixels, and looked up there. Most instances never
    are, and the cost of a copy does not depend on the size of the image.

    Args:
        scene: the image's instances.
        margin: pixels between a copy and the border.
        gap: free pixels between the masks of a copy and of any other instance.
        overlap: let copies lie over other instances and each other (Table 8).
    """

    def __init__(self, scene: Scene, *, margin: int, gap: int, overlap: bool = False) -> None:
        self._scene = scene
        self._margin, self._overlap = margin, overlap
        self._reach = reach = gap + 1
        # In the coordinates of the frame around the map, which is as wide as masks are grown. A
        # mask may stick out of its box by a pixel.
        self._boxes = np.empty((4, len(scene.boxes)))
        self._boxes[:2] = np.floor(scene.boxes[:, :2].T) + reach - 1
        self._boxes[2:] = np.ceil(scene.boxes[:, 2:].T) + reach + 1
        self._copies: list[Bitmap] = []
        self._rasterized: set[int] = set()

    def find(self, covered: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
        """A valid position for the corner of a copy, ``(x, y)``, or None if there is none.

        Args:
            covered: (h, w) uint8 of 0 and 1, the pixels that the copy owns or covers.
            rng: source of randomness.
        """
        height, width = covered.shape
        columns = self._scene.width - 2 * self._margin - width + 1
        rows = self._scene.height - 2 * self._margin - height + 1
        if columns <= 0 or rows <= 0:
            return None
        corners = self._corners(columns, rows, rng)
        if self._overlap:
            return next(corners)
        grown = self._grow(covered)
        for x, y in islice(corners, _TRIES):
            if self._is_free(grown, x, y):
                return x, y
        positions = self._all_free(grown, columns, rows)
        if not len(positions):
            return None
        y, x = divmod(int(positions[rng.integers(len(positions))]), columns)
        return x + self._margin, y + self._margin

    def take(self, covered: Mask, x: int, y: int) -> None:
        """Take a position: no later copy may come near this one.

        Args:
            covered: as for `find`.
            x, y: where its corner goes.
        """
        height, width = covered.shape
        box = np.array([[x], [y], [x + width], [y + height]]) + self._reach
        self._boxes = np.concatenate([self._boxes, box], axis=1)
        crowded = len(self._rasterized) == len(self._scene.boxes) + len(self._copies)
        self._copies.append(Bitmap(covered, x, y))
        if crowded:
            self._rasterize([len(self._rasterized)])

    def _corners(
        self, columns: int, rows: int, rng: np.random.Generator
    ) -> Iterator[tuple[int, int]]:
        """Corners inside the margin without end, each of ``columns x rows`` equally likely."""
        while True:
            for u, v in rng.random((_BATCH, 2)).tolist():
                yield int(u * columns) + self._margin, int(v * rows) + self._margin

    def _grow(self, mask: Mask) -> Mask:
        r = self._reach
        height, width = mask.shape
        padded = np.zeros((height + 2 * r, width + 2 * r), np.uint8)
        padded[r:-r, r:-r] = mask
        # None is OpenCV's 3 x 3 kernel, which its stubs do not know.
        return np.asarray(cv2.dilate(padded, None, iterations=r), np.uint8)  # type: ignore[call-overload]

    def _is_free(self, grown: Mask, x: int, y: int) -> bool:
        """Whether a grown mask hits no instance."""
        height, width = grown.shape
        x0, y0, x1, y1 = self._boxes
        if len(self._rasterized) < len(x0):
            near = (x0 < x + width) & (y0 < y + height) & (x1 > x) & (y1 > y)
            indices = near.nonzero()[0].tolist()
            if not indices:
                return True
            self._rasterize(indices)
        return not (self._framed[y : y + height, x : x + width] & grown).any()

    @cached_property
    def _framed(self) -> Mask:
        """The map of taken pixels in a frame, so that a grown mask can be put anywhere on it."""
        frame = 2 * self._reach
        return np.zeros((self._scene.height + frame, self._scene.width + frame), np.uint8)

    def _rasterize(self, wanted: Iterable[int]) -> None:
        r, originals = self._reach, len(self._scene.boxes)
        for i in wanted:
            if i not in self._rasterized:
                shape = self._copies[i - originals] if i >= originals else self._scene.shape(i)
                shape.cover(self._framed[r:-r, r:-r])
                self._rasterized.add(i)

    def _all_free(self, grown: Mask, columns: int, rows: int) -> NDArray[np.int64]:
        """All valid positions as ``row * columns + column``, counted from the margin."""
        self._rasterize(range(self._boxes.shape[1]))
        height, width = grown.shape
        inner = self._framed[self._margin :, self._margin :]
        inner = inner[: rows + height - 1, : columns + width - 1]
        # In a full image there is no room even for the largest square inside the mask, which is
        # much faster to see. Its center is the pixel that is deepest in the mask.
        depths = cv2.distanceTransform(np.pad(grown, 1), cv2.DIST_C, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depths.argmax(), depths.shape)
        side = 2 * int(depths[y, x]) - 1
        hit = cv2.dilate(inner, np.ones((side, side), np.uint8))[y : y + rows, x : x + columns]
        positions = np.flatnonzero(hit.ravel() == 0)
        if len(positions) * _CORRELATED < hit.size:
            corners = (divmod(position, columns) for position in positions.tolist())
            free = [not (inner[y : y + height, x : x + width] & grown).any() for y, x in corners]
            return positions[free]
        # Correlation counts the taken pixels under the mask at every position.
        hits = cv2.matchTemplate(inner, grown, cv2.TM_CCORR)
        return np.flatnonzero(hits.ravel() < 0.5)
