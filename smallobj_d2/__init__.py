"""Better detection and segmentation of small objects, for Detectron2.

Oversampling and copy-paste of small objects after Kisantal et al., *Augmentation for small object
detection* (2019).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smallobj_d2.errors import SmallObjError, how_to_install

if TYPE_CHECKING:
    from smallobj_d2.augmentation import DrawAugmentation, build_augmentation
    from smallobj_d2.config import add_smallobj_config, get_cfg, load_cfg
    from smallobj_d2.copy_paste import STRATEGIES, CopyPaste, Jitter, SameImage, SourceRule
    from smallobj_d2.datasets.coco import load_coco, register_dataset
    from smallobj_d2.sampling import REPEAT_FACTORS, Draw, Stream, repeat_factors
else:  # imported when they are asked for: `smallobj --help` is fast, and OpenCV may be missing

    def __getattr__(name: str) -> Any:
        if name in __all__:
            try:
                for place in ("config", "sampling", "copy_paste", "datasets.coco", "augmentation"):
                    module = import_module(f"{__name__}.{place}")
                    if hasattr(module, name):
                        return getattr(module, name)
            except ModuleNotFoundError as e:
                if words := how_to_install(e):
                    raise ImportError(words) from None
                raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "REPEAT_FACTORS",
    "STRATEGIES",
    "CopyPaste",
    "Draw",
    "DrawAugmentation",
    "Jitter",
    "SameImage",
    "SmallObjError",
    "SourceRule",
    "Stream",
    "add_smallobj_config",
    "build_augmentation",
    "get_cfg",
    "load_cfg",
    "load_coco",
    "register_dataset",
    "repeat_factors",
]
