"""What an evaluated run has left in its folder: which test set, and its detections.

The detections lie in ``inference/coco_instances_results.json``, whatever the engine, or of several
test sets in a folder there for each.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pycocotools.coco import COCO

from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import Result, load_ground_truth
from smallobj_d2.files import reading


class Evaluated(NamedTuple):
    """The last evaluation of a run."""

    folder: Path
    dataset: str
    json_file: Path
    """By its one name: no link, and absolute."""
    images: Path
    """The folder of its images."""
    results: list[Result]
    detections: int
    """How many of an image and category count."""


def evaluated_run(folder: Path) -> Evaluated:
    """What a run found in its last evaluation, with training or alone.

    Args:
        folder: a run's ``OUTPUT_DIR``.

    Raises:
        SmallObjError: if there is no run, or it has not evaluated anything yet.
    """
    path = folder / "row.json"
    if not path.is_file():
        raise SmallObjError(f"{folder} has no row.json: it is no folder of a run with evaluation.")
    with reading(path):
        row = json.loads(path.read_bytes())
        dataset, detections = str(row["dataset"]), int(row["detections"])
        files = Path(os.path.realpath(row["json_file"])), Path(row["images"])
    return Evaluated(folder, dataset, *files, results_of_run(folder, dataset), detections)


def results_of_run(folder: Path, dataset: str) -> list[Result]:
    """The detections that a run has left.

    Args:
        folder: a run's ``OUTPUT_DIR``.
        dataset: that it was evaluated on.

    Raises:
        SmallObjError: if they are not there.
    """
    name = "coco_instances_results.json"
    places = [folder / "inference" / dataset / name, folder / "inference" / name]
    # A run of one test set writes to the latter, of several to the former; the newest is meant.
    path = max(filter(Path.is_file, places), key=lambda p: p.stat().st_mtime_ns, default=None)
    if path is None:
        raise SmallObjError(f"{folder} has no inference/{name}: evaluate it with --eval-only.")
    with reading(path):
        results: list[Result] = json.loads(path.read_bytes())
        for result in results:
            float(result["score"]), result["category_id"]
            if len(result["bbox"]) != 4:
                raise ValueError(f"a box of {len(result['bbox'])} numbers")
    return results


def ground_truth_of(run: Evaluated, load: Callable[[Path], COCO] = load_ground_truth) -> COCO:
    """The annotations that a run was evaluated against.

    Args:
        run: what `evaluated_run` gives.
        load: reads the file; one that keeps what it has read, for several runs.

    Raises:
        SmallObjError: if they are not there, or are other ones now.
    """
    evaluate = "Evaluate the run again: smallobj train --eval-only with --val-json, --val-images."
    if not run.json_file.is_file():
        raise SmallObjError(
            f"{run.folder} was evaluated on {run.json_file}, which is not there. {evaluate}"
        )
    truth = load(run.json_file)
    found = {(r["image_id"], r["category_id"]) for r in run.results}
    if any(image not in truth.imgs or category not in truth.cats for image, category in found):
        raise SmallObjError(
            f"{run.json_file} lacks images or categories that {run.folder} has detections of: it "
            f"has changed since. {evaluate}"
        )
    return truth


def runs_of_one_test_set(folders: Mapping[str, Path]) -> tuple[COCO, dict[str, Evaluated]]:
    """The annotations of the test set that runs have in common, and what each has found in it.

    Args:
        folders: ``OUTPUT_DIR`` of each run, by name.

    Raises:
        SmallObjError: if they were evaluated on different sets, or one is no run.
    """
    runs = {name: evaluated_run(folder) for name, folder in folders.items()}
    files = sorted({str(run.json_file) for run in runs.values()})
    if len(files) > 1:
        raise SmallObjError(f"The runs have different test sets: {', '.join(files)}.")
    load = cache(load_ground_truth)
    truth, *_ = [ground_truth_of(run, load) for run in runs.values()]
    return truth, runs
