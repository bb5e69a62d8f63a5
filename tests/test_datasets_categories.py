"""Datasets and the model must mean the same by a class, and it is said before training."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fvcore.common.config import CfgNode

from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.categories import check_categories, require_same_categories
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.engines import load_engine
from smallobj_d2.errors import SmallObjError

ROOT = Path(__file__).parents[1]
PETS = {1: "cat", 3: "dog"}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({1: "cat"}, "val has no 3 'dog'"),
        ({1: "cat", 2: "cow", 3: "dog"}, "train has no 2 'cow'"),
        ({1: "dog", 3: "cat"}, "1 is 'cat' in train and 'dog' in val, 3 is 'dog' in train and"),
        ({0: "cat", 2: "dog"}, "val has no 1 'cat', val has no 3 'dog', train has no 0 'cat', and"),
    ],
)
def test_what_differs_is_said(other, difference):
    with pytest.raises(SmallObjError, match=re.escape(difference)):
        require_same_categories({"train": PETS, "val": other})


def test_equal_lists_pass():
    require_same_categories({})
    require_same_categories({"train": PETS, "val": dict(PETS), "more": dict(PETS)})


def model(roi_heads, retinanet=80, name="GeneralizedRCNN"):
    classes = {"ROI_HEADS": {"NUM_CLASSES": roi_heads}, "RETINANET": {"NUM_CLASSES": retinanet}}
    return CfgNode({"MODEL": {"META_ARCHITECTURE": name, **classes}})


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_the_model_must_have_a_class_for_each_category_and_no_more(classes):
    with pytest.raises(SmallObjError, match=r"Set MODEL\.ROI_HEADS\.NUM_CLASSES 2\.$"):
        check_categories(model(classes), ["train"], {"train": PETS}.get)
    with pytest.raises(SmallObjError, match=r"Set MODEL\.RETINANET\.NUM_CLASSES 2\.$"):
        check_categories(model(2, classes, "RetinaNet"), ["train"], {"train": PETS}.get)
    check_categories(model(80, 2, "RetinaNet"), ["train"], {"train": PETS}.get)


def test_a_dataset_of_unknown_categories_is_not_compared():
    check_categories(model(2), ["train", "x"], {"train": PETS}.get)


# --- in the engines


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("categories")
    return make_dataset(folder, "scenes", 8, seed=3, size=96, progress=False)


@pytest.fixture(params=["detectron2", "torchvision"])
def engine(request) -> Any:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return load_engine(request.param)


def config(scenes: Path, folder: Path, *opts: str, **changed: Any) -> Any:
    """Datasets a and b; ``b`` has other categories, if so said."""
    data = json.loads(scenes.read_text())
    data["categories"] = changed.get("categories", data["categories"])
    (folder / "b.json").write_text(json.dumps(data))
    images, other = str(scenes.parent / "images"), str(folder / "b.json")
    a, b = (f"{n}_{folder.name}" for n in "ab")
    names = {"TRAIN": (a,), "TEST": (a,)}
    names |= {k: tuple(f"{n}_{folder.name}" for n in v) for k, v in changed.items() if k in names}
    return load_cfg(
        ROOT / "configs" / "demo.yaml",
        [
            *("SMALLOBJ.DATASETS", str([[a, str(scenes), images], [b, other, images]])),
            *("DATASETS.TRAIN", str(names["TRAIN"]), "DATASETS.TEST", str(names["TEST"])),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
            *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.FPN.OUT_CHANNELS", "16"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
            *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1"),
            *("SOLVER.STEPS", "()", "SEED", "0", "OUTPUT_DIR", str(folder / "out")),
            *opts,
        ],
    )


def renamed(scenes: Path) -> list[dict[str, Any]]:
    categories = json.loads(scenes.read_text())["categories"]
    return [{**c, "name": "toothbrush"} if c["id"] == 1 else c for c in categories]


def test_train_sets_are_compared_by_the_loader(engine, scenes, tmp_path, forget_datasets):
    cfg = config(scenes, tmp_path, TRAIN="ab", categories=renamed(scenes))
    with pytest.raises(SmallObjError, match=r"same categories: 1 is '.*toothbrush"):
        engine.build_train_loader(cfg)


def test_train_and_test_sets_are_compared_before_training(
    engine, scenes, tmp_path, forget_datasets
):
    cfg = config(scenes, tmp_path, TEST="b", categories=renamed(scenes))
    with pytest.raises(SmallObjError, match=r"same categories: 1 is '.*toothbrush"):
        engine.main(cfg)
    assert not (tmp_path / "out" / "model_final.pth").exists()


def test_a_category_that_the_test_set_lacks_is_named(engine, scenes, tmp_path, forget_datasets):
    """Not the number of classes, which is right."""
    data = json.loads(scenes.read_text())
    gone = data["categories"][-1]
    kept = [a for a in data["annotations"] if a["category_id"] != gone["id"]]
    cfg = config(scenes, tmp_path, TEST="b", categories=data["categories"][:-1])
    (tmp_path / "b.json").write_text(
        json.dumps({**data, "categories": data["categories"][:-1], "annotations": kept})
    )
    with pytest.raises(SmallObjError, match=rf"same categories: b_.* has no .* '{gone['name']}'"):
        engine.main(cfg)


@pytest.mark.parametrize("test", ["a", ""])
def test_too_many_classes_are_refused_before_training(
    engine, scenes, tmp_path, forget_datasets, test
):
    cfg = config(scenes, tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", "80", TEST=test)
    with pytest.raises(SmallObjError, match=r"6 categories, but the model has 80.*NUM_CLASSES 6"):
        engine.main(cfg)
    assert not (tmp_path / "out" / "model_final.pth").exists()


def test_sets_of_detectron2s_catalog_are_compared(scenes, tmp_path, forget_datasets):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2.data.datasets import register_coco_instances

    engine = load_engine("detectron2")
    cfg = config(scenes, tmp_path, categories=renamed(scenes))
    images = str(scenes.parent / "images")
    for name, path in (("catalog_a", str(scenes)), ("catalog_b", f"{tmp_path}/b.json")):
        register_coco_instances(name, {}, path, images)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = ("catalog_a", "catalog_b")
    with pytest.raises(SmallObjError, match=r"catalog_a and catalog_b do not .*toothbrush"):
        engine.build_train_loader(cfg)
