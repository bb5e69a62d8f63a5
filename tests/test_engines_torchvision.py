import json
import logging
import pickle
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from smallobj_d2 import config
from smallobj_d2.config import flatten, get_cfg, has_detectron2, load_cfg
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.engines import folder, run, seed_and_device
from smallobj_d2.engines import torchvision as engine
from smallobj_d2.engines.folder import close_logging, last_checkpoint, record_run
from smallobj_d2.engines.launch import launch
from smallobj_d2.engines.seed_and_device import settle_device, settle_seed
from smallobj_d2.engines.torchvision.inference import paste_masks
from smallobj_d2.engines.torchvision.mapper import (
    SmallObjectMapper,
    output_size,
    targets,
    windows_of,
)
from smallobj_d2.engines.torchvision.model import build_model, mask_targets
from smallobj_d2.engines.torchvision.support import check_supported
from smallobj_d2.engines.torchvision.trainer import (
    Trainer,
    build_optimizer,
    build_schedule,
)
from smallobj_d2.engines.torchvision.weights import convert_names, load_weights, read_weights
from smallobj_d2.engines.weights import check_weights
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.sampling import Draw

ROOT = Path(__file__).parents[1]
needs_detectron2 = pytest.mark.skipif(not has_detectron2(), reason="Detectron2 is not installed")


@pytest.fixture(autouse=True)
def _closed_logs():
    yield
    close_logging()


# --- A tiny dataset and a tiny model


def make_dataset(root, number=8, seed=0):
    """Noisy images with bright squares and dark discs, polygons and RLE; COCO category ids 3, 5."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(number):
        height, width = (64, 80) if i % 3 else (80, 64)
        image = rng.integers(80, 140, (height, width, 3), dtype=np.uint8)
        for _ in range(3):
            side = int(rng.integers(9, 28))
            x, y = (int(rng.integers(2, n - side - 2)) for n in (width, height))
            kind = int(rng.integers(2))
            bitmap = np.zeros((height, width), dtype=np.uint8)
            if kind:
                cv2.circle(bitmap, (x + side // 2, y + side // 2), side // 2, 1, -1)
                rle = coco_mask.encode(np.asfortranarray(bitmap))
                segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            else:
                bitmap[y : y + side, x : x + side] = 1
                right, bottom = x + side, y + side
                segmentation = [[x + 0.0, y, right, y, right, bottom, x, bottom]]
            image[bitmap > 0] = (30, 40, 200) if kind else (230, 220, 60)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 5 if kind else 3,
                    "bbox": [float(v) for v in (x, y, side + kind, side + kind)],
                    "area": int(bitmap.sum()),
                    "iscrowd": 0,
                    "segmentation": segmentation,
                }
            )
        name = f"{i + 1}.png"
        Image.fromarray(image).save(root / "images" / name)
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
    names = [{"id": 3, "name": "square"}, {"id": 5, "name": "disc"}]
    (root / "truth.json").write_text(
        json.dumps({"images": images, "categories": names, "annotations": annotations})
    )
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def cfg(data, tmp_path):
    return tiny_cfg(data, tmp_path / "out")


def tiny_cfg(data, output, *opts):
    return load_cfg(
        ROOT / "configs" / "demo.yaml",
        [
            *("SMALLOBJ.DATASETS", str([["tiny", str(data / "truth.json"), str(data / "images")]])),
            *("DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", "2", "DATALOADER.NUM_WORKERS", "0"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
            *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(4,)"),
            *("MODEL.RESNETS.WIDTH_PER_GROUP", "16", "MODEL.FPN.OUT_CHANNELS", "32"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
            *("SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.WARMUP_ITERS", "2", "SEED", "5"),
            *("OUTPUT_DIR", str(output)),
            *opts,
        ],
    )


def changed(cfg, *opts):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(opts))
    return cfg


def record_of(data, index=1, position=0):
    record = load_coco(data / "truth.json", data / "images").records[index]
    return {**record, "draw": Draw(position, index, 0)}


def full_masks(target, height, width):
    """The masks of a target as (N, H, W) uint8 bitmaps."""
    out = torch.zeros(len(target["windows"]), height, width, dtype=torch.uint8)
    for bitmap, ((x0, y0, x1, y1), mask) in zip(out, windows_of(target), strict=True):
        bitmap[y0:y1, x0:x1] = mask
    return out


def pasted_masks(masks, boxes, height, width):
    """Masks as (N, H, W) bitmaps."""
    bitmaps = np.zeros((len(masks), height, width), dtype=np.uint8)
    pasted = paste_masks(masks, boxes, height, width)
    for bitmap, (window, left, top) in zip(bitmaps, pasted, strict=True):
        bitmap[top : top + len(window), left : left + window.shape[1]] = window
    return torch.from_numpy(bitmaps)


# --- Mapper


def stock_sample(cfg, record):
    """What Detectron2's own mapper makes of a record, with numpy's generator at that draw's."""
    from detectron2.data import DatasetMapper

    from smallobj_d2.augmentation import draw_state

    stock = DatasetMapper(cfg, True)
    before = np.random.get_state()
    np.random.set_state(draw_state(cfg.SEED, record["draw"].position).get_state())
    try:
        return stock({k: v for k, v in record.items() if k != "draw"})
    finally:
        np.random.set_state(before)


@needs_detectron2
@pytest.mark.parametrize(
    "opts",
    [
        ("INPUT.MIN_SIZE_TRAIN", (50, 64, 90)),
        ("INPUT.MIN_SIZE_TRAIN", (40, 100), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
        ("INPUT.FORMAT", "RGB", "INPUT.MAX_SIZE_TRAIN", 60),
        ("INPUT.RANDOM_FLIP", "vertical"),
        ("INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", (0,)),
    ],
)
def test_samples_are_detectron2s_bit_for_bit(cfg, data, opts):
    cfg = changed(cfg, "SMALLOBJ.COPY_PASTE", False, "INPUT.MASK_FORMAT", "bitmask", *opts)
    mapper = SmallObjectMapper.from_config(cfg)
    for index in range(8):
        record = record_of(data, index, position=100 + index)
        ours, theirs = mapper(record), stock_sample(cfg, record)
        instances = theirs["instances"]
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["target"]["boxes"], instances.gt_boxes.tensor)
        assert torch.equal(ours["target"]["labels"] - 1, instances.gt_classes)
        masks = full_masks(ours["target"], *ours["image"].shape[1:])
        # Rasterising near the origin may round the tie of a border pixel the other way.
        assert (masks != instances.gt_masks.tensor).sum() <= 2


