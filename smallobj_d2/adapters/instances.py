"""Copy-paste on parallel arrays: masks and boxes, as torchvision and albumentations have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste import CopyPaste, SameImage
from smallobj_d2.copy_paste.checks import require_image
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import Bitmap, box_xyxy


@dataclass(frozen=True)
class Pasted:
    """An image after copy-paste, with M instances: those that it had, then the copies."""

    image: NDArray[np.uint8]
    """(H, W, 3), a new array."""
    index: NDArray[np.int64]
    """(M,): which of the given instances each is, or is a copy of."""
    new: NDArray[np.bool_]
    """(M,): whether it is a copy, or was partly covered by one; all others are as they were."""
    masks: NDArray[Any] | None
    """(M, H, W), of the type of the given masks."""
    boxes: NDArray[np.float64]
    """(M, 4) XYXY."""
    areas: NDArray[np.float64]
    """(M,): pixels of the masks, or what was given."""


def require_same_image(copy_paste: CopyPaste) -> CopyPaste:
    """Refuse a copy-paste whose objects come from a bank: they have none of the host's labels."""
    if not isinstance(copy_paste.sources, SameImage):
        raise SmallObjError(
            f"This transform pastes objects of the image itself, not of {copy_paste.sources!r}; "
            "give CopyPaste no sources, or SameImage."
        )
    return copy_paste


def allows_boxes(copy_paste: CopyPaste) -> bool:
    """Whether one from `require_same_image` pastes rectangles where there are no masks."""
    allowed: bool = copy_paste.sources.rule.boxes  # type: ignore[attr-defined]
    return allowed


def no_masks() -> SmallObjError:
    """What to say where there are boxes alone, and the rule for sources does not allow them."""
    return SmallObjError(
        "There are no masks to cut objects out by. Give the transform masks (`segmentation` of "
        "`objects` in a Hugging Face dataset), or let it paste rectangles: "
        "CopyPaste(sources=SameImage(SourceRule(boxes=True)))."
    )


def paste(
    copy_paste: CopyPaste,
    image: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    masks: NDArray[Any] | None = None,
    boxes: NDArray[np.float64] | None = None,
    areas: Sequence[float] | None = None,
    crowds: Sequence[int] | None = None,
) -> Pasted | None:
    """Copy-paste in an image whose N instances are arrays.

    Args:
        copy_paste: from `require_same_image`.
        image: (H, W, 3) uint8; left as it is.
        rng: the sample's generator.
        masks: (N, H, W) of bool or whole numbers.
        boxes: (N, 4) XYXY, which are pasted as rectangles where there are no masks.
        areas: N; those of the masks or boxes unless given.
        crowds: N; 1 for those that must not be copied.

    Returns:
        What it looks like afterwards, or None if nothing was pasted.

    Raises:
        SmallObjError: for arrays that do not fit, and where there are boxes only and the rule for
            sources does not allow them.
    """
    require_image(image)
    height, width, _ = image.shape
    shapes = [Bitmap.of_array(m, height, width) for m in masks] if masks is not None else None
    if shapes is not None:
        boxes = np.array([s.bounds() for s in shapes], np.float64).reshape(-1, 4)
        counted = [float(np.count_nonzero(s.mask)) for s in shapes]
    elif boxes is not None:
        counted = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1).tolist()
    if boxes is None or (masks is None and not allows_boxes(copy_paste)):
        raise no_masks()
    annotations = [
        {
            "instance": i,
            "bbox": box.tolist(),
            "bbox_mode": 0,
            "area": float(counted[i] if areas is None else areas[i]),
            "iscrowd": int(crowds[i]) if crowds is not None else 0,
        }
        | ({} if masks is None else {"segmentation": masks[i]})
        for i, box in enumerate(boxes)
    ]
    plan = copy_paste.plan(annotations, height, width, rng)
    if not plan.pastes:
        return None
    image = image.copy()
    copy_paste.composite(image, plan)
    after = plan.annotations
    index = np.array([a["instance"] for a in after], np.int64)
    return Pasted(
        image,
        index,
        np.array([a is not annotations[i] for a, i in zip(after, index.tolist(), strict=True)]),
        None if masks is None else np.stack([a["segmentation"] for a in after]),
        np.array([box_xyxy(a) for a in after], np.float64),
        np.array([a["area"] for a in after], np.float64),
    )
