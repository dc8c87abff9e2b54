"""Plots: the texts of a story, as one file of configs/gen/stories/plots/ holds them.

    theme: making a present             # continues "a story about ..."
    gist: makes a {present} for ...     # continues "a story about a shy fox who ..."
    outcome: '{b} likes it ...'         # continues "In the end, ..."
    script: |                           # the story, in the language of `programs/grammar.py`
      {opening} ...
    avoid: [kind]                       # traits of {a} that do not suit the plot
    at_home: true                       # it ends where {a} lives: nobody goes home
    unfit: [fly]                        # skills of {a} with which it would have no problem
    family: animals                     # or children; both where it is left out
    friend: any adult                   # who {b} is: one of FRIENDS in `stage.py`
    thing: flies                        # {thing} and {noun}: any, or one of this nature
    rows:                               # tables: one row is chosen, and its cells become slots
      presents:
        - {present: warm scarf, owner: the sheep, only: children}
    pairs:                              # tables: two rows, whose cells become {way.one}, {way.two}
    lists:                              # texts, of which one is chosen: {crown}
      crown: [an old hat, a bucket]
    several:                            # texts, of which three are chosen: {guest.one} ...
      guest: [a wet mouse, a tired goose, a lost lamb]
    asks:                               # questions that the text answers
      - {question: 'What did {a} make?', answer: 'It was a {present}.'}

A row with `only` or `unless` is used for these families, for animals of these skills or things of
this nature alone, or not at all; a row may say who {b} is (`friend`). No row and no text of a list
speaks of the kind of animal that {a} is, and {b} is of a kind that none of them speaks of.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from ys_llm.config.sources import load_dataclass
from ys_llm.config.strict_reader import setting
from ys_llm.gendata.programs.stories.lore import Row, stories_folder
from ys_llm.gendata.programs.stories.variations import varied


@dataclass(frozen=True)
class Question:
    """A question about a story, and its answer."""

    question: str = setting("", "a template")
    answer: str = setting("", "a template; the script says the same")


@dataclass(frozen=True)
class Plot:
    """The texts of one plot."""

    theme: str = setting("", 'continues "a story about ..."')
    gist: str = setting("", 'continues "a story about a shy fox who ..."')
    outcome: str = setting("", 'continues "In the end, ..."')
    script: str = setting("", "the story, a template")
    avoid: tuple[str, ...] = setting((), "traits of {a} that do not suit the plot")
    unfit: tuple[str, ...] = setting((), "skills of {a} that do not suit the plot")
    family: Literal["", "animals", "children"] = setting("", "both where it is empty")
    friend: str = setting("any", "who {b} is")
    at_home: bool = setting(False, "whether it ends where {a} lives")
    thing: str = setting("", "the nature of {thing}, or any")
    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    pairs: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    several: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asks: tuple[Question, ...] = setting((), "questions that the text answers")


@cache
def plot_names() -> tuple[str, ...]:
    """The names of all plots, sorted."""
    files = (stories_folder() / "plots").glob("*.yaml")
    return tuple(sorted(path.stem.replace("_", " ") for path in files))


@cache
def load_plot(name: str) -> Plot:
    """The plot of this name. Raises UserError with all problems of its file."""
    path = stories_folder() / "plots" / f"{name.replace(' ', '_')}.yaml"
    plot: Plot = load_dataclass(Plot, path)
    return replace(plot, script=varied(plot.script))
