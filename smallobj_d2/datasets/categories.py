"""Whether datasets, and the model, mean the same by a class."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from smallobj_d2.errors import SmallObjError

Categories = Mapping[Any, str]
"""Names by the JSON's category id, in the order of the contiguous ids."""

_SHOWN = 3


def require_same_categories(lists: Mapping[str, Categories]) -> None:
    """Refuse datasets that do not agree on what a class is.

    Args:
        lists: categories by the name of the dataset.

    Raises:
        SmallObjError: naming what differs.
    """
    (first, expected), *others = lists.items() or [("", {})]
    for name, categories in others:
        if found := _differences(expected, categories, first, name):
            more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise SmallObjError(
                f"{first} and {name} do not have the same categories: "
                f"{', '.join(found[:_SHOWN])}{more}. Give both JSONs the same `categories`, with "
                "the same ids and names."
            )


def _differences(a: Categories, b: Categories, first: str, second: str) -> list[str]:
    return [
        *(f"{second} has no {i} {n!r}" for i, n in a.items() if i not in b),
        *(f"{first} has no {i} {n!r}" for i, n in b.items() if i not in a),
        *(
            f"{i} is {n!r} in {first} and {b[i]!r} in {second}"
            for i, n in a.items()
            if b.get(i, n) != n
        ),
    ]


def check_categories(
    cfg: Any, names: Iterable[str], categories_of: Callable[[str], Categories | None]
) -> None:
    """Refuse datasets of other categories than each other or than the model, before training.

    Args:
        cfg: a config; the classes of its model must be as many as the categories. A class
            without a category would be trained on nothing, and could not be evaluated.
        names: the datasets.
        categories_of: name to categories, or to None where they are not known.

    Raises:
        SmallObjError: naming what differs.
    """
    lists = {n: c for n in names if (c := categories_of(n)) is not None}
    require_same_categories(lists)
    key, classes = classes_of(cfg)
    for name, categories in lists.items():
        if len(categories) != classes:
            raise SmallObjError(
                f"{name} has {len(categories)} categories, but the model has {classes}. "
                f"Set {key} {len(categories)}."
            )


def classes_of(cfg: Any) -> tuple[str, int]:
    """The key that says how many classes a config's model has, and its value."""
    one_stage = cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and "RETINANET" in cfg.MODEL
    head = "RETINANET" if one_stage else "ROI_HEADS"
    return f"MODEL.{head}.NUM_CLASSES", cfg.MODEL[head].NUM_CLASSES
