"""What the outside does wrong is one line and an exit code, for every command alike."""

import errno
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallobj_d2.__main__ import COMMANDS
from smallobj_d2.commands import CommandLine, parse, scale_file, writable
from smallobj_d2.commands import reproduce as reproduce_tool
from smallobj_d2.commands.train_net import parser as train_parser
from smallobj_d2.config import ROOT, load_cfg
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.experiments.scales import load_scale
from smallobj_d2.visualization.sheets import PASTED


def failing(error: BaseException):
    @command
    def main(argv=None):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SmallObjError("no image a\n\x1b[2Jerror: b"), 2, "error: no image a\\n\\x1b[2Jerror: b"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.png"),
            2,
            "error: a.png: Permission",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device."),
        (FileNotFoundError(2, "No such file or directory", b"a"), 2, "error: a: No such file"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "error: What should"),
        (ModuleNotFoundError(name="submitit"), 2, "error: This needs submitit, which is not"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (KeyboardInterrupt("Stopped. Resume it so."), 130, "Stopped. Resume it so."),
    ],
)
def test_one_line_and_an_exit_code(capsys, error, code, line):
    assert failing(error)([]) == code
    (found,) = capsys.readouterr().err.strip().splitlines()
    assert found.startswith(line)


@pytest.mark.parametrize(
    "bug",
    [
        KeyError("a"),
        ModuleNotFoundError(name="a"),
        OSError("bad"),
        ValueError("b"),
        OSError(9, "bad", 3),
    ],
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        failing(bug)([])


def test_every_command_has_its_line():
    modules = {p.stem for p in (ROOT / "smallobj_d2" / "commands").glob("[a-z]*.py")}
    assert modules == {module for module, _ in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_one_and_its_help_has_an_example(name, capsys):
    module = import_module(f"smallobj_d2.commands.{COMMANDS[name][0]}")
    assert hasattr(module.main, "__wrapped__")
    with pytest.raises(SystemExit) as e:
        module.main(["--help"])
    assert e.value.code == 0
    assert f"smallobj {name}" in capsys.readouterr().out


@pytest.mark.parametrize("door", sorted((ROOT / "tools").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_every_tool_is_a_door_to_its_command(door):
    (name,) = (name for name, (module, _) in COMMANDS.items() if module == door.stem)
    assert f'run("{name}")' in door.read_text()


def test_a_reader_that_leaves_is_no_error():
    code = """
import sys
from smallobj_d2.errors import command
@command
def main(argv=None):
    for _ in range(100000): print("line")
sys.exit(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


# --- the command line


@pytest.mark.parametrize(
    "words",
    [
        "--config a.yaml --resume SEED -1 OUTPUT_DIR b SOLVER.BASE_LR -1e-3",
        "--config a.yaml SEED -1 OUTPUT_DIR b SOLVER.BASE_LR -1e-3 --resume",
        "SEED -1 --config a.yaml OUTPUT_DIR b --resume SOLVER.BASE_LR -1e-3",
    ],
)
def test_flags_may_stand_before_after_and_between_overrides(words):
    args = parse(train_parser(), words.split())
    assert args.resume
    assert args.config_file == "a.yaml"
    assert args.opts == ["SEED", "-1", "OUTPUT_DIR", "b", "SOLVER.BASE_LR", "-1e-3"]


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as e:
        parse(train_parser(), ["--config", "a.yaml", "SEED", "1", "--resum-e=3"])
    assert e.value.code == 2
    assert "there is no option --resum-e" in capsys.readouterr().err


def test_the_help_names_overrides():
    parser = CommandLine("What it does.")
    parse(parser, [])
    assert "KEY VALUE" in parser.format_help()


# --- datasets without a name


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes for training and for evaluation, known by their files only."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, split in enumerate(("train", "val")):
        make_dataset(folder, split, 6, seed=seed, size=96, progress=False)
    return folder


def files(folder: Path, split: str, prefix: str = "") -> list[str]:
    where = folder / split
    json_file, images = str(where / "annotations.json"), str(where / "images")
    return [f"--{prefix}json", json_file, f"--{prefix}images", images]


def test_every_command_that_reads_a_dataset_takes_its_files(data, tmp_path, capsys):
    demo = ["--config", str(ROOT / "configs" / "demo.yaml"), "SMALLOBJ.DATASETS", "[]"]
    demo += ["SMALLOBJ.AUGMENTATION_PROBABILITY", "1.0", "--engine", "torchvision"]
    out = str(tmp_path / "sheet.png")
    words = [*files(data, "train"), *demo, "--num", "1", "--width", "64", "--out", out]
    with warnings.catch_warnings():  # PyTorch warns of more loader processes than cores
        warnings.simplefilter("error", UserWarning)
        words += ["DATALOADER.NUM_WORKERS", "1024"]
        assert import_module("smallobj_d2.commands.visualize").main(words) == 0
    sheet = np.asarray(Image.open(out))
    pink = np.nonzero((sheet == PASTED.colour).all(axis=2))[1]
    assert {*(pink // 72)} == {1}  # the first column has no copies, the enlarged one no outlines

    words = [*files(data, "val"), *demo[:-2], "--out", str(tmp_path / "copies"), "--workers", "1"]
    assert import_module("smallobj_d2.commands.augment_dataset").main(words) == 0
    assert (tmp_path / "copies" / "annotations.json").is_file()

    run = tmp_path / "run"
    words = [*files(data, "train"), *demo, *files(data, "val", "val-"), "OUTPUT_DIR", str(run)]
    words += ["SOLVER.MAX_ITER", "1", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    assert import_module("smallobj_d2.commands.train_net").main(words) == 0
    cfg = load_cfg(run / "config.yaml")
    named = {name: json_file for name, json_file, _ in cfg.SMALLOBJ.DATASETS}
    assert [named[n] for n in cfg.DATASETS.TRAIN] == [str(data / "train" / "annotations.json")]
    assert [named[n] for n in cfg.DATASETS.TEST] == [str(data / "val" / "annotations.json")]
    assert "row.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("visualize", ["--json", "a.json"], "--json and --images belong together"),
        ("augment_dataset", ["--images", "a", "--out", "b"], "--json and --images belong together"),
        ("train_net", ["--val-json", "a.json"], "--val-json and --val-images belong together"),
        ("visualize", ["--json", "a", "--images", "b", "--dataset", "c"], "Give either --dataset"),
    ],
)
def test_half_a_dataset_or_two_are_refused(capsys, command, words, says):
    words = ["--config", str(ROOT / "configs" / "demo.yaml"), *words]
    assert import_module(f"smallobj_d2.commands.{command}").main(words) == 2
    assert says in capsys.readouterr().err


# --- outputs


@pytest.mark.parametrize("name", ["out", "out.gif", "file/out.png", "folder.png"])
def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SmallObjError, match=r"must end in|Cannot write|cannot be written"):
        writable(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SmallObjError, match="permission denied"):
        writable(tmp_path / "out.png")


@pytest.mark.parametrize("name", ["visualize", "detections", "analyze", "reproduce"])
def test_commands_refuse_such_outputs(tmp_path, capsys, name):
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "out.png")
    words = {
        "visualize": ["--config", str(ROOT / "configs" / "demo.yaml"), "--out", out],
        "detections": ["--runs", str(tmp_path), "--out", out],
        "analyze": ["--json", str(tmp_path / "a.json"), "--output", out],
        "reproduce": ["--scale", "tiny", "--engine", "torchvision", "--out", out],
    }
    (tmp_path / "a.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "categories": '
        '[{"id": 1, "name": "a"}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, '
        '"bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0, "segmentation": [[1, 1, 3, 1, 3, 3]]}]}'
    )
    assert import_module(f"smallobj_d2.commands.{name}").main(words[name]) == 2
    assert f"Cannot write {tmp_path / 'file'}" in capsys.readouterr().err


# --- scales of your own


def test_a_scale_may_lie_anywhere(tmp_path, monkeypatch):
    own = tmp_path / "mine.yaml"
    own.write_text(
        "about: mine\ngpus: 0\nrun: {seconds: 1, machine: here}\n"
        "scenes: {num_train: 1, num_val: 1, seed: 0}"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_scale(scale_file(str(own))).name == "mine"
    assert load_scale(scale_file("~/mine.yaml")).about == "mine"
    assert load_scale(scale_file("tiny")).name == "tiny"


def test_a_scale_may_change_another(tmp_path):
    tiny = load_scale(scale_file("tiny"))
    own = tmp_path / "mine.yaml"
    own.write_text(f"_BASE_: {scale_file('tiny')}\nconfig: {{SOLVER: {{MAX_ITER: 9}}}}")
    mine = load_scale(own)
    assert (mine.scenes, mine.seconds, mine.about) == (tiny.scenes, tiny.seconds, tiny.about)
    assert mine.config["SOLVER"] == {**tiny.config["SOLVER"], "MAX_ITER": 9}


def test_the_gpus_of_a_run_say_where_its_model_is():
    tiny, paper = (load_scale(scale_file(name)) for name in ("tiny", "paper"))
    assert tiny.on(1).config["MODEL"]["DEVICE"] == "cuda"
    assert "not measured on the GPU" in tiny.on(1).machine
    assert tiny.on(0) == tiny
    assert tiny.on(1).on(0).config == tiny.config
    assert paper.on(1) == replace(paper, gpus=1)  # as its own, from configs/
    assert replace(paper, gpus=0).on(0).config["MODEL"]["DEVICE"] == "cpu"
    assert load_scale(scale_file("small")).config["SOLVER"]["AMP"]["ENABLED"]
    assert not load_scale(scale_file("small")).on(0).config["SOLVER"]["AMP"]["ENABLED"]


@pytest.mark.skipif(bool(reproduce_tool.local_gpus()), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_no_cpu(tmp_path, capsys):
    words = ["--scale", "tiny", "--rows", "baseline", "--gpus-per-run", "1"]
    assert reproduce_tool.main([*words, "--engine", "torchvision", "--out", str(tmp_path)]) == 2
    assert "--gpus-per-run 1: there is no GPU here." in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "- a", "about: x", "a: [", "about: x\ngpus: 1\nrun: 3"])
def test_a_file_that_is_no_scale_is_named(tmp_path, text):
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    with pytest.raises(SmallObjError, match=r"mine\.yaml is not a scale"):
        load_scale(own)


def test_a_dry_run_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(reproduce_tool, "local_gpus", list)
    words = ["--scale", "paper", "--rows", "baseline", "--engine", "torchvision", "--dry-run"]
    assert reproduce_tool.main([*words, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "Missing here: Dataset coco_2017_train: there is no file" in out
    assert "Missing here: a run is for 4 GPUs; there are 0." in out
    assert reproduce_tool.main([*words[:-1], "--out", str(tmp_path / "out")]) == 2
    assert not Path(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("visualize --config aug --num -1", "--num is -1; it must be 1 or more"),
        ("visualize --config aug --num 0", "--num is 0; it must be 1 or more"),
        ("visualize --config aug --width 0", "--width is 0; it must be 1 or more"),
        ("visualize --config aug --positions 4 -1", "--positions is -1; it must be 0 or more"),
        ("detections --runs a --num -1", "--num is -1; it must be 1 or more"),
        ("detections --runs a --seed -1", "--seed is -1; it must be 0 or more"),
        ("detections --runs a --iou 2", "--iou is 2.0; it must be from 0 to 1"),
        ("detections --runs a --score nan", "--score is nan; it must be from 0 to 1"),
        (
            "compare --runs a --limits 64 16",
            "--limits must be a list of numbers above 0, ascending",
        ),
        ("compare --runs a --limits nan", "--limits must be a list of numbers above 0, ascending"),
        ("reproduce --scale tiny --gpus-per-run -1", "--gpus-per-run is -1; it must be 0 or more"),
        ("yolo to-coco data.yaml --out out", "data.yaml names no images: it has none of train"),
        ("yolo to-coco nope.yaml --out out", "There is no file nope.yaml; name the data.yaml of"),
        ("train --config aug --resume --overwrite", "--resume goes on with a run, and --overwrite"),
        ("demo --num 0", "--num is 0; it must be 1 or more"),
        ("reproduce --scale my.yaml", "There is no scale 'my'; there are: facade_tiny, nuclei"),
        ("report --runs .", "--runs .: it is OUT/SCALE/ENGINE of a sweep, and there is no scale"),
        ("report --runs nope", "--runs nope: no folder; it is OUT/SCALE/ENGINE of a sweep."),
        ("reproduce --scale tiny --rows bank", "--rows bank: there is no config"),
    ],
)
def test_what_means_nothing_is_refused(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data.yaml").write_text("names: [a]\n")
    name, *argv = words.split()
    tool = import_module(f"smallobj_d2.commands.{COMMANDS[name][0]}")
    assert tool.main(argv) == 2
    assert f"error: {says}" in capsys.readouterr().err
