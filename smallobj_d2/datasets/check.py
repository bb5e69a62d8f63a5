"""Every defect of a COCO JSON and its images, named in one pass: what, where, and the remedy.

`check_coco` looks at a JSON, `check_images` at the image files. The loader
(`datasets.coco`) runs the first, stops at errors, and counts in the log what is harmless.

An *error* would make training wrong or end it with a traceback. A *warning* is probably a mistake;
training leaves that one thing out or repairs it. A *note* is harmless and good to know.
"""

import gc
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.datasets.images import TOO_MANY_PIXELS, look_at_images
from smallobj_d2.datasets.measure import FARTHEST, Masks, measure, numbers, shown
from smallobj_d2.errors import SmallObjError

logger = logging.getLogger(__name__)

SEVERITIES = ("error", "warning", "note")
"""From worst to harmless."""

_FIX = "Export the annotations again"
KINDS: dict[str, tuple[str, str]] = {
    # The file
    "file-unreadable": ("error", "Name a file that is there and that you may read"),
    "json-damaged": ("error", "Copy or export the file again; it may have been cut off"),
    "not-coco": ("error", "COCO instance JSON has the lists images, annotations and categories"),
    "list-empty": ("warning", "Is this the right file?"),
    "entry-form": ("error", "Each entry of the three lists is an object with named values"),
    "key-missing": ("error", "Add it, or export the annotations in COCO's instance format"),
    "key-unknown": ("note", "Nothing to do; it is carried along"),
    # Ids
    "id-form": ("error", "An id is a whole number or a string"),
    "id-mixed": ("error", "Make all of them whole numbers, or all of them strings"),
    "id-duplicate": ("error", "Give each its own id; merged files must be renumbered"),
    "id-zero": ("warning", "Number from 1: COCO's own tools take 0 for 'not found'"),
    "image-unknown": ("error", "Add the image to `images`, or remove the annotation"),
    "category-unknown": ("error", "Add the category to `categories`, or correct the annotation"),
    # Categories
    "category-name": ("error", "Give the category a name, a string that is not empty"),
    "category-name-duplicate": ("warning", "Merge the two, or give them names that differ"),
    "category-unused": ("note", "Nothing to do; no instance has it, so nothing learns it"),
    # Images in the JSON
    "file-name": ("error", "file_name is the path of the image relative to the image folder"),
    "file-outside": ("error", "file_name must stay inside the image folder"),
    "file-duplicate": ("warning", "Let each file be one image with all its annotations"),
    "size-form": ("error", "height and width are whole numbers above 0"),
    "size-float": ("note", "Nothing to do; it is read as a whole number"),
    "size-huge": ("error", "Cut the image into tiles; Pillow and COCO's tools refuse larger ones"),
    "size-thin": ("error", "Cut or pad it; resizing would leave nothing of its shorter side"),
    "size-tiny": ("note", "Nothing to do, if it is meant to be that small"),
    "image-empty": ("note", "Nothing to do; DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves it out"),
    "image-crowded": ("note", "Raise TEST.DETECTIONS_PER_IMAGE, or no more than 100 can be found"),
    # Boxes
    "bbox-form": ("error", "bbox is [x, y, width, height], four numbers"),
    "bbox-mode": ("error", "Write XYWH boxes, and remove bbox_mode"),
    "bbox-not-finite": ("error", f"{_FIX}; its box cannot be known"),
    "bbox-negative": ("error", "Order the corners before taking their difference"),
    "bbox-zero": ("warning", "Remove it; training takes its mask's box, or leaves it out"),
    "bbox-off-image": ("error", "Correct the box, or the size of the image, or remove it"),
    "bbox-outside": ("warning", "Nothing, if it is cut off by the border; training clips it"),
    "bbox-xyxy": ("error", "Write the third and fourth number as width and height: x1-x0, y1-y0"),
    "bbox-mask": ("warning", "Check both; training takes the mask's box instead"),
    # Masks
    "no-masks": ("note", "Copy-paste needs masks, or SMALLOBJ.PASTE_BOXES True"),
    "mask-missing": ("warning", "Add its mask; without one, training of masks leaves it out"),
    "mask-form": ("error", "segmentation is a list of polygons, or an RLE"),
    "mask-empty": ("warning", "Remove it or draw it again; training leaves it out"),
    "polygon-form": ("error", "A polygon is a flat list [x, y, x, y, ...] of numbers"),
    "polygon-short": ("warning", "Remove it; training does so, and what has no other mask goes"),
    "polygon-odd": ("warning", "Draw it again; training removes it, as half a point is missing"),
    "polygon-not-finite": ("error", f"{_FIX}; its outline cannot be known"),
    "polygon-crossing": ("note", "Nothing to do; COCO's tools fill it by the winding of its edges"),
    "polygon-outside": ("warning", "Clip it to the image; training does so"),
    "polygon-off-image": ("error", "Correct it, or the size of the image, or remove it"),
    "rle-form": ("error", "An RLE has size [height, width] and counts, a list or a string"),
    "rle-size": ("error", "Make the mask for the image's own height and width"),
    "rle-counts": ("error", "Encode the mask again, with pycocotools.mask.encode"),
    # What else annotations have
    "area-missing": ("note", "Nothing to do; it is filled in from the mask, or the box"),
    "area-form": ("error", "area is a number, 0 or more; without it, the mask is measured"),
    "area-zero": ("warning", "Remove it; training measures the mask or the box instead"),
    "area-mask": ("warning", "Remove `area` and the mask is measured; it decides what is small"),
    "iscrowd-missing": ("note", "Nothing to do; it is filled in as 0"),
    "iscrowd-form": ("error", "iscrowd is 0, or 1 for a region of many"),
    "keypoints-form": ("error", "keypoints are x, y, v for each point, finite numbers"),
    # Image files
    "image-missing": ("error", "Put the file there, or remove the image from the JSON"),
    "image-unreadable": ("error", "Correct its permissions, or the path"),
    "image-zero-bytes": ("error", "Copy the file again; it is empty"),
    "image-damaged": ("error", "Copy or save the image again; it cannot be read to its end"),
    "image-size": ("error", "Correct height and width in the JSON, or restore the image"),
    "image-16-bit": ("error", "Save it with 8 bits; read as it is, most of it would be white"),
    "image-turned": ("warning", "Annotations must fit the image as its EXIF orientation turns it"),
    "image-gray": ("note", "Nothing to do; red, green and blue become equal"),
    "image-palette": ("note", "Nothing to do; its palette is turned into colours"),
    "image-transparent": ("note", "Nothing to do; transparency is dropped, colours stay"),
    "image-cmyk": ("warning", "Save it as RGB; read as it is, colours may be off"),
    "image-other": ("note", "Nothing to do; Pillow turns it into RGB"),
    "image-frames": ("note", "Nothing to do; the first frame is read"),
    "image-link": ("note", "Nothing to do, if you have put that link there"),
}
"""Kind to severity and remedy."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect."""

    kind: str
    """A key of `KINDS`."""
    what: str
    file: str
    """The JSON, or the image file."""
    image: Any = None
    """Id of the image, where it is about one."""
    annotation: Any = None
    """Id of the annotation, where it is about one."""

    @property
    def severity(self) -> str:
        return KINDS[self.kind][0]

    @property
    def remedy(self) -> str:
        return KINDS[self.kind][1]

    @property
    def where(self) -> str:
        """The image and the annotation, as far as it is about one."""
        ids = (("image", self.image), ("annotation", self.annotation))
        return ", ".join(f"{name} {shown(i)}" for name, i in ids if i is not None)

    def __str__(self) -> str:
        return f"{': '.join(filter(None, (self.where, self.what)))}. {self.remedy}."


