"""README and `docs/beyond.md` say of runs what the results files have."""

import json
import os
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from smallobj_d2.analysis.advice import find_sources
from smallobj_d2.analysis.objects import objects_of
from smallobj_d2.analysis.presented import presented
from smallobj_d2.config import load_cfg
from smallobj_d2.copy_paste import SourceRule
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.experiments.plan import above, load_plan
from smallobj_d2.experiments.results import load_results
from smallobj_d2.experiments.statistics import interval
from smallobj_d2.sizes import SMALL_AREA

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
FILES = sorted((EXPERIMENTS / "screening").glob("*.json"))
FINALS = sorted(EXPERIMENTS.glob("finals*/*.json"))
MASKS, BOXES = (
    tuple(f"{kind}.{size}" for size in ("small", "medium", "large", "all"))
    for kind in ("segm", "bbox")
)


def short(row: str) -> str:
    return row.removeprefix("beyond/")


def points(value: float, digits: int = 1) -> str:
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def digits_of(scale: str) -> int:
    """The photographs have so small an AP that one decimal shows no difference."""
    return 2 if scale.startswith("facade") else 1


def against(results, row: str, base: str, metrics) -> list[str]:
    """AP of a row, mean and deviation over its seeds, with the difference to another row."""
    digits = digits_of(results.about["scale"])
    seeds = results.seeds(row)
    cells = []
    for metric in metrics:
        values = results.values(row, metric, seeds)
        if not values:
            cells.append("-")
            continue
        cell = f"{100 * mean(values):.{digits}f} ±{100 * stdev(values):.{digits}f}"
        if row != base:
            assert seeds == results.seeds(row, base)
            off = mean(values) - mean(results.values(base, metric, seeds))
            cell += f" ({points(off, digits)})"
        cells.append(cell)
    return cells


# --- Screening and finals


def screened(file: Path) -> list[str]:
    """The rows of the table: each candidate against the bank of the same data and seeds."""
    results = load_results(file)
    metrics = MASKS if any("segm.small" in run.ap for run in results.runs.values()) else BOXES
    base = "beyond/bank" if results.seeds("beyond/bank") else "beyond/bank_boxes"
    found = []
    for row in results.rows:
        if row == base:
            continue
        seeds = results.seeds(row)
        shown = f"{seeds[0]}-{seeds[-1]}"
        assert len(seeds) == seeds[-1] - seeds[0] + 1
        names = f"`{short(row)}` | `{short(base)}` | `{results.about['scale']}` | {shown}"
        found.append(f"| {names} | {' | '.join(against(results, row, base, metrics))} |")
    return found


def judged_by(plan: Path, results):
    """What a plan compares, by its rows, each as its family says."""
    families = load_plan(plan)[results.about["scale"]].families
    return {s.rows: d for family in families for s, d in family.judged(results).items()}


def judged_finals(folder: str, scale: str):
    """Results of finals, and what their plan compares."""
    results = load_results(EXPERIMENTS / folder / f"{scale}_torchvision.json")
    return results, judged_by(EXPERIMENTS / folder / "plan.yaml", results)


def prose(file: str) -> str:
    """A page without its line breaks."""
    return " ".join((ROOT / file).read_text(encoding="utf-8").split())


def finals(file: Path) -> list[str]:
    """The rows of the table: each row against the bank, and what its family says of it."""
    results = load_results(file)
    plan = file.parent / "plan.yaml"
    planned = load_plan(plan)[results.about["scale"]]
    adjusted = {rows: d.adjusted for rows, d in judged_by(plan, results).items()}
    holm = {rows: f"{p:.2f}" if p >= 0.01 else "< 0.01" for rows, p in adjusted.items()}
    found = []
    for row in planned.rows:
        there, all_of_them = results.seeds(row), planned.seeds
        assert {*there} <= {*all_of_them}
        cells = against(results, row, "beyond/bank", MASKS)
        p = [holm.get((row, base), "-") for base in ("beyond/bank", "orig_aug", "baseline")]
        lacks = (
            f" ({len(there)} of {len(all_of_them)} runs)" if len(there) < len(all_of_them) else ""
        )
        names = f"`{short(row)}`{lacks} | `{results.about['scale']}`"
        found.append(f"| {names} | {' | '.join([*cells, *p])} |")
    return found


