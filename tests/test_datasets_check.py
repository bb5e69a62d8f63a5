"""A corpus of damaged datasets, made from a good one: each defect is named, none is passed over."""

import io
import json
import logging
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proofs.random_scenes import rle_of
from smallobj_d2.datasets import coco, images
from smallobj_d2.datasets.check import check_coco
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.datasets.findings import KINDS, Finding, exit_code, report
from smallobj_d2.errors import SmallObjError, UnreadableImage

REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
HEIGHT, WIDTH = 60, 80


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def rle(*, compressed: bool) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[30:50, 40:70] = 1
    mask[35:38, 50:55] = 0
    made = rle_of(mask, compressed=compressed)
    return {**made, "counts": made["counts"].decode()} if compressed else made


def good() -> dict[str, Any]:
    """Two images, five instances, nothing to remark on."""
    common = {"category_id": 3, "iscrowd": 0}
    box = {"bbox": [10, 10, 20, 20], "area": 400, "segmentation": [square(10, 10, 20)]}
    region = {"bbox": [40, 30, 30, 20], "area": 585}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "ä/ö.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": 11, "image_id": 1, **common, **box},
            {"id": 12, "image_id": 1, **common, **region, "segmentation": rle(compressed=True)},
            {"id": 13, "image_id": 2, **common, **box},
            {"id": 14, "image_id": 2, **common, **region, "segmentation": rle(compressed=False)},
            {
                "id": 15,
                "image_id": 2,
                "category_id": 7,
                "iscrowd": 0,
                "bbox": [50, 5, 10, 10],
                "area": 100,
                "segmentation": [square(50, 5, 10)],
            },
        ],
        "categories": [{"id": 3, "name": "three"}, {"id": 7, "name": "seven"}],
    }


Change = Callable[[dict[str, Any]], Any]


def annotation(n: int = 0, **values: Any) -> Change:
    return lambda data: data["annotations"][n].update(values)


def image(n: int = 0, **values: Any) -> Change:
    return lambda data: data["images"][n].update(values)


def category(n: int = 0, **values: Any) -> Change:
    return lambda data: data["categories"][n].update(values)


def without(part: str, key: str, n: int = 0) -> Change:
    return lambda data: data[part][n].pop(key)


def polygons(*parts: Any) -> Change:
    return annotation(segmentation=list(parts))


def all_annotations(**values: Any) -> Change:
    return lambda data: [a.update(values) for a in data["annotations"]]


def all_without(key: str) -> Change:
    return lambda data: [a.pop(key) for a in data["annotations"]]


def counts(change: Callable[[Any], Any], n: int) -> Change:
    def apply(data: dict[str, Any]) -> None:
        mask = data["annotations"][n]["segmentation"]
        mask["counts"] = change(mask["counts"])

    return apply


