"""What every engine's run needs: its folder, seed, device, record, weights file and processes."""

import errno
import fcntl
import json
import logging
import os
import platform
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from smallobj_d2.engines.launch import require_same
from smallobj_d2.errors import SmallObjError

logger = logging.getLogger(__name__)

_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


@contextmanager
def running(
    cfg: Any, engine: str, *, resume: bool = False, eval_only: bool = False
) -> Iterator[Any]:
    """Everything around a run, in each of its processes.

    Settles the device and the seed, takes the output folder for this run alone, logs there, and
    records what runs.

    Yields:
        The config, frozen, with the ``MODEL.DEVICE`` and ``SEED`` that are really used.
    """
    output = Path(cfg.OUTPUT_DIR)
    _agree(cfg, engine, resume=resume, eval_only=eval_only)
    with locked(output), _full_disk(output), _full_card():
        if rank() == 0:
            for left_over in output.glob("*.tmp"):  # of a run that was killed while writing
                left_over.unlink()
        setup_logging(output)
        cfg = settle_device(cfg)
        if eval_only:  # no draws, so any seed will do
            cfg = _with(cfg, "SEED", max(cfg.SEED, 0))
        else:
            cfg = settle_seed(cfg, resume, engine=engine)
        record_run(cfg, engine, resume=resume, eval_only=eval_only)
        yield cfg


# --- Processes


def rank() -> int:
    """Which process this is, 0 if there is one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are, over all machines."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(value: Any) -> Any:
    """What process 0 has, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """What each process has, in order, in process 0; an empty list in the others."""
    if world_size() == 1:
        return [value]
    boxes = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, boxes, dst=0)
    return boxes or []


def share_statistics(model: torch.nn.Module) -> None:
    """Give all processes the batch norm statistics of the first, which are those that it saves."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


_OF_A_MACHINE = ("OUTPUT_DIR", "SMALLOBJ.DATASETS", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS")
"""Config keys that may differ from machine to machine: they say where, not what."""


def _agree(cfg: Any, engine: str, *, resume: bool, eval_only: bool) -> None:
    """See that all processes are about to do the same; they would wait for each other forever."""
    if world_size() == 1:
        return
    told = {"--engine": engine, "--resume": resume, "--eval-only": eval_only, **_flat(cfg)}
    if resume:
        pointer = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
        told["the last checkpoint in OUTPUT_DIR"] = (
            pointer.read_text().strip() if pointer.is_file() else None
        )
    told = {key: value for key, value in told.items() if key not in _OF_A_MACHINE}
    whose = f"process 0 ({socket.gethostname()})"
    first, whose = share((told, whose))
    require_same(first, told, f"process {rank()} ({socket.gethostname()})", whose)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A config as one dict: "SOLVER.MAX_ITER" to its value."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# --- Device and seed


def _with(cfg: Any, *pairs: Any) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(pairs))
    cfg.freeze()
    return cfg


def settle_device(cfg: Any) -> Any:
    """The config with MODEL.DEVICE "cpu" if it asks for a GPU on a machine that has none."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    if rank() == 0:
        logger.info(
            "MODEL.DEVICE is %s, but there is no GPU here: using the CPU.", cfg.MODEL.DEVICE
        )
    return _with(cfg, "MODEL.DEVICE", "cpu")


def settle_seed(cfg: Any, resume: bool = False, *, engine: str | None = None) -> Any:
    """The config with the SEED that all processes share.

    A negative SEED asks for a fresh one, which is logged. A resumed run keeps the seed that
    run.json recorded, as its stream of draws must go on.

    Raises:
        SmallObjError: if a resumed run is asked for another seed than it had, or another engine.
    """
    seed = cfg.SEED
    if rank() == 0:
        before = _read_record(Path(cfg.OUTPUT_DIR)) if resume else {}
        if before and engine and before["engine"] != engine:
            raise SmallObjError(
                f"{cfg.OUTPUT_DIR} holds a run of the engine {before['engine']}, which {engine} "
                "cannot go on with. Choose that engine, or another OUTPUT_DIR."
            )
        recorded = before.get("seed")
        if recorded is not None and seed >= 0 and seed != recorded:
            raise SmallObjError(
                f"SEED is {seed}, but the run in {cfg.OUTPUT_DIR} has seed {recorded}; leave SEED "
                "out to go on with that run, or choose another OUTPUT_DIR for a new one."
            )
        if seed < 0:
            seed = recorded
            if seed is None:
                seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
            logger.info("SEED is negative: using seed %d.", seed)
    return _with(cfg, "SEED", share(seed))


