"""Copy-paste as a whole: the laws on random scenes and real images, degenerate input, errors."""

import logging
import os
from collections import Counter
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proofs.copy_paste_laws import check
from proofs.random_scenes import random_options, random_scene, raster, rectangle, rle_of
from smallobj_d2 import CopyPaste, Jitter, SameImage, SmallObjError, SourceRule, get_cfg, load_coco
from smallobj_d2.copy_paste.paste import _warn_of_cap
from smallobj_d2.masks.shapes import shape_of
from smallobj_d2.sizes import is_small

DATASETS = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
REAL = {
    "coco": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "dsb2018": ("dsb2018/annotations/val.json", "dsb2018/val"),
}


# --- the laws


@settings(max_examples=250)
@given(st.integers(0, 10**9))
@example(9102)  # two copies, one grazing what the other cuts
def test_every_law_holds_on_random_scenes(seed):
    """See copy_paste_laws; all kinds of annotations, all options, at random."""
    rng = np.random.default_rng(seed)
    image, annotations = random_scene(rng)
    check(image, annotations, CopyPaste(**random_options(rng)), seed)


@pytest.mark.parametrize("kind", ["polygon", "parts", "rle", "uncompressed", "box"])
def test_the_laws_are_put_to_the_test_by_every_kind_of_annotation(kind):
    """Many small objects in a large image, so that every law has something to say."""
    counts = Counter()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        image, annotations = random_scene(rng, kinds=[kind], low=200, high=300, most=8)
        rule = SourceRule(connected=False, max_covered=1, boxes=True)
        for options in ({}, {"allow_overlap": True}, {"blur": 5, "gap": 0}):
            counts += check(
                image, annotations, CopyPaste(copies=5, sources=SameImage(rule), **options), seed
            )
    assert counts["copies pasted"] > 30
    assert counts["masks are apart by COCO's tools"] > 100


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    "options", [{}, {"allow_overlap": True}, {"blur": 5, "strategy": "single"}]
)
def test_every_law_holds_on_real_images(name, options):
    json_file, folder = (DATASETS / part for part in REAL[name])
    if not json_file.is_file():
        pytest.skip(f"{name} is not in DETECTRON2_DATASETS")
    pasted = 0
    for record in load_coco(json_file, folder).records[:6]:
        if len(record["annotations"]) < 60:
            image = cv2.imread(record["file_name"])
            pasted += check(image, record["annotations"], CopyPaste(copies=1, **options), 0)[
                "copies pasted"
            ]
    assert pasted


