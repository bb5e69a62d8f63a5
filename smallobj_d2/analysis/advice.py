"""What the numbers mean for somebody who decides whether and how to augment, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from smallobj_d2.analysis.objects import Objects
from smallobj_d2.analysis.presented import Presented
from smallobj_d2.analysis.protocols import training_protocol
from smallobj_d2.analysis.table2 import PUBLISHED, Table, percent
from smallobj_d2.copy_paste import CopyPaste, SourceRule
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.sizes import SMALL_AREA

NEARLY_ALL = 0.99
"""Where so many images have small objects, there are hardly any to draw less often."""

_EXAMINED = 5_000
"""Small-object images in which sources are looked for; a fair sample where there are more."""


@dataclass(frozen=True)
class Sources:
    """What copy-paste finds to copy (sections 4 and 5.3)."""

    small_images: int
    """Images with at least one small object."""
    examined: int
    """Of these, how many were looked at."""
    with_source: int
    """Of those looked at, how many have an object that may be copied."""
    candidates: float
    """Objects that may be copied, per image looked at."""
    wanted: float
    """Copies that the config wants per augmented draw, on average."""
    under_others: int = 0
    """Of those looked at, how many have one only if other instances may lie over it."""

    @property
    def share(self) -> float:
        """Share of the small-object images that have a source."""
        return self.with_source / self.examined if self.examined else 0.0


def find_sources(
    records: Sequence[dict[str, Any]], objects: Objects, cfg: Any, *, progress: bool = False
) -> Sources:
    """Look for objects that may be copied, by the rule and strategy of a config.

    Args:
        records: M dataset dicts.
        objects: of the same images.
        cfg: a config with ``SMALLOBJ``; whether ``COPY_PASTE`` is on does not matter here.
        progress: show a progress bar.
    """
    rule, copy_paste = SourceRule.from_config(cfg), CopyPaste.from_config(cfg)
    rng = np.random.default_rng(0)
    small = np.unique(objects.image[objects.bands(cfg.SMALLOBJ.SMALL_AREA) == 0])
    chosen = np.sort(rng.permutation(small)[:_EXAMINED])
    found, wanted, under_others = [], [], 0
    for index in tqdm(
        chosen.tolist(),
        desc="Objects to copy",
        unit=" images",
        mininterval=0.5,
        disable=not progress,
    ):
        record = records[index]
        scene = Scene(record["annotations"], record["height"], record["width"])
        candidates = rule.candidates(scene)
        found.append(len(candidates))
        under_others += not candidates and bool(replace(rule, max_covered=1).candidates(scene))
        copies = len(copy_paste.choose(candidates, rng)) * copy_paste.copies if candidates else 0
        wanted.append(min(copies, copy_paste.max_pastes))
    return Sources(
        small_images=len(small),
        examined=len(chosen),
        with_source=sum(n > 0 for n in found),
        candidates=sum(found) / max(len(chosen), 1),
        wanted=sum(wanted) / max(len(chosen), 1),
        under_others=under_others,
    )


def advise(
    objects: Objects,
    tables: Sequence[Table],
    sources: Sources,
    cfg: Any,
    after: Presented | None = None,
) -> list[str]:
    """Some sentences of advice.

    Args:
        objects: the dataset.
        tables: its Table 2, one per protocol.
        sources: what there is to copy in it.
        cfg: the config that ``sources`` and ``after`` are about.
        after: what the config's draws show, where this was asked for.
    """
    if not len(objects):
        return ["There is no object in this dataset, so there is nothing to say about it."]
    s = cfg.SMALLOBJ
    small, paper = tables[0].rows["small"], PUBLISHED.rows["small"]
    images, with_small = objects.num_images, int(small.images)
    if not with_small:
        return [
            f"No object is small (mask area below {s.SMALL_AREA:g} pixels), so neither "
            "oversampling nor copy-paste of small objects would change anything. If objects are "
            "small for your purpose nevertheless, raise SMALLOBJ.SMALL_AREA."
        ]
    training = next((t for t in tables if t.protocol == "training"), None)
    words = [
        f"{with_small:,} of {images:,} images ({percent(small.image_share)}) have a small object, "
        f"and {percent(small.object_share)} of all objects are small. In COCO it is "
        f"{percent(paper.image_share)} and {percent(paper.object_share)}.",
        _on_oversampling(small.image_share, s.OVERSAMPLING_FACTOR),
        *_on_rarity((training or tables[0]).rows["small"].matched_share),
        *_on_masks(objects, s.PASTE_BOXES),
    ]
    if objects.masked.any() or s.PASTE_BOXES:
        words.append(_on_sources(sources, s))
        if sources.with_source:
            words.append(_on_pastes(sources, s, after))
    if training is not None:
        words += [_on_resizing(objects, cfg), _on_anchors(training)]
    return [*words, *_on_crowded_images(objects, cfg)]


def _on_oversampling(share: float, factor: float) -> str:
    if share > NEARLY_ALL:
        every = "Every image has" if share == 1 else "Nearly every image has"
        as_now = "" if share == 1 else " nearly"
        return (
            f"{every} small objects, so oversampling cannot help: all images would be drawn"
            f"{as_now} equally often, as before, and only an epoch would be longer. Leave "
            "SMALLOBJ.OVERSAMPLING_FACTOR at 1 and look at copy-paste, where "
            "SMALLOBJ.AUGMENTATION_PROBABILITY alone says how many of the drawn images are "
            "augmented."
        )
    factor = factor if factor > 1 else 3.0
    drawn = factor * share / (factor * share + 1 - share)
    effect = (
        f"With an oversampling factor of {factor:g}, {percent(drawn)} of the drawn images would "
        f"have small objects instead of {percent(share)}"
    )
    if share > 0.9:
        return f"{effect}: there is hardly anything that oversampling can shift here."
    return (
        f"{effect}. The paper gained most for small objects with a factor of 3, at a cost for "
        "large ones (its Table 3)."
    )


def _on_rarity(matched: float) -> list[str]:
    """Whether the network sees as little of small objects as the paper says of COCO."""
    if not matched > 0.8:
        return []
    return [
        f"Small objects have {percent(matched)} of the matched anchors already. The paper's reason "
        "to oversample and to paste is that they have few (30% on COCO, its Table 2). What "
        "copy-paste can still add here is variety: other neighbors and backgrounds. Measure it "
        "against a baseline."
    ]


def _on_masks(objects: Objects, paste_boxes: bool) -> list[str]:
    share = objects.masked.mean()
    if share == 1:
        return []
    if share > 0:
        missing = len(objects) - int(objects.masked.sum())
        return [f"{missing:,} of {len(objects):,} objects have no mask and cannot be cut out."]
    if paste_boxes:
        return ["No object has a mask; SMALLOBJ.PASTE_BOXES pastes upright rectangles."]
    return [
        "No object has a mask, so copy-paste has no outline to cut along. Oversampling works "
        "without masks; or set SMALLOBJ.PASTE_BOXES True to paste upright rectangles, which the "
        "paper did not try."
    ]


def _on_sources(sources: Sources, s: Any) -> str:
    claimed = ""
    if sources.under_others > sources.with_source:
        claimed = (
            f" In {percent(sources.under_others / sources.examined)} of these images other "
            "instances claim the pixels of all that else might be copied. If that is because they "
            "stand on a larger object, as windows on a wall, and not behind one, set "
            "SMALLOBJ.MAX_COVERED 1.0."
        )
    if not sources.with_source:
        return (
            "No small object of any image may be copied: all are occluded, in pieces "
            "or cut off by the image border. Copy-paste would change nothing; the criteria are "
            f"SMALLOBJ.REQUIRE_CONNECTED, REQUIRE_INSIDE and MAX_COVERED.{claimed}"
        )
    sampled = "" if sources.examined == sources.small_images else ", judged by a sample"
    number = round(sources.share * sources.small_images)
    if s.SOURCES == "bank":
        rest = "The config pastes them into other images."
    elif sources.share < 1:
        rest = "The other images stay as they are when they are augmented."
    else:
        rest = "So each of them can be augmented."
    return (
        f"In {number:,} of the {sources.small_images:,} images with small objects "
        f"({percent(sources.share)}{sampled}) at least one of them may be copied (in one piece, "
        f"not occluded, not cut off); on average {sources.candidates:.1f} of them. {rest}{claimed}"
    )


def _on_pastes(sources: Sources, s: Any, after: Presented | None) -> str:
    settings = f"strategy {s.STRATEGY}, {s.COPIES} {'copy' if s.COPIES == 1 else 'copies'} each"
    wish = f"{sources.wanted:.1f} copies in each augmented image on average"
    if after is None or not after.counts["copies_wanted"]:
        return (
            f"Copy-paste as configured ({settings}) would try {wish}. Use --augment CONFIG to "
            "see what a config does to this dataset."
        )
    counts, tried = after.counts, after.counts["copies_wanted"]
    text = (
        f"This config ({settings}) tries {wish}; in {after.objects.num_images:,} draws it "
        f"augmented {counts['augmented_draws']:,} and pasted {counts['copies_pasted']:,} copies"
    )
    reasons = {
        "found no free place": counts["copies_without_place"],
        "own no pixel": counts["copies_without_pixels"],
        f"were over SMALLOBJ.MAX_PASTES ({s.MAX_PASTES})": counts["copies_over_limit"],
    }
    if sum(reasons.values()) < 0.01 * tried:
        return f"{text}, nearly all that it tried."
    lost = ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)
    many = counts["copies_without_place"] > 0.2 * tried
    full = " These images are full: more copies will not fit." if many else ""
    return f"{text}. It tried {tried:,}: {lost}.{full}"


def _on_resizing(objects: Objects, cfg: Any) -> str:
    """How large small objects are when the network sees them."""
    heights, _ = training_protocol(cfg).input_sizes(objects)
    small = objects.bands(cfg.SMALLOBJ.SMALL_AREA) == 0
    sides = np.sqrt(objects.areas[small])
    image = objects.image[small]
    seen = sides * heights[image] / objects.heights[image]
    text = (
        f"A small object is {np.median(sides):.0f} pixels wide (median; the root of its area), and "
        f"{np.median(seen):.0f} in the input of the configured network"
    )
    side = SMALL_AREA**0.5
    text += f". {percent((seen < side).mean())} of the small objects are below {side:.0f} there"
    if (seen < sides).mean() > 0.5:
        text += ": INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN downscale most of them"
    return f"{text}."


def _on_crowded_images(objects: Objects, cfg: Any) -> list[str]:
    """Images with more objects than the network may find."""
    counts, most = np.diff(objects.ranges()), cfg.TEST.DETECTIONS_PER_IMAGE
    crowded = int((counts > most).sum())
    if not crowded:
        return []
    beyond = (counts - most).clip(min=0).sum() / len(objects)
    return [
        f"{crowded:,} of {len(counts):,} images have more than {most} objects, {counts.max():,} at "
        "most, and the network returns no more detections per image "
        f"(TEST.DETECTIONS_PER_IMAGE). Where validation images are like these, {percent(beyond)} "
        "of the objects cannot be found, however good the model is: raise it."
    ]


def _on_anchors(table: Table) -> str:
    small, large = table.rows["small"], table.rows["large"]
    text = (
        f"In the input that the configured network sees, a small object overlaps its best anchor "
        f"by {small.mean_max_iou:.2f} (IoU) on average"
    )
    if large.objects:
        text += f", a large one by {large.mean_max_iou:.2f}"
    if small.mean_max_iou < 0.4:
        text += (
            ". That is low; repeat this with other MODEL.ANCHOR_GENERATOR.SIZES or another "
            "INPUT.MIN_SIZE_TRAIN to see their effect"
        )
    return f"{text}."
