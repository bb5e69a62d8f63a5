"""Mask R-CNN with a ResNet-FPN from torchvision's parts, built from Detectron2's config keys.

The network, the matching, the sampling of proposals and the box losses are torchvision's. What is
written here is what its constructors do not allow: the widths and strides of Detectron's
ResNets, the beta of the smooth L1 losses, which pyramid levels feed which head, anchors that are
not rounded, ROIAlign with half-pixel alignment, and mask targets cut from small windows in place
of full-image bitmaps. Half a pixel is much for a small object, so wherever torchvision rounds and
Detectron2 does not, this does not.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody calls it that
from torchvision.models.detection import roi_heads as tv_roi_heads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from smallobj_d2.errors import SmallObjError

Norm = Callable[[int], nn.Module]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_STAGES = ("res2", "res3", "res4", "res5")


def build_model(cfg: Any) -> GeneralizedRCNN:
    """The network of a config, with Detectron's initial weights in its heads.

    The config must be one that `support.check_supported` lets pass.

    In training it takes a list of (3, H, W) float images (0 to 255, channels as in INPUT.FORMAT,
    already resized) and a list of targets (see `mapper.targets`), and returns the named losses. In
    evaluation it returns per image ``boxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) from 1 up,
    and ``masks`` (N, 28, 28) probabilities within the boxes, in pixels of the image it was given.
    """
    m = cfg.MODEL
    num_classes = m.ROI_HEADS.NUM_CLASSES + 1  # torchvision counts the background, as class 0
    levels = [f"p{stage[3:]}" for stage in m.FPN.IN_FEATURES] + ["p6"]
    if unknown := {*m.RPN.IN_FEATURES, *m.ROI_HEADS.IN_FEATURES} - {*levels}:
        raise SmallObjError(
            f"MODEL.RPN.IN_FEATURES and MODEL.ROI_HEADS.IN_FEATURES name {sorted(unknown)}; the "
            f"pyramid has {levels}."
        )
    backbone = build_backbone(cfg)

    anchors = Anchors.from_config(cfg)
    per_location = anchors.num_anchors_per_location()
    if len(set(per_location)) != 1:
        raise SmallObjError(
            "MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS make different numbers of anchors "
            f"on the levels ({per_location}), but all levels share one RPN head."
        )
    rpn = RPN(
        anchors,
        _RPNHead(backbone.out_channels, per_location[0]),
        fg_iou_thresh=m.RPN.IOU_THRESHOLDS[1],
        bg_iou_thresh=m.RPN.IOU_THRESHOLDS[0],
        batch_size_per_image=m.RPN.BATCH_SIZE_PER_IMAGE,
        positive_fraction=m.RPN.POSITIVE_FRACTION,
        pre_nms_top_n={
            "training": m.RPN.PRE_NMS_TOPK_TRAIN,
            "testing": m.RPN.PRE_NMS_TOPK_TEST,
        },
        post_nms_top_n={
            "training": m.RPN.POST_NMS_TOPK_TRAIN,
            "testing": m.RPN.POST_NMS_TOPK_TEST,
        },
        nms_thresh=m.RPN.NMS_THRESH,
        in_features=m.RPN.IN_FEATURES,
        smooth_l1_beta=m.RPN.SMOOTH_L1_BETA,
    )

    box = m.ROI_BOX_HEAD
    roi_heads = RoIHeads(
        Pooler(box, m.ROI_HEADS.IN_FEATURES),
        _box_head(backbone.out_channels * box.POOLER_RESOLUTION**2, box.FC_DIM, number=box.NUM_FC),
        FastRCNNPredictor(box.FC_DIM, num_classes),
        fg_iou_thresh=m.ROI_HEADS.IOU_THRESHOLDS[0],
        bg_iou_thresh=m.ROI_HEADS.IOU_THRESHOLDS[0],
        batch_size_per_image=m.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        positive_fraction=m.ROI_HEADS.POSITIVE_FRACTION,
        bbox_reg_weights=None,
        score_thresh=m.ROI_HEADS.SCORE_THRESH_TEST,
        nms_thresh=m.ROI_HEADS.NMS_THRESH_TEST,
        detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        smooth_l1_beta=box.SMOOTH_L1_BETA,
    )
    if m.MASK_ON:
        mask = m.ROI_MASK_HEAD
        roi_heads.mask_roi_pool = Pooler(mask, m.ROI_HEADS.IN_FEATURES)
        roi_heads.mask_head = MaskRCNNHeads(
            backbone.out_channels, [mask.CONV_DIM] * mask.NUM_CONV, dilation=1
        )
        roi_heads.mask_predictor = MaskRCNNPredictor(
            mask.CONV_DIM if mask.NUM_CONV else backbone.out_channels, mask.CONV_DIM, num_classes
        )
    _initialise_heads(roi_heads)

    return GeneralizedRCNN(backbone, rpn, roi_heads, Normalize(m.PIXEL_MEAN, m.PIXEL_STD))


# --- Backbone


def frozen_batch_norm(channels: int) -> FrozenBatchNorm2d:
    """A frozen batch norm that is the identity until weights are loaded, as Detectron2's is."""
    norm = FrozenBatchNorm2d(channels)
    norm.running_var -= norm.eps
    return norm


