"""COCO instance JSON to Detectron2's standard dataset dicts, with ``area`` kept.

Detectron2's own loader drops ``area``; without it nobody can say which objects are small. Apart
from that, and from keys of the user's own being carried along, the dicts are the same.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from smallobj_d2.config import changed
from smallobj_d2.datasets.categories import require_same_categories
from smallobj_d2.datasets.check import Checked
from smallobj_d2.datasets.findings import log_findings, stop_on_errors
from smallobj_d2.datasets.measure import usable
from smallobj_d2.datasets.reading import without_gc
from smallobj_d2.errors import SmallObjError

XYWH = 1
"""``bbox_mode`` of all boxes here: the value of Detectron2's ``BoxMode.XYWH_ABS``."""


@dataclass(frozen=True)
class DatasetInfo:
    """Where a dataset is."""

    name: str
    json_file: Path
    image_root: Path


@dataclass(frozen=True)
class CocoDataset:
    """A dataset in memory."""

    records: list[dict[str, Any]]
    """Detectron2's standard dataset dicts, sorted by image id."""
    thing_classes: list[str]
    """Category names, by contiguous id."""
    category_ids: list[int]
    """The JSON's category id of each contiguous id."""
    repaired: dict[str, int]
    """How many annotations lacked something that was filled in, by what it was."""

    @property
    def categories(self) -> dict[Any, str]:
        """Names by the JSON's category id, in the order of the contiguous ids."""
        return dict(zip(self.category_ids, self.thing_classes, strict=True))


# As Detectron2 lays them out under DETECTRON2_DATASETS.
BUILTIN = {
    f"coco_{year}_{split}": (
        f"coco/annotations/instances_{split}{year}.json",
        f"coco/{split}{year}",
    )
    for year in (2014, 2017)
    for split in ("train", "val")
}
_OF_IMAGES = ("file-name", "file-outside")
"""What is wrong with names of images, and does not matter without them."""
_registered: dict[str, DatasetInfo] = {}
_read: dict[tuple[str, int, int], dict[Any, str]] = {}
"""Categories of the files that have been read, as they were then."""


def datasets_root() -> Path:
    """Where datasets are kept: ``DETECTRON2_DATASETS``, or else ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_dataset(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Give a COCO-format dataset a name that ``DATASETS.TRAIN`` and ``DATASETS.TEST`` can use.

    Args:
        name: any name that is not taken by another dataset.
        json_file: annotations in COCO's instance format.
        image_root: folder that the JSON's ``file_name`` are relative to.
    """
    info = DatasetInfo(name, Path(json_file), Path(image_root))
    if name in BUILTIN or _registered.get(name, info) != info:
        raise SmallObjError(f"The name {name!r} is taken by another dataset; choose a new one.")
    _registered[name] = info


def register_from_config(cfg: Any) -> None:
    """Register every dataset in ``SMALLOBJ.DATASETS``."""
    for name, json_file, image_root in cfg.SMALLOBJ.DATASETS:
        register_dataset(name, json_file, image_root)


def with_paths(cfg: Any, json_file: str | Path, image_root: str | Path, key: str = "TRAIN") -> Any:
    """A config that trains on a dataset named by its files alone, as ``--json`` and ``--images``.

    The dataset is in the config's SMALLOBJ.DATASETS then, so that spawned processes know it, too.

    Args:
        cfg: a config with ``SMALLOBJ``; left as it is.
        json_file: annotations in COCO's instance format.
        image_root: folder that the JSON's ``file_name`` are relative to.
        key: which of DATASETS it takes the place of, TRAIN or TEST.
    """
    paths = [str(Path(p).expanduser()) for p in (json_file, image_root)]
    known = {name: [str(d.json_file), str(d.image_root)] for name, d in _registered.items()}
    named = {name: files for name, *files in cfg.SMALLOBJ.DATASETS}
    taken = known | named
    stem = Path(json_file).stem
    names = chain([stem], (f"{stem}_{i}" for i in count(2)))
    name = next(n for n in names if n not in BUILTIN and taken.get(n, paths) == paths)
    new = [] if name in named else [[name, *paths]]
    return changed(
        cfg,
        {f"DATASETS.{key}": (name,), "SMALLOBJ.DATASETS": [*cfg.SMALLOBJ.DATASETS, *new]},
    )