@needs_detectron2
def test_exif_orientation_is_detectron2s(cfg, tmp_path):
    from detectron2.data import detection_utils

    from smallobj_d2.engines.torchvision.mapper import read_image

    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(pixels).save(path, exif=exif)
        theirs = detection_utils.read_image(str(path), format="BGR")
        height, width = theirs.shape[:2]
        record = {"file_name": str(path), "image_id": 1, "height": height, "width": width}
        assert np.array_equal(read_image(record, "BGR"), theirs)


def test_a_sample_follows_from_seed_and_position(cfg, data):
    mapper = SmallObjectMapper.from_config(changed(cfg, "INPUT.MIN_SIZE_TRAIN", (50, 64, 90)))
    record = record_of(data, position=3)
    before = json.dumps(record, default=str)
    np.random.seed(1)
    first = mapper(record)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    second = mapper(record)
    assert np.array_equal(np.random.get_state()[1], state)
    assert json.dumps(record, default=str) == before
    assert torch.equal(first["image"], second["image"])
    for key in first["target"]:
        assert torch.equal(first["target"][key], second["target"][key])
    shapes = {mapper(record_of(data, position=p))["image"].shape for p in range(20)}
    assert len(shapes) == 3


def test_copies_are_marked(cfg, data):
    mapper = SmallObjectMapper.from_config(cfg)
    pasted = [mapper(record_of(data, i, position=i))["target"]["pasted"] for i in range(8)]
    assert any(p.any() for p in pasted)
    assert all(p[:1].sum() == 0 for p in pasted)  # the image's own come first


def test_sizes():
    assert output_size(480, 640, 800, 1333) == (800, 1067)
    assert output_size(640, 480, 800, 1333) == (1067, 800)
    assert output_size(427, 640, 800, 1000) == (667, 1000)
    assert output_size(427, 640, 0, 1000) == (427, 640)


def test_test_images_are_only_resized(cfg, data):
    sample = SmallObjectMapper.from_config(cfg, is_train=False)(record_of(data, index=0))
    assert sample["image"].shape == (3, 80, 64)
    assert "target" not in sample
    assert "annotations" not in sample


def test_crowds_and_empty_instances_are_left_out():
    square = [10.0, 10, 20, 10, 20, 20, 10, 20]
    outside = [110.0, 10, 120, 10, 120, 20, 110, 20]
    instances = [
        {"bbox": [10, 10, 10, 10], "category_id": 1, "segmentation": [square], "iscrowd": 1},
        {"bbox": [10, 10, 10, 10], "category_id": 2, "segmentation": [square], "iscrowd": 0},
        {"bbox": [110, 10, 10, 10], "category_id": 3, "segmentation": [outside], "iscrowd": 0},
        {"bbox": [10, 10, 10, 10], "category_id": 4, "segmentation": [outside], "iscrowd": 0},
        {"bbox": [10, 10, 10, 10], "category_id": 5, "iscrowd": 0},
    ]
    target = targets(instances, (100, 100), (50, 50))
    assert target["labels"].tolist() == [3]
    assert target["boxes"].tolist() == [[5, 5, 10, 10]]
    assert targets(instances, (100, 100), (50, 50), with_masks=False)["labels"].tolist() == [
        3,
        5,
        6,
    ]
    nothing = targets([], (100, 100), (50, 50))
    assert nothing["boxes"].shape == (0, 4)
    assert nothing["windows"].shape == (0, 4)


@pytest.mark.parametrize("flip", [None, 0, 1])
def test_uncompressed_and_compressed_rle_agree(flip):
    bitmap = np.zeros((40, 60), dtype=np.uint8)
    bitmap[5:15, 7:30] = 1
    compressed = coco_mask.encode(np.asfortranarray(bitmap))
    flat = bitmap.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    common = {"bbox": [7, 5, 23, 10], "category_id": 0}
    made = [
        targets([{**common, "segmentation": s}], (40, 60), (80, 120), flip)
        for s in (compressed, {"size": [40, 60], "counts": counts})
    ]
    expected = np.kron(bitmap, np.ones((2, 2), np.uint8))
    expected = expected if flip is None else np.flip(expected, flip)
    for target in made:
        assert np.array_equal(full_masks(target, 80, 120)[0].numpy(), expected)


def test_unreadable_images_are_named(cfg, data, tmp_path):
    mapper = SmallObjectMapper.from_config(cfg)
    record = record_of(data)
    with pytest.raises(UnreadableImage, match=r"gone\.png \(image 2\) .*not there"):
        mapper({**record, "file_name": str(tmp_path / "gone.png")})
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"bad\.png \(image 2\)"):
        mapper({**record, "file_name": str(tmp_path / "bad.png")})
    with pytest.raises(UnreadableImage, match="80 x 64 pixels, but its annotations say 81 x 64"):
        mapper({**record, "width": 81})


def test_a_wrong_mapper_is_named(cfg):
    with pytest.raises(SmallObjError, match=r"SMALLOBJ.MAPPER"):
        engine.build_train_loader(changed(cfg, "SMALLOBJ.MAPPER", "Unknown"))


def test_view(cfg, data):
    loader = engine.build_train_loader(changed(cfg, "INPUT.FORMAT", "BGR"))
    sample = next(iter(loader))[0]
    shown = engine.view(sample, cfg)
    assert shown.image.dtype == np.uint8
    assert len(shown.outlines) == len(shown.styles) == len(sample["target"]["labels"])
    assert np.array_equal(shown.image[:, :, 0], sample["image"][2].numpy())
    low = np.concatenate(shown.outlines[0]).min(axis=0)
    assert np.abs(low - sample["target"]["boxes"][0, :2].numpy()).max() < 2


# --- Masks in and out of boxes


