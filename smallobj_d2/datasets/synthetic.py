"""Procedural scenes in COCO format: a dataset with exact masks that nobody has to download.

The demo, the quick experiments and the tests need images whose object sizes are spread as in
Table 2 of the paper: many small objects, gathered in half of the images, beside a few large ones
that own nearly all of the annotated area. `make_scene` draws one such image, `make_dataset` writes
a folder of them.

A scene is geometry first, pixels second. Objects are polygons, laid from back to front; what a
newer one hides is subtracted from the visible parts of the older ones, so that no mask is ever
traced back from pixels. Objects are then painted, and the label map is filled with the raster that
pycocotools makes of each polygon: an object that nothing hides is exact to the pixel, one that is
partly hidden is exact but for single pixels along the seam.

Sizes are areas in pixels of the image as it is written, so that "small" means the same (an area
below 32²) whether the longest side is 192 or 640.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry
from tqdm import tqdm

from smallobj_d2.errors import SmallObjError
from smallobj_d2.sizes import MEDIUM_AREA, SMALL_AREA

__all__ = ["CATEGORIES", "SyntheticScene", "make_dataset", "make_scene", "make_splits"]

FloatArray = npt.NDArray[np.floating[Any]]
ByteArray = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.floating[Any]]  # what is computed per pixel: (H, W), or (3, H, W) for RGB

# Ids have gaps, as COCO's have, so that whoever forgets to map them to 0..5 finds out here.
CATEGORIES: tuple[dict[str, Any], ...] = (
    {"id": 1, "name": "ball", "supercategory": "toy"},
    {"id": 3, "name": "star", "supercategory": "sign"},
    {"id": 4, "name": "cross", "supercategory": "sign"},
    {"id": 7, "name": "moon", "supercategory": "sky"},
    {"id": 9, "name": "leaf", "supercategory": "nature"},
    {"id": 12, "name": "bolt", "supercategory": "sky"},
)
_CATEGORY_ID = {c["name"]: c["id"] for c in CATEGORIES}
_NAMES = tuple(_CATEGORY_ID)

_RECIPE_VERSION = 2  # raise it whenever the same seed would give other bytes
_MIN_SIDE = 64
_MAX_OBJECTS = 60  # of one size class in a scene, and in a crowd
_LIGHT = np.array([-0.45, -0.6, 0.66], dtype=np.float32)  # from the upper left, towards the viewer


@dataclass(frozen=True)
class SyntheticScene:
    """One image and its annotations.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        annotations: COCO annotation dicts without `id` and `image_id`, which only a dataset can
            give. `area` is the area of the mask in pixels, `bbox` is XYWH in pixels. Instances
            carry polygons, crowds an uncompressed RLE.
        labels: (H, W) uint16, what was painted where: 0 is background, `i + 1` is
            `annotations[i]`.
    """

    image: ByteArray
    annotations: list[dict[str, Any]]
    labels: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class _Band:
    """A size class of Table 1, and how often and how large its objects are drawn.

    Areas are drawn from the span `draw` with density a^-`power`. Other objects may hide an object
    down to `floor`, so that it stays in its class. A share `presence` of the images has objects of
    the class, `mean_count` of them on average.
    """

    floor: float
    draw: tuple[float, float]
    power: float
    presence: float
    mean_count: float


def _bands(height: int, width: int) -> dict[str, _Band]:
    """Size classes for an image, with counts and areas that have room in it.

    The counts are those asked for: on a small image, where a large object is hard to place, more
    of them have to be asked for than are found in the end.
    """
    room = height * width
    largest = float(np.clip(0.42 * room, 11000, 130000))
    roomy = float(np.interp(math.sqrt(room), [225, 420], [0, 1]))  # 0 at 256 px, 1 from 480 px
    return {
        "large": _Band(1.02 * MEDIUM_AREA, (10000, largest), 1.3, 0.815, 3.3 - 1.25 * roomy),
        "medium": _Band(1.03 * SMALL_AREA, (1120, 8900), 1.45, 0.685, 3.7),
        "small": _Band(32, (44, 985), 1.0, 0.52, 5.4 + 0.8 * roomy),
    }


def make_scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    empty_probability: float = 0.01,
    crowd_probability: float = 0.04,
) -> SyntheticScene:
    """Draw one scene.

    Args:
        rng: the only source of randomness; the scene is a function of its state.
        size: (height, width) in pixels, each at least 64. Large objects (area of 96² and more)
            need about 140.
        empty_probability: chance that the scene has a background and nothing to detect.
        crowd_probability: chance that a cluster of many tiny objects is tried; there is one if
            at least half of it can be seen behind the objects.

    Returns:
        The scene; its annotations are ordered from back to front, crowds first.

    Raises:
        SmallObjError: a side is below 64 pixels.
    """
    height, width = size
    if min(size) < _MIN_SIDE:
        raise SmallObjError(f"a scene needs sides of at least {_MIN_SIDE} pixels, got {size}")
    canvas = _background(rng, height, width)
    objects: list[_Object] = []
    crowd: list[_Object] = []
    if rng.random() >= empty_probability:
        mix = rng.dirichlet(np.full(len(_NAMES), 0.8))  # a scene is about a few categories
        objects = _layout(rng, height, width, mix)
        if rng.random() < crowd_probability:
            crowd = _crowd(rng, height, width, objects)

    labels = np.zeros((height, width), np.uint16)
    for thing in crowd:
        _paint(canvas, labels, thing, 1, rng)
    first = 2 if crowd else 1
    if crowd:  # a crowd is one region, gaps between its members included
        gap = math.ceil(math.sqrt(crowd[0].outline.area)) | 1
        members = (labels > 0).astype(np.uint8)
        region = cv2.morphologyEx(members, cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
        labels[region > 0] = 1
    annotations = []
    for number, thing in enumerate(objects, first):
        _paint(canvas, labels, thing, number, rng)
        annotations.append(_instance(thing, height, width))
    if crowd:
        annotations.insert(0, _crowd_annotation(labels == 1, crowd[0].category))
    return SyntheticScene(_develop(canvas, rng), annotations, labels)


# ---------------------------------------------------------------------------------------------
# Outlines: closed polygons around the origin, about one unit in radius, y down
# ---------------------------------------------------------------------------------------------


def _ball(rng: np.random.Generator) -> FloatArray:
    return _circle(40)


def _star(rng: np.random.Generator) -> FloatArray:
    radii = np.tile([1.0, rng.uniform(0.42, 0.52)], 5)
    return radii[:, None] * _circle(10, start=-np.pi / 2)


def _cross(rng: np.random.Generator) -> FloatArray:
    a = rng.uniform(0.32, 0.42)
    corner = np.array([[a, -1.0], [a, -a], [1.0, -a]])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])  # a quarter turn
    turns = [corner @ np.linalg.matrix_power(quarter, k).T for k in range(4)]
    return np.concatenate(turns)


def _moon(rng: np.random.Generator) -> FloatArray:
    # The outer circle, less a circle of radius r around (c, 0).
    c, r = rng.uniform(0.5, 0.62), rng.uniform(0.78, 0.86)
    x = (1 - r * r + c * c) / (2 * c)  # where the circles meet
    outer, inner = math.acos(x), math.acos((x - c) / r)
    t = np.linspace(outer, 2 * np.pi - outer, 30)
    s = np.linspace(2 * np.pi - inner, inner, 20)[1:-1]
    arcs = [
        np.stack([np.cos(t), np.sin(t)], 1),
        np.stack([c + r * np.cos(s), r * np.sin(s)], 1),
    ]
    return np.concatenate(arcs)


def _leaf(rng: np.random.Generator) -> FloatArray:
    x = np.linspace(-1, 1, 18)
    half = rng.uniform(0.42, 0.55) * (1 - x * x) * (1 - 0.35 * x)  # pointed, fuller at the base
    upper, lower = np.stack([x, -half], 1), np.stack([x, half], 1)[::-1]
    return np.concatenate([upper, lower[1:-1]])


def _bolt(rng: np.random.Generator) -> FloatArray:
    w = rng.uniform(0.9, 1.1)
    return np.array(
        [[0.1, -1.0], [0.75, -1.0], [0.35, -0.3], [0.85, -0.3], [-0.45, 1.0], [-0.1, 0.1],
         [-0.7, 0.1]]
    ) * [w, 1.0]  # fmt: skip


_OUTLINES: dict[str, Callable[[np.random.Generator], FloatArray]] = {
    "ball": _ball,
    "star": _star,
    "cross": _cross,
    "moon": _moon,
    "leaf": _leaf,
    "bolt": _bolt,
}
# How far they lean: the spread of a normal distribution, in radians.
_TILT = {"ball": 3.2, "star": 0.35, "cross": 0.4, "moon": 0.6, "leaf": 0.9, "bolt": 0.35}


def _circle(n: int, *, start: float = 0.0) -> FloatArray:
    t = start + np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(t), np.sin(t)], 1)


# ---------------------------------------------------------------------------------------------
# Layout: which objects, how large, where, and what of them can be seen
# ---------------------------------------------------------------------------------------------


@dataclass
class _Object:
    """A shape in the image.

    Attributes:
        category: name of its category.
        pose: (2, 3) float, maps its own frame (unit outline) to pixels.
        outline: its polygon in pixels, clipped to the image.
        visible: the outline less everything in front of it.
        floor: the area in pixels that must stay visible.
    """

    category: str
    pose: FloatArray
    outline: BaseGeometry
    floor: float
    visible: BaseGeometry = field(init=False)

    def __post_init__(self) -> None:
        self.visible = self.outline


def _layout(rng: np.random.Generator, height: int, width: int, mix: FloatArray) -> list[_Object]:
    """Place the objects of a scene, from back to front.

    Args:
        mix: (6,) probabilities of the categories in this scene.

    Returns:
        Objects that keep their size class and at least half of their area visible.
    """
    bands = _bands(height, width)
    counts = dict.fromkeys(bands, 0)
    while not any(counts.values()):
        counts = {
            name: min(int(rng.geometric(1 / band.mean_count)), _MAX_OBJECTS)
            if rng.random() < band.presence
            else 0
            for name, band in bands.items()
        }
    # Small things are mostly in front of large ones: behind them they would not be seen.
    depth = {"large": 0.0, "medium": 1.0, "small": 2.0}
    order = sorted(
        (depth[name] + rng.normal(0, 0.45), name) for name in bands for _ in range(counts[name])
    )
    flocks = [_Flock.draw(rng, height, width, mix) for _ in range(rng.integers(1, 4))]
    placed: list[_Object] = []
    for _, name in order:
        flock = flocks[rng.integers(len(flocks))] if name == "small" else None
        thing = _place(rng, height, width, bands[name], mix, flock, placed)
        if thing is not None:
            placed.append(thing)
    return placed


@dataclass(frozen=True)
class _Flock:
    """Where small objects gather, and what they mostly are."""

    centre: FloatArray
    spread: float
    category: int

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int, mix: FloatArray) -> _Flock:
        side = math.sqrt(height * width)
        centre = rng.uniform(0.08, 0.92, 2) * (width, height)
        return cls(centre, side * rng.uniform(0.08, 0.25), int(rng.choice(len(_NAMES), p=mix)))


def _place(
    rng: np.random.Generator,
    height: int,
    width: int,
    band: _Band,
    mix: FloatArray,
    flock: _Flock | None,
    placed: list[_Object],
) -> _Object | None:
    """Find room for one more object in front of those placed, and hide what it hides.

    The first shapes ask for free room (mostly), the last ones take what leaves the others half
    visible. None if even that fails: a crowded scene has one object less.
    """
    wish = 0.0 if rng.random() < 0.65 else 0.35
    for allowed in (wish, wish, 0.5, 0.5):
        index = rng.choice(len(_NAMES), p=mix)
        if flock is not None and rng.random() < 0.8:
            index = flock.category
        shape = _draw_shape(rng, _NAMES[index], _power_law(rng, band.draw, band.power))
        for _ in range(5):
            thing = _put(rng, shape, height, width, band.floor, flock)
            hidden = None if thing is None else _hides(thing, placed, allowed)
            if thing is not None and hidden is not None:
                for other, visible in hidden:
                    other.visible = visible
                return thing
    return None


@dataclass(frozen=True)
class _Shape:
    """A shape without a place: `points` is (N, 2) in pixels, `linear` (2, 2) made it so large."""

    category: str
    points: FloatArray
    linear: FloatArray
    area: float


def _draw_shape(rng: np.random.Generator, category: str, area: float) -> _Shape:
    points = _OUTLINES[category](rng)
    stretch = math.exp(rng.normal(0, 0.09))
    turn = _rotation(rng.normal(0, _TILT[category]))
    linear = turn @ np.diag([stretch, 1 / stretch]) * math.sqrt(area / Polygon(points).area)
    return _Shape(category, points @ linear.T, linear, area)


def _put(
    rng: np.random.Generator,
    shape: _Shape,
    height: int,
    width: int,
    floor: float,
    flock: _Flock | None,
) -> _Object | None:
    """The shape somewhere in the image; None if less than `floor` pixels of it are inside."""
    low, high = shape.points.min(0), shape.points.max(0)
    # One in six may stick out of the image by up to 30%; an object wider than the image must.
    overhang = rng.uniform(0, 0.3) * (high - low) if rng.random() < 1 / 6 else -1.0
    first, last = -low - overhang, np.array([width, height]) - high + overhang
    first, last = np.minimum(first, last), np.maximum(first, last)
    if flock is None:
        centre = rng.uniform(first, last)
    else:
        centre = np.clip(rng.normal(flock.centre, flock.spread), first, last)
    outline: BaseGeometry = Polygon(shape.points + centre)
    if (low + centre).min() < 0 or (high + centre > (width, height)).any():
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
        if outline.area < max(floor, 0.6 * shape.area):
            return None
    pose = np.column_stack([shape.linear, centre])
    return _Object(shape.category, pose, outline, floor)


def _hides(
    thing: _Object, placed: list[_Object], allowed: float
) -> list[tuple[_Object, BaseGeometry]] | None:
    """What remains visible of each object that `thing` would hide a part of.

    None if one of them would be hidden by more than the fraction `allowed`, or leave its size
    class.
    """
    hidden = []
    for other in placed:
        if not shapely.intersects(other.visible, thing.outline):
            continue
        if allowed == 0:
            return None
        visible = shapely.difference(other.visible, thing.outline)
        if visible.area < max(other.floor, (1 - allowed) * other.outline.area):
            return None
        hidden.append((other, visible))
    return hidden


def _crowd(
    rng: np.random.Generator, height: int, width: int, objects: list[_Object]
) -> list[_Object]:
    """The members of a crowd, behind all objects; none if less than half of it could be seen."""
    category = _NAMES[rng.integers(len(_NAMES))]
    front = shapely.union_all([o.outline for o in objects])
    radius = math.sqrt(height * width) * rng.uniform(0.09, 0.16)
    best: tuple[float, FloatArray] = (math.inf, np.zeros(2))
    for _ in range(12):
        centre = rng.uniform(0.15, 0.85, 2) * (width, height)
        overlap = shapely.intersection(front, shapely.Point(centre).buffer(radius)).area
        best = min(best, (float(overlap), centre), key=lambda pair: pair[0])
    if best[0] > 0.5 * math.pi * radius**2:
        return []
    area = max(20.0, rng.uniform(0.0006, 0.0014) * height * width)
    count = min(int(0.55 * math.pi * radius**2 / area), _MAX_OBJECTS)
    members = []
    for _ in range(count):
        angle, distance = rng.uniform(0, 2 * np.pi), radius * math.sqrt(rng.random())
        centre = best[1] + distance * np.array([math.cos(angle), 0.8 * math.sin(angle)])
        place = _Flock(centre, 0.0, 0)
        shape = _draw_shape(rng, category, area * rng.uniform(0.7, 1.4))
        members.append(_put(rng, shape, height, width, 1.0, place))
    return [m for m in members if m is not None]


def _power_law(rng: np.random.Generator, span: tuple[float, float], power: float) -> float:
    """One draw from the density a^-power on a span."""
    low, high = span
    if power == 1:
        return float(low * (high / low) ** rng.random())
    q = 1 - power
    return float((low**q + rng.random() * (high**q - low**q)) ** (1 / q))


def _rotation(angle: float) -> FloatArray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


# ---------------------------------------------------------------------------------------------
# Annotations
# ---------------------------------------------------------------------------------------------


def _polygons(shape: BaseGeometry, height: int, width: int) -> list[list[float]]:
    """COCO polygons of a shape: flat [x, y, ...] lists in pixels, without holes and specks.

    Each has at least 3 points and 2 pixels: training fails on less, some hundred steps later.
    """
    polygons = []
    for part in _without_holes(shape):
        points = np.round(shapely.get_coordinates(part.exterior)[:-1], 2)
        points = points[(points != np.roll(points, 1, axis=0)).any(1)]
        if len(points) >= 3:
            polygons.append(points.ravel().tolist())
    if not polygons:
        return []
    pixels = mask_util.area(mask_util.frPyObjects(polygons, height, width))
    return [p for p, n in zip(polygons, pixels, strict=True) if n >= 2]


def _without_holes(shape: BaseGeometry) -> Iterator[Polygon]:
    """Polygons that make up a shape, cut through their holes.

    COCO polygons cannot have holes. The cut is at a whole pixel column, where it costs no pixel.
    """
    for part in shapely.get_parts(shape):
        if not isinstance(part, Polygon):
            continue  # where two outlines only touch
        hole = next((h for h in part.interiors if Polygon(h).area >= 1), None)
        if hole is None:
            yield Polygon(part.exterior)
            continue
        left, _, right, _ = hole.bounds
        cut = float(np.clip(round((left + right) / 2), left, right))
        a, b, c, d = part.bounds
        yield from _without_holes(shapely.intersection(part, shapely.box(a, b, cut, d)))
        yield from _without_holes(shapely.intersection(part, shapely.box(cut, b, c, d)))


def _raster(polygons: Sequence[Sequence[float]], height: int, width: int) -> ByteArray:
    """(H, W) uint8 mask of COCO polygons, by COCO's own rasteriser."""
    rles = mask_util.frPyObjects(list(polygons), height, width)
    mask: ByteArray = mask_util.decode(mask_util.merge(rles))
    return mask


