"""A trained run used: what it finds in image files, whichever engine has trained it."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from smallobj_d2.commands.predict import _apart
from smallobj_d2.commands.predict import main as tool
from smallobj_d2.config import ROOT, has_detectron2, load_cfg
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.engines import load_engine, predictions
from smallobj_d2.engines.predictions import find_images, load_run, predict_images
from smallobj_d2.errors import SmallObjError

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(absent, reason="not installed"))
    for name, absent in (("torchvision", False), ("detectron2", not has_detectron2()))
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return make_dataset(folder, "predicted_scenes", 4, seed=2, size=96, progress=False)


@pytest.fixture(scope="module", params=ENGINES)
def run(request, scenes, tmp_path_factory):
    """The folder of a run of one iteration."""
    folder = tmp_path_factory.mktemp("run")
    data = [["predicted_scenes", str(scenes), str(scenes.parent / "images")]]
    opts = {
        "SMALLOBJ.DATASETS": data,
        "DATASETS.TRAIN": ("predicted_scenes",),
        "DATASETS.TEST": ("predicted_scenes",),
        "OUTPUT_DIR": str(folder),
        "SOLVER.MAX_ITER": 1,
        "SOLVER.IMS_PER_BATCH": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "TEST.DETECTIONS_PER_IMAGE": 20,
        "MODEL.DEVICE": "cpu",
    }
    words = [str(word) for pair in opts.items() for word in pair]
    cfg = load_cfg(ROOT / "configs" / "demo.yaml", words)
    load_engine(request.param).main(cfg)
    return folder


@pytest.fixture
def images(scenes, tmp_path):
    return shutil.copytree(scenes.parent / "images", tmp_path / "images")


def first(images):
    return min(images.glob("*.jpg"))


def predict(run, *words):
    return tool(["--run", str(run), *map(str, words)])


# --- With a model


def test_results_are_those_of_the_runs_own_evaluation(run, scenes, images, tmp_path):
    out = tmp_path / "results.json"
    assert predict(run, images, "--json", scenes, "--score", "0", "--out", out) == 0
    evaluated = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    found = json.loads(out.read_text())
    assert len(found) > 10
    for a, b in zip(*(sorted(r, key=_order) for r in (found, evaluated)), strict=True):
        assert a["segmentation"] == b["segmentation"]
        assert np.allclose(a["bbox"], b["bbox"])
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
    COCO(str(scenes)).loadRes(str(out))


def _order(result):
    return result["image_id"], -result["score"], result["category_id"], result["bbox"]


def test_a_dataset_of_its_own_with_pictures(run, scenes, images, tmp_path, capsys):
    (images / "below").mkdir()
    Image.open(first(images)).convert("L").save(images / "below" / "gray.bmp")
    (images / "bad.jpg").write_bytes(b"no image")
    out, pictures = tmp_path / "a" / "p.json", tmp_path / "pictures"
    words = [images, "--score", "0.1", "--out", out, "--pictures", pictures, "--batch", "2"]
    assert predict(run, *words, "TEST.DETECTIONS_PER_IMAGE", "7") == 0
    said = capsys.readouterr()
    assert "bad.jpg" in said.out + said.err
    assert "5 images" in said.out
    assert "skipped, as named above: 1" in said.out
    coco = COCO(str(out))
    names = {i["file_name"]: i for i in coco.imgs.values()}
    assert "below/gray.bmp" in names
    assert "bad.jpg" not in names
    assert {c["name"] for c in coco.cats.values()} == {
        c["name"] for c in json.loads(scenes.read_text())["categories"]
    }
    assert len(coco.anns) == len(json.loads(out.read_text())["annotations"]) > 0
    assert min(a["score"] for a in coco.anns.values()) >= 0.1
    for annotation in coco.anns.values():
        assert annotation["area"] == coco.annToMask(annotation).sum()
    assert max(map(len, coco.imgToAnns.values())) <= 7
    for name, image in names.items():
        picture = Image.open(pictures / (f"{name}.jpg" if name.endswith(".bmp") else name))
        assert picture.width == 800
        assert round(picture.height * image["width"] / 800) == image["height"]
        plain = Image.open(images / name).convert("RGB").resize(picture.size)
        changed = np.abs(np.asarray(picture).astype(int) - np.asarray(plain)).max(axis=2) > 90
        assert 0.001 < changed.mean() < 0.6


def test_the_mapper_takes_pixels_as_it_takes_files(run, scenes):
    record = load_coco(scenes, scenes.parent / "images").records[0]
    cfg = load_cfg(run / "config.yaml")
    engine = load_engine(json.loads((run / "run.json").read_text())["engine"])
    mapper = engine.MAPPERS["SmallObjectMapper"].from_config(cfg, False)
    if isinstance(mapper, dict):  # Detectron2's gives the arguments of the constructor
        mapper = engine.build_mapper(cfg, False)
    by_pixels = mapper({**record, "pixels": read_rgb(record)})
    assert (by_pixels["image"] == mapper(record)["image"]).all()
    assert "pixels" not in by_pixels


def test_names_of_classes_are_kept_or_found_or_asked_for(run, scenes, tmp_path):
    categories = {c["id"]: c["name"] for c in json.loads(scenes.read_text())["categories"]}
    copy = shutil.copytree(run, tmp_path / "copy")
    assert load_run(copy).categories == categories
    (copy / "categories.json").unlink()
    assert load_run(copy).categories == categories  # the dataset is still there
    config = (copy / "config.yaml").read_text()
    for name in ("predicted_scenes", str(scenes)):
        config = config.replace(name, name + "_gone")
    (copy / "config.yaml").write_text(config)
    with pytest.raises(SmallObjError, match=r"categories\.json.*Give --json"):
        load_run(copy)
    assert load_run(copy, categories=categories).categories == categories
    with pytest.raises(SmallObjError, match="6 classes, but 1 category"):
        load_run(copy, categories={1: "one"})


def test_a_folder_without_a_run_or_a_checkpoint_is_named(run, tmp_path):
    with pytest.raises(SmallObjError, match="not the folder"):
        load_run(tmp_path)
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "last_checkpoint").unlink()
    with pytest.raises(SmallObjError, match=r"no checkpoint yet.*--weights"):
        load_run(copy)
    assert load_run(copy, weights=copy / "model_final.pth").weights == copy / "model_final.pth"


def test_the_page_on_large_images_is_right(run, images, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "large_images.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.open(first(images)).save("large.png")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "mine").symlink_to(run)
    assert len(blocks) == 2
    for block in blocks:
        if find_spec("sahi") or "sahi" not in block:
            exec(block, {})


# --- Without one


def square(images):
    """A model that finds one square in each image."""
    return [[{"category_id": 1, "bbox": [1, 2, 8, 8], "score": 0.9}] for _ in images]


def write(images, out, **more):
    how = {"categories": {1: "square"}, "info": {}, "progress": False, **more}
    return predict_images(square, images, out, **how)


def test_images_are_read_a_few_ahead_and_no_more(images, tmp_path, monkeypatch):
    for i in range(40):
        shutil.copy(first(images), images / f"copy{i}.jpg")
    reads, ahead = [], []
    read = predictions.read_rgb
    monkeypatch.setattr(predictions, "read_rgb", lambda r: reads.append(1) or read(r))

    def looked(several):
        looked.images += len(several)
        ahead.append(len(reads) - looked.images)
        return square(several)

    looked.images = 0
    how = {"categories": {1: "square"}, "info": {}, "progress": False, "batch": 3}
    predict_images(looked, find_images([images]), tmp_path / "p.json", **how)
    assert looked.images == 44
    assert max(ahead) <= 7


def test_an_image_that_resizing_would_leave_nothing_of_is_skipped(images, tmp_path, capsys):
    Image.new("RGB", (3000, 3)).save(images / "thin.png")
    summary = write(find_images([images]), tmp_path / "p.json")
    (said,) = summary.skipped
    assert said.startswith(f"{images / 'thin.png'} is 3000 x 3 pixels")
    assert summary.images == len(json.loads((tmp_path / "p.json").read_text())["images"]) > 0


def test_nothing_is_left_if_no_image_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SmallObjError, match="None of the 1 images can be read"):
        write(find_images([tmp_path]), tmp_path / "p.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_images_are_found_in_folders_and_by_patterns(images, tmp_path):
    (images / ".hidden.png").touch()
    (images / "notes.txt").touch()
    deep = images / "a" / "b"
    deep.mkdir(parents=True)
    Image.open(first(images)).save(deep / "UPPER.PNG")
    names = [r["name"] for r in find_images([images]).records]
    assert len(names) == 5
    assert "a/b/UPPER.PNG" in names
    found = find_images([images, f"{images}/a/**/*.PNG", str(deep)])
    assert sorted(r["name"] for r in found.records) == sorted(names)  # each but once
    assert len(find_images([images], not_in=deep).records) == 4
    assert [r["name"] for r in find_images([deep / "UPPER.PNG"]).records] == ["UPPER.PNG"]
    for nothing in ("nowhere", "no*.png", tmp_path / "images" / "a" / "c"):
        with pytest.raises(SmallObjError, match="there is no image"):
            find_images([nothing])


def test_a_file_is_one_file_however_it_is_spelled(images, tmp_path, monkeypatch):
    """And no picture leads out of the folder of pictures."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    name = first(images).name
    mine = tmp_path / "here" / "mine.png"
    Image.open(first(images)).save(mine)
    found = find_images([f"../images/{name}", images / name, "mine.png", "../here/mine.png"])
    assert [r["name"] for r in found.records] == [f"images/{name}", "here/mine.png"]
    assert all(
        ".." not in predictions.picture_of(r["name"], Path("out")).parts for r in found.records
    )
    (images / "out").mkdir()
    Image.open(first(images)).save(images / "out" / "old.png")
    found = find_images([images], not_in=Path("../images/out"))  # in other words than the images
    assert "out/old.png" not in [r["name"] for r in found.records]
    assert len(find_images([images], not_in=tmp_path).records) == len(found.records) + 1