def crowded(data: dict[str, Any]) -> None:
    """500 instances in one image."""
    first = data["annotations"][0]
    for i in range(500):
        x, y = 2 * (i % 38), 2 * (i // 38)
        box = {"bbox": [x, y, 2, 2], "area": 4, "segmentation": [square(x, y, 2)]}
        data["annotations"].append({**first, "id": 100 + i, **box})


def of_image(number: Any, name: str, height: Any, width: Any) -> Change:
    entry = {"id": number, "file_name": name, "height": height, "width": width}
    return lambda data: data["images"].append(entry)


def strings(*keys: str) -> Change:
    """Ids as strings, in those of images, annotations and categories that are named."""

    def apply(data: dict[str, Any]) -> None:
        for key in keys:
            for entry in data[key]:
                entry["id"] = f"n{entry['id']}"
        for entry in data["annotations"]:
            if "images" in keys:
                entry["image_id"] = f"n{entry['image_id']}"
            if "categories" in keys:
                entry["category_id"] = f"n{entry['category_id']}"

    return apply


def as_corners(data: dict[str, Any]) -> None:
    """XYXY boxes, and nothing to compare them with."""
    for i in range(12):
        data["annotations"].append({**data["annotations"][0], "id": 100 + i})
    for i, a in enumerate(data["annotations"]):
        a.pop("segmentation")
        x, y = 20 + 2 * i, 20 + i
        a.update(bbox=[x, y, x + 10, y + 10], area=100)


NAN, INF = float("nan"), float("inf")

# What is done to the good dataset, and of which kind, image and annotation the finding must be.
CORPUS: dict[str, tuple[Change, str, Any, Any]] = {
    # Ids and keys
    "two images of one id": (image(1, id=1), "id-duplicate", 1, None),
    "two annotations of one id": (annotation(1, id=11), "id-duplicate", None, 11),
    "two categories of one id": (category(1, id=3), "id-duplicate", None, None),
    "unknown image": (annotation(image_id=9), "image-unknown", 9, 11),
    "image id is a string": (annotation(image_id="1"), "image-unknown", "1", 11),
    "unknown category": (annotation(category_id=9), "category-unknown", 1, 11),
    "category id is a string": (annotation(category_id="3"), "category-unknown", 1, 11),
    "category is null": (annotation(category_id=None), "id-form", 1, 11),
    "image id is a list": (image(id=[1]), "id-form", [1], None),
    "annotation id is half": (annotation(id=0.5), "id-form", None, 0.5),
    "id is true": (image(id=True), "id-form", True, None),
    "some ids are strings": (image(id="1"), "id-mixed", None, None),
    "annotation id is 0": (annotation(id=0), "id-zero", 1, 0),
    "annotation without id": (without("annotations", "id"), "key-missing", 1, None),
    "annotation without bbox": (without("annotations", "bbox"), "key-missing", 1, 11),
    "annotation without image": (without("annotations", "image_id"), "key-missing", None, 11),
    "image without height": (without("images", "height"), "key-missing", 1, None),
    "image without file_name": (without("images", "file_name"), "key-missing", 1, None),
    "category without name": (without("categories", "name"), "key-missing", None, None),
    "key of your own": (annotation(score=0.5), "key-unknown", None, None),
    "image is no object": (
        lambda d: d["images"].append("a.png"),
        "entry-form",
        None,
        None,
    ),
    "annotation is null": (lambda d: d["annotations"].append(None), "entry-form", None, None),
    "no annotations at all": (
        lambda d: d["annotations"].clear(),
        "list-empty",
        None,
        None,
    ),
    # Categories
    "category name is a number": (category(name=3), "category-name", None, None),
    "category name is empty": (category(name=" "), "category-name", None, None),
    "category name twice": (category(name="seven"), "category-name-duplicate", None, None),
    "category that nothing has": (
        lambda d: d["categories"].append({"id": 8, "name": "eight"}),
        "category-unused",
        None,
        None,
    ),
    # Images
    "path climbs out": (image(file_name="../a.png"), "file-outside", 1, None),
    "path climbs out later": (image(file_name="b/../../a.png"), "file-outside", 1, None),
    "path climbs out and back": (image(file_name="../images/a.png"), "file-outside", 1, None),
    "path is absolute": (image(file_name="/etc/passwd"), "file-outside", 1, None),
    "path climbs on Windows": (image(file_name="..\\a.png"), "file-outside", 1, None),
    "path is absolute on Windows": (image(file_name="C:\\a.png"), "file-outside", 1, None),
    "file name is empty": (image(file_name=""), "file-name", 1, None),
    "file name is null": (image(file_name=None), "file-name", 1, None),
    "file name has a zero byte": (image(file_name="a\0.png"), "file-name", 1, None),
    "file name is no Unicode": (image(file_name="\ud800.png"), "file-name", 1, None),
    "file name is a folder": (image(file_name="b/.."), "file-name", 1, None),
    "one file twice": (image(1, file_name="b/../a.png"), "file-duplicate", 2, None),
    "width is a string": (image(width="80"), "size-form", 1, None),
    "width is 0": (image(width=0), "size-form", 1, None),
    "height is negative": (image(height=-60), "size-form", 1, None),
    "height is NaN": (image(height=NAN), "size-form", 1, None),
    "width is a float": (image(width=80.0), "size-float", 1, None),
    "1x1": (of_image(3, "b.png", 1, 1), "size-tiny", 3, None),
    "gigapixels": (of_image(3, "b.png", 50_000, 50_000), "size-huge", 3, None),
    "one row": (of_image(3, "b.png", 1, 12_000), "size-thin", 3, None),
    "no instance": (of_image(3, "b.png", HEIGHT, WIDTH), "image-empty", 3, None),
    "500 instances": (crowded, "image-crowded", 1, None),
    # Boxes
    "bbox NaN": (annotation(bbox=[NAN, 1, 2, 3]), "bbox-not-finite", 1, 11),
    "bbox infinite": (annotation(bbox=[0, 0, INF, 3]), "bbox-not-finite", 1, 11),
    "bbox beyond floats": (annotation(bbox=[0, 0, 10**400, 3]), "bbox-not-finite", 1, 11),
    "bbox negative": (annotation(bbox=[30, 30, -20, -20]), "bbox-negative", 1, 11),
    "bbox zero": (annotation(bbox=[10, 10, 0, 20]), "bbox-zero", 1, 11),
    "bbox of three": (annotation(bbox=[1, 2, 3]), "bbox-form", 1, 11),
    "bbox of strings": (annotation(bbox=["1", "2", "3", "4"]), "bbox-form", 1, 11),
    "bbox null": (annotation(bbox=None), "bbox-form", 1, 11),
    "bbox nested": (annotation(bbox=[[1, 2], [3, 4]]), "bbox-form", 1, 11),
    "bbox leaves the image": (annotation(bbox=[70, 10, 20, 20]), "bbox-outside", 1, 11),
    "bbox outside": (annotation(bbox=[90, 10, 20, 20]), "bbox-off-image", 1, 11),
    "bbox XYXY beside its mask": (annotation(1, bbox=[40, 30, 70, 50]), "bbox-xyxy", 1, 12),
    "bbox XYXY without masks": (as_corners, "bbox-xyxy", 1, 105),
    "bbox says XYXY": (annotation(bbox_mode=0), "bbox-mode", 1, 11),
    "bbox of another": (annotation(bbox=[50, 5, 10, 10]), "bbox-mask", 1, 11),
    # Masks
    "polygon of two points": (polygons([1, 1, 5, 5]), "polygon-short", 1, 11),
    "two points and a number": (polygons([1, 1, 5, 5], 5), "polygon-form", 1, 11),
    "empty polygon": (polygons([]), "polygon-short", 1, 11),
    "polygon of odd length": (polygons(square(10, 10, 20)[:-1]), "polygon-odd", 1, 11),
    "polygon with NaN": (polygons([NAN, *square(10, 10, 20)[1:]]), "polygon-not-finite", 1, 11),
    "polygon infinite": (polygons([INF, *square(10, 10, 20)[1:]]), "polygon-not-finite", 1, 11),
    "polygon crosses itself": (
        polygons([10, 10, 30, 30, 30, 10, 10, 30]),
        "polygon-crossing",
        1,
        11,
    ),
    "polygon touches itself": (
        polygons([10, 10, 30, 10, 20, 20, 30, 30, 10, 30, 20, 20]),
        "polygon-crossing",
        1,
        11,
    ),
    "polygon leaves the image": (polygons(square(70, 10, 20)), "polygon-outside", 1, 11),
    "polygon outside": (polygons(square(90, 10, 20)), "polygon-off-image", 1, 11),
    "polygon miles away": (polygons(square(1e6, 10, 20)), "polygon-off-image", 1, 11),
    "polygon is flat": (polygons([10, 10, 20, 10, 30, 10]), "mask-empty", 1, 11),
    "polygon without its list": (
        annotation(segmentation=square(10, 10, 20)),
        "polygon-form",
        1,
        11,
    ),
    "polygon of pairs": (polygons([[10, 10], [30, 10], [30, 30]]), "polygon-pairs", 1, 11),
    "polygon of strings": (polygons(["10"] * 8), "polygon-form", 1, 11),
    "polygon of truth values": (polygons([True] * 8), "polygon-form", 1, 11),
    "segmentation empty": (annotation(segmentation=[]), "mask-missing", 1, 11),
    "segmentation missing": (without("annotations", "segmentation"), "mask-missing", 1, 11),
    "segmentation null": (annotation(segmentation=None), "mask-missing", 1, 11),
    "segmentation is a string": (annotation(segmentation="ab"), "mask-form", 1, 11),
    "no masks": (all_without("segmentation"), "no-masks", None, None),
    "RLE of the wrong size": (
        annotation(1, segmentation={**rle(compressed=True), "size": [10, 10]}),
        "rle-size",
        1,
        12,
    ),
    "RLE on its side": (
        annotation(1, segmentation={**rle(compressed=True), "size": [WIDTH, HEIGHT]}),
        "rle-size",
        1,
        12,
    ),
    "RLE without size": (
        annotation(1, segmentation={"counts": [1, 2]}),
        "rle-form",
        1,
        12,
    ),
    "RLE without counts": (
        annotation(1, segmentation={"size": [HEIGHT, WIDTH]}),
        "rle-form",
        1,
        12,
    ),
    "RLE counts null": (counts(lambda c: None, 1), "rle-form", 1, 12),
    "RLE cut off": (counts(lambda c: c[:-2], 1), "rle-counts", 1, 12),
    "RLE cut in a number": (counts(lambda c: c + "a", 1), "rle-counts", 1, 12),
    "RLE too long": (counts(lambda c: c + "5", 1), "rle-counts", 1, 12),
    "RLE of other characters": (counts(lambda c: c + "~", 1), "rle-counts", 1, 12),
    "RLE of non-ASCII": (counts(lambda c: "ö" + c, 1), "rle-counts", 1, 12),
    "RLE empty": (counts(lambda c: "", 1), "rle-counts", 1, 12),
    "RLE number without end": (counts(lambda c: "o" * 20 + "0", 1), "rle-counts", 1, 12),
    "RLE list too short": (counts(lambda c: c[:-1], 3), "rle-counts", 2, 14),
    "RLE list too long": (counts(lambda c: [*c, 5], 3), "rle-counts", 2, 14),
    "RLE list negative": (counts(lambda c: [-c[0], 2 * c[0], *c[1:]], 3), "rle-counts", 2, 14),
    "RLE list of floats": (counts(lambda c: list(map(float, c)), 3), "rle-counts", 2, 14),
    "RLE list of huge": (counts(lambda c: [10**30, *c], 3), "rle-counts", 2, 14),
    "RLE of nothing": (counts(lambda c: [HEIGHT * WIDTH], 3), "mask-empty", 2, 14),
    # What else
    "area missing": (without("annotations", "area"), "area-missing", 1, 11),
    "area zero": (annotation(area=0), "area-zero", 1, 11),
    "area negative": (annotation(area=-4), "area-form", 1, 11),
    "area NaN": (annotation(area=NAN), "area-form", 1, 11),
    "area a string": (annotation(area="400"), "area-form", 1, 11),
    "area null": (annotation(area=None), "area-form", 1, 11),
    "area unlike the mask": (annotation(area=4000), "area-mask", 1, 11),
    "iscrowd missing": (without("annotations", "iscrowd"), "iscrowd-missing", 1, 11),
    "iscrowd two": (annotation(iscrowd=2), "iscrowd-form", 1, 11),
    "iscrowd a string": (annotation(iscrowd="0"), "iscrowd-form", 1, 11),
    "to be ignored": (annotation(ignore=1), "ignore", 1, 11),
    "iscrowd null": (annotation(iscrowd=None), "iscrowd-form", 1, 11),
    "keypoints of two": (annotation(keypoints=[1, 2]), "keypoints-form", 1, 11),
    "keypoints of strings": (annotation(keypoints=["1", 2, 2]), "keypoints-form", 1, 11),
}


def write(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps(data))
    return path


def of_kind(findings: list[Finding], kind: str) -> list[Finding]:
    return [f for f in findings if f.kind == kind]


@pytest.fixture(autouse=True)
def _says_it_again(monkeypatch):
    monkeypatch.setattr(coco, "_read", {})


def test_the_good_dataset_has_nothing_to_remark_on(tmp_path):
    path = write(tmp_path, good())
    assert check_coco(path) == []
    assert exit_code([]) == 0
    assert sum(len(r["annotations"]) for r in load_coco(path, tmp_path).records) == 5


def test_a_loose_box_at_the_corner_is_not_two_corners(tmp_path):
    """There both readings are about the same, and the other may happen to be nearer."""
    data = good()
    annotation(bbox=[0, 1, 40, 38], segmentation=[[1, 2, 39, 2, 39, 36.5, 1, 36.5]])(data)
    assert "bbox-xyxy" not in {f.kind for f in check_coco(write(tmp_path, data))}
    data = good()
    annotation(bbox=[10, 10, 30, 30])(data)  # 10 pixels too large, which is how far away it is
    assert check_coco(write(tmp_path, data)) == []
    annotation(2, bbox=[10, 10, 30, 30])(data)  # two of five are still no habit, three are
    annotation(4, bbox=[10, 12, 20, 22], segmentation=[square(10, 12, 10)])(data)
    kinds = [f.kind for f in check_coco(write(tmp_path, data))]
    assert kinds.count("bbox-xyxy") == 3


def test_a_polygon_that_crosses_itself_has_an_area_whatever_the_shoelace_formula_says(tmp_path):
    data = good()
    polygons([10, 10, 30, 30, 30, 10, 10, 30])(data)
    kinds = {f.kind for f in check_coco(write(tmp_path, data))}
    assert "polygon-crossing" in kinds
    assert "mask-empty" not in kinds


@pytest.mark.parametrize("name", CORPUS)
def test_each_defect_of_a_json_is_named(tmp_path, caplog, name):
    change, kind, number, owner = CORPUS[name]
    data = good()
    change(data)
    path = write(tmp_path, data)
    found = of_kind(check_coco(path), kind)
    assert (number, owner) in [(f.image, f.annotation) for f in found]
    severity, remedy = KINDS[kind]
    assert found[0].severity == severity
    assert found[0].file == str(path)
    assert found[0].what
    assert remedy in report(found)

    # The loader stops at errors and says the rest once.
    with caplog.at_level(logging.INFO):
        if severity == "error":
            with pytest.raises(SmallObjError) as e:
                load_coco(path, tmp_path)
            assert "\n" not in str(e.value)
            assert str(path) in str(e.value)
        else:
            load_coco(path, tmp_path)
            assert f"of {kind}, such as" in caplog.text
            caplog.clear()
            load_coco(path, tmp_path)
            assert caplog.text == ""


@pytest.mark.parametrize("name", [n for n, c in CORPUS.items() if KINDS[c[1]][0] != "error"])
def test_what_the_loader_lets_pass_can_be_pasted(tmp_path, name):
    """Harmless is what does no harm later."""
    from smallobj_d2.copy_paste import CopyPaste, SameImage, SourceRule

    data = good()
    CORPUS[name][0](data)
    copy_paste = CopyPaste(sources=SameImage(SourceRule(connected=False, boxes=True)))
    for record in load_coco(write(tmp_path, data), tmp_path).records:
        size = record["height"], record["width"]
        if max(size) > 1000:
            continue
        picture = np.zeros((*size, 3), np.uint8)
        copy_paste(picture, record["annotations"], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "json-damaged"),
        (json.dumps(good())[:-30], "json-damaged"),
        ("[" * 200_000, "json-damaged"),
        ('{"images": 1' + "0" * 5000 + "}", "json-damaged"),
        ("[]", "not-coco"),
        ("3", "not-coco"),
        ('{"images": [], "annotations": {}, "categories": []}', "not-coco"),
        ('{"shapes": []}', "not-coco"),
    ],
    ids=["empty", "cut off", "nested", "digits", "list", "number", "no list", "other"],
)
def test_a_file_that_is_no_coco_json(tmp_path, text, kind):
    path = tmp_path / "a.json"
    path.write_text(text)
    (found,) = check_coco(path)
    assert (found.kind, found.severity) == (kind, "error")
    with pytest.raises(SmallObjError, match=r"a\.json"):
        load_coco(path, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_a_file_that_coco_tools_could_not_read_is_refused(tmp_path, encoding):
    """The evaluation, Detectron2's too, reads UTF-8 without a mark: better now than at the end."""
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(good(), ensure_ascii=False).encode(encoding))
    assert [f.kind for f in check_coco(path)] == ["json-encoding"]
    with pytest.raises(SmallObjError, match="UTF-8"):
        load_coco(path, tmp_path)


