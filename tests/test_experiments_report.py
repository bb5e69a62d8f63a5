"""The report: the paper's numbers beside the measured ones, and what these say of its claims."""

import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

from smallobj_d2.analysis.table2 import PUBLISHED
from smallobj_d2.commands import report
from smallobj_d2.datasets.synthetic import make_dataset, make_splits
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import SIZES, load_ground_truth
from smallobj_d2.experiments.claims import Status, Why, decide, judge
from smallobj_d2.experiments.paper import load_paper
from smallobj_d2.experiments.plan import Planned, load_plan
from smallobj_d2.experiments.report import build_report, seed_by_seed
from smallobj_d2.experiments.results import (
    distil,
    load_results,
    over_images,
    parse_results,
    resampled_aps,
    together,
    write_results,
)
from smallobj_d2.experiments.scales import AUGMENTED_VAL, Scale, load_scale
from tests.detections import result, run_folder
from tests.pages import HOSTILE, Page, assert_inert

ROOT = Path(__file__).parents[1]
PAPER = load_paper(ROOT / "experiments" / "paper.yaml")
SCALE = Scale("fake", "invented numbers", {}, 0, 60.0, "this")
ELSEWHERE = f"aug_oversample_2x@{AUGMENTED_VAL}"


def row_of(config: str, shift: float) -> dict:
    """What row.json says; numbers follow the paper's, moved a little."""
    published = {**PAPER.numbers[config.partition("@")[0]], **PAPER.numbers.get(config, {})}
    return {
        "dataset": "scenes_val",
        **{k: {s: published[f"{k}.{s}"] + shift for s in SIZES} for k in ("segm", "bbox")},
        "ground_truth": dict.fromkeys(SIZES, 7),
    }


@pytest.fixture
def runs(tmp_path):
    """Folders as a sweep leaves them, of some rows and three seeds; one run has failed."""
    folder = tmp_path / "fake" / "torchvision"
    for config in ("baseline", "oversample_2x", "aug_oversample_2x", ELSEWHERE, "orig_aug"):
        for seed in range(3):
            name, _, dataset = config.partition("@")
            run = folder / name / f"seed{seed}" / dataset
            run.mkdir(parents=True, exist_ok=True)
            shift = 0.1 + 1e-4 * seed * len(config)
            (run / "row.json").write_text(json.dumps(row_of(config, shift)))
            about = {"device": "cpu, 2 cores", "versions": {"torch": "2.11.0"}}
            (run / ("eval.json" if dataset else "run.json")).write_text(json.dumps(about))
            attempts = [{"started": 1.0, "seconds": 61.0, "code": 0}]
            (run / "attempts.json").write_text(json.dumps(attempts))
            request = {"SOLVER": {"MAX_ITER": 400, "IMS_PER_BATCH": 8}}
            (run / "request.yaml").write_text(yaml.safe_dump(request))
    failed = folder / "aug" / "seed0"
    failed.mkdir(parents=True)
    (failed / "attempts.json").write_text('[{"started": 1.0, "seconds": 2.0, "code": 2}]')
    (failed / "output.txt").write_text("Engine: torchvision\nerror: the disk is full\n")
    return folder


def markdown_of(results, plan=None) -> str:
    """The report as Markdown, without the spaces that line its tables up."""
    return squeezed(build_report(PAPER, [results], plan).markdown("pictures"))


def squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


@pytest.fixture
def results(runs):
    return parse_results(distil(SCALE, runs))


def test_distils_runs_into_a_small_file(runs, tmp_path):
    content = distil(SCALE, runs)
    path = tmp_path / "results.json"
    write_results(path, content)
    assert json.loads(path.read_text()) == content
    assert path.stat().st_size < 600 * len(content["runs"])
    read = load_results(path)
    assert read == parse_results(content)
    assert read.seeds("baseline", ELSEWHERE) == [0, 1, 2]
    assert read.values("baseline", "segm.small", range(3)) == pytest.approx([0.213, 0.2138, 0.2146])
    assert read.failed == [{"config": "aug", "seed": 0, "why": "error: the disk is full"}]
    assert read.about["schedule"] == {"iterations": 400, "images": 8}


def test_keeps_a_few_losses_and_the_speed_of_each_run(runs):
    metrics = runs / "baseline" / "seed1" / "metrics.json"
    lines = [
        {"iteration": i, "total_loss": 5 - i / 300, "time": 0.5 + i % 3, "data_time": 0.01}
        for i in range(19, 600, 20)
    ]
    evaluated = {"iteration": 600, "segm/AP": 12.0}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, evaluated]))
    found = {(r["config"], r["seed"]): r for r in distil(SCALE, runs)["runs"] if "dataset" not in r}
    run = found["baseline", 1]
    losses = {int(k): v for k, v in run["loss"].items()}
    assert len(losses) == 10
    assert (min(losses), max(losses)) == (19, 599)
    assert all(v == pytest.approx(5 - k / 300, abs=1e-3) for k, v in losses.items())
    assert (run["iteration"], run["data"]) == (1.5, 0.01)
    assert "loss" not in found["baseline", 0]


def test_a_line_of_the_log_that_was_cut_off_is_left_out(runs):
    """As a full disk leaves one; the next line of the run that goes on is glued to it."""
    whole = json.dumps({"iteration": 19, "total_loss": 4.0, "time": 0.5})
    cut = '{"iteration": 39, "tot'
    path = runs / "baseline" / "seed1" / "metrics.json"
    path.write_text(f"{whole}\n{cut}{whole}\n{whole.replace('19', '59')}\n")
    (run,) = (r for r in distil(SCALE, runs)["runs"] if (r["config"], r["seed"]) == ("baseline", 1))
    assert run["loss"] == {"19": 4.0, "59": 4.0}


