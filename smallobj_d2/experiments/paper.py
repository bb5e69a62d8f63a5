"""The paper as data: the rows of its tables, and its claims as statements about them.

The data is ``experiments/paper.yaml``, whose head explains each key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import SIZES, TITLES
from smallobj_d2.experiments.statistics import slope

AP = Callable[[str, str], float]
"""``(config, metric) -> AP``, where a metric is ``segm.small``, ``bbox.all`` and so on."""


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper; see the head of ``claims`` in the file."""

    name: str
    section: str
    text: str
    relation: str
    rows: tuple[str, ...]
    metrics: tuple[str, ...]
    than: tuple[str, ...] = ()
    size: str = ""
    value: float = 0.0
    against_tables: tuple[str, ...] = ()

    @property
    def all_rows(self) -> list[str]:
        """The rows that it compares, each once."""
        return [*dict.fromkeys([*self.rows, *self.than])]

    def looks_at(self, metric: str) -> list[str]:
        """The metrics that `alternatives` reads for a metric."""
        return [metric, f"{metric.split('.')[0]}.{self.size}"] if self.size else [metric]

    def alternatives(self, ap: AP, metric: str) -> list[list[float]]:
        """By how much each comparison of the claim holds; below 0, it does not.

        The claim holds if all comparisons of any alternative do. With "best", each of the rows may
        be the one that none of the others is above; with "changes_less", each row may change what
        it changes more upwards or downwards.

        Args:
            ap: where the numbers come from: the paper, or one seed of a rerun.
            metric: one of ``metrics``.
        """
        rows = [ap(row, metric) for row in self.rows]
        than = [ap(row, metric) for row in self.than]
        match self.relation:
            case "above":
                return [[r - t for r, t in product(rows, than)]]
            case "below":
                return [[t - r for r, t in product(rows, than)]]
            case "best":
                return [[r - t for t in than] for r in rows]
            case "falling":
                return [[-slope(range(len(rows)), rows)]]
            case "changes_less":
                _, other = self.looks_at(metric)
                start = ap(self.than[0], other)
                changes = [
                    (r - than[0], ap(row, other) - start)
                    for row, r in zip(self.rows, rows, strict=True)
                ]
                # A change is less than another, whatever their signs, if the sum of both and the
                # other less this one have the same sign. Absolute values would add up noise.
                return [
                    [
                        m
                        for sign, (a, b) in zip(signs, changes, strict=True)
                        for m in (sign * (b - a), sign * (b + a))
                    ]
                    for signs in product((1, -1), repeat=len(rows))
                ]
            case "gain":
                # In AP, as the mean of ratios would grow with the noise of what is divided by.
                return [[rows[0] - (1 + self.value - 0.005) * than[0]]]
        raise SmallObjError(f"Claim {self.name}: there is no relation {self.relation!r}.")

    def holds(self, ap: AP, metric: str) -> bool:
        """Whether all comparisons of an alternative hold; a tie is enough for "best" and "gain"."""
        tie = self.relation in ("best", "gain")
        return any(
            all(m > 0 or (tie and m == 0) for m in margins)
            for margins in self.alternatives(ap, metric)
        )


@dataclass(frozen=True)
class Paper:
    """What the file says of AP."""

    tables: dict[int, dict[str, Any]]
    claims: list[Claim]
    numbers: dict[str, dict[str, float]] = field(repr=False)
    """Published AP by config (or ``config@dataset``) and metric."""

    def ap(self, row: str, metric: str) -> float:
        """A published AP."""
        return self.numbers[row][metric]

    def configs(self) -> list[str]:
        """The configs of all rows, each once, in the order of the tables."""
        rows = (row for table in self.tables.values() for row in table["rows"])
        return list(dict.fromkeys(row["config"] for row in rows))


def load_paper(path: str | Path) -> Paper:
    """Read ``experiments/paper.yaml``.

    Raises:
        SmallObjError: if two tables give one config different numbers.
    """
    data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    numbers: dict[str, dict[str, float]] = {}
    for table, content in data["tables"].items():
        for row in content["rows"]:
            found = _flat({kind: dict(zip(SIZES, row[kind], strict=True)) for kind in TITLES})
            if numbers.setdefault(row["config"], found) != found:
                raise SmallObjError(
                    f"{path}: table {table}, row {row['row']}: config {row['config']} has other "
                    "numbers in another table."
                )
    for row in data["elsewhere"]:
        aps = {kind: row[kind] for kind in TITLES if kind in row}
        numbers[f"{row['config']}@{row['dataset']}"] = _flat(aps)
    claims = [Claim(**{k: _tuple(v) for k, v in claim.items()}) for claim in data["claims"]]
    return Paper(data["tables"], claims, numbers)


def _flat(aps: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By metric what is by kind and size."""
    return {f"{kind}.{size}": ap for kind, each in aps.items() for size, ap in each.items()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
