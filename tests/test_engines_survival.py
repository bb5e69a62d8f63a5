"""What a training job meets at night: kills, full disks, damaged images, files from elsewhere."""

import json
import logging
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from proofs import kill_resume
from smallobj_d2.commands import train_net, visualize
from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.datasets import coco
from smallobj_d2.engines import load_engine
from smallobj_d2.engines.folder import record_run, start_anew
from smallobj_d2.engines.run import report_losses
from smallobj_d2.engines.weights import read_file
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.files import locked
from tests.forks import elsewhere

ROOT = Path(__file__).parents[1]

ENGINES = [
    "torchvision",
    pytest.param(
        "detectron2",
        marks=pytest.mark.skipif(not has_detectron2(), reason="detectron2 is not installed"),
    ),
]
each_engine = pytest.mark.parametrize("engine", ENGINES)
CONFIG = str(ROOT / "configs" / "demo.yaml")

pytestmark = pytest.mark.usefixtures("forget_datasets")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    kill_resume.make_scenes(folder)
    return folder


def options(scenes: Path, output: Path, *more: object, iterations: int = 4) -> list[str]:
    opts = kill_resume.options(scenes, output, iterations)
    return [*opts, "DATALOADER.NUM_WORKERS", "0", *map(str, more)]


def train(engine: str, opts: list[str], **how: bool) -> object:
    return load_engine(engine).main(load_cfg(CONFIG, opts), **how)


