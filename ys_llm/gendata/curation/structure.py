"""The structure of a text: code, what is left without it, fences and brackets that stay open.

Found once on the text itself; all rules share the result.
"""

import re
from functools import lru_cache

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.S)
_NOT_A_LINE_END = re.compile(r"[^\n]")
_NO_BRACKET = re.compile(r"^[ \t]*\w{1,3}\)|[:;]-?[()]", re.M)  # "a)" in a list; a smiley
_CODE_LINE = re.compile(
    r"""(?:\ {2,}-\ \S+$)|\s*(?:
      [{}()\[\]<#@] | // | /\* | --[ ]
    | (?:def|class|import|const|let|var|public|void|int|char|float)\[ ]
    | from\ \w+\ import | return\b | function\b | (?:if|for|while)\b.*[:{]$
    | (?:SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE|JOIN|GROUP|ORDER|VALUES|SET|DROP|ALTER)\b
    | (?:-\ )?[\w."'-]+:(?:\ [^\s.!?][^.!?]{0,50})?$ | -\ [\w"']+:
    | [\w.\[\]]+\ *= | \w[\w.]*\(.*\);?$ | .*[;{}]$
    )""",
    re.X,
)
_CODE_SHARE = 0.75  # of the lines


@lru_cache(maxsize=64)
def code_spans(text: str) -> tuple[tuple[int, int], ...]:
    """The spans of fenced blocks and of code between backticks; a fence may stay open."""
    return tuple(match.span() for match in _CODE.finditer(text)) if "`" in text else ()


@lru_cache(maxsize=64)
def without_code(text: str) -> str:
    """The text with code replaced by spaces; offsets stay the same."""
    if "`" not in text:
        return text
    return _CODE.sub(lambda match: _NOT_A_LINE_END.sub(" ", match[0]), text)


def is_code(text: str) -> bool:
    """Whether most lines are code or data, without a fence around them."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return False
    return sum(bool(_CODE_LINE.match(line)) for line in lines) >= _CODE_SHARE * len(lines)


def whole(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """The span, extended so that it cuts no piece of code in two."""
    start, end = span
    for begin, stop in code_spans(text):
        if begin < start < stop:
            start = begin
        if begin < end < stop:
            end = stop
    return start, end


def block_at(text: str, at: int) -> int:
    """The end of the fenced block that follows `at` after nothing but blanks; `at` if none does."""
    for begin, stop in code_spans(text):
        if begin >= at:
            fenced = text.startswith("```", begin)
            return stop if fenced and not text[at:begin].strip() else at
    return at


def balance(text: str) -> tuple[int, ...]:
    """What a mend must not change: the parity of fences, and brackets opened less those closed."""
    plain = _NO_BRACKET.sub("", text)
    pairs = (("(", ")"), ("[", "]"), ("{", "}"))
    return (
        text.count("```") % 2,
        *(plain.count(opened) - plain.count(closed) for opened, closed in pairs),
    )
