"""Several processes, on one machine or more, do together what one process does.

python -m proofs.verify_processes compares more of them; docs/verification.md has its table.
"""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proofs import verify_processes
from smallobj_d2.config import get_cfg, has_detectron2
from smallobj_d2.engines import run
from smallobj_d2.engines.launch import Machines, launch
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


# --- Machines that do not meet, or do not fit together


@pytest.fixture
def url() -> str:
    return f"tcp://127.0.0.1:{verify_processes.free_port()}"


def outcomes(*calls: Callable[[], Any]) -> list[str]:
    """What calls made at the same time raise, or "fine"."""

    def outcome(call: Callable[[], Any]) -> str:
        try:
            call()
        except SmallObjError as e:
            return str(e)
        return "fine"

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def meet(rank: int, number: int, url: str, *, patience: float = 60.0, **plan: int) -> None:
    with Machines(rank, number, url, patience) as machines:
        machines.meet(plan)


def test_machines_meet(url):
    assert outcomes(*(lambda r=r: meet(r, 3, url, gpus=2) for r in (2, 0, 1))) == ["fine"] * 3


def test_a_launch_that_is_missing_is_named(url):
    (said,) = outcomes(lambda: meet(0, 2, url, patience=1.0))
    assert said.startswith(f"Machine 1 of 2 has not come to {url} within 1 seconds.")
    assert "--machine-rank 1" in said


def test_a_port_where_nobody_listens_is_named(url):
    (said,) = outcomes(lambda: meet(1, 2, url, patience=1.0))
    assert said.startswith(f"Nothing has answered at --dist-url {url} for 1 seconds")
    assert "--machine-rank 0" in said


def test_a_port_that_is_taken_is_named(url):
    with socket.socket() as other:
        other.bind(("", int(url.rsplit(":", 1)[1])))
        other.listen()
        (said,) = outcomes(lambda: meet(0, 2, url))
    assert f"--dist-url {url} cannot be used" in said
    assert "address already in use" in said


@pytest.mark.parametrize("bad", ["auto", "host:1", "tcp://host", "tcp://host:99999", "http://a:1"])
def test_an_address_that_is_none_is_refused(bad):
    (said,) = outcomes(lambda: meet(0, 2, bad))
    assert said.startswith(f"--dist-url is {bad}; it must be tcp://<host of machine 0>:<port>")


def test_two_launches_of_the_same_rank_are_noticed(url):
    with Machines(0, 2, url, patience=60.0) as machine_0, ThreadPoolExecutor(1) as pool:
        met = pool.submit(machine_0.meet, {})  # and is there until all have spoken
        said = outcomes(lambda: meet(1, 2, url), lambda: meet(1, 2, url))
        met.result()
    refused, fine = sorted(said)
    assert refused.startswith("There is another launch with --machine-rank 1")
    assert fine == "fine"


def test_machines_with_other_numbers_say_so_on_both(url):
    said = outcomes(lambda: meet(0, 2, url, gpus=4), lambda: meet(1, 2, url, gpus=2))
    assert said[0] == said[1]
    assert said[0].startswith("gpus is 2 on machine 1, but 4 on machine 0.")


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

    monkeypatch.setattr(run, "share", of_process_0)
    with (
        verify_processes.process(1, 2),
        pytest.raises(SmallObjError, match=r"checkpoint in OUTPUT_DIR is None .* model_0000002"),
    ):
        run._agree(cfg, "torchvision", resume=True, eval_only=False)
