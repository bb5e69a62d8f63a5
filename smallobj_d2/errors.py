"""The one error that this project raises on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yaml import YAMLError


class SmallObjError(ValueError):
    """Something that the user can put right: what is wrong, where, and what to do about it.

    Tools print its message as one line and end with exit code 2; everything else is a bug and
    keeps its traceback.
    """


class UnreadableImage(SmallObjError):
    """An image file that is missing, damaged, or not of the size that its annotations say."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file does to those who read it into one line that names the file."""
    try:
        yield
    except SmallObjError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
            AssertionError, YAMLError) as e:  # fmt: skip
        what = " ".join(repr(e).split())
        what = "".join(c if c.isprintable() else "?" for c in what)[:300]
        raise SmallObjError(f"{path} is damaged, or another kind of file: {what}") from e
