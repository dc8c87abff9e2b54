"""Names, animals, traits, weather and things: the vocabulary of the stories."""

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

TRAITS: dict[str, tuple[str, ...]] = {
    "shy": (
        "{a} liked to listen more than to talk.",
        "When somebody said hello, {a} [looked at the ground|spoke in a whisper].",
    ),
    "curious": (
        "{a} asked more questions than anybody else.",
        "{a} wanted to know what was behind every door and under every stone.",
    ),
    "brave": (
        "{a} was not afraid of thunder, and not even of geese.",
        "{a} always wanted to be the first to try something new.",
    ),
    "clever": (
        "{a} could solve almost any riddle.",
        "{a} always had a plan, and very often a second plan too.",
    ),
    "gentle": (
        "{a} stepped around every beetle on the path.",
        "Even the smallest birds were not afraid of {a}.",
    ),
    "cheerful": (
        "{a} sang from morning till evening.",
        "Wherever {a} went, somebody soon began to laugh.",
    ),
    "patient": (
        "{a} could sit still and watch a snail for an hour.",
        "{a} never minded waiting.",
    ),
    "impatient": (
        "{a} wanted everything to happen at once.",
        "For {a}, even a minute was a long time.",
    ),
    "stubborn": (
        "When {a} had made up {a.his} mind, nobody could change it.",
        "{a} never gave up, not even when it would have been wise.",
    ),
    "careful": (
        "{a} looked twice before every step.",
        "{a} folded every blanket and counted every spoon.",
    ),
    "forgetful": (
        "{a} sometimes forgot what {a.he} {a.was} looking for while {a.he} looked for it.",
        "{a} tied knots in {a.his} scarf to remember things, and then forgot about the knots.",
    ),
    "proud": (
        "{a} did not like to ask for help.",
        "{a} held {a.his} head high and wanted everyone to see it.",
    ),
    "quiet": (
        "{a} liked the sound of rain better than the sound of talking.",
        "Often nobody noticed that {a} was there at all.",
    ),
    "kind": (
        "{a} always kept a little food for somebody who was hungry.",
        "If anyone was sad, {a} was the first to sit down beside them.",
    ),
    "busy": (
        "{a} had a list of things to do, and the list was never short.",
        "{a} hurried here and there all day long.",
    ),
    "dreamy": (
        "{a} saw ships and castles in every cloud.",
        "{a} often walked past {a.his} own door because {a.he} {a.was} thinking.",
    ),
    "playful": (
        "{a} could make a game out of a stick and a puddle.",
        "{a} would rather hop than walk.",
    ),
    "grumpy": (
        "Before breakfast it was better not to talk to {a}.",
        "{a} grumbled about the weather, even when it was fine.",
    ),
    "polite": (
        "{a} said good morning even to the trees.",
        "{a} never forgot to say please and thank you.",
    ),
    "messy": (
        "There were always crumbs and leaves wherever {a} had been.",
        "{a} could never find two socks that matched.",
    ),
    "clumsy": (
        "{a} tripped over stones, roots and sometimes over nothing at all.",
        "If there was a puddle, {a} fell into it.",
    ),
    "thoughtful": (
        "{a} thought about things for a long time before {a.he} spoke.",
        "{a} remembered everybody's birthday.",
    ),
    "hopeful": (
        "{a} believed that every cloudy day had a bright end.",
        "{a} was sure that something wonderful would happen soon.",
    ),
    "lively": (
        "{a} could not sit still, not even at dinner.",
        "{a} ran up every hill and rolled down the other side.",
    ),
}


@dataclass(frozen=True)
class Weather:
    """Words for a day, and what there is to see and feel on it."""

    day: str
    air: str


WEATHERS = (
    Weather(
        "[sunny|bright|warm]",
        "[The sun was warm|The sky was blue from one side to the other|Not a cloud was in the sky]",
    ),
    Weather(
        "[windy|breezy]",
        "[The wind played with the leaves|Small clouds raced over the sky|The trees rustled]",
    ),
    Weather(
        "[cloudy|grey|quiet]",
        "[Soft grey clouds hung over the roofs and hills|The air was still and cool]",
    ),
    Weather(
        "[fresh|cool|clear]",
        "[It had rained in the night, and every leaf was shining|The air smelled of wet earth]",
    ),
    Weather(
        "[golden|crisp|misty] autumn",
        "[The leaves were red and yellow|A thin mist lay over the ground|It smelled of apples]",
    ),
    Weather(
        "[mild|soft|lovely] spring",
        "[The first flowers were out|The birds were busy with their nests|Bees were humming]",
    ),
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
    Thing("whistle", ("tin", "silver", "wooden"), ("shiny",)),
    Thing("bell", ("tiny", "silver", "brass"), ("shiny",)),
    Thing("spoon", ("silver", "wooden", "big"), ("shiny",)),
    Thing("ribbon", ("blue", "silk", "purple"), ("light", "flies")),
    Thing("toy boat", ("white", "little", "painted"), ("toy",)),
    Thing("lantern", ("small", "copper", "paper"), ()),
    Thing("feather", ("white", "blue", "long grey"), ("light", "flies")),
    Thing("shell", ("pink", "curly", "spotted"), ()),
    Thing("map", ("old", "folded", "hand-drawn"), ("light",)),
    Thing("coin", ("gold", "lucky", "old"), ("round", "shiny")),
    Thing("flute", ("wooden", "reed", "silver"), ("shiny",)),
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

DECOYS = (
    "a snail on a wet leaf", "a sleepy beetle", "an old boot", "a spider in a web",
    "a puddle with the sky in it", "one brown sock", "a very surprised toad", "a heap of dust",
    "a broken pencil", "an ant with a crumb", "a piece of string", "a dry crust of bread",
    "a ladybird", "an empty nutshell", "a long, pink worm", "a bent nail",
)  # fmt: skip
FOODS = (
    "apple cake", "honey bread", "berry pie", "carrot soup", "warm rolls", "plum cake",
    "nut biscuits", "pancakes", "mushroom soup", "pear tart", "oat biscuits", "cherry buns",
)  # fmt: skip
