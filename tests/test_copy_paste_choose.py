"""Sections 4 and 5.3: which small objects are copied."""

from collections import Counter
from itertools import chain
from math import cos, pi, sin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from proofs.random_scenes import KINDS, random_scene, raster, rectangle, rle_of
from smallobj_d2 import STRATEGIES, CopyPaste, SmallObjError, SourceRule
from smallobj_d2.copy_paste.choose import Candidate, Candidates
from smallobj_d2.copy_paste.scene import Scene


def numbers(candidates):
    return [c.origin["source"] for c in candidates]


def candidates(annotations, height=100, width=100, **rule):
    return numbers(SourceRule(**rule).candidates(Scene(annotations, height, width)))


def chosen(strategy, n, share=0.5, seed=0):
    rng = np.random.default_rng(seed)
    candidates = Candidates(range(10, 10 + n), lambda i: True, a_candidate)
    return numbers(CopyPaste(strategy=strategy, multiple_share=share).choose(candidates, rng))


def a_candidate(i):
    return Candidate({"area": 5}, lambda: None, {"source": i})


# --- strategies


@pytest.mark.parametrize("n", [1, 2, 7])
def test_single_takes_one(n):
    assert len(chosen("single", n)) == 1


def test_single_takes_each_object_equally_often():
    counts = Counter(chosen("single", 5, seed=s)[0] for s in range(2000))
    assert set(counts) == set(range(10, 15))
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [
        (1, 0.5, 1),  # exactly one small object: it is copied
        (1, 0.01, 1),
        (2, 0.01, 2),  # several means two at least
        (3, 0.5, 2),
        (9, 0.01, 2),  # round(share x n) would be none
        (9, 0.5, 5),
        (100, 0.07, 7),  # 0.07 x 100 is 7.000000000000001
        (6, 1.0, 6),
    ],
)
def test_multiple_takes_its_share_rounded_up_and_two_at_least(n, share, expected):
    result = chosen("multiple", n, share)
    assert len(result) == len(set(result)) == expected


def test_multiple_takes_each_pair_equally_often():
    counts = Counter(tuple(sorted(chosen("multiple", 4, seed=s))) for s in range(3000))
    assert len(counts) == 6
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_all_takes_each_object_once():
    assert chosen("all", 7) == list(range(10, 17))


