"""Offline copies on disk: the pastes of training, in a dataset that any framework reads."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from smallobj_d2.augmentation import build_augmentation
from smallobj_d2.commands.augment_dataset import main
from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.datasets.coco import load_coco, register_from_config
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.engines import ENGINES, load_engine
from smallobj_d2.errors import SmallObjError
from smallobj_d2.export import augmented as offline
from smallobj_d2.export.augmented import augment_dataset
from smallobj_d2.sampling import Stream
from smallobj_d2.training_set import training_data

ROOT = Path(__file__).parents[1]
SEED = 5


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Synthetic scenes, with an RLE instance, a crowd, an own key, and an empty image."""
    folder = tmp_path_factory.mktemp("scenes")
    path = make_dataset(folder, "offline_train", 24, seed=3, size=192, progress=False)
    data = json.loads(path.read_text())
    coco = COCO(str(path))
    small = next(a for a in data["annotations"] if a["area"] < 1024 and not a["iscrowd"])
    rle = coco.annToRLE(small)
    small["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    for annotation in data["annotations"]:
        annotation["note"] = f"of {annotation['id']}"
    size = [data["images"][0][k] for k in ("height", "width")]
    data["annotations"].append(
        {
            "id": 999,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 1,
            "area": 400,
            "bbox": [0, 0, 2, 200],
            "segmentation": {"size": size, "counts": [9, 400]},
        }
    )
    data["annotations"][-1]["segmentation"]["counts"].append(size[0] * size[1] - 409)
    Image.new("RGB", (40, 30)).save(path.parent / "images" / "empty.png")
    data["images"].append({"id": 99, "file_name": "empty.png", "width": 40, "height": 30})
    path.write_text(json.dumps(data))
    return path


def config(scenes: Path, row: str = "orig_aug_multi3x", *opts: str):
    datasets = [["offline_train", str(scenes), str(scenes.parent / "images")]]
    return load_cfg(
        ROOT / "configs" / f"{row}.yaml",
        [
            *("SMALLOBJ.DATASETS", str(datasets)),
            *("DATASETS.TRAIN", "('offline_train',)"),
            *("SEED", str(SEED)),
            *opts,
        ],
    )


@pytest.fixture(scope="module")
def made(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "made"
    return augment_dataset(config(scenes), out, workers=2, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pixels(path: str | Path):
    return np.array(Image.open(path).convert("RGB"))


def plain(value):
    """RLE as JSON has it."""
    if isinstance(value, dict) and isinstance(value["counts"], bytes):
        return {**value, "counts": value["counts"].decode()}
    return value


def online(cfg):
    """Image and annotations of each draw of the first epoch, as the mappers make them."""
    records, factors = training_data(cfg)
    stream = Stream(factors, cfg.SEED)
    augmentation = build_augmentation(cfg, cfg.SEED, records, lambda r: pixels(r["file_name"]))
    for k in range(len(stream)):
        record = {**records[stream[k].index], "draw": stream[k]}
        image = pixels(record["file_name"]).copy()
        plan = augmentation(image, record) if augmentation else None
        yield k, record, image, plan


def test_has_the_same_pastes_as_training(scenes, made):
    images = {i["draw"]["position"]: i for i in read(made)["images"] if "draw" in i}
    loaded = {r["image_id"]: r for r in load_coco(made.json_file, made.image_root).records}
    pasted = 0
    for k, record, image, plan in online(config(scenes)):
        entry = images[k]
        new = loaded[entry["id"]]
        assert entry["draw"] == {"image": record["image_id"], "position": k, "seed": SEED}
        np.testing.assert_array_equal(pixels(new["file_name"]), image)
        assert len(new["annotations"]) == len(record["annotations"])
        for got, want in zip(new["annotations"], record["annotations"], strict=True):
            for key in ("bbox", "area", "iscrowd", "segmentation", "category_id", "note"):
                assert plain(got.get(key)) == plain(want.get(key)), key
            paste = got.get("copy_paste")
            assert (paste is None) == ("copy_paste" not in want)
            if paste is not None:
                source = record["annotations"][want["copy_paste"]["source"]]
                assert (paste["image"], paste["source"]) == (record["image_id"], source["id"])
                assert paste["matrix"] == want["copy_paste"]["matrix"]
                assert (paste["position"], paste["seed"]) == (k, SEED)
        pasted += plan.pasted if plan else 0
    assert pasted == made.pastes > 0


def test_with_a_bank_copies_say_which_image_they_are_from(scenes, tmp_path):
    cfg = config(scenes, "beyond/bank")
    made = augment_dataset(cfg, tmp_path / "made", workers=2, progress=False)
    images = {i["draw"]["position"]: i for i in read(made)["images"] if "draw" in i}
    loaded = {r["image_id"]: r for r in load_coco(made.json_file, made.image_root).records}
    originals = {a["id"]: a for a in json.loads(scenes.read_bytes())["annotations"]}
    elsewhere = pasted = 0
    for k, record, image, plan in online(cfg):
        new = loaded[images[k]["id"]]
        np.testing.assert_array_equal(pixels(new["file_name"]), image)
        assert len(new["annotations"]) == len(record["annotations"])
        for annotation in new["annotations"]:
            if paste := annotation.get("copy_paste"):
                source = originals[paste["source"]]
                assert paste["image"] == source["image_id"]
                assert annotation["note"] == source["note"]
                elsewhere += paste["image"] != record["image_id"]
        pasted += plan.pasted if plan else 0
    assert pasted == made.pastes == elsewhere > 0  # never its own


def test_changes_only_pasted_pixels(made):
    coco = COCO(str(made.json_file))
    augmented = [i for i in coco.dataset["images"] if i["file_name"].endswith("png")]
    for entry in [i for i in augmented if "draw" in i]:
        own = coco.dataset["images"]
        before = next(i["file_name"] for i in own if i["id"] == entry["draw"]["image"])
        changed = pixels(made.image_root / entry["file_name"]) != pixels(made.image_root / before)
        masks = sum(coco.annToMask(a) for a in coco.imgToAnns[entry["id"]] if "copy_paste" in a)
        assert changed.any()
        assert not changed.any(axis=2)[masks == 0].any()


def read(summary):
    return json.loads(summary.json_file.read_text())


def test_keeps_originals_as_they_were(scenes, made):
    before, after = json.loads(scenes.read_text()), read(made)
    assert after["categories"] == before["categories"]
    assert after["licenses"] == before["licenses"]
    originals = {a["id"]: a for a in before["annotations"]}
    kept = [a for a in after["annotations"] if a["id"] in originals]
    assert kept
    assert all(a == originals[a["id"]] for a in kept)
    for name in {i["file_name"] for i in before["images"]} & {
        i["file_name"] for i in after["images"]
    }:
        link = made.image_root / name
        assert link.samefile(scenes.parent / "images" / name)
    assert "empty.png" in {i["file_name"] for i in after["images"]}
    assert sum(a["iscrowd"] for a in before["annotations"]) > 0
    assert sum(a["iscrowd"] for a in after["annotations"]) > 0


def test_ids_and_file_names_are_unique(made):
    data = read(made)
    for entries, key in (
        (data["images"], "id"),
        (data["images"], "file_name"),
        (data["annotations"], "id"),
    ):
        values = [e[key] for e in entries]
        assert len(set(values)) == len(values)
    on_disk = {str(p.relative_to(made.image_root)) for p in made.image_root.rglob("*.*")}
    assert on_disk == {i["file_name"] for i in data["images"]}


def test_is_the_same_for_any_number_of_threads(scenes, made, tmp_path):
    alone = augment_dataset(config(scenes), tmp_path / "alone", workers=1, progress=False)
    assert files(tmp_path / "alone") == files(made.json_file.parent)
    assert alone.written == alone.augmented == made.written


def test_goes_on_where_it_was_cut_off(scenes, made, tmp_path, monkeypatch):
    """Cut off in the middle of a file, it leaves no JSON, and writes the rest the next time."""
    out, write, count = tmp_path / "out", offline.writing, 0

    @contextmanager
    def killed(path):
        nonlocal count
        count += path.suffix == ".png"
        with write(path) as temporary:
            if count >= 4:  # other threads are at work
                path.with_name(f".smallobj-1-0-{path.name}").write_bytes(b"half of it")
                raise KeyboardInterrupt
            yield temporary

    monkeypatch.setattr(offline, "writing", killed)
    with pytest.raises(KeyboardInterrupt):
        augment_dataset(config(scenes), out, workers=1, progress=False)
    assert not (out / "annotations.json").exists()
    monkeypatch.setattr(offline, "writing", write)
    again = augment_dataset(config(scenes), out, workers=2, progress=False)
    assert again.written == again.augmented - 3
    assert files(out) == files(made.json_file.parent)
    assert augment_dataset(config(scenes), out, workers=1, progress=False).written == 0


def test_images_that_a_crash_of_the_machine_left_are_written_anew(scenes, made, tmp_path):
    out = tmp_path / "out"
    augment_dataset(config(scenes), out, workers=1, progress=False)
    empty, cut, *_ = sorted((out / "images").rglob("*_draw*.png"))[-2:]
    for path, size in ((empty, 0), (cut, 200)):
        content = path.read_bytes()[:size]
        path.unlink()  # it may be a link to an original
        path.write_bytes(content)
    again = augment_dataset(config(scenes), out, workers=1, progress=False)
    assert again.written > 0
    for path in (empty, cut):
        Image.open(path).load()


def test_oversampling_alone_makes_links_only(scenes, tmp_path):
    done = augment_dataset(config(scenes, "oversample_3x"), tmp_path, workers=1, progress=False)
    small = {
        a["image_id"]
        for a in json.loads(scenes.read_text())["annotations"]
        if a["area"] < 1024 and not a["iscrowd"]
    }
    times = [i["draw"]["image"] for i in read(done)["images"] if "draw" in i]
    assert {i: times.count(i) for i in times} == {i: 3 if i in small else 1 for i in times}
    assert all((tmp_path / "images" / i["file_name"]).exists() for i in read(done)["images"])
    assert done.augmented == 0


def test_aug_replaces_each_small_object_image(scenes, tmp_path):
    """The augmented validation set of section 6.2."""
    done = augment_dataset(config(scenes, "aug"), tmp_path, workers=1, progress=False)
    before = json.loads(scenes.read_text())
    assert len(read(done)["images"]) == len(before["images"])
    originals = {i["id"] for i in before["images"]}
    replaced = {i["draw"]["image"] for i in read(done)["images"] if i["id"] not in originals}
    assert len(replaced) == done.augmented > 0
    assert not replaced & {i["id"] for i in read(done)["images"]}


def test_pycocotools_reads_it_in_silence(made, capfd, recwarn):
    coco = COCO(str(made.json_file))
    assert capfd.readouterr().err == ""
    assert not recwarn.list
    assert all(coco.annToMask(a).any() for a in coco.dataset["annotations"])


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_load_it(scenes, made, engine):
    """Each engine's mapper, on the draws of training and on the dataset on disk."""
    if engine == "detectron2" and not has_detectron2():
        pytest.skip("detectron2 is not installed")
    resize = ("INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.RANDOM_FLIP", "none")
    masks = ("INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_HEADS.NUM_CLASSES", "6")
    loader = load_engine(engine).build_train_loader
    register_from_config(config(scenes))
    trained = loader(config(scenes, "orig_aug_multi3x", *resize, *masks)).dataset
    entry = next(i for i in read(made)["images"] if "_draw" in i["file_name"])
    on_disk = load_cfg(
        ROOT / "configs" / "baseline.yaml",
        [
            *("SMALLOBJ.DATASETS", str([["made", str(made.json_file), str(made.image_root)]])),
            *("DATASETS.TRAIN", "('made',)", "SEED", "0", *resize, *masks),
        ],
    )
    register_from_config(on_disk)
    dataset = loader(on_disk).dataset
    position = next(k for k in range(len(dataset)) if dataset.record(k)["image_id"] == entry["id"])
    online_image = trained[entry["draw"]["position"]]["image"].numpy()
    np.testing.assert_array_equal(dataset[position]["image"].numpy(), online_image)


def test_torchvision_reference_loop_trains_on_it(made):
    """As torchvision's references/detection: CocoDetection, wrapped, and a model of its own."""
    torch = pytest.importorskip("torch")
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.transforms import v2

    transforms = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    dataset = wrap_dataset_for_transforms_v2(
        CocoDetection(made.image_root, made.json_file, transforms=transforms),
        target_keys=("boxes", "labels", "masks"),
    )
    last = max(i for i, e in enumerate(read(made)["images"]) if "_draw" in e["file_name"])
    image, target = dataset[last]
    assert len(target["boxes"]) == sum(
        a["image_id"] == dataset.ids[last] for a in read(made)["annotations"]
    )
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    few = {"rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 16}
    model = MaskRCNN(body, num_classes=13, min_size=96, max_size=128, **few)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = sum(model([image], [target]).values())
    assert torch.isfinite(loss)
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("workers", [1, 2])
def test_says_what_is_wrong_with_an_image(scenes, tmp_path, workers):
    data = json.loads(scenes.read_text())
    name = data["images"][0]["file_name"]
    root = tmp_path / "images"
    root.mkdir()
    for image in data["images"]:
        if image["file_name"] != name:
            (root / image["file_name"]).symlink_to(scenes.parent / "images" / image["file_name"])
    (root / name).write_text("no image")
    dataset = f"damaged_{workers}"
    other = str([[dataset, str(scenes), str(root)]])
    damaged = (
        *("SMALLOBJ.DATASETS", other, "DATASETS.TRAIN", f"('{dataset}',)"),
        *("SMALLOBJ.SMALL_AREA", "9999.0"),  # each image is to be augmented
    )
    with pytest.raises(SmallObjError, match=name):
        augment_dataset(
            config(scenes, "aug", *damaged), tmp_path / "a", workers=workers, progress=False
        )
    assert not (tmp_path / "a" / "annotations.json").exists()
    skipping = config(scenes, "aug", *damaged, "SMALLOBJ.UNREADABLE_IMAGES", "skip")
    done = augment_dataset(skipping, tmp_path / "b", workers=workers, progress=False)
    assert len(done.skipped) == 1
    assert len(read(done)["images"]) == len(data["images"]) - 1


def test_an_original_is_looked_at_though_nothing_is_pasted_into_it(scenes, tmp_path):
    data = json.loads(scenes.read_text())
    root = tmp_path / "images"
    root.mkdir()
    first, *others = (image["file_name"] for image in data["images"])
    for name in others:
        (root / name).symlink_to(scenes.parent / "images" / name)
    (root / first).write_text("no image")
    datasets = str([["looked_at", str(scenes), str(root)]])
    opts = ["SMALLOBJ.DATASETS", datasets, "DATASETS.TRAIN", "('looked_at',)"]
    with pytest.raises(SmallObjError, match=first):
        augment_dataset(config(scenes, "baseline", *opts), tmp_path / "out", progress=False)


def test_an_image_that_training_leaves_out_may_be_skipped_too(scenes, tmp_path):
    """It has no annotations, and its file is not there."""
    data = json.loads(scenes.read_text())
    data["images"].append({"id": 100, "file_name": "gone.png", "width": 40, "height": 30})
    other = tmp_path / "offline_gone.json"
    other.write_text(json.dumps(data))
    datasets = str([["offline_gone", str(other), str(scenes.parent / "images")]])
    opts = ["SMALLOBJ.DATASETS", datasets, "DATASETS.TRAIN", "('offline_gone',)"]
    with pytest.raises(SmallObjError, match=r"gone\.png"):
        augment_dataset(config(scenes, "aug", *opts), tmp_path / "stops", progress=False)
    opts += ["SMALLOBJ.UNREADABLE_IMAGES", "skip"]
    done = augment_dataset(config(scenes, "aug", *opts), tmp_path / "skips", progress=False)
    assert len(done.skipped) == 1
    assert "gone.png" in done.skipped[0]
    assert len(read(done)["images"]) == len(data["images"]) - 1


def test_refuses_what_it_cannot_do(scenes, made, tmp_path):
    for other in (["aug"], ["orig_aug_multi3x", "SMALLOBJ.COPIES", "2"]):
        with pytest.raises(SmallObjError, match="made with other settings"):
            augment_dataset(config(scenes, *other), made.json_file.parent, progress=False)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SmallObjError, match="not empty"):
        augment_dataset(config(scenes), tmp_path, progress=False)
    with pytest.raises(SmallObjError, match="SEED"):
        augment_dataset(config(scenes, "aug", "SEED", "-1"), tmp_path / "new", progress=False)


def test_tool(scenes, tmp_path, capsys):
    command = [
        *("--config", str(ROOT / "configs" / "aug.yaml"), "--dataset", "offline_train"),
        *("--out", str(tmp_path / "out"), "--workers", "1"),
        *("SMALLOBJ.DATASETS", str(config(scenes).SMALLOBJ.DATASETS)),
    ]
    assert main(command) == 0
    assert "augmented ones with" in capsys.readouterr().out
    assert (tmp_path / "out" / "annotations.json").is_file()
    assert main([*command, "SEED", "8"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
