"""Corrupt text: decoded with a wrong encoding, or in another language than its prompt."""

import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers

_MIN_FOREIGN_WORDS = 6
_MIN_PROMPT_WORDS = 2  # of a short prompt
_DRIFT_CHARS = 240  # of each part, before a change of language in mid-text is looked for
_DRIFT_WORDS = 10
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
    "Spanish": "el la los las de que y en un una por con para es del se su cuál "
    "está son pero muy sus más",
    "French": "le la les des et est un une du que dans qui pour sur pas avec ce il elle au quelle "
    "sont mais nous vous leur ont",
    "German": "der die das und ist nicht ein eine zu den mit von auf für im sich auch es ich wie "
    "sind aber dem wir ihr bei nach aus wird",
    "Italian": "il la che di e un una per non con del della sono gli le nel si anche come più qual",
    "Portuguese": "o a os as de que e em um uma por com para não do da se no na como mais qual é",
    "Dutch": "de het een en van ik niet is dat op te zijn voor met die aan er maar om ook wat",
    "Polish": "i w na z do się nie jest że to jak od przez dla co po czy są był tak ale",
    "Swedish": "och att det som en är av för på med den inte till har om ett vad jag kan var",
    "Danish": "og at det som en er af for på med den ikke til har om et hvad jeg kan der",
    "Turkish": "ve bir bu için ile da de çok olarak olan ne gibi daha kadar en var mi nedir",
}
_WORDS = {
    name: frozenset(word for word in words.split() if len(word) > 1)
    - _ENGLISH
    - {"no", "die", "me", "do", "per", "come", "para", "dans", "den", "van", "an"}
    for name, words in _FOREIGN.items()
}
_ANY_FOREIGN = frozenset().union(*_WORDS.values())
_LETTERS = re.compile(r"[^\W\d_]+")
_ASKED_FOR = re.compile(
    r"\btranslat|\bin (?:spanish|french|german|italian|portuguese|dutch|latin|chinese|japanese|"
    r"russian|arabic|hindi|korean|greek|hebrew)\b",
    re.I,
)


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
    """The pair is judged: an answer in its prompt's language is right, and stays in it."""
    prompt, response = record.prompt, record.response
    if _ASKED_FOR.search(prompt):
        return None
    whole = (0, len(response))
    asked = _foreign(prompt, least=_MIN_PROMPT_WORDS)
    found = _foreign(response)
    if found and found != asked:
        return Verdict(
            "language", f"looks like {found}, not {asked or 'English'}", (0, len(response))
        )
    if change := _drift(response, asked):
        return Verdict("language", change, whole)
    return None


def _drift(response: str, asked: str) -> str:
    """How the language changes between the first and the last part of a text, if it does."""
    part = min(len(response) // 3, _LANGUAGE_CHARS)
    if part < _DRIFT_CHARS or (not asked and response.isascii() and _is_english(response[-part:])):
        return ""
    first = _foreign(response[:part], least=_DRIFT_WORDS)
    last = _foreign(response[-part:], least=_DRIFT_WORDS)
    english_end = bool(first) and not last and _is_english(response[-part:])
    english_start = bool(last) and not first and _is_english(response[:part])
    if (first and last and first != last) or english_end or english_start:
        return f"changes from {first or 'English'} to {last or 'English'}"
    return ""


def _foreign(text: str, least: int = _MIN_FOREIGN_WORDS) -> str:
    """The language with more function words in the text than English; "" if there is none."""
    text = text[:_LANGUAGE_CHARS]
    if not text.isascii() and len(_OTHER_LETTER.findall(text)) > _OTHER_LETTERS * len(text):
        return "another script"
    if _is_english(text):
        return ""
    words = _LETTERS.findall(text.lower())
    if sum(map(_ANY_FOREIGN.__contains__, words)) < max(least, len(words) / 10):
        return ""
    counts = {name: sum(map(own.__contains__, words)) for name, own in _WORDS.items()}
    name = max(counts, key=counts.__getitem__)
    enough = counts[name] >= max(least, _FOREIGN_SHARE * len(words))
    return name if enough and counts[name] > sum(map(_ENGLISH.__contains__, words)) else ""


def _is_english(text: str) -> bool:
    """A quick test: true is reliable, false is not."""
    return sum(map(text.count, _COMMON)) * _CHARS_PER_COMMON > len(text)


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
    "a response in another language than its prompt, or one that changes it in mid-text",
    _language,
    positives=answers(
        "El río es largo y el agua de la montaña llega en una hora a los campos de la ciudad.",
        "Der Fluss ist lang, und das Wasser ist nicht kalt, aber die Kinder sind auf dem Eis.",
        "Река течёт к морю, и на её берегах стоят города и деревни.",
        "The river runs to the sea, and on it are the boats of the town. " * 5
        + "Der Fluss ist lang, und das Wasser ist nicht kalt, aber die Kinder sind auf dem Eis. "
        * 5,
    ),
    negatives=(
        *answers("La Seine, the river of Paris, is called la reine de France by the old people."),
        Record(
            "Was ist die Hauptstadt von Österreich?",
            "Die Hauptstadt von Österreich ist Wien, und das ist auch die größte Stadt.",
        ),
        Record(
            "¿Cuál es la capital de España?",
            "La capital de España es Madrid, que es una de las ciudades más grandes de Europa.",
        ),
        Record(
            "Quelle est la capitale de la France ?",
            "La capitale de la France est Paris, qui est une ville sur la Seine avec des ponts.",
        ),
        Record("中国的首都是哪里？", "中国的首都是北京，是一座有三千年历史的城市。"),
        Record("Translate into German: the river.", "Der Fluss ist das, und der ist nicht die."),
    ),
)