def test_a_file_in_latin_letters_is_damaged(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(good(), ensure_ascii=False).encode("latin1"))
    assert [f.kind for f in check_coco(path)] == ["json-damaged"]


@pytest.mark.parametrize("what", ["missing", "folder", "pipe"])
def test_a_file_that_is_not_there(tmp_path, what):
    path = tmp_path / "a.json"
    if what == "folder":
        path.mkdir()
    if what == "pipe":  # opening it would wait for ever
        os.mkfifo(path)
    assert [f.kind for f in check_coco(path)] == ["file-unreadable"]


@pytest.mark.parametrize("keys", [("images",), ("categories",), ("annotations", "images")])
def test_ids_as_strings_work_if_all_are(tmp_path, keys):
    data = good()
    strings(*keys)(data)
    path = write(tmp_path, data)
    assert check_coco(path) == []
    dataset = load_coco(path, tmp_path)
    assert dataset.thing_classes == ["three", "seven"]
    assert sum(len(r["annotations"]) for r in dataset.records) == 5


def test_all_defects_are_named_in_one_pass(tmp_path):
    """Fifty defects at once, of which none hides another."""
    data = good()
    template = data["annotations"][0]
    wanted = []
    not_here = ("two annotations", "annotation id is")  # which change the id by which it is found
    number = 100
    for name, (change, kind, _, owner) in CORPUS.items():
        if owner != 11 or name.startswith(not_here):
            continue
        one = {"annotations": [deepcopy(template)]}
        change(one)
        one["annotations"][0]["id"] = number
        data["annotations"] += one["annotations"]
        wanted.append((kind, number))
        number += 1
    path = write(tmp_path, data)
    findings = check_coco(path)
    assert {(f.kind, f.annotation) for f in findings} >= set(wanted)
    assert len(wanted) >= 40
    assert exit_code(findings) == 2

    text = report(findings)
    order = [text.index(f"{severity:8}") for severity in ("error", "warning", "note")]
    assert order == sorted(order)
    assert all(f"annotation {n}" in text for kind, n in wanted if KINDS[kind][0] != "note")
    with pytest.raises(
        SmallObjError, match=r"\d+ errors; smallobj analyze --check --json .*lists all"
    ):
        load_coco(path, tmp_path)


