"""Section 5.2, Table 4: which draws are augmented, and that each has a generator to itself."""

import copy
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smallobj_d2.augmentation import (
    DrawAugmentation,
    build_augmentation,
    draw_state,
    require_sources,
)
from smallobj_d2.config import load_cfg
from smallobj_d2.copy_paste import CopyPaste, Plan
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sampling import Draw, Stream, repeat_factors

CONFIGS = Path(__file__).parents[1] / "configs"
HEIGHT, WIDTH = 200, 240


def square(x: float, y: float, side: float, **changes: Any) -> dict[str, Any]:
    x1, y1 = x + side, y + side
    polygon = [[float(v) for v in (x, y, x1, y, x1, y1, x, y1)]]
    box = [x, y, side, side]
    base = {"bbox": box, "bbox_mode": 1, "area": side * side, "iscrowd": 0, "category_id": 0}
    return {**base, "segmentation": polygon, **changes}


def record(*annotations: dict[str, Any], draw: Draw | None = None) -> dict[str, Any]:
    out = {"height": HEIGHT, "width": WIDTH, "annotations": list(annotations)}
    return {**out, "draw": draw} if draw else out


WITH_SMALL = record(square(20, 20, 10), square(60, 20, 12), square(100, 20, 14), square(20, 80, 90))
WITHOUT = record(square(20, 80, 90), square(120, 80, 40))
CROWD_ONLY = record(square(20, 20, 10, iscrowd=1), square(20, 80, 90))


def augmentation(**changes: Any) -> DrawAugmentation:
    return DrawAugmentation(CopyPaste(**changes.pop("paste", {})), **{"seed": 1, **changes})


def plans(
    aug: DrawAugmentation, records: list[dict[str, Any]], factors: Any, epochs: int
) -> list[tuple[Draw, Plan | None]]:
    """All draws of the first epochs, and what each pastes."""
    stream = Stream(factors, aug.seed)
    draws = [stream[k] for k in range(stream.epoch_start(epochs))]
    return [(d, aug.plan({**records[d.index], "draw": d})) for d in draws]


def from_config(name: str, *opts: str, seed: int = 1) -> tuple[DrawAugmentation, float]:
    cfg = load_cfg(CONFIGS / f"{name}.yaml", list(opts))
    aug = build_augmentation(cfg, seed)
    assert aug is not None
    return aug, cfg.SMALLOBJ.OVERSAMPLING_FACTOR


# --- Table 4


def test_aug_replaces_each_small_object_image_by_its_augmented_copy():
    aug, factor = from_config("aug")
    drawn = plans(aug, [WITH_SMALL, WITHOUT], repeat_factors([WITH_SMALL, WITHOUT], factor), 50)
    assert Counter((d.index, p is not None) for d, p in drawn) == {(0, True): 50, (1, False): 50}


def test_aug_oversample_draws_the_copy_twice():
    aug, factor = from_config("aug_oversample_2x")
    drawn = plans(aug, [WITH_SMALL, WITHOUT], repeat_factors([WITH_SMALL, WITHOUT], factor), 50)
    assert Counter((d.index, p is not None) for d, p in drawn) == {(0, True): 100, (1, False): 50}


def test_original_and_aug_augments_half_of_the_draws_by_chance():
    """The reading of section 6.2, which is the default."""
    aug, factor = from_config("orig_aug")
    records = [WITH_SMALL] * 20 + [WITHOUT] * 20
    drawn = plans(aug, records, repeat_factors(records, factor), 50)
    augmented = [p is not None for d, p in drawn if d.index < 20]
    assert len(augmented) == 2000
    assert abs(sum(augmented) - 1000) < 4 * np.sqrt(2000 / 4)  # binomial
    assert not any(p for d, p in drawn if d.index >= 20)
    # By chance means that an epoch holds both, two originals, or two copies of an image.
    per_epoch = Counter((d.epoch, d.index) for d, p in drawn if p is not None)
    assert {per_epoch[e, i] for e in range(50) for i in range(20)} == {0, 1, 2}


def test_original_and_aug_in_pairs_keeps_one_of_each_in_every_epoch():
    """The reading of section 5.2."""
    aug, factor = from_config("orig_aug", "SMALLOBJ.AUGMENTATION_READING", "paired")
    records = [WITH_SMALL] * 20 + [WITHOUT] * 20
    drawn = plans(aug, records, repeat_factors(records, factor), 50)
    seen = Counter((d.epoch, d.index, p is not None) for d, p in drawn)
    for epoch in range(50):
        for i in range(20):
            assert (seen[epoch, i, False], seen[epoch, i, True]) == (1, 1)
        for i in range(20, 40):
            assert (seen[epoch, i, False], seen[epoch, i, True]) == (1, 0)
    first = [p is not None for d, p in drawn if d.index == 0][::2]
    assert 10 < sum(first) < 40  # neither of the two always comes first


