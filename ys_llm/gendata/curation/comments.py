"""Text about the answer itself: closing comments, chat lines between parts."""

import re

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, answers, with_response
from ys_llm.gendata.curation.text import is_quoted

_MOST = 0.45  # of a response; what is longer is the answer itself
_WORK = (
    r"(?:article|scene|script|story|tale|guide|poem|dialogue|conversation|debate|episode|essay|"
    r"overview|summary|introduction|list|post|explanation|piece|outline|example|podcast|monologue)"
)
_SO = r"(?:(?:so|and),?\ )?"
_COMMENT = re.compile(
    rf"""[\s*_(]*(?:
      (?:overall,\ |remember,\ |please\ )?(?:this|the\ above)\ (?:short\ |brief\ )?{_WORK}
      \ (?:provides|offers|gives|aims|highlights|showcases|is\ (?:just|meant|intended|only|purely|
      designed)|serves|covers|captures|illustrates|demonstrates|shows|should\ give|was\ written|
      (?:can|could|may)\ be\ (?:adjusted|modified|changed|extended|expanded|adapted|continued|
      customi[sz]ed))\b
    | the\ story\ (?:highlights|showcases|captures)\ (?:the|how)\b
    | remember,\ this\ is\ (?:a|just)\ [^.!?\n]{{0,30}}(?:explanation|overview|example|version)
    | {_SO}(?:that['’]s|that\ is)\ [^.!?\n]{{0,60}}\bin\ (?:simple\ terms|a\ nutshell)
    | {_SO}(?:that['’]s|that\ is)\ (?:the|a)\ (?:very\ )?basics?\ [^.!?\n]{{0,80}}[.!]\Z
    | {_SO}(?:that['’]s|that\ is)\ the\ (?:main|general|rough)\ (?:idea|concept|gist|outline)\b
    | in\ this\ (?:short\ )?{_WORK},\ [^.!?\n]{{0,100}}\b(?:plays?|serves?|represents?|
      symboli[sz]es?|highlights?|(?:is|are)\ (?:used|shown|portrayed|featured))\b
    | (?:so,\ )?(?:that['’]s|that\ is|this\ is)\ (?:an?|just\ an?)\ (?:very\ )?(?:basic|brief|quick|
      simple|simplified|fictional|short)\ (?:\w+\ )?{_WORK}
    | we\ hope\ (?:this|that|it|you)\b[^.!?\n]{{0,80}}\b(?:help|useful|enjoy|inform|like)
    | the\ provided\ \w+\ should\ serve\ as\b
    | how(?:['’]s|\ is|\ was)\ (?:that|this)(?:\ {_WORK})?\?
    | {_SO}(?:was|is|did|does)\ (?:that|this)\ (?:explanation\ [^.!?\n]{{0,60}}\?|make\ sense)
    | how\ (?:do|did)\ you\ (?:like|find|feel\ about)\ (?:it|this|that)\b
    | how\ about\ (?:this|that)\?
    | what\ do\ you\ think\?\ do\ you\ agree\b
    | who\ do\ you\ think\ (?:won|made|had|was|is)\b
    | this\ is\ (?:just\ )?(?:one|a)\ possible\b
    | this\ is\ where\ i['’]ll\ (?:stop|pause|end)\b
    | the\ (?:scene|script)\ ends\ here\b
    | how\ should\ (?:the|this|our)\ story\ (?:go\ on|continue|end)\b
    )""",
    re.I | re.X,
)
_IN_THE_WORK = re.compile(r"\W*in this\b", re.I)
_ASKS_FOR_WORK = re.compile(r"\b(?:write|tell|create|compose|draft|craft)\b", re.I)
_LEARNED = re.compile(r"\b(?:comments below|share (?:them|it) with us)\b", re.I)
_RULE_LINE = re.compile(r"(?:\n[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*)?\s*\Z")

_TOLD = r"(?:story|tale|yarn|poem|scene|song|dialogue|conversation|limerick|monologue)"
_CHAT_LINE = re.compile(
    rf"""^[ \t*_#]*(?:
      (?:and\ |so,?\ |okay,?\ )?now,?\ (?:here(?:['’]s|\ is|\ are)|let\ me\ \w+|let['’]s|
      i(?:['’]ll|\ will)\ \w+)\ [^\n]{{0,120}}
      \b(?:{_TOLD}|example|list|version)\b[^\n]{{0,120}}
    | (?:sure!?\ |okay,?\ )?here(?:['’]s|\ is)\ (?:an?|the|my|your)\ (?:[\w-]+\ ){{0,2}}{_TOLD}
      \ (?:that|about|which|featuring|including|incorporating|involving|with|for)\b[^\n]{{0,120}}
    )(?P<end>:|\.\.\.|…)[ \t*_]*$\n*(?:[ \t]*(?:-{{3,}}|\*{{3,}})[ \t]*\n+)?""",
    re.I | re.X | re.M,
)
_PART = re.compile(r"^[ \t]*(?:\*\*|#|[-*+] )", re.M)


def _comment(record: Record) -> RuleResult:
    response = record.response.rstrip()
    begin = response.rfind("\n\n") + 2
    match = _COMMENT.match(response, begin) if begin > 1 else None
    if not match or len(response) - begin > _MOST * len(response) or "```" in response[begin:]:
        return None
    if '"' in response[begin:] or "“" in response[begin:] or _LEARNED.search(response, begin):
        return None
    if _IN_THE_WORK.match(match[0]) and not _ASKS_FOR_WORK.search(record.prompt):
        return None  # a reading of a work that others wrote
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
        before = response[: match.start()]
        inside = before.strip() and response[match.end() :].strip()
        if match["end"] != ":" and not _PART.search(before):
            continue  # a storyteller may pause
        if inside and not is_quoted(response, match.start()):
            pieces.append(response[at : match.start()])
            at = match.end()
    return with_response(record, "".join([*pieces, response[at:]]), "chat_line")


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
        f"{_PARTS}And that's the basic idea behind rivers!",
        f"{_PARTS}In this story, the river plays a large part.",
        f"{_PARTS}This scene shows how two people can meet by a river.",
        f"{_PARTS}How was this? I tried my best to make the river real.",
        f"{_PARTS}So, was that explanation cool?",
        f"{_PARTS}This is where I'll stop for now!",
        f"{_PARTS}How do you like it?",
        f"{_PARTS}Who do you think made a stronger case?",
        f"{_PARTS}This is just one possible way the talk could go.",
        f"{_PARTS}**This scene can be adjusted to fit your preferences!",
        f"{_PARTS}What do you think? Do you agree with Anna or Ben?",
        f"{_PARTS}(The scene ends here, but the river would run on.)",
    ),
    negatives=answers(
        "This story offers a view of a river.",
        f"{_PARTS}This river offers fish to all who live beside it.",
        f"{_PARTS}That's the river that I know.",
        f"{_PARTS}MARY: How's that? I tried my best.",
        f"{_PARTS}How is this river so old? It runs.",
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
        f"{_PARTS}Now, let me spin you a yarn about the river...\n\nAnna rowed.",
    ),
    negatives=answers(
        f"{_PARTS}Now, here is what the river said:\n\nRow.",
        f"{_PARTS}Here is how it works:\n\n1. It runs.",
        "It was dark.\n\nNow, let me tell you a story about the river...\n\nAnna rowed.",
        "Anna rowed home, and now the story was told.\n\nIt was late.",
    ),
)
