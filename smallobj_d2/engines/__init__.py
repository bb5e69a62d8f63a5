"""Training engines: thin layers on top of the core, neither imported by it.

An engine is a module with

* ``MAPPERS``: its `smallobj_d2.registry.Registry` of mappers, chosen by ``SMALLOBJ.MAPPER``,
* ``build_train_loader(cfg, *, start_iter=0)``: batches of samples,
* ``main(cfg, resume, eval_only, overwrite)``: train and evaluate in this process, return the
  table row,
* ``view(sample, cfg)``: a sample as a picture with outlines, for `visualization.sheets`,
* ``predictor(cfg, weights)``: a trained model as a function. It takes images, (H, W, 3) uint8 RGB,
  and gives for each a list of detections in COCO's result format, with the contiguous class in
  ``category_id`` and a meaningless ``image_id``. `predictions.load_run` builds it.
"""

from importlib import import_module
from types import ModuleType

from smallobj_d2.config import has_detectron2
from smallobj_d2.errors import SmallObjError
from smallobj_d2.registry import Registry

ENGINES: Registry[str] = Registry("engine", "--engine")
"""Names of the engines' modules, which are imported when they are used."""

ENGINES.add("detectron2", "smallobj_d2.engines.detectron2")
ENGINES.add("torchvision", "smallobj_d2.engines.torchvision")


def choose_engine(name: str = "auto") -> str:
    """The engine to use: ``auto`` takes detectron2 where it is installed, else torchvision."""
    if name == "auto":
        return "detectron2" if has_detectron2() else "torchvision"
    ENGINES[name]  # or an error that lists those there are
    if name == "detectron2" and not has_detectron2():
        raise SmallObjError(
            "--engine detectron2: Detectron2 is not installed here. Install it by its own guide "
            "(detectron2.readthedocs.io, Installation), or use --engine torchvision."
        )
    return name


def load_engine(name: str = "auto") -> ModuleType:
    """Import an engine by name."""
    return import_module(ENGINES[choose_engine(name)])
