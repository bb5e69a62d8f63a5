"""Damage a dataset at random, many thousand times, and see what becomes of it.

python -m proofs.fuzz --num 20000
python -m proofs.fuzz --replay json:17 images:90210

Each mutation goes through the check, the loader, the analysis, COCO's evaluation, copy-paste, the
mappers, the export and the pictures of detections. It must end in a result that obeys the laws of
copy-paste, or in the project's own error, and whatever reads the JSON must stop exactly where the
check finds an error, in the same words. Mutation k is a function of k, so its number is all that is
needed to see it again. What fails is listed with its number and kept in the output folder.
"""

import copy
import io
import json
import logging
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from proofs.copy_paste_laws import check as check_laws
from proofs.random_scenes import raster
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.commands import CommandLine
from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.copy_paste import CopyPaste, Jitter, SameImage, SourceRule
from smallobj_d2.datasets import images
from smallobj_d2.datasets.check import check_coco
from smallobj_d2.datasets.coco import load_coco, with_paths
from smallobj_d2.datasets.findings import KINDS, exit_code, report
from smallobj_d2.datasets.synthetic import make_scene
from smallobj_d2.engines.torchvision.mapper import SmallObjectMapper
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.evaluation.ap import coco_metrics, load_ground_truth
from smallobj_d2.export.augmented import augment_dataset
from smallobj_d2.sampling import Draw
from smallobj_d2.visualization.detections import detection_sheet

CONFIGS = Path(__file__).parents[1] / "configs"
SIZE = 96
SECONDS = 20  # for one mutation; longer counts as a failure
MEMORY = 6 << 30  # bytes of address space for a worker
MOST_PIXELS = 1 << 20  # of an image that copy-paste is tried on

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.5, 1e-300, 1e5, 99999.9, 1e6, 1e9, 2**31, 2**63,
    10**30, 10**400, 1e308, float("nan"), float("inf"), float("-inf"), "", "0", "1", "NaN", "a",
    "../x", "/etc/passwd", "\0", "\ud800", "é", "\u202e", [], {}, [[]], [[1]], [None], [0, 0, 0, 0],
    [1, 2, 3, 4, 5, 6], {"size": [SIZE, SIZE], "counts": []}, {"counts": "0"}, "P1" * 40, [1] * 999,
]  # fmt: skip


# --- The dataset to be damaged


@cache
def scenes() -> tuple[dict[str, Any], list[np.ndarray]]:
    """Three synthetic scenes as COCO JSON, and their pictures."""
    rng = np.random.default_rng(11)
    pictures, entries, annotations = [], [], []
    for i in range(1, 4):
        scene = make_scene(rng, (SIZE, SIZE + 16 * i), crowd_probability=1.0)
        pictures.append(scene.image)
        height, width = scene.image.shape[:2]
        entries.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for a in scene.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": i, **a})
    annotations[1]["keypoints"] = [10, 10, 2, 20, 20, 1, 0, 0, 0]
    annotations[2].pop("segmentation")
    names = {a["category_id"] for a in annotations}
    categories = [{"id": i, "name": f"c{i}"} for i in sorted(names)]
    data = {"images": entries, "annotations": annotations, "categories": categories}
    return json.loads(json.dumps(data)), pictures


@cache
def files() -> list[bytes]:
    """A picture in many formats."""
    picture = Image.fromarray(scenes()[1][0])
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("RGB", "PNG", {}),
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"exif": exif}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("L", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {}),
        ("RGB", "PPM", {}),
        ("RGB", "JPEG2000", {}),
        ("RGB", "TGA", {}),
    ]
    out = []
    for mode, form, options in wanted:
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, form, **options)
        out.append(buffer.getvalue())
    return out


# --- Mutations


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found = []
    stack = [value]
    while stack:
        here = stack.pop()
        keys = here.keys() if isinstance(here, dict) else range(len(here))
        for key in keys:
            found.append((here, key))
            if isinstance(here[key], dict | list):
                stack.append(here[key])
    return found


