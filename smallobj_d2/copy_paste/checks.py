"""What copy-paste refuses, and with which message."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.errors import SmallObjError


def require(holds: object, key: str, value: object, rule: str) -> None:
    """Refuse the value of a ``SMALLOBJ`` key that breaks a rule.

    Raises:
        SmallObjError: naming key, value and rule.
    """
    if not holds:
        raise SmallObjError(f"SMALLOBJ.{key} is {value!r}; it {rule}.")


def require_image(image: NDArray[Any]) -> None:
    """Refuse anything but an (H, W, 3) uint8 array.

    Raises:
        SmallObjError: saying what it is instead.
    """
    if not isinstance(image, np.ndarray):
        raise SmallObjError(f"Copy-paste takes an (H, W, 3) uint8 array, not a {type(image)}.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise SmallObjError(
            f"Copy-paste takes an (H, W, 3) uint8 image, not {image.shape} {image.dtype}."
        )


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether a value is a whole number in a range, both ends included."""
    is_number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_number and least <= value <= most  # type: ignore[operator]
