"""What was measured beside what was published, as a document that opens with the answer."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup

from smallobj_d2.analysis.advice import NEARLY_ALL
from smallobj_d2.analysis.report import comparison
from smallobj_d2.analysis.table2 import PUBLISHED
from smallobj_d2.evaluation.ap import SIZES, TITLES, cell
from smallobj_d2.evaluation.by_size import side
from smallobj_d2.experiments import figures
from smallobj_d2.experiments.claims import Status, Verdict, Why, judge
from smallobj_d2.experiments.paper import Claim, Paper
from smallobj_d2.experiments.plan import PRIMARY, Plan, Planned, Statement, above, trend
from smallobj_d2.experiments.results import Results
from smallobj_d2.experiments.scales import AUGMENTED_VAL, SCENES
from smallobj_d2.experiments.statistics import (
    FEWEST,
    LEVEL,
    Difference,
    interval,
    p_value,
    seeds_text,
    spread,
)
from smallobj_d2.visualization.document import Document, Picture, Table, code, strong
from smallobj_d2.visualization.texts import Texts

COCO_VAL = "coco_2017_val"
_TEXTS = Texts("smallobj_d2.experiments")
_TONES = {Status.HOLDS.value: "good", Status.FAILS.value: "bad", "no": "bad"}
_COPIES = {5: "one object", 6: "several objects", 7: "all objects"}


def build_report(
    paper: Paper,
    results: Sequence[Results],
    plan: Plan | None = None,
) -> Document:
    """The report on one or several scales and engines.

    Args:
        paper: what was published.
        results: what was measured; not every row need be there, nor every seed. A row is shown
            if its config is gone, too: what was removed as it did not help is part of the answer.
        plan: what was planned; without one, nothing was, and nothing is in bold.
    """
    each = []
    for found in results:
        planned = (plan or {}).get(found.about["scale"], Planned()).fitting(found)
        left = planned.only(found)
        if not left.rows:
            continue
        each.append(_Experiment(paper, left, planned, sorted(found.runs.keys() - left.runs.keys())))
    if each and all(one.own for one in each):
        names = dict.fromkeys(one.data for one in each)
        document = Document(f"Copy-paste for the small objects of {', '.join(names)}")
    else:
        document = Document("The paper's tables, rerun")
    document.items([line for one in each for line in one.answer()], answer=True)
    document.text(_HOW_TO_READ)
    _side_by_side(document, paper, each)
    for one in each:
        one.write(document)
    return document


def _side_by_side(document: Document, paper: Paper, each: Sequence["_Experiment"]) -> None:
    """The rows that several data have in common, in AP of small objects, and the conclusions."""
    shown = [one for one in each if one.base == "baseline" and one.measure == PRIMARY]
    number = Counter(row for one in shown for row in one.rows)
    rows = [row for row in dict.fromkeys([*paper.configs(), *number]) if number[row] > 1]
    if len(rows) < 2:
        return
    document.heading("Side by side")
    document.text(
        f"{_title(PRIMARY)} of the baseline; of the other rows the difference to it, also as a "
        "share of it, over common seeds."
    )
    body = [[code(row), _beside(paper, row), *(one.beside(row) for one in shown)] for row in rows]
    document.add(Table(["", "The paper (COCO)", *_told_apart(shown)], body))
    shown = [one for one in each if {*one.conclusions} != {"-"}]
    if len(shown) < 2:
        return
    document.text(
        "The paper's conclusions, for masks and boxes; a dash where one was not measured. The "
        "sections below have the margins."
    )
    said = zip(*(one.conclusions for one in shown), strict=True)
    body = [
        [claim.section, claim.text, *cells]
        for claim, cells in zip(paper.claims, said, strict=True)
        if {*cells} != {"-"}
    ]
    header = ["Section", "Conclusion", *_told_apart(shown)]
    document.add(Table(header, body, text=len(header), long=(1,), tones=_TONES))


def _told_apart(each: Sequence["_Experiment"]) -> list[str]:
    """Their names: of the data, and where these are the same, of scale and engine, too."""
    names = [one.data for one in each]
    if len({*names}) < len(names):
        return [f"{one.data}, {one.scale}, {one.results.about['engine']}" for one in each]
    return names


def _beside(paper: Paper, row: str) -> str:
    """What `_Experiment.beside` says, of the paper's numbers."""
    if row not in paper.numbers:
        return "-"
    base, ap = (paper.ap(r, PRIMARY) for r in ("baseline", row))
    return _unsigned(ap) if row == "baseline" else _gained(ap - base, base)


