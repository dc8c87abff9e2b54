"""The forms in which people keep conversations, told apart by the fields of a record.

messages        {"messages": [{"role": "user", "content": "..."}, ...]}
conversations   {"conversations": [{"from": "human", "value": "..."}, ...]}, with "system" at will
alpaca          {"instruction": "...", "input": "...", "output": "..."}
prompt          {"prompt": "...", "completion": "..."} or "response" in its place
preferences     {"prompt": ..., "chosen": ..., "rejected": ...}; texts or lists of messages
text            {"text": "..."}

Other fields do not matter. Of two forms in one record, the one that is higher in this list holds
but for preferences, which hold before all. What does not fit is a ValueError that says why.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, get_args

from ys_llm.data.chat import ROLES, Conversation, PreferencePair, Role, Turn
from ys_llm.data.records import Record

RecordForm = Literal["preferences", "messages", "conversations", "alpaca", "prompt", "text"]
Parsed = Conversation | PreferencePair | Record | str
FORMS: tuple[RecordForm, ...] = get_args(RecordForm)

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_PARAGRAPH = "\n\n"
_SHOWN_FIELDS = 5
_NEEDED: Mapping[RecordForm, tuple[tuple[str, ...], ...]] = {
    "preferences": (("chosen", "rejected"),),
    "messages": (("messages",),),
    "conversations": (("conversations",),),
    "alpaca": (("instruction", "output"),),
    "prompt": (("prompt", "completion"), ("prompt", "response")),
    "text": (("text",),),
}
_ALSO_READ = ("system", "input")
FIELDS = frozenset(_ALSO_READ).union(*chain.from_iterable(_NEEDED.values()))
_SHAPES = [(form, frozenset(names)) for form in FORMS for names in _NEEDED[form]]
# As ShareGPT, OpenAI and others name who speaks.
_ROLES: Mapping[str, Role] = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
}


def form_of(fields: Iterable[str]) -> RecordForm | None:
    """Return the form that a record has the fields of; None for a record of none."""
    found = FIELDS.intersection(fields)
    return next((form for form, names in _SHAPES if names <= found), None)


def parse_record(fields: Any, form: RecordForm | None = None) -> tuple[RecordForm, Parsed]:
    """Return what a record says, read as this form, or as the one that it has the fields of."""
    if not isinstance(fields, dict):
        raise ValueError(f"found {_kind(fields)}, not an object")
    found = form or form_of(fields)
    if found is None:
        raise ValueError(f"found the fields {names_of(list(fields))}")
    if form and not any(fields.keys() >= set(names) for names in _NEEDED[form]):
        needed = " and ".join(map(repr, _NEEDED[form][0]))
        raise ValueError(f"found the fields {names_of(list(fields))}, not {needed}")
    return found, _PARSERS[found](fields)


def names_of(fields: Sequence[str]) -> str:
    """List the names of fields, the first ones of many."""
    listed = ", ".join(repr(str(name)[:40]) for name in fields[:_SHOWN_FIELDS])
    more = len(fields) - _SHOWN_FIELDS
    return (listed or "none") + (f" and {more:,} more" if more > 0 else "")


def _messages(fields: Mapping[str, Any]) -> Conversation:
    return _conversation(_turns(fields["messages"], "messages"))


def _sharegpt(fields: Mapping[str, Any]) -> Conversation:
    turns = _turns(fields["conversations"], "conversations")
    system = fields.get("system")
    if system and not (turns and turns[0].role == "system"):
        turns = (Turn("system", _text(system, "'system'")), *turns)
    return _conversation(turns)


def _alpaca(fields: Mapping[str, Any]) -> Conversation:
    instruction = _text(fields["instruction"], "'instruction'")
    context = _text(fields.get("input") or "", "'input'")
    prompt = _PARAGRAPH.join(part for part in (instruction, context) if part.strip())
    return _single(fields, prompt, _text(fields["output"], "'output'"))


def _prompt(fields: Mapping[str, Any]) -> Conversation | Record:
    """A prompt and its response, both of which may be lists of messages, as TRL has it."""
    name = "completion" if "completion" in fields else "response"
    if not isinstance(fields["prompt"], list) and not isinstance(fields[name], list):
        prompt, response = (_text(fields[field], repr(field)) for field in ("prompt", name))
        if fields.get("system"):
            return _single(fields, prompt, response)
        return _record(Record(prompt, response))
    turns = (*_side(fields["prompt"], "prompt"), *_side(fields[name], name, "assistant"))
    if [turn.role for turn in turns] == ["user", "assistant"]:
        return Record(*(turn.text for turn in turns))
    return _conversation(turns)


def _record(record: Record) -> Record:
    if not record.response.strip():
        raise ValueError("the turn of the assistant is empty")
    return record


def _single(fields: Mapping[str, Any], prompt: str, reply: str) -> Conversation:
    system = _text(fields.get("system") or "", "'system'")
    turns = (Turn("user", prompt), Turn("assistant", reply))
    return _conversation((Turn("system", system), *turns) if system.strip() else turns)


def _preferences(fields: Mapping[str, Any]) -> PreferencePair:
    """The prompt is given, or is what both lists of messages begin with."""
    prompt = _side(fields["prompt"], "prompt") if "prompt" in fields else ()
    chosen, rejected = (_side(fields[name], name, "assistant") for name in ("chosen", "rejected"))
    # The messages of a side may repeat those of the prompt.
    chosen, rejected = (side[_shared(prompt, side) :] for side in (chosen, rejected))
    n_shared = _shared(chosen, rejected)
    prompt = (*prompt, *chosen[:n_shared])
    chosen, rejected = chosen[n_shared:], rejected[n_shared:]
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not any(turn.role == "assistant" for turn in side):
            same = " beside the other" if n_shared else ""
            raise ValueError(f"{name!r} has no reply of its own{same}")
    return PreferencePair(prompt, chosen, rejected)


def _shared(turns: Sequence[Turn], others: Sequence[Turn]) -> int:
    """How many turns both begin with."""
    n = 0
    for one, other in zip(turns, others, strict=False):
        if one != other:
            break
        n += 1
    return n


def _plain(fields: Mapping[str, Any]) -> str:
    return _text(fields["text"], "'text'")


def _side(value: Any, name: str, role: Role = "user") -> tuple[Turn, ...]:
    """A text of this role, or a list of messages."""
    if isinstance(value, list):
        return _turns(value, name)
    text = _text(value, repr(name))
    if not text.strip():
        raise ValueError(f"{name!r} is empty")
    return (Turn(role, text),)


def _turns(value: Any, name: str) -> tuple[Turn, ...]:
    """Return the turns of a list of messages; an empty system text is no turn."""
    if not isinstance(value, list):
        raise ValueError(f"{name!r} is {_kind(value)}, not a list")
    turns = (_turn(message, f"{name}[{number}]") for number, message in enumerate(value))
    return tuple(turn for turn in turns if turn.role != "system" or turn.text.strip())


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"{where} is {_kind(message)}, not an object")
    speaker = next((message[name] for name in ("role", "from") if name in message), None)
    if speaker is None:
        raise ValueError(f"{where} has no 'role', found the fields {names_of(list(message))}")
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"{where} has the role {str(speaker)[:40]!r}, not {', '.join(ROLES)}")
    field = next((name for name in ("content", "value") if name in message), None)
    if field is None:
        raise ValueError(f"{where} has no 'content', found the fields {names_of(list(message))}")
    text = _text(_joined(message[field], where), f"{where}: {field!r}")
    if not text.strip() and role in ("user", "assistant"):
        raise ValueError(f"{where}: the turn of the {role} is empty")
    return Turn(role, text)


def _joined(content: Any, where: str) -> Any:
    """The parts of a content that is a list of texts, as one."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise ValueError(f"{where} has a part that is no text")
    return "".join(_text(part.get("text"), f"{where}: 'text'") for part in content)


def _conversation(turns: tuple[Turn, ...]) -> Conversation:
    for turn in turns:
        if not turn.text.strip() and turn.role in ("user", "assistant"):
            raise ValueError(f"the turn of the {turn.role} is empty")
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("there is no turn of the assistant, so nothing to learn")
    return Conversation(turns)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_kind(value)}, not a string")
    if LONE_SURROGATE.search(value):
        raise ValueError(f"{name} holds half of a character (a lone surrogate)")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


_PARSERS: Mapping[RecordForm, Callable[[Mapping[str, Any]], Parsed]] = {
    "preferences": _preferences,
    "messages": _messages,
    "conversations": _sharegpt,
    "alpaca": _alpaca,
    "prompt": _prompt,
    "text": _plain,
}
