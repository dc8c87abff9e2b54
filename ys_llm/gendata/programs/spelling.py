"""Spelling and letter counts; upper and lower case count as the same letter."""

import random
from string import ascii_lowercase

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import counted
from ys_llm.gendata.programs.words import ANIMAL_NAMES, ANIMALS, CHILDREN, THINGS, TRAITS

MORE_WORDS = (
    "accordion", "address", "alligator", "alphabet", "apricot", "asparagus", "avocado", "balloon",
    "banana", "basketball", "battle", "beetle", "beginning", "bicycle", "blizzard", "blossom",
    "bookkeeper", "bottle", "breakfast", "broccoli", "bubble", "butterfly", "cabbage", "calendar",
    "carrot", "caterpillar", "cheese", "cherry", "chocolate", "cinnamon", "coconut", "coffee",
    "colour", "committee", "compass", "cookie", "cottage", "cucumber", "daffodil", "december",
    "dinosaur", "dolphin", "dragonfly", "dictionary", "eclipse", "elephant", "eleven", "engine",
    "envelope", "evening", "february", "feeling", "festival", "fifteen", "firefly", "flamingo",
    "football", "forest", "freedom", "garlic", "giggle", "giraffe", "goose", "grasshopper",
    "greenhouse", "hammer", "happiness", "harbour", "hippopotamus", "holiday", "honeycomb",
    "horizon", "hurricane", "icicle", "island", "jacket", "jellyfish", "journey", "jungle",
    "kangaroo", "kettle", "kitchen", "kitten", "ladder", "lavender", "lemonade", "library",
    "lightning", "lollipop", "magazine", "mammal", "meadow", "mississippi", "mirror", "moonlight",
    "mosquito", "mountain", "museum", "mushroom", "necklace", "needle", "nonsense", "november",
    "october", "octopus", "onion", "orchestra", "ostrich", "paddle", "pancake", "parrot",
    "peacock", "peanut", "pebble", "pencil", "penguin", "pepper", "piano", "pillow", "pineapple",
    "pizza", "planet", "pocket", "potato", "pumpkin", "puppet", "puzzle", "pyramid", "question",
    "rabbit", "raccoon", "radish", "railroad", "rainbow", "raspberry", "rattle", "reindeer",
    "rhythm", "riddle", "river", "rocket", "saddle", "sandwich", "satellite", "saturday",
    "scissors", "season", "september", "shadow", "shampoo", "sheriff", "skeleton", "snowflake",
    "spaghetti", "sparrow", "spinach", "squirrel", "strawberry", "submarine", "success", "summer",
    "sunflower", "swallow", "syllable", "teacher", "telescope", "tennis", "thirteen", "thunder",
    "tomato", "tomorrow", "tongue", "tornado", "trampoline", "treasure", "triangle", "trumpet",
    "tulip", "tunnel", "turtle", "twilight", "umbrella", "unicorn", "vacation", "valley",
    "vanilla", "village", "violin", "volcano", "waffle", "walnut", "wednesday", "weekend",
    "whisper", "window", "winter", "wizard", "yellow", "yesterday", "zebra", "zigzag", "zucchini",
)  # fmt: skip
ASK_TO_SPELL = ("Spell the word {}.", "How do you spell {}?", "Please spell {}.", "Spell {}.")
ASK_TO_COUNT = (
    "How many times does the letter {1} occur in {0}?",
    "How often does {1} occur in the word {0}?",
    "Count the letter {1} in {0}.",
)


def _words() -> tuple[str, ...]:
    """All words to ask about; proper names are capitalised."""
    vocabulary = {word for thing in THINGS for word in thing.noun.split()}
    vocabulary |= {animal.kind for animal in ANIMALS} | set(TRAITS) | set(MORE_WORDS)
    names = {name for group in (CHILDREN, ANIMAL_NAMES) for part in group.values() for name in part}
    return tuple(sorted(vocabulary)) + tuple(sorted(names))


WORDS = _words()


def spelled(word: str) -> str:
    """`F-O-X`."""
    return "-".join(word.upper())


def spelling(rng: random.Random) -> Record:
    """A word spelled or reversed, a letter counted, the length, or the first or last letter."""
    word = rng.choice(WORDS)
    task = rng.choice((_spell, _count, _count, _length, _ends, _reverse))
    return task(rng, word)


def _spell(rng: random.Random, word: str) -> Record:
    return Record(rng.choice(ASK_TO_SPELL).format(word), spelled(word))


def _count(rng: random.Random, word: str) -> Record:
    present = rng.random() < 0.85
    letter = rng.choice(sorted(set(word.lower()))) if present else rng.choice(ascii_lowercase)
    prompt = rng.choice(ASK_TO_COUNT).format(word, letter)
    number = counted(word.lower().count(letter), "time")
    return Record(prompt, f"{spelled(word)}\nThe letter {letter} occurs {number}.")


def _length(rng: random.Random, word: str) -> Record:
    prompt = rng.choice(("How many letters does {} have?", "How long is the word {}?"))
    return Record(
        prompt.format(word), f"{spelled(word)}\nThe word has {counted(len(word), 'letter')}."
    )


def _ends(rng: random.Random, word: str) -> Record:
    end, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    prompt = f"What is the {end} letter of {word}?"
    return Record(prompt, f"The {end} letter of {word} is {letter.lower()}.")


def _reverse(rng: random.Random, word: str) -> Record:
    prompt = rng.choice(("Spell {} backwards.", "Write the word {} backwards."))
    return Record(prompt.format(word), spelled(word[::-1]))
