"""A repeat-factor function: the more small objects an image has, the more often it is drawn."""

from smallobj_d2 import REPEAT_FACTORS
from smallobj_d2.sizes import is_small


@REPEAT_FACTORS.register()  # SMALLOBJ.SAMPLER: "by_count"
def by_count(records, cfg):
    """Dataset dicts to a number for each; 1 is once per epoch."""
    return [1 + sum(map(is_small, r["annotations"])) / 10 for r in records]
