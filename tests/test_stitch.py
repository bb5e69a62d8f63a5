"""Beyond the paper: several images shrunk into one."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from proofs.random_scenes import random_scene, raster
from smallobj_d2.analysis.objects import objects_of
from smallobj_d2.analysis.presented import presented
from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.datasets.coco import get_records, register_dataset
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.engines import load_engine
from smallobj_d2.masks.shapes import box_xyxy
from smallobj_d2.sampling import Draw
from smallobj_d2.stitch import Stitch, read_stitched, warn_of_no_stitching

BLANK = {"annotations": [], "height": 60, "width": 80}


def scenes(seed, count=4):
    rng = np.random.default_rng(seed)
    records = []
    for _ in range(count):
        image, annotations = random_scene(rng, low=40)
        height, width = image.shape[:2]
        records.append(
            {"pixels": image, "annotations": annotations, "height": height, "width": width}
        )
    return records


def stitched(parts, own=0):
    record = {**parts[own], "stitched": parts}
    return read_stitched(record, lambda r: r["pixels"]), record["annotations"]


def bar(x, y, width, height, **changes):
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    polygon = [float(v) for corner in corners for v in corner]
    base = {"bbox": [x, y, width, height], "area": float(width * height), "category_id": 0}
    return {"iscrowd": 0, "segmentation": [polygon], **base, **changes}


def test_so_many_draws_show_so_many_images_and_their_own_is_one_of_them():
    stitch = Stitch(probability=0.3, seed=5, grid=3)
    shown = [stitch.images(Draw(k, k % 7, 0), 50) for k in range(2000)]
    assert {len(s) for s in shown} == {0, 9}
    assert sum(map(bool, shown)) == pytest.approx(600, abs=80)
    assert all(k % 7 in s for k, s in enumerate(shown) if s)
    where = [s.index(k % 7) for k, s in enumerate(shown) if s]
    assert np.bincount(where, minlength=9).min() > 30
    others = np.bincount(np.concatenate([s for s in shown if s]), minlength=50)
    assert others[7:].min() > 50  # 600 * 8 / 50 are 96


def test_a_draw_shows_what_seed_and_position_say():
    draws = [Draw(k, 3, 0) for k in range(50)]
    one, again, other = (Stitch(0.5, seed) for seed in (1, 1, 2))
    seen = [[s.images(d, 20) for d in draws] for s in (one, again, other)]
    assert seen[0] == seen[1] != seen[2]
    assert not any(Stitch(0.0, 1).images(d, 20) for d in draws)


def test_a_draw_that_is_not_stitched_is_read_as_it_is():
    record = scenes(1)[0]
    assert read_stitched(record, lambda r: r["pixels"]) is record["pixels"]


def test_images_of_one_size_are_halved_exactly():
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    parts = [
        {**BLANK, "height": 60, "width": 80, "pixels": p.repeat(2, 0).repeat(2, 1)} for p in pixels
    ]
    canvas, _ = stitched(parts)
    assert (canvas == np.block([[[pixels[0]], [pixels[1]]], [[pixels[2]], [pixels[3]]]])).all()


def test_a_box_a_polygon_and_keypoints_go_with_their_image():
    thing = bar(20, 12, 40, 24, id=7, keypoints=[30.0, 20.0, 2, 0, 0, 0], note="mine")
    parts = [{**BLANK, "pixels": np.zeros((60, 80, 3), np.uint8)} for _ in range(4)]
    parts[3]["annotations"] = [thing]
    _, (moved,) = stitched(parts)
    assert moved["bbox"] == [50, 36, 20, 12]
    assert moved["area"] == 240
    assert moved["segmentation"] == [[50, 36, 70, 36, 70, 48, 50, 48]]
    assert moved["keypoints"] == [55, 40, 2, 0, 0, 0]
    assert moved["note"] == "mine"
    assert "copy_paste" not in moved
    assert thing["bbox"] == [20, 12, 40, 24]


def test_what_shrinks_below_a_few_pixels_leaves_and_crowds_stay_crowds():
    parts = [{**BLANK, "pixels": np.zeros((60, 80, 3), np.uint8)} for _ in range(4)]
    parts[0]["annotations"] = [bar(10, 10, 3, 2), bar(30, 10, 4, 4), bar(9, 30, 40, 20, iscrowd=1)]
    _, left = stitched(parts)
    assert [a["bbox"] for a in left] == [[15, 5, 2, 2], [4.5, 15, 20, 10]]
    assert [a["iscrowd"] for a in left] == [0, 1]


def test_an_image_is_never_enlarged_and_the_rest_of_its_cell_is_grey():
    own = {**BLANK, "pixels": np.zeros((60, 80, 3), np.uint8)}
    tiny = {**BLANK, "height": 5, "width": 7, "pixels": np.full((5, 7, 3), 255, np.uint8)}
    canvas, _ = stitched([own, tiny, tiny, tiny])
    assert (canvas[:5, 40:47] == 255).all()
    assert (canvas[:30, 47:] == 128).all()
    assert (canvas[5:30, 40:] == 128).all()


def test_a_mask_at_the_border_stays_in_its_cell():
    """In images of any size, where the border of a shrunk mask is no whole number of pixels."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, canvas = rng.integers(30, 200, 2), rng.integers(30, 90, 2)
        mask = np.zeros(size, np.uint8)
        y, x = rng.integers(0, size - 9)
        mask[y:, x:] = 1
        rle = coco_mask.encode(np.asfortranarray(mask))
        thing = bar(x, y, size[1] - x, size[0] - y, segmentation=rle)
        part = {"annotations": [thing], "pixels": np.full((*size, 3), 255, np.uint8)}
        own = {"annotations": [], "height": int(canvas[0]), "width": int(canvas[1])}
        own["pixels"] = np.zeros((*canvas, 3), np.uint8)
        pixels, moved = stitched([own, part, part, part])
        filled = sum(raster(a["segmentation"], *canvas) for a in moved)
        assert filled.max(initial=0) == 1
        assert (filled <= (pixels[:, :, 0] == 255)).all()
        assert [a["area"] for a in moved] == [
            raster(a["segmentation"], *canvas).sum() for a in moved
        ]


