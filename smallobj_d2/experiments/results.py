"""What was measured, in one small file per scale and engine: ``experiments/results/*.json``."""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml
from numpy.typing import NDArray
from pycocotools.coco import COCO
from tqdm import tqdm

from smallobj_d2.analysis.matching import match
from smallobj_d2.analysis.objects import objects_of
from smallobj_d2.analysis.protocols import PAPER, training_protocol
from smallobj_d2.analysis.table2 import Row, Table, as_json, table2
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import SIZES, TITLES, load_ground_truth
from smallobj_d2.evaluation.bootstrap import resampled_ap, resampled_images
from smallobj_d2.evaluation.run_folder import evaluated_run, ground_truth_of
from smallobj_d2.experiments.paper import AP
from smallobj_d2.experiments.runs import HOW, Run, State
from smallobj_d2.experiments.scales import Scale
from smallobj_d2.files import reading, writing


@dataclass(frozen=True)
class Measured:
    """What is kept of one finished run."""

    ap: dict[str, float]
    """By metric, such as ``segm.small``; none for a size that no object has."""
    seconds: float
    """Wall-clock time, pauses of the machine included."""
    iteration: float | None = None
    """Median seconds of an iteration, where it was kept."""
    commit: str = ""
    """Of its code, where it was kept; of an installed package the version."""
    by_size: dict[str, Any] = field(default_factory=dict)
    """``pixels`` and ``small`` of `smallobj_d2.evaluation.by_size.by_size`, of masks or else of
    boxes."""


@dataclass(frozen=True)
class Results:
    """The numbers of a sweep."""

    about: dict[str, Any]
    """``scale``, ``text``, ``engine``, ``device``, ``versions``, ``schedule``, ``ground_truth``;
    ``settings``, a short hash of each section that all rows share; ``validation``, the name of the
    dataset."""
    runs: dict[tuple[str, int], Measured]
    """By row and seed; a row evaluated elsewhere is ``config@dataset``."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    table2: list[Table] = field(default_factory=list)
    """The training images by Table 2; none where they are COCO."""
    over_images: dict[tuple[str, str, tuple[int, ...]], tuple[float, float]] = field(
        default_factory=dict
    )
    """By (row, base, seeds): 95% interval over validation images of the difference in mask AP_S."""

    @property
    def rows(self) -> list[str]:
        """All rows with a finished run."""
        return sorted({row for row, _ in self.runs})

    def seeds(self, *rows: str, metrics: Iterable[str] = ()) -> list[int]:
        """The seeds for which all of these rows are finished, and have all of these metrics."""
        wanted = {*metrics}
        found = [
            {seed for (row, seed), run in self.runs.items() if row == name and wanted <= {*run.ap}}
            for name in rows
        ]
        return sorted(set.intersection(*found)) if found else []

    def of_seed(self, seed: int) -> AP:
        """The numbers of one seed, as the paper's are given."""
        return lambda row, metric: self.runs[row, seed].ap[metric]

    def values(self, row: str, metric: str, seeds: Sequence[int]) -> list[float]:
        """An AP of each of these seeds; none where there is no object of that size."""
        each = [self.runs[row, seed].ap for seed in seeds]
        return [ap[metric] for ap in each if metric in ap]

    def by_size(self, *rows: str) -> tuple[list[int], NDArray[np.float64]]:
        """AP by octaves of size, then AP50 and recall of small objects, where runs kept them.

        Of masks, or where no row has any, of boxes.

        Returns:
            The seeds of which all rows kept it, and (seeds, rows, measures); NaN where there are no
            objects.
        """
        each = {s: [self.runs[row, s] for row in rows] for s in self.seeds(*rows)}
        kept = {
            seed: [_measures(run.by_size) for run in of]
            for seed, of in each.items()
            if all(run.by_size for run in of) and len({"segm.all" in run.ap for run in of}) == 1
        }
        return [*kept], np.array([*kept.values()], dtype=np.float64)

    def interval_over_images(
        self, row: str, base: str, seeds: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[float, float]] | None:
        """Of the most of these seeds for which `over_images` has it; those, and its ends."""
        known = [
            (of, ends)
            for (*rows, of), ends in self.over_images.items()
            if rows == [row, base] and {*of} <= {*seeds}
        ]
        return max(known, key=lambda entry: len(entry[0]), default=None)

    def dated(self, *rows: str) -> bool:
        """Whether there are runs of all of these rows, and all tell the commit of their code."""
        return bool(self.seeds(*rows)) and all(
            run.commit for (row, _), run in self.runs.items() if row in rows
        )

    def keep(self, wanted: Callable[[str, int], bool]) -> "Results":
        """Only the runs of which that is true, given row and seed."""
        return replace(self, runs={key: run for key, run in self.runs.items() if wanted(*key)})


