"""Which plot a prompt asks for, and which one a story tells: by the words of the plots' files.

A story tells the plot of whose texts it has most sequences of three words that no other plot has.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain

from ys_llm.gendata.programs.grammar import TOKEN
from ys_llm.gendata.programs.stories.plots import Plot, load_plot
from ys_llm.gendata.programs.stories.story import PLOTS

_WORD = re.compile(r"[a-z]+")

Trigram = tuple[str, str, str]


def plot_asked(prompt: str) -> str:
    """The plot that a prompt names by what happens or by its theme; "" where it names none."""
    return next((name for name, pattern in _asking().items() if pattern.search(prompt)), "")


def plot_told(story: str) -> str:
    """The plot that a story is most like, "" if it is like none."""
    own = _plots_of_trigrams()
    found = Counter(own[trigram] for trigram in set(_trigrams(story)) if trigram in own)
    return found.most_common(1)[0][0] if found else ""


@cache
def _asking() -> dict[str, re.Pattern[str]]:
    return {
        name: re.compile(rf"\b{_pattern(plot.gist)}[.,?]|\babout {_pattern(plot.theme)}[.,]")
        for name, plot in ((name, load_plot(name)) for name in PLOTS)
    }


def _pattern(template: str) -> str:
    """A template whose slots match any words."""
    parts = re.split(r"\{[^{}]+\}", template)
    return ".+?".join(re.escape(part) for part in parts).replace(r"\ a\ .+?", r"\ an?\ .+?")


@cache
def _plots_of_trigrams() -> dict[Trigram, str]:
    """The plot of each sequence of words that only one plot has."""
    of_plots: dict[Trigram, set[str]] = {}
    for name in PLOTS:
        for trigram in chain.from_iterable(map(_trigrams, _texts(load_plot(name)))):
            of_plots.setdefault(trigram, set()).add(name)
    return {trigram: next(iter(names)) for trigram, names in of_plots.items() if len(names) == 1}


def _texts(plot: Plot) -> Iterator[str]:
    """What a plot's file says between its choices and slots."""
    cells = (cell for rows in plot.rows.values() for row in rows for cell in row.values())
    for template in chain([plot.script], cells, chain.from_iterable(plot.lists.values())):
        yield from (part for part in TOKEN.split(template) if not part.startswith("{"))


def _trigrams(text: str) -> Iterator[Trigram]:
    words = _WORD.findall(text.lower())
    return zip(words, words[1:], words[2:], strict=False)
