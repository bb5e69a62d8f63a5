"""The one error that this project raises on purpose, and how commands tell of errors."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any


class SmallObjError(ValueError):
    """Something that the user can put right: what is wrong, where, and what to do about it.

    Tools print its message as one line and end with exit code 2; everything else is a bug and
    keeps its traceback. Whatever file names and data put into the message, it stays one line.
    """

    def __init__(self, message: object = "") -> None:
        # What a loader's worker raises, torch raises anew with the worker's traceback as message.
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(str(message).rpartition(name)[2].rstrip("\n"))

    def __str__(self) -> str:
        return printable(super().__str__())


class UnreadableImage(SmallObjError):
    """An image file that is missing, damaged, or not of the size that its annotations say."""


_EXTRAS = {
    "albumentations": "frameworks",
    "cv2": "headless",
    "iopath": "train",
    "matplotlib": "report",
    "sahi": "slices",
    "scipy": "report",
    "submitit": "slurm",
    "tensorboard": "train",
    "torch": "train",
    "torchvision": "train",
}
"""The extra of pyproject.toml that installs a package which only some commands need."""


def how_to_install(error: ModuleNotFoundError) -> str | None:
    """What to do about an import that failed, if an extra installs what is missing."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    also = " (or opencv-python, if you show windows)" if package == "cv2" else ""
    extra = f'pip install "smallobj_d2[{_EXTRAS[package]}]"'
    return f"This needs {package}, which is not installed: {extra}{also}"


def printable(text: object) -> str:
    r"""Text from data, fit for a line of a terminal or a log.

    Control characters, line breaks and characters that turn the direction of writing, with which a
    file's name could move the cursor or forge a line of its own, become escapes such as ``\x1b``.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in str(text)
    )


def shown(value: Any) -> str:
    """Any value on one short line of ASCII."""
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(shown(v) for v in value[:3])}, ... {len(value)} in all]"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


Main = Callable[[Sequence[str] | None], int | None]


def command(main: Main) -> Callable[..., int]:
    """Make a function a command: an error of the user or the system is one line and an exit code.

    The function takes the arguments of the command line (None: this process's own), and returns its
    exit code, or None for 0. Of what it raises, a `SmallObjError`, an error of a file that has a
    name, text that is not UTF-8, a full disk and a package that an extra would install become a
    line ``error: ...`` and code 2; Ctrl-C becomes 130, and a reader of the output that has left
    (``| head``) 141. All else is a bug and keeps its traceback.
    """

    @wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            code = main(argv) or 0
            sys.stdout.flush()
        except KeyboardInterrupt as e:
            sys.stderr.write(f"\n{printable(e) or 'Interrupted.'}\n")
            return 130
        except BrokenPipeError:
            # Else Python would try to write the rest when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (SmallObjError, ModuleNotFoundError, UnicodeDecodeError, OSError) as e:
            words = _words(e)
            if words is None:
                raise
            sys.stderr.write(f"error: {printable(words)}\n")
            return 2
        return code

    return run


def _words(error: Exception) -> str | None:
    """What is wrong, or None if it is a bug."""
    if isinstance(error, ModuleNotFoundError):
        return how_to_install(error)
    if isinstance(error, UnicodeDecodeError):
        return f"What should be text in {error.encoding} is not: {error.reason}."
    if not isinstance(error, OSError):
        return str(error)
    if error.filename is not None and not isinstance(error.filename, int):
        return f"{os.fsdecode(error.filename)}: {error.strerror}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"{os.strerror(error.errno)}."
    return None
