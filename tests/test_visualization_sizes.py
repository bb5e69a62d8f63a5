"""Runs compared by the size of what they find, from the detections that they left."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from smallobj_d2.commands import compare
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.evaluation.ap import load_ground_truth
from smallobj_d2.visualization import sizes
from tests.detections import result, run_folder

DETECTIONS = "inference/coco_instances_results.json"

pytestmark = pytest.mark.usefixtures("forget_datasets")


@pytest.fixture
def runs(tmp_path):
    """One that has found everything, and one that has found what is 12 pixels or more."""
    scenes = make_dataset(tmp_path / "scenes", "val", 6, seed=3, size=160, progress=False)
    truth = load_ground_truth(scenes)
    folders = {}
    for name, least in (("all", 0), ("large", 12)):
        found = []
        for a in truth.anns.values():
            mask = coco_mask.decode(truth.annToRLE(a))
            if a["area"] >= least**2 and not a["iscrowd"]:
                found.append(result(a["image_id"], a["category_id"], mask, 0.9))
        folders[name] = run_folder(tmp_path / name, scenes, found)
    return folders


def test_a_gain_is_where_the_objects_are_that_are_found(runs, tmp_path, capsys):
    out = tmp_path / "sizes.png"
    words = ["--runs", str(runs["large"]), str(runs["all"]), "--limits", "12", "64"]
    assert compare.main([*words, "--out", str(out)]) == 0
    pixels, relative = capsys.readouterr().out.split("\n\n")
    lines = {line.split("  ")[0]: line.split()[-3:] for line in pixels.splitlines()[1:]}
    every, large = (len(json.loads((runs[k] / DETECTIONS).read_bytes())) for k in ("all", "large"))
    low, *rest = map(int, lines["objects"])
    assert (low, sum(rest)) == (every - large, large)
    assert lines["large"][:2] == ["0.0", "100.0"]
    assert lines["all"][:2] == ["100.0", "100.0"]
    assert lines["all - large"][:2] == ["+100.0", "+0.0"]
    assert "below 1%" in relative
    assert np.ptp(np.asarray(Image.open(out))) > 0


def test_the_picture_has_a_line_of_ap_and_one_of_recall_for_each_run(monkeypatch):
    figures = []
    monkeypatch.setattr(sizes, "file_of", lambda figure, _: figures.append(figure))
    low, high = {"from": 0, "to": 8, "objects": 5}, {"from": 8, "to": None, "objects": 0}
    measures = {
        name: {"pixels": [low | {"AP": ap, "AR": 2 * ap}, high | {"AP": None, "AR": None}]}
        for name, ap in (("one", 0.1), ("two", 0.25))
    }
    sizes.over_size(measures, "AP of masks", suffix="svg")
    ap, recall, *below = figures[0].axes
    for axis, title, values in (
        (ap, "AP of masks", {"one": 10, "two": 25}),
        (recall, "Average recall", {"one": 20, "two": 50}),
    ):
        assert axis.get_title(loc="left") == title
        assert [line.get_label() for line in axis.lines] == list(values)
        for line, value in zip(axis.lines, values.values(), strict=True):
            np.testing.assert_allclose(line.get_ydata(), [value, np.nan])
        assert len({line.get_color() for line in axis.lines}) == 2
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["one", "two"]
    assert all([bar.get_height() for bar in axis.patches] == [5, 0] for axis in below)


def test_masks_that_are_not_there_and_other_test_sets_are_named(runs, tmp_path, capsys):
    path = runs["all"] / DETECTIONS
    boxes = [
        {k: v for k, v in r.items() if k != "segmentation"} for r in json.loads(path.read_bytes())
    ]
    path.write_text(json.dumps(boxes))
    out = str(tmp_path / "sizes.svg")
    assert compare.main(["--runs", str(runs["all"]), "--out", out]) == 2
    assert "compare boxes (--boxes)" in capsys.readouterr().err
    assert compare.main(["--runs", str(runs["all"]), "--boxes", "--out", out]) == 0
    row = runs["large"] / "row.json"
    row.write_text(json.dumps({**json.loads(row.read_text()), "json_file": "another.json"}))
    assert compare.main(["--runs", *map(str, runs.values()), "--out", out]) == 2
    assert "different test sets" in capsys.readouterr().err
