"""A run: what both engines do in the same order, what is around it, and what it says at its end."""

import json
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch

from smallobj_d2.config import changed
from smallobj_d2.copy_paste import CopyPaste
from smallobj_d2.datasets.categories import Categories, check_categories
from smallobj_d2.datasets.coco import (
    categories_of,
    dataset_info,
    is_registered,
    register_from_config,
)
from smallobj_d2.engines import processes
from smallobj_d2.engines.folder import last_checkpoint, record_run, setup_logging, start_anew
from smallobj_d2.engines.loader import TrainLoader
from smallobj_d2.engines.seed_and_device import (
    seed_step,
    settle_device,
    settle_precision,
    settle_seed,
)
from smallobj_d2.engines.weights import check_weights
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import TITLES, Row, counted_detections, load_ground_truth
from smallobj_d2.evaluation.by_size import by_size, size_table
from smallobj_d2.evaluation.run_folder import results_of_run
from smallobj_d2.files import full_disk, locked, remove_leftovers, write_json
from smallobj_d2.sampling import REPEAT_FACTORS
from smallobj_d2.training_set import check_test_data

logger = logging.getLogger(__name__)


class Run(ABC):
    """What an engine does in a run; `carry_out` calls it in this order.

    Args:
        cfg: the run's config, with the seed and the device that are really used.
    """

    engine: ClassVar[str]
    """Its name."""
    datasets: Collection[str] = ()
    """Names of those that the engine knows, and this project does not."""
    loader: TrainLoader
    """Of this process, once it has been built."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def categories_of(self, name: str) -> Categories | None:
        """The categories of a dataset, None where they are not known."""
        return categories_of(name)

    def files(self, name: str) -> tuple[Path, Path]:
        """The annotations of a test set, and the folder of its images."""
        info = dataset_info(name)
        return info.json_file, info.image_root

    @abstractmethod
    def evaluate(self, weights: Path) -> dict[str, Row]:
        """Rows by test set of a file that has the whole model; none but in process 0."""

    @abstractmethod
    def build(self, checkpoint: Path | None, weights: Path | None) -> None:
        """Make model, loader and trainer, and load a checkpoint, or else initial weights."""

    @abstractmethod
    def train(self) -> dict[str, Row]:
        """Train to the end, and give the rows of the last evaluation; none but in process 0."""

    @property
    @abstractmethod
    def iterations(self) -> int:
        """How many are done."""


def carry_out(
    kind: type[Run],
    cfg: Any,
    resume: bool = False,
    eval_only: bool = False,
    overwrite: bool = False,
) -> Row | None:
    """Train and evaluate, or only evaluate, as a config says. Called in every process of a run.

    Args:
        kind: the engine's own part.
        cfg: a config with ``SMALLOBJ``.
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one; as a run does
            that was started again after a loss.
        eval_only: evaluate MODEL.WEIGHTS, or with `resume` the last checkpoint.
        overwrite: start anew in a folder that holds a run already.

    Returns:
        The table row of the first test set in process 0, which is also in row.json; None in other
        processes, and where DATASETS.TEST is empty.
    """
    register_from_config(cfg)
    # What makes no sense is refused before anything is taken away.
    CopyPaste.from_config(cfg)
    _ = REPEAT_FACTORS[cfg.SMALLOBJ.SAMPLER]
    for name in (*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        if is_registered(name):
            dataset_info(name)
    if eval_only and not cfg.DATASETS.TEST:
        raise SmallObjError("There is nothing to evaluate on: DATASETS.TEST is empty.")
    if processes.restarts():
        resume, overwrite = resume or not eval_only, False
    how = {"resume": resume, "eval_only": eval_only, "overwrite": overwrite}
    with running(cfg, kind.engine, **how) as cfg:
        output = Path(cfg.OUTPUT_DIR)
        run = kind(cfg)
        check_test_data(cfg, run.datasets)
        if eval_only:
            check_categories(cfg, cfg.DATASETS.TEST, run.categories_of)
        checkpoint = last_checkpoint(output) if resume else None
        weights = checkpoint or check_weights(cfg)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not eval_only
        seed_step(cfg.SEED, -1)
        if eval_only:
            if weights is None:
                raise SmallObjError(
                    "There is nothing to evaluate: MODEL.WEIGHTS is empty. Set it to a checkpoint, "
                    "or add --resume for the last one in OUTPUT_DIR."
                )
            rows = run.evaluate(weights)
            record_run(cfg, kind.engine, eval_only=True)
        else:
            run.build(checkpoint, weights)
            # A catalog knows categories once its records have been read.
            names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
            check_categories(cfg, names, run.categories_of)
            # Not before, so that a run which cannot be gone on with keeps its records.
            record_run(cfg, kind.engine, resume=resume)
            record_categories(output, names, run.categories_of)
            try:
                rows = run.train()
            except KeyboardInterrupt:
                logger.info(
                    "Stopped after %d of %d iterations.", run.iterations, cfg.SOLVER.MAX_ITER
                )
                raise
            report_losses(output, run.loader)
        return write_row(cfg, rows, *run.files(cfg.DATASETS.TEST[0])) if rows else None


@contextmanager
def running(
    cfg: Any,
    engine: str,
    *,
    resume: bool = False,
    eval_only: bool = False,
    overwrite: bool = False,
) -> Iterator[Any]:
    """Everything around a run, in each of its processes.

    Settles the device and the seed, takes the output folder for this run alone, and logs there. A
    folder with a run that could be resumed is refused, unless it is to be resumed, evaluated or
    overwritten.

    Yields:
        The config, frozen, with the ``MODEL.DEVICE``, ``SEED`` and ``SOLVER.AMP.ENABLED`` that are
        really used.
    """
    output = Path(cfg.OUTPUT_DIR)
    processes.agree(cfg, engine, resume=resume, eval_only=eval_only)
    busy = f"Another run is writing to {output}. Wait for it, or choose another OUTPUT_DIR."
    lock = locked(output, busy) if processes.rank() == 0 else nullcontext()
    with lock, _one_voice(), full_disk(output), _full_card():
        if processes.rank() == 0:
            remove_leftovers(output)  # of a run that was killed while writing
            if not (resume or eval_only):
                start_anew(output, overwrite=overwrite)
        setup_logging(output)
        cfg = settle_device(cfg)
        if eval_only:  # no draws, so any seed will do
            cfg = changed(cfg, {"SEED": max(cfg.SEED, 0)})
        else:
            cfg = settle_precision(cfg, engine)
            cfg = settle_seed(cfg, resume, engine=engine)
        yield cfg


def how_to_continue(output: Path) -> str:
    """What to tell the user of a run that was interrupted."""
    pointer = output / "last_checkpoint"
    if not pointer.is_file():
        return f"Stopped before the first checkpoint; {output} has nothing to resume from."
    return (
        f"Stopped. The last checkpoint in {output} is {pointer.read_text().strip()}; the same "
        "command with --resume continues from it."
    )


@contextmanager
def _one_voice() -> Iterator[None]:
    """Let neither a log nor TensorBoard's thread complain of a disk; the run itself says it."""
    loud, hook = logging.raiseExceptions, threading.excepthook

    def all_but_disks(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            hook(args)

    logging.raiseExceptions, threading.excepthook = False, all_but_disks
    try:
        yield
    finally:
        logging.raiseExceptions, threading.excepthook = loud, hook


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


def report_losses(output: Path, loader: Any) -> None:
    """Say what a training had to leave out; called in all processes at once, at its end.

    Images that could not be read are listed in the log and in skipped.json, which is added to after
    a resume; where nothing was skipped the file does not exist. Copies that were not placed are
    counted in the log, by reason. What came before an interruption is in neither.

    Args:
        output: the run's folder.
        loader: the `TrainLoader` of this process.
    """
    skipped: Counter[str] = sum(map(Counter, processes.gather(dict(loader.skipped))), Counter())
    left_out: Counter[str] = sum(map(Counter, processes.gather(loader.left_out)), Counter())
    if processes.rank() != 0:
        return
    if left_out["capped"]:
        logger.warning(
            "%d copies were left out, as SMALLOBJ.MAX_PASTES allows no more.", left_out["capped"]
        )
    if left_out["given_up"]:
        logger.info("Copies that found no free place: %d.", left_out["given_up"])
    if left_out["empty"]:
        logger.info("Copies left out as they own no pixel: %d.", left_out["empty"])
    if not skipped:
        return
    path = output / "skipped.json"
    if path.is_file():
        try:
            skipped.update({str(k): int(v) for k, v in json.loads(path.read_bytes()).items()})
        except (ValueError, TypeError, AttributeError) as e:
            logger.warning("%s is damaged (%s) and written anew.", path, e)
    for what, count in skipped.most_common():
        logger.warning("Skipped %d %s: %s", count, "time" if count == 1 else "times", what)
    logger.warning("%d images were skipped, %d draws in all.", len(skipped), skipped.total())
    write_json(path, dict(skipped.most_common()))


def write_row(cfg: Any, rows: Mapping[str, Row], json_file: Path, images: Path) -> Row:
    """Measure the first test set by size as well, log that, and write all of it to row.json.

    Args:
        cfg: the config.
        rows: by test set; their detections lie in OUTPUT_DIR.
        json_file, images: annotations and image folder of the first test set; row.json has them.

    Returns:
        Its row, with ``by_size``: what `smallobj_d2.evaluation.by_size.by_size` gives for each
        half.
    """
    output, first = Path(cfg.OUTPUT_DIR), cfg.DATASETS.TEST[0]
    truth, results = load_ground_truth(json_file), results_of_run(output, first)
    limits, counted = cfg.SMALLOBJ.SIZE_LIMITS, counted_detections(cfg)
    sizes = {t: by_size(truth, results, t, limits, counted) for t in TITLES if t in rows[first]}
    logger.info("%s by size:\n%s", first, size_table(sizes))
    row = {**rows[first], "by_size": sizes}
    files = {"json_file": os.path.abspath(json_file), "images": os.path.abspath(images)}
    about = {"dataset": first, **files, "detections": counted}
    write_json(output / "row.json", {**about, **row})
    return row


def record_categories(
    output: Path, names: Iterable[str], categories_of: Callable[[str], Categories | None]
) -> None:
    """Keep what a run's classes mean in categories.json, as a COCO JSON has it.

    Args:
        output: the run's folder.
        names: of its datasets.
        categories_of: name of a dataset to its categories, or to None where they are not known.
    """
    known = next((c for name in names if (c := categories_of(name)) is not None), None)
    if known is not None and processes.rank() == 0:
        content = [{"id": i, "name": name} for i, name in known.items()]
        write_json(output / "categories.json", content)


def not_finite(output: Path, iteration: int, positions: Iterable[int], which: str) -> SmallObjError:
    """The error for losses that are not finite, naming the draws that they came from."""
    draws = " ".join(map(str, positions))
    return SmallObjError(
        f"The loss is not finite at iteration {iteration}: {which}. Its draws have the positions "
        f"{draws}; look at them with smallobj visualize --config {output / 'config.yaml'} "
        f"--positions {draws}. Mostly the learning rate is too high: lower SOLVER.BASE_LR, or "
        "raise SOLVER.WARMUP_ITERS."
    )
