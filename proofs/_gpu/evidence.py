"""Evidence: runs of the scales that need a GPU, and how many of them share one."""

import json
import os
import time
from itertools import count
from pathlib import Path

import yaml

from proofs import ROOT
from proofs._gpu.job import PATIENCE, SCALES, Job, last_line, last_metrics, metrics, scenes
from smallobj_d2.experiments.paper import load_paper

ROWS = ("baseline", "orig_aug_multi3x", "beyond/bank")
AT_A_TIME = (1, 2, 4, 8, 12, 16)
"""Numbers of runs on one card that are tried."""


def scale_file(job: Job, name: str) -> Path:
    """A scale by the path of its file, or, with --iterations or on the CPU, a small copy of it."""
    path = SCALES / f"{name}.yaml"
    if job.gpu and not job.args.iterations:
        return path
    scale = yaml.safe_load(path.read_text())
    if "network_of" in scale:
        scale["network_of"] = str((SCALES / scale["network_of"]).resolve())
    config = scale["config"]
    number = max(1, job.iterations(config["SOLVER"]["MAX_ITER"]))
    config["SOLVER"] |= {"MAX_ITER": number, "STEPS": [], "IMS_PER_BATCH": 2}
    config["INPUT"] = config.get("INPUT", {}) | {"MIN_SIZE_TRAIN": [96], "MIN_SIZE_TEST": 96}
    config["DATALOADER"] = {"NUM_WORKERS": 0}
    if "scenes" in scale:
        scale["scenes"] |= {"num_train": 12, "num_val": 3, "size": 128}
    small = job.folder / "scales" / f"{name}.yaml"
    small.parent.mkdir(parents=True, exist_ok=True)
    small.write_text(yaml.safe_dump(scale))
    return small


def reproduce(job: Job, name: str, engine: str, *arguments: object) -> bool:
    """tools/reproduce.py at a scale, with its runs under the folder of the step."""
    path = scale_file(job, name)
    made = yaml.safe_load(path.read_text()).get("scenes")
    if made:
        scenes(job.folder / "reproduce" / name / "scenes", **made)
    return job.tool(
        "reproduce",
        *("--scale", path.with_suffix(""), "--engine", engine, "--gpus-per-run", int(job.gpu)),
        *arguments,
        *("--out", job.folder / "reproduce"),
    )


def finished(job: Job, name: str, engine: str) -> list[Path]:
    """Folders of the finished runs of a scale."""
    return sorted((job.folder / "reproduce" / name / engine).glob("**/seed*/row.json"))


def tiny(job: Job) -> None:
    """How many runs of `tiny` at a time give most an hour; then all that there is time for."""
    from smallobj_d2.commands.reproduce import rows_of

    rows = job.args.rows or [
        row
        for row in rows_of(load_paper(ROOT / "experiments" / "paper.yaml"), None, None)
        if "@" not in row
    ]
    engine, seeds = job.engines[0], count(job.args.first_seed)
    rates: dict[int, float] = {}
    seconds = 0.0
    for number in AT_A_TIME if job.gpu else AT_A_TIME[:2]:
        if number > len(rows) or job.seconds_left < 2 * seconds:
            break
        chosen = ["--rows", *rows[:number], "--first-seed", next(seeds), "--jobs", number]
        before = len(finished(job, "tiny", engine))
        reproduce(job, "tiny", engine, *chosen, "--dry-run")  # makes the scenes, not timed
        begun = time.monotonic()
        ended = reproduce(job, "tiny", engine, *chosen)
        seconds = time.monotonic() - begun
        done = len(finished(job, "tiny", engine)) - before
        if not ended or done < number:
            job.note(f"{number} at a time", False, why=last_line(job.folder / "reproduce.txt"))
            break
        rates[number] = number * 3600 / seconds
        job.note(f"{number} at a time", seconds=round(seconds), runs_an_hour=round(rates[number]))
    if not rates:
        return
    best = max(rates, key=rates.__getitem__)
    job.note("the number that gives most runs an hour", number=best)
    if job.gpu and job.seconds_left > 3 * PATIENCE:
        options = ["--rows", *rows, "--seeds", len(rates), "--first-seed", job.args.first_seed]
        job.until -= 2 * PATIENCE  # for the runs to end in order
        reproduce(job, "tiny", engine, *options, "--jobs", best)
    job.note("runs that are finished", number=len(finished(job, "tiny", engine)))


def small(job: Job) -> None:
    """The scale `small`."""
    _scale(job, "small")


def nuclei(job: Job) -> None:
    """The scale `nuclei`."""
    if not (Path(os.environ["DETECTRON2_DATASETS"]) / "dsb2018").is_dir():
        job.note("nuclei", why="not run: there is no dsb2018 in the packed data")
        return
    _scale(job, "nuclei")


def _scale(job: Job, name: str) -> None:
    rows = job.args.rows or (ROWS if job.gpu else ROWS[1:2])
    for engine in job.engines[-1:]:  # Detectron2, where it is
        options = ["--rows", *rows, "--seeds", job.args.seeds, "--first-seed", job.args.first_seed]
        job.until -= 2 * PATIENCE  # for the runs to end in order, and a picture
        ended = reproduce(job, name, engine, *options, "--jobs", job.args.jobs)
        job.until += PATIENCE
        if not ended:
            job.note("not all is finished", False, why=last_line(job.folder / "reproduce.txt"))
        for path in sorted((job.folder / "reproduce" / name / engine).glob("**/seed*/run.json")):
            row = path.parent / "row.json"
            ap = json.loads(row.read_text())["segm"] if row.is_file() else {}
            job.note(
                f"{engine}: {path.parent.relative_to(job.folder / 'reproduce')}",
                row.is_file(),
                iterations=(metrics(path.parent) or [{}])[-1].get("iteration"),
                **{k: v for k, v in last_metrics(path.parent).items() if k != "total_loss"},
                **{k: v for k, v in ap.items() if isinstance(v, float)},
            )
        runs = [path.parent for path in finished(job, name, engine)][:3]
        picture = Path(job.args.out) / f"{name}_detections.png"
        if runs:
            names = ["_".join(run.parts[-2:]) for run in runs]
            job.tool("detections", "--runs", *runs, "--names", *names, "--out", picture)