@pytest.mark.parametrize(
    ("factor", "probability"), [(1, 0.5), (3, 0.5), (2.5, 0.5), (2, 0.3), (4, 0.25), (1.3, 0.9)]
)
def test_the_paired_reading_is_as_near_to_the_share_as_whole_draws_can_be(factor, probability):
    aug = augmentation(probability=probability, paired=True)
    num_images, num_epochs = 10, 400
    cut_off = record(square(0, 0, 10))  # nothing to copy, so planning is quick
    drawn = plans(aug, [cut_off] * num_images, np.full(num_images, factor), num_epochs)
    in_all = Counter((d.epoch, d.index) for d, _ in drawn)
    augmented = Counter((d.epoch, d.index) for d, p in drawn if p is not None)
    for key, number in in_all.items():
        assert abs(augmented[key] - number * probability) < 1
    share = sum(augmented.values()) / len(drawn)
    assert share == pytest.approx(probability, abs=0.025)


@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("paired", [False, True])
def test_a_share_of_none_or_all_is_none_or_all(paired, probability):
    aug = augmentation(probability=probability, paired=paired)
    drawn = plans(aug, [WITH_SMALL], [2.5], 100)
    assert {p is not None for _, p in drawn} == {probability == 1}


def test_both_readings_paste_the_same_where_they_agree():
    readings = [plans(augmentation(paired=p), [WITH_SMALL], [2], 40) for p in (False, True)]
    agree = [(a, b) for (_, a), (_, b) in zip(*readings, strict=True) if a and b]
    assert len(agree) > 10
    assert all(a.annotations == b.annotations for a, b in agree)


def test_copy_paste_is_off_where_the_config_says_so():
    assert build_augmentation(load_cfg(CONFIGS / "oversample_3x.yaml"), 1) is None


# --- what is augmented, and what is left alone


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("image", [WITHOUT, CROWD_ONLY, record()], ids=["large", "crowd", "empty"])
def test_images_without_small_objects_are_never_augmented(image, paired):
    aug = augmentation(probability=1.0, paired=paired)
    assert all(p is None for _, p in plans(aug, [image], [2], 20))


def test_small_is_what_the_config_says():
    aug = augmentation(probability=1.0, small_area=100)
    assert aug.plan({**WITH_SMALL, "draw": Draw(0, 0, 0)}) is None
    assert augmentation(probability=1.0).plan({**WITH_SMALL, "draw": Draw(0, 0, 0)}) is not None


def test_an_original_is_left_untouched():
    aug = augmentation(probability=0.5)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    untouched = 0
    for k in range(30):
        pixels, sample = image.copy(), {**copy.deepcopy(WITH_SMALL), "draw": Draw(k, 0, 0)}
        plan = aug(pixels, sample)
        if plan is None:
            untouched += 1
            assert (pixels == image).all()
            assert sample == {**WITH_SMALL, "draw": Draw(k, 0, 0)}
        else:
            assert plan.pasted
            assert (pixels != image).any()
            assert len(sample["annotations"]) == 4 + plan.pasted
            assert sample["annotations"][:4] == WITH_SMALL["annotations"]
    assert 5 < untouched < 25


# --- one generator per draw


def pastes(plan: Plan | None) -> Any:
    return plan and [p.matrix.tobytes() for p in plan.pastes]


