"""The one error that this project raises on purpose."""

from typing import Any


class SmallObjError(ValueError):
    """Something that the user can put right: what is wrong, where, and what to do about it.

    Tools print its message as one line and end with exit code 2; everything else is a bug and
    keeps its traceback. Whatever file names and data put into the message, it stays one line.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class UnreadableImage(SmallObjError):
    """An image file that is missing, damaged, or not of the size that its annotations say."""


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
