"""Text stuck in a loop: words, lines, sentences, paragraphs, headings again and again."""

import re
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers
from ys_llm.gendata.curation.structure import without_code
from ys_llm.gendata.curation.text import is_verse

_SHORTEST_LOOP = 120  # characters
_SHORT = 4000  # characters; shorter texts compress less
_SQUEEZED, _SHORT_SQUEEZED = 0.4, 0.5  # of its size; what compresses less has no loop
_LONGEST_UNIT = 60  # words
_TIMES = 4  # in a row; a chorus appears twice
_LOOP_WORDS = 20
_SENTENCE_TIMES = 8
_SENTENCE_WORDS = 5
_SENTENCE = re.compile(r"[^.!?\n]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"\d+")
_LIST_NUMBER = re.compile(r"(?:(?<=\s)|^)\d+[.)](?=\s)")
_RUN_WORDS = 8
_RETELLING_WORDS = 300
_RETOLD_SHARE = 0.1  # of all 8-word runs; in a good story under 0.01
_PHRASES = ((5, 6, 0.2), (12, 4, 0.0))  # words, times, share of the text
_ECHOED_SHARE = 0.35  # of the words, in sentences that stand there three times
_PARAGRAPH_WORDS = 20
_PARAGRAPH_TIMES = 3
_HEADING = re.compile(r"^[ \t]*(?:#{1,6} +|\*\*)([^\n*#]{3,60}?)(?:\*\*)?:?[ \t]*$", re.M)
_HEADING_TIMES = 4
_SUNG = re.compile(r"verse|chorus|bridge|refrain|outro|intro|hook", re.I)
_QUIZ = re.compile(r"^[*# ]*(?:Question|Q)\b[^\n:]{0,8}:", re.M)
_QUIZ_TIMES = 4
_ASKED_QUIZ = re.compile(r"\b(?:questions|quiz|trivia|q ?& ?a|faq|interview|exam|test)\b", re.I)
_LINES = frozenset("-=_|*#.·•:+~ ")  # of rules and tables
_SAME_TOKENS = 40
_LONG_WORD = 80  # characters
_PERIOD = 12


def _repetition(record: Record) -> RuleResult:
    response = record.response
    if len(response) < _SHORTEST_LOOP:
        return None
    data = response.encode("utf-8", "replace")
    most = _SQUEEZED if len(response) > _SHORT else _SHORT_SQUEEZED
    if len(zlib.compress(data, 1)) > most * len(data):
        return None
    reason = next(filter(None, _reasons(record)), "")
    return Verdict("repetition", reason, (0, len(response))) if reason else None


def _reasons(record: Record) -> Iterator[str]:
    response = record.response
    words = response.split()
    yield _loop(words)
    bare = _LIST_NUMBER.sub("", response)
    if bare != response:
        yield _loop(bare.split())
    yield _one_token(words)
    yield _refrain(response)
    yield _paragraphs(response)
    yield _headings(response)
    yield _quiz(record)
    yield _retelling(response, words)
    yield _echoes(response)
    yield _phrases(response)


def _loop(words: list[str]) -> str:
    """A unit of up to 60 words, at least four times in a row."""
    numbers: dict[str, int] = {}
    tokens = np.array([numbers.setdefault(word, len(numbers)) for word in words])
    for unit in range(1, min(_LONGEST_UNIT, len(words) // 2) + 1):
        same = np.flatnonzero(tokens[unit:] != tokens[:-unit])
        edges = np.concatenate(([-1], same, [len(tokens) - unit]))
        run = int(np.diff(edges).max()) - 1 + unit
        if run >= max(_LOOP_WORDS, _TIMES * unit) and _has_words(words, edges, unit):
            return f"{unit} words repeated over {run} words"
    return ""


def _has_words(
    words: list[str], edges: "np.ndarray[tuple[int], np.dtype[np.int64]]", unit: int
) -> bool:
    """Whether the repeated unit is text; numbers, dashes or table cells may repeat."""
    at = int(edges[int(np.diff(edges).argmax())]) + 1
    return any(_WORD.search(word) for word in words[at : at + unit])


def _one_token(words: list[str]) -> str:
    """One character or syllable for hundreds of times, with or without blanks."""
    for word in words:
        if len(word) >= _LONG_WORD and not _LINES.issuperset(word[-1:]):
            tail = word[-_LONG_WORD:]
            for period in range(1, _PERIOD + 1):
                if tail[period:] == tail[:-period]:
                    return f"{tail[-period:]!r} over {len(word)} characters"
    if len(words) >= _SAME_TOKENS:
        word, times = Counter(words).most_common(1)[0]
        if times > 0.8 * len(words) and not _LINES.issuperset(word) and not word.isascii():
            return f"{word!r} {times} times"
    return ""


def _sentences(response: str) -> "Counter[str]":
    masked = _NUMBER.sub("0", response)
    return Counter(
        sentence
        for sentence in map(str.strip, _SENTENCE.findall(masked))
        if "|" not in sentence and len(_WORD.findall(sentence)) >= _SENTENCE_WORDS
    )


def _refrain(response: str) -> str:
    """One sentence many times, not necessarily in a row."""
    sentences = _sentences(response)
    if not sentences:
        return ""
    sentence, times = sentences.most_common(1)[0]
    return f"{sentence[:60]!r} {times} times" if times >= _SENTENCE_TIMES else ""


def _echoes(response: str) -> str:
    """Prose of which a good part is sentences that stand there three times or more."""
    if "```" in response or is_verse(response):
        return ""
    again = sum(
        times * len(text.split())
        for text, times in _sentences(response).items()
        if times >= _PARAGRAPH_TIMES
    )
    share = again / max(1, len(response.split()))
    return f"{share:.0%} of it is sentences said three times" if share >= _ECHOED_SHARE else ""


def _phrases(response: str) -> str:
    """Prose that comes back to one phrase all the time, or to one long run of words."""
    if is_verse(response) or "|" in response:
        return ""
    words = without_code(response).split()
    for run, times, share in _PHRASES:
        runs = Counter(zip(*(words[offset:] for offset in range(run)), strict=False))
        if not runs:
            return ""
        phrase, found = runs.most_common(1)[0]
        if found >= times and run * found >= share * len(words):
            return f"{' '.join(phrase)!r} {found} times"
    return ""


def _paragraphs(response: str) -> str:
    counts = Counter(
        " ".join(part.split())
        for part in without_code(response).split("\n\n")
        if len(part.split()) >= _PARAGRAPH_WORDS
    )
    if not counts or is_verse(response):
        return ""
    text, times = counts.most_common(1)[0]
    return f"the paragraph {text[:50]!r} {times} times" if times >= _PARAGRAPH_TIMES else ""


def _headings(response: str) -> str:
    counts = Counter(
        heading.strip().lower()
        for heading in _HEADING.findall(without_code(response))
        if not _SUNG.search(heading)
    )
    if not counts:
        return ""
    heading, times = counts.most_common(1)[0]
    return f"the heading {heading!r} {times} times" if times >= _HEADING_TIMES else ""


def _quiz(record: Record) -> str:
    times = len(_QUIZ.findall(record.response))
    if times < _QUIZ_TIMES or _ASKED_QUIZ.search(record.prompt):
        return ""
    return f"{times} questions of its own"


def _retelling(response: str, words: list[str]) -> str:
    """Prose that repeats itself word for word; verse and code may."""
    if len(words) < _RETELLING_WORDS or "```" in response or is_verse(response):
        return ""
    runs = list(zip(*(words[offset:] for offset in range(_RUN_WORDS)), strict=False))
    share = 1 - len(set(runs)) / len(runs)
    return f"{share:.0%} of it is repeated word for word" if share >= _RETOLD_SHARE else ""


_STORY = (
    "Anna rowed down the river to see her aunt, who lived in a red house by the old mill, and who "
    "always had bread and honey on the table for those who came by boat in the evening. "
)
REPETITION = Rule(
    "repetition",
    "drop",
    "a loop: the same words, sentences, paragraphs or headings again and again",
    _repetition,
    positives=answers(
        "The river. " + "It flows and it flows to the sea. " * 12,
        "and " * 60,
        "".join(f"Number {n}. The river goes down to the sea.\n" for n in range(30)),
        f"{_STORY}\n\n" * 4,
        " ".join(f"{n}. Rhine" for n in range(1, 31)),
        " ".join(f"{n}. {name}" for n, name in enumerate(["Rhine", "Main", "Elbe", "Oder"] * 10)),
        "ha" * 300,
        "🦊" * 200,
        "".join(f"## Conclusion\n\nThe river {verb} the sea.\n\n" for verb in
                ("meets", "finds", "loves", "leaves", "fears")),
        "".join(f"Question: What is river {name}?\nAnswer: It is long.\n\n" for name in "ABCDE"),
    ),
    negatives=answers(
        "Row, row, row your boat,\nGently down the stream.\n\n" * 2,
        "| 1 | 2 | 3 |\n" * 20,
        "The river flows. " * 3,
        _STORY * 2,
        "=" * 200 + "\n\nRivers",
    ),
)  # fmt: skip
