"""YOLO's labels to COCO and back: what is kept, what is lost, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from proofs.random_scenes import annotation_of, outline, raster, rle_of
from smallobj_d2 import SmallObjError, load_coco
from smallobj_d2.adapters.yolo import label_file, one_polygon, to_coco, to_yolo
from smallobj_d2.commands import augment_dataset, yolo
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.check import check_coco
from smallobj_d2.datasets.synthetic import make_dataset

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("yolo"), "s", 5, seed=1, size=96, progress=False)


def write_yolo(folder, labels, **more):
    """A dataset with one 20 x 10 image for each text of labels (None: no file)."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(labels):
        Image.new("RGB", (20, 10)).save(folder / "images" / "train" / f"{i}.png")
        if text is not None:
            (folder / "labels" / "train" / f"{i}.txt").write_text(text)
    data = {"train": "images/train", "names": {0: "cat", 1: "dog"}} | more
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder / "data.yaml"


# --- One polygon for a mask


def as_written(points, height, width):
    """The mask of a polygon after its way through text."""
    shares = [float(f"{v:.10g}") for v in (points / (width, height)).ravel()]
    back = np.round(np.reshape(shares, (-1, 2)) * (width, height), 5)
    return raster([back.ravel().tolist()], height, width)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1))
)
def test_a_mask_of_pixels_is_one_polygon_exactly(mask):
    """Parts and holes, too, by COCO's own rasterizer."""
    if mask.any():
        rle = rle_of(mask)
        thing = {"segmentation": rle, "bbox": coco_mask.toBbox(rle).tolist()}
        points, _ = one_polygon(thing, *mask.shape)
        assert (as_written(points, *mask.shape) == mask).all()


def test_several_parts_are_joined_exactly_unless_they_overlap():
    rng = np.random.default_rng(0)
    apart, overlapping = [], []
    for _ in range(200):
        height, width = rng.integers(20, 300, 2).tolist()
        radius = rng.choice([3, 10, 40])
        parts = [outline(rng, height, width, radius) for _ in range(rng.integers(2, 4))]
        thing = annotation_of(rng, parts, height, width, "parts")
        masks = [raster([p.ravel().tolist()], height, width) for p in parts]
        points, joined = one_polygon(thing, height, width)
        want = raster(thing["segmentation"], height, width)
        difference = int((as_written(points, height, width) != want).sum())
        if sum(masks).max() > 1:
            overlapping.append(difference / want.sum())
        else:
            assert joined
            apart.append(difference)
    assert len(apart) > 100
    assert sum(apart) <= 2
    assert max(overlapping) < 0.05


def test_a_hole_stays_a_hole():
    mask = np.zeros((12, 12), np.uint8)
    mask[2:10, 2:10] = 1
    mask[4:7, 5:8] = 0
    points, joined = one_polygon({"segmentation": rle_of(mask), "bbox": [2, 2, 8, 8]}, 12, 12)
    assert joined
    assert len(points) == 4 + 4 + 2  # two rings, and the way back
    assert (as_written(points, 12, 12) == mask).all()


# --- There and back


def test_coco_polygons_come_back(scenes, tmp_path):
    done = to_yolo(scenes, scenes.parent / "images", tmp_path, "train")
    assert (done.images, done.masks) == (5, True)
    data, root = to_coco(tmp_path / "data.yaml", "train")
    (tmp_path / "back.json").write_text(json.dumps(data))
    assert not [f for f in check_coco(tmp_path / "back.json") if f.severity != "note"]
    before, after = (
        load_coco(scenes, scenes.parent / "images"),
        load_coco(tmp_path / "back.json", root),
    )
    assert before.thing_classes == after.thing_classes
    assert done.instances == sum(len(r["annotations"]) for r in before.records)
    for old, new in zip(before.records, after.records, strict=True):
        assert Path(old["file_name"]).name == Path(new["file_name"]).name
        assert Path(old["file_name"]).read_bytes() == Path(new["file_name"]).read_bytes()
        for a, b in zip(old["annotations"], new["annotations"], strict=True):
            assert a["category_id"] == b["category_id"]
            if len(a["segmentation"]) == 1:
                assert np.allclose(a["segmentation"], b["segmentation"], atol=1e-5)
            assert abs(a["area"] - b["area"]) <= 0.05 * a["area"] + 4
            assert np.allclose(a["bbox"], b["bbox"], atol=1)


