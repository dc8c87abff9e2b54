"""Text about the answer or the prompt: closing comments, chat lines between parts, feedback."""

import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.preambles import FINE, PRAISED
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers, with_response
from ys_llm.gendata.curation.text import is_quoted

_MOST = 0.45  # of a response; what is longer is the answer itself
_WORK = (
    r"(?:article|scene|script|story|tale|guide|poem|dialogue|conversation|debate|episode|essay|"
    r"overview|summary|introduction|list|post|explanation|piece|outline|example|podcast|monologue)"
)
_COMMENT = re.compile(
    rf"""[\s*_(]*(?:
      (?:overall,\ |remember,\ |please\ )?(?:this|the\ above)\ (?:short\ |brief\ )?{_WORK}
      \ (?:provides|offers|gives|aims|highlights|showcases|is\ (?:just|meant|intended|only|purely|
      designed)|serves|covers|captures|illustrates|demonstrates|should\ give|was\ written)\b
    | the\ story\ (?:highlights|showcases|captures)\ (?:the|how)\b
    | remember,\ this\ is\ (?:a|just)\ [^.!?\n]{{0,30}}(?:explanation|overview|example|version)
    | (?:so,\ )?(?:that['’]s|that\ is)\ [^.!?\n]{{0,60}}\bin\ (?:simple\ terms|a\ nutshell)
    | (?:so,\ )?(?:that['’]s|that\ is|this\ is)\ (?:an?|just\ an?)\ (?:very\ )?(?:basic|brief|quick|
      simple|simplified|fictional|short)\ (?:\w+\ )?{_WORK}
    | we\ hope\ (?:this|that|it|you)\b[^.!?\n]{{0,80}}\b(?:help|useful|enjoy|inform|like)
    | the\ provided\ \w+\ should\ serve\ as\b
    | how\ should\ (?:the|this|our)\ story\ (?:go\ on|continue|end)\b
    )""",
    re.I | re.X,
)
_LEARNED = re.compile(r"\b(?:comments below|share (?:them|it) with us)\b", re.I)
_RULE_LINE = re.compile(r"(?:\n[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*)?\s*\Z")

_TOLD = r"(?:story|tale|poem|scene|song|dialogue|conversation|limerick|monologue)"
_CHAT_LINE = re.compile(
    rf"""^[ \t*_#]*(?:
      (?:and\ |so,?\ |okay,?\ )?now,?\ (?:here(?:['’]s|\ is|\ are)|let\ me\ (?:craft|write|
      tell|share|give)|let['’]s|i(?:['’]ll|\ will)\ (?:write|tell|craft|share))\ [^\n]{{0,120}}
      \b(?:{_TOLD}|example|list|version)\b[^\n]{{0,120}}
    | (?:sure!?\ |okay,?\ )?here(?:['’]s|\ is)\ (?:an?|the|my|your)\ (?:[\w-]+\ ){{0,2}}{_TOLD}
      \ (?:that|about|which|featuring|including|incorporating|involving|with|for)\b[^\n]{{0,120}}
    ):[ \t*_]*$\n*(?:[ \t]*(?:-{{3,}}|\*{{3,}})[ \t]*\n+)?""",
    re.I | re.X | re.M,
)

_REVIEWED = re.compile(
    r"""\byour\ (?:points?|response|answer|recommendations?|advice|list|analysis|summary|emphasis|
    approach|explanation|conclusion|guide|essay|text)\b|\bthese\ (?:\w+\ ){0,2}(?:steps|signs|tips|
    indicators|strategies)\b|\bstrengths\b|\bweaknesses\b|\bstands\ out\b|\bfor\ improvement\b|
    \bthe\ (?:response|answer|suggested\ approach|strategies\ provided|text)\b|
    \bthis\ (?:guide|answer|response|approach|list)\b""",
    re.I | re.X,
)
_FEEDBACK = re.compile(
    rf"""[\s*_#-]*(?:
      your\ (?:{PRAISED}|advice|points?|text|essay|perspective|insights?|tips|suggestions|story|
      description|article|conclusion)s?\b[^.\n]{{0,80}}\b(?:is|are|provides?|offers?|covers?|does)\b
    | (?:[^.!?\n:"]{{1,80}}[.!]\s+)?i\ (?:\w+ly\ )?agree\ with\ your\b
    | (?:[^.!?\n:"]{{1,80}}[.!]\s+)?you(?:['’]ve|\ have)\ 
      (?:already\ |perfectly\ |clearly\ |really\ |beautifully\ )*(?:provided|
      described|outlined|highlighted|covered|captured|summari[sz]ed|made|written|done)\b
    | (?:this|that)(?:['’]s|\ is)\ an?\ (?:very\ |truly\ )?{FINE}[^.!?\n]{{0,60}}
      \b(?:{PRAISED}|perspective|argument)\b
    | (?:what\ )?an?\ (?:very\ |truly\ )?{FINE}[^.!?\n]{{0,60}}
      \b(?:{PRAISED}|perspective|argument)\b[^.!?\n]{{0,120}}!
    )""",
    re.I | re.X,
)
_ADDRESSED = re.compile(r"[\s*_#-]*you", re.I)
_ASKED = re.compile(
    r"\b(?:review|critique|assess|evaluate|grade|proofread|feedback|improve (?:it|this|my)|"
    r"do you think|is (?:my|this)|judge|comment on)\b",
    re.I,
)
_STATEMENT = 200  # characters; a shorter prompt is a question, which may be praised in passing
_ENDS = 200  # characters of a prompt, at both ends, that say what is asked
_HEAD = 500


