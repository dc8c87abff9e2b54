"""Whether an answer is the story that a prompt asked for: by the words of the stories' program."""

import re
from collections.abc import Iterable

from ys_llm.gendata.judges.characters import names_apart, pronouns_kept
from ys_llm.gendata.judges.plots import plot_asked, plot_told
from ys_llm.gendata.programs.words import ADULTS, ANIMAL_NAMES, ANIMALS, CHILDREN, TRAITS

_CONTINUES = "Continue the story: "
_ASKS = re.compile(rf"(?:Write|Tell)\b.*\bstory\b|What happens to |{_CONTINUES}")
# What names a kind: the word itself, and for a child a name of such children.
_NAMED_BY: dict[str, frozenset[str]] = {
    **{animal.kind: frozenset({animal.kind}) for animal in ANIMALS},
    "boy": frozenset({"boy", *CHILDREN["he"]}),
    "girl": frozenset({"girl", *CHILDREN["she"]}),
    "child": frozenset({"child", *CHILDREN["they"]}),
}
_NAMES = frozenset(
    name
    for names in (CHILDREN, ANIMAL_NAMES, ADULTS)
    for of_pronoun in names.values()
    for full in of_pronoun
    for name in full.split()[-1:]
)
# Words, without the two verbs that are written like names where they begin a question.
_WORD = re.compile(r"(?<![^\W\d_])(?!(?:May|Will) (?:I|you|he|she|they|we|it)\b)[^\W\d_]+")
_BEING = re.compile(r"\bbeing \w+")  # `a story about being brave` asks for no brave hero
MOST_NEW_NAMES = 1  # after the hero's: one friend


def stories(prompt: str, answer: str) -> dict[str, bool]:
    """What an answer does of what its prompt asks; empty where the prompt asks for no story.

    `names_the_asked`: every name in the prompt is in the answer; where it has none, the first
    animal that it speaks of is, or the boy, girl or child, by this word or by a name.
    Absent where the prompt speaks of neither.
    `keeps_its_hero`: the first name of prompt and answer is in the last third of the answer's
    words, and at most MOST_NEW_NAMES other names come in the answer.
    `keeps_names_apart`: no name is given to two characters.
    `keeps_pronouns`: no name is "he" here and "she" there.
    `names_the_trait`: `shy`, where the prompt asks for a shy fox.
    `tells_the_plot`: the plot that the prompt names is the one that the answer is most like.
    """
    if not _ASKS.match(prompt):
        return {}
    asked, told = _WORD.findall(prompt), _WORD.findall(answer)
    names_asked, names_told = _names(asked), _names(told)
    kinds = [_NAMED_BY[word] for word in asked if word in _NAMED_BY][:1]
    wanted = [frozenset({name}) for name in names_asked] or kinds
    found = {"names_the_asked": all(map(set(told).intersection, wanted))} if wanted else {}
    names = list(dict.fromkeys([*names_asked, *names_told]))
    last_third = told[2 * len(told) // 3 :]
    new = set(names_told) - set(names_asked or names[:1])
    found["keeps_its_hero"] = bool(names) and names[0] in last_third and len(new) <= MOST_NEW_NAMES
    story = prompt.removeprefix(_CONTINUES) + " " + answer if _CONTINUES in prompt else answer
    hero = next(iter(_names(_WORD.findall(story))), "")
    found["keeps_names_apart"] = names_apart(story, hero=hero)
    found["keeps_pronouns"] = pronouns_kept(story)
    if traits := [word for word in _WORD.findall(_BEING.sub("", prompt)) if word in TRAITS]:
        found["names_the_trait"] = traits[0] in told
    if plot := plot_asked(prompt):
        found["tells_the_plot"] = plot_told(answer) == plot
    return found


def _names(words: Iterable[str]) -> list[str]:
    """The names among words, each once, in order."""
    return list(dict.fromkeys(word for word in words if word in _NAMES))
