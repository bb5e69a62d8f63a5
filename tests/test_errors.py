from hypothesis import given
from hypothesis import strategies as st

from smallobj_d2.errors import printable


@given(st.text(st.characters(), max_size=30))
def test_printable_text_is_one_line_without_control_characters(text):
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_what_was_there_can_still_be_read():
    assert printable("a\nerror: b\x1b[2J\u202e\udc80é") == "a\\nerror: b\\x1b[2J\\u202e\\udc80é"
