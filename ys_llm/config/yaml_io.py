"""YAML as plain data with line numbers; tags are never executed, repeated keys are problems.

Three deviations from YAML 1.1 as PyYAML reads it: `3e-3` is a number and a date is text, in
writing too; octal and base-60 numbers (0100, 1:30) are problems.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ys_llm.config.strict_reader import INVALID
from ys_llm.errors import EXIT_USAGE, UserError, command_line

GENERATED_MARK = "# written by ys"  # first line of a file that ys generated
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp")}
_MAX_BYTES = 10_000_000  # of a file that people write by hand; /dev/zero has no end
_MAX_VALUES = 100_000
_SHOWN_CHARS = 40  # of a wrong value inside a message
_GIVE_A_PATH = "Give the path of a YAML file."
_SEE_EXAMPLE = f"See `{command_line('config', 'show')}` for a valid file."
_OCTAL_OR_BASE_60 = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_EXPONENT_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_TAG + "float", _EXPONENT_FLOAT, list("-+.0123456789"))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only double quotes keep every line break: PyYAML folds U+0085 away within single quotes.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)


@dataclass(frozen=True)
class YamlText:
    """A parsed text: plain values, the line of each dotted path, and its problems."""

    values: Any
    lines: dict[str, int]
    problems: list[tuple[int, str]]  # line, message
    generated: bool  # by ys itself


def read_yaml(path: Path) -> YamlText:
    """Read one file. Raises UserError where it cannot be read or is not YAML at all."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise _refused(f"{path} does not exist", _GIVE_A_PATH) from None
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror}", _GIVE_A_PATH) from error
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise _refused(f"{path} is not UTF-8 text: {where}", "Save it as UTF-8.") from error
    if len(data) > _MAX_BYTES:
        raise _refused(f"{path} has more than {_MAX_BYTES / 1e6:.0f} MB", _GIVE_A_PATH)
    return parse_yaml(text, name=str(path))


def _refused(problem: str, fix: str) -> UserError:
    return UserError(problem, fix, exit_code=EXIT_USAGE)


def parse_yaml(text: str, *, name: str) -> YamlText:
    """Parse one text; `name` is its source, as messages show it."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        builder = _Builder(text, name)
        values = None if node is None else builder.build(node, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise _refused(f"{name}{line}: not valid YAML: {_reason(error)}", _SEE_EXAMPLE) from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise _refused(f"{name}: not valid YAML: {reason}", _SEE_EXAMPLE) from error
    except RecursionError as error:
        raise _refused(f"{name}: brackets are nested too deeply", _SEE_EXAMPLE) from error
    generated = text.startswith(GENERATED_MARK)
    return YamlText(values, builder.lines, builder.problems, generated)


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem)
    if "'\\t'" in problem:
        return "a tab, where YAML allows only spaces"
    return problem.removeprefix("but ")


def dump_yaml(value: Any) -> str:
    """Write plain data as a block of YAML that `parse_yaml` reads back exactly."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def dump_inline(value: Any) -> str:
    """Write plain data as YAML on one line."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
    )
    return text.removesuffix("\n").removesuffix("\n...")


class _Builder:
    """Turns composed nodes, which carry marks, into plain data."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._n_values = 0
        self.lines: dict[str, int] = {}
        self.problems: list[tuple[int, str]] = []
        self._scalars = _Loader(text)
        self._open: list[int] = []  # ids of the enclosing nodes

    def build(self, node: yaml.Node, path: str) -> Any:
        """The plain value of a node; `path` is its dotted name."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._n_values += 1
        if self._n_values > _MAX_VALUES:  # ten aliases of ten aliases of ten... fill any memory
            raise _refused(
                f"{self._name} holds more than {_MAX_VALUES:,} values, aliases expanded",
                "Write the values out, without aliases.",
            )
        if id(node) in self._open:
            return self._problem(line, f"{path or 'the file'} contains itself")
        self._open.append(id(node))
        try:
            return self._build_open(node, path)
        finally:
            self._open.pop()

    def _build_open(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return dict(self._entries(node, path))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, f"{path}.{i}") for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALAR_TAGS:
            return self._scalar(node, path)
        tag = node.tag.replace(_TAG, "!!")
        line = node.start_mark.line + 1
        return self._problem(line, f"{path or 'the file'} has the tag {tag}, expected none")

    def _entries(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(line, f"{path or 'the file'} has a name that is not plain text")
                continue
            name = key_node.value  # as it is written: `on:` is a name, not true
            full = f"{path}.{name}" if path else name
            if key_node.tag == _TAG + "merge":
                self._problem(line, "<< is not supported; write the settings out")
                continue
            if name in seen:
                self._problem(line, f"{full} is given twice, first in line {seen[name]}")
                continue
            seen[name] = line
            self.lines[full] = line
            yield name, self.build(value_node, full)

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        if node.tag == _TAG + "timestamp":
            return node.value
        try:
            value = self._scalars.construct_object(node)
            if _is_misleading(node):
                return self._problem(
                    node.start_mark.line + 1,
                    f"{path or 'the value'} is written {node.value}, which YAML 1.1 reads as "
                    f"{value}. Write the number itself, or put it in quotes to make it text.",
                )
            return value
        except (ValueError, OverflowError, yaml.YAMLError, KeyError):
            tag = node.tag.removeprefix(_TAG)
            return self._problem(
                node.start_mark.line + 1,
                f"{path or 'the value'} must be of type {tag}, found {_clipped(node.value)}",
            )

    def _problem(self, line: int, message: str) -> object:
        self.problems.append((line, message))
        return INVALID


def _is_misleading(node: yaml.ScalarNode) -> bool:
    """Whether YAML reads another number than people do: 0100 as octal 64, 1:30 in base 60 as 90."""
    is_number = node.tag in (_TAG + "int", _TAG + "float")
    return is_number and bool(_OCTAL_OR_BASE_60.fullmatch(node.value))


def _clipped(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
