"""One try at an item: ask, put together, mend, verify; a record, or a named reason why not.

Nothing here depends on other items, so that tries may run beside each other in any order.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ys_llm.data.records import END, START, Record
from ys_llm.gendata.curation.rule import Rule, apply_rules
from ys_llm.gendata.curation.rules import rules_named
from ys_llm.gendata.generation.journal import Question, Rejection
from ys_llm.gendata.recipes import items
from ys_llm.gendata.recipes.items import Item
from ys_llm.gendata.recipes.recipe import Kind, Step
from ys_llm.gendata.record import END, START, Record

if TYPE_CHECKING:
    from ys_llm.gendata.backends.ollama import Answer, Request

    Ask = Callable[[Request], Answer]

# What a reader of the corpus would take for something else, or refuse.
_UNUSABLE = re.compile(f"{START}|{END}|\0|\ufeff|[\ud800-\udfff]")


@dataclass(frozen=True)
class Bench:
    """A kind with all that its tries need; `ask` is None where no model is asked."""

    kind: Kind
    rules: tuple[Rule, ...]
    ask: "Ask | None"


@dataclass(frozen=True)
class Attempt:
    """What came of a try; exactly one of `record` and `rejection` is there."""

    record: Record | None
    rejection: Rejection | None
    asked: tuple[Question, ...]
    model_digest: str
    mended: tuple[str, ...]
    seconds: float


@dataclass
class _Work:
    """A try that is under way."""

    answers: dict[str, str] = field(default_factory=dict)
    asked: list[Question] = field(default_factory=list)
    model_digest: str = ""
    mended: tuple[str, ...] = ()


class _RejectedError(Exception):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.rejection = Rejection(name, reason)


def bench(kind: Kind, ask: "Ask | None") -> Bench:
    """Prepare a kind. Raises UserError for rules that nobody knows."""
    return Bench(kind, rules_named(kind.spec.rules), ask)


def attempt(on: Bench, item: Item, number: int) -> Attempt:
    """Try number `number` (the first is 0) at an item; each has seeds of its own.

    Raises what the back end raises, but for an empty answer, which another seed may mend.
    """
    work, began = _Work(), time.monotonic()
    record, rejection = None, None
    try:
        record = _record(on, item, number, work)
    except _RejectedError as error:
        rejection = error.rejection
    seconds = time.monotonic() - began
    asked = tuple(work.asked)
    return Attempt(record, rejection, asked, work.model_digest, work.mended, seconds)


def _record(on: Bench, item: Item, number: int, work: _Work) -> Record:
    if on.kind.spec.backend == "program" and number:
        item = replace(item, key=f"{item.key}:{number}")  # other random numbers for the program
    for step in on.kind.spec.ask:
        work.answers[step.name] = _answer(on, step, item, number, work)
    raw = items.record(on.kind, item, work.answers)
    curated = apply_rules(Record(raw.prompt.strip(), raw.response.strip("\r\n")), on.rules)
    work.mended = tuple(dict.fromkeys(edit.rule for edit in curated.edits))
    if curated.record is None:
        assert curated.verdict is not None, raw
        raise _RejectedError(curated.verdict.rule, curated.verdict.reason)
    _refuse_unusable(curated.record)
    slots = {**item.slots, **work.answers}
    if problem := items.problem(on.kind, curated.record, slots):
        name, _, reason = problem.partition(": ")
        raise _RejectedError(name, reason)
    return curated.record


def _answer(on: Bench, step: Step, item: Item, number: int, work: _Work) -> str:
    """Ask one step's question and note it; a rejection where the answer is no whole one."""
    from ys_llm.gendata.backends.failures import EmptyAnswerError
    from ys_llm.gendata.backends.ollama import Request

    assert on.ask is not None, on.kind.name
    prompt, system = items.question(on.kind, step, item, work.answers)
    options: Mapping[str, int | float] = items.options(on.kind, step, item, attempt=number)
    work.asked.append(Question(prompt, system, options))
    try:
        answer = on.ask(Request(on.kind.spec.model, prompt, system, options))
    except EmptyAnswerError as error:
        raise _RejectedError("empty_answer", error.problem) from error
    work.model_digest = answer.model_digest
    if answer.done_reason == "length":
        limit = f"{options['num_predict']} tokens (num_predict)"
        raise _RejectedError("cut_off", f"the answer to {step.name!r} is longer than {limit}")
    text = items.taken(step, answer.text)
    if not text:
        raise _RejectedError("empty_answer", f"nothing of the answer to {step.name!r} counts")
    return text


def _refuse_unusable(record: Record) -> None:
    for part in (record.prompt, record.response):
        if found := _UNUSABLE.search(part):
            raise _RejectedError("unusable", f"{found[0]!a} is no character of a record")
    if not record.prompt or not record.response.strip():
        raise _RejectedError("unusable", "prompt or response is empty")