def _instance(thing: _Object, height: int, width: int) -> dict[str, Any]:
    polygons = _polygons(thing.visible, height, width)
    rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    points = np.concatenate(polygons).reshape(-1, 2)
    box = [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]  # the outline's, as COCO
    return _annotation(thing.category, polygons, rle, box, crowd=False)


def _crowd_annotation(mask: npt.NDArray[np.bool_], category: str) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))  # runs alternate, the first is of zeros
    counts = np.diff(edges, prepend=0, append=flat.size).tolist()
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = mask_util.toBbox(rle).tolist()
    return _annotation(category, {"size": list(mask.shape), "counts": counts}, rle, box, crowd=True)


def _annotation(
    category: str, segmentation: Any, rle: Any, box: list[float], *, crowd: bool
) -> dict[str, Any]:
    return {
        "category_id": _CATEGORY_ID[category],
        "bbox": box,
        "area": float(mask_util.area(rle)),
        "segmentation": segmentation,
        "iscrowd": int(crowd),
    }


# ---------------------------------------------------------------------------------------------
# Paint
# ---------------------------------------------------------------------------------------------


def _paint(
    canvas: Plane,
    labels: npt.NDArray[np.uint16],
    thing: _Object,
    number: int,
    rng: np.random.Generator,
) -> None:
    """Paint an object, with its shadow, over a canvas, and its number over the label map.

    Args:
        canvas: (3, H, W) float32, RGB in 0..1; changed.
        labels: (H, W) uint16; changed.
    """
    height, width = labels.shape
    polygons = _polygons(thing.outline, height, width)
    left, top, right, bottom = (round(v) for v in thing.outline.bounds)
    drop = max(1, round(0.07 * math.sqrt(thing.outline.area)))
    reach = 3 * drop + 1
    wide = _Window.clipped(left - 1, top - 1, right + reach, bottom + reach, labels.shape)
    alpha = wide.coverage(polygons)
    # Box filters off their centre: two of them blur and move a shadow in one go.
    shadow, kernel, anchor = alpha, (2 * drop + 1,) * 2, (drop + (drop + 1) // 2,) * 2
    for _ in range(2):
        shadow = np.asarray(cv2.blur(shadow, kernel, None, anchor, cv2.BORDER_CONSTANT), np.float32)
    canvas[wide.slices] *= 1 - rng.uniform(0.35, 0.6) * shadow

    tight = _Window.clipped(left - 1, top - 1, right + 1, bottom + 1, labels.shape)
    patch = canvas[tight.slices]
    alpha = alpha[: patch.shape[-2], : patch.shape[-1]]  # both windows begin in one corner
    inverse = np.linalg.inv(thing.pose[:, :2]).astype(np.float32)
    dx = np.arange(tight.left, tight.right, dtype=np.float32) + np.float32(0.5 - thing.pose[0, 2])
    dy = np.arange(tight.top, tight.bottom, dtype=np.float32) + np.float32(0.5 - thing.pose[1, 2])
    u = inverse[0, 0] * dx + (inverse[0, 1] * dy)[:, None]
    v = inverse[1, 0] * dx + (inverse[1, 1] * dy)[:, None]
    base, accent = _colours(thing.category, rng)
    mixture, light = _TEXTURES[thing.category](u, v, rng)
    patch += alpha * (light * (base + mixture * (accent - base)) - patch)
    mask = _raster(polygons, height, width)
    labels[tight.slices][mask[tight.slices] > 0] = number


@dataclass(frozen=True)
class _Window:
    """A rectangle of whole pixels inside an image."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def clipped(
        cls, left: int, top: int, right: int, bottom: int, shape: tuple[int, ...]
    ) -> _Window:
        return cls(max(left, 0), max(top, 0), min(right, shape[1]), min(bottom, shape[0]))

    @property
    def slices(self) -> Any:
        """Index of its pixels in the last two axes of an array."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    def coverage(self, polygons: Sequence[Sequence[float]]) -> Plane:
        """(H, W) float32 in 0..1: the part of each pixel that is inside, for smooth edges."""
        fine, bits = 4, 4  # samples to a pixel side, and OpenCV's fixed point
        width, height = self.right - self.left, self.bottom - self.top
        cover = np.zeros((fine * height, fine * width), np.uint8)
        for polygon in polygons:
            points = np.reshape(polygon, (-1, 2)) - (self.left, self.top)
            fixed = np.rint((fine * points - 0.5) * (1 << bits)).astype(np.int32)
            cv2.fillPoly(cover, [fixed], 255, cv2.LINE_8, bits)
        small = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) / np.float32(255)


