"""Kinds of records: one YAML file each says what is asked, of whom, and what becomes a record.

A kind's text comes from a language model (`ollama`), from a program of this project (`program`),
or from both (`chain`: a program invents the facts, the model tells them, a program verifies).
A new kind is a new file in the folder; nothing else is edited.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import perm
from pathlib import Path
from typing import Any, Literal

from ys_llm.config.sources import load_dataclass
from ys_llm.config.strict_reader import parse_dataclass, raise_problems, setting, to_plain
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.gendata.programs.registry import FACTS, MAKERS
from ys_llm.gendata.recipes.templates import names_in
from ys_llm.gendata.verifiers.verify import Verify, verifier

DEFAULT_FOLDER = Path("configs/gen/kinds")
COLUMN = " | "  # parts the columns of a topic file
MOST_NUMBERS = 100_000  # in one range
MOST_RECORDS = 1_000_000  # of a kind: 1 GB of stories; what nobody can want would never end
MOST_BYTES = 10_000_000  # of a file of topics; /dev/zero has no end
WITHOUT_EFFECT = ("description", "count", "max_tries")  # on what a record says; more may be asked


@dataclass(frozen=True)
class Sampling:
    """How a model chooses its words; every value is always sent."""

    temperature: float = setting(0.8, "0 always takes the likeliest word", minimum=0, maximum=2)
    top_k: int = setting(40, "choose among so many likeliest tokens", minimum=1)
    top_p: float = setting(0.9, "choose within this share of probability", above=0, maximum=1)
    num_predict: int = setting(1024, "longest answer in tokens", minimum=1)
    num_ctx: int = setting(4096, "prompt and answer together, in tokens", minimum=64)

    def __post_init__(self) -> None:
        if self.num_predict >= self.num_ctx:
            raise ValueError(f"num_predict {self.num_predict} leaves no room in {self.num_ctx}")


@dataclass(frozen=True)
class Topics:
    """What a slot can hold: lines of a file, a list, or a range of numbers."""

    file: str = setting("", "one topic a line, relative to the folder of the kind file")
    of: tuple[str, ...] = setting((), "the topics themselves")
    low: int | None = setting(None, "the first number of a range")
    high: int | None = setting(None, "the last number of a range")
    choose: int = setting(1, "so many different ones, for as many slots", minimum=1)

    def __post_init__(self) -> None:
        ranged = self.low is not None and self.high is not None
        if (bool(self.file), bool(self.of), ranged).count(True) != 1:
            raise ValueError("give one of file, of, or low and high")
        if ranged and not 1 <= (self.high or 0) - (self.low or 0) + 1 <= MOST_NUMBERS:
            raise ValueError(f"low to high must be 1 to {MOST_NUMBERS:,} numbers")


@dataclass(frozen=True)
class Step:
    """One question to the model; its answer becomes the slot `name` of all that follows."""

    prompts: tuple[str, ...] = setting((), "templates, one is chosen for each item")
    name: str = setting(
        "answer", "slot of the answer", pattern=r"[a-z][a-z0-9_]*", pattern_help="a small word"
    )
    system: str = setting("", "system text, a template")
    take: Literal["all", "line"] = setting("all", "`line`: the first line, bare of decoration")
    sampling: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """What becomes the record, as templates."""

    prompts: tuple[str, ...] = setting((), "one is chosen for each item")
    response: str = setting("{answer}", "the response")


@dataclass(frozen=True)
class Spec:
    """What a kind file says."""

    description: str = setting("", "one line for --list")
    backend: Literal["ollama", "program", "chain"] = setting("ollama", "who writes the text")
    model: str = setting("llama3.1", "the model that is asked")
    program: str = setting("", "the program that makes the record, or the facts of a chain")
    slots: Mapping[str, str | tuple[str, ...] | Topics] = field(default_factory=dict)
    combine: Literal["product", "sample"] = setting(
        "product", "every combination once before any twice, or each slot drawn by itself"
    )
    ask: tuple[Step, ...] = setting((), "questions to the model, in this order")
    output: Output = field(default_factory=Output)
    sampling: Sampling = field(default_factory=Sampling)
    rules: tuple[str, ...] = setting(("standard",), "rules of curation, or sets of them")
    verifiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    count: int = setting(100, "records that a run aims at", minimum=1, maximum=MOST_RECORDS)
    max_tries: int = setting(3, "times an item is asked again with a new seed", minimum=1)


@dataclass(frozen=True)
class Slot:
    """One or several slots that are filled together, from lines read."""

    names: tuple[str, ...]
    lines: tuple[str, ...]
    choose: int

    @property
    def size(self) -> int:
        """How many values there are: for `choose: 2`, all ordered pairs."""
        return perm(len(self.lines), self.choose)

    def value(self, index: int) -> dict[str, str]:
        """Value `index` of `size`, by slot name."""
        if self.choose == 1:
            cells = self.lines[index].split(COLUMN) if len(self.names) > 1 else [self.lines[index]]
            return dict(zip(self.names, cells, strict=True))
        free, chosen = list(self.lines), []
        for _ in range(self.choose):
            index, place = divmod(index, len(free))
            chosen.append(free.pop(place))
        return dict(zip(self.names, chosen, strict=True))


@dataclass(frozen=True)
class Kind:
    """A kind file with the topics it names, checked."""

    name: str
    spec: Spec
    slots: tuple[Slot, ...]

    @cached_property
    def digest(self) -> str:
        """Hash of all that decides what a record says; a comment or a larger count does not."""
        content = {
            name: value for name, value in to_plain(self.spec).items() if name not in WITHOUT_EFFECT
        }
        content["slots"] = [to_plain(slot) for slot in self.slots]
        text = json.dumps([self.name, content], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def combinations(self) -> int:
        """How many different items the slots allow; one where there are no slots."""
        total = 1
        for slot in self.slots:
            total *= slot.size
        return total

    def with_model(self, model: str) -> "Kind":
        """The same kind, asked of another model: another digest, so other items."""
        return replace(self, spec=replace(self.spec, model=model))

    def sampling(self, step: Step) -> Sampling:
        """The sampling of one step: the kind's own, but for what the step says."""
        return replace(self.spec.sampling, **step.sampling)  # type: ignore[arg-type]

    @cached_property
    def verifiers(self) -> tuple[tuple[str, Verify], ...]:
        """The verifiers by name, each with its settings."""
        chosen = self.spec.verifiers.items()
        return tuple((name, verifier(name, settings)) for name, settings in chosen)


