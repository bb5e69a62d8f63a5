"""The plan of the runs names only what there is, and orders all that it names."""

import json
from pathlib import Path

import pytest
import yaml

from smallobj_d2.experiments.paper import load_paper
from smallobj_d2.experiments.scales import AUGMENTED_VAL, load_scale

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
PLAN = yaml.safe_load((EXPERIMENTS / "plan.yaml").read_text())
PAPER = load_paper(EXPERIMENTS / "paper.yaml")


@pytest.mark.parametrize("name", PLAN["scales"])
def test_planned_rows_can_be_asked_for(name, tmp_path):
    scale = load_scale(EXPERIMENTS / "scales" / f"{name}.yaml")
    rows = PLAN["scales"][name]["rows"]
    assert len(set(rows)) == len(rows)
    for row in rows:
        config, _, elsewhere = row.partition("@")
        assert elsewhere in ("", AUGMENTED_VAL)
        assert config in rows
        assert scale.request(ROOT / "configs" / f"{config}.yaml", tmp_path)


def test_tiny_has_every_row_of_the_paper():
    rows = {row["config"] for table in PAPER.tables.values() for row in table["rows"]}
    assert len(rows) == 22
    assert rows <= set(PLAN["scales"]["tiny"]["rows"])


def test_each_table_is_a_family_against_its_first_row():
    families = {family["name"]: family for family in PLAN["families"]}
    for number, table in PAPER.tables.items():
        base, *others = [row["config"] for row in table["rows"]]
        assert families[f"table {number}"]["base"] == base
        assert families[f"table {number}"]["rows"] == others


def test_trends_and_contrasts_are_of_rows_that_are_run():
    rows = set(PLAN["scales"]["tiny"]["rows"])
    for trend in PLAN["trends"]:
        assert len(trend["rows"]) == len(trend["at"])
        assert set(trend["rows"]) <= rows
    for contrast in PLAN["contrasts"]:
        assert {*contrast["plus"], *contrast["minus"]} <= rows


def test_the_order_has_every_seed_of_every_scale_once_and_the_least_first():
    seeds = {name: [] for name in PLAN["scales"]}
    for name, some in PLAN["order"]:
        seeds[name] += some
    for name, scale in PLAN["scales"].items():
        assert seeds[name] == [*scale["seeds"], *scale["more_seeds"]]


@pytest.mark.parametrize("results", sorted(EXPERIMENTS.glob("*/*.json")), ids=lambda p: p.stem)
def test_all_rows_of_a_planned_seed_were_trained_on_one_kind_of_device(results):
    content = json.loads(results.read_text())
    devices = {}
    for run in content["runs"]:
        known = [run["device"]] if "device" in run else content["about"]["device"]
        devices.setdefault(run["seed"], set()).update(d.startswith("cpu") for d in known)
    assert devices
    assert all(len(each) == 1 for each in devices.values())
