"""Templates of kind files: `{name}` inserts a slot, `{a name}` a slot with its article.

`{{` and `}}` are literal braces. Inserted text is never interpreted as a template.
"""

import re
from collections.abc import Mapping
from string import Formatter

from ys_llm.gendata.programs.grammar import article

_FIELD = re.compile(r"(?P<article>[aA] )?(?P<name>[a-z][a-z0-9_]*)")
SYNTAX = "write {name} or {a name}, and {{ }} for literal braces"


def names_in(template: str) -> set[str]:
    """The slots that a template uses. Raises ValueError for a malformed template."""
    names = set()
    for _text, field, form, conversion in Formatter().parse(template):
        if field is None:
            continue
        found = _FIELD.fullmatch(field)
        if not found or form or conversion:
            raise ValueError(f"{{{field}}} is not a slot: {SYNTAX}")
        names.add(found["name"])
    return names


def fill(template: str, slots: Mapping[str, str]) -> str:
    """The template with its slots filled in."""
    parts = []
    for text, field, _form, _conversion in Formatter().parse(template):
        parts.append(text)
        if field is not None:
            parts.append(_value(field, slots))
    return "".join(parts)


def _value(field: str, slots: Mapping[str, str]) -> str:
    found = _FIELD.fullmatch(field)
    assert found, field
    value = slots[found["name"]]
    if not found["article"]:
        return value
    written = f"{article(value)} {value}"
    return written[0].upper() + written[1:] if found["article"] == "A " else written