def test_the_exit_code_is_that_of_the_worst():
    note, warning, error = (Finding(k, "", "") for k in ("key-unknown", "id-zero", "file-name"))
    assert [exit_code(f) for f in ([note], [note, warning], [warning, error])] == [0, 1, 2]


@pytest.mark.parametrize("dataset", ["coco", "dsb2018"])
def test_real_datasets_have_no_errors(dataset):
    if not (REAL / dataset).is_dir():
        pytest.skip(f"there is no {dataset}/ under DETECTRON2_DATASETS")
    files = sorted((REAL / dataset / "annotations").glob("*.json"))
    assert files
    for path in files:
        assert exit_code(check_coco(path)) == 0


def test_real_images_have_no_errors():
    root = REAL / "coco"
    if not root.is_dir():
        pytest.skip("there is no coco/ under DETECTRON2_DATASETS")
    json_file = root / "annotations" / "instances_val2017.json"
    assert exit_code(check_coco(json_file, root / "val2017")) == 0


def test_made_scenes_have_no_errors(tmp_path):
    from smallobj_d2.datasets.synthetic import make_dataset

    root = tmp_path / "scenes"
    make_dataset(tmp_path, "scenes", 12, seed=3, size=192, progress=False)
    found = check_coco(root / "annotations.json", root / "images")
    assert exit_code(found) < 2