def find_kinds(folder: Path = DEFAULT_FOLDER) -> dict[str, Path]:
    """The kind files of a folder by name, sorted. Raises UserError where there is none."""
    paths = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not paths:
        found = "holds no kind files (*.yaml)" if folder.is_dir() else "is not a folder"
        raise UserError(
            f"{folder} {found}",
            "Run this in the repository of ys, or give the folder of your kind files.",
            exit_code=EXIT_USAGE,
        )
    return paths


def program_kinds(folder: Path = DEFAULT_FOLDER) -> list[Kind]:
    """All kinds that programs write, by name: the corpus that needs no model."""
    kinds = (load_kind(path) for path in find_kinds(folder).values())
    return [kind for kind in kinds if kind.spec.backend == "program"]


def load_kinds(names: Sequence[str], folder: Path = DEFAULT_FOLDER) -> list[Kind]:
    """The kinds of these names. Raises UserError naming every unknown one."""
    paths = find_kinds(folder)
    unknown = [name for name in names if name not in paths]
    if unknown:
        raise UserError(
            f"{folder} has no kind {', '.join(unknown)}",
            f"The kinds here are {', '.join(paths)}.",
            exit_code=EXIT_USAGE,
        )
    return [load_kind(paths[name]) for name in dict.fromkeys(names)]


def load_kind(path: Path) -> Kind:
    """Read a kind file and its topics strictly. Raises UserError with every problem."""
    spec: Spec = load_dataclass(Spec, path)
    problems: list[str] = []
    slots = tuple(_read_slots(spec, path, problems))
    kind = Kind(path.stem, spec, slots)
    if not problems:  # a slot that cannot be read would be missed in every template
        problems += _template_problems(kind)
    problems += [*_backend_problems(spec), *_setting_problems(kind)]
    raise_problems([f"{path}: {problem}" for problem in problems])
    return kind


def _read_slots(spec: Spec, path: Path, problems: list[str]) -> Iterator[Slot]:
    for key, given in spec.slots.items():
        names = tuple(name.strip() for name in key.split(","))
        topics = _as_topics(given)
        try:
            lines = _lines(topics, path.parent)
            yield _checked(Slot(names, lines, topics.choose))
        except ValueError as error:
            problems.append(f"slots.{key}: {error}")


def _as_topics(given: str | tuple[str, ...] | Topics) -> Topics:
    if isinstance(given, str):
        return Topics(file=given)
    return given if isinstance(given, Topics) else Topics(of=given or ("",))


def _lines(topics: Topics, folder: Path) -> tuple[str, ...]:
    if topics.low is not None and topics.high is not None:
        return tuple(map(str, range(topics.low, topics.high + 1)))
    return topics.of or read_topics(folder / topics.file)


