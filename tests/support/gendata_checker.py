"""A second program for the generated corpus: it sees only the text and derives each answer again.

It shares no code with `ys_llm.gendata`. `corpus_checker.py` checks a whole folder.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
VOWEL_SOUND = re.compile(r"^(?:hour|honest|heir|[aeio]|u(?!ni|s[eu]))(?!ne\b|nce\b)", re.IGNORECASE)


class WrongError(Exception):
    """A record whose answer does not follow from its prompt, or whose text is not in order."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise WrongError(message)


def read_records(path: Path) -> list[tuple[str, str]]:
    """Prompt and response of every record of a file, which holds nothing else."""
    text = path.read_text("utf-8")
    records = re.findall(r"(.*?)<start>(.*?)<end>\n\n", text, flags=re.DOTALL)
    expect("".join(f"{p}<start>{r}<end>\n\n" for p, r in records) == text, f"{path}: stray text")
    for part in (part for record in records for part in record):
        expect("<start>" not in part and "<end>" not in part, f"stray marker in {part!r}")
    return records


# Arithmetic.


def value(expression: str) -> int:
    """A sum of signed products, such as `10 + 3 - 9` or `40 * 6`."""
    total = 0
    for sign, product in re.findall(r"([+-]?)\s*(\d+(?:\s*\*\s*\d+)*)", expression):
        result = 1
        for factor in re.findall(r"\d+", product):
            result *= int(factor)
        total += -result if sign == "-" else result
    return total


def check_arithmetic(prompt: str, response: str) -> None:
    for left, right in re.findall(r"(\d[\d +*-]*) = (\d+)", response):
        expect(value(left) == int(right), f"{left} is not {right}")
    comparison = re.fullmatch(r"Which number is (larger|smaller), (\d+) or (\d+)\?", prompt)
    asked = re.search(r"\d+ [+*-] \d+", prompt)
    if comparison:
        check_comparison(comparison[1], int(comparison[2]), int(comparison[3]), response)
    elif asked:
        last = response.splitlines()[-1]
        expect(last == f"{asked[0]} = {value(asked[0])}", f"{prompt!r} ends in {last!r}")
        check_columns(response, value(asked[0]))
    else:
        check_word_problem(prompt, response)


def check_columns(response: str, result: int) -> None:
    """The digits that the column lines write down are those of the result."""
    lines = [line for line in response.splitlines() if re.match(r"[A-Z]\w+: ", line)]
    if not lines:
        return
    written = [(re.search(r"Write (\d)", line) or re.search(r"= (\d)\.$", line)) for line in lines]
    digits = "".join(match[1] for match in reversed(written) if match)
    leading = "1" if "Write the last 1 in front." in response else ""
    expect(int(leading + digits) == result, f"the columns give {leading + digits}, not {result}")


def check_comparison(kind: str, a: int, b: int, response: str) -> None:
    if a == b:
        expect(response == "Neither. The two numbers are equal.", response)
        return
    answer = max(a, b) if kind == "larger" else min(a, b)
    expect(response.endswith(f"\nThe {kind} number is {answer}."), response)
    for x, sign, y in re.findall(r"(\d) ([<>]) (\d)", response):
        expect((x < y) == (sign == "<") and x != y, f"{x} {sign} {y}")
    for number, count in re.findall(r"(\d+) has (\d) digits", response):
        expect(len(number) == int(count), response)


def check_word_problem(prompt: str, response: str) -> None:
    found = re.fullmatch(
        r"(\w+) has (\d+) \w+, each with (\d+) (\w+)\. Then (?:he|she) (\w+(?: away)?) "
        r"(\d+)(?: more)? (\w+)\. How many (\w+) does (\w+) have now\?",
        prompt,
    )
    expect(found, f"not understood: {prompt!r}")
    assert found is not None
    name, boxes, each, goods, verb, change, changed, asked, again = found.groups()
    sign = -1 if verb in ("gives away", "loses", "uses") else 1
    total = int(boxes) * int(each) + sign * int(change)
    last = re.fullmatch(rf"{name} has (\d+) (\w+)\.", response.splitlines()[-1])
    expect(last and int(last[1]) == total, f"{prompt!r} gives {total}, not {response!r}")
    assert last is not None
    expect(goods == asked and name == again, prompt)
    expect((last[2] == goods) == (total != 1), f"number of {last[2]!r} for {total}")
    expect((changed == goods) == (change != "1"), f"number of {changed!r} for {change}")


