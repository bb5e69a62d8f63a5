"""Table 8: what a copy that covers something does to the label below."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from proofs.random_scenes import annotation_of, outline, raster, rectangle, rle_of
from smallobj_d2 import CopyPaste, Jitter, SameImage, SourceRule
from smallobj_d2.copy_paste.labels import uncovered
from smallobj_d2.masks.shapes import shape_of

SIZE = 48
STILL = Jitter((1, 1), (0, 0))


def under(label, mask, x, y, size=SIZE):
    """What is left of a label under the pixels of a mask, and the pixels as a map."""
    above = np.zeros((size, size), np.uint8)
    height, width = mask.shape
    above[y : y + height, x : x + width] = mask
    return uncovered(label, shape_of(label, size, size), above), above


@given(st.integers(0, 10**6))
def test_what_is_left_of_a_mask_is_what_the_copy_does_not_own(seed):
    """Polygons of any kind and RLE, under a random blob: never a pixel of the copy."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(["polygon", "parts", "rle", "uncompressed"]))
    parts = [outline(rng, SIZE, SIZE, 14) for _ in range(1 + (kind == "parts"))]
    label = annotation_of(rng, parts, SIZE, SIZE, kind)
    before = raster(label["segmentation"], SIZE, SIZE)
    height, width = rng.integers(1, 16, 2)
    blob = np.ones((height, width), np.uint8)
    if rng.random() < 0.7:
        blob = rng.integers(0, 2, (height, width), dtype=np.uint8)
    x, y = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
    rest, above = under(label, blob, x, y)
    expected = before & ~above.astype(bool)
    if not (before & above).any():
        assert rest is label
        return
    after = raster(rest["segmentation"], SIZE, SIZE) if rest else np.zeros_like(before)
    assert not (after & above).any()
    off = after != expected
    if isinstance(label["segmentation"], dict):
        assert not off.any()
    else:  # where an edge is cut, COCO's tools may round what is left of it to the next pixel
        lines = shapely.union_all([shapely.LinearRing(p) for p in parts])
        ys, xs = np.nonzero(off)
        squares = shapely.box(xs - 0.2, ys - 0.2, xs + 1.2, ys + 1.2)
        assert shapely.intersects(squares, lines).all()
        assert off.sum() <= 12
    if rest is None:
        return
    assert rest["area"] == after.sum() > 0
    assert isinstance(rest["segmentation"], type(label["segmentation"]))
    x0, y0, a, b = rest["bbox"]
    box = (x0, y0, a, b) if label["bbox_mode"] == 0 else (x0, y0, x0 + a, y0 + b)
    if isinstance(rest["segmentation"], list):
        assert all(len(p) >= 6 and len(p) % 2 == 0 for p in rest["segmentation"])
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in rest["segmentation"]])
        assert np.allclose(box, [*points.min(axis=0), *points.max(axis=0)])
    else:
        ys, xs = np.nonzero(after)
        assert box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    kept = set(label) - {"bbox", "area", "segmentation"}
    assert {k: rest[k] for k in kept} == {k: label[k] for k in kept}


def test_a_hole_is_cut_open_because_polygons_of_coco_have_none():
    label = rectangle(4.5, 4.5, 30, 30)
    blob = np.ones((5, 5), np.uint8)
    blob[2, 2] = 0  # an island in the hole
    rest, above = under(label, blob, 12, 12)
    for part in rest["segmentation"]:
        assert shapely.Polygon(np.reshape(part, (-1, 2))).is_valid
    after = raster(rest["segmentation"], SIZE, SIZE)
    before = raster(label["segmentation"], SIZE, SIZE)
    assert (after == (before & (1 - above))).all()
    assert rest["area"] == before.sum() - 24


def test_what_is_left_of_an_outline_without_a_pixel_is_no_part_of_it():
    """A strip of 0.4 pixels, to the right of what is covered."""
    blob = np.zeros((5, 5), np.uint8)
    blob[:4, :4] = blob[4, 4] = 1
    rest, _ = under(rectangle(10, 10, 4.4, 8), blob, 10, 10)
    assert len(rest["segmentation"]) == 1
    assert rest["bbox"] == pytest.approx([10, 14, 4.4, 4])
    assert rest["area"] == 16


def test_an_instance_that_is_fully_covered_leaves():
    for label in (
        rectangle(10, 10, 4, 4),
        rectangle(10, 10, 4, 4, segmentation=rle_of(np.pad(np.ones((4, 4), np.uint8), (10, 34)))),
    ):
        rest, _ = under(label, np.ones((4, 4), np.uint8), 10, 10)
        assert rest is None