@pytest.mark.parametrize(
    ("lines", "file"),
    [(lines, file) for lines, files in ((screened, FILES), (finals, FINALS)) for file in files],
    ids=lambda x: getattr(x, "stem", x.__class__.__name__),
)
def test_the_tables_say_what_the_runs_gave(lines, file):
    page = (ROOT / "docs" / "beyond.md").read_text(encoding="utf-8")
    for line in lines(file):
        assert line in page


def small(data: str, measure: str, size: str = "small") -> dict[str, list[float]]:
    """AP of small objects, or of others, by candidate, seed by seed."""
    (file,) = (file for file in FILES if file.stem.startswith(data))
    found: dict[str, list[float]] = {}
    for run in json.loads(file.read_text())["runs"]:
        name = short(run["config"])
        found.setdefault(name, []).append(run[measure][size])
    return found


def test_the_sentences_under_the_table_are_true():
    page = prose("docs/beyond.md")
    assert "above `bank`, and together, as `bank_often_soft`, above either" in page
    ap = {name: mean(each) for name, each in small("nuclei_tiny", "segm").items()}
    assert ap["bank"] < min(ap["bank_often"], ap["bank_soft"])
    assert max(ap["bank_often"], ap["bank_soft"]) < ap["bank_often_soft"]
    assert "Nine were not above what they are compared with, and are removed" in page
    boxes = small("nuclei_boxes", "bbox")
    on_boxes = {name: mean(each) for name, each in boxes.items()}
    removed = [
        (found[name], found[base])
        for found, base in ((ap, "bank"), (on_boxes, "bank_boxes"))
        for name in found
        if name.startswith("bank") and not (ROOT / f"configs/beyond/{name}.yaml").exists()
    ]
    photos = {
        short(row): above(row, "beyond/bank").difference(results)
        for results in [load_results(EXPERIMENTS / "screening" / "facade_tiny_torchvision.json")]
        for row in results.rows
    }
    together = photos["bank_often_soft_medium_nested"]
    assert not (ROOT / "configs/beyond/bank_often_soft_medium_nested.yaml").exists()
    assert len([*removed, together]) == 9 + 1, "and `bank_stitch`"
    assert all(own < compared for own, compared in removed)
    assert together.mean < 0
    assert "0.01 points below `bank` for small objects, and 0.3 over all sizes" in prose(
        "experiments/PLAN.md"
    )
    assert round(-100 * together.mean, 2) == 0.01
    assert "in each of its three seeds on photographs, by 0.01 to 0.06 points" in page
    nested = [round(100 * gain, 2) for gain in photos["bank_nested"].values]
    assert (len(nested), min(nested), max(nested)) == (3, 0.01, 0.06)
    medium = small("nuclei_tiny", "segm", size="medium")
    assert "`bank_medium` was below `bank` for small nuclei" in page
    assert ap["bank_medium"] < ap["bank"]
    assert "3.2 points above `bank` for medium ones, and for small ones by 0.1" in page
    assert round(100 * (ap["bank_often_soft_medium"] - ap["bank"]), 1) == 0.1
    gain = mean(medium["bank_often_soft_medium"]) - mean(medium["bank"])
    assert round(100 * gain, 1) == 3.2
    assert "in each of three seeds `bank_boxes` was above the baseline" in page
    assert all(b > a for a, b in zip(boxes["baseline"], boxes["bank_boxes"], strict=True))
    assert mean(boxes["bank_boxes"]) > mean(boxes["bank_boxes_soft"])
    assert "by 0.005 points, over seeds from 1.44 to 1.62" in page
    assert round(100 * photos["bank_stitch"].mean, 3) == 0.005
    found = [round(100 * ap, 2) for ap in small("facade_tiny", "segm")["bank_stitch"]]
    assert (min(found), max(found)) == (1.44, 1.62)


def test_each_run_of_a_table_tells_its_commit():
    assert FILES
    for file in FILES:
        assert all(len(r["commit"]) == 40 for r in json.loads(file.read_text())["runs"])