def distil(scale: Scale, folder: Path) -> dict[str, Any]:
    """Everything worth keeping of the runs in a folder, for a results file.

    Args:
        scale: of the runs.
        folder: ``<out>/<scale>/<engine>`` of ``smallobj reproduce``.

    Raises:
        SmallObjError: if no run is finished.
    """
    runs, failed, requests, versions = [], [], [], []
    devices, names = set(), set()
    ground_truth: dict[str, dict[str, int]] = {}
    for run in _runs(folder):
        state, path = run.state(), run.folder
        if state is State.FAILED:
            failed.append({**_key(run), "why": run.complaint()[:300]})
        if state is not State.FINISHED:
            continue
        entry = {**_key(run), "seconds": round(run.seconds())}
        with reading(path / "row.json"):
            row = json.loads((path / "row.json").read_bytes())
            name, counts = str(row["dataset"]), dict(row.get("ground_truth", {}))
            for kind in (k for k in TITLES if k in row):
                entry[kind] = {s: v if v is None else round(v, 5) for s, v in row[kind].items()}
        if not run.dataset:
            entry |= training_log(path / "metrics.json")
            if "by_size" in row:
                sizes = row["by_size"][next(t for t in TITLES if t in row)]
                entry["by_size"] = {key: sizes[key] for key in ("pixels", "small")}
            requests.append(path / "request.yaml")
            names.add(name)
        runs.append(entry)
        before = ground_truth.setdefault(run.dataset or "validation", counts)
        if counts != before:
            raise SmallObjError(
                f"{path} was evaluated on other ground truth ({_text(counts)}) than the runs "
                f"before it ({_text(before)}); move it elsewhere."
            )
        record = path / ("eval.json" if run.dataset else "run.json")
        if record.is_file():
            with reading(record):
                about = json.loads(record.read_bytes())
                parts = [*about.get("earlier", []), about]  # of a run that was resumed
                names_of_devices = [str(part["device"]) for part in parts]
                devices.update(names_of_devices)
                entry["device"] = ", ".join(dict.fromkeys(names_of_devices))
                versions += [{k: str(v) for k, v in p["versions"].items()} for p in parts]
                if "commit" in about:
                    commits = [_commit_of(part) for part in parts]
                    entry["commit"] = ", ".join(dict.fromkeys(commits)) if all(commits) else ""
    if not runs:
        raise SmallObjError(f"No run in {folder} is finished.")
    schedule, settings = _asked(requests)
    return {
        "about": {
            "scale": scale.name,
            "text": scale.about,
            "engine": folder.name,
            "device": sorted(devices),
            "versions": _all_versions(versions),
            "schedule": schedule,
            "settings": settings,
            "validation": ", ".join(sorted(names)),
            "ground_truth": ground_truth,
        },
        "table2": _table2_of(scale.splits(folder.parent), requests),
        "failed": failed,
        "runs": runs,
        "over_images": [],
    }


def _commit_of(record: dict[str, Any]) -> str:
    """What ran: a commit, or where the package is installed its version; "" if neither is known."""
    return str(record.get("commit") or record["versions"].get("smallobj-d2", ""))


def _key(run: Run) -> dict[str, Any]:
    """What names a run or an evaluation in a results file."""
    dataset = {"dataset": run.dataset} if run.dataset else {}
    return {"config": run.config, "seed": run.seed, **dataset}


def _measures(sizes: Mapping[str, Any]) -> list[float]:
    """AP of each band, AP50 and recall of small objects; NaN where there are no objects."""
    aps = [*(b["AP"] for b in sizes["pixels"]), sizes["small"]["AP50"], sizes["small"]["AR"]]
    return [math.nan if ap is None else ap for ap in aps]


