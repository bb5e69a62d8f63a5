"""Section 5.1's offline copies: what training would draw, as a COCO-format dataset on disk.

smallobj augment --config orig_aug_multi3x --out datasets/coco_orig_aug
smallobj augment --config aug --dataset coco_2017_val --out datasets/aug_val
smallobj augment --config aug --json a.json --images images/ --out aug

Any framework can train on it. The second is the augmented validation set of section 6.2. A call
that was interrupted continues when it is repeated.
"""

from collections.abc import Sequence

from smallobj_d2.commands import (
    CommandLine,
    add_dataset_options,
    config_from,
    parse,
    path,
    require,
    resumable,
)
from smallobj_d2.errors import command, printable
from smallobj_d2.export.augmented import Summary, augment_dataset


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__, config=True)
    parser.option("--dataset", "augment it instead of DATASETS.TRAIN", metavar="NAME")
    add_dataset_options(parser, "a dataset instead of DATASETS.TRAIN")
    parser.option("--out", required=True, type=path, metavar="FOLDER")
    parser.option("--workers", "number of threads (default: one per core)", type=int)
    args = parse(parser, argv)
    require(args, "workers")
    with resumable():
        cfg = config_from(args)
        print_summary(augment_dataset(cfg, args.out, workers=args.workers), cfg.SEED)


def print_summary(done: Summary, seed: int) -> None:
    for skipped in done.skipped:
        print(f"skipped: {printable(skipped)}")
    lost = done.left_out
    print(
        f"Seed {seed}: {done.original:,} images as they were (links), {done.augmented:,} augmented "
        f"ones with {done.pastes:,} pastes. Of the copies that were wanted {lost['given_up']:,} "
        f"found no free place, {lost['empty']:,} own no pixel and {lost['capped']:,} are over "
        "SMALLOBJ.MAX_PASTES.\n"
        f"{done.json_file}\n{done.image_root}\n"
        "Train on it, or evaluate with it, by any name that you give it:\n"
        f"""  SMALLOBJ.DATASETS '[["NAME", "{done.json_file}", "{done.image_root}"]]'"""
    )
