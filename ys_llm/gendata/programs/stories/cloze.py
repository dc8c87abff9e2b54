"""A story with a gap and four options, of which the story has more than one.

The answer follows from the text: of the options, it is the one that the text says most often.
"""

import random
import re
from collections import Counter
from functools import cache

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import sentences
from ys_llm.gendata.programs.stories.lore import scenery
from ys_llm.gendata.programs.stories.retelling import NAMES
from ys_llm.gendata.programs.stories.story import make_story
from ys_llm.gendata.programs.words import FOODS, THINGS

GAP = "_____"
LEAST_MENTIONS = 3  # of the right word, besides the gap
_MOST_TRAPS = 2  # options that the story has, too
_WORD = re.compile(r"\b[A-Za-z]+\b")


def cloze(rng: random.Random) -> Record:
    """A story with a gap in the place of a name or a thing, and four options."""
    while True:
        whole = make_story(rng).whole
        found = gaps(whole)
        if found:
            break
    word, sentence, traps = rng.choice(found)
    chosen = rng.sample(traps, min(len(traps), _MOST_TRAPS))
    pool = NAMES if word in NAMES else _nouns()
    present = _counts(whole)
    strange = [other for other in pool if not present[other]]
    options = [word, *chosen, *rng.sample(strange, 3 - len(chosen))]
    rng.shuffle(options)
    shown = "\n".join(f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
    letter = "ABCD"[options.index(word)]
    told = whole.replace(sentence, _with_gap(sentence, word), 1)
    prompt = f"{told}\n\nWhich word fills the gap?\n{shown}"
    return Record(prompt, f"The answer is {letter}) {word}.")


def gaps(text: str) -> list[tuple[str, str, list[str]]]:
    """Words that can be left out, each with its sentence and with other words that the text has."""
    found, counts = [], _counts(text)
    story = sentences(text)
    for sentence in story[len(story) // 2 :]:
        inside = _counts(sentence)
        if text.count(sentence) > 1:
            continue
        for word in sorted(word for word, number in inside.items() if number == 1):
            pool = NAMES if word in NAMES else _nouns() if word in _nouns() else ()
            traps = [other for other in pool if other != word and counts[other]]
            rivals = [counts[trap] for trap in traps]
            mentions = counts[word] - 1
            if traps and mentions >= max(LEAST_MENTIONS, *(rival + 1 for rival in rivals), 0):
                found.append((word, sentence, traps))
    return found


def _with_gap(sentence: str, word: str) -> str:
    return re.sub(rf"\b{word}\b", GAP, sentence, count=1)


def _counts(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text))


@cache
def _nouns() -> tuple[str, ...]:
    """Things that are one word, each once: those of stories, and what lies about in them."""
    said = [thing.noun for thing in THINGS]
    said += [decoy.partition(" ")[2].split()[-1] for decoy in scenery().decoys]
    said += [food.split()[-1] for food in FOODS]
    return tuple(dict.fromkeys(noun for noun in said if " " not in noun and noun != "it"))
