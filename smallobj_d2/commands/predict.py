"""What a trained model finds in your images: COCO JSON, and pictures with categories and scores.

smallobj predict --run output/mine images/ --out predictions.json --pictures out/
smallobj predict --run output/mine 'images/*.png' --out predictions.json --score 0.3
smallobj predict --run output/mine large.tif --out predictions.json --slices 640
smallobj predict --run output/mine images/val --json val.json --out results.json --score 0.05

The run is the folder (OUTPUT_DIR) of a training run, of either engine. The JSON is a dataset of
its own, with a score in each annotation. With --json it is a list of results with the ids of that
file, as COCO's evaluation takes it. --slices needs SAHI, which docs/large_images.md says how to
install beside OpenCV.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from smallobj_d2.commands import CommandLine, parse, path, require, writable, writable_folder
from smallobj_d2.datasets.categories import require_same_categories
from smallobj_d2.datasets.images import SUFFIXES
from smallobj_d2.errors import SmallObjError, command, printable


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("inputs", nargs="*", metavar="IMAGES", help="files, folders, patterns")
    parser.option("--run", "the trained run", required=True, type=path, metavar="FOLDER")
    parser.option("--out", default=Path("output/predictions.json"), metavar="JSON")
    parser.option("--pictures", "draw what is found", type=path, metavar="FOLDER")
    parser.option("--score", "lowest score of a detection", 0.5)
    parser.option("--json", "COCO JSON of these images, for their ids", type=path, metavar="FILE")
    parser.option("--slices", "look at large images in slices as well", type=int, metavar="SIZE")
    parser.option("--overlap", "share of a slice that its neighbor has, too", 0.2)
    parser.option("--batch", "images or slices that the model takes at a time", 1)
    parser.option("--weights", "a checkpoint (default: the last)", type=path, metavar="FILE")
    parser.flag("--overwrite", "replace what is there")
    args = parse(parser, argv)
    inputs, opts = _apart([*args.inputs, *args.opts])
    if not inputs:
        raise SmallObjError("Name the images: files, folders, or patterns such as 'images/*.png'.")
    require(args, "batch")
    require(args, "score", least=0, most=1)
    # Loads torch, which takes seconds.
    from smallobj_d2.engines import predictions

    images = predictions.find_images(inputs, args.pictures)
    categories = None
    if args.json:
        images, categories = predictions.with_ids_of(images, args.json)
    writable(args.out, (".json",))
    predictions.require_new(args.out, args.pictures, images, overwrite=args.overwrite)
    if args.pictures:
        writable_folder(args.pictures)
    in_slices = _slices() if args.slices is not None else None
    run = predictions.load_run(args.run, opts, weights=args.weights, categories=categories)
    if categories:
        require_same_categories({str(args.run): run.categories, str(args.json): categories})
    predict: predictions.Predict = partial(run, score=args.score)
    if in_slices is not None:
        how = {"overlap": args.overlap, "score": args.score, "batch": args.batch}
        predict = in_slices(run, args.slices, **how)
    for file in images.unknown:
        print(f"skipped: {printable(file)} is not in {args.json}.")
    info = {"run": str(args.run), "weights": str(run.weights), "score": args.score}
    done = predictions.predict_images(
        predict,
        images,
        args.out,
        categories=run.categories,
        info={**info, "slices": args.slices},
        as_results=args.json is not None,
        pictures=args.pictures,
        batch=args.batch if args.slices is None else 1,
    )
    skipped = len(done.skipped) + len(images.unknown)
    print(
        f"{done.images:,} images, {done.detections:,} detections with a score of {args.score} or "
        f"more{f'; skipped, as named above: {skipped:,}' if skipped else ''}.\n{args.out}"
    )
    if args.pictures:
        print(args.pictures)


def _slices() -> Any:
    try:
        from smallobj_d2.engines.slices import in_slices
    except ModuleNotFoundError as e:
        raise SmallObjError(
            f"--slices needs SAHI ({e}). docs/large_images.md says how to install it: it brings "
            "opencv-python, beside which opencv-python-headless must not be."
        ) from e
    return in_slices


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images, and ``KEY VALUE`` overrides, which may stand before or after them."""
    images, opts = [], []
    rest = iter(words)
    for word in rest:
        is_key = re.fullmatch(r"[A-Z_]+(\.[A-Z0-9_]+)+", word)
        if is_key and not word.lower().endswith(SUFFIXES) and not os.path.exists(word):
            opts += [word, *(value for value in [next(rest, None)] if value is not None)]
        else:
            images.append(word)
    return images, opts
