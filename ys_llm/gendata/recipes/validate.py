"""What can be wrong with a recipe: its templates, its backend, its sampling and verifiers."""

import random
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ys_llm.config.strict_reader import parse_dataclass, to_plain
from ys_llm.errors import UserError
from ys_llm.gendata.programs.registry import FACTS, MAKERS
from ys_llm.gendata.recipes.recipe import Recipe, RecipeSpec, RecordTemplates, SamplingOptions
from ys_llm.gendata.recipes.templates import names_in
from ys_llm.gendata.verifiers.verify import verifier


def problems_of(recipe: Recipe, *, with_templates: bool) -> list[str]:
    """All problems of a recipe, one line each; `with_templates` includes those of templates."""
    problems = list(_template_problems(recipe)) if with_templates else []
    return [*problems, *_backend_problems(recipe.spec), *_setting_problems(recipe)]


def _template_problems(recipe: Recipe) -> Iterator[str]:
    """Templates that use unknown slots, and slots that no template uses."""
    spec = recipe.spec
    own = [name for slot in recipe.slots for name in slot.names]
    every = own + list(_fact_slots(spec))
    known, used = set(every), set[str]()
    for name in sorted({name for name in every if every.count(name) > 1}):
        yield f"slots.{name} is defined twice"
    for i, step in enumerate(spec.ask):
        templates = {f"prompts.{j}": prompt for j, prompt in enumerate(step.prompts)}
        for field, template in (templates | {"system": step.system}).items():
            used |= yield from _unknown_slots(template, known, f"ask.{i}.{field}")
        if step.name in known:
            yield f"ask.{i}.name: there is a slot {step.name} already"
        known.add(step.name)
    if spec.ask:
        templates = {f"prompts.{j}": prompt for j, prompt in enumerate(spec.output.prompts)}
        for field, template in (templates | {"response": spec.output.response}).items():
            used |= yield from _unknown_slots(template, known, f"output.{field}")
    for name, settings in spec.verifiers.items():
        named = set(settings.get("names", ()))
        used |= named
        for slot in sorted(named - known):
            yield f"verifiers.{name}.names: there is no slot {slot}"
    for name in sorted(set(own) - _fact_slots(spec) - used):
        yield f"slots.{name} is not used"


def _unknown_slots(template: str, known: set[str], path: str) -> Generator[str, None, set[str]]:
    """Yield the problems of one template; return the slots that it uses."""
    try:
        names = names_in(template)
    except ValueError as error:
        yield f"{path}: {error}"
        return set()
    for name in sorted(names - known):
        yield f"{path} uses {{{name}}}; the slots here are {', '.join(sorted(known))}"
    return names


def _fact_slots(spec: RecipeSpec) -> set[str]:
    """The slots that the program of a chain fills."""
    if spec.backend != "chain" or spec.program not in FACTS:
        return set()
    return set(FACTS[spec.program](random.Random("names")))


def _backend_problems(spec: RecipeSpec) -> Iterator[str]:
    programs = {"program": tuple(MAKERS), "chain": tuple(FACTS)}.get(spec.backend)
    if programs and spec.program not in programs:
        yield f"program must be one of {', '.join(programs)}, found {spec.program!r}"
    if spec.backend == "ollama" and spec.program:
        yield "program has no effect with backend: ollama"
    if spec.backend == "program":
        if spec.ask or spec.slots or spec.output != RecordTemplates():
            yield "with backend: program, ask, slots and output must be left out"
        return
    if not spec.ask or not all(step.prompts for step in spec.ask):
        yield "ask needs at least one step, and every step a prompt"
    if not spec.output.prompts:
        yield "output.prompts needs a template"


def _setting_problems(recipe: Recipe) -> Iterator[str]:
    """Sampling options of the steps and settings of the verifiers, read as strictly as the rest."""
    if not recipe.spec.description:
        yield "description is missing, expected one line of text"
    for i, step in enumerate(recipe.spec.ask):
        merged = to_plain(recipe.spec.sampling) | to_plain(step.sampling)
        yield from _refused(parse_dataclass, SamplingOptions, merged, where=f"ask.{i}.sampling")
        if isinstance(step.format, str) and step.format not in ("", "json"):
            yield f"ask.{i}.format must be json or a JSON schema, found {step.format!r}"
    for name, settings in recipe.spec.verifiers.items():
        yield from _refused(verifier, name, settings)


def _refused(read: Callable[..., Any], *arguments: Any, **more: Any) -> Iterator[str]:
    try:
        read(*arguments, **more)
    except UserError as error:
        yield from str(error).splitlines()