def test_a_label_that_is_only_touched_stays_the_same_object():
    label = rectangle(10, 10, 4, 4)
    assert under(label, np.ones((4, 4), np.uint8), 14, 10)[0] is label


def test_the_part_of_an_instance_outside_the_image_does_not_keep_it():
    label = rectangle(-10, 10, 14, 4)
    assert under(label, np.ones((4, 4), np.uint8), 0, 10)[0] is None


def test_a_box_without_mask_shrinks_to_what_is_left():
    label = rectangle(10, 10, 10, 4)
    del label["segmentation"]
    rest, _ = under(label, np.ones((4, 5), np.uint8), 10, 10)
    assert rest["bbox"] == [15, 10, 5, 4]
    assert rest["area"] == 20
    assert "segmentation" not in rest


def overlapping(annotations, size, **options):
    """Copies of the small objects pasted over a crowded image, with overlap allowed."""
    copy_paste = CopyPaste(
        allow_overlap=True, sources=SameImage(SourceRule(max_covered=1)), jitter=STILL, **options
    )
    return copy_paste.plan(annotations, size, size, np.random.default_rng(0))


def test_later_copies_hide_earlier_ones_and_what_they_cover_is_counted():
    """A hundred copies in a space for nine."""
    annotations = [rectangle(7, 7, 4, 4), rectangle(0, 0, 24, 24, area=576.0, iscrowd=1)]
    plan = overlapping(annotations, 24, copies=100)
    assert plan.pasted == 100
    assert plan.removed > 50
    assert len(plan.annotations) == 102 - plan.removed
    masks = [raster(a["segmentation"], 24, 24) for a in plan.annotations]
    assert np.sum(masks, axis=0).max() == 1  # each pixel has one owner
    last = plan.pastes[-1]
    assert plan.annotations[-1]["copy_paste"]["matrix"] == last.matrix.tolist()
    assert plan.annotations[-1]["area"] == 16


def test_untouched_labels_stay_as_they_were():
    annotations = [rectangle(7, 7, 4, 4), rectangle(0, 0, 24, 24, area=576.0)]
    plan = overlapping(annotations, 24, copies=50, covered_labels="untouched")
    assert plan.removed == 0
    assert plan.annotations[:2] == annotations
    assert len(plan.annotations) >= 52
    assert all(a["area"] in (16, 576) for a in plan.annotations)


@pytest.mark.parametrize("mode", [0, 1])
def test_keypoints_move_with_their_object_and_keep_their_visibility(mode):
    thing = rectangle(10, 10, 8, 6, keypoints=[12, 12, 2, 0, 0, 0, 17.5, 15, 1], bbox_mode=mode)
    if mode == 0:
        thing["bbox"] = [10, 10, 18, 16]
    copy_paste = CopyPaste(copies=5)
    plan = copy_paste.plan([thing], 90, 90, np.random.default_rng(0))
    for copy in plan.annotations[1:]:
        matrix = np.array(copy["copy_paste"]["matrix"])
        points = np.reshape(copy["keypoints"], (-1, 3))
        assert points[:, 2].tolist() == [2, 0, 1]
        assert points[1].tolist() == [0, 0, 0]
        assert np.allclose(points[0, :2], matrix @ (12, 12, 1))
        assert np.allclose(points[2, :2], matrix @ (17.5, 15, 1))
        assert copy["bbox_mode"] == mode
        x0, y0, x1, y1 = (
            copy["bbox"]
            if mode == 0
            else np.cumsum(np.reshape(copy["bbox"], (2, 2)), axis=0).ravel()
        )
        assert (points[[0, 2], :2] > (x0, y0)).all()
        assert (points[[0, 2], :2] < (x1, y1)).all()


def test_keypoints_may_be_an_array():
    thing = {**rectangle(20, 20, 10, 10), "keypoints": np.array([25.0, 25.0, 2.0])}
    _, copy = CopyPaste().plan([thing], 80, 80, 0).annotations
    x, y, w, h = copy["bbox"]
    assert copy["keypoints"][:2] == pytest.approx([x + w / 2, y + h / 2])


def test_keys_of_the_users_own_go_with_the_copy_but_its_id_does_not():
    thing = rectangle(10, 10, 8, 6, id=7, colour="red", track={"of": [1]})
    copy = CopyPaste().plan([thing], 90, 90, np.random.default_rng(0)).annotations[1]
    assert copy["colour"] == "red"
    assert copy["track"] == {"of": [1]}
    assert "id" not in copy
    assert copy["copy_paste"]["source"] == 0


def test_a_copy_is_no_crowd_also_where_its_source_does_not_say():
    thing = rectangle(10, 10, 8, 6)
    del thing["iscrowd"]
    assert CopyPaste().plan([thing], 90, 90, 0).annotations[1]["iscrowd"] == 0
