"""What the augmentation costs, as ratios measured in one run.

python -m benchmarks.speed                        # everything this machine can measure
python -m benchmarks.speed mapper paste --repeats 15

Single thread, warm, medians over interleaved repeats. Needs the images of coco_2017_train and
coco_2017_val under DETECTRON2_DATASETS. `mapper`, `loader`, `step` and `detections` need
Detectron2, and `step` a GPU.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from smallobj_d2.augmentation import build_augmentation
from smallobj_d2.commands import CommandLine
from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.copy_paste import CopyPaste, ObjectBank, SourceRule
from smallobj_d2.copy_paste.bank import build_bank
from smallobj_d2.copy_paste.place import Placer
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.datasets.records import PackedRecords
from smallobj_d2.datasets.synthetic import make_splits
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sampling import Draw, Stream, repeat_factors
from smallobj_d2.sizes import has_small

MULTI3X, DEMO, BANK, SOFT = (
    Path(__file__).resolve().parents[1] / "configs" / f"{name}.yaml"
    for name in ("orig_aug_multi3x", "demo", "beyond/bank", "beyond/bank_often_soft")
)
DATASETS = ("coco_2017_train", "coco_2017_val")

Row = dict[str, Any]


# --- Measuring


def interleaved(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, taken in turn so that a slow moment hits all alike."""
    for run in work.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def row(what: str, ours: list[float], other: str, theirs: list[float], unit: float = 1e3) -> Row:
    """One line: medians in ms (or another unit), and the ratio's median and spread."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "what": what,
        "ours": statistics.median(ours) * unit,
        "other": other,
        "theirs": statistics.median(theirs) * unit,
        "ratio": statistics.median(ratios),
        "spread": [ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]],
    }


def alone(what: str, values: Iterable[float], unit: float = 1e3) -> Row:
    """A line without a comparison: median, tenth and ninetieth percentile."""
    low, middle, high = np.percentile(np.fromiter(values, float) * unit, [10, 50, 90]).tolist()
    return {"what": what, "ours": middle, "spread": [low, high]}


def show(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    for r in rows:
        line = f"  {r['what']:<58} {r['ours']:>9.3f}"
        low, high = r["spread"]
        if "ratio" in r:
            line += f"  {r['other']:<23} {r['theirs']:>9.3f}  ratio {r['ratio']:.3f}"
        print(f"{line}  ({low:.3f} to {high:.3f})")


# --- 1. Mapper


def mapper(repeats: int) -> list[Row]:
    """Detectron2's stock mapper against ours, every image augmented, training resize 800."""
    from detectron2.data import DatasetMapper

    from smallobj_d2.engines.detectron2 import SmallObjectMapper, read_records

    cfg = load_cfg(MULTI3X, ["SEED", "0", "SMALLOBJ.AUGMENTATION_PROBABILITY", "1.0"])
    records = [r for r in read_records(DATASETS) if has_small(r["annotations"])]
    packed = PackedRecords(records)
    off = cfg.clone()
    off.defrost()
    off.SMALLOBJ.COPY_PASTE = False
    bank = load_cfg(BANK, ["SEED", "0", "SMALLOBJ.AUGMENTATION_PROBABILITY", "1.0"])
    soft = load_cfg(SOFT, ["SEED", "0", "SMALLOBJ.AUGMENTATION_PROBABILITY", "1.0"])
    from_bank, from_bank_soft = (build_augmentation(c, 0, records, read_rgb) for c in (bank, soft))
    fast = cfg.clone()
    fast.defrost()
    fast.SMALLOBJ.FAST_RESIZE = True

    def over(mapping: Callable[[dict[str, Any]], object]) -> Callable[[], None]:
        def run() -> None:
            for i in range(len(packed)):
                mapping({**packed[i], "draw": Draw(i, i, 0)})

        return run

    seconds = interleaved(
        {
            "stock": over(DatasetMapper(cfg, True)),
            "off": over(SmallObjectMapper(off, True)),
            "pasting": over(SmallObjectMapper(cfg, True)),
            "bank": over(SmallObjectMapper(bank, True, augmentation=from_bank)),
            "soft": over(SmallObjectMapper(soft, True, augmentation=from_bank_soft)),
            "fast": over(SmallObjectMapper(fast, True)),
        },
        repeats,
    )
    per_image = {k: [s / len(packed) for s in v] for k, v in seconds.items()}
    stock = per_image["stock"]
    return [
        row("ours, copy-paste off, ms an image", per_image["off"], "stock mapper", stock),
        row("ours, orig_aug_multi3x, all augmented", per_image["pasting"], "stock mapper", stock),
        row("ours, beyond/bank, all augmented", per_image["bank"], "stock mapper", stock),
        row("ours, bank_often_soft, all augmented", per_image["soft"], "stock mapper", stock),
        row("multi3x with SMALLOBJ.FAST_RESIZE", per_image["fast"], "stock mapper", stock),
    ]


