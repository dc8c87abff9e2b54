"""The options that a mixer has where a configuration sets none of that name.

The mixers' own defaults are what a run has that was saved before there was such an option. These
are what a new run gets; its saved configuration spells them out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

DEFAULT_OPTIONS: Mapping[str, Mapping[str, Any]] = {"three_tier": {"state_gate": True}}


def default_options(layers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Those of the mixers of these layers."""
    return {name: dict(values) for name, values in DEFAULT_OPTIONS.items() if name in layers}
