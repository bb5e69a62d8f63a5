"""Outlines and bitmaps: which pixels they own and cover, and their image under an affine map."""

import importlib

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st

from proofs.copy_paste_laws import PIXEL_TOLERANCE, warped
from proofs.random_scenes import outline, raster, rectangle, rle_of
from smallobj_d2 import Jitter, SmallObjError, masks
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.masks.shapes import Bitmap, Centres, Outline, Window, shape_of, warp

SIZE = 24


def test_an_opencv_that_gives_wrong_boxes_is_refused(monkeypatch):
    monkeypatch.setattr(cv2, "__version__", "4.9.0")
    with pytest.raises(SmallObjError, match=r"This is OpenCV 4\.9\.0; .* Install 4\.10 or newer"):
        importlib.reload(masks)


seeds = st.integers(0, 10**6)
# Coordinates of quarters, on the grid lines too, and reaching out of the image.
coordinate = st.integers(-12, 4 * SIZE + 12).map(lambda v: v / 4)
polygons = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8).map(
    lambda p: np.array(p, float)
)
windows = st.builds(
    Window, st.integers(-5, SIZE), st.integers(-5, SIZE), st.integers(0, 15), st.integers(0, 15)
)
IMAGE = Window(0, 0, SIZE, SIZE)


def jittered(seed, jitter=Jitter((0.5, 2.0), (-180.0, 180.0))):  # noqa: B008 - frozen
    return jitter.sample(np.random.default_rng(seed))


def covered(shape):
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    shape.cover(canvas)
    return canvas


def with_neighbours(mask):
    return cv2.dilate(mask, np.ones((3, 3), np.uint8))


# --- what is covered


@given(st.lists(polygons, min_size=1, max_size=3))
def test_every_pixel_owned_is_covered_or_a_neighbour_whatever_the_outline(parts):
    """Outlines that cross themselves, retrace themselves, or have no area, included."""
    inside = [p.clip(0, SIZE) for p in parts]
    owned = raster([p.ravel().tolist() for p in inside], SIZE, SIZE)
    assert (with_neighbours(covered(Outline(inside))) >= owned).all()


@given(seeds)
def test_so_is_every_pixel_that_an_outline_shares_area_with(seed):
    # Not along the image border, where the pixel that is covered may lie outside.
    points = outline(np.random.default_rng(seed), SIZE - 2, SIZE - 2, 10) + 1
    polygon = shapely.Polygon(points)
    assume(polygon.is_valid)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    common = shapely.area(shapely.intersection(shapely.box(x, y, x + 1, y + 1), polygon))
    assert (with_neighbours(covered(Outline([points]))) >= (common > 1e-9)).all()


def test_a_spike_that_owns_no_pixel_covers_all_it_passes_through():
    spike = Outline([np.array([(2.1, 2.0), (2.15, 20.0), (2.2, 2.0)])])
    assert not spike.pixels(IMAGE)[6:19].any()
    assert covered(spike)[3:19, 2].all()


@given(seeds)
def test_centres_are_the_pixels_whose_centre_is_inside_give_or_take_those_on_the_edge(seed):
    points = outline(np.random.default_rng(seed), SIZE, SIZE, 10)
    polygon = shapely.Polygon(points)
    assume(polygon.is_valid)
    x, y = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    inside = shapely.contains_xy(polygon, x, y)
    edge = shapely.distance(polygon.boundary, shapely.points(x, y))
    found = Centres(IMAGE)
    Outline([points]).mark(found)
    assert (found.mask.astype(bool) == inside)[edge > 0.5].all()


# --- what is owned


