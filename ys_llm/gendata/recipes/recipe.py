"""Recipes: how to make the records of one kind, as one YAML file describes it.

The text of a kind comes from a language model (backend `ollama`), from a program of this project
(`program`), or from both (`chain`: a program makes up the facts, the model puts them into words, a
program verifies the result).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import perm
from typing import TYPE_CHECKING, Any, Literal

from ys_llm.config.strict_reader import setting, to_plain
from ys_llm.gendata.verifiers.verify import Verify, verifier

if TYPE_CHECKING:
    from ys_llm.gendata.curation.rule import Rule

COLUMN = " | "  # separates the columns of a topic file
MAX_RANGE = 100_000  # numbers
MAX_RECORDS = 1_000_000  # of a kind: 1 GB of stories; an upper bound against typos
NOT_IN_DIGEST = (  # they do not change what a record says
    "description",
    "count",
    "max_tries",
    "deadlines",
)


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling options of the model; all of them are sent with every request."""

    temperature: float = setting(0.8, "0 is greedy", minimum=0, maximum=2)
    top_k: int = setting(40, "sample from the k most likely tokens", minimum=1)
    top_p: float = setting(0.9, "nucleus sampling", above=0, maximum=1)
    num_predict: int = setting(1024, "maximum length of the answer in tokens", minimum=1)
    num_ctx: int = setting(4096, "context length: prompt and answer, in tokens", minimum=64)

    def __post_init__(self) -> None:
        if self.num_predict >= self.num_ctx:
            raise ValueError(
                f"num_predict {self.num_predict} leaves no space for a prompt in num_ctx "
                f"{self.num_ctx}"
            )


@dataclass(frozen=True)
class Deadlines:
    """How long a server may take, in seconds."""

    connect: float = setting(5.0, "to connect", above=0)
    first: float = setting(300.0, "for the first token, with loading the model", above=0)
    stall: float = setting(60.0, "between two tokens", above=0)
    total: float = setting(900.0, "for an answer with all its tries", above=0)

    def longest(self, other: "Deadlines") -> "Deadlines":
        """The longer of each pair of deadlines."""
        pairs = {
            one.name: (getattr(self, one.name), getattr(other, one.name)) for one in fields(self)
        }
        return Deadlines(**{name: max(pair) for name, pair in pairs.items()})

    def __str__(self) -> str:
        return (
            f"{self.connect:g} s to connect, {self.first:g} s for the first token, "
            f"{self.stall:g} s between two, {self.total:g} s for an answer"
        )


@dataclass(frozen=True)
class SlotSource:
    """Where the values of a slot come from: the lines of a file, a list, or a range of numbers."""

    file: str = setting("", "one topic per line, relative to the folder of the kind file")
    of: tuple[str, ...] = setting((), "the topics themselves")
    low: int | None = setting(None, "first number of a range")
    high: int | None = setting(None, "last number of a range")
    choose: int = setting(1, "number of different topics, for as many slots", minimum=1)

    def __post_init__(self) -> None:
        ranged = self.low is not None and self.high is not None
        if (bool(self.file), bool(self.of), ranged).count(True) != 1:
            raise ValueError("give one of file, of, or low and high")
        if ranged and not 1 <= (self.high or 0) - (self.low or 0) + 1 <= MAX_RANGE:
            raise ValueError(f"low to high must be 1 to {MAX_RANGE:,} numbers")


@dataclass(frozen=True)
class AskStep:
    """One prompt to the model; the answer becomes the slot `name` of everything after it."""

    prompts: tuple[str, ...] = setting((), "templates; one is chosen for each item")
    name: str = setting(
        "answer",
        "slot of the answer",
        pattern=r"[a-z][a-z0-9_]*",
        pattern_help="a word in lower case",
    )
    system: str = setting("", "system prompt, a template")
    take: Literal["all", "line"] = setting("all", "`line`: the first line, without decoration")
    sampling: Mapping[str, int | float] = field(default_factory=dict)
    format: str | Mapping[str, Any] = setting(
        "", "`json`, or a JSON schema that the answer must meet; sent with the request"
    )


@dataclass(frozen=True)
class RecordTemplates:
    """Templates of the record."""

    prompts: tuple[str, ...] = setting((), "one is chosen for each item")
    response: str = setting("{answer}", "the response")


