"""The annotation of a copy, and what an overlap does to the annotations below it (Table 8)."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from smallobj_d2.masks.outlines import geometry_of, polygons_of, squares_of, without_holes
from smallobj_d2.masks.rle import Mask
from smallobj_d2.masks.shapes import Annotation, Bitmap, Outline, Shape, Window, box_of, has_mask


def label_of_copy(
    source: Annotation,
    origin: Mapping[str, Any],
    shape: Shape,
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    corner: tuple[int, int] = (0, 0),
) -> Annotation:
    """The annotation of a pasted copy.

    It has every key of its source, the user's own included, but for ``id``; mask, box, area and
    keypoints follow the copy. ``copy_paste`` says where it comes from: its origin, and the matrix
    from coordinates of the image that the source is from to coordinates of this image.

    Args:
        source: annotation of the source object.
        origin: see `smallobj_d2.copy_paste.Candidate`.
        shape: the copy, in image coordinates.
        matrix: (2, 3), coordinates of the source annotation to image coordinates.
        size: (height, width) of the image.
        corner: (x, y), where the source annotation's coordinates begin in its own image.
    """
    label = transformed(source, shape, matrix, size)
    label.pop("id", None)
    label["iscrowd"] = 0
    if corner != (0, 0):
        matrix = matrix.copy()
        matrix[:, 2] -= matrix[:, :2] @ corner
    label["copy_paste"] = {**origin, "matrix": matrix.tolist()}
    return label


def moved_annotation(source: Annotation, shape: Shape, window: Window) -> Annotation:
    """An annotation in the coordinates of a window of its image.

    Args:
        source: the annotation.
        shape: its shape.
        window: which holds the shape.
    """
    inside: Shape = shape.trimmed() if isinstance(shape, Bitmap) else shape
    shift = np.array([(1.0, 0.0, -window.x), (0.0, 1.0, -window.y)])
    inside = inside.moved(-window.x, -window.y)
    return transformed(source, inside, shift, (window.height, window.width))


def transformed(
    source: Annotation, shape: Shape, matrix: NDArray[np.float64], size: tuple[int, int]
) -> Annotation:
    """An annotation under an affine map: every key that it has, with those that move moved.

    Args:
        source: the annotation.
        shape: its shape after the map.
        matrix: (2, 3), the map.
        size: (height, width) of the image after the map.
    """
    label = dict(source)
    label["bbox"] = box_of(shape, source)
    if isinstance(shape, Bitmap):
        label["area"] = float(np.count_nonzero(shape.mask))
    else:
        (a, b, _), (c, d, _) = matrix.tolist()
        label["area"] = source["area"] * abs(a * d - b * c)
    if has_mask(source):
        label["segmentation"] = _segmentation(shape, source, *size)
    keypoints = source.get("keypoints")
    if keypoints is not None and len(keypoints):
        label["keypoints"] = _move_keypoints(source["keypoints"], matrix)
    return label


def _segmentation(shape: Shape, like: Annotation, height: int, width: int) -> Any:
    """The mask of a shape, in the form of an annotation's."""
    given = like["segmentation"]
    if isinstance(shape, Bitmap) and isinstance(given, np.ndarray):
        return shape.as_array(given, height, width)
    return shape.segmentation(height, width)


def _move_keypoints(keypoints: Any, matrix: NDArray[np.float64]) -> list[float]:
    """Keypoints ``x, y, v, ...`` under the copy's map; unlabelled ones (v = 0) stay as they are."""
    points = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
    seen = points[:, 2] > 0
    points[seen, :2] = points[seen, :2] @ matrix[:, :2].T + matrix[:, 2]
    flat: list[float] = points.ravel().tolist()
    return flat


def uncovered(label: Annotation, shape: Shape, above: Mask) -> Annotation | None:
    """What is left of an instance under copies: none of the pixels that they own.

    Polygons stay polygons and RLE stays RLE. Where a polygon's edge is cut, what is left of that
    edge may give the pixel next to it to the other side, as COCO's tools round corners. All that
    covers an instance is therefore cut away at once.

    Args:
        label, shape: the instance below, in image coordinates.
        above: (H, W) uint8 of 0 and 1, the pixels of the image that are covered.

    Returns:
        Its new annotation, which is the old one if nothing of it is covered, or None if nothing
        is left.
    """
    height, width = above.shape
    window = Window.around(*shape.bounds()).clipped(width, height)
    cover = window.of(above)
    if not cover.any():
        return label
    own = shape.pixels(window)
    if not (own & cover).any():
        return label
    rest: Shape
    if isinstance(shape, Outline):
        rest = Outline(list(_difference(shape, Bitmap(cover, window.x, window.y))))
        area = _area(rest, height, width)
    else:
        rest = Bitmap(own & (1 - cover), window.x, window.y)
        area = float(np.count_nonzero(rest.mask))
    if not area:
        return None
    changed = dict(label)
    changed["bbox"] = box_of(rest, label)
    changed["area"] = area
    if has_mask(label):
        changed["segmentation"] = _segmentation(rest, label, height, width)
    return changed


def _area(outline: Outline, height: int, width: int) -> float:
    """Pixels that an outline owns in an image, counted by COCO's tools."""
    if not outline.parts:
        return 0.0
    rles = coco_mask.frPyObjects(outline.segmentation(height, width), height, width)
    return float(coco_mask.area(coco_mask.merge(rles)))


def _difference(below: Outline, above: Bitmap) -> Iterator[NDArray[np.float64]]:
    """The parts of an outline outside the squares of some pixels, as polygons without holes.

    Cutting along pixels rather than along the outline of what is above gives each pixel to one of
    the two, whatever rasterises them.
    """
    rest = shapely.difference(geometry_of(below), squares_of(above))
    for polygon in polygons_of(rest):
        for simple in without_holes(polygon):
            points = np.asarray(simple.exterior.coords)[:-1]
            if len(points) >= 3 and Outline([points]).pixels(Window.around(*simple.bounds)).any():
                yield points
