"""Capitals as markers before lower-case words, and back: exact for any text.

` USA` becomes SHOUT + ` usa`, `Paris` UPPER + `paris`, `McDonald` UPPER + `mc` + UPPER + `donald`.
A capital on its own (`I`, `X`, the letters of `U.S.A.`) and any letter whose capital does not lead
back to it (`ß`, `ı`, `ς`) stay as they are.
"""

import re

# Control characters of one byte: each is a token of any byte-level vocabulary, and no text that
# people read holds them. Where a text does, ESCAPE and a letter stand for it.
UPPER, SHOUT, ESCAPE = "\x0e", "\x0f", "\x10"
MARKERS = UPPER + SHOUT

_ESCAPED = {UPPER: ESCAPE + "N", SHOUT: ESCAPE + "O", ESCAPE: ESCAPE + "P"}
_UNESCAPED = {escaped: char for char, escaped in _ESCAPED.items()}

# Latin, Greek, Cyrillic and Armenian: no case pair here has changed since Unicode 7, so that every
# Python reads a saved tokenizer alike.
_CASED = [*range(0x41, 0x590), *range(0x1E00, 0x2000)]
_LOWER = {
    code: lower
    for code in _CASED
    if len(lower := chr(code).lower()) == 1 and lower != chr(code) and lower.upper() == chr(code)
}
_UPPERS = "".join(map(chr, _LOWER))
_LOWERS = "".join(_LOWER.values())

# SHOUT ends where the lower-case letters end, so a run of capitals must not touch one:
# `HTTPServer` is SHOUT + `http`, UPPER + `server`.
_MARKED = re.compile(
    f"[{_UPPERS}](?=[{_LOWERS}])"
    f"|[{_UPPERS}]{{2,}}(?:(?=[{_UPPERS}][{_LOWERS}])|(?![{_LOWERS}]))"
    f"|[{UPPER}{SHOUT}{ESCAPE}]"
)
_MARKS = re.compile(f"{UPPER}( ?)([{_LOWERS}]?)|{SHOUT}( ?)([{_LOWERS}]*)|{ESCAPE}[NOP]?")
_UNFINISHED = re.compile(rf"(?:{UPPER} ?|{SHOUT} ?[{_LOWERS}]*|{ESCAPE})\Z")


def mark(text: str) -> str:
    """Write `text` without the capitals that markers can give back; `restore` undoes it."""
    marked = _MARKED.sub(_mark_one, text)
    # A marker goes before the space of its word, which keeps ` usa` in one piece.
    return marked.replace(f" {UPPER}", f"{UPPER} ").replace(f" {SHOUT}", f"{SHOUT} ")


def restore(marked: str) -> str:
    """Give back the text that `mark` was given; a marker without a word prints nothing."""
    return _MARKS.sub(_restore_one, marked)


class Restorer:
    """`restore` for a text that arrives in parts: a marker is held until its word is known."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, marked: str) -> str:
        """Return the text that no later part can change."""
        marked = self._held + marked
        unfinished = _UNFINISHED.search(marked)
        cut = unfinished.start() if unfinished else len(marked)
        self._held = marked[cut:]
        return restore(marked[:cut])

    def flush(self) -> str:
        """Return what is still held; the text ends here."""
        held, self._held = self._held, ""
        return restore(held)


def _mark_one(match: re.Match[str]) -> str:
    found = match[0]
    if found in _ESCAPED:
        return _ESCAPED[found]
    # Not str.lower: it writes the last sigma of a word as `ς`, which leads back to no run.
    lower = found.translate(_LOWER)
    return (UPPER if len(found) == 1 else SHOUT) + lower


def _restore_one(match: re.Match[str]) -> str:
    found = match[0]
    if found[0] == ESCAPE:
        return _UNESCAPED.get(found, "")
    if found[0] == UPPER:
        return match[1] + match[2].upper()
    return match[3] + match[4].upper()
