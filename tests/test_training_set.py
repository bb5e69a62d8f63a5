"""What would end a run at its end is said before it begins."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from smallobj_d2.config import get_cfg, load_cfg
from smallobj_d2.datasets.coco import load_coco, register_dataset
from smallobj_d2.datasets.images import opened, read_rgb, require_files
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.evaluation.ap import load_ground_truth
from smallobj_d2.training_set import check_test_data, require_masks_to_learn, training_data
from tests.detections import ap_row

CONFIGS = Path(__file__).parents[1] / "configs"

pytestmark = pytest.mark.usefixtures("forget_datasets")


def dataset(root: Path, **changes) -> dict:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(root / "a.jpg")
    box = {"bbox": [10, 10, 20, 20], "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 60, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "area": 400, **box}],
        "categories": [{"id": 1, "name": "one"}],
        **changes,
    }


def registered(root: Path, data: dict):
    path = root / "a.json"
    path.write_text(json.dumps(data))
    register_dataset("it", path, root)
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("it",)
    return cfg


def test_a_good_test_set_passes(tmp_path):
    check_test_data(registered(tmp_path, dataset(tmp_path)))


def test_a_test_set_that_does_not_exist(tmp_path):
    cfg = registered(tmp_path, dataset(tmp_path))
    cfg.DATASETS.TEST = ("it", "other")
    with pytest.raises(SmallObjError, match="no dataset 'other'"):
        check_test_data(cfg)
    check_test_data(cfg, known=["other"])


def test_a_test_set_named_twice(tmp_path):
    cfg = registered(tmp_path, dataset(tmp_path))
    cfg.DATASETS.TEST = ("it", "it")
    with pytest.raises(SmallObjError, match="it twice"):
        check_test_data(cfg)


def test_a_training_set_named_twice(tmp_path):
    cfg = registered(tmp_path, dataset(tmp_path))
    cfg.SEED, cfg.DATASETS.TRAIN = 0, ("it", "it")
    with pytest.raises(SmallObjError, match=r"DATASETS\.TRAIN names it twice"):
        training_data(cfg)


def test_a_test_set_without_images(tmp_path):
    with pytest.raises(SmallObjError, match="no image to evaluate"):
        check_test_data(registered(tmp_path, dataset(tmp_path, images=[], annotations=[])))


def test_a_truncated_test_image(tmp_path):
    cfg = registered(tmp_path, dataset(tmp_path))
    path = tmp_path / "a.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnreadableImage, match=r"a\.jpg \(image 1\) cannot be read"):
        check_test_data(cfg)


def turned(path: Path, size: tuple[int, int], exif: bytes) -> None:
    Image.new("RGB", size, (90, 120, 150)).save(path, exif=exif)


def test_a_test_image_that_exif_turns_but_its_annotations_do_not(tmp_path):
    cfg = registered(tmp_path, dataset(tmp_path))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned(tmp_path / "a.jpg", (80, 60), exif.tobytes())
    with pytest.raises(UnreadableImage, match=r"60 x 80 .* say 80 x 60\. If its EXIF turns it"):
        check_test_data(cfg)


def test_an_image_with_damaged_exif_is_read_as_if_it_had_none(tmp_path):
    cfg = registered(tmp_path, dataset(tmp_path))
    record = load_coco(tmp_path / "a.json", tmp_path).records[0]
    image = Image.open(tmp_path / "a.jpg")
    pixels = np.asarray(image)
    record["file_name"] = str(tmp_path / "a.png")
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0"):
        image.save(tmp_path / "a.png", exif=exif)
        assert (read_rgb(record) == pixels).all()
    check_test_data(cfg)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_images_are_turned_as_pillow_turns_them(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert (read_rgb({"file_name": str(path)}) == expected).all()


def test_a_pipe_is_no_image_and_nobody_waits_for_it(tmp_path):
    cfg = registered(tmp_path, dataset(tmp_path))
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImage, match=r"a\.jpg"):
        check_test_data(cfg)
    record = load_coco(tmp_path / "a.json", tmp_path).records[0]
    with pytest.raises(UnreadableImage, match="it is a pipe or a device"), opened(record):
        pass


def test_an_image_folder_without_permission(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    cfg = registered(tmp_path, dataset(tmp_path))
    records = load_coco(tmp_path / "a.json", tmp_path).records
    monkeypatch.setattr(os, "scandir", refuse)
    for check in (lambda: require_files(records), lambda: check_test_data(cfg)):
        with pytest.raises(UnreadableImage, match=r"folder .* cannot be read: Permission denied"):
            check()


@pytest.mark.parametrize("area", [{}, {"area": 0}], ids=["no area", "area 0"])
@pytest.mark.parametrize("form", [int, float], ids=["whole", "floats"])
def test_run_lengths_as_a_list_can_be_evaluated_and_trained_on(tmp_path, area, form):
    """Also of sizes as floats, which COCO's tools refuse."""
    runs = [610, *[20, 40] * 19, 20]
    rle = {"size": [form(60), form(80)], "counts": [*runs, 4800 - sum(runs)]}
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], **area}
    data = dataset(tmp_path, annotations=[{**one, "segmentation": rle}])
    cfg = registered(tmp_path, data)
    check_test_data(cfg)
    (annotation,) = load_coco(tmp_path / "a.json", tmp_path).records[0]["annotations"]
    assert annotation["segmentation"]["size"] == [60, 80]
    assert coco_mask.area(annotation["segmentation"]) == annotation["area"] == 400
    truth = load_ground_truth(tmp_path / "a.json")
    assert truth.anns[1]["area"] == 400
    found = {k: one[k] for k in ("image_id", "category_id", "bbox")}
    found |= {"score": 1.0, "segmentation": coco_mask.frPyObjects(rle, 60, 80)}
    assert ap_row(truth, [found])["segm"]["small"] == pytest.approx(1.0)