_NORMS: dict[str, Norm] = {
    "": lambda _: nn.Identity(),
    "BN": nn.BatchNorm2d,
    "FrozenBN": frozen_batch_norm,
    "GN": lambda channels: nn.GroupNorm(32, channels),
}
"""Constructors of a normalisation layer by Detectron2's name for it."""


def build_body(
    depth: int,
    *,
    stem_channels: int,
    res2_channels: int,
    bottleneck_channels: int,
    norm: Norm,
    stride_in_1x1: bool,
    freeze_at: int,
) -> nn.Sequential:
    """A ResNet up to res5: torchvision's blocks and parameter names, Detectron2's widths.

    Args:
        depth: 18, 34, 50 or 101.
        stem_channels, res2_channels: output channels of the stem and of the first stage; each
            further stage doubles them.
        bottleneck_channels: channels inside the blocks of the first stage (50 and up).
        norm: constructor of the normalisation.
        stride_in_1x1: where a bottleneck halves the resolution. True is the original ResNet and
            what the MSRA weights were trained with; False is torchvision's habit.
        freeze_at: freezes the stem (1), res2 (2), ..., which do not update statistics either.
    """
    frozen = FrozenBatchNorm2d if norm is nn.BatchNorm2d else norm
    stem: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False),
        "bn1": (frozen if freeze_at >= 1 else norm)(stem_channels),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    body = nn.Sequential(OrderedDict(stem))
    block = BasicBlock if depth < 50 else Bottleneck
    # torchvision floors planes * (base_width / 64); a tenth of a channel guards the floor.
    base_width = 64.0
    if block is Bottleneck:
        base_width *= (bottleneck_channels + 0.1) * block.expansion / res2_channels
    inside = stem_channels
    for i, number in enumerate(_BLOCKS[depth]):
        channels = res2_channels << i
        norm_here = frozen if freeze_at >= i + 2 else norm
        blocks = []
        for j in range(number):
            stride = 2 if i and not j else 1
            shortcut = None
            if stride != 1 or inside != channels:
                convolution = nn.Conv2d(inside, channels, 1, stride=stride, bias=False)
                shortcut = nn.Sequential(convolution, norm_here(channels))
            planes = channels // block.expansion
            unit = block(
                inside, planes, stride, shortcut, base_width=base_width, norm_layer=norm_here
            )
            if stride_in_1x1 and block is Bottleneck:
                unit.conv1.stride, unit.conv2.stride = unit.conv2.stride, unit.conv1.stride
            blocks.append(unit)
            inside = channels
        body.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if freeze_at >= 1:
        body[: len(stem) + freeze_at - 1].requires_grad_(False)
    return body


class _P6(LastLevelMaxPool):
    """p5 halved, under Detectron2's name."""

    def forward(self, *args: Any) -> tuple[list[Tensor], list[str]]:
        levels, names = super().forward(*args)
        return levels, [*names[:-1], "p6"]


