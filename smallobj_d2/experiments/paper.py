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
from smallobj_d2.evaluation.ap import SIZES
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
        """The metrics that `margins` reads for a metric."""
        return [metric, f"{metric.split('.')[0]}.{self.size}"] if self.size else [metric]

    def margins(self, ap: AP, metric: str) -> list[float]:
        """By how much each comparison of the claim holds; below 0, it does not.

        Args:
            ap: where the numbers come from: the paper, or one seed of a rerun.
            metric: one of ``metrics``.
        """
        rows = [ap(row, metric) for row in self.rows]
        than = [ap(row, metric) for row in self.than]
        match self.relation:
            case "above":
                return [r - t for r, t in product(rows, than)]
            case "below":
                return [t - r for r, t in product(rows, than)]
            case "best":
                return [max(rows) - max(than)]
            case "falling":
                return [-slope(range(len(rows)), rows)]
            case "changes_less":
                _, other = self.looks_at(metric)
                start = ap(self.than[0], other)
                return [
                    abs(ap(row, other) - start) - abs(r - than[0])
                    for row, r in zip(self.rows, rows, strict=True)
                ]
            case "gain":
                return [rows[0] / than[0] - 1 - self.value + 0.005]
        raise SmallObjError(f"Claim {self.name}: there is no relation {self.relation!r}.")

    def holds(self, ap: AP, metric: str) -> bool:
        """Whether every comparison holds; a tie is enough for "best" and "gain"."""
        tie = self.relation in ("best", "gain")
        return all(m > 0 or (tie and m == 0) for m in self.margins(ap, metric))


@dataclass(frozen=True)
class Paper:
    """What the file says."""

    settings: dict[str, Any]
    coco_2017: dict[str, int]
    statistics: dict[str, dict[str, float]]
    tables: dict[int, dict[str, Any]]
    aliases: dict[str, str]
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
            found = {
                f"{kind}.{size}": ap
                for kind in ("segm", "bbox")
                for size, ap in zip(SIZES, row[kind], strict=True)
            }
            if numbers.setdefault(row["config"], found) != found:
                raise SmallObjError(
                    f"{path}: table {table}, row {row['row']}: config {row['config']} has other "
                    "numbers in another table."
                )
    for row in data["elsewhere"]:
        numbers[f"{row['config']}@{row['dataset']}"] = _flat(row)
    claims = [Claim(**{k: _tuple(v) for k, v in claim.items()}) for claim in data["claims"]]
    parts = ("settings", "coco_2017", "statistics", "tables", "aliases")
    return Paper(**{k: data[k] for k in parts}, claims=claims, numbers=numbers)


def _flat(row: Mapping[str, Any]) -> dict[str, float]:
    kinds = (kind for kind in ("segm", "bbox") if kind in row)
    return {f"{kind}.{size}": ap for kind in kinds for size, ap in row[kind].items()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
