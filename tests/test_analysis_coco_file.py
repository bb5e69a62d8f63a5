"""A COCO file packed is equal to the same file read whole, and refused in the same words."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.analysis import write_resampled
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.objects import objects_of
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.errors import SmallObjError

REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
FILES = [
    *(f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")),
    *(f"dsb2018/annotations/{split}.json" for split in ("train", "val")),
]

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]
SHORT = [1, 2, 3, 4]
IMAGES = [
    {"id": 9, "file_name": "b.jpg", "height": 20, "width": 30},
    {"id": 5, "file_name": "a.jpg", "height": 20, "width": 30},
    {"id": 7, "file_name": "c.jpg", "height": 10, "width": 10},
]
RLE = {"size": [20, 30], "counts": [42, 5, 15, 5, 533]}
ANNOTATIONS = [
    {"id": 1, "image_id": 5, "category_id": 3, "bbox": [2, 2, 6, 6], "segmentation": [SQUARE]},
    {"id": 2, "image_id": 9, "category_id": 1, "bbox": [2, 2, 6, 6], "area": 36, "iscrowd": 0},
    {"id": 3, "image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": [SQUARE]},
    {
        "id": 4,
        "image_id": 5,
        "category_id": 1,
        "bbox": [2, 2, 6, 6],
        "segmentation": [SHORT],
    },
    {"id": 5, "image_id": 9, "category_id": 3, "bbox": [2, 2, 2, 5], "segmentation": RLE},
    {"id": 6, "image_id": 9, "category_id": 3, "bbox": [2, 2, 9, 9], "area": 50, "iscrowd": 1},
]
CATEGORIES = [{"id": 3, "name": "b"}, {"id": 1, "name": "a \u732b"}]
CONTENT = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}


def assert_equal_to_whole(path: Path, root: Path) -> CocoFile:
    found, wanted = CocoFile(path, root), load_coco(path, root).records
    assert list(found) == wanted
    for name, value in vars(objects_of(wanted)).items():
        np.testing.assert_array_equal(getattr(found.objects, name), value, err_msg=name)
    with pytest.raises(IndexError):
        found[len(found)]
    return found


@pytest.mark.parametrize("file", FILES)
def test_real_files(file):
    if not (REAL / file).is_file():
        pytest.skip(f"there is no {file} under DETECTRON2_DATASETS")
    assert_equal_to_whole(REAL / file, REAL)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_defects_are_repaired_alike(tmp_path, indent, ascii_only):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, indent=indent, ensure_ascii=ascii_only))
    found = assert_equal_to_whole(path, tmp_path)
    assert found.repaired == {
        "no iscrowd": 4,
        "no area": 4,
        "no valid polygon": 1,
        "box does not hold mask": 1,
    }
    assert found.objects.crowds == 1
    assert found.objects.masked.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    "order",
    [("annotations", "images", "categories"), ("categories", "annotations", "images")],
)
def test_lists_may_come_in_any_order_with_anything_between(tmp_path, order):
    content = {"info": {"images": [1, {"annotations": []}]}, "licenses": []}
    content |= {name: CONTENT[name] for name in order} | {"more": None}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert_equal_to_whole(path, tmp_path)


def test_nothing_in_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"images": [], "annotations": [ ], "categories":[]}')
    found = assert_equal_to_whole(path, tmp_path)
    assert len(found) == len(found.objects) == 0


BAD = {
    "no list": {k: v for k, v in CONTENT.items() if k != "annotations"},
    "not a list": {**CONTENT, "images": {}},
    "a list": [],
    "no such image": {**CONTENT, "images": IMAGES[:1]},
    "no such category": {**CONTENT, "categories": CATEGORIES[:1]},
    "no box": {**CONTENT, "annotations": [{"id": 1, "image_id": 5, "category_id": 1}]},
    "short box": {**CONTENT, "annotations": [{**ANNOTATIONS[0], "bbox": [1, 2, 3]}]},
    "no height": {**CONTENT, "images": [{"id": 5, "file_name": "a.jpg", "width": 3}]},
    "other size": {
        **CONTENT,
        "annotations": [{**ANNOTATIONS[4], "segmentation": {**RLE, "size": [1, 2]}}],
    },
    "not a number": {
        **CONTENT,
        "annotations": [{**ANNOTATIONS[1], "bbox": [1, 2, float("nan"), 3]}],
    },
    "same id": {**CONTENT, "images": [*IMAGES, IMAGES[0]]},
    "no pixels": {**CONTENT, "images": [*IMAGES[:2], {**IMAGES[2], "height": 0}]},
    "leads out": {**CONTENT, "images": [*IMAGES[:2], {**IMAGES[2], "file_name": "../c.jpg"}]},
}


TEXTS = {name: json.dumps(content) for name, content in BAD.items()}
TEXTS |= {"empty": "", "cut off": '{"images": [{"id": 1', "half": json.dumps(CONTENT)[:400]}


@pytest.mark.parametrize("content", TEXTS.values(), ids=list(TEXTS))
def test_what_the_loader_refuses_is_refused_in_its_words(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(SmallObjError) as wanted:
        load_coco(path, tmp_path)
    with pytest.raises(SmallObjError) as found:
        CocoFile(path, tmp_path)
    assert str(found.value) == str(wanted.value)


def test_no_such_file(tmp_path):
    with pytest.raises(SmallObjError, match=r"a\.json"):
        CocoFile(tmp_path / "a.json", tmp_path)


def test_resampling_makes_a_dataset_of_the_wanted_size(tmp_path):
    made = make_dataset(tmp_path, "scenes", 3, seed=1, progress=False)
    source = CocoFile(made, tmp_path)
    path = tmp_path / "large.json"
    for images, annotations in ((20, 50), (5, 400)):  # thinned out, and repeated
        write_resampled(source, path, images, annotations)
        found = assert_equal_to_whole(path, tmp_path)
        assert len(found) == images
        assert len(found.objects) + found.objects.crowds == annotations
        assert set(found.objects.areas) <= set(source.objects.areas)
