"""Every defect of a COCO JSON and its images, named in one pass: what, where, and the remedy.

The loader (`datasets.coco`) runs the check of the JSON, stops at errors, and counts in the log what
is harmless.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from smallobj_d2.datasets.findings import DEEPEST, Finding, by_severity
from smallobj_d2.datasets.images import TOO_MANY_PIXELS, look_at_images
from smallobj_d2.datasets.instances import check_instances
from smallobj_d2.datasets.reading import OtherEncodingError, read_json, without_gc
from smallobj_d2.errors import shown
from smallobj_d2.masks.shapes import FARTHEST

Entry = dict[str, Any]


class Checked:
    """A COCO JSON that has been read, what it holds, and what is wrong with it.

    Attributes:
        path: the JSON.
        findings: its defects. Where one is an error, nothing else here can be relied upon.
        data: all of the JSON.
        images, annotations, categories: its lists, without what could not be looked into.
        measured: what boxes and masks of the annotations come to; only where the JSON is COCO's.
    """

    def __init__(self, json_file: str | Path) -> None:
        self.path = Path(json_file)
        self.findings: list[Finding] = []
        self.images: list[Entry] = []
        self.annotations: list[Entry] = []
        self.categories: list[Entry] = []
        with without_gc():
            self.data = self._read()
            if not self.data:
                return
            for key, value in self.data.items():
                if key not in _KEYS and _too_deep(value):
                    self._add("json-deep", f"{shown(key)} at the top level is nested too deep")
            self.images, self.categories, self.annotations = map(self._entries, _KEYS)
            sizes = self._check_images()
            self._check_annotations(sizes, self._check_categories())

    def _add(self, kind: str, what: str, image: Any = None, annotation: Any = None) -> None:
        self.findings.append(Finding(kind, what, str(self.path), image, annotation))

    def _add_of(self, name: str, kind: str, what: str, number: Any) -> None:
        """A finding about an entry of one of the lists."""
        self._add(kind, what, **{_ABOUT[name]: number} if name in _ABOUT else {})

    def _blame(
        self,
        kind: str,
        which: Iterable[Any],
        what: str | Callable[[int], str],
        key: str | None = None,
    ) -> None:
        """Findings about annotations; see `smallobj_d2.datasets.instances.Blame`."""
        for i in np.flatnonzero(which).tolist() if isinstance(which, np.ndarray) else which:
            a = self.annotations[i]
            text = what if isinstance(what, str) else what(i)
            shows = f"{key} {shown(a.get(key))} {text}" if key else text
            self._add(kind, shows, a.get("image_id"), a.get("id"))

    # --- The file and its lists

    def _read(self) -> Entry:
        """What the file holds; nothing if that is not COCO's."""
        try:
            data = read_json(self.path)
        except OSError as e:
            self._add("file-unreadable", f"the file cannot be read: {e.strerror}")
            return {}
        except OtherEncodingError as e:
            self._add("json-encoding", str(e))
            return {}
        except ValueError as e:
            self._add("json-damaged", f"the file is not valid JSON: {e}")
            return {}
        top: Entry = data if isinstance(data, dict) else {}
        absent = [repr(name) for name in _KEYS if not isinstance(top.get(name), list)]
        if absent:
            what = f"the file is not COCO instance JSON: it has no list {', no list '.join(absent)}"
            self._add("not-coco", f"{what} at its top level, which is a {type(data).__name__}")
        return {} if absent else top

    def _entries(self, name: str) -> list[Entry]:
        """Those of a list that have the keys that they need, and an id."""
        needed, looked_at, known = _KEYS[name]
        entries = self.data[name]
        if not entries:
            self._add("list-empty", f"the list {name!r} is empty")
        if not {dict}.issuperset(map(type, entries)):
            for i, entry in enumerate(entries):
                if type(entry) is not dict:
                    what = f"{name}[{i}] lacks {', '.join(needed)}: it is {shown(entry)}"
                    self._add("entry-form", what)
            entries = [e for e in entries if type(e) is dict]
        keys: Counter[str] = Counter()
        lacking = {}
        for some, count in Counter(map(tuple, entries)).items():
            keys.update(dict.fromkeys(some, count))
            if missing := [k for k in needed if k not in some]:
                lacking[some] = ", ".join(missing)
        for key in [k for k in keys if k not in (*needed, *looked_at)]:
            if key not in known:
                self._add("key-unknown", f"{keys[key]} of {name!r} have the key {shown(key)}")
            for entry in entries:
                if key in entry and _too_deep(entry[key]):
                    what = f"{shown(key)} of an entry of {name!r} is nested too deep"
                    self._add_of(name, "json-deep", what, entry.get("id"))
        for i, entry in enumerate(entries if lacking else ()):
            if missing_keys := lacking.get(tuple(entry)):
                about = {"image": entry.get("image_id"), _ABOUT.get(name, ""): entry.get("id")}
                about.pop("", None)
                self._add("key-missing", f"{name}[{i}] lacks {missing_keys}", **about)
        if lacking:
            entries = [e for e in entries if tuple(e) not in lacking]
        return self._with_ids(name, entries)

    def _with_ids(self, name: str, entries: list[Entry]) -> list[Entry]:
        """Those whose ids can be told apart and sorted."""
        ids = [e["id"] for e in entries]
        if not {int, str}.issuperset(map(type, ids)):
            for i in ids:
                if type(i) not in (int, str):
                    self._add_of(name, "id-form", f"an id of {name!r} is {shown(i)}", i)
            entries = [e for e in entries if type(e["id"]) in (int, str)]
            ids = [e["id"] for e in entries]
        if len(set(map(type, ids))) > 1:
            self._add("id-mixed", f"some ids of {name!r} are numbers and some are strings")
        if len(set(ids)) < len(ids):
            for i, count in Counter(ids).items():
                if count > 1:
                    many = "two" if count == 2 else count
                    what = f"there are {many} {name} of id {shown(i)}"
                    self._add_of(name, "id-duplicate", what, i)
        return entries

    # --- Images and categories

    def _check_images(self) -> dict[Any, tuple[int, int]]:
        """Returns the height and width of every image by id; 0, 0 where they mean nothing."""
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
        if max(height, width) > THINNEST * min(height, width):
            self._add("size-thin", what, number)
        elif max(height, width) < _TINY:
            self._add("size-tiny", what, number)
        return height, width

    def _check_categories(self) -> dict[Any, str]:
        """Returns the name of every category by id."""
        names: dict[Any, str] = {}
        taken: set[str] = set()
        for category in self.categories:
            name = category["name"]
            what = f"category {shown(category['id'])} has the name {shown(name)}"
            if not isinstance(name, str) or not name.strip():
                self._add("category-name", what)
            elif name in taken:
                self._add("category-name-duplicate", f"{what}, as another has")
            else:
                taken.add(name)
            names[category["id"]] = name
        return names

    # --- Annotations

    def _check_annotations(self, sizes: dict[Any, tuple[int, int]], names: dict[Any, str]) -> None:
        annotations = self.annotations
        zero = [i for i, a in enumerate(annotations) if a["id"] == 0]
        self._blame("id-zero", zero, "its id is 0")

        owners = self._known("image_id", sizes, "image", "images")
        categories = self._known("category_id", names, "category", "categories")
        size = np.array([sizes.get(i, (0, 0)) for i in owners], dtype=np.int64).reshape(-1, 2)
        if annotations and not any(a.get("segmentation") for a in annotations):
            self._add("no-masks", "no annotation has a mask")
        self.measured = check_instances(annotations, size, self._blame)

        instances = zip(owners, annotations, strict=True)
        counts = Counter(owner for owner, a in instances if not a.get("iscrowd"))
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


