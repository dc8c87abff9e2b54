"""A second program for the generated conversations: it sees the messages alone, no code of `ys`.

It reads what has been said so far, and derives each reply from it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from support.gendata_checker import NUMBERS, expect

FACT = re.compile(r"^(?:The|\w+) (?!many ).*\.$")
STYLES: dict[str, Callable[[str], str]] = {
    "capital letters": lambda text: text.upper(),
    "small letters": lambda text: text.lower(),
    "Begin every answer": lambda text: "Certainly. " + text,
    "word Over": lambda text: text + " Over.",
    "please look": lambda text: text + " Please look.",
    "captain": lambda text: text + " Aye, captain.",
    "brackets": lambda text: f"({text})",
}
CANNOT = {
    "weather": "what the weather will be like tomorrow",
    "thinking": "what you are thinking of",
    "lottery": "which number will come up",
    "breakfast": "what you ate for breakfast",
    "How old": "how old you are",
    "shoes": "what colour your shoes are",
    "race": "who will win",
    "What time": "what time it is",
    "pocket": "what is in your pocket",
    "Where do I": "where you live",
}


class Talk:
    """What is known so far: things of a scene, a number, a word, the two names."""

    def __init__(self, system: str) -> None:
        named = re.search(r"(?:name is|called|You are) ([A-Z]\w+)", system)
        self.own = named[1] if named else ""
        self.style = next((do for key, do in STYLES.items() if key in system), lambda text: text)
        self.things: dict[str, dict[str, str]] = {}
        self.number, self.word, self.user = 0, "", ""

    def reply(self, said: str) -> str:
        """The one right reply to what the user says."""
        *told, asked = re.split(r"(?<=\.) (?=[A-Z])", said)
        if self.things or any(line.startswith("The ") for line in told):
            for line in told:
                self.see(line)
        answer = next((text for find in FINDERS if (text := find(self, asked, said))), "")
        expect(answer, f"not understood: {said!r}")
        return self.style(answer)

    def see(self, line: str) -> None:
        """Take in one sentence of a scene."""
        if found := re.fullmatch(r"The (\w+) (\w+) (?:is|lies) (.+)\.", line):
            self.things[found[2]] = {"colour": found[1], "spot": found[3]}
        elif found := re.fullmatch(
            r"(\w+) (?:takes the (\w+) and puts it|puts the (\w+)) (.+)\.", line
        ):
            thing = self.things[found[2] or found[3]]
            thing.pop("holder", None)
            thing.update(spot=found[4], mover=found[1])
        elif found := re.fullmatch(r"(\w+) takes the (\w+)\.", line):
            self.things[found[2]].pop("spot")
            self.things[found[2]]["holder"] = found[1]
        elif found := re.fullmatch(r"\w+ gives the (\w+) to (\w+)\.", line):
            self.things[found[1]]["holder"] = found[2]
        else:
            expect(False, f"not understood: {line!r}")


def of_scene(talk: Talk, asked: str, said: str) -> str:
    if found := re.fullmatch(r"How many things are (.+) now\?", asked):
        there = [name for name, thing in talk.things.items() if thing.get("spot") == found[1]]
        if not there:
            return f"There is nothing {found[1]}."
        the = [f"the {name}" for name in there]
        listed = the[0] if len(the) == 1 else ", ".join(the[:-1]) + " and " + the[-1]
        plural = "" if len(the) == 1 else "s"
        return f"{NUMBERS[len(the)].capitalize()} thing{plural}: {listed}."
    found = re.fullmatch(r"(Where|Who|What colour)\b.* the (\w+)\b.*\?", asked)
    if not found or not talk.things:
        return ""
    if found[2] not in talk.things:
        return f"I do not know. Nothing is said of a {found[2]}."
    thing, name = talk.things[found[2]], found[2]
    if found[1] == "What colour":
        return f"The {name} is {thing['colour']}."
    if asked.startswith("Who put"):
        return f"{thing['mover']} put it {thing['spot']}."
    if "holder" in thing:
        return f"{thing['holder']} has the {name}."
    nobody = "Nobody has it. " if found[1] == "Who" else ""
    return f"{nobody}The {name} is {thing['spot']}."


def of_sum(talk: Talk, asked: str, said: str) -> str:
    numbers = [int(number) for number in re.findall(r"\d+", said)]
    if len(numbers) == 2:
        talk.number = numbers[0]
    elif len(numbers) != 1:
        return ""
    sign = -1 if re.search(r"away|less|subtract", said) else 1
    before, change = talk.number, numbers[-1]
    talk.number += sign * change
    return f"{before} {'-' if sign < 0 else '+'} {change} = {talk.number}."


def of_spelling(talk: Talk, asked: str, said: str) -> str:
    if found := re.search(r"[Ss]pell (?:the word )?(\w+)[.?]$", said):
        talk.word = found[1]
        return "-".join(talk.word.upper()) + "."
    if not talk.word:
        return ""
    if asked == "How many letters does it have?":
        return f"It has {len(talk.word)} letter{'s' if len(talk.word) > 1 else ''}."
    if found := re.fullmatch(r"What is the (first|last) letter\?", asked):
        letter = talk.word[0 if found[1] == "first" else -1].upper()
        return f"The {found[1]} letter is {letter}."
    return "-".join(talk.word[::-1].upper()) + "." if asked == "And backwards?" else ""


def of_greeting(talk: Talk, asked: str, said: str) -> str:
    called = re.search(r"(?:I am|My name is) ([A-Z]\w+)\.$", said)
    talk.user = called[1] if called else talk.user
    comma = f", {talk.user}" if talk.user else ""
    if found := re.match(r"(Hello|Hi|Good \w+)!", said):
        return f"{found[1]}{comma}! How can I help you?"
    if called:
        return f"Nice to meet you{comma}."
    if "my name?" in said:
        known = f"Your name is {talk.user}."
        return known if talk.user else "I do not know your name. You have not told me."
    if re.match("Thank", said):
        return f"You are welcome{comma}."
    return f"Goodbye{comma}!" if re.match("Goodbye|Bye", said) else ""


def of_itself(talk: Talk, asked: str, said: str) -> str:
    if said in ("What is your name?", "Who are you?", "What are you called?"):
        return f"I am {talk.own}." if talk.own else "I have no name."
    return ""


def of_the_unknown(talk: Talk, asked: str, said: str) -> str:
    return next((f"I cannot know {thing}." for key, thing in CANNOT.items() if key in said), "")


FINDERS = (of_the_unknown, of_itself, of_greeting, of_spelling, of_scene, of_sum)


def check_conversation(line: str) -> None:
    """Derive every reply of one line of a file."""
    messages = json.loads(line)["messages"]
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    roles = [message["role"] for message in messages]
    expect(roles == ["user", "assistant"] * (len(roles) // 2) and roles, f"roles: {line}")
    talk = Talk(system)
    for asked, replied in zip(messages[::2], messages[1::2], strict=True):
        right = talk.reply(asked["content"])
        expect(replied["content"] == right, f"{replied['content']!r}, not {right!r}: {line}")


def check_folder(folder: Path) -> dict[str, int]:
    """Check every conversation of a folder; how many of each kind there are."""
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("chat_*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            check_conversation(line)
            kind = path.name.split("-")[0]
            counts[kind] = counts.get(kind, 0) + 1
    return counts
