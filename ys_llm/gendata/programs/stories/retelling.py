"""Questions that a story answers: who, what, where; what it is about; how it ends.

What is asked was decided before the story was told; each answer is given only if the text says it.
"""

import random
import re
from collections.abc import Callable

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import article, listed
from ys_llm.gendata.programs.stories.stage import Character
from ys_llm.gendata.programs.stories.story import Story, make_story
from ys_llm.gendata.programs.words import ANIMAL_NAMES, CHILDREN

Asked = tuple[str, str]
SUMMARY_SHARE = 0.35
SAID = re.compile(
    r"(?<![\w\"])\"([^\"]{8,80})\" (?:said|asked|cried|whispered|thought|sighed|answered|called)"
    r" ([A-Z]\w+)\b"
)
_KIND_SAID = r"\b{name} the {kind}\b|\b{kind} (?:named|called) {name}\b|\b{name}, an? \w+ {kind}\b"
NAMES = tuple(name for group in (*CHILDREN.values(), *ANIMAL_NAMES.values()) for name in group)


def retelling(rng: random.Random) -> Record:
    """A story with one to three questions, or with a request for a summary."""
    story = make_story(rng)
    if rng.random() < SUMMARY_SHARE:
        return _summary(rng, story)
    possible = [asked for ask in ASKING if (asked := ask(rng, story))]
    chosen = rng.sample(possible, min(len(possible), rng.randint(1, 3)))
    if len(chosen) == 1:
        return Record(f"{story.whole}\n\n{chosen[0][0]}", chosen[0][1])
    questions = "\n".join(f"{i}. {question}" for i, (question, _) in enumerate(chosen, 1))
    answers = "\n".join(f"{i}. {answer}" for i, (_, answer) in enumerate(chosen, 1))
    return Record(f"{story.whole}\n\n{questions}", answers)


def _introduced(story: Story, person: Character) -> str:
    """`Mia, a shy girl`, or as much of it as the story states."""
    if re.search(rf"\b{person.trait} {person.kind}\b", story.whole):
        return f"{person.name}, {_full(person)}"
    is_plain = person.is_child or person.trait == "old"
    return person.name if is_plain else f"{person.name} the {person.kind}"


def _full(person: Character) -> str:
    return f"{article(person.trait)} {person.trait} {person.kind}"


def _others(story: Story) -> list[Character]:
    """The others that the text names, in order of appearance."""
    others = [person for role, person in story.cast.items() if role != "a"]
    return sorted((p for p in others if p in _present(story)), key=_first_place(story))


def _first_place(story: Story) -> Callable[[Character], int]:
    return lambda person: story.whole.index(person.name)


def _present(story: Story) -> list[Character]:
    return [p for p in story.cast.values() if re.search(rf"\b{p.name}\b", story.whole)]


def _summary(rng: random.Random, story: Story) -> Record:
    """Who it is about and what happens, who else is there, and how it ends."""
    prompt = rng.choice((
        "Summarise this story in two or three sentences.",
        "What is this story about?",
        "Tell the story in short.",
        "Who is in this story, what happens, and how does it end?",
        "Retell this story in a few sentences.",
    ))  # fmt: skip
    hero = _introduced(story, story.cast["a"])
    lines = [f"{hero}{',' if ', ' in hero else ''} {story.gist}."]
    for other in _others(story):
        who = _introduced(story, other)
        lines.append(f"{who}{',' if ', ' in who else ''} is there, too.")
    lines.append(f"In the end, {story.outcome}.")
    if rng.random() < 0.4:
        lines.append(f"It is a story about {story.theme}.")
    return Record(f"{story.whole}\n\n{prompt}", " ".join(lines))


def _hero(rng: random.Random, story: Story) -> Asked | None:
    return "Who is the story about?", f"It is about {_introduced(story, story.cast['a'])}."


def _company(rng: random.Random, story: Story) -> Asked | None:
    others = [person.name for person in _others(story)]
    if not others:
        return None
    hero = story.cast["a"].name
    return f"Who else is in the story, besides {hero}?", f"{listed(others)}."


def _is_there(rng: random.Random, story: Story) -> Asked | None:
    """Whether a character is in the story."""
    if rng.random() < 0.5:
        name = rng.choice(_present(story)).name
        return f"Is there somebody called {name} in the story?", f"Yes, {name} is in the story."
    name = rng.choice([n for n in NAMES if n not in story.whole])
    return (f"Is there somebody called {name} in the story?",
            f"No, nobody in the story is called {name}.")  # fmt: skip


def _happens(rng: random.Random, story: Story) -> Asked | None:
    name = story.cast["a"].name
    return f"What does the story tell about {name}?", f"{name} {story.gist}."


def _ends(rng: random.Random, story: Story) -> Asked | None:
    return "How does the story end?", f"In the end, {story.outcome}."


def _trait(rng: random.Random, story: Story) -> Asked | None:
    """What a character is like; the text says it of the hero."""
    hero = story.cast["a"]
    return f"What is {hero.name} like?", f"{hero.name} is {hero.trait}."


def _kind(rng: random.Random, story: Story) -> Asked | None:
    """The kind of animal that a character is."""
    animals = [
        person
        for person in story.cast.values()
        if person.home != "house"  # where people live
        and re.search(_KIND_SAID.format(name=person.name, kind=person.kind), story.whole)
    ]
    if not animals:
        return None
    person = rng.choice(animals)
    return (f"What kind of animal is {person.name}?",
            f"{person.name} is {article(person.kind)} {person.kind}.")  # fmt: skip


def _plots_own(rng: random.Random, story: Story) -> Asked | None:
    """One of the questions in the plot's file."""
    return rng.choice(story.asks) if story.asks else None


def _place(rng: random.Random, story: Story) -> Asked | None:
    if story.place not in story.whole:
        return None
    return "Where does the story take place?", f"It takes place {story.place}."


def _said(rng: random.Random, story: Story) -> Asked | None:
    """Who said a sentence that occurs once."""
    names = {person.name for person in story.cast.values()}
    said = [(text.rstrip(","), name) for text, name in SAID.findall(story.whole)]
    found = [(text, name) for text, name in said if name in names and story.whole.count(text) == 1]
    if not found:
        return None
    text, name = rng.choice(found)
    return f'Who said "{text}"?', f"{name} said it."


ASKING: tuple[Callable[[random.Random, Story], Asked | None], ...] = (
    _hero, _company, _is_there, _happens, _ends, _trait, _kind, _plots_own, _place, _said,
)  # fmt: skip
