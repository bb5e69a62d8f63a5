"""YOLO's labels, boxes and polygons alike, to COCO and back.

A dataset is a ``data.yaml`` with ``names`` and for each split a folder of images, a list of them,
or several of either. The labels of ``images/a.jpg`` are in ``labels/a.txt``, an object a line: its
class and ``x y width height`` (x and y of the center, all as shares of the image), or the points of
one polygon.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from smallobj_d2.datasets.coco import load_coco, mask_area
from smallobj_d2.datasets.images import SUFFIXES, upright_size
from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import link, reading, writing
from smallobj_d2.masks.outlines import inside, leaves, polygons_of, squares_of
from smallobj_d2.masks.shapes import Bitmap, Outline, Points, box_xyxy, has_mask, shape_of

SPLITS = ("train", "val", "test")
_OUTSIDE = 0.01
"""By how much a share may be off the image; it is clipped then."""
_AT_ONCE = 1 << 20
"""Pairs of points compared in one table."""
_DECIMALS = 5
"""Of coordinates in pixels. What was divided by the image's size comes back as it was, and COCO's
rasterizer, which counts fifths of a pixel, gives the same mask."""


# --- YOLO to COCO


def read_yaml(file: Path) -> dict[str, Any]:
    """A ``data.yaml``, whose ``names`` become a dict by class."""
    if not file.is_file():
        raise SmallObjError(f"There is no file {file}; name the data.yaml of a YOLO dataset.")
    with reading(file):
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        names = data["names"]
        if isinstance(names, str):
            raise TypeError("names must be a list, or a dict by class")
        by_class = names if isinstance(names, dict) else dict(enumerate(names))
        data["names"] = {int(k): str(v) for k, v in by_class.items()}
    if "kpt_shape" in data:
        raise SmallObjError(f"{file} has keypoints (kpt_shape); only boxes and polygons are read.")
    return data


def to_coco(file: Path, split: str) -> tuple[dict[str, Any], Path]:
    """One split of a YOLO dataset as COCO instance JSON.

    Categories keep the numbers of their classes. Boxes come without mask, lines that are there
    twice once, images without labels without annotations.

    Args:
        file: its ``data.yaml``.
        split: such as "train".

    Returns:
        The JSON, and the folder that its ``file_name`` are relative to.

    Raises:
        SmallObjError: naming the file and line of what is invalid.
    """
    data = read_yaml(file)
    files = sorted(set(_images(file, data, split)))
    if not files:
        raise SmallObjError(f"{file}: there are no images in {split}: {data[split]}.")
    root = Path(commonpath([f.parent for f in files]))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    bar = tqdm(files, desc=split, unit="img", disable=None)  # None: where it is no terminal
    for number, image in enumerate(bar, 1):
        height, width = upright_size({"file_name": str(image), "image_id": number})
        size = {"height": height, "width": width}
        images.append({"id": number, "file_name": image.relative_to(root).as_posix(), **size})
        for annotation in _read_labels(label_file(image), data["names"], height, width):
            ids = {"id": len(annotations) + 1, "image_id": number}
            annotations.append(ids | annotation)
    categories = [{"id": i, "name": name} for i, name in sorted(data["names"].items())]
    return {"images": images, "annotations": annotations, "categories": categories}, root


def label_file(image: Path) -> Path:
    """Where the labels of an image are: the last folder ``images`` of its path is ``labels``."""
    before, found, after = image.as_posix().rpartition("/images/")
    return Path(f"{before}/labels/{after}" if found else image).with_suffix(".txt")


def _images(file: Path, data: dict[str, Any], split: str) -> Iterator[Path]:
    entries = data.get(split) or []
    if not entries:
        raise SmallObjError(f"{file} has no {split!r}; it has: {', '.join(data)}.")
    root = file.parent.absolute() / str(data.get("path") or "")
    entries = [entries] if isinstance(entries, str) else entries
    if not (isinstance(entries, list) and all(isinstance(e, str) for e in entries)):
        raise SmallObjError(f"{file}: {split} is {entries!r}; it must be a path, or a list.")
    for entry in entries:
        place = _first(file, entry, root / entry, root / entry.removeprefix("../"))
        if place.is_dir():
            yield from (p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
            continue
        with reading(place):
            lines = place.read_text(encoding="utf-8").split("\n")
        for line in filter(None, map(str.strip, lines)):
            yield _first(place, line, place.parent / line, root / line)


def _first(file: Path, name: str, *places: Path) -> Path:
    for place in places:
        if place.exists():
            return Path(place).absolute()
    raise SmallObjError(f"{file} names {name}, but there is no {places[0]}. Correct the path.")


def _read_labels(
    file: Path, names: dict[int, str], height: int, width: int
) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    with reading(file):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    seen = set()
    for number, line in enumerate(lines, 1):
        if line.strip() and line not in seen:
            seen.add(line)
            yield _annotation(line, f"{file}, line {number}", names, height, width)


def _annotation(
    line: str, where: str, names: dict[int, str], height: int, width: int
) -> dict[str, Any]:
    try:
        category, *rest = (float(word) for word in line.split())
    except ValueError as e:
        raise SmallObjError(f"{where}: {line!r:.60} is not a line of numbers.") from e
    if category not in names:
        raise SmallObjError(f"{where}: there is no class {category:g} in the names of data.yaml.")
    if len(rest) < 4 or len(rest) % 2:
        raise SmallObjError(
            f"{where}: it has {len(rest)} numbers after the class; a box has 4, and a polygon an "
            "x and a y for each of its points, three or more."
        )
    shares = np.array(rest).reshape(-1, 2)
    is_box = len(shares) == 2
    corners = shares[0] + shares[1] * [[-0.5], [0.5]] if is_box else shares
    if not (np.abs(shares - 0.5) <= 0.5 + _OUTSIDE).all():  # NaN is not
        raise SmallObjError(f"{where}: it has numbers that are no shares, from 0 to 1.")
    points = np.round(corners.clip(0, 1) * (width, height), _DECIMALS)
    x, y = points.min(axis=0).tolist()
    w, h = np.ptp(points, axis=0).tolist()
    if not w * h:
        raise SmallObjError(f"{where}: its object has no width or no height. Remove the line.")
    annotation = {"category_id": int(category), "iscrowd": 0, "bbox": [x, y, w, h]}
    if not is_box:
        annotation["segmentation"] = [points.ravel().tolist()]
    return annotation | {"area": mask_area(annotation, height, width)}


# --- COCO to YOLO


@dataclass
class Summary:
    """What `to_yolo` wrote."""

    images: int = 0
    instances: int = 0
    masks: bool = False
    """Whether they are polygons; else boxes."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Annotations that YOLO has no form for, by reason."""
    joined: int = 0
    """Masks of several parts or with holes, joined by lines without width."""
    bitmaps: int = 0
    """Masks of pixels (RLE), turned into the outline of these pixels."""