class Checked:
    """A COCO JSON that has been read, what it holds, and what is wrong with it.

    Attributes:
        path: the JSON.
        findings: its defects. Where one is an error, nothing else here can be relied upon.
        images, annotations, categories: the lists of the JSON.
        masks: what the masks of the annotations come to, one by one.
    """

    def __init__(self, json_file: str | Path) -> None:
        self.path = Path(json_file)
        self.findings: list[Finding] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories: list[dict[str, Any]] = []
        self.masks = Masks(np.empty((0, 4)), np.empty(0), [])
        with without_gc():
            data = self._read()
            if data is None:
                return
            for name in _KEYS:
                setattr(self, name, self._objects(name, data[name]))
            self._check_keys()
            sizes = self._check_images()
            names = self._check_categories()
            self._check_annotations(sizes, names)

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.severity == "error"]

    def _add(self, kind: str, what: str, image: Any = None, annotation: Any = None) -> None:
        self.findings.append(Finding(kind, what, str(self.path), image, annotation))

    def _blame(self, kind: str, which: Iterable[int], what: str, key: str | None = None) -> None:
        """Findings about annotations, beginning with the value of a key."""
        for i in which:
            a = self.annotations[i]
            shows = f"{key} {shown(a.get(key))} {what}" if key else what
            self._add(kind, shows, a.get("image_id"), a.get("id"))

    # --- The file

    def _read(self) -> dict[str, Any] | None:
        try:
            data = json.loads(self.path.read_bytes())
        except OSError as e:
            self._add("file-unreadable", f"the file cannot be read: {e.strerror}")
            return None
        except (ValueError, RecursionError) as e:  # not JSON, not UTF-8, or nested without end
            self._add("json-damaged", f"the file is not valid JSON: {e}")
            return None
        top = data if isinstance(data, dict) else {}
        absent = [repr(name) for name in _KEYS if not isinstance(top.get(name), list)]
        if absent:
            what = f"the file is not COCO instance JSON: it has no list {', no list '.join(absent)}"
            self._add("not-coco", f"{what} at its top level, which is a {type(data).__name__}")
        return None if absent else top

    def _objects(self, name: str, entries: list[Any]) -> list[dict[str, Any]]:
        if not entries:
            self._add("list-empty", f"the list {name!r} is empty")
        if {dict}.issuperset(map(type, entries)):
            return entries
        for i, entry in enumerate(entries):
            if type(entry) is not dict:
                needed = ", ".join(_KEYS[name][0])
                self._add("entry-form", f"{name}[{i}] lacks {needed}: it is {shown(entry)}")
        return [e for e in entries if type(e) is dict]

    def _check_keys(self) -> None:
        for name, (needed, known) in _KEYS.items():
            entries: list[dict[str, Any]] = getattr(self, name)
            unknown: Counter[str] = Counter()
            lacking = {}
            for keys, count in Counter(map(tuple, entries)).items():
                if missing := [k for k in needed if k not in keys]:
                    lacking[keys] = ", ".join(missing)
                for key in keys:
                    if key not in known:
                        unknown[key] += count
            for key, count in unknown.items():
                self._add("key-unknown", f"{count} of {name!r} have the key {shown(key)}")
            if not lacking:
                continue
            whole = []
            for i, entry in enumerate(entries):
                if (keys := tuple(entry)) not in lacking:
                    whole.append(entry)
                    continue
                image = entry.get("image_id" if name == "annotations" else "id")
                self._add(
                    "key-missing",
                    f"{name}[{i}] lacks {lacking[keys]}",
                    None if name == "categories" else image,
                    entry.get("id") if name == "annotations" else None,
                )
            setattr(self, name, whole)

    def _check_ids(self, name: str) -> None:
        """That the ids of a list can be told apart and sorted."""
        entries: list[dict[str, Any]] = getattr(self, name)
        ids = [e["id"] for e in entries]
        types = set(map(type, ids))
        if not types <= {int, str}:
            bad = [i for i in ids if type(i) not in (int, str)]
            for i in bad:
                self._add_of(name, "id-form", f"an id of {name!r} is {shown(i)}", i)
            setattr(self, name, [e for e in entries if type(e["id"]) in (int, str)])
            return self._check_ids(name)
        if len(types) > 1:
            self._add("id-mixed", f"some ids of {name!r} are numbers and some are strings")
        if len(set(ids)) < len(ids):
            for i, count in Counter(ids).items():
                if count > 1:
                    what = f"there are {_two(count)} {name} of id {shown(i)}"
                    self._add_of(name, "id-duplicate", what, i)
        return None

    def _add_of(self, name: str, kind: str, what: str, i: Any) -> None:
        self._add(
            kind,
            what,
            i if name == "images" else None,
            i if name == "annotations" else None,
        )

    # --- Images and categories

    def _check_images(self) -> dict[Any, tuple[int, int]]:
        """Returns the height and width of every image by id; 0, 0 where they mean nothing."""
        self._check_ids("images")
        sizes = {}
        names: dict[str, Any] = {}
        for image in self.images:
            number, name = image["id"], image["file_name"]
            if problem := _file_name_problem(name):
                self._add(problem[0], problem[1], number)
            elif (plain := os.path.normpath(name)) in names:
                what = f"file_name {shown(name)} is that of image {shown(names[plain])} too"
                self._add("file-duplicate", what, number)
            else:
                names[plain] = number
            sizes[number] = self._size(image)
        return sizes

    def _size(self, image: dict[str, Any]) -> tuple[int, int]:
        number, size = image["id"], [image["height"], image["width"]]
        what = f"height and width are {shown(size)}"
        whole = [v for v in size if type(v) is int or (type(v) is float and v.is_integer())]
        if len(whole) < 2 or min(whole) < 1:
            self._add("size-form", what, number)
            return 0, 0
        if float in map(type, size):
            self._add("size-float", what, number)
        height, width = int(size[0]), int(size[1])
        if max(height, width) >= FARTHEST or height * width > TOO_MANY_PIXELS:
            self._add("size-huge", what, number)
            return 0, 0
        if max(height, width) > _THINNEST * min(height, width):
            self._add("size-thin", what, number)
        elif max(height, width) < _TINY:
            self._add("size-tiny", what, number)
        return height, width

    def _check_categories(self) -> dict[Any, str]:
        """Returns the name of every category by id."""
        self._check_ids("categories")
        names: dict[Any, str] = {}
        for category in self.categories:
            name = category["name"]
            what = f"category {shown(category['id'])} has the name {shown(name)}"
            if not isinstance(name, str) or not name.strip():
                self._add("category-name", what)
            elif name in names.values():
                self._add("category-name-duplicate", f"{what}, as another has")
            names[category["id"]] = name
        return names

    # --- Annotations

    def _check_annotations(self, sizes: dict[Any, tuple[int, int]], names: dict[Any, str]) -> None:
        self._check_ids("annotations")
        annotations = self.annotations
        zero = [i for i, a in enumerate(annotations) if a["id"] == 0]
        self._blame("id-zero", zero, "its id is 0")

        owners = self._known("image_id", sizes, "image", "images")
        categories = self._known("category_id", names, "category", "categories")
        size = np.array([sizes.get(i, (0, 0)) for i in owners], dtype=np.int64).reshape(-1, 2)
        self.masks = measure(self._segmentations(size), size)
        for i, kind, what in self.masks.defects:
            self._blame(kind, [i], what)
        self._check_masks(size)
        boxes = self._check_boxes(size)
        self._check_areas(boxes)
        self._check_others()

        counts = Counter(
            i for i, a in zip(owners, annotations, strict=True) if not a.get("iscrowd")
        )
        for image in self.images:
            if not (count := counts[image["id"]]):
                self._add("image-empty", "it has no instance that is not a crowd", image["id"])
            elif count > _MANY:
                self._add("image-crowded", f"it has {count} instances", image["id"])
        for number in names.keys() - set(categories):
            what = f"no annotation has category {shown(number)} ({shown(names[number])})"
            self._add("category-unused", what)

    def _known(self, key: str, known: dict[Any, Any], one: str, many: str) -> list[Any]:
        """What annotations say under a key, which must be an id of one of the lists."""
        values = [a[key] for a in self.annotations]
        if not {int, str}.issuperset(map(type, values)):
            bad = [i for i, v in enumerate(values) if type(v) not in (int, str)]
            self._blame("id-form", bad, "is no id", key)
            for i in bad:
                values[i] = None
        unknown = set(values) - known.keys() - {None}
        for i, value in enumerate(values if unknown else ()):
            if value not in unknown:
                continue
            what = f"belongs to {one} {shown(value)}, which is not in `{many}`"
            other = _other_type(value)
            if other in known:
                what += f"; but there is {shown(other)}, a {_TYPES[type(other)]}"
            self._blame(f"{one}-unknown", [i], what)
        return values

    def _segmentations(self, size: NDArray[np.int64]) -> list[Any]:
        """The masks as they are given, but for RLE of which the image's size is not known."""
        given = [a.get("segmentation") for a in self.annotations]
        for i in np.flatnonzero(size[:, 0] == 0).tolist():
            if isinstance(given[i], dict):
                given[i] = None
        absent = [i for i, a in enumerate(self.annotations) if not a.get("segmentation")]
        if len(absent) < len(given):
            self._blame("mask-missing", absent, "it has no mask, as others have")
        elif given:
            self._add("no-masks", "no annotation has a mask")
        return given

    def _check_masks(self, size: NDArray[np.int64]) -> None:
        bounds, area, _ = self.masks
        self._blame("mask-empty", np.flatnonzero(area == 0).tolist(), "its mask has no area")
        off, out = _outside(bounds, size)
        self._blame("polygon-off-image", off, "its mask lies outside the image")
        for i in out:
            limits = [round(v, 1) for v in bounds[i].tolist()]
            self._blame(
                "polygon-outside", [i], f"its mask leaves the image: its corners are {limits}"
            )

    def _check_boxes(self, size: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns (N, 4) XYWH, NaN where a box means nothing."""
        given = [a["bbox"] for a in self.annotations]
        blame = self._blame
        mode = [i for i, a in enumerate(self.annotations) if a.get("bbox_mode", 1) != 1]
        blame("bbox-mode", mode, "says that its box is not XYWH", "bbox_mode")
        boxes, bad = _table_of(given, 4)
        blame("bbox-form", bad, "is not [x, y, width, height]", "bbox")
        wild = np.asarray(~np.isfinite(boxes).all(axis=1))
        wild[bad] = False
        blame("bbox-not-finite", np.flatnonzero(wild), "is not finite", "bbox")
        negative = (boxes[:, 2:] < 0).any(axis=1) & ~wild
        blame("bbox-negative", np.flatnonzero(negative), "has a negative side", "bbox")
        boxes[wild | negative] = np.nan
        empty = (boxes[:, 2:] == 0).any(axis=1)
        blame("bbox-zero", np.flatnonzero(empty), "has a side of 0", "bbox")

        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        xyxy = self._is_xyxy(boxes, corners, size)
        blame("bbox-xyxy", np.flatnonzero(xyxy), "is two corners, it seems", "bbox")
        far = (np.abs(corners) >= FARTHEST).any(axis=1)
        blame("bbox-off-image", np.flatnonzero(far), f"reaches beyond {FARTHEST:.0f}", "bbox")
        judged = np.where((xyxy | empty | far)[:, None], np.nan, corners)
        off, out = _outside(judged, size)
        blame("bbox-off-image", off, "lies outside the image", "bbox")
        blame("bbox-outside", out, "leaves the image", "bbox")
        missed = does_not_hold(judged, self.masks.bounds)
        for i in np.flatnonzero(missed).tolist():
            limits = [round(v, 1) for v in self.masks.bounds[i].tolist()]
            blame("bbox-mask", [i], f"does not hold its mask, whose corners are {limits}", "bbox")
        return boxes

    def _is_xyxy(
        self,
        boxes: NDArray[np.float64],
        corners: NDArray[np.float64],
        size: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Which boxes are two corners given as corner and size."""
        bounds = self.masks.bounds
        with np.errstate(invalid="ignore"):
            as_given = np.abs(corners - bounds).max(axis=1)
            as_corners = np.abs(boxes - bounds).max(axis=1)
            found = np.asarray((as_corners < _NEAR) & (as_given >= _NEAR))
            # Without a mask to compare with, one box proves nothing. But if each would do as two
            # corners, and many leave the image when taken as they should be ...
            alone = np.isnan(bounds[:, 0]) & ~np.isnan(boxes[:, 0])
            would_do = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= size[:, ::-1] + 1)
            leaves = (corners[:, 2:] > size[:, ::-1] + 1).any(axis=1) & alone
            if would_do[alone].all() and leaves.sum() >= max(3, alone.sum() / 3):
                found |= leaves
        return found

    def _check_areas(self, boxes: NDArray[np.float64]) -> None:
        missing = [i for i, a in enumerate(self.annotations) if "area" not in a]
        self._blame("area-missing", missing, "it has no area")
        given = [a.get("area", np.nan) for a in self.annotations]
        bad = [i for i, v in enumerate(given) if type(v) not in (int, float)]
        for i in bad:
            given[i] = np.nan
        area = numbers(given)
        assert area is not None
        wrong = ~np.isfinite(area) | (area < 0)
        wrong[missing] = False
        wrong[bad] = True
        self._blame("area-form", np.flatnonzero(wrong), "means nothing", "area")
        measured = self.masks.area.copy()
        crossing = [i for i, kind, _ in self.masks.defects if kind == "polygon-crossing"]
        measured[crossing] = np.nan  # of these the shoelace formula knows nothing
        with np.errstate(invalid="ignore"):
            box = boxes[:, 2] * boxes[:, 3]
            zero = (area == 0) & (np.where(np.isnan(measured), box, measured) > 0)
            unlike = (area > 0) & (np.abs(area - measured) > _AREA_SLACK)
            unlike &= (area > 1.5 * measured) | (1.5 * area < measured)
            of_box = unlike & (np.abs(area - box) < 1)
        self._blame("area-zero", np.flatnonzero(zero), "its area is 0")
        for i in np.flatnonzero(unlike).tolist():
            whose = " (that of its box)" if of_box[i] else ""
            what = f"its area is {area[i]:.0f}{whose}, but its mask has {measured[i]:.0f} pixels"
            self._blame("area-mask", [i], what)

    def _check_others(self) -> None:
        crowds = [a.get("iscrowd", 0) for a in self.annotations]
        missing = [i for i, a in enumerate(self.annotations) if "iscrowd" not in a]
        self._blame("iscrowd-missing", missing, "it has no iscrowd")
        bad = [i for i, v in enumerate(crowds) if not isinstance(v, int | float) or v not in (0, 1)]
        self._blame("iscrowd-form", bad, "is neither 0 nor 1", "iscrowd")
        for i, a in enumerate(self.annotations):
            points = a.get("keypoints")
            if points is None or points == []:
                continue
            values = numbers(points)
            if values is None or len(values) % 3 or not np.isfinite(values).all():
                self._blame("keypoints-form", [i], "are not x, y, v, ...", "keypoints")


