"""A sweep on a Slurm cluster: a job a run, which is the same command for that run alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallobj_d2.errors import SmallObjError
from smallobj_d2.experiments.runs import Run, State
from smallobj_d2.files import write_json


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as arguments of submitit's ``update_parameters``."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SmallObjError(
                f"--slurm takes KEY=VALUE, such as slurm_partition=gpu; {pair!r} is not."
            )
        options[key] = int(value) if value.isdecimal() else value
    return options


def submit(
    runs: Sequence[Run],
    command: Sequence[str],
    *,
    gpus: int,
    seconds: float,
    folder: Path,
    options: dict[str, Any],
) -> list[str]:
    """Submit a job for each training run that is missing and not queued.

    Args:
        runs: of the sweep, evaluations included; a job does a run's evaluations, too.
        command: ``smallobj reproduce``, for a Python, with all that is the same for all runs.
        gpus: of one job.
        seconds: what a run is thought to take; the job's time limit is three times that.
        folder: for submitit's files.
        options: see `parse_options`; they win over what is set here.

    Returns:
        What was done, a line for each run.

    Raises:
        ModuleNotFoundError: without submitit.
        SmallObjError: if Slurm is not there, or submitit does not take the options.
    """
    import submitit

    if shutil.which("sbatch") is None:
        raise SmallObjError("--slurm: there is no Slurm here (no sbatch). Leave --slurm out.")
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster="slurm")
    defaults = {
        "name": "smallobj_d2",
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": 4 * max(1, gpus),
        "gpus_per_node": gpus,
        "timeout_min": max(30, round(3 * seconds / 60)),
    }
    try:
        executor.update_parameters(**{**defaults, **options})
    except (NameError, TypeError, ValueError) as e:
        raise SmallObjError(f"--slurm: submitit does not take these options: {e}") from e

    lines = []
    done = {r.name for r in runs if r.state() is State.FINISHED}
    for run in runs:
        own = [r for r in runs if (r.config, r.seed) == (run.config, run.seed)]
        if run.model is not None or all(r.name in done for r in own):
            continue
        if job := queued(run):
            lines.append(f"{run.name}: is job {job}")
            continue
        rows = [r.config + (f"@{r.dataset}" if r.dataset else "") for r in own]
        alone = [*command, "--rows", *rows, "--seeds", "1", "--first-seed", str(run.seed)]
        alone += ["--jobs", "1"]  # with all cores of the job
        job = executor.submit(submitit.helpers.CommandFunction([sys.executable, *alone])).job_id
        write_json(run.folder / "slurm.json", {"job": job})
        lines.append(f"{run.name}: submitted as job {job}")
    return lines


def queued(run: Run) -> str:
    """The job of a run that waits in Slurm's queue or runs; empty if there is none."""
    path = run.folder / "slurm.json"
    if not path.is_file() or shutil.which("squeue") is None:
        return ""
    job = str(json.loads(path.read_bytes())["job"])
    listed = subprocess.run(
        ["squeue", "--noheader", "--jobs", job, "--format", "%i"],
        capture_output=True,
        text=True,
        check=False,
    )
    return job if listed.stdout.strip() else ""
