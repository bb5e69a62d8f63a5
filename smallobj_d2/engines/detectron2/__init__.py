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
from smallobj_d2.datasets.categories import Categories
from smallobj_d2.engines import processes, run
from smallobj_d2.engines.detectron2.checkpoints import Checkpointer
from smallobj_d2.engines.detectron2.data import (
    catalog_categories,
    oversampling_sampler,
    read_records,
    register_datasets,
    require_keypoint_names,
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
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import Row, count_objects, from_detectron2, load_ground_truth, table
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
    """Train and evaluate, or only evaluate; see `smallobj_d2.engines.run.carry_out`."""
    return run.carry_out(_Run, cfg, resume, eval_only, overwrite)


class _Run(run.Run):
    engine = "detectron2"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        for name in ("fvcore", "detectron2"):
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
        if comm.get_world_size() > 1:
            comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_words)
        register_datasets(cfg.DATASETS.TEST)
        self.datasets = DatasetCatalog.list()

    def categories_of(self, name: str) -> Categories | None:
        return catalog_categories(name)

    def files(self, name: str) -> tuple[Path, Path]:
        about = MetadataCatalog.get(name)
        return Path(about.json_file), Path(about.get("image_root", ""))

    def evaluate(self, weights: Path) -> dict[str, Row]:
        model = Trainer.build_model(self.cfg)
        Checkpointer.load_whole(model, weights)
        return self._rows(Trainer.test(self.cfg, model))

    def build(self, checkpoint: Path | None, weights: Path | None) -> None:
        register_datasets(self.cfg.DATASETS.TRAIN)
        require_keypoint_names(self.cfg)
        local = {} if checkpoint else {"MODEL.WEIGHTS": str(weights or "")}
        self.trainer = Trainer(changed(self.cfg, local))
        self.trainer.resume_or_load(checkpoint is not None)
        self.loader = self.trainer._trainer.data_loader

    def train(self) -> dict[str, Row]:
        self.trainer.train()
        return self._rows(self.trainer._last_eval_results)

    @property
    def iterations(self) -> int:
        return int(self.trainer.iter)

    def _rows(self, results: dict[str, Any]) -> dict[str, Row]:
        """Log the table row of each test set."""
        rows: dict[str, Row] = {}
        for name in self.cfg.DATASETS.TEST if processes.rank() == 0 else ():
            truth = load_ground_truth(self.files(name)[0])
            metrics = results if len(self.cfg.DATASETS.TEST) == 1 else results[name]
            rows[name] = from_detectron2(metrics, count_objects(truth))
            logger.info("%s:\n%s", name, table(rows[name]))
        return rows


def _has_no_words(entry: logging.LogRecord) -> bool:
    """Whether an entry of Detectron2's log is not about an error that is told elsewhere.

    Of several processes the launcher tells the first error; the others only lost each other.
    """
    if not entry.exc_info:
        return True
    return comm.get_world_size() == 1 and not isinstance(entry.exc_info[1], SmallObjError | OSError)


def predictor(cfg: CfgNode, weights: Path) -> Callable[[Sequence[Any]], list[list[dict[str, Any]]]]:
    """A trained model as a function of images; see `smallobj_d2.engines`."""
    model = build_model(cfg).eval()
    Checkpointer.load_whole(model, weights)
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
