"""Compare runs by the size of what they find: AP, recall and gain, octave by octave.

smallobj compare --runs output/baseline output/orig_aug_multi3x --out sizes.png
smallobj compare --runs output/baseline output/mine --boxes --limits 4 8 16 32 64

The runs are folders (OUTPUT_DIR) of finished runs with the same test set, of either engine; the
first is what the others are compared with. Sides are those of a square of an object's area.
"""

from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.commands import command, command_line, path, writable
from smallobj_d2.commands.detections import names_of
from smallobj_d2.config import get_cfg
from smallobj_d2.visualization.sizes import compare


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("--runs", required=True, nargs="+", type=path, metavar="FOLDER")
    parser.add_argument("--names", nargs="+", help="names of the runs, in their order")
    parser.add_argument("--boxes", action="store_true", help="compare boxes, not masks")
    parser.add_argument(
        "--limits",
        type=float,
        nargs="+",
        default=get_cfg().SMALLOBJ.SIZE_LIMITS,
        metavar="SIDE",
        help="sides in pixels that part the bands; %(default)s if not given",
    )
    parser.add_argument("--out", type=path, default=Path("output/sizes.png"), metavar="PNG|SVG")
    args = parser.parse_args(argv)
    names = names_of(args.runs, args.names)
    out = writable(args.out, (".png", ".svg"))
    text, picture = compare(
        dict(zip(names, args.runs, strict=True)),
        "bbox" if args.boxes else "segm",
        args.limits,
        suffix=out.suffix.removeprefix("."),
    )
    out.write_bytes(picture)
    print(f"{text}\n{out}")
