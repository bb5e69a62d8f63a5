import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallobj_d2.errors import UnreadableImage, printable


@given(st.text(st.characters(), max_size=30))
def test_printable_text_is_one_line_without_control_characters(text):
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_what_was_there_can_still_be_read():
    assert printable("a\nerror: b\x1b[2J\u202e\udc80é") == "a\\nerror: b\\x1b[2J\\u202e\\udc80é"


def test_an_error_from_a_loaders_worker_says_what_it_said():
    """torch raises it anew, with the worker's traceback in its message."""
    wrapper = pytest.importorskip("torch._utils").ExceptionWrapper
    try:
        try:
            raise OSError("a cause")
        except OSError as e:
            raise UnreadableImage("a.png (image 1) cannot be read: b") from e
    except UnreadableImage:
        wrapped = wrapper(where="in a worker")
    with pytest.raises(UnreadableImage, match=r"^a\.png \(image 1\) cannot be read: b$"):
        wrapped.reraise()
