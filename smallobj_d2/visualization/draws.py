"""Sheets of draws: what the mapper really feeds the model, original beside augmented."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from smallobj_d2.visualization.sheets import PASTED, contact_sheet


def training_sheet(
    engine: Any, cfg: Any, dataset: Any, positions: Sequence[int], *, width: int
) -> Image.Image:
    """A contact sheet of draws of a config's stream, as its mapper gives them to the model.

    Args:
        engine: an engine, see `smallobj_d2.engines`.
        cfg: the config; ``SEED`` must not be negative.
        dataset: that of the engine's training loader for this config.
        positions: which draws to show. Draws that show the original are shown as such.
        width: of one picture, in pixels.
    """
    plain = cfg.clone()
    plain.defrost()
    plain.SMALLOBJ.COPY_PASTE = False
    before = engine.build_train_loader(plain).dataset
    rows = []
    for position in positions:
        sample = dataset[position]
        views = [engine.view(before[position], plain), engine.view(sample, cfg)]
        copies = views[1].styles.count(PASTED)
        what = f"{copies} pasted" if copies else "nothing pasted in this draw"
        rows.append(
            (
                views,
                f"draw {position}, image {sample['image_id']}: "
                f"{len(views[0].outlines)} instances, {what}",
            )
        )
    return contact_sheet(
        rows, titles=["original", "as the model sees it (copies in pink)"], width=width
    )


def augmented_positions(dataset: Any, count: int, *, look_at: int = 2000) -> list[int]:
    """The first positions of a config's stream whose draws get pastes, ``count`` at most.

    Args:
        dataset: see `training_sheet`.
        count: how many to find.
        look_at: how many positions to look at before giving up.
    """
    augmentation = getattr(dataset.mapper, "augmentation", None)
    if augmentation is None:
        return list(range(count))
    found: list[int] = []
    for position in range(look_at):
        plan = augmentation.plan(dataset.record(position))
        if plan is not None and plan.pasted:
            found.append(position)
            if len(found) == count:
                break
    return found
