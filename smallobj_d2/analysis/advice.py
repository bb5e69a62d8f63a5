"""What the numbers mean for somebody who decides whether and how to augment, in plain words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from smallobj_d2.analysis.objects import Objects
from smallobj_d2.analysis.presented import Presented, drawn_from
from smallobj_d2.analysis.protocols import training_protocol
from smallobj_d2.analysis.table2 import PUBLISHED, Table
from smallobj_d2.copy_paste import CopyPaste, SourceRule
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.sizes import SMALL_AREA
from smallobj_d2.visualization.texts import Texts

TEXTS = Texts("smallobj_d2.analysis")

FEW_SOURCES = 0.25
"""Below this share of images with an object to copy, no gain was measured."""
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
    hide = not progress or None  # None: where it is no terminal
    for index in tqdm(chosen.tolist(), desc="objects to copy", unit="img", disable=hide):
        record = records[index]
        scene = Scene(record["annotations"], record["height"], record["width"])
        candidates = rule.candidates(scene)
        found.append(len(candidates))
        under_others += not candidates and bool(replace(rule, max_covered=1).candidates(scene))
        copies = len(copy_paste.choose(candidates, rng)) * copy_paste.copies if candidates else 0
        wanted.append(min(copies, copy_paste.max_pastes))
    if cfg.SMALLOBJ.SOURCES == "bank":  # which has no image without objects
        wanted = [copies for copies, n in zip(wanted, found, strict=True) if n]
    return Sources(
        small_images=len(small),
        examined=len(chosen),
        with_source=sum(n > 0 for n in found),
        candidates=sum(found) / max(len(chosen), 1),
        wanted=sum(wanted) / max(len(wanted), 1),
        under_others=under_others,
    )


def advise(
    objects: Objects,
    tables: Sequence[Table],
    sources: Sources,
    cfg: Any,
    after: Presented | None = None,
) -> list[str]:
    """Some sentences of advice: a block of ``templates/report.txt``, filled in.

    Args:
        objects: the dataset.
        tables: its Table 2, one per protocol.
        sources: what there is to copy in it.
        cfg: the config that ``sources`` and ``after`` are about.
        after: what the config's draws show, where this was asked for.
    """
    s, training = cfg.SMALLOBJ, next((t for t in tables if t.protocol == "training"), None)
    small = tables[0].rows["small"]
    factor = s.OVERSAMPLING_FACTOR if s.OVERSAMPLING_FACTOR > 1 else 3.0
    trained = len(drawn_from(objects, cfg))
    share = small.images / max(trained, 1)
    most, in_image = cfg.TEST.DETECTIONS_PER_IMAGE, np.diff(objects.ranges())
    counts = after.counts if after else Counter[str]()
    facts = {
        "objects": len(objects),
        "images": objects.num_images,
        "trained": trained,
        "share": share,
        "masked": int(objects.masked.sum()),
        "small": small,
        "paper": PUBLISHED.rows["small"] if s.SMALL_AREA == SMALL_AREA else None,
        "nearly_all": NEARLY_ALL,
        "factor": factor,
        "drawn": factor * share / (factor * share + 1 - share),
        "matched": (training or tables[0]).rows["small"].matched_share,
        "sources": sources,
        "few": FEW_SOURCES,
        "s": s,
        "draws": after and after.objects.num_images,
        "counts": counts,
        "lost": {
            "found no free place": counts["copies_without_place"],
            "own no pixel": counts["copies_without_pixels"],
            f"were over SMALLOBJ.MAX_PASTES ({s.MAX_PASTES})": counts["copies_over_limit"],
        },
        "training": training and training.rows,
        "most": most,
        "crowded": int((in_image > most).sum()),
        "largest": int(in_image.max(initial=0)),
        "beyond": int((in_image - most).clip(min=0).sum()),
    }
    if training and small.images:
        facts |= _as_the_network_sees_them(objects, cfg)
    return TEXTS("advice", **facts)


def _as_the_network_sees_them(objects: Objects, cfg: Any) -> dict[str, float]:
    """How large small objects are when the network sees them."""
    heights, _ = training_protocol(cfg).input_sizes(objects)
    small = objects.bands(cfg.SMALLOBJ.SMALL_AREA) == 0
    sides, image = np.sqrt(objects.areas[small]), objects.image[small]
    seen = sides * heights[image] / objects.heights[image]
    side = round(SMALL_AREA**0.5)
    return {
        "width": np.median(sides),
        "seen": np.median(seen),
        "side": side,
        "below": (seen < side).mean(),
        "downscaled": (seen < sides).mean(),
    }
