"""A dataset dict to a model input: read, copy-paste, resize, flip, targets.

The image bytes and the boxes are those of Detectron2's DatasetMapper for the same draw, bit for
bit, but that instances without a pixel are left out; a test compares the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from smallobj_d2.augmentation import DrawAugmentation, build_augmentation, draw_state
from smallobj_d2.datasets.images import nearest_pixels, read_rgb, resize
from smallobj_d2.masks.shapes import Bitmap, Window
from smallobj_d2.registry import Registry

MAPPERS: Registry[Any] = Registry("torchvision mapper", "SMALLOBJ.MAPPER")
"""Mappers by name; ``SMALLOBJ.MAPPER`` chooses.

Each is built by ``from_config(cfg, is_train, augmentation=...)``.
"""


def build_mapper(cfg: Any, is_train: bool, augmentation: DrawAugmentation | None = None) -> Any:
    """The mapper that a config names.

    Args:
        cfg: a config with ``SMALLOBJ``.
        is_train: whether for training or inference.
        augmentation: see `SmallObjectMapper.from_config`.

    Raises:
        SmallObjError: if there is no mapper of that name.
    """
    return MAPPERS[cfg.SMALLOBJ.MAPPER].from_config(cfg, is_train, augmentation=augmentation)


@MAPPERS.register()
@dataclass(eq=False)
class SmallObjectMapper:
    """Maps a dataset dict to a sample.

    In training the dict carries its ``draw``, and the sample is a function of the seed and the
    draw's position. The sample is the dict without its annotations, and with ``image``, a (3, H, W)
    uint8 tensor with channels in `image_format`; in training also with ``target``, see `targets`.

    Args:
        is_train: whether to augment, flip, and make targets; else only resize.
        image_format: "BGR" or "RGB".
        min_size: lengths of the shorter side to choose from, in pixels; with `sampling` "range" the
            lowest and the highest.
        max_size: what the longer side may be at most.
        sampling: "choice" or "range".
        flip: "horizontal", "vertical" or "none".
        fast_resize: see `smallobj_d2.datasets.images.resize`.
        with_masks: whether targets need masks.
        augmentation: the copy-paste, or None.
        seed: the run's seed.
    """

    is_train: bool
    _: KW_ONLY
    image_format: str = "BGR"
    min_size: Sequence[int] = (800,)
    max_size: int = 1333
    sampling: str = "choice"
    flip: str = "horizontal"
    fast_resize: bool = False
    with_masks: bool = True
    augmentation: DrawAugmentation | None = None
    seed: int = 0

    @classmethod
    def from_config(
        cls, cfg: Any, is_train: bool = True, *, augmentation: DrawAugmentation | None = None
    ) -> "SmallObjectMapper":
        """Build from INPUT, MODEL.MASK_ON, SEED and SMALLOBJ.FAST_RESIZE.

        Args:
            cfg: a config with ``SMALLOBJ``.
            is_train: whether for training or inference.
            augmentation: the copy-paste; None builds what the config asks for.

        Raises:
            SmallObjError: if that is a bank of objects, which needs the training images: build the
                augmentation by `smallobj_d2.build_augmentation`, and pass it.
        """
        seed = max(cfg.SEED, 0)
        if is_train and augmentation is None:
            augmentation = build_augmentation(cfg, seed)
        common = {
            "image_format": cfg.INPUT.FORMAT,
            "fast_resize": cfg.SMALLOBJ.FAST_RESIZE,
            "with_masks": cfg.MODEL.MASK_ON,
            "seed": seed,
        }
        if not is_train:
            return cls(
                False,
                min_size=(cfg.INPUT.MIN_SIZE_TEST,),
                max_size=cfg.INPUT.MAX_SIZE_TEST,
                flip="none",
                **common,
            )
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        return cls(
            True,
            min_size=(sizes,) if isinstance(sizes, int) else tuple(sizes),
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
            sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            flip=cfg.INPUT.RANDOM_FLIP,
            augmentation=augmentation,
            **common,
        )

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which stays as it is.

        Raises:
            UnreadableImage: if the file cannot be read, or is not of the size that the dict says.
        """
        sample = dict(record)
        image = read_image(sample, image_format=self.image_format)
        if not self.is_train:
            sample.pop("annotations", None)
            sample.pop("pixels", None)
            sample["image"] = _tensor(
                resize(image, self._size(image, self.min_size[0]), fast=self.fast_resize)
            )
            return sample

        if self.augmentation is not None:
            self.augmentation(image, sample)
        height, width = image.shape[:2]
        state = draw_state(self.seed, sample["draw"].position)
        if self.sampling == "range":
            shorter = state.randint(self.min_size[0], self.min_size[1] + 1)
        else:
            shorter = state.choice(self.min_size)
        size = self._size(image, int(shorter))
        axis = None
        if self.flip != "none" and state.uniform() < 0.5:
            axis = 1 if self.flip == "horizontal" else 0
        image = resize(image, size, fast=self.fast_resize)
        sample["image"] = _tensor(image if axis is None else np.flip(image, axis))
        sample["target"] = targets(
            sample.pop("annotations"), (height, width), size, axis, with_masks=self.with_masks
        )
        return sample

    def _size(self, image: NDArray[np.uint8], shorter: int) -> tuple[int, int]:
        height, width = image.shape[:2]
        return output_size(height, width, shorter, self.max_size)


