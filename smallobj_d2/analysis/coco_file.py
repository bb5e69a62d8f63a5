"""A COCO instance JSON of any size: its objects as arrays, its records on demand.

As dataset dicts, COCO's training set takes several GB of memory. Here the file's text stays as it
is (some 450 MB), and a record is unpacked from it when somebody asks for it.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from smallobj_d2.analysis.objects import ObjectsBuilder
from smallobj_d2.datasets.check import Finding, check_coco, stop_on_errors
from smallobj_d2.datasets.coco import _instance

_CHECKED = 100_000_000
"""Bytes of the largest file that is checked before it is read; checking a larger one takes GBs."""
_LISTS = ("images", "annotations", "categories")
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


class CocoFile(Sequence[dict[str, Any]]):
    """The dataset dicts of `smallobj_d2.datasets.coco.load_coco`, equal and in the same order.

    Args:
        json_file: annotations in COCO's instance format.
        image_root: folder that ``file_name`` are relative to.

    Attributes:
        images: a dict per image: ``file_name``, ``height``, ``width``, ``image_id``.
        objects: all objects, as arrays.
        repaired: how many annotations lacked something that was filled in, by what it was.
        findings: what `datasets.check` found; None if the file is too large to look first.

    Raises:
        SmallObjError: as `load_coco`. Of a file that is too large, only what cannot be read.
    """

    def __init__(self, json_file: str | Path, image_root: str | Path) -> None:
        path = Path(json_file)
        self.findings: list[Finding] | None = None
        if not path.is_file() or path.stat().st_size <= _CHECKED:
            self.findings = check_coco(path)
            stop_on_errors(self.findings)
        try:
            self._load(path, str(image_root))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            stop_on_errors(check_coco(path))  # says what is wrong with it
            raise

    def _load(self, path: Path, image_root: str) -> None:
        data = path.read_bytes()
        self._text = data.decode(json.detect_encoding(data))
        del data
        self._label = str(path)
        parts: dict[str, list[dict[str, Any]]] = {}
        starts = array("q")
        for name, value, start in _entries(self._text):
            part = parts.setdefault(name, [])
            if value is not None and name == "annotations":
                starts.append(start)
            elif value is not None:
                part.append(value)
        if len(parts) < len(_LISTS):
            raise LookupError("a list is missing")
        self._starts = np.array(starts, dtype=np.int64)
        ids = sorted(c["id"] for c in parts["categories"])
        self._contiguous = {category: i for i, category in enumerate(ids)}
        images = [_image(image, image_root) for image in parts["images"]]
        self.images = sorted(images, key=lambda image: image["image_id"])
        self._load_objects()

    def _load_objects(self) -> None:
        builder = ObjectsBuilder()
        index = {
            image["image_id"]: builder.add_image(image["height"], image["width"])
            for image in self.images
        }
        if len(index) != len(self.images):
            raise ValueError("two images have one id")
        self.repaired: Counter[str] = Counter()
        owner = np.zeros(len(self._starts), dtype=np.int32)
        for k in range(len(self._starts)):
            annotation = self._annotation(k)
            owner[k] = i = index[annotation["image_id"]]
            self._contiguous[annotation["category_id"]]  # is known
            instance = _instance(annotation, self.images[i], self._label, self.repaired)
            if instance is not None:
                builder.add(i, instance)
        self.objects = builder.build()
        if not (np.isfinite(self.objects.boxes).all() and np.isfinite(self.objects.areas).all()):
            raise ValueError("a number is not finite")
        order = np.argsort(owner, kind="stable")
        self._starts = self._starts[order]
        self._begin = np.searchsorted(owner[order], np.arange(len(self.images) + 1))

    def _annotation(self, k: int) -> dict[str, Any]:
        annotation: dict[str, Any] = _DECODER.raw_decode(self._text, int(self._starts[k]))[0]
        return annotation

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image = self.images[index]
        index = index % len(self)
        annotations = []
        for k in range(int(self._begin[index]), int(self._begin[index + 1])):
            annotation = self._annotation(k)
            instance = _instance(annotation, image, self._label, Counter())
            if instance is not None:
                instance["category_id"] = self._contiguous[annotation["category_id"]]
                annotations.append(instance)
        return {**image, "annotations": annotations}


def _image(image: dict[str, Any], root: str) -> dict[str, Any]:
    """The part of a dataset dict that does not need annotations."""
    name = os.path.normpath(image["file_name"])
    if os.path.isabs(name) or name.split(os.sep)[0] == "..":
        raise ValueError(f"{name} leads out of the image folder")
    return {
        "file_name": os.path.join(root, image["file_name"]),
        "height": int(image["height"]),
        "width": int(image["width"]),
        "image_id": image["id"],
    }


def _entries(text: str) -> Iterator[tuple[str, dict[str, Any] | None, int]]:
    """The entries of the three lists of a COCO JSON, and where in the text each one begins.

    Before its entries each list is yielded once itself, with None for an entry.
    """
    at = _after(text, _after(text, 0, "\ufeff") if text[:1] == "\ufeff" else 0, "{")
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _after(text, at, ":")
        if key in _LISTS and text[at] == "[":
            yield key, None, at
            at = _after(text, at, "[")
            while text[at] != "]":
                value, end = _DECODER.raw_decode(text, at)
                yield key, value, at
                at = _next(text, end, "]")
            at += 1
        else:
            _, at = _DECODER.raw_decode(text, at)
        at = _next(text, at, "}")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _after(text: str, at: int, mark: str) -> int:
    """The first place with something on it after a mark that must come next."""
    at = _skip(text, at)
    if text[at] != mark:
        raise ValueError(f"no {mark!r} at {at}")
    return _skip(text, at + 1)


def _next(text: str, at: int, end: str) -> int:
    """The next entry of a list or an object, or the bracket that ends it."""
    at = _skip(text, at)
    return at if text[at] == end else _after(text, at, ",")