def test_what_leaves_the_image_is_cut_off_and_not_pushed_in(tmp_path):
    triangle = [[60.0, 10, 140, 50, 60, 90]]
    thing = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 2400}
    thing |= {"bbox": [60, 10, 40, 80], "segmentation": triangle}
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [thing],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "images" / "a.png")
    to_yolo(tmp_path / "a.json", tmp_path / "images", tmp_path / "yolo", "train")
    (back,) = to_coco(tmp_path / "yolo" / "data.yaml", "train")[0]["annotations"]
    masks = [raster(s, 100, 100) for s in (triangle, back["segmentation"])]
    assert (masks[0] != masks[1]).sum() <= 2


def test_a_crowd_without_a_mask_makes_no_boxes_of_the_others(scenes, tmp_path):
    """It is left out itself."""
    data = json.loads(scenes.read_bytes())
    crowd = {**data["annotations"][0], "id": 10**6, "iscrowd": 1}
    del crowd["segmentation"]
    data["annotations"].append(crowd)
    (tmp_path / "a.json").write_text(json.dumps(data))
    done = to_yolo(tmp_path / "a.json", scenes.parent / "images", tmp_path / "out", "val")
    assert done.masks
    assert done.left_out["crowds"] >= 1


def test_boxes_come_back(scenes, tmp_path):
    done = to_yolo(scenes, scenes.parent / "images", tmp_path, "val", boxes=True)
    assert not done.masks
    data, _ = to_coco(tmp_path / "data.yaml", "val")
    before = load_coco(scenes, scenes.parent / "images")
    old = [a["bbox"] for r in before.records for a in r["annotations"]]
    assert np.allclose(old, [a["bbox"] for a in data["annotations"]], atol=1e-4)
    assert not any("segmentation" in a for a in data["annotations"])


