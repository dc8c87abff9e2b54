"""The stage of one story: its characters, their ways, and the slots of its text."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, TypeVar

from ys_llm.gendata.programs.stories.lore import Detail, Place, details, phrases, scenery, traits
from ys_llm.gendata.programs.words import (
    ADULTS,
    ANIMAL_NAMES,
    ANIMALS,
    CHILDREN,
    FOODS,
    THINGS,
    TRAITS,
    Animal,
    Pronoun,
    Thing,
)

T = TypeVar("T")
Family = Literal["animals", "children"]

ONE_TO_THREE = ("one", "two", "three")
FORMS: Mapping[Pronoun, Mapping[str, str]] = {
    "he": {"him": "him", "his": "his", "himself": "himself"},
    "she": {"him": "her", "his": "her", "himself": "herself"},
    "they": {"him": "them", "his": "their", "himself": "themself"},
}
VERBS = {"was": "were", "is": "are", "has": "have", "does": "do"}  # singular and plural
CHILD_KIND: dict[Pronoun, str] = {"he": "boy", "she": "girl", "they": "child"}
CHILD_INTRODUCTION = "[{a.his} friend {b}|{b.plain}|{b} from next door]"
ANIMAL_INTRODUCTION = "[{b} the {b.kind}|{b.plain}|{a.his} friend {b} the {b.kind}]"
SINGULAR_THEY_SHARE = 0.03  # so that a model learns it; rare, as in such books

# What is said: plainly, in the other order, or in the way of a trait.
SAYS = (
    "[said {a}|said {a}|said {a}|{a} said|said {a} {manner}|said {a} {manner}"
    "|said {a} {beat}|said {a} {beat}|said {a} {beat}]"
)
ASKS = "[asked {a}|asked {a}|asked {a}|{a} asked|asked {a} {manner}|asked {a} {beat}]"
CRIES = "[cried {a}|cried {a}|called {a}|shouted {a}|{a} cried|{a} called]"
MOST_DETAILS = 2  # in a story
TOLD, RECALL = "\x01", "\x02"  # around what is dropped where the details were not told
CALM_TRAITS = ("shy", "quiet", "gentle", "old")


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

    @property
    def is_child(self) -> bool:
        """Whether it is a boy, a girl or a child."""
        return self.kind in CHILD_KIND.values()

    def forms(self) -> dict[str, str]:
        """All slots of this character that are words, by the part after the dot."""
        plural = self.pronoun == "they"
        forms = {"he": self.pronoun, **FORMS[self.pronoun]}
        forms |= {one: many if plural else one for one, many in VERBS.items()}
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
    slots: dict[str, str] = field(default_factory=lambda: dict(phrases()))
    cast: dict[str, Character] = field(default_factory=dict)
    details: Sequence[Detail] = ()

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return self.rng.choice(options)

    def fill(self, name: str, value: str) -> None:
        """Set a slot, {name.cap}, and {name.the}: with `the` in the place of `a`."""
        self.slots[name], self.slots[f"{name}.cap"] = value, value[:1].upper() + value[1:]
        first, _, rest = value.partition(" ")
        self.slots[f"{name}.the"] = f"the {rest}" if first in ("a", "an", "one") else value

    def enter(self, role: str, character: Character) -> Character:
        """Add a character under a one-letter role: {a}, {a.he}, {a.kind}, {a.says}..."""
        self.cast[role] = character
        self.slots[role] = character.name
        for form, text in character.forms().items():
            self.slots[f"{role}.{form}"] = text
        kind = "" if character.is_child or character.trait == "old" else f" the {character.kind}"
        self.slots[f"{role}.named"] = f"{{{role}}}{kind}"
        self.slots[f"{role}.plain"] = (
            f"{{{role}}}"
            if character.trait == "old"
            else f"{{{role}.full}} [named|called] {{{role}}}"
        )
        self.slots[f"{role}.new"] = _introduction(role, character)
        for form, text in _ways(character.trait).items():
            self.slots[f"{role}.{form}"] = _of(role, text)
        return character

    def bring_thing(self, nature: str) -> Thing:
        """Choose the central thing of the story: {thing} with an adjective, {noun} without."""
        thing = self.pick([item for item in THINGS if nature == "any" or nature in item.nature])
        self.slots |= {"thing": f"{self.pick(thing.looks)} {thing.noun}", "noun": thing.noun}
        return thing

    def _free_pronoun(self) -> Pronoun:
        """A pronoun that no other character has, in three of four cases: clearer to read."""
        if self.rng.random() < SINGULAR_THEY_SHARE:
            return "they"
        pronoun: Pronoun = self.pick(("he", "she"))
        taken = {character.pronoun for character in self.cast.values()}
        if pronoun in taken and self.rng.random() < 0.75:
            return "he" if pronoun == "she" else "she"
        return pronoun

    def child(self, role: str, avoid: Sequence[str] = ()) -> Character:
        """Add a child with a name of its own, and none of these traits."""
        pronoun = self._free_pronoun()
        name = self.pick([n for n in CHILDREN[pronoun] if n not in self._names()])
        trait = self._trait(avoid)
        return self.enter(role, Character(name, CHILD_KIND[pronoun], pronoun, trait))

    def animal(
        self,
        role: str,
        avoid: Sequence[str] = (),
        suits: Callable[[Animal], bool] = lambda _animal: True,
    ) -> Character:
        """Add an animal of a new kind that suits, with none of these traits."""
        kinds = {character.kind for character in self.cast.values()}
        kind = self.pick([a for a in ANIMALS if a.kind not in kinds and suits(a)])
        pronoun = self._free_pronoun()
        name = self.pick([n for n in ANIMAL_NAMES[pronoun] if n not in self._names()])
        trait = self._trait(avoid)
        character = Character(name, kind.kind, pronoun, trait, kind.hands, kind.home, kind.skills)
        return self.enter(role, character)

    def adult(self, role: str) -> Character:
        """Add an adult whom the children know."""
        pronoun = self._free_pronoun()
        if pronoun == "they":
            pronoun = "she"
        name = self.pick(ADULTS[pronoun])
        kind = "man" if pronoun == "he" else "woman"
        return self.enter(role, Character(name, kind, pronoun, "old", skills=("ladder",)))

    def _names(self) -> set[str]:
        return {character.name for character in self.cast.values()}

    def _trait(self, avoid: Sequence[str]) -> str:
        taken = {character.trait for character in self.cast.values()}
        return self.pick([trait for trait in TRAITS if trait not in taken and trait not in avoid])


def _introduction(role: str, character: Character) -> str:
    """How a character comes into a story that knows only {a}."""
    if character.trait == "old":
        return f"{{{role}}}"
    template = CHILD_INTRODUCTION if character.is_child else ANIMAL_INTRODUCTION
    return template.replace("{b", "{" + role)


@cache
def _ways(trait: str) -> Mapping[str, str]:
    """Templates of how a character with this trait speaks and acts, as those of {a}."""
    ways = {"says": SAYS, "asks": ASKS, "cries": CRIES, "beat": phrases()["beat"]}
    if trait in CALM_TRAITS:
        ways["cries"] = ways["cries"].replace("shouted", "called")
    if trait == "old":
        return ways | {"manner": "[kindly|slowly|with a smile|and nodded]"}
    found = traits()[trait]
    acts = {"stuck": found.stuck, "dares": found.dares, "glad": found.glad}
    acts |= {"end": found.ends, "lasting": found.lasting}
    ways |= {name: f"[{'|'.join(texts)}]" for name, texts in acts.items()}
    return ways | {"habit": f"[{'|'.join(found.habits)}]", "manner": f"[{'|'.join(found.manner)}]"}


def _of(role: str, template: str) -> str:
    """A template about {a}, as one about this role."""
    own = template.replace("{a", "{" + role)
    for name in ("says", "asks", "cries", "manner", "beat"):
        own = own.replace(f"{{{name}}}", f"{{{role}.{name}}}")
    return own


def set_stage(
    rng: random.Random,
    family: Family | Literal[""] = "",
    avoid: Sequence[str] = (),
    unfit: Sequence[str] = (),
) -> StoryStage:
    """A stage with a place, weather and a main character {a} without these traits and skills."""
    drawn: Family = family if family else rng.choice(("animals", "children"))
    place = rng.choice(scenery().wild if drawn == "animals" else scenery().town)
    stage = StoryStage(rng, drawn, place)
    weather = rng.choice(scenery().weathers)
    stage.slots |= {
        "place": place.name,
        "at": place.at,
        "sight": rng.choice(place.sights),
        "weather": weather.day,
        "air": weather.air,
        "part": rng.choice(("morning", "afternoon")),
    }
    _fill_numbered(stage, "spot", place.spots)
    _fill_numbered(stage, "decoy", scenery().decoys)
    _fill_numbered(stage, "food", FOODS)
    stage.slots["food"] = stage.slots["food.one"]
    if drawn == "animals":
        stage.animal("a", avoid, suits=lambda one: not set(one.skills).intersection(unfit))
    else:
        stage.child("a", avoid)
    opening = rng.choice(("tale", "tale", "day", "day", "plain"))
    stage.slots |= {
        "habit": "{a.habit} {details}{frame}",
        "opening": "{" + opening + "}",
        "one day": "{same day}" if opening == "day" else "{some day}",
        "lives": "{animal lives}" if drawn == "animals" else "{child lives}",
    }
    _add_details(stage)
    return stage


def drop_marks(text: str) -> str:
    """The text without its marks, and without recalling what it has not told."""
    if TOLD not in text:
        text = re.sub(f"{RECALL}[^{RECALL}]*{RECALL}", "", text)
    return text.translate({ord(TOLD): None, ord(RECALL): None})


def stay_at_home(stage: StoryStage) -> None:
    """Let the story end where {a} lives: no sentence of its end goes home."""
    ends = traits()[stage.cast["a"].trait].ends
    stage.slots["a.end"] = f"[{'|'.join(end for end in ends if 'home' not in end)}]"
    stage.slots |= {"homeward": "{sky}", "went home": "{good night}"}


def _add_details(stage: StoryStage) -> None:
    """{details} near the beginning; {recall} near the end speaks of one of them again."""
    number = stage.rng.randint(1, MOST_DETAILS)
    chosen = stage.rng.sample(list(details().values()), number)
    for detail in chosen:
        for rows in detail.rows.values():
            for name, text in stage.pick(rows).items():
                stage.fill(name, text)
        for name, texts in detail.lists.items():
            stage.fill(name, stage.pick(texts))
    tell_details(stage, chosen)


def tell_details(stage: StoryStage, told: Sequence[Detail]) -> None:
    """Fill {details} with the openings of these details, {recall} with what says one again."""
    stage.details = told
    again = stage.pick(told).again if told else ""
    stage.slots["details"] = TOLD + "".join(detail.opening for detail in told)
    stage.slots["recall"] = RECALL + again + RECALL


def _fill_numbered(stage: StoryStage, name: str, options: Sequence[str]) -> None:
    """{spot.one}, {spot.two}, {spot.three}: three of the options."""
    for number, text in zip(ONE_TO_THREE, stage.rng.sample(options, 3), strict=True):
        stage.fill(f"{name}.{number}", text)
