"""The sizes that `model.size` names: files of configs/sizes/, each a part of a configuration.

A size sets width, depth, sequence length, batch size and learning rate together. It replaces what
earlier sources set; beside a value of its own, in the same source or a later one, it is refused.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ys_llm.config.shipped import shipped_folder
from ys_llm.config.strict_reader import flatten
from ys_llm.config.yaml_io import read_yaml

AUTO = "auto"  # chosen for `train.minutes` and the machine, when training starts
NOT_CHOSEN = f"size {AUTO}, not yet chosen"  # origin of the values that it stands for until then
_STANDS_FOR_AUTO = "medium"


def size_names() -> list[str]:
    """The sizes there are."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def size_values(name: str) -> Mapping[str, Any]:
    """What a size sets, by dotted name; for `auto` what stands there until it is chosen."""
    return _read(_folder() / f"{_STANDS_FOR_AUTO if name == AUTO else name}.yaml")


def origin_of_values(name: str) -> str:
    """Where values of this size come from, as `ys config show` says it."""
    return NOT_CHOSEN if name == AUTO else f"size {name}"


def unknown_size(name: str) -> str:
    """What is wrong with the name; "" where it is a size or `auto`."""
    known = [AUTO, *size_names()]
    if name in known:
        return ""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    return f"model.size must be one of {', '.join(known)}, found {name}{hint}"


def _folder() -> Path:
    return shipped_folder() / "sizes"


@cache
def _read(path: Path) -> Mapping[str, Any]:
    return flatten(read_yaml(path).values)