# Hue in degrees, its spread, saturation and value of the base colour, hue offset of the accent.
_PALETTE: dict[str, tuple[float, float, float, float, float]] = {
    "ball": (5, 14, 0.85, 0.9, 190),
    "star": (48, 9, 0.85, 0.95, -14),
    "cross": (212, 16, 0.8, 0.85, 180),
    "moon": (285, 20, 0.35, 0.92, 8),
    "leaf": (115, 22, 0.75, 0.7, -30),
    "bolt": (325, 14, 0.8, 0.95, -60),
}


def _colours(category: str, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """A category's base and accent colour, with the variation of one object."""
    hue, spread, saturation, value, offset = _PALETTE[category]
    # One in eight wears a colour of its own, so that colour alone does not tell the category.
    hue = rng.uniform(0, 360) if rng.random() < 1 / 8 else rng.normal(hue, spread)
    saturation = float(np.clip(saturation + rng.normal(0, 0.08), 0.1, 1))
    value = float(np.clip(value + rng.normal(0, 0.07), 0.45, 1))
    base = _rgb(hue / 360, saturation, value)
    accent = _rgb((hue + offset) / 360, 0.6 * saturation, min(1, 1.1 * value))
    return base, accent


def _rgb(hue: float, saturation: float, value: float) -> Plane:
    """(3, 1, 1) float32 in 0..1, to go with planes; a hue of 1 is a full turn."""
    rgb = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return np.array(rgb, np.float32)[:, None, None]


Texture = tuple[Plane, Plane]  # how much of the accent colour, and how much light


def _ball_texture(u: Plane, v: Plane, rng: np.random.Generator) -> Texture:
    panels = np.sin(3 * np.arctan2(v, u) + rng.uniform(0, 6))
    z = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    lambert = np.clip(_LIGHT[0] * u + _LIGHT[1] * v + _LIGHT[2] * z, 0, 1)
    return _step(4 * panels), 0.5 + 0.6 * lambert + 0.5 * lambert**24


def _star_texture(u: Plane, v: Plane, rng: np.random.Generator) -> Texture:
    r = np.hypot(u, v)
    facet = _step(12 * r * np.sin(5 * np.arctan2(v, u) + np.pi / 2))  # two to an arm
    return np.clip(r, 0, 1), 1.05 - 0.3 * facet


def _cross_texture(u: Plane, v: Plane, rng: np.random.Generator) -> Texture:
    k = rng.uniform(5.5, 7.5)
    stripes = np.sin(k * (u + v) + rng.uniform(0, 6))
    return 0.9 * _step(4 * stripes), 1 - 0.12 * v


def _moon_texture(u: Plane, v: Plane, rng: np.random.Generator) -> Texture:
    craters = np.zeros_like(u)
    for _ in range(7):
        angle, radius = rng.uniform(0.8, 2 * np.pi - 0.8), rng.uniform(0.06, 0.17)
        d = np.hypot(u - 0.75 * math.cos(angle), v - 0.75 * math.sin(angle))
        craters = np.maximum(craters, _step(6 * (1 - d / radius)))
    return np.clip(-u, 0, 1), 1.05 + 0.15 * u - 0.3 * craters


def _leaf_texture(u: Plane, v: Plane, rng: np.random.Generator) -> Texture:
    rib = _step(2.5 - 38 * np.abs(v))
    veins = _step(5 * (np.sin(rng.uniform(11, 14) * (u - 0.8 * np.abs(v))) - 0.75))
    return np.maximum(rib, 0.7 * veins), 0.95 + 0.25 * np.sign(v) * (np.abs(v) - 0.5)


def _bolt_texture(u: Plane, v: Plane, rng: np.random.Generator) -> Texture:
    return np.clip(0.5 - 0.6 * v, 0, 1), 1 + 0.1 * np.sin(5 * u + rng.uniform(0, 6))


_TEXTURES: dict[str, Callable[[Plane, Plane, np.random.Generator], Texture]] = {
    "ball": _ball_texture,
    "star": _star_texture,
    "cross": _cross_texture,
    "moon": _moon_texture,
    "leaf": _leaf_texture,
    "bolt": _bolt_texture,
}


def _step(x: Plane) -> Plane:
    """0 to 1, soft around zero."""
    step: Plane = np.clip(0.5 + 0.5 * x, 0, 1)
    return step


# ---------------------------------------------------------------------------------------------
# Background and camera
# ---------------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, height: int, width: int) -> Plane:
    """(3, H, W) float32, RGB in 0..1: muted colours, a pattern, and clutter."""
    hue, value = rng.random(), rng.uniform(0.42, 0.95)
    colours = [
        _rgb(
            hue + rng.normal(0, 0.06),
            rng.uniform(0.05, 0.38),
            float(np.clip(value + rng.normal(0, 0.14), 0.15, 0.95)),
        )
        for _ in range(3)
    ]
    broad, fine = _noise(rng, height, width, 3), _noise(rng, height, width, 12)
    canvas = colours[0] + broad * (colours[1] - colours[0])
    canvas += rng.uniform(0.2, 0.8) * _step(3 * (fine - 0.5)) * (colours[2] - canvas)
    kind = rng.choice(["plain", "waves", "strokes", "tiles", "horizon"])
    if kind == "waves":
        ys, xs = np.mgrid[:height, :width].astype(np.float32)
        turn = _rotation(rng.uniform(0, np.pi))[0].astype(np.float32)
        phase = (turn[0] * xs + turn[1] * ys) * np.float32(2 * np.pi / rng.uniform(9, 40))
        canvas *= 1 + rng.uniform(0.04, 0.14) * np.sin(phase + 9 * broad)
    elif kind == "strokes":
        canvas *= _strokes(height, width, rng)
    elif kind == "tiles":
        canvas *= _tiles(height, width, broad, rng)
    elif kind == "horizon":
        line = rng.uniform(0.3, 0.6) * height + 0.15 * height * (broad[:1] - 0.5)
        sky = np.clip(line - np.arange(height)[:, None], 0, 1)
        tint = _rgb(rng.uniform(0.5, 0.65), 0.25, 0.85)
        canvas += (0.75 * sky).astype(np.float32) * (tint - canvas)
    for _ in range(rng.integers(2, 10)):
        _distractor(canvas, rng)
    return canvas


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Plane:
    """(H, W) float32, four octaves of smooth noise, scaled to 0..1; `cells` in the first."""
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        n = cells << octave
        grid = rng.random((n, n), dtype=np.float32)
        total += 0.55**octave * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low)


