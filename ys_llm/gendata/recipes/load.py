"""Finding and reading kind files: those that are shipped, and the user's own in `gen/kinds/`.

A new kind is a new file; nothing else is edited.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ys_llm.config.shipped import shipped_folder
from ys_llm.config.sources import load_dataclass
from ys_llm.config.strict_reader import raise_problems
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.gendata.programs.conversations import CONVERSATIONS
from ys_llm.gendata.recipes.recipe import COLUMN, Recipe, RecipeSpec, SlotSource, SlotValues
from ys_llm.gendata.recipes.validate import problems_of

OWN_FOLDER = Path("gen/kinds")  # in the current folder: adds to the shipped kinds, or replaces them
MAX_TOPIC_BYTES = 10_000_000  # of one file; /dev/zero has no end


def shipped_kinds() -> Path:
    """The folder of the kind files that come with `ys`."""
    return shipped_folder() / "gen" / "kinds"


def recipe_folders() -> tuple[Path, ...]:
    """Where kind files are looked for; in case of equal names the first folder wins."""
    return (OWN_FOLDER, shipped_kinds()) if OWN_FOLDER.is_dir() else (shipped_kinds(),)


def find_recipes(folders: Sequence[Path] | None = None) -> dict[str, Path]:
    """The kind files of these folders (default: `recipe_folders()`) by name, sorted.

    Raises UserError if there are none.
    """
    folders = recipe_folders() if folders is None else folders
    paths = {path.stem: path for folder in reversed(folders) for path in folder.glob("*.yaml")}
    if not paths:
        raise UserError(
            f"no kind files (*.yaml) in {' or '.join(map(str, folders))}",
            f"Put one into {OWN_FOLDER}/ here, or install ys again.",
            exit_code=EXIT_USAGE,
        )
    return dict(sorted(paths.items()))


def origin(name: str, path: Path) -> str:
    """Where a kind file comes from, for --list."""
    shipped = shipped_kinds()
    if path.parent == shipped:
        return "shipped"
    replaced = " (replaces shipped)" if (shipped / f"{name}.yaml").exists() else ""
    return f"{path.parent}{replaced}"


def program_recipes(folders: Sequence[Path] | None = None) -> list[Recipe]:
    """The recipes of the corpus that needs no language model: all but those of conversations."""
    recipes = map(load_recipe, find_recipes(folders).values())
    return [
        recipe
        for recipe in recipes
        if not recipe.uses_model and recipe.spec.program not in CONVERSATIONS
    ]


def load_recipes(names: Sequence[str], folders: Sequence[Path] | None = None) -> list[Recipe]:
    """The recipes of these kinds. Raises UserError with all unknown names."""
    paths = find_recipes(folders)
    unknown = [name for name in names if name not in paths]
    if unknown:
        raise UserError(
            f"there is no kind {', '.join(unknown)}",
            f"The kinds are {', '.join(paths)}.",
            exit_code=EXIT_USAGE,
        )
    return [load_recipe(paths[name]) for name in dict.fromkeys(names)]


def load_recipe(path: Path) -> Recipe:
    """Read a kind file and its topics strictly. Raises UserError with all problems."""
    spec: RecipeSpec = load_dataclass(RecipeSpec, path)
    problems: list[str] = []
    slots = tuple(_read_slots(spec, path.parent, problems))
    recipe = Recipe(path.stem, spec, slots)
    # A slot that could not be read would be reported again by every template that uses it.
    problems += problems_of(recipe, with_templates=not problems)
    raise_problems([f"{path}: {problem}" for problem in problems])
    return recipe


def _read_slots(spec: RecipeSpec, folder: Path, problems: list[str]) -> Iterator[SlotValues]:
    for key, given in spec.slots.items():
        names = tuple(name.strip() for name in key.split(","))
        source = _as_source(given)
        try:
            yield _checked(SlotValues(names, _lines(source, folder), source.choose))
        except ValueError as error:
            problems.append(f"slots.{key}: {error}")


def _as_source(given: str | tuple[str, ...] | SlotSource) -> SlotSource:
    if isinstance(given, str):
        return SlotSource(file=given)
    return given if isinstance(given, SlotSource) else SlotSource(of=given or ("",))


def _lines(source: SlotSource, folder: Path) -> tuple[str, ...]:
    if source.low is not None and source.high is not None:
        return tuple(map(str, range(source.low, source.high + 1)))
    return source.of or read_topics(_topic_file(folder, source.file))


def _topic_file(folder: Path, name: str) -> Path:
    """A topic file; a copied kind file may continue to use the shipped topics."""
    own, shipped = folder / name, shipped_kinds() / name
    return shipped if not own.exists() and shipped.exists() else own


def read_topics(path: Path) -> tuple[str, ...]:
    """The lines of a topic file, without empty lines and those that begin with `#`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOPIC_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start}") from error
    if len(data) > MAX_TOPIC_BYTES:
        raise ValueError(f"{path} is larger than {MAX_TOPIC_BYTES // 10**6} MB")
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def _checked(slot: SlotValues) -> SlotValues:
    if not slot.lines or not all(slot.lines):
        raise ValueError("there are no topics, or an empty one")
    repeated = [line for line, again in itertools.pairwise(sorted(slot.lines)) if line == again]
    if repeated:
        raise ValueError(f"{repeated[0]!r} appears twice")
    if slot.choose > 1 and slot.choose != len(slot.names):
        raise ValueError(f"choose: {slot.choose} fills {slot.choose} slots, not {len(slot.names)}")
    if slot.choose > len(slot.lines):
        raise ValueError(f"choose: {slot.choose} of {len(slot.lines)} topics")
    if slot.choose == 1 and len(slot.names) > 1:
        for line in slot.lines:
            if len(line.split(COLUMN)) != len(slot.names):
                raise ValueError(f"{line!r} does not have {len(slot.names)} columns (A{COLUMN}B)")
    return slot
