"""Section 5.4: hard edges, and edges softened by a Gaussian of 3 or 5 pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proofs.copy_paste_laws import PIXEL_TOLERANCE, warped
from proofs.random_scenes import rectangle, rle_of
from smallobj_d2 import CopyPaste, Jitter, SameImage, SourceRule
from smallobj_d2.copy_paste.blend import composite, cut
from smallobj_d2.copy_paste.paste import Paste, Plan
from smallobj_d2.masks.shapes import Window

GAUSSIAN = {  # OpenCV's own weights for a size without a sigma
    3: np.array([0.25, 0.5, 0.25]),
    5: np.array([0.0625, 0.25, 0.375, 0.25, 0.0625]),
}


def noise(rng, height=60, width=70):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def weights(mask, blur):
    """(H, W) float64: a mask under a Gaussian, sum by sum; nothing lies outside the image."""
    kernel, rim = GAUSSIAN[blur], blur // 2
    padded = np.pad(mask.astype(float), rim)
    out = np.zeros(mask.shape)
    for dy, a in enumerate(kernel):
        for dx, b in enumerate(kernel):
            out += a * b * padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return out


@pytest.mark.parametrize("margin", [0, 5])
@pytest.mark.parametrize("scale", [(0.8, 1.2), (0.2, 0.4), (2, 3)])
@pytest.mark.parametrize("blur", [0, 3, 5])
def test_a_pasted_pixel_is_the_weighted_sum_of_the_warped_source_and_the_background(
    blur, scale, margin
):
    """The whole image is warped in float64, and blended by weights summed one by one."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image = noise(rng)
        thing = rectangle(20, 25, 12, 9)
        thing["segmentation"] = [[20, 25, 32, 27, 30, 34, 26, 30, 21, 33]]
        copy_paste = CopyPaste(
            blur=blur, margin=margin, gap=0, copies=1, jitter=Jitter(scale, (-40, 40))
        )
        plan = copy_paste.plan([thing], 60, 70, rng)
        if not plan.pasted:
            continue
        paste = plan.pastes[0]
        result = image.copy()
        copy_paste.composite(result, plan)
        mask = np.zeros((60, 70))
        h, w = paste.mask.shape
        mask[paste.y : paste.y + h, paste.x : paste.x + w] = paste.mask
        weight = (weights(mask, blur) if blur else mask)[:, :, None]
        y, x = np.mgrid[:60, :70]
        source = warped(image, paste.matrix, x.ravel(), y.ravel()).reshape(image.shape)
        expected = source * weight + image * (1 - weight)
        assert abs(result - expected).max() <= PIXEL_TOLERANCE
        assert (result == image)[weight[:, :, 0] == 0].all()
        inside = weight[:, :, 0] > 0
        assert abs((result - expected)[inside].mean()) < 1


