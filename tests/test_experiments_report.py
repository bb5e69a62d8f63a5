"""The report: the paper's numbers beside the measured ones, and what these say of its claims."""

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from smallobj_d2.analysis.table2 import PUBLISHED
from smallobj_d2.datasets.synthetic import make_splits
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import SIZES
from smallobj_d2.experiments.claims import Status, decide, interval, judge, t_quantile
from smallobj_d2.experiments.paper import load_paper
from smallobj_d2.experiments.report import build_report
from smallobj_d2.experiments.results import (
    distil,
    load_results,
    parse_results,
    together,
    write_results,
)
from smallobj_d2.experiments.scales import AUGMENTED_VAL, Scale, load_scale

ROOT = Path(__file__).parents[1]
PAPER = load_paper(ROOT / "experiments" / "paper.yaml")
SCALE = Scale("fake", "invented numbers", {}, 0, 60.0, "this")
ELSEWHERE = f"aug_oversample_2x@{AUGMENTED_VAL}"


def row_of(config: str, shift: float) -> dict:
    """What row.json says; numbers follow the paper's, moved a little."""
    published = {**PAPER.numbers[config.partition("@")[0]], **PAPER.numbers.get(config, {})}
    return {
        "dataset": "x",
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
    assert read.values("baseline", "segm.small") == pytest.approx([0.213, 0.2138, 0.2146])
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
    assert both.values("baseline", "segm.small") == pytest.approx([0.113 + s for s in shifts])
    assert both.about["device"] == ["cpu, 2 cores", "gpu"]
    assert both.about["versions"] == {"torch": "2.11.0, 2.12.0"}
    assert together(first, first) == first
    text = build_report(PAPER, [both]).markdown("")
    assert "against `orig_aug`, the paper's row with the highest" in text
    assert text.count("| `beyond/new` |") == 4


def test_rows_without_a_baseline_are_set_against_the_first(runs):
    for config in ("baseline", "aug_oversample_2x", "aug"):
        shutil.rmtree(runs / config)
    text = build_report(PAPER, [parse_results(distil(SCALE, runs))]).markdown("")
    overview = text.split("### Every row against `oversample_2x`")[1].split("###")[0]
    assert "| `orig_aug` | 3 |" in overview


@pytest.mark.parametrize("key", ["scale", "engine", "schedule", "validation"])
def test_runs_of_another_experiment_are_not_mixed_in(runs, key):
    first = distil(SCALE, runs)
    other = {**first, "about": {**first["about"], key: "another"}}
    with pytest.raises(SmallObjError, match=key):
        together(other, first)


def test_quantiles_are_students():
    # From the tables: 97.5% at 1, 2, 3, 4, 9, 30 degrees of freedom, 99.5% at 2 and 5.
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}
    for freedom, value in table.items():
        assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)
    assert t_quantile(0.995, 2) == pytest.approx(9.925, abs=5e-4)
    assert t_quantile(0.995, 5) == pytest.approx(4.032, abs=5e-4)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = [
        low < 3 < high for low, high in (interval(rng.normal(3, 2, size=3)) for _ in range(2000))
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_one_seed_decides_nothing():
    verdict = decide(np.array([[5.0, 7.0]]))
    assert (verdict.status, verdict.mean) == (Status.OPEN, 5.0)
    assert math.isnan(verdict.low)


def test_holds_if_every_comparison_does():
    assert decide(np.array([[1.0, 2.0], [1.1, 2.1], [0.9, 2.0]])).status is Status.HOLDS
    assert decide(np.array([[1.0, 2.0], [1.1, -2.1], [0.9, 2.0]])).status is Status.OPEN
    assert decide(np.array([[1.0, -2.0], [1.1, -2.1], [0.9, -2.0]])).status is Status.FAILS


def test_many_comparisons_do_not_refute_by_chance():
    """Of conclusions that are just true, at most 2.5% are refuted, however many comparisons."""
    rng = np.random.default_rng(1)
    drawn = (decide(rng.normal(0, 1, size=(4, 9))) for _ in range(2000))
    assert np.mean([v.status is Status.FAILS for v in drawn]) < 0.04


def test_judges_the_papers_conclusions(results):
    claims = {c.name: c for c in PAPER.claims}
    assert judge(claims["orig_aug_lowers_large"], "segm.large", results).status is Status.HOLDS
    missing = judge(claims["overlap_lowers_small"], "segm.small", results)
    assert (missing.status, missing.missing) == (Status.UNMEASURED, ("orig_aug_overlap",))
    assert judge(claims["aug_overfits_to_pasted"], "segm.small", results).seeds == 3


def test_a_gain_over_nothing_is_not_decided(results):
    claim = next(c for c in PAPER.claims if c.name == "orig_aug_gain_masks")
    for seed in range(3):
        results.numbers["baseline", seed]["segm.small"] = 0.0
    assert judge(claim, "segm.small", results).status is Status.OPEN


class Page(HTMLParser):
    """Counts what is in a page, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.links: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [v for k, v in attrs if k in ("src", "href") and v and v[0] != "#"]
        if tag not in ("meta", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("meta", "path", "use", "rect"):
            assert self.open.pop() == tag


def test_shows_partial_results(results, tmp_path):
    markdown, html = build_report(PAPER, [results]).write(tmp_path, "report")
    text = markdown.read_text()
    assert "## Scale fake, engine torchvision" in text
    assert "aug seed 0: error: the disk is full" in text
    line = next(x for x in text.splitlines() if x.startswith("| original+aug"))
    assert "12.4 (+1.1)" in line  # the paper's
    assert "22.5 ±0.1 **(+1.1)**" in line  # measured, told from chance
    assert "### Table 4" in text
    assert "### Table 5" not in text  # nothing of it is measured but the baseline
    assert "conclusions wait for rows that were not run" in text
    page = Page(html.read_text())
    assert page.counts["svg"] == 2
    assert page.links == []  # nothing is loaded from elsewhere
    for picture in (tmp_path / "report_files").iterdir():
        assert f"(report_files/{picture.name})" in text


def test_the_same_results_give_the_same_report(results, tmp_path):
    files = [build_report(PAPER, [results]).write(tmp_path / n, "report") for n in "ab"]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_one_run_is_enough(results):
    only = {("baseline", 0): results.numbers["baseline", 0]}
    one = type(results)(results.about, only, {("baseline", 0): 61.0})
    text = build_report(PAPER, [one]).markdown("pictures")
    assert "1 run of 1 row, 1 seed each" in text
    assert f"{len(PAPER.claims)} conclusions wait for rows" in text


def test_tool_says_what_is_wrong(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "report.py"), "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There are no results")
    empty = tmp_path / "tiny" / "torchvision"
    empty.mkdir(parents=True)
    done = subprocess.run([*command, "--runs", str(empty)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is finished" in done.stderr


def test_compares_the_scenes_with_coco(runs):
    """Table 2 of made scenes stands in the report, beside the paper's."""
    scale = Scale("fake", "x", {}, 0, 60.0, "this", {"num_train": 8, "num_val": 1, "seed": 0})
    config = load_scale(ROOT / "experiments" / "scales" / "tiny.yaml")
    request = config.request(ROOT / "configs" / "baseline.yaml", runs.parent)
    for path in runs.glob("baseline/*/request.yaml"):
        path.write_text(yaml.safe_dump(request))
    scale.prepare(ROOT / "configs", runs.parent, augmented_val=False)
    content = json.loads(json.dumps(distil(scale, runs)))
    assert [t["protocol"] for t in content["table2"]] == ["paper", "training"]
    text = build_report(PAPER, [parse_results(content)]).markdown("pictures")
    assert f"| small | {PUBLISHED.data} | 41.43%" in text
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
    text = markdown.read_text()
    assert "Validation: nuclei_val, with 7 small, 7 medium, 0 large objects." in text
    assert "4 conclusions about sizes that no validation object has" in text
    assert "The paper's conclusions are about COCO." in text
    assert "nan" not in text
    assert "trade_off" not in text  # small against large objects
    assert Page(html.read_text()).counts["svg"] == 1


def test_every_row_stands_beside_the_baseline(results):
    text = build_report(PAPER, [results]).markdown("pictures")
    overview = text.split("### Every row against the baseline")[1].split("###")[0]
    assert "| `baseline` | 3 | 21.4 ±0.1 |" in overview
    assert "| `orig_aug` | 3 | 22.5 ±0.1 **(+1.1)** |" in overview
    assert "12.4" not in overview  # the paper's numbers are for its tables


def test_tables_name_the_rows_that_were_not_run(results):
    table = build_report(PAPER, [results]).markdown("pictures").split("### Table 4")[1]
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
    text = build_report(PAPER, [parse_results(distil(scale, runs))]).markdown("pictures")
    assert "| small | train, paper protocol |" in text
    assert "Of 3 images 3 have small objects, so oversampling them" in text
    assert "made to resemble COCO" not in text
