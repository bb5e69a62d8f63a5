"""What was measured, in one small file per scale and engine: ``experiments/results/*.json``."""

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pycocotools.coco import COCO

from smallobj_d2.analysis.matching import match
from smallobj_d2.analysis.objects import objects_of
from smallobj_d2.analysis.protocols import PAPER, training_protocol
from smallobj_d2.analysis.table2 import Row, Table, table2
from smallobj_d2.config import get_cfg, load_cfg
from smallobj_d2.datasets.coco import dataset_info, load_coco, register_from_config
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import SIZES, counted_detections, load_ground_truth
from smallobj_d2.evaluation.bootstrap import resampled_ap, resampled_images
from smallobj_d2.evaluation.by_size import by_size
from smallobj_d2.evaluation.run_folder import config_of_run, dataset_of_run, results_of_run
from smallobj_d2.experiments.paper import AP
from smallobj_d2.experiments.runs import Run, State
from smallobj_d2.experiments.scales import Scale
from smallobj_d2.files import reading, writing

T = TypeVar("T")

KINDS = ("segm", "bbox")


@dataclass(frozen=True)
class Results:
    """The numbers of a sweep."""

    about: dict[str, Any]
    """``scale``, ``text``, ``engine``, ``device``, ``versions``, ``schedule``, ``ground_truth``;
    ``settings``, a short hash of each section that all rows share; ``validation``, the name of the
    dataset."""
    numbers: dict[tuple[str, int], dict[str, float]]
    """AP by (row, seed) and metric; a row evaluated elsewhere is ``config@dataset``."""
    seconds: dict[tuple[str, int], float]
    """Wall-clock time of each run, pauses of the machine included."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    table2: list[Table] = field(default_factory=list)
    """The training images by Table 2; none where they are COCO."""
    speed: dict[tuple[str, int], float] = field(default_factory=dict)
    """Median seconds of an iteration, where it was kept."""
    over_images: dict[tuple[str, str, tuple[int, ...]], tuple[float, float]] = field(
        default_factory=dict
    )
    """By (row, base, seeds): 95% interval over validation images of the difference in mask AP_S."""
    commits: dict[tuple[str, int], str] = field(default_factory=dict)
    """Of the code of each run, where it was kept."""
    by_size: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """``pixels`` and ``small`` of `smallobj_d2.evaluation.by_size.by_size`, of masks or else of
    boxes."""

    @property
    def rows(self) -> list[str]:
        """All rows with a finished run."""
        return sorted({row for row, _ in self.numbers})

    def seeds(self, *rows: str) -> list[int]:
        """The seeds for which all of these rows are finished."""
        found = [{seed for row, seed in self.numbers if row == name} for name in rows]
        return sorted(set.intersection(*found)) if found else []

    def of_seed(self, seed: int) -> AP:
        """The numbers of one seed, as the paper's are given."""
        return lambda row, metric: self.numbers[row, seed][metric]

    def values(self, row: str, metric: str, seeds: Sequence[int] | None = None) -> list[float]:
        """An AP of each seed, or of these; none where there is no object of that size."""
        each = [
            self.numbers[row, seed].get(metric)
            for seed in (self.seeds(row) if seeds is None else seeds)
        ]
        return [ap for ap in each if ap is not None]

    def differences(self, row: str, base: str, metric: str) -> dict[int, float]:
        """By how much a row is above another, by the seeds that both have."""
        pairs = {s: (self.numbers[row, s], self.numbers[base, s]) for s in self.seeds(row, base)}
        return {
            s: a[metric] - b[metric] for s, (a, b) in pairs.items() if metric in a and metric in b
        }

    def dated(self, *rows: str) -> bool:
        """Whether there are runs of all of these rows, and all tell the commit of their code."""
        return bool(self.seeds(*rows)) and all(
            key in self.commits for key in self.numbers if key[0] in rows
        )

    def keep(self, wanted: Callable[[str, int], bool]) -> "Results":
        """Only the runs of which that is true, given row and seed."""

        def kept(each: dict[tuple[str, int], T]) -> dict[tuple[str, int], T]:
            return {key: value for key, value in each.items() if wanted(*key)}

        return replace(
            self,
            numbers=kept(self.numbers),
            seconds=kept(self.seconds),
            speed=kept(self.speed),
            by_size=kept(self.by_size),
        )


