"""Sweeps: what is missing runs, what is finished does not run again, what fails stops nothing.

A fake `train_net.py` stands in for training; it takes the same arguments and leaves the same files.
"""

import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

from smallobj_d2.commands import reproduce
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets import coco
from smallobj_d2.datasets.synthetic import make_splits
from smallobj_d2.errors import SmallObjError, clock
from smallobj_d2.experiments import cluster
from smallobj_d2.experiments import sweep as sweeps
from smallobj_d2.experiments.plan import load_plan
from smallobj_d2.experiments.runs import State, check_requests, plan_runs
from smallobj_d2.experiments.scales import AUGMENTED_VAL, Scale, load_scale
from smallobj_d2.experiments.sweep import Slot, Sweep, share_out
from smallobj_d2.files import locked
from tests.forks import fork

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SCALES = ROOT / "experiments" / "scales"
FINALS = ROOT / "experiments" / "finals" / "plan.yaml"
TABLE = ["baseline", "aug", "aug_oversample_2x", f"aug_oversample_2x@{AUGMENTED_VAL}"]

FAKE = """
import argparse, fcntl, json, os, sys, time
from pathlib import Path
import yaml
p = argparse.ArgumentParser()
p.add_argument("--config"); p.add_argument("--engine"); p.add_argument("--num-gpus", type=int)
p.add_argument("--resume", action="store_true"); p.add_argument("--eval-only", action="store_true")
p.add_argument("opts", nargs=argparse.REMAINDER)
a = p.parse_args()
opts = dict(zip(a.opts[::2], a.opts[1::2]))
out = Path(opts["OUTPUT_DIR"])
lock = (out / ".lock").open("a")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
asked = yaml.safe_load(Path(a.config).read_text())
here = Path(__file__).parent
with (here / "starts.txt").open("a") as log:
    print(out, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"], file=log)
if (here / f"fail-{out.parent.name}").exists():
    print("about to fail")
    sys.exit("error: the moon is in the wrong house")
if a.eval_only:
    assert Path(opts["MODEL.WEIGHTS"]).is_file()
else:
    assert a.resume
    metrics = out / "metrics.json"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    steps = asked["SOLVER"]["MAX_ITER"]
    for i in range(done, steps):
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        with metrics.open("a") as f:
            print(json.dumps({"iteration": i}), file=f)
    (out / "model_0000001.pth").write_text("early"); (out / "model_final.pth").write_text("final")
(out / "row.json").write_text(json.dumps({"seed": asked["SEED"]}))
"""


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "tool" / "train_net.py"
    path.parent.mkdir()
    path.write_text(FAKE)
    return path


def fake_scale(**changes) -> Scale:
    values = {"config": {"SOLVER": {"MAX_ITER": 5}}, "gpus": 0, "seconds": 9.0, "machine": "this"}
    return Scale(**{"name": "fake", "about": "nothing is trained", **values, **changes})


def plan(folder: Path, rows=TABLE, seeds=(0, 1), **changes):
    return plan_runs(fake_scale(**changes), CONFIGS, folder / "fake" / "torchvision", rows, seeds)


def sweep(runs, tool, slots=1, **more) -> Sweep:
    return Sweep(runs, "torchvision", [Slot()] * slots, [str(tool)], 9.0, **more)


def starts(tool: Path) -> list[str]:
    log = tool.parent / "starts.txt"
    return log.read_text().splitlines() if log.exists() else []


def test_an_evaluation_on_an_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(SmallObjError, match=r"no evaluation 'aug@augmented_vall'"):
        plan(tmp_path, ["baseline", "aug@augmented_vall"])


def test_runs_what_is_missing_and_skips_what_is_finished(tool, tmp_path, capsys):
    runs = plan(tmp_path)
    assert [r.name for r in runs[:4]] == [
        "baseline seed 0",
        "aug seed 0",
        "aug_oversample_2x seed 0",
        "aug_oversample_2x seed 0 on augmented_val",
    ]
    assert {r.state() for r in runs} == {State.MISSING}
    assert sweep(runs, tool, slots=3).go()
    assert {r.state() for r in runs} == {State.FINISHED}
    assert len(starts(tool)) == len(runs) == 8
    assert sweep(runs, tool).go()
    assert len(starts(tool)) == 8
    out = capsys.readouterr().out
    assert "8 of 8 done" in out
    assert json.loads((runs[4].folder / "row.json").read_text()) == {"seed": 1}
    assert not list(tmp_path.rglob("model_0*.pth"))
    assert (runs[0].folder / "model_final.pth").exists()


