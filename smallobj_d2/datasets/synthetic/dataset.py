"""Synthetic scenes in COCO format: a dataset with exact masks that nobody has to download.

The demo, the quick experiments and the tests need images whose object sizes are spread as in
Table 2 of the paper: many small objects, gathered in half of the images, beside a few large ones
that own nearly all of the annotated area. `make_scene` draws one such image, `make_dataset` writes
a folder of them.

A scene is geometry first, pixels second. Objects are polygons, painted from back to front; what a
newer one hides is subtracted from the visible parts of the older ones, so that no mask is ever
traced back from pixels. Objects are then painted, and the label map is filled with the raster that
pycocotools makes of each polygon: an object that nothing hides is exact to the pixel, one that is
partly hidden is exact but for single pixels along the seam.

Sizes are areas in pixels of the image as it is written, so that "small" means the same (an area
below 32²) whether the longest side is 192 or 640.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from smallobj_d2.datasets.synthetic.layout import (
    SceneObject,
    crowd_annotation,
    instance_annotation,
    place_crowd,
    place_objects,
)
from smallobj_d2.datasets.synthetic.paint import develop, paint_background, paint_object
from smallobj_d2.datasets.synthetic.shapes import CATEGORIES, NAMES, ByteArray
from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import writing

_RECIPE_VERSION = 2  # raise it whenever the same seed would give other bytes

_MIN_SIDE = 64


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
    canvas = paint_background(rng, height, width)
    objects: list[SceneObject] = []
    crowd: list[SceneObject] = []
    if rng.random() >= empty_probability:
        mix = rng.dirichlet(np.full(len(NAMES), 0.8))  # a scene is about a few categories
        objects = place_objects(rng, height, width, mix)
        if rng.random() < crowd_probability:
            crowd = place_crowd(rng, height, width, objects)

    labels = np.zeros((height, width), np.uint16)
    for thing in crowd:
        paint_object(canvas, labels, thing, 1, rng)
    first = 2 if crowd else 1
    if crowd:  # a crowd is one region, gaps between its members included
        gap = math.ceil(math.sqrt(crowd[0].outline.area)) | 1
        members = (labels > 0).astype(np.uint8)
        region = cv2.morphologyEx(members, cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
        labels[region > 0] = 1
    annotations = []
    for number, thing in enumerate(objects, first):
        paint_object(canvas, labels, thing, number, rng)
        annotations.append(instance_annotation(thing, height, width))
    if crowd:
        annotations.insert(0, crowd_annotation(labels == 1, crowd[0].category))
    return SyntheticScene(develop(canvas, rng), annotations, labels)


def make_dataset(
    root: str | Path,
    name: str,
    num_images: int,
    *,
    seed: int,
    size: int = 256,
    progress: bool = True,
    each: Callable[..., Iterable[Any]] = map,
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
        each: makes the images, in order: `map`, or that of a pool of processes.

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
    paths = [folder / "images" / n for n in names]
    made = each(partial(_make_image, seed, size), range(num_images), paths)
    bar = tqdm(made, desc=name, total=num_images, unit="img", disable=not progress or None)
    for i, (image, found) in enumerate(bar, 1):
        images.append({"id": i, **image})
        annotations += [
            {"id": len(annotations) + n, "image_id": i, **a} for n, a in enumerate(found, 1)
        ]
    content = {
        "info": {"description": f"procedural scenes: {name}", "recipe": recipe},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": _CC0}],
        "images": images,
        "annotations": annotations,
        "categories": list(CATEGORIES),
    }
    with writing(json_path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    return json_path


def _make_image(
    seed: int, size: int, i: int, path: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write image `i`; what the JSON says of it and of its instances, but for ids."""
    rng = np.random.default_rng((seed, i))
    scene = make_scene(rng, _image_size(rng, size))
    _write_jpeg(path, scene.image)
    height, width = scene.labels.shape
    return {"file_name": path.name, "width": width, "height": height}, scene.annotations


_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"


def make_splits(
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    seed: int,
    size: int = 256,
    progress: bool = True,
    each: Callable[..., Iterable[Any]] = map,
) -> dict[str, Path]:
    """Make `scenes_train` and `scenes_val`; see `make_dataset` for the arguments.

    Returns:
        Path of the JSON by name of the split.
    """
    # Even seeds for training, odd ones for validation: no two seeds share an image between them.
    make = partial(make_dataset, root, size=size, progress=progress, each=each)
    return {
        "scenes_train": make("scenes_train", num_train, seed=2 * seed),
        "scenes_val": make("scenes_val", num_val, seed=2 * seed + 1),
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
