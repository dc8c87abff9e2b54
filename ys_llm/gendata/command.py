"""The actions of `ys gen-data`, one function each; each imports what it needs."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from ys_llm.errors import EXIT_FAILED, UserError, command_line
from ys_llm.gendata.recipes.load import (
    find_recipes,
    load_recipe,
    load_recipes,
    origin,
    program_recipes,
)
from ys_llm.gendata.recipes.recipe import Deadlines, Recipe
from ys_llm.system.signals import stop_requested

if TYPE_CHECKING:
    from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest
    from ys_llm.gendata.backends.ollama import Ollama
    from ys_llm.gendata.backends.openai import OpenAI
    from ys_llm.gendata.recipes.items import PlannedItem

DEFAULT_OUT = Path("training_data")
DEFAULT_SEED = 1337
DRY_RUN_PROMPTS = 10
FINGERPRINT_CHARS = 12  # of a recipe's digest
_SHOWN_FINDINGS = 10


@dataclass(frozen=True)
class GenerateRequest:
    """What to generate, as typed; arguments that were not given are empty or None.

    No kinds means all that programs make.
    """

    kinds: tuple[str, ...]
    out: Path
    count: int | None = None
    seed: int = DEFAULT_SEED
    model: str = ""
    host: str = ""
    workers: int = 1
    force: bool = False
    retry_dropped: bool = False
    folders: tuple[Path, ...] | None = None  # of kind files; None: gen/kinds/, then the shipped

    def command(self, *, retry_dropped: bool = False) -> str:
        """The command of this request, without --force."""
        return command_line(
            "gen-data",
            kind=",".join(self.kinds),
            **self._content_flags(),
            host=self.host,
            workers=self.workers if self.workers != 1 else None,
            out=str(self.out),
            retry_dropped=retry_dropped,
        )

    def check_command(self) -> str:
        """The command that checks the server and the models of this request."""
        kinds = ",".join(self.kinds)
        return command_line("gen-data", kind=kinds, model=self.model, host=self.host, check=True)

    def reproduce_command(self) -> str:
        """The command that makes the same corpus in any folder; "" if a model is needed."""
        return "" if self.kinds else command_line("gen-data", **self._content_flags())

    def _content_flags(self) -> dict[str, object]:
        return {
            "count": self.count,
            "seed": str(self.seed) if self.seed != DEFAULT_SEED else None,
            "model": self.model,
        }


def list_kinds(folders: Sequence[Path] | None = None) -> str:
    """Every kind: its name, who writes it, its number of items, its origin, its description."""
    paths = find_recipes(folders)
    found = [(load_recipe(path), origin(name, path)) for name, path in paths.items()]
    widest_name = max(len(recipe.name) for recipe, _ in found)
    widest_origin = max(len(source) for _, source in found)
    rows = [
        f"{recipe.name:{widest_name}}  {recipe.spec.backend:7}  {recipe.spec.count:>6,}  "
        f"{source:{widest_origin}}  {recipe.spec.description}"
        for recipe, source in found
    ]
    return "\n".join(rows)


def dry_run(
    names: Sequence[str],
    *,
    seed: int = DEFAULT_SEED,
    model: str = "",
    folders: Sequence[Path] | None = None,
) -> str:
    """Ten prompts of these kinds, as a model would get them; no model is used.

    What later prompts take from answers appears as {its name}.
    """
    from ys_llm.gendata.recipes.items import item_at

    recipes = _recipes(names, model, folders)
    shown = []
    for number in range(DRY_RUN_PROMPTS):
        index, which = divmod(number, len(recipes))
        shown.append(_prompts(recipes[which], item_at(recipes[which], index, seed=seed)))
    return "\n\n".join(shown)


def sample(
    names: Sequence[str],
    *,
    seed: int = DEFAULT_SEED,
    model: str = "",
    host: str = "",
    folders: Sequence[Path] | None = None,
) -> Iterator[str]:
    """The fingerprints of these kinds, then ten records with their verdicts; nothing is written.

    Raises what the back end raises.
    """
    from ys_llm.gendata.generation.sample import sample as records

    recipes = _recipes(names, model, folders)
    back_end = _connect(host, recipes) if any(recipe.uses_model for recipe in recipes) else None
    yield "\n".join(map(fingerprint_line, recipes))
    with stop_requested("closing the request; press again to stop at once") as stop:

        def ask(_key: str, request: "ChatRequest") -> "ChatAnswer":
            """The answer of the back end."""
            assert back_end is not None, "programs do not ask"
            return back_end.ask(request, lambda: bool(stop))

        yield from records(recipes, ask, seed=seed, count=DRY_RUN_PROMPTS)


def fingerprint_line(recipe: Recipe) -> str:
    """A kind and the fingerprint of its recipe: what `trace` shows of a record that it made."""
    by = recipe.spec.model if recipe.uses_model else "a program"
    return f"{recipe.name}: recipe {recipe.digest[:FINGERPRINT_CHARS]}, by {by}"


def refuse_long_prompts(
    names: Sequence[str],
    *,
    seed: int = DEFAULT_SEED,
    count: int | None = None,
    model: str = "",
    folders: Sequence[Path] | None = None,
) -> None:
    """Raise the UserError with which generating would refuse this plan's prompts, if it would."""
    from ys_llm.config.strict_reader import raise_problems
    from ys_llm.gendata.generation.generator import Plan, long_prompts

    plan = Plan(tuple(_recipes(names, model, folders)), seed, count)
    raise_problems(long_prompts(plan.items()))


