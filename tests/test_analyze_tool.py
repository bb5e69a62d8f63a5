"""tools/analyze.py from end to end: every kind of dataset, and what a person gets to see."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmarks import analysis
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.figures import matches_by_size
from smallobj_d2.analysis.matching import match
from smallobj_d2.analysis.protocols import PAPER
from smallobj_d2.analysis.report import figure5_images
from smallobj_d2.commands.analyze import main
from smallobj_d2.datasets import images
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.errors import SmallObjError
from tests.pages import HOSTILE, Page, assert_inert

ROOT = Path(__file__).parents[1]
AUGMENT = str(ROOT / "configs" / "orig_aug_multi3x.yaml")


@pytest.fixture(scope="module")
def analyze():
    return main


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), "scenes", 8, seed=2, progress=False)


def test_a_whole_report(analyze, scenes, tmp_path, capsys):
    images = str(scenes.parent / "images")
    out = tmp_path / "out"
    args = ["--json", str(scenes), "--images", images, "--augment", AUGMENT, "--output", str(out)]
    assert analyze(args) == 0
    shown = capsys.readouterr().out
    assert str(out / "report.html") in shown
    assert (out / "tables.md").read_text() in shown
    assert "the paper, for COCO" in shown
    pictures = ["anchors_by_size", "anchors_on_images", "locations", "shares", "sizes"]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*(f"{p}.png" for p in pictures), "report.html", "tables.json", "tables.md"]
    )
    for picture in pictures:
        pixels = cv2.imread(str(out / f"{picture}.png"))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5
    found = json.loads((out / "tables.json").read_text())
    assert [t["protocol"] for t in found["tables"]] == ["paper", "training"]
    assert found["augmented"]["copies_pasted"] > 0
    assert found["augmented"]["tables"][0]["data"] == "with orig_aug_multi3x"
    assert found["published"]["rows"]["small"]["mean_max_iou"] == 0.29


def test_the_report_needs_no_other_file(analyze, scenes, tmp_path):
    assert analyze(["--json", str(scenes), "--output", str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert sources
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert html.count("<figure>") == html.count("<figcaption>") == len(sources)
    assert not re.search(r"<figcaption></figcaption>|nan|None", _without_pictures(html))


def _without_pictures(html: str) -> str:
    return re.sub(r'src="[^"]*"', "", html)


def test_named_images_are_drawn(analyze, scenes, tmp_path):
    images = str(scenes.parent / "images")
    args = ["--json", str(scenes), "--images", images, "--output", str(tmp_path)]
    assert analyze([*args, "--show", "000000000002.jpg", "--show", "3"]) == 0
    assert (tmp_path / "anchors_on_images.png").is_file()


def test_an_image_is_named_by_its_id_its_whole_name_or_without_the_folder(tmp_path):
    image = {"height": 9, "width": 9}
    names = ["a/x.jpg", "b/x.jpg", "b/1.jpg", "2"]
    images = [{**image, "id": i, "file_name": name} for i, name in enumerate(names)]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]})
    )
    data = CocoFile(tmp_path / "a.json", tmp_path)
    assert figure5_images(data, ["a/x.jpg", "b/x.jpg", "1.jpg", "2"]) == [0, 1, 2, 2]
    with pytest.raises(SmallObjError, match=r"--show: there are 2 images x\.jpg"):
        figure5_images(data, ["x.jpg"])


def test_images_that_cannot_be_read_are_named(analyze, scenes, tmp_path, capsys):
    args = ["--json", str(scenes), "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    assert analyze(args) == 2  # the wrong folder: none of the images is there
    assert re.search(
        r"holds no image of .*: there is no .*000000000001.jpg", capsys.readouterr().err
    )
    (tmp_path / "000000000001.jpg").write_bytes(b"")
    assert analyze([*args, "--show", "2"]) == 0
    assert "Anchors are not drawn on" in capsys.readouterr().out
    assert not (tmp_path / "out" / "anchors_on_images.png").exists()


@pytest.fixture
def write(tmp_path):
    """Writes a dataset of square objects, given their sides by image."""

    def write(*images, mask=True, area=True) -> str:
        annotations = []
        for i, sides in enumerate(images):
            for k, side in enumerate(sides):
                x = 10 + 40 * k
                box = {"bbox": [x, 10, side, side], "id": len(annotations), "iscrowd": 0}
                box |= {"image_id": i, "category_id": 1}
                if area:
                    box["area"] = side * side
                if mask:
                    right, low = x + side, 10 + side
                    box["segmentation"] = [[x, 10, right, 10, right, low, x, low]]
                annotations.append(box)
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": 300, "width": 400}
                for i in range(len(images))
            ],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "square"}],
        }
        path = tmp_path / "squares.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("images", "kinds", "expected"),
    [
        ([[10, 20], [50], [150, 9]], {}, "2 of 3 images (67%) have a small object"),
        ([[10, 20], [50]], {"mask": False}, "No object has a mask"),
        ([[10, 20], [50]], {"area": False}, "lacked `area`"),
        ([[100], [50]], {}, "No object is small"),
        ([[10]], {}, "oversampling cannot help"),
        ([[]], {}, "There is no object in this dataset"),
    ],
    ids=["usual", "no masks", "no area", "no small", "one object", "no object"],
)
def test_every_kind_of_dataset(analyze, write, tmp_path, capsys, images, kinds, expected):
    assert analyze(["--json", write(*images, **kinds), "--output", str(tmp_path / "out")]) == 0
    assert expected in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").is_file()


def test_one_protocol_and_overrides(analyze, write, tmp_path, capsys):
    args = ["--json", write([10], [200]), "--output", str(tmp_path / "out")]
    assert analyze([*args, "--protocol", "training", "INPUT.MIN_SIZE_TRAIN", "(400,)"]) == 0
    shown = capsys.readouterr().out
    assert "resized to 400 pixels" in shown
    assert "the paper, for COCO" not in shown


def test_names_of_a_dataset_are_text_in_every_output(analyze, write, tmp_path, capsys):
    path = Path(write([10], [200]))
    data = json.loads(path.read_text())
    for image, name in zip(data["images"], HOSTILE, strict=False):
        image["file_name"] = f"{name}.png".replace("\x1b", "")
    data["categories"][0]["name"] = HOSTILE[0]
    data["images"].append({**data["images"][-1], "id": 99, "file_name": "there.png"})
    (tmp_path / "there.png").touch()
    hostile = path.with_name("[x](" + '" onmouseover="alert(1)) <script>.json')
    hostile.write_text(json.dumps(data))
    out = tmp_path / "out"
    args = ["--json", str(hostile), "--images", str(tmp_path), "--output", str(out)]
    assert analyze(args) == 0
    page = Page((out / "report.html").read_text())
    assert HOSTILE[1] in page.text
    assert hostile.name in page.text
    assert_inert((out / "tables.md").read_text())
    assert "<script>" not in capsys.readouterr().out


def test_images_are_opened_by_as_many_threads_as_asked(analyze, scenes, monkeypatch, capsys):
    """One is the remedy where images are so large that several at a time do not fit in memory."""
    asked = []
    pool = images.ThreadPoolExecutor
    monkeypatch.setattr(images, "ThreadPoolExecutor", lambda n: asked.append(n) or pool(n))
    words = ["--check-images", "--json", str(scenes), "--images", str(scenes.parent / "images")]
    assert analyze([*words, "--workers", "1"]) in (0, 1)
    assert analyze([*words, "--workers", "0"]) == 2
    assert asked == [1]
    assert "--workers is 0; it must be 1 or more" in capsys.readouterr().err


def test_layouts_are_printed(analyze, write, capsys):
    assert analyze(["--json", write([10], [200]), "--layouts"]) == 0
    assert "FPN, strides 4 to 64, 800 pixels" in capsys.readouterr().out


def test_the_papers_numbers_are_for_its_own_limit_of_small_only(analyze, write, capsys, tmp_path):
    args = ["--json", write([10, 20], [50], [150]), "--output", str(tmp_path / "out")]
    assert analyze(args) == 0
    shown = capsys.readouterr().out
    assert "In COCO it is 52% and 41%" in shown
    assert "the paper, for COCO" in shown
    assert analyze([*args, "SMALLOBJ.SMALL_AREA", "9216"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 3 images (67%) have a small object" in shown
    assert "SMALLOBJ.SMALL_AREA is 9216, so that does not compare" in shown
    assert "COCO it is" not in shown
    assert "the paper, for COCO" not in shown


def test_a_network_without_an_rpn_is_not_analyzed_as_with_one(analyze, write, capsys, tmp_path):
    args = ["--json", write([10]), "--output", str(tmp_path / "out")]
    retina = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    assert analyze([*args, *retina]) == 2
    assert "'RetinaNet', whose anchors the analysis does not know" in capsys.readouterr().err
    assert analyze([*args, "--protocol", "paper", *retina]) == 0


def test_the_line_of_matched_anchors_is_at_the_configs_threshold(write, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(Axes, "axhline", lambda _, y, **how: lines.append(y))
    objects = CocoFile(Path(write([10, 40])), tmp_path).objects
    protocols = [PAPER, replace(PAPER, name="training", threshold=0.5)]
    matches_by_size(objects, {p: match(objects, p) for p in protocols})
    assert sorted(lines) == [0.5, 0.7]


def test_a_name_from_a_config(analyze, write, tmp_path, capsys):
    path = write([10], [200])
    entry = f"[['analyze_tool_test', '{path}', '{tmp_path}']]"
    out = str(tmp_path / "out")
    assert analyze(["analyze_tool_test", "--output", out, "SMALLOBJ.DATASETS", entry]) == 0
    assert "# analyze_tool_test: 2 images, 2 objects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Name a registered dataset, or give --json FILE"),
        (["nothing_like_it"], "There is no dataset 'nothing_like_it'"),
        (["--json", "nowhere.json"], "nowhere.json: the file cannot be read"),
        (["--json", "{json}", "--config", "nowhere.yaml"], "There is no config file nowhere.yaml"),
        (
            ["--json", "{json}", "--augment", AUGMENT, "--draws", "0"],
            "--draws is 0; it must be 1 or more",
        ),
        (
            ["--json", "{json}", "--images", ".", "--show", "x.jpg"],
            "--show: there is no image x.jpg",
        ),
        (["--json", "{json}", "--show", "0.jpg"], "--show needs --images"),
        (["--json", "{json}", "SEED"], "Overrides are pairs of KEY VALUE"),
        (
            ["--json", "{no masks}", "--augment", AUGMENT],
            "no annotation of squares.json has a mask",
        ),
        (["--json", "{empty}"], "squares.json has no image"),
        (["--json", "{none}", "--augment", AUGMENT], "There is no image with an annotation that"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(analyze, write, tmp_path, capsys, args, message):
    kinds = {
        "{json}": ([[10]], True),
        "{no masks}": ([[10]], False),
        "{empty}": ([], True),
        "{none}": ([[]], True),
    }
    args = [write(*kinds[a][0], mask=kinds[a][1]) if a in kinds else a for a in args]
    assert analyze([*args, "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", shown)
    assert message in shown


def test_the_benchmark_at_a_small_size(scenes, capsys):
    args = ["--json", str(scenes), "--num-images", "30", "--annotations", "200", "--sample", "2"]
    assert analysis.main(args) == 0
    shown = capsys.readouterr().out
    assert "30 images" in shown
    assert shown.count("equal on all of them") == 2
    assert "NOT EQUAL" not in shown
