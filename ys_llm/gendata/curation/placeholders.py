"""Unfilled slots of templates, in prompts and responses."""

import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers, with_response
from ys_llm.gendata.curation.structure import is_code, without_code
from ys_llm.gendata.curation.text import sentence_starts

_SLOT = re.compile(r"\[([^\[\]\n]{2,80})\](?!\()|<((?:your|insert|enter)[ _][^<>\n]{1,60})>", re.I)
_ASKS = re.compile(
    r"(?:an?\ )?(?:your|insert|enter|add|fill|specific|particular|related|relevant|similar|notable|"
    r"recent|another|e\.g\.)\b",
    re.I | re.X,
)
_UNKNOWN = re.compile(
    r"\b(?:name|title|topic|team|author|player|opponent|event|location|character|protagonist|"
    r"candidate|leader|company|brand|client|manager|field|policy|issue|key (?:figure|point)|figure|"
    r"party|sport|time ?frame|date|city|state|country|school|situation|thing|commitment|skill|"
    r"politician|president|website|email|phone number|address|product|organi[sz]ation|artist|"
    r"subject|number of|link|url|year|position)s?(?: [A-Z1-9])?\Z|\A\w+/\w+\Z|\be\.g\.",
    re.I,
)
_DIRECTION = re.compile(
    r"\b(?:pause|music|sound|laugh\w*|applause|segment|intro|outro|cut to|fades?|beat|silence|sfx|"
    r"awkward|scene|enter(?:s|ing)?|exits?|transition|jingle|commercial|clip|effects?)\b",
    re.I,
)
_SHELL = re.compile(r"^\s*(?:\$ |> |#! ?)|\b(?:curl|wget|git|pip|npm|docker|export|ssh)\b | --?\w")
_ASKED_FOR = re.compile(
    r"\b(?:templates?|placeholders?|slots?|blanks?|brackets?|fill[- ]in|form letter)\b|\[", re.I
)
_QUOTE = re.compile('["“”]')
_SPOKEN = re.compile(r"\]?:")  # [Host]: is a speaker
_PHRASE_CHARS = 200
_SHORT_LINE = 120  # characters; a shorter line goes as a whole
_MOST_LOST = 0.34  # of the response; beyond it, the template was not filled at all
_MOST_SLOTS = 5


def _placeholder(record: Record) -> RuleResult:
    """Take out a slot with its line or sentence; drop what is mostly slots."""
    if found := _slots(record.prompt):
        text = record.prompt[found[0][0] : found[0][1]]
        return Verdict("placeholder", f"{text} in the prompt", (0, 0))
    response = record.response
    if _ASKED_FOR.search(record.prompt):
        return None
    slots = _slots(response)
    if not slots:
        return None
    spans = [_carrier(response, slot) for slot in slots]
    pieces, at = [], 0
    for start, end in spans:
        if start >= at:
            pieces.append(response[at:start])
            at = end
    kept = "".join([*pieces, response[at:]])
    text = response[slots[0][0] : slots[0][1]]
    reason = Verdict("placeholder", f"{text} in the response", slots[0])
    if len(slots) > _MOST_SLOTS or len(response) - len(kept) > _MOST_LOST * len(response):
        return reason
    mended = with_response(record, kept, "placeholder")
    return reason if mended is None or _slots(kept) else mended


def _slots(text: str) -> list[tuple[int, int]]:
    if ("[" not in text and "<" not in text) or is_code(text):
        return []
    prose = without_code(text)
    return [m.span() for m in _SLOT.finditer(prose) if _is_slot(m, prose)]


def _is_slot(match: re.Match[str], prose: str) -> bool:
    begin = prose.rfind("\n", 0, match.start()) + 1
    end = prose.find("\n", match.end())
    line = prose[begin : end if end >= 0 else len(prose)]
    if match.start() and prose[match.start() - 1].isalnum():
        return False  # row[name] is code
    if _SHELL.search(line) or _is_in_phrase(match, begin, begin + len(line), prose):
        return False
    return _is_unfilled(match, prose)


def _is_unfilled(match: re.Match[str], prose: str) -> bool:
    if match[2] is not None:
        return True
    if _DIRECTION.search(match[1]):
        return False
    if _ASKS.match(match[1]) and len(match[1].split()) > 1:
        return True
    if len(match[1].split()) > 5 or not _UNKNOWN.search(match[1]):
        return False
    return "name" in match[1].lower() or not _SPOKEN.match(prose, match.end())


def _is_in_phrase(match: re.Match[str], begin: int, end: int, prose: str) -> bool:
    """Inside a short quotation: a phrase for the reader to fill in."""
    before = _QUOTE.split(prose[begin : match.start()])
    after = _QUOTE.split(prose[match.end() : end], 1)
    short = len(before[-1]) + len(after[0]) < _PHRASE_CHARS
    return len(before) % 2 == 0 and len(after) == 2 and short


def _carrier(text: str, slot: tuple[int, int]) -> tuple[int, int]:
    """The span to take out: the sentence of the slot, or its line if that is short or a list."""
    begin = text.rfind("\n", 0, slot[0]) + 1
    end = text.find("\n", slot[1])
    end = len(text) if end < 0 else end
    line = text[begin:end]
    starts = [begin + start for start in sentence_starts(line)]
    sentence = max(start for start in starts if start <= slot[0])
    stop = min((start for start in starts if start > slot[0]), default=end)
    if (sentence, stop) == (begin, end) or (len(starts) == 1 and len(line) < _SHORT_LINE):
        return begin, min(len(text), end + 1)
    return sentence, stop


_HOST = "Welcome to the show about rivers, which we love. "
PLACEHOLDER = Rule(
    "placeholder",
    "fix",
    "an unfilled slot ([Name], [insert ...]): its sentence or line is removed; a response that is "
    "mostly slots, or a prompt with one, is dropped",
    _placeholder,
    positives=(
        *answers(f"{_HOST}I'm your host, [Name]. Let us row.", "We met [Team Name] there."),
        *answers("Rivers run to the sea, slowly.\nNext: [insert chapter title]\n" + _HOST * 3),
        Record("What is [specific theme, e.g. love] in Hamlet?", "It is central."),
    ),
    negatives=answers(
        "[INTRO MUSIC]\n\n[Host]: Welcome to the river.",
        "[The crowd cheers as the boats go by.]",
        "Use `[name]` for a column, and `<your name>` for a value.",
        "Some say so [1], some do not [sic].",
        'Try this: "I feel wet when we talk about [topic]."',
        "[Segment 2: Key Players]\n\nHost: The river.\n\n[Insert awkward pause]\n\nGuest: Yes.",
        "Take row[name] of the river.",
        "Type this by the river:\n\n$ ys login --token <your token>",
    ),
)
