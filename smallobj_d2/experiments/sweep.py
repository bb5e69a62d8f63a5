"""Does the runs of an experiment that are missing, on this machine or on a Slurm cluster.

Every run is a separate process of ``smallobj train``. What a sweep knows about its runs it
reads from their folders, so it can be stopped in any way and called again.
"""

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from smallobj_d2.errors import clock
from smallobj_d2.experiments.runs import Run, State
from smallobj_d2.files import is_locked

POLL = 0.2  # seconds between looks at the processes
LOOK = 2.0  # seconds between looks at how far they are
SAY = 60.0  # seconds between lines about them, where there is no terminal
SILENCE = 900.0  # seconds without a word after which a run is said to be silent: it may hang
_MOST = 8  # runs at the same time on a CPU, for want of memory, unless more are asked for
PATIENCE = 20.0  # seconds for a run to end when it is asked to


@dataclass(frozen=True)
class Slot:
    """A place where one run at a time can be."""

    gpus: tuple[str, ...] = ()
    threads: int = 1

    def environment(self) -> dict[str, str]:
        """What the run's process is told about its place."""
        own = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        return {**os.environ, **own}


def share_out(gpus: Sequence[str], per_run: int, jobs: int | None, cores: int) -> list[Slot]:
    """Slots for the runs of a sweep.

    Args:
        gpus: names of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them.
        per_run: how many of them a run asks for; where there are fewer, it gets all.
        jobs: runs at the same time; more than there are groups share the groups. None for one per
            group, and for runs that ask for no GPU one per core: two runs of one thread are done
            before two in turn of two threads are.
        cores: of this machine.
    """
    default = 1 if per_run else min(cores, _MOST)
    per_run = min(per_run, len(gpus))
    groups: list[tuple[str, ...]] = [()]
    if per_run:
        count = len(gpus) // per_run
        groups = [tuple(gpus[i * per_run : (i + 1) * per_run]) for i in range(count)]
    jobs = jobs or max(default, len(groups))
    threads = max(1, cores // jobs)
    return [Slot(groups[i % len(groups)], threads) for i in range(jobs)]


def local_gpus() -> list[str]:
    """The GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [g.strip() for g in visible.split(",") if g.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(lines))]


def typical_seconds(runs: Sequence[Run], otherwise: float) -> float:
    """What a training run takes: the median of the finished ones, else what is given."""
    known = [r.seconds() for r in runs if r.model is None and r.state() is State.FINISHED]
    return statistics.median(known) if known else otherwise


def seconds_left(runs: Sequence[Run], each: float, jobs: int) -> float:
    """How long the rest of a sweep takes, if every run takes `each`."""
    return sum(each * (1 - r.progress()) for r in runs if r.model is None) / jobs


@dataclass
class Sweep:
    """Runs that are to be finished, one process each.

    Args:
        runs: all of them, the finished ones too; a model before its evaluations.
        engine: auto, detectron2 or torchvision.
        slots: where they can run.
        train: ``smallobj train``, for a Python.
        seconds: what a run is thought to take, until one is finished.
    """

    runs: list[Run]
    engine: str
    slots: list[Slot]
    train: Sequence[str]
    seconds: float
    failed: dict[str, str] = field(default_factory=dict)
    """By name of the run, what it said last."""
    _jobs: dict[int, tuple[Run, "subprocess.Popen[bytes]"]] = field(default_factory=dict)
    """What runs, by slot."""

    def go(self) -> bool:
        """Do what is missing; True if every run is finished then.

        A run that fails is noted, and the others continue. On Ctrl-C the running ones are ended;
        the next call resumes them from their checkpoints.
        """
        todo = []
        for run in self.runs:
            if run.state() is not State.FINISHED:
                todo.append(run)
            else:
                run.drop_checkpoints()  # a sweep that was killed may have left them
        quiet = not sys.stderr.isatty()
        bar = tqdm(
            total=len(self.runs), bar_format="{percentage:3.0f}% |{bar}| {postfix}", disable=quiet
        )
        said = time.monotonic()
        try:
            while todo or self._jobs:
                self._start(todo)
                for at, (run, process) in list(self._jobs.items()):
                    if process.poll() is not None:
                        del self._jobs[at]
                        self._ended(run, process.returncode, todo)
                now = time.monotonic()
                if now - said > (SAY if quiet else LOOK):
                    said = now
                    if not quiet:
                        bar.n = sum(r.progress() for r in self.runs)
                        bar.set_postfix_str(self._status())
                    elif self._jobs:
                        _say(self._status())
                if todo or self._jobs:
                    time.sleep(POLL)
        finally:
            self._stop()
            bar.close()
        return all(r.state() is State.FINISHED for r in self.runs)

    def _start(self, todo: list[Run]) -> None:
        """Fill the free slots."""
        for at, slot in enumerate(self.slots):
            if at in self._jobs:
                continue
            for run in [*todo]:
                model = run.model.state() if run.model else State.FINISHED
                if run.model and run.model.name in self.failed:
                    todo.remove(run)
                    self.failed[run.name] = "its model is not finished"
                    continue
                if model is not State.FINISHED or is_locked(run.folder):
                    continue
                todo.remove(run)
                if run.state() is State.FINISHED:  # by another sweep meanwhile
                    run.drop_checkpoints()
                    continue
                before = {
                    State.CUT_OFF: f", cut off at {run.progress():.0%}",
                    State.FAILED: ", which failed before",
                }
                _say(f"start  {run.name}{before.get(run.state(), '')}")
                self._jobs[at] = run, self._launch(run, slot)
                break

    def _launch(self, run: Run, slot: Slot) -> "subprocess.Popen[bytes]":
        run.begin(gpus=len(slot.gpus), threads=slot.threads, jobs=len(self.slots))
        command = [sys.executable, *run.command(self.train, self.engine, len(slot.gpus))]
        with (run.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=slot.environment(),
                start_new_session=True,  # Ctrl-C is for the sweep, which ends its runs in order
            )

    def _ended(self, run: Run, code: int, todo: list[Run]) -> None:
        if code and is_locked(run.folder):  # another sweep was faster: wait for its run
            todo.append(run)
            return
        run.end(code)
        if run.state() is State.FINISHED:
            run.drop_checkpoints()
            _say(f"done   {run.name} in {clock(run.seconds())}; {self._status()}")
        else:
            why = run.complaint() or f"exit code {code}"
            self.failed[run.name] = why
            _say(f"FAILED {run.name}: {why} (see {run.folder / 'output.txt'})")

    def _status(self) -> str:
        done = sum(r.state() is State.FINISHED for r in self.runs)
        each = typical_seconds(self.runs, self.seconds)
        rest = [r for r in self.runs if r.name not in self.failed]
        parts = [f"{done} of {len(self.runs)} done"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        parts.append(f"{clock(seconds_left(rest, each, len(self.slots)))} left")
        for run, _ in self._jobs.values():
            silence = time.time() - run.wrote()
            silent = f" (silent for {clock(silence)})" if silence > SILENCE else ""
            parts.append(f"{run.name} {run.progress():.0%}{silent}")
        return ", ".join(parts)

    def _stop(self) -> None:
        """End what still runs: every process of it, and at last by force."""
        codes = {}
        for run, process in self._jobs.values():
            codes[run.folder] = process.poll()  # it may have ended by itself just now
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for run, process in self._jobs.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)  # what its own children left, too
            process.wait()
            run.end(codes[run.folder])
        self._jobs.clear()


def _say(text: str) -> None:
    tqdm.write(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stdout)
    sys.stdout.flush()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
