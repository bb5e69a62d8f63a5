"""What an evaluated run has left in its folder: its config, its test set, its detections.

The detections lie in ``inference/coco_instances_results.json``, whatever the engine.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from fvcore.common.config import CfgNode

from smallobj_d2.datasets.coco import register_from_config
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.matches import Result
from smallobj_d2.files import reading


def config_of_run(folder: Path) -> CfgNode:
    """The config of a run's last evaluation, with training (run.json) or alone (eval.json).

    Args:
        folder: a run's ``OUTPUT_DIR``.

    Raises:
        SmallObjError: if there is no run, or it has not evaluated anything yet.
    """
    records = [p for p in (folder / "run.json", folder / "eval.json") if p.is_file()]
    if not records or not (folder / "row.json").is_file():
        raise SmallObjError(
            f"{folder} has no row.json with a run.json or eval.json beside it: it is no folder of "
            "a run that was evaluated."
        )
    last = max(records, key=lambda path: path.stat().st_mtime)
    with reading(last):
        return CfgNode.load_cfg(json.loads(last.read_bytes())["config"])


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
    path = next(filter(Path.is_file, places), None)
    if path is None:
        raise SmallObjError(f"{folder} has no inference/{name}: evaluate it with --eval-only.")
    with reading(path):
        results: list[Result] = json.loads(path.read_bytes())
        for result in results:
            float(result["score"]), result["category_id"]
            if len(result["bbox"]) != 4:
                raise ValueError(f"a box of {len(result['bbox'])} numbers")
    return results


def dataset_of_run(folder: Path) -> str:
    """What a run was evaluated on."""
    path = folder / "row.json"
    with reading(path):
        return str(json.loads(path.read_bytes())["dataset"])


def runs_of_one_test_set(folders: Mapping[str, Path]) -> tuple[str, dict[str, CfgNode]]:
    """The test set that runs have in common, registered, and the config of each.

    Args:
        folders: ``OUTPUT_DIR`` of each run, by name.

    Raises:
        SmallObjError: if they were evaluated on different sets, or one is no run.
    """
    configs = {name: config_of_run(folder) for name, folder in folders.items()}
    for cfg in configs.values():
        register_from_config(cfg)
    datasets = {dataset_of_run(folder) for folder in folders.values()}
    if len(datasets) > 1:
        raise SmallObjError(f"The runs have different test sets: {', '.join(sorted(datasets))}.")
    return datasets.pop(), configs
