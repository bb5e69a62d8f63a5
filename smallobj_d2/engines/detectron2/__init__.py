"""The Detectron2 engine: mapper, loader and trainer, each a thin layer on the stock one.

`main` is a run. The other modules are its parts: `data` (records, catalogs, samplers), `mapper`,
`checkpoints`, and `trainer`.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import PolygonMasks
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from smallobj_d2.config import changed
from smallobj_d2.datasets.categories import check_categories
from smallobj_d2.datasets.coco import register_from_config
from smallobj_d2.engines import run
from smallobj_d2.engines.detectron2.checkpoints import Checkpointer
from smallobj_d2.engines.detectron2.data import (
    catalog_categories,
    oversampling_sampler,
    read_records,
    register_datasets,
    sampler_from_config,
    with_areas,
)
from smallobj_d2.engines.detectron2.mapper import (
    MAPPERS,
    SmallObjectMapper,
    build_mapper,
    build_train_loader,
)
from smallobj_d2.engines.detectron2.trainer import Trainer
from smallobj_d2.engines.seed_and_device import seed_step
from smallobj_d2.engines.weights import NOTHING_TO_EVALUATE, check_weights
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import Row, count_objects, from_detectron2, load_ground_truth, table
from smallobj_d2.training_set import check_test_data
from smallobj_d2.visualization.sheets import (
    Outlines,
    View,
    outlines_of_box,
    outlines_of_mask,
)

__all__ = [
    "MAPPERS",
    "Checkpointer",
    "SmallObjectMapper",
    "Trainer",
    "build_mapper",
    "build_train_loader",
    "catalog_categories",
    "main",
    "oversampling_sampler",
    "predictor",
    "read_records",
    "register_datasets",
    "sampler_from_config",
    "view",
    "with_areas",
]

logger = logging.getLogger(__name__)


def main(
    cfg: CfgNode, resume: bool = False, eval_only: bool = False, overwrite: bool = False
) -> Row | None:
    """Train and evaluate, or only evaluate, as a config says. Called in every process of a run.

    Args:
        cfg: a Detectron2 config with ``SMALLOBJ``.
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one.
        eval_only: evaluate MODEL.WEIGHTS, or with `resume` the last checkpoint.
        overwrite: start anew in a folder that holds a run already.

    Returns:
        The table row of the first test set in process 0, which is also in row.json; None in other
        processes, and where DATASETS.TEST is empty.
    """
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise SmallObjError(
            f"SOLVER.AMP.ENABLED is True and MODEL.DEVICE {cfg.MODEL.DEVICE}; Detectron2 has mixed "
            "precision on a GPU only. Set SOLVER.AMP.ENABLED False."
        )
    register_from_config(cfg)
    how = {"resume": resume, "eval_only": eval_only, "overwrite": overwrite}
    with run.running(cfg, "detectron2", **how) as cfg:
        for name in ("fvcore", "detectron2"):
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
        if comm.get_world_size() > 1:
            comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_words)
        register_datasets(cfg)
        check_test_data(cfg, DatasetCatalog.list())
        if eval_only:
            check_categories(cfg, cfg.DATASETS.TEST, catalog_categories)
        cfg = _with_local_weights(cfg, resume)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not eval_only
        seed_step(cfg.SEED, -1)
        if eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
            checkpointer.whole = True
            if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
                raise SmallObjError(NOTHING_TO_EVALUATE)
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
            results = Trainer.test(cfg, model)
        else:
            trainer = Trainer(cfg)
            names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
            check_categories(cfg, names, catalog_categories)
            run.record_categories(cfg, catalog_categories)
            trainer.resume_or_load(resume)
            with run.telling_where_it_stops(lambda: trainer.iter, cfg.SOLVER.MAX_ITER):
                trainer.train()
            run.report_losses(Path(cfg.OUTPUT_DIR), trainer._trainer.data_loader)
            results = trainer.results
        if not comm.is_main_process() or not cfg.DATASETS.TEST:
            return None
        return _report(cfg, results)


def _has_no_words(entry: logging.LogRecord) -> bool:
    """Whether an entry of Detectron2's log is not about an error that is told elsewhere.

    Of several processes the launcher tells the first error; the others only lost each other.
    """
    if not entry.exc_info:
        return True
    return comm.get_world_size() == 1 and not isinstance(entry.exc_info[1], SmallObjError | OSError)


def _with_local_weights(cfg: CfgNode, resume: bool) -> CfgNode:
    """The config with MODEL.WEIGHTS on this machine, unless a checkpoint takes their place."""
    if resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return cfg
    return changed(cfg, {"MODEL.WEIGHTS": str(check_weights(cfg) or "")})


def _report(cfg: CfgNode, results: dict[str, Any]) -> Row:
    """Log the table row of each test set; that of the first goes to row.json."""
    rows = {}
    for name in cfg.DATASETS.TEST:
        truth = load_ground_truth(MetadataCatalog.get(name).json_file)
        metrics = results if len(cfg.DATASETS.TEST) == 1 else results[name]
        rows[name] = from_detectron2(metrics, count_objects(truth))
        logger.info("%s:\n%s", name, table(rows[name]))
    return run.write_row(cfg, rows, MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file)


def predictor(cfg: CfgNode, weights: Path) -> Callable[[Sequence[Any]], list[list[dict[str, Any]]]]:
    """A trained model as a function of images; see `smallobj_d2.engines`."""
    model = build_model(cfg).eval()
    checkpointer = Checkpointer(model)
    checkpointer.whole = True
    checkpointer.load(str(weights))
    mapper = build_mapper(cfg, False)

    @torch.no_grad()
    def predict(images: Sequence[Any]) -> list[list[dict[str, Any]]]:
        sizes = [{"image_id": 0, "height": len(i), "width": i.shape[1]} for i in images]
        outputs = model([mapper({**s, "pixels": i}) for s, i in zip(sizes, images, strict=True)])
        return [instances_to_coco_json(output["instances"].to("cpu"), 0) for output in outputs]

    return predict


def view(sample: dict[str, Any], cfg: CfgNode) -> View:
    """A sample of the mapper as a picture with outlines."""
    instances = sample["instances"]
    outlines: list[Outlines] = []
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        if isinstance(masks, PolygonMasks):
            outlines = [[p.reshape(-1, 2) for p in parts] for parts in masks.polygons]
        else:
            outlines = [outlines_of_mask(m) for m in masks.tensor.numpy()]
    else:
        outlines = [outlines_of_box(*box) for box in instances.gt_boxes.tensor.tolist()]
    pasted = sample.get("pasted", [False] * len(outlines))
    return View.of_sample(sample["image"].numpy(), cfg.INPUT.FORMAT, outlines, pasted)