@dataclass(frozen=True)
class RecipeSpec:
    """The content of a kind file."""

    description: str = setting("", "one line for --list")
    backend: Literal["ollama", "program", "chain"] = setting("ollama", "who writes the text")
    model: str = setting("llama3.1", "name of the model")
    program: str = setting("", "the program that makes the record, or the facts of a chain")
    slots: Mapping[str, str | tuple[str, ...] | SlotSource] = field(default_factory=dict)
    combine: Literal["product", "sample"] = setting(
        "product", "every combination once before any repeats, or each slot sampled by itself"
    )
    ask: tuple[AskStep, ...] = setting((), "prompts to the model, in this order")
    output: RecordTemplates = field(default_factory=RecordTemplates)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    deadlines: Deadlines = field(default_factory=Deadlines)
    rules: tuple[str, ...] = setting(("standard",), "curation rules, or sets of them")
    verifiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    count: int = setting(100, "number of items to make", minimum=1, maximum=MAX_RECORDS)
    max_tries: int = setting(3, "tries per item, each with a new seed", minimum=1)


@dataclass(frozen=True)
class SlotValues:
    """One or several slots that are filled together, and the topics they take values from."""

    names: tuple[str, ...]
    lines: tuple[str, ...]
    choose: int

    @property
    def size(self) -> int:
        """Number of different values; for `choose: 2`, of ordered pairs."""
        return perm(len(self.lines), self.choose)

    def value(self, index: int) -> dict[str, str]:
        """Value `index` of `size`, by slot name."""
        if self.choose == 1:
            cells = self.lines[index].split(COLUMN) if len(self.names) > 1 else [self.lines[index]]
            return dict(zip(self.names, cells, strict=True))
        free, chosen = list(self.lines), []
        for _ in range(self.choose):
            index, position = divmod(index, len(free))
            chosen.append(free.pop(position))
        return dict(zip(self.names, chosen, strict=True))


@dataclass(frozen=True)
class Recipe:
    """A checked kind file, with the topics that its slots name; `name` is that of the kind."""

    name: str
    spec: RecipeSpec
    slots: tuple[SlotValues, ...]

    @cached_property
    def digest(self) -> str:
        """Hash of everything that decides what a record says; comments and `count` do not.

        The names of all fields are part of it: renaming one changes every record.
        """
        content = {
            name: value for name, value in to_plain(self.spec).items() if name not in NOT_IN_DIGEST
        }
        content["slots"] = [to_plain(slot) for slot in self.slots]
        for step in content["ask"]:
            if not step["format"]:  # so that recipes without one keep their digests
                del step["format"]
        text = json.dumps([self.name, content], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def uses_model(self) -> bool:
        """Whether a language model writes the text, or part of it."""
        return self.spec.backend != "program"

    @property
    def combinations(self) -> int:
        """Number of different items that the slots allow; 1 without slots."""
        total = 1
        for slot in self.slots:
            total *= slot.size
        return total

    def with_model(self, model: str) -> "Recipe":
        """The same recipe for another model: another digest, so other items."""
        return replace(self, spec=replace(self.spec, model=model))

    def sampling(self, step: AskStep) -> SamplingOptions:
        """Sampling options of one step: those of the kind, overridden by the step's own."""
        return replace(self.spec.sampling, **step.sampling)  # type: ignore[arg-type]

    def format_of(self, step: AskStep) -> str | Mapping[str, Any]:
        """The form that a request asks for: the step's own; the last is JSON where it is verified.

        An object with the keys that the verifier `json` wants, as a JSON schema.
        """
        wanted = self.spec.verifiers.get("json")
        if step.format or wanted is None or step is not self.spec.ask[-1]:
            return step.format
        keys = list(wanted.get("keys", ()))
        return {"type": "object", "properties": {k: {} for k in keys}, "required": keys}

    @cached_property
    def rules(self) -> tuple["Rule", ...]:
        """The curation rules. Raises UserError for an unknown name."""
        from ys_llm.gendata.curation.rules import rules_named

        return rules_named(self.spec.rules)

    @cached_property
    def verifiers(self) -> tuple[tuple[str, Verify], ...]:
        """The verifiers by name, each with its settings."""
        chosen = self.spec.verifiers.items()
        return tuple((name, verifier(name, settings)) for name, settings in chosen)
