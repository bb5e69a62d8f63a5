"""The pictures of section 3, for any dataset, as PNG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from smallobj_d2.analysis.matching import Matches, matched_anchors
from smallobj_d2.analysis.objects import Objects
from smallobj_d2.analysis.protocols import Protocol
from smallobj_d2.analysis.table2 import Table
from smallobj_d2.sizes import BANDS, MEDIUM_AREA, SMALL_AREA
from smallobj_d2.visualization.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    file_of,
    panels,
    styled,
)

COLOURS = {"small": ORANGE, "medium": GREEN, "large": BLUE}
_LINES = {"paper": (BLACK, "--"), "training": (PINK, "-")}


def _sides(objects: Objects) -> NDArray[np.float64]:
    """(N,) square roots of areas, at least half a pixel, for an axis of powers."""
    return np.sqrt(objects.areas).clip(min=0.5)


def _bins(objects: Objects, small_area: float) -> NDArray[np.float64]:
    """Edges of size bins, four for each doubling; the limits of the bands are edges."""
    sides = _sides(objects)
    low = np.floor(np.log2(min(sides.min(initial=8), 8)) * 4)
    high = np.ceil(np.log2(max(sides.max(initial=128), 128)) * 4)
    edges = np.exp2(np.arange(low, high + 1) / 4)
    for limit in _limits(small_area):
        edges[np.abs(np.log(edges / limit)).argmin()] = limit
    return np.unique(edges)


def _limits(small_area: float) -> tuple[float, float]:
    """Sides of the smallest medium and the smallest large object."""
    return float(np.sqrt(small_area)), float(np.sqrt(max(small_area, MEDIUM_AREA)))


def _size_axis(axis: Axes, edges: NDArray[np.float64], small_area: float) -> None:
    """A logarithmic axis of object sizes, the bands of Table 1 behind it."""
    axis.set_xscale("log", base=2)
    axis.set_xlim(edges[0], edges[-1])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_xlabel("object size: square root of the mask area, pixels of the original image")
    limits = [edges[0], *_limits(small_area), edges[-1]]
    for size, low, high in zip(BANDS, limits[:-1], limits[1:], strict=True):
        axis.axvspan(low, max(low, high), color=COLOURS[size], alpha=0.07, lw=0, zorder=0)
    for limit in limits[1:-1]:
        axis.axvline(limit, color=GREY, lw=0.8, zorder=1)


@styled
def size_histogram(
    objects: Objects, after: Objects | None = None, small_area: float = SMALL_AREA
) -> bytes:
    """How many objects of each size there are, per image, before and after."""
    figure, axes = panels(8, 3.6)
    axis = axes[0, 0]
    edges, sides = _bins(objects, small_area), _sides(objects)
    bands = objects.bands(small_area)
    middle = np.sqrt(edges[1:] * edges[:-1])
    for band, size in enumerate(BANDS):
        here = sides[bands == band]
        counts = np.histogram(here, edges)[0] / max(objects.num_images, 1)
        share = len(here) / max(len(objects), 1)
        axis.bar(
            middle,
            counts,
            width=np.diff(edges) * 0.94,
            color=COLOURS[size],
            label=f"{size}: {len(here):,} ({share:.0%})",
        )
    if after is not None:
        counts = np.histogram(_sides(after).clip(edges[0], edges[-1] * 0.999), edges)[0]
        axis.stairs(
            counts / max(after.num_images, 1),
            edges,
            color="black",
            lw=1.4,
            label="as the config presents it",
        )
    _size_axis(axis, edges, small_area)
    axis.set_ylabel("objects per image")
    axis.set_title("Sizes of objects")
    axis.legend()
    return file_of(figure, "png")


@styled
def matches_by_size(
    objects: Objects, matches: dict[Protocol, Matches], small_area: float = SMALL_AREA
) -> bytes:
    """Matched anchors per object, and IoU with the best anchor, against the object's size."""
    figure, axes = panels(8, 6, rows=2)
    edges = _bins(objects, small_area)
    middle = np.sqrt(edges[1:] * edges[:-1])
    which = (np.digitize(_sides(objects), edges) - 1).clip(max=len(middle) - 1)
    seen = np.unique(which)
    for protocol, found in matches.items():
        colour, line = _LINES.get(protocol.name, (SKY, "-."))
        for axis, values in zip(axes[:, 0], (found.matched, found.max_iou), strict=True):
            groups = [values[which == at] for at in seen]
            mean = [group.mean(dtype=np.float64) for group in groups]
            low, high = np.array([np.percentile(group, (10, 90)) for group in groups]).T
            axis.plot(middle[seen], mean, line, color=colour, marker="o", ms=3, label=protocol.name)
            axis.fill_between(middle[seen], low, high, color=colour, alpha=0.15, lw=0)
    for axis in axes[:, 0]:
        _size_axis(axis, edges, small_area)
    axes[0, 0].set_xlabel("")
    axes[0, 0].set_yscale("symlog", linthresh=1, base=2)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes[0, 0].set_ylabel("matched anchors per object")
    axes[0, 0].set_title("Anchors matched to an object (mean; shade: 10% to 90% of objects)")
    axes[0, 0].legend(title="protocol", loc="upper center")
    axes[1, 0].set_ylim(0, 1)
    for threshold in {protocol.threshold for protocol in matches}:
        axes[1, 0].axhline(threshold, color=GREY, lw=0.8, ls=":")
    axes[1, 0].set_ylabel("IoU with the best anchor")
    axes[1, 0].set_title("Overlap with the best anchor")
    return file_of(figure, "png")


