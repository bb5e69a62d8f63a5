"""What was planned before the runs: ``experiments/plan.yaml``, whose comments explain its keys."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from smallobj_d2.errors import SmallObjError
from smallobj_d2.experiments.paper import AP
from smallobj_d2.experiments.results import Results
from smallobj_d2.experiments.statistics import LEVEL, Difference, holm, holm_factor, p_value, slope
from smallobj_d2.files import reading

PRIMARY = "segm.small"
_RULES = {
    "alpha": round(1 - LEVEL, 3),
    "test": "paired t over common seeds, two-sided",
    "correction": "holm",
}
"""What a plan may say of its tests, as they are done here."""
_COMPARISONS = ("families", "trends", "contrasts")


@dataclass(frozen=True)
class Statement:
    """One number of each seed, made of several rows, that a t test sets against zero.

    Two are the same if they say the same, whatever they are called.
    """

    name: str = field(compare=False)
    rows: tuple[str, ...]
    weights: tuple[float, ...]
    measure: str = PRIMARY

    def of(self, ap: AP) -> float:
        """The number, for the paper or for one seed."""
        return sum(
            w * ap(row, self.measure) for row, w in zip(self.rows, self.weights, strict=True)
        )

    def difference(self, results: Results) -> Difference | None:
        """Over the seeds that all rows have; None where there are none."""
        seeds = results.seeds(*self.rows, metrics=[self.measure])
        if not seeds:
            return None
        return Difference(tuple(self.of(results.of_seed(s)) for s in seeds), tuple(seeds))


def trend(name: str, rows: Sequence[str], at: Sequence[float], measure: str = PRIMARY) -> Statement:
    """How AP changes over `at`: the slope of a straight line through the rows."""
    if len(rows) != len(at) or len(set(at)) < 2:
        raise ValueError("a trend has other than one number in `at` for each of its rows")
    weights = (slope(at, unit) for unit in np.eye(len(at)).tolist())  # a slope is linear in the APs
    return Statement(f"{name}, slope", tuple(rows), tuple(weights), measure)


def contrast(
    name: str, plus: Sequence[str], minus: Sequence[str], measure: str = PRIMARY
) -> Statement:
    """The sum of some rows, less the sum of others."""
    weights = (1.0,) * len(plus) + (-1.0,) * len(minus)
    return Statement(name, (*plus, *minus), weights, measure)


def above(row: str, base: str, measure: str = PRIMARY) -> Statement:
    """By how much a row is above another."""
    return contrast(f"{row} - {base}", [row], [base], measure)


@dataclass(frozen=True)
class Family:
    """Statements whose p-values are corrected together."""

    name: str
    statements: tuple[Statement, ...] = ()

    def judged(self, results: Results) -> dict[Statement, Difference]:
        """Those with planned runs; corrected for the number of all, run or not."""
        found = {
            s: s.difference(results) if results.dated(*s.rows) else None for s in self.statements
        }
        p_values = [p_value(d.values) if d else float("nan") for d in found.values()]
        adjusted = holm(p_values)
        return {
            s: replace(
                d,
                planned=True,
                adjusted=adjusted[i],
                factor=holm_factor([*p_values[:i], *p_values[i + 1 :]]),
            )
            for i, (s, d) in enumerate(found.items())
            if d
        }


@dataclass(frozen=True)
class Planned:
    """What was planned for one scale. An empty one plans nothing."""

    seeds: tuple[int, ...] = ()
    more_seeds: tuple[int, ...] = ()
    """Those count that all rows have."""
    rows: tuple[str, ...] = ()
    families: tuple[Family, ...] = ()
    """Of rows, each against another."""
    trends: Family = Family("trends")
    contrasts: Family = Family("contrasts")
    primary: str = PRIMARY
    """The measure that its families compare."""
    note: str = ""
    """What readers of its results should know first."""

    @property
    def bases(self) -> tuple[str, ...]:
        """The rows that others are compared with: the baseline, and those of the families."""
        each = (s.rows[1] for family in self.families for s in family.statements)
        return tuple(dict.fromkeys(["baseline", *each]))

    def fitting(self, results: Results) -> "Planned":
        """Itself, or an empty plan where its rows have been run, and on no planned seed."""
        dated = {
            seed for (row, seed), run in results.runs.items() if run.commit and row in self.rows
        }
        return self if not dated or dated & {*self.seeds, *self.more_seeds} else Planned()

    def only(self, results: Results) -> Results:
        """Without the runs of planned rows that were not planned: other seeds, and older runs.

        A run that does not tell its commit is older than any plan. Where a row has no others, they
        stay, as exploratory ones.
        """
        with_commit = results.keep(lambda row, seed: bool(results.runs[row, seed].commit))
        whole = with_commit.seeds(*self.rows)
        seeds = {*self.seeds, *(s for s in self.more_seeds if s in whole)}
        dated = {row for row, _ in with_commit.runs if row in self.rows}
        return results.keep(
            lambda row, seed: (
                row not in dated or (seed in seeds and (row, seed) in with_commit.runs)
            )
        )


Plan = dict[str, Planned]
"""By scale."""


def load_plan(path: Path) -> Plan:
    """Read a plan; without the file, nothing is planned.

    Raises:
        SmallObjError: naming the file, if it is not a plan, or plans what is not done here.
    """
    if not path.is_file():
        return {}
    with reading(path):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        _require_known(data, path)
        return {
            str(scale): _planned(data, content or {}) for scale, content in data["scales"].items()
        }


def _require_known(data: dict[str, Any], path: Path) -> None:
    """Refuse a rule that is not applied here, and a row of no scale, as a misspelt one is."""
    for key, value in _RULES.items():
        if data.get(key, value) != value:
            raise SmallObjError(f"{path}: {key} is {data[key]!r}; only {value!r} is done here.")
    known = {row for scale in data["scales"].values() for row in (scale or {}).get("rows", [])}
    for one in (one for kind in _COMPARISONS for one in data.get(kind, [])):
        rows = [row for key in ("rows", "plus", "minus") for row in one.get(key, [])]
        for row in [*rows, one.get("base", rows[0])]:
            if row not in known:
                raise SmallObjError(f"{path}: {one['name']} has the row {row}, and no scale does.")


def _planned(data: dict[str, Any], scale: dict[str, Any]) -> Planned:
    """The statements of a plan of which a scale has all rows."""
    primary = data.get("primary", PRIMARY)
    rows = tuple(str(row) for row in scale["rows"])

    def family(name: str, statements: Iterable[Statement]) -> Family:
        return Family(name, tuple(s for s in statements if {*rows}.issuperset(s.rows)))

    families = [
        family(f["name"], (above(row, f["base"], primary) for row in f["rows"]))
        for f in data.get("families", [])
    ]
    trends = (
        trend(t["name"], t["rows"], t["at"], t.get("measure", primary))
        for t in data.get("trends", [])
    )
    contrasts = (
        contrast(c["name"], c["plus"], c["minus"], c.get("measure", primary))
        for c in data.get("contrasts", [])
    )
    return Planned(
        tuple(map(int, scale["seeds"])),
        tuple(map(int, scale.get("more_seeds", []))),
        rows,
        tuple(f for f in families if f.statements),
        family("trends", trends),
        family("contrasts", contrasts),
        primary,
        str(scale.get("note", "")),
    )
