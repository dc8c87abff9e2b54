"""Openings of chat models: a preamble, a refusal, a repetition of the prompt."""

import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers, with_response
from ys_llm.gendata.curation.text import is_quoted

_HEAD = 700  # characters; an opening is never longer
_COPIED_WORDS = 8  # in a row: two texts on one subject do not share these by chance
_COPIED_SHARE = 0.65  # of the response: not an answer of its own
_ECHOED_SHARE = 0.4  # of the response, if it also begins like the prompt
_ECHOED_WORDS = 18
_FIRST_LINE = 120  # characters that an echo may omit from the start of the prompt
_ASKS_FOR_TEXT = re.compile(
    r"\b(?:rewrite|correct|proofread|convert|transform|format|fix|repeat|copy|extract|spell)\b",
    re.I,
)
_LONG_ENOUGH = 40  # words: a shorter prompt or response may legitimately repeat the other

_HERE = r"(?:here(?:['’]s|\ is|\ are)|below\ (?:is|are)|the\ following\ (?:is|are))\b"
_MADE = (
    r"\b(?:scene|list|quer(?:y|ies)|SQL|script|explanation|summary|overview|answer|response|"
    r"version|paraphrase|rewrite|guide|breakdown|solution|outline|how\ (?:you|to))\b"
)
_EAGER = r"(?:sure(?:\ thing)?|certainly|of\ course|absolutely|definitely|no\ problem|you\ got\ it)"
_RIDDLE = r"(?:riddle|joke|limerick|pun|doozy|brain[- ]?(?:twister|teaser)|puzzle|tune|one)\b"
FINE = (
    r"(?:very\ |truly\ |really\ )?(?:great|good|excellent|fantastic|wonderful|thought-?ful|nuanced|"
    r"interesting|thorough|comprehensive|detailed|insightful|helpful|practical|informative|"
    r"difficult|important|complex|tough|fascinating|timely|profound|valid|useful|"
    r"well-(?:written|structured|rounded|thought-out|organized))"
)
PRAISED = (
    r"(?:question|summary|response|answer|list|set|example|overview|explanation|guide|reminder|"
    r"topic|request|prompt|idea|analysis|advice|exploration|breakdown|approach|resource|"
    r"points?|text|article|discussion|argument|perspective|tips|guidelines|suggestions|"
    r"description|observation|thought\ experiment)"
)
_LINE_END = r"[ \t*_]*(?:\n|\Z)"

_CAVEAT = (
    r"(?:however,\ )?i(?:['’]m\ afraid|\ am\ afraid|\ (?:must|have\ to|need\ to|want\ to|should)\ "
    r"(?:inform|note|point|clarify|mention|correct)|\ think\ there|\ couldn['’]t\ find)\b"
)
_PREAMBLE = re.compile(
    rf"""[\s*_#-]*(?:
      (?:{_EAGER}[!,.]\s+)?{_HERE}[^\n]{{0,400}}:{_LINE_END}
    | (?:{_EAGER}[!,.]\s+)?{_HERE}[^\n]{{0,200}}?{_MADE}[^\n]{{0,300}}[.!"”?]{_LINE_END}
    | {_EAGER}(?:!|[,.]\ (?=i\b|here\b|let\b|below\b))(?:[^\n]{{0,300}}[:!]{_LINE_END})?
    | (?:{_EAGER}[!,.]\s+)?i(?:['’]d|\ would)\ be\ (?:more\ than\ )?(?:happy|glad|delighted)\ to\b
      [^\n]{{0,300}}[:!.]{_LINE_END}
    | congratulations\ on\ [^\n.!?]{{0,120}}[.!]\s
    | i['’]ve\ got\ [^\n]{{0,40}}?{_RIDDLE}[^\n]{{0,120}}[:!?."]{_LINE_END}
    | [^\n:]{{1,80}}[!?]\ +(?:{_HERE}|here\ (?:it\ )?goes\b)[^\n]{{0,120}}:{_LINE_END}
    | (?:what|that(?:['’]s|\ is)|this\ is)\ an?\ {FINE}(?:,?\ (?:and\ )?[\w-]+){{0,3}}?
      \ {PRAISED}\b[^\n.!?:"]{{0,200}}[!.]\s
    | (?:an?\ )?{FINE}(?:,?\ (?:and\ )?[\w-]+){{0,2}}?\ {PRAISED}\b[^\n.!?:"]{{0,100}}!\s
    | you(?:['’]ve|\ have)\ (?:provided|outlined|highlighted|summari[sz]ed|covered|presented|
      captured|identified|raised|listed|shared|hit\ on)\b[^\n.!?:"]{{0,200}}[!.]\s
    | it\ (?:looks|seems)\ (?:like|as\ if|that)\ you(?:['’]ve|\ have)\ [^\n.!?:"]{{0,200}}[!.]\s
    | {_CAVEAT}[^\n]{{0,400}}:{_LINE_END}
    )\s*(?:(?:-{{3,}}|\*{{3,}}|_{{3,}})\s*\n\s*)?""",
    re.I | re.X,
)
_IN_A_STORY = re.compile(
    r"[\s*_#-]*(?:here(?:['’]s| is) (?:what (?!you|i\b)|the thing|the deal|where)|[\w ]{2,14}[!,.] "
    r"(?:cried|said|shouted|replied|answered|laughed|called|exclaimed|whispered|yelled|roared)\b)",
    re.I,
)

