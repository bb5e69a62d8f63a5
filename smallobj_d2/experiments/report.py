"""What was measured beside what was published, as a document."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from smallobj_d2.analysis.advice import NEARLY_ALL
from smallobj_d2.analysis.table2 import PUBLISHED, side_by_side
from smallobj_d2.analysis.table2 import Table as Table2
from smallobj_d2.evaluation.ap import SIZES, TITLES
from smallobj_d2.experiments import figures
from smallobj_d2.experiments.claims import Status, Verdict, interval, judge, spread
from smallobj_d2.experiments.document import Document, Picture, Table
from smallobj_d2.experiments.paper import Claim, Paper
from smallobj_d2.experiments.results import KINDS, Results
from smallobj_d2.experiments.scales import AUGMENTED_VAL, SCENES
from smallobj_d2.experiments.sweep import clock

COCO_VAL = "coco_2017_val"
_NONE = "-"
_TONES = {Status.HOLDS.value: "good", Status.FAILS.value: "bad", Status.UNMEASURED.value: "none"}


def build_report(paper: Paper, results: Sequence[Results]) -> Document:
    """The report on one or several scales and engines.

    Args:
        paper: what was published.
        results: what was measured; not every row need be there, nor every seed.
    """
    document = Document("The paper's tables, rerun")
    document.text(
        "Made by `tools/report.py` from the runs of `tools/reproduce.py`. The paper is Kisantal et "
        "al., *Augmentation for small object detection* (2019); its numbers are those of "
        "`experiments/paper.yaml`, one run on COCO each."
    )
    for one in results:
        _experiment(document, paper, one)
    return document


def _experiment(document: Document, paper: Paper, results: Results) -> None:
    about = results.about
    document.heading(f"Scale {about['scale']}, engine {about['engine']}")
    document.add(_facts(results))
    if results.failed:
        document.text("Runs that failed, and are in no table:")
        document.add([f"{f['config']} seed {f['seed']}: {f['why']}" for f in results.failed])
    _overview(document, paper, results)
    _conclusions(document, paper, results)
    _pictures(document, paper, results)
    for number, content in paper.tables.items():
        _table(document, paper, results, number, content)
    _pasted(document, paper, results)
    if results.table2:
        _training_images(document, results.table2)


def _facts(results: Results) -> list[str]:
    about = results.about
    trained = {key: s for key, s in results.seconds.items() if "@" not in key[0]}
    count = Counter(row for row, _ in trained)
    seeds = sorted(set(count.values()))
    span = _number(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    each = float(np.median([*trained.values()]))
    schedule = about["schedule"]
    truth = about["ground_truth"].get("validation", {})
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    objects = ", ".join(f"{truth[s]:,} {s}" for s in SIZES[:3] if s in truth)
    facts = [
        f"What: {about['text']}; {schedule['iterations']:,} iterations of {schedule['images']} "
        "images for each row.",
        f"Runs: {_number(len(trained), 'run')} of {_number(len(count), 'row')}, {span} each.",
        f"Cost: {clock(each)} for a run (median), {clock(sum(results.seconds.values()))} for all, "
        f"on {' and '.join(about['device']) or 'an unknown machine'}.",
        f"Versions: {versions}.",
    ]
    named = f"Validation: {about['validation']}"
    return [*facts, f"{named}, with {objects} objects." if objects else f"{named}."]


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _training_images(document: Document, tables: Sequence[Table2]) -> None:
    data, small = tables[0].data, tables[0].rows["small"]
    document.heading("The training images, by Table 2", 3)
    text = (
        "The paper's protocol puts all anchors on one grid of the original image; `training` is "
        "what the network of these runs sees."
    )
    if data in SCENES:
        made = "The scenes are made to resemble COCO in these shares, and were not changed for the "
        text = f"{made}outcome. {text}"
    elif small.image_share > NEARLY_ALL:
        text += (
            f" Of {tables[0].images:,} images {small.images:,} have small objects, so oversampling "
            "them makes an epoch longer and little else."
        )
    document.text(text)
    named = [replace(t, data=f"{data}, {t.protocol} protocol") for t in tables]
    header, rows = side_by_side([PUBLISHED, *named])
    document.add(Table(header, rows, text=2))


# --- All rows at a glance


def _overview(document: Document, paper: Paper, results: Results) -> None:
    """Every row against the baseline (without one, the first row), and no numbers of the paper."""
    known = [row for row in paper.configs() if results.seeds(row)]
    others = [row for row in results.rows if row not in known and "@" not in row]
    rows = [*known, *others]
    if len(rows) < 2:
        return
    called = "the baseline" if rows[0] == "baseline" else f"`{rows[0]}`"
    document.heading(f"Every row against {called}", 3)
    _against(document, results, rows, rows[0], called)
    if not known or not others:
        return
    best = max(known, key=lambda row: float(np.mean(results.values(row, "segm.small") or [-1])))
    if best != rows[0]:
        document.heading("Beyond the paper", 3)
        document.text(
            f"The same against `{best}`, the paper's row with the highest mask AP_S here."
        )
        _against(document, results, [best, *others], best, f"`{best}`")


def _against(
    document: Document, results: Results, rows: Sequence[str], base: str, called: str
) -> None:
    for kind in KINDS:
        body = [
            [f"`{row}`", str(len(results.seeds(row)))]
            + [_measured(results, row, base, f"{kind}.{size}") for size in SIZES]
            for row in rows
        ]
        document.add(Table([TITLES[kind], "Seeds", *SIZES], body))
    document.text(f"{_HOW_TO_READ} {called}, in bold where its 95% interval leaves out zero.")


_HOW_TO_READ = (
    "AP in points (hundredths): mean ± standard deviation over seeds. In brackets stands the "
    "difference to"
)


# --- Conclusions


def _conclusions(document: Document, paper: Paper, results: Results) -> None:
    document.heading("The paper's conclusions", 3)
    rows = []
    count: Counter[str] = Counter()
    waiting = sizeless = 0
    for claim in paper.claims:
        verdicts = {m: judge(claim, m, results) for m in claim.metrics}
        if all(v.status is Status.UNMEASURED for v in verdicts.values()):
            if all(v.missing for v in verdicts.values()):
                waiting += 1
            else:
                sizeless += 1
            continue
        for at, (metric, verdict) in enumerate(verdicts.items()):
            count[verdict.status.value] += 1
            rows.append(
                [
                    claim.section if at == 0 else "",
                    claim.text if at == 0 else "",
                    _metric_name(metric),
                    "yes" if claim.holds(paper.ap, metric) else "no",
                    verdict.status.value,
                    _margin(claim, verdict),
                    str(verdict.seeds),
                ]
            )
    said = [f"{s.value}: {count[s.value]}" for s in Status if count[s.value]]
    if sizeless:
        said.append(f"{_number(sizeless, 'conclusion')} about sizes that no validation object has")
    if waiting:
        said.append(f"{waiting} conclusions wait for rows that were not run")
    document.text("; ".join(said).capitalize() + ".")
    if results.about["validation"] != COCO_VAL:
        document.text(
            f"The paper's conclusions are about COCO. Here they are judged on "
            f"{results.about['validation']}, by differences between rows; the level of AP has "
            "nothing to compare with."
        )
    header = ["Section", "Conclusion", "AP", "In the paper's tables", "Here", "Margin", "Seeds"]
    tones = {**_TONES, "no": "bad"}
    if not rows:
        return
    document.add(Table(header, rows, text=3, long=(1,), tones=tones))
    document.text(
        "The margin is by how much a conclusion holds, in AP points (hundredths of AP), or in per "
        "cent for a gain; where it makes several comparisons, it is that of the weakest. Behind it "
        "stands the 95% interval of its mean, by Student's t over seeds. Rows are compared in "
        "pairs of one seed, which share their initial weights. A conclusion **holds** if that "
        "interval is above zero for each of its comparisons; it **does not hold** if it is below "
        "zero for any, the level being shared among them (Bonferroni). Everything else is **not "
        "decided** with so many seeds. Where the best of several rows is meant, each seed takes "
        "its own best."
    )


def _metric_name(metric: str) -> str:
    kind, size = metric.split(".")
    return f"{'mask' if kind == 'segm' else 'box'}, {size}"


def _margin(claim: Claim, verdict: Verdict) -> str:
    if math.isnan(verdict.mean):
        return _NONE
    unit = " %" if claim.relation == "gain" else ""
    text = f"{_signed(100 * verdict.mean)}{unit}"
    if math.isnan(verdict.low):
        return text
    return f"{text} [{_signed(100 * verdict.low)}, {_signed(100 * verdict.high)}]"


def _signed(points: float) -> str:
    """A difference with its sign, which zero does not have."""
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


# --- Pictures


def _pictures(document: Document, paper: Paper, results: Results) -> None:
    name = f"{results.about['scale']}_{results.about['engine']}"
    if len(results.rows) < 2:
        return
    caption = (
        "Mask AP of small against large objects. Up is better for small objects, to the right for "
        "large ones; bars are standard errors over seeds, the dotted line is the baseline."
    )
    if any(results.values(row, "segm.large") for row in results.rows):
        svg = figures.trade_off(paper, results, "segm")
        document.add(Picture(f"{name}_trade_off", svg, caption))
    tables = [row["config"] for t in (5, 6, 7) for row in paper.tables[t]["rows"][1:]]
    if any(results.seeds(row) for row in tables):
        caption = "Mask AP of small objects by how often each chosen object is pasted."
        svg = figures.copies(paper, results, "segm")
        document.add(Picture(f"{name}_copies", svg, caption))


# --- Tables


def _table(
    document: Document, paper: Paper, results: Results, number: int, content: dict[str, object]
) -> None:
    """A table of the paper, its numbers beside the measured ones; left out if it has none."""
    every: list[dict[str, str]] = content["rows"]  # type: ignore[assignment]
    lines = [line for line in every if results.seeds(line["config"])]
    if lines in ([], every[:1]):
        return
    base = every[0]["config"]
    document.heading(f"Table {number}: {content['title']}", 3)
    for kind in KINDS:
        header = [TITLES[kind], "Seeds"]
        for size in SIZES:
            header += [f"{size}: paper", "measured"]
        rows = []
        for line in lines:
            config = line["config"]
            row = [line["row"], str(len(results.seeds(config)))]
            for size in SIZES:
                metric = f"{kind}.{size}"
                row.append(_published(paper, config, base, metric))
                row.append(_measured(results, config, base, metric))
            rows.append(row)
        document.add(Table(header, rows))
    text = f"{_HOW_TO_READ} {every[0]['row']}, in bold where its 95% interval leaves out zero."
    if absent := [line["row"] for line in every if line not in lines]:
        text += f" Not run: {', '.join(absent)}."
    document.text(text)


def _published(paper: Paper, config: str, base: str, metric: str) -> str:
    ap = paper.ap(config, metric)
    if config == base:
        return f"{100 * ap:.1f}"
    return f"{100 * ap:.1f} ({_signed(100 * (ap - paper.ap(base, metric)))})"


def _measured(results: Results, config: str, base: str, metric: str) -> str:
    values = results.values(config, metric)
    if not values:
        return _NONE
    text = f"{100 * np.mean(values):.1f}"
    if len(values) > 1:
        text += f" ±{100 * spread(values):.1f}"
    differences = results.differences(config, base, metric)
    if config == base or not differences:
        return text
    low, high = interval(differences)
    change = f"({_signed(100 * float(np.mean(differences)))})"
    return f"{text} **{change}**" if low > 0 or high < 0 else f"{text} {change}"


def _pasted(document: Document, paper: Paper, results: Results) -> None:
    """Section 6.2: rows that are evaluated on the augmented validation set, too."""
    there = [row for row in results.rows if row.endswith(f"@{AUGMENTED_VAL}")]
    if not there:
        return
    document.heading("Section 6.2: evaluated where small objects are pasted", 3)
    header = ["Mask AP of small objects", "Seeds", "paper", "paper, pasted", "paper, gain"]
    header += ["measured", "measured, pasted", "measured, gain"]
    rows = []
    for name in there:
        config = name.partition("@")[0]
        line = [config, str(len(results.seeds(name, config)))]
        pair = [
            paper.numbers[c].get("segm.small") if c in paper.numbers else None
            for c in (config, name)
        ]
        line += _gain(pair[0], pair[1])
        aps = [results.values(c, "segm.small") for c in (config, name)]
        means = [float(np.mean(v)) if v else None for v in aps]
        line += _gain(means[0], means[1])
        rows.append(line)
    document.add(Table(header, rows))
    document.text(
        "The validation images with the pastes of `configs/aug.yaml`. The paper takes the gain of "
        "its row for a sign that the model has learned to see pasted objects. The baseline, which "
        "saw none, is the control: its gain is what these images are easier by."
    )


def _gain(before: float | None, after: float | None) -> list[str]:
    cells = [_NONE if ap is None else f"{100 * ap:.1f}" for ap in (before, after)]
    if before and after is not None:
        return [*cells, f"{100 * (after / before - 1):+.0f} %"]
    return [*cells, _NONE]
