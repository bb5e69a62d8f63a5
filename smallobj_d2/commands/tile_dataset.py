"""A dataset of large images, cut into tiles for training; polygons and RLE stay what they are.

smallobj tile --json train.json --images images/train --size 640 --out tiles/train
smallobj tile --dataset coco_2017_val --size 320 --overlap 0.25 --out tiles/val

Writes FOLDER/annotations.json and FOLDER/images. An object that a tile's edge cuts keeps the part
inside, if that is at least --min-share of its area. A call that was interrupted continues when it
is repeated.
"""

from collections.abc import Sequence

from smallobj_d2.commands import add_dataset_options, command, command_line, path, resumable
from smallobj_d2.datasets.coco import dataset_info
from smallobj_d2.errors import SmallObjError, printable
from smallobj_d2.export.tiles import MIN_SHARE, tile_dataset


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("--dataset", metavar="NAME", help="a built-in dataset, such as COCO's")
    add_dataset_options(parser, "your own dataset")
    parser.add_argument("--out", required=True, type=path, metavar="FOLDER")
    parser.add_argument("--size", type=int, default=640, help="of a tile in pixels (default 640)")
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.2,
        help="share of a tile that its neighbor has, too (default 0.2)",
    )
    parser.add_argument(
        "--min-share",
        type=float,
        default=MIN_SHARE,
        help=f"least share of an object's area that is kept (default {MIN_SHARE})",
    )
    parser.add_argument("--drop-empty", action="store_true", help="no tiles without annotations")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out images that cannot be read"
    )
    parser.add_argument("--workers", type=int, help="number of threads (default: one per core)")
    args = parser.parse_args(argv)
    files = [args.json, args.images]
    if bool(args.dataset) == any(files) or any(files) != all(files):
        raise SmallObjError("Give either --dataset, or --json and --images.")
    if args.workers is not None and args.workers < 1:
        raise SmallObjError("--workers must be 1 or more.")
    if args.dataset:
        info = dataset_info(args.dataset)
        files = [info.json_file, info.image_root]
    json_file, image_root = files
    with resumable():
        done = tile_dataset(
            json_file,
            image_root,
            args.out,
            size=args.size,
            overlap=args.overlap,
            min_share=args.min_share,
            drop_empty=args.drop_empty,
            skip_unreadable=args.skip_unreadable,
            workers=args.workers,
        )
    for skipped in done.skipped:
        print(f"skipped: {printable(skipped)}")
    print(
        f"{done.tiles:,} tiles ({done.empty:,} without annotations "
        f"{'dropped' if args.drop_empty else 'among them'}), {done.whole:,} whole objects and "
        f"{done.cut:,} cut ones; {done.left_out:,} parts are less than {args.min_share} of an "
        f"object and left out.\n{done.json_file}\n{done.image_root}"
    )
