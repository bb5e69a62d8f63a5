"""AP and recall by bands of size: pycocotools' numbers, and no object lost between bands."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smallobj_d2.config import get_cfg
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.evaluation.ap import coco_metrics, count_objects, load_ground_truth
from smallobj_d2.evaluation.by_size import RELATIVE_LIMITS, by_size, side, size_table
from tests.detections import boxes_beside

LIMITS = get_cfg().SMALLOBJ.SIZE_LIMITS


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Synthetic scenes, and detections a little beside their objects."""
    json_file = make_dataset(tmp_path_factory.mktemp("d"), "x", 8, seed=4, size=160, progress=False)
    truth = load_ground_truth(json_file)
    return json_file, truth, boxes_beside(truth, 1, (0.7, 1.4))


def plain(data, results, low, high, relative=False):
    """pycocotools by itself, with one range of areas, or of shares of the image: AP, AP50, AR."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(data))
        truth.createIndex()
        found = truth.loadRes(results)
        if relative:
            for a in (*truth.anns.values(), *found.anns.values()):
                image = truth.imgs[a["image_id"]]
                a["area"] /= image["height"] * image["width"]
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[low, high]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]
    recall = evaluation.eval["recall"][..., 0, 0]
    return [x[x > -1].mean() if (x > -1).any() else None for x in (precision, precision[0], recall)]


@pytest.mark.parametrize(
    ("kind", "ends", "less"),
    [("pixels", [0, *LIMITS, 1e5], 1e-6), ("relative", [0, *RELATIVE_LIMITS, 2], 1e-9)],
)
def test_every_band_is_what_pycocotools_says_of_these_areas(case, kind, ends, less):
    _, truth, results = case
    measured = by_size(truth, results, "bbox", LIMITS)[kind]
    assert sum(band["AP"] is not None for band in measured) > 3
    for band, low, high in zip(measured, ends, ends[1:], strict=False):
        areas = low**2, high**2 - less
        expected = plain(truth.dataset, results, *areas, relative=kind == "relative")
        assert [band[k] for k in ("AP", "AP50", "AR")] == pytest.approx(expected, abs=1e-5)


def test_relative_bands_are_those_of_an_image_of_any_size(case):
    """Of scenes enlarged by 3, the pixels change and the shares of the image do not."""
    _, truth, results = case
    data = json.loads(json.dumps(truth.dataset))
    for image in data["images"]:
        image["height"], image["width"] = 3 * image["height"], 3 * image["width"]
    for a in data["annotations"]:
        a["bbox"], a["area"] = [3 * v for v in a["bbox"]], 9 * a["area"]
        a.pop("segmentation")
    larger = COCO()
    larger.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        larger.createIndex()
    before = by_size(truth, results, "bbox", LIMITS)
    large = [{**r, "bbox": [3 * v for v in r["bbox"]]} for r in results]
    after = by_size(larger, large, "bbox", LIMITS)
    assert after["relative"] == before["relative"]
    assert after["pixels"] != before["pixels"]
    assert len(after["relative"]) == len(RELATIVE_LIMITS) + 1


def test_bands_share_out_all_objects(case):
    _, truth, results = case
    measured = by_size(truth, results, "bbox", (10, 11.5, 40))
    for kind in ("pixels", "relative"):
        counted = sum(band["objects"] for band in measured[kind])
        assert counted == count_objects(truth)["all"]
    assert [side(b) for b in measured["pixels"]] == [
        "below 10",
        "10 to 11.5",
        "11.5 to 40",
        "from 40",
    ]
    assert side(measured["relative"][1], percent=True) == "1% to 2%"


def test_small_objects_are_those_of_ap_s_also_by_category(case):
    _, truth, results = case
    small = by_size(truth, results, "bbox", LIMITS)
    assert small["small"]["AP"] == pytest.approx(
        coco_metrics(truth, results, "bbox")["APs"], abs=1e-5
    )
    each = small["categories"].values()
    assert (
        sum(c["objects"] for c in each)
        == small["small"]["objects"]
        == count_objects(truth)["small"]
    )
    assert np.mean([c["AP"] for c in each]) == pytest.approx(small["small"]["AP"], abs=1e-4)


def test_no_detection_is_an_ap_of_0_where_there_are_objects(case):
    _, truth, _ = case
    for band in by_size(truth, [], "bbox", LIMITS)["pixels"]:
        assert band["AP"] == (0 if band["objects"] else None)
    text = size_table({"segm": by_size(truth, [], "segm", LIMITS)})
    assert "below 8  8 to 16  16 to 32" in text


def test_an_object_at_a_limit_is_of_the_band_that_begins_there_and_a_crowd_of_none():
    data = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1 + crowd, "image_id": 1, "category_id": 1, "bbox": [9 + 50 * crowd, 9, 8, 8]}
            | {"area": 64, "iscrowd": crowd}
            for crowd in (0, 1)
        ],
    }
    truth = COCO()
    truth.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    result = {"image_id": 1, "category_id": 1, "bbox": [9, 9, 8, 8], "score": 0.9}
    bands = by_size(truth, [result], "bbox", (4, 8, 16))["pixels"]
    assert [band["objects"] for band in bands] == [0, 0, 1, 0]
    assert [band["AP"] for band in bands] == [None, None, 1, None]