_KEYS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "images": (
        ("id", "file_name", "height", "width"),
        frozenset(
            [
                "id",
                "file_name",
                "height",
                "width",
                "license",
                "flickr_url",
                "coco_url",
                "date_captured",
                "url",
            ]
        ),
    ),
    "categories": (
        ("id", "name"),
        frozenset({"id", "name", "supercategory", "keypoints", "skeleton", "color"}),
    ),
    "annotations": (
        ("id", "image_id", "category_id", "bbox"),
        frozenset(
            [
                "id",
                "image_id",
                "category_id",
                "bbox",
                "bbox_mode",
                "segmentation",
                "area",
                "iscrowd",
                "keypoints",
                "num_keypoints",
            ]
        ),
    ),
}
"""Keys that the entries of each list need, and those that the format knows."""

_TYPES = {int: "number", str: "string"}
_THINNEST = 500  # at 1333 pixels long, it is then less than 3 wide
_TINY = 16  # pixels
_MANY = 100  # instances; the default of TEST.DETECTIONS_PER_IMAGE
_NEAR = 2.0  # pixels; what exporters make of a corner by rounding
_AREA_SLACK = 16.0  # pixels; what ways of counting a small mask differ by


@contextmanager
def without_gc() -> Iterator[None]:
    """Keep Python from looking for garbage while millions of objects that are none are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _two(count: int) -> str:
    return "two" if count == 2 else str(count)


def _other_type(value: Any) -> Any:
    """The same id as a string, or as a number."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d{1,18}", value) else None
    return str(value)


