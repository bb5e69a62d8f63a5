"""Synthetic scenes: shapes, their layout, their pixels, and datasets of them on disk."""

from smallobj_d2.datasets.synthetic.dataset import (
    SyntheticScene,
    make_dataset,
    make_scene,
    make_splits,
)
from smallobj_d2.datasets.synthetic.shapes import CATEGORIES

__all__ = ["CATEGORIES", "SyntheticScene", "make_dataset", "make_scene", "make_splits"]
