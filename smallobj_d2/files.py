"""Files that are written whole or not at all, and what disks do to them, in one line."""

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

from yaml import YAMLError

from smallobj_d2.errors import SmallObjError, UnreadableImage

logger = logging.getLogger(__name__)

_PREFIX = ".smallobj-"
"""How temporary files begin, so that a killed process's are told from a user's own."""

_OF_A_RUN = " (of a run: OUTPUT_DIR)"

_counter = count()

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_OF_THE_DISK = (*_NO_SPACE, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of writing. Those of reading, such as a missing file, are the reader's to explain."""


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: gives a temporary path that becomes `path` at the end.

    The folder is made if need be. The temporary path ends in the name of `path`, or in its last 40
    characters, so that it has its suffix.

    Raises:
        SmallObjError: if the disk is full or the folder cannot be written to; what was at `path`
            before is still there then.
    """
    temporary = path.with_name(f"{_PREFIX}{os.getpid()}-{next(_counter)}-{path.name[-40:]}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        except OSError as e:
            if e.errno in _OF_THE_DISK or _file_of(e) == temporary:
                raise _in_one_line(e, path) from e
            raise  # not about this file
        with disk_errors(path):
            with temporary.open("rb") as file:
                os.fsync(file)  # so that not even a power cut leaves an empty file at `path`
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what went wrong is known already
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; see `writing`."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def remove_leftovers(folder: Path, *, recursive: bool = False) -> None:
    """Delete what `writing` left in a folder when its process was killed.

    Nobody else may be writing there.
    """
    for path in (folder.rglob if recursive else folder.glob)(f"{_PREFIX}*"):
        path.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to an image, or where that cannot be a symbolic one.

    Raises:
        UnreadableImage: if there is no such image.
        SmallObjError: if the link cannot be made.
    """
    if target.exists():
        return
    source = source.resolve()
    if not source.is_file():
        raise UnreadableImage(f"{source} cannot be read: it is not there.")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link to what is no longer there
        try:
            os.link(source, target)
        except OSError:  # another disk, or files of somebody else
            target.symlink_to(source)


_TRIES, _PAUSE = 10, 0.05
"""How often to ask for a lock, and the seconds between."""


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder, making it if need be, so that no other process writes there.

    Raises:
        SmallObjError: `busy`, if another process holds it; or that it cannot be written to.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    with file:
        for _ in range(_TRIES):
            if (got := _lock(file)) is not False:
                break
            time.sleep(_PAUSE)  # it may be somebody who looks whether it is locked
        if got is False:
            raise SmallObjError(busy)
        if got is None:
            logger.warning("%s cannot be locked; let no other run write there.", folder)
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process holds a folder."""
    if not (folder / ".lock").is_file():
        return False
    with (folder / ".lock").open("a") as file:
        return _lock(file) is False


def _lock(file: IO[str]) -> bool | None:
    """Whether the file is this process's own now; None on a file system without locks.

    It is of this process alone: a lock that workers inherit would outlive a killed run.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file does to those who read it into one line that names the file."""
    try:
        yield
    except SmallObjError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
            AssertionError, YAMLError, BadZipFile) as e:  # fmt: skip
        what = f"{type(e).__name__}: {e}"[:300]
        raise SmallObjError(f"{path} is damaged, or another kind of file ({what}).") from e


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what can go wrong with writing a file or folder into one line, a SmallObjError."""
    try:
        yield
    except OSError as e:
        raise _in_one_line(e, path) from e


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Turn what a full, read-only or broken disk does anywhere in a block into one line.

    Args:
        folder: to be named if the error names no file.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in _OF_THE_DISK:
            raise
        raise _in_one_line(e, _file_of(e) or folder) from e


def _file_of(error: OSError) -> Path | None:
    """The file that an error names; some libraries name theirs in bytes."""
    name = error.filename
    return Path(os.fsdecode(name)) if name and isinstance(name, str | bytes | os.PathLike) else None


def _in_one_line(error: OSError, path: Path) -> SmallObjError:
    if error.errno not in _NO_SPACE:
        why = (error.strerror or str(error)).lower()
        return SmallObjError(f"Cannot write {path}: {why}. Choose another folder{_OF_A_RUN}.")
    return SmallObjError(
        f"Cannot write {path}: the disk is full. Free space (or inodes, or quota), or choose "
        f"another folder{_OF_A_RUN}."
    )