def _strokes(height: int, width: int, rng: np.random.Generator) -> Plane:
    """(H, W) float32, around 1: blades of grass, or fur; short lines, lighter and darker."""
    relief = np.ones((height, width), np.float32)
    length, leaning = rng.uniform(5, 16), rng.uniform(-np.pi, 0)
    for strength in (-0.3, 0.25):
        count = height * width // int(rng.integers(50, 110))
        angles = rng.normal(leaning, 0.3, count)
        start = rng.uniform(0, 1, (count, 2)) * (width, height)
        end = start + length * np.stack([np.cos(angles), np.sin(angles)], 1)
        layer = np.zeros((height, width), np.uint8)
        lines = np.rint(16 * np.stack([start, end], 1)).astype(np.int32)
        cv2.polylines(layer, list(lines), False, 255, 1, cv2.LINE_AA, 4)
        relief += np.float32(strength * rng.uniform(0.4, 1) / 255) * layer
    return relief


def _tiles(height: int, width: int, bend: Plane, rng: np.random.Generator) -> Plane:
    """(H, W) float32, around 1: paving of uneven stones; `bend` moves its joints."""
    side, turn = rng.uniform(18, 60), _rotation(rng.uniform(0, np.pi / 2))
    ys, xs = np.mgrid[:height, :width].astype(np.float32) / side
    bend = 0.8 * bend
    i = np.float32(turn[0, 0]) * xs + np.float32(turn[0, 1]) * ys + bend
    j = np.float32(turn[1, 0]) * xs + np.float32(turn[1, 1]) * ys + bend
    shade = rng.uniform(0.88, 1.1, (32, 32)).astype(np.float32)
    row, column = np.floor(i), np.floor(j)
    edge = np.maximum(np.abs(i - row - 0.5), np.abs(j - column - 0.5))
    relief: Plane = shade[row.astype(int) % 32, column.astype(int) % 32]
    relief *= 1 - rng.uniform(0.1, 0.3) * _step((edge - 0.47) * side)
    return relief


