"""What docs/extending.md says about adding to the project, done: the files are trained with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from proofs.random_scenes import rectangle
from smallobj_d2 import CopyPaste, SmallObjError
from smallobj_d2.copy_paste import STRATEGIES
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.registry import Registry, import_modules
from smallobj_d2.sampling import REPEAT_FACTORS

ROOT = Path(__file__).parents[1]
EXTENSIONS = ROOT / "tests" / "extensions"
FILES = ("largest.py", "by_count.py", "gray.py", "own_engine.py")


def test_the_documentation_shows_these_files():
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks == [(EXTENSIONS / name).read_text() for name in FILES]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_uses_them_all(tmp_path, processes):
    files = make_dataset(tmp_path, "scenes", 8, seed=1, size=96, progress=False)
    scenes = ["scenes", str(files), str(files.parent / "images")]
    options = {
        "SMALLOBJ.IMPORTS": [str(EXTENSIONS / name) for name in FILES],
        "SMALLOBJ.DATASETS": [scenes],
        "SMALLOBJ.STRATEGY": "largest",
        "SMALLOBJ.SAMPLER": "by_count",
        "SMALLOBJ.MAPPER": "Gray",
        "DATASETS.TRAIN": ("scenes",),
        "DATASETS.TEST": (),
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
        "SOLVER.IMS_PER_BATCH": 2,
        "INPUT.MIN_SIZE_TRAIN": (96,),
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    command = [sys.executable, ROOT / "tools" / "train_net.py", "--engine", "own"]
    command += ["--config", ROOT / "configs" / "demo.yaml", "--num-gpus", processes]
    command += [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done: None" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "model_final.pth").is_file()


def test_a_strategy_sees_the_annotations_of_its_candidates():
    import_modules([str(EXTENSIONS / "largest.py")])
    things = [rectangle(9 + 20 * i, 9, side, side) for i, side in enumerate((5, 12, 8))]
    plan = CopyPaste(strategy="largest").plan(things, 90, 90, 0)
    assert [a["copy_paste"]["source"] for a in plan.annotations[3:]] == [1]
    assert CopyPaste(strategy=STRATEGIES["largest"]).plan(things, 90, 90, 0).tried == 1


def test_the_share_belongs_to_multiple_alone():
    things = [rectangle(9 + 20 * i, 9, 5, 5) for i in range(4)]
    tried = {
        name: CopyPaste(strategy=name, multiple_share=0.75).plan(things, 90, 90, 0).tried
        for name in ("single", "multiple", "all")
    }
    assert tried == {"single": 1, "multiple": 3, "all": 4}


# --- Names


def test_an_unknown_name_is_answered_by_those_there_are():
    things: Registry[int] = Registry("thing", "SMALLOBJ.THING")
    things.add("b", 1)
    things.register("a")(2)
    assert (things["a"], things.get("b"), sorted(things)) == (2, 1, ["a", "b"])
    with pytest.raises(SmallObjError, match=r"SMALLOBJ\.THING is 'c', .*; there are: a, b\. "):
        things["c"]
    with pytest.raises(SmallObjError, match="a thing 'a' already"):
        things.add("a", 3)
    assert "c" not in things


def test_modules_are_imported_by_name_or_by_path_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "adds_nothing_else.py").write_text(
        "from smallobj_d2 import REPEAT_FACTORS\n"
        "REPEAT_FACTORS.add('ones_of_a_test', lambda records, cfg: [1.0] * len(records))\n"
    )
    for _ in range(2):
        import_modules([str(tmp_path / "adds_nothing_else.py")])
        import_modules(["adds_nothing_else"])
    assert np.sum(REPEAT_FACTORS["ones_of_a_test"]([{}, {}], None)) == 2


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("1 / 0", "broken_extension.py", "cannot be imported .*division by zero"),
        ("", "json.py", "has the name of another module"),
        (None, "not_there_extension.py", "cannot be imported"),
        (None, "no_such_extension_module", "cannot be imported"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch, content, name, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / name if name.endswith(".py") else name
    if content is not None:
        path.write_text(content)
    with pytest.raises(SmallObjError, match=f"SMALLOBJ.IMPORTS: .*{message}"):
        import_modules([str(path)])
