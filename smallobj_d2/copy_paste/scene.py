"""The instances of one image, each unpacked when it is first looked at."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import FARTHEST, Annotation, Shape, box_xyxy, shape_of

_AT_ONCE = 1 << 22
"""Pairs of instances compared in one table."""
_FIRST = 1024
"""Instances looked at before the index is asked."""


class Scene:
    """All instances of one image.

    Args:
        annotations: N instances, crowds included, as in Detectron2's dataset dicts. Boxes must
            hold their masks, give or take a pixel: loaders see to that, and `hold` does.
        height, width: size of the image in pixels.

    Raises:
        SmallObjError: if a box or an area is missing, or a box is out of all bounds.
    """

    def __init__(self, annotations: Sequence[Annotation], height: int, width: int) -> None:
        for i, annotation in enumerate(annotations):
            if annotation.get("bbox") is None or annotation.get("area") is None:
                missing = [key for key in ("area", "bbox") if annotation.get(key) is None]
                raise SmallObjError(
                    f"Annotation {i} has no {' and no '.join(missing)}. Copy-paste needs both: "
                    "`area` is that of the mask in pixels (smallobj_d2.load_coco reads it, "
                    "Detectron2's loader drops it)."
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
        return self._shapes[i] or self._unpack(i, in_box=True)

    def hold(self, i: int) -> Shape:
        """The shape of instance ``i``, whose box is widened to hold its mask."""
        shape = self._unpack(i, in_box=False)
        bounds = np.array(shape.bounds())
        if (bounds[:2] < bounds[2:]).all():
            np.minimum(self.boxes[i, :2], bounds[:2], out=self.boxes[i, :2])
            np.maximum(self.boxes[i, 2:], bounds[2:], out=self.boxes[i, 2:])
        return shape

    def _unpack(self, i: int, *, in_box: bool) -> Shape:
        try:
            shape = shape_of(self.annotations[i], self.height, self.width, in_box=in_box)
        except SmallObjError as e:
            raise SmallObjError(f"Annotation {i}: {e}") from e
        self._shapes[i] = shape
        return shape

    def neighbours(self, chosen: Sequence[int]) -> Callable[[int], Iterable[list[int]]]:
        """A function of one of some instances: the others whose boxes meet its box, in batches."""
        x0, y0, x1, y1 = self.boxes.T
        if len(chosen) * len(self.boxes) <= _AT_ONCE:
            a0, b0, a1, b1 = self.boxes[chosen].T[:, :, None]
            meet: NDArray[np.bool_] = (x0 < a1) & (y0 < b1) & (x1 > a0) & (y1 > b0)
            meet[np.arange(len(chosen)), chosen] = False
            rows = dict(zip(chosen, meet, strict=True))
            return lambda i: [rows[i].nonzero()[0].tolist()]
        # A table of all pairs would not fit into memory: an index finds them one by one. Where
        # very many lie in one place, the first few tell that an instance is covered.
        tree = shapely.STRtree(shapely.box(x0, y0, x1, y1))

        def near(i: int) -> Iterator[list[int]]:
            a0, b0, a1, b1 = self.boxes[i]

            def meeting(found: NDArray[np.intp]) -> list[int]:
                meet = (x0[found] < a1) & (y0[found] < b1) & (x1[found] > a0) & (y1[found] > b0)
                others: list[int] = found[meet & (found != i)].tolist()
                return others

            first = meeting(np.arange(min(_FIRST, len(x0))))
            yield first[:1]
            yield first[1:]
            found = np.sort(tree.query(shapely.box(a0, b0, a1, b1)))
            yield meeting(found[found >= _FIRST])

        return near