def mutate_json(data: dict[str, Any], rng: np.random.Generator) -> str:
    """Damage a COCO JSON in one to three places; gives its text."""
    data = copy.deepcopy(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        # Half of the places inside polygons, as these are most of all, and the rest elsewhere.
        everywhere = places(data)
        outside = [p for p in everywhere if not isinstance(p[0], list) or len(p[0]) < 5]
        pool = everywhere if rng.random() < 0.4 or not outside else outside
        if not pool:
            break
        where, key = pool[rng.integers(len(pool))]
        change(where, key, rng)
    text = json.dumps(data)
    if rng.random() < 0.1:
        text = mutate_bytes(text.encode(), rng).decode("latin1")
    return text


def change(where: Any, key: Any, rng: np.random.Generator) -> None:
    """One change at one place, in place."""
    value = where[key]
    kind = rng.integers(10)
    if kind <= 2:
        where[key] = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
    elif kind == 3:
        del where[key]
    elif kind == 4 and isinstance(where, list):
        where.insert(int(rng.integers(len(where) + 1)), copy.deepcopy(value))
    elif kind == 5 and isinstance(where, list):
        other = int(rng.integers(len(where)))
        where[key], where[other] = where[other], where[key]
    elif kind == 6 and isinstance(where, dict):
        where[f"{key}x" if rng.random() < 0.5 else str(key).upper()] = where.pop(key)
    elif isinstance(value, bool) or value is None or value == 10**400:
        where[key] = [value]
    elif isinstance(value, int | float):
        factor = rng.choice([-1, 0, 0.5, 1.5, 2, 10, 1000])
        moved = float(value) + rng.normal(0, rng.choice([0.1, 3, 100]))
        new = [value * float(factor), moved, str(value), [value], float(value)]
        where[key] = new[rng.integers(len(new))]
    elif isinstance(value, str):
        where[key] = mutate_bytes(value.encode("utf-8", "replace"), rng).decode("latin1")
    elif isinstance(value, list) and value:
        cut = int(rng.integers(len(value)))
        new = [value[:cut], value[cut:], value + value[:cut], value[::-1], value[0]]
        where[key] = copy.deepcopy(new[rng.integers(len(new))])
    else:
        where[key] = copy.deepcopy(NASTY[rng.integers(len(NASTY))])


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes, mostly near the beginning."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        reach = len(out) if rng.random() < 0.5 else min(len(out), 128)
        at, length = int(rng.integers(reach)), int(rng.geometric(0.1))
        kind = rng.integers(6)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


# --- Trials: each gives what became of one mutation, or raises


def try_json(number: int, folder: Path) -> str:
    """One damaged JSON through check, loader, copy-paste and mapper."""
    rng = np.random.default_rng((1, number))
    data, pictures = scenes()
    path = folder / "a.json"
    text = mutate_json(data, rng)
    encoding = (
        "utf-8" if rng.random() < 0.95 else str(rng.choice(["utf-8-sig", "utf-16", "utf-32"]))
    )
    path.write_text(text, encoding=encoding, errors="surrogatepass")
    findings = check_coco(path)
    report(findings).encode()
    errors = exit_code(findings) == 2
    records, error = None, ""
    try:
        records = load_coco(path, folder).records
    except SmallObjError as e:
        error = str(e)
    assert bool(error) == errors, f"the check finds {findings}, but the loader says: {error!r}"
    assert len(error) < 3000
    for read in (load_ground_truth, partial(CocoFile, image_root=folder)):
        says = ""
        try:
            read(path)
        except SmallObjError as e:
            says = str(e)
        assert says == error, f"{read} says {says!r}, and the loader {error!r}"
    if records is None:
        return "stopped by an error"

    assert [*CocoFile(path, folder)] == records
    try_evaluation(path)
    try_export_and_pictures(path, records, folder, number)
    json.dumps(copy.deepcopy(records), default=bytes.decode)  # as the export does
    copy_paste = CopyPaste(
        strategy=str(rng.choice(["single", "multiple", "all"])),
        copies=int(rng.integers(1, 4)),
        sources=SameImage(
            SourceRule(
                connected=bool(rng.random() < 0.5),
                inside=bool(rng.random() < 0.5),
                max_covered=float(rng.choice([0.1, 1.0])),
                boxes=bool(rng.random() < 0.5),
            )
        ),
        jitter=Jitter(rotation=(-180.0, 180.0)) if rng.random() < 0.3 else None,
        allow_overlap=bool(rng.random() < 0.3),
        blur=int(rng.choice([0, 0, 3])),
    )
    rounded = False
    for record in records:
        height, width = record["height"], record["width"]
        if height * width > MOST_PIXELS:
            continue
        picture = next((p for p in pictures if p.shape[:2] == (height, width)), None)
        if picture is None:
            picture = np.zeros((height, width, 3), np.uint8)
        rounded |= obeys_laws(picture, record["annotations"], copy_paste, number)
        try_mappers({**record, "draw": Draw(number, 0, 0)}, picture, folder)
    if rounded:
        return "loaded, a pixel rounded"
    return "loaded with remarks" if findings else "loaded"


def try_export_and_pictures(
    path: Path, records: list[dict[str, Any]], folder: Path, seed: int
) -> None:
    """The offline copies load again, and a sheet of detections shows what evaluation reads.

    Either may refuse a dataset, in a line: images that do not exist, or ids that are no numbers.
    """
    shutil.rmtree(folder / "copies", ignore_errors=True)
    if any(r["height"] * r["width"] > MOST_PIXELS for r in records):
        return
    for record, picture in zip(records, scenes()[1], strict=False):
        file = Path(record["file_name"])
        if file.parent == folder and len(file.name) < 99 and "\0" not in file.name:
            size = record["width"], record["height"]
            with suppress(OSError, ValueError):
                Image.fromarray(picture).resize(size).save(file, "PNG", compress_level=0)
    cfg = load_cfg(CONFIGS / "orig_aug_single1x.yaml", ["SEED", seed])
    cfg = with_paths(cfg, path, folder)
    name = cfg.DATASETS.TRAIN[0]
    with suppress(SmallObjError):
        done = augment_dataset(cfg, folder / "copies", workers=1, progress=False)
        again = load_coco(done.json_file, done.image_root).records
        assert len(again) >= len({r["image_id"] for r in records})
    run = folder / "run"
    (run / "inference").mkdir(parents=True, exist_ok=True)
    cfg.defrost()
    cfg.DATASETS.TEST = (name,)
    (run / "run.json").write_text(json.dumps({"config": cfg.dump()}))
    truth = load_ground_truth(path)
    found = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in truth.anns.values()
    ]
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    (run / "row.json").write_text(json.dumps({"dataset": name}))
    with suppress(SmallObjError):
        sheet, text = detection_sheet({"run": run}, num=2, width=64)
        assert sheet.width
        assert text.encode()


