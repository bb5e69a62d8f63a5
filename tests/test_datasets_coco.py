"""COCO JSON to Detectron2's dataset dicts: what is kept, what is put right, what is refused."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from smallobj_d2.config import get_cfg, has_detectron2, load_cfg
from smallobj_d2.datasets import coco
from smallobj_d2.datasets.coco import (
    dataset_info,
    get_records,
    load_coco,
    load_dataset,
    register_dataset,
    register_from_config,
    with_paths,
    without_empty,
)
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import load_ground_truth

CONFIGS = Path(__file__).parents[1] / "configs"
REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"

needs_detectron2 = pytest.mark.skipif(not has_detectron2(), reason="detectron2 is not installed")
needs_coco = pytest.mark.skipif(
    not REAL.is_dir(), reason="there is no coco/ under DETECTRON2_DATASETS"
)
both_splits = pytest.mark.parametrize("split", ["train", "val"])

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


@pytest.fixture(autouse=True)
def _own_names(monkeypatch):
    """Names that a test registers are gone after it."""
    monkeypatch.setattr(coco, "_registered", {})


def annotation(**changes: Any) -> dict[str, Any]:
    base = {
        "id": 1,
        "image_id": 5,
        "category_id": 7,
        "bbox": [2, 2, 6, 6],
        "area": 36,
        "iscrowd": 0,
        "segmentation": [SQUARE],
    }
    return {k: v for k, v in {**base, **changes}.items() if v is not None}


def content(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": list(annotations),
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
        **changes,
    }


def load(folder: Path, data: Any) -> coco.CocoDataset:
    path = folder / "a.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return load_coco(path, folder / "images")


def load_one(folder: Path, **changes: Any) -> dict[str, Any]:
    """The only annotation of a dataset."""
    (record,) = load(folder, content(annotation(**changes))).records
    (instance,) = record["annotations"]
    return instance


def rle_of(mask: np.ndarray, *, compressed: bool) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [0]])
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)), [mask.size]]))
    return {"size": list(mask.shape), "counts": runs.tolist()}


# --- the real thing


@needs_coco
@needs_detectron2
@both_splits
def test_real_coco_is_as_detectron2_loads_it(split):
    from detectron2.data.datasets import load_coco_json

    json_file = REAL / "annotations" / f"instances_{split}2017.json"
    theirs = load_coco_json(str(json_file), str(REAL / f"{split}2017"), f"test_{split}")
    ours = load_dataset(f"coco_2017_{split}").records
    assert len(ours) == len(theirs)
    for own, their in zip(ours, theirs, strict=True):
        assert {k: v for k, v in own.items() if k != "annotations"} == {
            k: v for k, v in their.items() if k != "annotations"
        }
        assert [
            {k: a[k] for k in t}
            for a, t in zip(own["annotations"], their["annotations"], strict=True)
        ] == their["annotations"]


@needs_coco
@needs_detectron2
def test_real_coco_has_detectron2s_categories():
    from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

    theirs = _get_builtin_metadata("coco")
    ours = load_dataset("coco_2017_train")
    assert ours.thing_classes == theirs["thing_classes"]
    mapping = {c: i for i, c in enumerate(ours.category_ids)}
    assert mapping == theirs["thing_dataset_id_to_contiguous_id"]


@needs_coco
@both_splits
def test_real_coco_keeps_area_and_crowds(split):
    data = json.loads((REAL / "annotations" / f"instances_{split}2017.json").read_text())
    records = load_dataset(f"coco_2017_{split}").records
    loaded = {a["id"]: a for r in records for a in r["annotations"]}
    assert len(loaded) == len(data["annotations"])
    for a in data["annotations"]:
        own = loaded[a["id"]]
        assert (own["area"], own["iscrowd"]) == (a["area"], a["iscrowd"])
        assert isinstance(own["segmentation"], dict) == bool(a["iscrowd"])


# --- what is kept


def test_categories_become_contiguous_in_the_order_of_their_ids(tmp_path):
    data = content(annotation(), annotation(id=2, category_id=3))
    dataset = load(tmp_path, data)
    assert dataset.thing_classes == ["three", "seven"]
    assert dataset.category_ids == [3, 7]
    assert [a["category_id"] for a in dataset.records[0]["annotations"]] == [1, 0]


def test_keys_of_ones_own_are_carried_along(tmp_path):
    instance = load_one(tmp_path, attributes={"occluded": True}, score=0.5)
    assert (instance["attributes"], instance["score"]) == ({"occluded": True}, 0.5)


def test_images_come_sorted_by_id_and_empty_ones_too(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (9, 5, 7)]
    records = load(tmp_path, content(annotation(), images=images)).records
    assert [r["image_id"] for r in records] == [5, 7, 9]
    assert records[0]["file_name"] == str(tmp_path / "images" / "5.jpg")
    assert [r["image_id"] for r in without_empty(records)] == [5]


def test_an_image_with_crowds_only_has_nothing_to_learn_from(tmp_path):
    records = load(tmp_path, content(annotation(iscrowd=1))).records
    assert records[0]["annotations"][0]["iscrowd"] == 1
    assert without_empty(records) == []


@pytest.mark.parametrize("compressed", [True, False])
def test_rle_of_either_kind_becomes_compressed_rle(tmp_path, compressed):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:11] = True
    mask[5, 6] = False
    instance = load_one(
        tmp_path, segmentation=rle_of(mask, compressed=compressed), bbox=[4, 3, 7, 6]
    )
    assert isinstance(instance["segmentation"]["counts"], str | bytes)
    assert (coco_mask.decode(instance["segmentation"]) == mask).all()


def test_keypoints_move_from_pixel_indices_to_coordinates(tmp_path):
    instance = load_one(tmp_path, keypoints=[3, 4, 2, 0, 0, 0], num_keypoints=1)
    assert instance["keypoints"] == [3.5, 4.5, 2, 0.5, 0.5, 0]  # as Detectron2 does


# --- what is put right


def test_polygons_of_whole_numbers_become_floats(tmp_path):
    """Detectron2's resize would round each corner of an integer polygon."""
    instance = load_one(tmp_path, segmentation=[[2, 2, 8, 2, 8, 8, 2, 8]])
    assert np.asarray(instance["segmentation"][0]).dtype == np.float64
    assert instance["segmentation"] == [SQUARE]