_VOICE = re.compile(
    r"""(?<=[\w)’'])(?:,|\ [–-])?\ (?:and|but|so)\ (?:don['’]t\ worry,?\ )?
    (?:i(?:['’]d|\ would)\ be\ (?:happy|glad)\ to|i['’]m\ (?:happy|glad|here)\ to|
      i['’]ll(?:\ try\ to|\ do\ my\ best\ to)?|let\ me(?:\ try\ to)?)
    \ (?:explain|break|simplify)\b[^\n.!?:]{0,80}(?:(?=[.!])|:(?=\n|$))""",
    re.I | re.X,
)
_SAYS_NOTHING = re.compile(  # what may be left of such a paragraph
    r"""[\w\ "“”'’-]{1,40}!(?:\s+(?:let\ me|i['’]ll(?:\ try\ to)?)\ (?:explain|break|simplify)\b
    [^\n.!?:]{0,80}[.!:]|\s+(?:it|that)['’]s\ an?\ \w+\ (?:topic|question|subject)[.!])""",
    re.I | re.X,
)
_ASKS_TO_EXPLAIN = re.compile(r"\W*(?:please )?(?:explain|describe|what|how|why)\b", re.I)
_RULE_LINE = re.compile(r"\n[ \t]*(?:-{3,}|\*{3,})[ \t]*\n\s*")
_NOT_ABLE = (
    r"(?:can['’]?t|can\ ?not|could(?:n['’]t|\ not)|won['’]t|will\ not|am\ (?:not\ able|unable)\ to|"
    r"['’]m\ (?:not\ able|unable)\ to)"
)
_ASKED = (
    r"(?:fulfil|write|creat|generat|help(?!\ but\b|\ \w+ing\b|ing\b)|assist|provid|answer|"
    r"respond|do\ that|engage|discuss|"
    r"continue|compl|verify|produc|fabricat|support|share|tell\ (?:you\ )?(?:a|that|this)\b|"
    r"make\ (?:a|that|up)\b|accommodate|participate|promote|perform|process|access)"
)
_REFUSAL = re.compile(
    rf"""[\s*_]*(?:(?:sorry|unfortunately|i['’]m\ (?:really\ |very\ |so\ )?sorry|i\ am\ sorry|
    i\ apologi[sz]e|i['’]m\ afraid)\b[^\n.!?]{{0,60}}?[,.]?\ ?(?:but\ |that\ )?)?
    i\ ?{_NOT_ABLE}\ (?:\w+ly\ )?{_ASKED}[^\n]*
    | [\s*_]*to\ (?:answer|provide|give)\b[^\n.!?]{{0,80}},\ i\ (?:would|['’]d)\ need\b[^\n]*""",
    re.I | re.X,
)


