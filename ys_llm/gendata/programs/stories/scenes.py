"""A small scene in a few sentences, and a question whose answer follows from it."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import listed, plural
from ys_llm.gendata.programs.words import CHILDREN

ITEMS = ("ball", "book", "cup", "hat", "key", "spoon", "doll", "kite", "shoe", "bell", "coat",
         "drum", "pencil", "ribbon")  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "purple")
SPOTS = ("on the table", "under the bed", "in the box", "behind the door", "on the shelf",
         "in the drawer", "under the chair", "in the basket", "on the window sill")  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
Answer = tuple[str, str]


@dataclass
class Room:
    """The locations and holders of things, and the sentences that state them."""

    rng: random.Random
    people: list[str]
    spots: list[str]
    colours: dict[str, str]
    where: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    mover: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def place(self, item: str) -> None:
        """State where a thing lies at first."""
        spot = self.rng.choice(self.spots)
        self.where[item] = spot
        lies = self.rng.choice(("is", "lies"))
        self.lines.append(f"The {self.colours[item]} {item} {lies} {spot}.")

    def act(self) -> None:
        """Somebody takes, moves, gives or puts down a thing."""
        held = [item for item in self.holder]
        if held and self.rng.random() < 0.6:
            self.rng.choice((self._put_down, self._give))(self.rng.choice(held))
            return
        free = list(self.where)
        if free:
            self.rng.choice((self._take, self._move, self._move))(self.rng.choice(free))

    def _take(self, item: str) -> None:
        person = self.rng.choice(self.people)
        self.lines.append(f"{person} takes the {item}.")
        del self.where[item]
        self.holder[item] = person

    def _move(self, item: str) -> None:
        person = self.rng.choice(self.people)
        spot = self.rng.choice([s for s in self.spots if s != self.where[item]])
        self.lines.append(f"{person} takes the {item} and puts it {spot}.")
        self.where[item] = spot
        self.mover[item] = person

    def _put_down(self, item: str) -> None:
        person = self.holder.pop(item)
        spot = self.rng.choice(self.spots)
        self.lines.append(f"{person} puts the {item} {spot}.")
        self.where[item] = spot
        self.mover[item] = person

    def _give(self, item: str) -> None:
        person = self.holder[item]
        other = self.rng.choice([p for p in self.people if p != person])
        self.lines.append(f"{person} gives the {item} to {other}.")
        self.holder[item] = other


def make_room(rng: random.Random) -> Room:
    """Three or four things, two or three people, and two to five events."""
    people = rng.sample(CHILDREN["she"] + CHILDREN["he"], rng.randint(2, 3))
    items = rng.sample(ITEMS, rng.randint(3, 5))
    colours = {item: rng.choice(COLOURS) for item in items}
    room = Room(rng, people, rng.sample(SPOTS, 4), colours)
    for item in items:
        room.place(item)
    for _ in range(rng.randint(2, 5)):
        room.act()
    return room


def _where(room: Room) -> Answer:
    item = room.rng.choice(list(room.colours))
    question = f"Where is the {item} now?"
    if item in room.holder:
        return question, f"{room.holder[item]} has the {item}."
    return question, f"The {item} is {room.where[item]}."


def _who(room: Room) -> Answer:
    item = room.rng.choice(list(room.holder) or list(room.colours))
    question = f"Who has the {item}?"
    if item in room.holder:
        return question, f"{room.holder[item]} has the {item}."
    return question, f"Nobody has it. The {item} is {room.where[item]}."


def _colour(room: Room) -> Answer:
    item = room.rng.choice(list(room.colours))
    return f"What colour is the {item}?", f"The {item} is {room.colours[item]}."


def _how_many(room: Room) -> Answer:
    used = list(room.where.values())
    spot = room.rng.choice(used if used and room.rng.random() < 0.8 else room.spots)
    there = [item for item in room.colours if room.where.get(item) == spot]
    question = f"How many things are {spot} now?"
    if not there:
        return question, f"There is nothing {spot}."
    number = NUMBERS[len(there)].capitalize()
    noun = "thing" if len(there) == 1 else plural("thing")
    return question, f"{number} {noun}: {listed(['the ' + item for item in there])}."


def _moved(room: Room) -> Answer:
    moved = [item for item in room.mover if item in room.where]
    if not moved:
        return _where(room)
    item = room.rng.choice(moved)
    return f"Who put the {item} where it is now?", f"{room.mover[item]} put it {room.where[item]}."


QUESTIONS: tuple[Callable[[Room], Answer], ...] = (
    _where, _where, _who, _colour, _how_many, _moved,
)  # fmt: skip


def scenes(rng: random.Random) -> Record:
    """A scene and a question about it."""
    room = make_room(rng)
    question, answer = rng.choice(QUESTIONS)(room)
    return Record(f"{' '.join(room.lines)} {question}", answer)
