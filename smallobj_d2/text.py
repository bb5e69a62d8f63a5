"""Text that comes from data, made safe for a line of a terminal or a log."""

from typing import Any


def printable(text: str) -> str:
    """Text on one line, with whatever a terminal would obey written as an escape.

    The name of a file may hold line breaks and escape sequences, which would forge a line or change
    one that is there. Letters of all scripts stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """Any value on one short line of ASCII."""
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(shown(v) for v in value[:3])}, ... {len(value)} in all]"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
