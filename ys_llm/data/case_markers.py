"""Capitals written as markers before lower-case words, and back: exact for any text.

` USA` becomes ALL_CAPS + ` usa`, `Paris` CAPITAL + `paris`, `McDonald` CAPITAL + `mc` + CAPITAL +
`donald`. A capital on its own (`I`, `X`, the letters of `U.S.A.`) stays as it is, and so does any
letter whose upper case does not map back to it (`ß`, `ı`, `ς`).
"""

import re

from ys_llm.data.marking import Marking

# Control characters of one byte: each is a token of any byte-level vocabulary, and text that people
# read contains none of them. If a text does, it becomes ESCAPE and a letter.
CAPITAL, ALL_CAPS, ESCAPE = "\x0e", "\x0f", "\x10"
MARKERS = CAPITAL + ALL_CAPS
_CONTROLS = MARKERS + ESCAPE

_ESCAPED = {CAPITAL: ESCAPE + "N", ALL_CAPS: ESCAPE + "O", ESCAPE: ESCAPE + "P"}
_UNESCAPED = {escaped: char for char, escaped in _ESCAPED.items()}

# Latin, Greek, Cyrillic and Armenian: no case pair here has changed since Unicode 7, so every
# Python version decodes a saved tokenizer alike.
_CASED = [*range(0x41, 0x590), *range(0x1E00, 0x2000)]
_LOWER = {
    code: lower
    for code in _CASED
    if len(lower := chr(code).lower()) == 1 and lower != chr(code) and lower.upper() == chr(code)
}
_UPPERS = "".join(map(chr, _LOWER))
_LOWERS = "".join(_LOWER.values())
# What a capital before a small letter, or a control character, is written as.
_OF_ONE = _ESCAPED | {chr(code): CAPITAL + lower for code, lower in _LOWER.items()}

# ALL_CAPS ends where the lower-case letters end, so a run of capitals must not be followed by one:
# `HTTPServer` is ALL_CAPS + `http`, CAPITAL + `server`.
# It begins with one set of characters, so that `re` skips all others without trying alternatives.
_TO_ENCODE = re.compile(
    f"([{_UPPERS}{_CONTROLS}](?:(?<=[{_CONTROLS}])|(?=[{_LOWERS}])"
    f"|[{_UPPERS}]+(?:(?=[{_UPPERS}][{_LOWERS}])|(?![{_LOWERS}]))))"
)
_TO_DECODE = re.compile(f"{CAPITAL}( ?)([{_LOWERS}]?)|{ALL_CAPS}( ?)([{_LOWERS}]*)|{ESCAPE}[NOP]?")
_UNFINISHED = re.compile(rf"(?:{CAPITAL} ?|{ALL_CAPS} ?[{_LOWERS}]*|{ESCAPE})\Z")


def encode_case(text: str) -> str:
    """Replace capitals by markers where `decode_case` can restore them."""
    parts = _TO_ENCODE.split(text)  # half the time of `sub` with a function
    parts[1::2] = [_OF_ONE.get(found) or _all_caps(found) for found in parts[1::2]]
    encoded = "".join(parts)
    # A marker goes before the space of its word, so that ` usa` stays one piece.
    return encoded.replace(f" {CAPITAL}", f"{CAPITAL} ").replace(f" {ALL_CAPS}", f"{ALL_CAPS} ")


def decode_case(encoded: str) -> str:
    """Return the text that `encode_case` was given; a marker without a word decodes to nothing."""
    return _TO_DECODE.sub(_decode_one, encoded)


def _all_caps(found: str) -> str:
    # Not str.lower: it writes the last sigma of a word as `ς`, which has no capital of its own.
    return ALL_CAPS + found.translate(_LOWER)


def _decode_one(match: re.Match[str]) -> str:
    found = match[0]
    if found[0] == ESCAPE:
        return _UNESCAPED.get(found, "")
    if found[0] == CAPITAL:
        return match[1] + match[2].upper()
    return match[3] + match[4].upper()


CASE = Marking(
    encode_case, decode_case, _UNFINISHED, {CAPITAL: "<capital>", ALL_CAPS: "<all caps>"}
)
