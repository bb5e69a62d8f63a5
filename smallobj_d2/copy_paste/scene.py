"""The instances of one image, each unpacked when it is first looked at."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import FARTHEST, Annotation, Shape, box_xyxy, shape_of


class Scene:
    """All instances of one image.

    Args:
        annotations: N instances, crowds included, as in Detectron2's dataset dicts. Boxes must
            hold their masks, give or take a pixel; `smallobj_d2.datasets.coco` sees to that.
        height, width: size of the image in pixels.

    Raises:
        SmallObjError: if a box or an area is missing, or a box is out of all bounds.
    """

    def __init__(self, annotations: Sequence[Annotation], height: int, width: int) -> None:
        for i, annotation in enumerate(annotations):
            if "bbox" not in annotation or "area" not in annotation:
                missing = sorted({"bbox", "area"} - annotation.keys())
                raise SmallObjError(
                    f"Annotation {i} has no {' and no '.join(missing)}. Copy-paste needs both; "
                    "smallobj_d2.load_coco reads them (Detectron2's loader drops `area`)."
                )
        self.annotations = annotations
        self.height, self.width = height, width
        self.boxes: NDArray[np.float64] = np.array(
            [box_xyxy(a) for a in annotations], dtype=np.float64
        ).reshape(-1, 4)
        """(N, 4) XYXY."""
        sane = (abs(self.boxes) < FARTHEST).all(axis=1)  # NaN is not
        if not sane.all():
            i = int(np.argmin(sane))
            raise SmallObjError(
                f"Annotation {i} has bbox {annotations[i]['bbox']}; its numbers must be finite and "
                f"below {FARTHEST:.0f}."
            )
        self._shapes: list[Shape | None] = [None] * len(annotations)

    def shape(self, i: int) -> Shape:
        """The shape of instance ``i``."""
        shape = self._shapes[i]
        if shape is None:
            try:
                shape = shape_of(self.annotations[i], self.height, self.width)
            except SmallObjError as e:
                raise SmallObjError(f"Annotation {i}: {e}") from e
            self._shapes[i] = shape
        return shape

    def neighbours(self, chosen: Sequence[int]) -> NDArray[np.bool_]:
        """(C, N): which instances' boxes meet the boxes of C of them, their own left out."""
        x0, y0, x1, y1 = self.boxes.T
        a0, b0, a1, b1 = self.boxes[chosen].T[:, :, None]
        meet: NDArray[np.bool_] = (x0 < a1) & (y0 < b1) & (x1 > a0) & (y1 > b0)
        meet[np.arange(len(chosen)), chosen] = False
        return meet
