"""AP on resampled images: that of pycocotools, on a data set that has these images."""

import copy

import numpy as np
import pytest

from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.evaluation.ap import coco_metrics, load_ground_truth
from smallobj_d2.evaluation.bootstrap import resampled_ap, resampled_images
from tests.detections import boxes_beside


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    json_file = make_dataset(tmp_path_factory.mktemp("d"), "x", 8, seed=4, size=128, progress=False)
    truth = load_ground_truth(json_file)
    return truth, boxes_beside(truth, 2)


@pytest.mark.parametrize(("size", "key"), [("small", "APs"), ("all", "AP")])
def test_it_is_pycocotools_ap_of_a_set_with_these_images(case, tmp_path, size, key):
    truth, results = case
    images = sorted(truth.imgs)
    counts = np.vstack([np.ones(len(images), int), resampled_images(len(images), 3, seed=1)])
    found = resampled_ap(truth, results, counts, iou_type="bbox", size=size)
    for row, ap in zip(counts, found, strict=True):
        data = {**truth.dataset, "images": [], "annotations": []}
        own = []
        for image, count in zip(images, row, strict=True):
            for _ in range(count):
                new = len(data["images"]) + 1
                data["images"].append({**truth.imgs[image], "id": new})
                for a in truth.imgToAnns[image]:
                    number = len(data["annotations"]) + 1
                    data["annotations"].append({**a, "id": number, "image_id": new})
                own += [{**r, "image_id": new} for r in results if r["image_id"] == image]
        resampled = copy.copy(truth)
        resampled.dataset = data
        resampled.createIndex()
        assert ap == pytest.approx(coco_metrics(resampled, own, "bbox")[key], abs=1e-9)


def test_resamples_have_as_many_images():
    counts = resampled_images(7, 5)
    assert (counts.sum(axis=1) == 7).all()
    assert (counts == resampled_images(7, 5)).all()