def read_topics(path: Path) -> tuple[str, ...]:
    """The lines of a topic file; empty lines and lines that begin with `#` are left out."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start}") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES // 10**6} MB")
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def _checked(slot: Slot) -> Slot:
    if not slot.lines or not all(slot.lines):
        raise ValueError("there are no topics, or an empty one")
    twice = [line for line, again in itertools.pairwise(sorted(slot.lines)) if line == again]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice")
    if slot.choose > 1 and slot.choose != len(slot.names):
        raise ValueError(f"choose: {slot.choose} fills {slot.choose} slots, not {len(slot.names)}")
    if slot.choose > len(slot.lines):
        raise ValueError(f"choose: {slot.choose} of {len(slot.lines)} topics")
    if slot.choose == 1 and len(slot.names) > 1:
        for line in slot.lines:
            if len(line.split(COLUMN)) != len(slot.names):
                raise ValueError(f"{line!r} has not {len(slot.names)} columns parted by ` | `")
    return slot


def _template_problems(kind: Kind) -> Iterator[str]:
    """Templates that take what is not there, and slots that no template takes."""
    known = {name for slot in kind.slots for name in slot.names} | _facts(kind.spec)
    own, used = set(known) - _facts(kind.spec), set[str]()
    every = [name for slot in kind.slots for name in slot.names] + list(_facts(kind.spec))
    for name in sorted({name for name in every if every.count(name) > 1}):
        yield f"slots.{name} is given twice"
    for i, step in enumerate(kind.spec.ask):
        for j, template in enumerate((*step.prompts, step.system)):
            path = f"ask.{i}.prompts.{j}" if j < len(step.prompts) else f"ask.{i}.system"
            used |= yield from _unknown(template, known, path)
        if step.name in known:
            yield f"ask.{i}.name: there is a slot {step.name} already"
        known.add(step.name)
    for j, template in enumerate((*kind.spec.output.prompts, kind.spec.output.response)):
        if kind.spec.ask:
            last = j == len(kind.spec.output.prompts)
            path = "output.response" if last else f"output.prompts.{j}"
            used |= yield from _unknown(template, known, path)
    for name, settings in kind.spec.verifiers.items():
        named = settings.get("names", ())
        used |= set(named)
        for slot in sorted(set(named) - known):
            yield f"verifiers.{name}.names: there is no slot {slot}"
    for name in sorted(own - used):
        yield f"slots.{name} is used nowhere"


def _unknown(template: str, known: set[str], path: str) -> Generator[str, None, set[str]]:
    """Yield the problems of one template, return the slots that it takes."""
    try:
        names = names_in(template)
    except ValueError as error:
        yield f"{path}: {error}"
        return set()
    for name in sorted(names - known):
        yield f"{path} takes {{{name}}}, the slots here are {', '.join(sorted(known))}"
    return names


def _facts(spec: Spec) -> set[str]:
    """The slots that the program of a chain fills."""
    if spec.backend != "chain" or spec.program not in FACTS:
        return set()
    return set(FACTS[spec.program](random.Random("names")))


def _backend_problems(spec: Spec) -> Iterator[str]:
    programs = {"program": tuple(MAKERS), "chain": tuple(FACTS)}.get(spec.backend)
    if programs and spec.program not in programs:
        yield f"program must be one of {', '.join(programs)}, found {spec.program!r}"
    if spec.backend == "ollama" and spec.program:
        yield "program stands for nothing with backend: ollama"
    if spec.backend == "program":
        if spec.ask or spec.slots or spec.output != Output():
            yield "with backend: program, leave ask, slots and output out"
        return
    if not spec.ask or not all(step.prompts for step in spec.ask):
        yield "ask needs a step, and every step a prompt"
    if not spec.output.prompts:
        yield "output.prompts needs a template"


def _setting_problems(kind: Kind) -> Iterator[str]:
    """Sampling of the steps and settings of the verifiers, read as strictly as the rest."""
    if not kind.spec.description:
        yield "description is missing, expected one line of text"
    for i, step in enumerate(kind.spec.ask):
        merged = to_plain(kind.spec.sampling) | to_plain(step.sampling)
        yield from _refused(parse_dataclass, Sampling, merged, where=f"ask.{i}.sampling")
    for name, settings in kind.spec.verifiers.items():
        yield from _refused(verifier, name, settings)


def _refused(read: Callable[..., Any], *arguments: Any, **more: Any) -> Iterator[str]:
    try:
        read(*arguments, **more)
    except UserError as error:
        yield from str(error).splitlines()
