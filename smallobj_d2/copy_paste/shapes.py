"""The shape of an instance: an outline (polygons) or a bitmap (RLE).

Both know which pixels they own, can be looked at through a small window, and can be copied under
an affine map. Nothing here makes a bitmap of the whole image, except by decoding an RLE.

Coordinates are COCO's: pixel ``(i, j)`` spans ``[i, i + 1) x [j, j + 1)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Annotation = dict[str, Any]
Mask = NDArray[np.uint8]
Points = NDArray[np.float64]

_SHIFT = 4
"""Fractional bits of a coordinate handed to OpenCV."""
_FINE = 4
"""How much finer than pixels the grid is on which `Outline.centres` draws."""


class Window(NamedTuple):
    """A rectangle of whole pixels."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def around(cls, x0: float, y0: float, x1: float, y1: float) -> "Window":
        """The smallest window that holds a box."""
        left, top = int(np.floor(x0)), int(np.floor(y0))
        return cls(left, top, int(np.ceil(x1)) - left, int(np.ceil(y1)) - top)


class Copy(NamedTuple):
    """A copy of a shape under a linear map, moved to the origin of a patch of its own."""

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

    def centres(self, window: Window) -> Mask:
        """As `pixels`, to an eighth of a pixel, but cheap for shapes larger than the window."""

    def cover(self, canvas: Mask, frame: int) -> None:
        """Mark all pixels that the instance touches, on a canvas with a frame around the image.

        That is at least every pixel it owns, whichever way its outline is rasterised.
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


def shape_of(annotation: Mapping[str, Any]) -> Shape:
    """The shape of an instance: that of its mask, or of its box where it has none."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        return Bitmap.decode(segmentation, annotation)
    if segmentation:
        return Outline([np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in segmentation])
    x0, y0, x1, y1 = box_xyxy(annotation)
    return Outline([np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)])