def one_polygon(annotation: dict[str, Any], height: int, width: int) -> tuple[Points, bool]:
    """The mask of an instance as one polygon, the only form that YOLO has.

    A single polygon stays what it is, unless it leaves the image. Of several parts and of pixels
    the outline is taken, and its rings, those of holes included, are joined by lines that go there
    and back, which enclose nothing.

    Returns:
        (P, 2) float64, without a point where nothing lies in the image; whether rings were joined.
    """
    shape = shape_of(annotation, height, width)
    if isinstance(shape, Bitmap):
        rings = _rings(shapely.simplify(squares_of(shape), 0))
    elif isinstance(shape, Outline):
        rings = list(shape.parts)
        if leaves(shape, height, width) or (len(rings) > 1 and _overlap(rings)):
            rings = _rings(inside(shape, height, width))
    if not rings:
        return np.zeros((0, 2)), False
    joined = rings.pop(max(range(len(rings)), key=lambda i: len(rings[i])))
    if not rings:
        return joined, False
    # Prim's algorithm: how near each point that is left comes to what is joined, and where.
    points, counts = np.concatenate(rings), [len(ring) for ring in rings]
    ring_of, first = np.repeat(np.arange(len(rings)), counts), np.cumsum([0, *counts])
    distance, at = _nearest(points, joined)
    while np.isfinite(distance).any():
        point = int(distance.argmin())
        k = ring_of[point]
        ring, j = rings[k], point - first[k]
        i = int(np.flatnonzero((joined == at[point]).all(axis=1))[0])
        joined = np.concatenate([joined[: i + 1], ring[j:], ring[: j + 1], joined[i:]])
        distance[ring_of == k] = np.inf
        left = np.flatnonzero(np.isfinite(distance))
        nearer, there = _nearest(points[left], ring)
        closer = nearer < distance[left]
        distance[left[closer]], at[left[closer]] = nearer[closer], there[closer]
    return joined, True


def _rings(geometry: Any) -> list[Points]:
    return [
        np.asarray(ring.coords)[:-1]
        for polygon in polygons_of(geometry)
        for ring in (polygon.exterior, *polygon.interiors)
    ]


