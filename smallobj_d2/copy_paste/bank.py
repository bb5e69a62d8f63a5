"""Beyond the paper: small objects of other images, cut out and kept in memory.

Pasting objects of another image at each draw would mean reading that image, too. The bank keeps
them in memory: of a number of training images the objects that may be copied, each with the pixels
around it. It is a few arrays, which forked loader workers share; later nothing is read.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from smallobj_d2.copy_paste.blend import Image
from smallobj_d2.copy_paste.choose import Candidate, Candidates, SourceRule
from smallobj_d2.copy_paste.labels import moved_annotation
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.datasets.records import PackedRecords
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import Annotation, Shape, Window, shape_of

RIM = 6
"""Pixels kept around an object; a softened edge shows some of them."""

_NAMELESS = 0

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
    corner: tuple[int, int]
    """(x, y), where these pixels lie in that image."""

    def shape(self) -> Shape:
        """Its shape, in coordinates of these pixels."""
        return shape_of(self.annotation, *self.pixels.shape[:2])


class ObjectBank:
    """Objects of other images, as `smallobj_d2.copy_paste.sources.Sources`.

    Each draw takes the objects of one of its images, chosen at random; never those of the image
    that is augmented, where `CopyPaste.plan` is told its name.

    Args:
        donors: of each image its objects, one at least.
        names: of each image its name, or None.
        factors: how often each image is chosen, in relation to the others, above 0; alike unless
            given.

    Raises:
        SmallObjError: if there are no objects, or a factor is not above 0.
    """

    def __init__(
        self,
        donors: Sequence[Sequence[Cutout]],
        names: Sequence[str | None] | None = None,
        factors: Sequence[float] | NDArray[np.float64] | None = None,
    ) -> None:
        if not donors or not all(donors):
            raise SmallObjError("A bank needs objects: an image at least, and of each one object.")
        if factors is not None and not min(factors) > 0:
            raise SmallObjError("A bank's factors must be above 0: leave out what is never chosen.")
        cutouts = [cutout for donor in donors for cutout in donor]
        self._ends = np.cumsum([len(donor) for donor in donors])
        self._sizes = np.array([c.pixels.shape[:2] for c in cutouts], dtype=np.int32)
        self._pixel_ends = np.cumsum([c.pixels.size for c in cutouts])
        self._pixels = np.concatenate([c.pixels.ravel() for c in cutouts])
        self._pixels.flags.writeable = False
        self._labels = PackedRecords(
            [{"a": c.annotation, "o": c.origin, "c": c.corner} for c in cutouts]
        )
        hashes = [_hash(n) for n in names] if names else [_NAMELESS] * len(donors)
        self._names = np.array(hashes, dtype=np.uint64)
        # None where all are alike, as whole numbers are made in half the time.
        self._odds = np.cumsum(() if factors is None or len(set(factors)) == 1 else factors)

    def candidates(
        self, scene: Scene, rng: np.random.Generator, image: str | None = None
    ) -> Candidates:
        """The objects of one of its images, chosen at random, but not of the image itself."""
        itself = np.flatnonzero(self._names == _hash(image)) if image is not None else ()
        chosen = self._choose(rng)
        if len(itself) == self.images:
            return self._of(range(0))
        while chosen in itself:
            chosen = self._choose(rng)
        return self._of(self.of_image(chosen))

    def _choose(self, rng: np.random.Generator) -> int:
        if not len(self._odds):
            return int(rng.integers(self.images))
        return int(np.searchsorted(self._odds, rng.random() * self._odds[-1], side="right"))

    def _of(self, objects: range) -> Candidates:
        def candidate(i: int) -> Candidate:
            cutout = self[i]
            return Candidate(
                cutout.annotation, cutout.shape, cutout.origin, cutout.pixels, cutout.corner
            )

        return Candidates(objects, lambda _: True, candidate)

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
        return Cutout(pixels, label["a"], label["o"], label["c"])


def build_bank(
    records: Sequence[Mapping[str, Any]],
    rule: SourceRule,
    read: ReadImage,
    rng: np.random.Generator,
    *,
    images: int,
    factors: Sequence[float] | None = None,
    progress: bool = False,
) -> ObjectBank:
    """Cut the objects that may be copied out of images chosen at random.

    Args:
        records: N dataset dicts.
        rule: which objects may be copied.
        read: see `ReadImage`.
        rng: chooses the images.
        images: how many, at most.
        factors: (N,) how often objects of each are given, in relation to the others.
        progress: show a progress bar on a terminal.

    Raises:
        SmallObjError: if no image has an object that may be copied.
    """
    donors: list[list[Cutout]] = []
    names: list[str | None] = []
    weights: list[float] = []
    with tqdm(total=images, desc="object bank", unit="img", disable=not progress or None) as bar:
        for index in rng.permutation(len(records)).tolist():
            if len(donors) == images:
                break
            if factors is not None and not factors[index]:
                continue  # it is never drawn, and so gives nothing
            record = records[index]
            scene = Scene(record["annotations"], record["height"], record["width"])
            chosen = list(rule.candidates(scene))
            image = read(record) if chosen else None
            if image is not None:
                donors.append([_cut_out(image, scene, c, record) for c in chosen])
                names.append(record.get("file_name"))
                weights.append(1.0 if factors is None else float(factors[index]))
                bar.update()
        bar.total = len(donors)  # there may be fewer
    if not donors:
        raise SmallObjError(
            "No object of the training images may be copied, so SMALLOBJ.SOURCES cannot be 'bank'. "
            "See which of SMALLOBJ.SMALL_AREA, REQUIRE_CONNECTED, REQUIRE_INSIDE and MAX_COVERED "
            "keeps them out, or set SMALLOBJ.COPY_PASTE False."
        )
    return ObjectBank(donors, names, weights)


def _cut_out(image: Image, scene: Scene, candidate: Candidate, record: Mapping[str, Any]) -> Cutout:
    annotation, shape = candidate.annotation, candidate.shape
    x0, y0, x1, y1 = shape.bounds()
    around = Window.around(x0 - RIM, y0 - RIM, x1 + RIM, y1 + RIM)
    window = around.clipped(scene.width, scene.height)
    origin = {"image": record.get("image_id"), "source": annotation.get("id")}
    moved = moved_annotation(annotation, shape, window)
    return Cutout(window.of(image).copy(), moved, origin, (window.x, window.y))


def _hash(name: str | None) -> int:
    """A number for a name: an array of them is shared by workers, and a list of names is not."""
    if name is None:
        return _NAMELESS
    return int.from_bytes(blake2b(os.fsencode(name), digest_size=8).digest(), "big") | 1
