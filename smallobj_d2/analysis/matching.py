"""Matching anchors to objects (section 3.2), exactly and without the matrix of all pairs.

Anchors of one shape stand on a regular grid, and what such an anchor shares with a box is a width
times a height. Each of the two only depends on the distance of the centres along its own axis, and
never grows with it. So the best anchor of a shape is the one whose centre is nearest, found by
rounding; and all anchors that share at least so much with a box lie in a rectangle of grid points
around it, found by solving for the distance. Only anchors in these rectangles are looked at: those
that can be an object's best, and those that can be over the threshold.

Rectangles are a hair too large, by what rounding can amount to. What decides is the IoU of each
anchor in them, computed in single precision by the same operations in the same order as in
Detectron2. So results are equal to Detectron2's bit by bit, ties included.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import STRtree
from tqdm import tqdm

from smallobj_d2.analysis.objects import Objects
from smallobj_d2.analysis.protocols import Protocol

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_CHUNK = 8_192
"""Objects looked at together: few enough that the arrays of a step stay in a processor's cache."""
_PAIRS = 2_000_000
"""Pairs of an object and an anchor held together, as far as single images allow."""
_CROWDED = 1000
"""Objects of one image above which an index finds those that an anchor overlaps."""


@dataclass(frozen=True)
class Matches:
    """What the anchors are to each of N objects."""

    max_iou: Floats
    """(N,) IoU with its best anchor."""
    matched: Ints
    """(N,) how many anchors are matched to it."""


class Pairs(NamedTuple):
    """P matches."""

    objects: Ints
    """(P,) the object."""
    anchors: Floats
    """(P, 4) the anchor, XYXY in pixels of the network's input."""


def match(
    objects: Objects, protocol: Protocol, *, progress: bool = False, dtype: Any = np.float32
) -> Matches:
    """Match anchors to all objects of a dataset.

    Args:
        objects: N objects in M images.
        protocol: which anchors there are, and what makes a match.
        progress: show a progress bar.
        dtype: floating point type to compute IoU in. Detectron2's is float32.
    """
    max_iou = np.zeros(len(objects), dtype=dtype)
    matched = np.zeros(len(objects), dtype=np.int64)
    ranges = objects.ranges()
    first = 0
    what = f"anchors, protocol {protocol.name}"
    hide = not progress or None  # None: where it is no terminal
    with tqdm(total=objects.num_images, desc=what, unit="img", disable=hide) as bar:
        while first < objects.num_images:
            last = int(np.searchsorted(ranges, ranges[first] + _CHUNK, side="right")) - 1
            last = min(max(last, first + 1), objects.num_images)
            part = slice(ranges[first], ranges[last])
            chunk = objects.images(np.arange(first, last))
            max_iou[part], pairs = _match(_Scene(chunk, protocol, dtype))
            matched[part] = np.bincount(pairs.objects, minlength=len(chunk))
            bar.update(last - first)
            first = last
    return Matches(max_iou, matched)


def matched_anchors(objects: Objects, protocol: Protocol) -> Pairs:
    """The matches themselves, for as few images as one wants to draw (Figure 5)."""
    return _match(_Scene(objects, protocol, np.float32))[1]


def brute_force(objects: Objects, protocol: Protocol, *, dtype: Any = np.float32) -> Matches:
    """`match` by its definition: all pairs of an object and an anchor. Slow; for tests."""
    max_iou, matched = [np.zeros(0, dtype)], [np.zeros(0, np.int64)]
    for i in range(objects.num_images):
        best, pairs = _match_all_pairs(_Scene(objects.images([i]), protocol, dtype))
        max_iou.append(best)
        matched.append(np.bincount(pairs.objects, minlength=len(best)))
    return Matches(np.concatenate(max_iou), np.concatenate(matched))


def box_iou(a: Floats, b: Floats) -> Floats:
    """IoU of boxes (..., 4) XYXY, with the operations of Detectron2's ``pairwise_iou``.

    Args:
        a, b: of one dtype, and of shapes that broadcast.
    """
    ax0, ay0, ax1, ay1 = np.moveaxis(a, -1, 0)
    bx0, by0, bx1, by1 = np.moveaxis(b, -1, 0)
    width = np.maximum(np.minimum(ax1, bx1) - np.maximum(ax0, bx0), 0)
    height = np.maximum(np.minimum(ay1, by1) - np.maximum(ay0, by0), 0)
    shared = width * height
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared
    result: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return result


