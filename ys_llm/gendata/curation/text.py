"""Helpers of the rules: words, sentences, tables, verse."""

import re

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’')*_]*\s+")
_TABLE_LINE = re.compile(r"^[ \t]*(?:\||[{\[\]}]|[-*+] |\d+[.)] |#|>)")
FENCE = "```"
VERSE_CHARS = 85  # of a line
CLOSING = ".!?…\"”’'`)]}|*_~>"
_LEADING_ON = (
    "a an the and or but nor of to from with into onto than which who whose as if because while "
    "when where is are was were been being has have had will would could should may might must "
    "shall their his its our your my these those very such each every between"
)
WORDS_THAT_LEAD_ON = frozenset(_LEADING_ON.split())


def sentence_starts(paragraph: str) -> list[int]:
    """Start offsets of the sentences of a paragraph."""
    return [0, *(match.end() for match in _SENTENCE_END.finditer(paragraph))]


def is_quoted(text: str, at: int) -> bool:
    """Whether an offset is inside quotation marks."""
    paragraph = text[text.rfind("\n", 0, at) + 1 : at]
    curly = paragraph.count("“") - paragraph.count("”")
    return paragraph.count('"') % 2 == 1 or curly > 0


def is_table_line(line: str) -> bool:
    """Whether a line belongs to a table, list, heading or JSON, and needs no full stop."""
    return _TABLE_LINE.match(line) is not None


def is_verse(response: str) -> bool:
    """Whether a response is verse, which may end its lines in any way."""
    lines = [line for line in response.splitlines() if line.strip()]
    return len(lines) > 2 and sum(len(line) < VERSE_CHARS for line in lines) > 0.8 * len(lines)