_HOW_TO_READ = Markup(
    "AP is in points (hundredths): mean ± standard deviation over seeds. In brackets stands the "
    "difference to the row named. Every difference, gain and slope is over the seeds that both "
    "sides have, in pairs of one seed, which share their initial weights; where seeds differ, the "
    "row compared with is repeated for each set of seeds. <strong>Bold</strong> is a comparison "
    "that was planned before the runs and is significant: by at least three seeds, after "
    "Holm's correction for its family (paired t test, 5%). All other comparisons are exploratory: "
    "they show where to look, and decide nothing. The paper's conclusions are judged apart, each "
    "on its own, by whatever runs there are."
)


@dataclass(frozen=True)
class _Experiment:
    """The results of one scale and engine, and what is said of them."""

    paper: Paper
    results: Results
    plan: Planned
    left_out: Sequence[tuple[str, int]] = ()
    """Runs, by row and seed, that the plan does not count."""

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

    @property
    def base(self) -> str:
        return self.rows[0]

    @cached_property
    def measure(self) -> str:
        """What rows are compared by first: the plan's measure, or AP of small objects."""
        for measure in (self.plan.primary, PRIMARY, "bbox.small"):
            if self._has(measure):
                return measure
        return PRIMARY

    def _has(self, measure: str) -> bool:
        return any(measure in run.ap for run in self.results.runs.values())

    @cached_property
    def kinds(self) -> list[str]:
        """Masks, boxes, or both."""
        return [kind for kind in TITLES if self._has(f"{kind}.all")]

    @cached_property
    def planned(self) -> dict[Statement, Difference]:
        """What was planned; of a statement in several families, by the one that is strictest."""
        found: dict[Statement, Difference] = {}
        for family in (*self.plan.families, self.plan.trends, self.plan.contrasts):
            for statement, change in family.judged(self.results).items():
                before = found.get(statement, change)
                found[statement] = max(before, change, key=lambda d: d.adjusted)
        return found

    def difference(
        self, statement: Statement, judged: Mapping[Statement, Difference] | None = None
    ) -> Difference | None:
        """What is measured of a statement; with its family's correction if it was planned.

        Args:
            statement: what is to be measured.
            judged: what one family says; None for all of them.
        """
        judged = self.planned if judged is None else judged
        return judged.get(statement) or statement.difference(self.results)

    @property
    def progress(self) -> tuple[int, int]:
        """How many of the planned runs and evaluations are finished, and how many there are."""
        runs = self.results.runs
        planned = [(row, seed) for row in self.plan.rows for seed in self.plan.seeds]
        return sum(run in runs and bool(runs[run].commit) for run in planned), len(planned)

    @cached_property
    def verdicts(self) -> list[tuple[Claim, dict[str, Verdict]]]:
        return [
            (claim, {m: judge(claim, m, self.results) for m in claim.metrics})
            for claim in self.paper.claims
        ]

    @cached_property
    def conclusions(self) -> list[str]:
        """Whether each holds here, for masks and boxes together where they agree."""
        said = []
        for _, verdicts in self.verdicts:
            found = _by_status(verdicts)
            found.pop(Status.UNMEASURED, None)
            each = [f"{_metric_name(*metrics)}: {s.value}" for s, metrics in found.items()]
            said.append("; ".join(each) if len(found) > 1 else next((s.value for s in found), "-"))
        return said

    @cached_property
    def changes(self) -> dict[str, Difference]:
        """Of each other row, as far as it is measured, how far it is from the base."""
        each = {r: self.difference(above(r, self.base, self.measure)) for r in self.rows[1:]}
        return {row: change for row, change in each.items() if change}

    @property
    def enough(self) -> int:
        """How many common seeds make a row one that may be the best."""
        return min(FEWEST, max((len(d.values) for d in self.changes.values()), default=0))

    def best(self) -> tuple[str, Difference] | None:
        """The row that is furthest above the base for small objects.

        Of those with as many common seeds as any, or three.
        """
        sure = [(row, d) for row, d in self.changes.items() if len(d.values) >= self.enough]
        return max(sure, key=lambda item: item[1].mean, default=None)

    def beside(self, row: str) -> str:
        """The AP of small objects of the baseline, or what another row gains on it."""
        if row == self.base:
            return self._measured(row, row, PRIMARY, self.results.seeds(row), None)
        change = self.difference(above(row, self.base))
        if change is None:
            return "-"
        base = float(np.mean(self.results.values(self.base, PRIMARY, change.seeds)))
        text = _gained(change.mean, base)
        return strong(text) if change.decided else text

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
        kind, size = _words(self.measure)
        low, _ = interval(gain.values)
        fewer = any(len(d.values) < self.enough for d in self.changes.values())
        of = f" of those with {self.enough} seeds or more" if fewer else ""
        (evidence,) = _TEXTS(
            "evidence", gain=gain, seeds=seeds_text(gain.seeds), low=low, progress=self.progress
        )
        task = self.measure.partition(".")[0]
        costs = [
            f"AP of {other} objects {_points(change)}"
            for other in SIZES[1:3]
            if (change := self.difference(above(row, self.base, f"{task}.{other}")))
        ]
        at = "; ".join([*costs, self._time(row)])
        said = "{0}: {1} is best for {2} objects{3}, {4} AP {5} against {6}. {7}. {8}."
        if gain.mean <= 0:
            said = (
                "{0}: no row{3} is above {6} for {2} objects; {1} is nearest, {4} AP {5}. {7}. {8}."
            )
        answer = Markup(said).format(
            where,
            code(row),
            size,
            of,
            kind,
            _points(gain),
            code(self.base),
            f"{at[0].upper()}{at[1:]}",
            f"{evidence[0].upper()}{evidence[1:]}",
        )
        notes = [f"About {self.data}: {self.plan.note}"] if self.plan.note else []
        told = self._told(above(row, self.base, self.measure))
        return [answer, *notes, *told, *self._found_again()]

    def _told(self, answered: Statement) -> list[str]:
        """What else was planned and is significant; the answer may not be."""
        told = {s: d for s, d in self.planned.items() if d.decided and s != answered}
        against: dict[str, list[str]] = {}
        others = []
        for one, change in sorted(told.items(), key=lambda item: -item[1].mean):
            if one.weights == (1.0, -1.0):
                row, base = one.rows
                against.setdefault(base, []).append(f"{row} {_signed(change.mean)}")
            else:
                others.append(f"{one.name} {_signed(change.mean)}")
        parts = [*(f"{', '.join(rows)}, against {base}" for base, rows in against.items()), *others]
        if not parts:
            return []
        return [f"Planned, and significant on {self.data}, in points: {'; '.join(parts)}."]

    def _time(self, row: str) -> str:
        """What a row takes against the base, over common seeds."""
        for time, what in (
            ("iteration", "time of an iteration"),
            ("seconds", "time of a run by the clock, pauses included,"),
        ):
            ratios = {}
            for seed in self.results.seeds(row, self.base):
                own, base = (getattr(self.results.runs[r, seed], time) for r in (row, self.base))
                if own and base:
                    ratios[seed] = own / base
            if ratios:
                median = np.median([*ratios.values()])
                of = "median of " if len(ratios) > 1 else ""
                return f"{what} x {median:.2f} ({of}{_named([*ratios])})"
        return "time not known"

    def _found_again(self) -> list[str]:
        """What of the paper was found again, what was not, and what is not decided."""
        said: dict[Status, list[str]] = {status: [] for status in Status}
        number = Counter[str]()
        for claim, found in self.verdicts:
            for status, metrics in _by_status(found).items():
                said[status].append(f"{claim.text.removesuffix('.')} ({_metric_name(*metrics)})")
                number[status.name.lower()] += len(metrics)
        if number.total() == number["unmeasured"]:
            return []
        holds, fails = said[Status.HOLDS], said[Status.FAILS]
        facts = {"data": self.data, "own": self.own, "number": number, "planned": self.planned}
        return _TEXTS("found_again", holds=holds, fails=fails, **facts)

    # --- The sections

    def write(self, document: Document) -> None:
        """Add all of it."""
        about = self.results.about
        document.heading(f"{self.data}: scale {about['scale']}, engine {about['engine']}")
        document.items(self._facts())
        if self.results.failed:
            document.text("Runs that failed, and are in no table:")
            document.items(
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
        about, runs = self.results.about, self.results.runs
        trained = {key: run.seconds for key, run in runs.items() if "@" not in key[0]}
        truth = about["ground_truth"].get("validation", {})
        left_out: dict[str, list[str]] = {}
        for row, each in groupby(self.left_out, key=lambda run: run[0]):
            left_out.setdefault(seeds_text([seed for _, seed in each]), []).append(row)
        return _TEXTS(
            "facts",
            about=about,
            trained=trained,
            rows=[*Counter(row for row, _ in trained).values()],
            each=float(np.median([*trained.values()])),
            all=sum(run.seconds for run in runs.values()),
            pasted=len(runs) > len(trained),
            versions=[f"{package} {version}" for package, version in about["versions"].items()],
            objects=[f"{truth[s]:,} {s}" for s in SIZES[:3] if s in truth],
            progress=self.progress,
            left_out=[f"seeds {s} of {', '.join(rows)}" for s, rows in left_out.items()],
        )

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
        best = replace(self, results=self.results.keep(lambda row, _: row in known)).best()
        if best and best[1].mean > 0:
            document.heading("Beyond the paper", 3)
            document.text(
                _with(
                    "Against {}, the paper's row that gains most here in "
                    f"{_title(self.measure, capital=False)}.",
                    best[0],
                )
            )
            self._against(document, [best[0], *others], best[0])

    def _against(self, document: Document, rows: Sequence[str], base: str) -> None:
        for kind in self.kinds:
            self._table(document, kind, {row: code(row) for row in rows}, base)
        kind, _ = self.measure.split(".")
        if same := seed_by_seed(self.results, rows, base, kind):
            by = _words(self.measure)[0]
            document.text(f"In every seed alike, of three or more, by {by} AP, {same}.")

    def _table(
        self,
        document: Document,
        kind: str,
        names: Mapping[str, str],
        base: str,
        table: int = 0,
    ) -> None:
        """Rows against one of them: for each set of common seeds, that one and the others.

        Of a table of the paper it shows the published numbers, too, and in bold what its own
        family decides.
        """
        published = table > 0
        own = (f.judged(self.results) for f in self.plan.families if f.name == f"table {table}")
        judged = next(own, None)
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
                    cells.append(self._measured(row, base, f"{kind}.{size}", seeds, judged))
                body.append(cells)
        document.add(Table(header, body, text=2, rules=starts if len(sets) > 1 else ()))

    def _published(self, config: str, base: str, metric: str) -> str:
        ap = self.paper.ap(config, metric)
        if config == base:
            return _unsigned(ap)
        return f"{_unsigned(ap)} ({_signed(ap - self.paper.ap(base, metric))})"

    def _measured(
        self,
        row: str,
        base: str,
        metric: str,
        seeds: Sequence[int],
        judged: Mapping[Statement, Difference] | None,
    ) -> str:
        values = self.results.values(row, metric, seeds)
        if not values:
            return "-"
        text = _unsigned(float(np.mean(values)))
        if len(values) > 1:
            text += f" ±{_unsigned(spread(values))}"
        change = self.difference(above(row, base, metric), judged)
        if row == base or change is None:
            return text
        bracket = f"({_signed(change.mean)})"
        return Markup("{} {}").format(text, strong(bracket) if change.decided else bracket)

    # --- Statistics

    def _comparisons(self, document: Document) -> None:
        """The primary measure of every row, with all that says how sure it is."""
        lines: list[_Line] = []
        starts = []
        absent = []
        disagree = []

        def add(name: str, statement: Statement, change: Difference) -> None:
            row, base = statement.rows
            found = self.results.interval_over_images(row, base, change.seeds)
            if not found or statement.measure != PRIMARY:
                lines.append((name, change, "-"))
                return
            seeds, over = found
            some = "" if seeds == change.seeds else f" ({_named(seeds)})"
            lines.append((name, change, _interval(over, change.mean) + some))
            values = [v for v, s in zip(change.values, change.seeds, strict=True) if s in seeds]
            of_same = interval(values)
            if len(seeds) > 1 and _sign(over) != _sign(of_same):
                if some:
                    some = f" ({_named(seeds)}, {_interval(of_same)} over these)"
                disagree.append(name + some)

        for family in self.plan.families:
            starts.append(len(lines))
            judged = family.judged(self.results)
            for one in family.statements:
                if one in judged:
                    add(f"{family.name}: {one.name}", one, judged[one])
                else:
                    absent.append(f"{family.name}: {one.name}")
        if not lines:
            absent = []  # all of it, which the number of interim runs says
        starts.append(len(lines))
        for one in (above(row, self.base, self.measure) for row in self.rows[1:]):
            change = self.difference(one)
            if change and one not in self.planned:
                add(one.name, one, change)
        if not lines:
            return
        document.heading(f"How sure: {_title(self.measure, capital=False)}", 3)
        document.add(_sure("Comparison", lines, "95% over images", starts))
        families = [*self.plan.families, self.plan.trends, self.plan.contrasts]
        each = (family.judged(self.results).values() for family in families)
        number = sum(any(len(d.values) >= FEWEST for d in of_family) for of_family in each)
        document.text(
            *_TEXTS(
                "sure",
                absent=absent,
                disagree=disagree,
                families=number,
                trends=bool(self.plan.trends.statements),
                by_chance=1 - LEVEL**number,
            )
        )

    def _trends(self, document: Document) -> None:
        """Slopes over the number of pastes, those of the plan first; then its contrasts."""
        every = [*self.plan.trends.statements]
        for number, name in _COPIES.items():
            rows = [r for r in self.paper.tables[number]["rows"] if "pasted" in r]
            there = [r for r in rows if self.results.seeds(r["config"])]
            if len(there) > 2:
                at = [r["pasted"] for r in there]
                name += f", pasted {', '.join(map(str, at[:-1]))} or {at[-1]} times"
                found = trend(name, [r["config"] for r in there], at, self.measure)
                every += [found] if found not in every else []
        lines: list[_Line] = []
        for one in (*every, *self.plan.contrasts.statements):
            if change := self.difference(one):
                name = f"{one.name} ({_metric_name(one.measure)})"
                known = all(row in self.paper.numbers for row in one.rows)
                lines.append((name, change, _signed(one.of(self.paper.ap)) if known else "-"))
        if not lines:
            return
        document.heading("Trends and contrasts", 3)
        document.add(_sure("", lines, "" if self.own else "In the paper"))
        document.text(*_TEXTS("trends"))

    def _conclusions(self, document: Document) -> None:
        rows = []
        count: Counter[Status] = Counter()
        absent: Counter[Why] = Counter()
        for claim, verdicts in self.verdicts:
            reasons = [v.why for v in verdicts.values() if v.why]
            if len(reasons) == len(verdicts):
                absent[reasons[0]] += len(reasons)
                continue
            for at, (metric, verdict) in enumerate(verdicts.items()):
                count[verdict.status] += 1
                rows.append(
                    [
                        *([claim.section, claim.text] if at == 0 else ["", ""]),
                        _metric_name(metric),
                        "yes" if claim.holds(self.paper.ap, metric) else "no",
                        verdict.status.value,
                        *_margin(verdict),
                        seeds_text(verdict.seeds) or "-",
                    ]
                )
        if self.own and not rows:
            return
        document.heading("The paper's conclusions", 3)
        said = [f"{s.value}: {count[s]}" for s in Status if count[s]]
        for why, number in absent.items():
            if not (why is Why.ROWS and self.own):
                said.append(f"not measured for want of {why.value}: {number}")
        if said:
            document.text("; ".join(said).capitalize() + ".")
        if self.data != COCO_VAL:
            document.text(*_TEXTS("elsewhere", data=self.data))
        if not rows:
            return
        document.add(Table(_CONCLUSIONS, rows, text=3, long=(1,), tones=_TONES))
        every = [v for _, verdicts in self.verdicts for v in verdicts.values()]
        comparisons = sum(len(v.seeds) >= FEWEST for v in every)
        by_chance = (1 - LEVEL) * comparisons
        document.text(*_TEXTS("conclusions", comparisons=comparisons, by_chance=by_chance))

    # --- Pictures

    def _pictures(self, document: Document) -> None:
        name = f"{self.scale}_{self.results.about['engine']}"
        if self.base != "baseline" or len(self.rows) < 2 or not self._has(PRIMARY):
            return  # they show masks
        shown = {}
        if any(self.results.seeds(row, metrics=["segm.large"]) for row in self.rows):
            shown["trade_off"] = figures.trade_off
        tables = [row["config"] for t in _COPIES for row in self.paper.tables[t]["rows"][1:]]
        if any(self.results.seeds(row) for row in tables):
            shown["copies"] = figures.copies
        for what, figure in shown.items():
            svg = figure(self.paper, self.results, beside=not self.own)
            document.add(Picture(f"{name}_{what}", svg, "svg", *_TEXTS(what)))
        rows = [row for row in self.rows[1:] if self.results.by_size(row, self.base)[0]]
        if len(rows) > figures.MOST_ROWS:
            rows = [r for r in rows if r in _SHOWN or r not in self.paper.numbers]
        if rows:
            svg = figures.gain_by_size(
                self.results, rows[: figures.MOST_ROWS], self.base, self._bands()["pixels"]
            )
            document.add(Picture(f"{name}_sizes", svg, "svg", *_TEXTS("sizes")))

    # --- Tables of the paper

    def _paper_table(self, document: Document, number: int, content: dict[str, Any]) -> None:
        """A table of the paper, its numbers beside the measured ones; left out if it has none."""
        every: list[dict[str, str]] = content["rows"]
        lines = [line for line in every if self.results.seeds(line["config"])]
        if len(lines) < 2 or lines[0] != every[0]:
            return
        document.heading(f"Table {number}: {content['title']}", 3)
        names = {line["config"]: line["row"] for line in lines}
        for kind in self.kinds:
            self._table(document, kind, names, every[0]["config"], number)
        if absent := [line["row"] for line in every if line not in lines]:
            document.text(f"Not run: {', '.join(absent)}.")

    def _pasted(self, document: Document) -> None:
        """Section 6.2: rows that are evaluated on the augmented validation set, too."""
        rows = []
        for row in self.rows:
            pair = (row, f"{row}@{AUGMENTED_VAL}")
            seeds = self.results.seeds(*pair)
            if not seeds:
                continue
            published = [self.paper.numbers.get(c, {}).get(self.measure, math.nan) for c in pair]
            aps = [self.results.values(c, self.measure, seeds) for c in pair]
            measured = [float(np.mean(ap)) if ap else math.nan for ap in aps]
            gains = [measured] if self.own else [published, measured]
            cells = [text for before, after in gains for text in _gain(before, after)]
            rows.append([pair[0], seeds_text(seeds), *cells])
        if not rows:
            return
        document.heading("Section 6.2: evaluated where small objects are pasted", 3)
        header = [_title(self.measure), "Seeds"]
        for what in ["measured"] if self.own else ["paper", "measured"]:
            header += [what, f"{what}, pasted", f"{what}, gain"]
        document.add(Table(header, rows, text=2))
        document.text(
            Markup(
                "The validation images with the pastes of <code>configs/aug.yaml</code>. The paper "
                "takes the gain of its row for a sign that the model has learned to see pasted "
                "objects. The baseline, which saw none, is the control: its gain is what these "
                "images are easier by."
            )
        )

    def _bands(self) -> dict[str, Any]:
        """AP by size of a run of the baseline, for the sizes and their objects; empty without."""
        every = (run.by_size for (row, _), run in self.results.runs.items() if row == self.base)
        return next(filter(None, every), {})

    def _sizes(self, document: Document) -> None:
        """AP of each row by octaves of size, and the change to the baseline."""
        sizes = self._bands()
        if not sizes:
            return
        document.heading("By size of the objects", 3)
        kind, _ = _words(f"{self.kinds[0]}.all")
        document.text(
            _with(
                f"{kind.capitalize()} AP between sides in pixels (of a square of the object's "
                "area), and the change to {}; means over the seeds that both have. Looked at, not "
                "tested. AI-TOD calls 8 to 16 pixels tiny and 16 to 32 small.",
                self.base,
            )
        )
        bands, small = sizes["pixels"], sizes["small"]
        body = [["objects", "", *(f"{b['objects']:,}" for b in (*bands, small, small))]]
        for row in self.rows:
            seeds, measured = self.results.by_size(row, self.base)
            if not seeds:
                continue
            own, base = measured.mean(axis=0)
            cells = [_unsigned(ap) for ap in own]
            if row != self.base:
                cells = [
                    text if text == "-" else f"{text} ({_signed(change)})"
                    for text, change in zip(cells, own - base, strict=True)
                ]
            body.append([code(row), seeds_text(seeds), *cells])
        header = ["", "Seeds", *map(side, bands), "small: AP50", "small: recall"]
        document.add(Table(header, body, text=2))

    def _training_images(self, document: Document) -> None:
        tables = self.results.table2
        if not tables:
            return
        data = tables[0].data
        document.heading("The training images, by Table 2", 3)
        facts = {"table": tables[0], "small": tables[0].rows["small"], "nearly_all": NEARLY_ALL}
        document.text(*_TEXTS("training_images", scenes=data in SCENES, **facts))
        named = [replace(t, data=f"{data}, {t.protocol} protocol") for t in tables]
        document.add(comparison([PUBLISHED, *named]))


_SHOWN = ("oversample_3x", "aug", "orig_aug", "orig_aug_multi3x", "orig_aug_overlap")
"""The paper's rows in the picture by size, where there are more than can be told apart."""

_CONCLUSIONS = ["Section", "Conclusion", "AP", "In the paper's tables", "Here", "Margin"]
_CONCLUSIONS += ["Could have shown", "Seeds"]

_Line = tuple[str, Difference, str]
"""What a difference is of, the difference, and what else there is to say."""


def _sure(title: str, lines: Sequence[_Line], more: str, rules: Sequence[int] = ()) -> Table:
    """How sure differences are; `more` is over what else there is to say, if anything."""
    header = [title, "Seeds", "Difference", "95% over seeds", *filter(None, [more])]
    body = []
    for name, change, other in lines:
        ends = interval(change.values)
        mean = _signed(change.mean, *ends)
        body.append(
            [
                name,
                seeds_text(change.seeds),
                strong(mean) if change.decided else mean,
                _interval(ends, change.mean),
                *([other] if more else []),
                _p(p_value(change.values)),
                _p(change.adjusted) if change.planned else "exploratory",
                _unsigned(change.least),
            ]
        )
    return Table([*header, "p", "Holm p", "Could have shown"], body, text=2, long=(0,), rules=rules)


def seed_by_seed(results: Results, rows: Sequence[str], base: str, kind: str = "segm") -> str:
    """Which rows are above another in each of at least three seeds, which below; "" for none."""
    parts = []
    for size in SIZES[:3]:
        metric = f"{kind}.{size}"
        changes = {r: above(r, base, metric).difference(results) for r in rows if r != base}
        sure = {row: d.values for row, d in changes.items() if d and len(d.values) >= FEWEST}
        for sign, word in ((1, "above"), (-1, "below")):
            if found := [row for row, each in sure.items() if all(sign * v > 0 for v in each)]:
                others = ", ".join(row for row in sure if row not in found)
                which = ", ".join(found)
                if len(found) > 6 and len(others) < len(which):
                    which = f"all rows but {others}" if others else "all rows"
                parts.append(f"for {size} objects {word} {base}: {which}")
    return "; ".join(parts)


def _with(text: str, row: str) -> Markup:
    """A sentence with the name of a row."""
    return Markup(text).format("the baseline" if row == "baseline" else code(row))


def _words(metric: str) -> tuple[str, str]:
    """Of what an AP is, mask or box, and of objects of which size."""
    kind, size = metric.split(".")
    return "mask" if kind == "segm" else "box", size


def _by_status(verdicts: Mapping[str, Verdict]) -> dict[Status, list[str]]:
    """The metrics of each status that there is."""
    found: dict[Status, list[str]] = {}
    for metric, verdict in verdicts.items():
        found.setdefault(verdict.status, []).append(metric)
    return found


def _metric_name(*metrics: str) -> str:
    """Of masks and boxes together, where they are about the same size of objects."""
    kinds: dict[str, list[str]] = {}
    for kind, size in map(_words, metrics):
        kinds.setdefault(size, []).append(kind)
    return "; ".join(f"{' and '.join(of)}, {size}" for size, of in kinds.items())


def _title(metric: str, *, capital: bool = True) -> str:
    kind, size = _words(metric)
    return f"{kind.capitalize() if capital else kind} AP of {size} objects"


def _sign(ends: tuple[float, float]) -> int:
    """On which side of zero an interval is; 0 if it holds zero or there is none."""
    return int(ends[0] > 0) - int(ends[1] < 0)


def _margin(verdict: Verdict) -> list[str]:
    """The margin and the smallest that could have been shown, where none was."""
    if math.isnan(verdict.mean):
        return ["-", "-"]
    if math.isnan(verdict.half):
        return [_signed(verdict.mean), "-"]
    both = verdict.mean - verdict.half, verdict.mean + verdict.half
    ends = _interval(both, verdict.mean)
    could = verdict.status is Status.OPEN and len(verdict.seeds) >= FEWEST
    least = _unsigned(verdict.half) if could else "-"
    return [f"{_signed(verdict.mean, *both)} ({ends})", least]


def _unsigned(ap: float) -> str:
    """In points."""
    return cell(100 * ap, f"{{:.{_decimals(ap)}f}}")


def _signed(ap: float, *beside: float) -> str:
    """A difference in points with its sign, which zero does not have.

    It has the decimals of the most exact of those beside it.
    """
    decimals = max(map(_decimals, (ap, *beside)))
    text = f"{100 * ap:+.{decimals}f}"
    return f"{0:.{decimals}f}" if float(text) == 0 else text


def _decimals(ap: float) -> int:
    """One, or two where one would leave nothing: some AP is small, and differences smaller."""
    return 2 if 0.005 <= 100 * abs(ap) < 0.05 else 1


def _gained(change: float, base: float) -> str:
    """A difference in points, and as a share of what it is a difference to."""
    return f"{_signed(change)} ({_share(change, base)})"


def _share(change: float, base: float) -> str:
    text = cell(100 * change / base if base else math.nan, "{:+.0f} %")
    return "0 %" if text in ("+0 %", "-0 %") else text


def _named(seeds: Sequence[int]) -> str:
    """``seed 3`` or ``seeds 0-3``."""
    return f"seed{'s' if len(seeds) > 1 else ''} {seeds_text(seeds)}"


def _interval(ends: tuple[float, float], *beside: float) -> str:
    if math.isnan(ends[0]):
        return "-"
    return " to ".join(_signed(end, *ends, *beside) for end in ends)


def _points(change: Difference) -> str:
    """A difference for a sentence, with its interval."""
    ends = interval(change.values)
    text = f"{_signed(change.mean, *ends)} points"
    return text if math.isnan(ends[0]) else f"{text} (95%: {_interval(ends, change.mean)})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else cell(value, "{:.3f}")


def _gain(before: float, after: float) -> list[str]:
    return [_unsigned(before), _unsigned(after), _share(after - before, before)]
