"""Copy-paste as a transform of ``torchvision.transforms.v2``, for detection datasets."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.transforms import v2

from smallobj_d2.adapters.instances import Pasted, paste, require_same_image
from smallobj_d2.adapters.randomness import Randomness
from smallobj_d2.copy_paste import CopyPaste
from smallobj_d2.errors import SmallObjError

_INSTANCE = ("masks", "boxes", "labels", "area", "iscrowd", "bbox", "category_id", "segmentation")
"""Keys of a target with an entry for each instance, as ``CocoDetection`` has them."""


_UPRIGHT_FORMATS = tuple(tv_tensors.BoundingBoxFormat[n] for n in ("XYXY", "XYWH", "CXCYWH"))


class CopyPasteTransform(v2.Transform):
    """Copy-pastes small objects in samples of an image and a target.

    The image is a ``tv_tensors.Image`` of uint8 or a PIL image, RGB. The target is a dict as
    ``wrap_dataset_for_transforms_v2`` makes it, with ``masks`` (or only ``boxes``, see
    `smallobj_d2.SourceRule`); a target without instances passes. Every entry for instances follows:
    masks, boxes, areas and COCO's ``bbox`` and ``segmentation`` (RLE for copies) are those of the
    copies, all others are taken over from their source. It belongs first, before resizing and
    conversion to float.

    Args:
        copy_paste: what is done.
        p: share of the images to augment.
        seed: see `Randomness`; with it, the target needs ``image_id``.
        instance_keys: further keys with an entry for each instance.
        image_keys: further keys with a list or tensor about the image as a whole.

    Raises:
        SmallObjError: at the call, for a list or tensor of which neither is known.
    """

    def __init__(
        self,
        copy_paste: CopyPaste,
        *,
        p: float = 0.5,
        seed: int | None = None,
        instance_keys: Iterable[str] = (),
        image_keys: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.copy_paste = require_same_image(copy_paste)
        self.randomness = Randomness(p, seed)
        self.instance_keys = (*_INSTANCE, *instance_keys)
        self.image_keys = ("image_id", *image_keys)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, where there is a seed."""
        self.randomness.set_epoch(epoch)

    def forward(self, *inputs: Any) -> tuple[Any, dict[str, Any]]:
        """Augment a sample: an image and its target, as two arguments or a pair."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        is_pair = isinstance(sample, list | tuple) and len(sample) == 2
        if not (is_pair and isinstance(sample[1], Mapping)):
            raise SmallObjError(
                "Copy-paste takes an image and its target, a dict as "
                "wrap_dataset_for_transforms_v2 makes it. Give it to the dataset as `transforms`, "
                "not as `transform`."
            )
        image, target = sample
        count = self._instances(target)
        rng = self.randomness.generator(target.get("image_id")) if count else None
        if rng is None:
            return image, target
        masks, boxes = target.get("masks"), target.get("boxes")
        pasted = paste(
            self.copy_paste,
            _as_array(image),
            rng,
            masks=None if masks is None else np.asarray(masks),
            boxes=None if boxes is None else _in_format(boxes, "XYXY").numpy().astype(np.float64),
            areas=target.get("area"),
            crowds=target.get("iscrowd"),
        )
        if pasted is None:
            return image, target
        extended = {
            k: _extended(k, v, pasted) if k in self.instance_keys else v for k, v in target.items()
        }
        return _like(pasted.image, image), extended

    def _instances(self, target: dict[str, Any]) -> int:
        """How many instances a target has; refuses what cannot be extended with them."""
        counts = {}
        for key, value in target.items():
            is_many = isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0
            if not is_many or key in self.image_keys:
                continue
            moves = isinstance(value, tv_tensors.KeyPoints | tv_tensors.BoundingBoxes)
            if key == "keypoints" or (moves and key != "boxes"):
                raise SmallObjError(
                    f"target[{key!r}] has keypoints or boxes that would stay where their "
                    "source is: only masks, boxes, bbox and segmentation follow a copy. Leave it "
                    "out of the target."
                )
            if key not in self.instance_keys:
                raise SmallObjError(
                    f"target[{key!r}] is a {type(value).__name__} of {len(value)}. If it has an "
                    f"entry for each instance, pass instance_keys=({key!r},); if it is about the "
                    f"image, image_keys=({key!r},)."
                )
            counts[key] = len(value)
        if len(set(counts.values())) > 1:
            raise SmallObjError(
                f"The target has entries for different numbers of objects: {counts}."
            )
        if "boxes" in counts and not isinstance(target["boxes"], tv_tensors.BoundingBoxes):
            raise SmallObjError("target['boxes'] must be tv_tensors.BoundingBoxes, with a format.")
        if "boxes" in counts and target["boxes"].format not in _UPRIGHT_FORMATS:
            kind = target["boxes"].format.value
            raise SmallObjError(f"target['boxes'] are {kind}; copy-paste takes upright boxes.")
        if "segmentation" in counts and "masks" not in counts:
            raise SmallObjError(
                "target['segmentation'] needs target['masks'], to follow the copies."
            )
        return next(iter(counts.values()), 0)


def _as_array(image: Any) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        return np.asarray(image)
    array: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    return array


def _like(array: NDArray[np.uint8], image: Any) -> Any:
    if isinstance(image, Image.Image):
        return Image.fromarray(array)
    tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    is_tv = isinstance(image, tv_tensors.TVTensor)
    return tv_tensors.wrap(tensor, like=image) if is_tv else tensor


def _in_format(boxes: Any, new: Any) -> Any:
    return v2.functional.convert_bounding_box_format(boxes, new_format=new)


def _extended(key: str, value: Any, pasted: Pasted) -> Any:
    """The entries of the instances afterwards."""
    if key == "masks":
        masks = pasted.masks
        is_tensor = isinstance(value, torch.Tensor)
        return tv_tensors.wrap(torch.from_numpy(masks), like=value) if is_tensor else masks
    if key == "boxes":
        whole = not value.is_floating_point() and pasted.masks is None
        xyxy = torch.from_numpy(pasted.boxes).to(torch.float32 if whole else value.dtype)
        boxes = tv_tensors.BoundingBoxes(xyxy, format="XYXY", canvas_size=value.canvas_size)
        new = _in_format(boxes, value.format)
        old = value[pasted.index].to(new.dtype)
        return tv_tensors.wrap(
            torch.where(torch.from_numpy(pasted.new)[:, None], new, old), like=new
        )
    entries = [value[i] for i in pasted.index.tolist()]
    for i in np.flatnonzero(pasted.new).tolist():
        if key == "area":
            entries[i] = float(pasted.areas[i])
        elif key == "bbox":
            x0, y0, x1, y1 = pasted.boxes[i].tolist()
            entries[i] = [x0, y0, x1 - x0, y1 - y0]
        elif key == "segmentation" and pasted.masks is not None:
            mask = np.asfortranarray(pasted.masks[i] != 0).view(np.uint8)
            rle = coco_mask.encode(mask)
            entries[i] = {**rle, "counts": rle["counts"].decode()}
    if isinstance(value, torch.Tensor):
        return torch.stack([torch.as_tensor(e, dtype=value.dtype) for e in entries])
    if isinstance(value, np.ndarray):
        return np.stack([np.asarray(e, dtype=value.dtype) for e in entries])
    return type(value)(entries)