def test_a_run_that_says_nothing_for_long_is_named(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    monkeypatch.setattr(sweeps, "POLL", 0.01)
    monkeypatch.setattr(sweeps, "SAY", 0.05)
    for longest, named in ((0.2, True), (60.0, False)):
        monkeypatch.setattr(sweeps, "SILENCE", longest)
        assert sweep(plan(tmp_path / str(longest), rows=["aug"], seeds=[0]), tool).go()
        assert (
            re.search(r"aug seed 0 \d+% \(silent for 0:", capsys.readouterr().out) is not None
        ) is named


def test_a_file_that_vanishes_while_it_is_looked_at_stops_no_sweep(tool, tmp_path):
    (run,) = plan(tmp_path, rows=["aug"], seeds=[0])
    run.begin()
    wrote = run.wrote()
    (run.folder / "gone.tmp").symlink_to(run.folder / "nowhere")  # listed, and not there
    assert run.wrote() == wrote
    assert sweep([run], tool).go()


def test_checkpoints_that_a_killed_sweep_left_are_dropped(tool, tmp_path):
    runs = plan(tmp_path, rows=["baseline"], seeds=[0])
    assert sweep(runs, tool).go()
    left = runs[0].folder / "model_0000001.pth"
    left.touch()
    assert sweep(runs, tool).go()
    assert not left.exists()


def test_a_run_starts_while_others_look_whether_it_runs(tmp_path):
    """Looking takes the lock for a moment."""
    run = plan(tmp_path, rows=["baseline"], seeds=[0])[0]
    run.begin()

    def look() -> None:
        while not (tmp_path / "enough").exists():
            run.state()

    process = fork(look)
    try:
        for _ in range(500):
            with locked(run.folder, "busy"):
                pass
    finally:
        (tmp_path / "enough").touch()
        process.join(30)


def test_a_failing_run_stops_nothing_and_is_tried_again(tool, tmp_path, capsys):
    runs = plan(tmp_path)
    (tool.parent / "fail-aug_oversample_2x").touch()
    first = sweep(runs, tool)
    assert not first.go()
    assert first.failed == {
        "aug_oversample_2x seed 0": "error: the moon is in the wrong house",
        "aug_oversample_2x seed 0 on augmented_val": "its model is not finished",
        "aug_oversample_2x seed 1": "error: the moon is in the wrong house",
        "aug_oversample_2x seed 1 on augmented_val": "its model is not finished",
    }
    assert "FAILED aug_oversample_2x seed 0: error: the moon" in capsys.readouterr().out
    states = [r.state() for r in runs[:4]]
    assert states == [State.FINISHED, State.FINISHED, State.FAILED, State.MISSING]
    (tool.parent / "fail-aug_oversample_2x").unlink()
    before = len(starts(tool))
    assert sweep(runs, tool).go()
    assert len(starts(tool)) - before == 4
    assert [a["code"] for a in runs[2].attempts()] == [1, 0]


def start_sweep(tool: Path, folder: Path) -> BaseProcess:
    """A sweep in a process of its own, with steps of 0.1 s."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def what() -> None:
        os.environ["FAKE_SECONDS"] = "0.1"
        signal.signal(signal.SIGTERM, interrupt)
        sweep(plan(folder), tool, slots=2).go()

    return fork(what)


def wait_for(what, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_and_restarted_it_repeats_nothing(tool, tmp_path, how):
    runs = plan(tmp_path)
    process = start_sweep(tool, tmp_path)
    begun = [r for r in runs if r.model is None][2]

    def under_way() -> bool:  # and what else was started has its lock, by which it is waited for
        started = all(r.state() is not State.CUT_OFF for r in runs)
        return 0 < begun.progress() < 0.9 and started

    wait_for(under_way)
    os.kill(process.pid, how)
    process.join(30)
    finished = [r for r in runs if r.state() is State.FINISHED]
    assert finished
    if how != signal.SIGKILL:  # it ends its runs; a killed one cannot, and they continue alone
        assert begun.state() is State.CUT_OFF
    stamps = {r.name: (r.folder / "row.json").stat().st_mtime_ns for r in finished}
    assert sweep(runs, tool, slots=2).go()
    assert stamps == {r.name: (r.folder / "row.json").stat().st_mtime_ns for r in finished}
    trained = [r for r in runs if r.model is None]
    for run in trained:  # each iteration was done once
        lines = (run.folder / "metrics.json").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == list(range(5))
        assert run.seconds() > 0
    if how == signal.SIGKILL:  # nothing was started twice, as it was waited for
        assert len(starts(tool)) == len(runs)


def test_two_sweeps_share_the_work(tool, tmp_path):
    other = start_sweep(tool, tmp_path)
    runs = plan(tmp_path)
    wait_for(lambda: starts(tool))
    assert sweep(runs, tool, slots=2).go()
    other.join(30)
    assert other.exitcode == 0
    for run in runs:
        if run.model is None:
            assert len((run.folder / "metrics.json").read_text().splitlines()) == 5


def test_refuses_to_mix_experiments(tool, tmp_path):
    runs = plan(tmp_path, rows=["baseline"], seeds=[0])
    assert sweep(runs, tool).go()
    check_requests(plan(tmp_path))
    longer = plan(tmp_path, config={"SOLVER": {"MAX_ITER": 6}})
    with pytest.raises(SmallObjError, match=r"SOLVER\.MAX_ITER 5; now it is 6"):
        check_requests(longer)


def test_refuses_to_mix_runs_on_different_data(tmp_path, monkeypatch):
    """Rows would be compared that were trained on other images, or other annotations."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, content in (("a", "one"), ("b", "another"), ("val", "x")):
        (tmp_path / f"{name}.json").write_text(content)
    folder, val = tmp_path / "out", ["mine_val", "val.json", "val"]

    def prepare(json_file):
        scale = fake_scale(existing=[["mine_train", json_file, "train"], val])
        scale.prepare(CONFIGS, folder, augmented_val=False)

    for _ in range(2):
        prepare("a.json")
    with pytest.raises(SmallObjError, match="is for other data"):
        prepare("b.json")
    (tmp_path / "c.json").write_text("one")
    prepare("c.json")  # the same under another name
    scenes = {"num_train": 2, "num_val": 1, "seed": 0, "size": 96}
    other = tmp_path / "scenes"
    fake_scale(scenes=scenes).prepare(CONFIGS, other, augmented_val=False)
    with pytest.raises(SmallObjError, match="is for other data"):
        fake_scale(scenes={**scenes, "num_train": 3}).prepare(CONFIGS, other, augmented_val=False)
    assert len([*(other / "scenes" / "scenes_train" / "images").iterdir()]) == 2
    refused = tmp_path / "refused"
    with pytest.raises(SmallObjError, match="size must be"):
        fake_scale(scenes={**scenes, "size": 9}).prepare(CONFIGS, refused, augmented_val=False)
    fake_scale(scenes=scenes).prepare(CONFIGS, refused, augmented_val=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": {}}, "a scale has no dataset"),
        (
            {"datasets": {"train": ["a.json", "a"], "val": ["b", "b.json", "b"]}},
            "datasets.train is",
        ),
        ({"gpus": "0"}, "gpus is '0'"),
        ({"scenes": {"num_train": 3, "num_val": 1}}, "is not a scale: .*seed"),
        (
            {"scenes": {"num_train": 3, "num_val": 1, "seed": 0, "sise": 9}},
            "is not a scale: .*sise",
        ),
    ],
)
def test_a_file_that_is_no_scale_is_named(tmp_path, changes, says):
    good = {"about": "mine", "gpus": 0, "run": {"seconds": 60, "machine": "this"}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(good))
    assert load_scale(path).gpus == 0
    path.write_text(yaml.safe_dump(good | changes))
    with pytest.raises(SmallObjError, match=says):
        load_scale(path)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cuda")])
