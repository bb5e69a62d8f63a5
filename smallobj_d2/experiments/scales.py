"""How large an experiment is and what data it is on: the paper's own, and smaller ones.

A scale is a file in ``experiments/scales``. Merged over a row's YAML it changes the network, the
data and the schedule, for all rows alike, and leaves the row's ``SMALLOBJ`` keys as they are. Its
data are synthetic scenes (``scenes``), a dataset that exists already (``existing``), or those that
the configs name. As a config does, a scale names another as its ``_BASE_``.
"""

import json
import sys
from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from smallobj_d2.config import CONFIGS, EXPERIMENTS, find_config, load_cfg, unset_variable
from smallobj_d2.datasets.coco import dataset_info, datasets_root
from smallobj_d2.datasets.synthetic import make_splits
from smallobj_d2.errors import SmallObjError
from smallobj_d2.export.augmented import augment_dataset
from smallobj_d2.files import reading, write_json, writing

AUGMENTED_VAL = "augmented_val"
"""The validation images with the pastes of ``configs/aug.yaml`` (section 6.2)."""

SCENES = ("scenes_train", "scenes_val")
"""Names of the synthetic datasets."""

_ELSEWHERE = ("SMALLOBJ", "OUTPUT_DIR", "VERSION", "DATASETS")
_KEYS = {"about", "gpus", "run", "config", "network_of", "datasets", "scenes"}


@dataclass(frozen=True)
class Scale:
    """One file of ``experiments/scales``."""

    name: str
    about: str
    config: dict[str, Any] = field(repr=False)
    """Config keys that are merged over those of each row."""
    gpus: int
    """GPUs of one run; 0 for the CPU."""
    seconds: float
    """What one run takes, about; for an estimate before any run is finished."""
    machine: str
    """The machine that ``seconds`` is for, and where the number comes from."""
    scenes: dict[str, int] | None = None
    """Arguments of `make_splits`, if it is on synthetic scenes."""
    existing: list[list[str]] | None = None
    """If it is on a dataset that is there: name, JSON and image folder of its training and of its
    validation set, relative to ``DETECTRON2_DATASETS``."""

    def on(self, gpus: int) -> "Scale":
        """The same experiment with so many GPUs for each run, or with none, on the CPU.

        There it is without mixed precision, which not every CPU and engine has.
        """
        on_cpu = self.config.get("MODEL", {}).get("DEVICE") == "cpu"
        if on_cpu == (not gpus):
            return replace(self, gpus=gpus)
        config = deepcopy(self.config)
        _merge({"MODEL": {"DEVICE": "cuda" if gpus else "cpu"}}, config)
        if not gpus and "AMP" in config.get("SOLVER", {}):
            _merge({"SOLVER": {"AMP": {"ENABLED": False}}}, config)
        machine = self.machine
        if gpus != self.gpus:
            machine += f"; not measured on the {'GPU' if gpus else 'CPU'}"
        return replace(self, gpus=gpus, config=config, machine=machine)

    def splits(self, folder: Path) -> list[list[str]]:
        """Name, JSON and image folder of the training and of the validation set.

        None of these where the configs' own datasets are meant.

        Args:
            folder: of the sweep.
        """
        if self.existing is not None:
            root = datasets_root()
            return [[name, str(root / json), str(root / im)] for name, json, im in self.existing]
        if self.scenes is None:
            return []
        return [_made(folder / "scenes" / name) for name in SCENES]

    def request(self, row: Path, folder: Path) -> dict[str, Any]:
        """The config of a row at this scale, as the content of a YAML file.

        Args:
            row: a file of ``configs/``.
            folder: of the sweep, which holds the scale's datasets.
        """
        merged: dict[str, Any] = CfgNode.load_yaml_with_base(str(find_config(row)))
        _merge(self.config, merged)
        splits = self.splits(folder)
        if splits:
            train, val = (name for name, _, _ in splits)
            merged["DATASETS"] = {"TRAIN": [train], "TEST": [val]}
        made = [*splits, _made(folder / AUGMENTED_VAL)]
        merged.setdefault("SMALLOBJ", {})["DATASETS"] = made
        merged["TEST"] = {**merged.get("TEST", {}), "EVAL_PERIOD": 0}  # row.json means: finished
        return merged

    def missing(self, folder: Path) -> str:
        """What of its data is not there, or nothing; scenes are made when they are needed.

        Args:
            folder: of the sweep.
        """
        if self.existing is None and self.scenes is None:
            datasets = load_cfg(CONFIGS / "baseline.yaml").DATASETS
            try:
                for name in (*datasets.TRAIN, *datasets.TEST):
                    dataset_info(name)
            except SmallObjError as e:
                return str(e)
        for name, *paths in self.splits(folder) if self.existing else []:
            for where in paths:
                if not Path(where).exists():
                    return (
                        f"Scale {self.name} is on {name}, but there is no {where}. "
                        "DETECTRON2_DATASETS must name the folder that holds it; it is "
                        f"{datasets_root()} now."
                    )
        weights = str(self.config.get("MODEL", {}).get("WEIGHTS", ""))
        if unset := unset_variable(weights):
            return f"Scale {self.name} starts from {weights}, and {unset} is not set."
        return ""

    def prepare(self, configs: Path, folder: Path, *, augmented_val: bool) -> None:
        """Make the datasets that the runs need, if they are not there and can be made.

        Args:
            configs: the folder ``configs/``.
            folder: of the sweep.
            augmented_val: whether any run is evaluated on the augmented validation set.

        Raises:
            SmallObjError: if the folder is for other data, or has another augmented validation
                set: of other images or annotations, or by another config.
        """
        data, record = self._data(folder), folder / "data.json"
        if record.is_file():
            with reading(record):
                same = json.loads(record.read_bytes()) == data
            if not same:
                raise SmallObjError(
                    f"{folder} is for other data than {self.name} is on now (data.json says for "
                    "which). Choose another --out, or remove that folder."
                )
        if self.scenes is not None:
            scenes: dict[str, Any] = self.scenes
            make_splits(folder / "scenes", **scenes, progress=sys.stderr.isatty())
        if augmented_val:
            self._augment(configs, folder)
        if not record.is_file():
            write_json(record, data)

    def _augment(self, configs: Path, folder: Path) -> None:
        """Make the augmented validation set, if it is not there."""
        request = self.request(configs / "aug.yaml", folder)
        request["DATASETS"]["TRAIN"] = request["DATASETS"]["TEST"]
        request["SEED"] = 0
        path = folder / "augmented_val.yaml"
        with writing(path) as temporary:
            temporary.write_text(yaml.safe_dump(request))
        augment_dataset(load_cfg(path), folder / AUGMENTED_VAL)

    def _data(self, folder: Path) -> dict[str, Any]:
        """What tells its data from others."""
        if self.existing is None:
            return {"scenes": self.scenes}
        files = ((name, Path(file)) for name, file, _ in self.splits(folder))
        return {name: sha256(file.read_bytes()).hexdigest() for name, file in files}