@pytest.mark.parametrize("overlap", [False, True])
def test_an_image_of_500_instances_obeys_the_laws_and_ends(overlap):
    annotations = [rectangle(8 + 9 * (i % 25), 8 + 9 * (i // 25), 5, 4) for i in range(500)]
    image = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    copy_paste = CopyPaste(copies=1, allow_overlap=overlap, max_pastes=60)
    counts = check(image, annotations, copy_paste, 0)
    assert counts["copies tried"] == 500
    if overlap:
        assert counts["copies pasted"] == 60


# --- counts


def test_the_same_generator_gives_the_same_result_and_another_another():
    image = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    things = [rectangle(20, 20, 8, 6)]
    results = [CopyPaste()(image, things, np.random.default_rng(s))[0] for s in (1, 1, 2)]
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()


def test_no_global_random_state_is_read_or_changed():
    image = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    results = []
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[1].copy()
        results.append(CopyPaste()(image, [rectangle(20, 20, 8, 6)], np.random.default_rng(0))[0])
        assert (np.random.get_state()[1] == before).all()
    assert (results[0] == results[1]).all()


def test_copies_for_which_there_is_no_place_are_given_up_and_counted():
    full = rectangle(0, 0, 60, 60, area=3600.0, segmentation=rle_of(np.ones((60, 60), np.uint8)))
    rule = SourceRule(max_covered=1)
    things = [rectangle(20, 20, 5, 5), full]
    plan = CopyPaste(copies=7, sources=SameImage(rule)).plan(
        things, 60, 60, np.random.default_rng(0)
    )
    assert (plan.tried, plan.pasted, plan.given_up, plan.capped) == (7, 0, 7, 0)
    assert plan.annotations == things


def test_an_image_gets_no_more_than_max_pastes_and_the_rest_is_counted_and_logged(caplog):
    things = [rectangle(20 * i + 10, 10, 5, 5) for i in range(4)]
    copy_paste = CopyPaste(copies=5, max_pastes=6)
    _warn_of_cap.cache_clear()
    with caplog.at_level(logging.WARNING):
        plan = copy_paste.plan(things, 300, 300, np.random.default_rng(0))
        copy_paste.plan(things, 300, 300, np.random.default_rng(1))
    assert caplog.text.count("wants") == 1  # once, or a crowded dataset would fill the log
    assert (plan.tried, plan.pasted, plan.given_up, plan.capped) == (20, 6, 0, 14)
    assert "wants 20 pastes; SMALLOBJ.MAX_PASTES allows 6" in caplog.text
    sources = Counter(a["copy_paste"]["source"] for a in plan.annotations[4:])
    assert max(sources.values()) - min(sources.values()) <= 1  # each object its share


def test_planning_needs_no_pixels_and_drawing_no_generator():
    things = [rectangle(20, 20, 8, 6)]
    image = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    plan = CopyPaste().plan(things, 80, 90, np.random.default_rng(5))
    drawn = image.copy()
    CopyPaste().composite(drawn, plan)
    result, after = CopyPaste()(image, things, np.random.default_rng(5))
    assert (drawn == result).all()
    assert after == plan.annotations


# --- degenerate input

SLIVER = {"segmentation": [[20, 20, 30, 20.01, 40, 20]], "area": 0.1, "bbox": [20, 20, 20, 0.01]}
DEGENERATE = {
    "no annotations": [],
    "none small": [rectangle(10, 10, 40, 40)],
    "one pixel": [rectangle(20, 20, 1, 1)],
    "less than a pixel": [rectangle(20.1, 20.1, 0.2, 0.2)],
    "a sliver": [rectangle(20, 20, 20, 1) | SLIVER],
    "no area": [rectangle(20, 20, 0, 0)],
    "an empty RLE": [rectangle(20, 20, 5, 5, segmentation=rle_of(np.zeros((64, 64), np.uint8)))],
    "an area that is a lie": [rectangle(5, 5, 50, 50, area=3.0)],
    "outside the image": [rectangle(-40, -40, 10, 10), rectangle(90, 90, 9, 9)],
    "half outside": [rectangle(-5, 20, 10, 10), rectangle(60, 60, 9, 9)],
    "a bow tie": [
        rectangle(20, 20, 9, 9) | {"segmentation": [[20, 20, 29, 29, 29, 20, 20, 29]], "area": 40.0}
    ],
    "a spiral over itself": [
        rectangle(20, 20, 9, 9) | {"segmentation": [[20, 20, 29, 20, 29, 29, 20, 29] * 3]}
    ],
    "the same point again": [rectangle(20, 20, 9, 9) | {"segmentation": [[20, 20] * 5]}],
    "a huge crowd": [
        rectangle(0, 0, 64, 64, iscrowd=1, segmentation=rle_of(np.ones((64, 64), np.uint8))),
        rectangle(20, 20, 5, 5),
    ],
}


@pytest.mark.parametrize("options", [{}, {"allow_overlap": True}, {"blur": 5, "margin": 0}])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_annotations_obey_the_laws(case, options):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    annotations = deepcopy(DEGENERATE[case])
    for inside in (True, False):
        rule = SourceRule(inside=inside, connected=inside, max_covered=0.1 if inside else 1)
        for seed in range(5):
            check(image, annotations, CopyPaste(copies=3, sources=SameImage(rule), **options), seed)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (9, 9), (10, 10), (11, 300)])
@pytest.mark.parametrize("overlap", [False, True])
def test_tiny_images_obey_the_laws(size, overlap):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rule = SourceRule(inside=False)
    for options in ({}, {"margin": 0, "gap": 0, "blur": 5}):
        copy_paste = CopyPaste(copies=3, allow_overlap=overlap, sources=SameImage(rule), **options)
        check(image, [rectangle(0, 0, 1, 1)], copy_paste, 0)


def test_an_object_that_owns_no_pixel_is_given_up_not_pasted_empty():
    thing = rectangle(20, 20, 20, 1) | SLIVER
    plan = CopyPaste(copies=9).plan([thing], 64, 64, np.random.default_rng(0))
    assert plan.tried == 9
    assert all(p.mask.any() for p in plan.pastes)
    assert plan.left_out == {"empty": 9 - plan.pasted}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_coordinates_that_are_no_numbers_are_refused_and_nothing_hangs(value):
    thing = rectangle(20, 20, 5, 5)
    polygon = thing | {"segmentation": [[20, 20, 25, value, 25, 25]]}
    box = thing | {"bbox": [20, value, 5, 5], "segmentation": None}
    image = np.zeros((64, 64, 3), np.uint8)
    for bad in (polygon, box):
        with pytest.raises(SmallObjError, match=r"^Annotation 0.* must be.* finite"):
            check(image, [bad, thing], CopyPaste(sources=SameImage(SourceRule(boxes=True))), 0)


# --- wrong use


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20, 3), np.int64),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 1), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        [[[0, 0, 0]]],
    ],
)
def test_an_image_of_another_kind_is_refused_with_what_it_is(image):
    with pytest.raises(SmallObjError, match=r"takes an \(H, W, 3\) uint8"):
        CopyPaste()(image, [], np.random.default_rng(0))
    with pytest.raises(SmallObjError, match=r"takes an \(H, W, 3\) uint8"):
        CopyPaste().composite(image, CopyPaste().plan([], 20, 20, np.random.default_rng(0)))