@pytest.mark.parametrize("flip_axis", [None, 0, 1])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_run_length_mask_is_resized_and_flipped_as_its_whole_bitmap(flip_axis, compressed):
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(150):
        height, width, *after = rng.integers(1, 60, 4).tolist()
        bitmap = np.zeros((height, width), np.uint8)
        for _ in range(rng.integers(3)):
            y, x = rng.integers(height), rng.integers(width)
            part = bitmap[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)]
            part[:] = rng.random(part.shape) < 0.7
        rle = coco_mask.encode(np.asfortranarray(bitmap))
        if not compressed:
            edges = np.flatnonzero(np.diff(bitmap.ravel("F"), prepend=0))
            counts = np.diff(edges, prepend=0, append=bitmap.size).tolist()
            rle = {"size": [height, width], "counts": counts}
        annotation = {"bbox": [0, 0, width, height], "segmentation": rle, "category_id": 0}
        target = targets([annotation], (height, width), tuple(after), flip_axis)
        nearest = Image.fromarray(bitmap).resize(after[::-1], Image.Resampling.NEAREST)
        expected = np.asarray(nearest)
        expected = expected if flip_axis is None else np.flip(expected, flip_axis)
        assert len(target["windows"]) == expected.any()
        if expected.any():
            assert (full_masks(target, *after)[0].numpy() == expected).all()
            seen += 1
    assert 60 < seen < 150


def proposals_and_full_masks(number=8, seed=0):
    """Of some images: targets, boxes around objects, whose they are, and those objects' bitmaps.

    Objects are of 1 pixel to the whole image, many at its borders.
    """
    rng = np.random.default_rng(seed)
    everything = []
    for _ in range(number):
        height, width = rng.integers(30, 90, 2)
        annotations = []
        for _ in range(12):
            w, h = (max(1, int(n * rng.random() ** 2)) for n in (width, height))
            x, y = (int(rng.integers(-s // 2, n)) for n, s in ((width, w), (height, h)))
            bitmap = np.zeros((height, width), dtype=np.uint8)
            bitmap[max(y, 0) : y + h, max(x, 0) : x + w] = rng.random() < 0.7
            bitmap &= rng.random((height, width)) < 0.9
            rle = coco_mask.encode(np.asfortranarray(bitmap))
            box = {"bbox": coco_mask.toBbox(rle).tolist(), "category_id": 0}
            annotations.append({**box, "segmentation": rle})
        target = targets(annotations, (height, width), (height, width))
        matched = torch.from_numpy(rng.integers(len(target["boxes"]), size=30))
        boxes = target["boxes"][matched] + torch.from_numpy(6 * rng.normal(size=(30, 4))).float()
        limit = torch.tensor([width, height])
        low = boxes[:, :2].minimum(limit - 2).clamp(min=0)
        high = torch.maximum(boxes[:, 2:], low + 1).minimum(limit)
        bitmaps = full_masks(target, height, width)[matched]
        everything.append((target, torch.cat([low, high], 1), matched, bitmaps))
    return map(list, zip(*everything, strict=True))


def test_mask_targets_are_those_of_full_bitmaps_to_the_last_bit():
    every, boxes, matched, bitmaps = proposals_and_full_masks()
    assert sum(int(m[:, -1].any(1).sum()) for m in bitmaps) > 10  # reach the lower border
    ours = mask_targets(every, boxes, matched, 28)
    full = torch.cat(
        [
            roi_align(m[None, None].float(), [box[None]], 28, aligned=True)[:, 0]
            for each, of_image in zip(boxes, bitmaps, strict=True)
            for box, m in zip(each, of_image, strict=True)
        ]
    )
    assert torch.equal(ours, (full >= 0.5).float())
    assert 0.1 < ours.mean() < 0.9
    backwards = mask_targets(every[::-1], boxes[::-1], matched[::-1], 28)
    assert torch.equal(backwards.view(8, 30, 28, 28).flip(0).flatten(0, 1), ours)


def test_an_image_may_have_no_mask_targets():
    every, boxes, matched, _ = proposals_and_full_masks()
    nothing = [b[:0] for b in boxes], [m[:0] for m in matched]
    assert mask_targets(every, *nothing, 28).shape == (0, 28, 28)
    empty = {k: v[:0] for k, v in every[0].items()}
    alone = mask_targets(every[:1], boxes[:1], matched[:1], 28)
    between = [empty, every[0], empty], [boxes[0][:0], boxes[0], boxes[0][:0]]
    none = matched[0][:0]
    assert torch.equal(mask_targets(*between, [none, matched[0], none], 28), alone)


@needs_detectron2
def test_mask_targets_are_those_of_detectron2():
    from detectron2.structures import BitMasks

    every, boxes, matched, bitmaps = proposals_and_full_masks()
    ours = mask_targets(every, boxes, matched, 28).bool().view(8, 30, 28, 28)
    for mine, each, of_image in zip(ours, boxes, bitmaps, strict=True):
        theirs = BitMasks(of_image.bool()).crop_and_resize(each, 28)
        assert (mine != theirs).float().mean() < 1e-4


@needs_detectron2
def test_masks_are_pasted_as_detectron2_does():
    from detectron2.layers import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * 60 - 5
    boxes = torch.cat([corners, corners + 0.5 + 40 * torch.rand(40, 2, generator=generator)], 1)
    boxes = boxes.clamp(min=0, max=64)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)]
    masks = torch.rand(len(boxes), 14, 14, generator=generator)
    theirs = paste_masks_in_image(masks, boxes, (64, 70))
    ours = pasted_masks(masks, boxes, 64, 70)
    assert (ours.bool() != theirs).float().mean() < 1e-4


def test_a_mask_is_pasted_alike_alone_and_among_others():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 0.3 + 50 * torch.rand(50, 2, generator=generator)], 1)
    boxes = boxes.clamp(max=64)
    masks = torch.rand(50, 28, 28, generator=generator)
    together = paste_masks(masks, boxes, 64, 70)
    for (window, left, top), box, mask in zip(together, boxes, masks, strict=True):
        x0, y0, x1, y1 = box.tolist()
        assert left <= x0
        assert top <= y0
        assert left + window.shape[1] >= x1
        assert top + len(window) >= y1
        ((alone, *corner),) = paste_masks(mask[None], box[None], 64, 70)
        assert corner == [left, top]
        assert np.array_equal(window, alone)
    assert not paste_masks(masks[:0], boxes[:0], 64, 70)


# --- Model


def detectron2_model(cfg, image):
    """Detectron2's model of a config, with random weights of a size that makes it detect things."""
    from detectron2.modeling import build_model as build

    torch.manual_seed(0)
    model = build(cfg).eval()
    for name, buffer in model.named_buffers():
        if "norm" in name and buffer.dtype == torch.float32:
            buffer.mul_(1 + 0.2 * torch.rand_like(buffer))
        if name.endswith("conv3.norm.weight"):
            buffer.mul_(0.2)  # or frozen norms, which normalise nothing, would let it explode
    rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
    for layer, deviation in (
        (rpn.objectness_logits, 2),
        (rpn.anchor_deltas, 0.3),
        (heads.box_predictor.cls_score, 2),
        (heads.box_predictor.bbox_pred, 0.5),
        (heads.mask_head.predictor, 2),
    ):
        outputs = []
        hook = layer.register_forward_hook(lambda _, __, out, seen=outputs: seen.append(out))
        with torch.no_grad():
            model([{"image": image}])
            hook.remove()
            layer.weight.mul_(deviation / torch.cat([o.flatten() for o in outputs]).std())
    return model


