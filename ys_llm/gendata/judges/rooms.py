"""Scenes in a room: what the prompt tells is done again, and the question answered."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ys_llm.gendata.programs.grammar import listed
from ys_llm.gendata.programs.stories.scenes import NUMBERS

_LIES = re.compile(r"The (\w+) (\w+) (?:is|lies) (.+)\.")
_MOVES = re.compile(r"(\w+) takes the (\w+) and puts it (.+)\.")
_TAKES = re.compile(r"(\w+) takes the (\w+)\.")
_PUTS = re.compile(r"(\w+) puts the (\w+) (.+)\.")
_GIVES = re.compile(r"\w+ gives the (\w+) to (\w+)\.")


@dataclass
class _Scene:
    """Of each thing its colour, where it lies or who holds it, and who put it there."""

    colours: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    mover: dict[str, str] = field(default_factory=dict)

    def read(self, sentence: str) -> bool:
        """Do what a sentence tells; whether it is understood."""
        if found := _LIES.fullmatch(sentence):
            self.colours[found[2]], self.where[found[2]] = found[1], found[3]
        elif found := _MOVES.fullmatch(sentence) or _PUTS.fullmatch(sentence):
            self.holder.pop(found[2], None)
            self.where[found[2]], self.mover[found[2]] = found[3], found[1]
        elif found := _TAKES.fullmatch(sentence):
            self.where.pop(found[2], None)
            self.holder[found[2]] = found[1]
        elif found := _GIVES.fullmatch(sentence):
            self.holder[found[1]] = found[2]
        else:
            return False
        return True


def rooms(prompt: str, answer: str) -> Mapping[str, bool]:
    """`where`, `who`, `colour`, `how_many`, `who_put`: the answer is what the scene gives."""
    *told, question = re.split(r"(?<=\.) ", prompt)
    scene = _Scene()
    if not told or not all(map(scene.read, told)):
        return {}
    check, expected = _asked(scene, question)
    return {check: answer.strip() == expected} if check else {}


def _asked(scene: _Scene, question: str) -> tuple[str, str]:
    """The name of the check, and the right answer; twice "" for another question."""
    if found := re.fullmatch(r"How many things are (.+) now\?", question):
        return "how_many", _how_many(scene, found[1])
    found = re.fullmatch(r"(Where|Who|What colour) (?:\w+ )?the (\w+)\b.*\?", question)
    if not found or found[2] not in scene.colours:
        return "", ""
    thing = found[2]
    lies = f"The {thing} is {scene.where.get(thing)}."
    if found[1] == "What colour":
        return "colour", f"The {thing} is {scene.colours[thing]}."
    if question.startswith("Who put"):
        return "who_put", f"{scene.mover.get(thing)} put it {scene.where.get(thing)}."
    if thing in scene.holder:
        lies = f"{scene.holder[thing]} has the {thing}."
    elif found[1] == "Who":
        lies = f"Nobody has it. {lies}"
    return found[1].lower(), lies


def _how_many(scene: _Scene, spot: str) -> str:
    there = [f"the {thing}" for thing in scene.colours if scene.where.get(thing) == spot]
    if not there:
        return f"There is nothing {spot}."
    noun = "thing" if len(there) == 1 else "things"
    return f"{NUMBERS[len(there)].capitalize()} {noun}: {listed(there)}."
