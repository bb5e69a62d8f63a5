"""The instances of one image, each unpacked when it is first looked at."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste.shapes import Annotation, Shape, box_xyxy, shape_of


class Scene:
    """All instances of one image.

    Args:
        annotations: N instances, crowds included, as in Detectron2's dataset dicts. Boxes must
            hold their masks; `smallobj_d2.coco` sees to that.
        height, width: size of the image in pixels.
    """

    def __init__(self, annotations: Sequence[Annotation], height: int, width: int) -> None:
        self.annotations = annotations
        self.height, self.width = height, width
        self.boxes: NDArray[np.float64] = np.array(
            [box_xyxy(a) for a in annotations], dtype=np.float64
        ).reshape(-1, 4)
        """(N, 4) XYXY."""
        self._shapes: list[Shape | None] = [None] * len(annotations)

    def shape(self, i: int) -> Shape:
        """The shape of instance ``i``."""
        shape = self._shapes[i]
        if shape is None:
            shape = self._shapes[i] = shape_of(self.annotations[i])
        return shape

    def meeting(self, box: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the instances whose boxes meet a box (4,), XYXY."""
        b = self.boxes
        return np.flatnonzero(
            (b[:, 0] < box[2]) & (b[:, 1] < box[3]) & (b[:, 2] > box[0]) & (b[:, 3] > box[1])
        )
