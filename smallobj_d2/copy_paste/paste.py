"""Sections 4, 5.3 and 5.4 in one callable: choose, jitter, place, composite.

Planning needs the annotations only; pixels are composited afterwards. So the analysis can count
what an augmentation would paste without reading one image.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste.blend import Image, composite, cut
from smallobj_d2.copy_paste.checks import is_whole, require, require_image
from smallobj_d2.copy_paste.choose import (
    STRATEGIES,
    Candidate,
    Candidates,
    SourceRule,
    Strategy,
    multiple,
)
from smallobj_d2.copy_paste.jitter import Jitter
from smallobj_d2.copy_paste.labels import label_of_copy, uncovered
from smallobj_d2.copy_paste.place import Placer
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.copy_paste.sources import SameImage, Sources
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.rle import Mask
from smallobj_d2.masks.shapes import Annotation, Bitmap, Shape, Window, has_mask

logger = logging.getLogger(__name__)

_COVERED_LABELS = ("visible", "untouched")


@dataclass(frozen=True)
class Paste:
    """One copy that found its place."""

    matrix: NDArray[np.float64]
    """(2, 3): source coordinates to image coordinates."""
    mask: Mask
    """(h, w) uint8 of 0 and 1, its pixels."""
    x: int
    y: int
    """Where the corner of its mask lies."""
    pixels: Image | None = None
    """(h, w, 3) uint8: what it is cut from, if not from the image itself."""


@dataclass
class Plan:
    """What copy-paste does to one image."""

    annotations: list[Annotation]
    """The image's annotations afterwards: those it had, then the copies'."""
    pastes: list[Paste] = field(default_factory=list)
    tried: int = 0
    """Copies that were wanted."""
    given_up: int = 0
    """Copies for which there was no free place."""
    empty: int = 0
    """Copies that own no pixel: slivers, or shrunk to nothing."""
    capped: int = 0
    """Copies over the limit for one image."""
    removed: int = 0
    """Instances that disappeared under copies; only where overlap is allowed."""

    @property
    def pasted(self) -> int:
        """Copies that were placed."""
        return len(self.pastes)

    @property
    def left_out(self) -> dict[str, int]:
        """Copies that were wanted and not placed, by reason, where there are any."""
        reasons = {"given_up": self.given_up, "empty": self.empty, "capped": self.capped}
        return {reason: count for reason, count in reasons.items() if count}


class CopyPaste:
    """Copy-pastes small objects.

    Args:
        strategy: chooses which objects are copied: "single", "multiple", "all", the name of another
            in `STRATEGIES`, or a function as those are.
        copies: how often each chosen object is pasted.
        multiple_share: share of the candidates that "multiple" takes.
        sources: where the objects come from: `SameImage`, as in the paper, or an `ObjectBank`.
        jitter: how each copy is scaled and rotated.
        margin: pixels between a copy and the border of the image.
        gap: free pixels between a copy and any other instance, where overlap is not allowed.
        allow_overlap: paste over whatever is there.
        covered_labels: "visible" takes what a copy covers out of the masks below, "untouched"
            leaves them.
        max_pastes: the most copies for one image.
        blur: size of the Gaussian that softens edges; 0 for hard edges.

    Raises:
        SmallObjError: naming the argument's config key, its value and what it may be.
    """

    def __init__(
        self,
        *,
        strategy: str | Strategy = "all",
        copies: int = 1,
        multiple_share: float = 0.5,
        sources: Sources | None = None,
        jitter: Jitter | None = None,
        margin: int = 5,
        gap: int = 0,
        allow_overlap: bool = False,
        covered_labels: str = "visible",
        max_pastes: int = 300,
        blur: int = 0,
    ) -> None:
        # The function itself: a spawned loader worker finds it where the name is not registered.
        self._choose = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
        share = "is a share, above 0 and at most 1"
        for key, value, least, most in (
            ("COPIES", copies, 1, 10_000),
            ("MAX_PASTES", max_pastes, 1, 10_000),
            ("MARGIN", margin, 0, 10_000),
            ("GAP", gap, 0, 1000),
        ):
            rule = f"must be a whole number from {least} to {most}"
            require(is_whole(value, least, most), key, value, rule)
        require(0 < multiple_share <= 1, "MULTIPLE_SHARE", multiple_share, share)
        is_known = covered_labels in _COVERED_LABELS
        require(is_known, "COVERED_LABELS", covered_labels, f"must be one of {_COVERED_LABELS}")
        is_size = is_whole(blur, 0, 255) and (blur == 0 or blur % 2)
        require(is_size, "BLUR", blur, "must be 0 or odd, and at most 255")
        self.sources, self.jitter = sources or SameImage(), jitter or Jitter()
        self.strategy, self.copies, self.multiple_share = strategy, copies, multiple_share
        self.margin, self.gap, self.allow_overlap = margin, gap, allow_overlap
        self.covered_labels, self.max_pastes, self.blur = covered_labels, max_pastes, blur

    @classmethod
    def from_config(cls, cfg: Any, sources: Sources | None = None) -> "CopyPaste":
        """The copy-paste that a config's ``SMALLOBJ`` node describes.

        Args:
            cfg: a config with ``SMALLOBJ``.
            sources: where the objects come from; the image itself unless given.
                `smallobj_d2.build_augmentation` builds what ``SMALLOBJ.SOURCES`` asks for.
        """
        s = cfg.SMALLOBJ
        return cls(
            strategy=s.STRATEGY,
            copies=s.COPIES,
            multiple_share=s.MULTIPLE_SHARE,
            sources=sources or SameImage(SourceRule.from_config(cfg)),
            jitter=Jitter(scale=tuple(s.SCALE), rotation=tuple(s.ROTATION)),
            margin=s.MARGIN,
            gap=s.GAP,
            allow_overlap=s.ALLOW_OVERLAP,
            covered_labels=s.COVERED_LABELS,
            max_pastes=s.MAX_PASTES,
            blur=s.BLUR,
        )

    def choose(self, candidates: Candidates, rng: np.random.Generator) -> Sequence[Candidate]:
        """The candidates that are copied, by the strategy."""
        if self._choose is multiple:
            return multiple(candidates, rng, self.multiple_share)
        return self._choose(candidates, rng)

    def __call__(
        self, image: Image, annotations: Sequence[Annotation], rng: np.random.Generator | int
    ) -> tuple[Image, list[Annotation]]:
        """Augment one image; neither argument is changed.

        Args:
            image: (H, W, 3) uint8.
            annotations: the instances of the image, as in Detectron2's dataset dicts: ``bbox``
                (XYWH unless ``bbox_mode`` says XYXY; with that key it must hold the mask, give or
                take a pixel), ``area``, perhaps ``iscrowd``, ``keypoints`` and ``segmentation``:
                polygons, RLE, or an (H, W) array of bool or whole numbers.
            rng: source of randomness, or the seed of one.

        Returns:
            The augmented image and its annotations: those given, then the copies', each of
            which carries ``copy_paste``. Use `plan` and `composite` to know how many were given up.

        Raises:
            SmallObjError: for an image or an annotation that is invalid.
        """
        require_image(image)
        plan = self.plan(annotations, image.shape[0], image.shape[1], rng)
        image = image.copy()
        self.composite(image, plan)
        return image, plan.annotations

    def plan(
        self,
        annotations: Sequence[Annotation],
        height: int,
        width: int,
        rng: np.random.Generator | int,
        image: str | None = None,
    ) -> Plan:
        """Decide what is pasted where, from the annotations alone.

        Args:
            annotations: see `__call__`.
            height, width: size of the image.
            rng: source of randomness, or the seed of one.
            image: its name, such as the ``file_name`` of its dataset dict, so that a bank does not
                give it its own objects.

        Raises:
            SmallObjError: for an annotation that is invalid.
        """
        rng = _generator(rng)
        scene = Scene(annotations, height, width)
        _check_boxes(scene)
        plan = Plan(list(annotations))
        chosen = self.choose(self.sources.candidates(scene, rng, image), rng)
        plan.tried = len(chosen) * self.copies
        if not plan.tried:
            return plan
        plan.capped = max(0, plan.tried - self.max_pastes)
        if plan.capped:
            _warn_of_cap(plan.tried, self.max_pastes)
        placer = Placer(scene, margin=self.margin, gap=self.gap, overlap=self.allow_overlap)
        shapes: list[Shape] = []
        wanted = chain.from_iterable(repeat(chosen, self.copies))
        for candidate in islice(wanted, self.max_pastes):
            source, original = candidate.annotation, candidate.shape
            linear = self.jitter.sample(rng)
            if not has_mask(source):  # a box stays upright
                linear = np.eye(2) * np.sqrt(np.linalg.det(linear))
            if _is_too_large(original, linear, height, width):
                plan.given_up += 1
                continue
            matrix, mask, shape = original.copy(linear)
            if not mask.any():
                plan.empty += 1
                continue
            covered = mask.copy()
            shape.cover(covered)
            corner = placer.find(covered, rng)
            if corner is None:
                plan.given_up += 1
                continue
            placer.take(covered, *corner)
            matrix[:, 2] += corner
            shape = shape.moved(*corner)
            plan.annotations.append(
                label_of_copy(
                    source, candidate.origin, shape, matrix, (height, width), candidate.corner
                )
            )
            plan.pastes.append(Paste(matrix, mask, *corner, candidate.pixels))
            shapes.append(shape)
        if self.allow_overlap and self.covered_labels == "visible":
            _hide_covered(plan, scene, shapes)
        return plan

    def composite(self, image: Image, plan: Plan) -> None:
        """Paste the pixels of a plan into its image, in place.

        Args:
            image: (H, W, 3) uint8; every copy is cut from it before the first is pasted.
            plan: from `plan` for this image's annotations and size.
        """
        require_image(image)
        rim = self.blur // 2
        patches = []
        for paste in plan.pastes:
            height, width = paste.mask.shape
            target, mask = Window(paste.x, paste.y, width, height), paste.mask
            if rim:  # weights reach that far out of the mask
                around = Window(paste.x - rim, paste.y - rim, width + 2 * rim, height + 2 * rim)
                target = around.clipped(image.shape[1], image.shape[0])
                mask = Bitmap(mask, paste.x, paste.y).pixels(target)
            source = image if paste.pixels is None else paste.pixels
            patches.append((cut(source, paste.matrix, target), mask, target))
        for patch, mask, target in patches:
            composite(image, patch, mask, target, self.blur)


def _generator(rng: np.random.Generator | int) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, int | np.integer) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise SmallObjError(
        f"Copy-paste takes its randomness from {rng!r}; give a numpy.random.Generator, such as "
        "numpy.random.default_rng(1), or a seed that is not negative."
    )


def _check_boxes(scene: Scene) -> None:
    """Boxes without ``bbox_mode``, which no loader has checked: let them hold their masks.

    Those that are XYXY for all that their masks or the image say are refused.

    Raises:
        SmallObjError: naming the first.
    """
    masked: list[int] = []
    bare: list[int] = []
    for i, annotation in enumerate(scene.annotations):
        if "bbox_mode" not in annotation:
            (masked if has_mask(annotation) else bare).append(i)
    by_masks = [i for i in masked if _is_xyxy(scene, i)]
    for i in (by_masks or _leaving(bare, scene))[:1]:
        raise SmallObjError(
            f"Annotation {i} has bbox {list(scene.annotations[i]['bbox'])}, which fits "
            f"{'its mask' if by_masks else 'the image'} as x0, y0, x1, y1 only. Boxes are x, y, "
            "width, height, as in COCO; add bbox_mode 0 (Detectron2's BoxMode.XYXY_ABS) to the "
            "annotations, or convert them."
        )


def _is_xyxy(scene: Scene, i: int) -> bool:
    """Whether a box fits its mask as XYXY only; it is widened to hold the mask."""
    x, y, a, b = scene.annotations[i]["bbox"]
    bounds = np.array(scene.hold(i).bounds())
    off, off_xyxy = (np.abs(bounds - box).max() for box in ((x, y, x + a, y + b), (x, y, a, b)))
    # Near the image's corner both say about the same, and a loose box may fit by chance.
    return bool(off_xyxy <= 1.5 < off) and max(x, y) > 16


def _leaving(boxes: list[int], scene: Scene) -> list[int]:
    """Of boxes without masks those that leave the image, if as XYXY all would fit.

    One box alone proves nothing: it may be cut off by the border.
    """
    if not boxes:
        return []
    x, y, a, b = np.array([scene.annotations[i]["bbox"] for i in boxes], dtype=np.float64).T
    width, height = scene.width + 1, scene.height + 1
    leave = (x + a > width) | (y + b > height)
    fit = (x < a) & (a <= width) & (y < b) & (b <= height)
    if not fit.all() or leave.sum() < max(2, len(boxes) / 3):
        return []
    return [i for i, leaves in zip(boxes, leave, strict=True) if leaves]


def _is_too_large(shape: Shape, linear: NDArray[np.float64], height: int, width: int) -> bool:
    """Whether a copy is longer than the image's diagonal: it fits nowhere, and may not fit memory.

    Two points of the shape are as far apart as the longer side of its box, and the copy scales
    every distance alike.
    """
    x0, y0, x1, y1 = shape.bounds()
    longest = max(x1 - x0, y1 - y0) * float(np.hypot(*linear[:, 0]))
    return longest > float(np.hypot(height, width)) + 4


@cache
def _warn_of_cap(wanted: int, limit: int) -> None:
    """Once for each number in each process, or a crowded dataset would fill the log."""
    logger.warning("An image wants %d pastes; SMALLOBJ.MAX_PASTES allows %d.", wanted, limit)


def _hide_covered(plan: Plan, scene: Scene, shapes: list[Shape]) -> None:
    """Take what copies cover out of the labels of everything below them, in place."""
    above = np.zeros((scene.height, scene.width), np.uint8)
    originals = len(scene.annotations)
    left = []
    for i in reversed(range(len(plan.annotations))):  # from the topmost instance down
        copy = i - originals
        shape = shapes[copy] if copy >= 0 else scene.shape(i)
        left.append(uncovered(plan.annotations[i], shape, above))
        if copy >= 0:
            paste = plan.pastes[copy]
            height, width = paste.mask.shape
            covered = Window(paste.x, paste.y, width, height).of(above)
            covered |= paste.mask
    plan.annotations = [label for label in reversed(left) if label is not None]
    plan.removed = len(left) - len(plan.annotations)
