"""Responses that end in the middle: of a sentence, a code block, a JSON value."""

import json
import re
from itertools import pairwise

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers
from ys_llm.gendata.curation.structure import is_code
from ys_llm.gendata.curation.text import (
    CLOSING,
    WORDS_THAT_LEAD_ON,
    is_table_line,
    is_verse,
    sentence_starts,
)

_PROSE_PARAGRAPHS = 3  # from this number on, a last line without a full stop is truncated
_PROSE_WORDS = 9  # of the last line; signatures and captions have fewer
_FRAGMENT_WORDS = 3  # after a finished sentence in the same line
_ITEMS, _ITEM_WORDS = 4, 5  # items that end with a stop, words of the last one that does not
_STOPS = (".", "!", "?")
_LONG_LINE = 25  # words; a line of this length is a sentence
_LARGEST_JSON = 100_000  # characters; longer JSON is not parsed
_JSON_BEGINS = re.compile(r"^[ \t]*([\[{]\s*(?:[\"{\[\d-]|\Z))", re.M)
_FENCE = re.compile(r"`{3,}")
_MARKUP = " \t\n*_~"
_LABEL = re.compile(r"[\s*_]*(?:answer|final answer|[A-Z][\w ]{0,30}):", re.I)
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+] |\d+[.)] )")
_GREETING = re.compile(
    r"(?:yours|best|love|warmly|sincerely|regards|cheers|kind|with|thank|all my|your|hugs|xo)\b"
    r"[\w ]{0,24},\Z",
    re.I,
)
_ABBREVIATION = re.compile(r"(?:^|\W)(?:[A-Z]|Mrs?|Ms|Dr|Prof|St|Jr|Sr|No|Vol|vs|e\.g|i\.e)\.$")
_CUT_OFF = ",;:-–—(["
_STARTERS = frozenset(
    [
        "I",
        "I'm",
        "I've",
        "I'd",
        "He",
        "She",
        "It",
        "They",
        "We",
        "You",
        "The",
        "This",
        "That",
        "There",
        "But",
        "And",
        "So",
        "In",
        "A",
    ]
)
_FEW_WORDS = 4  # of a last paragraph that only begins a sentence


def _truncated(record: Record) -> RuleResult:
    response = record.response.rstrip()
    is_part = not record.prompt.strip() and "\n\n" not in response  # of a text, which goes on
    reason = _cut(response, is_part)
    if not reason:
        return None
    return Verdict("truncated", reason, (max(0, len(response) - 80), len(response)))


def _cut(response: str, is_part: bool) -> str:
    if len(_FENCE.findall(response)) % 2:
        return "an open code fence"
    if _is_open_json(response):
        return "incomplete JSON"
    last = response[response.rfind("\n") + 1 :]
    text = last.rstrip(_MARKUP)
    if is_part or not text or is_code(response) or (last.rstrip()[-1] in ";{}" and is_code(last)):
        return ""
    if is_table_line(last) and text[-1] not in ",(":
        return _cut_item(response, last, text)
    if text[-1] in _CUT_OFF and not text.endswith(("--", " -", " –", " —")):
        return "" if _GREETING.match(text) else f"ends with {text[-1]!r}"
    if not text[-1].isalnum():
        return ""
    if _breaks_off_a_repeat(response):
        return "a repeated line breaks off"
    return _cut_sentence(response, text)


def _breaks_off_a_repeat(response: str) -> bool:
    """Whether the last line is an earlier one, cut inside a word or before its last mark.

    The line before both is the same.
    """
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    before, last = lines[-2:] if len(lines) > 3 else ("", "")
    rests = (
        other.removeprefix(last)
        for one, other in pairwise(lines)
        if one == before and other != last and other.startswith(last)
    )
    return any(rest[0].isalnum() or not any(map(str.isalnum, rest)) for rest in rests)


def _cut_item(response: str, last: str, text: str) -> str:
    """A row without its last bar, or a list item that breaks off where all others end."""
    lines = response.splitlines()
    if last.lstrip().startswith("|"):
        ended = sum(line.rstrip().endswith("|") for line in lines[:-1])
        return "the last row is open" if ended >= 2 and not last.rstrip().endswith("|") else ""
    if not _LIST_ITEM.match(last) or not text[-1].isalnum():
        return ""
    words = text.split()
    if len(words) > 5 and words[-1] in WORDS_THAT_LEAD_ON:
        return f"ends with {words[-1]!r}"
    others = [line.rstrip(_MARKUP) for line in lines[:-1] if _LIST_ITEM.match(line)]
    ended = sum(other[-1:] in _STOPS for other in others)
    alone = len(words) >= _ITEM_WORDS and ended >= _ITEMS and ended == len(others)
    cut = alone or _has_fragment(_LIST_ITEM.sub("", text))
    return "the last sentence is incomplete" if cut else ""


