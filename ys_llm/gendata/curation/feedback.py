"""Responses that take the prompt as a text and judge it, where nobody asked for a review.

Chat models answer a text that holds no request with praise, a review, or an account of what the
text does. The opening sentences show it: they have a word for a text, or for what a reader of one
has done, beside a judgement, and no subject of their own.
"""

import re
from itertools import pairwise

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict
from ys_llm.gendata.curation.text import is_quoted, sentence_starts

JUDGED = (
    r"(?:(?:well|thought)[- ]\w+|good|great|excellent|fantastic|wonderful|terrific|outstanding|"
    r"superb|brilliant|impressive|beautiful(?:ly)?|lovely|nice(?:ly)?|perfect(?:ly)?|thoughtful|"
    r"nuanced|balanced|interesting|fascinating|compelling|engaging|profound|insightful|thorough|"
    r"comprehensive|complete|detailed|extensive|clear(?:ly)?|concise|helpful|useful|practical|"
    r"actionable|informative|valuable|relevant|important|essential|timely|solid|strong|sound|fair|"
    r"valid|reasonable|accurate|correct(?:ly)?|right|effective(?:ly)?|successful(?:ly)?|"
    r"realistic|creative|remarkable|vivid|rich|lively|clever|spot on|several|"
    r"various|vague|weak|incomplete|unclear|repetitive)"
)
WHOLE = (
    r"(?:text|article|essay|piece|passage|paragraph|response|answer|reply|list|guide|overview|"
    r"summary|outline|resource)"
)
TEXT = (
    rf"(?:{WHOLE}|message|set|explanation|breakdown|information|advice|tips?|scenario|suggestions?|"
    r"strateg(?:y|ies)|steps|points?|recommendations?|analysis|arguments?|"
    r"discussion|exploration|examples?|description|framework|plan|approach|perspective|insights?|"
    r"ideas?|question|prompt|excerpt|topic|request|reminder|guidelines|instructions|content|collection|"
    r"sections?|account|assessment|observations?|conclusion|definition|reflection|thought "
    r"experiment|decision|reasoning|details|writing|emphasis|ways|signs|indicators|job|work)"
)
_SAYS = (
    r"(?:provides?|offers?|highlights?|covers?|outlines?|presents?|gives?|emphasi[sz]es?|"
    r"describes?|discuss(?:es)?|explains?|lists?|contains?|includes?|touch(?:es)?|captures?|"
    r"address(?:es)?|demonstrates?|illustrates?|shows?|suggests?|focus(?:es)?|follows?|begins?|"
    r"concludes?|serves?|explores?|raises?|advises?|notes?|reads?|appears?|seems?)"
)
_READER_DID = (
    r"(?:provided|offered|highlighted|covered|outlined|presented|given|emphasi[sz]ed|described|"
    r"discussed|explained|listed|included|touched|captured|addressed|demonstrated|illustrated|"
    r"shown|suggested|explored|raised|shared|mentioned|identified|summari[sz]ed|distilled|broken|"
    r"weighed|made|written|done|hit|put|created|compiled|started|articulated|taken|asked|posed|"
    r"copied|pasted|quoted)"
)
_ADVERBS = r"(?:(?:\w+ly|already|also|just|really|done|so|indeed)\s+){0,3}"
_NO_STOP = r"[^.!?\n]"

