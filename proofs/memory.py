"""The memory of loader workers over thousands of batches of a dataset of COCO's size.

DETECTRON2_DATASETS=datasets python -m proofs.memory --batches 4000

Repeats the annotations that there are (COCO's training images, else synthetic scenes) up to the
number of images in COCO, gives each a small generated file, and draws batches with oversampling and
copy-paste. Every so often it reads what each worker holds: RSS counts all pages of a process, PSS
divides those that several share, "own" are those that it shares with none. The plot should be flat.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from tqdm import tqdm

from smallobj_d2.augmentation import DrawAugmentation
from smallobj_d2.commands import CommandLine
from smallobj_d2.copy_paste import CopyPaste, SameImage, SourceRule, Sources
from smallobj_d2.copy_paste.bank import build_bank
from smallobj_d2.datasets.coco import dataset_info, load_coco
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.engines.loader import TrainLoader
from smallobj_d2.engines.torchvision.mapper import SmallObjectMapper
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sampling import repeat_factors

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def templates(folder: Path) -> list[dict[str, Any]]:
    """The dataset dicts to repeat, each with a small file of its size."""
    try:
        info = dataset_info("coco_2017_train")
        records = load_coco(info.json_file, info.image_root).records[:120]
    except SmallObjError:
        make_dataset(folder, "made", 60, seed=0, size=256, progress=False)
        records = load_coco(folder / "made" / "annotations.json", folder).records
    for i, record in enumerate(records):
        record["file_name"] = str(folder / f"{i}.jpg")
        picture = Image.new("RGB", (record["width"], record["height"]), (40 * i % 256, 90, 120))
        picture.save(record["file_name"], quality=50)
    return records


def repeated(records: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """So many dataset dicts, none of which shares anything with another."""
    texts = [json.dumps(r, default=lambda b: b.decode()) for r in records]
    return [json.loads(text) for text in islice(cycle(texts), number)]


KINDS = ("RSS", "PSS", "own")


def memory(process: int) -> tuple[float, float, float]:
    """RSS, PSS and own memory of a process in MB."""
    fields = dict.fromkeys(("Rss:", "Pss:", "Private_Clean:", "Private_Dirty:"), 0.0)
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        name, *rest = line.split()
        if name in fields:
            fields[name] = int(rest[0]) / 1024
    rss, pss, *own = fields.values()
    return rss, pss, sum(own)


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--batches", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--records", type=int, default=118_287, help="COCO train2017 has 118,287")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bank", type=int, default=0, help="paste from a bank of so many images")
    parser.add_argument("--every", type=int, default=50, help="batches between readings")
    parser.add_argument("--out", type=Path, default=Path("docs/images/memory.png"), metavar="PNG")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        records = repeated(templates(Path(folder)), args.records)
        factors = repeat_factors(records, 2.0)
        sources: Sources = SameImage()
        if args.bank:
            rng = np.random.default_rng(0)
            bank = build_bank(records, SourceRule(), read_rgb, rng, images=args.bank)
            print(f"bank: {len(bank):,} objects of {bank.images:,} images, {bank.nbytes >> 20} MB")
            sources = bank
        copy_paste = CopyPaste(strategy="all", copies=3, sources=sources)
        augmentation = DrawAugmentation(copy_paste, seed=0)
        loader = TrainLoader(
            records,
            factors,
            SmallObjectMapper(True, min_size=(160,), max_size=256, augmentation=augmentation),
            seed=0,
            images_per_batch=args.batch_size,
            num_workers=args.workers,
        )
        objects = sum(len(r["annotations"]) for r in records)
        del records
        packed = loader.dataset.records.nbytes / 2**20
        print(
            f"{args.records:,} images with {objects:,} objects, {packed:,.0f} MB packed, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
        readings = []
        start = time.monotonic()
        batches = islice(iter(loader), args.batches)
        for i, _ in enumerate(tqdm(batches, total=args.batches, unit="batch")):
            if i % args.every == 0:
                workers = sorted(p.pid for p in multiprocessing.active_children())
                readings.append([memory(p) for p in workers])
        seconds = time.monotonic() - start
    table = np.array(readings)  # (readings, workers, kinds)
    draw(table, args.every, args.out)
    print(f"{args.batches} batches in {seconds:.0f} s. Plot: {args.out}")
    tenth = max(1, len(table) // 10)
    for worker in range(table.shape[1]):
        for column, name in enumerate(KINDS):
            # The first tenth is left out: a worker touches its code and its first epoch's order.
            early = table[tenth : 2 * tenth, worker, column].mean()
            late = table[-tenth:, worker, column].mean()
            print(f"worker {worker + 1} {name}: {early:.0f} MB early, {late:.0f} MB at the end")


def draw(table: np.ndarray, every: int, path: Path) -> None:
    """Plot readings (readings, workers, kinds) over batches."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    batches = np.arange(len(table)) * every
    for worker in range(table.shape[1]):
        for column, style in enumerate(("-", "--", ":")):
            name = KINDS[column]
            label = f"worker {worker + 1}, {name}"
            axes.plot(batches, table[:, worker, column], style, color=f"C{worker}", label=label)
    axes.set(xlabel="batches", ylabel="MB", ylim=(0, table.max() * 1.15))
    axes.set_title("Memory of the loader's workers")
    axes.legend(ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
