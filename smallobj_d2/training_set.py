"""What every engine trains on: records and repeat factors, checked before anything starts."""

from collections.abc import Callable, Container, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallobj_d2.augmentation import require_sources
from smallobj_d2.datasets.categories import classes_of
from smallobj_d2.datasets.coco import get_records, is_registered, load_dataset, without_empty
from smallobj_d2.datasets.images import require_files, require_readable
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.shapes import has_mask
from smallobj_d2.sampling import factors_from_config
from smallobj_d2.sizes import is_small

Records = list[dict[str, Any]]


def training_data(
    cfg: Any, read: Callable[[Iterable[str]], Records] = get_records
) -> tuple[Records, NDArray[np.float64]]:
    """The records that a config trains on, and how often each is drawn.

    Args:
        cfg: a config with ``SMALLOBJ``; ``SEED`` must not be negative.
        read: dataset names to records.

    Returns:
        N dataset dicts, and their (N,) repeat factors.
    """
    if cfg.SEED < 0:
        raise SmallObjError(
            "SEED is negative. All processes and a resumed run must share one seed: set SEED, or "
            "call settle_seed(cfg) of smallobj_d2.engines.seed_and_device, which draws one."
        )
    if not cfg.DATASETS.TRAIN:
        raise SmallObjError("DATASETS.TRAIN is empty; name a dataset to train on.")
    _require_once(cfg, "TRAIN")
    records = read(cfg.DATASETS.TRAIN)
    names = ", ".join(cfg.DATASETS.TRAIN)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = without_empty(records)
    if not records:
        raise SmallObjError(
            f"No image of {names} has an annotation that is not a crowd, so there is nothing to "
            "train on. Check that the JSON is the right one: smallobj analyze --check."
        )
    highest = max((a["category_id"] for r in records for a in r["annotations"]), default=0)
    key, classes = classes_of(cfg)
    if highest >= classes:
        raise SmallObjError(
            f"{names} has {highest + 1} categories or more, but the model has {classes}. Set {key} "
            "to their number."
        )
    require_sources(records, cfg)
    if cfg.SMALLOBJ.UNREADABLE_IMAGES == "stop":
        require_files(records)  # better now than in the night
    return records, factors_from_config(records, cfg)


def require_masks_to_learn(records: Records, cfg: Any) -> None:
    """Refuse to train masks where all annotations have none, or some that copy-paste pastes.

    Training of masks leaves these out, so that nothing would be learned, or copies would be
    background.
    """
    if not cfg.MODEL.MASK_ON:
        return
    s, names = cfg.SMALLOBJ, ", ".join(cfg.DATASETS.TRAIN)
    learned = [a for r in records for a in r["annotations"] if not a.get("iscrowd")]
    if not any(map(has_mask, learned)):
        raise SmallObjError(
            f"MODEL.MASK_ON is True, but no annotation of {names} has a mask to learn. Add "
            "`segmentation` to the annotations, or set MODEL.MASK_ON False."
        )
    pasted = s.COPY_PASTE and s.PASTE_BOXES
    if pasted and not all(has_mask(a) for a in learned if is_small(a, s.SMALL_AREA)):
        raise SmallObjError(
            f"SMALLOBJ.PASTE_BOXES pastes small objects of {names} that have no mask, and with "
            "MODEL.MASK_ON True training leaves these out, copies and all. Set one of them False."
        )


def _require_once(cfg: Any, which: str) -> None:
    names = cfg.DATASETS[which]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise SmallObjError(f"DATASETS.{which} names {twice[0]} twice; name each dataset once.")


def check_test_data(cfg: Any, known: Container[str] = ()) -> None:
    """Look at the test sets before training, not when it has ended.

    Args:
        cfg: a config with ``SMALLOBJ``.
        known: names of datasets that only the engine knows, and that are left to it.

    Raises:
        SmallObjError: if one cannot be read to the end of its last image, is named twice, has no
            image, or no masks to compare with.
    """
    _require_once(cfg, "TEST")
    for name in cfg.DATASETS.TEST:
        if not is_registered(name) and name in known:
            continue
        records = load_dataset(name).records
        if not records:
            raise SmallObjError(f"{name} has no image to evaluate; see DATASETS.TEST.")
        require_files(records)
        require_readable(records)
        for record in records if cfg.MODEL.MASK_ON else ():
            for annotation in record["annotations"]:
                if not annotation.get("segmentation"):
                    raise SmallObjError(
                        f"{name}: annotation {annotation['id']} of image {record['image_id']} has "
                        "no mask to evaluate masks against. Add `segmentation` to it, or set "
                        "MODEL.MASK_ON False."
                    )
