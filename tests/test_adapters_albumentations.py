"""Copy-paste as a transform of albumentations, in its own compositions."""

import hosts
import numpy as np
import pytest

A = pytest.importorskip(
    "albumentations", "2.0.8", reason="albumentations is not installed (pip install albumentations)"
)

from smallobj_d2 import CopyPaste, SameImage, SmallObjError, SourceRule  # noqa: E402
from smallobj_d2.adapters.albumentations import CopyPasteTransform  # noqa: E402

COPY = CopyPaste(copies=3)


def compose(*others, copy_paste=COPY, p=1, seed=0, **more):
    params = A.BboxParams("pascal_voc", label_fields=["labels", "ids"])
    return A.Compose(
        [CopyPasteTransform(copy_paste, p=p), *others], bbox_params=params, seed=seed, **more
    )


def sample(**more):
    labels = {"labels": ["a", "b", "a", "c"], "ids": [1, 2, 3, 4]}
    return {"image": hosts.image(), "masks": hosts.masks(), "bboxes": hosts.boxes()} | labels | more


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_copies_have_masks_boxes_and_labels_and_overlap_nothing(as_list, strict):
    masks = list(hosts.masks()) if as_list else hosts.masks()
    new = compose(strict=strict)(**sample(masks=masks))
    assert isinstance(new["masks"], list) == as_list
    assert hosts.require_apart(new["masks"]) == 3
    assert new["labels"] == ["a", "b", "a", "c", "a", "a", "a"]
    assert new["ids"] == [1, 2, 3, 4, 1, 1, 1]
    want = [hosts.tight(m) for m in new["masks"]]
    assert np.allclose(new["bboxes"], want, atol=1e-3)
    background = ~np.any(new["masks"][4:], axis=0)
    assert (new["image"] == hosts.image())[background].all()
    assert not (new["image"] == hosts.image()).all()


def test_other_transforms_move_copies_like_the_rest():
    new = compose(A.HorizontalFlip(p=1), A.Resize(45, 55))(**sample())
    assert new["image"].shape == (45, 55, 3)
    assert len(new["masks"]) == len(new["bboxes"]) == 7
    for mask, box in zip(new["masks"], new["bboxes"], strict=True):
        assert np.abs(np.array(hosts.tight(mask)) - box).max() <= 1


def test_a_sample_is_a_function_of_a_seed_set_before_it():
    transform = compose(A.HorizontalFlip(), p=0.8)
    results = []
    for k in (1, 2, 1):
        transform.set_random_seed(k)
        results.append(transform(**sample()))
    one, two, again = results
    assert (one["image"] == again["image"]).all()
    assert (one["masks"] == again["masks"]).all()
    assert one["image"].tolist() != two["image"].tolist()


def test_the_seed_of_the_composition_decides_about_the_sequence():
    first, second = ([t(**sample())["image"] for _ in range(3)] for t in (compose(), compose()))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert not (first[0] == first[1]).all()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
def test_masks_keep_their_type(dtype):
    assert compose()(**sample(masks=hosts.masks(dtype)))["masks"].dtype == dtype


def test_an_image_without_objects_stays_as_it_is():
    new = compose()(**sample(masks=[], bboxes=[], labels=[], ids=[]))
    assert (new["image"] == hosts.image()).all()
    assert len(new["bboxes"]) == len(new["masks"]) == 0


def test_boxes_alone_are_pasted_as_rectangles_where_that_is_allowed():
    boxes_only = {k: v for k, v in sample().items() if k != "masks"}
    with pytest.raises(SmallObjError, match="no masks to cut objects out by"):
        compose()(**boxes_only)
    rectangles = CopyPaste(copies=3, sources=SameImage(SourceRule(boxes=True)))
    new = compose(copy_paste=rectangles)(**boxes_only)
    assert len(new["bboxes"]) == len(new["labels"]) == 7


def test_what_cannot_follow_is_refused():
    with pytest.raises(SmallObjError, match=r"bboxes .*, not mask"):
        compose()(**sample(mask=hosts.masks()[0]))
    with pytest.raises(SmallObjError, match="3 masks for 4 bboxes"):
        compose()(**sample(masks=hosts.masks()[:3]))
    for boxes in ({}, {"bboxes": hosts.boxes()}):  # without bbox_params they are what was given
        with pytest.raises(SmallObjError, match="bboxes are missing"):
            A.Compose([CopyPasteTransform(COPY, p=1)], strict=False)(
                image=hosts.image(), masks=hosts.masks(), **boxes
            )
    with pytest.raises(SmallObjError, match="not infrared"):
        compose(additional_targets={"infrared": "image"})(**sample(infrared=hosts.image()))
    params = A.BboxParams("pascal_voc", label_fields=["labels", "ids"])
    replay = A.ReplayCompose([CopyPasteTransform(COPY, p=1)], bbox_params=params)
    with pytest.raises(SmallObjError, match="cannot be replayed"):
        replay(**sample())
