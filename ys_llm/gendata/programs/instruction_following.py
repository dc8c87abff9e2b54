"""Facts under constraints: the program chooses sentences that satisfy them, and checks."""

import json
import random
import re

from ys_llm.data.records import Record
from ys_llm.gendata.verifiers.constraints import SATISFIED

# Plain sentences without a comma, each true on its own and beginning with its subject.
FACTS: dict[str, tuple[str, ...]] = {
    "foxes": ("Foxes live in forests and in cities.", "A fox has a bushy tail.",
              "Young foxes are called cubs.", "Foxes hunt mice at night.",
              "A fox can hear a mouse under the snow."),
    "bees": ("Bees visit flowers to collect nectar.", "A bee has six legs.",
             "Bees make honey in their hive.", "Many plants need bees to make seeds.",
             "Bees dance to show where flowers are."),
    "owls": ("Owls hunt at night.", "An owl can turn its head very far.",
             "Owls fly almost without a sound.", "An owl eats mice and insects.",
             "Young owls are called owlets."),
    "whales": ("Whales live in the sea.", "Whales breathe air.", "A whale is a mammal.",
               "The blue whale is the largest animal on earth.", "Some whales sing long songs."),
    "elephants": ("Elephants are the largest animals on land.", "An elephant has a long trunk.",
                  "Elephants live in herds.", "Elephants eat grass and leaves.",
                  "An old female leads the herd."),
    "ants": ("Ants live in large colonies.", "An ant can carry more than its own weight.",
             "Ants follow trails of scent.", "Every colony has a queen.", "Ants have six legs."),
    "penguins": ("Penguins cannot fly.", "Penguins swim very well.", "Penguins eat fish.",
                 "Most penguins live in the south of the world.",
                 "Emperor penguins keep their egg on their feet."),
    "frogs": ("Frogs begin life as tadpoles.", "A frog catches insects with its tongue.",
              "Frogs live near water.", "Frogs can breathe through their skin.",
              "In winter many frogs hide in mud."),
    "spiders": ("Spiders have eight legs.", "Many spiders spin webs.", "Spiders are not insects.",
                "A web is made of silk.", "Spiders eat flies and other insects."),
    "bats": ("Bats are mammals that can fly.", "Bats hang upside down when they rest.",
             "Many bats find their way by echoes.", "Bats hunt insects at night.",
             "Some bats eat fruit."),
    "the moon": ("The moon goes around the earth.", "The moon has no light of its own.",
                 "The moon has many craters.", "People first walked on the moon in 1969.",
                 "The moon moves the water of the sea."),
    "the sun": ("The sun is a star.", "The sun gives us light and warmth.",
                "The earth goes around the sun.", "Plants need light from the sun.",
                "The light of the sun takes about eight minutes to reach us."),
    "rain": ("Rain falls from clouds.", "Rain fills rivers and lakes.", "Plants need rain to grow.",
             "Rain can make a rainbow when the sun shines.", "In deserts there is little rain."),
    "snow": ("Snow is made of ice crystals.", "Snow falls when the air is cold.",
             "Snow keeps the ground warm.", "Children build snowmen from snow.",
             "On high mountains snow stays all year."),
    "volcanoes": ("Volcanoes are openings in the earth.", "Hot melted rock comes out of a volcano.",
                  "Many islands were made by volcanoes.", "The soil near volcanoes is rich.",
                  "Some volcanoes lie under the sea."),
    "rivers": ("Rivers carry water to the sea.", "A river begins at a spring.",
               "Many cities lie on rivers.", "Boats travel on rivers.",
               "Rivers shape their valleys."),
    "deserts": ("Deserts are very dry.", "Some deserts are hot and some are cold.",
                "Camels can live in deserts.", "The nights in a desert are often cold.",
                "Few plants grow in a desert."),
    "forests": ("Forests give a home to many animals.", "Trees in a forest clean the air.",
                "Mushrooms grow in forests.", "People get wood from forests.",
                "Rainforests are warm and wet."),
    "bread": ("Bread is made from flour and water.", "Yeast makes bread rise.",
              "Bread is baked in an oven.", "People have eaten bread for thousands of years.",
              "There are many kinds of bread."),
    "tea": ("Tea is made from leaves.", "People pour hot water over tea leaves.",
            "Tea was first drunk in China.", "Some people drink tea with milk.",
            "Green tea and black tea come from the same plant."),
    "milk": ("Milk comes from cows and other animals.", "Cheese is made from milk.",
             "Butter is made from milk too.", "Milk is good for the bones.",
             "Milk turns sour when it is old."),
    "apples": ("Apples grow on trees.", "Apples can be red or green or yellow.",
               "An apple has small brown seeds.", "Apple trees have white flowers in spring.",
               "Juice is made from apples."),
    "potatoes": ("Potatoes grow under the ground.", "Potatoes first came from South America.",
                 "Potatoes can be boiled or fried.", "The green parts of the plant are not eaten.",
                 "Chips are made from potatoes."),
    "bicycles": ("Bicycles have two wheels.", "A bicycle needs no fuel.",
                 "Riding a bicycle keeps people fit.", "A chain turns the back wheel.",
                 "Every bicycle should have good brakes."),
    "trains": ("Trains run on rails.", "A train can carry many people.",
               "The first trains were pulled by steam engines.", "Many trains run on electricity.",
               "Goods travel by train too."),
    "bridges": ("Bridges cross rivers and valleys.", "Some bridges hang on cables.",
                "Old bridges are often made of stone.", "A bridge must carry heavy loads.",
                "Some bridges can open for ships."),
    "books": ("Books are printed on paper.", "Libraries lend books.",
              "A book can teach us many things.",
              "Long ago books were copied by hand.", "Every book has an author."),
    "clocks": ("Clocks show the time.", "A day has 24 hours.", "Old clocks have a pendulum.",
               "The short hand shows the hour.", "Long ago people used the shadow of the sun."),
    "teeth": ("Teeth help us to chew.", "Children lose their milk teeth.",
              "We should brush our teeth twice a day.", "Sugar is bad for teeth.",
              "The hard outside of a tooth is called enamel."),
    "the heart": ("The heart pumps blood through the body.", "The heart is a muscle.",
                  "The heart beats faster when we run.", "A grown heart is about as big as a fist.",
                  "The heart works day and night."),
    "music": ("Music is made of sounds.", "People make music in every country.",
              "Some people play music and some people sing.", "Drums keep the rhythm.",
              "A song has a melody and words."),
    "football": ("Football is played by two teams.", "Each team has eleven players.",
                 "The players kick the ball with their feet.",
                 "Only the goalkeeper may use the hands.",
                 "A match has two halves."),
}  # fmt: skip
ASKING = (
    "Tell me about {}.",
    "Write about {}.",
    "Say something about {}.",
    "What do you know about {}?",
)
OFTEN = ("and", "many", "very", "some", "people", "they")  # no text contains all of them
NUMBERS = ("no", "one", "two", "three", "four", "five")
OPENINGS = ("Here is what I know:", "Listen well!", "This is true:")
CLOSINGS = ("That is all.", "Now you know it.", "The end.")