def test_a_run_that_was_resumed_names_all_that_it_ran_on(runs):
    path = runs / "baseline" / "seed1" / "run.json"
    about = {"device": "cpu", "versions": {"numpy": "2.4"}, "commit": "new"}
    before = {"device": "gpu", "versions": {"numpy": "1.26"}, "commit": "old"}
    for commit, named in (("old", "old, new"), ("new", "new"), (None, "")):
        earlier = [{**before, "commit": commit}]
        path.write_text(json.dumps({**about, "earlier": earlier}))
        content = distil(SCALE, runs)
        found = next(r for r in content["runs"] if (r["config"], r["seed"]) == ("baseline", 1))
        assert (found["device"], found["commit"]) == ("gpu, cpu", named)
        assert content["about"]["versions"]["numpy"] == "1.26, 2.4"


def test_ap_by_size_stands_beside_the_baseline(runs):
    """From row.json, over the seeds that both rows have."""

    def sizes(ap: float) -> dict:
        bands = [{"from": 0, "to": 16, "objects": 5, "AP": ap, "AP50": ap, "AR": ap}]
        bands.append({"from": 16, "to": None, "objects": 0, "AP": None, "AP50": None, "AR": None})
        return {"pixels": bands, "relative": bands, "small": bands[0], "categories": {}}

    for row, ap in (("baseline", 0.1), ("orig_aug", 0.15)):
        for seed in (0, 1):
            path = runs / row / f"seed{seed}" / "row.json"
            measured = json.loads(path.read_text())
            measured["by_size"] = {"segm": sizes(ap + seed / 100)}
            path.write_text(json.dumps(measured))
    results = parse_results(distil(SCALE, runs))
    text = markdown_of(results)
    section = text.split("By size of the objects")[1]
    assert "| | Seeds | below 16 | from 16 | small: AP50 | small: recall |" in section
    assert "| `baseline` | 0-1 | 10.5 | - | 10.5 | 10.5 |" in section
    assert "| `orig_aug` | 0-1 | 15.5 (+5.0) | - | 15.5 (+5.0) | 15.5 (+5.0) |" in section
    assert "_sizes.svg)" in text
    seeds, measured = results.by_size("orig_aug", "baseline")
    assert seeds == [0, 1]
    gains = 100 * (measured[:, 0] - measured[:, 1])
    np.testing.assert_allclose(gains, [[5, math.nan, 5, 5], [5, math.nan, 5, 5]])
    assert results.by_size("oversample_2x", "baseline")[0] == []  # it kept none
    blocks = build_report(PAPER, [results]).blocks
    pictures = {block.name: block.data.decode() for kind, block in blocks if kind == "picture"}
    assert "below 16" in pictures["fake_torchvision_sizes"]
    assert "from 16" not in pictures["fake_torchvision_sizes"]  # holds no objects
    assert "<!-- orig_aug -->" in pictures["fake_torchvision_sizes"]
    assert "<!-- oversample_2x -->" not in pictures["fake_torchvision_sizes"]


def test_conclusions_stand_side_by_side(results):
    nuclei = replace(results, about={**results.about, "validation": "nuclei_val"})
    found = nuclei.keep(lambda row, _: row in ("baseline", "orig_aug"))
    text = squeezed(build_report(PAPER, [results, found]).markdown(""))
    assert "| Section | Conclusion | scenes_val | nuclei_val |" in text
    for claim in PAPER.claims:
        lines = [line for line in text.splitlines() if f"| {claim.text} | " in line]
        verdicts = [[judge(claim, m, each) for m in claim.metrics] for each in (results, found)]
        statuses = [{v.status for v in each} - {Status.UNMEASURED} for each in verdicts]
        if not any(statuses):
            assert not lines
            continue
        cells = [cell.strip() for cell in lines[0].strip("|").split("|")][2:]
        for cell, those in zip(cells, statuses, strict=True):
            assert {s for s in Status if s.value in cell} == those
            assert those or cell == "-"


def test_several_data_stand_side_by_side(results):
    def section(*each, plan=None):
        text = build_report(PAPER, each, plan).markdown("")
        return text.partition("## Side by side")[2].partition("\n## ")[0]

    assert not section(results)  # one has nothing beside it
    nuclei = replace(results, about={**results.about, "validation": "nuclei_val"})
    found = nuclei.keep(lambda row, _: row in ("baseline", "orig_aug"))
    table = section(results, found)
    base, change = (
        float(np.mean([results.runs[row, seed].ap["segm.small"] for seed in range(3)]))
        for row in ("baseline", "orig_aug")
    )
    gain = f"{100 * (change - base):+.1f} ({100 * (change / base - 1):+.0f} %)"
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    assert ["", "The paper (COCO)", "scenes_val", "nuclei_val"] in cells
    assert ["`orig_aug`", "+1.1 (+10 %)", gain, gain] in cells
    assert "oversample_2x" not in table  # which the other has not
    assert "scenes_val, fake, torchvision" in section(results, results)