# --- 2. The paste step


def naive_copy_paste(
    image: np.ndarray,
    annotations: list[dict[str, Any]],
    copies: int,
    rng: np.random.Generator,
    *,
    whole_only: bool,
) -> int:
    """Copy-paste as mostly written: a full-image mask per instance, an overlap test per try.

    Args:
        image, annotations, copies, rng: as for `CopyPaste`.
        whole_only: copy by our rule, only what is in one piece, inside the image, and of which
            others cover no more than a tenth; mostly any small object will do.
    """
    height, width = image.shape[:2]
    masks = []
    for a in annotations:
        segmentation = a["segmentation"]
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        masks.append(coco_mask.decode(segmentation).astype(bool))
    layers = np.sum(masks, axis=0, dtype=np.uint16)
    taken = layers > 0
    sources = [
        i
        for i, a in enumerate(annotations)
        if not a["iscrowd"] and a["area"] < 1024 and masks[i].any()
    ]
    if whole_only:
        sources = [i for i in sources if _is_whole(masks[i], layers)]
    if not sources:
        return 0
    source = sources[rng.integers(len(sources))]
    ys, xs = np.nonzero(masks[source])
    top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
    pixels = image[top:bottom, left:right].copy()
    shape = masks[source][top:bottom, left:right].astype(np.uint8)
    pasted = 0
    for _ in range(copies):
        centre = ((right - left) / 2, (bottom - top) / 2)
        turn = cv2.getRotationMatrix2D(centre, rng.uniform(-15, 15), rng.uniform(0.8, 1.2))
        corners = (
            np.array(
                [
                    [0, 0, 1],
                    [right - left, 0, 1],
                    [0, bottom - top, 1],
                    [right - left, bottom - top, 1],
                ]
            )
            @ turn.T
        )
        turn[:, 2] -= corners.min(axis=0)
        w, h = np.ceil(np.ptp(corners, axis=0)).astype(int).tolist()
        patch = cv2.warpAffine(pixels, turn, (w, h))
        mask = cv2.warpAffine(shape, turn, (w, h), flags=cv2.INTER_NEAREST).astype(bool)
        if width - w < 10 or height - h < 10:
            continue
        for _ in range(30):
            x, y = int(rng.integers(5, width - w - 4)), int(rng.integers(5, height - h - 4))
            full = np.zeros((height, width), dtype=bool)
            full[y : y + h, x : x + w] = mask
            if (full & taken).any():
                continue
            image[y : y + h, x : x + w][mask] = patch[mask]
            taken |= full
            contours, _ = cv2.findContours(
                full.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            annotations = [*annotations, {"segmentation": [c.ravel().tolist() for c in contours]}]
            pasted += 1
            break
    return pasted


def _is_whole(mask: np.ndarray, layers: np.ndarray) -> bool:
    if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
        return False
    if np.count_nonzero(mask & (layers > 1)) > 0.1 * np.count_nonzero(mask):
        return False
    ys, xs = np.nonzero(mask)
    tight = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(np.uint8)
    return cv2.connectedComponents(tight)[0] == 2


def scaled(record: dict[str, Any], factor: float) -> dict[str, Any]:
    """A larger image with the same objects at the same size, spread out."""
    annotations = []
    for a in record["annotations"]:
        x, y, w, h = a["bbox"]
        dx, dy = x * (factor - 1), y * (factor - 1)
        parts = [(np.reshape(p, (-1, 2)) + (dx, dy)).ravel().tolist() for p in a["segmentation"]]
        annotations.append({**a, "bbox": [x + dx, y + dy, w, h], "segmentation": parts})
    size = {"height": round(record["height"] * factor), "width": round(record["width"] * factor)}
    return {**record, **size, "annotations": annotations}


def paste(repeats: int) -> list[Row]:
    """Plan and draw, image and annotations in memory."""
    from smallobj_d2.datasets.coco import get_records, load_coco

    coco = [r for r in get_records(DATASETS) if has_small(r["annotations"])]
    rows = []
    three = CopyPaste(strategy="single", copies=3)
    multi = CopyPaste(strategy="multiple", copies=3)
    rows += _against_usual("3 copies, COCO image", coco, three, repeats)
    rows.append(_per_image("orig_aug_multi3x, COCO image", coco, multi, repeats))

    def make() -> ObjectBank:
        rng = np.random.default_rng(0)
        return build_bank(coco, SourceRule(), read_rgb, rng, images=5000)

    seconds = _times(make, repeats)
    bank = make()
    pasting = CopyPaste(strategy="all", sources=bank)
    rows.append(_per_image("beyond/bank, COCO image", coco, pasting, repeats))
    rows.append(alone("making the bank, an image of it", [s / bank.images for s in seconds]))
    dense = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "dsb2018"
    if dense.is_dir():
        nuclei = load_coco(dense / "annotations" / "val.json", dense / "val").records
        rows += _against_usual("3 copies, dsb2018 image (dense, RLE)", nuclei, three, repeats)
    plain = [
        r
        for r in coco
        if r["width"] == 640 and all(isinstance(a["segmentation"], list) for a in r["annotations"])
    ]
    for factor in (1, 2, 4, 8):
        larger = [scaled(r, factor) for r in plain[:16]]
        rows.append(
            _per_image(
                f"one pasted copy, {640 * factor} px wide (us)",
                larger,
                multi,
                repeats,
                per_copy=True,
            )
        )
    return rows


Step = Callable[[np.ndarray, dict[str, Any], np.random.Generator], int]
"""Augments an image in place; returns how many copies it pasted."""


def _ours(step: CopyPaste) -> Step:
    def run(image: np.ndarray, record: dict[str, Any], rng: np.random.Generator) -> int:
        plan = step.plan(record["annotations"], record["height"], record["width"], rng)
        step.composite(image, plan)
        return plan.pasted

    return run


def _usual(*, whole_only: bool) -> Step:
    def run(image: np.ndarray, record: dict[str, Any], rng: np.random.Generator) -> int:
        return naive_copy_paste(image, record["annotations"], 3, rng, whole_only=whole_only)

    return run


def _over_images(
    records: list[dict[str, Any]], steps: dict[str, Step], repeats: int
) -> dict[str, list[tuple[float, int]]]:
    """Seconds and copies for each image and repeat, each step over all images in its turn."""
    # Written to, or the system would hand out their memory while the time is taken.
    images = [np.full((r["height"], r["width"], 3), 127, np.uint8) for r in records]
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in steps}
    for seed in range(-1, repeats):  # once to warm up
        for name, step in steps.items():
            for record, image in zip(records, images, strict=True):
                rng = np.random.default_rng(abs(seed))
                start = time.perf_counter()
                pasted = step(image, record, rng)
                took = time.perf_counter() - start
                if seed >= 0:
                    found[name].append((took, pasted))
    return found


