"""Which plot a prompt asks for, and which one a story tells: by the words of the plots' files.

A story tells the plot of whose texts it has most sequences of three words that no other plot has.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain

from ys_llm.gendata.programs.grammar import Sequence, SlotRef, parse
from ys_llm.gendata.programs.stories.plots import Plot, load_plot, plot_names

_WORD = re.compile(r"[a-z]+")

Trigram = tuple[str, str, str]
Tails = frozenset[tuple[str, ...]]  # the last two words, or fewer, of the texts so far
_NOTHING: Tails = frozenset({()})


def plot_asked(prompt: str) -> str:
    """The plot that a prompt names by what happens or by its theme; "" where it names none."""
    return next((name for name, pattern in _asking().items() if pattern.search(prompt)), "")


def plot_told(story: str) -> str:
    """The plot that a story is most like, "" if it is like none; of equals the first."""
    own = _plots_of_trigrams()
    words = _WORD.findall(story.lower())
    trigrams = dict.fromkeys(zip(words, words[1:], words[2:], strict=False))
    found = Counter(own[trigram] for trigram in trigrams if trigram in own)
    return found.most_common(1)[0][0] if found else ""


@cache
def _asking() -> dict[str, re.Pattern[str]]:
    return {
        name: re.compile(rf"\b{_pattern(plot.gist)}[.,?]|\babout {_pattern(plot.theme)}[.,]")
        for name, plot in ((name, load_plot(name)) for name in plot_names())
    }


def _pattern(template: str) -> str:
    """A template whose slots match any words."""
    parts = re.split(r"\{[^{}]+\}", template)
    return ".+?".join(re.escape(part) for part in parts).replace(r"\ a\ .+?", r"\ an?\ .+?")


@cache
def _plots_of_trigrams() -> dict[Trigram, str]:
    """The plot of each sequence of words that only one plot has."""
    of_plots: dict[Trigram, set[str]] = {}
    for name in plot_names():
        found: set[Trigram] = set()
        for template in _texts(load_plot(name)):
            _collect(parse(template), _NOTHING, found)
        for trigram in found:
            of_plots.setdefault(trigram, set()).add(name)
    return {trigram: next(iter(names)) for trigram, names in of_plots.items() if len(names) == 1}


def _texts(plot: Plot) -> Iterator[str]:
    """The templates of what a plot's file lets a story say."""
    tables = chain(plot.rows.values(), plot.pairs.values())
    cells = (cell for rows in tables for row in rows for cell in row.values())
    texts = chain(plot.lists.values(), plot.several.values())
    return chain([plot.script], cells, chain.from_iterable(texts))


def _collect(sequence: Sequence, tails: Tails, found: set[Trigram]) -> Tails:
    """Add the trigrams of all texts of a template to `found`; how these texts can end.

    What a slot stands for is not known: no trigram reaches over it.
    """
    for part in sequence:
        if isinstance(part, SlotRef):
            tails = _NOTHING
        elif isinstance(part, str):
            tails = frozenset(_read(tail, _WORD.findall(part.lower()), found) for tail in tails)
        else:
            ends: Iterable[Tails] = (_collect(one, tails, found) for one in part.alternatives)
            tails = frozenset(chain.from_iterable(ends))
    return tails


def _read(tail: tuple[str, ...], words: list[str], found: set[Trigram]) -> tuple[str, ...]:
    """Go on from the last words; the last two words after it."""
    text = [*tail, *words]
    found.update(zip(text, text[1:], text[2:], strict=False))
    return tuple(text[-2:])
