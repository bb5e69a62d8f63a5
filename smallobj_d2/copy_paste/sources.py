"""Where the objects that are pasted come from: the image itself (the paper), or other images."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from smallobj_d2.copy_paste.choose import Candidates, SourceRule
from smallobj_d2.copy_paste.scene import Scene


class Sources(Protocol):
    """Gives the objects that may be pasted into an image."""

    def candidates(
        self, scene: Scene, rng: np.random.Generator, image: str | None = None
    ) -> Candidates:
        """The objects that may be pasted into an image.

        Args:
            scene: the instances of the image.
            rng: the draw's generator, before anything else of the draw is chosen.
            image: its name, such as the ``file_name`` of its dataset dict, where it has one.
        """


@dataclass(frozen=True)
class SameImage:
    """The paper's: objects of the image itself.

    Args:
        rule: which of them may be copied; the paper's rule unless given.
    """

    rule: SourceRule = SourceRule()  # noqa: RUF009 - frozen, too

    def candidates(
        self, scene: Scene, rng: np.random.Generator, image: str | None = None
    ) -> Candidates:
        """The objects of the image that may be copied; see `Sources`."""
        return self.rule.candidates(scene)