def _per_image(
    what: str, records: list[Any], step: CopyPaste, repeats: int, *, per_copy: bool = False
) -> Row:
    taken = _over_images(records, {"ours": _ours(step)}, repeats)["ours"]
    seconds = [took / (pasted if per_copy else 1) for took, pasted in taken if pasted]
    return alone(what, seconds, 1e6 if per_copy else 1e3)


def _against_usual(what: str, records: list[Any], step: CopyPaste, repeats: int) -> list[Row]:
    steps = {
        "ours": _ours(step),
        "any source": _usual(whole_only=False),
        "same rule": _usual(whole_only=True),
    }
    taken = _over_images(records, steps, repeats)
    seconds = {
        name: [took for (took, _), (_, ours) in zip(times, taken["ours"], strict=True) if ours]
        for name, times in taken.items()
    }
    return [
        row(f"{what}, ms", seconds["ours"], f"naive baseline, {name}", seconds[name])
        for name in ("any source", "same rule")
    ]


# --- 3. Placement in crowded images


def crowded(repeats: int) -> list[Row]:
    """Fill images until nothing fits: time of the last copies, and whether any place was missed."""
    del repeats
    rng = np.random.default_rng(0)
    seconds, missed, placed = [], 0, 0
    mask = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (24, 24))
    for _ in range(3):
        placer = Placer(Scene([], 256, 256), margin=5, gap=0)
        taken = np.zeros((258, 258), np.uint8)  # with a frame of a pixel
        while True:
            start = time.perf_counter()
            corner = placer.find(mask, rng)
            took = time.perf_counter() - start
            if corner is None:
                break
            placed += 1
            seconds.append(took)
            placer.take(mask, *corner)
            x, y = corner
            taken[y + 1 : y + 25, x + 1 : x + 25] |= mask
        grown = cv2.dilate(np.pad(mask, 1), np.ones((3, 3), np.uint8))
        missed += sum(
            not (taken[y : y + 26, x : x + 26] & grown).any()
            for y in range(5, 256 - 5 - 24 + 1)
            for x in range(5, 256 - 5 - 24 + 1)
        )
    return [
        alone(f"a copy while filling 256 x 256 ({placed} placed), ms", seconds),
        alone("its ten slowest, ms", sorted(seconds)[-10:]),
        alone("places that brute force found and we did not", [missed], 1),
    ]


