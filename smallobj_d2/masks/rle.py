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

    A compressed number is a few characters of five bits, the lowest first; the sixth bit says that
    more follow, and the highest bit of the last is the sign. From the fourth number on, each is the
    difference to the last but one.

    Args:
        counts: as in an RLE, compressed or not; numbers of more than nine characters mean nothing.
    """
    if isinstance(counts, list):
        return np.array(counts, dtype=np.int64)
    text = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
    code = text.astype(np.int64) - 48
    last = ((code & 32) == 0).nonzero()[0]
    if not len(last):
        return np.zeros(0, np.int64)
    code = code[: last[-1] + 1]
    first = np.empty_like(last)
    first[0], first[1:] = 0, last[:-1] + 1
    length = last - first + 1
    place = np.arange(len(code)) - first.repeat(length)
    runs: NDArray[np.int64] = np.add.reduceat((code & 31) << np.minimum(5 * place, 40), first)
    runs -= ((code[last] >> 4) & 1) << np.minimum(5 * length, 45)  # the sign
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


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
    edges = [0, *((strip[1:] != strip[:-1]).nonzero()[0] + x * height).tolist(), width * height]
    counts = [end - start for start, end in pairwise(edges)]
    if not counts[-1]:  # pycocotools does not write an empty run at the end
        del counts[-1]
    rle = {"size": [height, width], "counts": counts}
    compressed: dict[str, Any] = coco_mask.frPyObjects(rle, height, width)
    return compressed