_PRAISE = re.compile(
    rf"[\s*_#]*(?:(?:wow|yes|oh|not at all)\b[,!.]?\s*)?(?:what\s+)?(?:an?\s+)?(?:very\s+|truly\s+|"
    rf"really\s+|quite\s+)?(?:{JUDGED}\b,?\s+(?:and\s+)?(?:\w+\s+)?){{1,3}}(?:\w+\s+){{0,2}}?{TEXT}\b",
    re.I,
)
_IS_A_TEXT = re.compile(
    rf"[\s*_#]*(?:(?:this|that|it)(?:['’]s|\s+(?:is|was|seems|appears|looks))|(?:these|those)\s+are)\b"
    rf"{_NO_STOP}{{0,80}}?\b{TEXT}\b",
    re.I,
)
_TEXT_SAYS = re.compile(
    rf"[\s*_#]*(?:(?:overall|additionally|similarly),?\s+)?(?P<whose>this|these|the|your|each)\s+"
    rf"(?:[\w-]+\s+){{0,4}}?{TEXT}\b(?P<given>{_NO_STOP}{{0,40}}?\b(?:provided|listed|outlined|"
    rf"mentioned|presented|above|suggested)\b)?{_NO_STOP}{{0,100}}?\b(?:{_SAYS}|is|are)\b",
    re.I,
)
_READER = re.compile(
    rf"{_NO_STOP}{{0,60}}?\byou(?:['’]ve|\s+have|['’]re)?\s+{_ADVERBS}(?:{_READER_DID}|highlighting|"
    rf"referencing|presenting|describing|raising)\b{_NO_STOP}{{0,80}}",
    re.I,
)
_YOUR_TEXT = re.compile(rf"\byour\s+(?:[\w-]+\s+){{0,3}}?{TEXT}\b", re.I)
_A_WHOLE_SAYS = re.compile(rf"[\s*_#]*(?:this|the)\s+(?:\w+\s+)?{WHOLE}\s+{_SAYS}\b", re.I)
_FROM_THE_WHOLE = re.compile(rf"\b(?:from|in|of)\s+(?:this|the|your)\s+{WHOLE}\b", re.I)
_RECAP = re.compile(
    r"\bhere(?:['’]s|\s+is|\s+are)\s+(?:an?|some|the)\s+(?:\w+\s+){0,2}(?:summary|recap|breakdown|"
    r"takeaways|strengths|points)\b|\bto\s+(?:recap|summari[sz]e|confirm)\b",
    re.I,
)
_I_JUDGE = re.compile(
    r"\bi\s+(?:\w+ly\s+)?(?:appreciate|agree with|like|love)\s+(?:how\s+you\b|your\b|the\s+"
    r"(?:nuanced|emphasis|way\s+you))|\bimpressed\s+(?:by|with)\s+(?:your|the)\b"
    r"|\bsuggestions?\s+(?:to|for)\s+(?:improv|enhanc)\w+",
    re.I,
)
_NO_QUESTION = re.compile(
    r"\bthere\s+(?:was|is)\s+no\s+(?:\w+\s+){0,2}question\b|\bi\s+(?:already\s+)?(?:provided|gave)\s+"
    r"(?:an?|the|my)\s+(?:response|answer)\b|"
    r"\bno\s+need\s+to\s+(?:elaborate|explain|add|expand)\b|\bi\s+(?:don['’]t|do\s+not)\s+(?:see|"
    r"have)\s+(?:an?|any)\s+(?:\w+\s+){0,2}questions?\b|\bi(?:['’]m|\s+am)\s+here\s+to\s+(?:assist|"
    r"help)\b|\bwe(?:['’]re|\s+are|\s+have(?:n['’]t)?)\s+(?:\w+\s+){0,2}(?:on\s+the\s+same\s+page|"
    r"discuss\w*\s+(?:an?|any))",
    re.I,
)
_JUDGEMENT = re.compile(rf"\b{JUDGED}\b", re.I)

_REQUEST = re.compile(
    r"\W*(?:please\s+|kindly\s+)?(?:(?:can|could|would|will)\s+(?:you|i)\b|i\s+(?:want|need|would\s+"
    r"like)\b|help\s+me\b|(?:write|rewrite|tell|describe|summari[sz]e|explain|give|list|create|"
    r"compose|draft|convert|transform|translate|identify|consider(?:ing)?|make|generate|compare|"
    r"analy[sz]e|find|show|provide|define|discuss|imagine|pretend|act|answer|complete|continue|"
    r"classify|extract|correct|fix|design|develop|outline|paraphrase|shorten|read|solve|calculate|"
    r"use|name|suggest|review|critique|assess|evaluate|grade|rate|proofread|improve|edit|judge|"
    r"comment)\b)",
    re.I,
)
_ASKED_TO_JUDGE = re.compile(
    r"(?:^|[.!?\n:]\s*)(?:please\s+)?(?:(?:can|could|would|will)\s+you\s+(?:please\s+)?)?(?:review|"
    r"critique|assess|evaluate|grade|rate|proofread|improve|judge|comment\s+on|summari[sz]e)\s+"
    r"(?:it|this|that|the|my|our|these)\b"
    r"|\b(?:any|some|your|honest|give\s+me|for|want|need|like)\s+(?:\w+\s+)?(?:feedback|critique|"
    r"review|criticism)\b(?:\s+on\b|[.?!]|\s*$)"
    r"|\b(?:is|are|was|does)\s+(?:my|this|our|the\s+following)\b[^.!\n]{0,80}\?"
    r"|\bwhat\s+do\s+you\s+think\s+(?:of|about)\s+(?:it|this|my|our)\b"
    r"|\bam\s+i\s+(?:right|correct)\b",
    re.I,
)
_LETTER = re.compile(r"\W*(?:dear|hi|hello|hey|to whom)\b", re.I)  # its reply may say "your text"
_TEXT_CHARS = 100  # a shorter prompt is a remark, which may be praised in passing
_ENDS = 300  # characters of a prompt, at both ends, that say what is asked
_HEAD = 700
_SENTENCES = 4
_ENOUGH = 2


