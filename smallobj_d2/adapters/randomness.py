"""The generator of one sample, where the host gives a transform no index."""

from copy import copy
from typing import Any

import numpy as np
import torch

from smallobj_d2.copy_paste.checks import is_whole
from smallobj_d2.errors import SmallObjError


class Randomness:
    """Makes the generator of each sample.

    Without a seed it is seeded from torch's global generator, as torchvision's own transforms are:
    reproducible by ``torch.manual_seed``, for one number of loader workers. With a seed a sample is
    a function of the seed, the epoch and the image's id, with any number of workers.

    Args:
        p: share of the images to augment, from 0 to 1.
        seed: not negative, or None.
    """

    def __init__(self, p: float, seed: int | None) -> None:
        if not 0 <= p <= 1:
            raise SmallObjError(f"p is {p!r}; it is a share of the images, from 0 to 1.")
        if seed is not None and not is_whole(seed, 0, 2**63 - 1):
            raise SmallObjError(f"seed is {seed!r}; it must be a whole number and not negative.")
        self.p, self.seed = p, seed
        # Shared, so that workers that outlive an epoch hear of the next.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Randomness":
        """A copy that hears of epochs, too: some operations on datasets copy their transforms."""
        return copy(self)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; workers that are running, and copies, hear of it."""
        self._epoch.fill_(epoch)

    def generator(self, image_id: Any) -> np.random.Generator | None:
        """The generator of a sample, or None where the image stays as it is.

        Args:
            image_id: a whole number, also as a tensor; needed where there is a seed.
        """
        if self.seed is None:
            rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        else:
            try:
                rng = np.random.default_rng((self.seed, int(self._epoch), int(image_id)))
            except (TypeError, ValueError) as e:
                raise SmallObjError(
                    f"image_id is {image_id!r}; with a seed, a sample is a function of the seed, "
                    "the epoch and the image's id, which must be a whole number and not negative. "
                    "Let the dataset give `image_id`, or leave out the seed."
                ) from e
        return rng if rng.random() < self.p else None
