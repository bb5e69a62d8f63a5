"""Shapes as geometry of shapely's, and geometry as polygons of COCO's."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import shapely

from smallobj_d2.masks.shapes import Bitmap, Outline, Shape

_SMALLEST = 1e-3
"""Holes of less area (in pixels) are the rounding of an outline that crosses itself."""


def squares_of(bitmap: Bitmap) -> Any:
    """The union of a bitmap's pixels as squares, put together from the runs of its rows."""
    steps = np.diff(bitmap.mask.astype(np.int8), axis=1, prepend=0, append=0)
    rows, left = np.nonzero(steps > 0)
    _, right = np.nonzero(steps < 0)
    x, y = bitmap.x, bitmap.y
    return shapely.union_all(shapely.box(left + x, rows + y, right + x, rows + y + 1))


def geometry_of(outline: Outline) -> Any:
    """The union of an outline's parts; hand-drawn ones may cross themselves."""
    return shapely.union_all([shapely.make_valid(shapely.Polygon(p)) for p in outline.parts])


def inside(outline: Outline, height: int, width: int) -> Any:
    """What lies of `geometry_of` an outline in an image of that size, and has an area."""
    geometry = geometry_of(outline)
    if leaves(outline, height, width):
        geometry = geometry.intersection(shapely.box(0, 0, width, height))
    return areal(geometry)


def leaves(outline: Outline, height: int, width: int) -> bool:
    """Whether an outline leaves an image of that size."""
    x0, y0, x1, y1 = outline.bounds()
    return min(x0, y0) < 0 or x1 > width or y1 > height


def bounds_inside(shape: Shape, height: int, width: int) -> tuple[float, float, float, float]:
    """The tight box of a shape, XYXY, as far as it lies in an image; NaN where it does not."""
    if isinstance(shape, Outline) and leaves(shape, height, width):
        x0, y0, x1, y1 = inside(shape, height, width).bounds
        return x0, y0, x1, y1
    return shape.bounds()


def areal(geometry: Any) -> Any:
    """What has an area of a shapely geometry of any kind, as one."""
    return shapely.MultiPolygon([*polygons_of(geometry)])


def polygons_of(geometry: Any) -> Iterator[Any]:
    """The polygons of a shapely geometry of any kind; lines and points have no area."""
    for part in getattr(geometry, "geoms", [geometry]):
        if part.geom_type == "Polygon" and not part.is_empty:
            yield part
        elif hasattr(part, "geoms"):
            yield from polygons_of(part)


def without_holes(polygon: Any) -> Iterator[Any]:
    """COCO's polygons have no holes: cut through one from top to bottom until none is left."""
    holes = [h for h in polygon.interiors if shapely.area(shapely.Polygon(h)) > _SMALLEST]
    if not holes:
        yield shapely.Polygon(polygon.exterior)
        return
    x0, y0, x1, y1 = polygon.bounds
    left, _, right, _ = holes[0].bounds
    middle = (left + right) / 2
    if left < round(middle) < right:
        middle = round(middle)  # between pixels, where the cut divides none
    for half in (shapely.box(x0, y0, middle, y1), shapely.box(middle, y0, x1, y1)):
        for part in polygons_of(shapely.intersection(polygon, half)):
            yield from without_holes(part)


def outline_of(rle: Mapping[str, Any]) -> list[list[float]]:
    """The outline of a mask along the edges of its pixels, as COCO polygons; holes are filled.

    But for holes, pycocotools makes the same mask of it again. (An outline through the centers of
    pixels, such as OpenCV's, loses a pixel of the width and one of the height.)

    Args:
        rle: COCO's ``size`` and ``counts``.
    """
    rings = [polygon.exterior for polygon in polygons_of(squares_of(Bitmap.decode(rle)))]
    return [shapely.get_coordinates(ring)[:-1].ravel().tolist() for ring in rings]
