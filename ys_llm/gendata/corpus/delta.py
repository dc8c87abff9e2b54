"""The part that several values share, and the rest of each; recursive in mappings and lists.

`ys_llm.data.manifest` merges the two again.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any, TypeGuard

NOTHING = object()


def shared(values: list[Any]) -> Any:
    """The part that all values share, or NOTHING."""
    return reduce(_shared, values) if values else NOTHING


def _shared(a: Any, b: Any) -> Any:
    if a is NOTHING or b is NOTHING:
        return NOTHING
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found = {name: _shared(a[name], b[name]) for name in a if name in b}
        return {name: value for name, value in found.items() if value is not NOTHING}
    if _are_mappings(a) and _are_mappings(b) and len(a) == len(b):
        return [_shared(one, other) for one, other in zip(a, b, strict=True)]
    return a if a == b else NOTHING


def _are_mappings(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)


def without(value: Any, common: Any) -> Any:
    """What a value has beyond the shared part; NOTHING if they are equal."""
    if common is NOTHING:
        return value
    if value == common:
        return NOTHING
    if isinstance(value, Mapping):
        rest = {name: without(own, common.get(name, NOTHING)) for name, own in value.items()}
        return {name: own for name, own in rest.items() if own is not NOTHING}
    rests = [without(own, part) for own, part in zip(value, common, strict=True)]
    return [{} if rest is NOTHING else rest for rest in rests]
