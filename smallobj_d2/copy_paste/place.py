"""Sections 4 and 5.4: where a copy goes.

A position is valid if the copy lies ``margin`` pixels inside the image, and if more than ``gap``
pixels lie between any pixel that it covers and any that another instance covers. "More", because
outlines can be turned into pixels in ways that differ by one: so with a gap of 0 masks are apart
in all of them, and COCO's masks are apart by ``gap`` pixels at least.

`Placer.find` draws uniformly from the valid positions, and finds one whenever there is one.
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
        gap: free pixels between the masks of a copy and of any other instance.
        overlap: let copies lie over other instances and each other (Table 8).
    """

    def __init__(self, scene: Scene, *, margin: int, gap: int, overlap: bool = False) -> None:
        self._scene = scene
        self._margin, self._overlap = margin, overlap
        self._reach = reach = gap + 1
        # A mask may stick out of its box by a pixel.
        self._low = np.floor(scene.boxes[:, :2]) - reach - 1
        self._high = np.ceil(scene.boxes[:, 2:]) + reach + 1
        self._drawn = np.zeros(len(scene.boxes), dtype=bool)
        # The frame lets a grown mask be laid over the map anywhere. Pages of a zeroed array cost
        # nothing until they are written to.
        self._framed = np.zeros((scene.height + 2 * reach, scene.width + 2 * reach), np.uint8)
        self._taken: Mask = self._framed[reach:-reach, reach:-reach]

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
        if self._overlap:
            x, y = self._corners(1, columns, rows, rng)[0].tolist()
            return x, y
        grown = self._grow(covered)
        for _ in range(_ROUNDS):
            corners = self._corners(_TRIES, columns, rows, rng)
            at = corners[:, None]
            near = ((at < self._high) & (at + (width, height) > self._low)).all(axis=2)
            near &= ~self._drawn
            for (x, y), undrawn, any_undrawn in zip(
                corners.tolist(), near, near.any(axis=1).tolist(), strict=True
            ):
                if any_undrawn:
                    self._draw(undrawn)
                if self._is_free(grown, x, y):
                    return x, y
        positions = self._all_free(grown, columns, rows)
        if not len(positions):
            return None
        y, x = divmod(int(positions[rng.integers(len(positions))]), columns)
        return x + self._margin, y + self._margin

    def take(self, covered: Mask, x: int, y: int) -> None:
        """Give a position away: no later copy may come near this one.

        Args:
            covered: as for `find`.
            x, y: where its corner goes.
        """
        height, width = covered.shape
        self._taken[y : y + height, x : x + width] |= covered

    def _corners(
        self, count: int, columns: int, rows: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """(count, 2) corners inside the margin, each of ``columns x rows`` equally likely."""
        return (rng.random((count, 2)) * (columns, rows)).astype(np.int64) + self._margin

    def _grow(self, mask: Mask) -> Mask:
        r = self._reach
        padded = cv2.copyMakeBorder(mask, r, r, r, r, cv2.BORDER_CONSTANT, value=0)
        square = np.ones((2 * r + 1, 2 * r + 1), np.uint8)
        grown: Mask = cv2.dilate(padded, square)
        return grown

    def _is_free(self, grown: Mask, x: int, y: int) -> bool:
        height, width = grown.shape
        return not cv2.countNonZero(self._framed[y : y + height, x : x + width] & grown)

    def _draw(self, wanted: NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(wanted & ~self._drawn).tolist():
            self._scene.shape(i).cover(self._taken)
            self._drawn[i] = True

    def _all_free(self, grown: Mask, columns: int, rows: int) -> NDArray[np.int64]:
        """All valid positions as ``row * columns + column``, counted from the margin."""
        self._draw(~self._drawn)
        height, width = grown.shape
        inner = self._framed[self._margin :, self._margin :]
        inner = inner[: rows + height - 1, : columns + width - 1]
        # Correlation counts the taken pixels under the mask at every position.
        hits = cv2.matchTemplate(inner, grown, cv2.TM_CCORR)
        return np.flatnonzero(hits.ravel() < 0.5)