def _table_of(rows: Sequence[Any], columns: int) -> tuple[NDArray[np.float64], list[int]]:
    """Rows of numbers as an array, NaN for those that are none, and which these are."""
    good = (
        {list}.issuperset(map(type, rows))
        and {columns}.issuperset(map(len, rows))
        and {int, float}.issuperset(map(type, chain.from_iterable(rows)))
    )
    if good:
        try:
            return np.array(rows, dtype=np.float64).reshape(-1, columns), []
        except OverflowError:
            pass
    table = np.full((len(rows), columns), np.nan)
    bad = []
    for i, row in enumerate(rows):
        values = numbers(row)
        if values is None or len(values) != columns:
            bad.append(i)
        else:
            table[i] = values
    return table, bad


def _outside(corners: NDArray[np.float64], size: NDArray[np.int64]) -> tuple[Any, Any]:
    """Which XYXY boxes lie outside their image, and which leave it by more than a pixel."""
    height, width = size[:, 0], size[:, 1]
    x0, y0, x1, y1 = corners.T
    known = height > 0
    with np.errstate(invalid="ignore"):
        off = known & ((x0 >= width) | (y0 >= height) | (x1 <= 0) | (y1 <= 0))
        out = known & ~off & ((x0 < -1) | (y0 < -1) | (x1 > width + 1) | (y1 > height + 1))
    return np.flatnonzero(off).tolist(), np.flatnonzero(out).tolist()