MODELS = {
    "demo": (),
    "basic blocks": (
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.WIDTH_PER_GROUP", 64),
        *("MODEL.ROI_BOX_HEAD.NUM_FC", 3, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[12, 20]], "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
    ),
    "Detectron's": (
        *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", ""),
        *("MODEL.RESNETS.STRIDE_IN_1X1", True, "MODEL.BACKBONE.FREEZE_AT", 2),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", "MODEL.ROI_MASK_HEAD.NUM_CONV", 4),
        *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"),
        *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
    ),
}


@needs_detectron2
@pytest.mark.parametrize("name", MODELS)
def test_a_model_detects_what_detectron2s_does(cfg, tmp_path, name):
    """Same weights, same image: the same boxes, classes, scores and masks."""
    cfg = changed(cfg, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.1, *MODELS[name])
    image = torch.randint(0, 255, (3, 90, 120), generator=torch.Generator().manual_seed(1))
    theirs = detectron2_model(cfg, image)
    path = tmp_path / "model.pth"
    torch.save({"model": theirs.state_dict()}, path)
    ours = build_model(cfg)
    load_weights(ours, path)
    ours.eval()
    with torch.no_grad():
        expected = theirs([{"image": image, "height": 90, "width": 120}])[0]["instances"]
        found = ours([image.float()])[0]
    assert len(expected) >= 5
    assert len(found["boxes"]) == len(expected)
    order = expected.scores.argsort(descending=True)
    assert torch.allclose(found["scores"], expected.scores[order], atol=1e-4)
    assert torch.equal(found["labels"] - 1, expected.pred_classes[order])
    assert torch.allclose(found["boxes"], expected.pred_boxes.tensor[order], atol=1e-2)
    ours_pasted = pasted_masks(found["masks"], found["boxes"], 90, 120)
    assert (ours_pasted.bool() != expected.pred_masks[order]).float().mean(dim=(1, 2)).max() < 1e-3


@needs_detectron2
def test_caffe2_weights_give_detectron2s_features(cfg, tmp_path):
    """The naming of R-50.pkl, through a pickle as Python 2 wrote it."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model as build

    cfg = changed(cfg, *MODELS["Detectron's"])
    theirs = build(cfg).eval()
    generator = np.random.default_rng(0)
    blobs = {}
    for name, value in theirs.backbone.bottom_up.state_dict().items():
        name = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1")
        for ours, caffe in (
            ("shortcut", "branch1"),
            ("conv1", "branch2a"),
            ("conv2", "branch2b"),
            ("conv3", "branch2c"),
        ):
            name = name.replace(f".{ours}", f"_{caffe}")
        name = name.replace(".norm", "_bn").replace(".", "_")
        for ours, caffe in (("bn_weight", "bn_gamma"), ("bn_bias", "bn_beta"), ("weight", "w")):
            name = name[: -len(ours)] + caffe if name.endswith(ours) else name
        scale = 0.05 if value.ndim == 4 else 0.3
        noise = generator.normal(0, scale, value.shape).astype(np.float32)
        blobs[name] = np.abs(noise) + 0.5 if value.ndim == 1 else noise
    blobs["fc1000_w"] = np.zeros((2, 2), dtype=np.float32)
    assert "res2_0_branch2a_w" in blobs
    assert "res_conv1_bn_gamma" in blobs
    path = tmp_path / "R-50.pkl"
    with path.open("wb") as file:
        pickle.dump({"blobs": blobs}, file, protocol=2)

    DetectionCheckpointer(theirs).load(str(path))
    ours = build_model(cfg).eval()
    load_weights(ours, path)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs.backbone.bottom_up(x), ours.backbone.body(x)
    for level, value in expected.items():
        assert torch.allclose(
            found[f"p{level[3:]}"], value, rtol=1e-3, atol=1e-3 * value.abs().max()
        )


def test_affine_weights_alone_leave_a_frozen_norm_affine():
    """Caffe2's older files hold a scale and a shift, and no statistics."""
    from smallobj_d2.engines.torchvision.model import frozen_batch_norm

    norm = frozen_batch_norm(3)
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(norm(x), x, atol=1e-6)


def test_torchvisions_own_names_are_understood(cfg, tmp_path):
    from torchvision.models import resnet18

    cfg = changed(cfg, *MODELS["basic blocks"], "MODEL.RESNETS.STEM_OUT_CHANNELS", 64)
    imagenet = resnet18()
    torch.save(imagenet.state_dict(), tmp_path / "resnet18.pth")
    model = build_model(cfg)
    load_weights(model, tmp_path / "resnet18.pth")
    assert torch.equal(model.backbone.body.layer3[0].conv2.weight, imagenet.layer3[0].conv2.weight)
    old = {
        "rpn.head.conv.weight": 1,
        "backbone.fpn.inner_blocks.2.bias": 2,
        "roi_heads.mask_head.mask_fcn3.weight": 3,
    }
    assert convert_names(old) == {
        "rpn.head.conv.0.0.weight": 1,
        "backbone.fpn.inner_blocks.2.0.bias": 2,
        "roi_heads.mask_head.2.0.weight": 3,
    }


def test_what_is_no_weights_file_is_named(cfg, tmp_path):
    for name in ("a.pkl", "a.pth"):
        (tmp_path / name).write_bytes(b"garbage")
        with pytest.raises(SmallObjError, match=name):
            read_weights(tmp_path / name)
    torch.save({"model": {"something.else": torch.zeros(3)}}, tmp_path / "b.pth")
    with pytest.raises(SmallObjError, match=r"b\.pth: none of its 1 weights"):
        load_weights(build_model(cfg), tmp_path / "b.pth")