def read_image(record: Mapping[str, Any], image_format: str) -> NDArray[np.uint8]:
    """The image of a dataset dict, turned upright as its EXIF says: (H, W, 3) uint8, writable.

    A dict that has its ``pixels``, (H, W, 3) uint8 RGB, needs no file.

    Raises:
        UnreadableImage: naming the file and the image's id.
    """
    image = record["pixels"] if "pixels" in record else read_rgb(record)
    return np.ascontiguousarray(image[:, :, ::-1]) if image_format == "BGR" else image


def output_size(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """Height and width after resizing the shorter side to `shorter`, or less to keep `longest`."""
    if not shorter:
        return height, width
    scale = shorter / min(height, width)
    new: tuple[float, float] = (shorter, scale * width)
    if height >= width:
        new = (scale * height, shorter)
    if max(new) > longest:
        scale = longest / max(new)
        new = (new[0] * scale, new[1] * scale)
    return int(new[0] + 0.5), int(new[1] + 0.5)


def _tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def targets(
    annotations: Sequence[Mapping[str, Any]],
    before: tuple[int, int],
    after: tuple[int, int],
    flip_axis: int | None = None,
    *,
    with_masks: bool = True,
) -> dict[str, torch.Tensor]:
    """What the model learns from: transformed, clipped, crowds and empty instances left out.

    A mask is kept as the window around it, not as a bitmap of the image, so that many small
    objects cost little.

    Args:
        annotations: of an image in Detectron2's form; boxes XYWH.
        before, after: height and width of the image before and after resizing.
        flip_axis: 1 if the resized image is mirrored left to right, 0 top to bottom, None if not.
        with_masks: whether to make masks. Annotations without one are left out then.

    Returns:
        ``boxes`` (N, 4) float32 x0, y0, x1, y1; ``labels`` (N,) int64 from 1 up, as 0 is the
        background; ``pasted`` (N,) bool, whether it is a copy; and with masks ``windows`` (N, 4)
        int64 x0, y0, x1, y1 and ``masks`` (P,) uint8, the rows of all windows one after the other.
    """
    height, width = after
    scale = np.array([width / before[1], height / before[0]])

    def transform(points: NDArray[np.float64]) -> NDArray[np.float64]:
        points = points * scale
        if flip_axis is not None:
            axis = 1 - flip_axis
            points[:, axis] = (width, height)[axis] - points[:, axis]
        return points

    boxes, labels, pasted, windows, masks = [], [], [], [], []
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            continue
        x, y, w, h = np.asarray(annotation["bbox"], dtype=np.float32)
        corners = transform(np.array([[x, y], [x + w, y + h]], dtype=np.float64))
        low, high = corners.min(axis=0).clip(min=0), corners.max(axis=0).clip(min=0)
        box = np.concatenate([low, high]).clip(max=(width, height, width, height))
        box = box.astype(np.float32)
        if not (box[2:] - box[:2] > 1e-5).all():
            continue
        if with_masks:
            found = _mask(annotation.get("segmentation"), transform, after, flip_axis)
            if found is None or not found[1].any():
                continue
            windows.append(found[0])
            masks.append(found[1].ravel())
        boxes.append(box)
        labels.append(annotation["category_id"] + 1)
        pasted.append("copy_paste" in annotation)

    target = {
        "boxes": torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "pasted": torch.tensor(pasted, dtype=torch.bool),
    }
    if with_masks:
        flat = np.concatenate(masks) if masks else np.zeros(0, dtype=np.uint8)
        target["masks"] = torch.from_numpy(flat)
        target["windows"] = torch.tensor(windows, dtype=torch.int64).reshape(-1, 4)
    return target


def _mask(
    segmentation: Any, transform: Any, size: tuple[int, int], flip_axis: int | None
) -> tuple[tuple[int, int, int, int], NDArray[np.uint8]] | None:
    """A mask in the transformed image: its window x0, y0, x1, y1 and the (h, w) pixels in it.

    None if nothing of it is in the image.

    There is a pixel of margin on each side that is not a border of the image, so that
    interpolating at the window's edge finds what it would find in the full bitmap.
    """
    height, width = size
    if isinstance(segmentation, dict):
        bitmap = _resized(segmentation, size, flip_axis)
        if not bitmap.mask.size:
            return None
        low = np.array((bitmap.x, bitmap.y))
        high = low + bitmap.mask.shape[::-1]
    elif segmentation:
        polygons = [transform(np.asarray(p, dtype=np.float64).reshape(-1, 2)) for p in segmentation]
        points = np.concatenate(polygons)
        low, high = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    else:
        return None

    x0, y0 = max(int(low[0]) - 1, 0), max(int(low[1]) - 1, 0)
    x1, y1 = min(int(high[0]) + 1, width), min(int(high[1]) + 1, height)
    if x1 <= x0 or y1 <= y0:
        return None
    if isinstance(segmentation, dict):
        return (x0, y0, x1, y1), bitmap.pixels(Window(x0, y0, x1 - x0, y1 - y0))
    inside = [(p - (x0, y0)).ravel().tolist() for p in polygons]
    rle = coco_mask.merge(coco_mask.frPyObjects(inside, y1 - y0, x1 - x0))
    return (x0, y0, x1, y1), coco_mask.decode(rle)


def inputs_on(
    device: torch.device, samples: Sequence[Mapping[str, Any]]
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """What the model trains on, of some samples: images and targets, on a device."""
    images = [image.float() for image in _moved([s["image"] for s in samples], device)]
    names = [*samples[0]["target"]]
    columns = [_moved([s["target"][name] for s in samples], device) for name in names]
    return images, [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _moved(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Tensors of one type on a device, in one transfer: each would wait for what a GPU is at."""
    flat = torch.cat([tensor.flatten() for tensor in tensors]).to(device)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def windows_of(
    target: Mapping[str, torch.Tensor],
) -> Iterator[tuple[tuple[int, int, int, int], torch.Tensor]]:
    """The masks of a target, each as its window x0, y0, x1, y1 and the (h, w) pixels in it."""
    start = 0
    for x0, y0, x1, y1 in target["windows"].tolist():
        end = start + (x1 - x0) * (y1 - y0)
        yield (x0, y0, x1, y1), target["masks"][start:end].view(y1 - y0, x1 - x0)
        start = end


def _resized(rle: Mapping[str, Any], size: tuple[int, int], flip_axis: int | None) -> Bitmap:
    """An RLE in the transformed image, without empty rows and columns around it.

    The pixels are those of the whole image's bitmap, resized as Detectron2 does and flipped; only
    those where the mask is are looked at.
    """
    bitmap = Bitmap.decode(rle)
    sampled, corner = bitmap.mask, []
    for axis, start in enumerate((bitmap.y, bitmap.x)):
        nearest = nearest_pixels(rle["size"][axis], size[axis])
        first, end = np.searchsorted(nearest, (start, start + sampled.shape[axis]))
        sampled = sampled.take(nearest[first:end] - start, axis)
        if axis == flip_axis:
            sampled, first = np.flip(sampled, axis), size[axis] - end
        corner.append(int(first))
    return Bitmap(np.ascontiguousarray(sampled), corner[1], corner[0]).trimmed()
