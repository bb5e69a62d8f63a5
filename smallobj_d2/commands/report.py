"""The report on what smallobj reproduce has run so far, as Markdown and HTML.

smallobj report --runs output/reproduce/tiny/torchvision          # of these runs
smallobj report --runs output/reproduce/tiny/torchvision --add    # beside those before
smallobj report --results experiments/results                      # of what is kept in a folder

Works on partial results: missing planned runs are counted, and missing rows of a table are named.

With --resamples N, intervals over the validation images stand beside those over seeds.

What was planned before the runs is in a plan: --plan, or else the plan.yaml in the folder of the
results or in the one above.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.commands import CommandLine, path, scale_file
from smallobj_d2.config import EXPERIMENTS
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.experiments.paper import load_paper
from smallobj_d2.experiments.plan import Plan, Planned, load_plan
from smallobj_d2.experiments.report import build_report
from smallobj_d2.experiments.results import (
    distil,
    load_results,
    over_images,
    parse_results,
    resampled_aps,
    together,
    write_results,
)
from smallobj_d2.experiments.scales import load_scale
from smallobj_d2.files import reading


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    words = "folders of runs, OUT/SCALE/ENGINE"
    parser.add_argument("--runs", type=path, nargs="+", default=[], metavar="FOLDER", help=words)
    parser.flag("--add", "keep earlier results of runs not in FOLDER")
    words = "your own scale that --runs used"
    parser.option("--scale", words, type=scale_file, metavar="FILE")
    words = "bootstrap resamples of the validation images (2000 take some time per run)"
    parser.option("--resamples", words, 0, metavar="N")
    words = "folder of the result JSONs, one per scale and engine, and of the report"
    parser.option("--results", words, Path("output/report"), metavar="FOLDER")
    words = "what was planned (default: plan.yaml in the folder of the results or above)"
    parser.add_argument("--plan", type=path, metavar="FILE", help=words)
    args = parser.parse_args(argv)
    own = args.results.absolute() / "plan.yaml"
    if args.plan and not args.plan.is_file():
        raise SmallObjError(f"There is no plan {args.plan}.")
    plan = load_plan(args.plan or (own if own.is_file() else own.parents[1] / own.name))
    folders: dict[Path, list[Path]] = {}
    for folder in args.runs:
        if not folder.is_dir():
            raise SmallObjError(f"--runs {folder}: no folder; it is OUT/SCALE/ENGINE of a sweep.")
        file = args.scale or scale_file(folder.absolute().parent.name)
        if not file.is_file():
            raise SmallObjError(
                f"--runs {folder}: it is OUT/SCALE/ENGINE of a sweep, and there is no scale "
                f"{file.stem!r}. If that is your own, give --scale FILE."
            )
        scale = load_scale(file)
        result = args.results / f"{scale.name}_{folder.name}.json"
        found = distil(scale, folder.absolute())
        if (args.add and result.is_file()) or result in folders:
            with reading(result):
                found = together(found, json.loads(result.read_bytes()))
        write_results(result, found)
        folders.setdefault(result, []).append(folder)
        print(result)
    if args.resamples:
        for result, of_result in folders.items():
            _add_intervals(result, of_result, plan, args.resamples)
    paths = sorted(args.results.glob("*.json"))
    if not paths:
        raise SmallObjError(f"There are no results in {args.results}; name --runs.")
    paper = load_paper(EXPERIMENTS / "paper.yaml")
    document = build_report(paper, [*map(load_results, paths)], plan)
    for file in document.write(args.results, "report"):
        print(file)


def _add_intervals(result: Path, folders: Sequence[Path], plan: Plan, resamples: int) -> None:
    """Put intervals over images into a results file, in place of those of the same two rows."""
    content = json.loads(result.read_bytes())
    found = parse_results(content)
    planned = plan.get(found.about["scale"], Planned())
    counted = planned.fitting(found).only(found)
    aps = resampled_aps(found, folders, resamples, result.with_suffix(".npz"))
    new = over_images(counted, aps, planned.bases)
    every = {(i["row"], i["base"]): i for i in [*content["over_images"], *new]}
    write_results(result, content | {"over_images": [*every.values()]})
