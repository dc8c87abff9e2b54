"""The strict reader: plain data in, frozen dataclasses out, every problem reported at once.

It knows none of this project's fields. The metadata of a field may hold `help` (one line), limits
on numbers (`minimum`, `maximum` inclusive; `above`, `below` exclusive), a `pattern` that must match
all of a text, with `pattern_help` in words, and `synonyms`: other words for its choices.
A dataclass may check fields against each other in `__post_init__` by raising ValueError.
"""

import dataclasses
import difflib
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ys_llm.errors import EXIT_USAGE, UserError

_MAX_SHOWN = 60  # characters of a wrong value in a message, which should stay one line
_MAX_INT = 2**63 - 1  # what torch, numpy and safetensors can hold
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_MISSING = dataclasses.MISSING
INVALID = object()  # stands for a value whose problem was reported when it was parsed
T = TypeVar("T")


def setting(default: Any, help: str, **limits: Any) -> Any:
    """Declare a dataclass field with its one-line help and its limits; see the top of this file."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def parse_dataclass(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """Read `mapping` as a `cls`; `where` (a file, or `model.options`) opens each message.

    Raises UserError with one line for every problem: unknown, missing, of the wrong type, out of
    range.
    """
    reader = StrictReader(cls, lambda _path: where)
    instance: T = reader.read(cls, mapping, "")
    raise_problems(reader.problems)
    return instance


def raise_problems(problems: list[str]) -> None:
    """Raise all `problems`, one a line, as one UserError; do nothing where there are none."""
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)), exit_code=EXIT_USAGE)


def to_plain(value: Any) -> Any:
    """Turn dataclasses, mappings and sequences into the dicts and lists that YAML and JSON know."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return value


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map dotted names to values; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        path = join(prefix, name)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def field_helps(cls: Any, prefix: str = "") -> dict[str, str]:
    """Map the dotted name of each field of `cls`, and of the dataclasses inside, to its help."""
    hints = get_type_hints(cls)
    helps: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        path = join(prefix, field.name)
        helps[path] = field.metadata.get("help", "")
        if dataclasses.is_dataclass(hints[field.name]):
            helps.update(field_helps(hints[field.name], path))
    return helps


def join(prefix: str, name: str | int) -> str:
    """Append one name to a dotted path."""
    return f"{prefix}.{name}" if prefix else str(name)