def _distractor(canvas: Plane, rng: np.random.Generator) -> None:
    """Paint a shape of no category: a box, a pole, a polygon or a blob, in a muted colour."""
    height, width = canvas.shape[1:]
    radius = min(height, width) * rng.uniform(0.02, 0.16)
    kind = rng.choice(["box", "pole", "polygon", "blob"])
    if kind == "box":
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.4, 1)]
    elif kind == "pole":
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [4, 0.12]
    elif kind == "polygon":
        points = _circle(int(rng.choice([3, 6]))) * [1, rng.uniform(0.6, 1)]
    else:
        wobble = 1 + 0.25 * np.sin(np.arange(24) * (np.pi / 12) * 3 + rng.uniform(0, 6))
        points = _circle(24) * (wobble * rng.uniform(0.6, 1))[:, None]
    points = points @ _rotation(rng.uniform(0, np.pi)).T * radius
    points += rng.uniform(0, 1, 2) * (width, height)
    colour = _rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.2, 0.85))
    (left, top), (right, bottom) = points.min(0).astype(int) - 1, points.max(0).astype(int) + 2
    window = _Window.clipped(left, top, right, bottom, canvas.shape[1:])
    patch = canvas[window.slices]
    alpha = rng.uniform(0.45, 0.9) * window.coverage([points.ravel().tolist()])
    patch += alpha * (colour - patch)


