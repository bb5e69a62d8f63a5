"""Contact sheet of what trained models found: the annotations, and each run's detections.

smallobj detections --runs output/baseline output/orig_aug_multi3x --out detections.png
smallobj detections --runs output/mine --images 139 285 632 --score 0.3

Found objects are outlined in green, missed ones in red, detections of nothing in orange. The runs
are folders (OUTPUT_DIR) of finished runs with the same test set; of either engine.
"""

from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.commands import command, command_line, path, writable
from smallobj_d2.errors import SmallObjError
from smallobj_d2.visualization.detections import detection_sheet


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("--runs", required=True, nargs="+", type=path, metavar="FOLDER")
    parser.add_argument("--names", nargs="+", help="names of the runs, in their order")
    parser.add_argument("--images", type=int, nargs="+", default=[], metavar="ID")
    parser.add_argument(
        "--num", type=int, default=4, help="number of images with small objects, chosen at random"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that choice")
    parser.add_argument(
        "--score", type=float, default=0.5, help="lowest score of a detection to show"
    )
    parser.add_argument(
        "--iou", type=float, default=0.5, help="least IoU with an object to count as found"
    )
    parser.add_argument("--width", type=int, default=480, help="width of each picture in pixels")
    parser.add_argument("--out", type=path, default=Path("output/detections.png"), metavar="PNG")
    args = parser.parse_args(argv)
    names = names_of(args.runs, args.names)
    out = writable(args.out)
    sheet, text = detection_sheet(
        dict(zip(names, args.runs, strict=True)),
        images=args.images,
        num=args.num,
        seed=args.seed,
        score=args.score,
        iou=args.iou,
        width=args.width,
    )
    sheet.save(out)
    print(f"{text}\n{out}")


def names_of(runs: Sequence[Path], given: Sequence[str] | None = None) -> list[str]:
    """What to call runs: as given, or the parts of their paths that tell them apart.

    Raises:
        SmallObjError: if there are not as many different names as runs.
    """
    names = list(given or _parts(runs))
    if len(set(names)) != len(runs):
        raise SmallObjError(
            f"{len(runs)} runs need as many different names, not {' '.join(names)}."
        )
    return names


def _parts(runs: Sequence[Path]) -> list[str]:
    """`baseline/seed0` and such."""
    ends = [run.absolute().parts for run in runs]
    while len({end[0] for end in ends}) == 1 and all(len(end) > 1 for end in ends):
        ends = [end[1:] for end in ends]
    while len({end[-1] for end in ends}) == 1 and all(len(end) > 1 for end in ends):
        ends = [end[:-1] for end in ends]
    return ["/".join(end) for end in ends]
