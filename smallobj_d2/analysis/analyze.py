"""Everything that section 3 asks of a dataset, counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smallobj_d2.analysis.advice import Sources, advise, find_sources
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.matching import Matches, match
from smallobj_d2.analysis.objects import Objects
from smallobj_d2.analysis.presented import Presented, presented
from smallobj_d2.analysis.protocols import PAPER, Protocol, training_protocol
from smallobj_d2.analysis.table2 import Gain, Table, gains, table2
from smallobj_d2.errors import SmallObjError

PROTOCOLS = ("paper", "training")


@dataclass
class Analysis:
    """Everything that a report tells."""

    name: str
    objects: Objects
    small_area: float
    protocols: list[Protocol]
    matches: list[Matches]
    tables: list[Table]
    sources: Sources
    advice: list[str]
    notes: list[str]
    config: str
    """What the advice and ``after`` are about."""
    after: Presented | None
    after_tables: list[Table]

    @property
    def gains(self) -> list[Gain]:
        """What the config changes for small objects."""
        if self.after is None:
            return []
        return gains(self.tables, self.after_tables, self.after.epochs, self.after.drawn_from)


def analyze(
    data: CocoFile,
    name: str,
    cfg: Any,
    *,
    augment: Any = None,
    config_name: str = "",
    protocols: Sequence[str] = PROTOCOLS,
    epochs: int = 1,
    draws: int | None = None,
    progress: bool = False,
) -> Analysis:
    """Count everything.

    Args:
        data: the dataset.
        name: what to call it.
        cfg: the config whose network the ``training`` protocol is about.
        augment: a config whose draws are to be compared with the dataset, or None.
        config_name: what to call ``augment``, or ``cfg`` where that is None.
        protocols: which of `PROTOCOLS`.
        epochs, draws: see `presented`.
        progress: show progress bars.
    """
    objects = data.objects
    if not objects.num_images:
        raise SmallObjError(f"{name} has no image.")
    settings = cfg if augment is None else augment
    s = settings.SMALLOBJ
    can_paste = s.PASTE_BOXES or objects.masked.any() or not len(objects)
    if augment is not None and s.COPY_PASTE and not can_paste:
        raise SmallObjError(
            f"{config_name} has SMALLOBJ.COPY_PASTE on, but no annotation of {name} has a mask to "
            "cut objects out by. Set SMALLOBJ.PASTE_BOXES True to paste rectangles (not in the "
            "paper), or SMALLOBJ.COPY_PASTE False."
        )
    small_area = float(s.SMALL_AREA)
    chosen = [PAPER if p == "paper" else training_protocol(cfg) for p in protocols]

    def count(what: Objects, label: str) -> tuple[list[Matches], list[Table]]:
        matches = [match(what, p, progress=progress) for p in chosen]
        tables = [
            table2(what, m, data=label, protocol=p.name, small_area=small_area)
            for p, m in zip(chosen, matches, strict=True)
        ]
        return matches, tables

    matches, tables = count(objects, name)
    after: Presented | None = None
    after_tables: list[Table] = []
    if augment is not None:
        after = presented(data, objects, augment, epochs=epochs, draws=draws, progress=progress)
        _, after_tables = count(after.objects, f"with {config_name}")
    sources = find_sources(data, objects, settings, progress=progress)
    return Analysis(
        name=name,
        objects=objects,
        small_area=small_area,
        protocols=chosen,
        matches=matches,
        tables=tables,
        sources=sources,
        advice=advise(objects, tables, sources, settings, after),
        notes=_notes(data),
        config=config_name,
        after=after,
        after_tables=after_tables,
    )


def _notes(data: CocoFile) -> list[str]:
    meanings = {
        "no iscrowd": "lacked `iscrowd`, which was taken to be 0",
        "no area": "lacked `area`; that of the mask was taken, or of the box",
        "no valid polygon": "had nothing left of their mask, and were left out",
        "box does not hold mask": "had a box that does not hold the mask; the mask's was taken",
    }
    counts = {f"annotations {meanings.get(w, w)}.": count for w, count in data.repaired.items()}
    warnings = sum(f.severity == "warning" for f in data.findings)
    notes = [f"{count:,} {what}" for what, count in counts.items() if count]
    if data.objects.crowds:
        notes.insert(0, f"Crowds are left out, as in training: {data.objects.crowds:,}.")
    if warnings:
        notes.append(f"smallobj analyze --check has {warnings:,} warnings about these annotations.")
    return notes
