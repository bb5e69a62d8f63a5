"""What is imported is declared, and what is declared is pinned."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = {"albumentations", "detectron2", "sahi", "submitit"}
"""Used where they are installed."""
NAMES = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}
"""Where a distribution is not called as what is imported from it."""


def imported(*folders: str) -> set[str]:
    """Distributions that the modules of some folders import."""
    own = {"smallobj_d2", "proofs", "benchmarks", "tests", "_path", "setuptools"}
    own |= {p.stem for p in (ROOT / "tests").glob("*.py")}
    found = set()
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    return {NAMES.get(n, n).lower() for n in found - own - OPTIONAL - sys.stdlib_module_names}


def declared() -> tuple[set[str], set[str]]:
    """What setup.py requires, and what its extra for tests adds."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    needed, extra = (
        {n.lower() for n in re.findall(r'"([A-Za-z][\w-]*)', part)}
        for part in re.search(
            r'install_requires=\[(.*?)\].*"test": \[(.*?)\]', text, re.DOTALL
        ).groups()
    )
    return needed, extra


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {n.lower(): v for n, _, v in (line.partition("==") for line in lines) if v}


def test_the_package_declares_what_it_imports():
    needed, _ = declared()
    # TensorBoard is imported by torch.utils.tensorboard.
    assert imported("smallobj_d2") | {"tensorboard"} == needed


def test_tests_and_proofs_declare_what_they_import():
    needed, extra = declared()
    assert imported("tests", "proofs", "benchmarks") <= needed | extra


def test_what_is_declared_is_pinned():
    needed, extra = declared()
    assert needed | extra <= set(pinned())


@pytest.mark.parametrize("path", ["README.md", "setup.py", "requirements.txt", "Makefile"])
def test_all_name_the_same_oldest_python(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.findall(r"[Pp]ython(?:_requires)?[ =\">]*(3\.\d+)", text)[:1] == ["3.11"]