# --- 4. Sampler at COCO scale


def sampler(repeats: int) -> list[Row]:
    """118,287 images, half of them with small objects, drawn three times as often."""
    from smallobj_d2.datasets.coco import get_records

    seeds = get_records(DATASETS)
    records = [seeds[i % len(seeds)] for i in range(118_287)]
    rows = [
        alone(
            "repeat factors from dataset dicts, ms", _times(lambda: repeat_factors(records, 3.0), 3)
        )
    ]
    factors = repeat_factors(records, 3.0)
    stream = Stream(factors, 0)
    ours = interleaved({"epoch": lambda: stream.epoch(1)}, repeats)["epoch"]
    if has_detectron2():
        import torch
        from detectron2.data.samplers import RepeatFactorTrainingSampler

        stock = RepeatFactorTrainingSampler(torch.tensor(factors), seed=0)
        n = len(stream)
        both = interleaved(
            {"epoch": lambda: stream.epoch(1), "stock": lambda: list(islice(stock, n))},
            max(3, repeats // 3),
        )
        rows.append(
            row("an epoch of indices, ms", both["epoch"], "RepeatFactorTraining", both["stock"])
        )
    else:
        rows.append(alone("an epoch of indices, ms", ours))
    rows.append(
        alone(
            "draw 10,000,000 of a fresh stream, ms",
            _times(lambda: Stream(factors, 0)[10_000_000], repeats),
        )
    )
    packed = PackedRecords(records)
    megabytes = packed.nbytes / 2**20
    return [*rows, alone("records, packed and shared by all workers, MB", [megabytes], 1)]


def _times(work: Callable[[], object], repeats: int) -> list[float]:
    return interleaved({"": work}, repeats)[""]


# --- 5. The whole loader


def loader(repeats: int) -> list[Row]:
    """Images a second of the whole loader with two workers, ours against stock."""
    cfg = load_cfg(MULTI3X, ["SEED", "0", "DATALOADER.NUM_WORKERS", "2"])
    iterators = _loaders(cfg)
    for iterator in iterators.values():
        for _ in range(5):
            next(iterator)

    def take(name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(10):
                next(iterators[name])

        return run

    seconds = interleaved({name: take(name) for name in iterators}, max(3, repeats // 3))
    return [
        row(
            "an image, two workers, ms",
            [s / 80 for s in seconds["ours"]],
            "stock loader",
            [s / 80 for s in seconds["stock"]],
        )
    ]


def _loaders(cfg: Any) -> dict[str, Iterator[Any]]:
    """Detectron2's stock loader, and ours."""
    from detectron2.data import DatasetMapper, build_detection_train_loader

    from smallobj_d2.engines.detectron2 import build_train_loader, read_records

    stock = build_detection_train_loader(
        read_records(DATASETS[:1]),
        mapper=DatasetMapper(cfg, True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return {"ours": iter(build_train_loader(cfg)), "stock": iter(stock)}


# --- 6. Training step


def step(repeats: int) -> list[Row]:
    """Iterations of R50-FPN at paper settings on a GPU, our loader against stock."""
    import torch
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    cfg = load_cfg(MULTI3X, ["SEED", "0", "MODEL.WEIGHTS", ""])
    model = build_model(cfg).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-6)
    iterators = _loaders(cfg)
    waits: dict[str, list[float]] = {name: [] for name in iterators}
    peaks = dict.fromkeys(iterators, 0)

    def take(name: str) -> Callable[[], None]:
        def run() -> None:
            torch.cuda.reset_peak_memory_stats()
            for _ in range(10):
                start = time.perf_counter()
                batch = next(iterators[name])
                waits[name].append(time.perf_counter() - start)
                with EventStorage():
                    loss = sum(model(batch).values())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            torch.cuda.synchronize()
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())

        return run

    seconds = interleaved({name: take(name) for name in iterators}, repeats)
    rows = [
        row(
            "an iteration of 8 images, ms",
            [s / 10 for s in seconds["ours"]],
            "stock loader",
            [s / 10 for s in seconds["stock"]],
        )
    ]
    rows.append(row("of which waiting for data, ms", waits["ours"], "stock loader", waits["stock"]))
    peak = {name: value / 2**30 for name, value in peaks.items()}
    rows.append(row("peak GPU memory, GB", [peak["ours"]], "stock loader", [peak["stock"]], 1))
    return rows


# --- 7. Mixed precision on a CPU


def precision(repeats: int) -> list[Row]:
    """Iterations of the demo's network with torchvision's engine on one core, bfloat16 or not."""
    import torch

    from smallobj_d2.engines.seed_and_device import has_bfloat16
    from smallobj_d2.engines.torchvision import build_model, build_train_loader
    from smallobj_d2.engines.torchvision.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        made = make_splits(folder, num_train=32, num_val=1, seed=11, size=224, progress=False)
        where = [[n, str(p), str(p.parent / "images")] for n, p in made.items()]
        options = ["SMALLOBJ.DATASETS", str(where), "DATALOADER.NUM_WORKERS", "0"]
        cfg = load_cfg(DEMO, [*options, "SEED", "0", "OUTPUT_DIR", folder])
        batches = list(islice(build_train_loader(cfg), repeats + 1))

        def train(name: str) -> Callable[[], None]:
            torch.manual_seed(0)
            cfg.defrost()
            cfg.SOLVER.AMP.ENABLED = name == "bfloat16"
            trainer = Trainer.from_config(cfg, build_model(cfg).train())
            trainer._lay_out()
            numbers = iter(range(len(batches)))

            def iteration() -> None:
                i = next(numbers)
                trainer._step(trainer.model, batches[i], i)

            return iteration

        seconds = interleaved({name: train(name) for name in ("float32", "bfloat16")}, repeats)
    note = "" if has_bfloat16() else " (emulated: this CPU has none)"
    return [row(f"bfloat16{note}, ms", seconds["bfloat16"], "float32", seconds["float32"])]


# --- 8. Detections and masks of the torchvision engine


def detections(repeats: int) -> list[Row]:
    """100 detections of an image to COCO's results, against Detectron2's way; and mask targets."""
    return [
        each
        for what, side in (("10 to 30", 10), ("100 to 300", 100))
        for each in _detections_of(what, side, repeats)
    ]


def _detections_of(what: str, side: int, repeats: int) -> list[Row]:
    import torch
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.structures import BitMasks, Boxes, Instances

    from smallobj_d2.engines.torchvision.inference import coco_results
    from smallobj_d2.engines.torchvision.mapper import targets
    from smallobj_d2.engines.torchvision.model import mask_targets

    size = height, width = 480, 640
    number, generator = 100, torch.Generator().manual_seed(0)
    across = torch.arange(28) - 13.5
    disc = torch.sigmoid(12 - (across[:, None] ** 2 + across**2).sqrt())
    masks = disc.expand(number, 28, 28)
    sides = side * (1 + 2 * torch.rand(number, 2, generator=generator))
    low = torch.rand(number, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    boxes = torch.cat([low, low + sides], 1)
    scores = torch.rand(number, generator=generator)
    classes = torch.zeros(number, dtype=torch.int64)

    def ours() -> list[dict[str, Any]]:
        found = {"boxes": boxes, "scores": scores, "labels": classes + 1, "masks": masks}
        return coco_results(found, size, {"image_id": 0, "height": height, "width": width}, [0])

    def theirs() -> list[dict[str, Any]]:
        found = Instances(size, pred_boxes=Boxes(boxes.clone()), scores=scores)
        found.pred_classes, found.pred_masks = classes, masks[:, None]
        return instances_to_coco_json(detector_postprocess(found, height, width), 0)

    found = ours()
    target = targets(found, size, size)
    whole = [torch.from_numpy(coco_mask.decode(each["segmentation"])) for each in found]
    bitmaps, which = BitMasks(torch.stack(whole)), torch.arange(number)
    seconds = interleaved(
        {
            "results": ours,
            "their results": theirs,
            "targets": lambda: mask_targets([target], [boxes], [which], 28),
            "their targets": lambda: bitmaps.crop_and_resize(boxes, 28),
        },
        repeats,
    )
    return [
        row(f"{about}, {what} px wide, ms", seconds[mine], other, seconds[f"their {mine}"])
        for about, mine, other in (
            ("100 detections to COCO's results", "results", "Detectron2"),
            ("mask targets of 100 proposals", "targets", "BitMasks"),
        )
    ]


PARTS: dict[str, tuple[str, Callable[[int], list[Row]]]] = {
    "mapper": ("1. Mapper, small-object images of COCO, resize to 800", mapper),
    "paste": ("2. The paste step alone", paste),
    "crowded": ("3. Placement in crowded images", crowded),
    "sampler": ("4. Sampler at COCO scale", sampler),
    "loader": ("5. The whole loader", loader),
    "step": ("6. Training step on a GPU", step),
    "precision": ("7. Mixed precision on one core", precision),
    "detections": ("8. Detections and mask targets of an image of 640 x 480", detections),
}


def missing(part: str) -> str:
    """What a part needs and this machine lacks; empty if nothing."""
    if part in ("mapper", "loader", "step", "detections") and not has_detectron2():
        return "Detectron2 is not installed"
    if part == "step":
        import torch

        return "" if torch.cuda.is_available() else "there is no GPU"
    return ""


def main() -> int:
    parser = CommandLine(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("output/benchmark.json"))
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.exit(
            2, f"error: there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}\n"
        )

    import torch

    from smallobj_d2.engines.folder import versions

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {"versions": versions(), "command": sys.argv}
    try:
        for part in args.parts or PARTS:
            title, measure = PARTS[part]
            lack = missing(part)
            if lack:
                print(f"\n{title}: not measured, {lack}.")
                continue
            results[part] = measure(args.repeats)
            show(title, results[part])
    except SmallObjError as e:
        parser.exit(2, f"error: {e}\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nWritten to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
