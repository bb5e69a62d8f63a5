"""Where a copy goes, against brute force that lists every position and looks at every pixel."""

from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from proofs.random_scenes import random_scene, raster, rectangle, rle_of
from smallobj_d2.copy_paste import place
from smallobj_d2.copy_paste.place import Placer
from smallobj_d2.copy_paste.scene import Scene

seeds = st.integers(0, 10**6)


def covered_map(annotations, height, width):
    """(H, W) bool: pixels that any instance covers, each instance on a canvas of its own."""
    taken = np.zeros((height, width), bool)
    for annotation in annotations:
        canvas = np.zeros((height, width), np.uint8)
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            taken |= raster(segmentation, height, width).astype(bool)
            continue
        if not segmentation:
            a, b, c, d = annotation["bbox"]
            c, d = (c, d) if annotation["bbox_mode"] == 0 else (a + c, b + d)
            segmentation = [[a, b, c, b, c, d, a, d]]
        for part in segmentation:
            sixteenths = np.rint((np.reshape(part, (-1, 2)) - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(canvas, [sixteenths], 1, shift=4)
        taken |= canvas.astype(bool)
    return taken


def valid_positions(taken, copy, margin, gap):
    """All (x, y) at which a copy keeps its distance, one after the other, pixel by pixel."""
    height, width = taken.shape
    h, w = copy.shape
    rows, columns = np.nonzero(copy)
    offsets = range(-gap - 1, gap + 2)
    found = set()
    for y in range(margin, height - margin - h + 1):
        for x in range(margin, width - margin - w + 1):
            near = {
                (r + y + dy, c + x + dx)
                for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
                for dy in offsets
                for dx in offsets
            }
            if not any(0 <= r < height and 0 <= c < width and taken[r, c] for r, c in near):
                found.add((x, y))
    return found


class Corner:
    """In place of a generator: draws one given corner, and notes if it is asked for more."""

    def __init__(self, share):
        self.share, self.listed = share, 0

    def random(self, size):
        return np.broadcast_to(self.share, size)

    def integers(self, count):
        self.listed = count
        return 0


class Index:
    """In place of a generator: draws one given index, and notes out of how many."""

    def __init__(self, index):
        self.index, self.count = index, 0

    def integers(self, low):
        self.count = low
        return self.index


def listed(placer, copy):
    """The set of positions that the exhaustive stage draws from."""
    first = Index(0)
    if placer.find(copy, first) is None:
        return set()
    found = [placer.find(copy, Index(i)) for i in range(first.count)]
    assert len(set(found)) == len(found)
    return set(found)


def small_scene(rng):
    """A small image with a few instances of every kind, and a copy to place in it."""
    scene = random_scene(rng, low=4, high=26, most=4)[0].shape[:2]
    height, width = scene
    annotations = []
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.integers(0, 4 * width, 2) / 4, rng.integers(0, 4 * height, 2) / 4
        x, y = np.sort(x).tolist(), np.sort(y).tolist()
        if x[0] == x[1] or y[0] == y[1]:
            continue
        kind = rng.choice(["rectangle", "triangle", "rle", "box"])
        thing = rectangle(x[0], y[0], x[1] - x[0], y[1] - y[0])
        if kind == "triangle":
            thing["segmentation"] = [[x[0], y[0], x[1], y[0], x[0], y[1]]]
        elif kind == "rle":
            thing["segmentation"] = rle_of(raster(thing["segmentation"], height, width))
        elif kind == "box":
            del thing["segmentation"]
        if kind != "box" and rng.random() < 0.3:  # boxes may leave out a pixel
            x, y, w, h = thing["bbox"]
            thing["bbox"] = [x + 0.9, y + 0.9, max(w - 1.8, 0), max(h - 1.8, 0)]
        annotations.append(thing)
    copy = rng.integers(0, 2, tuple(rng.integers(1, 6, 2)), dtype=np.uint8)
    copy[rng.integers(len(copy)), rng.integers(len(copy[0]))] = 1
    return annotations, height, width, copy


@settings(max_examples=100)
@given(seeds, st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 5]))
def test_both_stages_can_return_exactly_the_valid_positions(seed, gap, margin):
    rng = np.random.default_rng(seed)
    annotations, height, width, copy = small_scene(rng)
    taken = covered_map(annotations, height, width)
    placer = Placer(Scene(annotations, height, width), margin=margin, gap=gap)
    for _ in range(3):  # an empty image first, then one copy and two copies that were taken
        valid = valid_positions(taken, copy, margin, gap)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, "_TRIES", 16)
            corners = [
                (x, y)
                for x in range(margin, width - margin - copy.shape[1] + 1)
                for y in range(margin, height - margin - copy.shape[0] + 1)
            ]
            rng.shuffle(corners)
            room = np.array([width, height]) - 2 * margin - copy.shape[::-1] + 1
            for corner in corners:
                script = Corner((np.array(corner) - margin + 0.5) / room)
                result = placer.find(copy, script)
                if corner in valid:
                    assert result == corner
                    assert not script.listed
                else:
                    assert script.listed == len(valid) or (result is None and not valid)
            patch.setattr(place, "_TRIES", 0)
            for by_correlation in (0, 10**9):
                patch.setattr(place, "_CORRELATED", by_correlation)
                assert listed(placer, copy) == valid
        if not valid:
            break
        x, y = sorted(valid)[rng.integers(len(valid))]
        placer.take(copy, x, y)
        taken[y : y + copy.shape[0], x : x + copy.shape[1]] |= copy.astype(bool)


