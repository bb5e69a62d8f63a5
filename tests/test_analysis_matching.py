"""The fast matching is equal to brute force and to Detectron2: IoU and counts, ties included."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smallobj_d2.analysis import matching
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.matching import brute_force, match, matched_anchors
from smallobj_d2.analysis.objects import Objects, objects_of
from smallobj_d2.analysis.protocols import LAYOUTS, PAPER, Level, Protocol, training_protocol
from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.errors import SmallObjError

CONFIGS = Path(__file__).parents[1] / "configs"
REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
COCO = [f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")]
NUCLEI = [f"dsb2018/annotations/{split}.json" for split in ("train", "val")]

needs_detectron2 = pytest.mark.skipif(not has_detectron2(), reason="detectron2 is not installed")


def training() -> Protocol:
    return training_protocol(load_cfg(CONFIGS / "base.yaml"))


def levels(strides, sizes, ratios=(0.5, 1.0, 2.0)):
    pairs = zip(strides, sizes, strict=True)
    return tuple(Level(stride, tuple(map(float, s)), ratios) for stride, s in pairs)


SIZES = (32, 64, 128, 256, 512)
FPN = levels((4, 8, 16, 32, 64), [(s,) for s in SIZES])
GAPS = levels((64, 128), [(8,), (16, 20)], (0.25, 3.0))
PROTOCOLS = {
    "paper": PAPER,
    "paper, 0.3": replace(PAPER, threshold=0.3),
    "paper, middle of cells": replace(PAPER, offset=0.5),
    "paper, resized": replace(PAPER, short_edge=200),
    "fpn": Protocol("fpn", FPN, short_edge=200, max_size=333, divisibility=32, as_detectron2=True),
    "c4": Protocol("c4", levels([16], [SIZES]), short_edge=300, as_detectron2=True),
    "offset": Protocol("offset", levels([16], [SIZES]), offset=0.3, as_detectron2=True),
    "odd stride": Protocol("odd", levels([7], [(10, 20)]), threshold=0.6, as_detectron2=True),
    # Anchors that leave gaps between them: objects that touch none, as Detectron2 treats them.
    "gaps": Protocol("gaps", GAPS, as_detectron2=True),
    "gaps, paper": Protocol("gaps", GAPS, threshold=0.4),
}
KINDS = ("any", "tiny", "on the grid", "small image")


def random_records(rng: np.random.Generator, number: int, kind: str) -> list[dict[str, Any]]:
    """Images with boxes of every kind: empty, outside, repeated, larger than the image."""
    records = []
    for _ in range(number):
        height, width = rng.integers(1, 60 if kind == "small image" else 700, 2).tolist()
        boxes = []
        for _ in range(rng.integers(0, 14)):
            if boxes and rng.random() < 0.1:
                boxes.append(boxes[rng.integers(len(boxes))])
                continue
            w, h = np.exp(rng.uniform(np.log(1e-6 if kind == "tiny" else 2), np.log(1100), 2))
            x, y = rng.uniform(-60, width + 20), rng.uniform(-60, height + 20)
            if kind == "on the grid":  # so that many anchors tie, and IoU is a round number
                w, h = np.exp2(np.round(np.log2((w, h))))
                x, y = np.round(np.array((x, y)) / 4) * 4
            if rng.random() < 0.06:
                w, h = rng.permutation([0.0, h])
            boxes.append([float(v) for v in (x, y, w, h)])
        annotations = [
            {"bbox": b, "bbox_mode": 1, "area": b[2] * b[3], "iscrowd": 0, "category_id": 0}
            for b in boxes
        ]
        records.append({"height": height, "width": width, "annotations": annotations})
    return records


def assert_equal(found, wanted):
    np.testing.assert_array_equal(found.max_iou, wanted.max_iou)
    np.testing.assert_array_equal(found.matched, wanted.matched)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_brute_force_on_random_boxes(protocol, kind, dtype):
    rng = np.random.default_rng(KINDS.index(kind))
    objects = objects_of(random_records(rng, 15, kind))
    fast = match(objects, protocol, dtype=dtype)
    assert fast.max_iou.dtype == dtype
    assert_equal(fast, brute_force(objects, protocol, dtype=dtype))


def test_a_crowded_image_is_matched_without_comparing_all_pairs(monkeypatch):
    """The index gives what comparing gives; and the cost grows with objects, not their square."""
    rng = np.random.default_rng(3)
    annotations = [
        {"bbox": [*rng.integers(0, 600, 2), *rng.integers(2, 90, 2)], "bbox_mode": 1, "area": 9.0}
        for _ in range(300)
    ]
    record = {"height": 600, "width": 640, "annotations": [*annotations, *annotations[:50]]}
    objects = objects_of([record, {**record, "annotations": annotations[:20]}])
    compared = []
    iou = matching.box_iou
    monkeypatch.setattr(matching, "box_iou", lambda a, b: compared.append(a.size) or iou(a, b))
    for protocol in (PAPER, training()):
        compared.clear()
        all_pairs = match(objects, protocol)
        before = sum(compared)
        compared.clear()
        with monkeypatch.context() as patch:
            patch.setattr(matching, "_CROWDED", 100)
            assert_equal(match(objects, protocol), all_pairs)
        assert protocol is PAPER or sum(compared) < before / 2


@needs_detectron2
@pytest.mark.parametrize(
    "protocol",
    [p for p in PROTOCOLS.values() if p.as_detectron2],
    ids=[name for name, p in PROTOCOLS.items() if p.as_detectron2],
)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_detectron2_on_random_boxes(protocol, kind):
    rng = np.random.default_rng(10 + KINDS.index(kind))
    records = random_records(rng, 7, kind)
    assert_equal(match(objects_of(records), protocol), detectron2_matches(records, protocol))


def needs(*files):
    missing = [f for f in files if not (REAL / f).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"no {missing} under DETECTRON2_DATASETS")


@needs(*COCO)
@pytest.mark.parametrize("file", COCO)
def test_equal_to_brute_force_on_all_coco_images_here(file):
    objects = CocoFile(REAL / file, REAL).objects
    for protocol in (PAPER, training()):
        assert_equal(match(objects, protocol), brute_force(objects, protocol))


@needs(*NUCLEI)
@pytest.mark.parametrize("file", NUCLEI)
def test_equal_to_brute_force_on_nuclei(file):
    objects = CocoFile(REAL / file, REAL).objects
    assert_equal(match(objects, PAPER), brute_force(objects, PAPER))
    # At training resolution brute force takes minutes for all (docs/review/table2.md has that run).
    few = objects.images(np.arange(0, objects.num_images, 60))
    assert_equal(match(few, training()), brute_force(few, training()))


@needs_detectron2
@needs(COCO[1])
def test_equal_to_detectron2_on_coco():
    records = list(CocoFile(REAL / COCO[1], REAL))[:6]
    for record in records:
        record["annotations"] = [a for a in record["annotations"] if not a["iscrowd"]]
    found = match(objects_of(records), training())
    assert_equal(found, detectron2_matches(records, training()))


def detectron2_matches(records, protocol):
    """What Detectron2's own mapper, anchor generator and matcher make of these records."""
    import torch
    from detectron2.data.detection_utils import (
        annotations_to_instances,
        filter_empty_instances,
        transform_instance_annotations,
    )
    from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform, TransformList
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou

    from smallobj_d2.analysis.matching import Matches

    generator = DefaultAnchorGenerator(
        sizes=[level.sizes for level in protocol.levels],
        aspect_ratios=[level.ratios for level in protocol.levels],
        strides=[level.stride for level in protocol.levels],
        offset=protocol.offset,
    )
    matcher = Matcher([0.3, protocol.threshold], [0, -1, 1], allow_low_quality_matches=True)
    best, matched = [], []
    for record in records:
        height, width = record["height"], record["width"]
        size = (height, width)
        if protocol.short_edge:
            limit = protocol.max_size or 10**9
            size = ResizeShortestEdge.get_output_shape(height, width, protocol.short_edge, limit)
        transforms = TransformList([ResizeTransform(height, width, *size)])
        annotations = [
            transform_instance_annotations(
                {k: v for k, v in a.items() if k != "segmentation"}, transforms, size
            )
            for a in record["annotations"]
        ]
        instances, kept = filter_empty_instances(
            annotations_to_instances(annotations, size), return_mask=True
        )
        padded = [-(-s // protocol.divisibility) * protocol.divisibility for s in size]
        maps = [
            torch.zeros(1, 1, *(-(-p // level.stride) for p in padded)) for level in protocol.levels
        ]
        anchors = Boxes.cat(generator(maps))
        best.append(np.zeros(len(annotations), np.float32))
        matched.append(np.zeros(len(annotations), np.int64))
        if len(instances):
            quality = pairwise_iou(instances.gt_boxes, anchors)
            owner, label = matcher(quality)
            which = np.flatnonzero(kept.numpy())
            best[-1][which] = quality.max(dim=1)[0].numpy()
            matched[-1] += np.bincount(which[owner[label == 1].numpy()], minlength=len(annotations))
    return Matches(np.concatenate(best), np.concatenate(matched))


def one_image(*boxes, height=256, width=256) -> Objects:
    annotations = [{"bbox": list(b), "area": b[2] * b[3], "iscrowd": 0} for b in boxes]
    return objects_of([{"height": height, "width": width, "annotations": annotations}])


def test_an_object_that_is_an_anchor():
    # Around the grid point (96, 64), of size 32.
    found = match(one_image((80.0, 48.0, 32.0, 32.0)), PAPER)
    assert found.max_iou.tolist() == [1.0]
    assert found.matched.tolist() == [1]


def test_a_small_object_gets_its_best_anchor_however_bad():
    found = match(one_image((90.0, 60.0, 4.0, 4.0)), PAPER)
    assert found.max_iou[0] == pytest.approx(16 / 1024, rel=1e-5)
    assert found.matched.tolist() == [1]


def test_paper_counts_one_of_tied_anchors_and_detectron2_all():
    # Halfway between two grid points both square anchors cover the same half of it.
    objects = one_image((80.0, 48.0, 64.0, 32.0))
    square = replace(PAPER, levels=(Level(32, (32.0,), (1.0,)),))
    assert match(objects, square).matched.tolist() == [1]
    assert match(objects, replace(square, as_detectron2=True)).matched.tolist() == [2]


def test_an_anchor_belongs_to_the_object_it_prefers():
    # Both boxes have their best anchor in common; it prefers the second, which is equal to it.
    objects = one_image((81.0, 48.0, 31.0, 32.0), (80.0, 48.0, 32.0, 32.0))
    square = replace(PAPER, levels=(Level(32, (32.0,), (1.0,)),))
    assert match(objects, square).matched.tolist() == [1, 1]  # each object has a best anchor
    assert match(objects, replace(square, as_detectron2=True)).matched.tolist() == [0, 1]


def test_of_equal_objects_the_first_is_preferred():
    box = (80.0, 48.0, 32.0, 32.0)
    found = match(one_image(box, box), replace(training(), short_edge=0))
    assert found.matched[0] > 0
    assert found.matched[1] == 0


@pytest.mark.parametrize("protocol", [PAPER, training()], ids=["paper", "training"])
def test_degenerate_objects_match_nothing(protocol):
    objects = one_image((10.0, 10.0, 0.0, 20.0), (900.0, 900.0, 20.0, 20.0), (1e9, 0.0, 5.0, 5.0))
    found = match(objects, protocol)
    assert found.max_iou.tolist() == [0, 0, 0]
    assert found.matched.tolist() == [0, 0, 0]


def test_no_object_and_no_image():
    for objects in (one_image(), objects_of([])):
        found = match(objects, PAPER)
        assert len(found.max_iou) == len(found.matched) == 0
        assert len(matched_anchors(objects, PAPER).objects) == 0


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_matched_anchors_are_those_that_are_counted(protocol):
    objects = objects_of(random_records(np.random.default_rng(5), 8, "any"))
    pairs = matched_anchors(objects, protocol)
    counts = np.bincount(pairs.objects, minlength=len(objects))
    np.testing.assert_array_equal(counts, match(objects, protocol).matched)
    rows = np.column_stack([pairs.objects, pairs.anchors])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_chunks_do_not_change_anything(monkeypatch):
    from smallobj_d2.analysis import matching

    objects = objects_of(random_records(np.random.default_rng(6), 30, "on the grid"))
    whole = [match(objects, p) for p in PROTOCOLS.values()]
    monkeypatch.setattr(matching, "_CHUNK", 20)
    monkeypatch.setattr(matching, "_PAIRS", 50)
    for protocol, wanted in zip(PROTOCOLS.values(), whole, strict=True):
        assert_equal(match(objects, protocol), wanted)


def test_training_protocol_is_read_from_the_config():
    found = training()
    assert [level.stride for level in found.levels] == [4, 8, 16, 32, 64]
    assert [level.sizes for level in found.levels] == [(32,), (64,), (128,), (256,), (512,)]
    assert (found.threshold, found.short_edge, found.max_size) == (0.7, 800, 1333)
    assert found.divisibility == 32
    opts = ["MODEL.RPN.IOU_THRESHOLDS", "[0.2, 0.6]", "INPUT.MIN_SIZE_TRAIN", "(640, 800, 672)"]
    changed = training_protocol(load_cfg(CONFIGS / "base.yaml", opts))
    assert (changed.threshold, changed.short_edge) == (0.6, 672)
    opts = ["INPUT.MIN_SIZE_TRAIN", "(600, 800)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"]
    assert training_protocol(load_cfg(CONFIGS / "base.yaml", opts)).short_edge == 700


@needs_detectron2
def test_strides_and_padding_are_those_of_the_real_backbone():
    from detectron2.modeling import build_backbone

    for opts in ([], ["MODEL.BACKBONE.NAME", "build_resnet_backbone"]):
        c4 = ["MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']"]
        c4 += ["MODEL.FPN.IN_FEATURES", "[]", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64]]"]
        cfg = load_cfg(CONFIGS / "base.yaml", [*opts, *c4] if opts else [])
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        found = training_protocol(cfg)
        wanted = [shapes[name].stride for name in cfg.MODEL.RPN.IN_FEATURES]
        assert [level.stride for level in found.levels] == wanted
        assert found.divisibility == max(backbone.size_divisibility, 1)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.RPN.IN_FEATURES", "['stem']"], "knows the strides of p2 to p7"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"], "SIZES has 2 lists, .* has 5 levels"),
    ],
)
def test_configs_whose_anchors_are_not_known_are_refused(opts, message):
    with pytest.raises(SmallObjError, match=message):
        training_protocol(load_cfg(CONFIGS / "base.yaml", opts))


