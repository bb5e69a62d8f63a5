"""The one way in which a dataset's JSON is read, by everything that reads it."""

import errno
import gc
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class OtherEncodingError(ValueError):
    """A JSON that Python can read, but neither COCO's tools nor Detectron2."""


def require_regular(path: str | Path) -> None:
    """Refuse what is there and is no file: opening a pipe would wait for ever.

    Raises:
        OSError: saying what it is.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # opening it says why
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise OSError(errno.EINVAL, f"it is {what}, not a file", str(path))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8, which is what all of COCO's tools read.

    Raises:
        OSError: if it cannot be read.
        OtherEncodingError: if it has a byte order mark, or is UTF-16 or UTF-32.
        ValueError: if it is not JSON, or nested without end.
    """
    require_regular(path)
    content = Path(path).read_bytes()
    encoding = json.detect_encoding(content)
    if encoding == "utf-8-sig":
        raise OtherEncodingError("the file begins with a byte order mark")
    if encoding != "utf-8":
        raise OtherEncodingError(f"the file is in {encoding.upper()}")
    with without_gc():
        try:
            return json.loads(content)
        except RecursionError as e:
            raise ValueError("it is nested too deep") from e


@contextmanager
def without_gc() -> Iterator[None]:
    """Keep Python from looking for garbage while millions of objects are made that are all kept."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
