"""Copy-paste as a transform of albumentations (tested with 2.0.8, the last under MIT)."""

from typing import Any

import albumentations
import numpy as np
from numpy.typing import NDArray

from smallobj_d2.adapters.instances import paste, require_same_image
from smallobj_d2.copy_paste import CopyPaste
from smallobj_d2.errors import SmallObjError


class CopyPasteTransform(albumentations.DualTransform):
    """Copy-pastes small objects in ``image``, ``masks`` and ``bboxes``.

    It needs an RGB image of uint8, ``bboxes`` with ``bbox_params``, and a mask for each box in the
    same order (or no masks, see `smallobj_d2.SourceRule`). Copies come last; each has the labels of
    its source, in every field of ``label_fields``. It belongs first in a ``Compose``: crops remove
    boxes without removing their masks.

    The generator is albumentations' own: a sample depends on the seed of the ``Compose`` and on the
    samples before it in the same process. Call its ``set_random_seed`` with a number made from seed
    and index before each sample, and the sample is a function of the two.

    Args:
        copy_paste: what is done.
        p: share of the images to augment.
    """

    def __init__(self, copy_paste: CopyPaste, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.copy_paste = require_same_image(copy_paste)

    @property
    def targets(self) -> dict[str, Any]:
        return {"image": self.apply, "masks": self.apply_to_masks, "bboxes": self.apply_to_bboxes}

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """What is pasted, planned for the whole sample."""
        others = {"mask", "keypoints", "images", "volume", "volumes", "mask3d"}
        others = (others | self._additional_targets.keys()) & data.keys()
        bboxes, masks = data.get("bboxes"), data.get("masks")
        if others or not isinstance(bboxes, np.ndarray):
            what = f"not {', '.join(sorted(others))}" if others else "and bboxes are missing"
            raise SmallObjError(
                f"Copy-paste takes image, masks and bboxes (of a Compose with bbox_params), {what}."
            )
        if self.deterministic:  # as ReplayCompose makes it
            raise SmallObjError(
                "Copy-paste cannot be replayed: what is pasted is of one image. Leave it out of "
                "ReplayCompose."
            )
        if masks is not None and len(masks) != len(bboxes):
            raise SmallObjError(
                f"There are {len(masks)} masks for {len(bboxes)} bboxes. Copy-paste belongs before "
                "transforms that remove boxes, such as crops."
            )
        if not len(bboxes):
            return {"pasted": None}
        height, width = data["image"].shape[:2]
        pixels = bboxes[:, :4].astype(np.float64) * (width, height, width, height)
        pasted = paste(
            self.copy_paste, data["image"], self.random_generator, masks=masks, boxes=pixels
        )
        return {"pasted": pasted}

    def apply(self, img: NDArray[Any], *, pasted: Any, **_: Any) -> NDArray[Any]:
        return img if pasted is None else pasted.image

    def apply_to_masks(self, masks: Any, *, pasted: Any, **_: Any) -> Any:
        return masks if pasted is None else pasted.masks

    def apply_to_bboxes(self, bboxes: NDArray[Any], *, pasted: Any, **_: Any) -> NDArray[Any]:
        """Boxes in shares of the image, with one column for each label field."""
        if pasted is None:
            return bboxes
        height, width = pasted.image.shape[:2]
        extended = bboxes[pasted.index]
        boxes = pasted.boxes[pasted.new] / (width, height, width, height)
        extended[pasted.new, :4] = boxes
        return extended