class Outline:
    """A shape given by polygons, whose union it is.

    Args:
        parts: (P, 2) float64 each.
    """

    def __init__(self, parts: Sequence[Points]) -> None:
        self.parts = parts

    def bounds(self) -> tuple[float, float, float, float]:
        points = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return x0, y0, x1, y1

    def moved(self, x: int, y: int) -> "Outline":
        return Outline([p + (x, y) for p in self.parts])

    def pixels(self, window: Window) -> Mask:
        """The pixels as COCO's own tools rasterise polygons."""
        x, y, width, height = window
        flat = [(p - (x, y)).ravel().tolist() for p in self.parts]
        masks = coco_mask.decode(coco_mask.frPyObjects(flat, height, width))
        return masks[:, :, 0] if len(flat) == 1 else masks.any(axis=2).view(np.uint8)

    def centres(self, window: Window) -> Mask:
        x, y, width, height = window
        fine = np.zeros((height * _FINE, width * _FINE), np.uint8)
        for part in self.parts:
            _fill(fine, (part - (x, y)) * _FINE)
        return fine[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]

    def cover(self, canvas: Mask, frame: int) -> None:
        for part in self.parts:
            _fill(canvas, part + frame)

    def is_connected(self) -> bool:
        return len(self.parts) == 1 or _one_piece(self.pixels(Window.around(*self.bounds())))

    def copy(self, linear: NDArray[np.float64]) -> Copy:
        parts = [p @ linear.T for p in self.parts]
        x0, y0, x1, y1 = Outline(parts).bounds()
        window = Window.around(x0, y0, x1, y1)
        shift = np.array([-window.x, -window.y], dtype=np.float64)
        shape = Outline([p + shift for p in parts])
        mask = shape.pixels(Window(0, 0, window.width, window.height))
        return Copy(np.column_stack([linear, shift]), mask, shape)

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
    def decode(cls, rle: Mapping[str, Any], annotation: Mapping[str, Any]) -> "Bitmap":
        """From an RLE of either kind; of the decoded image only the instance's box is kept."""
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, *rle["size"])
        whole: Mask = coco_mask.decode(rle)
        x, y, width, height = Window.around(*box_xyxy(annotation))
        x, y = max(x, 0), max(y, 0)
        return cls(whole[y : y + height + 1, x : x + width + 1].copy(), x, y)

    def bounds(self) -> tuple[float, float, float, float]:
        x, y, width, height = cv2.boundingRect(self.mask)
        return self.x + x, self.y + y, self.x + x + width, self.y + y + height

    def moved(self, x: int, y: int) -> "Bitmap":
        return Bitmap(self.mask, self.x + x, self.y + y)

    def pixels(self, window: Window) -> Mask:
        out = np.zeros((window.height, window.width), np.uint8)
        left, top = window.x - self.x, window.y - self.y
        inner = self.mask[
            max(top, 0) : max(top + window.height, 0), max(left, 0) : max(left + window.width, 0)
        ]
        x, y = max(-left, 0), max(-top, 0)
        out[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
        return out

    def centres(self, window: Window) -> Mask:
        return self.pixels(window)

    def cover(self, canvas: Mask, frame: int) -> None:
        height, width = self.mask.shape
        y, x = self.y + frame, self.x + frame
        canvas[y : y + height, x : x + width] |= self.mask

    def is_connected(self) -> bool:
        return _one_piece(self.mask)

    def copy(self, linear: NDArray[np.float64]) -> Copy:
        height, width = self.mask.shape
        corners = np.array([(0, 0), (width, 0), (0, height), (width, height)]) + (self.x, self.y)
        window = Window.around(*Outline([corners @ linear.T]).bounds())
        matrix = np.column_stack([linear, (-window.x, -window.y)])
        local = matrix.copy()
        local[:, 2] += linear @ (self.x, self.y)
        mask = warp(self.mask * np.uint8(255), local, window.width, window.height) >> 7
        x, y, width, height = cv2.boundingRect(mask)
        matrix[:, 2] -= (x, y)
        mask = np.ascontiguousarray(mask[y : y + height, x : x + width])
        return Copy(matrix, mask, Bitmap(mask, 0, 0))

    def segmentation(self, height: int, width: int) -> dict[str, Any]:
        """Compressed RLE, made from the columns that hold pixels and no others."""
        rows, columns = self.mask.shape
        strip = np.zeros((columns, height), np.uint8)  # RLE runs down the columns
        strip[:, self.y : self.y + rows] = self.mask.T
        edges = np.flatnonzero(np.diff(strip.ravel(), prepend=0, append=0)) + self.x * height
        counts = np.diff(edges, prepend=0, append=height * width)
        rle = {"size": [height, width], "counts": counts.tolist()}
        compressed: dict[str, Any] = coco_mask.frPyObjects(rle, height, width)
        return compressed


def warp(
    source: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    width: int,
    height: int,
    border: int = cv2.BORDER_CONSTANT,
) -> NDArray[np.uint8]:
    """A patch of an image under an affine map, bilinear.

    Args:
        source: (H, W) or (H, W, C) uint8.
        matrix: (2, 3), source coordinates to patch coordinates, both COCO's (see above).
        width, height: size of the patch.
        border: OpenCV's word for what lies outside the source; nothing (0) unless said.
    """
    # OpenCV puts pixel centres at whole numbers.
    index = matrix.copy()
    index[:, 2] += (matrix[:, 0] + matrix[:, 1]) / 2 - 0.5
    patch: NDArray[np.uint8] = cv2.warpAffine(source, index, (width, height), borderMode=border)
    return patch


def _fill(canvas: Mask, part: Points) -> None:
    points = np.rint((part - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [points], 1, shift=_SHIFT)


def _one_piece(mask: Mask) -> bool:
    labels, _ = cv2.connectedComponents(mask, connectivity=8)
    return bool(labels <= 2)  # the background is one of them
