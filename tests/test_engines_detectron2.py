"""Detectron2's mapper with copy-paste: stock where it is off, and what it adds where it is on."""

import copy
import json
import logging
import os
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import LazyCall, instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T  # noqa: N812 - Detectron2's own name for it
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from pycocotools import mask as coco_mask

from proofs.random_scenes import rle_of
from smallobj_d2.augmentation import DrawAugmentation, draw_state
from smallobj_d2.config import load_cfg
from smallobj_d2.copy_paste import CopyPaste
from smallobj_d2.datasets.coco import get_records, load_coco, register_dataset
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.engines import detectron2
from smallobj_d2.engines.detectron2 import (
    MAPPERS,
    Checkpointer,
    SmallObjectMapper,
    Trainer,
    build_train_loader,
    oversampling_sampler,
    register_datasets,
    sampler_from_config,
    trainer,
    with_areas,
)
from smallobj_d2.engines.detectron2.data import require_keypoint_names
from smallobj_d2.engines.detectron2.mapper import build_mapper
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.sampling import Draw
from smallobj_d2.sizes import has_small

CONFIGS = Path(__file__).parents[1] / "configs"
REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"

needs_coco = pytest.mark.skipif(
    not REAL.is_dir(), reason="there is no coco/ under DETECTRON2_DATASETS"
)
SMALL_INPUT = ["INPUT.MIN_SIZE_TRAIN", "(160, 200, 240)", "INPUT.MAX_SIZE_TRAIN", "320"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> list[dict[str, Any]]:
    """Dataset dicts of synthetic scenes; crowds among their annotations."""
    path = make_dataset(
        tmp_path_factory.mktemp("mapper"), "scenes", 24, seed=4, size=160, progress=False
    )
    return load_coco(path, path.parent / "images").records


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    return get_records(["coco_2017_train", "coco_2017_val"])


def config(name: str = "baseline", *opts: str) -> Any:
    return load_cfg(CONFIGS / f"{name}.yaml", [*SMALL_INPUT, *opts])


def equal(a: Any, b: Any) -> bool:
    """Whether two model inputs are the same, bit for bit and type for type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b) and a.stride() == b.stride()
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if hasattr(a, "get_fields"):
        return a.image_size == b.image_size and equal(a.get_fields(), b.get_fields())
    for part in ("polygons", "tensor"):
        if hasattr(a, part):
            return equal(getattr(a, part), getattr(b, part))
    return a == b


def assert_stock(cfg: Any, records: list[dict[str, Any]], is_train: bool = True) -> None:
    """Both mappers, fed with the same global random numbers, give the same and take the same."""
    stock, ours = DatasetMapper(cfg, is_train), SmallObjectMapper(cfg, is_train)
    for k, record in enumerate(records):
        np.random.seed(k)
        expected = stock(copy.deepcopy(record))
        after = np.random.get_state()[1].tobytes()
        np.random.seed(k)
        given = copy.deepcopy(record)
        found = ours(given)
        assert np.random.get_state()[1].tobytes() == after
        assert equal(found, expected), record["file_name"]
        assert given == record


# --- copy-paste off is stock


@needs_coco
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_off_is_stock_on_real_images(real, mask_format):
    assert_stock(config("baseline", "INPUT.MASK_FORMAT", mask_format), real[::2])


@needs_coco
def test_off_is_stock_at_the_papers_size(real):
    assert_stock(load_cfg(CONFIGS / "baseline.yaml"), real[1::10])


VARIANTS = {
    "polygon": [],
    "bitmask": ["INPUT.MASK_FORMAT", "bitmask"],
    "crop": ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "(0.5, 0.5)"],
    "crop bitmask": ["INPUT.CROP.ENABLED", "True", "INPUT.MASK_FORMAT", "bitmask"],
    "boxes only": ["MODEL.MASK_ON", "False"],
    "boxes only, crop": ["MODEL.MASK_ON", "False", "INPUT.CROP.ENABLED", "True"],
    "vertical flip": ["INPUT.RANDOM_FLIP", "vertical"],
    "no flip": ["INPUT.RANDOM_FLIP", "none"],
    "range": ["INPUT.MIN_SIZE_TRAIN", "(150, 250)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
    "RGB": ["INPUT.FORMAT", "RGB"],
    "no resize": ["INPUT.MIN_SIZE_TRAIN", "(0,)"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_off_is_stock_in_every_setting(scenes, name):
    assert_stock(config("baseline", *VARIANTS[name]), scenes)


def test_off_is_stock_for_keypoints(scenes):
    """Horizontal flips swap left and right keypoints by the dataset's metadata."""
    rng = np.random.default_rng(0)
    records = copy.deepcopy(scenes[:10])
    for record in records:
        for a in record["annotations"]:
            x, y, w, h = a["bbox"]
            points = rng.uniform((x, y), (x + w, y + h), (17, 2))
            seen = rng.integers(0, 3, 17)
            a["keypoints"] = np.column_stack([points, seen]).ravel().tolist()
    train = ["DATASETS.TRAIN", "('keypoints_coco_2017_train',)"]
    for crop in ("False", "True"):
        opts = [*train, "MODEL.KEYPOINT_ON", "True", "INPUT.CROP.ENABLED", crop]
        assert_stock(config("baseline", *opts), records)
    assert_stock(config("baseline"), records)  # keypoints there, but not asked for


def test_off_is_stock_with_a_semantic_segmentation(scenes, tmp_path):
    records = []
    for record in scenes[:6]:
        name = str(tmp_path / f"{record['image_id']}.png")
        labels = np.arange(record["height"] * record["width"]) % 7
        cv2.imwrite(name, labels.reshape(record["height"], record["width"]).astype(np.uint8))
        records.append({**record, "sem_seg_file_name": name})
    for crop in ("False", "True"):
        assert_stock(config("baseline", "INPUT.CROP.ENABLED", crop), records)


def test_off_is_stock_for_odd_annotations(scenes):
    """No annotation, no key of that name, crowds only, boxes in two modes, upside-down boxes."""
    first = next(r for r in scenes if len(r["annotations"]) > 3)
    few = [a for a in first["annotations"] if not a["iscrowd"]][:3]
    x, y, w, h = few[0]["bbox"]
    xyxy = {**few[0], "bbox": [x, y, x + w, y + h], "bbox_mode": BoxMode.XYXY_ABS}
    outside = {**few[1], "bbox": [-20.5, -3.25, 30.125, 500]}
    lists = [
        [],
        [{**a, "iscrowd": 1} for a in few],
        [xyxy, *few[1:]],
        [xyxy],
        [outside, few[2]],
        [{**a, "segmentation": [np.array(p) for p in a["segmentation"]]} for a in few],
    ]
    without = {k: v for k, v in first.items() if k != "annotations"}
    records = [{**first, "annotations": annotations} for annotations in lists]
    cfg = config("baseline")
    stock, ours = DatasetMapper(cfg, True), SmallObjectMapper(cfg, True)
    for record in (*records, without):
        np.random.seed(3)
        expected = stock(copy.deepcopy(record))
        np.random.seed(3)
        assert equal(ours(copy.deepcopy(record)), expected)


def test_off_is_stock_for_rle_masks(scenes):
    records = copy.deepcopy(scenes[:8])
    for record in records:
        size = record["height"], record["width"]
        for a in record["annotations"]:
            if not a["iscrowd"]:
                a["segmentation"] = coco_mask.merge(coco_mask.frPyObjects(a["segmentation"], *size))
    assert_stock(config("baseline", "INPUT.MASK_FORMAT", "bitmask"), records)


@pytest.mark.parametrize("name", ["baseline", "orig_aug_multi3x"])
def test_inference_is_stock(scenes, name):
    assert_stock(config(name), scenes[:6], is_train=False)


def test_a_draw_replaces_the_global_generator_and_changes_nothing_else(scenes):
    cfg = config("baseline", "SEED", "9")
    stock, ours = DatasetMapper(cfg, True), SmallObjectMapper(cfg, True)
    for k, record in enumerate(scenes):
        draw = Draw(1000 + k, k, 0)
        np.random.set_state(draw_state(9, 1000 + k).get_state())
        expected = stock(copy.deepcopy(record))
        assert equal(ours({**copy.deepcopy(record), "draw": draw}), {**expected, "draw": draw})


# --- copy-paste on


def small_object_images(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    mapper = SmallObjectMapper(config("aug", "SEED", "1"), True)
    draws = [{**r, "draw": Draw(k, k, 0)} for k, r in enumerate(records)]
    plans = [mapper.augmentation.plan(d) for d in draws]
    return [d for d, p in zip(draws, plans, strict=True) if p is not None and p.pasted]


def check_pasted(records: list[dict[str, Any]], mask_format: str) -> None:
    """Instances are the originals that are no crowds, in their order, and then the copies."""
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.RANDOM_FLIP", "none"]
    opts = ["SEED", "1", "INPUT.MASK_FORMAT", mask_format, *sizes]
    ours = SmallObjectMapper(config("aug", *opts), True)
    off = SmallObjectMapper(config("baseline", *opts), True)
    drawn = small_object_images(records)
    assert len(drawn) > 5
    for record in drawn:
        plan = ours.augmentation.plan(copy.deepcopy(record))
        originals = off(copy.deepcopy(record))["instances"]
        sample = ours(copy.deepcopy(record))
        instances, n = sample["instances"], len(originals)
        assert len(instances) == n + plan.pasted
        assert sample["pasted"] == [False] * n + [True] * plan.pasted
        assert equal(instances[:n], originals)
        copies = plan.annotations[-plan.pasted :]
        assert instances.gt_classes[n:].tolist() == [a["category_id"] for a in copies]
        boxes = np.array([a["bbox"] for a in copies])
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(instances.gt_boxes.tensor[n:], boxes, atol=1e-3)
        kind = PolygonMasks if mask_format == "polygon" else BitMasks
        assert isinstance(instances.gt_masks, kind)
        # The boxes hold the masks, give or take the pixels that an outline touches.
        beyond = instances.gt_masks.get_bounding_boxes().tensor - instances.gt_boxes.tensor
        beyond[:, :2] *= -1
        assert beyond[n:].max() <= (1e-3 if mask_format == "polygon" else 1)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_instances_are_the_originals_and_the_copies(scenes, mask_format):
    check_pasted(scenes, mask_format)


@needs_coco
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_instances_are_the_originals_and_the_copies_on_real_images(real, mask_format):
    check_pasted(real[::3], mask_format)


def test_the_pixels_are_those_of_the_copy_paste_and_then_of_the_stock_mapper(scenes, tmp_path):
    """Pasting first, saved without loss, and mapping afterwards is the same."""
    cfg = config("aug", "SEED", "1")
    ours, stock = SmallObjectMapper(cfg, True), DatasetMapper(cfg, True)
    for record in small_object_images(scenes)[:6]:
        image = cv2.imread(record["file_name"])
        augmented = copy.deepcopy(record)
        assert ours.augmentation(image, augmented).pasted
        augmented["file_name"] = str(tmp_path / f"{record['image_id']}.png")
        cv2.imwrite(augmented["file_name"], image)
        np.random.set_state(draw_state(1, record["draw"].position).get_state())
        expected = stock(copy.deepcopy(augmented))
        found = ours(copy.deepcopy(record))
        assert torch.equal(found["image"], expected["image"])
        assert equal(found["instances"], expected["instances"])


def test_the_dataset_dict_stays_as_it_is(scenes):
    ours = SmallObjectMapper(config("aug", "SEED", "1"), True)
    for record in small_object_images(scenes):
        before = copy.deepcopy(record)
        ours(record)
        assert record == before


@pytest.mark.parametrize("crop", ["False", "True"])
def test_nothing_empty_reaches_the_model(scenes, crop):
    """Copies that a crop cuts away are filtered as other instances are."""
    opts = ["SEED", "1", "INPUT.CROP.ENABLED", crop, "INPUT.CROP.SIZE", "(0.3, 0.3)"]
    ours = SmallObjectMapper(config("orig_aug_multi3x", *opts), True)
    for k in range(36):
        sample = ours({**copy.deepcopy(scenes[k % len(scenes)]), "draw": Draw(k, k, 0)})
        instances = sample["instances"]
        assert instances.gt_boxes.nonempty().all()
        assert instances.gt_masks.nonempty().all()
        assert len(sample["pasted"]) == len(instances)
        assert sample["image"].dtype == torch.uint8


# --- in somebody else's project


def test_the_mapper_works_in_the_stock_loader(scenes):
    cfg = config("aug", "SEED", "1")
    loader = build_detection_train_loader(
        copy.deepcopy(scenes),
        mapper=SmallObjectMapper(cfg, True),
        sampler=TrainingSampler(len(scenes), seed=0),
        total_batch_size=4,
        num_workers=0,
    )
    np.random.seed(0)
    batches = iter(loader)
    samples = [s for _ in range(12) for s in next(batches)]
    assert sum(sum(s["pasted"]) for s in samples) > 20
    # Two visits of an image get different pastes.
    by_image: dict[int, set[tuple[float, ...]]] = {}
    for s in samples:
        if any(s["pasted"]):
            key = tuple(s["instances"].gt_boxes.tensor[torch.tensor(s["pasted"])][0].tolist())
            by_image.setdefault(s["image_id"], set()).add(key)
    assert any(len(boxes) > 1 for boxes in by_image.values())


@pytest.mark.parametrize("reading", ["probability", "paired"])
def test_in_the_stock_loader_the_share_holds_by_chance(scenes, reading):
    """There is no epoch to hold it exactly in."""
    opts = ["SEED", "1", "SMALLOBJ.AUGMENTATION_READING", reading]
    ours = SmallObjectMapper(config("orig_aug", *opts), True)
    record = {k: v for k, v in small_object_images(scenes)[0].items() if k != "draw"}
    np.random.seed(0)
    augmented = sum(any(ours(copy.deepcopy(record))["pasted"]) for _ in range(200))
    assert 65 < augmented < 135


def test_a_name_of_detectron2s_catalog_is_not_taken_again(tmp_path, forget_datasets):
    """It would be trained on by our reading, and evaluated by Detectron2's."""
    path = make_dataset(tmp_path, "scenes", 2, seed=4, size=96, progress=False)
    for name, words in (("coco_2017_val_100", "is taken by another dataset"), ("new_scenes", "")):
        register_dataset(name, path, path.parent / "images")
        if words:
            with pytest.raises(SmallObjError, match=words):
                register_datasets([name])
            continue
        register_datasets([name])
        register_datasets([name])  # it is the same
        assert MetadataCatalog.get(name).json_file == str(path)


def test_keypoints_without_names_are_refused_before_training():
    """A flip needs them; Detectron2's mapper would end in an AttributeError."""
    opts = ["MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN"]
    with pytest.raises(SmallObjError, match="no keypoint_names of my_points"):
        require_keypoint_names(config("baseline", *opts, "('my_points',)"))
    MetadataCatalog.get("my_points").set(keypoint_names=["nose"], keypoint_flip_map=[])
    require_keypoint_names(config("baseline", *opts, "('my_points',)"))
    require_keypoint_names(config("baseline", *opts, "('keypoints_coco_2017_train',)"))
    require_keypoint_names(config("baseline"))


def test_a_dataset_in_cocos_place_with_other_categories_is_refused(tmp_path, monkeypatch):
    """Detectron2's catalog has the 80 names, and its evaluation would stop at others."""
    path = make_dataset(tmp_path, "scenes", 2, seed=4, size=96, progress=False)
    place = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(path.read_bytes())
    (tmp_path / "coco" / "val2017").mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(SmallObjError, match="has other categories than COCO"):
        register_datasets(["coco_2017_val"])


@pytest.mark.skipif(cv2.getNumThreads() == 1, reason="OpenCV has one thread here")
def test_workers_of_an_evaluation_do_without_opencv_threads(monkeypatch):
    monkeypatch.setattr(trainer, "build_mapper", lambda *_: lambda record: cv2.getNumThreads())
    DatasetCatalog.register("one_record", lambda: [{}])
    loader = Trainer.build_test_loader(config("demo", "DATALOADER.NUM_WORKERS", 1), "one_record")
    assert next(iter(loader)) == [1]


def test_a_dataset_of_a_function_is_evaluated_wherever_its_images_are(tmp_path, scenes):
    """Detectron2 writes its annotations to a file of its own, with absolute paths."""
    name = "scenes_of_a_function"
    records = [{k: v for k, v in r.items() if k != "draw"} for r in scenes[:3]]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=[f"class{i}" for i in range(6)])
    cfg = config("demo", "DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(tmp_path))
    evaluator = Trainer.build_evaluator(cfg, name)
    written = evaluator._coco_api
    assert os.path.isabs(next(iter(written.imgs.values()))["file_name"])
    assert len(written.anns) == sum(len(r["annotations"]) for r in records)
    records[0]["annotations"] = records[0]["annotations"][:1]
    MetadataCatalog.pop(name)  # as in a new process; the file that was written is still there
    MetadataCatalog.get(name).set(thing_classes=[f"class{i}" for i in range(6)])
    again = Trainer.build_evaluator(cfg, name)._coco_api
    assert len(again.anns) == sum(len(r["annotations"]) for r in records) < len(written.anns)


def test_keypoints_are_evaluated_by_the_sigmas_of_the_config(registered):
    sigmas = [0.1, 0.2, 0.3, 0.4]
    cfg = config("demo", "TEST.KEYPOINT_OKS_SIGMAS", sigmas)
    assert [*Trainer.build_evaluator(cfg, registered)._kpt_oks_sigmas] == sigmas


@pytest.fixture
def registered(tmp_path, forget_datasets) -> str:
    """Scenes as `register_coco_instances` registers them: without `area`."""
    path = make_dataset(tmp_path, "stock", 16, seed=4, size=160, progress=False)
    register_coco_instances("stock_scenes", {}, str(path), str(path.parent / "images"))
    return "stock_scenes"


FOR_STOCK = ["INPUT.MASK_FORMAT", "bitmask", "DATASETS.TRAIN", "('stock_scenes',)"]
FOR_STOCK += ["MODEL.ROI_HEADS.NUM_CLASSES", "6", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]
FOR_STOCK += ["SOLVER.IMS_PER_BATCH", "4"]


def first_samples(loader: Any, batches: int = 5) -> list[dict[str, Any]]:
    return [s for batch in islice(iter(loader), batches) for s in batch]


def test_in_its_own_loader_each_image_has_its_own_one_copy(registered, monkeypatch):
    options = ["SMALLOBJ.ONE_COPY_PER_IMAGE", "True", "SMALLOBJ.AUGMENTATION_PROBABILITY", "1.0"]
    mapper = SmallObjectMapper(config("aug", *FOR_STOCK, *options), True)
    made, plans = mapper.augmentation.plan, []
    monkeypatch.setattr(mapper.augmentation, "plan", lambda r: plans.append(made(r)) or plans[-1])
    copies: dict[str, list[str]] = {}
    for record in get_detection_dataset_dicts((registered,)) * 3:
        mapper(copy.deepcopy(record))
        pasted = [a["bbox"] for a in plans[-1].annotations if "copy_paste" in a] if plans[-1] else 0
        copies.setdefault(record["file_name"], []).append(str(pasted))
    assert all(len(set(each)) == 1 for each in copies.values())  # the same in every draw
    others = {each[0] for each in copies.values() if each[0] not in ("0", "[]")}
    assert len(others) == sum(each[0] not in ("0", "[]") for each in copies.values()) > 3


@pytest.mark.parametrize("name", ["aug", "beyond/bank"])
def test_datasets_of_detectron2_are_augmented_in_its_own_loader(registered, name):
    cfg = config(name, *FOR_STOCK)
    loader = build_detection_train_loader(cfg, mapper=SmallObjectMapper(cfg, True))
    samples = first_samples(loader)
    assert any(any(s["pasted"]) for s in samples)
    assert not all(all(s["pasted"]) for s in samples)


def test_a_missing_area_is_measured_once_for_each_image(registered, monkeypatch):
    cfg = config("aug", *FOR_STOCK)
    measured = []
    monkeypatch.setattr(detectron2.data, "mask_area", lambda a, h, w: measured.append(a) or 100.0)
    record = next(r for r in get_detection_dataset_dicts([registered]) if r["annotations"])
    assert "area" not in record["annotations"][0]
    mapper = SmallObjectMapper(cfg, True)
    for _ in range(3):
        mapper(copy.deepcopy(record))
    assert len(measured) == len(record["annotations"])


def test_a_measured_area_is_that_of_the_json(registered):
    json_file = MetadataCatalog.get(registered).json_file
    areas = {a["id"]: a["area"] for a in json.loads(Path(json_file).read_text())["annotations"]}
    records = with_areas(get_detection_dataset_dicts([registered]))
    theirs = sorted(areas.values())
    ours = sorted(a["area"] for r in records for a in r["annotations"])
    assert len(ours) > 50
    assert set(ours) <= set(theirs)


@pytest.mark.parametrize("mode", [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS])
@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_a_box_that_does_not_hold_its_mask_becomes_the_masks(mode, form):
    mask = np.zeros((50, 60), np.uint8)
    mask[10:40, 20:50] = 1
    forms = {"polygon": [[20.0, 10, 50, 10, 50, 40, 20, 40]], "rle": rle_of(mask)}
    thing = {"bbox_mode": mode, "category_id": 0, "segmentation": forms[form], "area": 900}
    boxes = {BoxMode.XYXY_ABS: (25, 15, 45, 35), BoxMode.XYWH_ABS: (25, 15, 20, 20)}
    held = {BoxMode.XYXY_ABS: (20.5, 10, 50, 40), BoxMode.XYWH_ABS: (20.5, 10, 30, 30)}
    things = [{**thing, "bbox": [*box[mode]]} for box in (boxes, held)]
    image = {"file_name": "a.png", "height": 50, "width": 60, "annotations": things}
    (complete,) = with_areas([image])
    mended, kept = (a["bbox"] for a in complete["annotations"])
    assert mended == ([20, 10, 50, 40] if mode == BoxMode.XYXY_ABS else [20, 10, 30, 30])
    assert kept == [*held[mode]]
    assert things[0]["bbox"] == [*boxes[mode]]
    things[0]["segmentation"] = {"size": [9, 9], "counts": b"x"}
    with pytest.raises(SmallObjError, match=r"a\.png: An RLE"):
        with_areas([image])


def test_a_box_that_the_border_cuts_stays_though_the_outline_goes_on():
    outline = [50.0, 10, 80, 10, 80, 30, 50, 30]
    thing = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": [outline]}
    boxes = [50.0, 10, 10, 20], [1.0, 1, 5, 5]
    things = [{**thing, "bbox": box} for box in boxes]
    image = {"file_name": "a.png", "height": 50, "width": 60, "annotations": things}
    (complete,) = with_areas([image])
    assert [a["bbox"] for a in complete["annotations"]] == [boxes[0]] * 2


def test_records_without_a_size_get_that_of_the_image(registered):
    records = DatasetCatalog.get(registered)
    bare = [{k: v for k, v in r.items() if k not in ("height", "width")} for r in records]
    for record, complete in zip(records, with_areas(bare), strict=True):
        assert (complete["height"], complete["width"]) == (record["height"], record["width"])
    DatasetCatalog.register("bare_scenes", lambda: bare)
    cfg = config("aug", *FOR_STOCK, "DATASETS.TRAIN", "('bare_scenes',)")
    assert any(any(s["pasted"]) for s in first_samples(build_train_loader(cfg)))
    mapper = SmallObjectMapper(cfg, True)
    assert any(any(mapper(copy.deepcopy(r))["pasted"]) for r in bare if r["annotations"])


def test_oversampling_in_detectron2s_loader_is_a_sampler(registered, caplog):
    cfg = config("oversample_3x", *FOR_STOCK)
    dicts = get_detection_dataset_dicts([registered])
    with caplog.at_level(logging.WARNING):
        mapper = SmallObjectMapper(cfg, True)
    assert "SMALLOBJ.OVERSAMPLING_FACTOR 3 takes effect in" in caplog.text
    caplog.clear()
    sampler = sampler_from_config(cfg, dicts)
    small = [has_small(r["annotations"]) for r in with_areas(dicts)]
    assert 0 < sum(small) < len(small)
    epoch = sum(3 if s else 1 for s in small)
    drawn = Counter(islice(iter(sampler), epoch))
    assert [drawn[i] for i in range(len(small))] == [3 if s else 1 for s in small]
    loader = build_detection_train_loader(cfg, mapper=mapper, dataset=dicts, sampler=sampler)
    assert len(first_samples(loader, 1)) == 4
    build_train_loader(cfg)
    assert "takes effect" not in caplog.text  # there it does


def test_a_lazy_config_can_ask_for_all_of_it(registered):
    pasting = LazyCall(DrawAugmentation)(
        copy_paste=LazyCall(CopyPaste)(strategy="multiple", copies=3), seed=0, probability=1.0
    )
    dicts = LazyCall(get_detection_dataset_dicts)(names=registered)
    loader = instantiate(
        LazyCall(build_detection_train_loader)(
            dataset=dicts,
            mapper=LazyCall(SmallObjectMapper)(
                is_train=True,
                augmentations=[LazyCall(T.RandomFlip)()],
                image_format="BGR",
                use_instance_mask=True,
                instance_mask_format="bitmask",
                augmentation=pasting,
            ),
            sampler=LazyCall(oversampling_sampler)(dataset=dicts, factor=2.0, seed=0),
            total_batch_size=4,
            num_workers=0,
        )
    )
    assert any(any(s["pasted"]) for s in first_samples(loader))


def test_the_mapper_is_chosen_by_name():
    assert MAPPERS["SmallObjectMapper"] is SmallObjectMapper
    cfg = config("baseline", "SMALLOBJ.MAPPER", "Mine", "SEED", "1")
    with pytest.raises(
        SmallObjError, match=r"MAPPER is 'Mine', .*; there are: .*SmallObjectMapper"
    ):
        build_mapper(cfg, True)


def test_the_loader_wants_a_seed_that_is_one():
    """-1 would be a seed to Detectron2's own sampler."""
    with pytest.raises(SmallObjError, match="SEED is negative"):
        build_train_loader(config("baseline", "SEED", "-1"))


def test_the_loader_refuses_a_sampler_that_it_does_not_use():
    name = "RepeatFactorTrainingSampler"
    with pytest.raises(SmallObjError, match=rf"SAMPLER_TRAIN {name}.* SMALLOBJ\.SAMPLER chooses"):
        build_train_loader(config("baseline", "SEED", "1", "DATALOADER.SAMPLER_TRAIN", name))


# --- images that cannot be read


def broken_record(folder: Path, record: dict[str, Any], what: str) -> dict[str, Any]:
    name = folder / f"{what}.jpg"
    data = Path(record["file_name"]).read_bytes()
    if what == "damaged":
        name.write_bytes(data[: len(data) // 3])
    elif what == "no image":
        name.write_text(json.dumps({"not": "an image"}))
    elif what == "empty":
        name.write_bytes(b"")
    elif what == "other size":
        name.write_bytes(data)
        return {**record, "file_name": str(name), "width": record["width"] + 1}
    return {**record, "file_name": str(name)}


@pytest.mark.parametrize("what", ["missing", "damaged", "no image", "empty", "other size"])
def test_an_unreadable_image_is_named_with_its_id(scenes, tmp_path, what):
    ours = SmallObjectMapper(config("baseline"), True)
    record = broken_record(tmp_path, scenes[0], what)
    with pytest.raises(UnreadableImage) as e:
        ours(record)
    assert f"{what}.jpg (image {record['image_id']})" in str(e.value)
    assert "\n" not in str(e.value)


def test_global_state_is_left_alone_when_there_is_a_draw(scenes):
    ours = SmallObjectMapper(config("orig_aug", "SEED", "1"), True)
    np.random.seed(5)
    random.seed(5)
    torch.manual_seed(5)
    before = (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist())
    for k in range(10):
        ours({**copy.deepcopy(scenes[k]), "draw": Draw(k, k, 0)})
    after = (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist())
    assert after == before


# --- the trainer


def test_a_step_at_the_very_end_of_training_changes_nothing():
    """Detectron2's own schedule would end in an AssertionError."""
    rates = []
    for steps in ("(4,)", "(4, 6)"):
        cfg = config("baseline", "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", steps)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = Trainer.build_lr_scheduler(cfg, optimizer)
        rates.append([])
        for _ in range(6):
            rates[-1] += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
    assert rates[0] == rates[1]
    assert rates[0][4] < rates[0][3]


def resumable(rate=0.1, **scaler):
    """A trainer with no more than a resume looks at."""
    model = torch.nn.Linear(1, 1)
    parts = (model, [], torch.optim.SGD(model.parameters(), lr=rate))
    made = Trainer.__new__(Trainer)
    made._hooks, made.iter = [], 4
    made.scheduler = torch.optim.lr_scheduler.LambdaLR(parts[2], lambda _: 0.5)
    made._trainer = SimpleTrainer(*parts)
    if scaler:
        made._trainer = AMPTrainer(*parts, grad_scaler=torch.amp.GradScaler("cpu", **scaler))
        made._trainer.grad_scaler.scale(torch.ones(1))
    made._trainer.iter = 4
    return made


@pytest.mark.parametrize(
    ("began", "now", "after"), [(0.0, 0.0, 0.0), (0.0, 0.2, 0.2), (0.1, 0.2, 0.1)]
)
def test_a_resume_has_the_learning_rate_that_is_asked_for(began, now, after):
    """Also of parameters that are not trained, such as biases with a factor of 0."""
    resumed = resumable(now)
    resumed.load_state_dict(resumable(began).state_dict())
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [after]


def test_mixed_precisions_scale_goes_through_a_resume():
    """With a scaler of the CPU's; a run that had none may go over to mixed precision."""
    trainer = resumable
    for began, scale in ((trainer(init_scale=8.0), 8.0), (trainer(), 4.0)):
        resumed = trainer(init_scale=4.0)
        resumed.load_state_dict(began.state_dict())
        assert resumed._trainer.grad_scaler.get_scale() == scale
    trainer().load_state_dict(trainer(init_scale=8.0).state_dict())


@pytest.mark.parametrize("another", [(3, 4), (2, 2), None], ids=["wide", "narrow", "deep"])
def test_a_run_with_another_model_is_not_gone_on_with(another, tmp_path):
    """The stock checkpointer would leave what does not fit random, and go on."""

    def checkpointer(*sizes):
        layers = [torch.nn.Linear(3, 2), *(torch.nn.Linear(*pair) for pair in sizes)]
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return Checkpointer(model, str(tmp_path), optimizer=optimizer)

    checkpointer((2, 3)).save("model_final", iteration=7)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert checkpointer((2, 3)).resume_or_load("", resume=True)["iteration"] == 7
    sizes = [another] if another else []
    with pytest.raises(SmallObjError, match=r"model_final\.pth is not a checkpoint of this model"):
        checkpointer(*sizes).resume_or_load("", resume=True)
    initial = str(tmp_path / "model_final.pth")
    checkpointer(*sizes).resume_or_load(initial, resume=False)


def test_a_model_of_which_a_part_is_random_is_not_evaluated(tmp_path):
    """Such as one of the other engine, which would end with an AP of 0."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    expected = {k: v + 1 for k, v in model.state_dict().items()}

    def load(weights, *, whole):
        torch.save({"model": weights}, tmp_path / "some.pth")
        path = tmp_path / "some.pth"
        Checkpointer.load_whole(model, path) if whole else Checkpointer(model).load(str(path))

    for missing in ("0.weight", "1.bias"):
        part = {k: v for k, v in expected.items() if k != missing}
        load(part, whole=False)
        with pytest.raises(SmallObjError, match=f"1 of the model's 4 .*{missing}"):
            load(part, whole=True)
    load(expected, whole=True)
    assert all((model.state_dict()[k] == v).all() for k, v in expected.items())
