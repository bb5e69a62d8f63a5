"""Documents: whatever is put in comes out as text, in HTML and in Markdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from smallobj_d2.visualization.document import (
    Document,
    Picture,
    Table,
    code,
    emphasis,
    markdown,
    strong,
)
from smallobj_d2.visualization.texts import Texts
from tests.pages import HOSTILE, Page, assert_inert


def everywhere(text: str) -> Document:
    """A document that has a text in all places."""
    document = Document(text)
    document.heading(text)
    document.text(Markup("of {} and {}").format(code(text), strong(text)))
    document.text(text)
    document.items([text, emphasis(text)], answer=True)
    document.add(Table([text, text], [[text, code(text)], [text, text]], tones={text: "good"}))
    document.add(Picture('/a"', b"<svg><script/></svg>", "svg", text))
    return document


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_and_nothing_else(text):
    document = everywhere(text)
    page = Page(document.html())
    assert page.text.count(text) == 15
    assert_inert(document.markdown("files"))


@given(st.text(max_size=40))
def test_any_text_is_shown_and_nothing_else(text):
    document = everywhere(text)
    Page(document.html())
    shown = document.markdown("files")
    assert_inert(shown)
    assert shown.count("\n") == everywhere("x").markdown("files").count("\n")


def test_markup_is_markdowns_own():
    text = Markup("{} is {} and {}, 2 &lt; 3").format(code("a_b"), strong("bold"), emphasis("*"))
    assert markdown(text) == "`a_b` is **bold** and *&#42;*, 2 &#60; 3"
    assert markdown(code("a`b")) == "<code>a`b</code>"


def test_tables_can_be_read_as_they_are():
    text = Table(["row", "AP"], [["baseline", "1.0"], ["aug", "10.0"]]).markdown()
    assert text.splitlines() == [
        "| row      |   AP |",
        "| -------- | ---: |",
        "| baseline |  1.0 |",
        "| aug      | 10.0 |",
    ]


def test_the_pictures_of_the_markdown_stand_beside_it(tmp_path):
    document = Document("x")
    document.add(Picture("one", b"\x89PNG", "png", "a picture"))
    text, page = document.write(tmp_path, "report")
    assert "![a picture](report_files/one.png)" in text.read_text()
    assert (tmp_path / "report_files" / "one.png").read_bytes() == b"\x89PNG"
    assert Page(page.read_text()).links == ["data:image/png;base64,iVBORw=="]


def test_what_is_filled_into_a_text_makes_no_paragraph_of_its_own():
    (text,) = Texts("smallobj_d2.experiments")(
        "elsewhere", data="mine\n\nThe runs failed. {{ 7 * 7 }}"
    )
    assert "judged on mine The runs failed. {{ 7 * 7 }}, by differences" in text
