"""Recompute the numbers of a folder's report.md from its results JSON, without smallobj_d2.

    python -m proofs.recompute experiments/results

The folder has SCALE_ENGINE.json files, perhaps an .npz beside each, and report.md; plan.yaml and
paper.yaml are in it or in the folder above. What a cell should be is made anew by the rules in
PLAN.md and in the report's own text, and compared with what stands there: means, deviations and
differences over common seeds; t intervals, p, Holm's correction, what is bold; smallest
significant differences; trends and contrasts; intervals over images (made anew where there is an
.npz); verdicts and margins of the paper's conclusions; AP by size, Table 2; and the figures in
sentences, whose words may differ. Not checked: pictures, names of devices and versions.

Prints how many cells of each kind were checked, and each that differs; the exit status is 1 when
one does. A number at a tie of rounding may stand there either way, and is written <0.1|0.2>.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from scipy import stats

ALPHA = 0.05
SIZES = ("small", "medium", "large", "all")
KIND = {"segm": "mask", "bbox": "box"}
TITLES = {"Segmentation AP": "segm", "Detection AP": "bbox"}
SMALL = "segm.small"
AP = dict[tuple[str, str], dict[int, float]]  # of a row and a measure, in points, for each seed
Weights = dict[tuple[str, str], float]
checked: Counter[str] = Counter()
differ: list[str] = []


def check(kind: str, where: str, expected: str, shown: str) -> None:
    """Count a cell, and note it if it is not as expected."""
    checked[kind] += 1
    pattern = re.sub(r"<(\S*?)\\\|(\S*?)>", r"(?:\1|\2)", re.escape(expected))
    if not re.fullmatch(pattern, shown.replace("&#60;", "under")):
        differ.append(f"{kind}: {where}\n    recomputed  {expected}\n    report has  {shown}")


def check_all(kind: str, where: str, expected: Sequence[str], shown: Sequence[str]) -> None:
    for left, right in zip(expected, shown, strict=True):
        check(kind, where, left, right)


def found(text: str, pattern: str) -> str:
    match = re.search(pattern, text, re.M)
    return match[1] if match else ""


def figures(text: str) -> str:
    """Numbers, seeds and rows of a sentence, and what it says of the evidence."""
    words = r"(?:not )?(?:planned|significant)\b|chance|interim|(?<=`)\w\S*(?=`)"
    numbers = r"[+-]?\d+(?:[.,:]\d+)*(?:-\d+)?(?:e-\d+)?"
    return " ".join(re.findall(rf"{words}|(?<![\w+-]){numbers}", text.replace("95%", "")))


def points(value: float, sign: str = "", beside: Sequence[float] = ()) -> str:
    """One decimal, or two where that would make this or one beside it zero; at a tie both texts."""

    def show(x: float) -> str:
        places = 1 + any(0.005 <= abs(y) < 0.05 for y in (x, *beside))
        text = f"{x:{sign}.{places}f}"
        return text if float(text) else f"{0:.{places}f}"

    if np.isnan(value):
        return "-"
    low, high = show(value - 1e-9), show(value + 1e-9)
    return low if low == high else f"<{low}|{high}>"


def p_text(p: float) -> str:
    return "-" if np.isnan(p) else "under 0.001" if p < 0.001 else f"{p:.3f}"


def percent(part: float, whole: float) -> str:
    text = "-" if np.isnan(part / whole) else f"{100 * (part / whole - 1):+.0f} %"
    return "0 %" if text in ("+0 %", "-0 %") else text


def span(low: float, high: float, mean: float) -> str:
    both = (points(x, "+", (low, high, mean)) for x in (low, high))
    return "-" if np.isnan(low) else " to ".join(both)


def side(low: float, high: float) -> int:
    """On which side of zero an interval is, 0 if on none."""
    return (low > 0) - (high < 0)


def clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def seeds_text(seeds: Iterable[int]) -> str:
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and ranges[-1][-1] == seed - 1:
            ranges[-1].append(seed)
        else:
            ranges.append([seed])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges)


class Sample:
    """Points of single seeds."""

    def __init__(self, by_seed: dict[int, float]) -> None:
        self.seeds, self.x, self.n = set(by_seed), np.array([*by_seed.values()]), len(by_seed)
        self.mean = float(self.x.mean()) if self.n else np.nan
        self.sd = float(self.x.std(ddof=1)) if self.n > 1 else np.nan
        self.text = points(self.mean, "+")

    @property
    def p(self) -> float:
        return float(stats.ttest_1samp(self.x, 0).pvalue) if self.n > 1 else np.nan

    def least(self, alpha: float = ALPHA) -> float:
        """The smallest mean that is significant, which is half the interval, too."""
        t = stats.t.ppf(1 - alpha / 2, self.n - 1) if self.n > 1 else np.nan
        return float(t * self.sd / np.sqrt(max(self.n, 1)))

    def could_show(self, alpha: float = ALPHA) -> str:
        return points(self.least(alpha)) if self.n >= 3 else "-"

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        return self.mean - self.least(alpha), self.mean + self.least(alpha)

    def with_interval(self, alpha: float = ALPHA) -> tuple[str, str]:
        ends = self.interval(alpha)
        return points(self.mean, "+", ends), span(*ends, self.mean)


def with_most_seeds(gains: dict[str, Sample]) -> dict[str, Sample]:
    """Those that may be the best: with three seeds, or as many as any."""
    enough = min(3, max((gain.n for gain in gains.values()), default=0))
    return {row: gain for row, gain in gains.items() if gain.n >= enough}


def weighted(ap: AP, weights: Weights) -> Sample:
    """The weighted sum of rows, over the seeds that all have."""
    each = [ap.get(key, {}) for key in weights]
    common = sorted(set.intersection(*map(set, each)))
    return Sample({s: float(np.dot([v[s] for v in each], [*weights.values()])) for s in common})


def slope(rows: list[str], measure: str, at: list[int]) -> Weights:
    x = np.array(at) - np.mean(at)
    return {(r, measure): float(w) for r, w in zip(rows, x / (x**2).sum(), strict=True)}


def holm(p: list[float]) -> list[tuple[float, float]]:
    """Each p (1 for nan) corrected, and at what level it would pass, the others as they are."""
    p = [1.0 if np.isnan(x) else x for x in p]
    result = []
    for i, own in enumerate(p):
        steps = [(len(p) - rank) * x for rank, x in enumerate(sorted(p)) if x <= own]
        others, passed = sorted(p[:i] + p[i + 1 :]), 0
        while passed < len(others) and others[passed] < ALPHA / (len(p) - passed):
            passed += 1
        result.append((min(1.0, max(steps)), ALPHA / (len(p) - passed)))
    return result


def measures(run: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    for part, size in product([k for k in KIND if k in run], SIZES):
        yield f"{part}.{size}", run[part][size]
    if "by_size" in run:
        for x in run["by_size"]["pixels"]:
            yield f"pixels {x['from']}", x["AP"]
        yield "small: AP50", run["by_size"]["small"]["AP50"]
        yield "small: recall", run["by_size"]["small"]["AR"]
    yield "iteration", run.get("iteration")


def row_of(run: dict[str, Any]) -> str:
    return f"{run['config']}@{run['dataset']}" if "dataset" in run else run["config"]


class Scale:
    """A results file, and what the plan says of it."""

    def __init__(self, path: Path, plan: dict[str, Any], order: list[str]) -> None:
        self.path, self.plan = path, plan
        self.data = json.loads(path.read_text(encoding="utf-8"))
        self.about = self.data["about"]
        self.name, self.where = self.about["validation"], self.about["scale"]
        own = plan["scales"].get(self.where, {"seeds": [], "rows": []})
        self.planned_rows, more = {*own["rows"]}, own.get("more_seeds", [])
        self.asked = {*product(own["rows"], own["seeds"])}
        dated = {(row_of(run), run["seed"]) for run in self.data["runs"] if "commit" in run}
        more = [seed for seed in more if {*product(own["rows"], [seed])} <= dated]  # complete ones
        self.planned = dated & (self.asked | {*product(own["rows"], more)})
        out = {(r, s) for r, s in dated - self.planned if r in self.planned_rows and self.planned}
        self.runs = [run for run in self.data["runs"] if (row_of(run), run["seed"]) not in out]
        self.trained = [run for run in self.runs if "dataset" not in run]
        rows = sorted({run["config"] for run in self.trained})
        self.rows = sorted(rows, key=lambda r: order.index(r) if r in order else len(order))
        self.base, *self.others = self.rows
        self.beyond = [row for row in self.rows if row.startswith("beyond/")]
        self.like_paper = self.name.startswith(("scenes", "coco"))  # it has the paper's tables
        self.ap: AP = {}
        for run in self.runs:
            for measure, value in measures(run):
                if value is not None:
                    self.ap.setdefault((row_of(run), measure), {})[run["seed"]] = 100 * value
        self.passes: dict[tuple[str, str, str], tuple[float, float]] = {}
        for family in plan.get("families", []):
            pairs = [(r, family["base"]) for r in family["rows"]]
            pairs = [pair for pair in pairs if {*pair} <= self.planned_rows]
            p = [self.gain(*pair).p if self.is_planned(*pair) else np.nan for pair in pairs]
            self.passes |= zip([(family["name"], *pair) for pair in pairs], holm(p), strict=True)

    def gain(self, row: str, base: str, measure: str = SMALL) -> Sample:
        return weighted(self.ap, {(row, measure): 1, (base, measure): -1})

    def is_planned(self, *rows: str) -> bool:
        seeds = weighted(self.ap, {(row, "segm.all"): 0 for row in rows}).seeds
        return bool(seeds) and {*product(rows, seeds)} <= self.planned

    def families(self, row: str, base: str) -> list[str]:
        names = [name for name, *pair in self.passes if pair == [row, base]]
        return names if self.is_planned(row, base) else []

    def holm_p(self, row: str, base: str, family: str | None = None) -> float:
        """The largest of all families, if none is given."""
        names = [family] if family else self.families(row, base)
        p = [self.passes[name, row, base][0] for name in names]
        return max(p, default=np.nan) if self.gain(row, base).n > 1 else np.nan

    def bold(self, text: str, row: str, base: str, family: str | None = None) -> str:
        passed = self.gain(row, base).n >= 3 and self.holm_p(row, base, family) < ALPHA
        return f"**{text}**" if passed else text

    def cell(
        self, row: str, base: str, seeds: set[int], measure: str, family: str | None = None
    ) -> str:
        """Mean, deviation and the difference to `base`, in bold if that is significant."""
        values = self.ap.get((row, measure), {})
        sample = Sample({seed: values[seed] for seed in seeds & values.keys()})
        spread = f" ±{points(sample.sd)}" if "." in measure and sample.n > 1 else ""
        if row == base or not sample.n:
            return points(sample.mean) + spread
        gain = f"({self.gain(row, base, measure).text})"
        gain = self.bold(gain, row, base, family) if measure == SMALL else gain
        return f"{points(sample.mean)}{spread} {gain}"

    def over_images(self, row: str, base: str) -> tuple[float, float, set[int]] | None:
        for x in self.data.get("over_images", []):
            if (x["row"], x["base"]) == (row, base):
                return 100 * x["low"], 100 * x["high"], set(x["seeds"])
        return None

    def alike(self, base: str, rows: list[str]) -> str:
        """Which rows are on one side of `base` in each seed."""
        parts = []
        for size, (word, sign) in product(SIZES[:3], (("above", 1), ("below", -1))):
            gains = {row: self.gain(row, base, f"segm.{size}") for row in rows if row != base}
            names = [row for row, g in gains.items() if g.n >= 3 and (sign * g.x > 0).all()]
            parts += [f"for {size} objects {word} {base}: {', '.join(names)}"] if names else []
        return "; ".join(parts)

    def trends(self, paper: AP) -> Iterator[tuple[str, str, Sample, list[str]]]:
        """Of each trend and contrast with results: kind, label, sample and cells."""
        for kind in ("trends", "contrasts"):
            family: dict[str, tuple[Weights, bool]] = {}
            for x in self.plan.get(kind, []):
                weights = {(r, x["measure"]): 1.0 for r in x.get("plus", [])}
                weights |= {(r, x["measure"]): -1.0 for r in x.get("minus", [])}
                weights |= slope(x["rows"], x["measure"], x["at"]) if "at" in x else {}
                rows = [row for row, _ in weights]
                if {*rows} <= self.planned_rows:
                    part, size = x["measure"].split(".")
                    label = f"{x['name']}{', slope' * ('at' in x)} ({KIND[part]}, {size})"
                    family[label] = weights, self.is_planned(*rows)
            each = [(weighted(self.ap, w), planned) for w, planned in family.values()]
            passes = holm([t.p if planned else np.nan for t, planned in each])
            for label, (t, planned), (p, level) in zip(family, each, passes, strict=True):
                mark = "**" * (planned and t.n >= 3 and p < ALPHA)
                holm_p = p_text(p if t.n > 1 else np.nan) if planned else "exploratory"
                mean, ends = t.with_interval()
                cells = [seeds_text(t.seeds), mark + mean + mark, ends]
                cells += [weighted(paper, family[label][0]).text, p_text(t.p), holm_p]
                if t.n:
                    yield kind, label, t, [*cells, t.could_show(level)]


def ways_to_hold(claim: dict[str, Any], metric: str) -> list[list[Weights]]:
    """Each way has comparisons that must all be above zero."""
    rows, than = claim["rows"], claim.get("than", [])
    pairs = [((r, metric), (t, metric)) for r, t in product(rows, than)]
    match claim["relation"]:
        case "above":
            return [[{r: 1, t: -1} for r, t in pairs]]
        case "below":
            return [[{t: 1, r: -1} for r, t in pairs]]
        case "best":
            return [[{r: 1, t: -1} for r, t in pairs if r[0] == row] for row in rows]
        case "gain":
            return [[{r: 1, t: -(1 + claim["value"] - 0.005)} for r, t in pairs]]
        case "falling":
            return [[{key: -w for key, w in slope(rows, metric, [*range(len(rows))]).items()}]]
        case "changes_less":
            other = f"{metric.split('.')[0]}.{claim['size']}"
            return [
                [
                    {(r, other): up, (t, other): -up, (r, metric): own, (t, metric): -own}
                    for (r, t), up in zip(product(rows, than), ups, strict=True)
                    for own in (1, -1)
                ]
                for ups in product((1, -1), repeat=len(pairs))
            ]
    raise ValueError(claim["relation"])


class Verdict:
    """On one conclusion, by one metric, over the seeds that all of its rows have."""

    def __init__(self, ap: AP, claim: dict[str, Any], metric: str) -> None:
        weights = ways_to_hold(claim, metric)
        n = len(seeds := weighted(ap, {key: 0 for way in weights for w in way for key in w}).seeds)
        common = {key: {seed: x[seed] for seed in seeds & x.keys()} for key, x in ap.items()}
        ways = [[weighted(common, w) for w in way] for way in weights]
        part, size = metric.split(".")
        self.claim, self.text, self.measure = claim, "not measured", f"{KIND[part]}, {size}"
        self.has_rows = all((r, f"{part}.all") in ap for r in claim["rows"] + claim.get("than", []))
        if not n:
            return
        self.text, alpha, fails = "not decided", ALPHA / len(ways), ALPHA / len(ways[0])

        def low(sample: Sample) -> float:
            return sample.interval(alpha)[0] if n > 1 else sample.mean

        def high(sample: Sample) -> float:
            return sample.interval(fails)[1] if n > 1 else sample.mean

        self.sample = max((min(way, key=low) for way in ways), key=low)
        worst = max((min(way, key=high) for way in ways), key=high)
        self.could_show = self.sample.could_show(alpha)
        if n >= 3 and low(self.sample) > 0:
            self.text, self.could_show = "holds", "-"
        elif n >= 3 and high(worst) < 0:
            self.text, self.could_show = "does not hold", "-"
            self.sample, alpha = worst, fails
        mean, ends = self.sample.with_interval(alpha)
        self.margin = f"{mean} ({ends})" if n > 1 else mean


def tables(text: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Heading, header and rows of each table of a section."""
    heading = ""
    for block in text.split("\n\n"):
        heading = block.strip()[4:] if block.strip().startswith("### ") else heading
        if block.startswith("|"):
            lines = block.strip().split("\n")
            cells = [[c.strip() for c in line[1:-1].split("|")] for line in lines]
            yield heading, cells[0], cells[2:]


