"""Contact sheet of what trained models found: the annotations, and each run's detections.

smallobj detections --runs output/baseline output/orig_aug_multi3x --out detections.png
smallobj detections --runs output/mine --images 139 285 632 --score 0.3

Found objects are outlined in green, missed ones in red, detections of nothing in orange. The runs
are folders (OUTPUT_DIR) of finished runs with the same test set; of either engine.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.commands import CommandLine, path, require, writable
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.visualization.detections import detection_sheet


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    add_runs(parser)
    parser.option("--images", "ids of the images to show", nargs="+", metavar="ID")
    parser.option("--num", "number of images with small objects, chosen at random", 4)
    parser.option("--seed", "seed of that choice", 0)
    parser.option("--score", "lowest score of a detection to show", 0.5)
    parser.option("--iou", "least IoU with an object to count as found", 0.5)
    parser.option("--width", "width of each picture in pixels", 480)
    parser.option("--out", default=Path("output/detections.png"), metavar="PNG")
    args = parser.parse_args(argv)
    require(args, "num", "width")
    require(args, "seed", least=0)
    require(args, "score", "iou", least=0, most=1)
    runs = named_runs(args)
    out = writable(args.out)
    names = ("num", "seed", "score", "iou", "width")
    how = {name: getattr(args, name) for name in names}
    sheet, text = detection_sheet(runs, images=args.images or (), **how)
    sheet.save(out)
    print(f"{text}\n{out}")


def add_runs(parser: CommandLine) -> None:
    """Give a command ``--runs`` and ``--names``."""
    parser.option("--runs", required=True, nargs="+", type=path, metavar="FOLDER")
    parser.option("--names", "names of the runs, in their order", nargs="+")


def named_runs(args: Namespace) -> dict[str, Path]:
    """The runs that a command names, by their names: as given, or what tells their paths apart.

    Raises:
        SmallObjError: if there are not as many different names as runs.
    """
    names = list(args.names or _parts(args.runs))
    if not len(set(names)) == len(names) == len(args.runs):
        raise SmallObjError(
            f"{len(args.runs)} runs need as many different names, not {' '.join(names)}."
        )
    return dict(zip(names, args.runs, strict=True))


def _parts(runs: Sequence[Path]) -> list[str]:
    """`baseline/seed0` and such."""
    ends = [run.absolute().parts for run in runs]
    while len({end[0] for end in ends}) == 1 and all(len(end) > 1 for end in ends):
        ends = [end[1:] for end in ends]
    while len({end[-1] for end in ends}) == 1 and all(len(end) > 1 for end in ends):
        ends = [end[:-1] for end in ends]
    return ["/".join(end) for end in ends]