@pytest.mark.parametrize("blur", [3, 5])
def test_the_soft_rim_is_half_the_kernel_wide_and_fades_outwards(blur):
    image = np.zeros((30, 30, 3), np.uint8)
    target = Window(10 - blur // 2, 10 - blur // 2, 8 + blur - 1, 8 + blur - 1)
    mask = np.pad(np.ones((8, 8), np.uint8), blur // 2)
    composite(image, np.full((*mask.shape, 3), 255, np.uint8), mask, target, blur)
    row = image[14, :, 0].astype(int)
    changed = np.flatnonzero(row)
    assert changed.tolist() == list(range(10 - blur // 2, 18 + blur // 2))
    edge = row[10 - blur // 2 : 10 + blur // 2 + 1]
    assert (np.diff(edge) > 0).all()
    assert edge[-1] == 255
    assert (row == row[::-1][2:].tolist() + [0, 0]).all()  # the same on both sides


@pytest.mark.parametrize("blur", [3, 5])
def test_a_blended_pixel_is_the_whole_number_nearest_to_the_weighted_sum(blur):
    rng = np.random.default_rng(6)
    image, patch = noise(rng, 20, 20), noise(rng, 20, 20)
    mask = np.pad(np.ones((8, 8), np.uint8), 6)
    weight = weights(mask, blur)[:, :, None]
    expected = patch * weight + image * (1 - weight)
    composite(image, patch, mask, Window(0, 0, 20, 20), blur)
    assert abs(image - expected).max() < 0.501


def test_a_copy_laid_by_the_identity_is_the_source_bit_by_bit():
    image = noise(np.random.default_rng(0))
    patch = cut(image, np.array([[1.0, 0, 13], [0, 1, -7]]), Window(25, 10, 20, 15))
    assert (patch == image[17:32, 12:32]).all()


@given(st.integers(0, 10**6))
def test_only_the_part_that_is_needed_is_looked_at_and_it_is_enough(seed):
    """Cutting from the image and from the image with all else painted over gives the same."""
    rng = np.random.default_rng(seed)
    image = noise(rng)
    linear = Jitter((0.3, 2), (-180, 180)).sample(rng)
    x, y = rng.uniform(5, 55, 2)
    target = Window(int(rng.integers(0, 50)), int(rng.integers(0, 40)), 12, 9)
    centre = np.array([target.x + 6, target.y + 4.5])
    matrix = np.column_stack([linear, centre - linear @ (x, y)])
    ys, xs = np.mgrid[:9, :12]
    exact = warped(image, matrix, xs.ravel() + target.x, ys.ravel() + target.y)
    assert abs(cut(image, matrix, target).reshape(-1, 3) - exact).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("shape", [(40, 40_000), (40_000, 40), (40, 32_767)])
def test_a_side_may_be_longer_than_opencv_takes(shape):
    image = noise(np.random.default_rng(4), *shape)
    at = np.array(shape[::-1]) - 30
    linear = Jitter().sample(np.random.default_rng(5))
    matrix = np.column_stack([linear, at + 2 - linear @ at])
    part, target = np.maximum(at - 100, 0), Window(*(at - 6), 16, 16)
    moved = matrix.copy()
    moved[:, 2] += linear @ part
    expected = cut(image[part[1] :, part[0] :], moved, target)
    assert abs(cut(image, matrix, target).astype(int) - expected).max() <= PIXEL_TOLERANCE
    assert expected.any()


def test_copies_are_cut_before_the_first_is_laid():
    """With overlap, the second copy shows the original object, not what was pasted over it."""
    image = noise(np.random.default_rng(1), 20, 20)
    ones = np.ones((4, 4), np.uint8)
    shift = [np.array([[1.0, 0, dx], [0, 1, 0]]) for dx in (4, -4)]
    plan = Plan([], [Paste(shift[0], ones, 8, 8), Paste(shift[1], ones, 4, 8)])
    result = image.copy()
    CopyPaste(allow_overlap=True).composite(result, plan)  # 4..8 to 8..12, then 8..12 to 4..8
    assert (result[8:12, 8:12] == image[8:12, 4:8]).all()
    assert (result[8:12, 4:8] == image[8:12, 8:12]).all()


@pytest.mark.parametrize("blur", [0, 5])
def test_sources_at_the_border_and_masks_of_one_pixel_can_be_pasted(blur):
    image = noise(np.random.default_rng(2), 40, 40)
    pixel = np.zeros((40, 40), np.uint8)
    pixel[39, 0] = 1
    things = [rectangle(0, 0, 6, 6), rectangle(0, 39, 1, 1, segmentation=rle_of(pixel))]
    rule = SourceRule(inside=False)
    copy_paste = CopyPaste(copies=4, sources=SameImage(rule), jitter=Jitter((1, 1.2)), blur=blur)
    result, after = copy_paste(image, things, np.random.default_rng(0))
    assert {a["copy_paste"]["source"] for a in after[2:]} == {0, 1}
    assert (result != image).any()


@pytest.mark.parametrize("flip", [np.s_[:, ::-1], np.s_[::-1], np.s_[:, :, ::-1]])
def test_images_that_are_views_of_others_work(flip):
    image = noise(np.random.default_rng(3))
    thing = rectangle(20, 25, 12, 9)
    result, _ = CopyPaste()(image[flip], [thing], np.random.default_rng(0))
    same, _ = CopyPaste()(image[flip].copy(), [thing], np.random.default_rng(0))
    assert (result == same).all()
    view = image.copy()[flip]
    CopyPaste().composite(view, CopyPaste().plan([thing], 60, 70, np.random.default_rng(0)))
    assert (view == same).all()