def test_masks_of_pixels_come_back_exactly(scenes, tmp_path):
    truth = json.loads(scenes.read_bytes())
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    masks = []
    for a in truth["annotations"]:
        masks.append(raster(a["segmentation"], *sizes[a["image_id"]]))
        rle = rle_of(masks[-1])
        a["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    truth["annotations"][0]["iscrowd"] = 1
    (tmp_path / "rle.json").write_text(json.dumps(truth))
    done = to_yolo(tmp_path / "rle.json", scenes.parent / "images", tmp_path / "out", "train")
    assert done.left_out == {"crowds": 1}
    assert done.bitmaps == done.instances == len(masks) - 1
    data, _ = to_coco(tmp_path / "out" / "data.yaml", "train")
    back = [raster(a["segmentation"], *sizes[a["image_id"]]) for a in data["annotations"]]
    assert all((a == b).all() for a, b in zip(masks[1:], back, strict=True))


def test_labels_are_where_readers_look_for_them(scenes, tmp_path, monkeypatch):
    """In a relative folder, and where an image lies in another folder that is called images."""
    truth = json.loads(scenes.read_bytes())
    truth["images"][0]["file_name"] = f"images/{truth['images'][0]['file_name']}"
    (tmp_path / "a.json").write_text(json.dumps(truth))
    (tmp_path / "in" / "images").mkdir(parents=True)
    for image in truth["images"]:
        (tmp_path / "in" / image["file_name"]).symlink_to(
            scenes.parent / "images" / Path(image["file_name"]).name
        )
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    done = to_yolo(tmp_path / "a.json", tmp_path / "in", Path(), "train")
    data, _ = to_coco(Path("data.yaml"), "train")
    assert len(data["annotations"]) == done.instances == len(truth["annotations"])


def test_yolo_comes_back_word_for_word(tmp_path):
    texts = ["1 0.25 0.5 0.5 0.5\n0 0.5 0.25 0.25 0.125\n", "", "1 0.5 0.5 1 1\n"]
    file = write_yolo(tmp_path / "a", texts)
    data, root = to_coco(file, "train")
    (tmp_path / "a.json").write_text(json.dumps(data))
    to_yolo(tmp_path / "a.json", root, tmp_path / "b", "train")
    for i, text in enumerate(texts):
        assert (tmp_path / "b" / "labels" / "train" / f"{i}.txt").read_text() == text
    written = yaml.safe_load((tmp_path / "b" / "data.yaml").read_text())
    assert written == {"names": {0: "cat", 1: "dog"}, "train": "images/train"}


# --- How YOLO datasets are laid out


def test_splits_are_folders_lists_or_several_of_them(tmp_path):
    write_yolo(tmp_path, ["0 0.5 0.5 0.5 0.5", None])
    (tmp_path / "images" / "more").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "more" / "x.png")
    (tmp_path / "list.txt").write_text("./images/train/0.png\nimages/more/x.png\n\n")
    names = {}
    for entry in ("images/train", "list.txt", ["list.txt", "../images/more"], "images"):
        (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": entry, "names": ["cat"]}))
        data, root = to_coco(tmp_path / "data.yaml", "train")
        assert all((root / i["file_name"]).is_file() for i in data["images"])
        names[str(entry)] = [Path(i["file_name"]).name for i in data["images"]]
        assert len(data["annotations"]) == 1
    assert list(map(sorted, names.values())) == [
        ["0.png", "1.png"], ["0.png", "x.png"], ["0.png", "x.png"], ["0.png", "1.png", "x.png"]
    ]  # fmt: skip


def test_labels_are_where_the_last_folder_images_says():
    assert label_file(Path("/images/a/images/train/b.jpg")) == Path("/images/a/labels/train/b.txt")
    assert label_file(Path("/a/b.jpg")) == Path("/a/b.txt")


def test_an_image_on_its_side_is_measured_upright(tmp_path):
    file = write_yolo(tmp_path, ["0 0.5 0.5 1 1"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "train" / "0.png", exif=exif)
    data, _ = to_coco(file, "train")
    assert (data["images"][0]["height"], data["images"][0]["width"]) == (20, 10)
    assert data["annotations"][0]["bbox"] == [0, 0, 10, 20]


def test_a_box_that_the_border_cuts_is_clipped(tmp_path):
    data, _ = to_coco(write_yolo(tmp_path, ["0 0.05 0.5 0.2 0.2\n"]), "train")
    assert data["annotations"][0]["bbox"] == [0, 4, 3, 2]


def test_shares_just_off_the_image_are_clipped_and_lines_count_once(tmp_path):
    line = "0 -0.005 0 1.005 0 1 0.5\n"
    data, _ = to_coco(write_yolo(tmp_path, [line * 2]), "train")
    (annotation,) = data["annotations"]
    assert annotation["segmentation"] == [[0, 0, 20, 0, 20, 5]]
    assert annotation["area"] == raster([[0, 0, 20, 0, 20, 5]], 10, 20).sum()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 a", "line 2: '0 a' is not a line of numbers"),
        ("2 0.5 0.5 0.5 0.5", "line 2: there is no class 2"),
        ("0.5 0.5 0.5 0.5 0.5", "line 2: there is no class 0.5"),
        ("0 0.1 0.2 0.3", "line 2: it has 3 numbers after the class"),
        ("0 0.1 0.2 0.3 0.1 0.2", "line 2: it has 5 numbers after the class"),
        ("0 0.5 0.5 1.5 0.5", "line 2: it has numbers that are no shares"),
        ("0 nan 0.5 0.5 0.5", "line 2: it has numbers that are no shares"),
        ("0 0.5 0.5 0 0.5", "line 2: its object has no width"),
    ],
)
def test_a_line_that_is_invalid_is_named(tmp_path, line, words):
    file = write_yolo(tmp_path, [f"0 0.5 0.5 1 1\n{line}\n"])
    with pytest.raises(SmallObjError, match=rf"0\.txt, {words}"):
        to_coco(file, "train")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"kpt_shape": [17, 3]}, "has keypoints"),
        ({"names": 3}, "data.yaml is damaged, or another kind of file"),
        ({"train": "nowhere"}, "names nowhere, but there is no"),
        ({"names": "cat"}, "data.yaml is damaged, or another kind of file"),
        ({"train": None}, "has no 'train'"),
        ({"train": 5}, "train is 5; it must be a path, or a list"),
        ({"train": [None]}, "must be a path, or a list"),
        ({"train": "labels"}, "there are no images in train"),
        ({"path": "elsewhere"}, "names images/train, but there is no"),
    ],
)
def test_a_data_yaml_that_is_invalid_is_named(tmp_path, more, words):
    with pytest.raises(SmallObjError, match=words):
        to_coco(write_yolo(tmp_path, [None], **more), "train")


