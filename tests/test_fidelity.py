"""docs/review/fidelity.md: its tests and keys exist, and its defaults are the real ones."""

import re
from pathlib import Path

import pytest
import yaml

from smallobj_d2.config import get_cfg, torchvision_cfg

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "review" / "fidelity.md").read_text(encoding="utf-8")
CODE = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", TEXT)]
TESTS = sorted({span for span in CODE if "::" in span})
DEFAULTS = sorted({span for span in CODE if re.match(r"[A-Z_]+: ", span)})


@pytest.mark.parametrize("name", TESTS)
def test_each_test_that_is_named_exists(name):
    file, test = name.split("::")
    path = ROOT / "tests" / file
    assert path.is_file()
    assert f"\ndef {test}(" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("span", [s for s in DEFAULTS if s.split(":")[0] in get_cfg().SMALLOBJ])
def test_each_default_is_the_real_one(span):
    key, value = span.split(": ", 1)
    if value.startswith("("):
        value = f"[{value[1:-1]}]"
    default = get_cfg().SMALLOBJ[key]
    assert (list(default) if isinstance(default, tuple) else default) == yaml.safe_load(value)


def test_each_key_has_its_place():
    named = {span.split(":")[0] for span in DEFAULTS}
    assert not set(get_cfg().SMALLOBJ) - named


def test_each_key_with_a_prefix_exists():
    """But for one that only Detectron2 has."""
    keys = {s.split(":")[0] for s in CODE if re.match(r"[A-Z]+\.[A-Z_.]+", s)}
    assert len(keys) > 8
    for key in keys - {"MODEL.RPN.BOUNDARY_THRESH"}:
        node = torchvision_cfg()
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_every_row_of_a_table_has_all_its_cells():
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        widths = {line.count("|") for line in table.splitlines()}
        assert len(widths) == 1


def test_files_that_are_named_exist():
    for span in CODE:
        if re.fullmatch(r"[a-z0-9_]+\.yaml", span):
            assert (ROOT / "configs" / span).is_file()
        elif re.fullmatch(r"(tools|experiments)/\w+\.\w+", span):
            assert (ROOT / span).is_file()
