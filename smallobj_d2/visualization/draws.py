"""Sheets of draws: what the mapper really feeds the model, original beside augmented."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from PIL import Image

from smallobj_d2.visualization.sheets import PASTED, View, contact_sheet, zoom


def training_sheet(
    dataset: Any,
    originals: Sequence[Any],
    view: Callable[[Any], View],
    positions: Sequence[int],
    *,
    width: int,
) -> Image.Image:
    """A contact sheet of draws of a stream, as the mapper gives them to the model.

    Beside each stands a part of it enlarged, without outlines, around its smallest copy.

    Args:
        dataset: samples by their position in the stream, such as
            `smallobj_d2.engines.loader.DrawDataset`.
        originals: the same draws without copy-paste.
        view: makes a view of a sample.
        positions: which draws to show. Draws that show the original are shown as such.
        width: of one picture, in pixels.
    """
    rows = []
    for position in positions:
        sample = dataset[position]
        before, after = view(originals[position]), view(sample)
        pairs = zip(after.outlines, after.styles, strict=True)
        copies = [outlines for outlines, style in pairs if style == PASTED]
        what = f"{len(copies)} pasted" if copies else "nothing pasted in this draw"
        caption = f"draw {position}, image {sample['image_id']}: {len(before.outlines)} instances"
        rows.append(([before, *zoom(after, copies or after.outlines)], f"{caption}, {what}"))
    titles = ["original", "as the model sees it (copies in pink)", "enlarged (white frame)"]
    return contact_sheet(rows, titles=titles, width=width)


def augmented_positions(dataset: Any, count: int, *, look_at: int = 2000) -> list[int]:
    """The first positions of a stream whose draws are pasted into, ``count`` at most.

    Args:
        dataset: see `training_sheet`.
        count: how many to find.
        look_at: how many positions to look at before giving up.
    """
    augmentation = getattr(dataset.mapper, "augmentation", None)
    if augmentation is None:
        return list(range(count))

    def changes(position: int) -> bool:
        plan = augmentation.plan(dataset.record(position))
        return bool(plan and plan.pasted)

    return list(islice(filter(changes, range(look_at)), count))
