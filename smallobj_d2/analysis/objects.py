"""All objects of a dataset as a few arrays, which is what section 3 counts.

COCO's training set has 860,001 objects. As arrays they take some 30 MB; as dataset dicts, some GB.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.sizes import MEDIUM_AREA, SMALL_AREA


@dataclass(frozen=True)
class Objects:
    """N objects in M images; crowds are left out, as in training."""

    heights: NDArray[np.int32]
    """(M,) pixels."""
    widths: NDArray[np.int32]
    """(M,) pixels."""
    image: NDArray[np.int32]
    """(N,) the image each object is in, never descending."""
    boxes: NDArray[np.float32]
    """(N, 4) XYXY in pixels of the original image."""
    areas: NDArray[np.float64]
    """(N,) mask area in pixels of the original image."""
    masked: NDArray[np.bool_]
    """(N,) whether the object has a mask."""
    crowds: int = 0
    """How many crowd annotations were left out."""

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_images(self) -> int:
        return len(self.heights)

    def bands(self, small_area: float = SMALL_AREA) -> NDArray[np.int8]:
        """(N,) 0 for small, 1 for medium, 2 for large (Table 1)."""
        limits = [small_area, max(small_area, MEDIUM_AREA)]
        return np.digitize(self.areas, limits).astype(np.int8)

    def ranges(self) -> NDArray[np.int64]:
        """(M + 1,) where each image's objects begin; the last entry is N."""
        return np.searchsorted(self.image, np.arange(self.num_images + 1))

    def images(self, chosen: Sequence[int] | NDArray[np.int64]) -> "Objects":
        """The objects of some images, which may be named in any order and repeatedly."""
        index = np.asarray(chosen, dtype=np.int64)
        ranges = self.ranges()
        first, counts = ranges[index], np.diff(ranges)[index]
        image = np.repeat(np.arange(len(index), dtype=np.int32), counts)
        at = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
        objects = np.repeat(first, counts) + at
        return Objects(
            self.heights[index],
            self.widths[index],
            image,
            self.boxes[objects],
            self.areas[objects],
            self.masked[objects],
        )


def objects_of(records: Iterable[Mapping[str, Any]]) -> Objects:
    """The objects of dataset dicts, which are read one after the other."""
    sizes, image = array("i"), array("i")
    boxes, areas = array("d"), array("d")
    masked = array("b")
    crowds = 0
    for number, record in enumerate(records):
        sizes.extend((record["height"], record["width"]))
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                crowds += 1
                continue
            x, y, a, b = annotation["bbox"]
            if annotation.get("bbox_mode", 1) == 0:  # XYXY
                a, b = a - x, b - y
            image.append(number)
            boxes.extend((x, y, a, b))
            areas.append(annotation["area"])
            masked.append(bool(annotation.get("segmentation")))
    heights, widths = np.array(sizes, dtype=np.int32).reshape(-1, 2).T
    # In single precision from here on, and added in it, because Detectron2 does so.
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Objects(
        heights=heights.copy(),
        widths=widths.copy(),
        image=np.array(image, dtype=np.int32),
        boxes=corners,
        areas=np.array(areas, dtype=np.float64),
        masked=np.array(masked, dtype=bool),
        crowds=crowds,
    )