def does_not_hold(box: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether boxes leave out a pixel or more of their masks; False where one of the two is NaN.

    Args:
        box, mask: (..., 4) XYXY.
    """
    with np.errstate(invalid="ignore"):
        low = mask[..., :2] < box[..., :2] - 1
        high = mask[..., 2:] > box[..., 2:] + 1
    return np.asarray((low | high).any(axis=-1))


def _file_name_problem(name: Any) -> tuple[str, str] | None:
    what = f"file_name is {shown(name)}"
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        return "file-name", what
    try:
        os.fsencode(name)
    except UnicodeError:
        return "file-name", f"{what}, which no file can be called"
    # By the rules of any system, whichever this one is.
    parts = re.split(r"[/\\]", name)
    if os.path.normpath(name) == ".":
        return "file-name", f"{what}, which is a folder"
    depth = 0
    for part in parts:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0 or os.path.isabs(name) or re.match(r"[A-Za-z]:[/\\]|\\", name):
            return "file-outside", f"{what}, which leads out of the image folder"
    return None


# --- What others call


def check_coco(json_file: str | Path) -> list[Finding]:
    """Every defect of a COCO JSON, worst first. Damaged files are findings, not errors."""
    return by_severity(Checked(json_file).findings)


def check_images(
    json_file: str | Path, image_root: str | Path, *, workers: int | None = None
) -> list[Finding]:
    """Open every image of a COCO JSON, several at a time, with a progress bar.

    Args:
        json_file: the annotations; images that it gives no usable name or size are left out.
        image_root: folder that ``file_name`` are relative to.
        workers: processes; as many as there are cores unless said.

    Returns:
        What is wrong with the files, worst first.
    """
    images = [
        (str(Path(image_root) / image["file_name"]), image["height"], image["width"], image["id"])
        for image in Checked(json_file).images
        if _file_name_problem(image["file_name"]) is None
    ]
    looks = look_at_images([i[:3] for i in images], str(image_root), workers=workers)
    return by_severity(
        Finding(kind, what, path, number)
        for (path, _, _, number), defects in zip(images, looks, strict=True)
        for kind, what in defects
    )


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Findings sorted: errors first, those of one kind together, otherwise as they came."""
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order[f.kind]))


