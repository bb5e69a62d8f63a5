"""Tiles of large images: what is in them is what was there, to the pixel."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from proofs.random_scenes import raster
from smallobj_d2.commands.tile_dataset import main as tool
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.export import tiles
from smallobj_d2.export.tiles import tile_dataset, windows

WIDTH, HEIGHT = 130, 100
SIZES = st.integers(1, 300)


def rle_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def annotation(segmentation, number=1, **more):
    mask = raster(segmentation, HEIGHT, WIDTH)
    rle = coco_mask.encode(np.asfortranarray(mask))
    box, area = coco_mask.toBbox(rle).tolist(), float(mask.sum())
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        low, high = points.min(0), points.max(0)
        box = [*low.tolist(), *(high - low).tolist()]
    new = {"id": number, "image_id": 7, "category_id": 3, "iscrowd": 0, "bbox": box, "area": area}
    return {**new, "segmentation": segmentation, **more}


def star(seed, points=9, turns=1):
    """A polygon with dents; with two turns it crosses itself."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, turns * 2 * np.pi, points, endpoint=False) + rng.uniform(0, 1)
    radius = rng.uniform(5, 45, points)
    x = np.clip(WIDTH / 2 + radius * np.cos(angle) * 1.3, 0, WIDTH)
    y = np.clip(HEIGHT / 2 + radius * np.sin(angle), 0, HEIGHT)
    return np.column_stack([x, y]).ravel().tolist()