def build_backbone(cfg: Any) -> BackboneWithFPN:
    """ResNet and feature pyramid: (N, 3, H, W) to named levels p2 .. p6.

    Built from MODEL.RESNETS, MODEL.BACKBONE and MODEL.FPN.
    """
    r, fpn = cfg.MODEL.RESNETS, cfg.MODEL.FPN
    if r.DEPTH < 50 and r.RES2_OUT_CHANNELS != 64:
        raise SmallObjError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {r.RES2_OUT_CHANNELS}; "
            f"with MODEL.RESNETS.DEPTH {r.DEPTH} it must be 64."
        )
    wanted = list(_STAGES[-len(fpn.IN_FEATURES) :]) if fpn.IN_FEATURES else []
    if not wanted or list(fpn.IN_FEATURES) != wanted or set(wanted) - set(r.OUT_FEATURES):
        raise SmallObjError(
            f"MODEL.FPN.IN_FEATURES is {list(fpn.IN_FEATURES)}; it must be the last of "
            f"{list(_STAGES)}, without a gap, and be among MODEL.RESNETS.OUT_FEATURES."
        )
    stages = range(len(_STAGES) - len(wanted), len(_STAGES))
    try:
        return BackboneWithFPN(
            build_body(
                r.DEPTH,
                stem_channels=r.STEM_OUT_CHANNELS,
                res2_channels=r.RES2_OUT_CHANNELS,
                bottleneck_channels=r.WIDTH_PER_GROUP,
                norm=_NORMS[r.NORM],
                stride_in_1x1=r.STRIDE_IN_1X1,
                freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
            ),
            {f"layer{i + 1}": f"p{i + 2}" for i in stages},
            [r.RES2_OUT_CHANNELS << i for i in stages],
            fpn.OUT_CHANNELS,
            extra_blocks=_P6(),
            norm_layer=_NORMS[fpn.NORM] if fpn.NORM else None,
        )
    except ValueError as e:
        if "num_groups" not in str(e):
            raise
        raise SmallObjError(
            "Group norm needs channels in multiples of 32: look at MODEL.RESNETS."
            "STEM_OUT_CHANNELS, RES2_OUT_CHANNELS and WIDTH_PER_GROUP, and MODEL.FPN."
            "OUT_CHANNELS, or take another NORM."
        ) from e


class Normalize(GeneralizedRCNNTransform):
    """Subtract the mean, divide by the deviation, pad to multiples of 32; the mapper resizes."""

    def __init__(self, image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        super().__init__(0, 0, list(image_mean), list(image_std))

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Any, original_image_sizes: Any
    ) -> list[dict[str, Tensor]]:
        return result


# --- Proposals