# Spelling.


def check_spelling(prompt: str, response: str) -> None:
    first, _, rest = response.partition("\n")
    count = re.fullmatch(r"The letter (\w) occurs (\d+) (times?)\.", rest)
    length = re.fullmatch(r"The word has (\d+) (letters?)\.", rest)
    end = re.fullmatch(r"The (first|last) letter of (\w+) is (\w)\.", response)
    if end:
        letter = end[2][0] if end[1] == "first" else end[2][-1]
        expect(end[3] == letter.lower() and f"{end[1]} letter of {end[2]}?" in prompt, response)
        return
    word = first.replace("-", "")
    asked = word[::-1] if "backwards" in prompt else word
    expect(re.search(rf"\b{asked}\b", prompt, re.IGNORECASE), f"{prompt!r}: {first!r}")
    expect(first == "-".join(word.upper()), first)
    if count:
        number = sum(letter.lower() == count[1] for letter in word)
        expect(int(count[2]) == number, f"{prompt!r}: {number}, not {count[2]}")
        expect((count[3] == "time") == (number == 1), rest)
        expect(re.search(rf"\b{count[1]}\b", prompt), f"{count[1]} is not asked for: {prompt!r}")
    elif length:
        expect(int(length[1]) == len(word) and (length[2] == "letter") == (len(word) == 1), rest)
    else:
        expect(not rest and ("pell" in prompt or "backwards" in prompt), f"{prompt!r}: {rest!r}")


# Formats.