def exit_code(findings: Iterable[Finding]) -> int:
    """2 where there is an error, 1 where there is a warning, else 0."""
    worst = min((SEVERITIES.index(f.severity) for f in findings), default=2)
    return 2 - worst


def stop_on_errors(findings: Iterable[Finding]) -> None:
    """Do nothing unless one of the findings is an error.

    Raises:
        SmallObjError: the first few errors, how many there are, and how to see all.
    """
    errors = by_severity(f for f in findings if f.severity == "error")
    if not errors:
        return
    text = [f"{f.file}: {f}" for f in errors[:_FIRST]]
    if len(errors) > 1:
        file = errors[0].file
        text.append(f"{len(errors)} errors; tools/analyze.py --check --json {file} lists all.")
    raise SmallObjError(" ".join(text))


_FIRST = 3


def log_findings(findings: Iterable[Finding]) -> None:
    """One line in the log for each kind of warning and note, with its number."""
    for kind, group in _grouped(findings):
        severity = KINDS[kind][0]
        if severity == "error":
            continue
        level = logging.WARNING if severity == "warning" else logging.INFO
        count = f"{len(group)} {severity}{'' if len(group) == 1 else 's'}"
        logger.log(level, "%s: %s of %s, such as %s", group[0].file, count, kind, group[0])