def test_pastes_do_not_depend_on_the_order_of_the_draws():
    draws = [Draw(k, 0, k % 2, k // 2) for k in range(40)]
    aug = augmentation()
    forth = {d: pastes(aug.plan({**WITH_SMALL, "draw": d})) for d in draws}
    other = augmentation()
    back = {d: pastes(other.plan({**WITH_SMALL, "draw": d})) for d in reversed(draws)}
    assert forth == back


def test_each_draw_of_an_image_has_pastes_of_its_own_unless_one_copy_is_asked_for():
    for one_copy in (False, True):
        aug = augmentation(probability=1.0, one_copy_per_image=one_copy)
        drawn = plans(aug, [WITH_SMALL] * 3, [2] * 3, 10)
        seen = {i: {str(pastes(p)) for d, p in drawn if d.index == i} for i in range(3)}
        assert [len(s) for s in seen.values()] == ([1, 1, 1] if one_copy else [20, 20, 20])
        assert len(set.union(*seen.values())) == (3 if one_copy else 60)


def test_one_copy_per_image_still_shows_originals():
    aug, factor = from_config("orig_aug", "SMALLOBJ.ONE_COPY_PER_IMAGE", "True")
    drawn = plans(aug, [WITH_SMALL], [factor], 50)
    assert {p is None for _, p in drawn} == {True, False}


@pytest.mark.parametrize("one_copy", [False, True])
def test_seeds_give_pastes_of_their_own(one_copy):
    drawn = {**WITH_SMALL, "draw": Draw(3, 0, 0)}
    how = {"probability": 1.0, "one_copy_per_image": one_copy}
    seen = {str(pastes(augmentation(seed=s, **how).plan(drawn))) for s in range(10)}
    assert len(seen) == 10


def test_seeds_take_turns_of_their_own():
    """Which of an image's two draws is the augmented one, in pairs."""
    cut_off = record(square(0, 0, 10))  # nothing to copy, so planning is quick
    draws = [{**cut_off, "draw": Draw(i, i, 0, 0)} for i in range(20)]
    turns = {
        tuple(augmentation(paired=True, seed=s).plan(d) is not None for d in draws)
        for s in range(10)
    }
    assert len(turns) == 10


def test_draws_of_no_epoch_are_augmented_by_chance_in_pairs_too():
    """The samplers of others have none."""
    draws = [{**WITH_SMALL, "draw": Draw(k, 0, 0)} for k in range(40)]
    readings = [[augmentation(paired=p).plan(d) is not None for d in draws] for p in (False, True)]
    assert readings[0] == readings[1]
    assert set(readings[0]) == {False, True}


def test_copies_that_are_left_out_are_counted_in_the_record():
    crowded = {**record(square(20, 20, 10)), "draw": Draw(0, 0, 0)}
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    augmentation(probability=1.0, paste={"copies": 5, "max_pastes": 3})(image, crowded)
    assert crowded["left_out"] == {"capped": 2}
    whole = {**record(square(20, 20, 10)), "draw": Draw(0, 0, 0)}
    augmentation(probability=1.0)(image, whole)
    assert "left_out" not in whole


def test_the_config_says_which_images_are_small_object_images():
    small = {**WITH_SMALL, "draw": Draw(0, 0, 0)}
    for area, augmented in (("100", False), ("1024", True)):
        aug, _ = from_config("aug", "SMALLOBJ.SMALL_AREA", area)
        assert (aug.plan(small) is not None) == augmented


def test_which_draws_are_augmented_is_not_tied_to_what_is_pasted():
    """Raising the probability adds augmented draws and leaves those that there were."""
    low, high = (plans(augmentation(probability=p), [WITH_SMALL], [2], 50) for p in (0.3, 0.6))
    for (_, a), (_, b) in zip(low, high, strict=True):
        if a is not None:
            assert pastes(a) == pastes(b)


def test_no_global_random_state_is_read_or_changed():
    seen = []
    for s in (1, 2):
        np.random.seed(s)
        random.seed(s)
        before = np.random.get_state()[1].tobytes(), random.getstate()
        seen.append([pastes(p) for _, p in plans(augmentation(), [WITH_SMALL], [2], 10)])
        draw_state(s, 3).uniform()
        assert (np.random.get_state()[1].tobytes(), random.getstate()) == before
    assert seen[0] == seen[1]


def test_the_generator_of_a_draws_resize_and_flip_is_its_own():
    values = [draw_state(s, k).uniform() for s in range(3) for k in range(100)]
    assert len(set(values)) == 300
    assert draw_state(2, 5).uniform() == values[205]
    assert abs(np.mean(values) - 0.5) < 0.08
    neighbours = np.corrcoef(list(pairwise(values)), rowvar=False)[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(300)


# --- datasets without masks


def test_copy_paste_needs_masks_and_says_what_to_do_where_there_are_none():
    boxes = [record(square(20, 20, 10, segmentation=None))]
    cfg = load_cfg(CONFIGS / "orig_aug.yaml")
    with pytest.raises(SmallObjError, match=r"coco_2017_train .*PASTE_BOXES.*COPY_PASTE False"):
        require_sources(boxes, cfg)
    require_sources([*boxes, WITH_SMALL], cfg)
    require_sources(boxes, load_cfg(CONFIGS / "orig_aug.yaml", ["SMALLOBJ.PASTE_BOXES", "True"]))
    require_sources(boxes, load_cfg(CONFIGS / "baseline.yaml"))


@pytest.mark.parametrize(
    "more",
    [(), (square(20, 20, 10, segmentation=None),), (square(20, 20, 10, iscrowd=1),)],
    ids=["large", "a box", "a crowd"],
)
def test_copy_paste_needs_small_objects_and_says_how_small_the_smallest_is(more):
    records = [WITHOUT, record(*more)]
    cfg = load_cfg(CONFIGS / "orig_aug.yaml")
    with pytest.raises(SmallObjError, match=r"smallest area is 1600 pixels, and .*AREA is 1024"):
        require_sources(records, cfg)
    require_sources(records, load_cfg(CONFIGS / "orig_aug.yaml", ["SMALLOBJ.SMALL_AREA", "2000"]))
    require_sources(records, load_cfg(CONFIGS / "baseline.yaml"))


def test_an_annotation_that_cannot_be_copied_is_named_with_its_file():
    """In Detectron2's own loader nobody has looked at the annotations before."""
    wrong = square(20, 20, 10, segmentation={"size": [9, 9], "counts": b"11"})
    drawn = {**record(wrong, draw=Draw(0, 0, 0)), "file_name": "a.jpg", "image_id": 7}
    augmentation = DrawAugmentation(CopyPaste(), seed=0, probability=1.0)
    with pytest.raises(SmallObjError, match=r"^a\.jpg \(image 7\): Annotation 0: An RLE"):
        augmentation.plan(drawn)
