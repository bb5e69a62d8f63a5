"""The output folder of a run: its lock, its log, and the record of what runs."""

import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from smallobj_d2.engines import processes
from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import disk_errors, write_json, writing

logger = logging.getLogger(__name__)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the output folder, making it if need be, so that no second run writes there.

    Raises:
        SmallObjError: if another run holds it, or it cannot be written to.
    """
    if processes.rank() != 0:
        yield
        return
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("a")
    with file:
        try:
            # Of this process alone: a lock that loader workers inherit would outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:
            raise SmallObjError(
                f"Another run is writing to {output}. Wait for it, or choose another OUTPUT_DIR."
            ) from e
        except OSError:  # a file system without locks; better to run without one than not at all
            logger.warning("%s cannot be locked; let no other run write there.", output)
        yield


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
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(output / "log.txt")]
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


def record_run(cfg: Any, engine: str, *, resume: bool = False, eval_only: bool = False) -> None:
    """Write what runs to run.json (eval.json for evaluation alone), and the config to config.yaml.

    What run.json said before a resume is kept under ``earlier``. A run from the start takes away
    ``last_checkpoint``, so that a later resume cannot go on from a checkpoint of an older run.
    """
    size = processes.world_size()
    if processes.rank() != 0:
        return
    output = Path(cfg.OUTPUT_DIR)
    record = {
        "engine": engine,
        "seed": cfg.SEED,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "device": _device_name(cfg.MODEL.DEVICE),
        "processes": size,
        "commit": commit(),
        "versions": versions(),
    }
    if eval_only:
        write_json(output / "eval.json", {**record, "config": cfg.dump()})
        return
    before = read_record(output) if resume else {}
    if not resume:
        with disk_errors(output):
            (output / "last_checkpoint").unlink(missing_ok=True)
            (output / "skipped.json").unlink(missing_ok=True)
    if before:
        earlier = before.pop("earlier", [])
        record["earlier"] = [*earlier, {k: v for k, v in before.items() if k != "config"}]
    write_json(output / "run.json", {**record, "config": cfg.dump()})
    with writing(output / "config.yaml") as temporary:
        temporary.write_text(cfg.dump())


def read_record(output: Path) -> dict[str, Any]:
    """What run.json says of the run in a folder; empty if there is none."""
    path = output / "run.json"
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        return {**record, "seed": int(record["seed"]), "engine": str(record["engine"])}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise SmallObjError(
            f"{path} is damaged ({e}), so that run's seed is unknown. Choose another OUTPUT_DIR."
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


def versions() -> dict[str, str]:
    """Versions of Python and of every package that numbers can depend on."""
    packages = (
        "smallobj-d2",
        "torch",
        "torchvision",
        "detectron2",
        "numpy",
        "opencv-python-headless",
        "opencv-python",
        "pillow",
        "pycocotools",
    )
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: str) -> str:
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0))
    return f"cpu, {cores} core{'s' if cores > 1 else ''}"