@pytest.mark.parametrize(
    "options",
    [
        {"copies": 0},
        {"copies": 1.5},
        {"copies": True},
        {"multiple_share": 0},
        {"multiple_share": 1.1},
        {"margin": -1},
        {"margin": 2.5},
        {"gap": -1},
        {"blur": 4},
        {"blur": -3},
        {"covered_labels": "hidden"},
        {"max_pastes": 0},
    ],
)
def test_a_value_that_means_nothing_is_refused_by_key_value_and_rule(options):
    ((key, value),) = options.items()
    with pytest.raises(SmallObjError, match=f"^SMALLOBJ.{key.upper()} is {value!r}; it .+[.]$"):
        CopyPaste(**options)


def test_an_unknown_strategy_is_refused_with_those_there_are():
    with pytest.raises(SmallObjError, match=r"'some', .*; there are: all, .*multiple, single"):
        CopyPaste(strategy="some")


def test_the_config_says_everything():
    cfg = get_cfg()
    s = cfg.SMALLOBJ
    s.STRATEGY, s.COPIES, s.MULTIPLE_SHARE = "multiple", 3, 0.25
    s.SMALL_AREA, s.REQUIRE_CONNECTED, s.REQUIRE_INSIDE = 500.0, False, False
    s.MAX_COVERED, s.PASTE_BOXES = 0.4, True
    s.SCALE, s.ROTATION = (0.5, 2.0), (-5.0, 50.0)
    s.MARGIN, s.GAP, s.ALLOW_OVERLAP, s.COVERED_LABELS = 7, 2, True, "untouched"
    s.MAX_PASTES, s.BLUR = 11, 3
    made = CopyPaste.from_config(cfg)
    assert vars(made) == vars(
        CopyPaste(
            strategy="multiple",
            copies=3,
            multiple_share=0.25,
            sources=SameImage(SourceRule(500.0, False, False, 0.4, True)),
            jitter=Jitter((0.5, 2.0), (-5.0, 50.0)),
            margin=7,
            gap=2,
            allow_overlap=True,
            covered_labels="untouched",
            max_pastes=11,
            blur=3,
        )
    )


def test_the_defaults_of_the_config_and_of_the_class_are_the_same():
    assert vars(CopyPaste.from_config(get_cfg())) == vars(CopyPaste())


# --- What else is given to it


def square_mask(x, y, side, dtype=bool, value=1):
    mask = np.zeros((60, 70), dtype)
    mask[y : y + side, x : x + side] = value
    return mask


