"""Resizing: as Detectron2 does, or faster and as good."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallobj_d2.datasets.images import resize
from smallobj_d2.datasets.synthetic import make_scene

COCO = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco" / "train2017"


def difference(image, size):
    slow, fast = resize(image, size), resize(image, size, fast=True)
    assert slow.shape == fast.shape == (*size, 3)
    return int(abs(slow.astype(int) - fast).max())


def test_the_fast_resize_is_within_two_of_255():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (97, 131, 3), dtype=np.uint8)
    scene = make_scene(rng, (192, 256)).image
    for image in (noise, scene):
        for factor in (1.01, 1.25, 1.6667, 2, 3.7):
            size = round(image.shape[0] * factor), round(image.shape[1] * factor)
            assert 0 < difference(image, size) <= 2


@pytest.mark.skipif(not COCO.is_dir(), reason="there is no coco/ under DETECTRON2_DATASETS")
def test_the_fast_resize_is_within_two_of_255_on_real_images():
    for path in sorted(COCO.glob("*.jpg"))[:20]:
        image = np.asarray(Image.open(path).convert("RGB"))
        scale = 800 / min(image.shape[:2])
        assert scale > 1
        assert difference(image, tuple(round(s * scale) for s in image.shape[:2])) <= 2


def test_the_fast_resize_makes_nothing_smaller():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for size in ((30, 40), (90, 40), (60, 80)):
        assert difference(image, size) == 0
