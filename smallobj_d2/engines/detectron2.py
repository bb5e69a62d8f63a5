"""The Detectron2 engine: mapper, loader and trainer, each a thin layer on the stock one."""

import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, configurable
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T  # noqa: N812 - Detectron2's own name for it
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, defaults
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from PIL import Image

from smallobj_d2.augmentation import DrawAugmentation, build_augmentation, draw_state
from smallobj_d2.datasets.categories import (
    Categories,
    check_categories,
    require_same_categories,
)
from smallobj_d2.datasets.coco import (
    categories_of,
    dataset_info,
    is_registered,
    load_dataset,
    mask_area,
    register_from_config,
)
from smallobj_d2.datasets.images import opened, require_size, resize
from smallobj_d2.engines import processes, run
from smallobj_d2.engines.folder import last_checkpoint
from smallobj_d2.engines.loader import TrainLoader, loader_from_config
from smallobj_d2.engines.seed_and_device import seed_step
from smallobj_d2.engines.weights import (
    NOTHING_TO_EVALUATE,
    check_weights,
    read_file,
    require_whole,
    write_file,
)
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.evaluation.ap import (
    Row,
    count_objects,
    counted_detections,
    from_detectron2,
    load_ground_truth,
    table,
)
from smallobj_d2.files import write_json, writing
from smallobj_d2.registry import Registry, import_modules
from smallobj_d2.sampling import Draw, factors_from_config, repeat_factors
from smallobj_d2.sizes import SMALL_AREA
from smallobj_d2.training_set import Records, check_test_data
from smallobj_d2.visualization.sheets import (
    Outlines,
    View,
    outlines_of_box,
    outlines_of_mask,
    styles_of_copies,
)

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
        if not self.is_train:
            with opened(dataset_dict, PathManager.open):
                return super().__call__(dataset_dict)
        record = dict(dataset_dict)
        image = _read_image(record, self.image_format)
        sem_seg = None
        if "sem_seg_file_name" in record:
            sem_seg = utils.read_image(record.pop("sem_seg_file_name"), "L").squeeze(2)

        if self.augmentation is not None and "annotations" in record:
            if "draw" not in record:
                record["draw"] = Draw(int(np.random.randint(1 << 62)), 0, 0)
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
            areas = [_area(a, record["height"], record["width"]) for a in annotations]
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
        unused = set()
        if not self.use_instance_mask:
            unused.add("segmentation")
        if not self.use_keypoint:
            unused.add("keypoints")
        annotations = [{k: v for k, v in a.items() if k not in unused} for a in kept]
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


def _read_image(record: dict[str, Any], image_format: str) -> np.ndarray:
    """As Detectron2 reads images and checks their size, but with words where that fails."""
    with opened(record, PathManager.open) as file:
        # A stock BGR image is a reversed view, slow to work on.
        turn_over = image_format == "BGR"
        image = utils.convert_PIL_to_numpy(
            utils._apply_exif_orientation(file), "RGB" if turn_over else image_format
        )
    if "height" in record and "width" in record:
        require_size(record, (image.shape[1], image.shape[0]))
    utils.check_image_size(record, image)
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if turn_over else image


def register_datasets(cfg: CfgNode) -> None:
    """Make the datasets of a config known to Detectron2's catalogs."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name in DatasetCatalog or not is_registered(name):
            continue
        info = dataset_info(name)
        dataset = load_dataset(name)
        DatasetCatalog.register(name, lambda name=name: load_dataset(name).records)
        MetadataCatalog.get(name).set(
            json_file=str(info.json_file),
            image_root=str(info.image_root),
            evaluator_type="coco",
            thing_classes=dataset.thing_classes,
            thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(dataset.category_ids)},
        )


def catalog_categories(name: str) -> Categories | None:
    """Categories of one of our datasets, or of one in Detectron2's catalog that names its own."""
    if is_registered(name) or name not in DatasetCatalog:
        return categories_of(name)
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes")
    if classes is None:
        return None
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    known = {i: number for number, i in ids.items()}
    return {known.get(i, i): str(c) for i, c in enumerate(classes)}


def read_records(names: Iterable[str]) -> Records:
    """Dataset dicts with ``area``, of our own datasets and of any in Detectron2's catalog.

    Raises:
        SmallObjError: if they do not agree on their categories.
    """
    names = tuple(names)
    records: Records = []
    for name in names:
        if is_registered(name) or name not in DatasetCatalog:
            records += load_dataset(name).records
            continue
        records += with_areas(DatasetCatalog.get(name))
    lists = {name: catalog_categories(name) for name in names}  # a catalog's after its records
    require_same_categories({n: c for n, c in lists.items() if c is not None})
    return records


