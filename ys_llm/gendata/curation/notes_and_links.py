"""Parts of a response that are not the answer: notes, placeholders, links, control tags."""

import re
from collections.abc import Iterator

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers, with_response
from ys_llm.gendata.curation.text import FENCE, is_quoted, without_code

_NOTE_LINE = re.compile(
    r"""[ \t]*(?:[-+*]\ |\d+[.)]\ )?[*_(\[#\ ]*
    (?:(?:however|also|but|finally|and|additionally)\b,?\ )?
    (?:please\ |important\ |side\ |quick\ |additional\ |final\ |key\ |a\ |an\ |one\ )*
    note(?:[*_]*:|\ that\b|[*_]*\ ?[*_]+:?(?=\s)|\ to\ editor)""",
    re.I | re.X,
)
_NOTE_WORD = re.compile("note", re.I)
_NOTE_INSIDE = re.compile(r"[ \t]*\((?:(?:side|please) )?note(?::| that\b)[^()\n]*\)", re.I)
_PARAGRAPH_END = re.compile(r"\n[ \t]*(?=\n|```)|\Z")
_BLOCK_END = re.compile(r"\n[ \t]*\n(?![ \t]*(?:[-+*] |\d+[.)] |\||```))|\Z")
_RULE_AT_END = re.compile(r"(?:\n[ \t]*(?:-{3,}|\*{3,}|_{3,}))?\s*\Z")

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
_QUOTE = re.compile('["“”]')
_LINE_BREAK = re.compile("\n")
_PHRASE_CHARS = 200
_SPOKEN = re.compile(r"\]?:")  # [Host]: is a speaker

_LINK = re.compile(r"(?<!!)\[([^\[\]\n]{1,200})\]\(([^()\s]{1,400})(?: \"[^\"\n]*\")?\)")
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"')\]]+|\bwww\.[\w-]+\.[\w.-]+[^\s<>\"')\]]*", re.I)

_QUESTION_CHARS = 400  # a longer prompt with the word does not ask for an address
_ASKS_FOR_LINK = re.compile(
    r"\b(?:urls?|links?|web ?(?:site|page|address)|https?|domain|html|markdown)\b", re.I
)

_TAG = re.compile(
    r"<\|[a-z_]{1,40}\|>|\[/?INST\]|<</?SYS>>|</s>|<(?:start|end|pad|unk|eos|bos|eot|mask)>|</?think(?:ing)?>"
)
_NO_TEXT = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\u2028\\u2029\\ufffe\\uffff]")


def _note(record: Record) -> RuleResult:
    response = record.response
    if "note" not in response and "Note" not in response and "NOTE" not in response:
        return None
    prose = without_code(response)
    spans = [_extent(prose, match) for match in _note_lines(prose)]
    spans += [match.span() for match in _NOTE_INSIDE.finditer(prose)]
    if not spans:
        return None
    return with_response(record, _without(response, sorted(spans)), "note")


def _note_lines(prose: str) -> Iterator[re.Match[str]]:
    """Lines that begin as notes: only those with a word of a note are looked at."""
    seen = -1
    for word in _NOTE_WORD.finditer(prose):
        begin = prose.rfind("\n", 0, word.start()) + 1
        match = _NOTE_LINE.match(prose, begin) if begin != seen else None
        seen = begin
        if match:
            yield match


def _extent(prose: str, match: re.Match[str]) -> tuple[int, int]:
    """The span of a note: its paragraph; inside a paragraph or a list, its line only.

    A note that ends with a colon includes the list or code after it.
    """
    start = match.start()
    above = prose[prose.rfind("\n", 0, max(0, start - 1)) + 1 : max(0, start - 1)]
    if above.strip():
        end = prose.find("\n", start)
        return start, len(prose) if end < 0 else end + 1
    end = _found(_PARAGRAPH_END, prose, match.end())
    if prose[start:end].rstrip(" \t\n*_").endswith(":"):
        end = _found(_BLOCK_END, prose, end + 1 if end < len(prose) else end)
    return start, end


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


def _placeholder(record: Record) -> RuleResult:
    for text, at in ((record.response, 0), (record.prompt, None)):
        if "[" not in text and "<" not in text:
            continue
        prose = without_code(text)
        for match in _SLOT.finditer(prose):
            if _is_unfilled(match, prose) and not _is_in_phrase(match, prose):
                where = "the prompt" if at is None else "the response"
                span = match.span() if at is not None else (0, 0)
                return Verdict("placeholder", f"{match[0]} in {where}", span)
    return None


def _is_unfilled(match: re.Match[str], prose: str) -> bool:
    if match[2] is not None:
        return True
    if _ASKS.match(match[1]) and len(match[1].split()) > 1:
        return True
    if len(match[1].split()) > 5 or not _UNKNOWN.search(match[1]):
        return False
    return "name" in match[1].lower() or not _SPOKEN.match(prose, match.end())


def _is_in_phrase(match: re.Match[str], prose: str) -> bool:
    """Inside a short quotation: a phrase for the reader to fill in."""
    begin = prose.rfind("\n", 0, match.start()) + 1
    end = _found(_LINE_BREAK, prose, match.end())
    before = _QUOTE.split(prose[begin : match.start()])
    after = _QUOTE.split(prose[match.end() : end], 1)
    short = len(before[-1]) + len(after[0]) < _PHRASE_CHARS
    return len(before) % 2 == 0 and len(after) == 2 and short


def _link(record: Record) -> RuleResult:
    """Replace links by their text; a URL in prose cannot be removed from its sentence."""
    response = record.response
    if "](" not in response and "://" not in response and "www." not in response.lower():
        return None
    prose = without_code(response)
    if len(record.prompt) < _QUESTION_CHARS and _ASKS_FOR_LINK.search(record.prompt):
        return None
    if url := _URL.search(_LINK.sub(_link_text, prose)):
        return Verdict("link", f"the URL {url[0][:80]} in prose", (0, 0))
    pieces, at = [], 0
    for match in _LINK.finditer(prose):
        pieces += [response[at : match.start()], match[1]]
        at = match.end()
    return with_response(record, "".join([*pieces, response[at:]]), "link")


def _link_text(match: re.Match[str]) -> str:
    return match[1]


def _control_tag(record: Record) -> RuleResult:
    for text in (record.response, record.prompt):
        has_brackets = "<" in text or "[" in text
        if match := _NO_TEXT.search(text) or (_TAG.search(text) if has_brackets else None):
            span = match.span() if text is record.response else (0, 0)
            return Verdict("control_tag", f"{match[0]!r} is not text", span)
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
    ),
)
PLACEHOLDER = Rule(
    "placeholder",
    "drop",
    "an unfilled slot ([Name], [Your ...], [insert ...]) in the prompt or the response",
    _placeholder,
    positives=(
        *answers("Welcome! I am [Your Name], and this is the river.", "We met [Team Name] there."),
        Record("What is [specific theme, e.g. love] in Hamlet?", "It is central."),
    ),
    negatives=answers(
        "[INTRO MUSIC]\n\n[Host]: Welcome to the river.",
        "[The crowd cheers as the boats go by.]",
        "Use `[name]` for a column, and `<your name>` for a value.",
        "Some say so [1], some do not [sic].",
        'Try this: "I feel wet when we talk about [topic]."',
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
assert FENCE == "```"  # the patterns above contain it
