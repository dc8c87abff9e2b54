"""Short conversations: scenes, sums, spelling, greetings, what cannot be known, system texts.

Each reply follows from the messages before it.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import counted
from ys_llm.gendata.programs.spelling import spelled
from ys_llm.gendata.programs.stories.scenes import COLOURS, ITEMS, QUESTIONS, make_room
from ys_llm.gendata.programs.words import ANIMAL_NAMES, ANIMALS, CHILDREN, THINGS

Turns = list[tuple[str, str]]  # what the user says, and the reply
MOST_TURNS = 4
NAMES = (*CHILDREN["she"], *CHILDREN["he"])
OWN_NAMES = (*ANIMAL_NAMES["she"], *ANIMAL_NAMES["he"])
WORDS = tuple(
    sorted({*(a.kind for a in ANIMALS), *(t.noun for t in THINGS if " " not in t.noun), *COLOURS})
)

GREETINGS = ("Hello", "Hi", "Good morning", "Good evening")
WHO_ARE_YOU = ("What is your name?", "Who are you?", "What are you called?")
# What nobody can tell from a text, and what is said of it.
UNKNOWABLE = (
    ("What will the weather be like tomorrow?", "what the weather will be like tomorrow"),
    ("What am I thinking of?", "what you are thinking of"),
    ("Which number will come up in the lottery?", "which number will come up"),
    ("What did I eat for breakfast?", "what you ate for breakfast"),
    ("How old am I?", "how old you are"),
    ("What colour are my shoes?", "what colour your shoes are"),
    ("Who will win the race tomorrow?", "who will win"),
    ("What time is it?", "what time it is"),
    ("What is in my pocket?", "what is in your pocket"),
    ("Where do I live?", "where you live"),
)
# System texts that set a style, and what they do to a reply.
STYLES: Mapping[str, Callable[[str], str]] = {
    "Answer in capital letters.": str.upper,
    "Answer in small letters.": str.lower,
    "Begin every answer with the word Certainly.": lambda reply: f"Certainly. {reply}",
    "End every answer with the word Over.": lambda reply: f"{reply} Over.",
    "Say please look at the end of every answer.": lambda reply: f"{reply} Please look.",
    "Call the user captain at the end of every answer.": lambda reply: f"{reply} Aye, captain.",
    "Put every answer in brackets.": lambda reply: f"({reply})",
}


def _record(turns: Iterable[tuple[str, str]], system: str = "") -> Record:
    """The messages as JSON: those before the last reply as the prompt, and that reply."""
    messages = [{"role": "system", "content": system}] if system else []
    for said, reply in turns:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": reply})
    last = messages.pop()
    return Record(json.dumps(messages, ensure_ascii=False), last["content"])


def messages_line(record: Record) -> str:
    """The record of a conversation as a line of JSON with its `messages`."""
    last = {"role": "assistant", "content": record.response}
    return json.dumps({"messages": [*json.loads(record.prompt), last]}, ensure_ascii=False)


def _scene_turns(rng: random.Random) -> Turns:
    """A scene and a question, then further questions, some after something new has happened."""
    room = make_room(rng)
    question, reply = rng.choice(QUESTIONS)(room)
    turns = [(f"{' '.join(room.lines)} {question}", reply)]
    for _ in range(rng.randint(0, MOST_TURNS - 2)):
        known = len(room.lines)
        if rng.random() < 0.5:
            room.act()
        question, reply = rng.choice(QUESTIONS)(room)
        turns.append((" ".join([*room.lines[known:], question]), reply))
    return turns


def _sum_turns(rng: random.Random) -> Turns:
    """A sum, and then more and less of its result."""
    a, b = rng.randint(1, 50), rng.randint(1, 50)
    value = a + b
    asked = rng.choice(("What is {a} + {b}?", "How much is {a} + {b}?", "Add {a} and {b}."))
    turns = [(asked.format(a=a, b=b), f"{a} + {b} = {value}.")]
    for _ in range(rng.randint(0, MOST_TURNS - 1)):
        if value > 1 and rng.random() < 0.5:
            less = rng.randint(1, min(value, 30))
            ask = rng.choice(("Take away {n}.", "And {n} less?", "Now subtract {n}."))
            turns.append((ask.format(n=less), f"{value} - {less} = {value - less}."))
            value -= less
        else:
            more = rng.randint(1, 30)
            ask = rng.choice(("Add {n}.", "And {n} more?", "Now add {n}."))
            turns.append((ask.format(n=more), f"{value} + {more} = {value + more}."))
            value += more
    return turns


def _spelling_turns(rng: random.Random) -> Turns:
    """A word spelled, and then questions about it."""
    word = rng.choice(WORDS)
    asked = rng.choice(("Spell {}.", "How do you spell {}?", "Please spell the word {}."))
    turns = [(asked.format(word), f"{spelled(word)}.")]
    more = (
        ("How many letters does it have?", f"It has {counted(len(word), 'letter')}."),
        ("What is the first letter?", f"The first letter is {word[0].upper()}."),
        ("What is the last letter?", f"The last letter is {word[-1].upper()}."),
        ("And backwards?", f"{spelled(word[::-1])}."),
    )
    return turns + rng.sample(more, rng.randint(0, MOST_TURNS - 1))


def _greeting_turns(rng: random.Random) -> Turns:
    """Hello and goodbye; a name is remembered, and one that was not told is not known."""
    hello = rng.choice(GREETINGS)
    name = rng.choice(NAMES) if rng.random() < 0.7 else ""
    if name and rng.random() < 0.5:
        turns = [(f"{hello}! I am {name}.", f"{hello}, {name}! How can I help you?")]
    else:
        turns = [(f"{hello}!", f"{hello}! How can I help you?")]
        if name:
            turns.append((f"My name is {name}.", f"Nice to meet you, {name}."))
    knows = f"Your name is {name}." if name else "I do not know your name. You have not told me."
    called = f", {name}" if name else ""
    more = [
        (rng.choice(("What is my name?", "Do you remember my name?")), knows),
        (rng.choice(("Thank you.", "Thanks!")), f"You are welcome{called}."),
        (rng.choice(("Goodbye.", "Bye!")), f"Goodbye{called}!"),
    ]
    first = rng.randint(0, 2)
    return turns + more[first:]


def _unknown_turns(rng: random.Random) -> Turns:
    """What no text says is not made up; what the scene says is answered."""
    room = make_room(rng)
    missing = rng.choice([item for item in ITEMS if item not in room.colours])
    question, reply = rng.choice(QUESTIONS)(room)
    scene = " ".join(room.lines)
    unsaid = (f"Where is the {missing} now?", f"I do not know. Nothing is said of a {missing}.")
    if rng.random() < 0.5:
        begin = [(f"{scene} {unsaid[0]}", unsaid[1]), (question, reply)]
    else:
        begin = [(f"{scene} {question}", reply), unsaid]
    asked, thing = rng.choice(UNKNOWABLE)
    beyond = (asked, f"I cannot know {thing}.")
    return rng.choice(([beyond], begin, [*begin, beyond], [beyond, *begin]))


TOPICS: tuple[Callable[[random.Random], Turns], ...] = (
    _scene_turns, _sum_turns, _spelling_turns, _greeting_turns,
)  # fmt: skip


def _own_name(rng: random.Random) -> tuple[str, str]:
    """A system text that sets a name, or none; and what is said when somebody asks."""
    if rng.random() < 0.15:
        return "", "I have no name."
    name = rng.choice(OWN_NAMES)
    text = rng.choice(
        ("Your name is {}.", "You are {}, a helpful assistant.", "You are called {}.")
    )
    return text.format(name), f"I am {name}."


def chat_scenes(rng: random.Random) -> Record:
    """Questions about a small scene."""
    return _record(_scene_turns(rng))


def chat_sums(rng: random.Random) -> Record:
    """Sums that go on."""
    return _record(_sum_turns(rng))


def chat_spelling(rng: random.Random) -> Record:
    """Words spelled."""
    return _record(_spelling_turns(rng))


def chat_greetings(rng: random.Random) -> Record:
    """Hello, names, goodbye."""
    return _record(_greeting_turns(rng))


def chat_unknown(rng: random.Random) -> Record:
    """Questions that nobody can answer, beside some that one can."""
    return _record(_unknown_turns(rng))


def chat_names(rng: random.Random) -> Record:
    """A system text that sets a name."""
    system, is_called = _own_name(rng)
    turns = rng.choice(TOPICS)(rng)[: MOST_TURNS - 1]
    turns.insert(rng.randint(0, len(turns)), (rng.choice(WHO_ARE_YOU), is_called))
    return _record(turns, system)


def chat_styles(rng: random.Random) -> Record:
    """A system text that sets a style."""
    system = rng.choice(list(STYLES))
    turns = rng.choice(TOPICS)(rng)
    return _record([(said, STYLES[system](reply)) for said, reply in turns], system)


def chat_mixed(rng: random.Random) -> Record:
    """A name and a style at once, and more than one subject."""
    named, is_called = _own_name(rng)
    style = rng.choice(list(STYLES))
    first, second = rng.sample((_scene_turns, _sum_turns, _spelling_turns), 2)
    turns = [*first(rng)[:2], (rng.choice(WHO_ARE_YOU), is_called), *second(rng)[:2]]
    styled = [(said, STYLES[style](reply)) for said, reply in turns]
    return _record(styled, f"{named} {style}".strip())


CONVERSATIONS: Mapping[str, Callable[[random.Random], Record]] = {
    "chat_greetings": chat_greetings,
    "chat_mixed": chat_mixed,
    "chat_names": chat_names,
    "chat_scenes": chat_scenes,
    "chat_spelling": chat_spelling,
    "chat_styles": chat_styles,
    "chat_sums": chat_sums,
    "chat_unknown": chat_unknown,
}
