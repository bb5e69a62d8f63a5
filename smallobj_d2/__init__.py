"""Better detection and segmentation of small objects, for Detectron2.

Oversampling and copy-paste of small objects after Kisantal et al., *Augmentation for small object
detection* (2019).
"""

from smallobj_d2.augmentation import DrawAugmentation, build_augmentation
from smallobj_d2.config import add_smallobj_config, get_cfg, load_cfg
from smallobj_d2.copy_paste import STRATEGIES, CopyPaste, Jitter, SameImage, SourceRule
from smallobj_d2.datasets.coco import load_coco, register_dataset
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sampling import REPEAT_FACTORS, Draw, Stream, repeat_factors

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
