"""Copy-paste between a Hugging Face dataset and the image processor of a DETR-like model."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smallobj_d2.adapters.instances import allows_boxes, no_masks, require_same_image
from smallobj_d2.adapters.randomness import Randomness
from smallobj_d2.copy_paste import CopyPaste
from smallobj_d2.datasets.images import is_deep
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import has_mask


class CopyPasteTransform:
    """A function of batches, for ``Dataset.with_transform``.

    A batch has ``image`` (PIL), ``image_id`` and ``objects``: for each image a dict of lists, or a
    list of dicts, with ``bbox`` (x, y, width, height in pixels), ``category``, ``area`` and perhaps
    ``iscrowd`` and ``segmentation``, as COCO has them. Polygons stay polygons. Crowds are not
    pasted over, and left out afterwards, as the processors do.

    Args:
        copy_paste: what is done.
        processor: called with ``images``, COCO-style ``annotations`` and ``return_tensors="pt"``.
        p: share of the images to augment.
        seed: see `Randomness`.
    """

    def __init__(
        self,
        copy_paste: CopyPaste,
        processor: Callable[..., Any],
        *,
        p: float = 0.5,
        seed: int | None = None,
    ) -> None:
        self.copy_paste, self.processor = require_same_image(copy_paste), processor
        self.randomness = Randomness(p, seed)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, where there is a seed."""
        self.randomness.set_epoch(epoch)

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Augment a batch and let the processor make model inputs of it."""
        if missing := {"image", "image_id", "objects"} - batch.keys():
            raise SmallObjError(f"A batch has no {', '.join(sorted(missing))}; see the docstring.")
        images, annotations = [], []
        for image, image_id, objects in zip(
            batch["image"], batch["image_id"], batch["objects"], strict=True
        ):
            pixels, instances = _pixels(image), _instances(objects)
            rng = self.randomness.generator(image_id)
            if rng is not None and instances:
                if not allows_boxes(self.copy_paste) and not _names_masks(objects):
                    raise no_masks()
                pixels, instances = self.copy_paste(pixels, instances, rng)
            images.append(pixels)
            kept = [
                {k: v for k, v in a.items() if k != "copy_paste"}
                for a in instances
                if not a["iscrowd"]
            ]
            annotations.append({"image_id": image_id, "annotations": kept})
        return self.processor(images=images, annotations=annotations, return_tensors="pt")


def _pixels(image: Any) -> NDArray[np.uint8]:
    if not isinstance(image, Image.Image) or is_deep(image.mode):
        what = f"of mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
        raise SmallObjError(
            f"`image` is {what}; it must be a Pillow image of 8 bits, as the feature "
            "datasets.Image decodes it."
        )
    return np.array(image.convert("RGB"))


def _names_masks(objects: Any) -> bool:
    """Whether a dataset has masks: `segmentation`, which may be empty in some of its images."""
    each = [objects] if isinstance(objects, Mapping) else objects
    return any("segmentation" in names for names in each)


def _instances(objects: Any) -> list[dict[str, Any]]:
    """The objects of one image as COCO-style annotations."""
    if isinstance(objects, Mapping):
        objects = [
            dict(zip(objects, row, strict=True)) for row in zip(*objects.values(), strict=True)
        ]
    instances = []
    for given in objects:
        a = {k: v for k, v in given.items() if k != "id" and v is not None}
        try:
            a["category_id"] = a.pop("category")
            a["bbox"] = [float(v) for v in a["bbox"]]
        except KeyError as e:
            raise SmallObjError(f"`objects` has no {e}; it needs bbox, category and area.") from e
        a["iscrowd"] = int(a.get("iscrowd", 0))
        if not has_mask(a):
            a.pop("segmentation", None)
        instances.append(a)
    return instances
