"""Section 5.4: how the pixels of a copy get into the image."""

import cv2
import numpy as np
from numpy.typing import NDArray

from smallobj_d2.masks.rle import Mask
from smallobj_d2.masks.shapes import Window, warp

Image = NDArray[np.uint8]


def cut(image: Image, matrix: NDArray[np.float64], target: Window) -> Image:
    """The pixels of a copy: those of the image under an affine map, as far as a window shows them.

    Args:
        image: (H, W, C) uint8.
        matrix: (2, 3), source coordinates to image coordinates.
        target: where the copy goes.

    Returns:
        (target.height, target.width, C) uint8.
    """
    return warp(image, matrix, target, cv2.BORDER_REPLICATE)


def composite(image: Image, patch: Image, mask: Mask, target: Window, blur: int) -> None:
    """Composite a copy onto the image, in place.

    Args:
        image: (H, W, C) uint8.
        patch: (h, w, C) uint8.
        mask: (h, w) uint8 of 0 and 1, the pixels of the copy.
        target: where it goes, inside the image.
        blur: 0 gives a hard edge: pixels of the mask change and no others. An odd number is the
            size of the Gaussian that turns the mask into weights between copy and image; pixels
            farther than half of it outside the mask do not change.
    """
    region = target.of(image)
    if not blur:
        np.copyto(region, patch, where=mask.view(bool)[:, :, None])
        return
    # Beyond the window there is nothing of the mask: a border of zeros, not OpenCV's reflection.
    weight = cv2.GaussianBlur(
        mask.astype(np.float32), (blur, blur), 0, borderType=cv2.BORDER_CONSTANT
    )[:, :, None]
    region[...] = np.rint(patch * weight + region * (1 - weight)).astype(np.uint8)
