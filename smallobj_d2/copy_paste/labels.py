"""The annotation of a copy, and what an overlap does to the annotations below it (Table 8)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from smallobj_d2.copy_paste.shapes import Annotation, Bitmap, Outline, Shape, Window


def label_of_copy(
    source: Annotation,
    index: int,
    shape: Shape,
    matrix: NDArray[np.float64],
    size: tuple[int, int],
) -> Annotation:
    """The annotation of a pasted copy.

    It has every key of its source, the user's own included, but for ``id``; mask, box, area and
    keypoints follow the copy. ``copy_paste`` says where it comes from: the source's index among
    the image's annotations, and the matrix from source to image coordinates.

    Args:
        source: annotation of the source object.
        index: its place in the image's list of annotations.
        shape: the copy, in image coordinates.
        matrix: (2, 3), source coordinates to image coordinates.
        size: (height, width) of the image.
    """
    label = {k: v for k, v in source.items() if k != "id"}
    label["bbox"] = _box(shape, source)
    label["iscrowd"] = 0
    if isinstance(shape, Bitmap):
        label["area"] = float(np.count_nonzero(shape.mask))
    else:
        (a, b, _), (c, d, _) = matrix.tolist()
        label["area"] = source["area"] * abs(a * d - b * c)
    if source.get("segmentation"):
        label["segmentation"] = shape.segmentation(*size)
    if source.get("keypoints"):
        label["keypoints"] = _move_keypoints(source["keypoints"], matrix)
    label["copy_paste"] = {"source": index, "matrix": matrix.tolist()}
    return label


def _box(shape: Shape, like: Annotation) -> list[float]:
    """The tight box of a shape, in the ``bbox_mode`` of an annotation."""
    x0, y0, x1, y1 = shape.bounds()
    return [x0, y0, x1, y1] if like.get("bbox_mode", 1) == 0 else [x0, y0, x1 - x0, y1 - y0]


def _move_keypoints(keypoints: Any, matrix: NDArray[np.float64]) -> list[float]:
    """Keypoints ``x, y, v, ...`` under the copy's map; unlabelled ones (v = 0) stay as they are."""
    points = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
    seen = points[:, 2] > 0
    points[seen, :2] = points[seen, :2] @ matrix[:, :2].T + matrix[:, 2]
    flat: list[float] = points.ravel().tolist()
    return flat


def uncovered(
    label: Annotation, shape: Shape, above: Shape, size: tuple[int, int]
) -> tuple[Annotation, Shape] | None:
    """What is left of an instance under another one.

    Args:
        label, shape: the instance below, in image coordinates.
        above: the shape that covers it, in image coordinates.
        size: (height, width) of the image.

    Returns:
        Its new annotation and shape, which are the old ones if nothing of it is covered, or None
        if nothing is left.
    """
    window = Window.around(*shape.bounds())
    own = shape.pixels(window)
    hidden = own & above.pixels(window)
    if not hidden.any():
        return label, shape
    left = own ^ hidden
    if not left.any():
        return None
    rest: Shape
    if isinstance(shape, Outline) and isinstance(above, Outline):
        rest = Outline(list(_difference(shape, above)))
        if not rest.parts:
            return None
    else:
        rest = Bitmap(left, window.x, window.y)
    changed = dict(label)
    changed["bbox"] = _box(rest, label)
    changed["area"] = float(np.count_nonzero(left))
    if label.get("segmentation"):
        changed["segmentation"] = rest.segmentation(*size)
    return changed, rest


def _difference(below: Outline, above: Outline) -> Iterator[NDArray[np.float64]]:
    """The parts of one outline that another leaves uncovered, as polygons without holes."""
    rest = shapely.difference(_geometry(below), _geometry(above))
    for polygon in _polygons(rest):
        for simple in _without_holes(polygon):
            points = np.asarray(simple.exterior.coords)[:-1]
            if len(points) >= 3 and Outline([points]).pixels(Window.around(*simple.bounds)).any():
                yield points


def _geometry(outline: Outline) -> Any:
    """The union of an outline's parts; hand-drawn ones may cross themselves."""
    return shapely.union_all([shapely.make_valid(shapely.Polygon(p)) for p in outline.parts])


def _polygons(geometry: Any) -> Iterator[Any]:
    for part in getattr(geometry, "geoms", [geometry]):
        if part.geom_type == "Polygon" and not part.is_empty:
            yield part
        elif hasattr(part, "geoms"):
            yield from _polygons(part)


def _without_holes(polygon: Any) -> Iterator[Any]:
    """COCO's polygons have no holes: cut through the middle of one until none is left."""
    if not polygon.interiors:
        yield polygon
        return
    middle = polygon.interiors[0].centroid.x
    x0, y0, x1, y1 = polygon.bounds
    for half in (shapely.box(x0, y0, middle, y1), shapely.box(middle, y0, x1, y1)):
        for part in _polygons(shapely.intersection(polygon, half)):
            yield from _without_holes(part)