class _Scene:
    """Some images with n objects, and the T shapes of a protocol's anchors that stand in them."""

    def __init__(self, objects: Objects, protocol: Protocol, dtype: Any) -> None:
        self.objects, self.protocol, self.dtype = objects, protocol, np.dtype(dtype)
        self.image = objects.image.astype(np.int64)  # (n,)
        self.ranges = objects.ranges()
        heights, widths = protocol.input_sizes(objects)
        boxes = objects.boxes
        self.kept = np.ones(len(boxes), dtype=bool)  # (n,) that take part
        if protocol.short_edge or protocol.as_detectron2:
            # In double precision and back, as Detectron2's transforms do it.
            scale = np.stack([widths / objects.widths, heights / objects.heights], axis=1)
            boxes = boxes * np.tile(scale[self.image], 2)
        if protocol.as_detectron2:
            limits = np.tile(np.stack([widths, heights], axis=1)[self.image], 2)
            boxes = np.minimum(boxes.clip(min=0), limits).astype(np.float32)
            self.kept = ((boxes[:, 2:] - boxes[:, :2]) > np.float32(1e-5)).all(axis=1)
            boxes[~self.kept] = 0
        self.boxes: Floats = boxes.astype(dtype)  # (n, 4) XYXY in pixels of the network's input

        cells = [level.cells(dtype) for level in protocol.levels]
        self.cells: Floats = np.concatenate(cells)  # (T, 4) around the origin
        self.at_point = np.array([len(c) for c in cells])  # (L,) shapes at each grid point
        self.first_shape = np.cumsum(self.at_point) - self.at_point  # (L,)
        self.level = np.repeat(np.arange(len(cells)), self.at_point)  # (T,)
        strides = np.array([level.stride for level in protocol.levels], np.float64)
        self.stride = strides[self.level]  # (T,)
        self.grids = grids = protocol.grids(heights, widths)  # (M, L, 2) rows and columns
        numbers = grids.prod(axis=2) * self.at_point
        self.first = (np.cumsum(numbers) - numbers.ravel()).reshape(numbers.shape)  # (M, L) anchors
        self.reach = (grids * strides[:, None]).max(axis=(1, 2)) + self.cells.max()  # (M,) pixels

    def only(self, first: int, last: int) -> "_Scene":
        """The images ``first:last``."""
        return _Scene(self.objects.images(np.arange(first, last)), self.protocol, self.dtype)

    @property
    def threshold(self) -> Any:
        return self.dtype.type(self.protocol.threshold)

    def anchors(self, shape: Ints, row: Ints, column: Ints) -> Floats:
        """XYXY (..., 4) of shapes at grid points."""
        stride, offset = self.stride[shape], self.protocol.offset
        x = ((column + offset) * stride).astype(self.dtype)
        y = ((row + offset) * stride).astype(self.dtype)
        cell = self.cells[shape]
        return np.stack(
            [x + cell[..., 0], y + cell[..., 1], x + cell[..., 2], y + cell[..., 3]], axis=-1
        )

    def key(self, image: Ints, shape: Ints, row: Ints, column: Ints) -> Ints:
        """Numbers of anchors: image after image, in Detectron2's order."""
        level = self.level[shape]
        point = row * self.grids[image, level, 1] + column
        within = point * self.at_point[level] + shape - self.first_shape[level]
        key: Ints = self.first[image, level] + within
        return key

    def all_anchors(self, image: int) -> Floats:
        """(A, 4) XYXY of all anchors of an image, in Detectron2's order."""
        boxes = []
        for level, (rows, columns) in enumerate(self.grids[image]):
            row, column, shape = np.indices((rows, columns, self.at_point[level])).reshape(3, -1)
            boxes.append(self.anchors(self.first_shape[level] + shape, row, column))
        return np.concatenate(boxes)