@given(seeds)
def test_a_window_shows_what_the_whole_image_shows(seed):
    """Outlines in a window that holds them, bitmaps in any."""
    rng = np.random.default_rng(seed)
    parts = [outline(rng, SIZE, SIZE, 8) for _ in range(2)]
    flat = [p.ravel().tolist() for p in parts]
    whole = raster(flat, SIZE, SIZE)
    shape = Outline(parts)
    x, y, width, height = tight = Window.around(*shape.bounds())
    assume(not (np.modf(np.concatenate(parts) * 5 + 0.5)[0] == 0).any())  # ties may go either way
    assert (shape.pixels(tight) == whole[y : y + height, x : x + width]).all()
    box = [float(v) for v in (x, y, width, height)]
    for compressed in (True, False):
        rle = {"segmentation": rle_of(whole, compressed=compressed), "bbox": box, "bbox_mode": 1}
        bitmap = shape_of(rle, SIZE, SIZE)
        assert (bitmap.pixels(IMAGE) == whole).all()
        assert (covered(bitmap) == whole).all()
        wide = np.pad(whole, 30)
        left, top, w, h = rng.integers((-18, -18, 0, 0), (30, 30, 19, 19)).tolist()
        part = wide[top + 30 : top + 30 + h, left + 30 : left + 30 + w]
        assert (bitmap.pixels(Window(left, top, w, h)) == part).all()


def test_a_box_that_leaves_out_a_pixel_of_its_rle_loses_nothing():
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[5:12, 5:12] = 1
    tight = {"segmentation": rle_of(mask), "bbox": [6.0, 6.0, 5.0, 5.0], "bbox_mode": 1}
    assert (shape_of(tight, SIZE, SIZE).pixels(IMAGE) == mask).all()


@given(seeds, st.integers(0, SIZE), st.integers(0, SIZE))
def test_a_bitmap_survives_the_way_into_rle_and_back(seed, x, y):
    mask = np.random.default_rng(seed).integers(0, 2, (7, 5), dtype=np.uint8)
    rle = Bitmap(mask, x, y).segmentation(SIZE + 10, SIZE + 12)
    expected = np.zeros((SIZE + 10, SIZE + 12), np.uint8)
    expected[y : y + 7, x : x + 5] = mask
    assert (raster(rle, SIZE + 10, SIZE + 12) == expected).all()


# --- the image under a map


@given(st.lists(polygons, min_size=1, max_size=3), seeds)
def test_a_copied_outline_is_the_affine_image_of_its_source(parts, seed):
    linear = jittered(seed)
    copy = Outline(parts).copy(linear)
    assert (copy.matrix[:, :2] == linear).all()
    assert (copy.matrix[:, 2] == np.rint(copy.matrix[:, 2])).all()
    for old, new in zip(parts, copy.shape.parts, strict=True):
        assert np.allclose(old @ linear.T + copy.matrix[:, 2], new)
    height, width = copy.mask.shape
    x0, y0, x1, y1 = copy.shape.bounds()
    assert 0 <= x0 < 1 and 0 <= y0 < 1  # noqa: PT018
    assert width - 1 < x1 <= width or width == x1 == 0
    assert height - 1 < y1 <= height or height == y1 == 0
    patch = Window(0, 0, width, height)
    assert (copy.mask == copy.shape.pixels(patch)).all()


@given(polygons, seeds)
def test_area_scales_with_the_square_of_the_scale(points, seed):
    polygon = shapely.Polygon(points)
    assume(polygon.is_valid)
    assume(polygon.area > 20)
    linear = jittered(seed)
    copy = Outline([points]).copy(linear)
    exact = polygon.area * np.linalg.det(linear)
    assert np.isclose(shapely.Polygon(copy.shape.parts[0]).area, exact)
    # Pixels follow the area but for those on the edge.
    edge = polygon.length * np.sqrt(np.linalg.det(linear))
    assert abs(np.count_nonzero(copy.mask) - exact) <= edge + 4