@pytest.mark.parametrize(
    ("dtype", "value"), [(bool, 1), (np.uint8, 1), (np.uint8, 255), (np.int8, -1)]
)
@pytest.mark.parametrize("overlap", [False, True])
def test_masks_may_be_arrays_and_stay_arrays(dtype, value, overlap):
    """What is pasted is what the same masks as RLE give."""
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    places = [(9, 9, 10), (30, 30, 8), (24, 36, 9)]
    arrays = [
        rectangle(x, y, n, n, segmentation=square_mask(x, y, n, dtype, value)) for x, y, n in places
    ]
    rles = [rectangle(x, y, n, n, segmentation=rle_of(square_mask(x, y, n))) for x, y, n in places]
    copy_paste = CopyPaste(
        copies=3, allow_overlap=overlap, sources=SameImage(SourceRule(max_covered=1))
    )
    result, after = copy_paste(image, arrays, 3)
    expected, labels = copy_paste(image, rles, 3)
    assert (result == expected).all()
    assert len(after) == len(labels) > 3
    for label, want in zip(after, labels, strict=True):
        mask = label["segmentation"]
        assert (mask.dtype, mask.shape) == (dtype, (60, 70))
        assert set(np.unique(mask)) == {0, value}
        assert ((mask != 0) == raster(want["segmentation"], 60, 70)).all()
        assert label["bbox"] == want["bbox"]


@pytest.mark.parametrize("mask", [np.ones((3, 4), bool), np.ones((60, 70)), np.ones((1, 60, 70))])
def test_an_array_that_is_no_mask_of_the_image_is_refused(mask):
    image = np.zeros((60, 70, 3), np.uint8)
    with pytest.raises(SmallObjError, match="Annotation 0: An array in `segmentation` has shape"):
        CopyPaste()(image, [rectangle(9, 9, 5, 5, segmentation=mask)], 0)


def test_a_mask_of_another_kind_is_refused_with_its_type():
    mask = square_mask(9, 9, 5)
    with pytest.raises(SmallObjError, match="Annotation 0: `segmentation` is a memoryview"):
        CopyPaste().plan([rectangle(9, 9, 5, 5, segmentation=memoryview(mask))], 60, 70, 0)
    with pytest.raises(SmallObjError, match=r"A polygon in `segmentation` is .False, False"):
        CopyPaste().plan([rectangle(9, 9, 5, 5, segmentation=mask.tolist())], 60, 70, 0)


def test_a_seed_is_as_good_as_a_generator():
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    one, two = (CopyPaste()(image, [rectangle(9, 9, 5, 5)], r) for r in (4, np.int64(4)))
    three = CopyPaste()(image, [rectangle(9, 9, 5, 5)], np.random.default_rng(4))
    assert one[1] == two[1] == three[1]
    for wrong in (-1, None, np.random.RandomState(0), 0.5):
        with pytest.raises(SmallObjError, match=r"numpy\.random\.Generator"):
            CopyPaste()(image, [], wrong)


@pytest.mark.parametrize("masks", [True, False])
def test_boxes_that_are_xyxy_and_do_not_say_so_are_refused(masks):
    image = np.zeros((60, 70, 3), np.uint8)
    things = [
        {**rectangle(30, 30, 15, 20), "bbox": [30, 30, 45, 50]},
        {**rectangle(40, 35, 20, 15), "bbox": [40, 35, 60, 50]},
    ]
    for thing in things:
        del thing["bbox_mode"]
        if not masks:
            del thing["segmentation"]
    with pytest.raises(SmallObjError, match=r"Annotation 0 has bbox .* add bbox_mode 0"):
        CopyPaste()(image, things, 0)
    with pytest.raises(SmallObjError, match="add bbox_mode 0"):
        CopyPaste().plan(things, 60, 70, 0)
    CopyPaste()(image, [{**thing, "bbox_mode": 0} for thing in things], 0)
    CopyPaste()(image, [{**things[0], "bbox": [30, 30, 15, 20]}], 0)


def test_a_loose_box_near_the_corner_is_no_xyxy_box():
    loose = {**rectangle(8, 8, 12, 12), "bbox": [8, 8, 20, 20]}
    del loose["bbox_mode"]
    CopyPaste()(np.zeros((60, 70, 3), np.uint8), [loose], 0)


def masked(x, y, width, height, bbox):
    thing = {**rectangle(x, y, width, height), "bbox": bbox}
    del thing["bbox_mode"]
    return thing


