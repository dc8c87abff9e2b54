"""The stage of one story: its characters, where things lie, and the slots of its text."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from ys_llm.gendata.programs.stories.phrases import PHRASES
from ys_llm.gendata.programs.stories.places import TOWN, WILD, Place
from ys_llm.gendata.programs.words import (
    ADULTS,
    ANIMAL_NAMES,
    ANIMALS,
    CHILDREN,
    THINGS,
    TRAITS,
    WEATHERS,
    Pronoun,
    Thing,
)

T = TypeVar("T")
Family = Literal["animals", "children"]

FORMS: dict[Pronoun, dict[str, str]] = {
    "he": {"him": "him", "his": "his", "himself": "himself", "was": "was", "is": "is"},
    "she": {"him": "her", "his": "her", "himself": "herself", "was": "was", "is": "is"},
    "they": {"him": "them", "his": "their", "himself": "themself", "was": "were", "is": "are"},
}
CHILD_KIND: dict[Pronoun, str] = {"he": "boy", "she": "girl", "they": "child"}
CHILD_INTRODUCTION = "[{a.his} friend {b}|{b.plain}|{b} from next door]"
ANIMAL_INTRODUCTION = "[{b} the {b.kind}|{b.plain}|{a.his} friend {b} the {b.kind}]"
SINGULAR_THEY_SHARE = 0.04  # so that a model learns it; rare, as in such books


@dataclass(frozen=True)
class Character:
    """A character of a story."""

    name: str
    kind: str
    pronoun: Pronoun
    trait: str
    hands: str = "hands"
    home: str = "house"
    skills: tuple[str, ...] = ()

    def forms(self) -> dict[str, str]:
        """All slots of this character, by the part after the dot."""
        forms = {"he": self.pronoun, **FORMS[self.pronoun]}
        forms |= {key.capitalize(): value.capitalize() for key, value in forms.items()}
        return forms | {
            "kind": self.kind,
            "trait": self.trait,
            "hands": self.hands,
            "home": self.home,
            "full": f"a {self.trait} {self.kind}",
        }


@dataclass
class StoryStage:
    """The state of a story while it is prepared: random numbers, place, characters, slots."""

    rng: random.Random
    family: Family
    place: Place
    slots: dict[str, str] = field(default_factory=lambda: dict(PHRASES))
    cast: dict[str, Character] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return self.rng.choice(options)

    def fill(self, **slots: str) -> None:
        """Set slots (values may be templates); an underscore in a name stands for a dot."""
        self.slots.update({name.replace("_", "."): value for name, value in slots.items()})

    def enter(self, role: str, character: Character) -> Character:
        """Add a character under a one-letter role: {a}, {a.he}, {a.kind}..."""
        self.cast[role] = character
        self.slots[role] = character.name
        for form, text in character.forms().items():
            self.slots[f"{role}.{form}"] = text
        is_child = character.kind in CHILD_KIND.values()
        kind = "" if is_child else f" the {character.kind}"
        self.slots[f"{role}.named"] = f"{{{role}}}{kind}"
        self.slots[f"{role}.plain"] = f"{{{role}.full}} [named|called] {{{role}}}"
        self.slots[f"{role}.new"] = self._introduction(role, character)
        return character

    def _introduction(self, role: str, character: Character) -> str:
        if character.trait == "old":
            return f"{{{role}}}"
        kind = CHILD_INTRODUCTION if character.kind in CHILD_KIND.values() else ANIMAL_INTRODUCTION
        return kind.replace("{b", "{" + role)

    def put(self, thing: str, spot: str) -> None:
        """Put a thing somewhere."""
        self.where[thing] = spot

    def spots(self, count: int) -> list[str]:
        """Different spots of this place."""
        return self.rng.sample(self.place.spots, count)

    def bring_thing(self, *, nature: str = "") -> Thing:
        """Choose the central thing of the story: {thing} with an adjective, {noun} without."""
        thing = self.pick([item for item in THINGS if not nature or nature in item.nature])
        self.fill(thing=f"{self.pick(thing.looks)} {thing.noun}", noun=thing.noun)
        return thing

    def _pronoun(self) -> Pronoun:
        if self.rng.random() < SINGULAR_THEY_SHARE:
            return "they"
        pronouns: tuple[Pronoun, Pronoun] = ("he", "she")
        return self.pick(pronouns)

    def _free_pronoun(self) -> Pronoun:
        """A pronoun that no other character has, in three of four cases: clearer to read."""
        taken = {character.pronoun for character in self.cast.values()}
        pronoun = self._pronoun()
        if pronoun in taken and self.rng.random() < 0.75:
            return "he" if pronoun == "she" else "she"
        return pronoun

    def child(self, role: str) -> Character:
        """Add a child with a name of its own."""
        pronoun = self._free_pronoun()
        name = self.pick([n for n in CHILDREN[pronoun] if n not in self._names()])
        return self.enter(role, Character(name, CHILD_KIND[pronoun], pronoun, self._trait()))

    def animal(self, role: str, *, skill: str = "") -> Character:
        """Add an animal of a new kind, with a skill if one is required."""
        kinds = {character.kind for character in self.cast.values()}
        animal = self.pick(
            [a for a in ANIMALS if a.kind not in kinds and (not skill or skill in a.skills)]
        )
        pronoun = self._free_pronoun()
        name = self.pick([n for n in ANIMAL_NAMES[pronoun] if n not in self._names()])
        return self.enter(
            role,
            Character(
                name, animal.kind, pronoun, self._trait(), animal.hands, animal.home, animal.skills
            ),
        )

    def adult(self, role: str) -> Character:
        """Add an adult whom the children know."""
        pronoun = self._free_pronoun()
        if pronoun == "they":
            pronoun = "she"
        name = self.pick(ADULTS[pronoun])
        kind = "man" if pronoun == "he" else "woman"
        return self.enter(role, Character(name, kind, pronoun, "old", skills=("ladder",)))

    def avoid(self, *traits: str) -> None:
        """Change the trait of {a} if it does not suit the plot."""
        if self.cast["a"].trait in traits:
            others = [trait for trait in TRAITS if trait not in traits]
            self.enter("a", replace(self.cast["a"], trait=self.pick(others)))
            self.fill(habit=self.pick(TRAITS[self.cast["a"].trait]))

    def friend(self, role: str) -> Character:
        """Add an animal to a story about animals, a child to one about children."""
        return self.animal(role) if self.family == "animals" else self.child(role)

    def _names(self) -> set[str]:
        return {character.name for character in self.cast.values()}

    def _trait(self) -> str:
        taken = {character.trait for character in self.cast.values()}
        return self.pick([trait for trait in TRAITS if trait not in taken])


def set_stage(rng: random.Random) -> StoryStage:
    """A stage with a place, weather and a main character {a}."""
    family: Family = "animals" if rng.random() < 0.5 else "children"
    place = rng.choice(WILD if family == "animals" else TOWN)
    stage = StoryStage(rng, family, place)
    weather = rng.choice(WEATHERS)
    stage.fill(
        place=place.name,
        at=place.at,
        sight=rng.choice(place.sights),
        weather=weather.day,
        air=weather.air,
        part=rng.choice(("morning", "afternoon")),
    )
    hero = stage.friend("a")
    stage.fill(habit=rng.choice(TRAITS[hero.trait]))
    opening = rng.choice(("tale", "tale", "day", "day", "plain"))
    stage.slots["opening"] = "{" + opening + "}"
    stage.slots["one day"] = "{same day}" if opening == "day" else "{some day}"
    lives = "{animal lives}" if family == "animals" else "{child lives}"
    stage.fill(lives=lives)
    return stage