def _match(scene: _Scene) -> tuple[Floats, Pairs]:
    """IoU (n,) of each object with its best anchor, and all matches, in no order."""
    windows = _windows(scene)
    images = len(scene.ranges) - 1
    if windows.points.sum() > _PAIRS and images > 1:
        return _join(scene, [(0, images // 2), (images // 2, images)])
    found = _candidates(scene, windows)
    best = np.zeros(len(scene.boxes), dtype=scene.boxes.dtype)
    if len(found.object):
        starts = np.flatnonzero(np.diff(found.object, prepend=-1))
        best[found.object[starts]] = np.maximum.reduceat(found.iou, starts)
    if not scene.protocol.as_detectron2:
        return best, _match_paper(scene, found, best)
    untouched = np.unique(scene.image[scene.kept & (best == 0)])
    if len(untouched) and images > 1:
        # Then Detectron2 takes all anchors of that image for positive: 0 is the object's best.
        edges = np.unique(np.concatenate([[0], untouched, untouched + 1, [images]]))
        return _join(scene, list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)))
    if len(untouched):
        return _match_all_pairs(scene)
    positive = (found.iou >= scene.threshold) | (found.iou == best[found.object])
    anchors = _distinct(scene, found, positive)
    return best, Pairs(_preferred(scene, anchors), anchors.box)


def _join(scene: _Scene, parts: list[tuple[int, int]]) -> tuple[Floats, Pairs]:
    """`_match` for parts of the images, one after the other."""
    best, owners, anchors = [], [], []
    for first, last in parts:
        part_best, pairs = _match(scene.only(first, last))
        best.append(part_best)
        owners.append(pairs.objects + scene.ranges[first])
        anchors.append(pairs.anchors)
    return np.concatenate(best), Pairs(np.concatenate(owners), np.concatenate(anchors))


class _Windows(NamedTuple):
    """For n objects and T shapes (n, T): the rectangle of grid points to look at."""

    row: Ints
    column: Ints
    columns: Ints
    points: Ints


def _windows(scene: _Scene) -> _Windows:
    """Where each object's best anchors, and those over the threshold, can be."""
    offset, eps = scene.protocol.offset, np.finfo(scene.dtype).eps
    boxes = scene.boxes.astype(np.float64)
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = scene.cells[:, 2:].astype(np.float64)  # (T, 2)
    points = scene.grids[scene.image][:, scene.level]  # (n, T, 2) rows, columns

    nearest, overlap = [], []
    for axis in (0, 1):
        at = np.rint(centre[:, axis, None] / scene.stride - offset)
        at = np.minimum(np.maximum(at, 0), points[..., 1 - axis] - 1)
        apart = np.abs((at + offset) * scene.stride - centre[:, axis, None])
        length = size[:, axis, None]
        whole = np.minimum(2 * half[:, axis], length)
        nearest.append(at.astype(np.int64))
        overlap.append(np.clip(half[:, axis] + length / 2 - apart, 0, whole))

    shapes = np.broadcast_to(np.arange(len(half)), nearest[0].shape)
    reached = box_iou(scene.boxes[:, None], scene.anchors(shapes, nearest[1], nearest[0]))
    least = np.minimum(reached.max(axis=1), scene.threshold)
    least = least.astype(np.float64)[:, None]

    # By how much an anchor's sides can differ from where they should be, in pixels.
    slack = 8 * eps * scene.reach[scene.image][:, None]
    area = np.maximum(2 * half - slack[..., None], 0).prod(axis=2) + size.prod(axis=1)[:, None]
    needed = least / (1 + least) * area * (1 - 16 * eps)
    possible: Bools = (overlap[0] + slack) * (overlap[1] + slack) >= needed
    possible &= (scene.kept & (size > 0).all(axis=1))[:, None]
    first, spans = [], []
    for axis in (0, 1):
        distance = half[:, axis] + size[:, axis, None] / 2 + slack
        distance -= needed / (overlap[1 - axis] + slack)
        low = (centre[:, axis, None] - distance) / scene.stride - offset
        high = (centre[:, axis, None] + distance) / scene.stride - offset
        low = np.ceil(np.clip(low - 1e-6, 0, points[..., 1 - axis]))
        high = np.floor(np.clip(high + 1e-6, -1, points[..., 1 - axis] - 1))
        first.append(low.astype(np.int64))
        spans.append(np.maximum(high - low + 1, 0).astype(np.int64))
    return _Windows(first[1], first[0], spans[0], possible * spans[0] * spans[1])


class _Candidates(NamedTuple):
    """C pairs of an object and an anchor, ordered by object."""

    object: Ints
    key: Ints
    """The same for the same anchor of the same image, and ascending with its place there."""
    box: Floats
    iou: Floats


def _candidates(scene: _Scene, windows: _Windows) -> _Candidates:
    """Unroll the windows."""
    which, shape = np.nonzero(windows.points)
    count = windows.points[which, shape]
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    down, right = np.divmod(step, np.repeat(windows.columns[which, shape], count))
    row = down + np.repeat(windows.row[which, shape], count)
    column = right + np.repeat(windows.column[which, shape], count)
    which, shape = np.repeat(which, count), np.repeat(shape, count)
    box = scene.anchors(shape, row, column)
    key = scene.key(scene.image[which], shape, row, column)
    return _Candidates(which, key, box, box_iou(scene.boxes[which], box))


class _Distinct(NamedTuple):
    """U anchors, each once."""

    image: Ints
    key: Ints
    """Ascending; see `_Candidates`."""
    box: Floats


def _distinct(scene: _Scene, found: _Candidates, chosen: Bools) -> _Distinct:
    """The anchors of some candidates."""
    key, first = np.unique(found.key[chosen], return_index=True)
    return _Distinct(scene.image[found.object[chosen][first]], key, found.box[chosen][first])


def _preferred(scene: _Scene, anchors: _Distinct) -> Ints:
    """(U,) the object that each anchor overlaps most, the first among equals.

    Each anchor overlaps some object.
    """
    preferred = np.zeros(len(anchors.key), dtype=np.int64)
    begin = scene.ranges[anchors.image]
    count = scene.ranges[anchors.image + 1] - begin
    for image in np.unique(anchors.image[count > _CROWDED]):
        here = np.flatnonzero(anchors.image == image)
        objects = slice(scene.ranges[image], scene.ranges[image + 1])
        found = _preferred_of_many(scene.boxes[objects], anchors.box[here])
        preferred[here] = scene.ranges[image] + found
    rest = np.flatnonzero(count <= _CROWDED)
    box, begin, count = anchors.box[rest], begin[rest], count[rest]
    ends = np.cumsum(count)
    first = 0
    while first < len(count):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + _PAIRS, side="right")), first + 1)
        part = count[first:last]
        starts = np.cumsum(part) - part
        anchor = np.repeat(np.arange(last - first), part)
        which = np.arange(len(anchor)) + np.repeat(begin[first:last] - starts, part)
        iou = box_iou(scene.boxes[which], box[first:last][anchor])
        preferred[rest[first:last]] = _first_of_most(anchor, which, iou)
        first = last
    return preferred