def test_a_model_of_which_a_part_is_random_is_not_evaluated(cfg, tmp_path):
    model = build_model(cfg)
    weights = model.state_dict()
    torch.save({"model": weights}, tmp_path / "whole.pth")
    load_weights(model, tmp_path / "whole.pth", whole=True)
    name = "roi_heads.box_predictor.cls_score.weight"
    torch.save({"model": {k: v for k, v in weights.items() if k != name}}, tmp_path / "part.pth")
    load_weights(model, tmp_path / "part.pth")
    with pytest.raises(SmallObjError, match=r"1 of the model's .*roi_heads.box_predictor"):
        load_weights(model, tmp_path / "part.pth", whole=True)


def test_missing_weights_name_the_ways_on(cfg, monkeypatch, tmp_path):
    assert check_weights(cfg) is None
    with pytest.raises(SmallObjError, match=r"no file .*gone\.pkl.*Options"):
        check_weights(changed(cfg, "MODEL.WEIGHTS", str(tmp_path / "gone.pkl")))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("IOPATH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("iopath.common.download.request.urlretrieve", refuse)
    monkeypatch.setattr("iopath.common.file_io.get_cache_dir", lambda *a: str(tmp_path / "cache"))
    zoo = changed(cfg, "MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    with pytest.raises(SmallObjError, match=r"fbaipublicfiles.*R-50\.pkl cannot .*Options"):
        check_weights(zoo)


def test_weights_can_be_named_by_an_environment_variable(cfg, monkeypatch, tmp_path):
    named = changed(cfg, "MODEL.WEIGHTS", "$SMALLOBJ_WEIGHTS_OF_A_TEST")
    monkeypatch.delenv("SMALLOBJ_WEIGHTS_OF_A_TEST", raising=False)
    with pytest.raises(SmallObjError, match="SMALLOBJ_WEIGHTS_OF_A_TEST is not set"):
        check_weights(named)
    (tmp_path / "w.pth").touch()
    monkeypatch.setenv("SMALLOBJ_WEIGHTS_OF_A_TEST", str(tmp_path / "w.pth"))
    assert check_weights(named) == tmp_path / "w.pth"


def test_a_run_records_the_commit_that_it_ran(monkeypatch, tmp_path):
    def git(*arguments):
        own = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True, capture_output=True)

    module = tmp_path / "package" / "engines" / "run.py"
    module.parent.mkdir(parents=True)
    module.write_text("1")
    monkeypatch.setattr(folder, "__file__", str(module))
    assert folder.commit() is None
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert re.fullmatch("[0-9a-f]{40}", folder.commit())
    module.write_text("2")
    assert re.fullmatch("[0-9a-f]{40}-dirty", folder.commit())


def test_freezing_stops_gradients_and_statistics(cfg):
    model = build_model(changed(cfg, "MODEL.BACKBONE.FREEZE_AT", 2))
    model.train()
    images = [torch.rand(3, 64, 64) * 255 for _ in range(2)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.backbone(torch.stack(images))
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert all(k.startswith(("backbone.body.conv1", "backbone.body.layer1")) for k in frozen)
    assert "backbone.body.layer1.0.conv1.weight" in frozen
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("backbone.body.layer2") for k in moved)
    assert not any(k.startswith(("backbone.body.bn1", "backbone.body.layer1")) for k in moved)


@pytest.mark.parametrize("norm", ["", "GN", "FrozenBN"])
def test_norms(cfg, norm):
    cfg = changed(cfg, "MODEL.RESNETS.WIDTH_PER_GROUP", 32)
    model = build_model(changed(cfg, "MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", norm))
    kinds = {type(m).__name__ for m in model.backbone.modules()}
    expected = {"": "Identity", "GN": "GroupNorm", "FrozenBN": "FrozenBatchNorm2d"}[norm]
    assert expected in kinds
    assert "BatchNorm2d" not in kinds


def test_beta_of_the_box_losses(cfg, data):
    """With beta 0 it is an L1 loss; with a large one it is smaller."""
    sample = SmallObjectMapper.from_config(cfg)(record_of(data))
    losses = []
    for beta in (0.0, 100.0):
        torch.manual_seed(0)
        model = build_model(
            changed(
                *(cfg, "MODEL.RPN.SMOOTH_L1_BETA", beta),
                *("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", beta),
            )
        )
        torch.manual_seed(1)
        losses.append(model([sample["image"].float()], [sample["target"]]))
    for name in ("loss_rpn_loc", "loss_box_reg"):
        assert losses[0][name] > 10 * losses[1][name] > 0
    assert torch.equal(losses[0]["loss_rpn_cls"], losses[1]["loss_rpn_cls"])


SIDES = [(224, 224), (416, 608), (768, 1024), (800, 1088), (1312, 800)]


def anchors_of(cfg, height, width):
    """Those of each level for an image that is padded to whole cells of p5, as batches are."""
    generator = build_model(cfg).rpn.anchor_generator
    levels = [int(name[1:]) for name in cfg.MODEL.RPN.IN_FEATURES]
    features = [torch.zeros(1, 1, -(-height // 2**n), -(-width // 2**n)) for n in levels]
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (anchors,) = generator(images, features)
    return anchors.split([f.shape[2] * f.shape[3] * 3 for f in features]), features


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors_of_a_level_are_its_stride_apart(height, width, offset):
    """Of p6, too, which has a cell more than fits where p5 has an odd number of them."""
    cfg = load_cfg(ROOT / "configs" / "baseline.yaml", ["MODEL.ANCHOR_GENERATOR.OFFSET", offset])
    for anchors, name in zip(
        anchors_of(cfg, height, width)[0], cfg.MODEL.RPN.IN_FEATURES, strict=True
    ):
        stride = 2 ** int(name[1:])
        cells = ((anchors[:, :2] + anchors[:, 2:]) / 2 / stride - offset).double()
        assert torch.allclose(cells, cells.round(), atol=1e-4)
        assert cells.max(dim=0).values.round().tolist() == [
            -(-n // stride) - 1 for n in (width, height)
        ]


@needs_detectron2
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_anchors_are_detectron2s(height, width):
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.anchor_generator import build_anchor_generator

    cfg = load_cfg(ROOT / "configs" / "baseline.yaml")
    shapes = [ShapeSpec(stride=2 ** int(name[1:])) for name in cfg.MODEL.RPN.IN_FEATURES]
    ours, features = anchors_of(cfg, height, width)
    for mine, theirs in zip(ours, build_anchor_generator(cfg, shapes)(features), strict=True):
        assert torch.equal(mine, theirs.tensor)


def test_mixed_precision_moves_no_anchor_and_no_box(cfg):
    """At 1,000 pixels bfloat16 has steps of 4 pixels."""
    model = build_model(cfg)
    rpn = model.rpn
    size = {f"p{n}": (1, cfg.MODEL.FPN.OUT_CHANNELS, 1088 >> n, 1088 >> n) for n in range(2, 7)}
    features = {name: torch.randn(size[name], dtype=torch.bfloat16) for name in rpn.in_features}
    images = ImageList(torch.zeros(1, 3, 1088, 1088), [(1088, 1088)])
    with torch.autocast("cpu", torch.bfloat16):
        anchors = rpn.anchor_generator(images, [*features.values()])
        logits, deltas = rpn.head([*features.values()])
    exact = rpn.anchor_generator(images, [f.float() for f in features.values()])
    assert all(torch.equal(a, e) for a, e in zip(anchors, exact, strict=True))
    # Anchors and deltas are of one type, so that boxes are made of them in it.
    assert {t.dtype for t in (*anchors, *logits, *deltas)} == {torch.float32}


@pytest.mark.parametrize("training", [True, False])
def test_mixed_precision_gives_whole_numbers_of_a_float(cfg, data, training):
    sample = SmallObjectMapper.from_config(cfg)(record_of(data))
    model = build_model(changed(cfg, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        out = model([sample["image"].float()], [sample["target"]])
    if training:
        assert all(torch.isfinite(v) and v.dtype == torch.float32 for v in out.values())
    else:
        assert out[0]["boxes"].dtype == out[0]["masks"].dtype == torch.float32
        assert len(out[0]["boxes"]) > 0


@pytest.mark.parametrize("mask_on", [True, False])
def test_an_image_without_instances_trains(cfg, mask_on):
    model = build_model(changed(cfg, "MODEL.MASK_ON", mask_on))
    target = targets([], (64, 64), (64, 64), with_masks=mask_on)
    losses = model([torch.rand(3, 64, 64) * 255], [target])
    assert ("loss_mask" in losses) == mask_on
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        ("MODEL.RESNETS.DEPTH", 152),
        ("MODEL.RESNETS.NORM", "SyncBN"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
        ("MODEL.FPN.IN_FEATURES", ["res2", "res3"]),
        ("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p7"]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128, 256]]),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("SOLVER.WARMUP_METHOD", "burnin"),
    ],
)
def test_what_this_engine_lacks_is_refused_by_name(cfg, key, value):
    cfg = changed(cfg, key, value)
    with pytest.raises(SmallObjError, match=key.rsplit(".", 1)[-1]):
        check_supported(cfg), build_model(cfg), build_schedule(cfg)


@needs_detectron2
def test_detectron2_keys_that_are_not_read_here_are_refused(cfg):
    check_supported(cfg)
    with pytest.raises(SmallObjError, match=r"SOLVER\.CLIP_GRADIENTS\.ENABLED is True"):
        check_supported(changed(cfg, "SOLVER.CLIP_GRADIENTS.ENABLED", True))


# --- Solver


def solver_cfg(**values):
    cfg = get_cfg()
    for key, value in values.items():
        cfg.SOLVER[key] = value
    return cfg


SCHEDULES = [
    {"MAX_ITER": 360, "STEPS": (240, 320), "WARMUP_FACTOR": 1 / 3, "WARMUP_ITERS": 50},
    {"MAX_ITER": 100, "STEPS": (20, 200), "WARMUP_ITERS": 30, "GAMMA": 0.5},
    {"MAX_ITER": 60, "STEPS": (), "WARMUP_ITERS": 0},
    {"MAX_ITER": 40, "STEPS": (30,), "WARMUP_ITERS": 10, "WARMUP_METHOD": "constant"},
    {"MAX_ITER": 30, "STEPS": (), "WARMUP_ITERS": 100},
]


@needs_detectron2
@pytest.mark.parametrize("solver", SCHEDULES)
def test_schedule_is_detectron2s(solver):
    from detectron2.solver import build_lr_scheduler

    cfg = solver_cfg(BASE_LR=0.01, **solver)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = build_lr_scheduler(cfg, optimizer)
    ours, theirs = build_schedule(cfg), []
    for _ in range(cfg.SOLVER.MAX_ITER):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = [0.01 * ours(i) for i in range(cfg.SOLVER.MAX_ITER)]
    assert found == pytest.approx(theirs, rel=1e-6)


def test_steps_that_never_come_are_named(caplog):
    """As Detectron2 does: the learning rate would stay what it is, and nobody would know why."""
    for steps, said in (((20,), False), ((20, 30), False), ((20, 40), True)):
        caplog.clear()
        build_schedule(solver_cfg(MAX_ITER=30, STEPS=steps))
        assert ("after SOLVER.MAX_ITER 30 never come" in caplog.text) == said


def test_schedule():
    factor = build_schedule(solver_cfg(**SCHEDULES[0]))
    assert factor(0) == pytest.approx(1 / 3)
    assert factor(25) == pytest.approx(2 / 3)
    assert [factor(i) for i in (50, 239, 240, 319, 320)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    "solver",
    [
        {},
        {"WEIGHT_DECAY_NORM": 0.01},
        {"WEIGHT_DECAY_NORM": 0.01, "WEIGHT_DECAY_BIAS": 0.0, "BIAS_LR_FACTOR": 2.0},
    ],
)
@needs_detectron2
def test_optimizer_is_detectron2s(cfg, solver):
    from detectron2.solver import build_optimizer as build

    for key, value in solver.items():
        cfg = changed(cfg, f"SOLVER.{key}", value)
    model = build_model(cfg)
    settings = [
        {
            id(p): (g["lr"], g["weight_decay"], g["momentum"], g["nesterov"])
            for g in optimizer.param_groups
            for p in g["params"]
        }
        for optimizer in (build_optimizer(cfg, model), build(cfg, model))
    ]
    assert settings[0] == settings[1]


# --- Runs


def weights_of(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """A whole run: its folder and its row."""
    output = tmp_path_factory.mktemp("runs") / "unbroken"
    return output, engine.main(tiny_cfg(data, output))


def test_a_run_can_be_used_where_detectron2_is_not(unbroken, monkeypatch):
    """Its config has no keys that only Detectron2 has."""
    output, _ = unbroken
    there = load_cfg(output / "config.yaml")
    monkeypatch.setattr(config, "has_detectron2", lambda: False)
    elsewhere = load_cfg(output / "config.yaml")
    values = flatten(there)
    assert flatten(elsewhere) == {key: values[key] for key in flatten(elsewhere)}


def test_a_run_leaves_what_detectron2s_does(unbroken):
    output, row = unbroken
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert {p.name for p in output.glob("*.pth")} == {
        "model_0000002.pth",
        "model_0000005.pth",
        "model_final.pth",
    }
    assert not list(output.glob(".smallobj-*"))
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    training = next(line for line in lines if "total_loss" in line)
    assert {"iteration", "lr", "time", "data_time", "eta_seconds", "loss_cls"} <= set(training)
    assert {"loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"} <= set(training)
    assert training["iteration"] == 5
    assert "segm/APs" in lines[-1]
    kept = json.loads((output / "row.json").read_text())
    about = {key: kept.pop(key) for key in ("dataset", "json_file", "images", "detections")}
    assert (about["dataset"], about["detections"]) == ("tiny", 100)
    assert Path(about["json_file"]).is_file()
    assert Path(about["images"]).is_dir()
    assert kept == row
    assert row["ground_truth"]["all"] == 24
    assert isinstance(
        json.loads((output / "inference" / "coco_instances_results.json").read_text()), list
    )
    record = json.loads((output / "run.json").read_text())
    assert record["seed"] == 5
    assert record["engine"] == "torchvision"
    assert record["commit"] == folder.commit()
    assert {"python", "torch", "torchvision", "numpy"} <= set(record["versions"])
    assert list(output.glob("events.out.tfevents.*"))
    assert "iter 6/6" in (output / "log.txt").read_text()


def test_a_killed_run_resumes_bit_for_bit(unbroken, cfg, monkeypatch):
    class Killed(BaseException):
        pass

    step = Trainer._step

    def dies(self, network, batch, iteration):
        if iteration == 4:
            raise Killed
        return step(self, network, batch, iteration)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(Killed):
        engine.main(cfg)
    monkeypatch.setattr(Trainer, "_step", step)
    assert last_checkpoint(Path(cfg.OUTPUT_DIR)).name == "model_0000002.pth"
    row = engine.main(changed(cfg, "SEED", -1, "DATALOADER.NUM_WORKERS", 1), resume=True)

    expected = torch.load(unbroken[0] / "model_final.pth", weights_only=True)
    found = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
    assert found["iteration"] == expected["iteration"] == 5
    for key, value in expected["model"].items():
        assert torch.equal(found["model"][key], value), key
    for key, value in expected["optimizer"]["state"].items():
        assert torch.equal(
            found["optimizer"]["state"][key]["momentum_buffer"], value["momentum_buffer"]
        )
    assert row == unbroken[1]
    record = json.loads((Path(cfg.OUTPUT_DIR) / "run.json").read_text())
    assert record["seed"] == 5
    assert len(record["earlier"]) == 1


@pytest.fixture
def bfloat16(monkeypatch):
    """As on a CPU that has bfloat16; one that has not is only slow."""
    monkeypatch.setattr(seed_and_device, "has_bfloat16", lambda: True)


def test_bfloat16_on_a_cpu_resumes_bit_for_bit_and_keeps_weights_whole(
    data, tmp_path, monkeypatch, bfloat16, unbroken
):
    seen = []
    step = Trainer._step

    def watched(self, *args):
        def note(module, inputs, output):
            seen.extend(level.dtype for level in output.values())

        hook = self.model.backbone.fpn.register_forward_hook(note)
        losses = step(self, *args)
        hook.remove()
        return losses

    monkeypatch.setattr(Trainer, "_step", watched)
    amp = ("SOLVER.AMP.ENABLED", "True")
    row = engine.main(tiny_cfg(data, tmp_path / "whole", *amp))
    assert set(seen) == {torch.bfloat16}

    engine.main(tiny_cfg(data, tmp_path / "cut", *amp, "DATASETS.TEST", "()"))
    (tmp_path / "cut" / "last_checkpoint").write_text("model_0000002.pth")
    assert engine.main(tiny_cfg(data, tmp_path / "cut", *amp), resume=True) == row

    whole, cut = (weights_of(tmp_path / name / "model_final.pth") for name in ("whole", "cut"))
    full = weights_of(unbroken[0] / "model_final.pth")
    floating = [k for k, v in whole.items() if v.is_floating_point()]
    assert all(whole[k].dtype == torch.float32 for k in floating)
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    assert any(not torch.equal(whole[k], full[k]) for k in floating)

    alone = ("MODEL.WEIGHTS", str(tmp_path / "whole" / "model_final.pth"))
    assert engine.main(tiny_cfg(data, tmp_path / "alone", *alone), eval_only=True) == row


def test_a_cpu_without_bfloat16_trains_in_float32_and_says_so(cfg, monkeypatch, caplog):
    monkeypatch.setattr(seed_and_device, "has_bfloat16", lambda: False)
    asked = changed(cfg, "SOLVER.AMP.ENABLED", True)
    assert not seed_and_device.settle_precision(asked, "torchvision").SOLVER.AMP.ENABLED
    assert "no instructions for bfloat16" in caplog.text


def test_detectron2s_mixed_precision_on_a_cpu_is_refused(cfg, bfloat16):
    asked = changed(cfg, "SOLVER.AMP.ENABLED", True)
    with pytest.raises(SmallObjError, match="Detectron2 has mixed precision on a GPU only"):
        seed_and_device.settle_precision(asked, "detectron2")
    assert seed_and_device.settle_precision(asked, "torchvision").SOLVER.AMP.ENABLED


def test_evaluation_alone_gives_the_row_of_the_run(unbroken, cfg):
    cfg = changed(cfg, "MODEL.WEIGHTS", str(unbroken[0] / "model_final.pth"))
    assert engine.main(cfg, eval_only=True) == unbroken[1]
    assert not (Path(cfg.OUTPUT_DIR) / "run.json").exists()
    with pytest.raises(SmallObjError, match="nothing to evaluate"):
        engine.main(changed(cfg, "MODEL.WEIGHTS", ""), eval_only=True)
    with pytest.raises(SmallObjError, match=r"nothing to evaluate on: DATASETS\.TEST is empty"):
        engine.main(changed(cfg, "DATASETS.TEST", ()), eval_only=True)


def test_a_finished_run_that_is_resumed_only_evaluates(unbroken, data):
    before = (unbroken[0] / "model_final.pth").stat().st_mtime_ns
    assert engine.main(tiny_cfg(data, unbroken[0]), resume=True) == unbroken[1]
    assert (unbroken[0] / "model_final.pth").stat().st_mtime_ns == before


def test_a_resume_that_cannot_be_is_refused(unbroken, data):
    records = [unbroken[0] / name for name in ("run.json", "config.yaml", "row.json")]
    before = [path.read_bytes() for path in records]
    for opts, message in (
        (("SEED", "6"), "SEED is 6, but the run .* has seed 5"),
        (("MODEL.FPN.OUT_CHANNELS", "64"), "not a checkpoint of this model"),
    ):
        with pytest.raises(SmallObjError, match=message):
            engine.main(tiny_cfg(data, unbroken[0], *opts), resume=True)
        assert [path.read_bytes() for path in records] == before


def test_a_run_is_not_overwritten_by_one_without_its_dataset(unbroken, data):
    files = {path.name for path in unbroken[0].iterdir()}
    cfg = tiny_cfg(data, unbroken[0], "DATASETS.TRAIN", "('gone',)")
    gone = [*cfg.SMALLOBJ.DATASETS, ["gone", "gone.json", "images"]]
    with pytest.raises(SmallObjError, match=r"Dataset gone: there is no file gone\.json"):
        engine.main(changed(cfg, "SMALLOBJ.DATASETS", gone), overwrite=True)
    assert {path.name for path in unbroken[0].iterdir()} == files


def test_mixed_precisions_scale_goes_through_a_resume(tmp_path):
    """With a scaler of the CPU's; a run that had none may go over to mixed precision."""

    def trainer(**scaler):
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        made = Trainer(
            model,
            optimizer,
            lambda _: 1.0,
            seed=0,
            max_iter=1,
            output=tmp_path,
            checkpoint_period=1,
        )
        if scaler:
            made.scaler = torch.amp.GradScaler("cpu", **scaler)
            made.scaler.scale(torch.ones(1))
        return made

    trainer(init_scale=8.0).save("with.pth")
    trainer().save("without.pth")
    for name, scale in (("with.pth", 8.0), ("without.pth", 4.0)):
        resumed = trainer(init_scale=4.0)
        resumed.resume(tmp_path / name)
        assert resumed.scaler.get_scale() == scale
    trainer().resume(tmp_path / "with.pth")


def test_a_new_run_cannot_resume_an_older_ones_checkpoint(cfg, monkeypatch):
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir()
    (output / "last_checkpoint").write_text("model_old.pth")
    with pytest.raises(SmallObjError, match=r"names 'model_old\.pth', which is not there"):
        engine.main(cfg, resume=True)
    with run.running(cfg, "torchvision", overwrite=True):
        assert last_checkpoint(output) is None


def test_a_loss_that_is_not_finite_names_its_draws(cfg):
    cfg = changed(cfg, "SOLVER.BASE_LR", 1e25, "SOLVER.WARMUP_ITERS", 0)
    with pytest.raises(
        SmallObjError, match=r"not finite at iteration [12]: .*positions \d+ \d+;.*visualize"
    ):
        engine.main(cfg)


def test_wrong_numbers_of_classes_are_named(cfg):
    with pytest.raises(SmallObjError, match=r"2 categories.*model has 1"):
        engine.main(changed(cfg, "MODEL.ROI_HEADS.NUM_CLASSES", 1))


def test_processes_that_cannot_be_are_refused(cfg):
    for arguments in ((0,), (1, 2, 2), (2, 2, 0)):
        with pytest.raises(SmallObjError, match=r"--num-gpus|--dist-url"):
            launch(engine.main, *arguments, device="cpu", args=(cfg,))


def test_skipped_images_are_named(cfg, data, tmp_path, caplog):
    broken = make_dataset(tmp_path / "broken")
    (broken / "images" / "4.png").write_bytes(b"no image")
    opts = ("SMALLOBJ.UNREADABLE_IMAGES", "skip", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "5")
    cfg = tiny_cfg(broken, tmp_path / "out", *opts)
    cfg = changed(cfg, *("SMALLOBJ.DATASETS", [["broken", *cfg.SMALLOBJ.DATASETS[0][1:]]]))
    with caplog.at_level(logging.WARNING):
        assert engine.main(changed(cfg, "DATASETS.TRAIN", ("broken",))) is None
    assert "4.png (image 4) cannot be read" in caplog.text
    stops = changed(cfg, "DATASETS.TRAIN", ("broken",), "SMALLOBJ.UNREADABLE_IMAGES", "stop")
    with pytest.raises(UnreadableImage, match=r"4\.png"):
        engine.main(stops, overwrite=True)


def test_an_error_in_one_of_two_processes_is_the_launchers(cfg):
    with pytest.raises(SmallObjError, match="3, which 2 processes cannot share"):
        launch(engine.main, 2, device="cpu", args=(changed(cfg, "SOLVER.IMS_PER_BATCH", 3),))


# --- The run's folder, seed and device


def test_a_folder_that_cannot_be_made_is_one_line(cfg, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SmallObjError, match=r"Cannot write .*OUTPUT_DIR"):
        engine.main(changed(cfg, "OUTPUT_DIR", str(tmp_path / "file" / "out")))


def test_a_card_that_is_full_is_one_line(cfg):
    full = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.00 GiB."
    )
    with (
        pytest.raises(SmallObjError, match=r"Tried to allocate 2\.00 GiB.*SOLVER\.IMS_PER_BATCH"),
        run.running(cfg, "torchvision"),
    ):
        raise full


def test_a_negative_seed_is_a_fresh_one_and_is_logged(cfg, caplog):
    cfg = changed(cfg, "SEED", -1)
    with caplog.at_level(logging.INFO):
        seeds = {settle_seed(cfg).SEED for _ in range(3)}
    assert len(seeds) == 3
    assert all(s >= 0 for s in seeds)
    assert f"seed {min(seeds)}" in caplog.text
    assert settle_seed(changed(cfg, "SEED", 3)).SEED == 3


def test_without_a_gpu_it_is_the_cpu(cfg, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert settle_device(changed(cfg, "MODEL.DEVICE", "cuda")).MODEL.DEVICE == "cpu"
    assert "no GPU here" in caplog.text


def test_another_engines_run_is_not_gone_on_with(cfg):
    with run.running(cfg, "detectron2") as settled:
        record_run(settled, "detectron2")
    with pytest.raises(SmallObjError, match="a run of the engine detectron2"):
        engine.main(cfg, resume=True)