def is_registered(name: str) -> bool:
    """Whether `dataset_info` knows this name."""
    return _find(name) is not None


def _find(name: str) -> DatasetInfo | None:
    if name in BUILTIN:
        return DatasetInfo(name, *(datasets_root() / file for file in BUILTIN[name]))
    return _registered.get(name)


def dataset_info(name: str) -> DatasetInfo:
    """Where a named dataset is.

    Raises:
        SmallObjError: for an unknown name, and where its files are not there.
    """
    info = _find(name)
    if info is None:
        known = ", ".join([*BUILTIN, *_registered])
        raise SmallObjError(
            f"There is no dataset {name!r}; there are: {known}. Your own is named by "
            '--json and --images, or in a config by SMALLOBJ.DATASETS: [["name", '
            '"annotations.json", "image folder"]].'
        )
    remedy = "Correct its entry in SMALLOBJ.DATASETS, or what --json and --images name."
    if name in BUILTIN:
        remedy = (
            "DETECTRON2_DATASETS must name the folder that holds coco/; it is "
            f"{datasets_root()} now. Your own data is named by --json and --images, to train by "
            "--val-json and --val-images, too, or DATASETS.TEST '()'."
        )
    if not os.path.isfile(info.json_file):  # without permission, Path.is_file raises
        raise SmallObjError(f"Dataset {name}: there is no file {info.json_file}. {remedy}")
    if not os.path.isdir(info.image_root):
        raise SmallObjError(f"Dataset {name}: there is no image folder {info.image_root}. {remedy}")
    return info


def load_dataset(name: str) -> CocoDataset:
    """Load a named dataset; see `load_coco`."""
    info = dataset_info(name)
    return load_coco(info.json_file, info.image_root)


def categories_of(name: str) -> dict[Any, str]:
    """The categories of a named dataset; its file is read if it has not been as it is now."""
    file = dataset_info(name).json_file
    if _state(file) not in _read:
        read_coco(file)
    return _read[_state(file)]


def get_records(names: Iterable[str]) -> list[dict[str, Any]]:
    """The dataset dicts of several named datasets, one after the other.

    Raises:
        SmallObjError: if they do not agree on their categories.
    """
    datasets = {name: load_dataset(name) for name in names}
    require_same_categories({name: d.categories for name, d in datasets.items()})
    return list(chain.from_iterable(d.records for d in datasets.values()))


