"""Corrupt text: decoded with a wrong encoding, in a wrong language, stuck in a loop."""

import re
import zlib
from collections import Counter

import numpy as np

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers
from ys_llm.gendata.curation.text import is_verse

_MIN_FOREIGN_WORDS = 6
_FOREIGN_SHARE = 0.1  # of all words; in English text, under 1 % match
_OTHER_LETTER = re.compile("[\u0370-\u1fff\u2e80-\ud7ff]")  # from Greek on; CJK
_OTHER_LETTERS = 0.2  # of all characters
_COMMON = (" the ", " and ", " to ", " of ")
_CHARS_PER_COMMON = 120
_LANGUAGE_CHARS = 6000
_ENGLISH = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "a",
        "in",
        "is",
        "it",
        "that",
        "for",
        "was",
        "on",
        "with",
        "as",
        "he",
        "she",
        "they",
        "you",
        "are",
    ]
)
_FOREIGN = {
    "Spanish": "el la los las de que y en un una por con para es del se no su como más",
    "French": "le la les des et est un une du que dans qui pour sur pas avec ce il elle au",
    "German": "der die das und ist nicht ein eine zu den mit von auf für im dem sich auch es ich",
    "Italian": "il la che di e un una per non con del della sono gli le nel si anche come più",
    "Portuguese": "o a os as de que e em um uma por com para não do da se no na como mais",
    "Dutch": "de het een en van ik niet is dat op te zijn voor met die aan er maar om ook",
}
_WORDS = {
    name: frozenset(word for word in words.split() if len(word) > 1)
    - _ENGLISH
    - {"no", "die", "me", "do", "per", "come", "para", "dans", "den", "van", "an"}
    for name, words in _FOREIGN.items()
}
_ANY_FOREIGN = frozenset().union(*_WORDS.values())
_ASKED_FOR = re.compile(
    r"\btranslat|\bin (?:spanish|french|german|italian|portuguese|dutch|latin|chinese|japanese|"
    r"russian|arabic|hindi|korean|greek|hebrew)\b",
    re.I,
)