# --- Image files


def picture(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(noise[:, :, 0].astype(np.int32 if mode == "I" else np.float32))
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), "JPEG", exif=exif)


PNG = encoded(picture(), "PNG")
JPEG = encoded(picture(), "JPEG")

FILES: dict[str, tuple[bytes | None, str | None]] = {
    "missing": (None, "image-missing"),
    "zero bytes": (b"", "image-zero-bytes"),
    "a text": (b"not an image", "image-damaged"),
    "truncated PNG": (PNG[:-2000], "image-damaged"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "image-damaged"),
    "header alone": (PNG[:40], "image-damaged"),
    "damaged PNG": (PNG[:500] + b"\0" * 200 + PNG[700:], "image-damaged"),
    "smaller": (encoded(picture(size=(40, 30)), "PNG"), "image-size"),
    "on its side": (encoded(picture(size=(HEIGHT, WIDTH)), "PNG"), "image-size"),
    "grayscale": (encoded(picture("L"), "PNG"), "image-gray"),
    "black and white": (encoded(picture("1"), "PNG"), "image-gray"),
    "palette": (encoded(picture("P"), "PNG"), "image-palette"),
    "RGBA": (encoded(picture("RGBA"), "PNG"), "image-transparent"),
    "gray and alpha": (encoded(picture("LA"), "PNG"), "image-transparent"),
    "CMYK": (encoded(picture("CMYK"), "JPEG"), "image-cmyk"),
    "LAB": (encoded(picture().convert("YCbCr"), "TIFF"), "image-other"),
    "16 bit PNG": (encoded(picture("I;16"), "PNG"), "image-16-bit"),
    "16 bit TIFF": (encoded(picture("I;16"), "TIFF"), "image-16-bit"),
    "32 bit TIFF": (encoded(picture("I"), "TIFF"), "image-16-bit"),
    "float TIFF": (encoded(picture("F"), "TIFF"), "image-16-bit"),
    "EXIF upside down": (turned(3), "image-turned"),
    "EXIF on its side": (turned(6), "image-size"),
    "frames": (
        encoded(picture(), "GIF", save_all=True, append_images=[picture("L")]),
        "image-frames",
    ),
    "good PNG": (PNG, None),
    "good JPEG": (JPEG, None),
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> tuple[Path, Path]:
    """A JSON with one image of each kind, and their folder."""
    root = tmp_path_factory.mktemp("images")
    entries = []
    for i, (name, (content, _)) in enumerate(FILES.items(), 1):
        entries.append({"id": i, "file_name": f"{name}.img", "height": HEIGHT, "width": WIDTH})
        if content is not None:
            (root / f"{name}.img").write_bytes(content)
    path = root / "a.json"
    path.write_text(json.dumps({**good(), "annotations": [], "images": entries}))
    return path, root


def test_each_defect_of_an_image_is_named(gallery):
    path, root = gallery
    findings = check_coco(path, root)
    for i, (name, (_, kind)) in enumerate(FILES.items(), 1):
        found = [f for f in findings if f.image == i and f.file != str(path)]
        assert [f.kind for f in found if f.severity == "error" or f.kind == kind] == (
            [] if kind is None else [kind]
        ), name
        assert all(f.file == str(root / f"{name}.img") for f in found)
    assert exit_code(findings) == 2
    assert findings == check_coco(path, root, workers=1)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_training_reads_an_image_or_says_why_not(gallery, engine, name):
    """What is an error of the check is one of training, and nothing else is."""
    _, root = gallery
    kind = FILES[name][1]
    record = {
        "file_name": str(root / f"{name}.img"),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
    }
    if engine == "detectron2":
        pytest.importorskip("detectron2")
        from smallobj_d2.engines.detectron2.data import read_image as read
    else:
        from smallobj_d2.engines.torchvision.mapper import read_image as read
    if kind and KINDS[kind][0] == "error":
        with pytest.raises(UnreadableImage, match=r"\.img \(image 7\)"):
            read(record, "RGB")
    else:
        image = read(record, "RGB")
        assert (image.shape, image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)


def test_an_image_of_12000_pixels_and_one_of_one_can_be_read(tmp_path):
    Image.new("RGB", (12_000, 12_000)).save(tmp_path / "large.png", compress_level=1)
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    assert images.look_at(str(tmp_path), (str(tmp_path / "large.png"), 12_000, 12_000)) == []
    assert images.look_at(str(tmp_path), (str(tmp_path / "tiny.png"), 1, 1)) == []
    data = good()
    of_image(3, "large.png", 12_000, 12_000)(data)
    assert exit_code(check_coco(write(tmp_path, data))) == 0


def test_a_file_claiming_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
    header = bytearray(PNG)
    header[16:24] = (100_000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(header)
    ((kind, _),) = images.look_at(str(tmp_path), (str(tmp_path / "bomb.png"), HEIGHT, WIDTH))
    assert kind == "image-damaged"
    record = {"file_name": str(tmp_path / "bomb.png"), "height": HEIGHT, "width": WIDTH}
    with pytest.raises(UnreadableImage), images.opened(record):
        pass


def test_a_link_is_followed_but_one_that_leads_out_is_noted(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "b.png").write_bytes(PNG)
    (root / "a.png").symlink_to(tmp_path / "b.png")
    (root / "c.png").write_bytes(PNG)
    (root / "d.png").symlink_to(root / "c.png")
    look = [images.look_at(str(root), (str(root / n), HEIGHT, WIDTH)) for n in ("a.png", "d.png")]
    assert [[kind for kind, _ in found] for found in look] == [["image-link"], []]


@pytest.mark.parametrize("there", ["A.PNG", "a\u0308.png"])
def test_a_missing_file_of_nearly_that_name_is_pointed_out(tmp_path, there):
    (tmp_path / there).write_bytes(PNG)
    name = "a.png" if there == "A.PNG" else "\u00e4.png"
    if (tmp_path / name).exists():
        pytest.skip("this file system takes the two for one")
    ((kind, what),) = images.look_at(str(tmp_path), (str(tmp_path / name), HEIGHT, WIDTH))
    assert kind == "image-missing"
    assert ascii(there) in what


# --- Exporters' habits, which all entries of a file have in common


def many(masks: str = "polygon") -> dict[str, Any]:
    """Twenty-four instances of many sizes in three images that are not square."""
    rng = np.random.default_rng(5)
    sizes = {1: (300, 400), 2: (200, 500), 3: (640, 330)}
    data: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": h, "width": w}
            for i, (h, w) in sizes.items()
        ],
        "annotations": [],
        "categories": [{"id": 3, "name": "three"}],
    }
    for n in range(24):
        number = 1 + n % 3
        height, width = sizes[number]
        w, h = rng.uniform(20, 0.5 * min(height, width), 2).round(1).tolist()
        x = round(float(rng.uniform(0, width - w)), 1)
        y = round(float(rng.uniform(0, height - h)), 1)
        if n < 6:  # at the far corner, where another reading must show
            x, y = round(width - w, 1), round(height - h, 1)
        a = {"id": n + 1, "image_id": number, "category_id": 3, "iscrowd": 0, "area": w * h}
        a |= {"bbox": [x, y, w, h]}
        a |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]} if masks else {}
        data["annotations"].append(a)
    return data