def test_a_mask_that_its_box_leaves_out_by_a_pixel_is_seen_by_the_first_copy():
    """Before any instance is on the map, boxes alone say which are near."""
    mask = np.zeros((30, 30), np.uint8)
    mask[10:20, 10:20] = 1
    scene = Scene([rectangle(11, 11, 8, 8, segmentation=rle_of(mask))], 30, 30)
    copy = np.ones((1, 1), np.uint8)
    valid = valid_positions(mask.astype(bool), copy, 0, 0)
    for x, y in np.ndindex(30, 30):
        script = Corner((np.array((x, y)) + 0.5) / 30)
        placed = Placer(scene, margin=0, gap=0).find(copy, script)
        assert (placed == (x, y) and not script.listed) == ((x, y) in valid)


@pytest.mark.parametrize("tries", [0, 256])
@pytest.mark.parametrize("crowded", [False, True])
def test_draws_are_uniform_over_the_valid_positions(monkeypatch, tries, crowded):
    """By rejection, by listing, and where most of the draws fall through to the listing."""
    annotations = [rectangle(8, 8, 9, 5), rectangle(3.25, 14.5, 4, 7)]
    size = 24
    if crowded:  # few of some 6000 positions are free
        size = 80
        mask = np.ones((size, size), np.uint8)
        mask[20:26, 30:36] = mask[60:64, 70:74] = 0
        mask[5:9, 5:9] = 0
        annotations = [rectangle(0, 0, size, size, segmentation=rle_of(mask))]
    copy = np.ones((2, 2), np.uint8)
    gap = 0
    valid = valid_positions(covered_map(annotations, size, size), copy, 2, gap)
    placer = Placer(Scene(annotations, size, size), margin=2, gap=gap)
    monkeypatch.setattr(place, "_TRIES", tries)
    rng = np.random.default_rng(1)
    counts = Counter(placer.find(copy, rng) for _ in range(1000 if crowded else 20 * len(valid)))
    assert set(counts) == valid
    assert chisquare([counts[v] for v in sorted(valid)]).pvalue > 1e-3


def test_with_overlap_draws_are_uniform_over_the_box_inside_the_margin():
    placer = Placer(Scene([rectangle(0, 0, 30, 30)], 30, 32), margin=5, gap=0, overlap=True)
    copy = np.ones((6, 4), np.uint8)
    rng = np.random.default_rng(1)
    counts = Counter(placer.find(copy, rng) for _ in range(9000))
    assert set(counts) == {(x, y) for x in range(5, 24) for y in range(5, 20)}
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize(("free", "expected"), [(7, (40, 71)), (6, None)])
def test_the_only_place_in_a_large_image_is_found_and_none_is_none(free, expected):
    """A hole of ``free`` pixels for a copy of 5 with a pixel on each side."""
    mask = np.ones((300, 400), np.uint8)
    mask[70 : 70 + free, 39:46] = 0
    full = rectangle(0, 0, 400, 300, iscrowd=1, segmentation=rle_of(mask))
    placer = Placer(Scene([full], 300, 400), margin=5, gap=0)
    copy = np.ones((5, 5), np.uint8)
    for seed in range(20):
        assert placer.find(copy, np.random.default_rng(seed)) == expected
    if expected:
        placer.take(copy, *expected)
        assert placer.find(copy, np.random.default_rng(0)) is None


@pytest.mark.parametrize("by_correlation", [0, 10**9])
def test_one_pixel_decides_for_large_copies_in_large_full_images(monkeypatch, by_correlation):
    """Correlation goes through floating-point transforms."""
    monkeypatch.setattr(place, "_CORRELATED", by_correlation)
    mask = np.ones((1500, 1500), np.uint8)
    mask[699:831, 599:736] = 0
    mask[760, 599] = 1
    full = rectangle(0, 0, 1500, 1500, segmentation=rle_of(mask))
    placer = Placer(Scene([full], 1500, 1500), margin=5, gap=0)
    copy = np.ones((130, 133), np.uint8)
    corners = {placer.find(copy, np.random.default_rng(seed)) for seed in range(8)}
    assert corners == {(601, 700), (602, 700)}


@pytest.mark.parametrize("size", [(1, 1), (9, 9), (10, 40), (13, 13)])
def test_an_image_without_room_inside_its_margin_has_no_place(size):
    placer = Placer(Scene([], *size), margin=5, gap=1)
    assert placer.find(np.ones((4, 4), np.uint8), np.random.default_rng(0)) is None


def test_instances_outside_the_image_take_nothing(monkeypatch):
    away = [rectangle(-50, -50, 20, 20), rectangle(90, 90, 20, 20), rectangle(-9e4, -9e4, 3, 3)]
    placer = Placer(Scene(away, 30, 30), margin=0, gap=1)
    monkeypatch.setattr(place, "_TRIES", 0)
    assert len(listed(placer, np.ones((1, 1), np.uint8))) == 30 * 30
