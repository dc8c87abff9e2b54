"""Parts of a response that are not the answer: notes, links, control tags."""

import re
from collections.abc import Iterator

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers, with_response
from ys_llm.gendata.curation.structure import block_at, whole, without_code
from ys_llm.gendata.curation.text import FENCE, is_quoted

_NOTE_LINE = re.compile(
    r"""[ \t]*(?:[-+*]\ |\d+[.)]\ )?[*_(\[#\ ]*
    (?:(?:however|also|but|finally|and|additionally)\b,?\ )?
    (?:please\ |important\ |side\ |quick\ |additional\ |final\ |key\ |a\ |an\ |one\ )*
    note(?:[*_]*:|\ that\b|[*_]*\ ?[*_]+:?(?=\s)|\ to\ editor)""",
    re.I | re.X,
)
_NOTE_WORD = re.compile("note", re.I)
_LONGEST_NOTE = 3000  # characters
_NOTE_INSIDE = re.compile(r"[ \t]*\((?:(?:side|please) )?note(?::| that\b)[^()\n]*\)", re.I)
_PARAGRAPH_END = re.compile(r"\n[ \t]*(?=\n|```)|\Z")
_BLOCK_END = re.compile(r"\n[ \t]*\n(?![ \t]*(?:[-+*] |\d+[.)] |\||```))|\Z")
_RULE_AT_END = re.compile(r"(?:\n[ \t]*(?:-{3,}|\*{3,}|_{3,}))?\s*\Z")

_LINK = re.compile(r"(?<!!)\[([^\[\]\n]{1,200})\]\(([^()\s]{1,400})(?: \"[^\"\n]*\")?\)")
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"')\]]+|\bwww\.[\w-]+\.[\w.-]+[^\s<>\"')\]]*", re.I)

_QUESTION_CHARS = 400  # a longer prompt with the word does not ask for an address
_ASKS_FOR_LINK = re.compile(
    r"\b(?:urls?|links?|web ?(?:sites?|pages?|address)|https?|domain|html|markdown|readme|"
    r"resources?|tutorials?|documentation|api|download|install|python|bash|curl|scripts?|code)\b",
    re.I,
)
_CODE_LINK = re.compile(r"[\"'(=]\s*\Z|\b(?:curl|wget|clone|urllib|requests|fetch)\b")

_TAG = re.compile(
    r"<\|[a-z_]{1,40}\|>|\[/?INST\]|<</?SYS>>|</s>|<(?:start|end|pad|unk|eos|bos|eot|mask)>|</?think(?:ing)?>"
)
_TURN = re.compile(r"^### ?(?:Instruction|Response|Input):|^(?:User|Human):(?= |$)", re.M)
_DIALOGUE = re.compile(r"\b(?:user|human|dialogue|conversation|script|chat|play)s?\b|###", re.I)
_GOES_ON = re.compile(r"\s*(?:once|after|then|this|that|these|here)\b", re.I)
_NO_TEXT = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\u2028\\u2029\\ufffe\\uffff]")


def _note(record: Record) -> RuleResult:
    response = record.response
    if "note" not in response and "Note" not in response and "NOTE" not in response:
        return None
    prose = without_code(response)
    spans = [whole(response, _extent(response, prose, match)) for match in _note_lines(prose)]
    spans += [match.span() for match in _NOTE_INSIDE.finditer(prose)]
    spans = [span for span in spans if not _is_spoken_of(response, *span)]
    if not spans:
        return None
    return with_response(record, _without(response, sorted(spans)), "note")


def _is_spoken_of(response: str, start: int, end: int) -> bool:
    """Whether a note has code in it of which the text goes on to speak."""
    return FENCE in response[start:end] and _GOES_ON.match(response, end) is not None


def _note_lines(prose: str) -> Iterator[re.Match[str]]:
    """Lines that begin as notes: only those with a word of a note are looked at."""
    seen = -1
    for word in _NOTE_WORD.finditer(prose):
        begin = prose.rfind("\n", 0, word.start()) + 1
        match = _NOTE_LINE.match(prose, begin) if begin != seen else None
        seen = begin
        if match:
            yield match