_SHORTEST_LOOP = 120  # characters
_SQUEEZED = 0.4  # of its size; prose that is long enough to have loops compresses to 0.45 to 0.6
_LONGEST_UNIT = 60  # words
_TIMES = 4  # in a row; a chorus appears twice
_LOOP_WORDS = 24
_SENTENCE_TIMES = 8
_SENTENCE_WORDS = 5
_SENTENCE = re.compile(r"[^.!?\n]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"\d+")
_RUN_WORDS = 8
_RETELLING_WORDS = 300
_RETOLD_SHARE = 0.1  # of all 8-word runs; in a good story under 0.01


def _mojibake(record: Record) -> RuleResult:
    prompt, response = _repaired(record.prompt), _repaired(record.response)
    if "\ufffd" in response or "\ufffd" in prompt:
        at = max(0, response.find("\ufffd"))
        return Verdict("mojibake", "a character was lost (U+FFFD)", (at, at + 1))
    if (prompt, response) == (record.prompt, record.response):
        return None
    return Record(prompt, response)


def _repaired(text: str) -> str:
    """The text with wrongly decoded characters put right, line by line."""
    if text.isascii():
        return text
    return "\n".join(map(_repaired_line, text.split("\n")))


def _repaired_line(line: str) -> str:
    if line.isascii():
        return line
    from ftfy import fix_encoding  # here, because few texts need it

    fixed = fix_encoding(line)
    return fixed if len(fixed) < len(line) else line  # every fix makes a record shorter


def _language(record: Record) -> RuleResult:
    response = record.response
    found = _foreign(response)
    if not found or _ASKED_FOR.search(record.prompt) or found == _foreign(record.prompt):
        return None
    return Verdict("language", f"looks like {found}, not English", (0, len(response)))


def _foreign(text: str) -> str:
    """The language with more function words in the text than English; "" if there is none."""
    text = text[:_LANGUAGE_CHARS]
    if not text.isascii() and len(_OTHER_LETTER.findall(text)) > _OTHER_LETTERS * len(text):
        return "another script"
    if _is_english(text):
        return ""
    words = text.lower().split()
    if sum(map(_ANY_FOREIGN.__contains__, words)) < max(_MIN_FOREIGN_WORDS, len(words) / 10):
        return ""
    counts = {name: sum(map(own.__contains__, words)) for name, own in _WORDS.items()}
    name = max(counts, key=counts.__getitem__)
    enough = counts[name] >= max(_MIN_FOREIGN_WORDS, _FOREIGN_SHARE * len(words))
    return name if enough and counts[name] > sum(map(_ENGLISH.__contains__, words)) else ""


def _is_english(text: str) -> bool:
    """A quick test: true is reliable, false is not."""
    return sum(map(text.count, _COMMON)) * _CHARS_PER_COMMON > len(text)


def _repetition(record: Record) -> RuleResult:
    response = record.response
    if len(response) < _SHORTEST_LOOP:
        return None
    data = response.encode("utf-8", "replace")
    if len(zlib.compress(data, 1)) > _SQUEEZED * len(data):
        return None
    words = response.split()
    reason = _loop(words) or _refrain(response) or _retelling(response, words)
    return Verdict("repetition", reason, (0, len(response))) if reason else None


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


def _refrain(response: str) -> str:
    """One sentence many times, not necessarily in a row."""
    masked = _NUMBER.sub("0", response)
    sentences = Counter(
        sentence
        for sentence in map(str.strip, _SENTENCE.findall(masked))
        if "|" not in sentence and len(_WORD.findall(sentence)) >= _SENTENCE_WORDS
    )
    if not sentences:
        return ""
    sentence, times = sentences.most_common(1)[0]
    return f"{sentence[:60]!r} {times} times" if times >= _SENTENCE_TIMES else ""


def _retelling(response: str, words: list[str]) -> str:
    """Prose that repeats itself word for word; verse and code may."""
    if len(words) < _RETELLING_WORDS or "```" in response or is_verse(response):
        return ""
    runs = list(zip(*(words[offset:] for offset in range(_RUN_WORDS)), strict=False))
    share = 1 - len(set(runs)) / len(runs)
    return f"{share:.0%} of it is repeated word for word" if share >= _RETOLD_SHARE else ""


MOJIBAKE = Rule(
    "mojibake",
    "fix",
    "UTF-8 decoded with a wrong encoding is repaired; a record with lost characters is dropped",
    _mojibake,
    positives=answers(
        "It’s a rivâ€¦ no, a lake.",
        "The cafÃ© by the river â€“ closed.",
        "A lost \ufffd character.",
        "He said â€œyesâ€\x9d by the river.",
        "Itâ€™s ÃƒÂ© twice over.",
        "A ðŸ¦Š swam.",
    ),
    negatives=answers(
        "The café by the river – open…",
        "Pâtisserie, crème brûlée, naïve Ångström.",
        "São Paulo, 10 °C, £5 – “yes” 🦊 ½ × 2 → 1",
    ),
)
LANGUAGE = Rule(
    "language",
    "drop",
    "a response that is not English, detected by function words and letters",
    _language,
    positives=answers(
        "El río es largo y el agua de la montaña llega en una hora a los campos de la ciudad.",
        "Der Fluss ist lang, und das Wasser ist nicht kalt, aber die Kinder sind auf dem Eis.",
        "Река течёт к морю, и на её берегах стоят города и деревни.",
    ),
    negatives=(
        *answers("La Seine, the river of Paris, is called la reine de France by the old people."),
        Record("Translate into German: the river.", "Der Fluss ist das, und der ist nicht die."),
    ),
)
REPETITION = Rule(
    "repetition",
    "drop",
    "a loop: the same words four times or more in a row, or one sentence eight times or more",
    _repetition,
    positives=answers(
        "The river. " + "It flows and it flows to the sea. " * 12,
        "and " * 60,
        "".join(f"Number {n}. The river goes down to the sea.\n" for n in range(30)),
    ),
    negatives=answers(
        "Row, row, row your boat,\nGently down the stream.\n\n" * 2,
        "| 1 | 2 | 3 |\n" * 20,
        "The river flows. " * 3,
    ),
)
