"""Short stories: a plot is prepared on a stage, told, checked, and given a matching prompt."""

import random
import re
from dataclasses import dataclass

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import expand, sentences, tidy
from ys_llm.gendata.programs.stories.plots import load_plot
from ys_llm.gendata.programs.stories.prepare import PREPARE
from ys_llm.gendata.programs.stories.pronouns import pronominalise
from ys_llm.gendata.programs.stories.stage import Character, StoryStage, set_stage

PLOTS = tuple(PREPARE)
SHORTEST_WORDS, LONGEST_WORDS = 100, 250
MAX_TELLINGS = 50  # of the same prepared plot; in nine of ten cases the first one is good enough

PROMPTS = (
    "[Write|Tell me] a [story|short story] about {a.full} who {gist}.",
    "[Write|Tell me] a [story|short story] about {a.full} who {gist}.",
    "[Write|Tell me] a [story|short story] about {a.full} who {gist}.",
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
    where: dict[str, str]
    whole: str  # with the opening, which a prompt may have taken
    gist: str
    theme: str
    place: str


def make_story(rng: random.Random) -> Story:
    """One story; everything in it follows from `rng`."""
    name = rng.choice(PLOTS)
    plot = load_plot(name)
    stage = set_stage(rng)
    PREPARE[name](stage, plot)
    text = _tell_well(name, plot.script, stage)
    stage.fill(gist=plot.gist, theme=plot.theme)
    prompt, rest = _prompt(stage, text)
    gist, theme = (tidy(expand(f"{{{name}}}", stage.slots, rng)) for name in ("gist", "theme"))
    return Story(
        name,
        prompt,
        rest,
        cast=stage.cast,
        where=stage.where,
        whole=text,
        gist=gist[0].lower() + gist[1:],
        theme=theme[0].lower() + theme[1:],
        place=stage.place.at,
    )


def story(rng: random.Random) -> Record:
    """One story as a record."""
    made = make_story(rng)
    return Record(made.prompt, made.text)


def _tell_well(name: str, script: str, stage: StoryStage) -> str:
    for _ in range(MAX_TELLINGS):
        text = _tell(script, stage)
        if _reads_well(text):
            return text
    raise AssertionError(f"{name}: no telling reads well, the last one was: {text}")


def _tell(script: str, stage: StoryStage) -> str:
    text = tidy(expand(script, stage.slots, stage.rng))
    return pronominalise(text, stage.cast.values(), stage.rng)


def _reads_well(text: str) -> bool:
    """Whether the length is right and no sentence repeats."""
    found = sentences(text)
    length = len(text.split())
    return SHORTEST_WORDS <= length <= LONGEST_WORDS and len(set(found)) == len(found)


def _prompt(stage: StoryStage, text: str) -> tuple[str, str]:
    """A prompt that matches the story, and the part of the story that answers it."""
    if stage.rng.random() < CONTINUATION_SHARE:
        found = re.match(r"(?:[^\"\n.!?]+[.!?] ){1,2}(?=[A-Z])", text)
        if found:
            return f"Continue the story: {found[0].strip()}", text[found.end() :]
    return tidy(expand(stage.pick(PROMPTS), stage.slots, stage.rng)), text