def _grouped(findings: Iterable[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in by_severity(findings):
        groups[finding.kind].append(finding)
    yield from groups.items()


def report(findings: Iterable[Finding], *, notes: int | None = 5) -> str:
    """All findings as a table: worst first, by kind, each with its place and what is wrong.

    Args:
        findings: of `check_coco` and `check_images`.
        notes: how many notes of each kind to show; None for all. Errors and warnings are all shown.
    """
    findings = by_severity(findings)
    lines = []
    for kind, group in _grouped(findings):
        severity, remedy = KINDS[kind]
        lines.append(f"{severity:8}{kind}: {len(group)}. {remedy}.")
        limit = len(group) if severity != "note" or notes is None else notes
        rows = [(f.file, f.where, f.what) for f in group[:limit]]
        widths = [max(len(row[i]) for row in rows) for i in range(2)] if rows else []
        for row in rows:
            file, where = (text.ljust(w) for text, w in zip(row[:2], widths, strict=True))
            lines.append(f"        {ascii_only(file)}  {where}  {row[2]}".rstrip())
        if len(group) > limit:
            lines.append(f"        ... and {len(group) - limit} more")
    counts = Counter(f.severity for f in findings)
    total = ", ".join(f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in SEVERITIES)
    return "\n".join([*lines, total])


def ascii_only(text: str) -> str:
    """Text that any terminal can print, escaped where it is not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_dataset(
    json_file: str | Path, image_root: str | Path, *, images: bool = False
) -> list[Finding]:
    """Every defect of a dataset: of its JSON, and if asked of its image files."""
    findings = check_coco(json_file)
    if images and not any(f.kind in ("file-unreadable", "json-damaged") for f in findings):
        findings += check_images(json_file, image_root)
    return by_severity(findings)
