import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation import ap
from smallobj_d2.evaluation.ap import (
    SIZES,
    accumulated,
    as_detectron2,
    coco_metrics,
    count_objects,
    counted_detections,
    from_detectron2,
    indexed,
    load_ground_truth,
    row_of,
    table,
)
from tests.detections import ap_row
from tests.detections import result as found_mask

BASE = Path(__file__).parents[1] / "configs" / "base.yaml"


def square(side, x, y):
    return [float(v) for v in (x, y, x + side, y, x + side, y + side, x, y + side)]


def annotation(number, side, x, y, **more):
    return {
        "id": number,
        "image_id": 1,
        "category_id": 7,
        "bbox": [x, y, side, side],
        "area": float(side * side),
        "iscrowd": 0,
        "segmentation": [square(side, x, y)],
        **more,
    }


def result(side, x, y, score=0.9, mask_side=None):
    bitmap = np.zeros((300, 400), dtype=np.uint8)
    bitmap[y : y + (mask_side or side), x : x + (mask_side or side)] = 1
    rle = coco_mask.encode(np.asfortranarray(bitmap))
    return {
        "image_id": 1,
        "category_id": 7,
        "bbox": [x, y, side, side],
        "score": score,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


@pytest.fixture
def truth(tmp_path):
    """One small object, two medium ones, a crowd, and no large one."""
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.jpg", "height": 300, "width": 400}],
                "categories": [{"id": 7, "name": "thing"}],
                "annotations": [
                    annotation(1, 20, 10, 10),
                    annotation(2, 50, 100, 100),
                    annotation(3, 50, 200, 100),
                    annotation(4, 90, 300, 100, iscrowd=1),
                ],
            }
        )
    )
    return load_ground_truth(path)


@pytest.mark.parametrize(("side", "size"), [(32, "medium"), (96, "large")])
def test_an_object_at_a_limit_is_of_the_larger_size_alone(side, size):
    """COCO's ranges have both ends; Detectron2 and the counts beside AP have one."""
    data = {
        "images": [{"id": 1, "height": 300, "width": 400, "file_name": "a.png"}],
        "annotations": [annotation(1, side, 10, 10)],
        "categories": [{"id": 7, "name": "seven"}],
    }
    truth = indexed(data)
    row = row_of(
        {t: coco_metrics(truth, [result(side, 10, 10)], t) for t in ("bbox", "segm")},
        count_objects(truth),
    )
    for kind in ("bbox", "segm"):
        assert {s for s in SIZES if row[kind][s] is not None} == {size, "all"}


