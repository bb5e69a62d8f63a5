"""The shape of an instance: an outline (polygons) or a bitmap (RLE).

Both know which pixels they own, can mark those that they cover, can be looked at through a small
window, and can be copied under an affine map. Nothing here makes a bitmap of the whole image.

Coordinates are COCO's: pixel ``(i, j)`` is the square from ``(i, j)`` to ``(i + 1, j + 1)``.

A shape *owns* the pixels that COCO's own tools give it. It *covers* those that OpenCV fills, its
edges included; see `Shape.cover` for how far others may be from these.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import ceil, floor
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.rle import Mask, decode, encode

Annotation = dict[str, Any]
Points = NDArray[np.float64]

FARTHEST = 1e5
"""No coordinate may be larger; COCO's tools count fifths of a pixel in 32 bits."""
_LONGEST = 32_766
"""The longest side that OpenCV's warps can take."""
_SHIFT = 6
"""Fractional bits of a coordinate handed to OpenCV."""
_FINE = 2
"""Of these bits, those of the finer grid on which `Centres` are rasterized."""


class Window(NamedTuple):
    """A rectangle of whole pixels."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def around(cls, x0: float, y0: float, x1: float, y1: float) -> "Window":
        """The smallest window that holds a box."""
        left, top = floor(x0), floor(y0)
        return cls(left, top, ceil(x1) - left, ceil(y1) - top)

    def clipped(self, width: int, height: int) -> "Window":
        """The part of it that lies in an image."""
        x, y = max(self.x, 0), max(self.y, 0)
        right, bottom = min(self.x + self.width, width), min(self.y + self.height, height)
        return Window(x, y, max(right - x, 0), max(bottom - y, 0))

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns, in an image that holds it."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """A view of these pixels of an image (H, W, ...), which must hold the window."""
        return image[self.slices]


class Centres:
    """Which pixels of a window have their centre in one of some shapes.

    Cheap where the shapes are larger than the window. Pixels on an edge may be off.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.fine = np.zeros((window.height << _FINE, window.width << _FINE), np.uint8)
        """(4 h, 4 w) uint8: the window on a grid of quarters of a pixel."""
        self.mask: Mask = self.fine[1 << _FINE - 1 :: 1 << _FINE, 1 << _FINE - 1 :: 1 << _FINE]
        """(h, w) uint8 of 0 and 1: the result."""


class Copy(NamedTuple):
    """A copy of a shape under a linear map, moved to the origin of its own patch."""

    matrix: NDArray[np.float64]
    """(2, 3): source coordinates to patch coordinates."""
    mask: Mask
    """(h, w) uint8 of 0 and 1, the patch's pixels that the copy owns; it may own none."""
    shape: "Shape"
    """The copy in patch coordinates, inside ``[0, w] x [0, h]``."""


class Shape(Protocol):
    """What an outline and a bitmap have in common."""

    def pixels(self, window: Window) -> Mask:
        """(h, w) uint8 of 0 and 1: the pixels of a window that the instance owns."""

    def mark(self, centres: Centres) -> None:
        """Mark the pixels whose centre it holds."""

    def cover(self, canvas: Mask) -> None:
        """Mark the pixels that the instance covers, those along its edges included, in place.

        Whichever way an outline is turned into pixels, the instance owns none further out than
        the neighbours of those marked.

        Args:
            canvas: (H, W) uint8, as large as the image.
        """

    def is_connected(self) -> bool:
        """Whether its pixels are one connected piece (diagonal neighbours are connected)."""

    def copy(self, linear: NDArray[np.float64]) -> Copy:
        """Its image under a (2, 2) matrix."""

    def bounds(self) -> tuple[float, float, float, float]:
        """Its tight box, XYXY."""

    def moved(self, x: int, y: int) -> "Shape":
        """The same shape elsewhere."""

    def segmentation(self, height: int, width: int) -> Any:
        """COCO segmentation of the shape in an image of that size."""


