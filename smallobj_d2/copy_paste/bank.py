"""Beyond the paper: small objects of other images, cut out and kept in memory.

Pasting objects of another image at each draw would mean reading that image, too. The bank has them
at hand: of a number of training images the objects that may be copied, each with the pixels around
it. It is a few arrays, which forked loader workers share; nothing is read after it is made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from smallobj_d2.copy_paste.blend import Image
from smallobj_d2.copy_paste.choose import SourceRule
from smallobj_d2.copy_paste.labels import moved_annotation
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.datasets.records import PackedRecords
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import Annotation, Shape, Window, shape_of

RIM = 6
"""Pixels kept around an object; a softened edge shows some of them."""

ReadImage = Callable[[Mapping[str, Any]], NDArray[np.uint8] | None]
"""A dataset dict to its image, (H, W, 3) uint8; or to None, to leave it out."""


class Cutout(NamedTuple):
    """An object with the pixels around it."""

    pixels: Image
    """(h, w, 3) uint8, not to be changed."""
    annotation: Annotation
    """In coordinates of these pixels."""
    origin: dict[str, Any]
    """``image``, the id of the image that it comes from, and ``source``, that of its annotation."""

    def shape(self) -> Shape:
        """Its shape, in coordinates of these pixels."""
        return shape_of(self.annotation, *self.pixels.shape[:2])


class ObjectBank:
    """Objects that may be copied, by the image that they come from.

    Args:
        donors: of each image its objects, one at least.
    """

    def __init__(self, donors: Sequence[Sequence[Cutout]]) -> None:
        if not donors or not all(donors):
            raise SmallObjError("A bank needs objects: an image at least, and of each one object.")
        cutouts = [cutout for donor in donors for cutout in donor]
        self._ends = np.cumsum([len(donor) for donor in donors])
        self._sizes = np.array([c.pixels.shape[:2] for c in cutouts], dtype=np.int32)
        self._pixel_ends = np.cumsum([c.pixels.size for c in cutouts])
        self._pixels = np.concatenate([c.pixels.ravel() for c in cutouts])
        self._pixels.flags.writeable = False
        self._labels = PackedRecords([{"a": c.annotation, "o": c.origin} for c in cutouts])

    @property
    def images(self) -> int:
        """How many images it has objects of."""
        return len(self._ends)

    def __len__(self) -> int:
        """How many objects it has."""
        return len(self._sizes)

    @property
    def nbytes(self) -> int:
        """The memory that it takes, about."""
        return self._pixels.nbytes + self._labels.nbytes

    def of_image(self, i: int) -> range:
        """Which objects come from the same image.

        Args:
            i: which of its images, 0 to ``images - 1``.
        """
        return range(int(self._ends[i - 1]) if i else 0, int(self._ends[i]))

    def __getitem__(self, index: int) -> Cutout:
        """One object."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        height, width = self._sizes[index].tolist()
        end = int(self._pixel_ends[index])
        pixels = self._pixels[end - 3 * height * width : end].reshape(height, width, 3)
        label = self._labels[index]
        return Cutout(pixels, label["a"], label["o"])


def build_bank(
    records: Sequence[Mapping[str, Any]],
    rule: SourceRule,
    read: ReadImage,
    rng: np.random.Generator,
    *,
    images: int,
    progress: bool = False,
) -> ObjectBank:
    """Cut the objects that may be copied out of images chosen at random.

    Args:
        records: N dataset dicts.
        rule: which objects may be copied.
        read: see `ReadImage`.
        rng: chooses the images.
        images: how many, at most.
        progress: show a progress bar on a terminal.

    Raises:
        SmallObjError: if no image has an object that may be copied.
    """
    donors: list[list[Cutout]] = []
    off = None if progress else True  # None: where it is no terminal
    with tqdm(total=images, desc="object bank", unit="img", disable=off) as bar:
        for index in rng.permutation(len(records)).tolist():
            if len(donors) == images:
                break
            record = records[index]
            scene = Scene(record["annotations"], record["height"], record["width"])
            chosen = list(rule.candidates(scene))
            image = read(record) if chosen else None
            if image is not None:
                donors.append([_cut_out(image, scene, i, record) for i in chosen])
                bar.update()
        bar.total = len(donors)
    if not donors:
        raise SmallObjError("No object of the training images may be copied: there is no bank.")
    return ObjectBank(donors)


def _cut_out(image: Image, scene: Scene, i: int, record: Mapping[str, Any]) -> Cutout:
    annotation, shape = scene.annotations[i], scene.shape(i)
    x0, y0, x1, y1 = shape.bounds()
    around = Window.around(x0 - RIM, y0 - RIM, x1 + RIM, y1 + RIM)
    window = around.clipped(scene.width, scene.height)
    origin = {"image": record.get("image_id"), "source": annotation.get("id")}
    return Cutout(window.of(image).copy(), moved_annotation(annotation, shape, window), origin)
