"""Verifiers: checks of a record by a program.

Each takes the record and the slots it was made from, and returns "" or the reason why the record is
wrong. Further parameters are settings, which a kind file gives by name.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_type_hints

from ys_llm.config.strict_reader import StrictReader, raise_problems
from ys_llm.data.records import Record
from ys_llm.gendata.verifiers.code import python, regex, sql
from ys_llm.gendata.verifiers.constraints import constraints
from ys_llm.gendata.verifiers.sums import arithmetic, spelling
from ys_llm.gendata.verifiers.tables import facts_in_prose, table
from ys_llm.gendata.verifiers.text import (
    absent,
    agree,
    blank,
    json_object,
    lines,
    mentions,
    one_of,
    question,
    speakers,
    unlike,
    words,
)

Verify = Callable[[Record, Mapping[str, str]], str]

VERIFIERS: Mapping[str, Callable[..., str]] = {
    "absent": absent,
    "agree": agree,
    "arithmetic": arithmetic,
    "blank": blank,
    "constraints": constraints,
    "facts_in_prose": facts_in_prose,
    "json": json_object,
    "lines": lines,
    "mentions": mentions,
    "one_of": one_of,
    "python": python,
    "question": question,
    "regex": regex,
    "speakers": speakers,
    "spelling": spelling,
    "sql": sql,
    "table": table,
    "unlike": unlike,
    "words": words,
}


def verifier(name: str, settings: Mapping[str, Any]) -> Verify:
    """The verifier of this name with its settings. Raises UserError with all problems."""
    path = f"verifiers.{name}"
    if name not in VERIFIERS:
        raise_problems([f"{path} is not a verifier. {_nearest(name, list(VERIFIERS))}"])
    function = VERIFIERS[name]
    known = list(inspect.signature(function).parameters)[2:]
    hints = get_type_hints(function)
    reader = StrictReader(object, lambda _path: path)
    problems = [
        f"{path}.{given} is not a setting. {_nearest(given, known)}"
        for given in settings
        if given not in known
    ]
    values = {
        given: reader.read(hints[given], value, given)
        for given, value in settings.items()
        if given in known
    }
    raise_problems(problems + reader.problems)
    return partial(function, **values)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Expected one of {', '.join(known) or 'none'}."
