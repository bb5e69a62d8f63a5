"""Sections 4, 5.3 and 5.4 in one callable: choose, jitter, place, blend.

Planning needs the annotations only; pixels are moved afterwards. So the analysis can count what
an augmentation would paste without reading one image.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste.bank import ObjectBank
from smallobj_d2.copy_paste.blend import Image, cut, lay
from smallobj_d2.copy_paste.checks import is_whole, require, require_image
from smallobj_d2.copy_paste.choose import STRATEGIES, Candidates, SourceRule
from smallobj_d2.copy_paste.jitter import Jitter
from smallobj_d2.copy_paste.labels import label_of_copy, uncovered
from smallobj_d2.copy_paste.place import Placer
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import Annotation, Bitmap, Mask, Shape, Window

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
    capped: int = 0
    """Copies over the limit for one image."""
    removed: int = 0
    """Instances that disappeared under copies; only where overlap is allowed."""

    @property
    def pasted(self) -> int:
        """Copies that were placed."""
        return len(self.pastes)


class CopyPaste:
    """Copy-pastes small objects of an image within the image.

    Args:
        strategy: name of the strategy that chooses sources: single, multiple, all, or your own.
        copies: how often each chosen object is pasted.
        multiple_share: share of the candidates that ``multiple`` takes.
        sources: which objects may be copied.
        jitter: how each copy is scaled and rotated.
        margin: pixels between a copy and the border of the image.
        gap: free pixels between a copy and any other instance, where overlap is not allowed.
        allow_overlap: paste over whatever is there.
        covered_labels: "visible" takes what a copy covers out of the masks below, "untouched"
            leaves them.
        max_pastes: the most copies for one image.
        blur: size of the Gaussian that softens edges; 0 for hard edges.
        from_bank: take the objects of another image, one of `bank`'s, chosen at random. The bank
            is made of the training images, and given to the attribute later. Beyond the paper.

    Attributes:
        bank: an `ObjectBank`, or None.
    """

    def __init__(
        self,
        *,
        strategy: str = "all",
        copies: int = 1,
        multiple_share: float = 0.5,
        sources: SourceRule | None = None,
        jitter: Jitter | None = None,
        margin: int = 5,
        gap: int = 0,
        allow_overlap: bool = False,
        covered_labels: str = "visible",
        max_pastes: int = 300,
        blur: int = 0,
        from_bank: bool = False,
    ) -> None:
        if strategy not in STRATEGIES:
            known = ", ".join(sorted(name for name, _ in STRATEGIES))
            raise SmallObjError(f"There is no strategy {strategy!r}; there are: {known}.")
        positive, share = "must be a whole number, 1 or more", "is a share, above 0"
        labels = f"must be one of {_COVERED_LABELS}"
        require(is_whole(copies, 1), "COPIES", copies, positive)
        require(is_whole(max_pastes, 1), "MAX_PASTES", max_pastes, positive)
        require(0 < multiple_share <= 1, "MULTIPLE_SHARE", multiple_share, share)
        require(is_whole(margin, 0), "MARGIN", margin, "must be a whole number, 0 or more")
        require(is_whole(gap, 0), "GAP", gap, "must be a whole number, 0 or more")
        require(covered_labels in _COVERED_LABELS, "COVERED_LABELS", covered_labels, labels)
        require(is_whole(blur, 0) and (blur == 0 or blur % 2), "BLUR", blur, "must be 0 or odd")
        self.from_bank = from_bank
        self.bank: ObjectBank | None = None
        self.sources, self.jitter = sources or SourceRule(), jitter or Jitter()
        self.strategy, self.copies, self.multiple_share = strategy, copies, multiple_share
        self.margin, self.gap, self.allow_overlap = margin, gap, allow_overlap
        self.covered_labels, self.max_pastes, self.blur = covered_labels, max_pastes, blur

    @classmethod
    def from_config(cls, cfg: Any) -> "CopyPaste":
        """The copy-paste that a config's ``SMALLOBJ`` node describes."""
        s = cfg.SMALLOBJ
        return cls(
            strategy=s.STRATEGY,
            copies=s.COPIES,
            multiple_share=s.MULTIPLE_SHARE,
            sources=SourceRule(
                small_area=s.SMALL_AREA,
                connected=s.REQUIRE_CONNECTED,
                inside=s.REQUIRE_INSIDE,
                max_covered=s.MAX_COVERED,
                boxes=s.PASTE_BOXES,
            ),
            jitter=Jitter(scale=tuple(s.SCALE), rotation=tuple(s.ROTATION)),
            margin=s.MARGIN,
            gap=s.GAP,
            allow_overlap=s.ALLOW_OVERLAP,
            covered_labels=s.COVERED_LABELS,
            max_pastes=s.MAX_PASTES,
            blur=s.BLUR,
            from_bank=s.SOURCES == "bank",
        )

    def __call__(
        self, image: Image, annotations: Sequence[Annotation], rng: np.random.Generator
    ) -> tuple[Image, list[Annotation]]:
        """Augment one image; neither argument is changed.

        Args:
            image: (H, W, 3) uint8.
            annotations: the instances of the image, as in Detectron2's dataset dicts: ``bbox``,
                ``area``, ``iscrowd``, ``segmentation`` (polygons or RLE), perhaps ``keypoints``.
            rng: source of randomness.

        Returns:
            The augmented image and its annotations: those given, then the copies', each of
            which carries ``copy_paste``. Use `plan` and `draw` to know how many were given up.
        """
        require_image(image)
        plan = self.plan(annotations, image.shape[0], image.shape[1], rng)
        image = image.copy()
        self.draw(image, plan)
        return image, plan.annotations

    def plan(
        self,
        annotations: Sequence[Annotation],
        height: int,
        width: int,
        rng: np.random.Generator,
    ) -> Plan:
        """Decide what is pasted where, from the annotations alone.

        Args:
            annotations: see `__call__`.
            height, width: size of the image.
            rng: source of randomness.
        """
        scene = Scene(annotations, height, width)
        plan = Plan(list(annotations))
        candidates = self._candidates(scene, rng)
        chosen = STRATEGIES.get(self.strategy)(candidates, self.multiple_share, rng)
        wanted = list(chosen) * self.copies
        if not wanted:
            return plan
        plan.tried = len(wanted)
        plan.capped = max(0, len(wanted) - self.max_pastes)
        if plan.capped:
            _warn_of_cap(plan.tried, self.max_pastes)
        placer = Placer(scene, margin=self.margin, gap=self.gap, overlap=self.allow_overlap)
        shapes: list[Shape] = []
        for i in wanted[: self.max_pastes]:
            cutout = self.bank[i] if self.from_bank else None
            source = cutout.annotation if cutout else annotations[i]
            linear = self.jitter.sample(rng)
            if not source.get("segmentation"):  # a box stays upright
                linear = np.eye(2) * np.sqrt(np.linalg.det(linear))
            original = cutout.shape() if cutout else scene.shape(i)
            matrix, mask, shape = original.copy(linear)
            covered = mask.copy()
            shape.cover(covered)
            corner = placer.find(covered, rng) if mask.any() else None
            if corner is None:
                plan.given_up += 1
                continue
            placer.take(covered, *corner)
            matrix[:, 2] += corner
            shape = shape.moved(*corner)
            origin = cutout.origin if cutout else {"source": i}
            plan.annotations.append(label_of_copy(source, origin, shape, matrix, (height, width)))
            plan.pastes.append(Paste(matrix, mask, *corner, cutout and cutout.pixels))
            shapes.append(shape)
        if self.allow_overlap and self.covered_labels == "visible":
            _hide_covered(plan, scene, shapes)
        return plan

    def draw(self, image: Image, plan: Plan) -> None:
        """Paste the pixels of a plan into its image, in place.

        Args:
            image: (H, W, 3) uint8; every copy is cut from it before the first is laid.
            plan: from `plan` for this image's annotations and size.
        """
        require_image(image)
        rim = self.blur // 2
        laid = []
        for paste in plan.pastes:
            height, width = paste.mask.shape
            target, mask = Window(paste.x, paste.y, width, height), paste.mask
            if rim:  # weights reach that far out of the mask
                around = Window(paste.x - rim, paste.y - rim, width + 2 * rim, height + 2 * rim)
                target = around.clipped(image.shape[1], image.shape[0])
                mask = Bitmap(mask, paste.x, paste.y).pixels(target)
            source = image if paste.pixels is None else paste.pixels
            laid.append((cut(source, paste.matrix, target), mask, target))
        for patch, mask, target in laid:
            lay(image, patch, mask, target, self.blur)

    def _candidates(self, scene: Scene, rng: np.random.Generator) -> Candidates:
        """What may be copied: indices of the image's annotations, or of objects of the bank."""
        if not self.from_bank:
            return self.sources.candidates(scene)
        if self.bank is None:
            raise SmallObjError(
                "SMALLOBJ.SOURCES is 'bank', and there is no bank. An engine's build_train_loader "
                "makes one; for a mapper of your own, call smallobj_d2.augmentation.give_bank."
            )
        objects = self.bank.of_image(int(rng.integers(self.bank.images)))
        return Candidates(list(objects), lambda _: True)


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