_CAVEATS = re.compile(_CAVEAT, re.I | re.X)
_INSTEAD = re.compile(
    r"\b(?:however|nevertheless|but|instead)\b[^\n]*?(?:\bi['’]ll\b|\bi (?:can|will|assume)\b|"
    r"\blet me\b|\bi['’]m assuming\b|\bhere(?:['’]s| is| are)\b|\bif you meant\b)"
    r"|\A\s*assuming you(?:['’]re| are| mean)\b[^\n]*\bhere(?:['’]s| is| are)\b",
    re.I,
)
_PART = re.compile(r"[ \t]*(?:\*\*|#|[-*+] |\d+[.)] )")
_AGREES = re.compile(
    r"[\s*_]*(?:yes, )?(?:that['’]s|you['’]re) (?:\w+ly )?(?:correct|right)[!.]\s+(?=[A-Z])", re.I
)


def _preamble(record: Record) -> RuleResult:
    response = record.response
    at = _refused_first(response) or _caveat(response)
    agrees = "?" not in record.prompt
    while match := _PREAMBLE.match(response[at : at + _HEAD]) or (
        _AGREES.match(response[at : at + _HEAD]) if agrees else None
    ):
        if _IN_A_STORY.match(response, at) or not match[0].strip():
            break
        at += match.end()
    if not response[at:].strip() and not record.prompt.strip():
        return None  # a paragraph of a text, which goes on
    left = response[at:].lstrip("\n") if at else response
    return with_response(record, _without_voice(record.prompt, left), "preamble")


def _without_voice(prompt: str, response: str) -> str:
    """Without the clause in which the first paragraph of an explanation says who explains."""
    if not _ASKS_TO_EXPLAIN.match(prompt):
        return response
    first, blank, _ = response[:_HEAD].partition("\n\n")
    rest = response[len(first) + len(blank) :]
    found = _VOICE.search(first)
    if found and not is_quoted(first, found.start()):
        stop = "." if found[0].endswith(":") else ""
        first = first[: found.start()] + stop + first[found.end() :]
    if blank and _SAYS_NOTHING.fullmatch(first):
        return rest.lstrip("\n")
    return first + blank + rest


def _caveat(response: str) -> int:
    """Start of the first part of an answer that doubts the prompt before it; 0 if none does."""
    end, instead = 0, False
    if not _CAVEATS.match(response.lstrip(" \n*_")[:_HEAD]):
        return 0
    for paragraph in re.finditer(r"[^\n]+\n*", response[:_HEAD]):
        if _PART.match(paragraph[0]):
            return end if instead else 0
        end, instead = paragraph.end(), instead or _INSTEAD.search(paragraph[0]) is not None
    return 0


def _refused_first(response: str) -> int:
    """Start of an answer that follows a refusal and a horizontal rule; 0 if there is none."""
    rule = _RULE_LINE.search(response, 0, _HEAD) if _REFUSAL.match(response[:_HEAD]) else None
    return rule.end() if rule and len(response) - rule.end() > _HEAD else 0


def _refusal(record: Record) -> RuleResult:
    match = _REFUSAL.match(record.response[:_HEAD])
    if not match or _refused_first(record.response):
        return None
    return Verdict("refusal", "the response begins by refusing", match.span())


def _echo(record: Record) -> RuleResult:
    """Cut the prompt from the start of the answer; drop an answer that copies further."""
    prompt, response = record.prompt.strip(), record.response.lstrip()
    if len(prompt) >= 12 and response.startswith(prompt):
        rest = response[len(prompt) :]
        if not rest.strip() or rest.lstrip(" \t*_").startswith("\n"):
            return with_response(record, rest.lstrip(" \t*_").lstrip("\n"), "echo")
    head = " ".join(response[:_HEAD].split()[:_ECHOED_WORDS])
    begins_alike = head in " ".join(prompt[:_HEAD].split())[: len(head) + _FIRST_LINE]
    share = _copied_share(prompt, response) if begins_alike else 0.0
    if share < _ECHOED_SHARE:
        return None
    reason = f"begins like the prompt, and {share:.0%} of it is copied"
    return Verdict("echo", reason, (0, len(record.response)))


def _copy(record: Record) -> RuleResult:
    if _ASKS_FOR_TEXT.search(record.prompt[:_FIRST_LINE]):
        return None
    share = _copied_share(record.prompt, record.response)
    if share < _COPIED_SHARE:
        return None
    reason = f"{share:.0%} of the response is copied from the prompt"
    return Verdict("copy", reason, (0, len(record.response)))


