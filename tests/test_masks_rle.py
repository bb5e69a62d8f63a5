"""Run lengths, read and written a window at a time, against pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from proofs.random_scenes import rle_of
from smallobj_d2 import SmallObjError
from smallobj_d2.masks.rle import decode, encode, runs_of

seeds = st.integers(0, 10**6)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Speckles, or long runs, of any share of ones; thin images and empty masks among them."""
    height, width = rng.integers(1, 60, 2).tolist()
    mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
    if rng.random() < 0.5:
        mask = np.sort(mask.ravel()).reshape(height, width)
    return mask


@given(seeds, st.booleans())
def test_a_window_of_an_rle_is_that_of_the_decoded_image(seed, compressed):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    height, width = mask.shape
    (x, x1), (y, y1) = np.sort(rng.integers(0, (width + 1, height + 1), (2, 2)), axis=0).T.tolist()
    window = decode(rle_of(mask, compressed=compressed), x, y, x1 - x, y1 - y)
    assert window.dtype == np.uint8
    assert window.flags.c_contiguous
    assert (window == mask[y:y1, x:x1]).all()


@given(seeds, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_what_is_written_is_what_pycocotools_writes(seed, left, top, right, bottom):
    mask = random_mask(np.random.default_rng(seed))
    whole = np.pad(mask, ((top, bottom), (left, right)))
    height, width = whole.shape
    written = encode(mask, left, top, width, height)
    assert written == coco_mask.encode(np.asfortranarray(whole))


@given(st.lists(st.integers(0, 2**40), max_size=20))
def test_runs_of_any_length_are_read_back(runs):
    code = compressed_by_hand(runs)
    assert runs_of(code).tolist() == runs_of(code.decode()).tolist() == runs_of(runs).tolist()


def compressed_by_hand(runs: list[int]) -> bytes:
    """Run lengths as COCO compresses them, in plain Python; pycocotools stops at 32 bits."""
    code = []
    for i, run in enumerate(runs):
        rest = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            code.append(bits + 32 * more + 48)
    return bytes(code)


@pytest.mark.parametrize(
    "counts",
    ["", b"", "P", [], [99], [101], [30, -10, 80], "oooooooooooooooo", b"~~~~~~", [50, 60]],
)
def test_runs_that_do_not_add_up_are_refused(counts):
    with pytest.raises(SmallObjError, match="does not add up to 10 x 10"):
        decode({"size": [10, 10], "counts": counts}, 2, 2, 4, 4)


@given(st.binary(max_size=40))
def test_no_bytes_whatever_do_harm(counts):
    try:
        mask = decode({"size": [7, 9], "counts": counts}, 1, 1, 5, 5)
    except SmallObjError:
        return
    assert (mask <= 1).all()