def distil(scale: Scale, folder: Path, *, resamples: int = 0) -> dict[str, Any]:
    """Everything worth keeping of the runs in a folder, for a results file.

    Args:
        scale: of the runs.
        folder: ``<out>/<scale>/<engine>`` of ``smallobj reproduce``.
        resamples: of the validation images, for intervals over them; 0 leaves these out.

    Raises:
        SmallObjError: if no run is finished.
    """
    runs, failed, devices = [], [], set()
    versions: dict[str, set[str]] = {}
    requests, names = [], set()
    ground_truth: dict[str, dict[str, int]] = {}
    for config, seed, dataset, path in _folders(folder):
        run = Run(config, seed, path, {}, dataset)
        state = run.state()
        if state is State.FAILED:
            failed.append({"config": config, "seed": seed, "why": run.complaint()[:300]})
        if state is not State.FINISHED:
            continue
        with reading(path / "row.json"):
            row = json.loads((path / "row.json").read_bytes())
            name, counts = str(row["dataset"]), dict(row.get("ground_truth", {}))
            aps = {
                kind: {s: v if v is None else round(v, 5) for s, v in row[kind].items()}
                for kind in KINDS
                if kind in row
            }
        entry = {"config": config, "seed": seed, "seconds": round(run.seconds())}
        if dataset:
            entry["dataset"] = dataset
        entry |= aps
        if not dataset:
            entry |= training_log(path / "metrics.json")
            if sizes := _by_size(path, row):
                entry["by_size"] = {key: sizes[key] for key in ("pixels", "small")}
        runs.append(entry)
        if ground_truth.setdefault(dataset or "validation", counts) != counts:
            raise SmallObjError(
                f"{path} was evaluated on other ground truth ({_text(counts)}) than the runs "
                f"before it ({_text(ground_truth[dataset or 'validation'])}); move it elsewhere."
            )
        record = path / ("eval.json" if dataset else "run.json")
        if record.is_file():
            with reading(record):
                about = json.loads(record.read_bytes())
                devices.add(str(about["device"]))
                if about.get("commit"):
                    entry["commit"] = about["commit"]
                for package, version in about["versions"].items():
                    versions.setdefault(package, set()).add(str(version))
        if not dataset:
            requests.append(path / "request.yaml")
            names.add(name)
    if not runs:
        raise SmallObjError(f"No run in {folder} is finished.")
    about = {
        "scale": scale.name,
        "text": scale.about,
        "engine": folder.name,
        "device": sorted(devices),
        "versions": {k: ", ".join(sorted(v)) for k, v in sorted(versions.items())},
        "schedule": _schedule(requests),
        "settings": _settings(requests),
        "validation": ", ".join(sorted(names)),
        "ground_truth": ground_truth,
    }
    splits = scale.splits(folder.parent)
    tables = _table2_of(splits[0], requests[0]) if splits and requests else []
    return {
        "about": about,
        "table2": [t.as_json() for t in tables],
        "failed": failed,
        "runs": runs,
        "over_images": _over_images(folder, runs, resamples) if resamples else [],
    }