def test_a_box_is_xyxy_if_it_is_so_within_a_pixel_and_not_in_the_corner():
    wrong = "fits its mask as x0, y0, x1, y1 only"
    for thing, refused in (
        (masked(16, 16, 12, 12, [16, 16, 28, 28]), False),  # 16 pixels from the corner
        (masked(17, 3, 12, 12, [17, 3, 29, 15]), True),  # far enough to one side
        (masked(3, 17, 12, 12, [3, 17, 15, 29]), True),
        (masked(30, 30, 15, 15, [30, 29, 46, 46]), True),  # a pixel off
        (masked(30, 30, 15, 15, [30, 30, 47, 45]), False),  # neither
    ):
        if refused:
            with pytest.raises(SmallObjError, match=wrong):
                CopyPaste().plan([thing], 60, 70, 0)
        else:
            CopyPaste().plan([thing], 60, 70, 0)


INSIDE = [10, 10, 30, 30]  # inside either way
RIGHT, DOWN = [80, 10, 99, 30], [10, 80, 30, 99]  # XYXY: these leave as XYWH, to one side


@pytest.mark.parametrize(
    ("boxes", "refused"),
    [
        ([RIGHT, RIGHT], True),
        ([DOWN, DOWN], True),
        ([RIGHT], False),
        ([RIGHT, DOWN, [10, 10, 8, 8]], False),  # the last is no XYXY box
        ([RIGHT, DOWN, [40, 40, 100.8, 60]], True),  # over the border by less than a pixel
        ([RIGHT, DOWN, [40, 40, 102, 60]], False),
        ([RIGHT, DOWN, *[INSIDE] * 4], True),  # a third
        ([RIGHT, DOWN, *[INSIDE] * 5], False),
    ],
)
def test_boxes_without_masks_are_xyxy_if_a_third_leaves_and_all_fit_as_such(boxes, refused):
    things = [{"bbox": box, "area": 400.0} for box in boxes]
    if refused:
        with pytest.raises(SmallObjError, match="fits the image as x0, y0, x1, y1 only"):
            CopyPaste().plan(things, 100, 100, 0)
    else:
        CopyPaste().plan(things, 100, 100, 0)


def test_one_box_that_leaves_the_image_is_no_xyxy_box():
    """Boxes without masks: annotators draw some over the border by a few pixels."""
    image = np.zeros((100, 100, 3), np.uint8)
    over = {"bbox": [40, 45, 62, 58], "area": 62.0 * 58}
    within = {"bbox": [10, 10, 8, 8], "area": 64.0}
    copy_paste = CopyPaste(sources=SameImage(SourceRule(boxes=True)))
    for annotations in ([over], [within, over]):
        copy_paste(image, annotations, 0)


@pytest.mark.parametrize("form", ["polygon", "rle", "array"])
def test_copies_stay_off_a_mask_that_its_box_does_not_hold(form):
    """No loader has looked at boxes without `bbox_mode`."""
    large = np.zeros((100, 100), np.uint8)
    large[10:90, 30:95] = 1
    forms = {"polygon": [[30, 10, 95, 10, 95, 90, 30, 90]], "rle": rle_of(large), "array": large}
    small = {"bbox": [8, 8, 9, 9], "area": 81.0, "segmentation": [[8, 8, 17, 8, 17, 17, 8, 17]]}
    cut = {"bbox": [50, 30, 20, 40], "area": 5200.0, "segmentation": forms[form]}
    copy_paste = CopyPaste(copies=3)
    placed = 0
    for seed in range(20):
        for copy in copy_paste.plan([small, cut], 100, 100, seed).annotations[2:]:
            assert not (raster(copy["segmentation"], 100, 100) & large).any()
            placed += 1
    assert placed > 30


def test_copies_keep_off_what_others_cover_not_only_off_what_they_own():
    """Spikes, which cover pixels that they do not own."""
    spike = rectangle(8, 8, 30, 5, segmentation=[[8.0, 8, 38, 10.5, 8, 13]], area=75)
    copy_paste = CopyPaste(copies=80, jitter=Jitter(rotation=(-180, 180)))
    plan = copy_paste.plan([spike], 130, 130, 0)
    assert plan.pasted > 20
    taken = np.zeros((130, 130), np.uint8)
    for annotation in plan.annotations:
        covered = np.zeros_like(taken)
        shape_of(annotation, 130, 130).cover(covered)
        assert not (cv2.dilate(covered, np.ones((3, 3), np.uint8)) & taken).any()
        taken |= covered