@pytest.mark.parametrize("strategy", ["single", "multiple", "all"])
@pytest.mark.parametrize("copies", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_chosen_object_is_pasted_as_often_as_copies_says(strategy, copies, n):
    annotations = [rectangle(20 * i + 10, 10, 4, 4) for i in range(n)]
    copy_paste = CopyPaste(strategy=strategy, copies=copies)
    plan = copy_paste.plan(annotations, 400, 400, np.random.default_rng(0))
    sources = Counter(a["copy_paste"]["source"] for a in plan.annotations if "copy_paste" in a)
    assert set(sources.values()) == {copies}
    assert len(sources) == {"single": 1, "multiple": min(n, max(2, -(-n // 2))), "all": n}[strategy]
    assert plan.tried == plan.pasted == len(sources) * copies


def test_a_strategy_of_the_users_own_is_found_by_name(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "last", lambda candidates, rng: candidates[-1:])
    annotations = [rectangle(10, 10, 4, 4), rectangle(30, 10, 4, 4)]
    plan = CopyPaste(strategy="last").plan(annotations, 99, 99, np.random.default_rng(0))
    assert plan.annotations[2]["copy_paste"]["source"] == 1
    assert CopyPaste(strategy="last").plan([], 99, 99, np.random.default_rng(0)).tried == 0


# --- looking at no more objects than need be


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 12), st.integers(0, 10**6))
def test_candidates_are_a_list_of_what_is_allowed(allowed, n, seed):
    found = Candidates(range(len(allowed)), allowed.__getitem__, int)
    expected = [i for i, a in enumerate(allowed) if a]
    assert list(found) == found[:] == expected
    assert [found[i] for i in range(len(found))] == expected
    assert bool(found) == bool(expected)
    picked = found.pick(n, np.random.default_rng(seed))
    assert len(picked) == len(set(picked)) == min(n, len(expected))
    assert set(picked) <= set(expected)


def test_each_pair_of_allowed_objects_is_picked_equally_often_in_both_orders():
    candidates = Candidates(range(6), {1, 2, 5}.__contains__, int)
    rng = np.random.default_rng(0)
    counts = Counter(tuple(candidates.pick(2, rng)) for _ in range(3000))
    assert len(counts) == 6
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_picking_one_of_many_looks_at_few_and_at_none_twice():
    asked = []
    candidates = Candidates(range(100), lambda i: not asked.append(i), int)
    rng = np.random.default_rng(0)
    candidates.pick(1, rng)
    assert len(asked) == 1
    assert len(candidates) == 100
    assert len(list(candidates)) == 100
    assert sorted(asked) == list(range(100))


# --- which objects may be copied


def test_only_small_objects_are_copied():
    small, not_small = rectangle(10, 10, 31, 33), rectangle(50, 50, 32, 32)
    assert small["area"] == 1023
    assert not_small["area"] == 1024
    assert candidates([small, not_small]) == [0]
    assert candidates([small, not_small], small_area=1025) == [0, 1]


def test_small_is_by_the_area_of_the_mask_in_the_annotation_not_by_its_box():
    assert candidates([rectangle(10, 10, 50, 50, area=1000.0)]) == [0]


def test_crowds_are_not_copied():
    mask = np.zeros((100, 100), np.uint8)
    mask[10:20, 10:20] = 1
    crowd = rectangle(10, 10, 10, 10, iscrowd=1, segmentation=rle_of(mask))
    assert candidates([crowd, rectangle(50, 50, 5, 5)]) == [1]


def test_boxes_are_copied_only_on_request():
    box = rectangle(10, 10, 5, 5)
    del box["segmentation"]
    assert candidates([box]) == []
    assert candidates([box], boxes=True) == [0]


def test_objects_without_area_are_not_copied():
    assert candidates([rectangle(10, 10, 0, 5)]) == []


def test_a_mask_of_two_pieces_is_copied_only_if_connected_is_off():
    parts = [*rectangle(10, 10, 4, 4)["segmentation"], *rectangle(20, 10, 4, 4)["segmentation"]]
    polygon = rectangle(10, 10, 14, 4, segmentation=parts)
    rle = polygon | {"segmentation": rle_of(raster(parts, 100, 100))}
    assert candidates([polygon]) == candidates([rle]) == []
    assert candidates([polygon, rle], connected=False, max_covered=1) == [0, 1]


@pytest.mark.parametrize("shift", [0, 3])
def test_parts_that_touch_are_one_piece_even_across_a_corner(shift):
    parts = [*rectangle(10, 10, 4, 4)["segmentation"]]
    parts += rectangle(14, 11 + shift, 4, 4)["segmentation"]
    assert candidates([rectangle(10, 10, 8, 5 + shift, segmentation=parts)]) == [0]


@pytest.mark.parametrize("box", [(0, 50), (90, 50), (50, 0), (50, 90), (0.5, 50), (50, 89.5)])
def test_an_object_at_the_image_border_is_copied_only_if_inside_is_off(box):
    assert candidates([rectangle(*box, 10, 10)]) == []
    assert candidates([rectangle(*box, 10, 10)], inside=False) == [0]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("past", [-1, 1])
def test_half_a_pixel_may_reach_out_of_the_image_and_no_more(side, past):
    """It owns no pixel there."""
    for out, copied in ((0.5, [0]), (0.75, [])):
        corner = [50.0, 50.0]
        corner[side] = -out if past < 0 else 90 + out
        assert candidates([rectangle(*corner, 10, 10)], inside=False) == copied


@pytest.mark.parametrize("box", [(1, 50), (89, 50), (50, 1), (50, 89)])
def test_one_pixel_to_the_border_is_inside(box):
    assert candidates([rectangle(*box, 10, 10)]) == [0]


def test_the_mask_counts_where_its_box_is_a_pixel_short():
    mask = np.zeros((100, 100), np.uint8)
    mask[40:44, 96:] = 1
    cut_off = rectangle(96, 40, 3, 3, area=16, segmentation=rle_of(mask))
    assert candidates([cut_off]) == []
    assert candidates([cut_off], inside=False) == [0]


def test_what_reaches_out_of_the_image_is_not_copied_though_its_box_ends_there():
    outline = rectangle(90, 40, 20, 10)["segmentation"]
    assert candidates([rectangle(90, 40, 10, 10, segmentation=outline)], inside=False) == []


def test_parts_that_a_line_joins_are_pieces():
    """As YOLO has a mask of several parts: one polygon that goes there and back."""
    joined = [10, 10, 22, 10, 22, 22, 60, 22, 72, 22, 72, 10, 60, 10, 60, 22, 22, 22, 10, 22]
    thing = rectangle(10, 10, 62, 12, area=288, segmentation=[[float(v) for v in joined]])
    assert candidates([thing]) == []
    assert candidates([thing], connected=False) == [0]
    thin = [10.0, 10, 30, 14, 30, 14.1, 10, 10.1]  # its pixels fall apart
    for same in (thin, thin + thin[:2], thin + thin[-2:], thin + 2 * thin[:2]):
        assert candidates([rectangle(10, 10, 20, 4.1, area=9, segmentation=[same])]) == [0]


@pytest.mark.parametrize("box", [(-2, 50), (93, 50), (50, -2), (200, 200)])
def test_what_reaches_out_of_the_image_is_never_copied(box):
    assert candidates([rectangle(*box, 10, 10)], inside=False) == []


@pytest.mark.parametrize(
    ("covered", "allowed", "copied"),
    [(10, 0.1, True), (11, 0.1, False), (1, 0, False), (0, 0, True), (100, 0.9, False)]
    + [(100, 1, True)],
)
def test_a_neighbour_may_claim_the_allowed_share_of_the_mask(covered, allowed, copied):
    """The object has 10 x 10 pixels."""
    mask = np.zeros((100, 100), np.uint8)
    mask[20:30, 20:30].flat[:covered] = 1
    mask[30:40, 20:40] = 1
    neighbour = rectangle(20, 20, 20, 20, area=5000, segmentation=rle_of(mask))
    result = candidates([rectangle(20, 20, 10, 10), neighbour], max_covered=allowed)
    assert result == ([0] if copied else [])


def test_crowds_and_several_neighbours_together_cover():
    thing = rectangle(20, 20, 10, 10)
    left = rectangle(10, 20, 11, 10, area=2000)
    right = rectangle(29, 20, 11, 10, area=2000, iscrowd=1)
    assert candidates([thing, left]) == candidates([thing, right]) == [0]
    assert candidates([thing, left, right]) == []


@given(st.integers(0, 10**6))
def test_the_candidates_are_those_of_a_check_on_the_whole_image(seed):
    """Brute force: every mask of every kind on the whole image, every criterion at random."""
    rng = np.random.default_rng(seed)
    image, annotations = random_scene(rng, kinds=KINDS[:4], most=8)
    height, width = image.shape[:2]
    inside, share = bool(rng.random() < 0.5), float(rng.choice([0.1, 0.5, 1]))
    rule = SourceRule(inside=inside, connected=False, max_covered=share)
    masks = [raster(a["segmentation"], height, width).astype(bool) for a in annotations]
    expected, tolerated = [], []
    for i, annotation in enumerate(annotations):
        x, y, a, b = annotation["bbox"]
        x1, y1 = (a, b) if annotation["bbox_mode"] == 0 else (x + a, y + b)
        claimed = np.any([m for j, m in enumerate(masks) if j != i] or [masks[i] & False], axis=0)
        ok = annotation["area"] > 0 and annotation["area"] < 1024 and not annotation["iscrowd"]
        if inside:
            ok &= min(x, y) >= 1 and x1 <= width - 1 and y1 <= height - 1
        n, hidden = masks[i].sum(), (masks[i] & claimed).sum()
        # In a window that cuts an edge off, COCO's rounding moves it by a fifth of a pixel.
        slack = 0.05 * n + 3
        if ok and (share == 1 or hidden <= share * n):
            expected.append(i)
        if share < 1 and abs(hidden - share * n) <= slack:
            tolerated.append(i)
    found = numbers(rule.candidates(Scene(annotations, height, width)))
    assert set(found) ^ set(expected) <= set(tolerated)


@pytest.mark.parametrize("turned", [False, True])
def test_an_outline_without_area_is_no_candidate(turned):
    """It may say that it has one, and its window has no height, or no width."""
    line = [[30.0, 35.0, 40.0, 35.0, 35.0, 35.0]]
    if turned:
        line = [[35.0, 30.0, 35.0, 40.0, 35.0, 35.0]]
    around = rectangle(10, 10, 80, 80)
    scene = Scene([rectangle(30, 30, 10, 10, segmentation=line), around], 100, 100)
    assert not CopyPaste().plan(scene.annotations, 100, 100, 1).pasted


def test_a_ring_around_an_object_does_not_cover_it():
    turns = np.linspace(0, 2 * pi, 40)
    outer = [v for t in turns for v in (50 + 30 * cos(t), 50 + 30 * sin(t))]
    inner = [v for t in turns[::-1] for v in (50 + 20 * cos(t), 50 + 20 * sin(t))]
    ring = rectangle(20, 20, 60, 60, area=1500, segmentation=[outer + inner])
    assert candidates([ring, rectangle(45, 45, 10, 10)], max_covered=0) == [1]


@pytest.mark.parametrize("apart", [True, False])
def test_very_many_instances_need_neither_long_nor_much_memory(apart):
    """A table of all pairs of 100,000 would have 10 billion cells."""
    n = 100_000
    places = [(2 + 3 * (i % 350), 2 + 3 * (i // 350)) if apart else (500, 400) for i in range(n)]
    things = [rectangle(x, y, 2, 2) for x, y in places]
    scene = Scene(things, 1000, 1100)
    neighbours = scene.neighbours(range(n))
    assert sum(map(len, neighbours(7))) == (0 if apart else n - 1)
    rule = SourceRule()
    assert [rule._is_uncovered(scene, i, neighbours(i)) for i in (0, 7, n - 1)] == [apart] * 3


@given(st.integers(0, 10**6))
def test_neighbours_are_found_alike_by_table_and_by_index(seed):
    rng = np.random.default_rng(seed)
    things = [rectangle(*rng.integers(0, 40, 2), *rng.integers(0, 9, 2)) for _ in range(12)]
    scene = Scene(things, 60, 60)
    table = scene.neighbours(range(12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smallobj_d2.copy_paste.scene._AT_ONCE", 0)
        index = scene.neighbours(range(12))
    for i in range(12):
        assert [*chain(*table(i))] == [*chain(*index(i))]


# --- wrong rules


@pytest.mark.parametrize(
    ("key", "rule"),
    [("SMALL_AREA", {"small_area": 0}), ("MAX_COVERED", {"max_covered": 1.5})]
    + [("MAX_COVERED", {"max_covered": -0.1}), ("MAX_COVERED", {"max_covered": float("nan")})],
)
def test_a_rule_that_means_nothing_is_refused_by_its_key(key, rule):
    with pytest.raises(SmallObjError, match=f"SMALLOBJ.{key} is"):
        SourceRule(**rule)
