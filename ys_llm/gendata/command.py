"""The sub-commands of `ys gen-data`, one function each; each imports what it needs."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ys_llm.errors import EXIT_FAILED, UserError
from ys_llm.gendata.recipes.recipe import (
    DEFAULT_FOLDER,
    Kind,
    find_kinds,
    load_kind,
    load_kinds,
    program_kinds,
)

if TYPE_CHECKING:
    from ys_llm.gendata.backends.ollama import Ollama
    from ys_llm.gendata.recipes.items import Item

DEFAULT_OUT = Path("training_data")
DEFAULT_SEED = 1337
DRY_PROMPTS = 10
_SHOWN_FINDINGS = 10


@dataclass(frozen=True)
class Wanted:
    """What `ys gen-data` was told; empty or None is what was not said.

    No kinds are all that programs make.
    """

    kinds: tuple[str, ...]
    out: Path
    count: int | None = None
    seed: int = DEFAULT_SEED
    model: str = ""
    host: str = ""
    workers: int = 1
    force: bool = False
    kinds_folder: Path = DEFAULT_FOLDER

    def words(self) -> str:
        """The command that says the same; `force` is not said again."""
        given = {
            "--kind": ",".join(self.kinds) or None,
            **self._what(),
            "--host": self.host or None,
            "--workers": self.workers if self.workers != 1 else None,
            "--out": str(self.out),
        }
        return _command(given)

    def recipe(self) -> str:
        """The command that makes the same corpus in any folder, where programs make all of it."""
        return "" if self.kinds else _command(self._what())

    def _what(self) -> dict[str, object]:
        return {
            "--count": self.count,
            "--seed": self.seed if self.seed != DEFAULT_SEED else None,
            "--model": self.model or None,
        }


def _command(given: Mapping[str, object]) -> str:
    said = (
        f"{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None
    )
    return " ".join(["ys gen-data", *said])


def list_kinds(folder: Path = DEFAULT_FOLDER) -> str:
    """Every kind: its name, who writes it, how many records it aims at, what it is."""
    kinds = [load_kind(path) for path in find_kinds(folder).values()]
    width = max(len(kind.name) for kind in kinds)
    rows = [
        f"{kind.name:{width}}  {kind.spec.backend:7}  {kind.spec.count:>6,}  "
        f"{kind.spec.description}"
        for kind in kinds
    ]
    return "\n".join(rows)


def dry_run(
    names: Sequence[str],
    *,
    seed: int = DEFAULT_SEED,
    model: str = "",
    folder: Path = DEFAULT_FOLDER,
) -> str:
    """Ten prompts of these kinds, as the model would get them; nobody is asked.

    What later questions take from answers is shown as {its name}.
    """
    from ys_llm.gendata.recipes.items import item_at

    kinds = _kinds(names, model, folder)
    shown = []
    for number in range(DRY_PROMPTS):
        index, place = divmod(number, len(kinds))
        shown.append(_prompts(kinds[place], item_at(kinds[place], index, seed=seed)))
    return "\n\n".join(shown)


def _prompts(kind: Kind, item: "Item") -> str:
    from ys_llm.gendata.recipes import items

    head = f"--- {kind.name} {item.index}"
    if kind.spec.backend == "program":
        return f"{head}, made by a program\n{items.record(kind, item, {}).prompt}"
    unknown = {step.name: f"{{{step.name}}}" for step in kind.spec.ask}
    parts = []
    for step in kind.spec.ask:
        prompt, system = items.question(kind, step, item, unknown)
        parts.append(f"{head}, {kind.spec.model}, for {step.name}\n{prompt}")
        parts += [f"(system) {system}"] if system else []
    return "\n".join(parts)


def _kinds(names: Sequence[str], model: str, folder: Path) -> list[Kind]:
    kinds = load_kinds(names, folder) if names else program_kinds(folder)
    return [_with_model(kind, model) for kind in kinds]


def _with_model(kind: Kind, model: str) -> Kind:
    return kind.with_model(model) if model and kind.spec.backend != "program" else kind


def check(host: str, models: Sequence[str]) -> tuple[str, int]:
    """What the server and these models say to a sample; the exit code of the first failure."""
    found = [_connect(host).check(model) for model in dict.fromkeys(models)]
    codes = [one.failure.exit_code for one in found if one.failure]
    lines = dict.fromkeys(line for one in found for line in str(one).splitlines())
    return "\n".join(lines), codes[0] if codes else 0


def models_of(names: Sequence[str], folder: Path = DEFAULT_FOLDER) -> list[str]:
    """The models that these kinds ask; of no kinds, those that all kinds ask."""
    kinds = load_kinds(list(names) or list(find_kinds(folder)), folder)
    models = (kind.spec.model for kind in kinds if kind.spec.backend != "program")
    return list(dict.fromkeys(models))


def _connect(host: str) -> "Ollama":
    from ys_llm.gendata.backends.ollama import Ollama

    return Ollama(host)


def make(wanted: Wanted) -> int:
    """Make what is missing of an order; the exit code.

    Raises UserError, after all is written: what the back end said, or what to type to go on after
    a stop (exit code 128 + signal).
    """
    from ys_llm.gendata.generation.generate import run
    from ys_llm.gendata.generation.generator import Order

    kinds = _kinds(wanted.kinds, wanted.model, wanted.kinds_folder)
    with _stop_signals() as stop:
        outcome = run(
            Order(tuple(kinds), wanted.seed, wanted.count, wanted.recipe()),
            wanted.out,
            connect=lambda: _connect(wanted.host),
            workers=wanted.workers,
            should_stop=lambda: stop.signal != 0,
            force=wanted.force,
        )
    print(outcome, flush=True)
    if outcome.failure:
        raise outcome.failure
    if outcome.stopped:
        raise UserError(
            f"stopped by {signal.Signals(stop.signal).name}; what was decided is kept",
            f"To go on, type: {wanted.words()}",
            exit_code=128 + stop.signal,
        )
    return 0


class _Stop:
    """The signal that asked for an end, or 0."""

    signal: int = 0


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """The first signal asks for an end; a second one acts at once, and loses nothing either."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    before: dict[int, Any] = {
        number: handler
        for number in numbers
        if number is not None and (handler := signal.getsignal(number)) != signal.SIG_IGN
    }

    def ask(number: int, frame: Any) -> None:
        stop.signal = number
        signal.signal(number, before[number])
        with suppress(OSError):  # not print, which may be at work on the same stream just now
            os.write(2, b"\nclosing the request and writing the files\n")

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def curate(path: Path, out: Path, *, rules: Sequence[str] = ("standard",), workers: int = 1) -> str:
    """Curate a folder into another; the report in a few lines."""
    from ys_llm.gendata.curation import curate_folder, rules_named

    return str(curate_folder(path, out, rules=rules_named(rules), processes=workers))


def explain(path: Path, record: str, *, rules: Sequence[str] = ("standard",)) -> str:
    """What the rules say of one record, named by its number in a file or by a piece of its text."""
    from ys_llm.gendata.curation import explain, rules_named

    which = int(record) if record.isascii() and record.isdigit() else record
    return explain(path, which, rules=rules_named(rules))


def trace(text: str, folder: Path) -> tuple[str, int]:
    """The records that hold a text, with their provenance; exit code 1 where there is none."""
    from ys_llm.data.provenance import trace

    found = trace(folder, text)
    if not found:
        return f"no record that {folder} accounts for holds this text", EXIT_FAILED
    more = len(found) - _SHOWN_FINDINGS
    shown = [str(finding) for finding in found[:_SHOWN_FINDINGS]]
    return "\n\n".join([*shown, *([f"and {more:,} more"] if more > 0 else [])]), 0
