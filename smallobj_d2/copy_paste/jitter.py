"""Section 4: each copy is scaled and rotated at random."""

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.copy_paste.checks import require


@dataclass(frozen=True)
class Jitter:
    """Uniform ranges of scale (a factor of lengths) and rotation (degrees)."""

    scale: tuple[float, float] = (0.8, 1.2)
    rotation: tuple[float, float] = (-15.0, 15.0)

    def __post_init__(self) -> None:
        rule = "must be two numbers from {} to {}, the smaller first"
        for key, pair, least, most in (
            ("SCALE", self.scale, 0.01, 100),
            ("ROTATION", self.rotation, -360, 360),
        ):
            require(_is_range(pair, least, most), key, pair, rule.format(least, most))

    def sample(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A (2, 2) matrix: rotation times scale."""
        (low, high), (least, most) = self.scale, self.rotation
        u, v = rng.random(2).tolist()
        scale, angle = low + (high - low) * u, radians(least + (most - least) * v)
        c, s = scale * cos(angle), scale * sin(angle)
        return np.array([[c, -s], [s, c]])


def _is_range(pair: tuple[float, float], least: float, most: float) -> bool:
    return len(pair) == 2 and least <= pair[0] <= pair[1] <= most