def _prompts(recipe: Recipe, item: "PlannedItem") -> str:
    from ys_llm.gendata.recipes import items

    head = f"--- {recipe.name} {item.index}"
    if not recipe.uses_model:
        return f"{head}, made by a program\n{items.record_of(recipe, item, {}).prompt}"
    unknown = {step.name: f"{{{step.name}}}" for step in recipe.spec.ask}
    parts = []
    for step in recipe.spec.ask:
        prompt, system = items.prompt_of(step, item, unknown)
        parts.append(f"{head}, {recipe.spec.model}, for {step.name}\n{prompt}")
        parts += [f"(system) {system}"] if system else []
    return "\n".join(parts)


def _recipes(names: Sequence[str], model: str, folders: Sequence[Path] | None) -> list[Recipe]:
    recipes = load_recipes(names, folders) if names else program_recipes(folders)
    return [_with_model(recipe, model) for recipe in recipes]


def _with_model(recipe: Recipe, model: str) -> Recipe:
    return recipe.with_model(model) if model and recipe.uses_model else recipe


def check(host: str, models: Sequence[str]) -> tuple[str, int]:
    """Query the server and time a sample of each model; the exit code of the first failure."""
    found = [_connect(host).check(model) for model in dict.fromkeys(models)]
    codes = [one.failure.exit_code for one in found if one.failure]
    lines = dict.fromkeys(line for one in found for line in str(one).splitlines())
    return "\n".join(lines), codes[0] if codes else 0


def models_of(names: Sequence[str], folders: Sequence[Path] | None = None) -> list[str]:
    """The models that these kinds use; for no kinds, those that any kind uses."""
    recipes = load_recipes(list(names) or list(find_recipes(folders)), folders)
    models = (recipe.spec.model for recipe in recipes if recipe.uses_model)
    return list(dict.fromkeys(models))


def _connect(host: str, recipes: Sequence[Recipe] = ()) -> "Ollama | OpenAI":
    """The back end: ollama's protocol, or OpenAI's where the host begins with `openai:`."""
    from ys_llm.gendata.backends.ollama import Ollama
    from ys_llm.gendata.backends.openai import PREFIX, OpenAI

    limits = _deadlines(recipes)
    if host.startswith(PREFIX):  # it does not tell the first token from a later one
        return OpenAI(
            host,
            connect_seconds=limits.connect,
            stall_seconds=max(limits.first, limits.stall),
            total_seconds=limits.total,
        )
    return Ollama(
        host,
        connect_seconds=limits.connect,
        first_seconds=limits.first,
        stall_seconds=limits.stall,
        total_seconds=limits.total,
    )


