"""Words are found alike in plain text and in text with markers; common ones are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.data.case_markers import encode_case
from ys_llm.data.joiners import encode_joiners
from ys_llm.data.records import Document
from ys_llm.data.words import CommonWords, common_words, words_of
from ys_llm.errors import UserError

TEXT = "Molly's fox saw McDonald, a FOX. Then Ben came."


def test_words_have_a_lower_case_name_and_know_their_capital_and_place() -> None:
    found = [(word.name, word.is_capital, word.is_inside) for word in words_of(TEXT)]
    assert found == [
        ("molly", True, False),
        ("s", False, True),
        ("fox", False, True),
        ("saw", False, True),
        ("mcdonald", True, True),
        ("a", False, True),
        ("fox", True, True),
        ("then", True, False),
        ("ben", True, True),
        ("came", False, True),
    ]


@given(st.text(alphabet="aBcÉé ,.'\n1", max_size=60))
def test_case_markers_change_no_word(text: str) -> None:
    plain = [(word.name, word.is_capital) for word in words_of(text)]
    marked = [(word.name, word.is_capital) for word in words_of(encode_case(text))]
    assert plain == marked


@given(st.text(alphabet="aBcÉé ,.'\"“(\n1", max_size=60))
def test_joiners_change_no_word(text: str) -> None:
    joined = encode_joiners(text)
    plain = [(word.name, word.is_capital, word.is_inside) for word in words_of(text)]
    found = [(word.name, word.is_capital, word.is_inside) for word in words_of(joined)]
    assert plain == found
    assert all("\x11" not in joined[word.begin : word.end] for word in words_of(joined))


def test_a_word_after_a_joiner_begins_a_sentence() -> None:
    text = encode_joiners("Noah ran, and Ann\nBen “Tom")
    inside = {word.name: word.is_inside for word in words_of(text)}
    assert [inside[name] for name in ("noah", "ann", "ben", "tom")] == [False, True, False, False]


@given(st.text(max_size=80))
def test_words_are_the_text_at_their_positions(text: str) -> None:
    for word in words_of(text):
        part = text[word.begin : word.end]
        assert part.strip("\x0e\x0f ").lower().startswith(word.name[:1])
        assert 0 <= word.begin < word.end <= len(text)


def test_a_word_is_common_from_one_in_a_thousand_on(tmp_path: Path) -> None:
    text = "the " * 1998 + "fox owl owl"
    found = common_words([Document(text)])
    assert found.words == {"the"}
    assert common_words([Document(text.replace("fox", "owl"))]).words == {"the", "owl"}
    found.save(tmp_path / "common_words.json")
    assert CommonWords.load(tmp_path / "common_words.json") == found
    assert CommonWords.load(tmp_path / "none.json") is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "common_words.json").write_text("[1]")
    with pytest.raises(UserError, match="is damaged"):
        CommonWords.load(tmp_path / "common_words.json")