@pytest.mark.parametrize("name", ["nuclei", "nuclei_tiny"])
def test_the_gpus_of_a_scale_choose_the_device(tmp_path, monkeypatch, name, gpus, device):
    """A file of one's own says how many; what it is made from may have been for others."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {SCALES / name}.yaml\ngpus: {gpus}\n")
    seen = []
    monkeypatch.setattr(reproduce, "check_requests", seen.extend)
    words = ["--rows", "baseline", "--engine", "torchvision", "--dry-run"]
    assert not reproduce.main(["--scale", str(path), *words, "--out", str(tmp_path / "out")])
    (run,) = seen
    assert run.request["MODEL"].get("DEVICE", "cuda") == device


def test_the_wait_for_a_second_job_is_no_time_of_training(tool, tmp_path):
    (run,) = plan(tmp_path, rows=["baseline"], seeds=[0])
    run.begin()
    lived = run.attempts()[-1]["seconds"]
    (run.folder / "slurm.json").write_text("{}")
    later = time.time() + 9000
    os.utime(run.folder / "slurm.json", (later, later))
    assert run.attempts()[-1]["seconds"] == lived


def test_all_rows_of_a_seed_are_trained_on_cpu_or_all_on_gpu(tool, tmp_path):
    cpu = fake_scale(config={"MODEL": {"DEVICE": "cpu"}, "SOLVER": {"MAX_ITER": 5}})
    folder = tmp_path / "fake" / "torchvision"

    def planned(scale, *rows, seeds):
        return plan_runs(scale, CONFIGS, folder, rows, seeds)

    assert sweep(planned(cpu, "baseline", "beyond/bank", seeds=[0]), tool).go()
    check_requests(planned(cpu.on(1), "baseline", "beyond/bank", seeds=[0]))  # they are finished
    check_requests(planned(cpu.on(1), "baseline", "aug", seeds=[1]))
    check_requests(planned(cpu, "aug", seeds=[0]))
    for row in ("aug", "beyond/bank_soft"):
        with pytest.raises(SmallObjError, match=r"seed0 has MODEL\.DEVICE cpu: train the other"):
            check_requests(planned(cpu.on(1), row, seeds=[0]))


def test_shares_out_gpus():
    four = ["0", "1", "2", "3"]
    assert [s.gpus for s in share_out(four, 1, None, 16)] == [("0",), ("1",), ("2",), ("3",)]
    assert [s.gpus for s in share_out(four, 2, None, 16)] == [("0", "1"), ("2", "3")]
    assert [s.gpus for s in share_out(["0"], 4, None, 16)] == [("0",)]
    assert share_out(["5"], 1, 3, 16) == [Slot(("5",), 5)] * 3
    assert share_out([], 1, None, 2) == [Slot((), 2)]
    assert share_out([], 0, None, 2) == [Slot((), 1)] * 2
    assert share_out(four, 0, 2, 8) == [Slot((), 4)] * 2


def test_runs_see_their_own_gpu(tool, tmp_path):
    runs = plan(tmp_path, rows=["baseline", "aug"])
    slots = share_out(["2", "7"], 1, None, 8)
    assert Sweep(runs, "torchvision", slots, [str(tool)], 9.0).go()
    seen = {tuple(line.split()[1:]) for line in starts(tool)}
    assert seen == {("2", "4"), ("7", "4")}


@pytest.mark.parametrize("name", sorted(p.stem for p in SCALES.glob("*.yaml")))
def test_scales_change_everything_but_the_rows(name, tmp_path):
    scale = load_scale(SCALES / f"{name}.yaml")
    budgets = set()
    for row in ("baseline", "orig_aug_multi3x", "orig_aug_overlap"):
        path = tmp_path / f"{row}.yaml"
        path.write_text(yaml.safe_dump(scale.request(CONFIGS / f"{row}.yaml", tmp_path)))
        cfg, own = load_cfg(path), load_cfg(CONFIGS / f"{row}.yaml")
        for key, value in own.SMALLOBJ.items():
            assert key == "DATASETS" or cfg.SMALLOBJ[key] == value
        budgets.add((cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.IMS_PER_BATCH))
        if name == "paper":
            assert cfg.MODEL == own.MODEL
            assert cfg.SOLVER == own.SOLVER
            assert cfg.DATASETS == own.DATASETS
        # As in the paper: one aspect of anchors per level, matching at 0.7, boxes at 0.5.
        assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
        assert cfg.MODEL.RPN.IOU_THRESHOLDS == own.MODEL.RPN.IOU_THRESHOLDS
        assert cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == own.MODEL.ROI_HEADS.IOU_THRESHOLDS
        assert cfg.TEST.EVAL_PERIOD == 0
    assert len(budgets) == 1


def test_prepares_scenes_and_the_augmented_validation_set(tmp_path):
    scale = fake_scale(scenes={"num_train": 2, "num_val": 6, "seed": 0, "size": 128})
    scale.prepare(CONFIGS, tmp_path, augmented_val=True)
    made = tmp_path / AUGMENTED_VAL / "annotations.json"
    data = json.loads(made.read_text())
    assert len(data["images"]) == 6
    assert any("copy_paste" in a for a in data["annotations"])
    scale.prepare(CONFIGS, tmp_path, augmented_val=True)
    assert json.loads(made.read_text()) == data
    more = fake_scale(scenes={"num_train": 2, "num_val": 7, "seed": 0, "size": 128})
    with pytest.raises(SmallObjError, match="is for other data"):
        more.prepare(CONFIGS, tmp_path, augmented_val=True)
    other = tmp_path / "configs"
    other.mkdir()
    aug = {"_BASE_": str(CONFIGS / "aug.yaml"), "SMALLOBJ": {"ROTATION": [-45.0, 45.0]}}
    (other / "aug.yaml").write_text(yaml.safe_dump(aug))
    with pytest.raises(SmallObjError, match="made with other settings"):
        scale.prepare(other, tmp_path, augmented_val=True)


def test_a_scale_can_be_on_a_dataset_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    monkeypatch.setattr(coco, "_registered", {})  # one sweep in a process
    make_splits(tmp_path / "data", num_train=2, num_val=3, seed=0, size=128, progress=False)
    names = ("train", "val")
    splits = [[f"cells_{n}", f"scenes_{n}/annotations.json", f"scenes_{n}/images"] for n in names]
    scale = fake_scale(existing=splits)
    folder = tmp_path / "out"
    scale.prepare(CONFIGS, folder, augmented_val=True)
    data = json.loads((folder / AUGMENTED_VAL / "annotations.json").read_text())
    assert len(data["images"]) == 3
    path = tmp_path / "baseline.yaml"
    path.write_text(yaml.safe_dump(scale.request(CONFIGS / "baseline.yaml", folder)))
    cfg = load_cfg(path)
    assert (tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)) == (
        ("cells_train",),
        ("cells_val",),
    )
    assert [Path(json).is_file() for _, json, _ in cfg.SMALLOBJ.DATASETS] == [True] * 3


def test_weights_that_a_variable_does_not_name_are_missing(tmp_path, monkeypatch):
    scale = replace(load_scale(SCALES / "facade_tiny.yaml"), existing=None, scenes={})
    monkeypatch.delenv("SMALLOBJ_RESNET18", raising=False)
    says = "Scale facade_tiny starts from $SMALLOBJ_RESNET18, and SMALLOBJ_RESNET18 is not set."
    assert scale.missing(tmp_path) == says
    monkeypatch.setenv("SMALLOBJ_RESNET18", "weights.pth")
    assert scale.missing(tmp_path) == ""


def test_a_dataset_that_is_not_there_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    scale = load_scale(SCALES / "nuclei_tiny.yaml")
    json_file = tmp_path / "dsb2018" / "annotations" / "train.json"
    folder = tmp_path / "out"
    assert re.search(f"there is no {json_file}.*DETECTRON2_DATASETS", scale.missing(folder))
    json_file.parent.mkdir(parents=True)
    json_file.touch()
    assert re.search(r"there is no .*dsb2018/train\.", scale.missing(folder))
    assert reproduce.main(["--scale", "nuclei_tiny", "--out", str(folder)]) == 2
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_runs_and_their_cost(tmp_path, capsys):
    out = str(tmp_path / "out")
    words = ["--scale", "paper", "--tables", "4", "--seeds", "2", "--engine", "torchvision"]
    assert reproduce.main([*words, "--dry-run", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "orig_aug seed 1" in said
    assert "baseline seed 0 on augmented_val" in said  # the control
    seconds = load_scale(SCALES / "paper.yaml").seconds
    assert f"{clock(8 * seconds)} left" in said
    assert not Path(out).exists()


def test_a_plan_says_which_rows_and_seeds(tmp_path, capsys):
    words = ["--scale", "tiny", "--plan", str(FINALS), "--engine", "torchvision", "--dry-run"]
    planned = load_plan(FINALS)["tiny"]

    def listed(*more):
        assert reproduce.main([*words, *more, "--out", str(tmp_path / "out")]) == 0
        return re.findall(r"^(\S+) seed (\d+) ", capsys.readouterr().out, flags=re.MULTILINE)

    assert listed() == [(r, str(s)) for s in planned.seeds for r in planned.rows]
    assert listed("--first-seed", "7") == [(row, "7") for row in planned.rows]
    every = [*planned.seeds, *planned.more_seeds]
    assert listed("--seeds", "2") == [(r, str(s)) for s in every[:2] for r in planned.rows]
    assert listed("--seeds", str(len(every)))[-1][1] == str(every[-1])


def test_planned_rows_without_a_config_are_left_out_and_named(tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(
        "scales: {tiny: {seeds: [4], rows: [baseline, beyond/gone, aug@augmented_val]}}"
    )
    words = ["--scale", "tiny", "--engine", "torchvision", "--dry-run", "--plan", str(file)]
    assert reproduce.main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Left out, as their configs are gone: beyond/gone\n" in said
    runs = re.findall(r"^(\S+) seed 4", said, flags=re.MULTILINE)
    assert runs == ["baseline", "aug", "aug"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--scale", "huge"],
            "facade_tiny, nuclei, nuclei_boxes, nuclei_tiny, paper, small, tiny",
        ),
        (["--scale", "tiny", "--tables", "9"], "--tables 9: there are 3, 4, 5, 6, 7, 8"),
        (["--scale", "tiny", "--rows", "nothing"], "no config"),
        (["--scale", "tiny", "--rows", "baseline", "../baseline"], "no config of that name"),
        (["--scale", "tiny", "--seeds", "0"], "--seeds"),
        (["--scale", "tiny", "--plan", "none.yaml"], "There is no plan none.yaml."),
        (["--scale", "tiny", "--plan", str(FINALS), "--seeds", "99"], "--seeds 99: the plan has 8"),
        (["--scale", "small", "--plan", str(FINALS)], "nothing for the scale small; there are nuc"),
        (["--scale", "tiny", "--slurm", "gpu"], "KEY=VALUE"),
    ],
)
def test_says_what_is_wrong(args, message, tmp_path, capsys):
    assert reproduce.main([*args, "--engine", "torchvision", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_slurm_needs_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ModuleNotFoundError, match="submitit"):
        cluster.submit([], [], gpus=1, seconds=1, folder=tmp_path, options={})


def test_slurm_gets_one_job_a_run(tmp_path, monkeypatch):
    """With a Slurm that queues everything and runs nothing."""
    pytest.importorskip("submitit")
    for name, answer in (
        ("sbatch", 'n=$(ls "$0".d | wc -l); cp "$1" "$0".d/$n; echo "Submitted batch job $n"'),
        ("squeue", 'echo "$3"'),
        ("srun", "true"),
    ):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{answer}\n")
        script.chmod(0o755)
    (tmp_path / "bin" / "sbatch.d").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    runs = plan(tmp_path / "out")
    same = {"gpus": 2, "seconds": 600, "folder": tmp_path / "slurm"}
    options = cluster.parse_options(["slurm_partition=gpu", "timeout_min=77"])
    lines = cluster.submit(runs, ["reproduce.py"], **same, options=options)
    assert len(lines) == 6  # an evaluation is part of its run's job
    assert lines[2] == "aug_oversample_2x seed 0: submitted as job 2"
    script = (tmp_path / "bin" / "sbatch.d" / "2").read_text()
    for option in ("partition=gpu", "time=77", "gpus-per-node=2"):
        assert option in script
    lines = cluster.submit(runs, ["reproduce.py"], **same, options=options)
    assert lines[2] == "aug_oversample_2x seed 0: is job 2"
    with pytest.raises(SmallObjError, match="does not take"):
        cluster.submit(runs, [], **same, options={"colour": "red"})