def try_evaluation(path: Path) -> None:
    """COCO's evaluation takes what the loader takes, and its own annotations as detections."""
    truth = load_ground_truth(path)
    found = [{**a, "score": 1.0} for a in copy.deepcopy(list(truth.anns.values()))]
    assert coco_metrics(truth, found, "bbox").keys()
    if all(a.get("segmentation") for a in found):
        for a in found:
            a["segmentation"] = truth.annToRLE(a)
        assert coco_metrics(truth, found, "segm").keys()


def obeys_laws(picture: np.ndarray, annotations: Any, copy_paste: CopyPaste, seed: int) -> bool:
    """Check copy-paste's laws; True if one pixel of a mask was rounded the other way.

    COCO's tools round exact halves by a sum that depends on where in the image a polygon lies. So
    once in many thousand copies the mask that is pasted has a pixel that the label's has not.
    """
    try:
        check_laws(picture, annotations, copy_paste, seed)
        return False
    except AssertionError as e:
        if "the pixels pasted are those of the label's mask" not in str(e):
            raise
    height, width = picture.shape[:2]
    plan = copy_paste.plan(annotations, height, width, np.random.default_rng(seed))
    for label, paste in zip(plan.annotations[len(annotations) :], plan.pastes, strict=True):
        if isinstance(label.get("segmentation"), list):
            pixels = raster(label["segmentation"], height, width)
            h, w = paste.mask.shape
            pixels[paste.y : paste.y + h, paste.x : paste.x + w] ^= paste.mask
            assert pixels.sum() <= 1
    return True


def try_mappers(record: dict[str, Any], picture: np.ndarray, folder: Path) -> None:
    path = folder / "picture.png"
    Image.fromarray(picture).save(path, compress_level=0)
    rles = any(isinstance(a.get("segmentation"), dict) for a in record["annotations"])
    # Detectron2 trains on RLE as bitmasks only, which its engine says before training.
    for mapper in mappers()[:: 2 if rles else 1]:
        sample = mapper(
            {**record, "file_name": str(path), "annotations": list(record["annotations"])}
        )
        check_sample(sample)


@cache
def mappers() -> list[Any]:
    found: list[Any] = [SmallObjectMapper(True, min_size=(SIZE,), max_size=2 * SIZE)]
    if has_detectron2():
        from detectron2.data import transforms

        from smallobj_d2.engines import detectron2

        augmentations = [transforms.ResizeShortestEdge(SIZE, 2 * SIZE), transforms.RandomFlip()]
        for mask_format in ("polygon", "bitmask"):  # in this order
            found.append(
                detectron2.SmallObjectMapper(
                    True,
                    augmentations=augmentations,
                    image_format="BGR",
                    use_instance_mask=True,
                    instance_mask_format=mask_format,
                )
            )
    return found


