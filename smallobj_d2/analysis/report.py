"""The report of an analysis: tables, pictures and what they mean, in files that need no others."""

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from smallobj_d2.analysis.advice import TEXTS
from smallobj_d2.analysis.analyze import Analysis
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.table2 import PUBLISHED, as_json, side_by_side
from smallobj_d2.analysis.table2 import Table as Table2
from smallobj_d2.datasets.images import read_rgb
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.sizes import SMALL_AREA
from smallobj_d2.visualization.document import Document, Picture, Table, emphasis


def write_report(
    analysis: Analysis, folder: Path, data: CocoFile | None = None, show: Sequence[str] = ()
) -> list[Path]:
    """Write the report.

    Args:
        analysis: what to tell.
        folder: where to; it is made.
        data: the dataset, for the images of Figure 5; None leaves that figure out.
        show: which images to take for it; see `figure5_images`.

    Returns:
        The files, the report itself first.
    """
    if find_spec("matplotlib") is None:
        pictures = []
        analysis.notes.append("No plots: they need matplotlib, which the extra report installs.")
    else:
        pictures = [*_pictures(analysis), *_figure5(analysis, data, show)]
    document = build_report(analysis, pictures)
    drawn = document.write_pictures(folder)
    files = [folder / "report.html", folder / "tables.md", folder / "tables.json"]
    files[0].write_text(document.html(), encoding="utf-8")
    files[1].write_text(document.markdown(None), encoding="utf-8")
    files[2].write_text(json.dumps(numbers(analysis), indent=1), encoding="utf-8")
    return files + drawn


def build_report(analysis: Analysis, pictures: Sequence[Picture] = ()) -> Document:
    """The report: what the numbers mean, then the numbers."""
    count = f"{analysis.objects.num_images:,} images, {len(analysis.objects):,} objects"
    document = Document(f"{analysis.name}: {count}")
    document.items(analysis.advice, answer=True)
    for i, table in enumerate(analysis.tables):
        shown = [table, *analysis.after_tables[i : i + 1]]
        published = table.protocol == "paper" and analysis.small_area == SMALL_AREA
        if published:
            shown.append(PUBLISHED)
        document.heading(f"Objects and anchors by size, {_PROTOCOL_TITLES[table.protocol]}")
        protocol = analysis.protocols[i]
        sizes = ", ".join(f"{size:g}" for level in protocol.levels for size in level.sizes)
        strides = ", ".join(str(level.stride) for level in protocol.levels)
        facts = {"sizes": sizes, "strides": strides, "published": published}
        document.text(*TEXTS("protocol", protocol=protocol, **facts))
        document.add(comparison(shown))
    if analysis.gains:
        document.heading("What the augmentation changes")
        document.text(
            "What training with the config shows of small objects, against the images that it "
            "draws from, as they are."
        )
        header = ["", analysis.name, f"with {analysis.config}", "change"]
        document.add(Table(header, [g.cells() for g in analysis.gains]))
    for picture in pictures:
        document.add(picture)
    if analysis.notes:
        document.heading("Notes")
        document.items(analysis.notes)
    document.heading("How to read this")
    terms = [t.split(": ", 1) for t in TEXTS("terms", small_area=analysis.small_area)]
    document.items([Markup("<strong>{}</strong>: {}").format(*term) for term in terms])
    return document


def comparison(tables: Sequence[Table2]) -> Table:
    """One table that compares several by the paper's Table 2; the paper's numbers in italics."""
    header, rows = side_by_side(tables)
    rows = [[r[0], *map(emphasis, r[1:])] if PUBLISHED.data in r else r for r in rows]
    return Table(header, rows, text=2, rules=range(0, len(rows), len(tables)))


