"""Where the value of each setting comes from.

Later sources win: defaults, the YAML file, `YS_*` in the environment, the command line. What
`model.size` sets replaces what sources before that of the size have set.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ys_llm import __version__
from ys_llm.config.conflicts import conflicts, is_from_file, later_of_budgets, rank
from ys_llm.config.default_options import default_options
from ys_llm.config.environment import read_environment
from ys_llm.config.renamed import fill_in, is_earlier, take_renamed
from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.sizes import AUTO, origin_of_values, size_values, unknown_size
from ys_llm.config.strict_reader import (
    StrictReader,
    field_helps,
    flatten,
    join,
    parse_dataclass,
    raise_problems,
    to_plain,
)
from ys_llm.config.yaml_io import (
    GENERATED_MARK,
    YamlText,
    dump_inline,
    dump_yaml,
    parse_yaml,
    read_yaml,
)
from ys_llm.errors import EXIT_USAGE, UserError, command_line
from ys_llm.system.lock import is_run

_COMMENT_COLUMN = 40  # of `ys config show`; a longer value pushes its own comment to the right


@dataclass(frozen=True)
class Override:
    """A setting from the command line: its dotted name, its value as YAML, and the flag."""

    name: str
    text: str
    origin: str = "--set"


@dataclass(frozen=True)
class Resolved:
    """A configuration, and for each dotted name where its value came from."""

    config: Config
    origins: Mapping[str, str]  # "default" | "configs/x.yaml:12" | "YS_TRAIN__SEED" | "--set"
    warnings: tuple[str, ...] = ()
    flags: Mapping[str, object] = field(default_factory=dict)  # of the command that gave it

    def train_command(self, *words: str, **flags: object) -> str:
        """`ys train` with the flags that gave this configuration, or `flags` in their place."""
        return command_line("train", *words, **{"run": self.config.run, **self.flags, **flags})


def load_config(
    path: Path | None,
    *,
    overrides: Sequence[str | Override] = (),
    environment: Mapping[str, str] | None = None,
) -> Resolved:
    """Read `path`, then YS_* of `environment`, then `overrides` ("train.seed=7"); later ones win.

    Raises UserError with every problem of every source, one a line, with file and line.
    """
    sources = _Sources()
    if path is not None:
        text = read_yaml(path)
        _check_version(path, text)
        if text.generated:
            fill_in(text.values)
        sources.add_file(text, str(path))
    sources.add_environment(environment or {})
    for override in overrides:
        sources.add_override(override)
    return sources.resolve()


def _check_version(path: Path, text: YamlText) -> None:
    """Refuse the configuration of a run that an earlier version of ys made."""
    run = path.parent
    if path.name == "config.yaml" and is_run(run) and is_earlier(text.values):
        raise UserError(
            f"{run} was made by an earlier version of ys",
            f"Type: {command_line('convert', str(run))}",
            exit_code=EXIT_USAGE,
        )


def load_dataclass(cls: type[Any], path: Path) -> Any:
    """Read a YAML file as a `cls`; for files other than configurations, such as recipes."""
    sources = _Sources()
    sources.add_file(read_yaml(path), str(path))
    return sources.parse(cls)


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """Read what `to_mapping` returned; raises UserError on anything else."""
    return parse_dataclass(Config, mapping, where="configuration")


def with_size(config: Config, name: str) -> Config:
    """The configuration with every value that this size sets."""
    return _with_values(config, {**size_values(name), "model.size": name})


def with_size_of(config: Config, other: Config) -> Config:
    """The configuration with the values of `other` for everything that a size sets."""
    theirs = flatten(to_mapping(other))
    names = [*size_values(AUTO), "model.size"]
    return _with_values(config, {name: theirs[name] for name in names if name in theirs})


def _with_values(config: Config, values: Mapping[str, Any]) -> Config:
    mapping = to_mapping(config)
    for path, value in values.items():
        *parents, last = path.split(".")
        inner = mapping
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return from_mapping(mapping)


def to_mapping(config: Config) -> dict[str, Any]:
    """Return dicts, lists and scalars that JSON and YAML can hold."""
    mapping: dict[str, Any] = to_plain(config)
    return mapping


def to_yaml(config: Config) -> str:
    """Write a configuration file that reads back as `config`, marked as written by ys."""
    return f"{_mark()}\n{dump_yaml(to_mapping(config))}"


def annotated_yaml(resolved: Resolved) -> str:
    """Write a configuration file whose comments say where each value comes from and its meaning."""
    helps = field_helps(Config)
    rows = list(_rows(to_mapping(resolved.config), "", depth=0))
    width = min(_COMMENT_COLUMN, max(len(text) for text, _ in rows))
    origin_width = max(len(origin) for origin in resolved.origins.values())
    lines = [_mark()]
    for text, path in rows:
        comment = (
            f"# {resolved.origins[path]:<{origin_width}}  {helps.get(path, '')}" if path else ""
        )
        lines.append(f"{text:<{width}}  {comment}".rstrip())
    return "\n".join(lines) + "\n"


def _mark() -> str:
    return f"{GENERATED_MARK} {__version__}"


def _rows(mapping: Mapping[str, Any], prefix: str, *, depth: int) -> Iterator[tuple[str, str]]:
    for name, value in mapping.items():
        head, path = f"{'  ' * depth}{dump_inline(name)}:", join(prefix, name)
        if isinstance(value, Mapping) and value:
            yield head, ""
            yield from _rows(value, path, depth=depth + 1)
        else:
            yield f"{head} {dump_inline(value)}", path


class _Sources:
    """Plain values merged from several places, each with its origin."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._warnings: list[str] = []
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._generated = False

    def add_file(self, text: YamlText, name: str) -> None:
        """Take the values of a YAML file."""
        self.problems += [f"{name}:{line}: {message}" for line, message in text.problems]
        self._origins.update({path: f"{name}:{line}" for path, line in text.lines.items()})
        self._origins[""] = name
        self._generated = text.generated
        if isinstance(text.values, dict):
            self._values = text.values
        elif text.values is not None and not text.problems:
            expected = (
                f"expected NAME: VALUE lines, as `{command_line('config', 'show')}` prints them"
            )
            self.problems.append(f"{name}:{text.lines['']}: {expected}")

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """Set what the YS_* variables say."""
        found = read_environment(environment, Config)
        self.problems += found.problems
        self._warnings += found.warnings
        for variable, dotted, text in found.settings:
            self._put(dotted, text, origin=variable)

    def add_override(self, override: str | Override) -> None:
        """Set one value from the command line."""
        if isinstance(override, Override):
            self._put(override.name, override.text, origin=override.origin)
            return
        dotted, equals, text = override.partition("=")
        if equals and dotted.strip():
            self._put(dotted.strip(), text, origin="--set")
        else:
            self.problems.append(f"--set {override}: expected NAME=VALUE, as in train.seed=7")

    def _put(self, dotted: str, text: str, *, origin: str) -> None:
        """Set one value, written as YAML."""
        try:
            parsed = parse_yaml(text, name=f"{origin} {dotted}")
        except UserError as error:
            self.problems.append(f"{error.problem}. Put it in quotes to make it text.")
            return
        self.problems += [f"{origin} {dotted}: {message}" for _, message in parsed.problems]
        self._set(dotted, parsed.values if text.strip() else "", origin=origin)

    def _set(self, dotted: str, value: Any, *, origin: str) -> None:
        *parents, name = dotted.split(".")
        inner, path = self._values, ""
        for parent in parents:
            if inner.get(parent) is None:  # absent, or an empty section of a file
                inner[parent] = {}
            inner, path = inner[parent], join(path, parent)
            self._origins.setdefault(path, origin)
            if not isinstance(inner, dict):
                self.problems.append(f"{origin}: {path} is a single value, {dotted} is not a field")
                return
        inner[name] = value
        for known in [known for known in self._origins if known.startswith(f"{dotted}.")]:
            del self._origins[known]
        self._origins[dotted] = origin

    def parse(self, cls: type[Any]) -> Any:
        """The values as a `cls`; UserError with every problem of every source."""
        reader = StrictReader(cls, self._origin)
        instance = reader.read(cls, self._values, "")
        raise_problems(self.problems + reader.problems)
        return instance

    def resolve(self) -> Resolved:
        """The configuration with the origin of each value."""
        for path, message in take_renamed(self._values):
            self.problems.append(f"{self._origin(path)}: {message}")
        self._choose_budget()
        self._apply_size()
        self._add_default_options()
        config = self.parse(Config)
        given, values = flatten(self._values), flatten(to_mapping(config))
        origins = {path: self._origin(path) if path in given else "default" for path in values}
        defaults = {**dict.fromkeys(values), **flatten(to_mapping(Config()))}
        raise_problems(
            conflicts(values, defaults=defaults, origins=origins, generated=self._generated)
        )
        return Resolved(config, origins, tuple(self._warnings))

    def _choose_budget(self) -> None:
        """Steps from a later source than the minutes replace them."""
        train = self._values.get("train")
        if not isinstance(train, dict) or not {"minutes", "max_steps"} <= train.keys():
            return
        origins = {name: self._origin(name) for name in ("train.minutes", "train.max_steps")}
        if later_of_budgets(origins) == "train.max_steps":
            train["minutes"] = None
            self._origins["train.minutes"] = origins["train.max_steps"]

    def _apply_size(self) -> None:
        """What `model.size` sets replaces values of earlier sources.

        A file that ys wrote holds the values beside the name of their size. They stand, and with
        a later value of another kind the model is of no size.
        """
        model = self._values.get("model")
        name = model.get("size") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(name, str):
            return
        origin = self._origin("model.size")
        if problem := unknown_size(name):
            self.problems.append(f"{origin}: {problem}")
            return
        given, written = flatten(self._values), self._generated and is_from_file(origin)
        beside = [
            path
            for path in size_values(name)
            if path in given and rank(self._origin(path)) >= rank(origin) + written
        ]
        if written and name != AUTO:
            model["size"] = None if beside else name
            return
        for path in beside:
            self.problems.append(
                f"{self._origin(path)}: {path} is {given[path]}, and model.size is {name}, which "
                "sets it. Remove one of the two."
            )
        for path, value in size_values(name).items():
            if path not in beside:
                self._set(path, value, origin=origin_of_values(name))

    def _add_default_options(self) -> None:
        """An option that is on by default stays on where another of its mixer is set.

        A file that ys wrote has all of its options: a run from before there was one is without it.
        """
        model = self._values.get("model")
        if self._generated or not isinstance(model, dict) or "options" not in model:
            return
        options = {} if model["options"] is None else model["options"]
        layers = model.get("layers", ModelConfig().layers)
        if not isinstance(options, dict) or not isinstance(layers, list | tuple):
            return  # which the reader reports
        for mixer, values in default_options(layers).items():
            given = options.get(mixer) or {}
            for name in values.keys() - given if isinstance(given, dict) else ():
                self._set(f"model.options.{mixer}.{name}", values[name], origin="default")

    def _origin(self, path: str) -> str:
        while path and path not in self._origins:
            path = path.rpartition(".")[0]
        return self._origins.get(path, "configuration")
