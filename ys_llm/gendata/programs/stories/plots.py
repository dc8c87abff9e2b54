"""Plots: the texts of a story, as one file of configs/gen/plots/ holds them.

    theme: making a present             # continues "a story about ..."
    gist: makes a {present} for ...     # continues "a story about a shy fox who ..."
    script: |                           # the story, in the language of `programs/grammar.py`
      {opening} ...
    rows:                               # tables: one row is chosen, and its cells become slots
      presents:
        - {present: warm scarf, owner: the sheep, ...}
    lists:                              # texts, of which one or several are chosen
      crowns: [an old hat, a bucket]

What is chosen, and for whom, is decided by the function of the same name in `prepare.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from ys_llm.config.shipped import shipped_folder
from ys_llm.config.sources import load_dataclass
from ys_llm.config.strict_reader import setting

Row = Mapping[str, str]


@dataclass(frozen=True)
class Plot:
    """The texts of one plot."""

    theme: str = setting("", 'continues "a story about ..."')
    gist: str = setting("", 'continues "a story about a shy fox who ..."')
    script: str = setting("", "the story, a template")
    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@cache
def load_plot(name: str) -> Plot:
    """The plot of this name. Raises UserError with all problems of its file."""
    path = shipped_folder() / "gen" / "plots" / f"{name.replace(' ', '_')}.yaml"
    plot: Plot = load_dataclass(Plot, path)
    return plot