def test_later_runs_stand_beside_earlier_ones(runs, tmp_path):
    first = distil(SCALE, runs)
    shutil.rmtree(runs / "orig_aug")
    shutil.rmtree(runs / "baseline" / "seed2")
    (runs / "beyond").mkdir()
    shutil.copytree(runs / "oversample_2x", runs / "beyond" / "new")
    changed = runs / "baseline" / "seed0" / "row.json"
    changed.write_text(json.dumps(row_of("baseline", 0.102)))
    (runs / "baseline" / "seed1" / "run.json").write_text(
        json.dumps({"device": "gpu", "versions": {"torch": "2.12.0"}})
    )
    both = parse_results(together(distil(SCALE, runs), first))
    assert both.seeds("baseline", "orig_aug", "beyond/new") == [0, 1, 2]
    shifts = [0.102, 0.1 + 8e-4, 0.1 + 16e-4]
    assert both.values("baseline", "segm.small", range(3)) == pytest.approx(
        [0.113 + s for s in shifts]
    )
    assert both.about["device"] == ["cpu, 2 cores", "gpu"]
    assert both.about["versions"] == {"torch": "2.11.0, 2.12.0"}
    assert together(first, first) == first
    text = markdown_of(both)
    assert "Against `orig_aug`, the paper's row that gains" in text
    assert text.count("| `beyond/new` |") == 4


def test_several_folders_of_one_scale_are_one_result(runs, tmp_path):
    other = tmp_path / "later" / "fake" / "torchvision"
    other.mkdir(parents=True)
    (runs / "orig_aug").rename(other / "orig_aug")
    scale = tmp_path / "fake.yaml"
    scale.write_text("about: a fake\ngpus: 0\nrun: {seconds: 60, machine: none}\n")
    folder = tmp_path / "results"
    args = ["--runs", str(runs), str(other), "--scale", str(scale), "--results", str(folder)]
    assert not report.main(args)
    found = load_results(folder / "fake_torchvision.json")
    assert found.seeds("baseline", "orig_aug") == [0, 1, 2]


def test_what_failed_stays_failed_until_it_is_finished(runs):
    old, new = distil(SCALE, runs), distil(SCALE, runs)
    assert [f["config"] for f in old["failed"]] == ["aug"]
    new["failed"] = [{"config": "orig_aug", "seed": 0, "dataset": AUGMENTED_VAL, "why": "x"}]
    assert [f["config"] for f in together(new, old)["failed"]] == ["aug", "orig_aug"]
    new["runs"].append({**new["runs"][0], "config": "aug"})
    assert [f["config"] for f in together(new, old)["failed"]] == ["orig_aug"]


def test_boxes_alone_are_reported_as_boxes(runs):
    for path in runs.rglob("row.json"):
        content = json.loads(path.read_text())
        del content["segm"]
        path.write_text(json.dumps(content))
    text = markdown_of(parse_results(distil(SCALE, runs)))
    assert "`orig_aug` is best for small objects, box AP +1.2 points" in text
    assert "How sure: box AP of small objects" in text
    assert "mask AP" not in text
    assert "Segmentation AP" not in text


def test_schedules_are_not_mixed(runs):
    path = runs / "orig_aug" / "seed1" / "request.yaml"
    path.write_text(path.read_text().replace("400", "500"))
    with pytest.raises(
        SmallObjError, match=r"seed1.* asks for 500 iterations, 8 images, and .* 400"
    ):
        distil(SCALE, runs)


