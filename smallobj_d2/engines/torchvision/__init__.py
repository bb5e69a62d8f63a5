"""The torchvision engine: the same YAML, draws, schedule and numbers, without Detectron2.

`main` is a run. The other modules are its parts: `mapper` (dataset dict to sample), `model`,
`weights` (initial weights of any naming), `trainer`, `inference`, and `support` (what a config may
ask for).
"""

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from smallobj_d2.datasets.coco import dataset_info, get_records, load_dataset
from smallobj_d2.engines import processes, run
from smallobj_d2.engines.loader import TrainLoader, loader_from_config
from smallobj_d2.engines.torchvision.inference import coco_results, detect
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
from smallobj_d2.files import writing
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
    """Train and evaluate, or only evaluate; see `smallobj_d2.engines.run.carry_out`."""
    check_supported(cfg)
    return run.carry_out(_Run, cfg, resume, eval_only, overwrite)


class _Run(run.Run):
    engine = "torchvision"

    def evaluate(self, weights: Path) -> dict[str, Row]:
        model = _model(self.cfg)
        load_weights(model, weights, whole=True)
        return evaluate(self.cfg, model)[0]

    def build(self, checkpoint: Path | None, weights: Path | None) -> None:
        model = _model(self.cfg)
        self.trainer = Trainer.from_config(self.cfg, model)
        if checkpoint:
            self.trainer.resume(checkpoint)
        elif weights:
            load_weights(model, weights)
        self.loader = build_train_loader(self.cfg, start_iter=self.iterations)

    def train(self) -> dict[str, Row]:
        evaluates = partial(evaluate, self.cfg) if self.cfg.DATASETS.TEST else None
        return self.trainer.train(self.loader, evaluates, eval_period=self.cfg.TEST.EVAL_PERIOD)

    @property
    def iterations(self) -> int:
        return self.trainer.next_iteration


def _model(cfg: Any) -> GeneralizedRCNN:
    return build_model(cfg).to(_device(cfg))


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
        folder = output / "inference" / (name if several else "")
        with writing(folder / "coco_instances_results.json") as temporary:
            temporary.write_text(json.dumps(results))
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
    model = _model(cfg).eval()
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