def boxes(read: Callable[..., list[float]]) -> Change:
    def apply(data: dict[str, Any]) -> None:
        sizes = {i["id"]: (i["width"], i["height"]) for i in data["images"]}
        for a in data["annotations"]:
            at, side = np.array(a["bbox"]).reshape(2, 2)
            a["bbox"] = read(at, side, np.array(sizes[a["image_id"]]))

    return apply


def outlines(change: Callable[..., Any]) -> Change:
    def apply(data: dict[str, Any]) -> None:
        sizes = {i["id"]: (i["width"], i["height"]) for i in data["images"]}
        for a in data["annotations"]:
            points = np.array(a["segmentation"][0]).reshape(-1, 2)
            a["segmentation"] = change(points, np.array(sizes[a["image_id"]]))

    return apply


def flat(points: Any) -> list[list[float]]:
    return [points.ravel().tolist()]


def row(*parts: Any) -> list[float]:
    return np.concatenate(parts).tolist()


def rounded(*parts: Any) -> list[float]:
    return np.rint(1000 * np.concatenate(parts)).astype(int).tolist()


FRACTIONS = boxes(lambda at, side, size: row(at / size, side / size))
YOLO = boxes(lambda at, side, size: row((at + side / 2) / size, side / size))
GRID = boxes(lambda at, side, size: rounded(at / size, side / size))
GEMINI = boxes(lambda at, side, size: rounded((at / size)[::-1], ((at + side) / size)[::-1]))
PER_CENT = boxes(lambda at, side, size: row(100 * at / size, 100 * side / size))
CORNERS = boxes(lambda at, side, size: row(at, at + side))
CENTER = boxes(lambda at, side, size: row(at + side / 2, side))
Y_FIRST = boxes(lambda at, side, size: row(at[::-1], side[::-1]))
FRACTION_POLYGONS = outlines(lambda p, size: flat(p / size))


