"""All objects of a dataset as a few arrays, which is what section 3 counts.

COCO's training set has 860,001 objects. As arrays they take some 30 MB; as dataset dicts, some GB.
"""

from array import array
from collections.abc import Mapping, Sequence
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
    pasted: NDArray[np.bool_]
    """(N,) whether copy-paste put it there."""
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
            self.pasted[objects],
        )


class ObjectsBuilder:
    """Collects objects one by one; they may come in any order of images."""

    def __init__(self) -> None:
        self._sizes = array("i")
        self._image = array("i")
        self._boxes = array("d")
        self._areas = array("d")
        self._flags = array("b")
        self._crowds = 0

    def add_image(self, height: int, width: int) -> int:
        """Add an image; returns its index."""
        if height < 1 or width < 1:
            raise ValueError(f"an image of height {height} and width {width}")
        self._sizes.extend((height, width))
        return len(self._sizes) // 2 - 1

    def add(self, image: int, annotation: Mapping[str, Any]) -> None:
        """Add an annotation of the image with this index."""
        if annotation.get("iscrowd", 0):
            self._crowds += 1
            return
        x, y, a, b = annotation["bbox"]
        if annotation.get("bbox_mode", 1) == 0:  # XYXY
            a, b = a - x, b - y
        self._image.append(image)
        self._boxes.extend((x, y, a, b))
        self._areas.append(annotation["area"])
        self._flags.append(bool(annotation.get("segmentation")) + 2 * ("copy_paste" in annotation))

    def build(self) -> Objects:
        """The arrays of everything that was added."""
        sizes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)
        image = np.array(self._image, dtype=np.int32)
        order = np.argsort(image, kind="stable")
        # In single precision from here on, and added in it, because Detectron2 does so.
        boxes = np.array(self._boxes, dtype=np.float32).reshape(-1, 4)[order]
        boxes[:, 2:] += boxes[:, :2]
        flags = np.array(self._flags, dtype=np.int8)[order]
        return Objects(
            heights=sizes[:, 0].copy(),
            widths=sizes[:, 1].copy(),
            image=image[order],
            boxes=boxes,
            areas=np.array(self._areas, dtype=np.float64)[order],
            masked=(flags & 1).astype(bool),
            pasted=(flags & 2).astype(bool),
            crowds=self._crowds,
        )


def objects_of(records: Sequence[Mapping[str, Any]]) -> Objects:
    """The objects of M dataset dicts."""
    builder = ObjectsBuilder()
    for record in records:
        image = builder.add_image(record["height"], record["width"])
        for annotation in record["annotations"]:
            builder.add(image, annotation)
    return builder.build()
