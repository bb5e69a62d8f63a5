"""Datasets with YOLO's labels to COCO format, and back.

smallobj yolo to-coco data.yaml --out annotations
smallobj yolo to-yolo --json train.json --images images/train --split train --out yolo

The first writes a COCO JSON for each split, and says where its images are. The second makes links
to the images, and takes augmented copies (smallobj augment) as well. Both take boxes and
polygons. YOLO has one polygon for each object: of masks with several parts or holes, the outlines
are joined by lines without width, and pixel masks become outlines first.
"""

from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.adapters.yolo import SPLITS, read_yaml, require_absent, to_coco, to_yolo
from smallobj_d2.commands import CommandLine, add_dataset_options, path, writable_folder
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.files import write_json


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    commands = parser.add_subparsers(dest="direction", required=True)
    coco = commands.add_parser("to-coco", help="a YOLO dataset to COCO JSON")
    coco.add_argument("data", type=path, metavar="data.yaml")
    coco.option("--out", required=True, type=path, metavar="FOLDER")
    yolo = commands.add_parser("to-yolo", help="a COCO-format dataset to a split of a YOLO dataset")
    add_dataset_options(yolo, "the dataset")
    yolo.option("--split", default="train", choices=SPLITS)
    yolo.flag("--boxes", "write boxes where there are masks")
    yolo.option("--out", required=True, type=path, metavar="FOLDER")
    args = parser.parse_args(argv)
    writable_folder(args.out)
    if args.direction == "to-coco":
        _to_coco(args.data, args.out)
        return
    if args.json is None or args.images is None:
        yolo.error("--json and --images are required")
    done = to_yolo(args.json, args.images, args.out, args.split, boxes=args.boxes)
    form = "polygons" if done.masks else "boxes"
    print(f"{args.split}: {done.images:,} images, {done.instances:,} {form}")
    if done.masks:
        print(
            f"{done.joined:,} masks have parts or holes, joined by lines without width; "
            f"{done.bitmaps:,} are outlines of pixels (RLE)."
        )
    for reason, count in done.left_out.items():
        print(f"Left out: {count:,} {reason}.")
    print(args.out / "data.yaml")


def _to_coco(file: Path, out: Path) -> None:
    datasets = []
    splits = [split for split in SPLITS if read_yaml(file).get(split)]
    if not splits:
        raise SmallObjError(f"{file} names no images: it has none of {', '.join(SPLITS)}.")
    require_absent(out / f"{split}.json" for split in splits)
    made = {split: to_coco(file, split) for split in splits}  # all, before the first is written
    for split, (data, root) in made.items():
        write_json(out / f"{split}.json", data)
        datasets.append(f'["my_{split}", "{out / split}.json", "{root}"]')
        images, instances = len(data["images"]), len(data["annotations"])
        print(f"{split}: {images:,} images, {instances:,} instances, images in {root}")
    print(f"  SMALLOBJ.DATASETS '[{', '.join(datasets)}]'")
