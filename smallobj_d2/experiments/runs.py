"""One run of an experiment, and how far it has come: all of it is read from the run's folder.

A folder holds what training leaves there (run.json, metrics.json, row.json, checkpoints), and of
the sweep ``request.yaml``, what was asked for; ``output.txt``, what the run printed; and
``attempts.json``, when it was started, how long it took and how it ended.
"""

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from smallobj_d2.config import flatten
from smallobj_d2.errors import SmallObjError
from smallobj_d2.experiments.scales import AUGMENTED_VAL, Scale
from smallobj_d2.files import is_locked, reading, write_json, writing

HOW = ("MODEL.DEVICE", "SOLVER.CHECKPOINT_PERIOD")
"""Config keys that say how an experiment is carried out, and are no part of it."""


class State(Enum):
    """How far a run has come."""

    FINISHED = "finished"
    RUNNING = "running"
    """Another process holds its folder."""
    CUT_OFF = "cut off"
    """Begun; the next call resumes it from its last checkpoint."""
    FAILED = "failed"
    """Ended with an error; to be tried again."""
    MISSING = "missing"


@dataclass(frozen=True)
class Run:
    """One row, one seed; or the evaluation of such a run on another dataset."""

    config: str
    """The row's file in ``configs/``, without ``.yaml``."""
    seed: int
    folder: Path
    request: dict[str, Any] = field(repr=False, compare=False)
    """The whole config, for ``request.yaml``."""
    dataset: str = ""
    """Where it is evaluated, if that is not the validation set."""
    model: "Run | None" = field(default=None, repr=False, compare=False)
    """The run whose model is evaluated."""

    @property
    def root(self) -> Path:
        """The folder of the sweep that it belongs to."""
        return self.folder.parents[len(Path(self.config, self.dataset).parts)]

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.config} seed {self.seed}" + (f" on {self.dataset}" if self.dataset else "")

    def command(self, train: Sequence[str], engine: str, gpus: int) -> list[str]:
        """``smallobj train``, as it is called, with the arguments of this run or its rest."""
        command = [*train, "--config", str(self.folder / "request.yaml"), "--engine", engine]
        command += ["--num-gpus", str(max(1, gpus))]
        if self.model is None:
            return [*command, "--resume", "OUTPUT_DIR", str(self.folder)]
        weights = self.model.folder / "model_final.pth"
        return [
            *(*command, "--eval-only", "OUTPUT_DIR", str(self.folder)),
            *("MODEL.WEIGHTS", str(weights)),
        ]

    def state(self) -> State:
        """How far it has come."""
        if (self.folder / "row.json").is_file():
            return State.FINISHED
        if not self.folder.is_dir():
            return State.MISSING
        if is_locked(self.folder):
            return State.RUNNING
        attempts = self.attempts()
        if not attempts:
            return State.MISSING
        return State.CUT_OFF if attempts[-1]["code"] is None else State.FAILED

    def progress(self) -> float:
        """The share of its iterations that are done, from 0 to 1."""
        if (self.folder / "row.json").is_file():
            return 1.0
        total = int(self.request.get("SOLVER", {}).get("MAX_ITER", 0))
        last = _last_line(self.folder / "metrics.json")
        if not last or not total or self.model is not None:
            return 0.0
        try:
            return min(1.0, (int(json.loads(last)["iteration"]) + 1) / total)
        except (ValueError, KeyError, TypeError):  # the line is being written
            return 0.0

    def attempts(self) -> list[dict[str, Any]]:
        """``started``, ``seconds`` and ``code`` of each attempt.

        The code is None where nobody saw the end: the attempt was stopped, or runs.
        """
        path = self.folder / "attempts.json"
        if not path.is_file():
            return []
        with reading(path):
            attempts: list[dict[str, Any]] = [dict(a) for a in json.loads(path.read_bytes())]
            for attempt in attempts:
                attempt["seconds"] = float(attempt["seconds"])
                attempt["started"] = float(attempt["started"])
            for attempt in attempts[-1:]:
                if attempt["code"] is None and not attempt["seconds"]:
                    # it lived as long as it wrote
                    attempt["seconds"] = round(max(0.0, self.wrote() - attempt["started"]), 1)
            return attempts

    def wrote(self) -> float:
        """When it last wrote into its folder, in seconds since 1970."""
        times = []
        for path in {*self.folder.glob("*.*")} - {self.folder / "slurm.json"}:  # of a later job
            with suppress(FileNotFoundError):  # it was a temporary one, and has its name now
                times.append(path.stat().st_mtime)
        return max(times)

    def seconds(self) -> float:
        """What all its attempts took together."""
        return float(sum(a["seconds"] for a in self.attempts()))

    def begin(self, **about: Any) -> None:
        """Note a new attempt, and what is asked for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / "attempts.json",
            [*self.attempts(), {"started": time.time(), "seconds": 0.0, "code": None, **about}],
        )
        with writing(self.folder / "request.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(self.request, sort_keys=False))

    def end(self, code: int | None) -> None:
        """Note how the attempt ended; None if it was stopped, to be resumed later."""
        attempts = self.attempts()
        attempts[-1]["seconds"] = round(time.time() - attempts[-1]["started"], 1)
        attempts[-1]["code"] = code
        write_json(self.folder / "attempts.json", attempts)

    def complaint(self) -> str:
        """The last thing that it printed."""
        return _last_line(self.folder / "output.txt")

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run, all but the final one."""
        for path in self.folder.glob("model_[0-9]*.pth"):
            path.unlink()