def both(data: dict[str, Any]) -> None:
    FRACTIONS(data)
    FRACTION_POLYGONS(data)
    for a in data["annotations"]:
        a["area"] = a["bbox"][2] * a["bbox"][3]


def both_y_first(data: dict[str, Any]) -> None:
    Y_FIRST(data)
    outlines(lambda p, size: flat(p[:, ::-1]))(data)


POLYGONS = "polygon-normalized"
HABITS: dict[str, tuple[Change, str, str]] = {
    "fractions": (FRACTIONS, "bbox-normalized", "polygon"),
    "fractions, no masks": (FRACTIONS, "bbox-normalized", ""),
    "YOLO": (YOLO, "bbox-normalized", "polygon"),
    "YOLO, no masks": (YOLO, "bbox-normalized", ""),
    "grid of 1000": (GRID, "bbox-normalized", "polygon"),
    "grid of 1000, no masks": (GRID, "bbox-normalized", ""),
    "y first on a grid of 1000": (GEMINI, "bbox-normalized", "polygon"),
    "y first on a grid, no masks": (GEMINI, "bbox-normalized", ""),
    "per cent": (PER_CENT, "bbox-normalized", "polygon"),
    "per cent, no masks": (PER_CENT, "bbox-normalized", ""),
    "two corners": (CORNERS, "bbox-xyxy", "polygon"),
    "two corners, no masks": (CORNERS, "bbox-xyxy", ""),
    "centres": (CENTER, "bbox-center", "polygon"),
    "y first": (Y_FIRST, "bbox-y-first", "polygon"),
    "y first, no masks": (Y_FIRST, "bbox-y-first", ""),
    "y first, masks too": (both_y_first, "polygon-y-first", "polygon"),
    "polygons as fractions": (FRACTION_POLYGONS, "polygon-normalized", "polygon"),
    "all as fractions": (both, "polygon-normalized", "polygon"),
    "areas as fractions": (all_annotations(area=0.01), "area-normalized", "polygon"),
    "polygons per cent": (outlines(lambda p, s: flat(100 * p / s)), POLYGONS, "polygon"),
    "polygons on a grid": (outlines(lambda p, s: flat(1000 * p / s)), POLYGONS, "polygon"),
    "polygons of points": (outlines(lambda p, s: p.tolist()), "polygon-pairs", "polygon"),
    "polygons of lists": (outlines(lambda p, s: [p.tolist()]), "polygon-pairs", "polygon"),
    "polygons of named points": (
        outlines(lambda p, s: [[{"x": x, "y": y} for x, y in p.tolist()]]),
        "polygon-pairs",
        "polygon",
    ),
    "points by name": (
        outlines(lambda p, s: [{"x": x, "y": y} for x, y in p.tolist()]),
        "polygon-form",
        "polygon",
    ),
    "polygons as text": (
        outlines(lambda p, s: ["".join(f"{x},{y} " for x, y in p)]),
        "polygon-form",
        "polygon",
    ),
    "boxes for polygons": (outlines(lambda p, s: flat(p[[0, 2]])), "polygon-corners", "polygon"),
}  # fmt: skip


