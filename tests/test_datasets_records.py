"""Dataset dicts in one block of bytes."""

import multiprocessing
import pickle

import numpy as np
import pytest

from smallobj_d2.datasets.records import PackedRecords

RECORDS = [
    {"image_id": i, "annotations": [{"bbox": [i, 2.5, 3, 4], "area": 7.25, "mine": ("a", i)}] * i}
    for i in range(5)
]


def test_records_come_back_as_they_were():
    packed = PackedRecords(RECORDS)
    assert len(packed) == 5
    assert [packed[i] for i in range(5)] == list(packed) == RECORDS
    assert packed[np.int64(3)] == RECORDS[3]


def test_each_reading_is_a_copy_of_its_own():
    packed = PackedRecords(RECORDS)
    packed[1]["annotations"][0]["bbox"][0] = 99
    assert packed[1] == RECORDS[1]


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_nothing_outside(index):
    with pytest.raises(IndexError):
        PackedRecords(RECORDS)[index]


def test_an_empty_list_is_a_list():
    assert list(PackedRecords([])) == []


def test_two_arrays_hold_everything():
    """So a forked worker that reads records has no reference counts to write (pytorch 5902)."""
    packed = PackedRecords(RECORDS)
    assert all(type(v) is np.ndarray for v in vars(packed).values())
    size = sum(len(pickle.dumps(r, protocol=pickle.HIGHEST_PROTOCOL)) for r in RECORDS)
    assert sum(v.nbytes for v in vars(packed).values()) == size + 8 * len(RECORDS)


def _private_growth(packed, queue):
    def private() -> int:
        with open("/proc/self/smaps_rollup") as f:
            lines = [line for line in f if line.startswith("Private_Dirty")]
        return sum(int(line.split()[1]) for line in lines)

    packed[0]
    before = private()
    for i in range(len(packed)):
        packed[i]
    queue.put(private() - before)


@pytest.mark.skipif(not hasattr(multiprocessing, "get_context"), reason="needs fork")
def test_reading_in_a_forked_worker_copies_no_memory():
    try:
        open("/proc/self/smaps_rollup").close()
    except OSError:
        pytest.skip("needs Linux's /proc/self/smaps_rollup")
    record = {"annotations": [{"segmentation": [[float(j) for j in range(200)]]}]}
    packed = PackedRecords([record] * 20_000)  # some 36 MB
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=_private_growth, args=(packed, queue))
    worker.start()
    grown = queue.get()
    worker.join()
    assert grown < 4_000  # kB
