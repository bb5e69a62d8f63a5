"""Outlines of masks along the edges of their pixels."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from smallobj_d2.masks.outlines import bounds_inside, outline_of, polygons_of, without_holes
from smallobj_d2.masks.shapes import Outline


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=16), elements=st.integers(0, 1))
)
def test_the_outline_is_the_mask_with_its_holes_filled(mask):
    rle = coco_mask.encode(np.asfortranarray(np.pad(mask, ((3, 1), (2, 5)))))
    outline = outline_of(rle)
    assert bool(outline) == bool(mask.any())
    if not outline:
        return
    again = coco_mask.merge(coco_mask.frPyObjects(outline, *rle["size"]))
    found, given = coco_mask.decode(again), coco_mask.decode(rle)
    assert (found >= given).all()
    added = coco_mask.decode(coco_mask.encode(np.asfortranarray(found - given)))
    assert not added[0].any()
    assert not added[:, 0].any()
    assert coco_mask.toBbox(again).tolist() == coco_mask.toBbox(rle).tolist()


def test_a_small_disc_is_itself():
    y, x = np.mgrid[:12, :14]
    mask = ((x - 6) ** 2 + (y - 5) ** 2 <= 16).astype(np.uint8)
    rle = coco_mask.encode(np.asfortranarray(mask))
    again = coco_mask.merge(coco_mask.frPyObjects(outline_of(rle), 12, 14))
    assert (coco_mask.decode(again) == mask).all()


@pytest.mark.parametrize(("side", "parts"), [(3, 2), (0.5, 2), (0.02, 1)])
def test_a_hole_is_cut_open_unless_it_is_rounding(side, parts):
    hole = shapely.box(4.2, 4.2, 4.2 + side, 4.2 + side)
    found = list(without_holes(shapely.box(0, 0, 9, 9).difference(hole)))
    assert len(found) == parts
    assert not any(part.interiors for part in found)
    area = shapely.area(shapely.union_all(found))
    assert area == pytest.approx(81 - (side**2 if parts > 1 else 0))


def test_a_hole_is_cut_open_between_pixels():
    ring = shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 6, 6))
    assert sorted(part.bounds for part in without_holes(ring)) == [(0, 0, 4, 9), (4, 0, 9, 9)]


@pytest.mark.parametrize(
    ("box", "seen"),
    [
        ((-3, 2, 5, 6), (0, 2, 5, 6)),
        ((2, -3, 5, 6), (2, 0, 5, 6)),
        ((2, 2, 25, 6), (2, 2, 20, 6)),
        ((2, 2, 5, 16), (2, 2, 5, 10)),
    ],
)
def test_a_box_ends_at_each_border_of_the_image(box, seen):
    outline = Outline([shapely.get_coordinates(shapely.box(*box))[:-1]])
    assert bounds_inside(outline, 10, 20) == seen


def test_an_empty_polygon_is_none():
    assert not list(polygons_of(shapely.Polygon()))