@pytest.mark.parametrize("seed", range(25))
def test_masks_lie_where_their_image_lies_and_boxes_around_them(seed):
    """Polygons and RLE: a mask of the canvas is one of an image, shrunk, give or take an edge."""
    parts = scenes(seed)
    canvas, annotations = stitched(parts, own=seed % 4)
    height, width = canvas.shape[:2]
    assert (height, width) == parts[seed % 4]["pixels"].shape[:2]
    left = iter(annotations)
    for k, part in enumerate(parts):
        y0, x0 = k // 2 * height // 2, k % 2 * width // 2
        y1, x1 = (k // 2 + 1) * height // 2, (k % 2 + 1) * width // 2
        h, w = part["pixels"].shape[:2]
        scale = min((y1 - y0) / h, (x1 - x0) / w, 1)
        rows, columns = max(1, round(h * scale)), max(1, round(w * scale))
        for source in part["annotations"]:
            if "segmentation" not in source:
                continue
            before = raster(source["segmentation"], h, w)
            if before.sum() * scale**2 < 30:
                continue
            moved = next(a for a in left if a.get("id") == source["id"])
            after = raster(moved["segmentation"], height, width)
            inside = np.zeros_like(after)
            ys = np.minimum((np.arange(rows) + 0.5) * h / rows, h - 1).astype(int)
            xs = np.minimum((np.arange(columns) + 0.5) * w / columns, w - 1).astype(int)
            inside[y0 : y0 + rows, x0 : x0 + columns] = before[np.ix_(ys, xs)]
            edge = 2 * (after.any(0).sum() + after.any(1).sum()) + 4
            assert np.count_nonzero(after != inside) <= edge
            if isinstance(moved["segmentation"], list):
                ratio = np.tile([columns / w, rows / h], 2)
                box = np.array(box_xyxy(source)) * ratio + (x0, y0, x0, y0)
            else:
                ys, xs = np.nonzero(after)
                box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert moved["area"] == after.sum()
            assert np.allclose(box_xyxy(moved), box, atol=1e-9)
            assert moved["category_id"] == source["category_id"]


@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_the_model_is_fed_what_was_stitched(engine, tmp_path):
    """In every engine: the pixels of the canvas, resized and flipped, and its objects."""
    if engine == "detectron2" and not has_detectron2():
        pytest.skip("Detectron2 is not installed")
    json_file = make_dataset(tmp_path, "s", 6, seed=1, size=96, progress=False)
    name = f"stitch_{engine}"
    cfg = load_cfg(
        "beyond/bank_stitch",
        ["SMALLOBJ.DATASETS", str([[name, str(json_file), str(json_file.parent / "images")]])]
        + ["DATASETS.TRAIN", f"('{name}',)", "SEED", "3", "DATALOADER.NUM_WORKERS", "0"]
        + ["INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.RANDOM_FLIP", "none"],
    )
    dataset = load_engine(engine).build_train_loader(cfg).dataset
    drawn = [dataset.record(k) for k in range(40)]
    at = [k for k, record in enumerate(drawn) if "stitched" in record]
    assert 4 <= len(at) <= 20
    for k in at[:5]:
        canvas = read_stitched(drawn[k], lambda record: read_rgb(record)[:, :, ::-1])
        sample = dataset[k]
        assert "stitched" not in sample
        assert (sample["image"].numpy() == canvas.transpose(2, 0, 1)).all()
        if engine == "torchvision":
            boxes = sample["target"]["boxes"].numpy()
        else:
            boxes = sample["instances"].gt_boxes.tensor.numpy()
        expected = [box_xyxy(a) for a in drawn[k]["annotations"] if not a["iscrowd"]]
        assert np.allclose(boxes, expected, atol=1e-3)
    again = load_engine(engine).build_train_loader(cfg).dataset
    assert all((again[k]["image"] == dataset[k]["image"]).all() for k in at[:5])


def test_an_analysis_counts_the_objects_that_stitched_draws_show(tmp_path):
    json_file = make_dataset(tmp_path, "s", 6, seed=1, size=96, progress=False)
    register_dataset("stitch_presented", json_file, json_file.parent / "images")
    records = get_records(("stitch_presented",))
    objects = objects_of(records)
    shown = {}
    for share in (0.0, 1.0):
        opts = ["SMALLOBJ.STITCH_PROBABILITY", str(share), "SMALLOBJ.COPY_PASTE", "False"]
        cfg = load_cfg("beyond/bank_stitch", [*opts, "SEED", "1"])
        shown[share] = presented(records, objects, cfg, epochs=20).objects
    small = {share: (found.areas < 1024).sum() for share, found in shown.items()}
    assert len(shown[1.0]) > 2.5 * len(shown[0.0])
    assert small[1.0] > 3 * small[0.0]


def test_where_it_has_no_effect_it_is_said(caplog):
    warn_of_no_stitching(load_cfg("beyond/bank_stitch"), "a photo album")
    warn_of_no_stitching(load_cfg("beyond/bank"), "a photo album")
    assert caplog.messages == ["Without effect in a photo album: SMALLOBJ.STITCH_PROBABILITY."]