def dataset(folder, annotations, name="big.png", **image_args):
    """A dataset of one image."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    (folder / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "images" / name, **image_args)
    content = {
        "images": [{"id": 7, "file_name": name, "width": WIDTH, "height": HEIGHT, "site": "A"}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": annotations,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json", folder / "images"


def parts(annotations, size=40, overlap=0.25, min_share=0.0):
    """The tiles of an image with these annotations, nothing written."""
    image = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    return list(tiles._tiles(image, annotations, size, overlap, min_share))


# --- Where tiles are


@given(SIZES, SIZES, st.integers(1, 120), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap_as_asked(width, height, size, overlap):
    found = windows(width, height, size, overlap)
    for length, size_of, start in ((width, "width", "x"), (height, "height", "y")):
        at = sorted({getattr(w, start) for w in found})
        (wide,) = {getattr(w, size_of) for w in found}
        assert wide == min(size, length)
        assert (at[0], at[-1] + wide) == (0, length)
        for a, b in pairwise(at):
            assert 0 < b - a <= max(size - overlap * size, 1)
    assert len(set(found)) == len(found)


@given(st.integers(40, 300), st.integers(10, 60), st.floats(0.05, 0.8), st.data())
def test_what_is_no_larger_than_the_overlap_is_whole_in_a_tile(length, size, overlap, data):
    small = data.draw(st.integers(1, max(1, min(length, int(size * overlap)))))
    x = data.draw(st.integers(0, length - small))
    y = data.draw(st.integers(0, length - small))
    assert any(
        w.x <= x and w.y <= y and x + small <= w.x + w.width and y + small <= w.y + w.height
        for w in windows(length, length, size, overlap)
    )


# --- What is in them


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(8, 90), st.floats(0, 0.5))
def test_rle_in_a_tile_is_the_window_of_the_whole_to_the_pixel(seed, size, overlap):
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = rng.integers(0, HEIGHT - 9), rng.integers(0, WIDTH - 9)
    mask[y : y + 40, x : x + 50] = rng.random(mask[y : y + 40, x : x + 50].shape) < 0.6
    for tile in parts([annotation(rle_of(mask))], size, overlap):
        expected = tile.window.of(mask)
        assert len(tile.annotations) == bool(expected.any())
        for part in tile.annotations:
            assert (raster(part["segmentation"], *expected.shape) == expected).all()
            if part["tile"]["share"] < 1:
                assert part["area"] == expected.sum()
                assert part["bbox"] == coco_mask.toBbox(part["segmentation"]).tolist()


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(20, 90), st.sampled_from([1, 2]))
def test_polygons_in_a_tile_differ_from_the_window_at_most_along_edges(seed, size, turns):
    whole = annotation([star(seed, turns=turns), star(seed + 1, points=4)])
    mask = raster(whole["segmentation"], HEIGHT, WIDTH)
    near = np.zeros_like(mask)  # pixels at an edge of the whole: their neighbors differ
    for axis in (0, 1):
        for step in (-1, 1):
            near |= mask != np.roll(mask, step, axis)
    for tile in parts([whole], size):
        expected, at_edge = tile.window.of(mask), tile.window.of(near)
        found = np.zeros_like(expected)
        for part in tile.annotations:
            assert all(len(p) >= 6 for p in part["segmentation"])
            found = raster(part["segmentation"], *expected.shape)
            x, y, w, h = part["bbox"]
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in part["segmentation"]])
            assert np.allclose([*points.min(0), *points.max(0)], [x, y, x + w, y + h])
            assert points.min() > -1e-9
            assert (points.max(0) < np.array(tile.window[2:]) + 1e-9).all()
        assert not ((found != expected) & (at_edge == 0)).any()


def test_a_polygon_that_falls_apart_is_one_annotation_of_several_parts():
    u = [5.0, 5, 35, 5, 35, 60, 25, 60, 25, 15, 15, 15, 15, 60, 5, 60]
    below = next(t for t in parts([annotation([u])], size=40, overlap=0) if t.window[:2] == (0, 30))
    (part,) = below.annotations
    assert len(part["segmentation"]) == 2
    assert part["area"] == 2 * 10 * 30
    assert part["bbox"] == [5, 0, 30, 30]


def test_a_hole_of_a_polygon_that_crosses_itself_stays_a_hole():
    ring = [10.0, 10, 60, 10, 60, 60, 10, 60, 10, 10, 25, 25, 25, 45, 45, 45, 45, 25, 25, 25]
    mask = raster([ring], HEIGHT, WIDTH)
    assert not mask[35, 35]
    tile = parts([annotation([ring])], size=50, overlap=0)[0]
    (part,) = tile.annotations
    assert (raster(part["segmentation"], 50, 50) == tile.window.of(mask)).mean() > 0.98


def test_the_line_that_joins_two_parts_is_in_no_box():
    """As YOLO has a mask of several parts: one polygon that goes there and back."""
    joined = [10.0, 10, 30, 10, 30, 20, 80, 20, 100, 20, 100, 10, 80, 10, 80, 20, 30, 20, 10, 20]
    left, right = parts([annotation([joined])], size=100, overlap=0.7)[:2]
    boxes = [t.annotations[0]["bbox"] for t in (left, right)]
    assert boxes[0] == [10, 10, 90, 10]  # both parts, to its last pixel
    only = parts([annotation([joined])], size=70, overlap=0)
    assert next(t.annotations[0]["bbox"] for t in only if t.annotations) == [10, 10, 20, 10]


def test_a_whole_object_keeps_its_numbers():
    own = annotation([[5.5, 5, 9, 5, 9, 12.25]], area=13.5, note="mine", keypoints=[6, 7, 2])
    tile = parts([own], size=40)[0]
    (part,) = tile.annotations
    assert part == {**own, "tile": {"annotation": 1, "share": 1.0}, "num_keypoints": 1}


def test_little_of_an_object_is_left_out_but_of_a_crowd_nothing_is():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:20, 35:65] = 1  # a sixth of it is left of x = 40
    both = [annotation(rle_of(mask)), annotation(rle_of(mask), 2, iscrowd=1)]
    for min_share, kept in ((0.3, [1]), (0.1, [0, 1])):
        left = parts(both, size=40, overlap=0, min_share=min_share)[0]
        assert [a["iscrowd"] for a in left.annotations] == kept
        assert left.left_out == 2 - len(kept)


def test_a_small_part_of_an_object_larger_than_the_tile_is_kept():
    wall = annotation([[0.0, 0, 130, 0, 130, 100, 0, 100]])
    found = parts([wall], size=40, overlap=0, min_share=0.3)
    assert all(t.annotations for t in found)
    assert max(t.annotations[0]["tile"]["share"] for t in found) < 0.2


def test_what_fills_a_tile_that_is_less_high_than_wide_is_kept():
    """Tiles are 120 x 100 pixels, as the image is no higher."""
    wall = annotation([[0.0, 0, 130, 0, 130, 100, 0, 100]])
    found = parts([wall], size=120, overlap=0, min_share=0.95)
    assert [t.window[2:] for t in found] == [(120, 100)] * 2
    assert all(t.annotations and t.annotations[0]["tile"]["share"] < 0.95 for t in found)


def test_boxes_without_masks_are_clipped():
    own = annotation([[30.0, 10, 60, 10, 60, 20, 30, 20]])
    del own["segmentation"]
    (part,) = parts([own], size=40, overlap=0)[0].annotations
    assert part["bbox"] == [30, 10, 10, 10]
    assert part["area"] == 100
    assert "segmentation" not in part


@pytest.mark.parametrize("masked", [True, False])
def test_what_leaves_the_image_is_no_part_of_an_object(masked):
    """An outline may go on where the image ends; its share is of what can be seen."""
    own = annotation([[-80.0, 10, 20, 10, 20, 30, -80, 30]])
    if not masked:
        del own["segmentation"]
    (whole,) = parts([own], size=200, min_share=0.3)
    assert whole.annotations[0]["tile"]["share"] == 1
    assert whole.annotations[0]["bbox"] == own["bbox"]
    cut = parts([own], size=15, overlap=0, min_share=0.2)
    shares = {t.window[:2]: t.annotations[0]["tile"]["share"] for t in cut if t.annotations}
    assert shares == {(0, 0): 75 / 400, (0, 14): 225 / 400, (14, 14): 90 / 400}


def test_an_object_that_the_border_cuts_is_whole_in_a_tile_that_holds_the_rest():
    own = annotation([[120.0, 50, 160, 40, 160, 60]])  # it is widest out there
    found = [t for t in parts([own], size=30, overlap=0) if t.annotations]
    assert found
    for tile in found:
        (part,) = tile.annotations
        assert part["tile"]["share"] == 1
        assert part["segmentation"][0][1] + tile.window.y == 50


@pytest.mark.parametrize(("min_share", "kept"), [(0.25, 1), (0.26, 0)])
def test_the_least_share_itself_is_enough(min_share, kept):
    own = annotation([[30.0, 10, 70, 10, 70, 20, 30, 20]])  # a quarter is left of x = 40
    tile = parts([own], size=40, overlap=0, min_share=min_share)[0]
    assert (len(tile.annotations), tile.left_out) == (kept, 1 - kept)


@pytest.mark.parametrize(("height", "kept"), [(10, 1), (9, 0)])
def test_what_fills_the_least_share_of_a_tile_is_kept(height, kept):
    """Here a quarter, of 40 x 40 pixels; it is less of the object."""
    bottom = 10 + height
    own = annotation([[0.0, 10, 130, 10, 130, bottom, 130, 100, 120, 100, 120, bottom, 0, bottom]])
    tile = parts([own], size=40, overlap=0, min_share=0.25)[0]
    assert len(tile.annotations) == kept


@pytest.mark.parametrize(
    ("x", "expected"), [(30, [[30, 0, 2], [0, 0, 2]]), (40, [[0, 0, 0], [10, 0, 2]])]
)
def test_a_keypoint_on_an_edge_belongs_to_the_tile_that_begins_there(x, expected):
    """One tile ends at x = 40, the next begins at x = 30."""
    own = annotation([[20.0, 0, 60, 0, 60, 20, 20, 20]], keypoints=[x, 0, 2])
    both = parts([own], size=40, overlap=0)[:2]
    assert [t.window[:2] for t in both] == [(0, 0), (30, 0)]
    assert [t.annotations[0]["keypoints"] for t in both] == expected


def test_an_object_of_which_a_line_is_cut_off_is_not_whole():
    spike = [10.0, 10, 30, 10, 60, 10, 30, 10, 30, 20, 10, 20]
    (part,) = parts([annotation([spike])], size=40, overlap=0)[0].annotations
    assert 0.999 < part["tile"]["share"] < 1
    assert part["bbox"] == [10, 10, 20, 10]


def test_an_outline_without_area_is_in_no_tile():
    line = annotation([[10.0, 10, 60, 10, 10, 10]])
    assert not any(t.annotations for t in parts([line], size=40, overlap=0))


def test_keypoints_outside_are_not_labeled():
    own = annotation([[30.0, 10, 60, 10, 60, 20, 30, 20]], keypoints=[35, 12, 2, 55, 12, 2])
    (part,) = parts([own], size=40, overlap=0)[0].annotations
    assert part["keypoints"] == [35, 12, 2, 0, 0, 0]
    assert part["num_keypoints"] == 1


# --- Files


@pytest.fixture
def both_kinds(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:70, 30:80] = 1
    return dataset(tmp_path / "own", [annotation([star(3)]), annotation(rle_of(mask), 2)])


def test_a_dataset_of_tiles_loads_and_shows_the_same_pixels(both_kinds, tmp_path):
    done = tile_dataset(*both_kinds, tmp_path / "out", size=64, progress=False)
    original = np.asarray(Image.open(both_kinds[1] / "big.png"))
    coco = COCO(str(done.json_file))
    assert len(coco.imgs) == done.tiles == 6
    assert sorted(coco.anns) == list(range(1, done.whole + done.cut + 1))
    for image in coco.imgs.values():
        x, y = image["tile"]["x"], image["tile"]["y"]
        assert image["site"] == "A"
        tile = np.asarray(Image.open(done.image_root / image["file_name"]))
        assert (tile == original[y : y + 64, x : x + 64]).all()
    assert len(load_coco(done.json_file, done.image_root).records) == 6


def test_whole_cut_and_left_out_are_counted_over_all_tiles(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:10, 2:10] = mask[20:22, 2:120] = 1
    things = [annotation([star(3)]), annotation(rle_of(mask), 2)]
    how = {"size": 40, "overlap": 0.25, "min_share": 0.2}
    done = tile_dataset(*dataset(tmp_path, things), tmp_path / "out", **how, progress=False)
    found = parts(things, **how)
    shares = [a["tile"]["share"] for t in found for a in t.annotations]
    assert done.left_out == sum(t.left_out for t in found) > max(t.left_out for t in found)
    assert (done.whole, done.cut) == (shares.count(1), len(shares) - shares.count(1))


def test_each_image_is_read_once_and_not_at_all_when_resumed(both_kinds, tmp_path, monkeypatch):
    reads = []
    read = tiles.read_rgb
    monkeypatch.setattr(tiles, "read_rgb", lambda record: reads.append(1) or read(record))
    done = tile_dataset(*both_kinds, tmp_path / "out", size=64, progress=False)
    first = done.json_file.read_bytes()
    assert len(reads) == 1
    done.json_file.unlink()
    tile_dataset(*both_kinds, tmp_path / "out", size=64, progress=False)
    assert len(reads) == 1
    assert done.json_file.read_bytes() == first


@pytest.mark.parametrize(
    "other", [{"size": 32}, {"overlap": 0.3}, {"min_share": 0.2}, {"drop_empty": True}]
)
def test_a_folder_of_tiles_that_were_made_otherwise_is_refused(both_kinds, tmp_path, other):
    how = {"size": 64, "progress": False}
    tile_dataset(*both_kinds, tmp_path / "out", **how)
    with pytest.raises(SmallObjError, match="one that was made with other settings"):
        tile_dataset(*both_kinds, tmp_path / "out", **{**how, **other})


def test_tiles_of_other_images_under_the_same_names_are_refused(both_kinds, tmp_path):
    how = {"size": 64, "progress": False}
    tile_dataset(*both_kinds, tmp_path / "out", **how)
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(both_kinds[1] / "big.png")
    with pytest.raises(SmallObjError, match="holds a copy of other annotations or images"):
        tile_dataset(*both_kinds, tmp_path / "out", **how)
    (tmp_path / "out" / "recipe.json").write_text("")
    with pytest.raises(SmallObjError, match=r"recipe\.json is damaged"):
        tile_dataset(*both_kinds, tmp_path / "out", **how)


def test_jpegs_stay_jpegs_and_small_images_are_linked(tmp_path):
    files = dataset(tmp_path / "own", [annotation([star(3)])], "big.jpg", quality=95)
    done = tile_dataset(*files, tmp_path / "out", size=64, progress=False)
    assert {p.suffix for p in done.image_root.iterdir()} == {".jpg"}
    done = tile_dataset(*files, tmp_path / "whole", size=200, progress=False)
    (tile,) = done.image_root.iterdir()
    assert tile.samefile(files[1] / "big.jpg")


@pytest.mark.parametrize("name", ["big.JPG", "big.webp"])
def test_tiles_of_other_formats_are_png_and_images_that_are_linked_keep_their_name(name, tmp_path):
    files = dataset(tmp_path / "own", [annotation([star(3)])], name)
    done = tile_dataset(*files, tmp_path / "out", size=64, progress=False)
    suffix = ".JPG" if name.endswith("JPG") else ".png"
    assert {p.suffix for p in done.image_root.iterdir()} == {suffix}
    done = tile_dataset(*files, tmp_path / "whole", size=200, progress=False)
    (tile,) = done.image_root.iterdir()
    assert tile.suffix == files[1].joinpath(name).suffix


def test_tiles_that_are_jpegs_are_of_quality_95_and_whole_colour(tmp_path):
    files = dataset(tmp_path / "own", [annotation([star(3)])], "big.jpg", quality=95)
    done = tile_dataset(*files, tmp_path / "out", size=64, progress=False)
    again = tmp_path / "again.jpg"
    tile = next(done.image_root.iterdir())
    Image.new("RGB", (8, 8)).save(again, quality=95, subsampling=0)
    with Image.open(tile) as made, Image.open(again) as wanted:
        assert made.quantization == wanted.quantization
        assert made.layer == wanted.layer


def test_empty_tiles_are_kept_or_dropped(tmp_path):
    files = dataset(tmp_path / "own", [annotation([[5.0, 5, 9, 5, 9, 12]])])
    kept = tile_dataset(*files, tmp_path / "kept", size=64, progress=False)
    dropped = tile_dataset(*files, tmp_path / "less", size=64, drop_empty=True, progress=False)
    assert (kept.tiles, kept.empty, dropped.tiles, dropped.empty) == (6, 5, 1, 5)
    assert len(list(dropped.image_root.iterdir())) == 1


@pytest.mark.parametrize("size", [64, 640], ids=["cut", "linked"])
def test_images_that_cannot_be_read_stop_it_or_are_named(both_kinds, tmp_path, size):
    data = json.loads(both_kinds[0].read_text())
    data["images"].append({**data["images"][0], "id": 99, "file_name": "bad.png"})
    both_kinds[0].write_text(json.dumps(data))
    (both_kinds[1] / "bad.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"bad\.png"):
        tile_dataset(*both_kinds, tmp_path / "out", size=size, progress=False)
    how = {"size": size, "skip_unreadable": True, "progress": False}
    done = tile_dataset(*both_kinds, tmp_path / "out", **how)
    assert "bad.png" in done.skipped[0]
    assert done.tiles == (6 if size == 64 else 1)
    (both_kinds[1] / "big.png").write_bytes(b"no image")
    with pytest.raises(SmallObjError, match=r"No image could be read, .*big\.png"):
        tile_dataset(*both_kinds, tmp_path / "none", **how)
    assert not (tmp_path / "none" / "annotations.json").exists()


def test_a_wrong_folder_of_images_leaves_nothing_behind(both_kinds, tmp_path):
    how = {"size": 64, "progress": False}
    with pytest.raises(UnreadableImage, match="not there"):
        tile_dataset(both_kinds[0], tmp_path / "nowhere", tmp_path / "out", **how)
    assert tile_dataset(*both_kinds, tmp_path / "out", **how).tiles == 6


def test_the_command(both_kinds, tmp_path, capsys):
    words = ["--json", str(both_kinds[0]), "--images", str(both_kinds[1]), "--size", "64"]
    assert tool([*words, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "6 tiles" in capsys.readouterr().out
    assert tool([*words[:2], "--out", str(tmp_path / "b")]) == 2
    assert tool([*words, "--out", str(tmp_path / "b"), "--overlap", "1"]) == 2
    assert "--dataset, or --json and --images" in capsys.readouterr().err