def _feedback(record: Record) -> RuleResult:
    if not holds_no_request(record.prompt):
        return None
    head = record.response.lstrip()[:_HEAD]
    start = len(record.response) - len(record.response.lstrip())
    points, first = 0, ""
    for sentence in opening(head):
        found = _points(sentence)
        first = first or (sentence.strip() if found else "")
        points += found
    if points < _ENOUGH:
        return None
    span = (start, start + len(first))
    return Verdict("feedback", f"reviews the prompt: {first[:60]!r}", span)


def holds_no_request(prompt: str) -> bool:
    """Whether a prompt is a text: long enough, and neither a question nor an order."""
    text = prompt.strip()
    if len(text) < _TEXT_CHARS or _REQUEST.match(text):
        return False
    first = re.split(r"(?<=[.!?])\s|\n", text, maxsplit=1)[0]
    if first.endswith("?") or _LETTER.match(text):
        return False
    return not _ASKED_TO_JUDGE.search(f"{text[:_ENDS]}\n{text[-_ENDS:]}")


def opening(text: str) -> list[str]:
    """The first sentences of a text, at most four, up to its first list or heading."""
    prose = re.split(r"\n[ \t]*(?:[-*+] |\d+[.)] |#|\*\*|\|)", text, maxsplit=1)[0]
    starts = sorted({0, *sentence_starts(prose), *(m.end() for m in re.finditer(r"\n\s*", prose))})
    bounds = [*starts, len(prose)]
    pieces = [prose[a:b] for a, b in pairwise(bounds) if not is_quoted(prose, a)]
    return [piece for piece in pieces if piece.strip()][:_SENTENCES]


def _points(sentence: str) -> int:
    """How clearly a sentence speaks of the prompt as a text: 0, 1 or 2."""
    judged = _JUDGEMENT.search(sentence) is not None
    if _I_JUDGE.search(sentence) or _NO_QUESTION.search(sentence):
        return 2
    if _A_WHOLE_SAYS.match(sentence):
        return 2
    if _PRAISE.match(sentence):
        return 1
    found = [0]
    if _IS_A_TEXT.match(sentence):
        found.append(2 if judged else 1)
    if match := _TEXT_SAYS.match(sentence):
        plain = not match["given"] and match["whose"].lower() != "your"
        found.append(2 if judged or not plain else 1)
    if match := _READER.match(sentence):
        found.append(2 if re.search(rf"\b{TEXT}\b", match[0], re.I) else 1)
    if any(part.search(sentence) for part in (_YOUR_TEXT, _FROM_THE_WHOLE, _RECAP)):
        found.append(1)
    return max(found)


_LAKE = "Rivers matter. " + "They carry water to the fields and boats to the towns. " * 4
FEEDBACK = Rule(
    "feedback",
    "fix",  # in the order of the fixes: before an opening is taken away
    "a response that takes the prompt as a text and judges it, unasked, is dropped",
    _feedback,
    positives=(
        Record(_LAKE, "Your guide is well structured, and I especially like the boats."),
        Record(_LAKE, "This is a comprehensive and clear guide. Your points are right."),
        Record(_LAKE, "You've provided a fine list of what rivers do, and useful advice."),
        Record(_LAKE, "The passage gives a vivid account. It offers several clear reasons."),
        Record(_LAKE, "A lovely piece! I particularly like how you end with the towns."),
        Record(_LAKE, "It seems like you've written a short summary. I don't see any question."),
        Record(_LAKE, "You've copied and pasted an excerpt about rivers. Shall I write one?"),
        Record(_LAKE, "You're presenting a classic argument for rivers!"),
        Record(_LAKE, "It seems I provided a response earlier. There was no question, so I wait."),
    ),
    negatives=(
        Record(f"Review this text. {_LAKE}", "Your guide is well structured."),
        Record(f"{_LAKE} What do you think of my text?", "Your text is clear and useful."),
        Record(f"Summarize: {_LAKE}", "The text describes why rivers are important and useful."),
        Record(_LAKE, "Rivers also shape the valleys that they run through."),
        Record(f"Dear Anna, {_LAKE}", "Dear Tom, your points on rivers are good and useful."),
        Record("Tell me about rivers.", "Your river is calling, said the wind, and it is cold."),
    ),
)