def _comment(record: Record) -> RuleResult:
    response = record.response.rstrip()
    begin = response.rfind("\n\n") + 2
    match = _COMMENT.match(response, begin) if begin > 1 else None
    if not match or len(response) - begin > _MOST * len(response) or "```" in response[begin:]:
        return None
    if '"' in response[begin:] or "“" in response[begin:] or _LEARNED.search(response, begin):
        return None
    kept = response[:begin].rstrip()
    kept = kept[: _RULE_LINE.search(kept).start()]  # type: ignore[union-attr]
    end = "\n" if record.response.endswith("\n") else ""
    return with_response(record, kept + end, "comment")


def _chat_line(record: Record) -> RuleResult:
    response = record.response
    if "ere" not in response and "et me" not in response:
        return None
    pieces, at = [], 0
    for match in _CHAT_LINE.finditer(response):
        inside = response[: match.start()].strip() and response[match.end() :].strip()
        if inside and not is_quoted(response, match.start()):
            pieces.append(response[at : match.start()])
            at = match.end()
    return with_response(record, "".join([*pieces, response[at:]]), "chat_line")


def _feedback(record: Record) -> RuleResult:
    prompt, match = record.prompt, _FEEDBACK.match(record.response[:_HEAD])
    if not match or _ASKED.search(prompt[:_ENDS] + "\n" + prompt[-_ENDS:]):
        return None
    addressed = _ADDRESSED.match(record.response) is not None
    if len(prompt) < (_ENDS // 4 if addressed else _STATEMENT):
        return None
    if not addressed and not _REVIEWED.search(record.response, match.end()):
        return None
    return Verdict("feedback", f"reviews the prompt: {match[0].strip()[:60]!r}", match.span())


_PARTS = "**Rivers**\n\nRivers run to the sea, over stones and past towns, all year.\n\n"
COMMENT = Rule(
    "comment",
    "fix",
    "a closing paragraph about the answer itself (This article provides an overview of ...)",
    _comment,
    positives=answers(
        f"{_PARTS}That's rivers in simple terms!",
        f"{_PARTS}This scene aims to showcase two people by a river.",
        f"{_PARTS}We hope this was helpful!",
        f"{_PARTS}How should the story go on?",
    ),
    negatives=answers(
        "This story offers a view of a river.",
        f"{_PARTS}This river offers fish to all who live beside it.",
        f"{_PARTS}That's the river that I know.",
        f'{_PARTS}"This story is just a river," he said.',
    ),
)
CHAT_LINE = Rule(
    "chat_line",
    "fix",
    "a line to the user between two parts (Now, here's a short story that ...:)",
    _chat_line,
    positives=answers(
        f"{_PARTS}Now, here's a short story that includes a river:\n\n---\n\nAnna rowed.",
        f"{_PARTS}Here is a short story about a river:\n\nAnna rowed.",
        "# The River\n\nHere's a poem about the river:\n\nIt runs\nbeneath the suns.",
        f"{_PARTS}Now, let me craft a story with a boat in it:\n\nAnna rowed.",
    ),
    negatives=answers(
        f"{_PARTS}Now, here is what the river said:\n\nRow.",
        f"{_PARTS}Here is how it works:\n\n1. It runs.",
        "Anna rowed home, and now the story was told.\n\nIt was late.",
    ),
)
_TEXT = "Rivers matter. " + "They carry water to the fields and boats to the towns. " * 4
FEEDBACK = Rule(
    "feedback",
    "fix",
    "a response that praises or reviews the prompt, which asked for no review, is dropped",
    _feedback,
    positives=(
        Record(_TEXT, "Your guide is well structured, and I especially like the boats."),
        Record(_TEXT, "This is a comprehensive and clear guide. Your points are right."),
        Record(_TEXT, "You've provided a fine list of what rivers do. Which one is next?"),
        Record(
            _TEXT, "Not at all! You've already provided a thorough list. Your points are right."
        ),
        Record(_TEXT, "What a topic! I completely agree with your list. Your points are right."),
    ),
    negatives=(
        Record(f"Review this text. {_TEXT}", "Your guide is well structured."),
        Record(_TEXT, "Rivers also shape the valleys that they run through."),
        *answers("Your river is calling, said the wind, and it is cold."),
    ),
)
