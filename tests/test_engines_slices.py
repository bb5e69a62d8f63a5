"""Large images in slices, by SAHI."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from smallobj_d2.engines.predictions import TrainedRun
from smallobj_d2.errors import SmallObjError

pytest.importorskip("sahi", reason="SAHI is not installed")

from smallobj_d2.engines.slices import SahiModel, in_slices


def find_bright(images):
    """In place of a network: bright pieces, larger ones with a higher score."""
    found = []
    for image in images:
        seen.append(image.shape[:2])
        number, labels = cv2.connectedComponents((image[:, :, 0] > 128).astype(np.uint8))
        found.append([])
        for i in range(1, number):
            mask = (labels == i).astype(np.uint8)
            rle = coco_mask.encode(np.asfortranarray(mask))
            result = {"image_id": 0, "category_id": 1, "bbox": coco_mask.toBbox(rle).tolist()}
            rle["counts"] = rle["counts"].decode()
            score = 0.3 + mask.sum() / 20000
            found[-1].append({**result, "score": score, "segmentation": rle})
    return found


seen: list[tuple[int, int]] = []


@pytest.fixture
def run():
    cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"))
    seen.clear()
    return TrainedRun("run", "weights", cfg, {4: "dark", 9: "bright"}, find_bright)


@pytest.fixture
def scene():
    """A small disc, one across the edges of slices, and a bar longer than a slice."""
    image = np.zeros((300, 420, 3), np.uint8)
    cv2.circle(image, (30, 40), 6, (255,) * 3, -1)
    cv2.circle(image, (100, 80), 9, (255,) * 3, -1)
    image[200:220, 20:400] = 255
    return image


def test_pieces_become_the_objects_again_to_the_pixel(run, scene):
    (results,) = in_slices(run, 100, overlap=0.3, score=0.2)([scene])
    assert {r["category_id"] for r in results} == {9}
    (whole,) = find_bright([scene])
    found = sorted((r["bbox"], r["segmentation"]) for r in results)
    assert found == sorted((r["bbox"], r["segmentation"]) for r in whole)


def test_the_whole_image_is_looked_at_too(run, scene):
    in_slices(run, 100, overlap=0.0)([scene])
    assert seen.count((100, 100)) == 15
    assert seen[-1] == (300, 420)
    seen.clear()
    in_slices(run, 500)([scene])
    assert seen == [(300, 420)]


def test_slices_go_to_the_model_in_batches(run, scene):
    sizes = []

    def counting(images):
        sizes.append(len(images))
        return find_bright(images)

    several = TrainedRun(run.folder, run.weights, run.cfg, run.categories, counting)
    alone = in_slices(run, 100, overlap=0.3, score=0.2)([scene])
    assert in_slices(several, 100, overlap=0.3, score=0.2, batch=4)([scene]) == alone
    assert max(sizes) == 4


def test_low_scores_are_left_out_and_boxes_alone_will_do(run, scene):
    def boxes(images):
        return [[{k: v for k, v in r.items() if k != "segmentation"} for r in found]
                for found in find_bright(images)]  # fmt: skip

    run = TrainedRun(run.folder, run.weights, run.cfg, run.categories, boxes)
    (results,) = in_slices(run, 100, overlap=0.3, score=0.35)([scene])
    assert all("segmentation" not in r and r["score"] >= 0.35 for r in results)
    assert [20, 200, 380, 20] in [r["bbox"] for r in results]


def test_it_is_a_model_of_sahi(run, scene):
    from sahi.predict import get_prediction, get_sliced_prediction

    model = SahiModel(run, score=0.2)
    sliced = get_sliced_prediction(scene, model, slice_height=100, slice_width=100, verbose=0)
    assert len(sliced.object_prediction_list) == 3
    plain = get_prediction(scene, model)
    assert {p.category.name for p in plain.object_prediction_list} == {"bright"}


def test_categories_may_have_strings_for_ids(run, scene):
    names = {"d": "dark", "b": "bright"}
    named = TrainedRun(run.folder, run.weights, run.cfg, names, find_bright)
    (numbered,) = in_slices(run, 100, overlap=0.3, score=0.2)([scene])
    (results,) = in_slices(named, 100, overlap=0.3, score=0.2)([scene])
    assert results == [{**r, "category_id": "b"} for r in numbered]
    model = SahiModel(named, score=0.2)
    model.perform_inference(scene)
    model.convert_original_predictions()
    found = {(p.category.id, p.category.name) for p in model.object_prediction_list}
    assert found == {(2, "bright")}


@pytest.mark.parametrize(("size", "overlap"), [(0, 0.2), (100, 1.0), (100, -0.1)])
def test_slices_that_cannot_be_are_refused(run, size, overlap):
    with pytest.raises(SmallObjError, match="--slices"):
        in_slices(run, size, overlap=overlap)
