"""What a step gets: its time, its folder, and ways to run the project's own commands."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proofs import ROOT, words_of

TRAIN = [sys.executable, "-m", "proofs._gpu.train"]
SCALES = ROOT / "experiments" / "scales"

PRECISIONS = ("fp32", "fp16", "bf16")

PATIENCE = 25.0  # seconds for a step to end what it has started


@dataclass
class Job:
    """A step that runs, in a process of its own.

    Attributes:
        name: of the step.
        args: of the command line.
        until: when it must end, by the monotonic clock.
        rows: what it has found: ``what``, ``ok`` (None where there is nothing to hold), figures.
    """

    name: str
    args: argparse.Namespace
    until: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def gpu(self) -> bool:
        """Whether it is the real thing, or tried on the CPU."""
        return str(self.args.device).startswith("cuda")

    @property
    def folder(self) -> Path:
        """For its runs."""
        return Path(self.args.work) / self.name

    @property
    def engines(self) -> list[str]:
        """Those asked for that can be imported."""
        from smallobj_d2.config import has_detectron2

        return [e for e in self.args.engines if e != "detectron2" or has_detectron2()]

    def iterations(self, number: int) -> int:
        """How many, unless --iterations allows fewer."""
        return min(number, self.args.iterations or number)

    @property
    def seconds_left(self) -> float:
        return self.until - time.monotonic()

    def note(self, what: str, ok: bool | None = None, **figures: Any) -> None:
        """Add a row, and write all at once, so that nothing is lost if the step is ended."""
        self.rows.append({"what": what, "ok": ok, **figures})
        print(json.dumps(self.rows[-1], default=str), flush=True)
        write_json(Path(self.args.work) / f"{self.name}.json", self.rows)

    def call(self, command: Iterable[object], log: Path, **environment: str) -> bool:
        """Run a command, with its output in a file; whether it ended well and in time."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=ROOT,
            )
        try:
            return process.wait(max(1.0, self.seconds_left)) == 0
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            return False

    def train(
        self,
        output: Path,
        config: Path,
        opts: Mapping[str, object],
        *flags: str,
        engine: str,
        train: Iterable[str] = (),
        record: bool = False,
    ) -> dict[str, Any] | None:
        """A run of tools/train_net.py: what it took and its last losses, None if it failed.

        Args:
            output: its folder; log, note and record lie beside it.
            config, opts, flags, engine: of train_net.py.
            train: arguments of python -m proofs._gpu.train.
            record: whether to record draws and weights, as proofs/recording.py does.
        """
        log, note = output.with_suffix(".txt"), output.with_suffix(".note.json")
        more = {"SMALLOBJ_RECORD": str(output.with_suffix(".draws"))} if record else {}
        values = {"MODEL.DEVICE": self.args.device, **opts, "OUTPUT_DIR": output}
        words = words_of(values)
        command = [*TRAIN, *train, "--note", note, "--", "--config", config, "--engine", engine]
        if not self.call([*command, *flags, *words], log, **more):
            self.note(f"{output.name}: FAILED", False, why=last_line(log))
            return None
        return {**json.loads(note.read_text()), **last_metrics(output)}

    def tool(self, name: str, *arguments: object, **environment: str) -> bool:
        """A command of tools/; whether it ended well and in time."""
        log = self.folder / f"{name}.txt"
        command = [sys.executable, ROOT / "tools" / f"{name}.py", *arguments]
        return self.call(command, log, **environment)

    def precisions(self, engine: str) -> Iterable[str]:
        """Those that an engine can train in here."""
        return PRECISIONS if self.gpu else PRECISIONS[:1]


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    temporary.replace(path)


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1][-300:] if lines else ""


def metrics(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def last_metrics(output: Path) -> dict[str, Any]:
    """Last loss, seconds an iteration and of waiting for data, as far as they were written."""
    keys = ("total_loss", "time", "data_time")
    lines = [line for line in metrics(output) if "total_loss" in line]
    return {k: lines[-1][k] for k in keys if k in lines[-1]} if lines else {}


def scenes(folder: Path, **arguments: int) -> None:
    """Make scenes on all cores, unless they are there."""
    from smallobj_d2.datasets.synthetic import make_splits

    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        make_splits(folder, progress=False, each=pool.map, **arguments)
