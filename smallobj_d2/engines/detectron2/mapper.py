"""Detectron2's mapper with copy-paste, and the loader that it is made for."""

import logging
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T  # noqa: N812 - Detectron2's own name for it
from detectron2.structures import BoxMode
from detectron2.utils import comm
from PIL import Image

from smallobj_d2.augmentation import DrawAugmentation, build_augmentation, draw_state
from smallobj_d2.datasets.coco import register_from_config
from smallobj_d2.datasets.images import resize
from smallobj_d2.engines.detectron2.data import area_of, read_image, read_records
from smallobj_d2.engines.loader import TrainLoader, loader_from_config
from smallobj_d2.errors import SmallObjError
from smallobj_d2.registry import Registry, import_modules
from smallobj_d2.sampling import Draw
from smallobj_d2.training_set import Records

logger = logging.getLogger(__name__)

MAPPERS: Registry[Any] = Registry("Detectron2 mapper", "SMALLOBJ.MAPPER")
"""Mappers by name; ``SMALLOBJ.MAPPER`` chooses.

Each is built with ``(cfg, is_train, augmentation=...)``.
"""


def build_mapper(cfg: CfgNode, is_train: bool, augmentation: DrawAugmentation | None = None) -> Any:
    """The mapper that a config names, for this project's own loader.

    Args:
        cfg: a config with ``SMALLOBJ``.
        is_train: whether for training or inference.
        augmentation: the copy-paste, from `smallobj_d2.build_augmentation`, or None.

    Raises:
        SmallObjError: if there is no mapper of that name.
    """
    return MAPPERS[cfg.SMALLOBJ.MAPPER](cfg, is_train, augmentation=augmentation)


