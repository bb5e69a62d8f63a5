"""What is imported is declared, and a wheel works without a checkout and without torch."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from smallobj_d2 import errors

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMES = {
    "cv2": "opencv-python-headless",
    "faster_coco_eval": "faster-coco-eval",
    "PIL": "pillow",
    "yaml": "pyyaml",
}
"""Where a distribution is not called as what is imported from it."""


def imported(*folders: str) -> set[str]:
    """Distributions that the modules of some folders import; Detectron2, on no index, left out."""
    own = {"smallobj_d2", "proofs", "benchmarks", "tests", "_path", "detectron2"}
    own |= {p.stem for p in (ROOT / "tests").glob("*.py")}
    found = set()
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    return {NAMES.get(n, n).lower() for n in found - own - sys.stdlib_module_names}


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", r)[0].lower() for r in requirements}


def declared(*extras: str) -> set[str]:
    """What the package requires, and what these extras add."""
    return names(PROJECT["dependencies"]).union(*(names(EXTRAS[e]) for e in extras))


def test_the_package_declares_what_it_imports():
    users = declared("headless", "train", "report", "slurm", "slices") | {"albumentations"}
    # TensorBoard is imported by torch.utils.tensorboard.
    assert imported("smallobj_d2") | {"tensorboard"} == users


def test_tests_and_proofs_declare_what_they_import():
    assert imported("tests", "proofs", "benchmarks") <= declared(*(EXTRAS.keys() - {"all"}))


def test_what_is_declared_is_pinned():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = names([line for line in lines if "==" in line])
    assert declared("headless", "train", "report", "frameworks", "test") == pinned


def test_a_missing_package_is_named_with_the_extra_that_installs_it():
    not_missed = {"faster-coco-eval"}  # pycocotools does what it does
    for package in imported("smallobj_d2") - declared() - not_missed:
        name = {v: k for k, v in NAMES.items()}.get(package, package)
        words = errors.how_to_install(ModuleNotFoundError(name=f"{name}.utils"))
        extra = re.search(r"smallobj_d2\[(\w+)\]", words)[1]
        assert package in names(EXTRAS[extra])
    assert errors.how_to_install(ModuleNotFoundError(name="else")) is None


@pytest.mark.parametrize("path", ["README.md", "pyproject.toml", "requirements.txt", "Makefile"])
def test_all_name_the_same_oldest_python(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.findall(r"[Pp]ython(?:_requires)?[ =\">]*(3\.\d+)", text)[:1] == ["3.11"]


# --- A light environment, in an empty folder


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The content of the wheel."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than pyproject.toml asks for")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("smallobj_d2", "configs", "experiments"):
        (source / name).symlink_to(ROOT / name)
    build = "import setuptools.build_meta as b; b.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


LIGHT = """
import sys
sys.path.insert(0, {site!r})
for name in ("torch", "torchvision", "tensorboard", "matplotlib", "scipy", "detectron2"):
    sys.modules[name] = None  # is not installed
import smallobj_d2
from smallobj_d2.__main__ import main
from smallobj_d2.datasets.synthetic import make_dataset
assert smallobj_d2.__file__.startswith({site!r}) and smallobj_d2.CopyPaste(copies=3)
json_file = str(make_dataset("data", "scenes", 3, seed=1, size=96, progress=False))
data = ["--json", json_file, "--images", "data/scenes/images"]
aug = ["--config", "orig_aug_multi3x", "--out", "copies", "--workers", "1"]
for words in (
    ["analyze", *data, "--augment", "beyond/bank", "--output", "analysis"],
    ["augment", *data, *aug],
    ["reproduce", "--scale", "tiny", "--dry-run"],
    ["train", "--config", "aug"],
    ["report"],
):
    print(words[0], main(words), file=sys.stderr)
"""


def test_a_wheel_without_torch_and_matplotlib(unpacked, tmp_path):
    code = LIGHT.format(site=str(unpacked))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    said = [s for s in done.stderr.splitlines() if re.fullmatch(r"error: .*|\w+ \d", s)]
    assert said == [  # beside progress bars
        *("analyze 0", "augment 0", "reproduce 0"),
        'error: This needs torch, which is not installed: pip install "smallobj_d2[train]"',
        "train 2",
        'error: This needs matplotlib, which is not installed: pip install "smallobj_d2[report]"',
        "report 2",
    ]
    assert "No plots: they need matplotlib" in (tmp_path / "analysis/tables.md").read_text()
    assert (tmp_path / "copies" / "annotations.json").is_file()


def test_help_and_unknown_commands_import_nothing():
    code = """
import sys
from smallobj_d2.__main__ import main
codes = main([]), main(["--version"]), main(["analyse"])
print(codes, *{"numpy", "cv2", "torch", "smallobj_d2.commands"} & {*sys.modules}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        "error: There is no command analyse; there is: analyze.",
        "(0, 0, 2)",
    ]
