"""Names, animals, traits and things: the vocabulary of the stories and of other kinds."""

from dataclasses import dataclass
from typing import Literal

Pronoun = Literal["he", "she", "they"]

CHILDREN: dict[Pronoun, tuple[str, ...]] = {
    "she": (
        "Mia", "Lily", "Anna", "Ella", "Nora", "Zoe", "Ruby", "Clara", "Ivy", "Rosa", "Hana",
        "Maya", "Lena", "Elsa", "Daisy", "Tara", "Amina", "Lucy", "Sofia", "Molly", "Freya",
        "Alma", "Nina", "Greta", "Priya", "Yuki", "Ada", "Iris", "Esme", "Leila",
    ),
    "he": (
        "Tom", "Ben", "Leo", "Max", "Sam", "Finn", "Oscar", "Jack", "Theo", "Noah", "Hugo", "Emil",
        "Omar", "Ravi", "Kai", "Milo", "Luca", "Otto", "Jonas", "Felix", "Arlo", "Henry", "Toby",
        "Ned", "Pablo", "Anton", "Idris", "Ezra", "Louis", "Caleb",
    ),
    "they": ("Alex", "Charlie", "Remy", "Jules"),
}  # fmt: skip
ANIMAL_NAMES: dict[Pronoun, tuple[str, ...]] = {
    "she": (
        "Hazel", "Clover", "Poppy", "Willow", "Tansy", "Juniper", "Dot", "Mabel", "Pearl", "Tilly",
        "Primrose", "Nettie", "Bluebell", "Luna", "Maple",
    ),
    "he": (
        "Bramble", "Rusty", "Pip", "Barnaby", "Moss", "Bertie", "Rufus", "Thistle", "Fergus",
        "Ollie", "Burdock", "Dusty", "Monty", "Basil", "Alfie",
    ),
    "they": ("Pebble", "Sorrel", "Ash", "Fennel"),
}  # fmt: skip
ADULTS: dict[Pronoun, tuple[str, ...]] = {
    "she": ("Grandma Rose", "Aunt May", "Grandma Lotte", "Aunt Flora", "Grandma Jo"),
    "he": ("Grandpa Joe", "Uncle Karl", "Farmer Gray", "Grandpa Will", "Uncle Ted"),
    "they": ("Captain Reed", "Doctor Lark"),
}


@dataclass(frozen=True)
class Animal:
    """A kind of animal: what it has for hands, where it lives, what it is good at."""

    kind: str
    hands: str
    home: str
    skills: tuple[str, ...]


ANIMALS = (
    Animal("fox", "paws", "den", ("run",)),
    Animal("rabbit", "paws", "burrow", ("run", "dig")),
    Animal("mouse", "paws", "hole", ("small",)),
    Animal("hedgehog", "paws", "nest of leaves", ()),
    Animal("squirrel", "paws", "hollow tree", ("climb",)),
    Animal("badger", "paws", "den", ("dig", "strong")),
    Animal("otter", "paws", "den", ("swim",)),
    Animal("frog", "feet", "house of reeds", ("swim",)),
    Animal("bear", "paws", "cave", ("strong", "climb")),
    Animal("duck", "wings", "nest", ("fly", "swim")),
    Animal("owl", "wings", "hollow tree", ("fly",)),
    Animal("mole", "paws", "tunnel", ("dig", "small")),
    Animal("beaver", "paws", "lodge", ("swim", "strong")),
    Animal("cat", "paws", "cottage", ("climb",)),
    Animal("goat", "hooves", "barn", ("climb", "strong")),
    Animal("sparrow", "wings", "nest", ("fly", "small")),
    Animal("crow", "wings", "nest", ("fly",)),
    Animal("deer", "hooves", "bed of moss", ("run",)),
)

# How each of them acts, configs/gen/stories/traits.yaml tells.
TRAITS = (
    "shy",
    "curious",
    "brave",
    "clever",
    "gentle",
    "cheerful",
    "patient",
    "impatient",
    "stubborn",
    "careful",
    "forgetful",
    "proud",
    "quiet",
    "kind",
    "busy",
    "dreamy",
    "playful",
    "grumpy",
    "polite",
    "messy",
    "clumsy",
    "thoughtful",
    "hopeful",
    "lively",
)


@dataclass(frozen=True)
class Thing:
    """A thing that one can carry, its looks, and what may happen to it by its nature."""

    noun: str
    looks: tuple[str, ...]
    nature: tuple[str, ...] = ()


THINGS = (
    Thing("ball", ("red", "blue", "striped"), ("round", "toy", "flies")),
    Thing("key", ("little brass", "silver", "rusty"), ("shiny",)),
    Thing("marble", ("green", "glass", "blue"), ("round", "shiny")),
    Thing("scarf", ("woolly", "yellow", "long red"), ("light", "flies")),
    Thing("hat", ("straw", "green", "pointed"), ("light", "flies")),
    Thing("button", ("golden", "round", "pearl"), ("round", "shiny")),
    Thing("whistle", ("tin", "silver", "brass"), ("shiny",)),
    Thing("bell", ("tiny", "silver", "brass"), ("shiny",)),
    Thing("spoon", ("silver", "bright", "big silver"), ("shiny",)),
    Thing("ribbon", ("blue", "silk", "purple"), ("light", "flies")),
    Thing("toy boat", ("white", "little", "painted"), ("toy",)),
    Thing("lantern", ("small", "copper", "paper"), ()),
    Thing("feather", ("white", "blue", "long grey"), ("light", "flies")),
    Thing("shell", ("pink", "curly", "spotted"), ()),
    Thing("map", ("old", "folded", "hand-drawn"), ("light",)),
    Thing("coin", ("gold", "lucky", "old"), ("round", "shiny")),
    Thing("flute", ("tin", "brass", "silver"), ("shiny",)),
    Thing("paintbrush", ("thin", "blue", "new"), ()),
    Thing("paper star", ("golden", "folded", "red"), ("light", "toy", "flies")),
    Thing("letter", ("long", "secret", "special"), ("light",)),
    Thing("wooden horse", ("little", "painted", "smooth"), ("toy",)),
    Thing("basket", ("small", "round", "woven"), ()),
    Thing("mitten", ("red", "warm", "knitted"), ()),
    Thing("kite", ("red", "paper", "big green"), ("light", "toy", "flies")),
    Thing("pine cone", ("big", "perfect", "brown"), ("round",)),
    Thing("notebook", ("blue", "small", "thick"), ()),
    Thing("drum", ("tin", "little", "red"), ("toy",)),
    Thing("cup", ("blue", "favourite", "yellow"), ()),
)

FOODS = (
    "apple cake", "honey bread", "berry pie", "carrot soup", "warm rolls", "plum cake",
    "nut biscuits", "pancakes", "mushroom soup", "pear tart", "oat biscuits", "cherry buns",
)  # fmt: skip