def _deadlines(recipes: Sequence[Recipe]) -> Deadlines:
    """The longest deadlines of the kinds that ask a model, which share a server."""
    every = [recipe.spec.deadlines for recipe in recipes if recipe.uses_model]
    return reduce(Deadlines.longest, every[1:], every[0]) if every else Deadlines()


def make(request: GenerateRequest) -> int:
    """Generate the missing records; the exit code.

    Raises UserError, after everything is written: the failure of the back end, or what to type to
    resume after a stop (exit code 128 + signal).
    """
    from ys_llm.gendata.generation.generate import generate
    from ys_llm.gendata.generation.generator import Plan, UselessAnswersError

    recipes = _recipes(request.kinds, request.model, request.folders)
    for recipe in recipes:
        if recipe.uses_model:
            print(fingerprint_line(recipe), file=sys.stderr, flush=True)
    if any(recipe.uses_model for recipe in recipes):
        print(f"deadlines: {_deadlines(recipes)}", file=sys.stderr, flush=True)
    with stop_requested("closing requests and writing files; press again to stop at once") as stop:
        plan = Plan(
            tuple(recipes),
            request.seed,
            request.count,
            request.reproduce_command(),
            request.retry_dropped,
        )
        result = generate(
            plan,
            request.out,
            connect=lambda: _connect(request.host, recipes),
            workers=request.workers,
            should_stop=lambda: bool(stop),
            force=request.force,
        )
    print(result, flush=True)
    if isinstance(result.failure, UselessAnswersError):
        retry = request.command(retry_dropped=True)
        raise UserError(
            result.failure.problem,
            f"Check the model's answers: `{request.check_command()}`. Then type: {retry}",
            exit_code=result.failure.exit_code,
        )
    if result.failure:
        raise result.failure
    if not result.accepted and not result.stopped:
        raise UserError(
            f"{request.out}: all {result.planned:,} items of the plan were dropped",
            f"To try them again, type: {request.command(retry_dropped=True)}",
        )
    if result.stopped:
        raise UserError(
            f"stopped by {stop.name}; decided items and answers are kept",
            f"To resume, type: {request.command(retry_dropped=request.retry_dropped)}",
            exit_code=stop.exit_code,
        )
    return 0


def curate(path: Path, out: Path, *, rules: Sequence[str] = ("standard",), workers: int = 1) -> str:
    """Curate a folder into another; a short report."""
    from ys_llm.gendata.curation import curate_folder, rules_named

    return str(curate_folder(path, out, rules=rules_named(rules), processes=workers))


def explain(path: Path, record: str, *, rules: Sequence[str] = ("standard",)) -> str:
    """What the rules find in one record, given by its number in a file or by a part of its text."""
    from ys_llm.gendata.curation import explain, rules_named

    which = int(record) if record.isascii() and record.isdigit() else record
    return explain(path, which, rules=rules_named(rules))


def preview(path: Path, out: Path | None, *, rules: Sequence[str] = ("standard",)) -> str:
    """Write the preview of a corpus as one HTML page, beside it unless `out` is given; its path."""
    from ys_llm.gendata.corpus.preview import preview as read
    from ys_llm.gendata.corpus.preview_page import preview_page
    from ys_llm.gendata.curation import rules_named
    from ys_llm.system.files import write_atomically

    text = preview_page(read(path, rules=rules_named(rules)))
    absolute = path.resolve()
    out = out or absolute.with_name(f"{absolute.name}-preview.html")
    write_atomically(out, text)
    return str(out)


def trace(text: str, folder: Path) -> tuple[str, int]:
    """The records that contain a text, with their provenance; exit code 1 if there are none."""
    from ys_llm.data.provenance import trace

    found = trace(folder, text)
    if not found:
        return f"no generated record in {folder} contains this text", EXIT_FAILED
    more = len(found) - _SHOWN_FINDINGS
    shown = [str(finding) for finding in found[:_SHOWN_FINDINGS]]
    return "\n\n".join([*shown, *([f"and {more:,} more"] if more > 0 else [])]), 0
