"""Several processes, on one machine or more, do together what one process does.

python -m proofs.verify_processes compares more of them; docs/review/verification.md has its table.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from proofs import DEMO, ROOT, kill_resume, verify_processes
from smallobj_d2.config import get_cfg, has_detectron2
from smallobj_d2.engines import processes, run
from smallobj_d2.engines.launch import launch
from smallobj_d2.engines.machines import Machines
from smallobj_d2.errors import SmallObjError

Layout, Run = verify_processes.Layout, verify_processes.Run

ENGINES = [
    "torchvision",
    pytest.param(
        "detectron2",
        marks=pytest.mark.skipif(not has_detectron2(), reason="detectron2 is not installed"),
    ),
]

pytestmark = pytest.mark.usefixtures("forget_datasets")


# --- One training, by four processes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """12 images to train on, and 3 to evaluate, so that one of four processes has none."""
    folder = tmp_path_factory.mktemp("scenes")
    verify_processes.make_scenes(folder)
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def training(request, scenes, tmp_path_factory) -> Run:
    """By two launches with --num-machines 2, of two processes each."""
    output = tmp_path_factory.mktemp(request.param) / "run"
    return verify_processes.train(request.param, Layout(2, 2), scenes, output)


def test_processes_draw_what_one_draws_at_the_same_iterations(training):
    assert sum(map(len, training.draws().values())) == 24
    assert verify_processes.wrong_draws(training) == []


def test_gradients_are_the_mean_of_those_of_each_process(training):
    assert verify_processes.gradient_error(training) < 1e-5


def test_all_processes_end_with_the_same_weights(training):
    assert len(training.processes()) == 4
    assert verify_processes.wrong_weights(training) == []


def test_processes_find_what_one_finds_with_the_same_weights(training):
    assert verify_processes.wrong_evaluation(training) == []


def test_only_process_0_writes_and_everything_once(training):
    assert verify_processes.wrong_files(training) == []
    assert json.loads((training.output / "run.json").read_text())["processes"] == 4


def test_a_run_goes_on_with_another_number_of_processes(training, scenes):
    resumed = verify_processes.resume_from_the_middle(training, Layout(1, 2), scenes)
    assert sorted(resumed.draws()) == [3, 4, 5]
    assert verify_processes.wrong_draws(resumed) == []
    assert verify_processes.wrong_weights(resumed) == []
    record = json.loads((resumed.output / "run.json").read_text())
    assert (record["processes"], record["earlier"][0]["processes"]) == (2, 4)


# --- Processes that are lost, or stopped


def small(scenes: Path, output: Path, *, workers: int = 0) -> list[str]:
    opts = kill_resume.options(scenes, output, 7)
    return [*opts, "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", str(workers)]


@contextmanager
def started(engine: str, how: list[str], opts: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A training in a session of its own, none of which is left at the end."""
    tool = [sys.executable, str(ROOT / "tools" / "train_net.py")]
    with subprocess.Popen(
        [*tool, "--config", str(DEMO), "--engine", engine, *how, *opts],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        try:
            yield launcher
        finally:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)


def wait_for(path: Path, launcher: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.02)


def ranks(launcher: "subprocess.Popen[str]") -> list[int]:
    """The processes that train, oldest first: children of a child of the launcher."""

    def children(pid: int) -> list[int]:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    return [rank for server in children(launcher.pid) for rank in children(server)]


def in_session(launcher: "subprocess.Popen[str]") -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == launcher.pid and fields[0] != "Z":
                found.append(stat.parent.name)
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_survives_the_loss_of_a_process(engine, scenes, tmp_path):
    """It ends as one that nothing happened to.

    Of two processes: with more, PyTorch adds up gradients in an order that depends on how long a
    process has lived.
    """
    how = ["--num-gpus", "2", "--max-restarts", "1"]
    both = [tmp_path / "whole", tmp_path / "broken"]
    with started(engine, how[:2], small(scenes, both[0])) as launcher:
        said = launcher.communicate()
        assert launcher.returncode == 0, said
    with started(engine, how, small(scenes, both[1])) as launcher:
        wait_for(both[1] / "model_0000002.pth", launcher)
        os.kill(ranks(launcher)[1], signal.SIGKILL)
        out, err = launcher.communicate()
        assert launcher.returncode == 0, out + err
    assert "A process was lost. Starting all again from the last checkpoint (1 of" in out
    assert "Traceback" not in out + err
    finals = [torch.load(f / "model_final.pth", weights_only=True) for f in both]
    assert kill_resume.differences(*finals) == []
    assert (both[0] / "row.json").read_text() == (both[1] / "row.json").read_text()


def test_a_killed_process_is_one_line(scenes, tmp_path):
    with started("torchvision", ["--num-gpus", "2"], small(scenes, tmp_path / "out")) as launcher:
        wait_for(tmp_path / "out" / "log.txt", launcher)
        os.kill(ranks(launcher)[1], signal.SIGKILL)
        _, err = launcher.communicate()
    assert launcher.returncode == 2
    assert err.startswith("error: Process 1 was killed by SIGKILL.")
    assert err.count("\n") == 1


def test_no_process_outlives_a_killed_launcher(scenes, tmp_path):
    opts = [*small(scenes, tmp_path / "out", workers=1), "SOLVER.MAX_ITER", "4000"]
    with started("torchvision", ["--num-gpus", "2"], opts) as launcher:
        wait_for(tmp_path / "out" / "last_checkpoint", launcher)
        launcher.kill()
        launcher.communicate()
        wait_until(lambda: not in_session(launcher), seconds=20)


