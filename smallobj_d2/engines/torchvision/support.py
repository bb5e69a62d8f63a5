"""What this engine does with a config: each key is honoured, or refused by name."""

from typing import Any

from smallobj_d2.config import flatten, has_detectron2, torchvision_cfg
from smallobj_d2.errors import SmallObjError

_NORMS = ("", "BN", "FrozenBN", "GN")
_POOLERS = ("ROIAlign", "ROIAlignV2")
_CHOICES = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone",),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads",),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR",),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}
"""Keys of which only some values are available here."""


def check_supported(cfg: Any) -> None:
    """Refuse a config that asks for what this engine does not do.

    Raises:
        SmallObjError: naming the key, its value, and what is available.
    """
    values = flatten(cfg)
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise SmallObjError(
                f"{key} is {values[key]!r}; the torchvision engine has "
                f"{' or '.join(map(repr, choices))} only. Set it so, or use --engine detectron2."
            )
    if len(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS) != 1 or len(cfg.MODEL.RPN.IOU_THRESHOLDS) != 2:
        raise SmallObjError(
            "MODEL.ROI_HEADS.IOU_THRESHOLDS must be one number and MODEL.RPN.IOU_THRESHOLDS two."
        )
    if has_detectron2():
        from detectron2.config import get_cfg

        # Keys that Detectron2 has and this engine does not read must be as they are by default.
        own = flatten(torchvision_cfg())
        defaults = flatten(get_cfg())
        for key, value in values.items():
            if key in defaults and key not in own and _plain(value) != _plain(defaults[key]):
                raise SmallObjError(
                    f"{key} is {value!r}, but the torchvision engine does not know this key. Leave "
                    f"it at {defaults[key]!r}, or use --engine detectron2."
                )


def _plain(value: Any) -> Any:
    """A value as YAML gives it, which writes tuples within tuples as lists."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