# --- Masks to learn


def boxes_and_masks(root: Path, masks: int) -> dict:
    """Two objects, of which so many have a mask."""
    data = dataset(root)
    (first,) = data["annotations"]
    data["annotations"] = [{**first, "id": i, "image_id": 1} for i in (1, 2)]
    for annotation in data["annotations"][masks:]:
        del annotation["segmentation"]
    return data


def learned(cfg):
    """What an engine trains on."""
    records, _ = training_data(cfg)
    require_masks_to_learn(records, cfg)
    return records


def test_a_large_object_without_a_mask_is_not_pasted_and_may_be_there(tmp_path):
    data = boxes_and_masks(tmp_path, 1)
    registered(tmp_path, data)
    opts = ["DATASETS.TRAIN", "('it',)", "SEED", "1", "SMALLOBJ.PASTE_BOXES", "True"]
    cfg = load_cfg(CONFIGS / "aug.yaml", opts)
    with pytest.raises(SmallObjError, match="PASTE_BOXES pastes small objects of it"):
        learned(cfg)
    data["annotations"][1] |= {"bbox": [5, 5, 50, 50], "area": 2500}
    registered(tmp_path, data)
    learned(cfg)


@pytest.mark.parametrize("config", ["baseline", "beyond/bank", "beyond/bank_boxes"])
@pytest.mark.parametrize("masks", [0, 1, 2])
def test_masks_are_learned_from_annotations_that_have_one(tmp_path, config, masks):
    """Both engines leave out the others: with boxes alone nothing would be learned."""
    registered(tmp_path, boxes_and_masks(tmp_path, masks))
    opts = ["DATASETS.TRAIN", "('it',)", "DATASETS.TEST", "()", "SEED", "1"]
    opts += ["SMALLOBJ.SOURCES", "image"] if config != "baseline" else []
    cfg = load_cfg(CONFIGS / f"{config}.yaml", opts)
    if cfg.MODEL.MASK_ON and not masks:
        with pytest.raises(SmallObjError, match=r"MASK_ON False|COPY_PASTE False"):
            learned(cfg)
    else:
        assert len(learned(cfg)[0]["annotations"]) == 2
    with_masks = load_cfg(CONFIGS / f"{config}.yaml", [*opts, "MODEL.MASK_ON", "True"])
    if masks < 2 and cfg.SMALLOBJ.PASTE_BOXES:
        with pytest.raises(SmallObjError, match=r"MODEL\.MASK_ON"):
            learned(with_masks)


def test_a_config_for_boxes_trains_on_boxes():
    assert not load_cfg(CONFIGS / "beyond" / "bank_boxes.yaml").MODEL.MASK_ON
