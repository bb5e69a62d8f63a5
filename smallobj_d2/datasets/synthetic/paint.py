"""Pixels of synthetic scenes: objects with their shadows, backgrounds, and a camera."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from smallobj_d2.datasets.synthetic.layout import SceneObject, polygons_of, rasterize
from smallobj_d2.datasets.synthetic.shapes import ByteArray, circle, rotation
from smallobj_d2.masks.shapes import Window

Plane = npt.NDArray[np.floating[Any]]  # what is computed per pixel: (H, W), or (3, H, W) for RGB

_LIGHT = np.array([-0.45, -0.6, 0.66], dtype=np.float32)  # from the upper left, towards the viewer


def paint_object(
    canvas: Plane,
    labels: npt.NDArray[np.uint16],
    thing: SceneObject,
    number: int,
    rng: np.random.Generator,
) -> None:
    """Paint an object, with its shadow, over a canvas, and its number over the label map.

    Args:
        canvas: (3, H, W) float32, RGB in 0..1; changed.
        labels: (H, W) uint16; changed.
    """
    height, width = labels.shape
    polygons = polygons_of(thing.outline, height, width)
    left, top, right, bottom = (round(v) for v in thing.outline.bounds)
    drop = max(1, round(0.07 * math.sqrt(thing.outline.area)))
    reach = 3 * drop + 1
    wide = Window.around(left - 1, top - 1, right + reach, bottom + reach).clipped(width, height)
    alpha = _coverage(wide, polygons)
    # Box filters off their centre: two of them blur and move a shadow in one go.
    shadow, kernel, anchor = alpha, (2 * drop + 1,) * 2, (drop + (drop + 1) // 2,) * 2
    for _ in range(2):
        shadow = np.asarray(cv2.blur(shadow, kernel, None, anchor, cv2.BORDER_CONSTANT), np.float32)
    canvas[:, *wide.slices] *= 1 - rng.uniform(0.35, 0.6) * shadow

    tight = Window.around(left - 1, top - 1, right + 1, bottom + 1).clipped(width, height)
    patch = canvas[:, *tight.slices]
    alpha = alpha[: patch.shape[-2], : patch.shape[-1]]  # both windows begin in one corner
    inverse = np.linalg.inv(thing.pose[:, :2]).astype(np.float32)
    columns = np.arange(tight.x, tight.x + tight.width, dtype=np.float32)
    rows = np.arange(tight.y, tight.y + tight.height, dtype=np.float32)
    dx = columns + np.float32(0.5 - thing.pose[0, 2])
    dy = rows + np.float32(0.5 - thing.pose[1, 2])
    u = inverse[0, 0] * dx + (inverse[0, 1] * dy)[:, None]
    v = inverse[1, 0] * dx + (inverse[1, 1] * dy)[:, None]
    base, accent = _colours(thing.category, rng)
    mixture, light = _TEXTURES[thing.category](u, v, rng)
    patch += alpha * (light * (base + mixture * (accent - base)) - patch)
    mask = rasterize(polygons, height, width)
    tight.of(labels)[tight.of(mask) > 0] = number


def _coverage(window: Window, polygons: Sequence[Sequence[float]]) -> Plane:
    """(H, W) float32 in 0..1: the part of each pixel that is inside, for smooth edges."""
    fine, bits = 4, 4  # samples to a pixel side, and OpenCV's fixed point
    cover = np.zeros((fine * window.height, fine * window.width), np.uint8)
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2)) - (window.x, window.y)
        fixed = np.rint((fine * points - 0.5) * (1 << bits)).astype(np.int32)
        cv2.fillPoly(cover, [fixed], 255, cv2.LINE_8, bits)
    small = cv2.resize(cover, (window.width, window.height), interpolation=cv2.INTER_AREA)
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


def paint_background(rng: np.random.Generator, height: int, width: int) -> Plane:
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
        turn = rotation(rng.uniform(0, np.pi))[0].astype(np.float32)
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
    side, turn = rng.uniform(18, 60), rotation(rng.uniform(0, np.pi / 2))
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
        points = circle(int(rng.choice([3, 6]))) * [1, rng.uniform(0.6, 1)]
    else:
        wobble = 1 + 0.25 * np.sin(np.arange(24) * (np.pi / 12) * 3 + rng.uniform(0, 6))
        points = circle(24) * (wobble * rng.uniform(0.6, 1))[:, None]
    points = points @ rotation(rng.uniform(0, np.pi)).T * radius
    points += rng.uniform(0, 1, 2) * (width, height)
    colour = _rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.2, 0.85))
    (left, top), (right, bottom) = points.min(0).astype(int) - 1, points.max(0).astype(int) + 2
    window = Window.around(left, top, right, bottom).clipped(width, height)
    patch = canvas[:, *window.slices]
    alpha = rng.uniform(0.45, 0.9) * _coverage(window, [points.ravel().tolist()])
    patch += alpha * (colour - patch)


def develop(canvas: Plane, rng: np.random.Generator) -> ByteArray:
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