def test_polygons_of_under_three_points_go(tmp_path):
    instance = load_one(tmp_path, segmentation=[[1, 1, 2, 2], SQUARE, [1, 1, 2, 2, 3, 3, 4]])
    assert instance["segmentation"] == [SQUARE]


def test_an_instance_without_a_valid_polygon_goes_and_is_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path, content(annotation(segmentation=[[1, 1, 2, 2]])))
    assert dataset.records[0]["annotations"] == []
    assert "1 warning of polygon-short" in caplog.text


@pytest.mark.parametrize("counts", [[600], [600, 0], [0, 0, 600], [250, 0, 350]])
def test_an_rle_without_a_pixel_goes_however_it_is_written(tmp_path, counts):
    empty = annotation(segmentation={"size": [20, 30], "counts": counts})
    (record,) = load(tmp_path, content(empty)).records
    assert record["annotations"] == []
    assert load_ground_truth(tmp_path / "a.json").anns == {}


def test_a_missing_area_is_that_of_the_mask_or_else_of_the_box(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert load_one(tmp_path, area=None)["area"] == 36
        assert load_one(tmp_path, area=None, segmentation=None)["area"] == 36
        hole = np.ones((20, 30), bool)
        hole[:10] = False
        rle = rle_of(hole, compressed=True)
        assert load_one(tmp_path, area=None, segmentation=rle)["area"] == 300
        triangle = [2.0, 2.0, 8.0, 2.0, 2.0, 8.0]
        assert load_one(tmp_path, area=None, segmentation=[triangle])["area"] < 25
    assert "1 note of area-missing" in caplog.text


def test_a_missing_iscrowd_is_none(tmp_path):
    assert load_one(tmp_path, iscrowd=None)["iscrowd"] == 0


def test_a_box_that_is_its_masks_has_floats(tmp_path):
    """Detectron2 moves boxes in the type they have."""
    instance = load_one(tmp_path, bbox=[9, 9, 1, 1], segmentation=[[2.0, 2, 8, 2, 8, 8, 2, 8]])
    assert list(map(type, instance["bbox"])) == [float] * 4


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_a_box_that_does_not_hold_its_mask_is_replaced(tmp_path, caplog, kind):
    mask = np.zeros((20, 30), bool)
    mask[2:8, 2:8] = True
    segmentation = [SQUARE] if kind == "polygon" else rle_of(mask, compressed=True)
    with caplog.at_level(logging.WARNING):
        instance = load_one(tmp_path, bbox=[20, 10, 3, 3], segmentation=segmentation)
    assert instance["bbox"] == [2, 2, 6, 6]
    assert "1 warning of bbox-mask" in caplog.text
    assert load_one(tmp_path, bbox=[1.5, 2.4, 6, 6])["bbox"] == [1.5, 2.4, 6, 6]  # under a pixel


@pytest.mark.parametrize(
    ("outline", "held"),
    [
        ([24.0, 5, 40, 5, 40, 9, 24, 9], [24, 5, 6, 4]),
        ([20.0, 10, 40, 0, 40, 20], [20, 5, 10, 10]),  # it is widest out there
        ([-9.0, -9, 4, -9, 4, 4, -9, 4], [0, 0, 4, 4]),
    ],
)
def test_a_box_holds_a_mask_as_far_as_the_image_goes(tmp_path, outline, held):
    assert load_one(tmp_path, bbox=held, segmentation=[outline])["bbox"] == held
    assert load_one(tmp_path, bbox=[1, 19, 1, 1], segmentation=[outline])["bbox"] == held


@pytest.mark.parametrize(
    ("outline", "box"),
    [
        ([28.0, 5, 31, 5, 30.5, 5], [28, 5, 2, 1]),
        ([28.5, 2, 28.5, 25, 28.5, 9], [28, 2, 1, 18]),
        ([28.0, -6, 40, -6, 40, 4], [28, 0, 2, 4]),
    ],
)
def test_what_has_no_area_in_the_image_stays_as_in_coco(tmp_path, outline, box):
    assert load_one(tmp_path, bbox=box, segmentation=[outline])["bbox"] == box
    assert len(load_ground_truth(tmp_path / "a.json").anns) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_a_box_one_pixel_short_of_a_mask_that_is_one_pixel_wide_is_replaced(tmp_path, size):
    """Some exporters take the last pixel for the end of a box."""
    (height, width), mask = size, np.zeros((20, 30), bool)
    mask[3 : 3 + height, 4 : 4 + width] = True
    short = [4, 3, width - 1, height - 1]
    instance = load_one(
        tmp_path, bbox=short, area=height * width, segmentation=rle_of(mask, compressed=True)
    )
    assert instance["bbox"] == [4, 3, width, height]


def test_a_ground_truth_that_cannot_be_read_is_named(tmp_path):
    """Its images do not matter there; the file does."""
    with pytest.raises(SmallObjError, match=r"gone\.json: the file cannot be read"):
        load_ground_truth(tmp_path / "gone.json")


# --- what is refused

WRONG_JSON = [
    ("{", "is not valid JSON"),
    ([], "no list 'images'"),
    ({"images": [], "annotations": {}, "categories": []}, "no list 'annotations'"),
    (content(images=[{"id": 5, "file_name": "a.jpg"}]), "images[0] lacks height, width"),
    (content(annotation(bbox=None)), "annotations[0] lacks bbox"),
    (content(images=["a.jpg"]), "images[0] lacks id"),
    (content(annotation(id=77, image_id=6)), "annotation 77: belongs to image 6"),
    (content(annotation(id=77, category_id=4)), "annotation 77: belongs to category 4"),
    (content(annotation(id=77, bbox=[1, 2, 3])), "annotation 77: bbox [1, 2, 3]"),
    (
        content(annotation(id=77, segmentation={"size": [30, 20], "counts": [600]})),
        "annotation 77: its RLE is for an image of size [30, 20], but its image",
    ),
    (content(images=2 * content()["images"]), "two images of id 5"),
    *(
        (content(images=[{**content()["images"][0], "file_name": name}]), "leads out of the image")
        for name in ("../a.jpg", "b/../../a.jpg", "/etc/passwd")
    ),
]


@pytest.mark.parametrize(("data", "message"), WRONG_JSON, ids=[m for _, m in WRONG_JSON])
def test_what_is_not_coco_gives_one_line_naming_file_and_id(tmp_path, data, message):
    with pytest.raises(SmallObjError) as e:
        load(tmp_path, data)
    assert message in str(e.value)
    assert str(tmp_path / "a.json") in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SmallObjError, match=r"gone\.json: the file cannot be read"):
        load_coco(tmp_path / "gone.json", tmp_path)


