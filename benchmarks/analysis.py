"""Time and memory of Table 2 at the size of COCO, and the ratio to brute force.

python -m benchmarks.analysis coco_2017_train
python -m benchmarks.analysis --json annotations.json --num-images 5000 --annotations 36781
"""

import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.matching import brute_force, match
from smallobj_d2.analysis.protocols import PAPER, Protocol, training_protocol
from smallobj_d2.analysis.table2 import table2
from smallobj_d2.commands import CommandLine
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.coco import dataset_info
from smallobj_d2.errors import SmallObjError


def write_resampled(
    data: CocoFile, path: Path, images: int, annotations: int, seed: int = 0
) -> None:
    """Write a COCO JSON of any size, its images and annotations drawn from a real dataset.

    Args:
        data: what to draw from.
        path: file to write.
        images: how many images, drawn with replacement.
        annotations: how many annotations; those of the drawn images are thinned out, or
            repeated, at random.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    records = list(data)
    texts = [[_open_json(a) for a in r["annotations"]] for r in records]
    drawn = rng.integers(len(records), size=images)
    number = np.array([len(t) for t in texts])[drawn]
    owner = np.repeat(np.arange(images), number)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    kept = np.sort(np.resize(rng.permutation(len(owner)), annotations))
    with path.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        for i, source in enumerate(drawn.tolist()):
            record = records[source]
            image = {"id": i, "file_name": f"{i:012}.jpg"}
            image |= {k: record[k] for k in ("height", "width")}
            file.write(f"{', ' if i else ''}{json.dumps(image)}")
        file.write('], "annotations": [')
        for n, (i, j) in enumerate(zip(owner[kept].tolist(), within[kept].tolist(), strict=True)):
            file.write(f'{", " if n else ""}{texts[drawn[i]][j]}, "image_id": {i}, "id": {n}}}')
        categories = sorted({a["category_id"] for r in records for a in r["annotations"]})
        named = [{"id": c, "name": f"category {c}"} for c in categories]
        file.write(f'], "categories": {json.dumps(named)}}}')


def _open_json(annotation: dict[str, Any]) -> str:
    """An annotation as JSON to which ids and a closing brace can be added."""
    kept = {k: v for k, v in annotation.items() if k not in ("id", "bbox_mode")}
    return json.dumps(kept, default=bytes.decode)[:-1]


def benchmark(
    path: Path, training: Protocol, *, sample: int = 40, say: Callable[[str], Any] = print
) -> None:
    """Read a dataset, make Table 2 with both protocols, and compare with brute force.

    Args:
        path: COCO JSON.
        training: the ``training`` protocol.
        sample: images that brute force is measured on, in the same run.
        say: takes lines of text.
    """
    start = perf_counter()
    data = CocoFile(path, path.parent)
    total = perf_counter() - start
    objects = data.objects
    megabytes = path.stat().st_size / 1e6
    say(f"{objects.num_images:,} images, {len(objects):,} objects, {megabytes:,.0f} MB of JSON")
    say(f"reading the file        {total:8.1f} s")
    chosen = np.linspace(0, objects.num_images - 1, sample).astype(np.int64)
    few = objects.images(chosen)
    ratios = []
    for protocol in (PAPER, training):
        start = perf_counter()
        found = match(objects, protocol, progress=True)
        table2(objects, found, data=path.stem, protocol=protocol.name)
        seconds = perf_counter() - start
        total += seconds
        say(f"Table 2, {protocol.name:<15}{seconds:8.1f} s")
        start = perf_counter()
        slow = brute_force(few, protocol)
        slow_seconds = (perf_counter() - start) / sample
        fast = match(few, protocol)
        equal = bool((slow.max_iou == fast.max_iou).all() and (slow.matched == fast.matched).all())
        ratios.append((protocol, slow_seconds, seconds / objects.num_images, equal))
    say(f"all together            {total:8.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say(f"most memory held        {peak * (1 if sys.platform == 'darwin' else 1024) / 1e9:8.2f} GB")
    for protocol, slow_seconds, fast_seconds, equal in ratios:
        say(
            f"brute force, {protocol.name}: {slow_seconds * 1e3:.1f} ms an image on {sample} "
            f"images, {slow_seconds * objects.num_images / 60:.0f} min for all: "
            f"{slow_seconds / fast_seconds:,.0f} times as long, "
            f"{'equal' if equal else 'NOT EQUAL'} on all of them"
        )


BASE = Path(__file__).resolve().parents[1] / "configs" / "base.yaml"


def main(argv: list[str] | None = None) -> int:
    parser = CommandLine(__doc__)
    parser.add_argument("dataset", nargs="?", default="coco_2017_train", help="to resample from")
    parser.add_argument("--json", metavar="FILE", help="COCO annotations to resample from instead")
    parser.add_argument("--config-file", "--config", metavar="FILE", default=BASE)
    parser.add_argument("--num-images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--sample", type=int, default=40, help="images to measure brute force on")
    args = parser.parse_args(argv)
    try:
        json_file = Path(args.json) if args.json else dataset_info(args.dataset).json_file
        training = training_protocol(load_cfg(args.config_file))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "resampled.json"
            source = CocoFile(json_file, json_file.parent)
            write_resampled(source, path, args.num_images, args.annotations)
            benchmark(path, training, sample=args.sample)
    except SmallObjError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