@given(seeds)
def test_a_copied_bitmap_is_where_a_copied_outline_of_the_same_pixels_is(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(4, 20, 2) + 9 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    points = (points + rng.uniform(-1, 1, (4, 2))).clip(0, 40)
    mask = Outline([points]).pixels(Window(0, 0, 40, 40))
    linear = jittered(seed, Jitter((0.7, 1.5), (-180.0, 180.0)))
    one, other = Outline([points]).copy(linear), Bitmap(mask, 0, 0).copy(linear)
    shift = one.matrix[:, 2] - other.matrix[:, 2]
    patch = Window(*np.rint(-shift).astype(int).tolist(), *one.mask.shape[::-1])
    theirs = Bitmap(other.mask, 0, 0).pixels(patch)
    common, either = (theirs & one.mask).sum(), (theirs | one.mask).sum()
    assert common / either > 0.8


def test_a_bitmap_under_the_identity_is_itself():
    mask = np.random.default_rng(0).integers(0, 2, (9, 9), dtype=np.uint8)
    mask[0, 0] = mask[-1, -1] = 1
    copy = Bitmap(mask, 7, 5).copy(np.eye(2))
    assert (copy.mask == mask).all()
    assert (copy.matrix == [[1, 0, -7], [0, 1, -5]]).all()


@given(seeds)
def test_warped_pixels_are_interpolated_where_the_matrix_says(seed):
    """Noise, so that a shift by a fraction of a pixel would show."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    linear = jittered(seed)
    matrix = np.column_stack([linear, rng.uniform(-20, 40, 2)])
    patch = warp(image, matrix, Window(0, 0, 25, 20), cv2.BORDER_REPLICATE)
    y, x = np.mgrid[:20, :25]
    exact = warped(image, matrix, x.ravel(), y.ravel()).reshape(20, 25, 3)
    off = patch - exact
    assert abs(off).max() <= PIXEL_TOLERANCE
    assert abs(off.mean()) < 0.5


# --- degenerate and wrong


@pytest.mark.parametrize(
    "points",
    [
        [(3, 3), (3, 3), (3, 3)],
        [(3, 3), (9, 3), (3, 3)],
        [(3.2, 3.1), (9.7, 8.3), (3.2, 3.1)],
        [(-30, -30), (-20, -30), (-20, -20)],
        [(90, 90), (99, 90), (99, 99)],
        [(-9e4, 5), (9e4, 5), (9e4, 6), (-9e4, 6)],
    ],
)
def test_degenerate_and_far_outlines_are_no_trouble(points):
    shape = Outline([np.array(points, float)])
    assert (with_neighbours(covered(shape)) >= shape.pixels(IMAGE)).all()
    assert shape.is_connected() or not shape.pixels(IMAGE).any()


def test_an_empty_bitmap_is_no_trouble():
    for size in ((0, 0), (4, 4), (0, 3)):
        bitmap = Bitmap(np.zeros(size, np.uint8), 3, 3)
        copy = bitmap.copy(np.eye(2) * 1.1)
        assert not copy.mask.any()
        assert not bitmap.pixels(IMAGE).any()
        assert not bitmap.is_connected()
        assert bitmap.trimmed().mask.size == 0
        assert not raster(bitmap.segmentation(SIZE, SIZE), SIZE, SIZE).any()


@pytest.mark.parametrize(
    "part",
    [[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float("nan")]]
    + [[1, 2, 3, 4, 5, float("inf")], [1, 2, 3, 4, 5, 1e9]],
)
def test_a_polygon_that_is_none_is_refused(part):
    annotation = rectangle(5, 5, 5, 5)
    annotation["segmentation"] = [*annotation["segmentation"], part]
    with pytest.raises(SmallObjError, match=r"polygon in `segmentation` is .* must be"):
        shape_of(annotation, SIZE, SIZE)


def test_an_rle_of_another_size_than_the_image_is_refused():
    annotation = rectangle(5, 5, 5, 5, segmentation=rle_of(np.ones((9, 9), np.uint8)))
    with pytest.raises(SmallObjError, match=r"RLE .* has size \[9, 9\]; it must be .*\[24, 24\]"):
        shape_of(annotation, SIZE, SIZE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_box_that_is_not_finite_is_refused_by_its_index(value):
    bad = rectangle(5, 5, 5, 5, bbox=[5, value, 5, 5])
    with pytest.raises(SmallObjError, match="Annotation 1 has bbox"):
        Scene([rectangle(5, 5, 5, 5), bad], SIZE, SIZE)


@pytest.mark.parametrize("key", ["area", "bbox"])
def test_an_annotation_without_what_is_needed_is_refused_by_its_index(key):
    bad = rectangle(5, 5, 5, 5)
    del bad[key]
    with pytest.raises(SmallObjError, match=f"Annotation 1 has no {key}"):
        Scene([rectangle(5, 5, 5, 5), bad], SIZE, SIZE)


def test_boxes_are_floats_for_detectron2_moves_them_in_the_type_they_have():
    box = Bitmap(np.ones((2, 3), np.uint8), 4, 5).bounds()
    assert box == (4, 5, 7, 7)
    assert {type(v) for v in box} == {float}