def test_labels_may_begin_with_a_byte_order_mark(tmp_path):
    file = write_yolo(tmp_path, ["\ufeff0 0.5 0.5 1 1\n"])
    (annotation,) = to_coco(file, "train")[0]["annotations"]
    assert annotation["category_id"] == 0


def test_nothing_is_overwritten_or_mixed(scenes, tmp_path):
    images = scenes.parent / "images"
    to_yolo(scenes, images, tmp_path, "train")
    with pytest.raises(SmallObjError, match="has a split train already"):
        to_yolo(scenes, images, tmp_path, "train")
    (tmp_path / "labels" / "val").mkdir()
    with pytest.raises(SmallObjError, match="val is there already"):
        to_yolo(scenes, images, tmp_path, "val")
    (tmp_path / "labels" / "val").rmdir()
    names = yaml.safe_load((tmp_path / "data.yaml").read_text())["names"]
    for more in ({"train": "train/images"}, {"path": "../elsewhere"}):
        other = tmp_path / next(iter(more))
        other.mkdir()
        (other / "data.yaml").write_text(yaml.safe_dump({"names": names, **more}))
        with pytest.raises(SmallObjError, match="has a split train already, or keeps images else"):
            to_yolo(scenes, images, other, "train")
    other = json.loads(scenes.read_bytes())
    other["categories"][0]["name"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(SmallObjError, match="other categories"):
        to_yolo(tmp_path / "other.json", images, tmp_path, "val")
    other["categories"][0]["name"] = json.loads(scenes.read_bytes())["categories"][0]["name"]
    names = [i["file_name"] for i in other["images"]]
    other["images"][1]["file_name"] = str(Path(names[0]).with_suffix(".jpg"))
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(SmallObjError, match="share one label file"):
        to_yolo(tmp_path / "other.json", images, tmp_path, "val")


# --- The command


def test_a_json_that_is_there_is_not_overwritten(tmp_path, capsys):
    file = write_yolo(tmp_path, ["0 0.5 0.5 1 1"])
    (tmp_path / "train.json").write_text("mine")
    assert yolo.main(["to-coco", str(file), "--out", str(tmp_path)]) == 2
    assert "train.json is there already" in capsys.readouterr().err
    assert (tmp_path / "train.json").read_text() == "mine"


def test_a_split_that_cannot_be_read_leaves_nothing_behind(tmp_path, capsys):
    file = write_yolo(tmp_path, ["0 0.5 0.5 1 1"])
    good = file.read_text()
    file.write_text(good + "\nval: nowhere\n")
    assert yolo.main(["to-coco", str(file), "--out", str(tmp_path)]) == 2
    assert "nowhere" in capsys.readouterr().err
    file.write_text(good)
    assert yolo.main(["to-coco", str(file), "--out", str(tmp_path)]) == 0


def test_augmented_copies_go_to_yolo_and_back(scenes, tmp_path, capsys, forget_datasets):
    aug, out = tmp_path / "aug", tmp_path / "yolo"
    config = ["--config", str(ROOT / "configs" / "orig_aug_multi3x.yaml"), "--workers", "1"]
    files = ["--json", str(scenes), "--images", str(scenes.parent / "images")]
    assert augment_dataset.main([*config, *files, "--out", str(aug)]) == 0
    files = ["--json", str(aug / "annotations.json"), "--images", str(aug / "images")]
    assert yolo.main(["to-yolo", *files, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "polygons" in said
    assert yolo.main(["to-coco", str(out / "data.yaml"), "--out", str(tmp_path / "coco")]) == 0
    said = capsys.readouterr().out
    augmented = json.loads((aug / "annotations.json").read_bytes())
    back = json.loads((tmp_path / "coco" / "train.json").read_bytes())
    assert len(back["annotations"]) == len(augmented["annotations"])
    assert len(back["images"]) == len(augmented["images"]) > 5
    datasets = said.partition("SMALLOBJ.DATASETS '")[2].partition("'")[0]
    cfg = load_cfg(config[1], ["SMALLOBJ.DATASETS", datasets])
    assert cfg.SMALLOBJ.DATASETS[0][0] == "my_train"


def test_errors_are_one_line(tmp_path, capsys):
    assert yolo.main(["to-coco", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: There is no file {tmp_path / 'none.yaml'}")
