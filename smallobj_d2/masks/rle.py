"""COCO's run lengths, read and written a window at a time.

pycocotools decodes an RLE to the whole image, which costs up to a hundred times what the window of
a small object does. What is read and written here is the same, to the bit.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from smallobj_d2.errors import SmallObjError

Mask = NDArray[np.uint8]


def runs_of(counts: list[int] | str | bytes) -> NDArray[np.int64]:
    """Lengths of the runs of zeros and ones, in turn, down the columns.

    Args:
        counts: as in an RLE, compressed or not.
    """
    if isinstance(counts, list):
        return np.array(counts, dtype=np.int64)
    text = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
    code = text.astype(np.int64) - 48
    ends = ((code & 32) == 0).nonzero()[0]
    if not len(ends):
        return np.zeros(0, np.int64)
    runs, _ = read_numbers(code[: ends[-1] + 1])
    undo_differences(runs)
    return runs


def read_numbers(code: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of compressed counts, of one RLE or of several one after the other.

    A number is a few characters of five bits, the lowest first; the sixth bit says that more
    follow, and the highest bit of the last is the sign.

    Args:
        code: the characters less 48; a number's last is the last of them.

    Returns:
        The numbers, and of how many characters each is; with more than nine they mean nothing.
    """
    last = ((code & 32) == 0).nonzero()[0]
    first = np.empty_like(last)
    first[0], first[1:] = 0, last[:-1] + 1
    length = last - first + 1
    place = np.arange(len(code)) - first.repeat(length)
    values: NDArray[np.int64] = np.add.reduceat((code & 31) << np.minimum(5 * place, 40), first)
    values -= ((code[last] >> 4) & 1) << np.minimum(5 * length, 45)  # the sign
    return values, length


def undo_differences(runs: NDArray[np.int64]) -> None:
    """Turn the numbers of one RLE into its runs, in place.

    From the fourth on, each is the difference to the last but one.
    """
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()


def decode(rle: Mapping[str, Any], x: int, y: int, width: int, height: int) -> Mask:
    """The pixels of an RLE in a window of its image.

    Args:
        rle: COCO's ``size`` and ``counts``.
        x, y, width, height: the window, which must lie in the image.

    Returns:
        (height, width) uint8 of 0 and 1.

    Raises:
        SmallObjError: if the runs do not add up to the image.
    """
    rows, columns = rle["size"]
    runs = runs_of(rle["counts"])
    ends = runs.cumsum()
    if not len(runs) or runs.min() < 0 or ends[-1] != rows * columns:
        raise SmallObjError(f"The RLE in `segmentation` does not add up to {rows} x {columns}.")
    ends = np.minimum(np.maximum(ends - x * rows, 0), width * rows)
    values = np.zeros(len(ends), np.uint8)
    values[1::2] = 1
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    strip = values.repeat(lengths).reshape(width, rows)
    return np.ascontiguousarray(strip[:, y : y + height].T)


def encode(mask: Mask, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """A mask as compressed RLE, made from the columns that it lies in and no others.

    Args:
        mask: (h, w) uint8 of 0 and 1.
        x, y: where its corner lies in the image.
        width, height: size of the image, which must hold it.
    """
    rows, columns = mask.shape
    strip = np.zeros(columns * height + 2, np.uint8)  # a zero at both ends
    strip[1:-1].reshape(columns, height)[:, y : y + rows] = mask.T
    edges = (strip[1:] != strip[:-1]).nonzero()[0] + x * height
    counts = [b - a for a, b in pairwise([0, *edges.tolist(), width * height])]
    if not counts[-1]:  # pycocotools does not write an empty run at the end
        del counts[-1]
    rle = {"size": [height, width], "counts": counts}
    compressed: dict[str, Any] = coco_mask.frPyObjects(rle, height, width)
    return compressed