def with_areas(dataset_dicts: Iterable[dict[str, Any]]) -> Records:
    """Dataset dicts of any kind, completed by what oversampling and copy-paste need.

    Args:
        dataset_dicts: what a dataset registered with Detectron2 gives. Without ``height`` and
            ``width`` the size is read from the image file; without ``area`` it is measured.

    Raises:
        UnreadableImage: if the size of an image is to be read, and cannot be.
    """
    records = []
    for record in dataset_dicts:
        if "height" not in record or "width" not in record:
            with opened(record, PathManager.open) as file:
                width, height = utils._apply_exif_orientation(file).size
            record = {**record, "height": height, "width": width}
        annotations = []
        for annotation in record["annotations"]:
            # Whole numbers would stay whole numbers after a resize.
            box = [float(v) for v in annotation["bbox"]]
            annotation = {"iscrowd": 0, **annotation, "bbox": box}
            if "area" not in annotation:
                annotation["area"] = _area(annotation, record["height"], record["width"])
            annotations.append(annotation)
        records.append({**record, "annotations": annotations})
    return records


def _area(annotation: dict[str, Any], height: int, width: int) -> float:
    """The area of a mask in pixels, or of the box where there is no mask."""
    x0, y0, x1, y1 = BoxMode.convert(
        annotation["bbox"], annotation.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS
    )
    return mask_area({**annotation, "bbox": [x0, y0, x1 - x0, y1 - y0]}, height, width)


def sampler_from_config(
    cfg: CfgNode, dataset: Sequence[dict[str, Any]]
) -> RepeatFactorTrainingSampler:
    """A config's oversampling for Detectron2's own loader.

    Pass it on: ``build_detection_train_loader(cfg, mapper=SmallObjectMapper(cfg, True),
    dataset=dataset, sampler=sampler_from_config(cfg, dataset))``.

    Args:
        cfg: a config with ``SMALLOBJ``, whose function ``SMALLOBJ.SAMPLER`` gives the factors.
        dataset: N dataset dicts, from ``get_detection_dataset_dicts``.
    """
    factors = factors_from_config(with_areas(dataset), cfg)
    return _sampler(factors, cfg.SEED if cfg.SEED >= 0 else None)


def oversampling_sampler(
    dataset: Sequence[dict[str, Any]],
    factor: float,
    *,
    small_area: float = SMALL_AREA,
    seed: int | None = None,
) -> RepeatFactorTrainingSampler:
    """The paper's oversampling for Detectron2's own loader, for a LazyConfig or for plain code.

    Args:
        dataset: N dataset dicts, from ``get_detection_dataset_dicts``.
        factor, small_area: see `smallobj_d2.repeat_factors`.
        seed: as for ``RepeatFactorTrainingSampler``; None draws one for all processes.
    """
    return _sampler(repeat_factors(with_areas(dataset), factor, small_area), seed)


def _sampler(factors: np.ndarray, seed: int | None) -> RepeatFactorTrainingSampler:
    return RepeatFactorTrainingSampler(torch.from_numpy(factors), seed=seed)


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
    records, read = None, None
    if s.COPY_PASTE and s.SOURCES == "bank":
        import_modules(s.IMPORTS)
        register_from_config(cfg)
        records = read_records(cfg.DATASETS.TRAIN)
        read = partial(_read_image, image_format=cfg.INPUT.FORMAT)
    return build_augmentation(cfg, seed, records, read, progress=comm.is_main_process())


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


def build_train_loader(cfg: CfgNode, *, start_iter: int = 0) -> TrainLoader:
    """The training loader of a config: oversampling, copy-paste, and draws that can be trusted.

    Use it as the ``build_train_loader`` of your trainer.

    Args:
        cfg: a Detectron2 config with ``SMALLOBJ``; ``SEED`` must not be negative.
        start_iter: the iteration to start at.
    """

    def read_checked(names: Iterable[str]) -> Records:
        records = read_records(names)
        _require_mask_format(records, cfg)
        return records

    read = partial(_read_image, image_format=cfg.INPUT.FORMAT)
    return loader_from_config(cfg, build_mapper, read_checked, read, start_iter=start_iter)


