"""Presets of options: a name for settings that belong together, each of which may be set anew."""

import difflib
from collections.abc import Mapping
from typing import Any


def fill_from_preset(options: Any, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the fields of a frozen dataclass that are None as its `preset` has them; others stay.

    Raises ValueError where there is no such preset.
    """
    for name, value in _preset(options.preset, presets).items():
        if getattr(options, name) is None:
            object.__setattr__(options, name, value)


def _preset(name: str, presets: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if name in presets:
        return presets[name]
    near = difflib.get_close_matches(name, presets, n=3) or presets
    raise ValueError(f"there is no preset {name!r}. Did you mean {' or '.join(near)}?")
