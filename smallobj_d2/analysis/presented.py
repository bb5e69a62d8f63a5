"""A dataset as a config's stream of draws presents it: repeat factors and pastes included."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from smallobj_d2.analysis.objects import Objects, objects_of
from smallobj_d2.augmentation import build_augmentation
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sampling import Stream, factors_from_config

_COPIES = {
    "copies_wanted": "tried",
    "copies_pasted": "pasted",
    "copies_without_place": "given_up",
    "copies_without_pixels": "empty",
    "copies_over_limit": "capped",
}
"""What is counted of copies, and what `smallobj_d2.copy_paste.paste.Plan` calls it."""


@dataclass(frozen=True)
class Presented:
    """What some draws of a config show."""

    objects: Objects
    """Each draw is an image here."""
    drawn_from: int
    """How many images the draws are of."""
    epochs: float
    """How many epochs these draws make."""
    counts: dict[str, int]
    """``augmented_draws``, and what is counted of copies."""


class _Chosen(Sequence[dict[str, Any]]):
    """Some records of a sequence, unpacked when they are asked for."""

    def __init__(self, records: Sequence[dict[str, Any]], chosen: list[int]) -> None:
        self._records, self._chosen = records, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        return self._records[self._chosen[index]]


def drawn_from(objects: Objects, cfg: Any) -> NDArray[np.intp]:
    """The images that training with a config draws from."""
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return np.arange(objects.num_images)
    return np.flatnonzero(np.diff(objects.ranges()))


def presented(
    records: Sequence[dict[str, Any]],
    objects: Objects,
    cfg: Any,
    *,
    epochs: int = 1,
    draws: int | None = None,
    progress: bool = False,
) -> Presented:
    """Go through the draws of training with a config, annotations only.

    The draws, and what is pasted in each, are those of a training run with the same ``SEED`` (0
    where it is negative) on the same dataset.

    Args:
        records: M dataset dicts.
        objects: of the same images.
        cfg: a config with ``SMALLOBJ``.
        epochs: how many epochs.
        draws: no more draws than this; the first ones of the shuffled order are a fair sample.
        progress: show a progress bar.
    """
    records = _Chosen(records, drawn_from(objects, cfg).tolist())
    if not len(records):
        raise SmallObjError("There is no image with an annotation that is not a crowd.")
    seed = max(cfg.SEED, 0)
    factors = factors_from_config(records, cfg)
    stream = Stream(factors, seed)
    augmentation = build_augmentation(cfg, seed, records, _blank, factors, progress=progress)
    whole = stream.epoch_start(epochs)
    count = min(whole, draws or whole)
    counts = dict.fromkeys(("augmented_draws", *_COPIES), 0)

    def shown() -> Iterator[Mapping[str, Any]]:
        hide = not progress or None  # None: where it is no terminal
        for position in tqdm(range(count), desc="draws", unit="img", disable=hide):
            draw = stream[position]
            record = {**records[draw.index], "draw": draw}
            plan = augmentation.plan(record) if augmentation else None
            if plan is not None:
                record["annotations"] = plan.annotations
                counts["augmented_draws"] += 1
                for name, of_plan in _COPIES.items():
                    counts[name] += getattr(plan, of_plan)
            yield record

    return Presented(objects_of(shown()), len(records), count / whole * epochs, counts)


def _blank(record: Mapping[str, Any]) -> NDArray[np.uint8]:
    """In place of an image: what is pasted where does not depend on pixels."""
    return np.zeros((record["height"], record["width"], 3), np.uint8)