def typed(text: str) -> object:
    """What a cell without quotes means."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def from_csv(text: str) -> list[dict[str, object]]:
    rows = list(csv.reader(io.StringIO(text)))
    expect(len({len(row) for row in rows}) == 1, f"ragged csv: {text!r}")
    return [dict(zip(rows[0], map(typed, row), strict=True)) for row in rows[1:]]


def from_markdown(text: str) -> list[dict[str, object]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    expect(all(cell == "---" for cell in rows[1]), f"no rule under the heads: {text!r}")
    return [dict(zip(rows[0], map(typed, row), strict=True)) for row in rows[2:]]


def form_of(text: str) -> str:
    for start, form in (("[", "json"), ("- ", "yaml"), ("| ", "markdown")):
        if text.startswith(start):
            return form
    return "csv"


PARSERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "csv": from_csv,
    "markdown": from_markdown,
}


def check_formats(prompt: str, response: str) -> None:
    question, _, source = prompt.partition("\n\n")
    before, after = form_of(source), form_of(response)
    expect(before != after and after in question, f"{question!r} answered in {after}")
    left, right = PARSERS[before](source), PARSERS[after](response)
    # dumps tells 1 from 1.0 and from true, which == does not
    expect(json.dumps(left) == json.dumps(right), f"{left} became {right}")


# Scenes.


def check_scenes(prompt: str, response: str) -> None:
    *told, question = re.split(r"(?<=\.) ", prompt)
    colour: dict[str, str] = {}
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    putter: dict[str, str] = {}
    for sentence in told:
        simulate(sentence.rstrip("."), colour, where, holder, putter)
    expect(answer(question, colour, where, holder, putter) == response, f"{prompt!r}: {response!r}")


def simulate(
    sentence: str,
    colour: dict[str, str],
    where: dict[str, str],
    holder: dict[str, str],
    putter: dict[str, str],
) -> None:
    """Read one sentence of the scene into the four tables."""
    if found := re.fullmatch(r"The (\w+) (\w+) (?:is|lies) (.+)", sentence):
        expect(found[2] not in colour, f"a second {found[2]}")
        colour[found[2]], where[found[2]] = found[1], found[3]
    elif found := re.fullmatch(r"(\w+) takes the (\w+) and puts it (.+)", sentence):
        expect(where.get(found[2], found[3]) != found[3], f"moved nowhere: {sentence!r}")
        where[found[2]], putter[found[2]] = found[3], found[1]
    elif found := re.fullmatch(r"(\w+) takes the (\w+)", sentence):
        expect(found[2] in where, f"{found[2]} is not there to be taken")
        del where[found[2]]
        holder[found[2]] = found[1]
    elif found := re.fullmatch(r"(\w+) puts the (\w+) (.+)", sentence):
        expect(holder.pop(found[2], "") == found[1], f"{found[1]} does not hold it: {sentence!r}")
        where[found[2]], putter[found[2]] = found[3], found[1]
    elif found := re.fullmatch(r"(\w+) gives the (\w+) to (\w+)", sentence):
        expect(holder[found[2]] == found[1] != found[3], f"{found[1]} cannot give: {sentence!r}")
        holder[found[2]] = found[3]
    else:
        raise WrongError(f"not understood: {sentence!r}")


def answer(
    question: str,
    colour: dict[str, str],
    where: dict[str, str],
    holder: dict[str, str],
    putter: dict[str, str],
) -> str:
    """The answer that the tables give."""
    if found := re.fullmatch(r"How many things are (.+) now\?", question):
        there = [f"the {item}" for item in colour if where.get(item) == found[1]]
        if not there:
            return f"There is nothing {found[1]}."
        names = " and ".join(filter(None, [", ".join(there[:-1]), there[-1]]))
        noun = "thing" if len(there) == 1 else "things"
        return f"{NUMBERS[len(there)].capitalize()} {noun}: {names}."
    item = next(word for word in re.findall(r"\w+", question) if word in colour)
    if question.startswith("What colour"):
        return f"The {item} is {colour[item]}."
    if question.startswith("Who put"):
        return f"{putter[item]} put it {where[item]}."
    if item in holder:
        return f"{holder[item]} has the {item}."
    nobody = "Nobody has it. " if question.startswith("Who has") else ""
    return f"{nobody}The {item} is {where[item]}."


# Stories.


def story_sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\"?\s+(?=[\"A-Z])", text) if part]


def check_stories(prompt: str, response: str) -> None:
    words = response.split()
    expect(60 <= len(words) <= 300, f"{len(words)} words")
    for stray in ("[", "]", "{", "}", "|", "  ", " ,", " .", "..", ",,", "\n\n\n"):
        expect(stray not in prompt + response, f"{stray!r} in {response!r}")
    expect(response == response.strip() and prompt == prompt.strip(), f"blank edges: {response!r}")
    for paragraph in response.split("\n\n"):
        expect(paragraph.count('"') % 2 == 0, f"open quotation: {paragraph!r}")
        expect(re.match(r"\"?[A-Z]", paragraph), f"small letter at the start: {paragraph!r}")
        expect(re.search(r"[.!?]\"?$", paragraph), f"no full stop: {paragraph!r}")
    told = story_sentences(response)
    expect(len(set(told)) == len(told), f"a sentence is told twice: {Counter(told).most_common(1)}")
    for article, word in re.findall(r"\b([Aa]n?) \"?(\w+)", f"{prompt} {response}"):
        expect((article.lower() == "an") == bool(VOWEL_SOUND.match(word)), f"{article} {word}")
    expect(not re.search(r"(?<=[.?!] )[a-z]", response), f"small letter after a stop: {response!r}")
    check_things_stay(response)


def check_things_stay(text: str) -> None:
    """A hidden, seen or lost thing is found where the text put it."""
    if found := re.search(r"there, ([a-z ]+), (?:lay|was) the", text):
        searched = re.findall(r"[Ll]ooked ([a-z ]+?)(?: too)?[.,]", text)
        expect(found[1] not in searched, f"found where it was not: {text!r}")
    hidden = re.findall(r"hid (?:the \w+|it) ([a-z ]+?)\.", text)
    confessed = re.findall(r"I broke it,\" \w+ \w+(?: \w+)?\. \"It is ([a-z ]+?)\.", text)
    expect(len({*hidden, *confessed}) <= 1, f"hidden in several places: {text!r}")
    if seen := re.search(r"I saw something like that ([a-z ]+)\.", text):
        fetched = re.search(r"([A-Za-z ]+), they found", text)
        expect(fetched and fetched[1].strip().lower() == seen[1], f"not where seen: {text!r}")


CHECKS: dict[str, Callable[[str, str], None]] = {
    "arithmetic": check_arithmetic,
    "spelling": check_spelling,
    "formats": check_formats,
    "scenes": check_scenes,
    "stories": check_stories,
}
