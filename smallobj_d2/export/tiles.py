"""A dataset of large images, cut into tiles for training, with polygons and RLE intact.

Tiles overlap, so that an object no larger than the overlap is whole in one of them at least. What a
tile's edge cuts is clipped: polygons exactly, into several parts of one annotation where need be,
and RLE to the very pixels.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from smallobj_d2.datasets.coco import mask_area, read_coco, repaired
from smallobj_d2.datasets.images import Pixels, in_order, read_rgb, require_files
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.export.folder import Entry, Exported, export, made_of
from smallobj_d2.files import link, writing
from smallobj_d2.masks.outlines import areal, inside, leaves, without_holes
from smallobj_d2.masks.rle import decode, encode
from smallobj_d2.masks.shapes import Outline, Window

MIN_SHARE = 0.3
"""An object that a tile's edge cuts is kept if at least this share of its area is inside, or fills
this share of the tile."""

_FORMAT = 3  # raise it whenever the same recipe would give other files
_JPEG = (".jpg", ".jpeg")


@dataclass
class Summary(Exported):
    """What has been made."""

    tiles: int = 0
    empty: int = 0
    """Tiles without any annotation, kept or dropped."""
    whole: int = 0
    """Objects that lie in a tile as they were; each of them as often as it is there."""
    cut: int = 0
    left_out: int = 0
    """Parts of objects that are less than the least share."""


def tile_dataset(
    json_file: str | Path,
    image_root: str | Path,
    out: str | Path,
    *,
    size: int = 640,
    overlap: float = 0.2,
    min_share: float = MIN_SHARE,
    drop_empty: bool = False,
    skip_unreadable: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Write ``out/annotations.json`` and ``out/images``: the tiles of all images of a dataset.

    A tile is ``<stem>_<x>_<y>``, as JPEG of quality 95 if the image is one, else as PNG. An image
    that is no larger than a tile is linked. Each image and annotation says where it is from, under
    ``tile``. A call that was cut off leaves no JSON, and the next one continues.

    Args:
        json_file, image_root: the dataset, in COCO's instance format.
        out: a new folder, or one that a call with the same arguments has begun.
        size: width and height of a tile in pixels; less where the image is smaller.
        overlap: of neighboring tiles, as a share of `size`; they may overlap more, so that all
            are of the same size.
        min_share: leave out what is less of an object than this share of its area, unless it fills
            this share of the tile. Crowds are kept, however little of them is inside.
        drop_empty: leave out tiles without any annotation.
        skip_unreadable: leave out images that cannot be read, instead of stopping.
        workers: threads; None for one per core. Each holds one image.
        progress: show a progress bar on a terminal.

    Raises:
        SmallObjError: if the dataset has defects, `out` holds something else, or an image cannot
            be read or written.
    """
    if size < 1 or not 0 <= overlap < 1 or not 0 <= min_share <= 1:
        raise SmallObjError(
            f"Tiles of {size} pixels, overlap {overlap} and least share {min_share}: it must be a "
            "pixel or more, a share from 0 to below 1, and a share from 0 to 1."
        )
    checked = read_coco(json_file)
    if not skip_unreadable:
        require_files(
            {"file_name": str(Path(image_root) / i["file_name"]), "image_id": i["id"]}
            for i in checked.images
        )
    summary = Summary(Path(out) / "annotations.json", Path(out) / "images")
    recipe = {
        "generator": "smallobj_d2.tiles",
        "format": _FORMAT,
        **made_of(Path(json_file), Path(image_root), (i["file_name"] for i in checked.images)),
        "size": size,
        "overlap": overlap,
        "min_share": min_share,
        "drop_empty": drop_empty,
    }
    by_image: dict[Any, list[Entry]] = {image["id"]: [] for image in checked.images}
    for annotation in repaired(checked):
        by_image[annotation["image_id"]].append(annotation)

    def work(image: Entry) -> list[_Tile]:
        tiles = list(_tiles(image, by_image[image["id"]], size, overlap, min_share))
        kept = [t for t in tiles if t.annotations or not drop_empty]
        _write_tiles(image, Path(image_root) / image["file_name"], kept, summary.image_root)
        return tiles

    names: set[str] = set()
    bar = tqdm(checked.images, unit="img", desc="tiles", disable=not progress or None)
    with (
        export(summary, recipe, checked.data) as (images, annotations),
        closing(in_order(work, bar, workers)) as made,
    ):
        for image, result in made:
            try:
                tiles = result.result()
            except UnreadableImage as e:
                if not skip_unreadable:
                    raise
                summary.skipped.append(str(e))
                continue
            for tile in tiles:
                summary.left_out += tile.left_out
                summary.empty += not tile.annotations
                if drop_empty and not tile.annotations:
                    continue
                if tile.name in names:
                    raise SmallObjError(
                        f"Two images would have a tile {tile.name}. Rename one, or make them "
                        "one image if they are one file."
                    )
                names.add(tile.name)
                images.append(tile.entry(image, len(images) + 1))
                for own in tile.annotations:
                    ids = {"id": len(annotations) + 1, "image_id": len(images)}
                    annotations.append({**own, **ids})
                    summary.whole += own["tile"]["share"] == 1
        summary.tiles, summary.cut = len(images), len(annotations) - summary.whole
    return summary


