"""What was planned before the runs: ``experiments/plan.yaml``, whose comments explain its keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from smallobj_d2.errors import SmallObjError
from smallobj_d2.experiments.results import Results
from smallobj_d2.experiments.statistics import Difference, holm, p_value, slope

PRIMARY = "segm.small"
AP = Callable[[str, str], float]


@dataclass(frozen=True)
class Family:
    """Rows that are compared with one, and corrected together."""

    name: str
    base: str
    rows: tuple[str, ...]
    metric: str = PRIMARY

    def differences(self, results: Results) -> dict[str, Difference]:
        """Of each row with planned runs, over common seeds; corrected for all rows, run or not."""
        found = {row: difference(results, row, self.base, self.metric) for row in self.rows}
        planned = {row: d if results.dated(row, self.base) else None for row, d in found.items()}
        return _corrected(planned)


@dataclass(frozen=True)
class Statement:
    """One number of each seed, made of several rows, that a t test sets against zero."""

    name: str
    rows: tuple[str, ...]
    weights: tuple[float, ...]
    measure: str = PRIMARY
    at: tuple[float, ...] = ()
    """For a trend, whose number is a slope: where its rows stand."""

    def of(self, ap: AP) -> float:
        """The number, for the paper or for one seed."""
        values = [ap(row, self.measure) for row in self.rows]
        if self.at:
            return slope(self.at, values)
        return sum(w * v for w, v in zip(self.weights, values, strict=True))

    def difference(self, results: Results) -> Difference | None:
        """Over the seeds that all rows have; None where there are none."""
        seeds = [
            seed
            for seed in results.seeds(*self.rows)
            if all(self.measure in results.numbers[row, seed] for row in self.rows)
        ]
        if not seeds:
            return None
        return Difference(tuple(self.of(results.of_seed(s)) for s in seeds), tuple(seeds))


def trend(name: str, rows: Sequence[str], at: Sequence[float], measure: str = PRIMARY) -> Statement:
    """How AP changes over `at`: the slope of a straight line through the rows."""
    return Statement(name, tuple(rows), (), measure, tuple(at))


def contrast(
    name: str, plus: Sequence[str], minus: Sequence[str], measure: str = PRIMARY
) -> Statement:
    """The sum of some rows, less the sum of others."""
    weights = (1.0,) * len(plus) + (-1.0,) * len(minus)
    return Statement(name, (*plus, *minus), weights, measure)


def difference(results: Results, row: str, base: str, metric: str) -> Difference | None:
    """A row from another, over the seeds that both have; None where there are none."""
    found = results.differences(row, base, metric)
    return Difference(tuple(found.values()), tuple(found)) if found else None


def _corrected(found: dict[str, Difference | None]) -> dict[str, Difference]:
    adjusted = holm([p_value(d.values) if d else float("nan") for d in found.values()])
    return {
        name: replace(d, adjusted=p)
        for (name, d), p in zip(found.items(), adjusted, strict=True)
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
    trends: tuple[Statement, ...] = ()
    contrasts: tuple[Statement, ...] = ()

    def only(self, results: Results) -> Results:
        """Without the seeds of planned rows that were not planned.

        Runs that do not tell their commit are older than any plan, and stay, as exploratory ones.
        """
        whole = results.seeds(*self.rows)
        seeds = {*self.seeds, *(s for s in self.more_seeds if s in whole)}
        dated = {row for row in self.rows if results.dated(row)}
        return results.keep(lambda row, seed: row not in dated or seed in seeds)

    def judged(self, statements: Sequence[Statement], results: Results) -> dict[str, Difference]:
        """Trends or contrasts, by name, corrected together."""
        return _corrected(
            {s.name: s.difference(results) if results.dated(*s.rows) else None for s in statements}
        )


Plan = dict[str, Planned]
"""By scale."""


def load_plan(path: Path) -> Plan:
    """Read a plan; without the file, nothing is planned.

    Raises:
        SmallObjError: naming the file, if it is not a plan.
    """
    if not path.is_file():
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            str(scale): _planned(data, content or {}) for scale, content in data["scales"].items()
        }
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise SmallObjError(f"{path} is not a plan: {' '.join(repr(e).split())}") from e


def _planned(data: dict[str, Any], scale: dict[str, Any]) -> Planned:
    """What a scale has of the families, and the trends and contrasts of which it has all rows."""
    primary = data.get("primary", PRIMARY)
    there = {str(row) for row in scale["rows"]}
    families = [
        Family(f["name"], f["base"], tuple(r for r in f["rows"] if r in there), primary)
        for f in data.get("families", [])
        if f["base"] in there
    ]
    trends = [
        trend(t["name"], t["rows"], t["at"], t.get("measure", primary))
        for t in data.get("trends", [])
        if there.issuperset(t["rows"])
    ]
    if any(len(t.rows) != len(t.at) or len(set(t.at)) < 2 for t in trends):
        raise ValueError("a trend has other than one number in `at` for each of its rows")
    contrasts = [
        contrast(c["name"], c["plus"], c["minus"], c.get("measure", primary))
        for c in data.get("contrasts", [])
        if there.issuperset([*c["plus"], *c["minus"]])
    ]
    return Planned(
        tuple(map(int, scale["seeds"])),
        tuple(map(int, scale.get("more_seeds", []))),
        tuple(str(row) for row in scale["rows"]),
        tuple(f for f in families if f.rows),
        tuple(trends),
        tuple(contrasts),
    )
