"""Questions that a story answers: who, what, where; what it is about; a gap in it.

What is asked was decided before the story was told; each answer is given only if the text says it.
"""

import random
import re
from collections.abc import Callable

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import listed, sentences
from ys_llm.gendata.programs.stories.stage import CHILD_KIND, Character
from ys_llm.gendata.programs.stories.story import Story, make_story
from ys_llm.gendata.programs.words import ANIMAL_NAMES, CHILDREN, THINGS

Asked = tuple[str, str]
SAID = re.compile(
    r"(?<![\w\"])\"([^\"]{8,80})\" (?:said|asked|cried|whispered|thought|sighed|answered|called)"
    r" ([A-Z]\w+)(?= the [a-z]+\.|[.,]| and )"
)
_KIND_SAID = r"\b{name} the {kind}\b|\b{kind} (?:named|called) {name}\b"
NOUNS = tuple(thing.noun for thing in THINGS)
NAMES = tuple(name for group in (*CHILDREN.values(), *ANIMAL_NAMES.values()) for name in group)


def retelling(rng: random.Random) -> Record:
    """A story with one to three questions, or with a request for a summary."""
    story = make_story(rng)
    if rng.random() < 0.3:
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
    is_child = person.kind in CHILD_KIND.values()
    return person.name if is_child else f"{person.name} the {person.kind}"


def _full(person: Character) -> str:
    return f"{'an' if person.trait[0] in 'aeiou' else 'a'} {person.trait} {person.kind}"


def _others(story: Story) -> list[str]:
    """The names of the others, in order of appearance."""
    hero = story.cast["a"].name
    return sorted((n for n in _present(story) if n != hero), key=story.whole.index)


def _present(story: Story) -> list[str]:
    names = [person.name for person in story.cast.values()]
    return [name for name in names if re.search(rf"\b{name}\b", story.whole)]


def _summary(rng: random.Random, story: Story) -> Record:
    prompt = rng.choice((
        "Summarise this story in two or three sentences.",
        "What is this story about?",
        "Tell the story in short.",
    ))  # fmt: skip
    hero = _introduced(story, story.cast["a"])
    lines = [f"{hero}{',' if ', ' in hero else ''} {story.gist}."]
    if others := _others(story):
        verb = "is" if len(others) == 1 else "are"
        lines.append(f"{listed(others)} {verb} part of the story, too.")
    lines.append(f"It is a story about {story.theme}.")
    return Record(f"{story.whole}\n\n{prompt}", " ".join(lines))


def _hero(rng: random.Random, story: Story) -> Asked | None:
    return "Who is the story about?", f"It is about {_introduced(story, story.cast['a'])}."


def _company(rng: random.Random, story: Story) -> Asked | None:
    others = _others(story)
    if not others:
        return None
    hero = story.cast["a"].name
    return f"Who else is in the story, besides {hero}?", f"{listed(others)}."


def _is_there(rng: random.Random, story: Story) -> Asked | None:
    """Whether a character is in the story."""
    if rng.random() < 0.5:
        name = rng.choice(_present(story))
        return f"Is there somebody called {name} in the story?", f"Yes, {name} is in the story."
    name = rng.choice([n for n in NAMES if n not in story.whole])
    return (f"Is there somebody called {name} in the story?",
            f"No, nobody in the story is called {name}.")  # fmt: skip


def _happens(rng: random.Random, story: Story) -> Asked | None:
    name = story.cast["a"].name
    return f"What does the story tell about {name}?", f"{name} {story.gist}."


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
    article = "an" if person.kind[0] in "aeiou" else "a"
    return (f"What kind of animal is {person.name}?",
            f"{person.name} is {article} {person.kind}.")  # fmt: skip


def _where(rng: random.Random, story: Story) -> Asked | None:
    """Where the thing lay, if the story states it exactly once."""
    for thing, spot in story.where.items():
        if story.plot == "lost" and spot in story.whole.lower():
            return f"Where was the {thing}?", f"The {thing} was {spot}."
    return None


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
    _hero, _company, _is_there, _happens, _kind, _where, _place, _said,
)  # fmt: skip


def cloze(rng: random.Random) -> Record:
    """A story with a gap in the place of a name or a thing, and four options."""
    while True:
        story = make_story(rng)
        found = gaps(story.whole)
        if found:
            break
    word, sentence = rng.choice(found)
    pool = NAMES if word in NAMES else NOUNS
    wrong = rng.sample([other for other in pool if other.lower() not in story.whole.lower()], 3)
    options = [word, *wrong]
    rng.shuffle(options)
    gap = re.sub(rf"\b{re.escape(word)}\b", "_____", sentence, count=1)
    shown = "\n".join(f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
    letter = "ABCD"[options.index(word)]
    prompt = f"{story.whole.replace(sentence, gap, 1)}\n\nWhich word fills the gap?\n{shown}"
    return Record(prompt, f"The answer is {letter}) {word}.")


def gaps(text: str) -> list[Asked]:
    """A word that occurs elsewhere too, and a later sentence that contains it once."""
    story = sentences(text)
    found = []
    for sentence in story[len(story) // 2 :]:
        for word in set(re.findall(r"\b[A-Za-z]+\b", sentence)) & {*NAMES, *NOUNS}:
            pattern = rf"\b{word}\b"
            once = len(re.findall(pattern, sentence)) == 1 and text.count(sentence) == 1
            if once and len(re.findall(pattern, text)) > 2:
                found.append((word, sentence))
    return sorted(found)