def _made(root: Path) -> list[str]:
    """An entry of ``SMALLOBJ.DATASETS`` for a dataset that the sweep makes."""
    return [root.name, str(root / "annotations.json"), str(root / "images")]


def _merge(new: dict[str, Any], into: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(value, into[key])
        else:
            into[key] = deepcopy(value)


def load_scale(path: Path) -> Scale:
    """Read a file of ``experiments/scales``.

    Raises:
        SmallObjError: if there is no scale of that name, or the file is not a scale.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (EXPERIMENTS / "scales").glob("*.yaml")))
        raise SmallObjError(
            f"There is no scale {path.stem!r}; there are: {known}. Your own is the path of a file, "
            f"and there is no {path}."
        )
    try:
        return _scale(path)
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as e:
        if isinstance(e, SmallObjError):
            raise
        why = " ".join(repr(e).split())[:200]
        raise SmallObjError(f"{path} is not a scale: {why}. See experiments/scales.") from e


def _scale(path: Path) -> Scale:
    data = _content(path)
    config: dict[str, Any] = {}
    if "network_of" in data:
        other = CfgNode.load_yaml_with_base(data["network_of"])
        _merge({k: v for k, v in other.items() if k not in _ELSEWHERE}, config)
    _merge(data.get("config") or {}, config)
    if "SMALLOBJ" in config:
        raise SmallObjError(f"{path}: a scale cannot set SMALLOBJ; that is what the rows are.")
    if unknown := {*data} - _KEYS:
        raise SmallObjError(f"{path}: a scale has no {', '.join(sorted(unknown))}.")
    splits = data.get("datasets")
    for name, words in splits.items() if splits else ():
        if not (isinstance(words, list) and [*map(type, words)] == [str] * 3):
            raise SmallObjError(
                f"{path}: datasets.{name} is {words}; it must be [name, JSON, image folder]."
            )
    if data.get("scenes") is not None:
        signature(make_splits).bind(Path(), **data["scenes"])
    if type(data["gpus"]) is not int or data["gpus"] < 0:
        raise SmallObjError(f"{path}: gpus is {data['gpus']!r}; it must be a whole number.")
    return Scale(
        name=path.stem,
        about=data["about"],
        config=config,
        gpus=data["gpus"],
        seconds=float(data["run"]["seconds"]),
        machine=data["run"]["machine"],
        scenes=data.get("scenes"),
        existing=splits and [splits["train"], splits["val"]],
    )


def _content(path: Path) -> dict[str, Any]:
    """What a file says, over what its ``_BASE_`` does; paths are relative to the file."""
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "network_of" in data:
        data["network_of"] = str(path.parent / data["network_of"])
    if "_BASE_" not in data:
        return data
    whole = _content(path.parent / data.pop("_BASE_"))
    _merge(data, whole)
    return whole
