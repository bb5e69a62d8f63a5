"""The one error that this project raises on purpose."""


class SmallObjError(ValueError):
    """Something that the user can put right: what is wrong, where, and what to do about it.

    Tools print its message as one line and end with exit code 2; everything else is a bug and
    keeps its traceback.
    """


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
