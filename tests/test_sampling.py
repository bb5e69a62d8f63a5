"""Section 5.1 and Table 3: how often images are drawn, and in which order."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallobj_d2.config import get_cfg
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sampling import REPEAT_FACTORS, Draw, Stream, factors_from_config, repeat_factors

NUM_COCO = 118_287


def image(*areas: float, crowd: bool = False) -> dict[str, Any]:
    return {"annotations": [{"area": a, "iscrowd": int(crowd)} for a in areas]}


SMALL, LARGE = image(1023.9, 40000), image(1024, 9216)


def counts(stream: Stream, epochs: range, num_images: int) -> np.ndarray:
    """(E, N): how often each image is drawn in each epoch."""
    return np.array([np.bincount(stream.epoch(e)[0], minlength=num_images) for e in epochs])


# --- repeat factors


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 2.5, 1.3])
def test_factor_is_for_small_object_images_and_one_for_others(factor):
    records = [SMALL, LARGE, image(10), image(), image(10, crowd=True), image(5000, 3)]
    expected = [factor, 1, factor, 1, 1, factor]
    assert repeat_factors(records, factor).tolist() == expected


def test_what_is_small_is_a_parameter():
    assert repeat_factors([image(500), image(50)], 2, small_area=100).tolist() == [1, 2]


def test_the_default_sampler_reads_the_config():
    cfg = get_cfg()
    cfg.SMALLOBJ.OVERSAMPLING_FACTOR = 3.0
    factors = REPEAT_FACTORS[cfg.SMALLOBJ.SAMPLER]([SMALL, LARGE], cfg)
    assert factors.tolist() == [3, 1]


@pytest.mark.parametrize(("records", "which"), [([LARGE, LARGE], "none"), ([SMALL] * 3, "each")])
def test_oversampling_that_changes_nothing_says_so(records, which, caplog):
    cfg = get_cfg()
    cfg.SMALLOBJ.OVERSAMPLING_FACTOR = 3.0
    REPEAT_FACTORS["SmallObjectOversampling"]([SMALL, LARGE], cfg)
    assert not caplog.messages
    REPEAT_FACTORS["SmallObjectOversampling"](records, cfg)
    assert f"no image more often than another: {which} has an object" in caplog.text
    cfg.SMALLOBJ.OVERSAMPLING_FACTOR = 1.0
    caplog.clear()
    REPEAT_FACTORS["SmallObjectOversampling"](records, cfg)
    assert not caplog.messages


def test_the_largest_factor_is_taken():
    assert repeat_factors([SMALL], 1000).tolist() == [1000]


@pytest.mark.parametrize("factor", [0.99, 0, -1, float("nan")])
def test_a_factor_below_one_is_refused(factor):
    with pytest.raises(SmallObjError, match=r"OVERSAMPLING_FACTOR"):
        repeat_factors([SMALL], factor)


def test_images_with_small_objects_of_rare_categories_are_drawn_more_often():
    """LVIS's rule, of the share of the images that have a small object of a category."""

    def of(*categories: int, area: float = 100) -> dict[str, Any]:
        return {"annotations": [{"category_id": c, "area": area, "iscrowd": 0} for c in categories]}

    records = [*[of(0)] * 90, of(0, 1), of(1), *[of(1, area=5000)] * 4, *[of(2)] * 4]
    cfg = get_cfg()
    cfg.SMALLOBJ.SAMPLER = "RareSmallObjects"
    assert factors_from_config(records, cfg).tolist() == [1.0] * 100
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.18
    rare, fewer = (0.18 / 0.02) ** 0.5, (0.18 / 0.04) ** 0.5
    expected = [1.0] * 90 + [rare] * 2 + [1.0] * 4 + [fewer] * 4
    assert np.allclose(factors_from_config(records, cfg), expected)


# --- how often


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_small_object_images_appear_n_times_as_often(factor):
    """Table 3."""
    records = [SMALL, LARGE] * 50
    stream = Stream(repeat_factors(records, factor), seed=1)
    drawn = np.array([stream[k].index for k in range(20 * 50 * (factor + 1))])
    small = np.count_nonzero(drawn % 2 == 0)
    assert small == factor * (len(drawn) - small)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_whole_factors_are_exact_in_every_epoch(factor):
    """Section 5.1: copies made offline, rather than stochastic oversampling."""
    factors = repeat_factors([SMALL, LARGE, LARGE] * 30, factor)
    assert (counts(Stream(factors, seed=2), range(20), 90) == factors).all()


