"""AP and recall over size: runs beside each other, and by how much they differ."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import TITLES, aligned, cell
from smallobj_d2.evaluation.by_size import by_size, side
from smallobj_d2.evaluation.run_folder import runs_of_one_test_set
from smallobj_d2.visualization.plots import COLOURS, GREY, file_of, panels, plain, styled


def compare(
    folders: Mapping[str, Path], iou_type: str, limits: Sequence[float], *, suffix: str = "png"
) -> tuple[str, bytes]:
    """Runs on the same test set by size of the objects, as a table and as a picture.

    Args:
        folders: ``OUTPUT_DIR`` of each run by what to call it; the first is the base of the gains.
        iou_type: "segm" or "bbox".
        limits: sides in pixels between the bands, ascending.
        suffix: of the picture, ``png`` or ``svg``.

    Raises:
        SmallObjError: naming what a run lacks.
    """
    truth, runs = runs_of_one_test_set(folders)
    measures = {}
    for name, run in runs.items():
        if iou_type == "segm" and any("segmentation" not in r for r in run.results):
            raise SmallObjError(
                f"{folders[name]} has found boxes without masks; compare boxes (--boxes)."
            )
        measures[name] = by_size(truth, run.results, iou_type, limits, run.detections)
    text = "\n\n".join(
        aligned(_lines(measures, kind, f"{TITLES[iou_type]} by {what}"))
        for kind, what in (("pixels", "side in pixels"), ("relative", "share of the image's side"))
    )
    first, *_ = runs.values()
    return f"{first.dataset}\n{text}", over_size(measures, TITLES[iou_type], suffix=suffix)


def _lines(measures: Mapping[str, Any], kind: str, title: str) -> list[list[str]]:
    bands = {name: each[kind] for name, each in measures.items()}
    aps = {
        name: [math.nan if b["AP"] is None else 100 * b["AP"] for b in each]
        for name, each in bands.items()
    }
    first, *rest = bands
    return [
        [title, *(side(b, percent=kind == "relative") for b in bands[first])],
        ["objects", *(f"{b['objects']:,}" for b in bands[first])],
        *([name, *(cell(ap, "{:.1f}") for ap in each)] for name, each in aps.items()),
        *(
            [
                f"{name} - {first}",
                *(cell(b - a, "{:+.1f}") for a, b in zip(aps[first], aps[name], strict=True)),
            ]
            for name in rest
        ),
    ]


@styled
def over_size(measures: Mapping[str, Mapping[str, Any]], title: str, *, suffix: str) -> bytes:
    """AP and recall of each run by octave, and below how many objects there are.

    Args:
        measures: what `by_size` gives, by the name of the run.
        title: what AP is of.
        suffix: of the picture, ``png`` or ``svg``.
    """
    figure, axes = panels(10, 5.4, columns=2, rows=2, height_ratios=(3, 1), sharex=True)
    bands = next(iter(measures.values()))["pixels"]
    at = np.arange(len(bands))
    for column, (key, label) in enumerate((("AP", title), ("AR", "Average recall"))):
        axis, below = axes[:, column]
        for (name, each), colour in zip(measures.items(), COLOURS * len(measures), strict=False):
            heights = [100 * (np.nan if b[key] is None else b[key]) for b in each["pixels"]]
            axis.plot(at, heights, "o-", color=colour, label=plain(name))
        axis.set_title(label)
        axis.set_ylim(bottom=0)
        below.bar(at, [b["objects"] for b in bands], color=GREY)
        below.set_ylabel("objects")
        below.set_xticks(at, list(map(side, bands)), rotation=30, ha="right")
        below.set_xlabel("side in pixels, square root of the area")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return file_of(figure, suffix)
