"""The torchvision engine: the same YAML, draws, schedule and numbers, without Detectron2.

`main` is a run. The other modules are its parts: `mapper` (dataset dict to sample), `model`,
`weights` (initial weights of any naming), `trainer`, `inference`, and `support` (what a config may
ask for).
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smallobj_d2.datasets.categories import check_categories
from smallobj_d2.datasets.coco import (
    categories_of,
    dataset_info,
    get_records,
    load_dataset,
    register_from_config,
)
from smallobj_d2.engines import processes, run
from smallobj_d2.engines.folder import last_checkpoint
from smallobj_d2.engines.loader import TrainLoader, loader_from_config
from smallobj_d2.engines.seed_and_device import seed_step
from smallobj_d2.engines.torchvision.inference import coco_results, detect, write_results
from smallobj_d2.engines.torchvision.mapper import (
    MAPPERS,
    SmallObjectMapper,
    build_mapper,
    read_image,
    windows_of,
)
from smallobj_d2.engines.torchvision.model import build_model
from smallobj_d2.engines.torchvision.support import check_supported
from smallobj_d2.engines.torchvision.trainer import Trainer
from smallobj_d2.engines.torchvision.weights import load_weights
from smallobj_d2.engines.weights import NOTHING_TO_EVALUATE, check_weights
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import (
    Row,
    as_detectron2,
    coco_metrics,
    count_objects,
    counted_detections,
    load_ground_truth,
    row_of,
    table,
)
from smallobj_d2.training_set import check_test_data
from smallobj_d2.visualization.sheets import (
    Outlines,
    View,
    outlines_of_box,
    outlines_of_mask,
)

__all__ = [
    "MAPPERS",
    "SmallObjectMapper",
    "build_model",
    "build_train_loader",
    "evaluate",
    "main",
    "predictor",
    "view",
]

logger = logging.getLogger(__name__)


def main(
    cfg: Any, resume: bool = False, eval_only: bool = False, overwrite: bool = False
) -> Row | None:
    """Train and evaluate, or only evaluate, as a config says. Called in every process of a run.

    Args:
        cfg: a config with ``SMALLOBJ``.
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one.
        eval_only: evaluate MODEL.WEIGHTS, or with `resume` the last checkpoint.
        overwrite: start anew in a folder that holds a run already.

    Returns:
        The table row of the first test set in process 0, which is also in row.json; None in other
        processes, and where DATASETS.TEST is empty.
    """
    check_supported(cfg)
    register_from_config(cfg)
    how = {"resume": resume, "eval_only": eval_only, "overwrite": overwrite}
    with run.running(cfg, "torchvision", **how) as cfg:
        check_test_data(cfg)
        if eval_only:
            check_categories(cfg, cfg.DATASETS.TEST, categories_of)
        checkpoint = last_checkpoint(Path(cfg.OUTPUT_DIR)) if resume else None
        weights = checkpoint or check_weights(cfg)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not eval_only
        seed_step(cfg.SEED, -1)
        model = build_model(cfg).to(_device(cfg))
        if eval_only:
            if weights is None:
                raise SmallObjError(NOTHING_TO_EVALUATE)
            load_weights(model, weights, whole=True)
            return _first(cfg, evaluate(cfg, model)[0])

        trainer = Trainer.from_config(cfg, model)
        if checkpoint:
            trainer.resume(checkpoint)
        elif weights:
            load_weights(model, weights)
        if trainer.next_iteration >= trainer.max_iter:
            logger.info("All %d iterations are done: nothing is left to train.", trainer.max_iter)
            if checkpoint and checkpoint.name != "model_final.pth":
                # Killed between the last periodic checkpoint and the final one.
                trainer.save("model_final.pth")
            return _first(cfg, evaluate(cfg, model)[0])

        rows: dict[str, Row] = {}

        def evaluate_now() -> dict[str, float]:
            latest, numbers = evaluate(cfg, model)
            rows.update(latest)
            return numbers

        loader = build_train_loader(cfg, start_iter=trainer.next_iteration)
        check_categories(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], categories_of)
        run.record_categories(cfg, categories_of)
        trainer.train(
            loader,
            eval_period=cfg.TEST.EVAL_PERIOD,
            evaluate=evaluate_now if cfg.DATASETS.TEST else None,
        )
        run.report_losses(Path(cfg.OUTPUT_DIR), loader)
        return _first(cfg, rows)


def _first(cfg: Any, rows: dict[str, Row]) -> Row | None:
    return run.write_row(cfg, rows, dataset_info(cfg.DATASETS.TEST[0]).json_file) if rows else None


def _device(cfg: Any) -> torch.device:
    if cfg.MODEL.DEVICE == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(cfg.MODEL.DEVICE)


def build_train_loader(cfg: Any, *, start_iter: int = 0) -> TrainLoader:
    """The training loader of a config, for this process.

    Args:
        cfg: a config with ``SMALLOBJ``; ``SEED`` must not be negative.
        start_iter: the iteration to start at.
    """
    read = partial(read_image, image_format=cfg.INPUT.FORMAT)
    return loader_from_config(cfg, build_mapper, get_records, read, start_iter=start_iter)


def evaluate(cfg: Any, model: torch.nn.Module) -> tuple[dict[str, Row], dict[str, float]]:
    """Evaluate a model on each of DATASETS.TEST. Called in all processes at once.

    Returns:
        Rows by dataset, and all numbers under Detectron2's names; in processes other than the first
        none.
    """
    output = Path(cfg.OUTPUT_DIR)
    rows: dict[str, Row] = {}
    numbers: dict[str, float] = {}
    several = len(cfg.DATASETS.TEST) > 1
    for name in cfg.DATASETS.TEST:
        dataset = load_dataset(name)
        results = detect(
            model,
            dataset.records,
            build_mapper(cfg, False),
            dataset.category_ids,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        if processes.rank() != 0:
            continue
        write_results(output / "inference" / (name if several else ""), results)
        truth = load_ground_truth(dataset_info(name).json_file)
        tasks = ("segm", "bbox") if cfg.MODEL.MASK_ON else ("bbox",)
        metrics = {t: coco_metrics(truth, results, t, counted_detections(cfg)) for t in tasks}
        rows[name] = row_of(metrics, count_objects(truth))
        prefix = f"{name}/" if several else ""
        numbers |= {prefix + k: v for k, v in as_detectron2(metrics).items()}
        logger.info("%s:\n%s", name, table(rows[name]))
    return rows, numbers


def predictor(cfg: Any, weights: Path) -> Callable[[Sequence[Any]], list[list[dict[str, Any]]]]:
    """A trained model as a function of images; see `smallobj_d2.engines`."""
    check_supported(cfg)
    model = build_model(cfg).to(_device(cfg)).eval()
    load_weights(model, weights, whole=True)
    mapper = build_mapper(cfg, False)
    classes = range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)

    @torch.no_grad()
    def predict(images: Sequence[Any]) -> list[list[dict[str, Any]]]:
        sizes = [{"image_id": 0, "height": len(i), "width": i.shape[1]} for i in images]
        samples = [mapper({**s, "pixels": i}) for s, i in zip(sizes, images, strict=True)]
        inputs = [sample["image"].to(_device(cfg)).float() for sample in samples]
        found = zip(model(inputs), inputs, sizes, strict=True)
        return [coco_results(d, i.shape[-2:], size, classes) for d, i, size in found]

    return predict


def view(sample: dict[str, Any], cfg: Any) -> View:
    """A sample of the mapper as a picture with outlines."""
    target = sample["target"]
    outlines: list[Outlines] = []
    if "masks" in target:
        for (x0, y0, _, _), mask in windows_of(target):
            outlines.append([part + (x0, y0) for part in outlines_of_mask(mask.numpy())])
    else:
        outlines = [outlines_of_box(*box) for box in target["boxes"].tolist()]
    pasted = target["pasted"].tolist()
    return View.of_sample(sample["image"].numpy(), cfg.INPUT.FORMAT, outlines, pasted)
