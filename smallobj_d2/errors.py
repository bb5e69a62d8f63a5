"""The one error that this project raises on purpose."""

from smallobj_d2.text import printable


class SmallObjError(ValueError):
    """Something that the user can put right: what is wrong, where, and what to do about it.

    Tools print its message as one line and end with exit code 2; everything else is a bug and
    keeps its traceback. Whatever file names and data put into the message, it stays one line.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class UnreadableImage(SmallObjError):
    """An image file that is missing, damaged, or not of the size that its annotations say."""
