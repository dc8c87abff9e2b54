"""One try at an item: ask, assemble, fix, verify; a record, or a rejection with its reason.

A try depends on no other item, so tries may run concurrently in any order.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ys_llm.data.records import END, START, Record
from ys_llm.gendata.backends.chat import (
    REASONING_TAG,
    ChatAnswer,
    ChatRequest,
    context_is_full,
    did_not_fit,
    too_long,
    without_reasoning,
)
from ys_llm.gendata.curation.rule import apply_rules
from ys_llm.gendata.generation.journal import Rejection, SentRequest
from ys_llm.gendata.recipes import items
from ys_llm.gendata.recipes.items import PlannedItem
from ys_llm.gendata.recipes.recipe import AskStep, Recipe

Ask = Callable[[str, ChatRequest], ChatAnswer]  # (key of the item, request)

# A reader of the corpus would misread these, or refuse the file.
_UNUSABLE = re.compile(f"{START}|{END}|\0|\ufeff|[\ud800-\udfff]")


@dataclass
class Attempt:
    """One try and its result: either `record` or `rejection` is set at the end."""

    record: Record | None = None
    rejection: Rejection | None = None
    answers: dict[str, str] = field(default_factory=dict)  # by step
    requests: list[SentRequest] = field(default_factory=list)
    model_digest: str = ""
    server: str = ""
    fixed: tuple[str, ...] = ()
    seconds: float = 0.0


class _RejectedError(Exception):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.rejection = Rejection(name, reason)


def attempt(recipe: Recipe, item: PlannedItem, number: int, ask: Ask) -> Attempt:
    """Try number `number` (from 0) at an item; each number has its own seeds.

    Raises what the back end raises, except for an empty answer, which another seed may avoid.
    """
    began, state = time.monotonic(), Attempt()
    if not recipe.uses_model and number:
        item = replace(item, key=f"{item.key}:{number}")  # other random numbers for the program
    try:
        for step in recipe.spec.ask:
            state.answers[step.name] = _answer(recipe, step, item, number, state, ask)
        state.record = _record(recipe, item, state)
    except _RejectedError as error:
        state.rejection = error.rejection
    state.seconds = time.monotonic() - began
    return state


def _record(recipe: Recipe, item: PlannedItem, state: Attempt) -> Record:
    raw = items.record_of(recipe, item, state.answers)
    curated = apply_rules(Record(raw.prompt.strip(), raw.response.strip("\r\n")), recipe.rules)
    state.fixed = tuple(dict.fromkeys(edit.rule for edit in curated.edits))
    if curated.record is None:
        assert curated.verdict is not None, raw
        raise _RejectedError(curated.verdict.rule, curated.verdict.reason)
    _check_usable(curated.record)
    if failed := items.verify(recipe, curated.record, {**item.slots, **state.answers}):
        raise _RejectedError(*failed)
    return curated.record


def _answer(
    recipe: Recipe, step: AskStep, item: PlannedItem, number: int, state: Attempt, ask: Ask
) -> str:
    """Send one step to the model; a rejection if the answer is not complete and usable."""
    prompt, system = items.prompt_of(step, item, state.answers)
    options = items.options_of(recipe, step, item, attempt=number)
    if reason := too_long(prompt, system, options):
        raise _RejectedError("prompt_too_long", reason)
    state.requests.append(SentRequest(prompt, system, options))
    answer = _ask(
        ask, item, ChatRequest(recipe.spec.model, prompt, system, options, recipe.format_of(step))
    )
    state.model_digest, state.server = answer.model_digest, answer.server
    if reason := did_not_fit(prompt, system, answer):
        raise _RejectedError("did_not_fit", reason)
    if context_is_full(answer, options):
        raise _RejectedError("context_full", f"prompt and answer fill num_ctx {options['num_ctx']}")
    if answer.done_reason == "length":
        limit = f"{options['num_predict']} tokens (num_predict)"
        raise _RejectedError("cut_off", f"the answer to {step.name!r} is longer than {limit}")
    return _usable_part(step, answer.text)


def _ask(ask: Ask, item: PlannedItem, request: ChatRequest) -> ChatAnswer:
    from ys_llm.gendata.backends.failures import DidNotFitError, EmptyAnswerError

    try:
        return ask(item.key, request)
    except DidNotFitError as error:
        raise _RejectedError("did_not_fit", str(error)) from error
    except EmptyAnswerError as error:
        raise _RejectedError("empty_answer", error.problem) from error


def _usable_part(step: AskStep, text: str) -> str:
    text = without_reasoning(text)
    if tag := REASONING_TAG.search(text):
        raise _RejectedError("reasoning", f"a {tag[0]} remains in the answer to {step.name!r}")
    if part := items.extract(step, text):
        return part
    raise _RejectedError("empty_answer", f"the answer to {step.name!r} holds no usable text")


def _check_usable(record: Record) -> None:
    for part in (record.prompt, record.response):
        if found := _UNUSABLE.search(part):
            raise _RejectedError("unusable", f"{found[0]!a} must not occur in a record")
    if not record.prompt or not record.response.strip():
        raise _RejectedError("unusable", "prompt or response is empty")