def box_xyxy(annotation: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The box of an annotation as ``x0, y0, x1, y1`` (Detectron2's ``bbox_mode`` 0 is XYXY)."""
    x, y, a, b = annotation["bbox"]
    return (x, y, a, b) if annotation.get("bbox_mode", 1) == 0 else (x, y, x + a, y + b)


def box_of(shape: Shape, like: Mapping[str, Any]) -> list[float]:
    """The tight box of a shape, in the ``bbox_mode`` of an annotation."""
    x0, y0, x1, y1 = shape.bounds()
    return [x0, y0, x1, y1] if like.get("bbox_mode", 1) == 0 else [x0, y0, x1 - x0, y1 - y0]


def has_mask(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation has a mask: polygons, an RLE, or an array of pixels."""
    segmentation = annotation.get("segmentation")
    return segmentation is not None and len(segmentation) > 0


def shape_of(
    annotation: Mapping[str, Any], height: int, width: int, *, in_box: bool = True
) -> Shape:
    """The shape of an instance: that of its mask, or of its box where it has none.

    Args:
        annotation: the instance.
        height, width: size of the image.
        in_box: its ``bbox`` holds its mask, give or take a pixel, so that of an RLE the rest need
            not be decoded.

    Raises:
        SmallObjError: for an invalid mask; `smallobj_d2.datasets.coco` leaves none in.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        if not {"size", "counts"} <= segmentation.keys():
            raise SmallObjError(
                f"An RLE in `segmentation` has the keys {sorted(segmentation)}; it needs size and "
                "counts."
            )
        if list(segmentation["size"]) != [height, width]:
            raise SmallObjError(
                f"An RLE in `segmentation` has size {segmentation['size']}; it must be the image's "
                f"height and width, {[height, width]}."
            )
        return Bitmap.decode(segmentation, box_xyxy(annotation) if in_box else None)
    if isinstance(segmentation, np.ndarray):
        return Bitmap.of_array(segmentation, height, width)
    if not isinstance(segmentation, list | tuple | None):
        raise SmallObjError(
            f"`segmentation` is a {type(segmentation).__name__}; it must be polygons, an RLE, or a "
            "numpy array of the image's size."
        )
    if segmentation:
        return Outline([_points(part) for part in segmentation])
    x0, y0, x1, y1 = box_xyxy(annotation)
    return Outline([np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)])


def _points(part: Any) -> Points:
    flat = np.asarray(part, dtype=np.float64)
    sound = flat.ndim == 1 and len(flat) >= 6 and len(flat) % 2 == 0
    sound = sound and not isinstance(part[0], bool)  # the row of a mask as lists
    # Written so that NaN fails it too.
    if not (sound and np.maximum.reduce(np.abs(flat)) < FARTHEST):
        raise SmallObjError(
            f"A polygon in `segmentation` is {part!r:.80}; it must be [x, y, x, y, ...] of three "
            f"points or more, all of them finite and below {FARTHEST:.0f}."
        )
    return flat.reshape(-1, 2)


class Outline:
    """A shape given by polygons, whose union it is.

    Args:
        parts: (P, 2) float64 each.
    """

    def __init__(self, parts: Sequence[Points]) -> None:
        self.parts = parts
        self._bounds: tuple[float, float, float, float] | None = None
        self._fixed: list[NDArray[np.int32]] | None = None

    def bounds(self) -> tuple[float, float, float, float]:
        if self._bounds is None:
            points = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
            x0, y0 = np.minimum.reduce(points).tolist()
            x1, y1 = np.maximum.reduce(points).tolist()
            self._bounds = x0, y0, x1, y1
        return self._bounds

    def moved(self, x: int, y: int) -> "Outline":
        moved = Outline([p + (x, y) for p in self.parts])
        if self._bounds is not None:
            x0, y0, x1, y1 = self._bounds
            moved._bounds = x0 + x, y0 + y, x1 + x, y1 + y
        return moved

    def pixels(self, window: Window) -> Mask:
        """As COCO's own tools turn polygons into pixels.

        Exact in a window that holds the shape. In others, edges that begin left of or above the
        window may be off by a fifth of a pixel, because those tools round towards zero.
        """
        x, y, width, height = window
        if not width or not height:
            return np.zeros((height, width), np.uint8)
        flat = [(p - (x, y) if x or y else p).ravel() for p in self.parts]
        masks: NDArray[Any] = coco_mask.decode(coco_mask.frPyObjects(flat, height, width))
        first: Mask = masks[:, :, 0]
        return first if len(flat) == 1 else np.asarray(masks.any(axis=2), np.uint8)

    def mark(self, centres: Centres) -> None:
        x, y = centres.window.x, centres.window.y
        self._fill(centres.fine, -x << _SHIFT, -y << _SHIFT, _SHIFT - _FINE)

    def cover(self, canvas: Mask) -> None:
        self._fill(canvas, 0, 0, _SHIFT)

    def _fill(self, canvas: Mask, x: int, y: int, shift: int) -> None:
        """Fill each part; OpenCV puts the centres of pixels at whole numbers."""
        if not canvas.size:  # around an outline without area, and more than OpenCV can take
            return
        if self._fixed is None:
            self._fixed = [np.rint(p * (1 << _SHIFT)).astype(np.int32) for p in self.parts]
        half = 1 << shift - 1
        for part in self._fixed:
            cv2.fillPoly(canvas, [part], 1, shift=shift, offset=(x - half, y - half))

    def is_connected(self) -> bool:
        if len(self.parts) == 1:
            points = [p for p, _ in groupby(map(tuple, self.parts[0].tolist()))]
            if len(set(points)) >= len(points) - (points[0] == points[-1]):
                return True  # else it may be parts that lines of no width join
        return _one_piece(self.pixels(Window.around(*self.bounds())))

    def copy(self, linear: NDArray[np.float64]) -> Copy:
        turned = Outline([p @ linear.T for p in self.parts])
        window = Window.around(*turned.bounds())
        shape = turned.moved(-window.x, -window.y)
        mask = shape.pixels(Window(0, 0, window.width, window.height))
        matrix = np.empty((2, 3))
        matrix[:, :2] = linear
        matrix[:, 2] = -window.x, -window.y
        return Copy(matrix, mask, shape)

    def segmentation(self, height: int, width: int) -> list[list[float]]:
        return [p.ravel().tolist() for p in self.parts]


class Bitmap:
    """A shape given by pixels.

    Args:
        mask: (h, w) uint8 of 0 and 1.
        x, y: where its corner lies.
    """

    def __init__(self, mask: Mask, x: int, y: int) -> None:
        self.mask, self.x, self.y = mask, x, y

    @classmethod
    def decode(
        cls, rle: Mapping[str, Any], box: tuple[float, float, float, float] | None = None
    ) -> "Bitmap":
        """From an RLE of either kind; of the decoded image only the part in a box is kept.

        Args:
            rle: COCO's ``size`` and ``counts``.
            box: XYXY, which must hold the mask, give or take a pixel; the mask's own unless given.
        """
        height, width = rle["size"]
        if box is None:
            if isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, height, width)
            own = Window(*map(int, coco_mask.toBbox(rle)))
            return cls(decode(rle, *own), own.x, own.y)
        x0, y0, x1, y1 = box
        window = Window.around(x0 - 1, y0 - 1, x1 + 1, y1 + 1).clipped(width, height)
        return cls(decode(rle, *window), window.x, window.y)

    @classmethod
    def of_array(cls, mask: NDArray[Any], height: int, width: int) -> "Bitmap":
        """From an array of the image's size, of which only the part around the mask is kept.

        Args:
            mask: (H, W) of bool, or of integers that are not 0 in the mask.
            height, width: size of the image.
        """
        if mask.shape != (height, width) or mask.dtype.kind not in "biu":
            raise SmallObjError(
                f"An array in `segmentation` has shape {mask.shape} and type {mask.dtype}; it must "
                f"be {(height, width)}, the image's height and width, and bool or whole numbers."
            )
        return cls((mask != 0).view(np.uint8), 0, 0).trimmed()

    def bounds(self) -> tuple[float, float, float, float]:
        tight = self.trimmed()
        height, width = tight.mask.shape
        # Floats: Detectron2 moves a box in the type it has, and would round whole numbers.
        return float(tight.x), float(tight.y), float(tight.x + width), float(tight.y + height)

    def moved(self, x: int, y: int) -> "Bitmap":
        return Bitmap(self.mask, self.x + x, self.y + y)

    def pixels(self, window: Window) -> Mask:
        out = np.zeros((window.height, window.width), np.uint8)
        height, width = self.mask.shape
        x, y = self.x - window.x, self.y - window.y
        common = Window(x, y, width, height).clipped(window.width, window.height)
        common.of(out)[...] = Window(common.x - x, common.y - y, *common[2:]).of(self.mask)
        return out

    def mark(self, centres: Centres) -> None:
        centres.mask |= self.pixels(centres.window)

    def cover(self, canvas: Mask) -> None:
        height, width = self.mask.shape
        Window(self.x, self.y, width, height).of(canvas)[...] |= self.mask

    def is_connected(self) -> bool:
        return _one_piece(self.mask)

    def copy(self, linear: NDArray[np.float64]) -> Copy:
        source = self.trimmed()
        height, width = source.mask.shape
        corners = np.array([(0, 0), (width, 0), (0, height), (width, height)]) @ linear.T
        window = Window.around(*Outline([corners]).bounds())
        matrix = np.column_stack([linear, (-window.x, -window.y)])
        mask = source.mask
        if mask.size:
            patch = Window(0, 0, window.width, window.height)
            mask = (warp(mask * np.uint8(255), matrix, patch) >> 7).astype(np.uint8, copy=False)
        copy = Bitmap(mask, 0, 0).trimmed()
        matrix[:, 2] -= linear @ (source.x, source.y) + (copy.x, copy.y)
        return Copy(matrix, copy.mask, Bitmap(copy.mask, 0, 0))

    def trimmed(self) -> "Bitmap":
        """The same without empty rows and columns around."""
        window = Window(*cv2.boundingRect(self.mask)) if self.mask.size else Window(0, 0, 0, 0)
        mask = np.ascontiguousarray(window.of(self.mask))
        return Bitmap(mask, self.x + window.x, self.y + window.y)

    def segmentation(self, height: int, width: int) -> dict[str, Any]:
        return encode(self.mask, self.x, self.y, width, height)

    def as_array(self, like: NDArray[Any], height: int, width: int) -> NDArray[Any]:
        """(H, W) of the type and the largest value in another mask, in an image of that size."""
        mask: NDArray[Any] = self.pixels(Window(0, 0, width, height)).astype(like.dtype)
        values = like[like != 0]
        mask *= values.max() if values.size else like.dtype.type(0)
        return mask


def warp(
    source: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    window: Window,
    border: int = cv2.BORDER_CONSTANT,
) -> NDArray[np.uint8]:
    """What an image under an affine map shows in a window, bilinear.

    Args:
        source: (H, W) or (H, W, C) uint8.
        matrix: (2, 3), source coordinates to the window's, both COCO's (see above).
        window: in coordinates after the map.
        border: OpenCV's word for what lies outside the source; nothing (0) unless said.
    """
    if max(source.shape[:2]) > _LONGEST:
        source, matrix = _seen(source, matrix, window)
    (a, b, c), (d, e, f) = matrix.tolist()
    # OpenCV puts pixel centres at whole numbers.
    c, f = c + (a + b) / 2 - 0.5 - window.x, f + (d + e) / 2 - 0.5 - window.y
    index = np.array([(a, b, c), (d, e, f)])
    size = window.width, window.height
    return np.asarray(cv2.warpAffine(source, index, size, borderMode=border), np.uint8)


def _seen(
    source: NDArray[np.uint8], matrix: NDArray[np.float64], window: Window
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of an image that a window shows under an affine map, and the map from there."""
    x, y, width, height = window
    corners = np.array([(x, y), (x + width, y), (x, y + height), (x + width, y + height)])
    shown = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    part = Window.around(*(shown.min(axis=0) - 2), *(shown.max(axis=0) + 2))
    part = part.clipped(source.shape[1], source.shape[0])
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ part[:2]
    return part.of(source), moved


def _one_piece(mask: Mask) -> bool:
    if not mask.size:
        return False
    labels, _ = cv2.connectedComponents(mask, connectivity=8)
    return bool(labels == 2)  # the background is one of them