def _pictures(analysis: Analysis) -> Iterator[Picture]:
    """The plots of the numbers."""
    from smallobj_d2.analysis import figures

    objects, small_area = analysis.objects, analysis.small_area
    after = analysis.after.objects if analysis.after else None
    if len(objects):
        yield _picture("sizes", figures.size_histogram(objects, after, small_area), after=after)
        if analysis.after_tables:
            yield _picture("shares", figures.shares(analysis.tables, analysis.after_tables))
        matches = dict(zip(analysis.protocols, analysis.matches, strict=True))
        yield _picture("anchors_by_size", figures.matches_by_size(objects, matches, small_area))
    if (objects.bands(small_area) == 0).any():
        cells = figures.cells_for(objects, small_area)
        maps = {"Dataset": figures.location_map(objects, cells, small_area)}
        if after is not None:
            maps["As the config presents it"] = figures.location_map(after, cells, small_area)
        before, *others = map(figures.spread, maps.values())
        png = figures.locations(maps)
        yield _picture("locations", png, before=before, after=others[0] if others else None)


def _figure5(analysis: Analysis, data: CocoFile | None, show: Sequence[str]) -> list[Picture]:
    """Anchors on images, where there are images; a note on those that cannot be had."""
    from smallobj_d2.analysis import figures

    if data is None:
        analysis.notes.append("With --images, anchors are drawn on some of the images.")
        return []
    pixels, missing = {}, []
    for i in figure5_images(data, show):
        try:
            pixels[i] = read_rgb(data[i])
        except UnreadableImage:
            missing.append(data.images[i]["file_name"])
    if missing:
        analysis.notes += TEXTS("not_on_images", missing=missing)
    if not pixels:
        return []
    objects = data.objects.images([*pixels])
    png = figures.anchor_overlay(
        [*pixels.values()], objects, analysis.protocols, analysis.small_area
    )
    return [_picture("anchors_on_images", png)]


def _picture(name: str, png: bytes, **facts: Any) -> Picture:
    return Picture(name, png, "png", TEXTS(name, **facts)[0])


def numbers(analysis: Analysis) -> Any:
    """All numbers of a report, for a JSON file."""
    after = analysis.after
    return as_json(
        {
            "dataset": analysis.name,
            "images": analysis.objects.num_images,
            "objects": len(analysis.objects),
            "crowds_left_out": analysis.objects.crowds,
            "small_area": analysis.small_area,
            "config": analysis.config,
            "protocols": analysis.protocols,
            "tables": analysis.tables,
            "published": PUBLISHED,
            "sources": analysis.sources,
            "augmented": after
            and {
                "draws": after.objects.num_images,
                "epochs": after.epochs,
                **after.counts,
                "tables": analysis.after_tables,
                "gains": analysis.gains,
            },
            "advice": analysis.advice,
            "notes": analysis.notes,
        }
    )


_PROTOCOL_TITLES = {
    "paper": "as the paper counted",
    "training": "as the configured network is trained",
}


def _named(data: CocoFile, wanted: str) -> int:
    """The image of an id, or whose path ends with a name."""
    images = list(enumerate(data.images))
    found = [i for i, image in images if str(image["image_id"]) == wanted]
    found = found or [i for i, r in images if f"/{r['file_name']}".endswith(f"/{wanted}")]
    if len(found) != 1:
        which = f"there are {len(found)} images" if found else "there is no image"
        raise SmallObjError(f"--show: {which} {wanted} in the dataset.")
    return found[0]


def figure5_images(data: CocoFile, wanted: Sequence[str] = (), number: int = 3) -> list[int]:
    """Which images to draw anchors on: those named, else some with few objects of many sizes.

    Args:
        data: the dataset.
        wanted: image ids, or file names, with their folder or without.
        number: how many to choose where none is named.
    """
    if wanted:
        return [_named(data, name) for name in wanted]
    objects = data.objects
    images = objects.num_images
    bands = objects.bands()
    counts = [np.bincount(objects.image[bands == b], minlength=images) for b in range(3)]
    total = np.sum(counts, axis=0)
    score = 10 * (np.array(counts) > 0).sum(axis=0) - np.abs(total - 6) - 1000 * (total == 0)
    best = np.argsort(-score, kind="stable")[:number]
    chosen: list[int] = best[total[best] > 0].tolist()
    return chosen
