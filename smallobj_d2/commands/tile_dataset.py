"""A dataset of large images, cut into tiles for training; polygons and RLE stay what they are.

smallobj tile --json train.json --images images/train --size 640 --out tiles/train
smallobj tile --dataset coco_2017_val --size 320 --overlap 0.25 --out tiles/val

Writes FOLDER/annotations.json and FOLDER/images. An object that a tile's edge cuts keeps the part
inside, if that is at least --min-share of its area, or fills that share of the tile. A call that
was interrupted continues when it is repeated.
"""

from collections.abc import Sequence

from smallobj_d2.commands import (
    CommandLine,
    add_dataset_options,
    path,
    require,
    resumable,
)
from smallobj_d2.datasets.coco import dataset_info
from smallobj_d2.errors import SmallObjError, command, printable
from smallobj_d2.export.tiles import MIN_SHARE, tile_dataset


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    parser.option("--dataset", "a built-in dataset, such as COCO's", metavar="NAME")
    add_dataset_options(parser, "your own dataset")
    parser.option("--out", required=True, type=path, metavar="FOLDER")
    parser.option("--size", "of a tile in pixels", 640)
    parser.option("--overlap", "share of a tile that its neighbor has, too", 0.2)
    parser.option("--min-share", "least share of an object's area that is kept", MIN_SHARE)
    parser.flag("--drop-empty", "no tiles without annotations")
    parser.flag("--skip-unreadable", "leave out images that cannot be read")
    parser.option("--workers", "number of threads (default: one per core)", type=int)
    args = parser.parse_args(argv)
    files = [args.json, args.images]
    if bool(args.dataset) == any(files) or any(files) != all(files):
        raise SmallObjError("Give either --dataset, or --json and --images.")
    require(args, "workers")
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
