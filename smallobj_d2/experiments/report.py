"""What was measured beside what was published, as a document that opens with the answer."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup

from smallobj_d2.analysis.advice import NEARLY_ALL
from smallobj_d2.analysis.report import comparison
from smallobj_d2.analysis.table2 import PUBLISHED
from smallobj_d2.errors import clock
from smallobj_d2.evaluation.ap import SIZES, TITLES
from smallobj_d2.evaluation.by_size import side
from smallobj_d2.experiments import figures
from smallobj_d2.experiments.claims import Status, Verdict, judge
from smallobj_d2.experiments.paper import Claim, Paper
from smallobj_d2.experiments.plan import PRIMARY, Family, Plan, Planned, difference, trend
from smallobj_d2.experiments.results import KINDS, Results
from smallobj_d2.experiments.scales import AUGMENTED_VAL, SCENES
from smallobj_d2.experiments.statistics import (
    FEWEST,
    LEVEL,
    Difference,
    half_width,
    interval,
    p_value,
    seeds_text,
    spread,
)
from smallobj_d2.visualization.document import Document, Items, Picture, Table, code, strong

COCO_VAL = "coco_2017_val"
_NONE = "-"
_TONES = {Status.HOLDS.value: "good", Status.FAILS.value: "bad", "no": "bad"}
_COPIES = {
    5: "one object, pasted 1 to 5 times",
    6: "several objects, pasted 1 to 5 times",
    7: "all objects, pasted 1 to 3 times",
}


def build_report(
    paper: Paper,
    results: Sequence[Results],
    plan: Plan | None = None,
    configs: Collection[str] | None = None,
) -> Document:
    """The report on one or several scales and engines.

    Args:
        paper: what was published.
        results: what was measured; not every row need be there, nor every seed.
        plan: what was planned; without one, nothing was, and nothing is in bold.
        configs: the rows whose configs are there; others are left out. None for all rows.
    """
    each = [_Experiment.of(paper, one, plan or {}, configs) for one in results]
    each = [one for one in each if one.worthwhile]
    if each and all(one.own for one in each):
        names = dict.fromkeys(one.data for one in each)
        document = Document(f"Copy-paste for the small objects of {', '.join(names)}")
    else:
        document = Document("The paper's tables, rerun")
    document.add(Items([line for one in each for line in one.answer()], answer=True))
    document.text(_HOW_TO_READ)
    for one in each:
        one.write(document)
    return document


_HOW_TO_READ = Markup(
    "AP is in points (hundredths): mean ± standard deviation over seeds. In brackets stands the "
    "difference to the row named. Every difference, gain and slope is over the seeds that both "
    "sides have, in pairs of one seed, which share their initial weights; where seeds differ, the "
    "row compared with is repeated for each set of seeds. <strong>Bold</strong> is a comparison "
    "that was planned before the runs and is told from chance by at least three seeds, after "
    "Holm's correction for its family (paired t test, 5%). All else is exploratory: it shows "
    "where to look, and decides nothing."
)


@dataclass(frozen=True)
class _Experiment:
    """The results of one scale and engine, and what is said of them."""

    paper: Paper
    results: Results
    plan: Planned
    worthwhile: bool = True
    """Whether rows are left to compare, or none was left out."""

    @classmethod
    def of(
        cls, paper: Paper, results: Results, plan: Plan, configs: Collection[str] | None
    ) -> "_Experiment":
        kept = results
        if configs is not None:
            kept = results.keep(lambda row, _: row.partition("@")[0] in configs)
        planned = plan.get(results.about["scale"], Planned())
        kept = planned.only(kept)
        return cls(
            paper, kept, planned, bool(kept.rows) and (kept == results or len(kept.rows) > 1)
        )

    @property
    def scale(self) -> str:
        return str(self.results.about["scale"])

    @property
    def data(self) -> str:
        return str(self.results.about["validation"])

    @property
    def own(self) -> bool:
        """Whether it is on a dataset of the user's own: neither COCO nor synthetic scenes."""
        return self.data not in (COCO_VAL, SCENES[1])

    @cached_property
    def rows(self) -> list[str]:
        """The rows, those of the paper first, in its order."""
        known = [row for row in self.paper.configs() if self.results.seeds(row)]
        return [*known, *(r for r in self.results.rows if r not in known and "@" not in r)]

    @cached_property
    def families(self) -> list[tuple[Family, dict[str, Difference]]]:
        return [(f, f.differences(self.results)) for f in self.plan.families]

    @property
    def base(self) -> str:
        return self.rows[0]

    def difference(self, row: str, base: str, metric: str) -> Difference | None:
        """Of two rows; with its family's correction if it was planned."""
        for family, found in self.families:
            if (base, metric) == (family.base, family.metric) and row in found:
                return found[row]
        return difference(self.results, row, base, metric)

    def best(self) -> tuple[str, Difference] | None:
        """The row that is furthest above the base for small objects.

        Of those with as many common seeds as any, or three.
        """
        found = {row: self.difference(row, self.base, PRIMARY) for row in self.rows[1:]}
        there = {row: d for row, d in found.items() if d}
        enough = min(FEWEST, max((len(d.values) for d in there.values()), default=0))
        there = {row: d for row, d in there.items() if len(d.values) >= enough}
        return max(there.items(), key=lambda item: item[1].mean) if there else None

    # --- The answer

    def answer(self) -> list[str]:
        """Which row is best for small objects, by how much, at what cost, on what evidence."""
        where = Markup("<strong>{}</strong> (scale {}, {})").format(
            self.data, self.scale, self.results.about["engine"]
        )
        best = self.best()
        if best is None:
            return [Markup("{}: there is nothing to compare yet.").format(where)]
        row, gain = best
        evidence = (
            f"{_number(len(gain.seeds), 'seed')} ({seeds_text(gain.seeds)}), {self._evidence(gain)}"
        )
        if gain.mean <= 0:
            return [
                Markup("{}: no row is above {} for small objects; {}.").format(
                    where, code(self.base), evidence
                )
            ]
        costs = []
        for size in SIZES[1:3]:
            if change := self.difference(row, self.base, f"segm.{size}"):
                costs.append(f"AP of {size} objects {_points(change)}")
        at = "; ".join([*costs, self._time(row)])
        lines = [
            Markup("{}: {} is best for small objects, mask AP_S {} against {}. {}. {}.").format(
                where,
                code(row),
                _points(gain),
                code(self.base),
                f"{at[0].upper()}{at[1:]}",
                f"{evidence[0].upper()}{evidence[1:]}",
            )
        ]
        return [*lines, *self._found_again()]

    def _evidence(self, gain: Difference) -> str:
        if gain.decided:
            return f"planned, and told from chance (Holm p = {gain.adjusted:.3g})"
        if gain.planned:
            return f"planned, and not told from chance (Holm p = {gain.adjusted:.2g})"
        low, _ = interval(gain.values)
        if math.isnan(low):
            return "not planned; one seed says nothing of chance"
        return "not planned, so a lead and no proof" + (
            "" if low > 0 else "; it may well be chance"
        )

    def _time(self, row: str) -> str:
        """What a row takes against the base, over common seeds."""
        for kept, what in (
            (self.results.speed, "time of an iteration"),
            (self.results.seconds, "time of a run by the clock, pauses included,"),
        ):
            seeds = [s for s in self.results.seeds(row, self.base)
                     if kept.get((row, s)) and kept.get((self.base, s))]  # fmt: skip
            if seeds:
                ratio = float(np.median([kept[row, s] / kept[self.base, s] for s in seeds]))
                return f"{what} x {ratio:.2f} ({_seeds(seeds)})"
        return "time not known"

    def _found_again(self) -> list[str]:
        """What of the paper was found again, what was not, and what cannot be told."""
        said: dict[Status, list[str]] = {}
        for claim, found in self.verdicts:
            for metric, verdict in found.items():
                text = f"{claim.text.removesuffix('.')} ({_metric_name(metric)})"
                said.setdefault(verdict.status, []).append(text)
        unmeasured = len(said.pop(Status.UNMEASURED, []))
        if not said:
            return []
        lines = [
            f"Of the paper, {what} on {self.data}: {'; '.join(said[status])}."
            for status, what in ((Status.HOLDS, "found again"), (Status.FAILS, "contradicted"))
            if status in said
        ]
        rest = f"not decided by these seeds: {len(said.get(Status.OPEN, []))}"
        if unmeasured and not self.own:
            rest += f"; not measured: {unmeasured}"
        return [*lines, f"Of the paper's conclusions for masks and boxes on {self.data}, {rest}."]

    @cached_property
    def verdicts(self) -> list[tuple[Claim, dict[str, Verdict]]]:
        return [
            (claim, {m: judge(claim, m, self.results) for m in claim.metrics})
            for claim in self.paper.claims
        ]

    # --- The sections

    def write(self, document: Document) -> None:
        """Add all of it."""
        about = self.results.about
        document.heading(f"{self.data}: scale {about['scale']}, engine {about['engine']}")
        document.add(self._facts())
        if self.results.failed:
            document.text("Runs that failed, and are in no table:")
            document.add(
                [f"{f['config']} seed {f['seed']}: {f['why']}" for f in self.results.failed]
            )
        self._overview(document)
        self._comparisons(document)
        self._trends(document)
        self._conclusions(document)
        self._pictures(document)
        if not self.own:
            for number, content in self.paper.tables.items():
                self._paper_table(document, number, content)
        self._pasted(document)
        self._sizes(document)
        self._training_images(document)

    def _facts(self) -> list[str]:
        about = self.results.about
        trained = {key: s for key, s in self.results.seconds.items() if "@" not in key[0]}
        count = Counter(row for row, _ in trained)
        seeds = sorted(set(count.values()))
        span = _number(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        each = float(np.median([*trained.values()]))
        schedule = about["schedule"]
        truth = about["ground_truth"].get("validation", {})
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        objects = ", ".join(f"{truth[s]:,} {s}" for s in SIZES[:3] if s in truth)
        named = f"Validation: {self.data}"
        return [
            f"What: {about['text']}; {schedule['iterations']:,} iterations of "
            f"{schedule['images']} images for each row.",
            f"Runs: {_number(len(trained), 'run')} of {_number(len(count), 'row')}, {span} each.",
            f"Cost: {clock(each)} for a run (median), {clock(sum(self.results.seconds.values()))} "
            f"for all, on {' and '.join(about['device']) or 'an unknown machine'}.",
            f"Versions: {versions}.",
            f"{named}, with {objects} objects." if objects else f"{named}.",
        ]

    def _overview(self, document: Document) -> None:
        """Every row against the baseline (without one, the first row)."""
        if len(self.rows) < 2:
            return
        document.heading(_with("Every row against {}", self.base), 3)
        self._against(document, self.rows, self.base)
        known = [row for row in self.rows if row in self.paper.numbers]
        others = [row for row in self.rows if row not in known]
        if not known or not others:
            return
        best = _Experiment(self.paper, self.results.keep(lambda r, _: r in known), self.plan).best()
        if best and best[1].mean > 0:
            document.heading("Beyond the paper", 3)
            document.text(
                _with("Against {}, the paper's row that gains mask AP_S most here.", best[0])
            )
            self._against(document, [best[0], *others], best[0])

    def _against(self, document: Document, rows: Sequence[str], base: str) -> None:
        for kind in KINDS:
            self._table(document, kind, {row: code(row) for row in rows}, base)
        if same := seed_by_seed(self.results, rows, base):
            document.text(f"In every seed alike, by mask AP, {same}.")

    def _table(
        self,
        document: Document,
        kind: str,
        names: Mapping[str, str],
        base: str,
        published: bool = False,
    ) -> None:
        """Rows against one of them: for each set of common seeds, that one and the others."""
        sets: dict[tuple[int, ...], list[str]] = {}
        for row in names:
            seeds = tuple(self.results.seeds(row, base))
            if row != base and seeds:
                sets.setdefault(seeds, []).append(row)
        sets = sets or {tuple(self.results.seeds(base)): []}
        header = [TITLES[kind], "Seeds"]
        for size in SIZES:
            header += [f"{size}: paper", "measured"] if published else [size]
        body: list[list[str]] = []
        starts = []
        for seeds, rows in sorted(sets.items(), key=lambda item: (-len(item[0]), item[0])):
            starts.append(len(body))
            for row in (base, *rows):
                cells = [names.get(row, code(row)), seeds_text(seeds)]
                for size in SIZES:
                    if published:
                        cells.append(self._published(row, base, f"{kind}.{size}"))
                    cells.append(self._measured(row, base, f"{kind}.{size}", seeds))
                body.append(cells)
        document.add(Table(header, body, text=2, rules=starts if len(sets) > 1 else ()))

    def _published(self, config: str, base: str, metric: str) -> str:
        ap = self.paper.ap(config, metric)
        if config == base:
            return f"{100 * ap:.1f}"
        return f"{100 * ap:.1f} ({_signed(ap - self.paper.ap(base, metric))})"

    def _measured(self, row: str, base: str, metric: str, seeds: Sequence[int]) -> str:
        values = self.results.values(row, metric, seeds)
        if not values:
            return _NONE
        text = f"{100 * np.mean(values):.1f}"
        if len(values) > 1:
            text += f" ±{100 * spread(values):.1f}"
        change = self.difference(row, base, metric)
        if row == base or change is None:
            return text
        bracket = f"({_signed(change.mean)})"
        return Markup("{} {}").format(text, strong(bracket) if change.decided else bracket)

    # --- Statistics

    def _comparisons(self, document: Document) -> None:
        """The primary measure of every row, with all that says how sure it is."""
        rows: list[list[str]] = []
        starts = []
        planned = set()
        absent = []
        for family, found in self.families:
            starts.append(len(rows))
            planned |= {(row, family.base, family.metric) for row in found}
            for row in family.rows:
                name = f"{family.name}: {row} - {family.base}"
                if row in found:
                    rows.append(self._judged(name, found[row], (row, family.base)))
                else:
                    absent.append(name)
        starts.append(len(rows))
        for row in self.rows[1:]:
            change = self.difference(row, self.base, PRIMARY)
            if change and (row, self.base, PRIMARY) not in planned:
                rows.append(self._judged(f"{row} - {self.base}", change, (row, self.base)))
        if not rows:
            return
        document.heading("How sure: mask AP of small objects", 3)
        document.add(Table(_SURE, rows, text=2, long=(0,), rules=starts))
        document.text(
            "Intervals are of 95%, by Student's t over seeds; over images, by a paired bootstrap "
            "of the validation images with the seeds held, where detections were kept. p is of "
            "the paired t test; Holm's is corrected for all rows planned in the family, run or "
            "not. The last column is the smallest mean difference that these seeds, with this "
            "spread, would have told from zero. Families are not corrected for each other."
        )
        if absent:
            document.text(f"Planned, and without runs since the plan: {'; '.join(absent)}.")

    def _judged(self, name: str, change: Difference, pair: tuple[str, str]) -> list[str]:
        over = self.results.over_images.get((*pair, change.seeds))
        mean = _signed(change.mean)
        return [
            name,
            seeds_text(change.seeds),
            strong(mean) if change.decided else mean,
            _interval(interval(change.values)),
            _interval(over) if over else _NONE,
            _p(p_value(change.values)),
            _p(change.adjusted) if change.planned else "exploratory",
            _points_of(half_width(change.values)),
        ]

    def _trends(self, document: Document) -> None:
        """Slopes over the number of pastes, those of the plan first; then its contrasts."""
        every = [*self.plan.trends]
        judged = self.plan.judged(self.plan.trends, self.results)
        for number, name in _COPIES.items():
            lines = [r for r in self.paper.tables[number]["rows"] if "pasted" in r]
            there = [r for r in lines if self.results.seeds(r["config"])]
            found = trend(name, [r["config"] for r in there], [r["pasted"] for r in there])
            if len(there) > 2 and found.rows not in {t.rows for t in every}:
                every.append(found)
        every += self.plan.contrasts
        judged |= self.plan.judged(self.plan.contrasts, self.results)
        body = []
        for one in every:
            change = judged.get(one.name) or one.difference(self.results)
            if change is None:
                continue
            name = f"{one.name} ({_metric_name(one.measure)}{', slope' if one.at else ''})"
            cells = self._judged(name, change, ("", ""))
            known = all(row in self.paper.numbers for row in one.rows)
            cells[4] = _signed(one.of(self.paper.ap)) if known else _NONE
            body.append([*cells[:4], *cells[5:]] if self.own else cells)
        if not body:
            return
        header = ["", *_SURE[1:]]
        header[4:5] = [] if self.own else ["In the paper"]
        document.heading("Trends and contrasts", 3)
        document.add(Table(header, body, text=2, long=(0,)))
        document.text(
            "A slope is in AP points for each paste (or ratio) more: for each seed that of a "
            "straight line through its rows, then a t test over seeds. A contrast is a "
            "difference of differences. The planned trends are one family, the contrasts another."
        )

    def _conclusions(self, document: Document) -> None:
        rows = []
        count: Counter[str] = Counter()
        waiting = sizeless = comparisons = 0
        for claim, verdicts in self.verdicts:
            if all(v.status is Status.UNMEASURED for v in verdicts.values()):
                waiting += all(bool(v.missing) for v in verdicts.values())
                sizeless += not all(v.missing for v in verdicts.values())
                continue
            for at, (metric, verdict) in enumerate(verdicts.items()):
                count[verdict.status.value] += 1
                comparisons += verdict.status is not Status.UNMEASURED
                rows.append(
                    [
                        claim.section if at == 0 else "",
                        claim.text if at == 0 else "",
                        _metric_name(metric),
                        "yes" if claim.holds(self.paper.ap, metric) else "no",
                        verdict.status.value,
                        *_margin(claim, verdict),
                        seeds_text(verdict.of) or _NONE,
                    ]
                )
        if self.own and not rows:
            return
        document.heading("The paper's conclusions", 3)
        said = [f"{s.value}: {count[s.value]}" for s in Status if count[s.value]]
        if sizeless:
            said.append(
                f"{_number(sizeless, 'conclusion')} about sizes that no validation object has"
            )
        if waiting and not self.own:
            said.append(f"{waiting} conclusions wait for rows that were not run")
        if said:
            document.text("; ".join(said).capitalize() + ".")
        if self.data != COCO_VAL:
            document.text(
                f"The paper's conclusions are about COCO. Here they are judged on {self.data}, by "
                "differences between rows; the level of AP has nothing to compare with."
            )
        if not rows:
            return
        document.add(Table(_CONCLUSIONS, rows, text=3, long=(1,), tones=_TONES))
        document.text(
            "The margin is by how much a conclusion holds, in AP points or in per cent for a gain, "
            "with its 95% interval over seeds; where it makes several comparisons, it is that of "
            "the weakest. It holds if that interval is above zero for each of its comparisons; it "
            "does not hold if it is below zero for any, the level being shared among them "
            "(Bonferroni); else, and with fewer than three seeds, it is not decided, and the "
            "smallest margin that these seeds could have shown is named. A fall over several rows "
            "is judged by its slope. Where the best of several rows is meant, each seed takes its "
            "own best. Conclusions are not corrected for each other: of the "
            f"{comparisons} judged here, chance alone would decide about "
            f"{(1 - LEVEL) * comparisons:.2g}."
        )

    # --- Pictures

    def _pictures(self, document: Document) -> None:
        name = f"{self.scale}_{self.results.about['engine']}"
        if self.base != "baseline" or len(self.rows) < 2:
            return
        beside = not self.own
        if any(self.results.values(row, "segm.large") for row in self.rows):
            caption = (
                "Change in mask AP of small against large objects. Up is better for small "
                "objects, to the right for large ones; bars are standard errors over common "
                "seeds, the dotted lines are the baseline."
            )
            svg = figures.trade_off(self.paper, self.results, "segm", beside=beside)
            document.add(Picture(f"{name}_trade_off", svg, "svg", caption))
        tables = [row["config"] for t in _COPIES for row in self.paper.tables[t]["rows"][1:]]
        if any(self.results.seeds(row) for row in tables):
            caption = "Change in mask AP of small objects by how often each object is pasted."
            svg = figures.copies(self.paper, self.results, "segm", beside=beside)
            document.add(Picture(f"{name}_copies", svg, "svg", caption))

    # --- Tables of the paper

    def _paper_table(self, document: Document, number: int, content: dict[str, Any]) -> None:
        """A table of the paper, its numbers beside the measured ones; left out if it has none."""
        every: list[dict[str, str]] = content["rows"]
        lines = [line for line in every if self.results.seeds(line["config"])]
        base = every[0]["config"]
        if lines in ([], every[:1]) or not self.results.seeds(base):
            return
        document.heading(f"Table {number}: {content['title']}", 3)
        names = {line["config"]: line["row"] for line in lines}
        for kind in KINDS:
            self._table(document, kind, names, base, published=True)
        if absent := [line["row"] for line in every if line not in lines]:
            document.text(f"Not run: {', '.join(absent)}.")

    def _pasted(self, document: Document) -> None:
        """Section 6.2: rows that are evaluated on the augmented validation set, too."""
        there = [row for row in self.results.rows if row.endswith(f"@{AUGMENTED_VAL}")]
        if not there:
            return
        rows = []
        for name in there:
            config = name.partition("@")[0]
            seeds = self.results.seeds(name, config)
            line = [config, seeds_text(seeds)]
            known = all(c in self.paper.numbers for c in (config, name))
            pair = [self.paper.ap(c, PRIMARY) if known else None for c in (config, name)]
            line += [] if self.own else _gain(*pair)
            aps = [self.results.values(c, PRIMARY, seeds) for c in (config, name)]
            line += _gain(*(float(np.mean(v)) if v else None for v in aps))
            rows.append(line)
        document.heading("Section 6.2: evaluated where small objects are pasted", 3)
        header = ["Mask AP of small objects", "Seeds"]
        header += [] if self.own else ["paper", "paper, pasted", "paper, gain"]
        document.add(Table([*header, "measured", "measured, pasted", "measured, gain"], rows, 2))
        document.text(
            Markup(
                "The validation images with the pastes of <code>configs/aug.yaml</code>. The paper "
                "takes the gain of its row for a sign that the model has learned to see pasted "
                "objects. The baseline, which saw none, is the control: its gain is what these "
                "images are easier by."
            )
        )

    def _sizes(self, document: Document) -> None:
        """AP of each row by octaves of size, and the change to the baseline."""
        kept = self.results.by_size
        rows = [row for row in self.rows if any(r == row for r, _ in kept)]
        if self.base not in rows:
            return
        document.heading("By size of the objects", 3)
        document.text(
            _with(
                "Mask AP between sides in pixels (of a square of the object's area), and the "
                "change to {}; means over the seeds that both have. Looked at, not tested. "
                "AI-TOD calls 8 to 16 pixels tiny and 16 to 32 small.",
                self.base,
            )
        )
        bands = next(each["pixels"] for (row, _), each in kept.items() if row == self.base)
        small = next(each["small"] for (row, _), each in kept.items() if row == self.base)
        counts = [f"{b['objects']:,}" for b in (*bands, small, small)]
        body = [["objects", "", *counts]]
        for row in rows:
            seeds = [
                s
                for s in self.results.seeds(row, self.base)
                if (row, s) in kept and (self.base, s) in kept
            ]
            if not seeds:
                continue
            own, base = (
                np.mean([_measures(kept[r, s]) for s in seeds], axis=0) for r in (row, self.base)
            )
            changes = (
                [""] * len(own) if row == self.base else [f" ({_signed(d)})" for d in own - base]
            )
            cells = [
                _NONE if math.isnan(ap) else f"{100 * ap:.1f}{change}"
                for ap, change in zip(own, changes, strict=True)
            ]
            body.append([code(row), seeds_text(seeds), *cells])
        header = ["", "Seeds", *map(side, bands), "small: AP50", "small: recall"]
        document.add(Table(header, body, text=2))

    def _training_images(self, document: Document) -> None:
        tables = self.results.table2
        if not tables:
            return
        data, small = tables[0].data, tables[0].rows["small"]
        document.heading("The training images, by Table 2", 3)
        text = (
            "The paper's protocol puts all anchors on one grid of the original image; the training "
            "protocol is what the network of these runs sees."
        )
        if data in SCENES:
            text = (
                "The scenes are made to resemble COCO in these shares, and were not changed for "
                f"the outcome. {text}"
            )
        elif small.image_share > NEARLY_ALL:
            text += (
                f" Of {tables[0].images:,} images {small.images:,} have small objects, so "
                "oversampling them makes an epoch longer and little else."
            )
        document.text(text)
        named = [replace(t, data=f"{data}, {t.protocol} protocol") for t in tables]
        document.add(comparison([PUBLISHED, *named]))


_SURE = ["Comparison", "Seeds", "Difference", "95% over seeds", "95% over images", "p"]
_SURE += ["Holm p", "Could have shown"]
_CONCLUSIONS = ["Section", "Conclusion", "AP", "In the paper's tables", "Here", "Margin"]
_CONCLUSIONS += ["Could have shown", "Seeds"]


def seed_by_seed(results: Results, rows: Sequence[str], base: str) -> str:
    """Which rows are above another in each of at least three seeds, which below; "" for none."""
    parts = []
    for size in (SIZES[0], SIZES[2]):
        for sign, word in ((1, "above"), (-1, "below")):
            found = []
            for row in rows:
                values = results.differences(row, base, f"segm.{size}").values()
                if len(values) >= FEWEST and all(sign * v > 0 for v in values):
                    found.append(row)
            if found:
                parts.append(f"for {size} objects {word} {base}: {', '.join(found)}")
    return "; ".join(parts)


def _measures(sizes: Mapping[str, Any]) -> list[float]:
    """AP of each band, AP50 and recall of small objects; NaN where there are no objects."""
    aps = [*(b["AP"] for b in sizes["pixels"]), sizes["small"]["AP50"], sizes["small"]["AR"]]
    return [math.nan if ap is None else ap for ap in aps]


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {seeds_text(seeds)}"


def _with(text: str, row: str) -> Markup:
    """A sentence with the name of a row."""
    return Markup(text).format("the baseline" if row == "baseline" else code(row))


def _metric_name(metric: str) -> str:
    kind, size = metric.split(".")
    return f"{'mask' if kind == 'segm' else 'box'}, {size}"


def _margin(claim: Claim, verdict: Verdict) -> list[str]:
    """The margin and the smallest that could have been shown, where none was."""
    if math.isnan(verdict.mean):
        return [_NONE, _NONE]
    unit = " %" if claim.relation == "gain" else ""
    text = f"{_signed(verdict.mean)}{unit}"
    if math.isnan(verdict.low):
        return [text, _NONE]
    shown = f"{100 * (verdict.mean - verdict.low):.1f}{unit}"
    open_ = verdict.status is Status.OPEN
    return [f"{text} ({_interval((verdict.low, verdict.high))})", shown if open_ else _NONE]


def _signed(ap: float) -> str:
    """A difference in points with its sign, which zero does not have."""
    text = f"{100 * ap:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _interval(ends: tuple[float, float]) -> str:
    return _NONE if math.isnan(ends[0]) else f"{_signed(ends[0])} to {_signed(ends[1])}"


def _points(change: Difference) -> str:
    """A difference for a sentence, with its interval."""
    text = f"{_signed(change.mean)} points"
    ends = interval(change.values)
    return text if math.isnan(ends[0]) else f"{text} (95%: {_interval(ends)})"


def _points_of(ap: float) -> str:
    return _NONE if math.isnan(ap) else f"{100 * ap:.1f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return _NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _gain(before: float | None, after: float | None) -> list[str]:
    cells = [_NONE if ap is None else f"{100 * ap:.1f}" for ap in (before, after)]
    if before and after is not None:
        return [*cells, f"{100 * (after / before - 1):+.0f} %"]
    return [*cells, _NONE]
