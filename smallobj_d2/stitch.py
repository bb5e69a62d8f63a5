"""Beyond the paper: in place of an image several of them, shrunk and put side by side.

After Stitcher (Chen et al., 2020): what is large in an image is small in a quarter of one. It needs
neither masks nor small objects.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste.blend import Image
from smallobj_d2.copy_paste.labels import transformed
from smallobj_d2.datasets.records import PackedRecords
from smallobj_d2.masks.shapes import Annotation, Bitmap, Window, shape_of
from smallobj_d2.sampling import Draw

logger = logging.getLogger(__name__)

_STITCH = 6  # a stream of randomness; `augmentation` has the others
_LEAST = 4
"""Pixels that a shrunk object must own; below, there is nothing to be seen of it."""
_GREY = 128


@dataclass(frozen=True)
class Stitch:
    """Chooses the draws that are stitched, and the images that they show.

    Args:
        probability: the share of the draws.
        seed: the run's seed.
        grid: images across and down.
    """

    probability: float
    seed: int
    grid: int = 2

    @classmethod
    def from_config(cls, cfg: Any, seed: int) -> "Stitch | None":
        """What a config's ``SMALLOBJ`` node asks for, if it does; the seed is not negative."""
        s = cfg.SMALLOBJ
        return cls(s.STITCH_PROBABILITY, seed, s.STITCH_GRID) if s.STITCH_PROBABILITY else None

    def images(self, draw: Draw, count: int) -> list[int]:
        """Which of ``count`` images a draw shows, row by row: its own and others at random.

        There are none where the draw is not stitched.
        """
        rng = np.random.default_rng((self.seed, _STITCH, draw.position))
        if rng.random() >= self.probability:
            return []
        images: list[int] = rng.integers(count, size=self.grid**2).tolist()
        images[int(rng.integers(len(images)))] = draw.index
        return images

    def add_to(
        self, record: dict[str, Any], records: Sequence[Mapping[str, Any]] | PackedRecords
    ) -> None:
        """Give the dataset dict of a stitched draw those that it shows, as ``stitched``."""
        if shown := self.images(record["draw"], len(records)):
            record["stitched"] = [records[i] for i in shown]


def warn_of_no_stitching(cfg: Any, where: str) -> None:
    """Log that only training by this project's own loader can stitch, if a config asks for it."""
    if cfg.SMALLOBJ.STITCH_PROBABILITY:
        logger.warning("Without effect in %s: SMALLOBJ.STITCH_PROBABILITY.", where)


def read_stitched(record: dict[str, Any], read: Callable[[Mapping[str, Any]], Image]) -> Image:
    """The image of a dataset dict: its file, or the images of its ``stitched`` in one canvas.

    Args:
        record: a dataset dict; where it has ``stitched``, the dataset dicts of N x N images,
            its ``annotations`` are replaced by theirs.
        read: a dataset dict to its image, (h, w, 3) uint8, writable.

    Returns:
        (H, W, 3) uint8, of the size that the record says.
    """
    parts: Sequence[Mapping[str, Any]] | None = record.get("stitched")
    if not parts:
        return read(record)
    height, width = record["height"], record["width"]
    grid = int(len(parts) ** 0.5)
    canvas = np.full((height, width, 3), _GREY, np.uint8)
    annotations: list[Annotation] = []
    for k, part in enumerate(parts):
        (row, column), image = divmod(k, grid), read(part)
        y0, x0 = row * height // grid, column * width // grid
        cell = canvas[y0 : (row + 1) * height // grid, x0 : (column + 1) * width // grid]
        annotations += _shrink_into(cell, image, part["annotations"], (x0, y0), (height, width))
    record["annotations"] = annotations
    return canvas


def _shrink_into(
    cell: NDArray[np.uint8],
    image: Image,
    annotations: Sequence[Annotation],
    corner: tuple[int, int],
    canvas: tuple[int, int],
) -> list[Annotation]:
    """Put an image into the upper left of a cell, as large as it fits but never enlarged.

    Args:
        cell: (h, w, 3) uint8, a view of the canvas; written.
        image: (H, W, 3) uint8.
        annotations: of the image.
        corner: (x, y) of the cell in the canvas.
        canvas: its height and width.

    Returns:
        The annotations in the canvas, without those of which next to nothing is left.
    """
    height, width = image.shape[:2]
    scale = min(cell.shape[0] / height, cell.shape[1] / width, 1.0)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    cell[:rows, :columns] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    linear = np.diag([columns / width, rows / height])
    matrix = np.column_stack([linear, corner])
    inside = Window(*corner, columns, rows)
    moved = []
    for annotation in annotations:
        patch, mask, shape = shape_of(annotation, height, width).copy(linear)
        x, y = np.rint(matrix[:, 2] - patch[:, 2]).astype(int).tolist()
        shape = shape.moved(x, y)
        if isinstance(shape, Bitmap):  # whose edge may be rounded out of the canvas
            shape = Bitmap(shape.pixels(inside), inside.x, inside.y).trimmed()
            mask = shape.mask
        if np.count_nonzero(mask) >= _LEAST:
            moved.append(transformed(annotation, shape, matrix, canvas))
    return moved