class Anchors(AnchorGenerator):
    """Anchors that keep their fractions, as Detectron2's do, sizes before ratios.

    Args:
        sizes, aspect_ratios: per level, a list each.
        strides: of each level, in pixels.
        offset: where in its cell an anchor is centred, as a share of the stride.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self.strides, self.offset = strides, offset

    @classmethod
    def from_config(cls, cfg: Any) -> "Anchors":
        """Build from MODEL.ANCHOR_GENERATOR for the levels of MODEL.RPN.IN_FEATURES."""
        number, a = len(cfg.MODEL.RPN.IN_FEATURES), cfg.MODEL.ANCHOR_GENERATOR
        lists = {}
        for key in ("SIZES", "ASPECT_RATIOS"):
            value = list(a[key])
            if value and not isinstance(value[0], (list, tuple)):
                value = [value]
            lists[key] = value * number if len(value) == 1 else value
            if len(lists[key]) != number:
                raise SmallObjError(
                    f"MODEL.ANCHOR_GENERATOR.{key} has {len(value)} lists for the {number} levels "
                    "of MODEL.RPN.IN_FEATURES; it needs one for each, or one for all."
                )
        strides = [2 ** int(level[1:]) for level in cfg.MODEL.RPN.IN_FEATURES]
        return cls(lists["SIZES"], lists["ASPECT_RATIOS"], strides, a.OFFSET)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # The anchors take the type of the features, and half precision has no sub-pixels.
        return super().forward(image_list, [f[:0].float() for f in feature_maps])

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """(S * R, 4) boxes around the origin; a ratio is height over width."""
        widths = torch.tensor([(s * s / r) ** 0.5 for s in scales for r in aspect_ratios])
        ratios = torch.tensor([r for _ in scales for r in aspect_ratios])
        half = torch.stack([widths, ratios * widths], dim=1) / 2
        return torch.cat([-half, half], dim=1).to(dtype=dtype, device=device)

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        # torchvision infers strides from the sizes of images and levels. Where a level was rounded
        # up, as p6 is in every other image, these are wrong.
        whole = [[t.new_tensor(s) for t in of] for of, s in zip(strides, self.strides, strict=True)]
        anchors = super().grid_anchors(grid_sizes, whole)
        return [a + self.offset * s for a, s in zip(anchors, self.strides, strict=True)]


class _RPNHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in deltas]


class RPN(RegionProposalNetwork):
    """torchvision's RPN on chosen levels and with a beta of choice.

    Args:
        in_features: names of the levels that it reads.
        smooth_l1_beta: where the box loss turns from squared to linear; 0 is plain L1.
    """

    def __init__(
        self, *args: Any, in_features: Sequence[str], smooth_l1_beta: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.in_features = list(in_features)
        self.smooth_l1_beta = smooth_l1_beta

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        proposals, losses = super().forward(
            images, {f: features[f] for f in self.in_features}, targets
        )
        names = {"loss_objectness": "loss_rpn_cls", "loss_rpn_box_reg": "loss_rpn_loc"}
        return proposals, {names[k]: v for k, v in losses.items()}

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        positive, negative = self.fg_bg_sampler(labels)
        positive = torch.where(torch.cat(positive))[0]
        sampled = torch.cat([positive, torch.where(torch.cat(negative))[0]])
        box_loss = F.smooth_l1_loss(
            pred_bbox_deltas[positive],
            torch.cat(regression_targets)[positive],
            beta=self.smooth_l1_beta,
            reduction="sum",
        )
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled]
        )
        return objectness_loss, box_loss / max(len(sampled), 1)


# --- Heads


class Pooler(MultiScaleRoIAlign):
    """ROIAlign over named levels, with or without half-pixel alignment.

    Args:
        head: MODEL.ROI_BOX_HEAD or MODEL.ROI_MASK_HEAD.
        in_features: names of the levels, "p2" and so on, without a gap.
    """

    def __init__(self, head: Any, in_features: Sequence[str]) -> None:
        super().__init__(list(in_features), head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO)
        self.aligned = head.POOLER_TYPE == "ROIAlignV2"  # Detectron2's; ROIAlign is Detectron's
        stages = [int(f[1:]) for f in in_features]
        # torchvision would guess these from the first batch that it sees.
        self.scales = [0.5**s for s in stages]
        self.map_levels = initLevelMapper(stages[0], stages[-1])

    def forward(
        self, x: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: Any = None
    ) -> Tensor:
        """Levels (N, C, H, W) and per image (R, 4) boxes to (sum of R, C, S, S)."""
        features = [x[f] for f in self.featmap_names]
        image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(boxes)], dim=1)
        levels = self.map_levels(boxes)
        out = features[0].new_zeros(len(rois), features[0].shape[1], *self.output_size)
        for level, (feature, scale) in enumerate(zip(features, self.scales, strict=True)):
            here = torch.where(levels == level)[0]
            pooled = roi_align(
                feature, rois[here], self.output_size, scale, self.sampling_ratio, self.aligned
            )
            out[here] = pooled.to(out.dtype)
        return out


class RoIHeads(tv_roi_heads.RoIHeads):
    """torchvision's box and mask heads, with a beta of choice and mask targets from windows."""

    def __init__(self, *args: Any, smooth_l1_beta: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.smooth_l1_beta = smooth_l1_beta

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            proposals, matched, labels, regression = self.select_training_samples(
                proposals, targets
            )
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        logits, deltas = (t.float() for t in self.box_predictor(self.box_head(pooled)))

        if self.training:
            losses = self._box_losses(logits, deltas, torch.cat(labels), torch.cat(regression))
            if self.has_mask():
                assert targets is not None  # select_training_samples has seen to it
                positive = [torch.where(c > 0)[0] for c in labels]
                boxes = [b[p] for b, p in zip(proposals, positive, strict=True)]
                mask_logits = self._mask_logits(features, boxes, image_shapes)
                classes = torch.cat([c[p] for c, p in zip(labels, positive, strict=True)])
                objects = [m[p] for m, p in zip(matched, positive, strict=True)]
                cut = mask_targets(targets, boxes, objects, mask_logits.shape[-1])
                losses["loss_mask"] = _mask_loss(mask_logits, classes, cut)
            return [], losses

        found = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        results = [
            {"boxes": boxes, "scores": scores, "labels": classes}
            for boxes, scores, classes in zip(*found, strict=True)
        ]
        if self.has_mask():
            mask_logits = self._mask_logits(features, [r["boxes"] for r in results], image_shapes)
            masks = tv_roi_heads.maskrcnn_inference(mask_logits, [r["labels"] for r in results])
            for result, mask in zip(results, masks, strict=True):
                result["masks"] = mask[:, 0]
        return results, {}

    def _mask_logits(self, features: Any, boxes: list[Tensor], image_shapes: Any) -> Tensor:
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits.float()

    def _box_losses(
        self, logits: Tensor, deltas: Tensor, labels: Tensor, regression: Tensor
    ) -> dict[str, Tensor]:
        positive = torch.where(labels > 0)[0]
        own_class = deltas.view(len(deltas), -1, 4)[positive, labels[positive]]
        box_loss = F.smooth_l1_loss(
            own_class, regression[positive], beta=self.smooth_l1_beta, reduction="sum"
        )
        return {
            "loss_cls": F.cross_entropy(logits, labels),
            "loss_box_reg": box_loss / max(len(labels), 1),
        }


def mask_targets(
    targets: Sequence[Mapping[str, Tensor]],
    boxes: Sequence[Tensor],
    matched: Sequence[Tensor],
    size: int,
) -> Tensor:
    """Cut each proposal's piece out of its object's mask.

    The masks come as windows around their objects (see `mapper.targets`), each with a margin that
    makes cutting from it equal to cutting from the full image. Windows of about the same size, of
    all images, are cut from at a time.

    Args:
        targets: ``masks`` (P,) uint8 and ``windows`` (N, 4) int64 of each image.
        boxes: (R, 4) proposals of each image, within it.
        matched: (R,) of each image, which of its N objects each proposal is of.
        size: side of the result.

    Returns:
        (sum of R, size, size) of 0 and 1, in the type of the boxes.
    """
    before = accumulate((len(t["windows"]) for t in targets), initial=0)
    objects = torch.cat([m + n for m, n in zip(matched, before, strict=False)])
    windows = torch.cat([t["windows"] for t in targets])
    pixels = torch.cat([t["masks"] for t in targets])
    corner = windows[:, :2]
    width, height = (windows[:, 2:] - corner).unbind(1)
    first = (width * height).cumsum(0) - width * height
    rois = torch.cat(list(boxes)) - corner.repeat(1, 2)[objects]
    out = rois.new_empty(len(rois), size, size)
    for mine in of_like_size(torch.maximum(width, height)[objects]):
        these, which = objects[mine].unique(return_inverse=True)
        w, h = width[these, None, None], height[these, None, None]
        # What is narrower than the widest is continued by its last row and column: nothing is
        # there, or it is the border of the image, beyond which no box reaches.
        row = torch.arange(int(h.max()), device=h.device)[:, None].minimum(h - 1)
        column = torch.arange(int(w.max()), device=w.device).minimum(w - 1)
        masks = pixels[first[these, None, None] + row * w + column].to(rois)
        of_mask = torch.cat([which[:, None].to(rois), rois[mine]], dim=1)
        out[mine] = roi_align(masks[:, None], of_mask, size, aligned=True)[:, 0]
    return (out >= 0.5).to(rois.dtype)


def of_like_size(sides: Tensor) -> Iterator[Tensor]:
    """Which have sides (N,) of the same octave; work on these at a time keeps a GPU busy."""
    octave = sides.log2().ceil()
    for value in octave.unique():
        yield torch.where(octave == value)[0]


def _mask_loss(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    if not len(targets):
        return logits.sum() * 0  # a mean of nothing would be NaN
    own_class = logits[torch.arange(len(classes), device=classes.device), classes]
    return F.binary_cross_entropy_with_logits(own_class, targets)


def _box_head(channels: int, width: int, *, number: int) -> nn.Sequential:
    """Fully connected layers under torchvision's names for them: fc6, fc7, ..."""
    if number < 1:
        raise SmallObjError(f"MODEL.ROI_BOX_HEAD.NUM_FC is {number}; it must be 1 or more.")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(6, 6 + number):
        layers[f"fc{i}"] = nn.Linear(channels, width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        channels = width
    return nn.Sequential(layers)


def _initialise_heads(heads: RoIHeads) -> None:
    """Detectron's initial weights, where torchvision's defaults differ."""
    for layer in heads.box_head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
    nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.01)
    nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.001)
    nn.init.zeros_(heads.box_predictor.cls_score.bias)
    nn.init.zeros_(heads.box_predictor.bbox_pred.bias)
    if heads.has_mask():
        nn.init.zeros_(heads.mask_predictor.conv5_mask.bias)
        nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=0.001)
        nn.init.zeros_(heads.mask_predictor.mask_fcn_logits.bias)
