"""Settings from the environment: YS_TRAIN__SEED=7 is train.seed=7."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ys_llm.config.strict_reader import field_helps

_PREFIX = "YS_"
# No settings of a run.
_OTHER_USES = ("YS_DEBUG", "YS_CACHE_DIR", "YS_CPU_LEVEL", "YS_STATE_DIR", "YS_LOG", "YS_API_KEY")
_NEAR = 0.8  # of difflib's similarity, above which a name counts as a misspelt setting


@dataclass
class EnvironmentSettings:
    """What the environment sets: (variable, dotted name, text), and the problems of the rest."""

    settings: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_environment(environment: Mapping[str, str], cls: type[Any]) -> EnvironmentSettings:
    """Sort the YS_* variables of `environment` into settings of `cls`, problems and warnings.

    A variable that begins with the name of a field or section is a setting, right or wrong; one
    that is nearly a setting is a problem; any other may belong to another program: a warning.
    """
    found = EnvironmentSettings()
    names = field_helps(cls)
    top_level = {name.partition(".")[0] for name in names}
    for variable, text in sorted(environment.items()):
        if not variable.upper().startswith(_PREFIX) or variable.upper() in _OTHER_USES:
            continue
        dotted = variable[len(_PREFIX) :].lower().replace("__", ".")
        if dotted.partition(".")[0] in top_level:
            found.settings.append((variable, dotted, text))
        elif near := _nearest(dotted, list(names)):
            found.problems.append(f"{variable} is not a setting. Did you mean {variable_of(near)}?")
        else:
            found.warnings.append(f"{variable} is not a setting and is ignored")
    return found


def variable_of(dotted: str) -> str:
    """The environment variable that sets a dotted name."""
    return _PREFIX + dotted.upper().replace(".", "__")


def _nearest(dotted: str, names: list[str]) -> str:
    """The setting that a misspelt name is meant for, or ""."""
    flat = {_flat(name): name for name in names}
    own_name = [name for name in names if "_" in dotted and name.rpartition(".")[2] == dotted]
    near = difflib.get_close_matches(_flat(dotted), list(flat), n=1, cutoff=_NEAR)
    return own_name[0] if own_name else flat[near[0]] if near else ""


def _flat(name: str) -> str:
    return re.sub(r"[._]+", "_", name)