def test_what_is_said_of_the_finals_on_photographs_is_true():
    page = (ROOT / "docs" / "beyond.md").read_text(encoding="utf-8")
    assert "On photographs no planned comparison is significant." in page
    results, judged = judged_finals("finals", "facade_tiny")
    assert not any(change.decided for change in judged.values())
    assert "`orig_aug` gained at most 5% in AP_S (95% interval)" in page
    gain = above("orig_aug", "baseline").difference(results)
    base = mean(results.values("baseline", "segm.small", results.seeds("baseline")))
    assert 0.045 < interval(gain.values)[1] / base < 0.05
    assert "was 0.2 to 0.4 above the baseline with each of the four bank rows" in page
    for row in results.rows:
        if row.startswith("beyond/"):
            change = above(row, "baseline", "segm.all").difference(results)
            assert 0.2 <= round(100 * change.mean, 1) <= 0.4
    assert "it was -0.1 to 0.1 above" in page
    repeat, _ = judged_finals("finals_medium", "facade_tiny")
    rows = [row for row in repeat.rows if row.startswith("beyond/")]
    gains = [above(row, "baseline", "segm.all").difference(repeat).mean for row in rows]
    assert (round(100 * min(gains), 1), round(100 * max(gains), 1)) == (-0.1, 0.1)


def test_what_is_said_of_objects_on_objects_is_true():
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "facade"
    file = folder / "annotations" / "train.json"
    if not file.is_file():
        pytest.skip("facade is not in DETECTRON2_DATASETS")
    dataset = load_coco(file, folder / "train")
    page = prose("docs/beyond.md")
    assert "of 5,602 small objects few may be copied, in 73 of the 415 images" in page
    objects = objects_of(dataset.records)
    found = find_sources(dataset.records, objects, load_cfg("orig_aug"))
    assert (found.small_images, found.with_source) == (415, 73)
    for row in ("orig_aug", "orig_aug_overlap"):
        after = presented(dataset.records, objects, load_cfg(row))
        assert (after.objects.num_images, after.counts["copies_pasted"]) == (902, 189)
    assert "in an epoch of 487 draws, where `bank` pastes 500" in page
    plan = prose("experiments/PLAN.md")
    assert "94% of the small objects of the training images count as occluded" in plan
    small = int((objects.areas < SMALL_AREA).sum())
    uncovered = SourceRule(connected=False, inside=False)
    free = (
        len(uncovered.candidates(Scene(r["annotations"], r["height"], r["width"])))
        for r in dataset.records
    )
    assert (small, round(100 * (1 - sum(free) / small))) == (5602, 94)
    assert "`bank` pastes 1 object a draw where an image has 11.5" in plan
    after = presented(dataset.records, objects, load_cfg("beyond/bank"))
    assert (after.objects.num_images, after.counts["copies_pasted"]) == (487, 500)
    assert round(after.counts["copies_pasted"] / after.objects.num_images, 1) == 1.0
    assert round(small / len(dataset.records), 1) == 11.5


def test_what_is_said_of_copies_on_objects_is_true():
    page = prose("docs/beyond.md")
    results = load_results(EXPERIMENTS / "finals_medium" / "facade_tiny_torchvision.json")
    assert (
        "0.01 points above the baseline (95% interval -0.06 to +0.08, so 5% of it at most)" in page
    )
    assert "and 0.01 above `bank` (-0.08 to +0.11)" in page
    base = mean(results.values("baseline", "segm.small", results.seeds("baseline")))
    ends = {}
    for row in ("baseline", "beyond/bank"):
        gain = above("beyond/bank_nested", row).difference(results)
        assert round(100 * gain.mean, 2) == 0.01
        ends[row] = interval(gain.values)
    assert [points(x, 2) for x in ends["baseline"]] == ["-0.06", "+0.08"]
    assert [points(x, 2) for x in ends["beyond/bank"]] == ["-0.08", "+0.11"]
    assert 0.045 < ends["baseline"][1] / base < 0.055


def test_what_is_said_of_overlap_on_photographs_is_true():
    page = prose("experiments/README.md")
    assert "`orig_aug_overlap` 0.03 points below `orig_aug`" in page
    results = load_results(EXPERIMENTS / "results" / "facade_tiny_torchvision.json")
    judged = judged_by(EXPERIMENTS / "plan.yaml", results)
    pair = ("orig_aug_overlap", "orig_aug")
    assert [rows for rows, change in judged.items() if change.decided] == [pair]
    assert round(100 * judged[pair].mean, 2) == -0.03


