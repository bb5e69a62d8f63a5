"""Table 2: how many objects, images, pixels and anchors each size has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

from smallobj_d2.analysis.matching import Matches, match
from smallobj_d2.analysis.objects import Objects
from smallobj_d2.analysis.protocols import LAYOUTS
from smallobj_d2.evaluation.ap import cell
from smallobj_d2.sizes import BANDS, SMALL_AREA
from smallobj_d2.visualization.document import strong


@dataclass(frozen=True)
class Row:
    """One size. Shares are of the whole table, from 0 to 1; what is not known is NaN."""

    objects: float
    object_share: float
    images: float
    image_share: float
    """Of all images of the dataset, those with an object of this size."""
    area_share: float
    matched: float
    """Anchors matched to objects of this size."""
    matched_share: float
    mean_matched: float
    mean_max_iou: float


@dataclass(frozen=True)
class Table:
    """Table 2 for one dataset and one protocol."""

    data: str
    """What was counted, as a person would call it."""
    protocol: str
    images: float
    objects: float
    rows: dict[str, Row]
    """By size: small, medium, large."""


def as_json(value: Any) -> Any:
    """A dataclass, or anything made of some, for a JSON file: null for what is not known."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


_NAN = math.nan
PUBLISHED = Table(
    "the paper, for COCO",
    "paper",
    118_287,
    860_001,
    {
        "small": Row(_NAN, 0.4143, _NAN, 0.5182, 0.0123, _NAN, 0.2996, 1.00, 0.29),
        "medium": Row(_NAN, 0.3432, _NAN, 0.7007, 0.1018, _NAN, 0.2554, 1.03, 0.57),
        "large": Row(_NAN, 0.2424, _NAN, 0.8228, 0.8859, _NAN, 0.4449, 2.54, 0.66),
    },
)
"""The paper's Table 2 as printed."""


def table2(
    objects: Objects, matches: Matches, *, data: str, protocol: str, small_area: float = SMALL_AREA
) -> Table:
    """Table 2.

    Args:
        objects: N objects in M images.
        matches: of the same N objects.
        data, protocol: names for the table.
        small_area: upper limit of a small object's area.
    """
    bands = objects.bands(small_area)
    area, anchors = objects.areas.sum(), matches.matched.sum()
    rows = {}
    for band, size in enumerate(BANDS):
        here = bands == band
        number, images = int(here.sum()), len(np.unique(objects.image[here]))
        matched = int(matches.matched[here].sum())
        rows[size] = Row(
            objects=number,
            object_share=_ratio(number, len(objects)),
            images=images,
            image_share=_ratio(images, objects.num_images),
            area_share=_ratio(objects.areas[here].sum(), area),
            matched=matched,
            matched_share=_ratio(matched, anchors),
            mean_matched=_ratio(matched, number),
            mean_max_iou=_ratio(matches.max_iou[here].sum(dtype=np.float64), number),
        )
    return Table(data, protocol, objects.num_images, len(objects), rows)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else _NAN


COLUMNS = (
    "Object count",
    "Images",
    "Total object area",
    "Matched anchors",
    "Average matching anchors",
    "Average max IoU",
)
"""The paper's columns, in its order."""


def cells(row: Row) -> list[str]:
    """One row of Table 2 as text, in the paper's columns."""
    shares = (row.object_share, row.image_share, row.area_share, row.matched_share)
    means = (row.mean_matched, row.mean_max_iou)
    return [*(cell(s, "{:.2%}") for s in shares), *(cell(m, "{:.2f}") for m in means)]


def side_by_side(tables: Sequence[Table]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table of text that compares several, size by size."""
    rows = [[size, t.data, *cells(t.rows[size])] for size in BANDS for t in tables]
    return ["Size", "Data", *COLUMNS], rows


@dataclass(frozen=True)
class Gain:
    """What the augmentation changes for small objects (the paper's Figure 4, in numbers)."""

    what: str
    before: float
    after: float
    form: str = "{:.2f}"
    """How to write the numbers; a form with a per cent sign is for shares."""

    def cells(self) -> list[str]:
        """Text: what, before, after, and the change."""
        if "%" in self.form:
            change = f"{(self.after - self.before) * 100:+.1f} points"
        else:
            change = f"x {self.after / self.before:.2f}" if self.before else "-"
        return [self.what, cell(self.before, self.form), cell(self.after, self.form), change]


def gains(
    before: Sequence[Table], after: Sequence[Table], epochs: float, images: int
) -> list[Gain]:
    """Compare a dataset, as it is, with the stream of draws that a config makes of it.

    Args:
        before, after: one table per protocol, in the same order.
        epochs: how many epochs the draws of ``after`` make.
        images: how many images of the dataset are drawn from.
    """
    b, a = before[0], after[0]
    old, new = b.rows["small"], a.rows["small"]
    found = [
        Gain("images drawn per epoch", images, a.images / epochs, "{:,.0f}"),
        Gain("small objects per epoch", old.objects, new.objects / epochs, "{:,.0f}"),
        Gain("small objects per image", old.objects / images, new.objects / a.images),
        Gain("images with small objects", old.images / images, new.image_share, "{:.1%}"),
        Gain("objects that are small", old.object_share, new.object_share, "{:.1%}"),
        Gain("object area that is small", old.area_share, new.area_share, "{:.1%}"),
    ]
    for x, y in zip(before, after, strict=True):
        old, new = x.rows["small"], y.rows["small"]
        per_image = (old.matched / images, new.matched / y.images)
        share = (old.matched_share, new.matched_share)
        found += [
            Gain(f"anchors of small objects per image, {x.protocol} protocol", *per_image),
            Gain(f"matched anchors that small objects have, {x.protocol}", *share, "{:.1%}"),
        ]
    return found


def layouts(objects: Objects, *, progress: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows of text: what each reading of section 3.2 gives (``docs/review/table2.md``).

    After each mean stands its standard error, images being what was sampled.
    """
    bands = objects.bands()
    header = ["Layout", *(f"{what}, {s}" for what in ("max IoU", "matched") for s in BANDS)]
    published = PUBLISHED.rows.values()
    rows: list[list[str]] = [
        [
            strong("published"),
            *(strong(f"{r.mean_max_iou:.2f}") for r in published),
            *(strong(f"{r.mean_matched:.2f}") for r in published),
        ]
    ]
    for name, protocol in LAYOUTS.items():
        matches = match(objects, protocol, progress=progress)
        means = [
            _mean_and_error(values[bands == band], objects.image[bands == band])
            for values in (matches.max_iou, matches.matched)
            for band in range(len(BANDS))
        ]
        rows.append([name, *means])
    return header, rows


def _mean_and_error(values: Any, image: Any) -> str:
    if not len(values):
        return "-"
    values = np.asarray(values, dtype=np.float64)
    mean = values.mean()
    spread = np.bincount(image, values - mean)  # per image, because its objects are alike
    return f"{mean:.2f} ± {math.sqrt((spread**2).sum()) / len(values):.2f}"