@pytest.mark.parametrize("code", [{"commit": "c" * 40}, {"commit": None}])
def test_a_folder_of_results_may_have_a_plan_of_its_own(runs, tmp_path, code):
    """What that plans is tested and may be in bold, and nothing else is; installed, too."""
    code = {"versions": {"torch": "2.11.0", "smallobj-d2": "0.1.0"}, **code}
    for path in runs.rglob("run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | code))
    for seed in range(3):
        path = runs / "orig_aug" / f"seed{seed}" / "row.json"
        path.write_text(json.dumps(row_of("orig_aug", 0.11 + 1e-4 * seed)))
    scale = tmp_path / "tiny.yaml"  # which the plan in experiments has, too
    scale.write_text("about: a fake\ngpus: 0\nrun: {seconds: 60, machine: none}\n")
    folder = tmp_path / "finals"
    folder.mkdir()
    rows = ["oversample_2x", "orig_aug"]
    family = {"name": "finals", "base": "oversample_2x", "rows": ["orig_aug"]}
    plan = {"scales": {"tiny": {"seeds": [0, 1, 2], "rows": rows}}, "families": [family]}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert not report.main(["--runs", str(runs), "--scale", str(scale), "--results", str(folder)])
    text = squeezed((folder / "report.md").read_text())
    sure = text.split("### How sure")[1].split("###")[0]
    (line,) = (line for line in sure.splitlines() if line.startswith("| finals: "))
    assert re.search(r"orig_aug - oversample_2x \| 0-2 \| \*\*\+\d\.\d\*\* ", line)
    others = [line for line in sure.splitlines() if line.startswith("| `") or " - " in line]
    assert all("exploratory" in other for other in others if other != line)
    assert load_plan(folder / "plan.yaml")["tiny"].bases == ("baseline", "oversample_2x")


def test_a_plan_of_other_runs_says_nothing_of_ones_own(runs, tmp_path, capsys):
    """The plan in experiments is for results there, and for others that name it."""
    scale = tmp_path / "tiny.yaml"
    scale.write_text("about: a fake\ngpus: 0\nrun: {seconds: 60, machine: none}\n")
    for path in runs.rglob("run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "c" * 40}))
    for seed, planned in ((2, 6), (1, 5), (0, 4)):  # seeds 4 to 6, which are planned there
        for row in ("baseline", "aug_oversample_2x", "orig_aug", "oversample_2x"):
            (runs / row / f"seed{seed}").rename(runs / row / f"seed{planned}")
    folder = tmp_path / "own" / "results"
    command = ["--runs", str(runs), "--scale", str(scale), "--results", str(folder)]
    assert not report.main(command)
    assert "not planned" in (folder / "report.md").read_text()
    assert not report.main([*command, "--plan", str(ROOT / "experiments" / "plan.yaml")])
    assert "Interim: " in (folder / "report.md").read_text()
    (folder.parent / "plan.yaml").write_text(
        "scales: {tiny: {seeds: [4, 5, 6], rows: [baseline, orig_aug]}}\n"
        "families: [{name: mine, base: baseline, rows: [orig_aug]}]\n"
    )
    assert not report.main(command)
    assert "| mine: orig_aug - baseline | 4-6 |" in squeezed((folder / "report.md").read_text())
    assert report.main([*command, "--plan", "none.yaml"]) == 2
    assert "There is no plan none.yaml" in capsys.readouterr().err


def test_runs_that_the_plan_does_not_count_at_all_are_no_traceback(results):
    """Seeds that follow the planned ones count once all rows have them."""
    planned = Planned((7,), (0, 1, 2), ("baseline", "orig_aug", "oversample_2x", "orig_aug_all3x"))
    for row, seed in results.runs:
        results.runs[row, seed] = replace(results.runs[row, seed], commit="c")
    kept = results.keep(lambda row, _: row in planned.rows)
    build_report(PAPER, [kept], {kept.about["scale"]: planned})


def test_the_answer_speaks_of_rows_with_enough_seeds_only_if_others_have_fewer(results):
    assert "is best for small objects, mask" in markdown_of(results)
    for seed in (1, 2):
        del results.runs["orig_aug", seed]
    results.runs["orig_aug", 0].ap["segm.small"] = 0.9
    assert "is best for small objects of those with 3 seeds or more, mask" in markdown_of(results)


def test_two_seeds_could_have_shown_nothing(results):
    two = results.keep(lambda _, seed: seed < 2)
    lines = [line for line in markdown_of(two).splitlines() if line.startswith("| orig_aug - ")]
    assert lines
    assert all(line.endswith("| - |") for line in lines)


def test_ap_of_masks_and_of_boxes_by_size_are_not_compared(results):
    for (row, seed), run in results.runs.items():
        bands = [{"low": 0, "high": 8, "objects": 3, "AP": 0.3}]
        sizes = {"pixels": bands, "small": {"AP50": 0.5, "AR": 0.4}}
        results.runs[row, seed] = replace(run, by_size=sizes)
    assert results.by_size("baseline", "orig_aug")[0] == [0, 1, 2]
    ap = results.runs["orig_aug", 1].ap
    for metric in [m for m in ap if m.startswith("segm.")]:
        del ap[metric]
    assert results.by_size("baseline", "orig_aug")[0] == [0, 2]


def test_runs_evaluated_on_other_ground_truth_are_not_mixed_in(runs):
    first = distil(SCALE, runs)
    truths = {"validation": dict.fromkeys(SIZES, 9)}
    other = {**first, "about": {**first["about"], "ground_truth": truths}}
    with pytest.raises(SmallObjError, match=r"other ground truth \(validation: 9 small.*; there 7"):
        together(other, first)
    row = runs / "orig_aug" / "seed1" / "row.json"
    row.write_text(json.dumps(json.loads(row.read_text()) | {"ground_truth": truths["validation"]}))
    with pytest.raises(SmallObjError, match=r"seed1 was evaluated on other ground truth"):
        distil(SCALE, runs)


def test_runs_of_another_network_are_not_mixed_in(runs):
    first = distil(SCALE, runs)
    for path in runs.rglob("request.yaml"):
        request = yaml.safe_load(path.read_text()) | {"MODEL": {"RESNETS": {"DEPTH": 18}}}
        path.write_text(yaml.safe_dump(request))
    other = distil(SCALE, runs)
    with pytest.raises(SmallObjError, match="their settings under MODEL are others"):
        together(other, first)
    del first["about"]["settings"]  # as results files were before
    assert together(other, first)["about"]["settings"] == other["about"]["settings"]


def test_rows_without_a_baseline_are_set_against_the_first(runs):
    for config in ("baseline", "aug_oversample_2x", "aug"):
        shutil.rmtree(runs / config)
    text = markdown_of(parse_results(distil(SCALE, runs)))
    overview = text.split("### Every row against `oversample_2x`")[1].split("###")[0]
    assert "| `orig_aug` | 0-2 |" in overview


@pytest.mark.parametrize("key", ["scale", "engine", "schedule", "validation"])
def test_runs_of_another_experiment_are_not_mixed_in(runs, key):
    first = distil(SCALE, runs)
    other = {**first, "about": {**first["about"], key: "another"}}
    with pytest.raises(SmallObjError, match=key):
        together(other, first)


def verdict_of(*seeds):
    """On the comparisons of one alternative."""
    return decide(np.array(seeds)[:, None])


def test_one_seed_decides_nothing():
    verdict = verdict_of([5.0, 7.0])
    assert (verdict.status, verdict.mean) == (Status.OPEN, 5.0)
    assert math.isnan(verdict.half)


def test_holds_if_every_comparison_does():
    assert verdict_of([1.0, 2.0], [1.1, 2.1], [0.9, 2.0]).status is Status.HOLDS
    assert verdict_of([1.0, 2.0], [1.1, -2.1], [0.9, 2.0]).status is Status.OPEN
    assert verdict_of([1.0, -2.0], [1.1, -2.1], [0.9, -2.0]).status is Status.FAILS


def test_the_margin_that_is_shown_is_the_one_that_decides():
    sure, unsure = [1.0, 1.1, 0.9], [9.0, 1.2, -3.0]
    verdict = verdict_of(*zip(sure, unsure, strict=True))
    assert (verdict.status, verdict.mean) == (Status.OPEN, pytest.approx(2.4))
    verdict = verdict_of(*zip([-m for m in sure], [-m for m in unsure], strict=True))
    assert (verdict.status, verdict.mean) == (Status.FAILS, pytest.approx(-1.0))


JUST = {"best": [c for c in PAPER.claims if c.relation == "best"]}
JUST["above"] = [c for c in PAPER.claims if c.relation == "above" and len(c.than) > 1]


@pytest.mark.parametrize("relation", JUST)
def test_chance_decides_few_conclusions_between_rows_that_are_equal(relation):
    """Of conclusions that are just true, at most 2.5% are refuted, and at most as many found."""
    rng = np.random.default_rng(1)
    assert JUST[relation]
    for claim in JUST[relation]:
        found = Counter()
        for _ in range(400):
            aps = [dict(zip(claim.all_rows, rng.normal(0, 1, 20), strict=False)) for _ in range(5)]
            margins = [claim.alternatives(lambda row, _, ap=ap: ap[row], "") for ap in aps]
            found[decide(np.array(margins)).status] += 1
        assert found[Status.FAILS] / 400 < 0.045
        assert found[Status.HOLDS] / 400 < 0.045


CHANGES = [c for c in PAPER.claims if c.relation == "changes_less"]
"""Oversampling changes AP of some objects less than that of others, upwards or downwards."""


def verdicts_on_changes(rng, this: float, other: float, noise: tuple[float, float], times: int):
    """Of seeds by which the rows change AP of these objects, and of the others, by so much."""
    (claim,) = CHANGES
    (metric, *_), seeds = claim.metrics, 8
    size = {metric: (this, noise[0]), claim.looks_at(metric)[1]: (other, noise[1])}

    def ap_of_seed():
        known = {
            (row, m): (change if row in claim.rows else 0.0) + rng.normal(0, sd)
            for row in claim.all_rows
            for m, (change, sd) in size.items()
        }
        return lambda row, m: known[row, m]

    for _ in range(times):
        margins = [claim.alternatives(ap_of_seed(), metric) for _ in range(seeds)]
        yield decide(np.array(margins)).status


@pytest.mark.parametrize("noise", [(0.08, 0.44), (0.44, 0.08), (1.0, 1.0)])
def test_noise_that_is_larger_for_some_objects_is_no_change(noise):
    """Absolute changes of each seed would be larger there, and decide most conclusions."""
    found = Counter(verdicts_on_changes(np.random.default_rng(3), 0.0, 0.0, noise, 300))
    assert found[Status.HOLDS] / 300 < 0.045
    assert found[Status.FAILS] / 300 < 0.045


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("signs", [1, -1])
def test_which_objects_change_more_is_found_whichever_way_they_change(sign, signs):
    rng = np.random.default_rng(4)
    for this, other, status in ((0.2, 2.0, Status.HOLDS), (2.0, 0.2, Status.FAILS)):
        (found,) = verdicts_on_changes(rng, sign * this, signs * other, (0.1, 0.1), 1)
        assert found is status


def test_the_best_of_several_rows_is_found():
    """One of the rows is above all others, whichever it is; then none is."""
    claim = replace(JUST["best"][0], rows=("a", "b"), than=("c", "d"))
    levels = {"a": 1.0, "b": 9.0, "c": 4.0, "d": 3.0}

    def status() -> Status:
        rng = np.random.default_rng(2)
        aps = [{row: ap + rng.normal(0, 0.1) for row, ap in levels.items()} for _ in range(4)]
        return decide(
            np.array([claim.alternatives(lambda row, _, ap=ap: ap[row], "") for ap in aps])
        ).status

    assert status() is Status.HOLDS
    levels["b"] = 4.0  # level with one of the others
    assert status() is Status.OPEN
    levels["b"] = 3.5
    assert status() is Status.FAILS


def test_judges_the_papers_conclusions(results):
    claims = {c.name: c for c in PAPER.claims}
    assert judge(claims["orig_aug_lowers_large"], "segm.large", results).status is Status.HOLDS
    missing = judge(claims["overlap_lowers_small"], "segm.small", results)
    assert (missing.status, missing.why) == (Status.UNMEASURED, Why.ROWS)
    assert judge(claims["aug_overfits_to_pasted"], "segm.small", results).seeds == (0, 1, 2)


def test_says_for_want_of_what_a_conclusion_is_not_measured(results):
    claim = next(c for c in PAPER.claims if c.name == "orig_aug_gain_masks")
    apart = results.keep(lambda row, seed: (row == "baseline") == (seed == 0))
    assert judge(claim, "segm.small", apart).why is Why.SEEDS
    for run in results.runs.values():
        del run.ap["segm.small"]
    assert judge(claim, "segm.small", results).why is Why.SIZE
    for run in results.runs.values():
        for metric in [m for m in run.ap if m.startswith("segm")]:
            del run.ap[metric]
    assert judge(claim, "segm.small", results).why is Why.KIND


def test_the_margin_of_a_gain_is_in_points(results):
    claim = next(c for c in PAPER.claims if c.name == "orig_aug_gain_masks")
    for seed, (base, row) in enumerate([(0.2, 0.23), (0.1, 0.12), (0.0, 0.0)]):
        results.runs["baseline", seed].ap["segm.small"] = base
        results.runs["orig_aug", seed].ap["segm.small"] = row
    verdict = judge(claim, "segm.small", results)
    assert verdict.status is Status.OPEN
    assert verdict.mean == pytest.approx(0.35 / 3 - 1.092 * 0.1)


def test_shows_partial_results(results, tmp_path):
    markdown, html = build_report(PAPER, [results]).write(tmp_path, "report")
    text = squeezed(markdown.read_text())
    assert "## scenes_val: scale fake, engine torchvision" in text
    assert "aug seed 0: error: the disk is full" in text
    line = next(x for x in text.splitlines() if x.startswith("| original+aug"))
    assert "12.4 (+1.1)" in line  # the paper's
    assert "22.5 ±0.1 (+1.1)" in line  # measured, and not planned
    assert "### Table 4" in text
    assert "### Table 5" not in text  # nothing of it is measured but the baseline
    assert "ot measured for want of rows: " in text
    assert "**(" not in text  # nothing was planned
    page = Page(html.read_text())
    assert len(page.links) == page.counts["img"] == 2
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    for picture in (tmp_path / "report_files").iterdir():
        assert f"(report_files/{picture.name})" in text


def test_the_same_results_give_the_same_report(results, tmp_path):
    files = [build_report(PAPER, [results]).write(tmp_path / n, "report") for n in "ab"]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_one_run_is_enough(results):
    one = results.keep(lambda row, seed: (row, seed) == ("baseline", 0))
    text = markdown_of(replace(one, failed=[]))
    assert "1 run of 1 row, 1 seed each" in text
    number = sum(len(claim.metrics) for claim in PAPER.claims)
    assert f"Not measured for want of rows: {number}." in text
    assert "there is nothing to compare yet" in text


def test_tool_says_what_is_wrong(tmp_path, capsys):
    assert report.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: There are no results")
    empty = tmp_path / "tiny" / "torchvision"
    empty.mkdir(parents=True)
    assert report.main(["--results", str(tmp_path), "--runs", str(empty)]) == 2
    assert "is finished" in capsys.readouterr().err


def test_compares_the_scenes_with_coco(runs):
    """Table 2 of synthetic scenes stands in the report, beside the paper's."""
    scale = Scale("fake", "x", {}, 0, 60.0, "this", {"num_train": 8, "num_val": 1, "seed": 0})
    config = load_scale(ROOT / "experiments" / "scales" / "tiny.yaml")
    request = config.request(ROOT / "configs" / "baseline.yaml", runs.parent)
    for path in runs.rglob("request.yaml"):
        path.write_text(yaml.safe_dump(request))
    scale.prepare(ROOT / "configs", runs.parent, augmented_val=False)
    content = json.loads(json.dumps(distil(scale, runs)))
    assert [t["protocol"] for t in content["table2"]] == ["paper", "training"]
    text = markdown_of(parse_results(content))
    assert f"| small | *{PUBLISHED.data}* | *41.43%*" in text
    assert "| small | scenes_train, training protocol |" in text
    assert "made to resemble COCO" in text


def without_large(content: dict) -> dict:
    """The same results of a validation set without large objects, and of another name."""
    for run in content["runs"]:
        for kind in ("segm", "bbox"):
            run[kind]["large"] = None
    content["about"]["ground_truth"]["validation"]["large"] = 0
    content["about"]["validation"] = "nuclei_val"
    return content


def test_a_dataset_without_large_objects_breaks_nothing(runs, tmp_path):
    for row in ("oversample_3x", "oversample_4x"):  # with these, conclusions look at large objects
        shutil.copytree(runs / "oversample_2x", runs / row)
    results = parse_results(without_large(distil(SCALE, runs)))
    about_large = next(c for c in PAPER.claims if c.name == "oversampling_spares_medium")
    assert judge(about_large, "segm.medium", results).status is Status.UNMEASURED
    markdown, html = build_report(PAPER, [results]).write(tmp_path, "report")
    text = squeezed(markdown.read_text())
    assert "Validation: nuclei_val, with 7 small, 7 medium, 0 large objects." in text
    assert "ot measured for want of objects of the size that it is about: 8" in text
    assert "want of rows" not in text
    assert "Table 4" not in text  # it is a report on the user's data
    assert "The paper's conclusions are about COCO." in text
    assert "nan" not in text
    assert "trade_off" not in text  # small against large objects
    assert Page(html.read_text()).counts.get("img", 0) == text.count("_copies.svg)")


def test_every_row_stands_beside_the_baseline(results):
    text = markdown_of(results)
    overview = text.split("### Every row against the baseline")[1].split("###")[0]
    assert "| `baseline` | 0-2 | 21.4 ±0.1 |" in overview
    assert "| `orig_aug` | 0-2 | 22.5 ±0.1 (+1.1) |" in overview
    assert "12.4" not in overview  # the paper's numbers are for its tables


def test_tables_name_the_rows_that_were_not_run(results):
    table = markdown_of(results).split("### Table 4")[1]
    assert "| aug |" not in table.split("###")[0]
    assert "Not run: aug." in table


def test_says_where_oversampling_has_nothing_to_change(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    size = {"size": 128, "seed": 0, "num_train": 3, "num_val": 1}
    make_splits(tmp_path, **size, progress=False)
    json_file = tmp_path / "scenes_train" / "annotations.json"
    data = json.loads(json_file.read_text())
    for annotation in data["annotations"]:  # as where all objects are small
        annotation["area"] = 100.0
    json_file.write_text(json.dumps(data))
    names = ("train", "val")
    splits = [[n, f"scenes_{n}/annotations.json", f"scenes_{n}/images"] for n in names]
    scale = Scale("fake", "x", {}, 0, 60.0, "this", existing=splits)
    request = scale.request(ROOT / "configs" / "baseline.yaml", runs.parent)
    for path in runs.glob("*/*/request.yaml"):
        path.write_text(yaml.safe_dump(request))
    text = markdown_of(parse_results(distil(scale, runs)))
    assert "| small | train, paper protocol |" in text
    assert "Of 3 images 3 have small objects, so oversampling them" in text
    assert "made to resemble COCO" not in text


# --- The answer


def test_the_report_opens_with_the_answer(results):
    text = markdown_of(results).split("## ")[0]
    assert "# The paper's tables, rerun" in text
    assert "`orig_aug` is best for small objects, mask AP +1.1 points (95%: " in text
    assert "against `baseline`. AP of medium objects +0.1 points" in text
    assert "AP of large objects -0.8 points" in text
    assert "3 seeds (0-2), not planned" in text
    assert "Of the paper, found again on scenes_val: " in text


def test_a_report_on_ones_own_data_is_about_them(results):
    own = replace(results, about={**results.about, "validation": "my_val"})
    document = build_report(PAPER, [own])
    text = document.markdown("pictures")
    assert text.startswith("# Copy-paste for the small objects of my_val")
    assert "Table 4" not in text
    assert "want of rows" not in text
    assert b"the paper (COCO" not in b"".join(
        picture.data for kind, picture in document.blocks if kind == "picture"
    )


def test_rows_whose_config_is_gone_stand_in_the_report(results):
    run = results.runs["orig_aug", 0]
    results.runs["beyond/gone", 0] = run
    assert "`beyond/gone`" in build_report(PAPER, [results]).markdown("pictures")


def test_where_seeds_differ_the_base_is_repeated_and_differences_are_over_common_seeds(results):
    for row, seed in (("orig_aug", 0), ("oversample_2x", 1)):
        del results.runs[row, seed]
    ap = results.runs["baseline", 0].ap
    ap |= {metric: value + 0.3 for metric, value in ap.items()}
    text = markdown_of(results).split("### Every row against")[1]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    below = {}
    for name, seeds, small, *_ in rows[:6]:
        if "baseline" in name:
            below[seeds] = float(small.split(" ")[0])
        else:
            change = float(re.search(r"\((.*)\)", small)[1])
            assert float(small.split(" ")[0]) - below[seeds] == pytest.approx(change, abs=0.11)
    assert set(below) == {"0-2", "1-2", "0, 2"}


def test_gains_on_pasted_objects_are_over_common_seeds(results):
    config = ELSEWHERE.partition("@")[0]
    del results.runs[ELSEWHERE, 2]
    results.runs[config, 2].ap["segm.small"] = 0.9  # must not count
    before, after = (
        np.mean(results.values(row, "segm.small", (0, 1))) for row in (config, ELSEWHERE)
    )
    line = next(x for x in markdown_of(results).splitlines() if x.startswith(f"| {config} | 0-1"))
    assert line.endswith(f" {100 * (after / before - 1):+.0f} % |")


def test_sentences_on_all_seeds_are_true(results):
    results.runs["orig_aug", 1].ap["segm.small"] = 0.01
    said = seed_by_seed(results, results.rows, "baseline")
    for part in said.split("; "):
        size, word, names = re.fullmatch(r"for (\w+) objects (\w+) baseline: (.*)", part).groups()
        for row in names.split(", "):
            for seed in range(3):
                ap = results.of_seed(seed)
                change = ap(row, f"segm.{size}") - ap("baseline", f"segm.{size}")
                assert (change > 0) == (word == "above")


def test_where_most_rows_are_alike_the_others_are_named(results):
    rows = [f"row{i}" for i in range(8)]
    for row, seed in product(rows, range(3)):
        results.runs[row, seed] = results.runs["orig_aug", seed]
    said = seed_by_seed(results, ["baseline", *rows], "baseline")
    assert said.startswith("for small objects above baseline: all rows; for medium")
    results.runs["row5", 1] = results.runs["baseline", 1]
    said = seed_by_seed(results, ["baseline", *rows], "baseline")
    assert said.startswith("for small objects above baseline: all rows but row5; for medium")


@pytest.fixture
def detected(runs, tmp_path):
    """The runs of two rows kept their detections."""
    json_file = make_dataset(tmp_path, "boot_scenes", 6, seed=3, size=128, progress=False)
    truth = load_ground_truth(json_file)
    for row, score in (("baseline", 0.4), ("orig_aug", 0.9)):
        for seed in range(3):
            run = runs / row / f"seed{seed}"
            kept = [a for i, a in enumerate(truth.anns.values()) if score > 0.5 or i % 2]
            if (row, seed) == ("baseline", 2):
                kept = []  # a network that finds nothing counts, too
            found = [
                result(a["image_id"], a["category_id"], truth.annToMask(a), score) for a in kept
            ]
            content = json.loads((run / "row.json").read_text())
            run_folder(run, json_file, found, name="boot_scenes")
            about = json.loads((run / "row.json").read_text())
            (run / "row.json").write_text(json.dumps(content | about))
    return runs


def test_intervals_over_images_stand_beside_those_over_seeds(detected, tmp_path):
    content = distil(SCALE, detected)
    found = parse_results(content)
    kept = tmp_path / "fake.npz"
    aps = resampled_aps(found, [detected], 50, kept)
    (entry,) = over_images(found, aps, ["baseline"])
    assert (entry["row"], entry["base"], entry["seeds"]) == ("orig_aug", "baseline", [0, 1, 2])
    for file in detected.rglob("coco_instances_results.json"):
        file.unlink()  # what was computed of them is kept
    (back,) = over_images(found, resampled_aps(found, [tmp_path], 50, kept), ["orig_aug"])
    assert (back["row"], back["base"]) == ("baseline", "orig_aug")
    assert [back["low"], back["high"]] == [-entry["high"], -entry["low"]]
    with pytest.raises(SmallObjError, match="coco_instances_results"):  # of other resamples
        resampled_aps(found, [detected], 40, kept)
    found.runs["baseline", 1].ap["segm.small"] += 0.01  # another evaluation
    with pytest.raises(SmallObjError, match="coco_instances_results"):
        resampled_aps(found, [detected], 50, kept)
    content["over_images"] = [entry]
    assert together(content, content)["over_images"] == []  # its runs are new
    others = {**content, "runs": [r for r in content["runs"] if r["config"] == "aug_oversample_2x"]}
    assert together(others, content)["over_images"] == [entry]
    assert 0 <= entry["low"] < entry["high"] <= 1
    assert f" to {100 * entry['high']:+.1f} |" in markdown_of(parse_results(content))
    content["over_images"] = [{**entry, "seeds": [0, 2]}, {**entry, "seeds": [1, 3]}]
    said = markdown_of(parse_results(content))  # of the seeds that it has, and no others
    assert f" to {100 * entry['high']:+.1f} (seeds 0, 2) |" in said


def test_runs_of_two_machines_have_intervals_over_images_together(detected, tmp_path):
    """The second machine needs the results of the first, and none of its detections."""
    first, second = tmp_path / "first" / "fake" / "torchvision", detected
    shutil.copytree(second, first)
    for of_seed in (*first.rglob("seed2"), *second.rglob("seed[01]")):
        shutil.rmtree(of_seed)
    scale = tmp_path / "fake.yaml"
    scale.write_text("about: a fake\ngpus: 0\nrun: {seconds: 60, machine: none}\n")
    results = tmp_path / "results"
    common = ["--scale", str(scale), "--add", "--results", str(results), "--resamples", "50"]
    for of_one in (first, second):
        assert not report.main(["--runs", str(of_one), *common])
        shutil.rmtree(of_one)
    (entry,) = load_results(results / "fake_torchvision.json").over_images  # none of seeds 0, 1
    assert entry == ("orig_aug", "baseline", (0, 1, 2))


def test_a_damaged_file_of_resampled_aps_is_named(detected, tmp_path):
    kept = tmp_path / "fake.npz"
    found = parse_results(distil(SCALE, detected))
    resampled_aps(found, [detected], 5, kept)
    kept.write_bytes(kept.read_bytes()[:-20])
    with pytest.raises(SmallObjError, match=r"fake\.npz is damaged"):
        resampled_aps(found, [detected], 5, kept)


# --- What others wrote


@pytest.mark.parametrize("text", HOSTILE)
def test_results_that_carry_markup_are_shown_as_text(runs, text):
    content = distil(SCALE, runs)
    about = content["about"]
    for key in ("scale", "text", "engine", "validation"):
        about[key] = text
    about["device"], about["versions"] = [text], {text: text}
    content["failed"] = [{"config": text, "seed": text, "why": text}]
    for run in content["runs"]:
        if run["config"] == "oversample_2x":
            run["config"] = text
    document = build_report(PAPER, [parse_results(content)])
    assert text in Page(document.html()).text
    assert_inert(document.markdown("files"), pictures=True)


NESTED = pytest.param("[" * 10_000, id="nested")


@pytest.mark.parametrize("damage", ["[]", "{}", '{"runs": 3}', "nan", NESTED, "\x00"])
def test_a_damaged_results_file_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "x.json"
    path.write_text(damage)
    with pytest.raises(SmallObjError, match=r"x.json is damaged, or another kind of file") as e:
        load_results(path)
    assert "\n" not in str(e.value)


DAMAGE = ("", "{", "[]", "{}", "3", '{"seconds": 3}', "null", NESTED)
HARMLESS = {  # no attempt, nothing logged, or a line that was cut off
    "attempts.json": ("[]", "{}"),
    "metrics.json": ("", "{", "{}", "[]", '{"seconds": 3}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["row.json", "run.json", "metrics.json", "attempts.json"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(runs, name, damage):
    path = runs / "baseline" / "seed1" / name
    path.write_text(damage)
    if damage in HARMLESS.get(name, ()):
        distil(SCALE, runs)
        return
    with pytest.raises(SmallObjError) as e:
        distil(SCALE, runs)
    assert str(e.value).startswith(f"{path} is damaged, or another kind of file (")
    assert "\n" not in str(e.value)


def test_the_committed_results_can_be_read():
    for path in (ROOT / "experiments" / "results").glob("*.json"):
        assert load_results(path).rows
