"""Rerun the paper's tables: all runs that are missing, and the rest of those that were cut off.

smallobj reproduce --scale tiny --tables 3 4 --seeds 3 --dry-run
smallobj reproduce --scale tiny --tables 3 4 --seeds 3
smallobj reproduce --scale small --rows baseline aug orig_aug --seeds 5
smallobj reproduce --scale tiny --plan experiments/plan.yaml --gpus-per-run 1 --jobs 20
smallobj reproduce --scale paper --seeds 1 --slurm slurm_partition=gpu
smallobj reproduce --scale nuclei --rows baseline orig_aug_multi1x --seeds 3

Runs are in output/reproduce/SCALE/ENGINE/ROW/seedK. The same command continues a
sweep that was stopped. smallobj report makes the report, at any time.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.commands import (
    PROGRAM,
    CommandLine,
    path,
    require,
    resumable,
    scale_file,
    writable_folder,
)
from smallobj_d2.config import CONFIGS, EXPERIMENTS, config_names
from smallobj_d2.engines import choose_engine
from smallobj_d2.errors import SmallObjError, clock, command
from smallobj_d2.experiments import cluster
from smallobj_d2.experiments.paper import Paper, load_paper
from smallobj_d2.experiments.plan import Planned, load_plan
from smallobj_d2.experiments.runs import Run, State, check_requests, plan_runs
from smallobj_d2.experiments.scales import AUGMENTED_VAL, Scale, load_scale
from smallobj_d2.experiments.sweep import (
    Sweep,
    local_gpus,
    seconds_left,
    share_out,
    typical_seconds,
)
from smallobj_d2.visualization.texts import counted

OUT = Path("output", "reproduce")


def parser() -> CommandLine:
    p = CommandLine(__doc__, engine=True)
    words = "a name of experiments/scales, or the path of your own YAML file"
    p.option("--scale", words, required=True)
    which = p.add_mutually_exclusive_group()
    words = "tables of the paper, 3 to 8 (default: all)"
    which.add_argument("--tables", type=int, nargs="+", help=words)
    which.add_argument("--rows", nargs="+", metavar="NAME", help="configs to run, without .yaml")
    which.add_argument("--plan", type=path, metavar="FILE", help="the rows and seeds of a plan")
    words = "number of seeds per row (default: 1, or those of the plan)"
    p.option("--seeds", words, type=int, metavar="N")
    p.option("--first-seed", "the first of the N seeds (default: 0)", type=int, metavar="K")
    words = "GPUs of each run, 0 for the CPU (default: the scale's)"
    p.option("--gpus-per-run", words, type=int)
    p.option("--jobs", "number of runs at the same time", type=int)
    p.option("--slurm", "submit Slurm jobs, with submitit", nargs="*", metavar="KEY=VALUE")
    p.flag("--dry-run", "only list the runs and their cost")
    p.option("--out", "output folder", OUT)
    return p


def rows_of(paper: Paper, tables: list[int] | None, rows: list[str] | None) -> list[str]:
    """The rows to run, with `@augmented_val` for those that are evaluated there, too."""
    if rows:
        return rows
    unknown = sorted({*(tables or ())} - {*paper.tables})
    if unknown:
        known = ", ".join(map(str, paper.tables))
        raise SmallObjError(f"--tables {unknown[0]}: there are {known}.")
    chosen: dict[str, None] = {}
    for table in tables or paper.tables:
        chosen.update(dict.fromkeys(row["config"] for row in paper.tables[table]["rows"]))
    # Beside the row that the paper evaluates on pasted objects, the baseline as a control: are they
    # easier for a model that never saw any?
    there = [name for name in paper.numbers if name.endswith(f"@{AUGMENTED_VAL}")]
    if any(name.partition("@")[0] in chosen for name in there):
        there.append(f"baseline@{AUGMENTED_VAL}")
    return [*chosen, *(name for name in there if name.partition("@")[0] in chosen)]


def planned_for(scale: str, file: Path) -> Planned:
    """What a plan has for a scale."""
    if not file.is_file():
        raise SmallObjError(f"There is no plan {file}.")
    plan = load_plan(file)
    if scale not in plan:
        there = f"; there are {', '.join(plan)}" if plan else ""
        raise SmallObjError(f"{file} plans nothing for the scale {scale}{there}.")
    return plan[scale]


def seeds_of(planned: Planned, number: int | None) -> Sequence[int]:
    """The seeds of a plan, or so many of these and of those that are to follow."""
    every = [*planned.seeds, *planned.more_seeds]
    if number is not None and number > len(every):
        raise SmallObjError(f"--seeds {number}: the plan has {len(every)}.")
    return planned.seeds if number is None else every[:number]


def listing(runs: list[Run], scale: Scale, jobs: int) -> str:
    each = typical_seconds(runs, scale.seconds)
    measured = any(r.state() is State.FINISHED for r in runs if r.model is None)
    lines = []
    for run in runs:
        cost = ""
        if run.model is None and run.progress() < 1:
            cost = clock(each * (1 - run.progress()))
        lines.append(f"{run.name:45} {run.state().value:9} {cost:>9}")
    source = "the median of the finished ones" if measured else scale.machine
    total = clock(seconds_left(runs, each, jobs))
    return "\n".join(
        [
            *lines,
            "",
            f"{len(runs)} runs, {sum(r.state() is State.FINISHED for r in runs)} finished; "
            f"{total} left with {jobs} at a time.",
            f"{clock(each)} for each training: {source}.",
        ]
    )


def missing_gpus(wanted: int) -> str:
    """That a run is for more GPUs than there are, or nothing."""
    there = len(local_gpus())
    return f"a run is for {counted(wanted, 'GPU')}; there are {there}." if wanted > there else ""


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # how a cluster ends a job
    with resumable():
        return run(args)


def run(args: argparse.Namespace) -> int:
    require(args, "seeds", "jobs")
    require(args, "first_seed", "gpus_per_run", least=0)
    engine = choose_engine(args.engine)
    scale = load_scale(scale_file(args.scale))
    scale = scale.on(scale.gpus if args.gpus_per_run is None else args.gpus_per_run)
    own = scale_file(args.scale).absolute()
    given = scale.name if own.parent == EXPERIMENTS / "scales" else str(own)
    planned = planned_for(scale.name, args.plan) if args.plan else None
    known = config_names()
    if planned:
        rows = [row for row in planned.rows if row.partition("@")[0] in known]
        if gone := [row for row in planned.rows if row not in rows]:
            print(f"Left out, as their configs are gone: {', '.join(gone)}")
    else:
        rows = rows_of(load_paper(EXPERIMENTS / "paper.yaml"), args.tables, args.rows)
        for name in (row.partition("@")[0] for row in rows):
            if name not in known:
                raise SmallObjError(
                    f"--rows {name}: there is no config of that name. There are: "
                    f"{', '.join(known)}. A row of your own belongs into {CONFIGS}."
                )
    if planned and args.first_seed is None:
        seeds = seeds_of(planned, args.seeds)
    else:
        first = args.first_seed or 0
        seeds = range(first, first + (args.seeds or 1))
    data = args.out / scale.name
    folder = data / engine
    runs = plan_runs(scale, CONFIGS, folder, rows, seeds)
    check_requests(runs)
    slots = share_out(local_gpus(), scale.gpus, args.jobs, len(os.sched_getaffinity(0)))
    print(f"Scale {scale.name}: {scale.about}. Engine: {engine}. Runs: {folder}", flush=True)
    if args.dry_run:
        print(listing(runs, scale, len(slots)))
        absent = [scale.missing(data), missing_gpus(scale.gpus)]
        print("\n".join(f"Missing here: {words}" for words in absent if words))
        return 0
    if words := scale.missing(data):
        raise SmallObjError(words)
    if args.gpus_per_run and args.slurm is None and not slots[0].gpus:
        raise SmallObjError(f"--gpus-per-run {args.gpus_per_run}: there is no GPU here.")
    writable_folder(data)
    options = None if args.slurm is None else cluster.parse_options(args.slurm)
    scale.prepare(CONFIGS, data, augmented_val=any(r.dataset for r in runs))
    if options is not None:
        same = ["--scale", given, "--engine", engine, "--out", str(args.out.absolute())]
        lines = cluster.submit(
            runs,
            [PROGRAM, "reproduce", *same, "--gpus-per-run", str(scale.gpus)],
            gpus=scale.gpus,
            seconds=scale.seconds,
            folder=data / "slurm",
            options=options,
        )
        print("\n".join(lines) or "Every run is finished.")
        return 0
    if scale.gpus > len(slots[0].gpus):
        print(f"This is for {scale.gpus} GPUs a run; it gets {len(slots[0].gpus)} here.")
    sweep = Sweep(runs, engine, slots, (PROGRAM, "train"), scale.seconds)
    if sweep.go():
        named = "" if given == scale.name else f" --scale {given}"
        named += f" --plan {args.plan}" if args.plan else ""
        print(f"All {len(runs)} runs are finished: smallobj report --runs {folder}{named}")
        return 0
    for name, why in sweep.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    print("The same command tries the failed ones again.", file=sys.stderr)
    return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