@styled
def shares(before: Sequence[Table], after: Sequence[Table]) -> bytes:
    """Which sizes get the objects and the matched anchors, before and after (Figure 4)."""
    bars = [("objects", before[0], after[0], "object_share")]
    bars += [
        (f"anchors, {b.protocol}", b, a, "matched_share")
        for b, a in zip(before, after, strict=True)
    ]
    rows = [
        (f"{what}\n{when}", [getattr(table.rows[size], column) for size in BANDS])
        for what, old, new, column in bars
        for when, table in (("dataset", old), ("as presented", new))
    ]
    figure, axes = panels(8, 0.62 * len(rows) + 1.1)
    axis = axes[0, 0]
    for i, (_, values) in enumerate(rows):
        left = 0.0
        for size, value in zip(BANDS, np.nan_to_num(values), strict=True):
            at = i + 0.35 * (i // 2)
            axis.barh(at, value, left=left, color=COLOURS[size], height=0.8)
            if value > 0.04:
                axis.text(
                    left + value / 2, at, f"{value:.0%}", ha="center", va="center", color="white"
                )
            left += value
    axis.set_yticks([i + 0.35 * (i // 2) for i in range(len(rows))], [label for label, _ in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(visible=False)
    axis.set_title("Who gets the objects and the anchors", pad=24)
    axis.legend(
        handles=[Patch(color=COLOURS[size], label=size) for size in BANDS],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        borderaxespad=0.2,
    )
    return file_of(figure, "png")


def cells_for(objects: Objects, small_area: float = SMALL_AREA) -> int:
    """Cells along each side of a map of locations: few enough that several objects fall in each."""
    small = int((objects.bands(small_area) == 0).sum())
    return int(np.clip(np.sqrt(small / 4), 4, 32))


def location_map(
    objects: Objects, cells: int, small_area: float = SMALL_AREA
) -> NDArray[np.float64]:
    """(cells, cells) small objects per image by where in the image their centres lie."""
    small = objects.bands(small_area) == 0
    sizes = np.stack([objects.widths, objects.heights], axis=1)[objects.image[small]]
    boxes = objects.boxes[small].astype(np.float64)
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 / sizes).clip(0, 1 - 1e-9)
    column, row = (centres * cells).astype(np.int64).T
    counts = np.bincount(row * cells + column, minlength=cells * cells)
    return counts.reshape(cells, cells) / max(objects.num_images, 1)


def spread(counts: NDArray[np.float64]) -> float:
    """Share of the image, in cells of a location map, that half of the small objects lie in.

    0.5 if they are everywhere alike, less if they crowd.
    """
    ordered = np.sort(counts.ravel())[::-1].cumsum()
    if not ordered.size or ordered[-1] == 0:
        return 0.0
    return float((np.searchsorted(ordered, ordered[-1] / 2) + 1) / ordered.size)


@styled
def locations(maps: dict[str, NDArray[np.float64]]) -> bytes:
    """Where small objects lie in the image (section 1).

    Args:
        maps: location maps by their titles.
    """
    figure, axes = panels(4.2 * len(maps) + 0.8, 4.2, columns=len(maps))
    top = max(counts.max() for counts in maps.values()) or 1.0
    for axis, (title, counts) in zip(axes[0], maps.items(), strict=True):
        image = axis.imshow(
            counts, cmap="cividis", vmin=0, vmax=top, extent=(0, 1, 1, 0), aspect="equal"
        )
        axis.grid(visible=False)
        axis.set_title(title)
        axis.set_xlabel("from left to right")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylabel("from top to bottom")
    label = "small objects per image and cell"
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8, label=label)
    return file_of(figure, "png")


@styled
def anchor_overlay(
    pictures: Sequence[NDArray[np.uint8]],
    objects: Objects,
    protocols: Sequence[Protocol],
    small_area: float = SMALL_AREA,
) -> bytes:
    """Objects and the anchors matched to them, drawn on images (Figure 5).

    Args:
        pictures: K images (H, W, 3) uint8 RGB.
        objects: of these K images.
        protocols: one row of pictures each.
    """
    aspects = [p.shape[1] / p.shape[0] for p in pictures]
    height = min(11 / sum(aspects), 4.5)
    figure, axes = panels(
        height * sum(aspects) + 0.2 * len(pictures),
        (height + 0.35) * len(protocols) + 0.4,
        columns=len(pictures),
        rows=len(protocols),
        width_ratios=aspects,
    )
    bands = objects.bands(small_area)
    names = list(BANDS)
    for row, protocol in zip(axes, protocols, strict=True):
        pairs = matched_anchors(objects, protocol)
        heights, widths = protocol.input_sizes(objects)
        scale = np.stack([objects.widths / widths, objects.heights / heights], axis=1)
        anchors = pairs.anchors * np.tile(scale, 2)[objects.image[pairs.objects]]
        for k, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            axis.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0))
            axis.set_xlim(0, picture.shape[1])
            axis.set_ylim(picture.shape[0], 0)
            axis.axis("off")
            here = objects.image[pairs.objects] == k
            colours = [COLOURS[names[b]] for b in bands[pairs.objects[here]]]
            axis.add_collection(
                LineCollection(list(_outlines(anchors[here])), colors=colours, lw=0.9)
            )
            truth = [
                Rectangle((x0, y0), x1 - x0, y1 - y0)
                for x0, y0, x1, y1 in objects.boxes[objects.image == k].tolist()
            ]
            for colour, line in (("black", 2.2), ("white", 1.1)):
                axis.add_collection(
                    PatchCollection(truth, facecolor="none", edgecolor=colour, linewidth=line)
                )
            title = f"{int(here.sum())} anchors for {len(truth)} objects"
            axis.set_title(f"{protocol.name}: {title}" if k == 0 else title, fontsize=10)
    handles = [Patch(facecolor="white", edgecolor="black", label="object")]
    handles += [
        Patch(facecolor="none", edgecolor=COLOURS[size], label=f"anchor of a {size} object")
        for size in BANDS
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return file_of(figure, "png")


def _outlines(boxes: NDArray[Any]) -> NDArray[Any]:
    """(P, 5, 2) closed outlines of XYXY boxes (P, 4)."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(-1, 5, 2)
