"""Outlines of synthetic objects: closed polygons around the origin, of about unit radius."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from shapely import Polygon

FloatArray = npt.NDArray[np.floating[Any]]

ByteArray = npt.NDArray[np.uint8]

# Ids have gaps, as COCO's have, so that whoever forgets to map them to 0..5 finds out here.
CATEGORIES: tuple[dict[str, Any], ...] = (
    {"id": 1, "name": "ball", "supercategory": "toy"},
    {"id": 3, "name": "star", "supercategory": "sign"},
    {"id": 4, "name": "cross", "supercategory": "sign"},
    {"id": 7, "name": "moon", "supercategory": "sky"},
    {"id": 9, "name": "leaf", "supercategory": "nature"},
    {"id": 12, "name": "bolt", "supercategory": "sky"},
)

CATEGORY_ID = {c["name"]: c["id"] for c in CATEGORIES}

NAMES = tuple(CATEGORY_ID)


def _ball(rng: np.random.Generator) -> FloatArray:
    return circle(40)


def _star(rng: np.random.Generator) -> FloatArray:
    radii = np.tile([1.0, rng.uniform(0.42, 0.52)], 5)
    return radii[:, None] * circle(10, start=-np.pi / 2)


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


def circle(n: int, *, start: float = 0.0) -> FloatArray:
    t = start + np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(t), np.sin(t)], 1)


@dataclass(frozen=True)
class Shape:
    """A shape without a place: `points` is (N, 2) in pixels, `linear` (2, 2) made it so large."""

    category: str
    points: FloatArray
    linear: FloatArray
    area: float


def draw_shape(rng: np.random.Generator, category: str, area: float) -> Shape:
    points = _OUTLINES[category](rng)
    stretch = math.exp(rng.normal(0, 0.09))
    turn = rotation(rng.normal(0, _TILT[category]))
    linear = turn @ np.diag([stretch, 1 / stretch]) * math.sqrt(area / Polygon(points).area)
    return Shape(category, points @ linear.T, linear, area)


def rotation(angle: float) -> FloatArray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])