class StrictReader:
    """Reads values by their type annotations and collects problems instead of stopping at one."""

    def __init__(self, root: type, locate: Callable[[str], str]) -> None:
        """`root` is searched for suggestions; `locate` maps a dotted path to its origin."""
        self.problems: list[str] = []
        self._failures = 0  # problems, and values that were INVALID already
        self._root = root
        self._locate = locate

    def read(self, kind: Any, value: Any, path: str) -> Any:
        """Return `value` as a `kind`; after a problem the result is meaningless."""
        if value is INVALID:
            self._failures += 1
            return None
        origin = get_origin(kind)
        if dataclasses.is_dataclass(kind):
            return self._read_dataclass(kind, value, path)
        if origin in (Union, types.UnionType):
            return self._read_union(kind, value, path)
        if origin is Literal:
            return self._read_choice(kind, value, path)
        if origin is tuple:
            return self._read_tuple(kind, value, path)
        if origin is not None and issubclass(origin, Mapping):
            return self._read_mapping(kind, value, path)
        if kind is float and _is_number(value):
            return float(value)
        if not _is_plain(kind, value):
            self._wrong(kind, value, path)
        elif kind is int and _beyond_64_bits(value):
            words = f"at most {_MAX_INT}" if value > 0 else f"at least {-_MAX_INT}"
            self._report(path, f"{path} must be {words}, found {_shown(value)}")
        elif kind is str and _HALF_CHARACTER.search(value):
            self._report(path, f"{path} must be text in UTF-8, found {_shown(value)}")
        return value

    def _read_dataclass(self, cls: Any, value: Any, path: str) -> Any:
        if value is None:  # a section whose every line is commented out
            value = {}
        if not isinstance(value, Mapping):
            return self._wrong(cls, value, path)
        failures_before = self._failures
        hints, arguments = get_type_hints(cls), {}
        for name in value:
            if name not in hints:
                self._unknown(cls, path, str(name))
        for field in dataclasses.fields(cls):
            inner = join(path, field.name)
            if field.name in value:
                if _is_synonym(field.metadata, value[field.name]):
                    self._synonym(hints[field.name], field.metadata, value[field.name], inner)
                    continue
                arguments[field.name] = self.read(hints[field.name], value[field.name], inner)
                shown = _shown(value[field.name])
                self._check_limits(field.metadata, arguments[field.name], inner, shown=shown)
            elif field.default is _MISSING and field.default_factory is _MISSING:
                self._report(inner, f"{inner} is missing, expected {_expected(hints[field.name])}")
        if self._failures > failures_before:
            return None
        return self._build(cls, arguments, path)

    def _build(self, cls: Any, arguments: Mapping[str, Any], path: str) -> Any:
        try:
            return cls(**arguments)
        except ValueError as error:
            self._report(path, f"{path}: {error}" if path else str(error))
            return None

    def _read_union(self, kind: Any, value: Any, path: str) -> Any:
        members = get_args(kind)
        if value is None and type(None) in members:
            return None
        members = tuple(member for member in members if member is not type(None))
        if len(members) == 1 and not _is_plain_kind(members[0]):
            return self.read(members[0], value, path)  # its own messages say more
        for member in members:
            attempt = StrictReader(self._root, self._locate)
            result = attempt.read(member, value, path)
            if not attempt._failures:
                return result
            if _is_plain_kind(member) and _is_plain(member, value):  # right but for its size
                self.problems += attempt.problems
                self._failures += attempt._failures
                return value
        return self._wrong(kind, value, path)

    def _read_choice(self, kind: Any, value: Any, path: str) -> Any:
        choices = get_args(kind)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        self._wrong(kind, value, path, hint=f". Did you mean {near[0]}?" if near else "")
        return None

    def _read_tuple(self, kind: Any, value: Any, path: str) -> Any:
        members = get_args(kind)
        if not isinstance(value, list | tuple):
            return self._wrong(kind, value, path)
        if members[-1] is Ellipsis:
            members = (members[0],) * len(value)
        if len(value) != len(members):
            return self._wrong(kind, value, path)
        pairs = enumerate(zip(members, value, strict=True))
        return tuple(self.read(member, item, join(path, i)) for i, (member, item) in pairs)

    def _read_mapping(self, kind: Any, value: Any, path: str) -> Any:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            return self._wrong(kind, value, path)
        for name in value:
            if not isinstance(name, str):
                self._report(path, f"{path} has the name {_shown(name)}, expected text")
        member = get_args(kind)[1]
        return {name: self.read(member, item, join(path, name)) for name, item in value.items()}

    def _check_limits(
        self, limits: Mapping[str, Any], value: Any, path: str, *, shown: str
    ) -> None:
        if isinstance(value, str) and "pattern" in limits:
            if not re.fullmatch(limits["pattern"], value):
                self._report(path, f"{path} must be {limits['pattern_help']}, found {shown}")
        elif _is_number(value) and not _beyond_64_bits(value):
            for words in _broken_limits(limits, value):
                self._report(path, f"{path} must be {words}, found {shown}")

    def _synonym(self, kind: Any, metadata: Mapping[str, Any], value: Any, path: str) -> None:
        self._wrong(kind, value, path, hint=f". Did you mean {metadata['synonyms'][value]}?")

    def _unknown(self, cls: Any, path: str, name: str) -> None:
        full = join(path, name)
        self._report(full, f"{full} is not a field. {_suggestion(self._root, cls, path, name)}")

    def _wrong(self, kind: Any, value: Any, path: str, hint: str = "") -> None:
        quote = isinstance(value, int | float) and kind is str
        hint = hint or (". Put it in quotes to make it text." if quote else "")
        subject = path or "the content"
        self._report(path, f"{subject} must be {_expected(kind)}, found {_shown(value)}{hint}")

    def _report(self, path: str, message: str) -> None:
        self._failures += 1
        self.problems.append(f"{self._locate(path)}: {message}")


def _is_synonym(metadata: Mapping[str, Any], value: Any) -> bool:
    return isinstance(value, str) and value in metadata.get("synonyms", {})


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _beyond_64_bits(value: float) -> bool:
    return isinstance(value, int) and abs(value) > _MAX_INT


def _is_plain_kind(kind: Any) -> bool:
    return kind in (Any, bool, int, float, str)


def _is_plain(kind: Any, value: Any) -> bool:
    if not _is_plain_kind(kind):
        raise TypeError(f"the strict reader does not know the annotation {kind!r}")
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or (kind is not float and isinstance(value, kind))


def _broken_limits(limits: Mapping[str, Any], value: float) -> list[str]:
    infinity = math.inf
    kept = {
        f"at least {limits.get('minimum')}": value >= limits.get("minimum", -infinity),
        f"at most {limits.get('maximum')}": value <= limits.get("maximum", infinity),
        f"above {limits.get('above')}": value > limits.get("above", -infinity),
        f"below {limits.get('below')}": value < limits.get("below", infinity),
    }
    return [words for words, holds in kept.items() if not holds]


def _expected(kind: Any) -> str:
    words = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}
    origin, members = get_origin(kind), get_args(kind)
    if kind in words:
        return words[kind]
    if kind is type(None):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in members)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(member) for member in members)
    if origin is tuple:
        if members[-1] is Ellipsis:
            return f"a list, each {_expected(members[0])}"
        return f"a list of {len(members)}: " + ", ".join(_expected(member) for member in members)
    return "a mapping of names to values"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _suggestion(root: Any, cls: Any, path: str, name: str) -> str:
    names = [field.name for field in dataclasses.fields(cls)]
    elsewhere = [known for known in field_helps(root) if known.rpartition(".")[2] == name]
    if elsewhere:
        return f"Did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    hints = get_type_hints(cls)
    free = [known for known in names if get_origin(hints[known]) in (Mapping,)]
    note = "".join(f" {join(path, known)} takes names of its own." for known in free)
    return f"The fields here are {', '.join(names)}.{note}"