def instruction_following(rng: random.Random) -> Record:
    """A few facts in the required form."""
    subject = rng.choice(tuple(FACTS))
    chosen = rng.sample(FACTS[subject], rng.randint(1, 4))
    requirements: list[str] = []
    rules: list[tuple[str, int | str]] = []
    shape = rng.choice((_sentences, _bullets, _paragraphs, _json))
    text = shape(chosen, requirements, rules)
    if shape is _sentences and rng.random() < 0.3:
        text = _framed(rng, text, requirements, rules)
    elif shape is not _json and rng.random() < 0.5:
        text = _cased(rng, text, requirements, rules)
    if rng.random() < 0.5:
        _further(rng, text, requirements, rules)
    for rule, value in rules:
        assert SATISFIED[rule](text, value), (rule, value, text)
    return Record(f"{rng.choice(ASKING).format(subject)} {' '.join(requirements)}", text)


Rules = list[tuple[str, int | str]]


def _number(chosen: list[str], noun: str) -> str:
    return f"{NUMBERS[len(chosen)]} {noun}{'' if len(chosen) == 1 else 's'}"


def _sentences(chosen: list[str], requirements: list[str], rules: Rules) -> str:
    requirements.append(f"Write exactly {_number(chosen, 'sentence')}.")
    rules.append(("sentences", len(chosen)))
    return " ".join(chosen)


def _bullets(chosen: list[str], requirements: list[str], rules: Rules) -> str:
    requirements.append(
        f"Write exactly {_number(chosen, 'bullet point')} that begin with a hyphen."
        if len(chosen) > 1
        else "Write exactly one bullet point that begins with a hyphen."
    )
    rules.append(("bullets", len(chosen)))
    return "\n".join(f"- {sentence}" for sentence in chosen)


def _paragraphs(chosen: list[str], requirements: list[str], rules: Rules) -> str:
    requirements.append(
        f"Write exactly {_number(chosen, 'paragraph')} with an empty line between them."
        if len(chosen) > 1
        else "Write exactly one paragraph."
    )
    rules.append(("paragraphs", len(chosen)))
    return "\n\n".join(chosen)


def _json(chosen: list[str], requirements: list[str], rules: Rules) -> str:
    requirements.append(f"Answer with valid JSON: a list of {_number(chosen, 'sentence')}.")
    rules.append(("json", 1))
    return json.dumps(chosen)


def _framed(rng: random.Random, text: str, requirements: list[str], rules: Rules) -> str:
    """A required opening or ending, word for word; it adds a sentence."""
    del requirements[:], rules[:]
    if rng.random() < 0.5:
        opening = rng.choice(OPENINGS)
        requirements.append(f'Begin with the words "{opening}".')
        rules.append(("starts_with", opening))
        return f"{opening} {text}"
    closing = rng.choice(CLOSINGS)
    requirements.append(f'End with the words "{closing}".')
    rules.append(("ends_with", closing))
    return f"{text} {closing}"


def _cased(rng: random.Random, text: str, requirements: list[str], rules: Rules) -> str:
    upper = rng.random() < 0.5
    requirements.append(f"Use {'capital' if upper else 'small'} letters only.")
    rules.append(("uppercase" if upper else "lowercase", 1))
    return text.upper() if upper else text.lower()


def _further(rng: random.Random, text: str, requirements: list[str], rules: Rules) -> None:
    """Add a constraint that the text already satisfies."""
    kind = rng.randrange(3)
    count = len(re.findall(r"\w+", text))
    if kind == 0 and "," not in text:
        requirements.append("Use no commas.")
        rules.append(("no_commas", 1))
    elif kind == 1:
        most = -(-count // 5) * 5
        requirements.append(f"Use at most {most} words.")
        rules.append(("most_words", most))
    else:
        word = rng.choice([word for word in OFTEN if SATISFIED["without_word"](text, word)])
        requirements.append(f'Do not use the word "{word}".')
        rules.append(("without_word", word))
