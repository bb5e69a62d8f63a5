"""Compare runs by the size of what they find: AP, recall and gain, octave by octave.

smallobj compare --runs output/baseline output/orig_aug_multi3x --out sizes.png
smallobj compare --runs output/baseline output/mine --boxes --limits 4 8 16 32 64

The runs are folders (OUTPUT_DIR) of finished runs with the same test set, of either engine; the
first is what the others are compared with. Sides are those of a square of an object's area.
"""

from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.commands import CommandLine, writable
from smallobj_d2.commands.detections import add_runs, named_runs
from smallobj_d2.config import RULES, get_cfg
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.visualization.sizes import compare


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    add_runs(parser)
    parser.flag("--boxes", "compare boxes, not masks")
    limits = get_cfg().SMALLOBJ.SIZE_LIMITS
    words = "sides in pixels that part the bands"
    parser.option("--limits", words, limits, type=float, nargs="+", metavar="SIDE")
    parser.option("--out", default=Path("output/sizes.png"), metavar="PNG|SVG")
    args = parser.parse_args(argv)
    rule = RULES["SMALLOBJ.SIZE_LIMITS"]
    if not rule.holds(args.limits):
        raise SmallObjError(f"--limits {rule.words}.")
    runs = named_runs(args)
    out = writable(args.out, (".png", ".svg"))
    half = "bbox" if args.boxes else "segm"
    text, picture = compare(runs, half, args.limits, suffix=out.suffix.removeprefix("."))
    out.write_bytes(picture)
    print(f"{text}\n{out}")
