"""Pictures with outlines, side by side on a sheet, in one style."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from smallobj_d2.errors import printable

Outlines = list[NDArray[np.float64]]


class Style(NamedTuple):
    """How an outline is drawn. Sorted, those drawn last come last."""

    thickness: int
    colour: tuple[int, int, int]
    """RGB."""


ORIGINAL = Style(1, (80, 220, 255))
"""Instances that the image had."""
PASTED = Style(2, (255, 64, 160))
"""Pasted instances."""
FOUND = Style(1, (60, 255, 60))
"""Detections of an annotated object."""
WRONG = Style(2, (255, 150, 0))
"""Detections of nothing."""
MISSED = Style(2, (255, 40, 40))
"""Annotated objects that were not detected."""
ZOOMED = Style(0, (255, 255, 255))
"""What the view beside it enlarges."""


@dataclass
class View:
    """One sample as a person can look at it."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    outlines: list[Outlines]
    """Per instance its outline in pixels, (P, 2) float64 arrays."""
    styles: list[Style]
    """Per instance how it is drawn."""
    labels: list[str] = field(default_factory=list)
    """Per instance what is written beside it; without any, nothing is."""

    @classmethod
    def of_sample(
        cls, image: NDArray[np.uint8], channels: str, outlines: list[Outlines], pasted: list[bool]
    ) -> "View":
        """A mapper's image (3, H, W), RGB or BGR, with its instances; those pasted in pink."""
        rgb = image[:: -1 if channels == "BGR" else 1].transpose(1, 2, 0)
        styles = [PASTED if copy else ORIGINAL for copy in pasted]
        return cls(np.ascontiguousarray(rgb), outlines, styles)


def outlines_of_mask(mask: NDArray[Any]) -> Outlines:
    """The outer borders of a bitmap (H, W), as polygons to draw."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [c.reshape(-1, 2) + np.float64(0.5) for c in contours]


def outlines_of_box(x0: float, y0: float, x1: float, y1: float) -> Outlines:
    """A box as a polygon to draw."""
    return [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)]


def zoom(view: View, around: Sequence[Outlines]) -> tuple[View, View]:
    """A view with a frame around its smallest instance, and what is in the frame, enlarged.

    Outlines hide what is as small as they are wide, so the second has none.

    Args:
        view: what to enlarge a part of.
        around: instances to choose from; without any, the frame is in the middle.
    """
    height, width = view.image.shape[:2]
    boxes = [np.concatenate([np.min(p, axis=0), np.max(p, axis=0)])
             for p in (np.concatenate(parts) for parts in around if parts)]  # fmt: skip
    middle = np.array([width, height, width, height]) / 2
    x0, y0, x1, y1 = min(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=middle)
    factor = np.clip(min(width / (x1 - x0 + 1), height / (y1 - y0 + 1)) / 4, 1, 4)
    w, h = max(1, round(width / factor)), max(1, round(height / factor))
    x = round(np.clip((x0 + x1 - w) / 2, 0, width - w))
    y = round(np.clip((y0 + y1 - h) / 2, 0, height - h))
    frame = outlines_of_box(x, y, x + w, y + h)
    labels = [*view.labels, ""] if view.labels else []
    framed = View(view.image, [*view.outlines, frame], [*view.styles, ZOOMED], labels)
    return framed, View(np.ascontiguousarray(view.image[y : y + h, x : x + w]), [], [])


def draw(view: View, *, width: int) -> NDArray[np.uint8]:
    """A picture of a sample, scaled to a width, every instance outlined.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    height = round(view.image.shape[0] * width / view.image.shape[1])
    shrink = cv2.INTER_AREA if width < view.image.shape[1] else cv2.INTER_LINEAR
    resized = cv2.resize(view.image, (width, height), interpolation=shrink)
    canvas = np.asarray(resized, np.uint8)
    scale = width / view.image.shape[1]
    for style, i in sorted(zip(view.styles, range(len(view.outlines)), strict=True)):
        points = [np.rint((p * scale - 0.5) * 16).astype(np.int32) for p in view.outlines[i]]
        line = max(style.thickness, 1)
        cv2.polylines(canvas, points, True, style.colour, line, cv2.LINE_AA, shift=4)
    if not any(view.labels):
        return canvas
    picture = Image.fromarray(canvas)
    text, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for label, style, outlines in zip(view.labels, view.styles, view.outlines, strict=True):
        if label and outlines:
            label, points = printable(label), np.concatenate(outlines) * scale
            x = min(points[:, 0].min(), width - text.textlength(label, font=font) - 1)
            y = points[:, 1].min() - 13
            if style == MISSED:  # apart from a wrong detection of the same object
                y = points[:, 1].max()
            at = max(x, 1), np.clip(y, 0, height - 14)
            text.text(at, label, style.colour, font, stroke_width=1, stroke_fill="black")
    return np.array(picture)


def contact_sheet(
    rows: Iterable[tuple[Sequence[View], str]],
    *,
    titles: Sequence[str],
    legend: Mapping[str, Style] | None = None,
    width: int = 480,
) -> Image.Image:
    """Rows of pictures side by side, a caption over each row.

    Args:
        rows: views that belong together, and what to say about them.
        titles: what each column shows.
        legend: what an outline of each style means, for a line at the bottom.
        width: of one picture, in pixels.
    """
    gap, line = 8, 22
    font = ImageFont.load_default(size=14)
    blocks = []
    for views, caption in rows:
        pictures = [draw(v, width=width) for v in views]
        block = Image.new(
            "RGB", (len(titles) * (width + gap) + gap, max(map(len, pictures)) + line), "white"
        )
        ImageDraw.Draw(block).text((gap, 2), printable(caption), fill="black", font=font)
        for i, picture in enumerate(pictures):
            block.paste(Image.fromarray(picture), (gap + i * (width + gap), line))
        blocks.append(block)
    total = line + gap + sum(b.height + gap for b in blocks) + (line if legend else 0)
    sheet = Image.new("RGB", (len(titles) * (width + gap) + gap, total), "white")
    text = ImageDraw.Draw(sheet)
    for i, title in enumerate(titles):
        text.text((gap + i * (width + gap), 4), printable(title), fill="black", font=font)
    y = line + gap
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height + gap
    x = float(gap)
    for meaning, style in (legend or {}).items():
        text.line([(x, y + 8), (x + 24, y + 8)], fill=style.colour, width=2 * style.thickness)
        text.text((x + 30, y), meaning, fill="black", font=font)
        x += 54 + text.textlength(meaning, font=font)
    return sheet