SHOWN = ("aug_oversample_2x", "orig_aug", "orig_aug_multi3x", "beyond/bank")
"""The rows on scenes that README and docs have figures of, beside the baseline."""


def judged_tables_on_scenes():
    """Results of the paper's tables on scenes, and what their plan compares."""
    results = load_results(EXPERIMENTS / "results" / "tiny_torchvision.json")
    return results, judged_by(EXPERIMENTS / "plan.yaml", results)


def test_what_is_said_of_the_tables_on_scenes_is_true():
    readme, page, recipe = map(prose, ("README.md", "docs/beyond.md", "docs/recipe.md"))
    results, judged = judged_tables_on_scenes()
    best, *_, bank = SHOWN
    rows = [row for row in results.rows if row != "baseline" and "@" not in row]
    assert "all 22 rows of the paper's tables were trained with five seeds" in readme
    assert "AP of small objects of all 23 rows" in page
    assert len(rows) == 22, "21 of the paper beside the baseline, and the bank"
    assert results.seeds("baseline", *rows) == [4, 5, 6, 7, 8]
    seeds = results.seeds("baseline")
    ap = {row: mean(results.values(row, "segm.small", seeds)) for row in ("baseline", *rows)}
    assert max(ap, key=ap.__getitem__) == best
    low, orig, high = (f"{100 * ap[row]:.1f}" for row in ("baseline", "orig_aug", best))
    assert f"rose from {low} to {orig} with `orig_aug`" in readme
    assert f"and to {high} with `aug_oversample_2x`" in readme
    assert all(judged[row, "baseline"].decided for row in SHOWN)
    gains = {row: change for (row, base), change in judged.items() if base == "baseline"}
    told = sum(change.decided for change in gains.values())
    words = "all" if told == len(gains) else str(told)
    assert f"{words} of the {len(gains)} planned differences from the baseline are" in readme
    every = "every row was above the baseline for small objects in each of five seeds"
    least = min(min(above(row, "baseline").difference(results).values) for row in rows)
    assert (every in readme) == (least > 0)
    report = (EXPERIMENTS / "results" / "report.md").read_text(encoding="utf-8")
    (counts,) = re.findall(
        r"on scenes_val, masks and boxes counted separately: (\d+) found again, (\d+) do not hold, "
        r"(\d+) not decided",
        report,
    )
    found, refuted, undecided = counts
    assert f"{found} were found again there, {refuted} do not hold, and {undecided} are" in readme
    gain = {row: points(gains[row].mean)[1:] for row in SHOWN}
    assert f"(`bank` by {gain[bank]} points, p {p_of(gains[bank].adjusted)} after Holm's" in page
    said = f"they gained {gain[best]} and {gain['orig_aug']} points of mask AP of small objects"
    assert f"{said}, and `beyond/bank` {gain[bank]}" in recipe
    for row, words in ((bank, "points of mask AP above `bank`"), ("orig_aug", "above `orig_aug`")):
        change = above(best, row).difference(results)
        ends = " to ".join(f"{100 * end:+.1f}" for end in interval(change.values))
        text = f"{points(change.mean)[1:]} {words} ("
        assert f"{text}{'95% interval ' if row == bank else ''}{ends})" in page
    assert (best, bank) not in judged
    assert (best, "orig_aug") not in judged
    changes = [
        abs(round(100 * above(row, "baseline", f"segm.{size}").difference(results).mean, 1))
        for row in (best, "orig_aug", bank)
        for size in ("medium", "large")
    ]
    assert f"AP is within {max(changes)} points of the baseline's" in page
    plan = prose("experiments/PLAN.md")
    spread = mean(stdev(change.values) ** 2 for change in gains.values()) ** 0.5
    assert f"had a standard deviation of {100 * spread:.2f} points (root mean square" in plan
    assert f"over {len(gains)} rows, each over five seeds)" in plan
    for seed in seeds:
        on = {"cpu" if run.startswith("cpu") else "H100" for run in devices(seed)}
        assert on == ({"cpu"} if seed < 6 else {"H100"})


def devices(seed: int) -> set[str]:
    """What the runs of a seed of the tables on scenes were trained on."""
    runs = json.loads((EXPERIMENTS / "results" / "tiny_torchvision.json").read_text())["runs"]
    return {run["device"].removeprefix("NVIDIA ") for run in runs if run["seed"] == seed}


