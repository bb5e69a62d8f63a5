"""A strategy: only the largest small object of an image is copied."""

from smallobj_d2 import STRATEGIES


@STRATEGIES.register("largest")  # SMALLOBJ.STRATEGY: "largest"
def largest(candidates, rng):
    """The candidates that are copied; `rng` is the draw's generator, for those who need chance."""
    return sorted(candidates, key=lambda c: c.annotation["area"])[-1:]