class Report:
    def __init__(self, folder: Path) -> None:
        def upward(name: str) -> Any:
            path = next(p for p in (folder / name, folder.parent / name) if p.exists())
            return yaml.safe_load(path.read_text(encoding="utf-8"))

        self.paper, plan = upward("paper.yaml"), upward("plan.yaml")
        self.ap: AP = {}
        for x in (row for table in self.paper["tables"].values() for row in table["rows"]):
            for part, (i, size) in product(KIND, enumerate(SIZES)):
                self.ap[x["config"], f"{part}.{size}"] = {0: 100 * x[part][i]}
        order = list(dict.fromkeys(row for row, _ in self.ap))
        for x in self.paper["elsewhere"]:
            self.ap[f"{x['config']}@{x['dataset']}", SMALL] = {0: 100 * x["segm"]["small"]}
        claims = [(c, metric) for c in self.paper["claims"] for metric in c["metrics"]]
        self.scales = [Scale(path, plan, order) for path in sorted(folder.glob("*_*.json"))]
        text = (folder / "report.md").read_text(encoding="utf-8")
        top, *sections = re.split(r"^## ", text, flags=re.M)
        self.verdicts = {s.where: [Verdict(s.ap, *c) for c in claims] for s in self.scales}
        self.of_paper = [Verdict(self.ap, *claim) for claim in claims]
        for s in self.scales:
            name = f"{s.name}: scale {s.where}, engine {s.about['engine']}\n"
            start = f"**{s.name}** (scale {s.where}, {s.about['engine']}): "
            answer = next(x for x in re.split(r"\n\* (?=\*\*)", top) if x.startswith(start))
            section = next(x for x in sections if x.startswith(name))
            self.answer(s, answer[len(start) :])
            self.facts(s, section)
            self.how_sure(s, section)
            self.conclusions(s, section.partition("### The paper's con")[2].partition("\n### ")[0])
            for heading, header, rows in tables(section):
                self.table(s, f"{s.where}, {heading}", header, rows)
            self.images(s)
        for _, header, rows in tables(next((x for x in sections if x.startswith("Side by")), "")):
            self.side_by_side(header, rows)

    def answer(self, s: Scale, text: str) -> None:
        """The sentences at the top."""
        where = f"{s.where}, answer"
        gains = {row: s.gain(row, s.base) for row in s.others}
        enough = with_most_seeds(gains)
        best = max(enough, key=lambda row: enough[row].mean)
        gain, timed = gains[best], s.gain(best, s.base, "iteration").seeds
        least = min(3, max(gain.n for gain in gains.values()))
        parts = [best, *[str(least)] * (len(enough) < len(gains))]
        for size in ("small", "medium", "large"):
            change = s.gain(best, s.base, f"segm.{size}")
            mean, ends = change.with_interval()
            parts += [mean] * bool(change.n) + ends.split(" to ") * (change.n > 1)
            parts += [s.base] * (size == "small")
        ratios = [s.ap[best, "iteration"][i] / s.ap[s.base, "iteration"][i] for i in timed]
        parts += [f"{median(ratios):.2f}", seeds_text(timed).replace(",", "")] if timed else []
        parts = parts if gain.mean > 0 else [s.base]  # no row is above it
        p, done = s.holm_p(best, s.base), len(s.planned & s.asked)
        parts += [str(gain.n), seeds_text(gain.seeds).replace(",", "")]
        parts.append("planned" if s.families(best, s.base) else "not planned")
        if gain.n == 1 or (parts[-1] == "not planned" and gain.p >= ALPHA):
            parts.append("chance")
        elif parts[-1] == "planned" and gain.n > 2:  # two decide nothing
            parts += ["significant" if p < ALPHA else "not significant", f"{p:.3g}"]
            parts += ["interim", f"{done}", f"{len(s.asked)} planned"] * (done < len(s.asked))
        check("sentence", f"{where}, best row", " ".join(parts), figures(text.split("\n")[0]))
        note = s.plan["scales"].get(s.where, {}).get("note", "")
        shown_note = found(text, r"^\* About \w+: (.*)")
        check("sentence", f"{where}, note", figures(note), figures(shown_note))
        bold = [
            f"{row} {s.gain(row, base).text} against {base}"
            for row, base in {(row, base) for _, row, base in s.passes} - {(best, s.base)}
            if s.bold("", row, base)
        ]
        trends = [(label.rpartition(" (")[0], x[1]) for _, label, _, x in s.trends(self.ap)]
        bold += [f"{name} {x.strip('*')}" for name, x in trends if "*" in x]
        lists = found(text, r"^\* Planned, and significant on .*points: (.*)\.$")
        shown = [x.partition(", against ") for x in lists.split("; ") if x]
        flat = [
            f"{r} against {b}" if b else r for x, _, b in shown for r in re.split(", (?!slope)", x)
        ]
        check("sentence", f"{where}, bold", str(sorted(bold)), str(sorted(flat)))
        verdicts = self.verdicts[s.where]
        count = Counter(v.text for v in verdicts)
        missing = sum(not v.has_rows for v in verdicts) * s.like_paper
        numbers = [count["holds"], count["does not hold"], count["not decided"], missing or ""]
        expected = " ".join(map(str, numbers)).strip() * any(numbers[:3])
        shown_counts = found(text, r"^\* The paper's conclusions on [^:]*: (.*)\.$")
        check("sentence", f"{where}, conclusions", expected, figures(shown_counts))
        for verdict, words in (("holds", "found again"), ("does not hold", "what does not hold")):
            by_claim: dict[str, dict[str, list[str]]] = {}
            for v in verdicts:
                if v.text == verdict:
                    kind, size = v.measure.split(", ")
                    sizes = by_claim.setdefault(v.claim["text"][:-1], {})
                    sizes.setdefault(size, []).append(kind)
            each = [
                f"{claim} ({'; '.join(' and '.join(k) + f', {size}' for size, k in sizes.items())})"
                for claim, sizes in by_claim.items()
            ]
            line = found(text, rf"^\* Of the paper, {words} [^:]*: (.*)\.$")
            check("sentence", f"{where}, {words}", "; ".join(each), line)

    def facts(self, s: Scale, section: str) -> None:
        """What and how much was run, and the sentences under the tables of all rows."""
        each = sorted({sum(run["config"] == row for run in s.trained) for row in s.rows})
        times = [sum(run["seconds"] for run in s.runs)]
        times.insert(0, median(run["seconds"] for run in s.trained))
        objects, done = s.about["ground_truth"]["validation"], len(s.asked & s.planned)
        counts = [len(s.trained), len(s.rows), *each[:1], *each[1:][-1:]]
        for name, expected in {
            "Runs": " ".join(map(str, counts)),
            "Cost": " ".join(map(clock, times)),
            "Validation": " ".join(f"{objects[size]:,}" for size in SIZES[:3]),
            "Interim": f"{done} {len(s.asked)} planned" * (done < len(s.asked)),
        }.items():
            shown = found(section, rf"^\* {name}: (.*)\.$").partition(" for all")[0]
            check("sentence", f"{s.where}, {name}", expected, figures(shown))
        papers = with_most_seeds({r: s.gain(r, s.base) for r in s.others if r not in s.beyond})
        best = max(papers, key=lambda row: papers[row].mean, default="") if s.beyond else ""
        best = best if best and papers[best].mean > 0 else ""
        shown = found(section, r"^Against `(\S+)`, the paper's row that gains most")
        check("sentence", f"{s.where}, the paper's best row", best, shown)
        for heading, base, rows in (("Every", s.base, s.others), ("Beyond", best, s.beyond)):
            part = section.partition(f"### {heading}")[2].partition("\n### ")[0]
            shown = found(part, r"^In every seed.*? AP, (.*)\.$")
            for but in re.findall(r"all rows(?: but [^;.]*)?", shown):
                left_out = {base, *re.split(", | but ", but)}
                shown = shown.replace(but, ", ".join(row for row in rows if row not in left_out))
            expected = s.alike(base, rows) if base else ""
            check("sentence", f"{s.where}, {heading}, seeds alike", expected, shown)

    def how_sure(self, s: Scale, section: str) -> None:
        """Comparisons and trends with their tests, and the sentences under them."""
        text = section.partition("### How sure")[2].partition("### The paper's con")[0]
        planned = [(f"{name}: {row} - {base}", name, row, base) for name, row, base in s.passes]
        run = [x for x in planned if s.is_planned(*x[2:])]
        free = [row for row in s.others if not s.families(row, s.base)]
        expected, disagree = {}, []
        for label, family, row, base in [*run, *((f"{r} - {s.base}", "", r, s.base) for r in free)]:
            gain, images = s.gain(row, base), s.over_images(row, base)
            p, level = s.passes[family, row, base] if family else (np.nan, ALPHA)
            same = gain.seeds & images[2] if images else set()
            seeds = f" (seeds {seeds_text(same)})" if images and same != gain.seeds else ""
            mean, ends = gain.with_interval()
            over = span(*images[:2], gain.mean) + seeds if images else "-"
            expected[label] = {
                "seeds": seeds_text(gain.seeds),
                "difference": s.bold(mean, row, base, family) if family else mean,
                "t interval": ends,
                "interval over images, of the JSON": over,
                "p": p_text(gain.p),
                "Holm p": p_text(p if gain.n > 1 else np.nan) if family else "exploratory",
                "could have shown": gain.could_show(level),
            }
            x = dict(zip(sorted(gain.seeds), gain.x, strict=True))
            of_same = Sample({seed: x[seed] for seed in same})
            low, high = of_same.interval()
            if images and len(same) > 1 and side(low, high) != side(*images[:2]):
                apart = f"{seeds[:-1]}, {span(low, high, low)} over these)" if seeds else ""
                disagree.append(label + apart)
        rows = {row[0]: row[1:] for _, _, all_ in tables(text) for row in all_ if " - " in row[0]}
        check("rows of a table", f"{s.where}, how sure", str([*expected]), str([*rows]))
        for label in expected.keys() & rows.keys():
            for (kind, cell), shown in zip(expected[label].items(), rows[label], strict=True):
                check(kind, f"{s.where}, {label}", cell, shown)
        shown = found(text, r"intervals.* agree (?:on )?whether .*? zero: (.*)\.$")
        check("sentence", f"{s.where}, intervals disagree", "; ".join(disagree), shown)
        missing = "; ".join(x[0] for x in planned if x not in run) if s.planned else ""
        shown = found(text, r"^Planned, and without runs since the plan: (.*)\.$")
        check("sentence", f"{s.where}, not run", missing, shown)
        trends = [*s.trends(self.ap)]
        cells = {r[0]: r[1:] for _, h, all_ in tables(section) for r in all_ if "In the paper" in h}
        check("rows of a table", f"{s.where}, trends", str([x[1] for x in trends]), str([*cells]))
        for _, label, _, line in trends:
            check_all("trend or contrast", f"{s.where}, {label}", line, cells.get(label, line))
        tested = {name for _, name, row, base in run if s.gain(row, base).n >= 3}
        tested |= {kind for kind, _, sample, _ in trends if sample.n >= 3}
        chance = 100 * (1 - (1 - ALPHA) ** len(tested))
        shown = figures(found(text, r"The (\d+ planned families with results.* up to \d+)%"))
        expected_text = f"{len(tested)} planned {chance:.0f}" * (len(tested) > 1)
        check("sentence", f"{s.where}, families", expected_text, shown)

    def conclusions(self, s: Scale, text: str) -> None:
        """Verdicts on the paper's conclusions."""
        verdicts = self.verdicts[s.where]
        judged = [v for v in verdicts if v.text != "not measured"]
        want = "not measured for want of "
        objects = f"{want}objects of the size that it is about"
        count = Counter(v.text for v in judged)
        count[objects] = sum(v.has_rows for v in verdicts) - len(judged)
        count[f"{want}rows"] = sum(not v.has_rows for v in verdicts) * s.like_paper
        expected = sorted(f"{sorted(key.split())}: {n}" for key, n in count.items() if n)
        line = found(text, r"^([A-Z].*: \d+)\.$").lower()
        shown = sorted(
            f"{sorted(key.split())}: {n}" for key, n in re.findall(r"([^:;]+): (\d+)", line)
        )
        check("sentence", f"{s.where}, counts of conclusions", str(expected), str(shown))
        n = sum(v.sample.n >= 3 for v in judged)
        chance = found(text, r"of the (\d+ judged .* decide \d+(?:\.\d+)?) on average")
        check(
            "sentence",
            f"{s.where}, judged",
            f"{n} chance {n * ALPHA:.2g}" * bool(n),
            figures(chance),
        )
        rows, last = {}, ""
        for row in [row for _, _, all_ in tables(text) for row in all_]:
            last = row[1] or last
            rows[last, row[2]] = row[3:]
        keys = [(v.claim["text"], v.measure) for v in judged]
        check("rows of a table", f"{s.where}, conclusions", str(keys), str([*rows]))
        names = ("in the paper's tables", "verdict", "margin", "could have shown", "seeds")
        for v, of_paper in zip(verdicts, self.of_paper, strict=True):
            if v in judged and (key := (v.claim["text"], v.measure)) in rows:
                least = -1e-9 if v.claim["relation"] in ("best", "gain") else 1e-9
                paper = "yes" if of_paper.sample.mean > least else "no"
                cells = (paper, v.text, v.margin, v.could_show, seeds_text(v.sample.seeds))
                for name, cell, other in zip(names, cells, rows[key], strict=True):
                    check(f"conclusion, {name}", f"{s.where}, {', '.join(key)}", cell, other)

    def table(self, s: Scale, where: str, header: list[str], rows: list[list[str]]) -> None:
        if header[0] in TITLES:
            self.ap_table(s, where, TITLES[header[0]], rows)
        elif "below 8" in header:
            names = [f"pixels {edge}" for edge in (0, 8, 16, 32, 64, 128, 256)] + header[-2:]
            sizes = next(run["by_size"] for run in s.trained if "by_size" in run)
            counts = [x["objects"] for x in sizes["pixels"]] + [sizes["small"]["objects"]] * 2
            check_all("objects of a size", where, [f"{n:,}" for n in counts], rows[0][2:])
            for name, seeds_cell, *row in rows[1:]:
                key = name.strip("`")
                seeds = s.gain(key, s.base, "small: AP50").seeds
                check("seeds", f"{where}, {key}", seeds_text(seeds), seeds_cell)
                cells = [s.cell(key, s.base, seeds, measure) for measure in names]
                check_all("AP by size", f"{where}, {key}", cells, row)
        elif header[0] == "Mask AP of small objects":
            for key, *row in rows:
                pasted, cells = f"{key}@augmented_val", []
                for ap in (self.ap, s.ap):
                    zero = {(key, SMALL): 0.0, (pasted, SMALL): 0.0} if ap is s.ap else {}
                    a, b = (weighted(ap, zero | {(k, SMALL): 1.0}) for k in (key, pasted))
                    cells += [seeds_text(a.seeds)] if ap is s.ap else []
                    cells += [points(a.mean), points(b.mean), percent(b.mean, a.mean)]
                cells.insert(0, cells.pop(3))
                check_all("pasted validation", f"{where}, {key}", cells, row)
        elif header[0] == "Size":
            for row in rows:
                cells = self.table_2(s, row)
                check_all("Table 2", f"{s.where}, {row[0]}, {row[1]}", cells, row[2:])

    def ap_table(self, s: Scale, where: str, part: str, rows: list[list[str]]) -> None:
        """All rows against one, or a table of the paper beside its numbers."""
        number = found(where, r", Table (\d)")
        names, family = {row: row for row in s.rows}, None
        if number:
            entries = self.paper["tables"][int(number)]["rows"]
            names = {x["row"]: x["config"] for x in entries if x["config"] in s.rows}
            family = next((name for name, *_ in s.passes if name == f"table {number}"), None)
        keys = [names[row[0].strip("`")] for row in rows]
        base = keys[0]
        expected = {base, *s.beyond} if "Beyond" in where else {*names.values()}
        check("rows of a table", where, str(sorted(expected)), str(sorted(set(keys))))
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            other = next(k for k in keys[i:] if k != base)
            seeds = s.gain(other, base, f"{part}.all").seeds
            check("seeds", f"{where}, {key}", seeds_text(seeds), row[1])
            cells = [s.cell(key, base, seeds, f"{part}.{size}", family) for size in SIZES]
            check_all("AP", f"{where}, {key}, {part}", cells, row[3::2] if number else row[2:])
            if number:
                own, first = ([self.ap[k, f"{part}.{z}"][0] for z in SIZES] for k in (key, base))
                texts = [
                    points(a) + f" ({points(a - b, '+')})" * (key != base)
                    for a, b in zip(own, first, strict=True)
                ]
                check_all("AP of the paper", f"{where}, {key}, {part}", texts, row[2::2])

    def table_2(self, s: Scale, row: list[str]) -> list[str]:
        if row[1].startswith("*"):
            x, mark = self.paper["statistics"][row[0]], "*"
            shares = [x[key] for key in ("objects", "images", "area", "matched_anchors")]
            means = [x["anchors_per_object"], x["max_iou"]]
        else:
            of = [x for x in s.data["table2"] if row[1] == f"{x['data']}, {x['protocol']} protocol"]
            x, mark = of[0]["rows"][row[0]], ""
            matched = sum(size["matched"] for size in of[0]["rows"].values())
            shares = [x["objects"] / of[0]["objects"], x["images"] / of[0]["images"]]
            shares += [x["area_share"], x["matched"] / matched]
            means = [x["matched"] / x["objects"], x["mean_max_iou"]]
        texts = [f"{100 * x:.2f}%" for x in shares] + [f"{x:.2f}" for x in means]
        return [mark + text + mark for text in texts]

    def images(self, s: Scale) -> None:
        """The JSON's intervals over images, anew from the resamples in the .npz."""
        path = s.path.with_suffix(".npz")
        draws = dict(np.load(path)) if path.exists() else {}
        by_run = {tuple(key.split()[:2]): 100 * x.astype(float) for key, x in draws.items()}
        for x in s.data.get("over_images", []) if draws else []:
            pairs = [[by_run[x[key], f"seed{i}"] for key in ("row", "base")] for i in x["seeds"]]
            ends = np.percentile(np.mean([a - b for a, b in pairs], axis=0), [2.5, 97.5])
            for end, kept in zip(ends, (100 * x["low"], 100 * x["high"]), strict=True):
                cell = f"{kept:.3f}" if abs(end - kept) < 6e-4 else f"{end:.3f}"
                where = f"{s.where}, {x['row']} - {x['base']}"
                check("interval over images, of the .npz", where, cell, f"{kept:.3f}")

    def side_by_side(self, header: list[str], rows: list[list[str]]) -> None:
        of = {s.name: s for s in reversed(self.scales) if s.base == "baseline"}
        scales = [of[name] for name in header[2:]]
        if header[0] == "Section":
            shown = {row[1]: row[2:] for row in rows}
            for claim in self.paper["claims"]:
                cells = []
                for s in scales:
                    own = [v for v in self.verdicts[s.where] if v.claim is claim]
                    own = [v for v in own if v.text != "not measured"]
                    each = "; ".join(f"{v.measure}: {v.text}" for v in own)
                    alike = len({v.text for v in own}) < 2
                    cells.append((own[0].text if own else "-") if alike else each)
                line = shown.get(claim["text"], ["-"] * len(cells))
                check_all("side by side, verdict", claim["text"], cells, line)
            return
        counts = Counter(row for s in scales for row in s.rows)
        keys = [row[0].strip("`") for row in rows]
        expected = sorted(row for row, n in counts.items() if n > 1)
        check("rows of a table", "side by side", str(expected), str(sorted(keys)))
        for key, (_, *cells) in zip(keys, rows, strict=True):
            texts = [points(self.ap["baseline", SMALL][0])]
            texts += [s.cell(key, key, s.gain(key, key).seeds, SMALL) for s in scales]
            if key != "baseline":
                texts = [gained(self.ap, key)]
                texts += [s.bold(gained(s.ap, key), key, "baseline") for s in scales]
            check_all("side by side", key, texts, cells)


def gained(ap: AP, row: str) -> str:
    """The gain on the baseline, in points and in per cent of its mean."""
    base = ("baseline", SMALL)
    gain = weighted(ap, {(row, SMALL): 1, base: -1})
    before = float(np.mean([ap[base][seed] for seed in gain.seeds])) if gain.n else np.nan
    return f"{gain.text} ({percent(before + gain.mean, before)})" if gain.n else "-"


def main() -> int:
    Report(Path(sys.argv[1]))
    for kind, n in sorted(checked.items()):
        print(f"{n:5d}  {kind}")
    print(f"{sum(checked.values()):5d}  cells in all, of which {len(differ)} differ")
    print("\n".join(differ))
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
