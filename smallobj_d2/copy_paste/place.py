"""Sections 4 and 5.4: where a copy goes.

A position is valid if the copy lies ``margin`` pixels inside the image and none of its pixels
comes nearer than ``gap`` free pixels to any that another instance touches. `Placer.find` draws
uniformly from the valid positions, and finds one whenever one exists.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.copy_paste.shapes import Mask

_TRIES = 16
"""Positions drawn at once."""
_ROUNDS = 16
"""How often before all valid positions are listed instead."""


class Placer:
    """Finds room for copies in one image, and remembers what it has given away.

    Instances are drawn on the map of taken pixels when a candidate position first comes near
    them, so most never are, and the cost of a copy does not depend on the size of the image.

    Args:
        scene: the image's instances.
        margin: pixels between a copy and the border.
        gap: free pixels between a copy and any other instance.
        overlap: let copies lie over other instances and each other (Table 8).
    """

    def __init__(self, scene: Scene, *, margin: int, gap: int, overlap: bool = False) -> None:
        self._scene = scene
        self._margin, self._gap, self._overlap = margin, gap, overlap
        reach = gap + 1  # an outline may touch one pixel more than its box says
        self._low = np.floor(scene.boxes[:, :2]) - reach
        self._high = np.ceil(scene.boxes[:, 2:]) + reach
        self._drawn = np.zeros(len(scene.boxes), dtype=bool)
        # The frame lets a grown mask be laid over the map anywhere. Pages of a zeroed array cost
        # nothing until they are written to.
        self._taken: Mask = np.zeros((scene.height + 2 * gap, scene.width + 2 * gap), np.uint8)

    def find(self, mask: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
        """A valid position for the corner of a copy, ``(x, y)``, or None if there is none.

        Args:
            mask: (h, w) uint8 of 0 and 1, the copy's pixels.
            rng: source of randomness.
        """
        height, width = mask.shape
        columns = self._scene.width - 2 * self._margin - width + 1
        rows = self._scene.height - 2 * self._margin - height + 1
        if columns <= 0 or rows <= 0:
            return None
        span = (self._margin + columns, self._margin + rows)
        if self._overlap:
            x, y = rng.integers(self._margin, span).tolist()
            return x, y
        grown = self._grow(mask)
        for _ in range(_ROUNDS):
            corners = rng.integers(self._margin, span, size=(_TRIES, 2))
            near = (corners[:, None] < self._high) & (
                corners[:, None] + (width, height) > self._low
            )
            for (x, y), close in zip(corners.tolist(), near.all(axis=2), strict=True):
                if self._is_free(grown, x, y, close):
                    return x, y
        positions = self._all_free(grown, columns, rows)
        if not len(positions):
            return None
        y, x = divmod(int(positions[rng.integers(len(positions))]), columns)
        return x + self._margin, y + self._margin

    def take(self, mask: Mask, x: int, y: int) -> None:
        """Give a position away: no later copy may overlap this one."""
        height, width = mask.shape
        reach = self._gap + 1
        self._low = np.vstack([self._low, (x - reach, y - reach)])
        self._high = np.vstack([self._high, (x + width + reach, y + height + reach)])
        self._drawn = np.append(self._drawn, True)
        top, left = y + self._gap, x + self._gap
        self._taken[top : top + height, left : left + width] |= mask

    def _grow(self, mask: Mask) -> Mask:
        gap = self._gap
        if not gap:
            return mask
        padded = cv2.copyMakeBorder(mask, gap, gap, gap, gap, cv2.BORDER_CONSTANT, value=0)
        square = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
        grown: Mask = cv2.dilate(padded, square)
        return grown

    def _is_free(self, grown: Mask, x: int, y: int, close: NDArray[np.bool_]) -> bool:
        if not close.any():
            return True
        self._draw(close)
        height, width = grown.shape
        return not (self._taken[y : y + height, x : x + width] & grown).any()

    def _draw(self, wanted: NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(wanted & ~self._drawn).tolist():
            self._scene.shape(i).cover(self._taken, self._gap)
            self._drawn[i] = True

    def _all_free(self, grown: Mask, columns: int, rows: int) -> NDArray[np.int64]:
        """All valid positions as ``row * columns + column``, counted from the margin."""
        self._draw(~self._drawn)
        height, width = grown.shape
        inner = self._taken[self._margin :, self._margin :]
        inner = inner[: rows + height - 1, : columns + width - 1]
        # Correlation counts the taken pixels under the mask at every position.
        hits = cv2.matchTemplate(inner, grown, cv2.TM_CCORR)
        return np.flatnonzero(hits.ravel() < 0.5)