def test_an_id_of_a_json_is_given_once(images, tmp_path):
    """Two files of one name cannot both be the image that the JSON has under it."""
    (images / "a").mkdir()
    Image.open(first(images)).save(images / "a" / first(images).name)
    entry = {"id": 7, "file_name": first(images).name, "height": 9, "width": 9}
    other = {"id": 8, "file_name": "x/other.png", "height": 9, "width": 9}
    content = {
        "images": [entry, other],
        "categories": [{"id": 5, "name": "five"}, {"id": 3, "name": "3"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    found, categories = predictions.with_ids_of(find_images([images]), tmp_path / "a.json")
    assert [(r["name"], r["image_id"]) for r in found.records] == [(first(images).name, 7)]
    assert [*categories.items()] == [(3, "3"), (5, "five")]  # as classes are numbered
    only = find_images([images / "a" / first(images).name, first(images).parent / "a"])
    assert [
        r["image_id"] for r in predictions.with_ids_of(only, tmp_path / "a.json")[0].records
    ] == [7]
    for damage in ({"file_name": "x.png"}, {**entry, "height": None}):
        (tmp_path / "a.json").write_text(json.dumps({"images": [damage]}))
        with pytest.raises(SmallObjError, match=r"a\.json is damaged"):
            predictions.with_ids_of(only, tmp_path / "a.json")


def test_the_folder_of_an_image_says_which_of_a_json_it_is(images, tmp_path):
    """Of two files of one name, though only one of them is asked for."""
    name = first(images).name
    (images / "b").mkdir()
    Image.open(first(images)).save(images / "b" / name)
    entries = [{"id": 1, "file_name": name}, {"id": 2, "file_name": f"b/{name}"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": entries, "categories": []}))
    for given, number in ((images / "b", 2), (images / name, 1), (images / "b" / name, 2)):
        found, _ = predictions.with_ids_of(find_images([given]), tmp_path / "a.json")
        assert [r["image_id"] for r in found.records] == [number]


def test_ids_come_by_name_and_images_of_another_size_are_skipped(scenes, images, tmp_path):
    data = json.loads(scenes.read_text())
    data["images"][0]["width"] += 1
    data["images"] = [{**i, "id": i["id"] + 70, "file_name": f"x/{i['file_name']}"}
                      for i in data["images"][:3]]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(data))
    found, categories = predictions.with_ids_of(find_images([images]), tmp_path / "a.json")
    assert [r["image_id"] for r in found.records] == [71, 72, 73]
    assert len(found.unknown) == 1
    assert len(categories) == 6
    done = write(found, tmp_path / "results.json", as_results=True)
    assert done.images == 2
    assert "its annotations say" in done.skipped[0]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["image_id"] for r in results] == [72, 73]


def test_nothing_is_written_over_in_silence(images, tmp_path, capsys):
    out, pictures = tmp_path / "p.json", tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "mine.txt").touch()
    words = [images, "--out", out]
    assert predict(tmp_path, *words, "--pictures", pictures) == 2
    assert "pictures is not empty" in capsys.readouterr().err
    out.touch()
    assert predict(tmp_path, *words) == 2
    assert "is there already" in capsys.readouterr().err
    assert predict(tmp_path, *words, "--overwrite", "--pictures", images / "..") == 2
    assert "not the folder" in capsys.readouterr().err  # all is well but the run
    assert predict(tmp_path, *words, "--overwrite", "--pictures", images) == 2
    assert "images is where the pictures are to go" in capsys.readouterr().err
    words = [first(images), "--out", out]
    assert predict(tmp_path, *words, "--overwrite", "--pictures", images) == 2
    assert "is one of the images" in capsys.readouterr().err


def test_overrides_are_told_from_images(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SET.A").mkdir()
    found = ["MISSING.JPG", "SET.A", "images"]
    words = ["MODEL.DEVICE", "cpu", *found, "TEST.DETECTIONS_PER_IMAGE", "5"]
    assert _apart(words) == (found, [*words[:2], *words[-2:]])


@pytest.mark.skipif(find_spec("sahi") is not None, reason="SAHI is installed")
def test_slices_without_sahi_say_what_to_install(images, tmp_path, capsys):
    assert predict(tmp_path, images, "--slices", "64", "--out", tmp_path / "p.json") == 2
    assert "needs SAHI (No module named 'sahi'). docs/large_images.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Name the images"),
        (["a.png", "--batch", "0"], "--batch is 0; it must be 1 or more"),
        (["nowhere.png"], "there is no image"),
        (["a.png", "--out", "p.txt"], "must end in .json"),
    ],
)
def test_what_cannot_be_is_said(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9)).save("a.png")
    assert predict("nowhere", *words) == 2
    assert says in capsys.readouterr().err