@pytest.mark.parametrize("factor", [2.5, 1.3])
def test_broken_factors_are_kept_on_average(factor):
    num_epochs, num_images = 2000, 120
    factors = repeat_factors([SMALL, LARGE] * (num_images // 2), factor)
    drawn = counts(Stream(factors, seed=3), range(num_epochs), num_images)
    assert (drawn >= np.floor(factors)).all()
    assert (drawn <= np.ceil(factors)).all()
    share = factor % 1
    error = np.sqrt(share * (1 - share) / num_epochs)  # binomial
    assert np.abs(drawn.mean(axis=0) - factors).max() < 4.5 * error
    # The images that are drawn once more do not take turns in groups.
    extra = drawn[:, ::2] > np.floor(factor)
    together = np.corrcoef(extra.T)[np.triu_indices(num_images // 2, 1)]
    assert np.abs(together).max() < 6 / np.sqrt(num_epochs)


def test_each_image_may_have_a_factor_of_its_own():
    factors = np.array([0, 0.25, 1, 1.75, 3.1, 7, 0.5])
    drawn = counts(Stream(factors, seed=4), range(4000), len(factors))
    assert np.abs(drawn.mean(axis=0) - factors).max() < 0.04
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 5] == 7).all()


def test_an_epoch_is_the_sum_of_the_factors_and_the_rest_is_carried_over():
    stream = Stream([0.5, 1.25, 0.5], seed=0)
    assert [len(stream.epoch(e)[0]) for e in range(8)] == [2, 2, 2, 3, 2, 2, 2, 3]
    assert len(stream) == 2


@pytest.mark.parametrize("factor", [2**-20, 1 - 2**-20])
def test_an_epoch_is_as_long_as_it_says_where_a_unit_decides(factor):
    """Factors are kept in units of 2**-20."""
    stream = Stream([factor], seed=0)
    for whole in range(2**20, 20 * 2**20, 2**20):
        for epoch in (whole - 1, whole):
            length = stream.epoch_start(epoch + 1) - stream.epoch_start(epoch)
            assert len(stream.epoch(epoch)[0]) == length


def test_factors_are_rounded_to_the_nearest_unit():
    assert Stream([1.3], seed=0).epoch_start(10**6) == 1_300_000


def test_records_that_are_drawn_at_all_are_those_whose_factor_is_not_0():
    assert Stream([0, 0.25, 1, 0, 3.5], seed=0).drawn.tolist() == [1, 2, 4]


@pytest.mark.parametrize("factor", [3, 2.5])
def test_visits_number_the_draws_of_an_image_in_an_epoch(factor):
    stream = Stream(repeat_factors([SMALL, LARGE] * 20, factor), seed=5)
    for epoch in range(5):
        indices, visits = stream.epoch(epoch)
        for i in range(40):
            assert sorted(visits[indices == i]) == list(range(np.count_nonzero(indices == i)))


def test_which_visit_comes_first_is_random():
    stream = Stream([2.0] * 500, seed=5)
    indices, visits = stream.epoch(0)
    first = [visits[np.flatnonzero(indices == i)[0]] for i in range(500)]
    assert 180 < sum(first) < 320


# --- in which order


def test_an_epoch_is_shuffled_uniformly():
    """Each of 4 images is as often at each of 4 places (chi-square, 9 degrees of freedom)."""
    stream = Stream([1.0] * 4, seed=6)
    table = np.zeros((4, 4))
    for epoch in range(4000):
        table[np.arange(4), stream.epoch(epoch)[0]] += 1
    assert ((table - 1000) ** 2 / 1000).sum() < 33.7  # 0.9999 quantile


def test_random_access_is_sequential_access():
    stream, other = (Stream([2.5, 1, 1.3, 1] * 5, seed=7) for _ in range(2))
    sequence = []
    for epoch in range(12):
        indices, visits = stream.epoch(epoch)
        sequence += [(i, v, epoch) for i, v in zip(indices.tolist(), visits.tolist(), strict=True)]
    for k in np.random.default_rng(0).permutation(len(sequence)).tolist():
        index, visit, epoch = sequence[k]
        assert other[k] == Draw(k, index, visit, epoch)


@given(
    factors=st.lists(st.floats(0, 5), min_size=1, max_size=8).filter(lambda f: sum(f) > 0.01),
    epoch=st.integers(0, 10**7),
)
@settings(max_examples=200, deadline=None)
def test_epoch_of_is_the_inverse_of_epoch_start(factors, epoch):
    if max(factors) < 0.01:
        factors = [*factors, 0.5]
    stream = Stream(factors, seed=0)
    start, end = stream.epoch_start(epoch), stream.epoch_start(epoch + 1)
    for position in {start, (start + end) // 2, end - 1} if end > start else ():
        assert stream.epoch_of(position) == epoch
    assert len(stream.epoch(epoch)[0]) == end - start


def test_far_positions_are_reached_at_the_cost_of_one_epoch(monkeypatch):
    stream = Stream(np.where(np.arange(NUM_COCO) % 2, 2.5, 1.0), seed=8)
    made = []
    epoch = Stream.epoch
    monkeypatch.setattr(Stream, "epoch", lambda self, e: made.append(e) or epoch(self, e))
    draw = stream[10_000_000]
    assert draw.position == 10_000_000
    assert made == [stream.epoch_of(10_000_000)] == [draw.epoch]


def test_seeds_and_epochs_differ_and_repeat():
    factors = np.full(50, 1.5)
    orders = {(s, e): Stream(factors, s).epoch(e)[0].tobytes() for s in range(5) for e in range(5)}
    assert len(set(orders.values())) == 25
    again = {(s, e): Stream(factors, s).epoch(e)[0].tobytes() for s, e in reversed(orders)}
    assert again == orders


def test_no_global_random_state_is_read_or_changed():
    np.random.seed(1)
    before = np.random.get_state()[1].tobytes()
    one = Stream([1.5] * 20, seed=9).epoch(3)[0]
    assert np.random.get_state()[1].tobytes() == before
    np.random.seed(2)
    assert (Stream([1.5] * 20, seed=9).epoch(3)[0] == one).all()


# --- errors


@pytest.mark.parametrize(
    ("factors", "seed", "message"),
    [
        ([], 0, "no image to draw from"),
        ([1, -0.1], 0, "not negative"),
        ([1, float("inf")], 0, "finite"),
        ([float("nan")], 0, "finite"),
        ([0, 0], 0, "not all zero"),
        ([1e-7, 1e-7], 0, "not all zero"),  # no draw in a million epochs
        ([1], -1, "The seed is -1"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(factors, seed, message):
    with pytest.raises(SmallObjError, match=message):
        Stream(factors, seed)


def test_there_is_nothing_before_the_first_draw():
    with pytest.raises(IndexError):
        Stream([1], 0)[-1]


def test_an_epoch_longer_than_memory_is_refused():
    with pytest.raises(SmallObjError, match=r"OVERSAMPLING_FACTOR is .*at most 1000"):
        repeat_factors([SMALL], 1e12)
    with pytest.raises(SmallObjError, match=r"An epoch would have 1e.12 draws"):
        Stream([1e12], 0)


def test_factors_that_are_not_one_for_each_image_are_refused():
    cfg = get_cfg()
    REPEAT_FACTORS.add("one_too_few_of_a_test", lambda records, cfg: [1.0] * (len(records) - 1))
    cfg.SMALLOBJ.SAMPLER = "one_too_few_of_a_test"
    with pytest.raises(SmallObjError, match=r"shape \(1,\) for 2 images"):
        factors_from_config([SMALL, LARGE], cfg)
    REPEAT_FACTORS.add("two_for_each_of_a_test", lambda records, cfg: [[1.0, 2.0]] * len(records))
    cfg.SMALLOBJ.SAMPLER = "two_for_each_of_a_test"
    with pytest.raises(SmallObjError, match=r"shape \(2, 2\) for 2 images"):
        factors_from_config([SMALL, LARGE], cfg)
