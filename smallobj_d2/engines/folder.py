"""The output folder of a run: its lock, its log, and the record of what runs."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from smallobj_d2.config import flatten, portable
from smallobj_d2.engines import processes
from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import disk_errors, write_json, writing

logger = logging.getLogger(__name__)


def setup_logging(output: Path) -> None:
    """Log to the terminal and to log.txt in the output folder, process 0 only.

    Calling it again moves the log to the new folder.
    """
    close_logging()
    root = logging.getLogger("smallobj_d2")
    if processes.rank() != 0:
        root.setLevel(logging.WARNING)
        return
    root.setLevel(logging.INFO)
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [
            logging.StreamHandler(sys.stdout),
            logging.FileHandler(output / "log.txt"),
        ]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        handler.of_run = True  # type: ignore[attr-defined]
        root.addHandler(handler)


def close_logging() -> None:
    """Undo `setup_logging`."""
    root = logging.getLogger("smallobj_d2")
    for handler in [h for h in root.handlers if getattr(h, "of_run", False)]:
        root.removeHandler(handler)
        handler.close()


def last_checkpoint(output: Path) -> Path | None:
    """The checkpoint that the folder's ``last_checkpoint`` names, or None if it has none.

    Raises:
        SmallObjError: if that file is gone.
    """
    pointer = output / "last_checkpoint"
    if not pointer.is_file():
        return None
    path = output / pointer.read_text(errors="replace").strip()
    if not path.is_file():
        raise SmallObjError(
            f"{pointer} names {path.name!r}, which is not there. Write the name of a checkpoint "
            "that is there into it, or choose another OUTPUT_DIR."
        )
    return path


def start_anew(output: Path, *, overwrite: bool = False) -> None:
    """Take away what an older run left, but its weights, so that nothing is mixed with it.

    Args:
        output: the folder.
        overwrite: do so even if that run could be resumed.

    Raises:
        SmallObjError: if there is a run that could be resumed.
    """
    if (output / "last_checkpoint").exists() and not overwrite:
        raise SmallObjError(
            f"{output} already holds a run. Add --resume to continue it, choose another "
            "OUTPUT_DIR, or add --overwrite to start again in its place."
        )
    with disk_errors(output):
        (output / "last_checkpoint").unlink(missing_ok=True)
        for name in ("skipped", "metrics", "row", "categories"):
            (output / f"{name}.json").unlink(missing_ok=True)
        for path in [*(output / "inference").rglob("coco_instances_results.json")]:
            path.unlink()


def record_run(cfg: Any, engine: str, *, resume: bool = False, eval_only: bool = False) -> None:
    """Write what runs to run.json (eval.json for evaluation alone), and the config to config.yaml.

    What run.json said before a resume is kept under ``earlier``. Libraries whose versions have
    changed since are named in a warning, and so are keys of the config.
    """
    if processes.rank() != 0:
        return
    output = Path(cfg.OUTPUT_DIR)
    record: dict[str, Any] = {
        "engine": engine,
        "seed": cfg.SEED,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "device": _device_name(cfg.MODEL.DEVICE),
        "processes": processes.world_size(),
        "commit": commit(),
        "versions": versions(),
    }
    if eval_only:
        write_json(output / "eval.json", {**record, "config": cfg.dump()})
        return
    before = read_record(output) if resume else {}
    if before:
        for library in sorted({*before["versions"], *record["versions"]} - _OURS):
            was, now = (r["versions"].get(library, "absent") for r in (before, record))
            if was != now:
                logger.warning(
                    "%s was %s when this run began, and is %s now: the same draws may have other "
                    "pixels, and the same seed other weights.",
                    *(library, was, now),
                )
        _warn_of_changes(before.get("config"), cfg)
        record["earlier"] = [*before.pop("earlier"), before]
    write_json(output / "run.json", {**record, "config": cfg.dump()})
    with writing(output / "config.yaml") as temporary:
        temporary.write_text((portable(cfg) if engine == "torchvision" else cfg).dump())


_MAY_CHANGE = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "TEST.")
"""Keys, or beginnings of keys, that do not change what is trained."""


def _warn_of_changes(before: object, cfg: Any) -> None:
    """Name the keys that a resumed run has other values for, given the config's text before."""
    try:
        old = flatten(yaml.safe_load(str(before)))
    except (yaml.YAMLError, AttributeError):
        return  # what is damaged there keeps nobody from training on
    new = flatten(yaml.safe_load(cfg.dump()))
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key] and not key.startswith(_MAY_CHANGE):
            logger.warning("%s was %s before, and is %s from here on.", key, old[key], new[key])


def read_record(output: Path) -> dict[str, Any]:
    """What run.json says of the run in a folder; empty if there is none."""
    path = output / "run.json"
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        return {
            **record,
            "seed": int(record["seed"]),
            "engine": str(record["engine"]),
            "versions": dict(record.get("versions", {})),
            "earlier": list(record.get("earlier", [])),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise SmallObjError(
            f"{path} is damaged ({type(e).__name__}: {e}), so that run's seed is unknown. Choose "
            "another OUTPUT_DIR."
        ) from e


def commit() -> str | None:
    """The commit of the checkout that this package is in, with "-dirty" if tracked files differ.

    None where it is installed without its repository.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip() or None


_OURS = {"python", "smallobj-d2"}
"""Versions that may change without a word."""

_PACKAGES = (
    *("smallobj-d2", "torch", "torchvision", "detectron2", "numpy"),
    *("opencv-python-headless", "opencv-python", "pillow", "pycocotools", "faster-coco-eval"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of every package that numbers can depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _device_name(device: str) -> str:
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0))
    return f"cpu, {cores} core{'s' if cores > 1 else ''}"