@pytest.mark.parametrize("masks", ["polygon", ""])
def test_what_has_no_habit_is_left_in_peace(tmp_path, masks):
    assert exit_code(check_coco(write(tmp_path, many(masks)))) == 0


@pytest.mark.parametrize("name", HABITS)
def test_exporters_habits_are_named_and_refused(tmp_path, name):
    change, kind, masks = HABITS[name]
    data = many(masks)
    change(data)
    path = write(tmp_path, data)
    found = check_coco(path)
    kinds = {f.kind for f in found if f.severity == "error"}
    assert kind in kinds
    # One habit is not told as two, but for boxes and polygons that both have it.
    limit = 3 if name in ("y first, masks too", "all as fractions") else 1
    assert len(kinds - {"bbox-off-image", "polygon-off-image"}) <= limit
    with pytest.raises(SmallObjError, match=r"a\.json"):
        load_coco(path, tmp_path)


def test_boxes_that_leave_their_images_have_no_habit(tmp_path):
    """Objects cut by the border, with boxes that extend beyond it."""
    data = many("")
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x - 0.3 * w if a["id"] % 2 else x, y, 1.3 * w, 1.3 * h]
    assert exit_code(check_coco(write(tmp_path, data))) == 1


@pytest.mark.parametrize("change", [
    lambda data, deep: data["annotations"][0].update(attributes=deep),
    lambda data, deep: data["images"][0].update(license=deep),
    lambda data, deep: data["categories"][0].update(supercategory=deep),
    lambda data, deep: data.update(info=deep),
])  # fmt: skip
def test_what_is_nested_too_deep_to_be_copied_is_refused(tmp_path, change):
    for depth, kinds in ((20, set()), (900, {"json-deep"})):
        deep: Any = 1
        for i in range(depth):
            deep = {"a": deep} if i % 2 else [deep]
        data = good()
        change(data, deep)
        found = check_coco(write(tmp_path, data))
        assert {f.kind for f in found if f.severity == "error"} == kinds


def test_names_cannot_forge_a_line_of_the_report_or_an_error(tmp_path):
    name = "a\nerror: all is lost\x1b[2J\u202e.png"
    data = good()
    data["images"][0].update(file_name=name, height=-1)
    root = tmp_path / "x\nerror: forged\x1b[0m"
    root.mkdir()
    path = write(root, data)
    text = report(check_coco(path, root))
    assert not any(line.startswith("error:") for line in text.splitlines())
    assert text.replace("\n", "").isprintable()
    with pytest.raises(SmallObjError) as e:
        load_coco(path, tmp_path)
    assert str(e.value).isprintable()
    record = {"file_name": str(root / name), "image_id": 1}
    with pytest.raises(UnreadableImage) as e, images.opened(record):
        pass
    assert str(e.value).isprintable()
