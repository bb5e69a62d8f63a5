"""proofs/gpu.py runs its steps, goes on after one that fails, and computes what a sweep costs."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "proofs" / "gpu.py"


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    """Exit code, and the steps of the summary by name."""
    command = [sys.executable, str(GPU), *arguments, "--device", "cpu", "--iterations", "2"]
    for name in ("data", "work", "out"):
        command += [f"--{name}", str(folder / name)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in said.stderr, said.stderr
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return said.returncode, {step["step"]: step for step in summary["steps"]}


def test_steps_run_without_a_gpu_or_say_what_they_lack(tmp_path):
    code, steps = run(tmp_path, "machine", "stock", "nuclei")
    assert code == 0
    assert [s["outcome"] for s in steps.values()] == ["ok"] * 3
    assert "it needs a GPU" in steps["stock"]["rows"][0]["why"]
    assert "there is no dsb2018" in steps["nuclei"]["rows"][0]["why"]
    assert "## machine" in (tmp_path / "out" / "summary.md").read_text()
    with tarfile.open(tmp_path / "out" / "files.tar.gz") as tar:
        assert {"machine/log.txt", "machine.json", "stock.json"} <= set(tar.getnames())


def test_the_hours_of_a_sweep_are_those_of_the_formula(tmp_path):
    (tmp_path / "work").mkdir()
    measured = [
        {"row": "orig_aug_multi3x", "engine": "torchvision", "precision": "fp16", "plain": True}
        | {"what": "", "ok": None, "seconds_an_iteration": 0.25},
        {"what": "", "ok": None, "engine": "torchvision", "seconds_an_image": 0.06},
    ]
    (tmp_path / "work" / "speed.json").write_text(json.dumps(measured))
    (row,) = run(tmp_path, "cost")[1]["cost"]["rows"]
    hours = (22 * 36_000 * 0.25 + 24 * 5_000 * 0.06) / 3600
    assert row["hours_on_1_gpu"] == pytest.approx(hours, abs=0.1)
    assert row["hours_on_4_gpus"] == pytest.approx(hours / 4, abs=0.1)


def test_a_step_that_fails_stops_no_other(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "speed.json").write_text("no JSON")
    code, steps = run(tmp_path, "cost", "stock")
    assert code == 1
    assert steps["cost"]["outcome"].startswith("failed: ")
    assert steps["stock"]["outcome"] == "ok"


def test_no_step_is_begun_for_which_there_is_no_time(tmp_path):
    code, steps = run(tmp_path, "machine", "--minutes", "0.2")
    assert code == 1
    assert steps["machine"]["outcome"] == "no time was left"