def test_all_layouts_are_equal_to_brute_force():
    objects = objects_of(random_records(np.random.default_rng(7), 2, "any"))
    for protocol in LAYOUTS.values():
        assert_equal(match(objects, protocol), brute_force(objects, protocol))


def test_brute_force_by_hand():
    """The reference itself, against a plain loop over anchors and objects."""
    protocol = replace(PAPER, levels=levels([24], [(16, 40)]), threshold=0.3)
    records = random_records(np.random.default_rng(8), 10, "any")
    found = brute_force(objects_of(records), protocol, dtype=np.float64)
    best, matched = [], []
    for record in records:
        boxes = [tuple(np.float32(v) for v in a["bbox"]) for a in record["annotations"]]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in boxes]
        rows = []
        for y in range(0, record["height"], 24):
            for x in range(0, record["width"], 24):
                for size in (16.0, 40.0):
                    for ratio in (0.5, 1.0, 2.0):
                        w, h = size / ratio**0.5 / 2, size * ratio**0.5 / 2
                        rows.append([iou(b, (x - w, y - h, x + w, y + h)) for b in boxes])
        table = np.array(rows).reshape(len(rows), len(boxes))
        for j in range(len(boxes)):
            best.append(table[:, j].max())
            own = {int(table[:, j].argmax())} if best[-1] > 0 else set()
            over = {i for i in range(len(rows)) if table[i, j] > 0.3 and table[i].argmax() == j}
            matched.append(len(own | over))
    np.testing.assert_allclose(found.max_iou, best, rtol=1e-9)
    np.testing.assert_array_equal(found.matched, matched)


def iou(a, b) -> float:
    a, b = [float(v) for v in a], [float(v) for v in b]
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)
