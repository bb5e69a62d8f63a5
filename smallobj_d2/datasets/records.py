"""Dataset dicts that many processes can read without a copy each."""

import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np


class PackedRecords:
    """A read-only list of dataset dicts in one block of bytes.

    A Python list is copied into every forked loader worker bit by bit, because reading an object
    writes its reference count (pytorch issue 5902). One array has one count. Reading a record
    unpacks a fresh copy, which the reader may change.
    """

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        packed = [pickle.dumps(r, protocol=pickle.HIGHEST_PROTOCOL) for r in records]
        self._ends = np.cumsum([len(p) for p in packed], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        return self._bytes.nbytes + self._ends.nbytes

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        record: dict[str, Any] = pickle.loads(self._bytes[start : self._ends[index]].data)
        return record
