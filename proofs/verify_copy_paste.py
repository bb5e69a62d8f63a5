"""The long proof of copy-paste: every law, on many synthetic scenes and on real images.

DETECTRON2_DATASETS=datasets python -m proofs.verify_copy_paste --scenes 10000

The laws are in proofs/copy_paste_laws.py. Prints how often each was checked, and exits with
code 1 and the seed at the first violation. docs/review/verification.md explains the table.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from proofs.copy_paste_laws import check
from proofs.random_scenes import random_options, random_scene
from smallobj_d2 import CopyPaste, SmallObjError, SourceRule, load_coco
from smallobj_d2.commands import CommandLine
from smallobj_d2.copy_paste.bank import build_bank

REAL = (
    ("coco/annotations/instances_train2017.json", "coco/train2017"),
    ("coco/annotations/instances_val2017.json", "coco/val2017"),
    ("dsb2018/annotations/train.json", "dsb2018/train"),
    ("dsb2018/annotations/val.json", "dsb2018/val"),
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"strategy": "all", "copies": 3},
    {"strategy": "multiple", "copies": 3, "blur": 5},
    {"strategy": "single", "copies": 5, "gap": 0, "blur": 3},
    {"strategy": "all", "copies": 1, "allow_overlap": True},
)


def made_scene(seed: int) -> tuple[str, Counter, str]:
    """One synthetic scene, under options of its own."""
    rng = np.random.default_rng(seed)
    image, annotations = random_scene(rng)
    copy_paste = CopyPaste(**random_options(rng))
    return _checked("synthetic scenes", f"scene {seed}", image, annotations, copy_paste, seed)


def from_others(seed: int) -> tuple[str, Counter, str]:
    """One synthetic scene, with objects of a bank of others; nothing where they have none."""
    rng = np.random.default_rng((seed, 1))
    others = []
    for number in range(4):
        pixels, annotations = random_scene(rng, low=40)
        height, width = pixels.shape[:2]
        size = {"height": height, "width": width, "image_id": number, "pixels": pixels}
        others.append({**size, "annotations": annotations})
    options = random_options(rng)
    rule = options.pop("sources").rule
    try:
        bank = build_bank(others, rule, lambda r: r["pixels"], rng, images=len(others))
    except SmallObjError:
        return "from a bank", Counter(), ""
    copy_paste, image = CopyPaste(sources=bank, **options), random_scene(rng)
    return _checked("from a bank", f"bank {seed}", *image, copy_paste, seed, rule)


def real_image(task: tuple[str, dict[str, Any], int]) -> tuple[str, Counter, str]:
    """One real image under one of the settings."""
    dataset, record, setting = task
    image = cv2.imread(record["file_name"])
    where = f"{record['file_name']}, {SETTINGS[setting]}"
    copy_paste = CopyPaste(**SETTINGS[setting])
    return _checked(dataset, where, image, record["annotations"], copy_paste, setting)


def _checked(
    dataset: str,
    where: str,
    image: Any,
    annotations: Any,
    copy_paste: CopyPaste,
    seed: int,
    rule: SourceRule | None = None,
) -> tuple[str, Counter, str]:
    try:
        counts = check(image, annotations, copy_paste, seed, rule)
    except AssertionError as e:
        return dataset, Counter(), f"{where}: {e}"
    return dataset, counts + Counter({"images": 1}), ""


def real_tasks(root: Path, most: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Every real image with each setting; those with very many instances are left out."""
    for json_file, folder in REAL:
        if (root / json_file).is_file():
            for record in load_coco(root / json_file, root / folder).records:
                if len(record["annotations"]) <= most:
                    for setting in range(len(SETTINGS)):
                        yield json_file.split("/")[0], record, setting


def main() -> int:
    parser = CommandLine(__doc__)
    parser.add_argument(
        "--scenes", type=int, default=10_000, help="synthetic scenes, once more with a bank (10000)"
    )
    parser.add_argument("--first", type=int, default=0, help="seed of the first scene (0)")
    parser.add_argument(
        "--most", type=int, default=400, help="leave out real images of more instances (400)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # of images that want more pastes than the limit
    real = list(real_tasks(Path(os.environ.get("DETECTRON2_DATASETS", "datasets")), args.most))
    if not real:
        print("No real images: DETECTRON2_DATASETS names no folder with coco/ or dsb2018/.")
    totals: dict[str, Counter] = {}
    seeds = range(args.first, args.first + args.scenes)
    violations = []
    with (
        ProcessPoolExecutor(args.workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool,
        tqdm(total=2 * args.scenes + len(real), unit="image", smoothing=0) as bar,
    ):
        for work, tasks in ((made_scene, seeds), (from_others, seeds), (real_image, real)):
            for dataset, counts, violation in pool.map(work, tasks, chunksize=16):
                totals.setdefault(dataset, Counter()).update(counts)
                bar.update()
                if violation:
                    violations.append(violation)
                    bar.write(f"VIOLATION: {violation}")
    print_table(totals)
    print(f"\n{len(violations)} violations.")
    return 1 if violations else 0


def print_table(totals: dict[str, Counter]) -> None:
    """Laws down, datasets across, in Markdown."""
    names = list(dict.fromkeys(law for counts in totals.values() for law in counts))
    first = ["images", *sorted(n for n in names if n.startswith("cop") or "that left" in n)]
    print("| | " + " | ".join(totals) + " |")
    print("|---|" + "---:|" * len(totals))
    for law in [*first, *(n for n in names if n not in first)]:
        print(f"| {law} | " + " | ".join(f"{c[law]:,}" for c in totals.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
