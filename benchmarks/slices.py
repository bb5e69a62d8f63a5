"""AP by size on large images, with and without slices.

python -m benchmarks.slices --run output/mine --json val.json --images images/val --slices 256

The large images are mosaics of a dataset's images, each image left as it is. Three ways to look at
them: as the run's config resizes images; at the scale at which it sees the single images; and in
slices, with the whole image as well.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from smallobj_d2.commands import CommandLine, add_dataset_options, path
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.engines.predictions import (
    Predict,
    find_images,
    load_run,
    predict_images,
    with_ids_of,
)
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.evaluation.ap import coco_metrics, count_objects, load_ground_truth, row_of, table
from smallobj_d2.masks.rle import encode
from smallobj_d2.masks.shapes import Window, shape_of

_DETECTIONS = 1000  # of a mosaic that count


def write_mosaics(json_file: Path, images: Path, out: Path, grid: int, cell: int) -> Path:
    """Write mosaics of ``grid x grid`` images, and their annotations as RLE; the JSON's path.

    Images come in the order of their brightness, so that those of a mosaic look like one, each in a
    cell of `cell` pixels, from which what is larger is cropped. Those that do not fill a mosaic
    are left out.
    """
    dataset = load_coco(json_file, images)
    dataset.records.sort(key=lambda record: float(read_rgb(record).mean()))
    (out / "images").mkdir(parents=True)
    side = grid * cell
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for first in range(0, len(dataset.records) - grid**2 + 1, grid**2):
        mosaic = np.zeros((side, side, 3), np.uint8)
        number = len(entries) + 1
        for at, record in enumerate(dataset.records[first : first + grid**2]):
            y, x = (cell * i for i in divmod(at, grid))
            height, width = min(cell, record["height"]), min(cell, record["width"])
            mosaic[y : y + height, x : x + width] = read_rgb(record)[:height, :width]
            for a in record["annotations"]:
                shape = shape_of(a, record["height"], record["width"])
                mask = shape.pixels(Window(0, 0, width, height))
                if not mask.any():
                    continue
                rle = encode(mask, x, y, side, side)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": dataset.category_ids[a["category_id"]],
                        "iscrowd": a["iscrowd"],
                        "bbox": coco_mask.toBbox(rle).tolist(),
                        "area": float(mask.sum()),
                        "segmentation": {**rle, "counts": rle["counts"].decode()},
                    }
                )
        name = f"{number:04}.png"
        Image.fromarray(mosaic).save(out / "images" / name)
        entries.append({"id": number, "file_name": name, "width": side, "height": side})
    categories = [{"id": i, "name": n} for i, n in dataset.categories.items()]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (out / "mosaics.json").write_text(json.dumps(content))
    return out / "mosaics.json"


def measure(predict: Predict, json_file: Path, categories: Any) -> tuple[str, float]:
    """AP by size as a table, and seconds per image."""
    images, _ = with_ids_of(find_images([json_file.parent / "images"]), json_file)
    results = json_file.parent / "results.json"
    start = perf_counter()
    predict_images(predict, images, results, categories=categories, info={}, as_results=True)
    seconds = (perf_counter() - start) / len(images.records)
    truth = load_ground_truth(json_file)
    found = json.loads(results.read_bytes())
    metrics = {task: coco_metrics(truth, found, task, _DETECTIONS) for task in ("segm", "bbox")}
    return table(row_of(metrics, count_objects(truth))), seconds


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--run", required=True, type=path, metavar="FOLDER")
    add_dataset_options(parser, "whose images the mosaics are made of")
    parser.add_argument("--grid", type=int, default=4, help="images along each side of a mosaic")
    parser.add_argument("--slices", type=int, default=256, help="size of a cell, and of a slice")
    parser.add_argument("--out", type=path, metavar="FOLDER", help="keep the mosaics here")
    args = parser.parse_args(argv)
    if not args.json or not args.images:
        raise SmallObjError("Give --json and --images.")
    from smallobj_d2.engines.slices import in_slices  # needs SAHI

    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary, "mosaics")
        json_file = write_mosaics(args.json, args.images, out, args.grid, args.slices)
        run = load_run(args.run)
        m, times = run.cfg.MODEL.RPN, args.grid
        # More of all that is limited, as a mosaic holds the objects of many images.
        more = [
            *("TEST.DETECTIONS_PER_IMAGE", str(times * run.cfg.TEST.DETECTIONS_PER_IMAGE)),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", str(times * m.PRE_NMS_TOPK_TEST)),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", str(times * m.POST_NMS_TOPK_TEST)),
        ]
        larger = args.grid * run.cfg.INPUT.MIN_SIZE_TEST
        scale = ["INPUT.MIN_SIZE_TEST", str(larger), "INPUT.MAX_SIZE_TEST", str(larger)]
        ways = {
            "whole image, resized as the config says": load_run(args.run, more),
            "whole image, at the scale of single images": load_run(args.run, [*more, *scale]),
            f"slices of {args.slices} pixels and whole image": in_slices(
                run, args.slices, score=0.05
            ),
        }
        for name, predict in ways.items():
            text, seconds = measure(predict, json_file, run.categories)
            print(f"{name}, {seconds:.1f} s per image\n{text}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