def _extent(text: str, prose: str, match: re.Match[str]) -> tuple[int, int]:
    """The span of a note: its paragraph; inside a paragraph or a list, its line only.

    A note that ends with a colon includes the list or code after it, one in brackets what follows
    up to the closing bracket.
    """
    start = match.start()
    if closed := _bracket_end(prose, match):
        return start, closed
    above = prose[prose.rfind("\n", 0, max(0, start - 1)) + 1 : max(0, start - 1)]
    if above.strip():
        end = prose.find("\n", start)
        return start, len(prose) if end < 0 else end + 1
    end = _found(_PARAGRAPH_END, prose, match.end())
    if prose[start:end].rstrip(" \t\n*_").endswith(":"):
        if (after := block_at(text, end)) > end:
            return start, after
        end = _found(_BLOCK_END, prose, end + 1 if end < len(prose) else end)
    return start, end


def _bracket_end(prose: str, match: re.Match[str]) -> int:
    """Where a bracket that the note opens is closed, at the end of a line; 0 if nowhere."""
    opened = match[0].lstrip(" \t*_-+")[:1]
    if opened not in ("(", "["):
        return 0
    depth, closing = 0, ")" if opened == "(" else "]"
    for at in range(match.start(), min(len(prose), match.start() + _LONGEST_NOTE)):
        depth += (prose[at] == opened) - (prose[at] == closing)
        if depth == 0 and prose[at] == closing:
            rest = prose[at + 1 : at + 4].lstrip("*_ .")
            return at + 4 - len(rest) if not rest or rest[0] == "\n" else 0
    return 0


