"""How anchors are laid out and matched: the paper's protocol for Table 2, and a config's own.

``docs/review/table2.md`` tells why these are two, and what each layout of `LAYOUTS` gives.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.analysis.objects import Objects
from smallobj_d2.errors import SmallObjError


@dataclass(frozen=True)
class Level:
    """The anchors of one feature map: the same few boxes around each point of a grid."""

    stride: int
    """Pixels between two points of the grid."""
    sizes: tuple[float, ...]
    """Square roots of the anchors' areas, in pixels."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height to width."""

    def cells(self, dtype: Any) -> NDArray[Any]:
        """(A, 4) XYXY anchors around the origin, sizes before ratios, as in Detectron2."""
        boxes = []
        for size in self.sizes:
            for ratio in self.ratios:
                width = math.sqrt(size**2.0 / ratio)
                height = ratio * width
                boxes.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
        return np.array(boxes, dtype=dtype)


@dataclass(frozen=True)
class Protocol:
    """A layout of anchors, and the rule by which they are matched to objects.

    An anchor *prefers* the object it overlaps most (IoU); among equals, the first in the
    annotations. Only that object can be matched to it, with one exception, below.
    """

    name: str
    levels: tuple[Level, ...]
    offset: float = 0.0
    """Where the first point of a grid lies, in strides from the image's corner."""
    threshold: float = 0.7
    as_detectron2: bool = False
    """The rule.

    False, the paper's words (section 3.2): an object is matched to its best anchor (the first of
    several equal ones), whatever that anchor prefers, and to every anchor over the threshold that
    prefers it.

    True, Detectron2's ``Matcher`` with ``allow_low_quality_matches``: an anchor is positive if its
    IoU with any object reaches the threshold, or is the best that some object has, ties
    included; a positive anchor goes to the object it prefers. Objects are prepared as the mapper
    does it: clipped to the image, empty ones dropped.
    """
    short_edge: int = 0
    """Resize images to this shorter edge; 0 keeps the original resolution."""
    max_size: int = 0
    """But no longer edge above this; 0 for no limit."""
    divisibility: int = 1
    """Images are padded so that their sides are multiples of this."""

    def input_sizes(self, objects: Objects) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(M,) heights and widths of the resized images, as ``ResizeShortestEdge`` rounds them."""
        heights, widths = objects.heights.astype(np.float64), objects.widths.astype(np.float64)
        if not self.short_edge:
            return heights.astype(np.int64), widths.astype(np.int64)
        size = float(self.short_edge)
        scale = size / np.minimum(heights, widths)
        wide = heights < widths
        heights = np.where(wide, size, scale * heights)
        widths = np.where(wide, scale * widths, size)
        longer = np.maximum(heights, widths)
        if self.max_size:
            shrink = np.where(longer > self.max_size, self.max_size / longer, 1.0)
            heights, widths = heights * shrink, widths * shrink
        return (heights + 0.5).astype(np.int64), (widths + 0.5).astype(np.int64)

    def grids(self, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M, L, 2) rows and columns of each level's grid, for images of these input sizes.

        Each image is padded as in a batch of its own. In a larger batch there are more anchors to
        its right and below it, all of them outside the image.
        """
        sides = np.stack([heights, widths], axis=-1)[:, None]
        padded = -(-sides // self.divisibility) * self.divisibility
        strides = np.array([level.stride for level in self.levels])[:, None]
        grids: NDArray[np.int64] = -(-padded // strides)
        return grids


PAPER = Protocol("paper", (Level(32, (32.0, 64.0, 128.0, 256.0, 512.0)),))
"""What comes closest to Table 2 as printed: all anchors on one stride-32 grid, no resize."""


def training_protocol(cfg: Any) -> Protocol:
    """What the region proposal network of a config sees.

    Where ``INPUT.MIN_SIZE_TRAIN`` holds several sizes, or the ends of a range, it is at the one in
    the middle. Flips and crops are left out.

    Raises:
        SmallObjError: for a network whose anchors do not follow from these keys alone.
    """
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind not in ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork"):
        raise SmallObjError(
            f"MODEL.META_ARCHITECTURE is {kind!r}, whose anchors the analysis does not know. Use "
            "--protocol paper, or a config with a region proposal network."
        )
    rpn, generator = cfg.MODEL.RPN, cfg.MODEL.ANCHOR_GENERATOR
    if rpn.get("BOUNDARY_THRESH", -1) >= 0:
        raise SmallObjError("MODEL.RPN.BOUNDARY_THRESH is not known to the analysis; set it to -1.")
    names = list(rpn.IN_FEATURES)
    dilated = cfg.MODEL.RESNETS.get("RES5_DILATION", 1) == 2
    strides = [_stride(name, dilated) for name in names]
    sizes = _per_level(generator.SIZES, len(names), "SIZES")
    ratios = _per_level(generator.ASPECT_RATIOS, len(names), "ASPECT_RATIOS")
    edges = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    middle = edges[len(edges) // 2]
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        middle = sum(edges) // 2
    fpn = len(cfg.MODEL.FPN.IN_FEATURES) > 0
    return Protocol(
        "training",
        tuple(
            Level(s, tuple(map(float, a)), tuple(map(float, r)))
            for s, a, r in zip(strides, sizes, ratios, strict=True)
        ),
        offset=float(generator.OFFSET),
        threshold=float(rpn.IOU_THRESHOLDS[-1]),
        as_detectron2=True,
        short_edge=int(middle),
        max_size=int(cfg.INPUT.MAX_SIZE_TRAIN),
        # An FPN adds maps of neighbouring strides, so it pads to its coarsest convolutional one.
        divisibility=_stride(cfg.MODEL.FPN.IN_FEATURES[-1], dilated) if fpn else 1,
    )


def _stride(name: str, dilated: bool) -> int:
    match = re.fullmatch(r"(p|res)([2-7])", name)
    if not match:
        raise SmallObjError(
            f"MODEL.RPN.IN_FEATURES has {name!r}; the analysis knows the strides of p2 to p7 and "
            "res2 to res5. Use --protocol paper, or a config of a ResNet or FPN."
        )
    stride: int = 2 ** int(match[2])
    return stride // 2 if dilated and name == "res5" else stride


def _per_level(values: Sequence[Any], levels: int, key: str) -> list[Sequence[float]]:
    """One list per level, by Detectron2's rule: a single list serves all levels."""
    if not values or not isinstance(values[0], Sequence):
        return [values] * levels
    if len(values) == 1:
        return list(values) * levels
    if len(values) != levels:
        raise SmallObjError(
            f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} lists, but MODEL.RPN.IN_FEATURES has "
            f"{levels} levels; there must be one for each, or one for all."
        )
    return list(values)


_SIZES = PAPER.levels[0].sizes
_FPN = tuple(Level(s, (a,)) for s, a in zip((4, 8, 16, 32, 64), _SIZES, strict=True))
_FPN_PAPER = replace(PAPER, levels=_FPN)
_STRIDE_64 = replace(PAPER, levels=(Level(64, _SIZES),))


def _at_800(protocol: Protocol) -> Protocol:
    return replace(protocol, short_edge=800, max_size=1333)


LAYOUTS: dict[str, Protocol] = {
    "one stride-32 grid from the corner (`paper`)": PAPER,
    "one stride-32 grid from the middle of its cells": replace(PAPER, offset=0.5),
    "one stride-16 grid": replace(PAPER, levels=(Level(16, _SIZES),)),
    "one stride-64 grid": _STRIDE_64,
    "one stride-32 grid, 800 pixels": _at_800(PAPER),
    "one stride-64 grid, 800 pixels": _at_800(_STRIDE_64),
    "one stride-32 grid, IoU over 0.5": replace(PAPER, threshold=0.5),
    "one stride-32 grid, Detectron2's Matcher": replace(PAPER, as_detectron2=True),
    "FPN, strides 4 to 64": _FPN_PAPER,
    "FPN, strides 4 to 64, 800 pixels": _at_800(_FPN_PAPER),
    "FPN, 800 pixels, Detectron2's Matcher": replace(
        _at_800(_FPN_PAPER), as_detectron2=True, divisibility=32
    ),
}
"""Readings of section 3.2 that were tried for Table 2; ``smallobj analyze --layouts`` runs them."""