_KEYS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "images": (
        ["id", "file_name", "height", "width"],
        [],
        ["license", "flickr_url", "coco_url", "date_captured", "url"],
    ),
    "categories": (["id", "name"], [], ["supercategory", "keypoints", "skeleton", "color"]),
    "annotations": (
        ["id", "image_id", "category_id", "bbox"],
        ["bbox_mode", "segmentation", "area", "iscrowd", "ignore", "keypoints"],
        ["num_keypoints"],
    ),
}
"""Keys of each list's entries: needed ones, others that are checked, others that COCO has."""

_ABOUT = {"images": "image", "annotations": "annotation"}
_TYPES = {int: "number", str: "string"}
THINNEST = 500
"""How many times as long as wide an image may be; at 1333 pixels long, it is 3 wide then."""
_TINY = 16  # pixels
_MANY = 100  # instances; the default of TEST.DETECTIONS_PER_IMAGE


def _other_type(value: Any) -> Any:
    """The same id as a string, or as a number."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d{1,18}", value) else None
    return str(value)


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [v for v in level if isinstance(v, dict | list)]
        level = [v for o in level for v in (o.values() if isinstance(o, dict) else o)]
        if not level:
            return False
    return True


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


def check_coco(
    json_file: str | Path, image_root: str | Path | None = None, *, workers: int | None = None
) -> list[Finding]:
    """Every defect of a COCO JSON, and if asked of its images, worst first.

    Damaged files are findings, not errors.

    Args:
        json_file: annotations in COCO's instance format.
        image_root: folder that the JSON's ``file_name`` are relative to; opens every image there
            to its end, with a progress bar. Left out, the JSON alone is looked at.
        workers: threads that open images; one per core if left out.
    """
    checked = Checked(json_file)
    findings = checked.findings
    if image_root is not None:
        images = [i for i in checked.images if _file_name_problem(i["file_name"]) is None]
        files = [(str(Path(image_root, i["file_name"])), i["height"], i["width"]) for i in images]
        looks = look_at_images(files, str(image_root), workers=workers)
        findings += [
            Finding(kind, what, path, image["id"])
            for image, (path, _, _), defects in zip(images, files, looks, strict=True)
            for kind, what in defects
        ]
    return by_severity(findings)