@MAPPERS.register()
class SmallObjectMapper(DatasetMapper):
    """Detectron2's DatasetMapper, with copy-paste between reading the image and resizing it.

    With copy-paste off its output is the stock mapper's, bit for bit.

    In this project's own loader (`build_train_loader`) a dataset dict carries its ``draw``, and the
    sample is a function of the run's seed and the draw's position. In Detectron2's loader there is
    no draw; then all randomness comes from numpy's global generator, as it does for the stock
    mapper, oversampling is a matter of the loader's sampler (`sampler_from_config`,
    `oversampling_sampler`), and ``area``, which Detectron2 drops from COCO's annotations, is
    measured by the masks once per image and process.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentation: DrawAugmentation | None = None,
        seed: int = 0,
        **stock: Any,
    ) -> None:
        """Build from explicit arguments.

        Args:
            is_train: whether for training or inference.
            augmentation: the copy-paste, or None.
            seed: the run's seed.
            stock: what DatasetMapper takes.
        """
        super().__init__(is_train, **stock)
        self.augmentation = augmentation if is_train else None
        self.seed = seed
        self._areas: dict[str, list[float]] = {}

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = True,
        *,
        augmentation: DrawAugmentation | Literal["from config"] | None = "from config",
    ) -> dict[str, Any]:
        """The arguments of the constructor, from a config.

        Args:
            cfg: a config with ``SMALLOBJ``.
            is_train: whether for training or inference.
            augmentation: the copy-paste, or None. Unless given it is what the config asks for; a
                bank of objects is then built of DATASETS.TRAIN.
        """
        seed = max(cfg.SEED, 0)
        if augmentation == "from config":
            augmentation = _augmentation_for_stock_loader(cfg, seed) if is_train else None
        stock = super().from_config(cfg, is_train)
        if cfg.SMALLOBJ.FAST_RESIZE:
            stock["augmentations"] = [
                _FastResize(a) if isinstance(a, T.ResizeShortestEdge) else a
                for a in stock["augmentations"]
            ]
        return {**stock, "augmentation": augmentation, "seed": seed}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict to a model input; see DatasetMapper."""
        record = dict(dataset_dict)
        image = read_image(record, image_format=self.image_format)
        record.pop("pixels", None)
        if not self.is_train:
            record.pop("annotations", None)
        sem_seg = None
        if "sem_seg_file_name" in record:
            sem_seg = utils.read_image(record.pop("sem_seg_file_name"), "L").squeeze(2)

        if self.augmentation is not None and "annotations" in record:
            if "draw" not in record:
                # Of each image its own copy, where there is to be one for each.
                index = zlib.crc32(record.get("file_name", "").encode())
                record["draw"] = Draw(int(np.random.randint(1 << 62)), index, 0)
            if not image.flags.writeable:
                image = image.copy()
            record["height"], record["width"] = image.shape[:2]
            self._add_areas(record)
            self.augmentation(image, record)

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        with _numpy_seeded_for(self.seed, dataset_dict.get("draw")):
            transforms = self.augmentations(aug_input)
        image, sem_seg = aug_input.image, aug_input.sem_seg
        shape = image.shape[:2]

        record["image"] = torch.as_tensor(_channels_first(image))
        if sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(record, shape, transforms, proposal_topk=self.proposal_topk)
        if "annotations" in record:
            self._transform_annotations(record, transforms, shape)
        return record

    def _add_areas(self, record: dict[str, Any]) -> None:
        """Give annotations their ``area`` where Detectron2's loader has dropped it."""
        annotations = record["annotations"]
        if all("area" in a for a in annotations):
            return
        areas = self._areas.get(record["file_name"])
        if areas is None or len(areas) != len(annotations):
            areas = [area_of(a, record["height"], record["width"]) for a in annotations]
            self._areas[record["file_name"]] = areas
        record["annotations"] = [
            {"area": area, **a} for a, area in zip(annotations, areas, strict=True)
        ]

    def _transform_annotations(
        self, record: dict[str, Any], transforms: T.TransformList, shape: tuple[int, int]
    ) -> None:
        """As the stock method, but the record's annotations stay as they are."""
        kept = [
            a
            for a in record.pop("annotations")
            if a.get("iscrowd", 0) == 0
            # Without its mask, the stock method would end in a KeyError.
            and (not self.use_instance_mask or a.get("segmentation"))
        ]
        used = {"segmentation": self.use_instance_mask, "keypoints": self.use_keypoint}
        annotations = [{k: v for k, v in a.items() if used.get(k, True)} for a in kept]
        if _can_be_transformed_together(annotations, transforms):
            _transform_together(annotations, transforms, shape)
        else:
            annotations = [
                utils.transform_instance_annotations(
                    a, transforms, shape, keypoint_hflip_indices=self.keypoint_hflip_indices
                )
                for a in annotations
            ]
        instances = utils.annotations_to_instances(
            annotations, shape, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes and annotations:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        record["instances"], full = utils.filter_empty_instances(instances, return_mask=True)
        if self.augmentation is not None:
            record["pasted"] = ["copy_paste" in a for a, f in zip(kept, full, strict=True) if f]


def _augmentation_for_stock_loader(cfg: CfgNode, seed: int) -> DrawAugmentation | None:
    """The augmentation of a config, for a mapper that this project's loader has not built."""
    s = cfg.SMALLOBJ
    if s.OVERSAMPLING_FACTOR != 1:
        logger.warning(
            "A mapper draws no images: SMALLOBJ.OVERSAMPLING_FACTOR %g takes effect in "
            "smallobj_d2.engines.detectron2.build_train_loader, or in Detectron2's own loader with "
            "dataset=dicts, sampler=sampler_from_config(cfg, dicts).",
            s.OVERSAMPLING_FACTOR,
        )
    if s.COPY_PASTE and s.AUGMENTATION_READING == "paired":
        logger.warning(
            "SMALLOBJ.AUGMENTATION_READING 'paired' counts the draws of an image, which only "
            "smallobj_d2.engines.detectron2.build_train_loader knows: here each is by chance."
        )
    records, read = None, None
    if s.COPY_PASTE and s.SOURCES == "bank":
        import_modules(s.IMPORTS)
        register_from_config(cfg)
        records = read_records(cfg.DATASETS.TRAIN)
        read = partial(read_image, image_format=cfg.INPUT.FORMAT)
    return build_augmentation(cfg, seed, records, read, progress=comm.is_main_process())


def _can_be_transformed_together(annotations: list[Any], transforms: T.TransformList) -> bool:
    """Whether boxes and polygons are all there is, and each transform moves points one by one."""
    return (
        all(type(t).apply_polygons is T.Transform.apply_polygons for t in transforms.transforms)
        and all(type(t).apply_box is T.Transform.apply_box for t in transforms.transforms)
        and len({a["bbox_mode"] for a in annotations}) == 1
        and all(
            isinstance(a.get("segmentation", []), list) and "keypoints" not in a
            for a in annotations
        )
    )


def _transform_together(
    annotations: list[Any], transforms: T.TransformList, shape: tuple[int, int]
) -> None:
    """What ``transform_instance_annotations`` does, for all instances in one go, in place."""
    mode = annotations[0]["bbox_mode"]
    # The stock function converts each box through a float32 tensor; XYXY it leaves alone.
    dtype = np.float64 if mode == BoxMode.XYXY_ABS else np.float32
    boxes = np.array([a["bbox"] for a in annotations], dtype=dtype)
    boxes = BoxMode.convert(boxes, BoxMode(mode), BoxMode.XYXY_ABS).astype(np.float64)
    boxes = transforms.apply_box(boxes).clip(min=0)
    height, width = shape
    boxes = np.minimum(boxes, (width, height, width, height))
    parts = [np.asarray(p, np.float64) for a in annotations for p in a.get("segmentation", ())]
    if parts:
        moved = transforms.apply_coords(np.concatenate(parts).reshape(-1, 2)).ravel()
        moved = iter(np.split(moved, np.cumsum([len(p) for p in parts[:-1]])))
    for annotation, box in zip(annotations, boxes, strict=True):
        annotation["bbox"], annotation["bbox_mode"] = box, BoxMode.XYXY_ABS
        if "segmentation" in annotation:
            annotation["segmentation"] = [next(moved) for _ in annotation["segmentation"]]


def _channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W, C) to a contiguous (C, H, W); OpenCV takes channels apart much faster than numpy."""
    mirrored = image.strides[1] < 0  # a horizontal flip is a view of the image before it
    if mirrored:
        image = image[:, ::-1]
    image = np.ascontiguousarray(image)
    planes = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    cv2.split(image, list(planes))
    if mirrored:
        for plane in planes:
            cv2.flip(plane, 1, plane)
    return planes


class _FastResize(T.Augmentation):
    """A resize of Detectron2's, done by OpenCV where that is as good (``SMALLOBJ.FAST_RESIZE``)."""

    def __init__(self, stock: T.ResizeShortestEdge) -> None:
        super().__init__()
        self.stock = stock

    def get_transform(self, image: np.ndarray) -> T.Transform:
        chosen = self.stock.get_transform(image)
        if not isinstance(chosen, T.ResizeTransform):  # nothing to resize
            return chosen
        return _FastResizeTransform(
            chosen.h, chosen.w, chosen.new_h, chosen.new_w, interp=chosen.interp
        )