@pytest.fixture
def says(capsys) -> Callable[..., str]:
    """What a training that must fail in the project's way says about it."""

    def says(engine: str, opts: list[str]) -> str:
        assert train_net.main(["--config", CONFIG, "--engine", engine, *opts]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        (line,) = [x for x in err.splitlines() if x.startswith("error:")]
        return line

    return says


@contextmanager
def disk(folder: Path, how: str) -> Iterator[Path]:
    """A small disk of its own."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", how, "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- kill -9


@each_engine
def test_a_killed_run_resumes_bit_for_bit(tmp_path, engine):
    """python -m proofs.kill_resume does this more often; robustness.md has the figures."""
    figures = kill_resume.experiment(engine, 1, 9, tmp_path, random.Random(3), progress=False)
    assert figures["wrong"] == []
    assert figures["kills"] == 1


@each_engine
def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, scenes, monkeypatch, engine):
    """A save that breaks off leaves the checkpoint before it, and nothing half."""
    real, output = torch.save, tmp_path / "out"

    def breaks_off(state: object, file: Path) -> None:
        real(state, file)
        if "0000005" in str(file) or "final" in str(file):
            os.truncate(file, 1000)
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", breaks_off)
    opts = options(scenes, output, "DATASETS.TEST", "()", iterations=7)
    with pytest.raises(KeyboardInterrupt):
        train(engine, opts)
    assert (output / "last_checkpoint").read_text() == "model_0000002.pth"
    assert sorted(p.name for p in output.glob("*model*")) == ["model_0000002.pth"]
    (output / ".smallobj-1-1-model_0000005.pth").write_text("as a kill leaves it")
    (output / "notes.tmp").write_text("a user's own")
    monkeypatch.undo()
    monkeypatch.setattr(coco, "_registered", {})
    train(engine, opts, resume=True)
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(output.glob(".smallobj-*"))
    assert (output / "notes.tmp").is_file()


@each_engine
def test_a_run_killed_between_its_last_two_checkpoints_gets_the_final_one(
    tmp_path, scenes, monkeypatch, engine
):
    """Where CHECKPOINT_PERIOD divides MAX_ITER, the same weights are written twice."""
    real, whole, output = torch.save, tmp_path / "whole", tmp_path / "out"

    def killed(state: object, file: Path) -> None:
        if "final" in str(file):
            raise KeyboardInterrupt
        real(state, file)

    train(engine, options(scenes, whole, iterations=6))
    monkeypatch.setattr(coco, "_registered", {})
    opts = options(scenes, output, iterations=6)
    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(engine, opts)
    assert (output / "last_checkpoint").read_text() == "model_0000005.pth"
    monkeypatch.undo()
    monkeypatch.setattr(coco, "_registered", {})
    train(engine, opts, resume=True)
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    states = [torch.load(f / "model_final.pth", weights_only=True) for f in (whole, output)]
    assert kill_resume.differences(*states) == []
    assert (output / "row.json").read_text() == (whole / "row.json").read_text()


@each_engine
def test_a_damaged_last_checkpoint_is_named(tmp_path, scenes, engine):
    output = tmp_path / "out"
    opts = options(scenes, output, "DATASETS.TEST", "()")
    train(engine, opts)
    os.truncate(output / "model_final.pth", 5000)
    with pytest.raises(SmallObjError, match=r"model_final\.pth is not a weights file"):
        train(engine, opts, resume=True)


# --- The disk


@each_engine
def test_a_disk_that_fills_up_is_one_line_and_the_last_checkpoint_stays(
    tmp_path, scenes, says, engine, forget_datasets
):
    opts = options(scenes, tmp_path / "out", "DATASETS.TEST", "()", iterations=8)
    with disk(tmp_path / "disk", "size=4m") as small:
        # A checkpoint takes 2.7 MB, so that there is room for one.
        line = says(engine, [*opts, "OUTPUT_DIR", str(small / "out")])
        assert "Cannot write" in line
        assert "the disk is full" in line
        assert (small / "out" / "last_checkpoint").read_text() == "model_0000002.pth"
        state = read_file(small / "out" / "model_0000002.pth")
        assert state["iteration"] == 2
        shutil.copytree(small / "out", tmp_path / "out")
    forget_datasets()
    train(engine, opts, resume=True)


def test_a_quota_is_one_line_too(tmp_path, scenes, says):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        line = says("torchvision", options(scenes, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "model_0000002.pth: " in line


def test_a_read_only_folder_is_one_line(tmp_path, scenes, says):
    with disk(tmp_path / "disk", "ro") as folder:
        line = says("auto", options(scenes, folder / "out"))
    assert "Cannot write" in line
    assert "read-only" in line


def test_a_disk_without_inodes_is_one_line_too(tmp_path, scenes, says):
    """TensorBoard opens its file by a path in bytes."""
    with disk(tmp_path / "disk", "size=4m,nr_inodes=7") as small:
        line = says("torchvision", options(scenes, small / "out"))
    assert "events.out" in line
    assert "the disk is full" in line


@each_engine
def test_a_folder_that_holds_a_run_is_kept(tmp_path, scenes, engine, forget_datasets):
    output = tmp_path / "out"
    opts = options(scenes, output, "DATASETS.TEST", "()")
    train(engine, opts)
    before = {p.name: p.read_bytes() for p in output.iterdir() if p.suffix != ".txt"}
    forget_datasets()
    with pytest.raises(SmallObjError, match=r"out already holds a run\. .*--resume.*--overwrite"):
        train(engine, opts)
    assert before == {p.name: p.read_bytes() for p in output.iterdir() if p.suffix != ".txt"}
    forget_datasets()
    train(engine, [*opts, "SOLVER.MAX_ITER", "2"], overwrite=True)
    assert read_file(output / "model_final.pth")["iteration"] == 1


@each_engine
def test_a_last_checkpoint_that_is_gone_is_named(tmp_path, scenes, engine):
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(SmallObjError, match=r"names 'model_0000009\.pth', which is not there"):
        train(engine, options(scenes, tmp_path), resume=True)


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"seed": 1, "engine": "a", "earlier": 1}'])
def test_a_damaged_record_is_one_line(tmp_path, scenes, damage):
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(SmallObjError, match=r"run\.json is damaged"):
        train("torchvision", options(scenes, tmp_path), resume=True)


def test_libraries_that_changed_are_named_at_resume(tmp_path, scenes, caplog):
    cfg = load_cfg(CONFIG, options(scenes, tmp_path))
    logging.getLogger("smallobj_d2").propagate = True
    record_run(cfg, "torchvision")
    record = json.loads((tmp_path / "run.json").read_text())
    record["versions"]["pillow"] = "0.1"
    (tmp_path / "run.json").write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING, "smallobj_d2"):
        record_run(cfg, "torchvision", resume=True)
        record_run(cfg, "torchvision", resume=True)
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("pillow was 0.1 when this run began, and is ")


@each_engine
def test_a_resumed_run_takes_the_settings_it_is_given_and_says_so(
    tmp_path, scenes, engine, forget_datasets
):
    """As it must, to heed the advice to lower the learning rate when a loss is not finite."""
    slow = ["SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", "()"]
    opts = options(scenes, tmp_path / "out", "DATASETS.TEST", "()", *slow, iterations=3)
    train(engine, [*opts, "SOLVER.BASE_LR", "0.02"])
    forget_datasets()
    more = ["SOLVER.BASE_LR", "0.004", "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.MAX_ITER", "6"]
    train(engine, [*opts, *more], resume=True)
    lines = [json.loads(x) for x in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert [x["lr"] for x in lines if "lr" in x] == pytest.approx([0.02, 0.004])
    state = read_file(tmp_path / "out" / "model_final.pth")
    optimizer = state["optimizer"] if engine == "torchvision" else state["trainer"]["_trainer"]
    groups = optimizer.get("optimizer", optimizer)["param_groups"]
    assert 0.5 in {group["weight_decay"] for group in groups}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "BASE_LR: 0.02" in record["earlier"][0]["config"]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "SOLVER.BASE_LR was 0.02 before, and is 0.004 from here on." in log
    assert "OUTPUT_DIR was" not in log


@each_engine
def test_an_evaluation_needs_no_training_annotations(tmp_path, scenes, engine, forget_datasets):
    opts = options(scenes, tmp_path / "out", iterations=1)
    train(engine, opts)
    forget_datasets()
    gone = ["DATASETS.TRAIN", "('gone',)", "SMALLOBJ.DATASETS"]
    gone.append(
        repr([["gone", "gone.json", "gone"], *load_cfg(CONFIG, opts).SMALLOBJ.DATASETS[1:]])
    )
    weights = ["MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth")]
    assert train(engine, [*opts, *gone, *weights], eval_only=True)


@pytest.mark.parametrize(
    "wrong", [("SMALLOBJ.COPIES", "0"), ("SMALLOBJ.STRATEGY", "x"), ("SMALLOBJ.SAMPLER", "x")]
)
def test_senseless_values_are_refused_before_a_run_is_taken_away(tmp_path, scenes, wrong):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    (tmp_path / "metrics.json").touch()
    with pytest.raises(SmallObjError, match=wrong[0].replace(".", r"\.")):
        train("torchvision", options(scenes, tmp_path, *wrong), overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} >= {"last_checkpoint", "metrics.json"}


def test_a_run_that_starts_again_leaves_no_detections_of_the_one_before(tmp_path):
    """Else AP by size could be of the older run."""
    both = [tmp_path / "inference", tmp_path / "inference" / "scenes_val"]
    for folder in both:
        folder.mkdir()
        (folder / "coco_instances_results.json").write_text("[]")
    (tmp_path / "inference" / "mine.txt").touch()
    start_anew(tmp_path)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["mine.txt"]


@pytest.mark.parametrize("batch", [0, -2])
def test_a_batch_of_nothing_is_refused(tmp_path, scenes, batch):
    with pytest.raises(SmallObjError, match=f"SOLVER.IMS_PER_BATCH.* {batch}"):
        train("torchvision", options(scenes, tmp_path, "SOLVER.IMS_PER_BATCH", batch))


def test_weights_that_claim_more_than_there_is_are_refused(tmp_path):
    """An array of 64 TiB in a file of some bytes."""
    path = tmp_path / "bomb.pkl"
    claims = pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + (1 << 46).to_bytes(8, "little") + b"abc."
    path.write_bytes(claims)
    with pytest.raises(SmallObjError, match=r"bomb\.pkl asks for more memory than there is"):
        read_file(path)


def test_two_runs_in_one_folder_are_refused(tmp_path, scenes, says):
    with elsewhere(lambda: locked(tmp_path, "busy")):
        line = says("auto", options(scenes, tmp_path))
    assert line == (
        f"error: Another run is writing to {tmp_path}. Wait for it, or choose another OUTPUT_DIR."
    )


# --- Images that cannot be read


@pytest.fixture
def damaged(tmp_path, scenes) -> tuple[Path, Path]:
    """The scenes, one training image cut short, and that image."""
    copy = tmp_path / "damaged"
    shutil.copytree(scenes, copy)
    image = min((copy / "scenes_train" / "images").iterdir())
    os.truncate(image, 600)
    return copy, image


@each_engine
def test_an_unreadable_image_stops_a_run_by_its_name(tmp_path, damaged, engine):
    folder, image = damaged
    with pytest.raises(UnreadableImage, match=rf"{image.name} \(image 1\) cannot be read"):
        train(engine, options(folder, tmp_path / "out", iterations=20))


@each_engine
def test_or_is_skipped_counted_and_listed(tmp_path, damaged, caplog, engine):
    folder, image = damaged
    skip = ("SMALLOBJ.UNREADABLE_IMAGES", "skip", "DATASETS.TEST", "()")
    logging.getLogger("smallobj_d2").propagate = True
    with caplog.at_level(logging.WARNING, "smallobj_d2"):
        train(engine, options(folder, tmp_path / "out", *skip, iterations=16))
    ((what, count),) = json.loads((tmp_path / "out" / "skipped.json").read_text()).items()
    assert image.name in what
    assert count > 1
    lines = [r.getMessage() for r in caplog.records if image.name in r.getMessage()]
    assert [line.split(":")[0] for line in lines] == ["Skipped", f"Skipped {count} times"]


def test_what_was_skipped_before_a_resume_is_added_to(tmp_path):
    for skipped in ({"a.png": 2}, {"a.png": 1, "b.png": 4}, {}):
        report_losses(tmp_path, SimpleNamespace(skipped=skipped, left_out=Counter()))
    assert json.loads((tmp_path / "skipped.json").read_text()) == {"a.png": 3, "b.png": 4}


@each_engine
def test_a_missing_image_is_named_before_training_starts(tmp_path, damaged, engine):
    folder, image = damaged
    image.unlink()
    with pytest.raises(UnreadableImage, match=rf"{image.name} \(image 1\) cannot be read: not th"):
        train(engine, options(folder, tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.json").exists()


@each_engine
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_test_image_is_named(tmp_path, damaged, engine, workers):
    folder, _ = damaged
    image = min((folder / "scenes_val" / "images").iterdir())
    os.truncate(image, 600)
    opts = options(folder, tmp_path / "out", "DATALOADER.NUM_WORKERS", workers)
    with pytest.raises(UnreadableImage, match=rf"^\S+{image.name} \(image 1\) cannot be read: .*"):
        train(engine, [*opts, "DATASETS.TRAIN", "('scenes_val',)"], eval_only=False)


@each_engine
def test_copies_over_the_cap_are_counted_at_the_end(tmp_path, scenes, caplog, engine):
    capped = ("SMALLOBJ.MAX_PASTES", 1, "SMALLOBJ.AUGMENTATION_PROBABILITY", "1.0")
    logging.getLogger("smallobj_d2").propagate = True
    with caplog.at_level(logging.WARNING, "smallobj_d2"):
        train(engine, options(scenes, tmp_path / "out", *capped, "DATASETS.TEST", "()"))
    (line,) = [m for r in caplog.records if "copies were left out" in (m := r.getMessage())]
    assert int(line.split()[0]) > 0


@each_engine
def test_copies_without_a_pixel_or_a_place_are_counted_at_the_end(tmp_path, scenes, caplog, engine):
    shrunk = ("SMALLOBJ.SCALE", (0.01, 0.01), "SMALLOBJ.AUGMENTATION_PROBABILITY", "1.0")
    logging.getLogger("smallobj_d2").propagate = True
    with caplog.at_level(logging.INFO, "smallobj_d2"):
        train(engine, options(scenes, tmp_path / "out", *shrunk, "DATASETS.TEST", "()"))
    (line,) = [m for r in caplog.records if "own no pixel" in (m := r.getMessage())]
    assert int(line.split()[-1].rstrip(".")) > 0
    assert not any("found no free place" in r.getMessage() for r in caplog.records)


# --- Datasets that are unusual


def rewritten(folder: Path, scenes: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The scenes with their JSON files changed."""
    shutil.copytree(scenes, folder)
    for path in folder.glob("*/annotations.json"):
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
    return folder


def with_strings_for_ids(data: dict[str, Any]) -> None:
    for part in ("images", "annotations", "categories"):
        for entry in data[part]:
            entry["id"] = f"n{entry['id']:04}"
    for a in data["annotations"]:
        a.update({key: f"n{a[key]:04}" for key in ("image_id", "category_id")})


def with_much_missing(data: dict[str, Any]) -> None:
    for i, a in enumerate(data["annotations"]):
        a["id"] = i
        del a["area"], a["iscrowd"]
        if isinstance(a["segmentation"], list):
            a["segmentation"].append([1, 1, 2, 2])


@each_engine
@pytest.mark.parametrize("change", [with_strings_for_ids, with_much_missing])
def test_what_the_loader_lets_pass_is_trained_on_and_evaluated(
    tmp_path, scenes, engine, change, forget_datasets
):
    """COCO's tools end in a traceback on both, after the training."""
    row = train(engine, options(scenes, tmp_path / "whole"))
    unusual = rewritten(tmp_path / "scenes", scenes, change)
    forget_datasets()
    other = train(engine, options(unusual, tmp_path / "out"))
    if change is with_strings_for_ids:
        assert other == row
    assert other["ground_truth"]["all"] >= row["ground_truth"]["all"]


@each_engine
def test_a_test_set_without_masks_is_named_before_training_starts(tmp_path, scenes, engine):
    def without_one(data: dict[str, Any]) -> None:
        del data["annotations"][3]["segmentation"]

    folder = rewritten(tmp_path / "scenes", scenes, without_one)
    with pytest.raises(SmallObjError, match=r"scenes_val: annotation 4 .*MODEL\.MASK_ON False"):
        train(engine, options(folder, tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.json").exists()


# --- Losses


@each_engine
def test_a_loss_that_is_not_finite_names_the_draws_to_look_at(
    tmp_path, scenes, monkeypatch, engine
):
    output = tmp_path / "out"
    opts = options(scenes, output, "SOLVER.BASE_LR", "1e25", "SOLVER.WARMUP_ITERS", "0")
    with pytest.raises(SmallObjError, match="not finite at iteration 1") as e:
        train(engine, opts)
    words = str(e.value).split("--positions ")[1].split(". ")[0].split()
    tool = ["visualize.py", "--engine", engine, "--config", str(output / "config.yaml")]
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", [*tool, "--out", str(sheet), "--positions", *words])
    visualize.main()
    assert sheet.is_file()
    loader = load_engine(engine).build_train_loader(load_cfg(output / "config.yaml"), start_iter=1)
    next(iter(loader))
    assert words == [str(p) for p in loader.positions]


# --- Files from elsewhere


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@each_engine
@pytest.mark.parametrize("kind", ["pth", "pkl"])
def test_weights_that_would_execute_something_are_refused(
    tmp_path, scenes, monkeypatch, capsys, engine, kind
):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / f"evil.{kind}"
    if kind == "pkl":
        content = {"model": {"a": np.zeros(3), "b": Evil()}, "__author__": "me"}
        weights.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": {"a": torch.zeros(3)}, "b": Evil()}, weights)
    opts = options(scenes, tmp_path / "out", "MODEL.WEIGHTS", weights)
    assert train_net.main(["--config", CONFIG, "--engine", engine, *opts]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: {weights} is not loaded, as it asks for posix.system")
    assert "convert it once: python3 -c" in line
    assert not (tmp_path / "executed").exists()


def test_the_way_to_convert_works(tmp_path, monkeypatch):
    """What a refusal tells its reader to type."""
    import argparse

    for name in ("a.pth", "a.pkl"):
        content = {"model": {"a": torch.zeros(3)}, "args": argparse.Namespace(lr=1)}
        if name == "a.pth":
            torch.save(content, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content))
        with pytest.raises(SmallObjError, match="convert it once") as e:
            read_file(tmp_path / name)
        code = str(e.value).split('python3 -c "')[1].rsplit('"', 1)[0]
        monkeypatch.setattr(
            sys, "argv", ["-c", str(tmp_path / name), str(tmp_path / "weights.pth")]
        )
        exec(code)
        assert torch.equal(read_file(tmp_path / "weights.pth")["a"], torch.zeros(3))


def test_a_config_that_would_execute_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.yaml"
    path.write_text('OUTPUT_DIR: !!python/object/apply:os.system ["touch executed"]\n')
    with pytest.raises(SmallObjError, match=r"evil\.yaml"):
        load_cfg(path)
    assert not (tmp_path / "executed").exists()