def test_an_object_that_its_box_does_not_hold_is_copied_whole():
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 40:60] = 1
    thing = {"bbox": [45, 45, 8, 8], "area": 400.0, "segmentation": rle_of(mask)}
    same = Jitter(scale=(1.0, 1.0), rotation=(0.0, 0.0))
    _, copy = CopyPaste(jitter=same).plan([thing], 100, 100, 0).annotations
    assert copy["area"] == 400


def test_copies_that_own_no_pixel_are_counted_apart():
    sliver = rectangle(20.3, 9.3, 0.01, 30.0, area=0.3)
    plan = CopyPaste(copies=5).plan([sliver], 60, 60, 0)
    assert plan.empty >= 1
    assert (plan.tried, plan.given_up) == (5, 0)
    assert plan.empty + plan.pasted == 5


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_a_copy_that_jitter_makes_larger_than_small_stays_as_a_medium_object(kind):
    source = rectangle(20, 20, 30, 30)
    if kind == "rle":
        source["segmentation"] = rle_of(raster(source["segmentation"], 200, 200))
    copy_paste = CopyPaste(copies=2, jitter=Jitter((1.2, 1.2), (0, 0)))
    plan = copy_paste.plan([source], 200, 200, 0)
    assert plan.pasted == plan.tried == 2
    assert [is_small(a) for a in plan.annotations] == [True, False, False]
    assert [a["area"] for a in plan.annotations[1:]] == pytest.approx([36 * 36] * 2)


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_a_copy_larger_than_the_image_is_given_up_before_it_is_made(kind):
    mask = np.zeros((60, 70), np.uint8)
    mask[20:40, 20:40] = 1
    thing = rectangle(20, 20, 20, 20)
    if kind == "rle":
        thing["segmentation"] = rle_of(mask)
    plan = CopyPaste(jitter=Jitter((100, 100)), copies=3).plan([thing], 60, 70, 0)
    assert (plan.tried, plan.given_up, plan.pasted) == (3, 3, 0)


def test_a_copy_as_long_as_the_diagonal_is_not_too_large():
    thing = rectangle(1, 49, 98, 1)
    copy_paste = CopyPaste(jitter=Jitter((1.405, 1.405), (45, 45)), margin=0, allow_overlap=True)
    assert copy_paste.plan([thing], 100, 100, 0).pasted == 1


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("COPIES", lambda: CopyPaste(copies=10**20)),
        ("COPIES", lambda: CopyPaste(copies=1e20)),
        ("GAP", lambda: CopyPaste(gap=100_000)),
        ("MARGIN", lambda: CopyPaste(margin=10**9)),
        ("MAX_PASTES", lambda: CopyPaste(max_pastes=10**9)),
        ("BLUR", lambda: CopyPaste(blur=100_001)),
        ("SCALE", lambda: Jitter((10_000, 10_000))),
        ("SCALE", lambda: Jitter((1e-9, 1))),
        ("ROTATION", lambda: Jitter(rotation=(0, 1e9))),
    ],
)
def test_values_beyond_all_use_are_refused_with_the_rule(key, wrong):
    with pytest.raises(SmallObjError, match=rf"SMALLOBJ\.{key} is .*; it must be .*\d"):
        wrong()


@pytest.mark.parametrize(
    ("key", "most", "next_one"),
    [("copies", 10_000, 10_001), ("max_pastes", 10_000, 10_001), ("margin", 10_000, 10_001)]
    + [("gap", 1000, 1001), ("blur", 255, 257)],
)
def test_the_largest_value_is_the_last_that_is_taken(key, most, next_one):
    assert getattr(CopyPaste(**{key: most}), key) == most
    assert getattr(CopyPaste(**{key: np.int64(most)}), key) == most
    with pytest.raises(SmallObjError, match=f"SMALLOBJ.{key.upper()} is {next_one}"):
        CopyPaste(**{key: next_one})