def _copied_share(prompt: str, response: str) -> float:
    if len(prompt) < 4 * _LONG_ENOUGH or len(response) < 4 * _LONG_ENOUGH:
        return 0.0
    head = response[:_HEAD].split()[2:]  # a copy shows in its first lines
    if not any(" ".join(head[i : i + 4]) in prompt for i in range(0, len(head) - 4, 4)):
        return 0.0
    asked, answered = prompt.split(), response.split()
    if min(len(asked), len(answered)) < _LONG_ENOUGH:
        return 0.0
    own = _runs(answered)
    return len(own & _runs(asked)) / len(own)


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(words[offset:] for offset in range(_COPIED_WORDS)), strict=False))


PREAMBLE = Rule(
    "preamble",
    "fix",
    "a chat opening before the answer (Here is ...:, Sure!, I'd be happy to ...) is removed",
    _preamble,
    positives=answers(
        "Here are five facts about rivers:\n\n1. They flow downhill.",
        "Sure! Here's a short poem about rivers:\n\nA river runs\nbeneath the suns.",
        "What a great question! Rivers begin in the hills.",
        "I must note that rivers are many. However, I'll take one.\n\n**The Rhine**\n\nLong.",
        'Here is a scene where two students debate the topic "Are rivers old?"\n\nEmma: Yes.',
    )
    + answers(
        "A river is long, but don't worry, I'll break it down for you. It runs.",
        "Rivers are old, and I'd be happy to explain them in simple terms.\n\nThey run.",
        "Rivers are hard to follow, but I'll try to break them down simply:\n\nThey run.",
        "Rivers! It's a great topic, and I'd be happy to explain it.\n\nThey run.",
        "Rivers! Let me break it down for you simply:\n\nThey run.",
        prompt="Explain rivers in simple terms.",
    ),
    negatives=answers(
        "The river rose, but let me explain the night from the start. It rained.",
        "Here is where the river ends, and here we stayed.\n\nIt was cold.",
        "Certainly the river was wide, but the boat was good.",
        "Here lies the king of rivers.\nHe slept.",
        "What a great day it was! The river shone.",
        "I must inform you that the river has risen. However, I can swim.\n\nHe laughed.",
        "Here is what Grandma said:\n\nThe river is old.",
        "Of course! cried the king. The river is mine.",
    ),
)
REFUSAL = Rule(
    "refusal",
    "drop",
    "a response that begins by refusing (I can't write ..., I'm sorry, but I cannot ...)",
    _refusal,
    positives=answers(
        "I can't fulfill that request.",
        "I'm sorry, but I cannot create content that involves rivers.",
        "I couldn't create content that includes revenge. Is there something else?",
        "I can’t answer that. It would be unfair.",
    ),
    negatives=answers(
        "I can't believe it has been a year since I saw the river.",
        "I cannot say when the river froze, but it did.",
        "I'm sorry I was late, said the river, and flowed on.",
        "Unfortunately, the river was too deep to cross.",
        "I can't help but smile when I think of that summer by the river.",
    ),
)
_ESSAY = "When you walk by a river in the morning, the mist is still there, and the birds " * 4
_ABOUT = (
    "The essay tells of a walk by a river in the morning. It is cold, and there is mist on the "
    "water while the walker goes on. Later some birds begin to sing in the trees, and all of it "
    "is told in a calm and patient way."
)
ECHO = Rule(
    "echo",
    "fix",
    "the prompt repeated before the answer is removed; a response that copies further is dropped",
    _echo,
    positives=(
        Record("How long is the Rhine?", "How long is the Rhine?\n\nAbout 1,230 km."),
        Record(f"Think.\n{_ESSAY}", f"{_ESSAY}\n\nThat is all that there is to say of it."),
    ),
    negatives=(
        Record("How long is the Rhine?", "How long is the Rhine? Longer than the Thames."),
        Record(_ESSAY, _ABOUT),
    ),
)

COPY = Rule(
    "copy",
    "drop",
    "a response copied from the prompt to two thirds or more, in runs of eight words",
    _copy,
    positives=(
        Record(f"Think.\n{_ESSAY}", f"So we think. {_ESSAY}"),
        Record(_ESSAY, f"It is said: {_ESSAY}"),
    ),
    negatives=(
        Record(_ESSAY, _ABOUT),
        Record("Spell river.", "R-I-V-E-R"),
    ),
)