class Checkpointer(DetectionCheckpointer):
    """DetectionCheckpointer that writes whole files or none, and executes nothing that it reads.

    Attributes:
        whole: whether what is loaded must have all parameters of the model.
    """

    whole = False

    def save(self, name: str, **kwargs: Any) -> None:
        """As the stock method; a run that is killed here still has the checkpoint before."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: o.state_dict() for key, o in self.checkpointables.items()}, **kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        write_file(path, data)
        self.logger.info("Saved %s", path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Say which checkpoint is the last."""
        with writing(Path(self.save_dir) / "last_checkpoint") as temporary:
            temporary.write_text(last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """As the stock method, but a checkpoint that is gone is named."""
        return str(last_checkpoint(Path(self.save_dir)) or "")

    def _load_file(self, filename: str) -> Any:
        """As the stock methods, for files that hold no more than weights and basic types."""
        data = read_file(filename)
        if not isinstance(data, dict):
            raise SmallObjError(f"{filename} is not a checkpoint: it holds {type(data).__name__}.")
        if filename.endswith(".pkl"):
            if "model" in data and "__author__" in data:  # Detectron2's model zoo
                return data
            blobs = data.get("blobs", data)  # Caffe2's
            blobs = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        return data if "model" in data else {"model": data}

    def _load_model(self, checkpoint: Any) -> Any:
        """As the stock method, but a model that is to be whole, and is not, is an error."""
        incompatible = super()._load_model(checkpoint)
        if self.whole:
            others = (name for name, _, _ in incompatible.incorrect_shapes)
            require_whole(self.model, {*incompatible.missing_keys, *others})
        return incompatible


class Trainer(DefaultTrainer):
    """DefaultTrainer with our loader, COCO evaluation, and an exact resume."""

    def __init__(self, cfg: CfgNode) -> None:
        with _processes_on(cfg.MODEL.DEVICE):
            super().__init__(cfg)
        self.register_hooks([_SeedEachStep(cfg.SEED)])
        self._hooks.insert(0, self._hooks.pop())
        self._write_metrics = self._trainer._write_metrics
        self._trainer._write_metrics = self._check_losses

    def build_hooks(self) -> list[HookBase | None]:
        """The stock hooks, which save with our checkpointer."""
        self.checkpointer = Checkpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks: list[HookBase | None] = super().build_hooks()
        return hooks

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """The stock loader with our mapper, with readable errors."""
        mapper = build_mapper(cfg, False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """The loader of a run that starts at iteration 0."""
        return build_train_loader(cfg)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The stock schedule, which cannot take a step at the very end of training."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.STEPS = tuple(s for s in cfg.SOLVER.STEPS if s != cfg.SOLVER.MAX_ITER)
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """COCO's evaluation of what the model predicts."""
        tasks = ["bbox"]
        if cfg.MODEL.MASK_ON:
            tasks.append("segm")
        if cfg.MODEL.KEYPOINT_ON:
            tasks.append("keypoints")
        output = os.path.join(cfg.OUTPUT_DIR, "inference")
        evaluator = COCOEvaluator(
            dataset_name,
            tasks=tuple(tasks),
            output_dir=output,
            max_dets_per_image=counted_detections(cfg),
        )
        evaluator._coco_api = load_ground_truth(MetadataCatalog.get(dataset_name).json_file)
        return evaluator

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, evaluators: Any = None) -> Any:
        """The stock evaluation, of the same model in all processes, with readable errors.

        Each process has its own batch norm statistics, and evaluates a part of the images.
        """
        processes.share_statistics(model)
        try:
            return super().test(cfg, model, evaluators)
        except UnreadableImage as e:  # torch has put a worker's traceback before what it says
            raise UnreadableImage(e.args[0].strip().rsplit("UnreadableImage: ")[-1]) from e

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's; the stream of draws continues where the checkpoint left it."""
        super().resume_or_load(resume)
        if self.start_iter >= self.max_iter and not self._has_final_checkpoint():
            # Killed between the last periodic checkpoint and the final one.
            self.checkpointer.save("model_final", iteration=self.start_iter - 1)
        if self.start_iter:
            self._trainer.reset_data_loader(
                lambda: build_train_loader(self.cfg, start_iter=self.start_iter)
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the stock method; a run that began without mixed precision may go over to it."""
        inner = state_dict["_trainer"]
        if isinstance(self._trainer, AMPTrainer) and "grad_scaler" not in inner:
            inner = {**inner, "grad_scaler": self._trainer.grad_scaler.state_dict()}
        super().load_state_dict({**state_dict, "_trainer": inner})

    def _has_final_checkpoint(self) -> bool:
        return Path(self.checkpointer.get_checkpoint_file()).name == "model_final.pth"

    @property
    def results(self) -> dict[str, Any]:
        """What the last evaluation of the run gave."""
        return dict(self._last_eval_results)

    def run_step(self) -> None:
        """One iteration; a loss that is not finite names the draws it came from."""
        try:
            super().run_step()
        except FloatingPointError as e:  # where the model itself has noticed
            raise self._not_finite(str(e)) from e

    def _check_losses(self, losses: Any, *args: Any, **kwargs: Any) -> None:
        """Each process looks at its own losses before they are put together."""
        bad = {k: v for k, v in losses.items() if not torch.isfinite(v).all()}
        if bad:
            raise self._not_finite(", ".join(f"{k} {v.item()}" for k, v in bad.items()))
        self._write_metrics(losses, *args, **kwargs)

    def _not_finite(self, which: str) -> SmallObjError:
        positions = self._trainer.data_loader.positions
        return run.not_finite(Path(self.cfg.OUTPUT_DIR), self.iter, positions, which)


@contextmanager
def _processes_on(device: str) -> Iterator[None]:
    """Let DefaultTrainer run in several processes on the CPU, where it would name a GPU to each."""
    stock = defaults.create_ddp_model
    if device == "cpu":
        defaults.create_ddp_model = partial(stock, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = stock


class _SeedEachStep(HookBase):
    """Makes the model's own randomness (which boxes are sampled) a function of the iteration.

    So a run that was killed and resumed does what an unbroken one does.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        seed_step(self.seed, self.trainer.iter)


def main(
    cfg: CfgNode, resume: bool = False, eval_only: bool = False, overwrite: bool = False
) -> Row | None:
    """Train and evaluate, or only evaluate, as a config says. Called in every process of a run.

    Args:
        cfg: a Detectron2 config with ``SMALLOBJ``.
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one.
        eval_only: evaluate MODEL.WEIGHTS, or with `resume` the last checkpoint.
        overwrite: start anew in a folder that holds a run already.

    Returns:
        The table row of the first test set in process 0, which is also in row.json; None in other
        processes, and where DATASETS.TEST is empty.
    """
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise SmallObjError(
            f"SOLVER.AMP.ENABLED is True and MODEL.DEVICE {cfg.MODEL.DEVICE}; Detectron2 has mixed "
            "precision on a GPU only. Set SOLVER.AMP.ENABLED False."
        )
    register_from_config(cfg)
    how = {"resume": resume, "eval_only": eval_only, "overwrite": overwrite}
    with run.running(cfg, "detectron2", **how) as cfg:
        for name in ("fvcore", "detectron2"):
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
        if comm.get_world_size() > 1:
            comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_words)
        register_datasets(cfg)
        check_test_data(cfg, DatasetCatalog.list())
        if eval_only:
            check_categories(cfg, cfg.DATASETS.TEST, catalog_categories)
        cfg = _with_local_weights(cfg, resume)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not eval_only
        seed_step(cfg.SEED, -1)
        if eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
            checkpointer.whole = True
            if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
                raise SmallObjError(NOTHING_TO_EVALUATE)
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
            results = Trainer.test(cfg, model)
        else:
            trainer = Trainer(cfg)
            names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
            check_categories(cfg, names, catalog_categories)
            trainer.resume_or_load(resume)
            with run.telling_where_it_stops(lambda: trainer.iter, cfg.SOLVER.MAX_ITER):
                trainer.train()
            run.report_losses(Path(cfg.OUTPUT_DIR), trainer._trainer.data_loader)
            results = trainer.results
        if not comm.is_main_process() or not cfg.DATASETS.TEST:
            return None
        return _report(cfg, results)


def _has_no_words(entry: logging.LogRecord) -> bool:
    """Whether an entry of Detectron2's log is not about an error that says what is wrong."""
    return not (entry.exc_info and isinstance(entry.exc_info[1], SmallObjError | OSError))


def _with_local_weights(cfg: CfgNode, resume: bool) -> CfgNode:
    """The config with MODEL.WEIGHTS on this machine, unless a checkpoint takes their place."""
    if resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return cfg
    weights = check_weights(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights or "")
    cfg.freeze()
    return cfg


def _report(cfg: CfgNode, results: dict[str, Any]) -> Row:
    """Log the table row of each test set and write that of the first to row.json."""
    rows = {}
    for name in cfg.DATASETS.TEST:
        truth = load_ground_truth(MetadataCatalog.get(name).json_file)
        metrics = results if len(cfg.DATASETS.TEST) == 1 else results[name]
        rows[name] = from_detectron2(metrics, count_objects(truth))
        logger.info("%s:\n%s", name, table(rows[name]))
    first = cfg.DATASETS.TEST[0]
    write_json(Path(cfg.OUTPUT_DIR) / "row.json", {"dataset": first, **rows[first]})
    return rows[first]


def view(sample: dict[str, Any], cfg: CfgNode) -> View:
    """A sample of the mapper as a picture with outlines."""
    image = sample["image"].permute(1, 2, 0).numpy()
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    instances = sample["instances"]
    outlines: list[Outlines] = []
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        if isinstance(masks, PolygonMasks):
            outlines = [[p.reshape(-1, 2) for p in parts] for parts in masks.polygons]
        else:
            outlines = [outlines_of_mask(m) for m in masks.tensor.numpy()]
    else:
        outlines = [outlines_of_box(*box) for box in instances.gt_boxes.tensor.tolist()]
    pasted = sample.get("pasted", [False] * len(outlines))
    return View(np.ascontiguousarray(image), outlines, styles_of_copies(pasted))