def _found(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.search(text, at)
    return match.start() if match else len(text)


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """The text without the spans, the gaps they leave, and a horizontal rule at the end."""
    kept, at = "", 0
    pieces = []
    for start, end in spans:
        if start >= at:
            pieces.append(text[at:start])
            at = end
    pieces.append(text[at:])
    kept = pieces[0]
    for piece in pieces[1:]:
        if kept.endswith("\n\n") or not kept:
            piece = piece.lstrip("\n")
        kept += piece
    if not pieces[-1].strip():
        kept = kept[: _rule_at_end(kept)] + ("\n" if text.endswith("\n") else "")
    return kept


def _rule_at_end(text: str) -> int:
    tail = text[-200:]
    match = _RULE_AT_END.search(tail)
    return len(text) - len(tail) + (match.start() if match else len(tail))


def _link(record: Record) -> RuleResult:
    """Replace links by their text; a URL in prose cannot be removed from its sentence."""
    response = record.response
    if "](" not in response and "://" not in response and "www." not in response.lower():
        return None
    prose = without_code(response)
    if len(record.prompt) < _QUESTION_CHARS and _ASKS_FOR_LINK.search(record.prompt):
        return None
    if "![" in response:  # a page with pictures and badges is a page of a project
        return None
    linkless = _LINK.sub(_link_text, prose)
    for url in _URL.finditer(linkless):
        if url[0].rstrip(".,;:!?") in record.prompt or _is_in_code(linkless, url.start()):
            continue
        return Verdict("link", f"the URL {url[0][:80]} in prose", (0, 0))
    pieces, at = [], 0
    for match in _LINK.finditer(prose):
        pieces += [response[at : match.start()], match[1]]
        at = match.end()
    return with_response(record, "".join([*pieces, response[at:]]), "link")


def _is_in_code(text: str, at: int) -> bool:
    return _CODE_LINK.search(text[text.rfind("\n", 0, at) + 1 : at]) is not None


def _link_text(match: re.Match[str]) -> str:
    return match[1]


def _control_tag(record: Record) -> RuleResult:
    for text in (record.response, record.prompt):
        has_brackets = "<" in text or "[" in text
        if match := _NO_TEXT.search(text) or (_TAG.search(text) if has_brackets else None):
            span = match.span() if text is record.response else (0, 0)
            return Verdict("control_tag", f"{match[0]!r} is not text", span)
    leaked = _TURN.search(record.response)
    if leaked and not _DIALOGUE.search(record.prompt):
        return Verdict("control_tag", f"{leaked[0].strip()!r} of a prompt", leaked.span())
    return None


_FIRST_PERSON = re.compile(
    r"""\bI(?:['’]m|\ am)\ (?:just\ |only\ |simply\ |actually\ )?an?\ (?:text-based\ )?
      (?:AI|artificial\ intelligence|large\ language\ model|language\ model|chatbot|
      virtual\ assistant|machine\ learning\ model)\b
    | \bas\ an?\ (?:text-based\ )?
      (?:AI|artificial\ intelligence|(?:large\ )?language\ model|chatbot)\b
      (?:\ (?:\w+\ ){0,2}(?:model|assistant))?,?\ (?:\w+\ )?(?:I\b|my\b)
    | \bthis\ is\ a\ text-based\ AI\b
    | \bmy\ (?:training\ data|knowledge\ cut-?off|programming\ (?:does|doesn))
    | \bI\ (?:don['’]t|do\ not)\ have\ (?:\w+\ )?
      (?:personal\ (?:experience|preference|opinion|feeling|belief|emotion)|
      (?:direct|real-time|current)\ (?:access|information)|access\ to\ (?:real-time|
      the\ internet|current))""",
    re.I | re.X,
)
_HINTS = (
    "AI",
    "language model",
    "artificial int",
    "chatbot",
    "I don't have",
    "I don’t have",
    "I do not have",
    "y training data",
    "y knowledge",
    "y programming",
)


def _self_reference(record: Record) -> RuleResult:
    response = record.response
    if not any(hint in response for hint in _HINTS):
        return None
    for match in _FIRST_PERSON.finditer(response):
        if not is_quoted(response, match.start()):
            return Verdict("self_reference", f"refers to itself: {match[0]}", match.span())
    return None


NOTE = Rule(
    "note",
    "fix",
    "a paragraph, line or bracket that begins with Note is removed, with the list it announces",
    _note,
    positives=answers(
        "Rivers run to the sea.\n\nNote: this is a simplified view.",
        "Rivers run to the sea.\n\n**Note** that some end in lakes.\n\nSo it is.",
        "Rivers run.\n\n(Note: The story above is fiction.)",
        "The Rhine (Note: the German one) is long.",
    ),
    negatives=answers(
        'The note read: "Meet me at the river."',
        "Take note of the river's depth.\n\nNotes rose from the piano.",
        '"Note that down," he said, and looked at the river.',
        "```sql\n-- Note: slow\nSELECT 1;\n```",
        "It runs.\n\nNote that it is slow:\n\n```sql\nSELECT 1;\n```\n\nOnce you know, go on.",
    ),
)
LINK = Rule(
    "link",
    "fix",
    "a markdown link is replaced by its text; a response with a URL in prose is dropped",
    _link,
    positives=answers(
        "See [the Rhine](rhine.html) for more.",
        "Read more at https://example.org/rivers today.",
        "Visit www.example.org for maps.",
    ),
    negatives=answers(
        "```python\nopen('https://example.org')\n```",
        "The first site was SixDegrees.com, in 1997.",
        "Call it as `[f](x)`, or as f(x)[y].",
    ),
)
CONTROL_TAG = Rule(
    "control_tag",
    "drop",
    "a tag of a chat template or of reasoning, or a control character (NUL and the like)",
    _control_tag,
    positives=answers(
        "Rivers run.<|eot_id|>",
        "[INST] Go on [/INST] Rivers run.",
        "A\x00B",
        "Rivers run.\n\n### Instruction:\nName a river.",
        "Rivers run.\nUser: And lakes?\nThey lie.",
        "<think>A river?</think> Rivers run.",
    ),
    negatives=answers("a < b and c > d | e", "Rivers\trun.\nYes.", "<b>Rivers</b> run."),
)
SELF_REFERENCE = Rule(
    "self_reference",
    "drop",
    "a response that refers to itself as a program (As an AI, I ...; I'm a large language model)",
    _self_reference,
    positives=answers(
        "As an AI language model, I have never seen a river.",
        "Rivers are wet. I'm just a large language model, I don't have taste buds.",
        "I don't have personal preferences, but the Rhine is long.",
    ),
    negatives=answers(
        '"As an AI, I cannot swim," said the robot by the river.',
        "I'm an air mage, and the river obeys me.",
        "A large language model is trained on text.",
    ),
)
