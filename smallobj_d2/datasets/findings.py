"""What can be wrong with a dataset: kinds of findings, and how they are reported.

An *error* would make training wrong or end it with a traceback. A *warning* is probably a mistake;
training leaves that one item out or repairs it. A *note* is harmless and good to know.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from smallobj_d2.errors import SmallObjError, printable, shown

logger = logging.getLogger(__name__)

SEVERITIES = ("error", "warning", "note")
"""From worst to harmless."""

DEEPEST = 50
"""Lists and objects within each other; copying and packing annotations fails at a few hundred."""

_FIX = "Export the annotations again"
KINDS: dict[str, tuple[str, str]] = {
    # The file
    "file-unreadable": ("error", "Name a file that exists and that you may read"),
    "json-damaged": ("error", "Copy or export the file again; it may be truncated"),
    "json-encoding": (
        "error",
        "Save it as UTF-8 without a byte order mark; COCO's tools read nothing else",
    ),
    "json-deep": ("error", f"Remove values nested more than {DEEPEST} deep"),
    "not-coco": ("error", "COCO instance JSON has the lists images, annotations and categories"),
    "list-empty": ("warning", "Check that it is the right file"),
    "entry-form": ("error", "Each entry of the three lists is an object with named values"),
    "key-missing": ("error", "Add it, or export the annotations in COCO's instance format"),
    "key-unknown": ("note", "Nothing to do; it is kept"),
    # Ids
    "id-form": ("error", "An id is a whole number or a string"),
    "id-mixed": ("error", "Make all of them whole numbers, or all of them strings"),
    "id-duplicate": ("error", "Give each its own id; merged files must be renumbered"),
    "id-zero": ("warning", "Number from 1: COCO's own tools take 0 for 'not found'"),
    "image-unknown": ("error", "Add the image to `images`, or remove the annotation"),
    "category-unknown": ("error", "Add the category to `categories`, or correct the annotation"),
    # Categories
    "category-name": ("error", "Give the category a name, a non-empty string"),
    "category-name-duplicate": ("warning", "Merge the two, or give them names that differ"),
    "category-unused": ("note", "Nothing to do; no instance has it, so it is not learned"),
    # Images in the JSON
    "file-name": ("error", "file_name is the path of the image relative to the image folder"),
    "file-outside": ("error", "file_name must stay inside the image folder"),
    "file-duplicate": ("warning", "Make each file one image with all its annotations"),
    "size-form": ("error", "height and width are whole numbers above 0"),
    "size-float": ("note", "Nothing to do; it is read as a whole number"),
    "size-huge": ("error", "Cut the image into tiles; Pillow and COCO's tools refuse larger ones"),
    "size-thin": ("error", "Cut or pad it; resizing would leave nothing of its shorter side"),
    "size-tiny": ("note", "Nothing to do, if it is meant to be that small"),
    "image-empty": ("note", "Nothing to do; DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves it out"),
    "image-crowded": ("note", "Raise TEST.DETECTIONS_PER_IMAGE, or no more than 100 can be found"),
    # Boxes
    "bbox-form": ("error", "bbox is [x, y, width, height], four numbers"),
    "bbox-mode": ("error", "Write XYWH boxes, and remove bbox_mode"),
    "bbox-not-finite": ("error", f"{_FIX}; its box is unknown"),
    "bbox-negative": ("error", "Order the corners before taking their difference"),
    "bbox-zero": ("warning", "Remove it; training takes its mask's box, or leaves it out"),
    "bbox-off-image": ("error", "Correct the box, or the size of the image, or remove it"),
    "bbox-outside": ("warning", "Nothing to do, if the border cuts it off; training clips it"),
    "bbox-xyxy": ("error", "Write the third and fourth number as width and height: x1-x0, y1-y0"),
    "bbox-normalized": ("error", "Multiply by width and height of the image; COCO has pixels"),
    "bbox-center": ("error", "Take half of the width from x, and half of the height from y"),
    "bbox-y-first": ("error", "Write x before y, in the box as in the mask"),
    "bbox-mask": ("warning", "Check both; training takes the mask's box instead"),
    # Masks
    "no-masks": (
        "note",
        "Set MODEL.MASK_ON False; copy-paste needs SMALLOBJ.PASTE_BOXES True, too",
    ),
    "mask-missing": ("warning", "Add its mask; without one, training of masks leaves it out"),
    "mask-form": ("error", "segmentation is a list of polygons, or an RLE"),
    "mask-empty": ("warning", "Remove it or outline it again; there is nothing to learn from it"),
    "polygon-form": ("error", "A polygon is a flat list [x, y, x, y, ...] of numbers"),
    "polygon-pairs": ("error", "Write a polygon's points one after the other: [x, y, x, y, ...]"),
    "polygon-corners": ("error", "Export outlines, or leave `segmentation` out; these are boxes"),
    "polygon-normalized": ("error", "Multiply by width and height of the image; COCO has pixels"),
    "polygon-y-first": ("error", "Write x before y"),
    "polygon-short": (
        "warning",
        "Remove it; training does so, and an instance without another mask goes",
    ),
    "polygon-odd": ("warning", "Outline it again; training removes it, as half a point is missing"),
    "polygon-not-finite": ("error", f"{_FIX}; its outline is unknown"),
    "polygon-crossing": ("note", "Nothing to do; COCO's tools fill it by the even-odd rule"),
    "polygon-outside": ("warning", "Clip it to the image; training does so"),
    "polygon-off-image": ("error", "Correct it, or the size of the image, or remove it"),
    "rle-form": ("error", "An RLE has size [height, width] and counts, a list or a string"),
    "rle-size": ("error", "Make the mask for the image's own height and width"),
    "rle-counts": ("error", "Encode the mask again, with pycocotools.mask.encode"),
    # What else annotations have
    "area-missing": ("note", "Nothing to do; it is filled in from the mask, or the box"),
    "area-form": ("error", "area is a number, 0 or more; without it, the mask is measured"),
    "area-normalized": ("error", "Remove `area`, or give it in pixels; it decides what is small"),
    "area-zero": ("warning", "Remove it; training measures the mask or the box instead"),
    "area-mask": ("warning", "Remove `area` and the mask is measured; it decides what is small"),
    "iscrowd-missing": ("note", "Nothing to do; it is filled in as 0"),
    "iscrowd-form": ("error", "iscrowd is 0, or 1 for a region of many"),
    "ignore": ("error", "Set iscrowd 1 instead, or remove it; COCO's tools do not look at ignore"),
    "keypoints-form": ("error", "keypoints are x, y, v for each point, finite numbers"),
    # Image files
    "image-missing": ("error", "Put the file there, or remove the image from the JSON"),
    "image-unreadable": ("error", "Correct its permissions, or the path"),
    "image-zero-bytes": ("error", "Copy the file again; it is empty"),
    "image-damaged": ("error", "Copy or save the image again; it cannot be read to its end"),
    "image-size": ("error", "Correct height and width in the JSON, or restore the image"),
    "image-16-bit": ("error", "Save it with 8 bits; otherwise most of it would be read as white"),
    "image-turned": ("warning", "Annotations must fit the image as its EXIF orientation turns it"),
    "image-gray": ("note", "Nothing to do; red, green and blue become equal"),
    "image-palette": ("note", "Nothing to do; its palette is converted to colors"),
    "image-transparent": ("note", "Nothing to do; transparency is dropped, colors stay"),
    "image-cmyk": ("warning", "Save it as RGB; otherwise colors may be off"),
    "image-other": ("note", "Nothing to do; Pillow converts it to RGB"),
    "image-frames": ("note", "Nothing to do; the first frame is read"),
    "image-link": ("note", "Nothing to do, if you have put that link there"),
}
"""Kind to severity and remedy."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect."""

    kind: str
    """A key of `KINDS`."""
    what: str
    file: str
    """The JSON, or the image file."""
    image: Any = None
    """Id of the image, where it is about one."""
    annotation: Any = None
    """Id of the annotation, where it is about one."""

    @property
    def severity(self) -> str:
        return KINDS[self.kind][0]

    @property
    def remedy(self) -> str:
        return KINDS[self.kind][1]

    @property
    def where(self) -> str:
        """The image and the annotation, as far as it is about one."""
        ids = (("image", self.image), ("annotation", self.annotation))
        return ", ".join(f"{name} {shown(i)}" for name, i in ids if i is not None)

    def __str__(self) -> str:
        return printable(f"{': '.join(filter(None, (self.where, self.what)))}. {self.remedy}.")


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Findings sorted: errors first, those of one kind together, otherwise as they came."""
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order[f.kind]))


def exit_code(findings: Iterable[Finding]) -> int:
    """2 where there is an error, 1 where there is a warning, else 0."""
    worst = min((SEVERITIES.index(f.severity) for f in findings), default=2)
    return 2 - worst


def stop_on_errors(findings: Iterable[Finding]) -> None:
    """Do nothing unless one of the findings is an error.

    Raises:
        SmallObjError: the first few errors, how many there are, and how to see all.
    """
    errors = by_severity(f for f in findings if f.severity == "error")
    if not errors:
        return
    text = [f"{f.file}: {f}" for f in errors[:_FIRST]]
    if len(errors) > 1:
        file = errors[0].file
        text.append(f"{len(errors)} errors; smallobj analyze --check --json {file} lists all.")
    raise SmallObjError(" ".join(text))


_FIRST = 3


def log_findings(findings: Iterable[Finding]) -> None:
    """One line in the log for each kind of warning and note, with its number."""
    for kind, group in _grouped(findings):
        severity = KINDS[kind][0]
        if severity == "error":
            continue
        level = logging.WARNING if severity == "warning" else logging.INFO
        count = f"{len(group)} {severity}{'' if len(group) == 1 else 's'}"
        logger.log(
            level, "%s: %s of %s, such as %s", printable(group[0].file), count, kind, group[0]
        )


def _grouped(findings: Iterable[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    for kind, group in groupby(by_severity(findings), key=lambda f: f.kind):
        yield kind, list(group)


def report(findings: Iterable[Finding], *, notes: int | None = 5) -> str:
    """All findings as a table: worst first, by kind, each with its place and what is wrong.

    Args:
        findings: of `check_coco`.
        notes: how many notes of each kind to show; None for all. Errors and warnings are all shown.
    """
    findings = by_severity(findings)
    lines = []
    for kind, group in _grouped(findings):
        severity, remedy = KINDS[kind]
        lines.append(f"{severity:8}{kind}: {len(group)}. {remedy}.")
        limit = len(group) if severity != "note" or notes is None else notes
        rows = [(printable(f.file), f.where, printable(f.what)) for f in group[:limit]]
        widths = [max(len(row[i]) for row in rows) for i in range(2)] if rows else []
        for row in rows:
            file, where = (text.ljust(w) for text, w in zip(row[:2], widths, strict=True))
            lines.append(f"        {file}  {where}  {row[2]}".rstrip())
        if len(group) > limit:
            lines.append(f"        ... and {len(group) - limit} more")
    counts = Counter(f.severity for f in findings)
    total = ", ".join(f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in SEVERITIES)
    return "\n".join([*lines, total])
