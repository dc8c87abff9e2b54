"""Word salad: English words in an order that no sentence has, as small models write it.

Two signs, both absent from right prose: pairs of small words that never stand together (`the of`),
and long stretches of words without any small word or punctuation.
"""

import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers
from ys_llm.gendata.curation.structure import is_code, without_code

_LEAST_WORDS = 40
_PAIRS_SHARE, _LEAST_PAIRS = 0.03, 4  # of the words are such pairs
_STRETCH = 45  # words
_ARTICLE = "(?:the|a|an)"
_PAIR = re.compile(
    rf"(?<!['’\w]){_ARTICLE} (?:of|and|to|the|an|is|was|are|were|from|with|for|at|by|or|but)\b"
    rf"|(?<!['’\w]){_ARTICLE} because\b"
    r"|\b(?:of|from|with|at) (?:of|and|is|was|are|were|or|but|to|at|because)\b"
    r"|\b(?:and|or|but) (?:and|or|of|is|was)\b",
    re.I,
)
_SMALL = (
    "the a an of to in and or with for on at by from as is was are were be been it he she they we "
    "you i his her their our your my its this that these those not no but so if when then who what "
    "which there have has had do does did will would can could one all more some into out up than"
)
_SMALL_WORDS = frozenset(_SMALL.split())
_PIECE = re.compile(r"[^\n.,;:!?()\[\]\"“”|=/*•–—-]+")
_WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")


def _word_salad(record: Record) -> RuleResult:
    response = record.response
    words = len(response.split())
    if words < _LEAST_WORDS or is_code(response):
        return None
    text = without_code(response)
    pairs = list(_PAIR.finditer(text))
    if len(pairs) >= max(_LEAST_PAIRS, _PAIRS_SHARE * words):
        reason = f"{len(pairs)} pairs of words such as {pairs[0][0]!r} in {words:,} words"
        return Verdict("word_salad", reason, pairs[0].span())
    for piece in _PIECE.finditer(text):
        if len(piece[0]) > 4 * _STRETCH and _longest_stretch(piece[0]) >= _STRETCH:
            reason = f"{_STRETCH} words in a row without a small word"
            return Verdict("word_salad", reason, piece.span())
    return None


def _longest_stretch(text: str) -> int:
    longest = run = 0
    for word in _WORD.findall(text.lower()):
        run = 0 if word in _SMALL_WORDS else run + 1
        longest = max(longest, run)
    return longest


_SALAD = "River the of green and to jumping was blue the and house of is the to a from a tree "
_RIGHT = (
    "The river rose in the night, and by the morning it had reached the old mill. Nobody slept. "
    "What he was, and who he was with, the papers did not say; and if they had, few would have "
    "read it. They carried what they could up the hill, and waited there for the sun. "
)

WORD_SALAD = Rule(
    "word_salad",
    "drop",
    "words in an order that no sentence has (`the of`, or 45 in a row without a small word)",
    _word_salad,
    positives=answers(_SALAD * 4, "green lamp river tall swim button cloud seven eat glass " * 6),
    negatives=answers(
        _RIGHT,
        "Rhine, Danube, Elbe, Oder, Main, Neckar, Mosel, Weser, Isar, Inn, Spree, Saale, Havel, "
        "Ems, Lech, Lahn, Ruhr, Eder, Fulda, Werra, Leine, Aller, Naab, Regen, Iller, Enz, Kocher, "
        "Jagst, Nahe, Saar, Sieg, Lippe, Hase, Hunte, Peene, Warnow, Trave, Alster, Bode, Unstrut, "
        "Mulde, Pegnitz, Rednitz, Tauber, Vils, Salzach.",
        "He was the one of whom they spoke, the to and fro of it, a by and by. " + _RIGHT,
    ),
)