def _develop(canvas: Plane, rng: np.random.Generator) -> ByteArray:
    """What a camera makes of the canvas: uneven light, a soft lens, sensor noise, 8 bits."""
    height, width = canvas.shape[1:]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.22)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)
    light = 255 * (1 + strength * (math.cos(angle) * xs + math.sin(angle) * ys))
    light -= 20 * (xs * xs + ys * ys)
    sharp = cv2.merge(list(canvas * light))  # OpenCV wants (H, W, 3)
    picture = np.asarray(cv2.GaussianBlur(sharp, (0, 0), rng.uniform(0.35, 0.75)), np.float32)
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    picture += rng.uniform(1.5, 5.0) * noise
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Datasets on disk
# ---------------------------------------------------------------------------------------------


def make_dataset(
    root: str | Path,
    name: str,
    num_images: int,
    *,
    seed: int,
    size: int = 256,
    progress: bool = True,
) -> Path:
    """Write `root/name/images/*.jpg` and `root/name/annotations.json`, unless they are there.

    Image `i` is a function of `(seed, i)` and `size` alone: a longer dataset begins with a
    shorter one, byte for byte. The JSON is written last and at once, and says in its `info` what
    it was made from, so that a run that was killed leaves nothing that counts as a dataset.

    Args:
        root: folder of datasets; made if absent.
        name: name of the dataset, one path component.
        num_images: how many images, at least 0.
        seed: at least 0.
        size: longest side of every image in pixels; the other is 75% to 100% of it.
        progress: show a progress bar.

    Returns:
        Path of the JSON.

    Raises:
        SmallObjError: an argument is out of range, or the JSON is there and is not one that this
            function wrote; it is left alone.
    """
    if num_images < 0 or seed < 0:
        raise SmallObjError(f"num_images and seed cannot be negative: {num_images}, {seed}")
    if round(0.75 * size) < _MIN_SIDE:
        raise SmallObjError(f"size must be at least {math.ceil(_MIN_SIDE / 0.75)} px, got {size}")
    recipe = {
        "generator": "smallobj_d2.scenes",
        "version": _RECIPE_VERSION,
        "num_images": num_images,
        "seed": seed,
        "size": size,
    }
    folder = Path(root) / name
    json_path = folder / "annotations.json"
    names = [f"{i:012d}.jpg" for i in range(1, num_images + 1)]
    if json_path.exists():
        found = _recipe_of(json_path)
        if found is None:
            raise SmallObjError(f"{json_path} is not a generated dataset: choose another folder")
        if found == recipe and all((folder / "images" / n).exists() for n in names):
            return json_path
        json_path.unlink()
        for stale in sorted((folder / "images").glob("[0-9]" * 12 + ".jpg")):
            stale.unlink()
    (folder / "images").mkdir(parents=True, exist_ok=True)

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, file_name in enumerate(tqdm(names, desc=name, unit="img", disable=not progress)):
        rng = np.random.default_rng((seed, i))
        scene = make_scene(rng, _image_size(rng, size))
        _write_jpeg(folder / "images" / file_name, scene.image)
        height, width = scene.labels.shape
        images.append({"id": i + 1, "file_name": file_name, "width": width, "height": height})
        for annotation in scene.annotations:
            ids = {"id": len(annotations) + 1, "image_id": i + 1}
            annotations.append(ids | annotation)
    content = {
        "info": {"description": f"procedural scenes: {name}", "recipe": recipe},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": _CC0}],
        "images": images,
        "annotations": annotations,
        "categories": list(CATEGORIES),
    }
    partial = json_path.with_suffix(".json.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, json_path)
    return json_path


_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"


def make_splits(
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    seed: int,
    size: int = 256,
    progress: bool = True,
) -> dict[str, Path]:
    """Make `scenes_train` and `scenes_val`; see `make_dataset` for the arguments.

    Returns:
        Path of the JSON by name of the split.
    """
    # Even seeds for training, odd ones for validation: no two seeds share an image between them.
    return {
        "scenes_train": make_dataset(
            root, "scenes_train", num_train, seed=2 * seed, size=size, progress=progress
        ),
        "scenes_val": make_dataset(
            root, "scenes_val", num_val, seed=2 * seed + 1, size=size, progress=progress
        ),
    }


def _image_size(rng: np.random.Generator, longest: int) -> tuple[int, int]:
    """(height, width) of an image; two in three are landscape."""
    shorter = round(longest * rng.uniform(0.75, 1.0))
    return (shorter, longest) if rng.random() < 2 / 3 else (longest, shorter)


def _recipe_of(json_path: Path) -> dict[str, Any] | None:
    try:
        recipe = json.loads(json_path.read_text(encoding="utf-8"))["info"]["recipe"]
    except (ValueError, KeyError, TypeError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _write_jpeg(path: Path, image: ByteArray) -> None:
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])
    if not ok:
        raise OSError(f"OpenCV could not encode {path}")
    path.write_bytes(data.tobytes())