# --- names


def lay_out(folder: Path, json_file: str, images: str) -> None:
    (folder / images).mkdir(parents=True)
    (folder / json_file).parent.mkdir(parents=True, exist_ok=True)
    (folder / json_file).write_text(json.dumps(content(annotation())))


@pytest.mark.parametrize("split", ["train", "val"])
def test_names_resolve_as_detectron2_lays_them_out(tmp_path, monkeypatch, split):
    lay_out(tmp_path, f"coco/annotations/instances_{split}2017.json", f"coco/{split}2017")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert load_dataset(f"coco_2017_{split}").thing_classes == ["three", "seven"]


@needs_detectron2
def test_builtin_names_are_detectron2s(monkeypatch):
    from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_COCO

    theirs = _PREDEFINED_SPLITS_COCO["coco"]
    assert {n: (theirs[n][1], theirs[n][0]) for n in coco.BUILTIN} == coco.BUILTIN


@pytest.mark.parametrize("missing", ["file", "image folder"])
def test_what_is_not_there_is_named_with_the_remedy(tmp_path, monkeypatch, missing):
    lay_out(tmp_path, "coco/annotations/instances_val2017.json", "coco/val2017")
    if missing == "file":
        (tmp_path / "coco/annotations/instances_val2017.json").unlink()
    else:
        (tmp_path / "coco/val2017").rmdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(SmallObjError, match=f"no {missing} .*DETECTRON2_DATASETS must name"):
        dataset_info("coco_2017_val")


