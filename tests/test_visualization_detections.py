"""Pictures of what runs found: who is matched with whom, and what a person gets to see."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from smallobj_d2.commands.detections import main as tool
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import load_ground_truth
from smallobj_d2.evaluation.matches import match_detections
from smallobj_d2.evaluation.run_folder import results_of_run, runs_of_one_test_set
from smallobj_d2.sizes import is_small
from smallobj_d2.visualization.detections import detection_sheet, prediction_view
from smallobj_d2.visualization.sheets import (
    FOUND,
    MISSED,
    ORIGINAL,
    WRONG,
    View,
    draw,
    outlines_of_box,
    zoom,
)
from tests.detections import result, run_folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return make_dataset(folder, "found_scenes", 12, seed=5, size=160, progress=False)


@pytest.fixture(scope="module")
def truth(scenes):
    return load_ground_truth(scenes)


@pytest.fixture(scope="module")
def noisy(truth):
    """Detections that are right, moved, doubled, of another category, of nothing, or unsure."""
    rng = np.random.default_rng(0)
    results = []
    for annotation in truth.anns.values():
        if rng.random() < 0.2:
            continue
        image = truth.imgs[annotation["image_id"]]
        mask = truth.annToMask(annotation)
        for _ in range(1 + (rng.random() < 0.2)):
            moved = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
            results.append(result(image["id"], annotation["category_id"], moved, rng.random()))
        if rng.random() < 0.2:
            other = rng.choice([c for c in truth.cats if c != annotation["category_id"]])
            results.append(result(image["id"], int(other), mask, rng.random()))
    return results


def perfect(truth):
    return [
        result(a["image_id"], a["category_id"], truth.annToMask(a), 0.9)
        for a in truth.anns.values()
        if not a["iscrowd"]
    ]


def settings(**changes):
    return {"score": 0.5, "iou": 0.5, "detections": 100, **changes}


def test_perfect_detections_miss_nothing(truth):
    outcomes = match_detections(truth, perfect(truth), **settings())
    assert len(outcomes) == 12
    objects = [a for a in truth.anns.values() if not a["iscrowd"]]
    assert sum(len(o.found) for o in outcomes.values()) == len(objects) > 40
    assert not any(o.wrong or o.missed for o in outcomes.values())


def test_without_detections_all_is_missed(truth):
    outcomes = match_detections(truth, [], **settings())
    assert not any(o.wrong or o.found for o in outcomes.values())
    missed = sorted(i for o in outcomes.values() for i in o.missed)
    assert missed == sorted(i for i, a in truth.anns.items() if not a["iscrowd"])


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("score", [0.0, 0.5])
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_counts_are_the_recall_that_coco_measures(truth, noisy, boxes, score, iou):
    results = [dict(r) for r in noisy]
    if boxes:
        for result in results:
            del result["segmentation"]
    outcomes = match_detections(truth, results, **settings(score=score, iou=iou))
    kept = [dict(r) for r in results if r["score"] >= score]
    if not boxes:
        for result in kept:
            del result["bbox"]
    found = truth.loadRes(kept)
    evaluation = COCOeval(truth, found, "bbox" if boxes else "segm")
    evaluation.params.iouThrs = np.array([iou])
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][0, :, 0, -1]  # by category
    for category, expected in zip(evaluation.params.catIds, recall.tolist(), strict=True):
        ids = [i for i, a in truth.anns.items() if a["category_id"] == category]
        ids = [i for i in ids if not truth.anns[i]["iscrowd"]]
        if not ids:
            assert expected == -1
            continue
        missed = {i for o in outcomes.values() for i in o.missed}
        assert 1 - len(missed & set(ids)) / len(ids) == pytest.approx(expected)
    number = sum(len(o.found) + len(o.wrong) for o in outcomes.values())
    assert number == len(kept)


def test_parts_of_a_crowd_are_not_wrong(tmp_path):
    square = [10.0, 10.0, 60.0, 10.0, 60.0, 60.0, 10.0, 60.0]
    rle = coco_mask.frPyObjects([square], 100, 100)[0]
    rle["counts"] = rle["counts"].decode()
    crowd = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 1, "area": 2500.0}
    crowd |= {"bbox": [10, 10, 50, 50], "segmentation": rle}
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [crowd],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    mask = np.zeros((100, 100), np.uint8)
    mask[20:40, 20:40] = 1
    truth = load_ground_truth(tmp_path / "a.json")
    outcomes = match_detections(truth, [result(1, 1, mask, 0.9)], **settings())
    assert (len(outcomes[1].found), outcomes[1].wrong, outcomes[1].missed) == (1, [], [])


def test_only_the_best_of_an_image_count(truth):
    all_of_them = perfect(truth)
    for i, found in enumerate(all_of_them):
        found["score"] = 0.6 + 0.001 * i
    outcomes = match_detections(truth, all_of_them, **settings(detections=1))
    for image, outcome in outcomes.items():
        categories = {a["category_id"] for a in all_of_them if a["image_id"] == image}
        assert len(outcome.found) == len(categories)


# --- The sheet


def colours(sheet):
    """Those of its pixels, the legend in the last line left out."""
    return {tuple(c) for c in np.asarray(sheet)[:-22].reshape(-1, 3).tolist()}


def test_one_small_object_is_not_called_objects(scenes, tmp_path):
    data = json.loads(scenes.read_text())
    first = next(a for a in data["annotations"] if is_small(a))
    one = scenes.with_name("one.json")
    one.write_text(json.dumps(data | {"annotations": [first]}))
    run = run_folder(tmp_path / "run", one, perfect(load_ground_truth(one)))
    _, text = detection_sheet({"run": run})
    assert text.endswith(": 1 small object; run found 1, 0 wrong")


def test_a_sheet_of_two_runs(scenes, truth, noisy, tmp_path):
    good = run_folder(tmp_path / "good", scenes, perfect(truth))
    bad = run_folder(tmp_path / "bad", scenes, noisy)
    sheet, text = detection_sheet({"good": good, "bad": bad}, num=2, width=200)
    small = sum(map(is_small, truth.anns.values()))
    assert sheet.width > 3 * 200
    assert f"{small} small objects; good found {small}, 0 wrong; bad found " in text
    columns = [sheet.crop((208 * i + 8, 0, 208 * i + 208, sheet.height)) for i in range(4)]
    _, _, right, wrong = map(colours, columns)
    assert FOUND.colour in right
    assert not {WRONG.colour, MISSED.colour} & right
    assert {WRONG.colour, MISSED.colour} & wrong
    alone, _ = detection_sheet({"good": good}, num=2, width=200)
    assert FOUND.colour in colours(alone)
    assert not {WRONG.colour, MISSED.colour} & colours(alone)


def test_as_many_detections_count_as_in_the_runs_ap(scenes, truth, tmp_path):
    many = [r | {"score": 0.6} for r in perfect(truth) for _ in range(150)]
    texts = []
    for limit in (100, 400):
        run = run_folder(tmp_path / str(limit), scenes, many, limit=limit)
        texts.append(detection_sheet({"run": run}, num=1, width=60)[1])
    assert texts[0] != texts[1]


def test_images_are_chosen_by_seed_or_by_id(scenes, truth, tmp_path):
    run = {"a": run_folder(tmp_path / "run", scenes, perfect(truth))}
    first, again, other = (
        np.asarray(detection_sheet(run, num=2, seed=s, width=100)[0]) for s in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    image = next(iter(truth.imgs))
    detection_sheet(run, images=[image], width=100)
    with pytest.raises(SmallObjError, match="no image 987654"):
        detection_sheet(run, images=[987654], width=100)


def test_ids_may_be_words(scenes, tmp_path):
    data = json.loads(scenes.read_text())
    for image in data["images"]:
        image["id"] = f"n{image['id']:03}"
    for a in data["annotations"]:
        a["image_id"] = f"n{a['image_id']:03}"
    json_file = scenes.parent / "words.json"
    json_file.write_text(json.dumps(data))
    run_folder(tmp_path / "run", json_file, [], name="worded_scenes")
    runs = {"run": tmp_path / "run"}
    detection_sheet(runs, num=2, width=64)
    detection_sheet(runs, images=["n003"], width=64)
    with pytest.raises(SmallObjError, match="There is no image n999"):
        detection_sheet(runs, images=["n999"])


def test_where_no_object_is_small_the_images_are_to_be_named(scenes, tmp_path):
    data = json.loads(scenes.read_text())
    data["annotations"] = [a for a in data["annotations"] if a["area"] > 1024]
    json_file = scenes.parent / "none_small.json"
    json_file.write_text(json.dumps(data))
    run = {"run": run_folder(tmp_path / "run", json_file, [], name="none_small")}
    with pytest.raises(SmallObjError, match="has no small objects: name the images"):
        detection_sheet(run, width=64)
    _, text = detection_sheet(run, images=[data["images"][0]["id"]], width=64)
    assert "0 small objects" in text


def test_the_newest_detections_of_a_run_are_meant(scenes, truth, tmp_path):
    """Runs of several test sets write them elsewhere than runs of one."""
    new = [result(i, 1, np.ones((9, 9), np.uint8), 0.5) for i in list(truth.imgs)[:1]]
    run_folder(tmp_path, scenes, new, name="found_scenes")
    other = tmp_path / "inference" / "found_scenes" / "coco_instances_results.json"
    other.parent.mkdir()
    other.write_text("[]")
    newest = tmp_path / "inference" / "coco_instances_results.json"
    os.utime(other, ns=(1, 1))
    assert len(results_of_run(tmp_path, "found_scenes")) == 1
    os.utime(newest, ns=(0, 0))
    assert results_of_run(tmp_path, "found_scenes") == []


def test_runs_must_share_their_test_set(scenes, tmp_path):
    one = run_folder(tmp_path / "one", scenes, [])
    copy = tmp_path / "copy" / scenes.name
    shutil.copytree(scenes.parent, copy.parent)
    other = run_folder(tmp_path / "other", copy, [])  # by the same name
    with pytest.raises(SmallObjError, match=f"different test sets: .*{copy}"):
        runs_of_one_test_set({"one": one, "other": other})
    link = tmp_path / "link.json"
    link.symlink_to(scenes)
    same = run_folder(tmp_path / "same", link, [], name="of_another_name")
    assert list(runs_of_one_test_set({"one": one, "same": same})[1]) == ["one", "same"]


def test_a_test_set_that_is_gone_or_another_now_is_named(scenes, truth, tmp_path):
    json_file = tmp_path / "val" / scenes.name
    shutil.copytree(scenes.parent, json_file.parent)
    run = {"run": run_folder(tmp_path / "run", json_file, perfect(truth))}
    detection_sheet(run)
    now = json.loads(json_file.read_text())
    first = now["images"].pop(0)["id"]
    now["annotations"] = [a for a in now["annotations"] if a["image_id"] != first]
    json_file.write_text(json.dumps(now))
    with pytest.raises(SmallObjError, match=r"lacks images or .* has changed since\. Evaluate"):
        detection_sheet(run)
    json_file.unlink()
    with pytest.raises(SmallObjError, match=f"evaluated on {json_file}, which is not there"):
        detection_sheet(run)


def test_a_folder_that_is_no_run_is_named(scenes, tmp_path):
    with pytest.raises(SmallObjError, match=r"nothing has no row.json: it is no folder of a run"):
        detection_sheet({"nothing": tmp_path / "nothing"})
    run = run_folder(tmp_path / "run", scenes, [])
    (run / "inference" / "coco_instances_results.json").unlink()
    with pytest.raises(SmallObjError, match="evaluate it with --eval-only"):
        detection_sheet({"run": run})


def test_labels_tell_a_wrong_class_from_a_wrong_place():
    box = {"bbox": [1, 2, 3, 4], "category_id": 2, "score": 0.736}
    view = prediction_view(np.zeros((9, 9, 3), np.uint8), [box], {1: "leaf", 2: "star"})
    assert view.labels == ["star 0.74"]


def test_labels_are_written_and_hostile_ones_break_nothing():
    image = np.zeros((60, 90, 3), np.uint8)
    box = outlines_of_box(20, 20, 40, 40)
    plain, labelled = (
        draw(View(image, [box], [FOUND], labels), width=90)
        for labels in ([], ["<script>\n\x1b[31m \u202e\u4e00"])
    )
    assert (labelled != plain).any()
    assert (labelled[22:39] == plain[22:39])[:, 22:39].all()


def test_the_enlarged_part_shows_the_smallest_object_without_outlines():
    image = np.full((100, 200, 3), 50, np.uint8)
    image[10:90, 20:100] = 200
    image[40:44, 150:154] = (9, 250, 9)
    boxes = [outlines_of_box(20, 10, 100, 90), outlines_of_box(150, 40, 154, 44)]
    framed, part = zoom(View(image, boxes, [ORIGINAL] * 2, ["a", "b"]), boxes)
    assert part.outlines == []
    assert part.image.shape == (25, 50, 3)
    assert (part.image == (9, 250, 9)).all(axis=2).sum() == 16
    (x0, y0), (x1, y1) = framed.outlines[-1][0][[0, 2]]
    assert (x0, y0) < (150, 40) < (154, 44) < (x1, y1)
    assert len(framed.outlines) == len(framed.styles) == len(framed.labels) == 3
    assert zoom(View(image, [], []), [])[1].image.shape == (25, 50, 3)


DAMAGE = ("", "{", "[]", "3", '[{"score": "x"}]', "null", pytest.param("[" * 10_000, id="nested"))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["row.json", "inference/coco_instances_results.json"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(scenes, tmp_path, name, damage):
    run = run_folder(tmp_path / "run", scenes, [])
    (run / name).write_text(damage)
    if (name, damage) == ("inference/coco_instances_results.json", "[]"):
        return
    with pytest.raises(SmallObjError) as e:
        detection_sheet({"run": run})
    assert str(e.value).startswith(f"{run / name} is damaged, or another kind of file (")
    assert "\n" not in str(e.value)


# --- The tool


def test_the_tool_tells_runs_apart_by_their_paths(scenes, truth, noisy, tmp_path, capsys):
    one = run_folder(tmp_path / "x" / "baseline" / "seed0", scenes, perfect(truth))
    two = run_folder(tmp_path / "x" / "aug" / "seed0", scenes, noisy)
    out = tmp_path / "pictures" / "sheet.png"
    assert tool(["--runs", str(one), str(two), "--num", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "; baseline found " in said
    assert "; aug found " in said
    assert str(out) in said
    assert Image.open(out).width > 3 * 480


def test_the_tool_says_what_is_wrong(scenes, tmp_path, capsys):
    assert tool(["--runs", str(tmp_path / "nothing")]) == 2
    assert "error: " in capsys.readouterr().err
    run = str(run_folder(tmp_path / "run", scenes, []))
    assert tool(["--runs", run, run]) == 2
    assert "2 runs need as many different names" in capsys.readouterr().err
    other = str(run_folder(tmp_path / "other", scenes, []))
    assert tool(["--runs", run, other, "--names", "a", "b", "b"]) == 2
    assert "2 runs need as many different names, not a b b" in capsys.readouterr().err
