"""Initial weights: files of Caffe2, Detectron2 or torchvision naming into our model.

Nothing in a file is executed; see `smallobj_d2.engines.weights`.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from smallobj_d2.engines.weights import read_file, require_whole
from smallobj_d2.errors import SmallObjError

logger = logging.getLogger(__name__)


def load_weights(model: GeneralizedRCNN, path: Path, *, whole: bool = False) -> None:
    """Load what fits from a weights file, log what does not.

    Args:
        model, path: what to load, and where from.
        whole: whether the file must have all parameters of the model.

    Raises:
        SmallObjError: if the file cannot be read safely, nothing in it fits, or too little.
    """
    first_level = 6 - len(model.backbone.fpn.inner_blocks)  # of levels that end with p5
    given = convert_names(read_weights(path), first_level)
    own = model.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise SmallObjError(
            f"{path}: none of its {len(given)} weights has the name and shape of one of the model. "
            "Is it for this MODEL.RESNETS.DEPTH, and in Detectron2's or torchvision's naming?"
        )
    if whole:
        require_whole(model, own.keys() - fitting.keys())
    other_shape = sorted(k for k in given if k in own and own[k].shape != given[k].shape)
    absent = [k for k in own if k not in fitting and not k.endswith("num_batches_tracked")]
    model.load_state_dict(fitting, strict=False)
    logger.info("%s: loaded %d of the model's %d weights.", path, len(fitting), len(own))
    if other_shape:
        logger.info("Not loaded, as the model has another shape: %s", ", ".join(other_shape))
    if absent:
        modules = sorted({".".join(k.split(".")[:3]) for k in absent})
        logger.info("Not in the file, so they start as new: %s", ", ".join(modules))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a ``.pkl`` or ``.pth`` file.

    Raises:
        SmallObjError: if it is not a weights file, or holds more than weights.
    """
    data = read_file(path)
    for key in ("model", "blobs", "state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
            break
    if not isinstance(data, Mapping):
        raise SmallObjError(f"{path} is not a weights file: it holds a {type(data).__name__}.")
    return {
        str(k): torch.as_tensor(np.array(v)) if isinstance(v, np.ndarray) else v
        for k, v in data.items()
        if isinstance(v, Tensor) or (isinstance(v, np.ndarray) and v.dtype.kind in "fiub")
    }


# --- Names

# Caffe2's names of an ImageNet model, after "_" became ".", to Detectron2's.
_CAFFE2 = (
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"bn\.(s|gamma)$", "norm.weight"),
    (r"bn\.(b|bias|beta)$", "norm.bias"),
    (r"gn\.s$", "norm.weight"),
    (r"gn\.(b|bias)$", "norm.bias"),
    (r"bn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"bn\.(riv|running\.var)$", "norm.running_var"),
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
)

_Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
_MASK_HEAD = (r"mask_fcn(\d)\.", lambda m: f"{int(m[1]) - 1}.0.")

# Detectron2's names to torchvision's; FPN's levels are counted in `convert_names`.
_DETECTRON2: _Rules = (
    (r"^backbone\.bottom_up\.", ""),
    (r"^stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^stem\.conv1\.", "backbone.body.conv1."),
    (r"^(res\d\.\d+)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(res\d\.\d+)\.shortcut\.", r"\1.downsample.0."),
    (r"^(res\d\.\d+)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"^res(\d)\.", lambda m: f"backbone.body.layer{int(m[1]) - 1}."),
    (r"^backbone\.fpn_lateral(\d)\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^backbone\.fpn_output(\d)\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^(backbone\.fpn\.\w+_blocks\.\d)\.0\.norm\.", r"\1.1."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_head\.fc(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
    _MASK_HEAD,
)

# torchvision's own older names, and its ImageNet models, which are a body alone.
_TORCHVISION: _Rules = (
    (r"^(conv1|bn1|layer\d)\.", r"backbone.body.\1."),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    _MASK_HEAD,
)


def convert_names(weights: Mapping[str, Tensor], first_level: int = 2) -> dict[str, Tensor]:
    """Bring weights of any of the three namings under our model's names.

    Detectron2 keeps the background as the last class of the classifier and has none in the box and
    mask predictors; torchvision has it first in all three.

    Args:
        weights: by name.
        first_level: of the feature pyramid, 2 for p2.
    """
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    if any(k.startswith(("res2_", "res_conv1_", "conv1_w")) for k in weights):
        weights = {
            _rename(k.replace("_", "."), _CAFFE2): v
            for k, v in weights.items()
            if not k.endswith("_momentum")
        }
    if not any(k.startswith(("stem.", "backbone.bottom_up.")) for k in weights):
        return {_rename(name, _TORCHVISION): value for name, value in weights.items()}

    level = (r"(_blocks)\.(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - first_level}.")
    out = {}
    for name, value in weights.items():
        name = _rename(name, (*_DETECTRON2, level))
        if name.startswith("roi_heads.box_predictor.cls_score."):
            value = torch.cat([value[-1:], value[:-1]])
        elif name.startswith("roi_heads.box_predictor.bbox_pred."):
            value = torch.cat([torch.zeros_like(value[:4]), value])
        elif name.startswith("roi_heads.mask_predictor.mask_fcn_logits."):
            value = torch.cat([torch.zeros_like(value[:1]), value])
        out[name] = value
    return out


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
