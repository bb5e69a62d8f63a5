"""proofs.gpu runs its steps, continues after one that fails, and computes what a sweep costs."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from proofs._gpu.pack import NOT_NEEDED

ROOT = Path(__file__).parents[1]


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    """Exit code, and the steps of the summary by name."""
    command = [sys.executable, "-m", "proofs.gpu", *arguments]
    command += ["--device", "cpu", "--iterations", "2"]
    for name in ("data", "work", "out"):
        command += [f"--{name}", str(folder / name)]
    nowhere = os.environ | {"DETECTRON2_DATASETS": str(folder / "none")}
    said = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=nowhere
    )
    assert "Traceback" not in said.stderr, said.stderr
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return said.returncode, {step["step"]: step for step in summary["steps"]}


MEASURED = [
    {"what": "", "ok": None, "engine": "torchvision", "seconds_an_image": 0.06},
    {"what": "", "ok": None, "engine": "torchvision", "row": "orig_aug_multi3x"}
    | {"precision": "fp16", "plain": True, "seconds_an_iteration": 0.25},
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """The quick steps, with what `speed` would have measured: their folder and their summary."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "work").mkdir()
    (folder / "work" / "speed.json").write_text(json.dumps(MEASURED))
    code, steps = run(folder, "machine", "stock", "cost", "nuclei")
    assert (code, {s["outcome"] for s in steps.values()}) == (0, {"ok"}), steps
    return folder, steps


WITHOUT = """
import importlib, pkgutil, sys
import proofs._gpu, smallobj_d2.commands
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # which makes their import an error
for package in (proofs._gpu, smallobj_d2.commands):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
import smallobj_d2.engines.torchvision
"""


def test_what_is_not_carried_is_not_needed():
    names = [name.replace("-", "") for name in (NOT_NEEDED - {"pytest-xdist"}) | {"xdist"}]
    command = [sys.executable, "-c", WITHOUT, *names]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert tried.returncode == 0, tried.stderr


def test_what_a_step_lacks_it_says(tried):
    assert "it needs a GPU" in tried[1]["stock"]["rows"][0]["why"]
    assert "there is no dsb2018" in tried[1]["nuclei"]["rows"][0]["why"]


def test_what_comes_back_is_a_few_files(tried):
    out = tried[0] / "out"
    assert {p.name for p in out.iterdir()} == {"summary.md", "summary.json", "files.tar.gz"}
    assert "## machine" in (out / "summary.md").read_text()
    with tarfile.open(out / "files.tar.gz") as tar:
        assert {"machine/log.txt", "machine.json", "stock.json"} <= set(tar.getnames())


def test_the_hours_of_a_sweep_are_those_of_the_formula(tried):
    (row,) = tried[1]["cost"]["rows"]
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
