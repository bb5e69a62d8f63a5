"""Datasets of the catalogs, their records and images, and oversampling for the stock loader."""

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from smallobj_d2.datasets.categories import Categories, require_same_categories
from smallobj_d2.datasets.coco import (
    BUILTIN,
    categories_of,
    dataset_info,
    is_registered,
    load_dataset,
    mask_area,
)
from smallobj_d2.datasets.images import opened, require_size
from smallobj_d2.datasets.instances import does_not_hold
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.outlines import bounds_inside
from smallobj_d2.masks.shapes import box_xyxy, has_mask, shape_of
from smallobj_d2.sampling import factors_from_config, repeat_factors
from smallobj_d2.sizes import SMALL_AREA
from smallobj_d2.training_set import Records

_UPRIGHT = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def register_datasets(names: Iterable[str]) -> None:
    """Make named datasets known to Detectron2's catalogs.

    Raises:
        SmallObjError: if one has the name of another that is there already, or of COCO, and is not.
    """
    for name in names:
        if not is_registered(name):
            continue
        if name in BUILTIN and name in DatasetCatalog:
            classes = MetadataCatalog.get(name).get("thing_classes")
            if classes is not None and classes != [*categories_of(name).values()]:
                raise SmallObjError(
                    f"{dataset_info(name).json_file} has other categories than COCO, for which "
                    f"Detectron2 takes {name}. Give your dataset a name of its own: "
                    "SMALLOBJ.DATASETS, or --json, --images, --val-json and --val-images."
                )
            continue
        info = dataset_info(name)
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).get("json_file") != str(info.json_file):
                raise SmallObjError(
                    f"The name {name!r} is taken by another dataset in Detectron2's catalog; "
                    "choose a new one."
                )
            continue
        dataset = load_dataset(name)
        DatasetCatalog.register(name, lambda name=name: load_dataset(name).records)
        MetadataCatalog.get(name).set(
            json_file=str(info.json_file),
            image_root=str(info.image_root),
            evaluator_type="coco",
            thing_classes=dataset.thing_classes,
            thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(dataset.category_ids)},
        )


def require_keypoint_names(cfg: CfgNode) -> None:
    """Refuse to train keypoints whose names, which a flip needs, Detectron2's catalog lacks."""
    for name in cfg.DATASETS.TRAIN if cfg.MODEL.KEYPOINT_ON else ():
        if MetadataCatalog.get(name).get("keypoint_names") is None:
            raise SmallObjError(
                f"MODEL.KEYPOINT_ON is True, but Detectron2's catalog has no keypoint_names of "
                f"{name}. Name a module of yours in SMALLOBJ.IMPORTS that says MetadataCatalog."
                f"get({name!r}).set(keypoint_names=..., keypoint_flip_map=...)."
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
            ``width`` the size is read from the image file; without ``area`` it is measured. A box
            that does not hold its mask becomes the mask's, as far as that lies in the image, as
            `smallobj_d2.load_coco` has it.

    Raises:
        UnreadableImage: if the size of an image is to be read, and cannot be.
        SmallObjError: naming the image of an invalid mask.
    """
    records = [_measured(record) for record in dataset_dicts]
    for record in records:
        _hold(record)
    return records


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    """A dataset dict with a size and areas, which are all that oversampling needs."""
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
            annotation["area"] = area_of(annotation, record["height"], record["width"])
        annotations.append(annotation)
    return {**record, "annotations": annotations}


def _hold(record: dict[str, Any]) -> None:
    """Give annotations whose box does not hold their mask the mask's, in place."""
    masked = [
        a
        for a in record["annotations"]
        if has_mask(a) and a.get("bbox_mode", BoxMode.XYWH_ABS) in _UPRIGHT
    ]
    if not masked:
        return
    size = record["height"], record["width"]
    try:
        shapes = [shape_of(a, *size, in_box=False) for a in masked]
    except SmallObjError as e:
        raise SmallObjError(f"{record.get('file_name', 'An image')}: {e}") from e
    bounds = np.array([bounds_inside(shape, *size) for shape in shapes])
    outside = does_not_hold(np.array([box_xyxy(a) for a in masked]), bounds)
    empty = (bounds[:, :2] >= bounds[:, 2:]).any(axis=1)
    for i in np.flatnonzero(outside & ~empty).tolist():
        mode = masked[i].get("bbox_mode", BoxMode.XYWH_ABS)
        masked[i]["bbox"] = BoxMode.convert(bounds[i].tolist(), BoxMode.XYXY_ABS, mode)


def area_of(annotation: dict[str, Any], height: int, width: int) -> float:
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
    factors = factors_from_config([*map(_measured, dataset)], cfg)
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
    return _sampler(repeat_factors([*map(_measured, dataset)], factor, small_area), seed)


def _sampler(factors: np.ndarray, seed: int | None) -> RepeatFactorTrainingSampler:
    return RepeatFactorTrainingSampler(torch.from_numpy(factors), seed=seed)


def read_image(record: dict[str, Any], image_format: str) -> np.ndarray:
    """As Detectron2 reads images and checks their size, but with words where that fails.

    A dict that has its ``pixels``, (H, W, 3) uint8 RGB, needs no file.
    """
    if "pixels" in record:
        pixels: np.ndarray = record["pixels"]
        return pixels[:, :, ::-1] if image_format == "BGR" else pixels
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