class _FastResizeTransform(T.ResizeTransform):
    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        how = self.interp if interp is None else interp
        if how == Image.Resampling.BILINEAR and img.dtype == np.uint8:
            return resize(img, (self.new_h, self.new_w), fast=True)
        resized: np.ndarray = super().apply_image(img, interp)
        return resized


@contextmanager
def _numpy_seeded_for(seed: int, draw: Draw | None) -> Iterator[None]:
    """Let Detectron2's augmentations, which read ``np.random``, read a generator of the draw.

    The global generator is left as it was found. Without a draw nothing is done.
    """
    if draw is None:
        yield
        return
    before = np.random.get_state()
    np.random.set_state(draw_state(seed, draw.position).get_state())
    try:
        yield
    finally:
        np.random.set_state(before)


def build_train_loader(cfg: CfgNode, *, start_iter: int = 0) -> TrainLoader:
    """The training loader of a config: oversampling, copy-paste, and draws that can be trusted.

    Use it as the ``build_train_loader`` of your trainer.

    Args:
        cfg: a Detectron2 config with ``SMALLOBJ``; ``SEED`` must not be negative.
        start_iter: the iteration to start at.

    Raises:
        SmallObjError: if DATALOADER.SAMPLER_TRAIN asks for one of Detectron2's samplers.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise SmallObjError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}: this loader has a sampler "
            "of its own, which SMALLOBJ.SAMPLER chooses. Leave the key at 'TrainingSampler', or "
            "use Detectron2's loader with our mapper (README.md)."
        )

    def read_checked(names: Iterable[str]) -> Records:
        records = read_records(names)
        _require_mask_format(records, cfg)
        return records

    read = partial(read_image, image_format=cfg.INPUT.FORMAT)
    return loader_from_config(cfg, build_mapper, read_checked, read, start_iter=start_iter)


def _require_mask_format(records: Records, cfg: CfgNode) -> None:
    """Say in words what Detectron2 would say with a traceback."""
    if not cfg.MODEL.MASK_ON or cfg.INPUT.MASK_FORMAT != "polygon":
        return
    for record in records:
        for annotation in record["annotations"]:
            if isinstance(annotation.get("segmentation"), dict) and not annotation["iscrowd"]:
                raise SmallObjError(
                    f"Image {record['image_id']} of {', '.join(cfg.DATASETS.TRAIN)} has its masks "
                    "as RLE, which Detectron2 trains on with INPUT.MASK_FORMAT bitmask only."
                )
