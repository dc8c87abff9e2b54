"""A tokenizer as other programs load it: its tokenizer.json with everything that ys does besides.

The library `tokenizers` then writes the joiners of `bpe_joiner` itself, puts `<end>` before a text
and `<start>` between two, and reads `<end>` and `<start>` in a text as control tokens; ids are
those of `Tokenizer.encode` otherwise. A piece of over 1,000 characters is one piece there, and may
be other tokens.
"""

import json
from typing import Any

from ys_llm.data.controls import CONTROLS
from ys_llm.data.joiners import ESCAPE, JOINER
from ys_llm.data.letters import LETTERS
from ys_llm.data.records import END, START
from ys_llm.data.tokenizer import Tokenizer

_OPENING = '\n\r"“„«‘(['  # what a word may follow instead of a space; see `joiners.py`
_JOINED = JOINER + " "


def is_expressible(tokenizer: Tokenizer) -> bool:
    """Whether `fast_tokenizer` says all: not of `words`, whose case markers need a program."""
    return tokenizer.marking is None or tokenizer.kind == "bpe_joiner"


def fast_tokenizer(tokenizer: Tokenizer) -> str:
    """The text of a tokenizer.json for any program; of `words` one for text with case markers."""
    parts = json.loads(tokenizer.saved)
    if tokenizer.kind == "bpe_joiner":
        parts["normalizer"] = {"type": "Sequence", "normalizers": _writing_joiners()}
        decoders = [parts["decoder"], *_removing_joiners()]
        parts["decoder"] = {"type": "Sequence", "decoders": decoders}
    parts["post_processor"] = _with_controls()
    return json.dumps(parts, ensure_ascii=False)


def _writing_joiners() -> list[dict[str, Any]]:
    """`encode_joiners`, one replacement after the other."""
    escapes = [_replace("String", ESCAPE, ESCAPE + "P"), _replace("String", JOINER, ESCAPE + "Q")]
    openings = [
        _replace("Regex", f"{_quoted(char)}(?=[{LETTERS}])", char + _JOINED) for char in _OPENING
    ]
    apostrophe = _replace("Regex", f"(?<![{LETTERS}0-9])'(?=[{LETTERS}])", "'" + _JOINED)
    # Written before every text, and removed where no word begins it.
    first = {"type": "Prepend", "prepend": _JOINED}
    not_first = _replace("Regex", f"\\A{_JOINED}(?![{LETTERS}])", "")
    return [*escapes, *openings, apostrophe, first, not_first]


def _removing_joiners() -> list[dict[str, Any]]:
    """`decode_joiners`, one replacement after the other."""
    return [
        _replace("Regex", f"{JOINER} ?", ""),
        _replace("Regex", f"{ESCAPE}(?![PQ])", ""),
        _replace("String", ESCAPE + "Q", JOINER),
        _replace("String", ESCAPE + "P", ESCAPE),
    ]


def _replace(kind: str, pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def _quoted(char: str) -> str:
    return f"\\{char}" if char in "([" else char


def _with_controls() -> dict[str, Any]:
    """`<end> text` for one text, `<end> prompt <start> answer` for two."""
    end, start = ({"SpecialToken": {"id": name, "type_id": 0}} for name in (END, START))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    ids = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in enumerate(CONTROLS)}
    return {
        "type": "TemplateProcessing",
        "single": [end, first],
        "pair": [end, first, start, second],
        "special_tokens": ids,
    }