def plan_runs(
    scale: Scale, configs: Path, folder: Path, rows: Iterable[str], seeds: Iterable[int]
) -> list[Run]:
    """The runs of a sweep, seed by seed, so that one that is stopped early can be compared.

    Args:
        scale: how large.
        configs: the folder ``configs/``.
        folder: of the sweep of one scale; the engine's folder is in it.
        rows: names in ``configs/``; ``NAME@augmented_val`` adds that evaluation to the run.
        seeds: of the runs.

    Raises:
        SmallObjError: for an evaluation on something else.
    """
    runs = []
    rows = list(rows)
    for row in rows:
        if row.partition("@")[2] not in ("", AUGMENTED_VAL):
            raise SmallObjError(
                f"There is no evaluation {row!r}; only ROW@{AUGMENTED_VAL} is one, of a run on the "
                "augmented validation set."
            )
    configs_of_rows = list(dict.fromkeys(row.partition("@")[0] for row in rows))
    for seed in seeds:
        for config in configs_of_rows:
            where = folder / config / f"seed{seed}"
            request = scale.request(configs / f"{config}.yaml", folder.parent)
            request["SEED"] = seed
            run = Run(config, seed, where, request)
            runs.append(run)
            if f"{config}@{AUGMENTED_VAL}" in rows:
                other = {**request, "DATASETS": {**request["DATASETS"], "TEST": [AUGMENTED_VAL]}}
                runs.append(Run(config, seed, where / AUGMENTED_VAL, other, AUGMENTED_VAL, run))
    return runs


def check_requests(runs: Sequence[Run]) -> None:
    """Refuse to mix runs of different experiments in one folder, or of CPU and GPU in one seed.

    Raises:
        SmallObjError: naming a run that was made with another config, and the key.
    """
    _check_devices(runs)
    for run in runs:
        path = run.folder / "request.yaml"
        if not path.is_file():
            continue
        before = flatten(_requested(path))
        now = flatten(yaml.safe_load(yaml.safe_dump(run.request)))  # tuples are lists there
        for key in sorted({*before, *now}):
            if key in HOW or key.startswith("SMALLOBJ.DATASETS"):  # another name of the same place
                continue
            if before.get(key) != now.get(key):
                raise SmallObjError(
                    f"{run.folder} was made with {key} {before.get(key)}; now it is "
                    f"{now.get(key)}. Choose another --out, or remove that folder."
                )


def _check_devices(runs: Iterable[Run]) -> None:
    """Refuse to train rows of a seed, which are compared with each other, on CPU and GPU."""
    unfinished = {run.seed: run for run in runs if run.state() is not State.FINISHED}
    for seed, run in unfinished.items():
        for path in run.root.glob(f"**/seed{seed}/request.yaml"):
            device = _device(_requested(path))
            if device != _device(run.request):
                raise SmallObjError(
                    f"{path.parent} has MODEL.DEVICE {device}: train the other rows of seed {seed} "
                    "there, too (--gpus-per-run), or choose another --out."
                )


def _requested(path: Path) -> dict[str, Any]:
    with reading(path):
        return dict(yaml.safe_load(path.read_text()))


def _device(request: dict[str, Any]) -> str:
    """``cpu`` or ``cuda``, which is Detectron2's default."""
    return str(request.get("MODEL", {}).get("DEVICE", "cuda")).partition(":")[0]


def _last_line(path: Path) -> str:
    """The last line of a text file that says something."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4000))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    # Of a bar that was drawn over itself, the last state.
    said = [line.strip().rsplit("\r", 1)[-1] for line in lines if line.strip()]
    return said[-1] if said else ""