def wait_until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("engine", "processes", "whom"),
    [
        ("torchvision", 1, "all"),
        ("torchvision", 2, "the launcher"),
        pytest.param(
            "detectron2",
            *(2, "all"),
            marks=pytest.mark.skipif(not has_detectron2(), reason="detectron2 is not installed"),
        ),
    ],
)
def test_ctrl_c_is_one_line_and_leaves_nothing(engine, scenes, tmp_path, processes, whom):
    output = tmp_path / "out"
    how = ["--num-gpus", str(processes)]
    with started(engine, how, small(scenes, output, workers=1)) as launcher:
        wait_for(output / "last_checkpoint", launcher)
        (os.killpg if whom == "all" else os.kill)(launcher.pid, signal.SIGINT)
        out, err = launcher.communicate()
        assert launcher.returncode == 130, out + err
        wait_until(lambda: not in_session(launcher))
    last = (output / "last_checkpoint").read_text()
    assert err.splitlines()[-1:] == [
        f"Stopped. The last checkpoint in {output} is {last}; the same command with --resume "
        "continues from it."
    ]
    assert "Traceback" not in out + err
    assert "Stopped after " in (output / "log.txt").read_text()
    assert not list(output.glob(".smallobj-*"))


# --- Machines that do not meet, or do not fit together


@pytest.fixture
def url() -> str:
    return f"tcp://127.0.0.1:{verify_processes.free_port()}"


def outcomes(*calls: Callable[[], Any]) -> list[str]:
    """What calls made at the same time raise, or "fine"."""

    kept = []  # as machine 0 keeps the store, while the others meet

    def outcome(call: Callable[[], Any]) -> str:
        try:
            kept.append(call())
        except SmallObjError as e:
            return str(e)
        return "fine"

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def meet(rank: int, number: int, url: str, *, patience: float = 60.0, **plan: int) -> Machines:
    machines = Machines(rank, number, url, patience, plan, Path("nothing"))
    try:
        machines.next_rendezvous()
    except SmallObjError as e:
        machines.leave(e)
        raise
    return machines


def test_machines_meet(url):
    assert outcomes(*(lambda r=r: meet(r, 3, url, gpus=2) for r in (2, 0, 1))) == ["fine"] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_machines_that_do_not_come_are_named(url, rank):
    (said,) = outcomes(lambda: meet(rank, 2, url, patience=1.0))
    assert said.startswith(f"The 2 machines have not met at --dist-url {url} within 1 seconds (")
    assert "with --machine-rank 0 to 1" in said
    assert "\n" not in said


def test_a_port_that_is_taken_is_named(url):
    with socket.socket() as other:
        other.bind(("", int(url.rsplit(":", 1)[1])))
        other.listen()
        (said,) = outcomes(lambda: meet(0, 2, url))
    assert f"--dist-url {url}" in said
    assert "address already in use" in said


@pytest.mark.parametrize("bad", ["auto", "host:1", "tcp://host", "tcp://host:99999", "http://a:1"])
def test_an_invalid_address_is_refused(bad):
    (said,) = outcomes(lambda: meet(0, 2, bad))
    assert said.startswith(f"--dist-url is {bad}; it must be tcp://<host of machine 0>:<port>")


def test_machines_with_other_numbers_say_so_on_both(url):
    said = outcomes(lambda: meet(0, 2, url, gpus=4), lambda: meet(1, 2, url, gpus=2))
    assert said[0] == said[1]
    assert said[0].startswith("gpus is 2 on machine 1, but 4 on machine 0.")


def test_the_store_of_one_machine_listens_on_that_machine_alone():
    machines = Machines(0, 1, "auto", 60.0, {}, Path("nothing"))
    machines.next_rendezvous()
    listening = [
        line.split()[1]
        for path in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(path).read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{machines.master_port:04X}") and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{machines.master_port:04X}"]


def _start(cfg: Any) -> None:
    with run.running(cfg, "torchvision"):
        pass


def test_machines_with_other_configs_say_so_on_both(url, tmp_path):
    """The error is raised on one; the launch of the other hears of it."""

    def start(machine: int, **more: Any) -> None:
        cfg = get_cfg()
        cfg.SOLVER.MAX_ITER = 10 + machine
        cfg.OUTPUT_DIR = str(tmp_path / f"machine{machine}")  # may differ
        launch(_start, 1, 2, machine, url, device="cpu", args=(cfg,))

    said = outcomes(lambda: start(0), lambda: start(1))
    host = socket.gethostname()
    assert said[1].startswith(f"SOLVER.MAX_ITER is 11 on process 1 ({host}), but 10 on process 0")
    assert said[0] == f"Machine 1 of 2: {said[1]}"


def test_a_machine_that_does_not_see_the_checkpoint_is_named(tmp_path, monkeypatch):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)

    def of_process_0(told: tuple[dict[str, Any], str]) -> tuple[dict[str, Any], str]:
        return {**told[0], "the last checkpoint in OUTPUT_DIR": "model_0000002.pth"}, told[1]

    monkeypatch.setattr(processes, "share", of_process_0)
    with (
        verify_processes.process(1, 2),
        pytest.raises(SmallObjError, match=r"checkpoint in OUTPUT_DIR is None .* model_0000002"),
    ):
        processes.agree(cfg, "torchvision", resume=True, eval_only=False)
