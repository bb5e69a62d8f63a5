"""What an evaluated run has left in its folder: its config, its test set, its detections.

The detections lie in ``inference/coco_instances_results.json``, whatever the engine, or of several
test sets in a folder there for each.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fvcore.common.config import CfgNode
from pycocotools.coco import COCO

from smallobj_d2.datasets.coco import dataset_info, register_from_config
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import Result, counted_detections, load_ground_truth
from smallobj_d2.files import reading


class Evaluated(NamedTuple):
    """The last evaluation of a run."""

    dataset: str
    results: list[Result]
    detections: int
    """How many of an image and category count."""


def evaluated_run(folder: Path) -> Evaluated:
    """What a run found in its last evaluation, with training (run.json) or alone (eval.json).

    The datasets of its config are registered.

    Args:
        folder: a run's ``OUTPUT_DIR``.

    Raises:
        SmallObjError: if there is no run, or it has not evaluated anything yet.
    """
    records = [p for p in (folder / "run.json", folder / "eval.json") if p.is_file()]
    row = folder / "row.json"
    if not records or not row.is_file():
        raise SmallObjError(
            f"{folder} has no row.json with a run.json or eval.json beside it: it is no folder of "
            "a run that was evaluated."
        )
    last = max(records, key=lambda path: path.stat().st_mtime)
    with reading(last):
        cfg = CfgNode.load_cfg(json.loads(last.read_bytes())["config"])
    register_from_config(cfg)
    with reading(row):
        dataset = str(json.loads(row.read_bytes())["dataset"])
    return Evaluated(dataset, results_of_run(folder, dataset), counted_detections(cfg))


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


def ground_truth_of(dataset: str) -> COCO:
    """The annotations of a registered dataset, to evaluate against."""
    return load_ground_truth(dataset_info(dataset).json_file)


def runs_of_one_test_set(folders: Mapping[str, Path]) -> tuple[str, dict[str, Evaluated]]:
    """The test set that runs have in common, and what each has found in it.

    Args:
        folders: ``OUTPUT_DIR`` of each run, by name.

    Raises:
        SmallObjError: if they were evaluated on different sets, or one is no run.
    """
    runs = {name: evaluated_run(folder) for name, folder in folders.items()}
    datasets = {run.dataset for run in runs.values()}
    if len(datasets) > 1:
        raise SmallObjError(f"The runs have different test sets: {', '.join(sorted(datasets))}.")
    return datasets.pop(), runs