def _by_size(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """AP by size as the run has left it, or from its detections; nothing if it kept neither."""
    task = next(t for t in KINDS if t in row)
    if "by_size" in row:
        return dict(row["by_size"][task])
    if not (path / "inference").is_dir():
        return {}
    cfg, name = config_of_run(path), dataset_of_run(path)
    register_from_config(cfg)
    truth = load_ground_truth(dataset_info(name).json_file)
    limits = get_cfg().SMALLOBJ.SIZE_LIMITS
    return by_size(truth, results_of_run(path, name), task, limits, counted_detections(cfg))


def _over_images(
    folder: Path, runs: Sequence[dict[str, Any]], resamples: int
) -> list[dict[str, Any]]:
    """Of each row and base: a paired bootstrap over images of the mean difference in mask AP_S.

    The resamples are the same for all runs; a row counts if all seeds that it has in common with
    the base kept their detections.
    """
    truths: dict[str, tuple[COCO, NDArray[np.int64]]] = {}
    aps: dict[tuple[str, int], NDArray[np.float64]] = {}
    for run in runs:
        path = folder / run["config"] / f"seed{run['seed']}"
        if "dataset" in run or not (path / "inference").is_dir():
            continue
        cfg, name = config_of_run(path), dataset_of_run(path)
        detections = results_of_run(path, name)
        if not detections or "segmentation" not in detections[0]:
            continue
        if name not in truths:
            register_from_config(cfg)
            truth = load_ground_truth(dataset_info(name).json_file)
            truths[name] = truth, resampled_images(len(truth.imgs), resamples)
        truth, counts = truths[name]
        aps[run["config"], run["seed"]] = resampled_ap(
            truth, detections, counts, detections=counted_detections(cfg)
        )
    seeds: dict[str, set[int]] = {}
    for run in runs:
        if "dataset" not in run:
            seeds.setdefault(run["config"], set()).add(run["seed"])
    found = []
    for base, row in product(("baseline", "orig_aug"), seeds):
        common = sorted(seeds.get(base, set()) & seeds[row])
        if row == base or not common or any((r, s) not in aps for r in (row, base) for s in common):
            continue
        change = np.mean([aps[row, s] - aps[base, s] for s in common], axis=0)
        low, high = np.nanpercentile(change, (2.5, 97.5)).round(5).tolist()
        found.append({"row": row, "base": base, "seeds": common, "low": low, "high": high})
    return found


def training_log(path: Path, *, points: int = 10) -> dict[str, Any]:
    """What is worth keeping of a run's metrics.json, which either engine writes.

    Args:
        path: of the file; without it there is nothing.
        points: how many losses to keep.

    Returns:
        ``loss``: total loss by iteration; ``iteration`` and ``data``: median seconds of one
        iteration, and of its wait for data.
    """
    if not path.is_file():
        return {}
    with reading(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line for line in lines if "total_loss" in line]
        if not lines:
            return {}
        at = np.unique(np.linspace(0, len(lines) - 1, points).round().astype(int)).tolist()
        kept: dict[str, Any] = {
            "loss": {str(lines[i]["iteration"]): round(lines[i]["total_loss"], 3) for i in at}
        }
        for name, key in (("iteration", "time"), ("data", "data_time")):
            values = [line[key] for line in lines if key in line]
            if values:
                kept[name] = round(statistics.median(values), 4)
        return kept


def together(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """What `distil` gave at two times: of a run that is in both, the new numbers.

    Raises:
        SmallObjError: if they are of different experiments.
    """
    about, before = new["about"], old["about"]
    for key in ("scale", "engine", "schedule", "validation"):
        if about[key] != before[key]:
            raise SmallObjError(
                f"These runs cannot stand beside those in the results file: their {key} is "
                f"{about[key]}, and there it is {before[key]}."
            )
    for data in about["ground_truth"].keys() & before["ground_truth"].keys():
        now, then = about["ground_truth"][data], before["ground_truth"][data]
        if now and then and now != then:
            raise SmallObjError(
                "These runs cannot stand beside those in the results file: they were evaluated on "
                f"other ground truth ({data}: {_text(now)}; there {_text(then)})."
            )
    for section in about["settings"].keys() & before.get("settings", {}).keys():
        if not {*about["settings"][section]} & {*before["settings"][section]}:
            raise SmallObjError(
                "These runs cannot stand beside those in the results file: their settings under "
                f"{section} are others."
            )
    versions = {k: {*v.split(", ")} for k, v in before["versions"].items()}
    for package, version in about["versions"].items():
        versions.setdefault(package, set()).update(version.split(", "))
    runs = {(r["config"], r["seed"], r.get("dataset", "")): r for r in [*old["runs"], *new["runs"]]}
    finished = {(config, seed) for config, seed, _ in runs}
    return {
        "about": {
            **about,
            "device": sorted({*about["device"], *before["device"]}),
            "versions": {k: ", ".join(sorted(v)) for k, v in sorted(versions.items())},
            "ground_truth": {**before["ground_truth"], **about["ground_truth"]},
        },
        "table2": new["table2"] or old["table2"],
        "failed": [f for f in new["failed"] if (f["config"], f["seed"]) not in finished],
        "runs": [runs[key] for key in sorted(runs)],
        "over_images": new.get("over_images") or old.get("over_images", []),
    }


def _folders(folder: Path) -> list[tuple[str, int, str, Path]]:
    """Config, seed, dataset and folder of each run, in that order."""
    found = []
    for path in folder.rglob("seed*"):  # a row may be in a folder of its own kind
        number = path.name.removeprefix("seed")
        if not number.isdecimal():
            continue
        config = path.parent.relative_to(folder).as_posix()
        found.append((config, int(number), "", path))
        for other in path.iterdir():
            if (other / "attempts.json").is_file():
                found.append((config, int(number), other.name, other))
    return sorted(found)


def _schedule(requests: Sequence[Path]) -> dict[str, Any]:
    if not requests:
        return {}
    with reading(requests[0]):
        solver = yaml.safe_load(requests[0].read_text())["SOLVER"]
        return {"iterations": solver["MAX_ITER"], "images": solver["IMS_PER_BATCH"]}


def _settings(requests: Sequence[Path]) -> dict[str, list[str]]:
    """Short hashes of what a scale sets for the network and its training; of most rows only one."""
    found: dict[str, set[str]] = {}
    for path in requests:
        with reading(path):
            request = yaml.safe_load(path.read_text())
            for section in ("MODEL", "INPUT", "SOLVER"):
                text = json.dumps(request.get(section), sort_keys=True, default=str)
                digest = hashlib.sha256(text.encode()).hexdigest()[:12]
                found.setdefault(section, set()).add(digest)
    return {section: sorted(digests) for section, digests in found.items()}


def _text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {size}" for size, count in counts.items())


def _table2_of(split: Sequence[str], request: Path) -> list[Table]:
    """Table 2 of the training images, by the paper's protocol and by the network's anchors."""
    name, json_file, images = split
    if not Path(json_file).is_file():
        return []
    objects = objects_of(load_coco(json_file, images).records)
    protocols = (PAPER, training_protocol(load_cfg(request)))
    return [table2(objects, match(objects, p), data=name, protocol=p.name) for p in protocols]


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write what `distil` gives, a line for each run, so that a diff shows what was run anew."""
    parts = [
        f"{json.dumps(key)}: {json.dumps(value, indent=1)}"
        for key, value in content.items()
        if key != "runs"
    ]
    runs = ",\n".join(json.dumps(run) for run in content["runs"])
    with writing(path) as temporary:
        temporary.write_text("{" + ",\n".join(parts) + ',\n"runs": [\n' + runs + "\n]}\n")


def load_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        SmallObjError: if it is not one.
    """
    with reading(path):
        return parse_results(json.loads(path.read_bytes()))


def parse_results(data: dict[str, Any]) -> Results:
    """What `distil` gives, as `Results`."""
    numbers, seconds, speed, commits, sizes = {}, {}, {}, {}, {}
    for run in data["runs"]:
        row = str(run["config"]) + (f"@{run['dataset']}" if "dataset" in run else "")
        key = row, int(run["seed"])
        numbers[key] = {
            f"{kind}.{size}": float(run[kind][size])
            for kind in KINDS
            for size in SIZES
            if run.get(kind, {}).get(size) is not None
        }
        seconds[key] = float(run["seconds"])
        if "iteration" in run:
            speed[key] = float(run["iteration"])
        if "commit" in run:
            commits[key] = str(run["commit"])
        if "by_size" in run:
            sizes[key] = dict(run["by_size"])
    tables = [
        Table(**{**t, "rows": {s: _row(row) for s, row in t["rows"].items()}})
        for t in data["table2"]
    ]
    over_images = {
        (str(d["row"]), str(d["base"]), tuple(map(int, d["seeds"]))): (
            float(d["low"]),
            float(d["high"]),
        )
        for d in data.get("over_images", [])
    }
    about = data["about"]
    for name in ("scale", "text", "engine", "validation"):
        about[name] = str(about[name])
    for name in ("versions", "schedule", "ground_truth"):
        about[name].items()
    failed = [dict(f) for f in data["failed"]]
    return Results(about, numbers, seconds, failed, tables, speed, over_images, commits, sizes)


def _row(values: dict[str, float | None]) -> Row:
    return Row(**{k: float("nan") if v is None else v for k, v in values.items()})
