"""Section 5.2: which draws are augmented, and the generator that each draw has to itself.

This is what the mappers of all engines share. A sample is a pure function of the seed and its
position in the stream of draws; no generator outlives a draw.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste import (
    CopyPaste,
    ObjectBank,
    Plan,
    SameImage,
    SourceRule,
    Sources,
)
from smallobj_d2.copy_paste.bank import ReadImage, build_bank
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.masks.shapes import has_mask
from smallobj_d2.sampling import Draw, factors_from_config
from smallobj_d2.sizes import SMALL_AREA, has_small

logger = logging.getLogger(__name__)

# Streams of randomness under one seed; 0 is the order's.
_PASTES, _TRANSFORMS, _FIXED, _TURNS, _BANK = 1, 2, 3, 4, 5


def draw_state(seed: int, position: int) -> np.random.RandomState:
    """The generator for an engine's own resize and flip of one draw.

    It is numpy's legacy kind, because that is what Detectron2's augmentations read.
    """
    sequence = np.random.SeedSequence((seed, _TRANSFORMS, position))
    return np.random.RandomState(np.random.MT19937(sequence))


class DrawAugmentation:
    """Copy-paste on those draws of small-object images that are to be augmented.

    Args:
        copy_paste: what is done to them.
        seed: the run's seed, not negative.
        probability: the share of draws to augment.
        paired: in each epoch exactly that share of each image's draws, rather than by chance.
            Where the share is not a whole number of draws, it is the one below or above, and
            right on average.
        one_copy_per_image: the same augmented copy of an image at each of its draws.
        small_area: what counts as small.
        all_images: augment draws of all images, not of small-object images only.
    """

    def __init__(
        self,
        copy_paste: CopyPaste,
        *,
        seed: int,
        probability: float = 0.5,
        paired: bool = False,
        one_copy_per_image: bool = False,
        small_area: float = SMALL_AREA,
        all_images: bool = False,
    ) -> None:
        self.copy_paste = copy_paste
        self.seed = seed
        self.probability = probability
        self.paired = paired
        self.one_copy_per_image = one_copy_per_image
        self.small_area = small_area
        self.all_images = all_images

    def may_augment(self, annotations: list[Any]) -> bool:
        """Whether any draw of an image with these annotations is augmented."""
        return self.all_images or has_small(annotations, self.small_area)

    def plan(self, record: dict[str, Any]) -> Plan | None:
        """What this draw pastes, or None where it shows the original image.

        Args:
            record: a dataset dict with ``annotations``, ``height``, ``width`` and ``draw``, and
                perhaps ``file_name``.
        """
        draw: Draw = record["draw"]
        annotations = record["annotations"]
        if not self.may_augment(annotations):
            return None
        rng = np.random.default_rng((self.seed, _PASTES, draw.position))
        # The chance is taken in both readings, so that they paste the same where they agree.
        chance = rng.random() < self.probability
        if self.paired and draw.epoch >= 0:
            turns = np.random.default_rng((self.seed, _TURNS, draw.epoch, draw.index))
            start = turns.random()
            due = [floor(start + n * self.probability) for n in (draw.visit, draw.visit + 1)]
            chance = due[1] > due[0]
        if not chance:
            return None
        if self.one_copy_per_image:
            rng = np.random.default_rng((self.seed, _FIXED, draw.index))
        name = record.get("file_name")
        try:
            return self.copy_paste.plan(annotations, record["height"], record["width"], rng, name)
        except SmallObjError as e:  # of an annotation that no reader of this project's has checked
            raise SmallObjError(f"{name} (image {record.get('image_id')}): {e}") from e

    def __call__(self, image: NDArray[np.uint8], record: dict[str, Any]) -> Plan | None:
        """Augment the image in place and put the new annotations into the record.

        Args:
            image: (H, W, 3) uint8, of the size that the record says; changed in place.
            record: see `plan`; its ``annotations`` are replaced, and where copies were left out,
                ``left_out`` counts them by the names that `Plan` has for the reasons.
        """
        plan = self.plan(record)
        if plan is not None:
            self.copy_paste.composite(image, plan)
            record["annotations"] = plan.annotations
            if plan.left_out:
                record["left_out"] = plan.left_out
        return plan


def build_augmentation(
    cfg: Any,
    seed: int,
    records: Sequence[Mapping[str, Any]] | None = None,
    read: ReadImage | None = None,
    factors: NDArray[np.float64] | None = None,
    *,
    progress: bool = False,
) -> DrawAugmentation | None:
    """The augmentation of a config, or None where ``SMALLOBJ.COPY_PASTE`` is off.

    Where ``SMALLOBJ.SOURCES`` is "bank", the bank follows from the seed and the records, so every
    process builds the same.

    Args:
        cfg: a config with ``SMALLOBJ``.
        seed: the run's seed, not negative.
        records: the training images' dataset dicts, which only a bank needs.
        read: a dataset dict to its image, (H, W, 3) uint8, channels as the mapper has them, which
            only a bank needs.
        factors: (N,) repeat factors of the records: a bank gives objects of an image as often as it
            is drawn. Those of the config unless given.
        progress: show a progress bar on a terminal.

    Raises:
        SmallObjError: for a key that is invalid; and where a bank is asked for, if `records` or
            `read` is missing or no object may be copied.
        UnreadableImage: unless ``SMALLOBJ.UNREADABLE_IMAGES`` is to skip.
    """
    s = cfg.SMALLOBJ
    if not s.COPY_PASTE:
        return None
    sources: Sources = SameImage(SourceRule.from_config(cfg))
    if s.SOURCES == "bank":
        if records is None or read is None:
            raise SmallObjError(
                "SMALLOBJ.SOURCES is 'bank', which is built from training images: call "
                "smallobj_d2.build_augmentation with their dataset dicts (records) and a function "
                "that reads one (read), and pass the result to the mapper as augmentation."
            )
        if factors is None:
            factors = factors_from_config(records, cfg)
        sources = _bank_from_config(cfg, seed, records, read, factors, progress)
    return DrawAugmentation(
        CopyPaste.from_config(cfg, sources),
        seed=seed,
        probability=s.AUGMENTATION_PROBABILITY,
        paired=s.AUGMENTATION_READING == "paired",
        one_copy_per_image=s.ONE_COPY_PER_IMAGE,
        small_area=s.SMALL_AREA,
        all_images=s.AUGMENTED_IMAGES == "all",
    )


def _bank_from_config(
    cfg: Any,
    seed: int,
    records: Sequence[Mapping[str, Any]],
    read: ReadImage,
    factors: NDArray[np.float64],
    progress: bool,
) -> ObjectBank:
    def read_if_possible(record: Mapping[str, Any]) -> NDArray[np.uint8] | None:
        try:
            return read(record)
        except UnreadableImage:
            if cfg.SMALLOBJ.UNREADABLE_IMAGES == "stop":
                raise
            return None

    bank = build_bank(
        records,
        SourceRule.from_config(cfg),
        read_if_possible,
        np.random.default_rng((seed, _BANK)),
        images=cfg.SMALLOBJ.BANK_IMAGES,
        factors=factors.tolist(),
        progress=progress,
    )
    logger.info(
        "Object bank: %d objects of %d images, %.1f MB.", len(bank), bank.images, bank.nbytes / 1e6
    )
    return bank


def require_sources(records: list[dict[str, Any]], cfg: Any) -> None:
    """Refuse copy-paste where there is nothing that it could ever copy: no mask, no small object.

    Raises:
        SmallObjError: naming the options.
    """
    s, names = cfg.SMALLOBJ, ", ".join(cfg.DATASETS.TRAIN)

    def areas() -> Iterator[float]:
        for annotation in chain.from_iterable(r["annotations"] for r in records):
            if not annotation.get("iscrowd", 0) and (s.PASTE_BOXES or has_mask(annotation)):
                yield annotation["area"]

    if not s.COPY_PASTE or any(area < s.SMALL_AREA for area in areas()):
        return
    smallest = min(areas(), default=None)
    if smallest is None:
        raise SmallObjError(
            f"SMALLOBJ.COPY_PASTE is on, but no annotation of {names} has a mask to cut objects "
            "out by. Either add `segmentation` to the annotations, or set SMALLOBJ.PASTE_BOXES "
            "True to paste rectangles (not in the paper), or set SMALLOBJ.COPY_PASTE False."
        )
    raise SmallObjError(
        f"SMALLOBJ.COPY_PASTE is on, but no object of {names} that has a mask is small: the "
        f"smallest area is {smallest:.0f} pixels, and SMALLOBJ.SMALL_AREA is "
        f"{s.SMALL_AREA:.0f}. Raise that, or set SMALLOBJ.COPY_PASTE False."
    )
