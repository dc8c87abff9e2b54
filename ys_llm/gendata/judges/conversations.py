"""Whether a reply obeys its system text: the style and the name that this sets."""

import re
from collections.abc import Callable, Mapping

from ys_llm.gendata.programs.conversations import WHO_ARE_YOU

_NAMED = re.compile(r"(?:Your name is|You are called|You are) ([A-Z]\w+)")
# A part of a system text, and what a reply in its style is like.
_STYLES: Mapping[str, Callable[[str], bool]] = {
    "in capital letters": lambda reply: reply == reply.upper(),
    "in small letters": lambda reply: reply == reply.lower(),
    "Begin every answer": lambda reply: reply.startswith("Certainly."),
    "the word Over": lambda reply: reply.endswith("Over."),
    "please look": lambda reply: reply.lower().endswith("please look."),
    "captain": lambda reply: reply.lower().endswith("captain."),
    "in brackets": lambda reply: reply.startswith("(") and reply.endswith(")"),
}


def obeys(system: str, asked: str, reply: str) -> dict[str, bool]:
    """`style` and `name`: what the system text sets holds of the reply; absent where it sets none.

    `name` is judged where the user has just asked for it.
    """
    said, found = reply.strip(), dict[str, bool]()
    if styles := [holds for part, holds in _STYLES.items() if part in system]:
        found["style"] = bool(said) and all(holds(said) for holds in styles)
    name = _NAMED.search(system)
    if name and asked in WHO_ARE_YOU:
        found["name"] = name[1].lower() in re.findall(r"\w+", said.lower())
    return found