# --- Where tiles are


def windows(width: int, height: int, size: int, overlap: float) -> list[Window]:
    """The tiles of an image, row by row; together they cover it.

    All are `size` wide and high, or as wide or high as the image where that is less. Neighbors
    overlap by ``overlap * size`` pixels or more.
    """
    xs, ys = _starts(width, size, overlap), _starts(height, size, overlap)
    w, h = min(size, width), min(size, height)
    return [Window(x, y, w, h) for y in ys for x in xs]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    step = max(size - ceil(size * overlap), 1)
    last = max(length - size, 0)
    number = ceil(last / step)
    return [last * i // number for i in range(number + 1)] if number else [0]


# --- What is in them


@dataclass
class _Tile:
    window: Window
    name: str
    annotations: list[Entry]
    """With coordinates of the tile, and ``tile``: the original annotation, and how much it is."""
    left_out: int

    def entry(self, image: Entry, number: int) -> Entry:
        x, y, width, height = self.window
        new = {"id": number, "file_name": self.name, "width": width, "height": height}
        return {**image, **new, "tile": {"image": image["id"], "x": x, "y": y}}


def _tiles(
    image: Entry, annotations: list[Entry], size: int, overlap: float, min_share: float
) -> Iterator[_Tile]:
    width, height = int(image["width"]), int(image["height"])
    objects = [_Object(a, width, height) for a in annotations]
    cut = windows(width, height, size, overlap)
    name = Path(image["file_name"])
    for window in cut:
        suffix = name.suffix if name.suffix.lower() in _JPEG or len(cut) == 1 else ".png"
        own = name.with_name(f"{name.stem}_{window.x}_{window.y}{suffix}")
        parts = [part for o in objects if (part := o.within(window)) is not None]
        enough = min_share * window.width * window.height
        kept = [
            p
            for p in parts
            if p["iscrowd"] or p["tile"]["share"] >= min_share or p["area"] >= enough
        ]
        yield _Tile(window, own.as_posix(), kept, len(parts) - len(kept))


class _Object:
    """An annotation of `repaired`, of which tiles show parts; what leaves the image is none of it.

    Args:
        annotation: the annotation.
        width, height: of its image.
    """

    def __init__(self, annotation: Entry, width: int, height: int) -> None:
        self.annotation = annotation
        self.mask = annotation.get("segmentation")
        if isinstance(self.mask, dict):
            x, y, w, h = coco_mask.toBbox(self.mask).tolist()
            self.bounds = (x, y, x + w, y + h)
            self.area = float(coco_mask.area(self.mask))
        else:
            x, y, w, h = annotation["bbox"]
            parts = self.mask or [[x, y, x + w, y, x + w, y + h, x, y + h]]
            self.outline = Outline([np.reshape(p, (-1, 2)) for p in parts])
            # COCO fills a polygon that crosses itself by the even-odd rule, and so does this.
            self.geometry = inside(self.outline, height, width)
            self.bounds = self.outline.bounds()
            if leaves(self.outline, height, width):
                self.bounds = self.geometry.bounds  # NaN if nothing is left
            self.area = float(self.geometry.area)

    def within(self, window: Window) -> Entry | None:
        """The part of it in a tile, in the tile's coordinates; None if there is none."""
        x, y, width, height = window
        x0, y0, x1, y1 = self.bounds
        if x1 <= x or y1 <= y or x0 >= x + width or y0 >= y + height or not self.area:
            return None
        new = _without_keypoints_outside(self.annotation, window)
        new["tile"] = {"annotation": self.annotation.get("id"), "share": 1.0}
        whole = x <= x0 and y <= y0 and x1 <= x + width and y1 <= y + height
        if isinstance(self.mask, dict):
            pixels = decode(self.mask, *window)
            rle = encode(pixels, 0, 0, width, height)
            new["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
            area, box = float(pixels.sum()), coco_mask.toBbox(rle).tolist()
        elif whole:
            if self.mask:
                new["segmentation"] = self.outline.moved(-x, -y).segmentation(height, width)
        else:
            frame = shapely.box(x, y, x + width, y + height)
            part = areal(self.geometry.intersection(frame))
            part = shapely.transform(part, lambda p: p - (x, y))
            area, (left, top, right, bottom) = float(part.area), part.bounds
            box = [left, top, right - left, bottom - top]
            if self.mask:
                new["segmentation"] = [
                    shapely.get_coordinates(simple.exterior)[:-1].ravel().tolist()
                    for polygon in part.geoms
                    for simple in without_holes(polygon)
                ]
        if whole:
            left, top, *sides = new["bbox"]
            return new | {"bbox": [left - x, top - y, *sides]}
        new["tile"]["share"] = min(area / self.area, 1 - 1e-9)
        new["bbox"] = box
        new["area"] = mask_area(new, height, width) if area else 0.0
        return new if new["area"] else None


def _without_keypoints_outside(annotation: Entry, window: Window) -> Entry:
    """A copy whose keypoints are the tile's; those outside are not labeled, as COCO says it."""
    new = dict(annotation)
    if new.get("keypoints"):
        points = np.reshape(np.array(new["keypoints"], float), (-1, 3)) - (window.x, window.y, 0)
        inside = (points[:, :2] >= 0).all(1) & (points[:, :2] < window[2:]).all(1)
        points[~inside] = 0
        new["keypoints"] = points.ravel().tolist()
        new["num_keypoints"] = int((points[:, 2] > 0).sum())
    return new


# --- Images


def _write_tiles(image: Entry, source: Path, tiles: list[_Tile], folder: Path) -> None:
    """Write those tiles of an image that are not there; it is read once, if at all."""
    missing = [t for t in tiles if not (folder / t.name).exists()]
    record = {
        "file_name": str(source),
        "image_id": image["id"],
        **{k: int(image[k]) for k in ("height", "width")},
    }
    pixels: Any = read_rgb(record) if missing else None
    for tile in missing:
        if tile.window[2:] == (record["width"], record["height"]):
            link(source, folder / tile.name)
        else:
            _write_image(folder / tile.name, tile.window.of(pixels))


def _write_image(path: Path, pixels: Pixels) -> None:
    jpeg = path.suffix.lower() in _JPEG
    how: dict[str, Any] = {"quality": 95, "subsampling": 0} if jpeg else {"compress_level": 3}
    with writing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, **how)