def resampled_aps(
    results: Results, folders: Sequence[Path], resamples: int, kept: Path
) -> dict[tuple[str, int], NDArray[np.float32]]:
    """Mask AP_S of each run on resamples of the validation images, the same for all runs.

    They stay in a file, so that they are computed once, and runs of several machines need not be in
    one place.

    Args:
        results: all runs of a results file.
        folders: where they are, each as `distil` takes it; of a run in several, the last.
        resamples: of the validation images.
        kept: the ``.npz`` of these APs, which is read and written.

    Returns:
        By row and seed, of those runs whose detections are there, or were once.
    """
    runs = {run: _name_of_aps(*run, results) for run in sorted(results.runs) if "@" not in run[0]}
    known = {}
    if kept.is_file():
        with reading(kept), np.load(kept) as file:
            known = {name: file[name] for name in runs.values() if name in file}
    load = cache(load_ground_truth)
    aps: dict[tuple[str, int], NDArray[np.float32]] = {}
    bar = tqdm(runs.items(), desc="bootstrap", unit="run", disable=None)
    for (row, seed), name in bar:
        if name not in known or len(known[name]) != resamples:
            computed = _resampled(folders, row, seed, resamples, load)
            if computed is None:
                continue
            known[name] = computed
            with writing(kept) as temporary:
                np.savez_compressed(temporary, **known)
        aps[row, seed] = known[name]
    return aps


def over_images(
    results: Results, aps: Mapping[tuple[str, int], NDArray[np.float32]], bases: Sequence[str]
) -> list[dict[str, Any]]:
    """Of each row and base: a paired bootstrap over images of the mean difference in mask AP_S.

    A row counts if of all seeds that it has in common with the base the APs are there.

    Args:
        results: the runs that count.
        aps: of `resampled_aps`.
        bases: the rows that others are compared with.

    Returns:
        What a results file has under ``over_images``.
    """
    intervals = []
    for base, row in product(bases, [row for row in results.rows if "@" not in row]):
        seeds = results.seeds(base, row)
        if row == base or not seeds or not aps.keys() >= {*product((row, base), seeds)}:
            continue
        change = np.mean([aps[row, s] - aps[base, s] for s in seeds], axis=0, dtype=np.float64)
        low, high = np.nanpercentile(change, (2.5, 97.5)).round(5).tolist()
        intervals.append({"row": row, "base": base, "seeds": seeds, "low": low, "high": high})
    return intervals


def _name_of_aps(row: str, seed: int, results: Results) -> str:
    """Other detections or another ground truth give another name."""
    measured = json.dumps(results.runs[row, seed].ap, sort_keys=True)
    return f"{row} seed{seed} {hashlib.sha256(measured.encode()).hexdigest()[:12]}"


def _resampled(
    folders: Sequence[Path],
    row: str,
    seed: int,
    resamples: int,
    load: Callable[[Path], COCO],
) -> NDArray[np.float32] | None:
    """Mask AP_S of a run on each resample; None if it has no detections, or no masks."""
    places = (folder / row / f"seed{seed}" for folder in reversed(folders))
    path = next((place for place in places if (place / "inference").is_dir()), None)
    if path is None:
        return None
    evaluated = path / "row.json"
    with reading(evaluated):
        if "segm" not in json.loads(evaluated.read_bytes()):
            return None
    run = evaluated_run(path)
    ap = np.zeros(resamples)
    if run.results:
        truth = ground_truth_of(run, load)
        counts = resampled_images(len(truth.imgs), resamples)
        ap = resampled_ap(truth, run.results, counts, detections=run.detections)
    return ap.astype(np.float32)


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
        lines = [line for line in _json_lines(path.read_text()) if "total_loss" in line]
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


