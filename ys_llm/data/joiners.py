"""Words written with a space before them wherever they stand, and back: exact for any text.

Most words follow a space, which belongs to their token. A word at the beginning of a text or line,
or after an opening quotation mark or bracket, follows none, and would be other tokens: it is
written as JOINER, a space and the word. Decoding removes JOINER and the space.
"""

import re

from ys_llm.data.letters import LETTERS
from ys_llm.data.marking import Marking

# Control characters of one byte: each is a token of any byte-level vocabulary, and text that people
# read contains none of them. If a text does, it becomes ESCAPE and a letter.
JOINER, ESCAPE = "\x11", "\x10"
_JOINED = JOINER + " "

_UNESCAPED = {ESCAPE + "P": ESCAPE, ESCAPE + "Q": JOINER}

# An apostrophe opens a quotation where it does not follow a letter or digit. It all begins with one
# set of characters, so that `re` skips all others without trying alternatives.
_BEFORE_WORD = re.compile(rf"([\n\r\"“„«‘(\['](?=[{LETTERS}])(?<![{LETTERS}0-9]'))")
_WORD = re.compile(f"[{LETTERS}]")
_TO_DECODE = re.compile(f"{JOINER} ?|{ESCAPE}[PQ]?")
_UNFINISHED = re.compile(rf"[{JOINER}{ESCAPE}]\Z")


def encode_joiners(text: str) -> str:
    """Write JOINER and a space before words that follow no space and could follow one."""
    text = text.replace(ESCAPE, ESCAPE + "P").replace(JOINER, ESCAPE + "Q")
    parts = _BEFORE_WORD.split(text)  # half the time of `sub`
    parts[1::2] = [opening + _JOINED for opening in parts[1::2]]
    joined = "".join(parts)
    return _JOINED + joined if _WORD.match(joined) else joined


def decode_joiners(encoded: str) -> str:
    """Return the text that `encode_joiners` was given; JOINER without a space gives nothing."""
    return _TO_DECODE.sub(lambda found: _UNESCAPED.get(found[0], ""), encoded)


JOINERS = Marking(encode_joiners, decode_joiners, _UNFINISHED, {JOINER: "<joiner>"})
