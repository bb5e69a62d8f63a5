"""Copy-paste on parallel arrays obeys the laws, whatever the masks are."""

import hosts
import numpy as np
import pytest

from proofs.random_scenes import random_options, random_scene, raster
from smallobj_d2 import CopyPaste, SmallObjError
from smallobj_d2.adapters.instances import paste


def test_every_law_holds_on_random_masks():
    """Masks may be empty, overlap, have parts and holes; boxes, areas and labels follow."""
    pasted = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        image, annotations = random_scene(rng, kinds=["polygon", "parts"], low=20)
        height, width = image.shape[:2]
        masks = np.array([raster(a["segmentation"], height, width) for a in annotations])
        masks = masks.reshape(-1, height, width).astype(bool)
        crowds = [a["iscrowd"] for a in annotations]
        copy_paste = CopyPaste(**random_options(rng))
        done = paste(copy_paste, image, np.random.default_rng(seed), masks=masks, crowds=crowds)
        if done is None:
            continue
        pasted += 1
        assert len(done.masks) == len(done.index) == len(done.boxes) == len(done.areas)
        assert (done.masks[~done.new] == masks[done.index[~done.new]]).all()
        for mask, box, area in zip(
            done.masks[done.new], done.boxes[done.new], done.areas[done.new], strict=True
        ):
            assert mask.any()
            assert area == mask.sum()
            assert box.tolist() == hosts.tight(mask)
        unchanged = (done.image == image).all(axis=2)
        if not copy_paste.blur:
            assert unchanged[~done.masks[done.new].any(axis=0)].all()
        if not copy_paste.allow_overlap:
            copies = len(done.index) - len(masks)
            assert done.new.tolist() == [False] * len(masks) + [True] * copies
            assert hosts.require_apart(done.masks, len(masks), copy_paste.gap) == copies
    assert pasted > 60


def test_masks_of_another_size_or_type_are_refused():
    rng = np.random.default_rng(0)
    for masks, words in (
        (hosts.masks()[:, 1:], "it must be"),
        (hosts.masks().astype(np.float32), "float32"),
    ):
        with pytest.raises(SmallObjError, match=words):
            paste(CopyPaste(), hosts.image(), rng, masks=masks)
    with pytest.raises(SmallObjError, match="uint8 image"):
        paste(CopyPaste(), hosts.image()[:, :, :1], rng, masks=hosts.masks())