def p_of(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.0095 else f"= {p:.2f}"


def test_what_is_said_of_the_tables_on_nuclei_is_true():
    recipe, beyond = map(prose, ("docs/recipe.md", "docs/beyond.md"))
    results = load_results(EXPERIMENTS / "results" / "nuclei_tiny_torchvision.json")
    judged = judged_by(EXPERIMENTS / "plan.yaml", results)
    assert (
        "differ significantly from the baseline (p = 0.001 and 0.008 after Holm's correction)"
        in recipe
    )
    assert "with `aug` (p = 0.001 after Holm's correction) and with `bank` (p = 0.008)" in beyond
    told = {rows: change for rows, change in judged.items() if change.decided}
    assert [*told] == [("aug", "baseline"), ("beyond/bank", "baseline")]
    assert [round(change.adjusted, 3) for change in told.values()] == [0.001, 0.008]
    assert "are not significant (p = 0.13 and 0.08)" in recipe
    for row, p in (("orig_aug", 0.13), ("orig_aug_multi3x", 0.08)):
        assert round(judged[row, "baseline"].adjusted, 2) == p
    assert "on average 0.9, 1.4 and 2.0 points" in recipe
    gains = [
        judged[row, "baseline"].mean
        for row in ("orig_aug_single1x", "orig_aug", "orig_aug_multi3x", "aug")
    ]
    assert gains[0] < 0
    assert [round(100 * gain, 1) for gain in gains[1:]] == [0.9, 1.4, 2.0]
    assert "`aug` and `bank` came out within 0.1 points of each other" in beyond
    highest = [told[row, "baseline"].mean for row in ("aug", "beyond/bank")]
    assert 100 * abs(highest[0] - highest[1]) < 0.1
    assert "`orig_aug_multi3x` 0.7 points below them" in beyond
    assert {round(100 * (high - gains[2]), 1) for high in highest} == {0.7}
    assert "1.7 to 2.4 points below the baseline's with these rows but `aug`" in beyond
    rows = ("orig_aug", "orig_aug_multi3x", "beyond/bank")
    lost = [above(row, "baseline", "segm.medium").difference(results).mean for row in rows]
    assert (round(-100 * max(lost), 1), round(-100 * min(lost), 1)) == (1.7, 2.4)
    assert above("aug", "baseline", "segm.medium").difference(results).mean > 0
    readme = prose("README.md")
    assert (
        "`aug` and `beyond/bank` on nuclei, differs significantly from the baseline's; that of "
        "the others does not" in readme
    )
    assert "0.8 to 1.6 on nuclei, and up to 0.1 on photographs" in readme
    photographs = load_results(EXPERIMENTS / "results" / "facade_tiny_torchvision.json")
    for data, ends in ((results, (0.8, 1.6)), (photographs, (0.0, 0.1))):
        against_it = {
            rows: change
            for rows, change in judged_by(EXPERIMENTS / "plan.yaml", data).items()
            if rows[1] == "baseline"
        }
        widths = [round(100 * change.least, 1) for change in against_it.values()]
        assert (min(widths), max(widths)) == ends
        decided = {rows[0] for rows, change in against_it.items() if change.decided}
        assert decided == ({"aug", "beyond/bank"} if data is results else set())


def test_nuclei_were_found_alike_by_networks_trained_on_cpu_and_gpu():
    plan = prose("experiments/PLAN.md")
    rows = ("baseline", "orig_aug", "beyond/bank")
    for folder, where in (("results", "on a CPU"), ("finals", "on an H100")):
        results = load_results(EXPERIMENTS / folder / "nuclei_tiny_torchvision.json")
        cells = [against(results, row, row, ["segm.small"])[0] for row in rows]
        assert f"{cells[0]}, {cells[1]} and {cells[2]} {where}" in plan


def test_what_is_said_of_the_finals_on_nuclei_is_true():
    page = prose("docs/beyond.md")
    results, judged = judged_finals("finals", "nuclei_tiny")
    best = ("beyond/bank_often_soft", "baseline")
    assert "`bank_often_soft` is significantly above the baseline, by 2.4 points (p = 0.02)" in page
    assert [rows for rows, change in judged.items() if change.decided] == [best]
    assert round(100 * judged[best].mean, 1) == 2.4
    assert round(judged[best].adjusted, 2) == 0.02
    assert "it is 0.9 points above `bank` (p = 0.51)" in page
    over_bank = judged["beyond/bank_often_soft", "beyond/bank"]
    assert (round(100 * over_bank.mean, 1), round(over_bank.adjusted, 2)) == (0.9, 0.51)
    assert "1.4 points above the baseline, which is not significant (p = 0.15)" in page
    bank = judged["beyond/bank", "baseline"]
    assert (round(100 * bank.mean, 1), round(bank.adjusted, 2)) == (1.4, 0.15)
    assert "medium nuclei lost 4.7 points against the baseline (95% interval 1.5 to 7.9)" in page
    medium = above(*best, "segm.medium").difference(results)
    low, high = interval(medium.values)
    assert [round(100 * x, 1) for x in (medium.mean, low, high)] == [-4.7, -7.9, -1.5]


def test_what_is_said_of_the_finals_on_scenes_is_true():
    page, readme, recipe = map(prose, ("docs/beyond.md", "README.md", "docs/recipe.md"))
    results, judged = judged_finals("finals", "tiny")
    best = "beyond/bank_often_soft"
    rows = ("orig_aug", "beyond/bank", best)
    told = [rows for rows, change in judged.items() if change.decided]
    assert {*told} == {*((row, "baseline") for row in rows), (best, "orig_aug")}
    assert (
        "above the baseline, by 2.5, 2.2 and 4.2 points (p = 0.002, 0.02, and below 0.001)" in page
    )
    gains = [judged[row, "baseline"] for row in rows]
    assert [round(100 * gain.mean, 1) for gain in gains] == [2.5, 2.2, 4.2]
    assert (round(gains[0].adjusted, 3), round(gains[1].adjusted, 2)) == (0.002, 0.02)
    assert gains[2].adjusted < 0.001
    assert "the paper's two best rows, by 1.7 (p = 0.049). It is 2.0 points above `bank`" in page
    over_paper, over_bank = judged[best, "orig_aug"], judged[best, "beyond/bank"]
    assert (round(100 * over_paper.mean, 1), round(over_paper.adjusted, 3)) == (1.7, 0.049)
    assert (round(100 * over_bank.mean, 1), round(over_bank.adjusted, 2)) == (2.0, 0.17)
    assert "and that is not significant (p = 0.17)" in page
    assert "`bank_often` has 1.8 of the 2.0" in page
    assert round(100 * judged["beyond/bank_often", "beyond/bank"].mean, 1) == 1.8
    assert "was 3.6 points or more above the baseline, which has 9.0" in page
    assert round(100 * min(gains[2].values), 1) == 3.6
    assert (
        round(100 * mean(results.values("baseline", "segm.small", results.seeds("baseline")))) == 9
    )
    assert "3.5 points below the baseline's with it (95% interval 2.3 to 4.7)" in page
    assert "with `bank` 1.8 (-1.3 to 4.8) and with `orig_aug` 1.5 (-1.0 to 4.0)" in page
    assert "lost 1.5 points in the mean with `orig_aug`, 1.8 with `beyond/bank` and 3.5" in recipe
    for row, said in (
        (best, (3.5, 2.3, 4.7)),
        ("beyond/bank", (1.8, -1.3, 4.8)),
        ("orig_aug", (1.5, -1.0, 4.0)),
    ):
        loss = above("baseline", row, "segm.large").difference(results)
        assert [round(100 * x, 1) for x in (loss.mean, *interval(loss.values))] == [*said]
    assert "1.5 (-1.0 to 4.0), in box AP 2.2 (0.4 to 4.0), which was not planned" in page
    loss = above("baseline", "orig_aug", "bbox.large").difference(results)
    assert [round(100 * x, 1) for x in (loss.mean, *interval(loss.values))] == [2.2, 0.4, 4.0]
    tables = judged_tables_on_scenes()[1]
    widths = [round(100 * gain.least, 1) for gain in gains]
    widths += [round(100 * tables[row, "baseline"].least, 1) for row in SHOWN]
    said = f"significant difference is {min(widths)} to {max(widths)} points on scenes"
    assert said in readme


def test_nothing_is_told_from_the_bank():
    page, readme = prose("docs/beyond.md"), prose("README.md")
    assert (
        "Of those that had [finals](#finals) none differs significantly from `bank` on any kind"
        in page
    )
    assert "beyond the paper nothing differs significantly from `beyond/bank` on any data" in readme
    assert len(FINALS) == 6
    for file in FINALS:
        judged = judged_by(file.parent / "plan.yaml", load_results(file))
        told = [rows for rows, change in judged.items() if change.decided]
        assert "beyond/bank" not in {base for _, base in told}


def test_what_analyze_advises_to_start_with_is_what_was_measured():
    text = prose("smallobj_d2/analysis/templates/report.txt")
    pair = "beyond/bank", "baseline"
    tables, scenes = judged_tables_on_scenes()
    results = load_results(EXPERIMENTS / "results" / "nuclei_tiny_torchvision.json")
    nuclei = judged_by(EXPERIMENTS / "plan.yaml", results)
    gains = {}
    for scale, first in (("tiny", tables), ("nuclei_tiny", results)):
        repeats = [judged_finals(folder, scale)[0] for folder in ("finals", "finals_medium")]
        order = [*repeats, first] if scale == "tiny" else [first, *repeats]
        each = [above(*pair).difference(one) for one in order]
        assert [len(gain.values) for gain in each] == ([6, 6, 5] if scale == "tiny" else [6] * 3)
        gains[scale] = [f"{100 * gain.mean:.1f}" for gain in each]
    assert gains["nuclei_tiny"] == ["2.1", "1.4", "2.5"]
    on_scenes = gains["tiny"]
    assert (
        f"raised AP of small objects by {min(on_scenes)} to {max(on_scenes)} points on synthetic "
        "scenes and by 1.4 to 2.5 on cell nuclei, in three sets of runs on each" in text
    )
    readme = prose("README.md")
    said = "by {}, {} and {} points in three sets of runs on synthetic scenes"
    assert said.format(*on_scenes) in readme
    assert "by 2.1, 1.4 and 2.5 in three sets of six runs on nuclei" in readme
    finals = {scale: judged_finals("finals", scale)[1][pair] for scale in gains}
    assert scenes[pair].decided
    assert finals["tiny"].decided
    assert nuclei[pair].decided
    assert not finals["nuclei_tiny"].decided
    for scale in gains:
        assert pair not in judged_finals("finals_medium", scale)[1]
    plan = prose("experiments/PLAN.md")
    assert "`aug` significant, p = 0.02, and `beyond/bank` not, +1.9 points and p = 0.06" in plan
    first = judged_by(EXPERIMENTS / "plan.yaml", results.keep(lambda _, seed: seed < 4))
    assert [row for (row, _), gain in first.items() if gain.decided] == ["aug"]
    assert round(first["aug", "baseline"].adjusted, 2) == 0.02
    early = first["beyond/bank", "baseline"]
    assert (round(100 * early.mean, 1), round(early.adjusted, 2)) == (1.9, 0.06)
    assert "where it was 73 of 415" in text
    assert "in 73 of the 415 images that have some" in prose("docs/beyond.md")
    for folder in ("finals", "finals_medium"):
        _, photographs = judged_finals(folder, "facade_tiny")
        assert not any(change.decided for change in photographs.values())
    ap = small("nuclei_boxes", "bbox")
    pairs = [*zip(ap["bank_boxes"], ap["baseline"], strict=True)]
    assert "In each of three runs on nuclei without their masks it was above the baseline" in text
    assert len(pairs) == 3
    assert all(bank > base for bank, base in pairs)


def test_what_is_said_of_the_finals_with_medium_objects_is_true():
    page = prose("docs/beyond.md")
    results, judged = judged_finals("finals_medium", "nuclei_tiny")
    row = "beyond/bank_often_soft_medium"
    gain, bank, orig = (judged[row, base] for base in ("baseline", "beyond/bank", "orig_aug"))
    assert "is significantly above the baseline, by 2.8 points (p < 0.001)" in page
    assert gain.decided
    assert round(100 * gain.mean, 1) == 2.8
    assert gain.adjusted < 0.001
    assert "in each seed by 2.1 to 3.9" in page
    assert [round(100 * end(gain.values), 1) for end in (min, max)] == [2.1, 3.9]
    assert "AP of them is 2.2 points above the baseline (95% interval +0.5 to +3.9" in page
    medium = above(row, "baseline", "segm.medium").difference(results)
    assert round(100 * medium.mean, 1) == 2.2
    assert [points(x) for x in interval(medium.values)] == ["+0.5", "+3.9"]
    assert "Against `bank` (+0.3, p = 0.61) and `orig_aug` (+0.1, p = 0.75)" in page
    for change, said in ((bank, ("+0.3", 0.61)), (orig, ("+0.1", 0.75))):
        assert not change.decided
        assert (points(change.mean), round(change.adjusted, 2)) == said


def test_what_is_said_of_medium_objects_on_scenes_and_photographs_is_true():
    page = prose("docs/beyond.md")
    results, judged = judged_finals("finals_medium", "tiny")
    row = "beyond/bank_often_soft_medium"
    assert "it is significantly above the baseline, too, by 3.0 points (p < 0.001)" in page
    assert [rows for rows, change in judged.items() if change.decided] == [(row, "baseline")]
    gain = judged[row, "baseline"]
    assert (round(100 * gain.mean, 1), gain.adjusted < 0.001) == (3.0, True)
    assert "not above `bank` (+0.1, p = 0.89) or `orig_aug` (+0.3, p = 0.53)" in page
    for base, said in (("beyond/bank", ("+0.1", 0.89)), ("orig_aug", ("+0.3", 0.53))):
        change = judged[row, base]
        assert (points(change.mean), round(change.adjusted, 2)) == said
    assert "gained 2.5 points over the baseline there (95% interval +1.0 to +4.0)" in page
    assert "and large ones lost 2.2 (0.4 to 4.0)" in page
    for size, said in (("medium", [2.5, 1.0, 4.0]), ("large", [-2.2, -4.0, -0.4])):
        change = above(row, "baseline", f"segm.{size}").difference(results)
        assert [round(100 * x, 1) for x in (change.mean, *interval(change.values))] == said
    assert "On photographs no comparison is significant, that of `bank_nested` included." in page
    results, judged = judged_finals("finals_medium", "facade_tiny")
    assert len(judged) == 6
    assert not any(change.decided for change in judged.values())


# --- Tables of README and docs


def rows_under(page: str, header: str) -> list[list[str]]:
    """The cells of a table's rows, the first without its code marks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (table,) = (part for part in text.split("\n\n") if part.startswith(header))
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [[first.strip(" `"), *(cell.strip() for cell in cells)] for first, *cells in rows]


def test_the_readme_has_the_figures_of_the_results():
    results = None
    rows = rows_under("README.md", "| | data | AP_S |")
    assert len(rows) > 8
    for row, data, *cells in rows:
        if scale := re.search(r"`--scale (\w+)`, (\d) seeds", data):
            folder = "finals" if "beyond.md#finals" in data else "results"
            results = load_results(EXPERIMENTS / folder / f"{scale[1]}_torchvision.json")
            assert len(results.seeds("baseline")) == int(scale[2])
        assert cells == against(results, row, "baseline", MASKS[:3])


TABLES = {
    "| synthetic scenes | seeds |": (
        "docs/beyond.md",
        "tiny",
        (*MASKS[:3], "bbox.small", "bbox.large"),
    ),
    "| dsb2018 | seeds |": (
        "docs/beyond.md",
        "nuclei_tiny",
        (*MASKS[:2], "bbox.small", "bbox.medium"),
    ),
    "| config | mask AP small | medium | all | box AP small |": (
        "docs/recipe.md",
        "nuclei_tiny",
        [metric for metric in (*MASKS, *BOXES) if not metric.endswith("large")],
    ),
}


@pytest.mark.parametrize("header", TABLES)
def test_tables_in_docs_have_the_figures_of_the_results(header):
    page, scale, metrics = TABLES[header]
    results = load_results(EXPERIMENTS / "results" / f"{scale}_torchvision.json")
    rows = rows_under(page, header)
    assert rows[0][0] == "baseline"
    for row, *cells in rows:
        if "seeds" in header:
            assert int(cells.pop(0)) == len(results.seeds(row))
        assert cells == against(results, row, "baseline", metrics)