def seed_step(seed: int, iteration: int) -> None:
    """Start torch's generator afresh for an iteration of this process.

    So what a model draws at random (boxes to learn from, say) depends on nothing that happened
    before, and a resumed run does what an unbroken one does. Iteration -1 is the model's start.
    """
    sequence = np.random.SeedSequence((seed, iteration + 1, rank()))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))


# --- The output folder


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the output folder, making it if need be, so that no second run writes there.

    Raises:
        SmallObjError: if another run holds it, or it cannot be written to.
    """
    if rank() != 0:
        yield
        return
    with _one_line(output):
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


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a folder or disk into one line."""
    try:
        yield
    except OSError as e:
        why = "the disk is full" if e.errno == errno.ENOSPC else (e.strerror or str(e)).lower()
        raise SmallObjError(f"Cannot write {path}: {why}. Free space, or set OUTPUT_DIR.") from e


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of writing. Those of reading, such as a missing file, are the reader's to explain."""


@contextmanager
def _full_disk(output: Path) -> Iterator[None]:
    """Turn what a disk can do to a run, wherever it writes, into one line."""
    loud = logging.raiseExceptions
    logging.raiseExceptions = False  # a log that cannot be written must not hide that line
    try:
        yield
    except OSError as e:
        if e.errno not in _OF_THE_DISK:
            raise
        with _one_line(Path(e.filename) if e.filename else output):
            raise
    finally:
        logging.raiseExceptions = loud