def _json_lines(text: str) -> Iterator[Any]:
    """What is appended line by line, but for lines that were cut off, as by a full disk."""
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def together(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """What `distil` gave at two times: of a run that is in both, the new numbers.

    Intervals over images stay where none of their runs is new.

    Raises:
        SmallObjError: if they are of different experiments.
    """

    def refuse(why: str) -> NoReturn:
        raise SmallObjError(f"These runs cannot stand beside those in the results file: {why}.")

    about, before = new["about"], old["about"]
    for key in ("scale", "engine", "schedule", "validation"):
        if about[key] != before[key]:
            refuse(f"their {key} is {about[key]}, and there it is {before[key]}")
    for data in about["ground_truth"].keys() & before["ground_truth"].keys():
        now, then = about["ground_truth"][data], before["ground_truth"][data]
        if now and then and now != then:
            refuse(
                "they were evaluated on other ground truth "
                f"({data}: {_text(now)}; there {_text(then)})"
            )
    for section in about["settings"].keys() & before.get("settings", {}).keys():
        if not {*about["settings"][section]} & {*before["settings"][section]}:
            refuse(f"their settings under {section} are others")
    runs = {_name(r): r for r in [*old["runs"], *new["runs"]]}
    failed = {_name(f): f for f in [*old["failed"], *new["failed"]] if _name(f) not in runs}
    again = {(r["config"], r["seed"]) for r in new["runs"]}
    kept = [
        interval
        for interval in old.get("over_images", [])
        if again.isdisjoint(product((interval["row"], interval["base"]), interval["seeds"]))
    ]
    return {
        "about": {
            **about,
            "device": sorted({*about["device"], *before["device"]}),
            "versions": _all_versions([before["versions"], about["versions"]]),
            "ground_truth": {**before["ground_truth"], **about["ground_truth"]},
        },
        "table2": new["table2"] or old["table2"],
        "failed": [failed[key] for key in sorted(failed)],
        "runs": [runs[key] for key in sorted(runs)],
        "over_images": kept,
    }


def _name(run: dict[str, Any]) -> tuple[str, int, str]:
    """What tells runs and evaluations in results files apart."""
    return run["config"], run["seed"], run.get("dataset", "")


def _runs(folder: Path) -> list[Run]:
    """All runs in a folder by config, seed and dataset."""
    found = []
    for path in folder.rglob("seed*"):  # a row may be in a folder of its own kind
        number = path.name.removeprefix("seed")
        if number.isdecimal():
            config = path.parent.relative_to(folder).as_posix()
            others = (p for p in path.iterdir() if (p / "attempts.json").is_file())
            found.append(Run(config, int(number), path, {}))
            found += [Run(config, int(number), other, {}, other.name) for other in others]
    return sorted(found, key=lambda run: (run.config, run.seed, run.dataset))


def _asked(requests: Sequence[Path]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The schedule, and short hashes of what is set for the network and its training.

    Of most sections all rows have the same hash.
    """
    schedule: dict[str, Any] = {}
    settings: dict[str, set[str]] = {}
    for path in requests:
        with reading(path):
            request = yaml.safe_load(path.read_text())
            solver = request["SOLVER"]
            asked = {"iterations": solver["MAX_ITER"], "images": solver["IMS_PER_BATCH"]}
            schedule = schedule or asked
            if asked != schedule:
                raise SmallObjError(
                    f"{path} asks for {_text(asked)}, and the runs before it for "
                    f"{_text(schedule)}; move it elsewhere."
                )
            for section in ("MODEL", "INPUT", "SOLVER", "TEST"):
                every = request.get(section, {}).items()
                kept = {key: value for key, value in every if f"{section}.{key}" not in HOW}
                text = json.dumps(kept, sort_keys=True, default=str)
                digest = hashlib.sha256(text.encode()).hexdigest()[:12]
                settings.setdefault(section, set()).add(digest)
    return schedule, {section: sorted(digests) for section, digests in settings.items()}


def _all_versions(each: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Of each package every version, such as ``2.11.0, 2.12.0``."""
    found: dict[str, set[str]] = {}
    for versions in each:
        for package, version in versions.items():
            found.setdefault(package, set()).update(version.split(", "))
    return {package: ", ".join(sorted(versions)) for package, versions in sorted(found.items())}


def _text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {size}" for size, count in counts.items())


def _table2_of(splits: Sequence[Sequence[str]], requests: Sequence[Path]) -> list[Any]:
    """Table 2 of the training images, by the paper's protocol and by the network's anchors."""
    if not splits or not requests:
        return []
    name, json_file, images = splits[0]
    if not Path(json_file).is_file():
        return []
    objects = objects_of(load_coco(json_file, images).records)
    protocols = (PAPER, training_protocol(load_cfg(requests[0])))
    return [
        as_json(table2(objects, match(objects, p), data=name, protocol=p.name)) for p in protocols
    ]


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
    runs = {}
    for run in data["runs"]:
        row = str(run["config"]) + (f"@{run['dataset']}" if "dataset" in run else "")
        runs[row, int(run["seed"])] = Measured(
            ap={
                f"{kind}.{size}": float(ap)
                for kind, size in product(TITLES, SIZES)
                if (ap := run.get(kind, {}).get(size)) is not None
            },
            seconds=float(run["seconds"]),
            iteration=float(run["iteration"]) if "iteration" in run else None,
            commit=str(run.get("commit", "")),
            by_size=dict(run.get("by_size", {})),
        )
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
    return Results(about, runs, failed, [_table(**t) for t in data["table2"]], over_images)


def _table(rows: dict[str, dict[str, float | None]], **about: Any) -> Table:
    known = {
        size: {k: float("nan") if v is None else v for k, v in row.items()}
        for size, row in rows.items()
    }
    return Table(**about, rows={size: Row(**row) for size, row in known.items()})
