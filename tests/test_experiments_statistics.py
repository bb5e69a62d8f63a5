"""Differences over seeds: checked against plain scipy and numpy, and by how often they err."""

import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import SIZES
from smallobj_d2.experiments.paper import load_paper
from smallobj_d2.experiments.plan import Family, Plan, Planned, above, load_plan, trend
from smallobj_d2.experiments.report import build_report
from smallobj_d2.experiments.results import Measured, Results, load_results
from smallobj_d2.experiments.statistics import (
    FEWEST,
    Difference,
    holm,
    holm_factor,
    interval,
    p_value,
    seeds_text,
    slope,
)

ROOT = Path(__file__).parents[1]
PAPER = load_paper(ROOT / "experiments" / "paper.yaml")
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = [
        low < 3 < high for low, high in (interval(rng.normal(3, 2, size=3)) for _ in range(1000))
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=8))
def test_tests_and_intervals_are_scipys(values):
    if len(set(values)) == 1:
        assert p_value(values) == (values[0] == 0)
        return
    found = stats.ttest_1samp(values, 0)
    assert p_value(values) == pytest.approx(found.pvalue, rel=1e-6, abs=1e-12)
    ends = found.confidence_interval(0.95)
    assert interval(values) == pytest.approx((ends.low, ends.high), abs=1e-9)


def test_holm_by_an_example_from_the_paper_trail():
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
def test_holm_rejects_what_its_steps_reject(p_values):
    order = np.argsort(p_values, kind="stable")
    rejected = set()
    for rank, i in enumerate(order):
        if p_values[i] * (len(order) - rank) >= 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p < 0.05} == rejected


@given(st.lists(st.floats(0, 0.2) | st.just(math.nan), min_size=1, max_size=8))
def test_the_factor_is_that_by_which_holm_decides(p_values):
    for i, (p, adjusted) in enumerate(zip(p_values, holm(p_values), strict=True)):
        factor = holm_factor([*p_values[:i], *p_values[i + 1 :]])
        assert (factor * p < 0.05) == (adjusted < 0.05)


