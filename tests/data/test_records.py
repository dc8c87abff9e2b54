"""A document is known by what a reader sees; its tokens by every character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.data.records import Document, Record, Texts, content_hash, document_id

LINES = st.text(alphabet="ab \t\n\ré", max_size=40)


def test_an_id_tells_prompt_from_text_and_forgets_the_source() -> None:
    alike = [Document("ab", source=source) for source in ("x", "y")]
    different = [Document("ab"), Document("ab", ""), Document("b", "a"), Document("", "ab")]
    assert alike[0].id == alike[1].id
    assert len({document.id for document in different}) == 4
    assert Document("é", "日").n_bytes == 5


@pytest.mark.parametrize(
    "other",
    ["one\r\n\r\n two", "one\r\r two", "one \n\t\n two", "one\n\n two\n", "one\n\n two \r\n \r\n"],
)
def test_line_ends_and_trailing_blanks_are_no_part_of_an_id(other: str) -> None:
    text = "one\n\n two"
    assert document_id(text) == document_id(other) == Document(other).id
    assert document_id("a", text) == document_id("a", other) == Document("a", other).id
    assert content_hash(text) != content_hash(other)


@pytest.mark.parametrize("other", ["one\n two", "one\n\ntwo", " one\n\n two", "one\n\n  two"])
def test_blanks_before_a_word_and_blank_lines_are_part_of_an_id(other: str) -> None:
    assert document_id("one\n\n two") != document_id(other)


@given(LINES)
def test_an_id_outlives_any_conversion_of_line_ends(text: str) -> None:
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    ids = {
        document_id(converted)
        for converted in (text, unix, unix.replace("\n", "\r\n"), unix.replace("\n", "\r"))
    }
    assert len(ids) == 1
    assert Document(text).id == document_id(text)


@given(LINES)
def test_the_id_of_a_clean_text_is_its_content_hash(text: str) -> None:
    clean = "\n".join(line.rstrip() for line in text.splitlines()).rstrip()
    assert document_id(clean, clean) == content_hash(clean, clean)


def test_a_long_text_has_the_hash_and_the_length_of_its_bytes() -> None:
    text = "é" * 1_500_000 + "日"
    assert content_hash(text) == content_hash("".join(list(text)))
    assert Document(text).n_bytes == len(text.encode())


def test_the_hash_of_a_known_text_never_changes() -> None:
    assert content_hash("ab") == "e40606670d4472b8fe68c53a85ce575e"
    assert content_hash("ab", "c") == "fe7c4979e9c8ec9a8bb58814c3ff00d0"


def test_a_record_is_written_with_its_tags() -> None:
    assert Record("2 + 2 =", "4").text() == "2 + 2 =<start>4<end>\n\n"


def test_texts_end_after_the_characters_that_are_wanted() -> None:
    documents = [Document("one. "), Document("three", "two"), Document("four")]
    assert list(Texts(documents)) == ["one. ", "two", "three", "four"]
    assert list(Texts(documents, 6)) == ["one. ", "two"]
    assert list(Texts(documents, 10**9)) == list(Texts(documents))