def without_empty(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images that have something to learn from: at least one annotation that is no crowd."""
    return [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]


def load_coco(json_file: str | Path, image_root: str | Path) -> CocoDataset:
    """Read a COCO instance JSON, after checking all of it.

    Each annotation keeps its keys but ``image_id``. Category ids become contiguous, boxes get
    ``bbox_mode``, RLE becomes compressed RLE, keypoints move from pixel indices to coordinates
    (half a pixel). Polygons of under three points are dropped, and instances left without any, or
    whose RLE has no pixel. What is missing and harmless is filled in: ``iscrowd`` (0) and ``area``
    (that of the mask, or of the box). A box that does not hold its mask is replaced by the mask's.
    The log counts all this, once for each file in a process.

    Raises:
        SmallObjError: naming the first defects that `smallobj_d2.datasets.check` finds.
    """
    with without_gc():
        return dataset_of(read_coco(json_file), str(image_root))


def read_coco(json_file: str | Path, *, images: bool = True) -> Checked:
    """Read and check a COCO instance JSON; the log says what is harmless.

    Args:
        json_file: the file.
        images: whether its image files are meant, too, so that their names must mean something.

    Raises:
        SmallObjError: naming the first defects that `smallobj_d2.datasets.check` finds.
    """
    checked = Checked(json_file)
    stop_on_errors(f for f in checked.findings if images or f.kind not in _OF_IMAGES)
    if (state := _state(checked.path)) not in _read:
        categories = sorted(checked.categories, key=lambda c: c["id"])
        _read[state] = {c["id"]: c["name"] for c in categories}
        log_findings(checked.findings)
    return checked


def repaired(checked: Checked) -> Iterator[dict[str, Any]]:
    """The annotations of a JSON without errors, as all that trains and evaluates takes them.

    Those that have nothing left of their mask are left out. ``iscrowd`` and ``area`` are there.
    Masks are compressed RLE, or polygons of three points and more; those of whole numbers become
    floats. A box that does not hold its mask is the mask's, as far as it lies in the image.

    Yields:
        Copies.
    """
    sizes = {i["id"]: (int(i["height"]), int(i["width"])) for i in checked.images}
    lost = np.isnan(checked.measured.masks.bounds[:, 0]).tolist()
    not_held = np.flatnonzero(checked.measured.not_held)
    x0, y0, x1, y1 = checked.measured.inside[not_held].T
    of_masks = np.column_stack([x0, y0, x1 - x0, y1 - y0]).tolist()
    boxes = dict(zip(not_held.tolist(), of_masks, strict=True))
    for number, annotation in enumerate(checked.annotations):
        new = {"iscrowd": 0, **annotation}
        mask, size = new.pop("segmentation", None), sizes[annotation["image_id"]]
        if isinstance(mask, dict):
            rle = {"size": list(size), "counts": mask["counts"]}
            new["segmentation"] = (
                coco_mask.frPyObjects(rle, *size) if isinstance(rle["counts"], list) else rle
            )
        elif mask:
            # Detectron2 would resize a polygon of whole numbers to whole numbers.
            new["segmentation"] = [
                [float(v) for v in p] if isinstance(p[0], int) else p for p in mask if usable(p)
            ]
        if mask and lost[number]:
            continue
        if not new.get("area"):
            new["area"] = mask_area(new, *size)
        if number in boxes:
            new["bbox"] = boxes[number]
        yield new


def dataset_of(checked: Checked, image_root: str) -> CocoDataset:
    """What `read_coco` gives as dataset dicts; see `load_coco`."""
    names = {c["id"]: c["name"] for c in sorted(checked.categories, key=lambda c: c["id"])}
    contiguous = {number: i for i, number in enumerate(names)}
    images: dict[Any, dict[str, Any]] = {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": int(image["height"]),
            "width": int(image["width"]),
            "image_id": image["id"],
            "annotations": [],
        }
        for image in checked.images
    }
    kept = 0
    for annotation in repaired(checked):
        kept += 1
        record = images[annotation.pop("image_id")]
        record["annotations"].append(annotation)
        annotation["category_id"] = contiguous[annotation["category_id"]]
        annotation["bbox_mode"] = XYWH
        # Detectron2 moves boxes in the type they have, and would round whole numbers.
        annotation["bbox"] = [float(v) for v in annotation["bbox"]]
        if annotation.get("keypoints"):
            annotation["keypoints"] = [
                k if i % 3 == 2 else k + 0.5 for i, k in enumerate(annotation["keypoints"])
            ]
    found = Counter(f.kind for f in checked.findings)
    return CocoDataset(
        [images[i] for i in sorted(images)],
        list(names.values()),
        list(names),
        {
            "no iscrowd": found["iscrowd-missing"],
            "no area": found["area-missing"],
            "no valid polygon": len(checked.annotations) - kept,
            "box does not hold mask": int(checked.measured.not_held.sum()),
        },
    )


def _state(path: Path) -> tuple[str, int, int]:
    """A file as it is now."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def mask_area(annotation: dict[str, Any], height: int, width: int) -> float:
    """Area of a mask in pixels, as COCO counts it; of the box where there is no mask."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return float(coco_mask.area(segmentation))