def test_the_default_folder_is_detectron2s(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SmallObjError, match="it is datasets now"):
        dataset_info("coco_2017_val")


def test_an_unknown_name_lists_those_that_there_are():
    register_dataset("mine", "a.json", "images")
    with pytest.raises(SmallObjError, match=r"no dataset 'main'.*coco_2017_train.*mine"):
        dataset_info("main")


def test_a_dataset_of_ones_own_gets_its_name_from_python_or_from_a_config(tmp_path):
    lay_out(tmp_path, "a.json", "images")
    register_dataset("mine", tmp_path / "a.json", tmp_path / "images")
    entry = f'[["yours", "{tmp_path / "a.json"}", "{tmp_path / "images"}"]]'
    register_from_config(load_cfg(CONFIGS / "baseline.yaml", ["SMALLOBJ.DATASETS", entry]))
    records = get_records(["mine", "yours"])
    assert [r["image_id"] for r in records] == [5, 5]


def test_registering_twice_is_fine_but_not_under_a_name_that_is_taken(tmp_path):
    register_dataset("mine", "a.json", "images")
    register_dataset("mine", "a.json", "images")
    for name, json_file in (("mine", "b.json"), ("coco_2017_val", "a.json")):
        with pytest.raises(SmallObjError, match=f"name '{name}' is taken"):
            register_dataset(name, json_file, "images")


def test_datasets_that_are_trained_on_together_must_agree_on_categories(tmp_path):
    for name, categories in (("one", [{"id": 7, "name": "seven"}]), ("two", [])):
        (tmp_path / name).mkdir()
        data = content(categories=categories)
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
        register_dataset(name, tmp_path / f"{name}.json", tmp_path / name)
    with pytest.raises(SmallObjError, match="one and two do not have the same categories"):
        get_records(["one", "two"])


def test_a_config_can_name_a_dataset_by_its_files_alone():
    cfg = get_cfg()
    one = with_paths(cfg, "x/a.json", "~/images")
    assert one.DATASETS.TRAIN == ("a",)
    assert [["a", "x/a.json", str(Path.home() / "images")]] == one.SMALLOBJ.DATASETS
    assert list(cfg.SMALLOBJ.DATASETS) == []
    assert with_paths(one, "x/a.json", "~/images").SMALLOBJ.DATASETS == one.SMALLOBJ.DATASETS
    two = with_paths(one, "y/a.json", "images", "TEST")
    assert (two.DATASETS.TRAIN, two.DATASETS.TEST) == (("a",), ("a_2",))
    assert with_paths(cfg, "y/coco_2017_val.json", "").DATASETS.TRAIN == ("coco_2017_val_2",)