@given(
    st.lists(
        st.lists(st.floats(-3, 5).map(lambda x: round(x, 1)), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_what_seeds_could_have_shown_is_what_decides(rows):
    """A planned difference is told from zero just where it is larger than that."""
    named = {f"row{i}": values for i, values in enumerate(rows)}
    results = results_of(baseline=[0.0] * 4, **named)
    family = Family("Table", tuple(above(row, "baseline") for row in [*named, "not run"]))
    for found in family.judged(results).values():
        if abs(abs(found.mean) - found.least) > 1e-9:
            assert found.decided == (abs(found.mean) > found.least)


def test_one_seed_could_have_shown_nothing():
    assert math.isnan(Difference((0.1,), (0,), planned=True, factor=3).least)
    assert Difference((1.0, 2.0, 3.0), (0, 1, 2)).least == pytest.approx(2.484, abs=1e-3)
    assert FEWEST == 3


def test_rows_that_were_planned_and_not_run_count():
    assert holm([0.02, math.nan, math.nan])[0] == pytest.approx(0.06)
    assert math.isnan(holm([0.02, math.nan])[1])


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_slopes_are_least_squares(values):
    at = [1.0, 2.0, 5.0]
    assert slope(at, values) == pytest.approx(np.polyfit(at, values, 1)[0], abs=1e-9)


def test_seeds_in_short():
    assert seeds_text([3, 0, 1, 2, 7]) == "0-3, 7"
    assert seeds_text([]) == ""


# --- The plan


def results_of(**rows) -> Results:
    """Results of invented rows; each gives AP_S by seed."""
    runs = {
        (row, seed): Measured(
            {f"{k}.{s}": ap for k in ("segm", "bbox") for s in SIZES}, 60.0, commit="abc"
        )
        for row, aps in rows.items()
        for seed, ap in enumerate(aps)
    }
    about = {
        "scale": "fake",
        "text": "x",
        "engine": "torchvision",
        "device": [],
        "versions": {},
        "schedule": {"iterations": 1, "images": 1},
        "validation": "scenes_val",
        "ground_truth": {},
    }
    return Results(about, runs)


def plan_of(seeds, *rows, trends=(), more=()) -> Plan:
    every = ("baseline", *rows, *(r for t in trends for r in t.rows))
    table = Family("Table", tuple(above(row, "baseline") for row in rows))
    return {"fake": Planned(tuple(seeds), tuple(more), every, (table,), Family("trends", trends))}


BASELINE = [0.10, 0.11, 0.12, 0.10]
ABOVE = [0.13, 0.142, 0.149, 0.131]
UNSURE = [0.13, 0.10, 0.12, 0.11]


def bold(plan, **rows) -> bool:
    return "**(" in build_report(PAPER, [results_of(baseline=BASELINE, **rows)], plan).markdown("")


def test_only_what_was_planned_and_survives_is_bold():
    assert bold(plan_of(range(4), "aug"), aug=ABOVE)
    assert not bold(None, aug=ABOVE)
    assert not bold(plan_of(range(4), "orig_aug"), aug=ABOVE)
    assert not bold(plan_of(range(4), "aug"), aug=UNSURE)
    assert not bold(plan_of(range(4), "aug"), aug=[0.13, 0.14])  # two seeds
    assert not bold(plan_of(range(2), "aug"), aug=ABOVE)  # two that were planned
    many = [f"row{i}" for i in range(5000)]
    assert not bold(plan_of(range(4), "aug", *many), aug=ABOVE)


def test_seeds_that_were_not_planned_do_not_count():
    text = build_report(
        PAPER, [results_of(baseline=BASELINE, aug=ABOVE)], plan_of([0, 1, 2], "aug")
    ).markdown("")
    assert re.search(r"Table: aug - baseline +\| 0-2 ", text)


def test_more_seeds_count_once_all_rows_have_them():
    results = results_of(baseline=BASELINE, aug=ABOVE)
    planned = plan_of([0, 1, 2], "aug", more=[3])["fake"]
    assert planned.only(results).seeds("aug") == [0, 1, 2, 3]
    run = results.runs["aug", 3]
    results.runs["aug", 3] = replace(run, commit="")  # older than the plan
    assert planned.only(results).seeds("baseline") == [0, 1, 2]
    del results.runs["aug", 3]
    assert planned.only(results).seeds("baseline") == [0, 1, 2]


def test_runs_from_before_the_plan_are_exploratory():
    found = results_of(baseline=BASELINE, aug=ABOVE)
    results = replace(found, runs={k: replace(run, commit="") for k, run in found.runs.items()})
    text = build_report(PAPER, [results], plan_of([0, 1, 2], "aug")).markdown("")
    assert "**(" not in text
    assert re.search(r"\| aug - baseline +\| 0-3 .*exploratory", text)


def test_trends_are_judged_by_their_slopes():
    rising = {
        f"orig_aug_single{n}x": [0.1 + 0.01 * n + 0.001 * s for s in range(4)] for n in (1, 2, 3)
    }
    pastes = trend("pastes", list(rising), [1, 2, 3])
    results = results_of(baseline=BASELINE, **rising)
    plan = plan_of(range(4), trends=(pastes,))
    found = plan["fake"].trends.judged(results)[pastes]
    assert found.values == pytest.approx([0.01] * 4)
    assert found.decided
    text = build_report(PAPER, [results], plan).markdown("")
    assert re.search(r"\| pastes, slope \(mask, small\) \| 0-3 \| \*\*\+1\.0\*\* \|", text)


def test_a_plan_is_read_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "plan.yaml"
    assert load_plan(path) == {}
    content = {
        "about": "for readers",
        "primary": "bbox.small",
        "scales": {
            "tiny": {"seeds": [0, 1], "rows": ["baseline", "aug", "a", "b"]},
            "real": {"seeds": [0], "more_seeds": [1], "rows": ["baseline", "a"]},
        },
        "families": [{"name": "Table 4", "base": "baseline", "rows": ["aug"], "why": "x"}],
        "trends": [{"name": "pastes", "rows": ["a", "b"], "at": [1, 2]}],
        "contrasts": [{"name": "gains", "plus": ["a", "b"], "minus": ["aug", "baseline"]}],
    }
    path.write_text(yaml.safe_dump(content))
    plan = load_plan(path)
    family = Family("Table 4", (above("aug", "baseline", "bbox.small"),))
    assert (plan["tiny"].families, plan["real"].families) == ((family,), ())
    assert [len(plan[s].trends.statements) for s in ("tiny", "real")] == [1, 0]
    numbers = {"a": 5.0, "b": 3.0, "aug": 1.0, "baseline": 0.5}
    assert plan["tiny"].trends.statements[0].of(lambda row, _: numbers[row]) == -2
    assert plan["tiny"].contrasts.statements[0].of(lambda row, _: numbers[row]) == 6.5
    for change, words in (
        ({"alpha": 0.1}, "alpha is 0.1; only 0.05 is done here"),
        (
            {"test": "Wilcoxon"},
            "test is 'Wilcoxon'; only 'paired t over common seeds, two-sided' is",
        ),
        ({"families": [{"name": "T", "base": "baseline", "rows": ["agu"]}]}, "T has the row agu,"),
        ({"trends": [{"name": "T", "rows": ["a", "bb"], "at": [1, 2]}]}, "T has the row bb,"),
    ):
        path.write_text(yaml.safe_dump(content | change))
        with pytest.raises(SmallObjError, match=words):
            load_plan(path)
    for damage in ("[]", "scales: 3", "scales: {x: {rows: 3}}", "{", "x: 1"):
        path.write_text(damage)
        with pytest.raises(
            SmallObjError, match=r"plan.yaml is damaged, or another kind of file"
        ) as e:
            load_plan(path)
        assert "\n" not in str(e.value)


def test_a_row_of_two_tables_is_in_bold_where_its_table_decides():
    """The same difference passes Holm's correction of one family, and not that of a larger one."""
    rng = np.random.default_rng(0)
    aps = {r: [0.1 + 0.001 * x for x in rng.normal(0, 1, 5)] for r in ("baseline", "aug")}
    aps |= {r: [0.1 + 0.001 * x for x in rng.normal(0, 1, 5)] for r in ("orig_aug_all2x",)}
    aps["orig_aug"] = [b + d for b, d in zip(aps["baseline"], (2e-2, 1e-2, 4e-2, 1e-2, 3e-2))]  # noqa: B905
    results = results_of(**aps)
    one = above("orig_aug", "baseline")
    (p,) = [p_value(one.difference(results).values)]
    assert 0.01 < p < 0.025
    more = tuple(above(row, "baseline") for row in ("x", "y", "z", "orig_aug_all2x"))
    table4, table7 = Family("table 4", (one,)), Family("table 7", (one, *more))
    planned = Planned((0, 1, 2, 3, 4), (), tuple(aps), (table4, table7))
    text = build_report(PAPER, [results], {"fake": planned}).markdown("")
    tables = {n: text.split(f"### Table {n}")[1].split("###")[0] for n in (4, 7)}
    (line4,) = [x for x in tables[4].split("Detection AP")[0].splitlines() if "original+aug" in x]
    (line7,) = [x for x in tables[7].split("Detection AP")[0].splitlines() if "1x pasted" in x]
    assert line4.count("**(+2.2)**") == 1
    assert "(+2.2)" in line7
    assert "**(" not in line7
    assert "**(" not in text.split("### Every row")[1].split("###")[0]  # not in all of its families


def test_the_answer_names_what_is_told_from_chance_beside_the_best_row():
    wild = [0.10, 0.25, 0.11, 0.17]
    plan = plan_of(range(4), "aug", "orig_aug")
    found = results_of(baseline=BASELINE, aug=ABOVE, orig_aug=wild)
    answer = build_report(PAPER, [found], plan).markdown("").split("## ")[0]
    assert "`orig_aug` is best" in answer
    assert "not significant (Holm p" in answer
    told = "Planned, and significant on scenes_val, in points: "
    assert f"{told}aug +3.0, against baseline." in answer
    for other in (
        results_of(baseline=BASELINE, aug=ABOVE),
        results_of(baseline=BASELINE, aug=wild),
    ):
        answer = build_report(PAPER, [other], plan).markdown("").split("## ")[0]
        assert "Planned, and significant" not in answer


def test_one_seed_of_what_was_planned_is_planned():
    results = results_of(baseline=BASELINE[:1], aug=ABOVE[:1])
    text = build_report(PAPER, [results], plan_of(range(4), "aug")).markdown("")
    assert "1 seed (0), planned; one seed says nothing of chance" in text
    assert "exploratory" not in text.split("### How sure")[1].split("###")[0]
    assert "Interim: 2 of 8 planned runs" in text


def test_the_answer_has_the_note_of_a_plan(tmp_path):
    (tmp_path / "plan.yaml").write_text("scales: {fake: {seeds: [0], rows: [aug], note: Mind it.}}")
    results = results_of(baseline=BASELINE, aug=ABOVE)
    text = build_report(PAPER, [results], load_plan(tmp_path / "plan.yaml")).markdown("")
    assert "* About scenes_val: Mind it.\n" in text.split("## ")[0]


def test_the_answer_says_when_it_is_not_the_last():
    results = results_of(baseline=BASELINE, aug=ABOVE)
    plan = plan_of(range(4), "aug", "orig_aug")
    text = build_report(PAPER, [results], plan).markdown("")
    assert "significant (Holm p = " in text
    assert "; interim, with 8 of 12 planned runs." in text
    whole = results_of(baseline=BASELINE, aug=ABOVE, orig_aug=ABOVE)
    assert "interim" not in build_report(PAPER, [whole], plan).markdown("")


def test_what_the_plan_does_not_count_is_named():
    found = results_of(baseline=BASELINE, aug=ABOVE)
    text = build_report(PAPER, [found], plan_of([0, 1, 2], "aug")).markdown("")
    assert "Left out, for the plan does not count them: seeds 3 of aug, baseline." in text
    assert "Interim" not in text
    old = replace(found.runs["baseline", 1], commit="")
    text = build_report(
        PAPER, [replace(found, runs={**found.runs, ("baseline", 1): old})], plan_of(range(4), "aug")
    ).markdown("")
    assert "seeds 1 of baseline" in text
    assert re.search(r"Table: aug - baseline +\| 0, 2-3 ", text)


def test_runs_of_other_seeds_than_the_plans_are_exploratory():
    """As those of a screening are: nothing is left out, and nothing in bold."""
    found = results_of(baseline=BASELINE, aug=ABOVE)
    text = build_report(PAPER, [found], plan_of([7, 8, 9], "aug")).markdown("")
    assert re.search(r"\| aug - baseline +\| 0-3 .*exploratory", text)
    assert "Left out" not in text
    assert "**(" not in text


def test_intervals_that_do_not_agree_are_named():
    found = results_of(baseline=BASELINE, aug=ABOVE)
    key = ("aug", "baseline", (0, 1, 2, 3))
    words = "do not agree on whether the difference is zero: aug - baseline"
    for ends, said in (((0.01, 0.05), False), ((-0.01, 0.05), True)):
        results = replace(found, over_images={key: ends})
        assert (words in build_report(PAPER, [results]).markdown("")) is said


def test_intervals_are_compared_over_the_seeds_that_both_have():
    wild = [*ABOVE[:3], BASELINE[3] - 0.05]
    found = results_of(baseline=BASELINE, aug=wild)
    assert interval(above("aug", "baseline").difference(found).values)[0] < 0
    for ends, said in (((0.01, 0.05), False), ((-0.01, 0.05), True)):
        results = replace(found, over_images={("aug", "baseline", (0, 1, 2)): ends})
        text = build_report(PAPER, [results]).markdown("")
        words = "the difference is zero: aug - baseline (seeds 0-2, +2.7 to +3.4 over these)"
        assert (words in text) is said


# --- The committed report, recomputed from its JSON by other code


@pytest.mark.parametrize(
    ("folder", "plan"),
    [
        ("results", "plan.yaml"),
        ("finals", "finals/plan.yaml"),
        ("finals_medium", "finals_medium/plan.yaml"),
    ],
)
def test_the_committed_report_is_made_of_the_committed_results(folder, plan):
    folder = ROOT / "experiments" / folder
    plan = load_plan(ROOT / "experiments" / plan)
    each = [load_results(path) for path in sorted(folder.glob("*.json"))]
    document = build_report(PAPER, each, plan)
    assert document.markdown("report_files") == (folder / "report.md").read_text(encoding="utf-8")


def recomputed(folder: Path) -> tuple[int, str]:
    found = subprocess.run(
        [sys.executable, "-m", "proofs.recompute", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return found.returncode, found.stdout + found.stderr


@pytest.mark.parametrize("folder", ["results", "finals", "finals_medium"])
def test_every_figure_of_the_committed_reports_is_found_again_by_other_code(folder):
    code, said = recomputed(ROOT / "experiments" / folder)
    assert code == 0, said
    assert int(re.search(r"(\d+)  cells in all, of which 0 differ", said)[1]) > 900


def test_a_figure_that_is_not_that_of_the_runs_is_found(tmp_path):
    finals = tmp_path / "finals"
    shutil.copytree(ROOT / "experiments" / "finals", finals)
    shutil.copy(ROOT / "experiments" / "paper.yaml", finals)
    report = finals / "report.md"
    text = report.read_text(encoding="utf-8")
    assert recomputed(finals)[0] == 0
    wrong = text.replace("+2.5 ", "+2.6 ", 1)
    assert wrong != text
    report.write_text(wrong, encoding="utf-8")
    code, said = recomputed(finals)
    assert code == 1
    assert "+2.6" in said


def test_where_no_row_is_above_the_base_all_else_is_said_all_the_same():
    below = [b - 0.03 + 0.001 * i for i, b in enumerate(BASELINE)]
    found = results_of(baseline=BASELINE, aug=below)
    text = build_report(PAPER, [found], plan_of([0, 1, 2, 3], "aug")).markdown("")
    assert "no row is above `baseline` for small objects; `aug` is nearest, mask AP -2.8" in text
    assert "planned, and significant (Holm" in text
    assert "The paper's conclusions on scenes_val, masks and boxes counted separately:" in text