def check_sample(sample: dict[str, Any]) -> None:
    """What a model is fed: uint8 pixels, and finite boxes inside the image."""
    image = sample["image"].numpy()
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[0] == 3
    target = sample.get("target")
    boxes = (target["boxes"] if target is not None else sample["instances"].gt_boxes.tensor).numpy()
    assert np.isfinite(boxes).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all(), boxes
    assert (boxes >= 0).all(), boxes
    assert (boxes <= [*image.shape[:0:-1]] * 2).all(), boxes


def try_image(number: int, folder: Path) -> str:
    """Damaged bytes of an image through check and mappers."""
    rng = np.random.default_rng((2, number))
    content = files()[rng.integers(len(files()))]
    path = folder / "image"
    path.write_bytes(mutate_bytes(content, rng))
    height, width = scenes()[1][0].shape[:2]
    if b"Exif" in content:
        height, width = width, height
    found = images.look_at(str(folder), (str(path), height, width))
    bad = any(KINDS[kind][0] == "error" for kind, _ in found)
    annotations = [a for a in scenes()[0]["annotations"] if a["image_id"] == 1]
    record = {
        "file_name": str(path),
        "image_id": 1,
        "height": height,
        "width": width,
        "annotations": [{**a, "bbox_mode": 1} for a in annotations if "keypoints" not in a][3:],
        "draw": Draw(number, 0, 0),
    }
    for mapper in mappers()[:2]:
        error = ""
        try:
            check_sample(mapper(record))
        except UnreadableImage as e:
            error = str(e)
        assert bool(error) == bad, f"the check finds {found}, but training says: {error!r}"
        assert "\n" not in error
    return "unreadable" if bad else "read"


TRIALS = {"json": try_json, "images": try_image}


# --- Many of them


class TooSlowError(Exception):
    """A mutation took longer than `SECONDS`."""


def _alarm(*_: Any) -> None:
    raise TooSlowError(f"more than {SECONDS} seconds")


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _alarm)


def trial(kind: str, number: int, folder: Path) -> tuple[str, str | None]:
    """What became of one mutation, and the traceback if it failed."""
    signal.alarm(SECONDS)
    try:
        return TRIALS[kind](number, folder), None
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        return "FAILED", traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)


def trials(kind: str, numbers: range) -> tuple[Counter, list[tuple[str, int, str]]]:
    outcomes: Counter = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            outcome, failure = trial(kind, number, Path(folder))
            outcomes[f"{kind}: {outcome}"] += 1
            if failure:
                failures.append((kind, number, failure))
    return outcomes, failures


def main() -> int:
    parser = CommandLine(__doc__)
    parser.add_argument("--num", type=int, default=20_000, help="mutations, half of them of images")
    parser.add_argument("--start", type=int, default=0, help="number of the first of each kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--replay", nargs="+", metavar="KIND:NUMBER", help="only these")
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"), metavar="FOLDER")
    args = parser.parse_args()

    if args.replay:
        _quiet()
        with tempfile.TemporaryDirectory() as folder:
            for name in args.replay:
                kind, number = name.split(":")
                outcome, failure = trial(kind, int(number), Path(folder))
                print(f"{name}: {outcome}\n{failure or ''}")
        return 0

    step = 100
    jobs = [
        (kind, range(i, min(i + step, args.start + args.num // 2)))
        for i in range(args.start, args.start + args.num // 2, step)
        for kind in TRIALS
    ]
    outcomes: Counter = Counter()
    failures: list[tuple[str, int, str]] = []
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(args.workers, mp_context=context, initializer=_quiet) as pool,
        tqdm(total=args.num, unit="mutations") as bar,
    ):
        waiting = {pool.submit(trials, *job): job for job in jobs}
        for done in as_completed(waiting):
            kind, numbers = waiting[done]
            try:
                more, failed = done.result()
            except BrokenProcessPool:
                more, failed = Counter({f"{kind}: DIED": len(numbers)}), []
                failures.append((kind, numbers.start, f"a worker died in {numbers}"))
            outcomes += more
            failures += failed
            bar.set_postfix_str(f"{len(failures)} failed")
            bar.update(len(numbers))
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome:30}{count:8}")
    for kind, number, failure in failures[:20]:
        print(f"\n{kind}:{number}\n{failure}")
    if failures:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / "failures.json"
        path.write_text(json.dumps(failures, indent=1))
        print(f"{len(failures)} failures: {path}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