@contextmanager
def _full_card() -> Iterator[None]:
    """Turn what a GPU says whose memory is full into one line."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        why = str(e).partition(". GPU")[0]
        raise SmallObjError(
            f"The GPU's memory is full: {why}. Lower SOLVER.IMS_PER_BATCH, INPUT.MIN_SIZE_TRAIN or "
            "INPUT.MAX_SIZE_TRAIN, set SOLVER.AMP.ENABLED True, or use more GPUs."
        ) from e


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: gives a temporary path that becomes `path` at the end.

    Raises:
        SmallObjError: if the disk is full or the folder cannot be written to; what was at `path`
            before is still there then.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with _one_line(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
            except RuntimeError as e:  # how torch.save reports a failed write
                if "PytorchStreamWriter" not in str(e) and "inline_container" not in str(e):
                    raise
                raise OSError(errno.ENOSPC, "the disk may be full") from e
            with temporary.open("rb") as file:
                os.fsync(file)  # so that not even a power cut leaves an empty file at `path`
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; see `writing`."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def report_losses(output: Path, loader: Any) -> None:
    """Say what a training had to leave out; called in all processes at once, at its end.

    Images that could not be read are listed in the log and in skipped.json, which is added to after
    a resume; where nothing was skipped there is no such file. Copies over SMALLOBJ.MAX_PASTES are
    counted in the log.

    Args:
        output: the run's folder.
        loader: the `TrainLoader` of this process.
    """
    skipped: Counter[str] = sum(map(Counter, gather(dict(loader.skipped))), Counter())
    capped = sum(gather(loader.capped))
    if rank() != 0:
        return
    if capped:
        logger.warning("%d copies were left out, as SMALLOBJ.MAX_PASTES allows no more.", capped)
    if not skipped:
        return
    path = output / "skipped.json"
    if path.is_file():
        skipped.update(json.loads(path.read_bytes()))
    for what, count in skipped.most_common():
        logger.warning("Skipped %d %s: %s", count, "time" if count == 1 else "times", what)
    logger.warning("%d images were skipped, %d draws in all.", len(skipped), skipped.total())
    write_json(path, dict(skipped.most_common()))


def not_finite(output: Path, iteration: int, positions: Iterable[int], which: str) -> SmallObjError:
    """The error for losses that are not finite, naming the draws that they came from."""
    draws = " ".join(map(str, positions))
    return SmallObjError(
        f"The loss is not finite at iteration {iteration}: {which}. Its draws have the positions "
        f"{draws}; look at them with tools/visualize.py --config {output / 'config.yaml'} "
        f"--positions {draws}. Mostly the learning rate is too high: lower SOLVER.BASE_LR, or "
        "raise SOLVER.WARMUP_ITERS."
    )


def setup_logging(output: Path) -> None:
    """Log to the terminal and to log.txt in the output folder, process 0 only.

    Calling it again moves the log to the new folder.
    """
    close_logging()
    root = logging.getLogger("smallobj_d2")
    if rank() != 0:
        root.setLevel(logging.WARNING)
        return
    root.setLevel(logging.INFO)
    with _one_line(output):
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


NOTHING_TO_EVALUATE = (
    "There is nothing to evaluate: MODEL.WEIGHTS is empty. Set it to a checkpoint, or add --resume "
    "for the last one in OUTPUT_DIR."
)


def require_whole(model: torch.nn.Module, missing: Collection[str]) -> None:
    """Refuse to evaluate a model of which a part is still random.

    Args:
        model: the model.
        missing: names of its parameters and buffers that were not loaded.

    Raises:
        SmallObjError: naming the modules whose parameters are missing.
    """
    names = [name for name, _ in model.named_parameters()]
    absent = [name for name in names if name in missing]
    if absent:
        modules = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in absent))
        more = f" and {len(modules) - 5} more" if len(modules) > 5 else ""
        raise SmallObjError(
            f"MODEL.WEIGHTS cannot be evaluated: {len(absent)} of the model's {len(names)} "
            f"parameters are not in it, those of {', '.join(modules[:5])}{more}. It must be the "
            "checkpoint of a trained model with the same MODEL keys; weights that the torchvision "
            "engine trained are for --engine torchvision."
        )


def record_run(cfg: Any, engine: str, *, resume: bool = False, eval_only: bool = False) -> None:
    """Write what runs to run.json (eval.json for evaluation alone), and the config to config.yaml.

    What run.json said before a resume is kept under ``earlier``. A run from the start takes away
    ``last_checkpoint``, so that a later resume cannot go on from a checkpoint of an older run.
    """
    size = world_size()
    if rank() != 0:
        return
    output = Path(cfg.OUTPUT_DIR)
    record = {
        "engine": engine,
        "seed": cfg.SEED,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "device": _device_name(cfg.MODEL.DEVICE),
        "processes": size,
        "versions": versions(),
    }
    if eval_only:
        write_json(output / "eval.json", {**record, "config": cfg.dump()})
        return
    before = _read_record(output) if resume else {}
    if not resume:
        with _one_line(output):
            (output / "last_checkpoint").unlink(missing_ok=True)
            (output / "skipped.json").unlink(missing_ok=True)
    if before:
        earlier = before.pop("earlier", [])
        record["earlier"] = [*earlier, {k: v for k, v in before.items() if k != "config"}]
    write_json(output / "run.json", {**record, "config": cfg.dump()})
    with writing(output / "config.yaml") as temporary:
        temporary.write_text(cfg.dump())


def _read_record(output: Path) -> dict[str, Any]:
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


# --- Initial weights


def check_weights(cfg: Any) -> Path | None:
    """Where the file of MODEL.WEIGHTS is, downloaded and cached if it has an address.

    Returns:
        A local path, or None if the config asks for no weights.

    Raises:
        SmallObjError: if it cannot be had, naming the ways on.
    """
    name = cfg.MODEL.WEIGHTS
    if not name:
        return None
    ways = (
        'Ways on: MODEL.WEIGHTS <path of a local .pkl or .pth file>, or MODEL.WEIGHTS "" to train '
        "from random weights (with MODEL.RESNETS.NORM GN or BN and MODEL.BACKBONE.FREEZE_AT 0)."
    )
    url = _ZOO + name.removeprefix("detectron2://") if name.startswith("detectron2://") else name
    if "://" not in url:
        path = Path(name).expanduser()
        if not path.is_file():
            raise SmallObjError(f"MODEL.WEIGHTS: there is no file {path}. {ways}")
        return path

    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())  # Detectron2's own kind, so the cache is the same
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    quiet = logging.getLogger("iopath")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        return Path(manager.get_local_path(url))
    except Exception as e:  # addresses fail in many ways, all of which mean that it cannot be had
        raise SmallObjError(f"MODEL.WEIGHTS: {url} cannot be fetched ({e}). {ways}") from e
    finally:
        quiet.setLevel(level)
        socket.setdefaulttimeout(before)