def test_boxes_are_evaluated_as_they_are_trained_on(tmp_path):
    """A box that does not hold its mask is the mask's, in both."""
    wrong = annotation(1, 20, 30, 40) | {"bbox": [200.0, 100.0, 5.0, 5.0]}
    data = {
        "images": [{"id": 1, "height": 300, "width": 400, "file_name": "a.png"}],
        "annotations": [wrong],
        "categories": [{"id": 7, "name": "seven"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    (box,) = (a["bbox"] for a in load_ground_truth(tmp_path / "a.json").anns.values())
    (record,) = load_coco(tmp_path / "a.json", tmp_path).records
    assert box == record["annotations"][0]["bbox"] == [30.0, 40.0, 20.0, 20.0]


def test_a_box_that_the_border_cuts_stays_though_the_outline_goes_on(tmp_path):
    """Detections cannot leave the image, and COCO evaluates with the JSON's box."""
    outline = [[80.0, 10, 110, 10, 110, 30, 80, 30]]
    box = [80.0, 10.0, 20.0, 20.0]
    cut = {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": 400}
    data = {
        "images": [{"id": 1, "height": 100, "width": 100, "file_name": "a.png"}],
        "annotations": [{**cut, "bbox": box, "segmentation": outline}],
        "categories": [{"id": 7, "name": "seven"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = {"image_id": 1, "category_id": 7, "bbox": box, "score": 0.9}
    metrics = coco_metrics(load_ground_truth(tmp_path / "a.json"), [found], "bbox")
    assert metrics["AP"] == 1


def test_counts_leave_crowds_out(truth):
    assert count_objects(truth) == {"small": 1, "medium": 2, "large": 0, "all": 3}


def test_limits_of_the_bands(truth):
    truth.anns[1]["area"] = 32.0**2
    truth.anns[2]["area"] = 96.0**2
    assert count_objects(truth) == {"small": 0, "medium": 2, "large": 1, "all": 3}


def test_row(truth):
    row = ap_row(truth, [result(20, 10, 10), result(50, 100, 100)])
    for task in ("segm", "bbox"):
        assert row[task]["small"] == pytest.approx(1.0)
        assert row[task]["medium"] == pytest.approx(0.5, abs=0.01)
        assert row[task]["large"] is None
        assert 0.6 < row[task]["all"] < 0.7
    assert row["ground_truth"]["all"] == 3


def test_a_mask_is_as_large_as_its_pixels(truth):
    """A small mask in a medium box must count as small when masks are compared."""
    right = result(20, 10, 10, score=0.5)
    wrong = result(60, 150, 10, score=0.9, mask_side=10)
    segm = coco_metrics(truth, [right, wrong], "segm")
    bbox = coco_metrics(truth, [right, wrong], "bbox")
    assert segm["APs"] == pytest.approx(0.5)
    assert bbox["APs"] == pytest.approx(1.0)


def test_results_stay_as_they_are(truth):
    results = [result(20, 10, 10)]
    before = json.dumps(results)
    ap_row(truth, results)
    assert json.dumps(results) == before


def test_no_detections_is_an_ap_of_zero(truth):
    row = ap_row(truth, [])
    assert row["segm"] == {"small": 0.0, "medium": 0.0, "large": None, "all": 0.0}
    assert row["bbox"] == row["segm"]


def test_boxes_only(truth):
    row = ap_row(truth, [result(20, 10, 10)], iou_types=("bbox",))
    assert set(row) == {"bbox", "ground_truth"}
    assert "Segmentation" not in table(row)


def test_masks_need_masks(truth):
    del truth.anns[2]["segmentation"]
    with pytest.raises(SmallObjError, match=r"Annotation 2 .*MASK_ON"):
        ap_row(truth, [result(20, 10, 10)])


def test_missing_area_and_iscrowd_are_filled_in(tmp_path):
    bare = {k: v for k, v in annotation(1, 20, 10, 10).items() if k not in ("area", "iscrowd")}
    path = tmp_path / "truth.json"
    images = [{"id": 1, "file_name": "1.jpg", "height": 300, "width": 400}]
    categories = [{"id": 7, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": [bare]}))
    truth = load_ground_truth(path)
    assert truth.anns[1]["area"] == 400
    assert ap_row(truth, [result(20, 10, 10)])["bbox"]["small"] == pytest.approx(1.0)


def test_table_shows_no_objects_as_a_dash(truth):
    lines = table(ap_row(truth, [])).splitlines()
    assert [len(line) for line in lines] == [len(lines[0])] * len(lines)
    assert lines[0].split() == list(SIZES)
    assert lines[1].split() == ["Segmentation", "AP", "0.000", "0.000", "-", "0.000"]
    assert lines[3].split() == ["objects", "1", "2", "0", "3"]


def test_detectron2_results_and_back(truth):
    metrics = {t: coco_metrics(truth, [result(20, 10, 10)], t) for t in ("segm", "bbox")}
    numbers = as_detectron2(metrics)
    assert numbers["bbox/APs"] == pytest.approx(100)
    assert math.isnan(numbers["bbox/APl"])
    nested = {t: {n: numbers[f"{t}/{n}"] for n in metrics[t]} for t in metrics}
    counts = count_objects(truth)
    back, row = from_detectron2(nested, counts), row_of(metrics, counts)
    assert back.keys() == row.keys()
    for half, values in row.items():
        assert back[half] == pytest.approx(values)


def test_detectron2_without_detections(truth):
    nan = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), math.nan)
    row = from_detectron2({"bbox": nan}, count_objects(truth))
    assert row["bbox"] == {"small": 0.0, "medium": 0.0, "large": None, "all": 0.0}


def test_detectron2s_evaluator_gives_the_same(truth, tmp_path):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco

    results = [result(20, 10, 10), result(50, 100, 100, 0.8), result(50, 203, 104, 0.7)]
    for task in ("segm", "bbox"):
        theirs = _evaluate_predictions_on_coco(truth, [dict(r) for r in results], task)
        ours = list(coco_metrics(truth, results, task).values())
        expected = [None if v < 0 else v for v in theirs.stats[:6]]
        assert [v is None for v in ours] == [v is None for v in expected]
        for a, b in zip(ours, expected, strict=True):
            assert a is None or a == pytest.approx(b, abs=1e-9)


def test_in_a_dense_image_as_many_detections_count_as_the_network_gives(tmp_path):
    """130 objects, all found: COCO's 100 detections leave a quarter of them out."""
    path = tmp_path / "dense.json"
    places = [(10 * (i % 38) + 5, 10 * (i // 38) + 5) for i in range(130)]
    data = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 300, "width": 400}],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [annotation(i + 1, 8, x, y) for i, (x, y) in enumerate(places)],
    }
    path.write_text(json.dumps(data))
    dense = load_ground_truth(path)
    results = [result(8, x, y) for x, y in places]
    assert coco_metrics(dense, results, "segm")["APs"] == pytest.approx(77 / 101, abs=0.01)
    for asked, expected in ((400, 1.0), (50, 77 / 101)):  # never fewer than COCO counts
        cfg = load_cfg(BASE, ["TEST.DETECTIONS_PER_IMAGE", str(asked)])
        ours = coco_metrics(dense, results, "segm", counted_detections(cfg))
        assert ours["AP"] == ours["APs"] == pytest.approx(expected, abs=0.01)
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco

    theirs = _evaluate_predictions_on_coco(
        dense, [dict(r) for r in results], "segm", max_dets_per_image=[1, 10, 400]
    )
    assert theirs.stats[0] == pytest.approx(1.0)


# --- The evaluator in C++


def random_case(rng):
    """Objects and detections that overlap in many ways: crowds, equal scores, empty images."""
    size, pick = 40, rng.integers
    images = [{"id": i, "file_name": f"{i}", "height": size, "width": size} for i in range(1, 6)]
    categories = [{"id": c, "name": str(c)} for c in (2, 3, 9)]

    def thing(image):
        x, y, w, h = pick(30), pick(30), pick(2, 20), pick(2, 20)
        mask = np.zeros((size, size), np.uint8)
        mask[y : y + h, x : x + w] = rng.random(mask[y : y + h, x : x + w].shape) < 0.9
        return found_mask(image, int(rng.choice([2, 3, 9])), mask, round(rng.random(), 1))

    objects = [thing(image) for image in pick(1, 5, pick(1, 25)).tolist()]
    near = [
        {**objects[i], "score": round(rng.random(), 1)} for i in pick(len(objects), size=pick(20))
    ]
    results = near + [thing(image) for image in pick(1, 6, 1 + pick(20)).tolist()]
    annotations = [
        {**o, "id": i, "iscrowd": int(rng.random() < 0.15), "area": float(pick(1, 400))}
        for i, o in enumerate(objects, 1)
    ]
    data = {"images": images, "categories": categories, "annotations": annotations}
    order = rng.permutation(len(results)).tolist()
    return data, [results[i] for i in order]


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("more", [{}, {"ranges": [(0, 99), (0, 400), (50, 1e9)]}])
def test_the_faster_evaluation_gives_pycocotools_numbers(iou_type, more, monkeypatch):
    faster = pytest.importorskip("faster_coco_eval").COCOeval_faster
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(60):
        data, results = random_case(rng)
        limit, both = int(rng.choice([2, 100])), []
        for kind in (faster, COCOeval):
            monkeypatch.setattr(ap, "Fastest", kind)
            truth = indexed(json.loads(json.dumps(data)))
            both.append(accumulated(truth, results, iou_type, limit, **more))
        if both[0] is None:
            assert both[1] is None
            continue
        for name in ("precision", "recall", "scores"):
            one, other = (np.asarray(e.eval[name]) for e in both)
            assert one.shape == other.shape
            assert np.abs(one - other).max() < (1e-15 if name == "precision" else 1e-300)
        compared += ((one > 0) & (one < 1)).sum()
    assert compared > 1000


def test_it_is_the_faster_one_where_it_is_installed():
    faster = pytest.importorskip("faster_coco_eval").COCOeval_faster
    assert ap.Fastest is faster


@pytest.mark.parametrize("number", [str, lambda i: -i, lambda i: 2**63 + i, lambda i: i - 1])
def test_ids_of_any_kind_are_evaluated(number):
    data, results = random_case(np.random.default_rng(0))
    plain = accumulated(indexed(json.loads(json.dumps(data))), results, "segm", 100)
    for entry in (*data["images"], *data["categories"]):
        entry["id"] = number(entry["id"])
    data["annotations"], results = (
        [{**a, **{k: number(a[k]) for k in ("image_id", "category_id")}} for a in entries]
        for entries in (data["annotations"], results)
    )
    found = accumulated(indexed(data), results, "segm", 100)
    assert np.sort(found.eval["recall"], axis=None) == pytest.approx(
        np.sort(plain.eval["recall"], axis=None)
    )
