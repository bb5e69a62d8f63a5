"""Outlines of masks along the edges of their pixels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from smallobj_d2.masks.outlines import outline_of


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