def _overlap(parts: list[Points]) -> bool:
    polygons = [shapely.make_valid(shapely.Polygon(p)) for p in parts]
    return bool(shapely.area(polygons).sum() - shapely.area(shapely.union_all(polygons)) > 1e-6)


def _nearest(points: Points, ring: Points) -> tuple[NDArray[np.float64], Points]:
    """How near each of some points comes to those of a ring, and to which of them."""
    distance, nearest = np.empty(len(points)), np.empty_like(points)
    step = max(1, _AT_ONCE // len(ring))
    for start in range(0, len(points), step):
        some = slice(start, start + step)
        apart = points[some, None] - ring
        each = np.hypot(apart[..., 0], apart[..., 1])
        found = each.argmin(axis=1)
        distance[some], nearest[some] = each[np.arange(len(found)), found], ring[found]
    return distance, nearest


def require_absent(paths: Iterable[Path]) -> None:
    """Refuse to write over a file or a folder.

    Raises:
        SmallObjError: naming the first that is there.
    """
    if taken := next((path for path in paths if path.exists()), None):
        raise SmallObjError(f"{taken} is there already. Remove it, or choose another folder.")


def to_yolo(
    json_file: Path, image_root: Path, out: Path, split: str, *, boxes: bool = False
) -> Summary:
    """Write a COCO-format dataset as one split of a YOLO dataset.

    Images are links in ``out/images/split``, labels in ``out/labels/split``; ``out/data.yaml`` gets
    the split. Classes are the categories in the order of their ids. Labels are polygons if every
    instance has a mask, because YOLO does not mix them with boxes; else boxes.

    Args:
        json_file, image_root: the dataset.
        out: a new folder, or one that has other splits with the same categories.
        split: such as "train".
        boxes: write boxes even so.

    Raises:
        SmallObjError: if the split is there, the categories differ, or two images want one label
            file.
    """
    dataset, file = load_coco(json_file, image_root), out / "data.yaml"
    data: dict[str, Any] = {"names": dict(enumerate(dataset.thing_classes))}
    if file.is_file():
        data = read_yaml(file)
        if data["names"] != dict(enumerate(dataset.thing_classes)):
            raise SmallObjError(
                f"{file} has other categories than {json_file}; choose another folder."
            )
        if data.get(split) or Path(out, data.get("path") or ".").resolve() != out.resolve():
            raise SmallObjError(
                f"{file} has a split {split} already, or keeps images elsewhere (path). Choose "
                "another folder."
            )
    folders = [out / kind / split for kind in ("images", "labels")]
    require_absent(folders)
    instances = [a for r in dataset.records for a in r["annotations"] if not a["iscrowd"]]
    done = Summary(masks=not boxes and all(map(has_mask, instances)))
    written: dict[Path, str] = {}
    for record in tqdm(dataset.records, desc=split, unit="img", disable=None):
        name = Path(record["file_name"]).relative_to(image_root)
        label = label_file((folders[0] / name).absolute())
        if label in written:
            raise SmallObjError(
                f"{name} and {written[label]} would share one label file. Rename one, or make them "
                "one image if they are one file."
            )
        written[label] = str(name)
        link(Path(record["file_name"]), folders[0] / name)
        lines = [_line(a, record["height"], record["width"], done) for a in record["annotations"]]
        with writing(label) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in filter(None, lines)))
    done.images = len(dataset.records)
    with writing(file) as temporary:
        data[split] = f"images/{split}"
        temporary.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), "utf-8")
    return done


def _line(annotation: dict[str, Any], height: int, width: int, done: Summary) -> str | None:
    """The line of an instance; what happened to it is counted."""
    x0, y0, x1, y1 = np.clip(box_xyxy(annotation), 0, (width, height) * 2).tolist()
    if annotation["iscrowd"] or x1 <= x0 or y1 <= y0:
        done.left_out["crowds" if annotation["iscrowd"] else "outside of the image"] += 1
        return None
    values: NDArray[np.float64] = np.array([(x0 + x1, y0 + y1), (2 * (x1 - x0), 2 * (y1 - y0))]) / 2
    if done.masks:
        values, joined = one_polygon(annotation, height, width)
        if not len(values):
            done.left_out["outside of the image"] += 1
            return None
        values = values.clip(0, (width, height))  # rounding
        done.joined += joined
        done.bitmaps += isinstance(annotation["segmentation"], dict)
    done.instances += 1
    numbers = (values / (width, height)).ravel()
    return " ".join([str(annotation["category_id"]), *(f"{v:.10g}" for v in numbers)])
