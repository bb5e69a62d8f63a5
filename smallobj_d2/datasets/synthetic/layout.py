"""Which synthetic objects a scene has, how large, where, and what of them can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from smallobj_d2.datasets.synthetic.shapes import (
    CATEGORY_ID,
    NAMES,
    ByteArray,
    FloatArray,
    Shape,
    draw_shape,
)
from smallobj_d2.masks import outlines
from smallobj_d2.sizes import MEDIUM_AREA, SMALL_AREA

_MAX_OBJECTS = 60  # of one size class in a scene, and in a crowd


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


@dataclass
class SceneObject:
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


def place_objects(
    rng: np.random.Generator, height: int, width: int, mix: FloatArray
) -> list[SceneObject]:
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
    placed: list[SceneObject] = []
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
        return cls(centre, side * rng.uniform(0.08, 0.25), int(rng.choice(len(NAMES), p=mix)))


def _place(
    rng: np.random.Generator,
    height: int,
    width: int,
    band: _Band,
    mix: FloatArray,
    flock: _Flock | None,
    placed: list[SceneObject],
) -> SceneObject | None:
    """Find room for one more object in front of those placed, and hide what it hides.

    The first shapes ask for free room (mostly), the last ones take what leaves the others half
    visible. None if even that fails: a crowded scene has one object less.
    """
    wish = 0.0 if rng.random() < 0.65 else 0.35
    for allowed in (wish, wish, 0.5, 0.5):
        index = rng.choice(len(NAMES), p=mix)
        if flock is not None and rng.random() < 0.8:
            index = flock.category
        shape = draw_shape(rng, NAMES[index], _power_law(rng, band.draw, band.power))
        for _ in range(5):
            thing = _put(rng, shape, height, width, band.floor, flock)
            hidden = None if thing is None else _hides(thing, placed, allowed)
            if thing is not None and hidden is not None:
                for other, visible in hidden:
                    other.visible = visible
                return thing
    return None


def _put(
    rng: np.random.Generator,
    shape: Shape,
    height: int,
    width: int,
    floor: float,
    flock: _Flock | None,
) -> SceneObject | None:
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
    return SceneObject(shape.category, pose, outline, floor)


def _hides(
    thing: SceneObject, placed: list[SceneObject], allowed: float
) -> list[tuple[SceneObject, BaseGeometry]] | None:
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


def place_crowd(
    rng: np.random.Generator, height: int, width: int, objects: list[SceneObject]
) -> list[SceneObject]:
    """The members of a crowd, behind all objects; none if less than half of it could be seen."""
    category = NAMES[rng.integers(len(NAMES))]
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
        shape = draw_shape(rng, category, area * rng.uniform(0.7, 1.4))
        members.append(_put(rng, shape, height, width, 1.0, place))
    return [m for m in members if m is not None]


def _power_law(rng: np.random.Generator, span: tuple[float, float], power: float) -> float:
    """One draw from the density a^-power on a span."""
    low, high = span
    if power == 1:
        return float(low * (high / low) ** rng.random())
    q = 1 - power
    return float((low**q + rng.random() * (high**q - low**q)) ** (1 / q))


def polygons_of(shape: BaseGeometry, height: int, width: int) -> list[list[float]]:
    """COCO polygons of a shape: flat [x, y, ...] lists in pixels, without holes and specks.

    Each has at least 3 points and 2 pixels: training fails on less, some hundred steps later.
    """
    polygons = []
    parts = chain.from_iterable(map(outlines.without_holes, outlines.polygons_of(shape)))
    for part in parts:
        points = np.round(shapely.get_coordinates(part.exterior)[:-1], 2)
        points = points[(points != np.roll(points, 1, axis=0)).any(1)]
        if len(points) >= 3:
            polygons.append(points.ravel().tolist())
    if not polygons:
        return []
    pixels = mask_util.area(mask_util.frPyObjects(polygons, height, width))
    return [p for p, n in zip(polygons, pixels, strict=True) if n >= 2]


def rasterize(polygons: Sequence[Sequence[float]], height: int, width: int) -> ByteArray:
    """(H, W) uint8 mask of COCO polygons, by COCO's own rasteriser."""
    rles = mask_util.frPyObjects(list(polygons), height, width)
    mask: ByteArray = mask_util.decode(mask_util.merge(rles))
    return mask


def instance_annotation(thing: SceneObject, height: int, width: int) -> dict[str, Any]:
    polygons = polygons_of(thing.visible, height, width)
    points = np.concatenate(polygons).reshape(-1, 2)
    return {
        "category_id": CATEGORY_ID[thing.category],
        "bbox": [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()],  # the outline's
        "area": float(rasterize(polygons, height, width).sum()),
        "segmentation": polygons,
        "iscrowd": 0,
    }


def crowd_annotation(mask: npt.NDArray[np.bool_], category: str) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))  # runs alternate, the first is of zeros
    counts = np.diff(edges, prepend=0, append=flat.size).tolist()
    return {
        "category_id": CATEGORY_ID[category],
        "bbox": list(map(float, cv2.boundingRect(mask.astype(np.uint8)))),
        "area": float(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": counts},
        "iscrowd": 1,
    }
