"""Every kind gives back exactly the text it was given, and learns the same from any order."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.config.schema import TokenizerKind
from ys_llm.data.case_markers import (
    ALL_CAPS,
    CAPITAL,
    CASE,
    ESCAPE,
    MARKERS,
    decode_case,
    encode_case,
)
from ys_llm.data.joiners import JOINERS, decode_joiners, encode_joiners
from ys_llm.data.marking import Marking, MarkingDecoder
from ys_llm.data.tokenizer import SMALLEST_VOCAB, StreamDecoder, Tokenizer, train_tokenizer
from ys_llm.errors import EXIT_USAGE, UserError

KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
VOCAB_SIZE = 600
SENTENCES = [
    "The old keeper of Paris walked to the harbour, and NASA called him at 12:45.\n",
    "Don't tell McDonald about the iPhone; the USA and the UK know about it.\n\n",
    "    def keep(x):\n\treturn x + 1  # the École's way\r\n",
    "Привет, keeper! 日本語 and “the harbour” — it's the old keeper again.\n",
]
TEXTS = ["".join(random.Random(i).choices(SENTENCES, k=6)) + f"Text {i}." for i in range(40)]

# What the ancestor's tokenizers lost or mistook, then what could trip this one.
HARD_INPUTS = [
    "a\n\nb", "\n\nlead", "- one\n\n- two\n\n    code", "a\n    b", "a\n b", "a\tb",
    "def f(x):\n    if x:\n\treturn 1\n", "x\u00a0y", "line\r\n", "École", "ÉCOLE", "ÀÉ", "Ærø",
    "œuvre", "Łódź", "½ cup", "5²=25", "日本語", "Привет", "ﬁne", "don’t “quote” — …", "👩‍🚀 🇫🇷",
    "a\u200db", "e\u0301 E\u0301cole", "use <end> here", "<pad>", "STRAßE", "Straße", "USA", "NASA",
    "AI", "the Zorblax", "El Niño", "--------", "iPhone", "X", "eBay", "McDonald", "camelCase",
    "__name__", "U.S.A.", "<start>", "<capital>", "<all caps>", "<end><start>", " <end> ",
    "I'm A B Cd EF", "HTTPServer", "PCs", "USAid", "DON'T", "ΟΔΟΣ Οδός", "İstanbul ISPARTA ısı",
    "Ǆ ǅ ǆ", "ẞ ß ŉ ǰ", "\x00\x0e\x0f\x10N\x10", " \x0eabc \x0e Abc\x0f ABC\x10", "\ufeffbom",
    "\U0010ffff\ue000\ufffd", "  two  spaces  ", "12345 3.14 -5", "\u2028 \u0085 \x1c\x0b", "",
    "‘Tis “Noah”\n('Ann')", "'", "\x11", "\x11 a\n\x11Q\x10P",
]  # fmt: skip

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Capitals, markers, controls and white space meet more often here than in any text.
tricky_text = st.text(
    st.sampled_from("aAbBßÉéΣσςİıǅ'’\"“( \t\r\n\x0e\x0f\x10\x11NOPQ<>_-059日👩\u200d\u0301\u00a0"),
    max_size=60,
)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(TEXTS, kind=kind, vocab_size=VOCAB_SIZE) for kind in KINDS}


def in_parts(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = StreamDecoder(tokenizer)
    return "".join([decoder.push(token_id) for token_id in ids] + [decoder.flush()])


def read(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HARD_INPUTS)
def test_the_inputs_that_others_lost_come_back(
    trained: dict[str, Tokenizer], kind: TokenizerKind, text: str
) -> None:
    ids = trained[kind].encode(text)
    assert trained[kind].decode(ids) == text
    assert in_parts(trained[kind], ids) == text
    assert not {Tokenizer.end_id, Tokenizer.start_id} & set(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=any_text | tricky_text)
def test_any_text_comes_back(trained: dict[str, Tokenizer], kind: TokenizerKind, text: str) -> None:
    ids = trained[kind].encode(text)
    assert trained[kind].decode(ids) == text
    assert not {Tokenizer.end_id, Tokenizer.start_id} & set(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stream_of_any_ids_reads_as_the_whole(
    trained: dict[str, Tokenizer], kind: TokenizerKind, data: st.DataObject
) -> None:
    tokenizer = trained[kind]
    # Ids below 280 are drawn often: bytes that are no UTF-8, markers without a word, controls.
    ids = st.integers(0, min(279, tokenizer.vocab_size - 1)) | st.sampled_from([16, 17, 18, 19, 34])
    drawn = data.draw(st.lists(ids | st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert in_parts(tokenizer, drawn) == tokenizer.decode(drawn)


@settings(max_examples=300, deadline=None)
@given(text=tricky_text | any_text)
def test_decoding_case_undoes_encoding_it(text: str) -> None:
    assert decode_case(encode_case(text)) == text


UPPER = "[A-ZÀ-ÖØ-ÞΑ-ΡΣ-Ϋ]"
LOWER = "[a-zà-öø-þα-ρσ-ϋ]"


@settings(max_examples=500, deadline=None)
@given(text=st.text("aBÉéΣσςß 'sS\t\x0e\x0f\x10NOP.日", max_size=30))
def test_case_is_encoded_by_three_rules(text: str) -> None:
    """A capital before a small letter; two or more that none follows; a control character."""
    rules = f"{UPPER}(?={LOWER})|{UPPER}{{2,}}(?:(?={UPPER}{LOWER})|(?!{LOWER}))|[\x0e-\x10]"
    lower = {ord(upper): upper.lower() for upper in "BÉΣSNOP"}
    escaped = {"\x0e": "\x10N", "\x0f": "\x10O", "\x10": "\x10P"}

    def encode(match: re.Match[str]) -> str:
        marker = CAPITAL if len(match[0]) == 1 else ALL_CAPS
        return escaped.get(match[0]) or marker + match[0].translate(lower)

    expected = re.sub(rules, encode, text)
    assert encode_case(text) == re.sub(" ([\x0e\x0f])", r"\1 ", expected)


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.text("aAé \x0e\x0f\x10\x11NOPQ.", max_size=4), max_size=12),
    marking=st.sampled_from([CASE, JOINERS]),
)
def test_decoding_markers_in_parts_equals_decoding_the_whole(
    parts: list[str], marking: Marking
) -> None:
    decoder = MarkingDecoder(marking)
    pushed = [decoder.push(part) for part in parts] + [decoder.flush()]
    assert "".join(pushed) == marking.decode("".join(parts))


@settings(max_examples=300, deadline=None)
@given(text=tricky_text | any_text)
def test_decoding_joiners_undoes_encoding_them(text: str) -> None:
    assert decode_joiners(encode_joiners(text)) == text


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Noah met Noah", "+ Noah met Noah"), (" Noah", " Noah"), ("12 a", "12 a"), ("", ""),
        ("a.\nÉve\r\nBo\n  c", "+ a.\n+ Éve\r\n+ Bo\n  c"), ('He: "Go! Go!"', '+ He: "+ Go! Go!"'),
        ("“Go” „Go“ ‘Go’ «Go»", "“+ Go” „+ Go“ ‘+ Go’ «+ Go»"), ("(a [b {c <d", "(+ a [+ b {c <d"),
        ("'Go,' I don't 5's '5 ''a", "'+ Go,' I don't 5's '5 ''+ a"), ("a-b/c—d", "+ a-b/c—d"),
    ],
)  # fmt: skip
def test_words_that_begin_a_line_or_a_quotation_are_joined(text: str, marked: str) -> None:
    assert encode_joiners(text).replace("\x11", "+") == marked


def test_a_word_is_the_same_token_wherever_it_begins(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["bpe_joiner"]
    text = 'keeper and "keeper"\n(keeper)\n\nkeeper'
    tokens = read(tokenizer, text)
    assert tokens.count(" keeper") == 4
    assert tokens[:2] == ["<joiner>", " keeper"]
    assert tokens[-3:] == ["\n\n", "<joiner>", " keeper"]
    assert trained["bpe"].encode(text).count(trained["bpe"].encode(" keeper")[0]) == 0


def test_a_text_that_ends_where_a_word_can_begin_goes_on_with_it(
    trained: dict[str, Tokenizer],
) -> None:
    encode = trained["bpe_joiner"].encode
    for beginning in ("", 'he said "', "she:\n\n", "it ("):
        assert encode(beginning + "keeper") == encode(beginning) + encode("keeper")


def test_a_joiner_takes_nothing_but_its_space(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["bpe_joiner"]
    joiner, keeper = tokenizer.encode("keeper")
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(token_id) for token_id in (joiner, keeper, keeper)] == [
        "", "keeper", " keeper"
    ]  # fmt: skip
    comma = tokenizer.encode(",")
    assert in_parts(tokenizer, [joiner, *comma, keeper, joiner, joiner]) == ", keeper"


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("the USA", "the^ usa"), ("Paris", "'paris"), ("I am X", "I am X"), ("U.S.A.", "U.S.A."),
        ("McDonald", "'mc'donald"), ("iPhone", "i'phone"), ("HTTPServer", "^http'server"),
        ("ÉCOLE École", "^école' école"), ("STRAßE", "^straßE"), ("ΟΔΟΣ", "^οδοσ"), ("PCs", "P'cs"),
    ],
)  # fmt: skip
def test_capitals_become_one_marker_before_the_space_of_their_word(text: str, marked: str) -> None:
    shown = encode_case(text).replace(CAPITAL, "'").replace(ALL_CAPS, "^")
    assert shown == marked


def test_no_letter_is_both_a_capital_and_a_small_letter() -> None:
    capitals = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    encoded = [c for c in capitals if encode_case(c + "a") != c + "a" and c not in MARKERS + ESCAPE]
    for char in encoded:
        assert encode_case(char + "a") == CAPITAL + char.lower() + "a"
        assert encode_case(char.lower() + "a") == char.lower() + "a"


def test_words_reads_capitals_as_single_markers(trained: dict[str, Tokenizer]) -> None:
    words = trained["words"]
    assert read(words, "the USA, The Harbour") == [
        "the", "<all caps>", " usa", ",", "<capital>", " the", "<capital>", " harbour"
    ]  # fmt: skip
    assert words.encode(" keeper") != words.encode(" Keeper")
    assert words.encode(" Keeper")[1:] == words.encode(" keeper")


def test_a_marker_is_held_until_its_word(trained: dict[str, Tokenizer]) -> None:
    words = trained["words"]
    decoder = StreamDecoder(words)
    ids = words.encode("a USA.")
    assert [decoder.push(token_id) for token_id in ids] == ["a", "", "", " USA."]
    assert decoder.flush() == ""


def test_the_bytes_of_a_character_are_held_until_it_is_whole(
    trained: dict[str, Tokenizer],
) -> None:
    decoder = StreamDecoder(trained["bytes"])
    ids = trained["bytes"].encode("é!") + trained["bytes"].encode("日")[:2]
    assert [decoder.push(token_id) for token_id in ids] == ["", "é", "!", "", ""]
    assert decoder.flush() == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_begin_with_the_controls_and_the_bytes(
    trained: dict[str, Tokenizer], kind: TokenizerKind
) -> None:
    tokenizer = trained[kind]
    assert [tokenizer.token_text(0), tokenizer.token_text(1)] == ["<end>", "<start>"]
    assert [tokenizer.token_bytes(2 + byte) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert tokenizer.decode([0, *tokenizer.encode("a"), 1]) == "a"
    assert tokenizer.token_text(2 + 0xE9) == "\\xe9"


def test_digits_stand_alone_and_words_carry_their_space(trained: dict[str, Tokenizer]) -> None:
    assert read(trained["bpe"], "the keeper 123") == ["the", " keeper", " ", "1", "2", "3"]


def test_chars_learns_the_frequent_characters_in_the_order_of_their_code_points() -> None:
    few = train_tokenizer(["bbbaaaaé日é"], kind="chars", vocab_size=SMALLEST_VOCAB + 3)
    learned = [few.token_text(token_id) for token_id in range(SMALLEST_VOCAB, few.vocab_size)]
    assert learned == ["a", "b", "é"]
    assert read(few, "é日") == ["é", "\\xe6", "\\x97", "\\xa5"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_vocabulary_is_larger_than_asked_for(
    trained: dict[str, Tokenizer], kind: TokenizerKind
) -> None:
    for vocab_size in (SMALLEST_VOCAB, SMALLEST_VOCAB + 1, 300):
        small = train_tokenizer(TEXTS, kind=kind, vocab_size=vocab_size)
        assert small.vocab_size == (SMALLEST_VOCAB if kind == "bytes" else vocab_size)
    assert train_tokenizer([], kind=kind, vocab_size=VOCAB_SIZE).vocab_size == SMALLEST_VOCAB
    with pytest.raises(UserError, match=r"--set tokenizer\.vocab_size=258") as caught:
        train_tokenizer(TEXTS, kind=kind, vocab_size=SMALLEST_VOCAB - 1)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_texts_does_not_matter(
    trained: dict[str, Tokenizer], kind: TokenizerKind
) -> None:
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    again = train_tokenizer(shuffled, kind=kind, vocab_size=VOCAB_SIZE)
    assert again.fingerprint == trained[kind].fingerprint


@pytest.mark.parametrize(("seed", "threads"), [("0", "1"), ("1", "2"), ("random", "5")])
def test_hash_seeds_and_threads_do_not_matter(
    trained: dict[str, Tokenizer], tmp_path: Path, seed: str, threads: str
) -> None:
    program = (
        "import json, sys; from ys_llm.data.tokenizer import train_tokenizer as train\n"
        "texts = json.load(open(sys.argv[1], encoding='utf-8'))\n"
        "for kind in sys.argv[2:]:\n"
        f"    print(train(texts, kind=kind, vocab_size={VOCAB_SIZE}).fingerprint)"
    )
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS[::-1]), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "texts.json"), *KINDS],
        env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.split() == [trained[kind].fingerprint for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded_whole(
    trained: dict[str, Tokenizer], tmp_path: Path, kind: TokenizerKind
) -> None:
    path = tmp_path / "tokenizer.json"
    trained[kind].save(path)
    loaded = Tokenizer.load(path)
    assert (loaded.kind, loaded.vocab_size) == (kind, trained[kind].vocab_size)
    assert loaded.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.fingerprint == trained[kind].fingerprint
    assert [loaded.encode(t) for t in HARD_INPUTS] == [trained[kind].encode(t) for t in HARD_INPUTS]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=tricky_text | any_text)
def test_the_library_reads_the_saved_file_alike(
    trained: dict[str, Tokenizer],
    tmp_path_factory: pytest.TempPathFactory,
    kind: TokenizerKind,
    text: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{kind}.json"
    if not path.exists():
        trained[kind].save(path)
    library = tokenizers.Tokenizer.from_file(str(path))
    library.encode_special_tokens = True
    marking = trained[kind].marking
    given_text = marking.encode(text) if marking else text
    ids = library.encode(given_text).ids
    assert ids == trained[kind].encode(text)
    assert library.decode(ids) == given_text


def test_a_long_text_is_encoded_as_its_parts_are(trained: dict[str, Tokenizer]) -> None:
    text = "The keeper's house,\r\n\r\nin  Paris \n  (USA)...\n" * 6000 + "x" * 100_000
    library = tokenizers.Tokenizer.from_str(trained["bpe"].saved)
    assert trained["bpe"].encode(text) == library.encode(text).ids
    for kind in KINDS:
        assert trained[kind].decode(trained[kind].encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_cut_before_a_space_or_line_break_keeps_its_tokens(
    trained: dict[str, Tokenizer], kind: TokenizerKind
) -> None:
    text = "".join(SENTENCES)
    borders = [i for i in range(1, len(text)) if text[i] in " \n" and not text[i - 1].isspace()]
    assert len(borders) > 30
    encode = trained[kind].encode
    assert all(encode(text[:i]) + encode(text[i:]) == encode(text) for i in borders)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=tricky_text | any_text)
def test_packed_ids_are_the_ids(
    trained: dict[str, Tokenizer], kind: TokenizerKind, text: str
) -> None:
    packed = np.frombuffer(trained[kind].encode_packed(text), "<u2")
    assert packed.tolist() == trained[kind].encode(text)


def test_ids_above_65535_are_packed_in_four_bytes() -> None:
    characters = "".join(map(chr, range(0xE000, 0xE000 + 66_000)))
    large = train_tokenizer([characters], kind="chars", vocab_size=SMALLEST_VOCAB + 66_000)
    ids = large.encode(characters)
    assert ids == list(range(SMALLEST_VOCAB, SMALLEST_VOCAB + 66_000))
    assert np.frombuffer(large.encode_packed(characters), "<u4").tolist() == ids


def test_half_a_character_is_refused(trained: dict[str, Tokenizer]) -> None:
    for kind in KINDS:
        with pytest.raises(UserError, match=r"\\ud83d.* holds half of a character"):
            trained[kind].encode("a \ud83d b")


def test_a_missing_damaged_or_foreign_file_is_refused(
    trained: dict[str, Tokenizer], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Tokenizer.load(path)
    saved = trained["bpe"].saved
    swapped = saved.replace('"<end>":0', '"<end>":1').replace('"<start>":1', '"<start>":0')
    gap = json.loads(saved)
    gap["model"]["vocab"]["zz"] = 9999
    foreign = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()
    for content in ("", saved[:1000], "{}", "[]", swapped, json.dumps(gap), foreign):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer of ys: .+"):
            Tokenizer.load(path)
    path.write_bytes(b"\xff" + saved.encode())
    with pytest.raises(UserError, match="is not a tokenizer of ys"):
        Tokenizer.load(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", ["acgt", "x", "日", "  ", "\n", "-="])
def test_a_piece_without_end_is_learned_from_and_encoded_in_parts(
    kind: TokenizerKind, piece: str
) -> None:
    text = piece * 200_000
    tokenizer = train_tokenizer([text], kind=kind, vocab_size=SMALLEST_VOCAB + 4)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    if not (kind == "bpe_joiner" and piece.isalpha()):  # a space goes before the first part alone
        assert ids == tokenizer.encode(text[:1000]) * (len(text) // 1000)
