"""Short stories: a plot is prepared on a stage, told, checked, and given a matching prompt."""

import random
import re
from dataclasses import dataclass

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import expand, sentences, tidy
from ys_llm.gendata.programs.stories.plots import load_plot, plot_names
from ys_llm.gendata.programs.stories.prepare import prepare
from ys_llm.gendata.programs.stories.pronouns import pronominalise
from ys_llm.gendata.programs.stories.stage import (
    Character,
    StoryStage,
    drop_marks,
    set_stage,
    stay_at_home,
    tell_details,
)

SHORTEST_WORDS, LONGEST_WORDS = 110, 300
TELLINGS_BEFORE_FEWER = 2  # then the story has one detail less
MAX_TELLINGS = 100  # of the same prepared plot; most are good enough at the first

PROMPTS = (
    "[Write|Tell me] a [story|short story] about {a.full} who {gist}.",
    "[Write|Tell me] a [story|short story] about {a.full} who {gist}.",
    "[Write|Tell me] a [story|short story] about {a.full} who {gist}.",
    "[Write|Tell me] a [story|short story] about {a.full} named {a} who {gist}.",
    "[Write|Tell] a story in which {a.full} {gist}.",
    "[Write|Tell me] a story about {a.full} named {a}.",
    "[Write|Tell me] a story [about|with] {a} and {b}.",
    "[Write|Tell me] a story about {theme}.",
    "[Write|Tell me] a story about {theme}, with {a.full} named {a}.",
    "Tell me a bedtime story about {a.full}[, please|].",
    "What happens to {a.full} who {gist}?",
)
CONTINUATION_SHARE = 0.12


@dataclass(frozen=True)
class Story:
    """A finished story, and what was decided before (the tests compare the two)."""

    plot: str
    prompt: str
    text: str
    cast: dict[str, Character]
    whole: str  # with the opening, which a prompt may have taken
    gist: str
    theme: str
    outcome: str
    place: str
    asks: tuple[tuple[str, str], ...]  # questions of the plot, with their answers


def make_story(rng: random.Random) -> Story:
    """One story; everything in it follows from `rng`."""
    name = rng.choice(plot_names())
    plot = load_plot(name)
    stage = set_stage(rng, plot.family, plot.avoid, plot.unfit)
    if plot.at_home:
        stay_at_home(stage)
    prepare(stage, plot)
    gist, theme, outcome = (_phrase(stage, one) for one in (plot.gist, plot.theme, plot.outcome))
    stage.slots |= {"gist": gist, "theme": theme}
    text = _tell_well(name, plot.script, stage)
    prompt, rest = _prompt(stage, text)
    asks = [(_sentence(stage, one.question), _sentence(stage, one.answer)) for one in plot.asks]
    return Story(
        name,
        prompt,
        rest,
        cast=stage.cast,
        whole=text,
        gist=gist,
        theme=theme,
        outcome=outcome,
        place=stage.place.at,
        asks=tuple(asks),
    )


def story(rng: random.Random) -> Record:
    """One story as a record."""
    made = make_story(rng)
    return Record(made.prompt, made.text)


def _sentence(stage: StoryStage, template: str) -> str:
    return tidy(expand(template, stage.slots, stage.rng))


def _phrase(stage: StoryStage, template: str) -> str:
    """A part of a sentence: as `_sentence`, but it begins as its template does."""
    text = expand(template, stage.slots, stage.rng)
    return text[:1] + tidy(text)[1:]


def _tell_well(name: str, script: str, stage: StoryStage) -> str:
    text = ""
    for number in range(MAX_TELLINGS):
        if number and number % TELLINGS_BEFORE_FEWER == 0:
            tell_details(stage, stage.details[1:])
        text = _tell(script, stage)
        if _reads_well(text, stage.cast["a"]):
            return text
    raise AssertionError(f"{name}: no telling reads well, the last one was: {text}")


def _tell(script: str, stage: StoryStage) -> str:
    text = tidy(drop_marks(expand(script, stage.slots, stage.rng)))
    return pronominalise(text, stage.cast.values(), stage.rng)


def _reads_well(text: str, hero: Character) -> bool:
    """Whether the length is right, no sentence repeats, and begin and end name the hero's ways."""
    found = sentences(text)
    length = len(text.split())
    if not SHORTEST_WORDS <= length <= LONGEST_WORDS or len(set(found)) < len(found):
        return False
    begin, end = " ".join(found[:2]), " ".join(found[-2:])
    named = all(hero.trait in part and hero.kind in part for part in (begin, end))
    return named and hero.name in begin


def _prompt(stage: StoryStage, text: str) -> tuple[str, str]:
    """A prompt that matches the story, and the part of the story that answers it."""
    if stage.rng.random() < CONTINUATION_SHARE:
        found = re.match(r"(?:[^\"\n.!?]+[.!?] ){1,2}(?=[A-Z])", text)
        if found:
            return f"Continue the story: {found[0].strip()}", text[found.end() :]
    return _sentence(stage, stage.pick(PROMPTS)), text