def _first_of_most(anchor: Ints, which: Ints, iou: Floats) -> Ints:
    """Of pairs in ascending order, each anchor's first object of those with its largest IoU."""
    starts = np.flatnonzero(np.diff(anchor, prepend=-1))
    most = np.flatnonzero(iou == np.maximum.reduceat(iou, starts)[anchor])[::-1]
    best = np.zeros(len(starts), dtype=np.int64)
    best[anchor[most]] = which[most]  # the first comes last, and stays
    return best


def _preferred_of_many(objects: Floats, anchors: Floats) -> Ints:
    """`_preferred` for one image, without comparing each anchor with each object."""
    preferred = np.zeros(len(anchors), dtype=np.int64)
    tree = STRtree(shapely.box(*objects.astype(np.float64).T))
    step = max(1, _PAIRS // len(objects))
    for first in range(0, len(anchors), step):
        part = anchors[first : first + step]
        anchor, which = tree.query(shapely.box(*part.astype(np.float64).T))
        order = np.lexsort((which, anchor))
        anchor, which = anchor[order], which[order]
        iou = box_iou(objects[which], part[anchor])
        preferred[first : first + step] = _first_of_most(anchor, which, iou)
    return preferred


def _match_paper(scene: _Scene, found: _Candidates, best: Floats) -> Pairs:
    """Each object's best anchor, and every anchor over the threshold that prefers it."""
    over = found.iou > scene.threshold
    anchors = _distinct(scene, found, over)
    owners = _preferred(scene, anchors)

    tied = found.iou == best[found.object]
    tied &= best[found.object] > 0
    which, key = found.object[tied], found.key[tied]
    order = np.lexsort((key, which))
    which, key, box = which[order], key[order], found.box[tied][order]
    first = np.diff(which, prepend=-1) > 0
    which, key, box = which[first], key[first], box[first]
    if len(anchors.key):
        at = np.searchsorted(anchors.key, key).clip(max=len(anchors.key) - 1)
        new = (anchors.key[at] != key) | (owners[at] != which)
        which, box = which[new], box[new]
    return Pairs(np.concatenate([owners, which]), np.concatenate([anchors.box, box]))


def _match_all_pairs(scene: _Scene) -> tuple[Floats, Pairs]:
    """`_match` for one image by its definition, from the IoU of all pairs."""
    anchors = scene.all_anchors(0)
    best = np.zeros(len(scene.boxes), dtype=scene.boxes.dtype)
    kept = np.flatnonzero(scene.kept)
    if not len(kept):
        return best, Pairs(kept, anchors[:0])
    iou = box_iou(scene.boxes[kept, None], anchors)
    best[kept] = iou.max(axis=1)
    prefers, most = iou.argmax(axis=0), iou.max(axis=0)
    threshold = scene.threshold
    if scene.protocol.as_detectron2:
        positive = np.flatnonzero((most >= threshold) | (iou == best[kept, None]).any(axis=0))
        return best, Pairs(kept[prefers[positive]], anchors[positive])
    over = np.flatnonzero(most > threshold)
    pairs = [(i, a) for a, i in zip(over.tolist(), prefers[over].tolist(), strict=True)]
    own = [(i, int(iou[i].argmax())) for i in range(len(kept)) if best[kept[i]] > 0]
    chosen = np.array(sorted({*pairs, *own}), dtype=np.int64).reshape(-1, 2)
    return best, Pairs(kept[chosen[:, 0]], anchors[chosen[:, 1]])