def _cut_sentence(response: str, last: str) -> str:
    words = last.split()
    verse = is_verse(response)
    if len(words) > 4 and words[-1] in WORDS_THAT_LEAD_ON and not verse:
        return f"ends with {words[-1]!r}"
    if not verse and (_has_fragment(last) or _is_long_sentence(response, words)):
        return "the last sentence is incomplete"
    begun = len(words) <= _FEW_WORDS and words[0] in _STARTERS and words[-1].islower()
    if begun and not verse and words[-1] != "end" and _is_behind_prose(response):
        return "the last sentence is incomplete"
    is_sentence = len(words) >= _PROSE_WORDS and not _LABEL.match(last)
    return "the last sentence is incomplete" if is_sentence and _is_prose(response) else ""


def _has_fragment(line: str) -> bool:
    """Whether a finished sentence is followed, in the same line, by one that is not."""
    starts = sentence_starts(line)
    rest = line[starts[-1] :].split()
    if len(starts) < 2 or not rest or not rest[0][:1].isupper() or line[: starts[1]].isdigit():
        return False
    before = line[starts[-2] : starts[-1]].split()
    if len(before) < _FRAGMENT_WORDS or _ABBREVIATION.search(before[-1]):
        return False
    if "hope" in rest[:2]:  # a farewell without stop
        return False
    return len(rest) >= _FRAGMENT_WORDS or rest[0].strip("\"'“") in _STARTERS


def _is_long_sentence(response: str, words: list[str]) -> bool:
    """A last line of prose too long for a caption, in a text that has full stops elsewhere."""
    ends = sum(response.count(end) for end in (". ", ".\n", "! ", "? "))
    return len(words) >= _LONG_LINE and ends >= 2


def _is_behind_prose(response: str) -> bool:
    """Whether the paragraph before the last is one of several sentences."""
    before = response.rsplit("\n", 1)[0].rstrip().rsplit("\n", 1)[-1]
    return len(sentence_starts(before)) > 1 and before.endswith(_STOPS)


def _is_prose(response: str) -> bool:
    """Whether the paragraphs before the last line end with full stops."""
    lines = [line.rstrip(_MARKUP) for line in response.splitlines()[:-1]]
    prose = [
        line for line in lines if len(line.split()) >= _PROSE_WORDS and not is_table_line(line)
    ]
    return len(prose) >= _PROSE_PARAGRAPHS and all(line[-1] in CLOSING + ":" for line in prose)


def _is_open_json(response: str) -> bool:
    """Whether a JSON value begins at the start of a line and the text ends before it does."""
    begins = _JSON_BEGINS.search(response)
    if not begins or len(response) > _LARGEST_JSON:
        return False
    text = response[begins.start(1) :].rstrip("` \n")
    try:
        json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return error.pos >= len(text) - 1 or error.msg.startswith("Unterminated string")
    return False


TRUNCATED = Rule(
    "truncated",
    "drop",
    "a truncated response: an open sentence, code fence or JSON value",
    _truncated,
    positives=answers(
        "The river rose all night, and in the morning the people of the town went to the",
        "```sql\nSELECT name FROM rivers",
        '[{"river": "Rhine", "length": 1230},',
        "The first to row down the whole river was a baker from the hills, who later,",
        '{"name": "Anna", "hobbies": ["reading", "swi',
        '{"name": "Anna", "hobbies": ["reading"]',
        'This is a person:\n\n{"name": "Anna", "age": 3',
        "Rivers run down from the hills. They carry water to the fields. Some of them end",
        "The river sings,\nit sings of home,\nThe river sings,\nit sings of ho",
    ),
    negatives=(
        Record("", "Some rivers are long, and these are the three that everybody knows:"),
        *answers(
            "A river runs\nbeneath the suns\nand when it ends it knows it of",
            "Rivers:\n\n* Rhine\n* Danube, the second longest river of the whole of the continent",
            '{"river": "Rhine"}',
            "joy",
            "The river sings\nof home and hills\n\nand while it runs\n\nThe river sings\nof home",
            "Dear Anna,\n\nthe river is high.\n\nYours, Tom",
            "Dear Anna,\n\nthe river is high, and I think of you.\n\nBest,",
            "int main(void) {\n    return 0;\n}\nint x = 1;",
            "SELECT name FROM rivers;",
            "const rivers = load();\nrivers.sort();",
            "name: Rhine\nlength: 1230\ndata:",
            'A person:\n\n{"name": "Anna"}\n\nThat is all.',
            "The first to row down all of it was the baker from the hills, John J. Baker in 1920",
        ),
    ),
)
