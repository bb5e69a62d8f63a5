"""Section 4: scale by up to 20%, rotation by up to 15 degrees."""

import numpy as np
import pytest
from scipy.stats import kstest, pearsonr

from smallobj_d2 import Jitter, SmallObjError


def drawn(jitter, n=4000):
    rng = np.random.default_rng(3)
    matrices = np.array([jitter.sample(rng) for _ in range(n)])
    scales = np.sqrt(np.linalg.det(matrices))
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    return matrices, scales, angles


@pytest.mark.parametrize("jitter", [Jitter(), Jitter((0.5, 3.0), (-90.0, 10.0))])
def test_scale_and_rotation_are_uniform_in_their_ranges_and_independent(jitter):
    _, scales, angles = drawn(jitter)
    for values, (low, high) in ((scales, jitter.scale), (angles, jitter.rotation)):
        assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-3
    assert pearsonr(scales, angles).pvalue > 1e-3


def test_the_defaults_are_the_papers():
    assert Jitter() == Jitter(scale=(0.8, 1.2), rotation=(-15.0, 15.0))


def test_a_sample_is_a_rotation_times_a_scale():
    matrices, scales, _ = drawn(Jitter(), 100)
    grams = matrices @ matrices.transpose(0, 2, 1)
    assert np.allclose(grams, scales[:, None, None] ** 2 * np.eye(2))


def test_ranges_of_one_value_give_the_identity():
    assert (Jitter((1, 1), (0, 0)).sample(np.random.default_rng(0)) == np.eye(2)).all()


@pytest.mark.parametrize(
    ("key", "ranges"),
    [
        ("SCALE", {"scale": (1.2, 0.8)}),
        ("SCALE", {"scale": (0, 1)}),
        ("SCALE", {"scale": (0.5, float("inf"))}),
        ("SCALE", {"scale": (1.0,)}),
        ("ROTATION", {"rotation": (15, -15)}),
        ("ROTATION", {"rotation": (float("nan"), 5)}),
        ("ROTATION", {"rotation": (-15, 0, 15)}),
    ],
)
def test_ranges_that_mean_nothing_are_refused_by_their_key(key, ranges):
    with pytest.raises(SmallObjError, match=f"SMALLOBJ.{key} is .*must be"):
        Jitter(**ranges)


def test_the_widest_ranges_are_the_last_that_are_taken():
    Jitter((0.01, 100), (-360, 360))
    for wrong in ({"scale": (0.009, 1)}, {"scale": (1, 101)}):
        with pytest.raises(SmallObjError, match="SCALE"):
            Jitter(**wrong)
    for wrong in ((-361, 0), (0, 361)):
        with pytest.raises(SmallObjError, match="ROTATION"):
            Jitter(rotation=wrong)
