"""A second program for the kinds made by programs: it sees the text alone and derives each answer.

It shares no code with `ys_llm.gendata`; dates come from `datetime`, queries from `sqlite3`.
"""

import ast
import datetime
import json
import re
import sqlite3
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, permutations

from support.gendata_checker import expect

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [datetime.date(2001, month, 1).strftime("%B") for month in range(1, 13)]


def matched(pattern: str, text: str) -> re.Match[str]:
    found = re.fullmatch(pattern, text, re.DOTALL)
    expect(found, f"{text!r} is not {pattern!r}")
    assert found is not None
    return found


def same(found: object, right: object, text: str) -> None:
    expect(found == right, f"{found!r}, but {right!r} is right: {text!r}")


# Sums.


def value_of(text: str) -> Fraction:
    """The exact value of a sum, by Python's own reading of it."""
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    expect(not names, text)
    exact = re.sub(r"\d+(?:\.\d+)?", lambda m: f"F('{m[0]}')", text)
    result: Fraction = eval(exact, {"F": Fraction})
    return result


def check_equations(response: str) -> None:
    """Both sides of `=` are the same, for all lines that are equations of numbers."""
    for line in response.splitlines():
        sides = line.removeprefix("Check: ").split(" = ")
        if len(sides) == 2 and all(re.fullmatch(r"[\d\s.+*/()-]+", side) for side in sides):
            same(value_of(sides[0]), value_of(sides[1]), line)


def check_maths(prompt: str, response: str) -> None:
    check_equations(response)
    last = response.splitlines()[-1]
    if found := re.fullmatch(r"(?:Is this true or false|True or false): (.+)\?", prompt):
        same(last, str(bool(eval(found[1]))), prompt)
        for claim, said in re.findall(r"^(\d+ \S+ \d+) is (true|false)\.$", response, re.MULTILINE):
            same(said, str(eval(claim)).lower(), claim)
            expect(claim.partition(" ")[2] in f"{found[1]} ", prompt)
    elif found := re.search(r"(?:next:|sequence) ([\d, ]+)[?.]", prompt):
        check_sequence([int(n) for n in found[1].split(", ")], response)
    elif found := re.search(r"(\d+) (?:by|divided by) (\d+)", prompt):
        times, rest = divmod(int(found[1]), int(found[2]))
        end = f"with remainder {rest}" if rest else "with no remainder"
        same(last, f"{found[1]} divided by {found[2]} is {times} {end}.", prompt)
    elif found := re.search(r"fraction (\d+/\d+)\.", prompt):
        right = Fraction(found[1])
        shown = f"{right.numerator}/{right.denominator}"
        kept = f"{found[1]} stays as it is."
        same(last, kept if shown == found[1] else f"{found[1]} = {shown}", prompt)
    elif found := re.search(r"(\d+) % of (\d+)\?", prompt):
        same(last, f"{found[0][:-1]} is {int(found[1]) * int(found[2]) // 100}.", prompt)
    elif " x " in f" {prompt.rstrip('.')} ":
        check_unknown(prompt, response)
    else:
        asked = re.search(r"[\d(][\d\s+*()-]*[\d)]", prompt)
        assert asked is not None, prompt
        same(last, f"{asked[0]} = {value_of(asked[0])}", prompt)


def check_sequence(numbers: list[int], response: str) -> None:
    steps = {b - a for a, b in pairwise(numbers)}
    if len(steps) == 1:
        following = numbers[-1] + steps.pop()
    else:
        factors = {Fraction(b, a) for a, b in pairwise(numbers)}
        expect(len(factors) == 1, f"no sequence: {numbers}")
        following = int(numbers[-1] * factors.pop())
    same(response.rpartition(" = ")[2], str(following), response)


def check_unknown(prompt: str, response: str) -> None:
    found = re.search(r"^x = (\d+)$", response, re.MULTILINE)
    equation = re.search(r"(?:\d+ \* )?x(?: [+-] \d+)? = \d+", prompt)
    assert found and equation, (prompt, response)
    left, right = equation[0].replace("x", found[1]).split(" = ")
    same(value_of(left), value_of(right), prompt)


# Order.


def check_ordering(prompt: str, response: str) -> None:
    if found := re.match(r".*(smallest|largest) to the (?:smallest|largest): ([\d, ]+)\.$", prompt):
        numbers = sorted(map(int, found[2].split(", ")), reverse=found[1] == "largest")
        same(response, ", ".join(map(str, numbers)), prompt)
    elif found := re.search(r"alphabet(?:ical order)?: (.+)\.$", prompt):
        same(response, ", ".join(sorted(found[1].split(", "))), prompt)
    elif found := re.match(
        r"Which number is the (second )?(largest|smallest) of ([\d, ]+)\?", prompt
    ):
        check_extreme(found[1] or "", found[2], sorted(map(int, found[3].split(", "))), response)
    elif found := re.match(r"What is the (\w+) word of this list: (.+)\?$", prompt):
        places = ["first", "second", "third", "fourth", "fifth", "sixth"]
        words = found[2].split(", ")
        place = -1 if found[1] == "last" else places.index(found[1])
        same(response, f"The {found[1]} word is {words[place]}.", prompt)
    else:
        check_people(prompt, response)


def check_extreme(second: str, which: str, numbers: list[int], response: str) -> None:
    place = (1 if which == "smallest" else -2) if second else (0 if which == "smallest" else -1)
    first, last = response.splitlines()
    same(first, f"In order: {', '.join(map(str, numbers))}", response)
    same(last, f"The {second}{which} is {numbers[place]}.", response)


ADJECTIVES = {"younger": "older", "shorter": "taller", "slower": "faster", "weaker": "stronger"}


def check_people(prompt: str, response: str) -> None:
    """The only order that agrees with all clues, found by trying every order."""
    clues = re.findall(r"(\w+) is (\w+) than (\w+)\.", prompt)
    pairs = [(b, a) if word in ADJECTIVES else (a, b) for a, word, b in clues]
    people = sorted({name for pair in pairs for name in pair})
    orders = [
        order
        for order in permutations(people)
        if all(order.index(a) < order.index(b) for a, b in pairs)
    ]
    expect(len(orders) == 1, f"{len(orders)} orders: {prompt!r}")
    order = list(orders[0])
    more = ADJECTIVES.get(clues[0][1], clues[0][1])
    less = next(word for word, other in ADJECTIVES.items() if other == more)
    most, least = (word.removesuffix("r") + "st" for word in (more, less))
    first, last = response.splitlines()
    same(first, f"From {most} to {least}: {', '.join(order)}.", prompt)
    question = prompt.rpartition(". ")[2]
    if found := re.fullmatch(r"Who is the (\w+)\?", question):
        name = order[0] if found[1] == most else order[-1]
        same(last, f"{name} is the {found[1]}.", prompt)
    elif found := re.fullmatch(rf"Is (\w+) {more} than (\w+)\?", question):
        holds = order.index(found[1]) < order.index(found[2])
        a, b = (found[1], found[2]) if holds else (found[2], found[1])
        same(last, f"{'Yes' if holds else 'No'}, {a} is {more} than {b}.", prompt)
    else:
        found = matched(rf"Who is {more} than (\w+)\?", question)
        above = order[: order.index(found[1])]
        names = " and ".join(filter(None, [", ".join(above[:-1]), above[-1]]))
        verb = "is" if len(above) == 1 else "are"
        same(last, f"{names} {verb} {more} than {found[1]}.", prompt)


# The calendar.


def day_of(text: str, year: int = 2001) -> datetime.date:
    day, month = text.split()
    return datetime.date(year, MONTHS.index(month) + 1, int(day))


def check_calendar(prompt: str, response: str) -> None:
    check_equations("\n".join(line.rpartition(": ")[2] for line in response.splitlines()))
    check_days(response)
    last = response.splitlines()[-1]
    if found := re.match(r"Which day of the week is (\d+) days (after|before) (\w+)\?", prompt):
        days = int(found[1]) * (1 if found[2] == "after" else -1)
        right = DAYS[(DAYS.index(found[3]) + days) % 7]
        expect(last.endswith(f"{right}."), f"{right}: {prompt!r} {last!r}")
    elif found := re.match(r"(\d+ \w+) is a (\w+)\. Which day of the week is (\d+ \w+)\?", prompt):
        gap = (day_of(found[3]) - day_of(found[1])).days
        same(last, f"{found[3]} is a {DAYS[(DAYS.index(found[2]) + gap) % 7]}.", prompt)
    elif found := re.match(r"How many days does (\w+) have\?", prompt):
        number = MONTHS.index(found[1]) + 1
        length = (datetime.date(2001 + number // 12, number % 12 + 1, 1)
                  - datetime.date(2001, number, 1)).days  # fmt: skip
        expect(response.startswith(f"{found[1]} has {length} days"), response)
        same("29 in a leap year" in response, number == 2, response)
    elif found := re.match(r"Which month comes (after|before) (\w+)\?", prompt):
        step = 1 if found[1] == "after" else -1
        right = MONTHS[(MONTHS.index(found[2]) + step) % 12]
        same(last, f"{right} comes {found[1]} {found[2]}.", prompt)
    elif found := re.match(r"Which month is (\d+) months after (\w+)\?", prompt):
        same(last, f"It is {MONTHS[(MONTHS.index(found[2]) + int(found[1])) % 12]}.", prompt)
    elif "leap year" in last:
        check_leap_year(prompt, response)
    elif found := re.match(r"How many days is it from (\d+ \w+) to (\d+ \w+) in", prompt):
        gap = (day_of(found[2]) - day_of(found[1])).days
        same(last, f"It is {gap} day{'' if gap == 1 else 's'}.", prompt)
    else:
        check_clock(prompt, response)


def check_days(response: str) -> None:
    """The steps on the way: days as weeks and days, minutes as hours and minutes, gaps of dates."""
    sizes = {"week": 7, "day": 1, "hour": 60, "minute": 1}
    for whole, many, large, few, small in re.findall(
        r"(\d+) (?:days|minutes) are (\d+) (week|hour)s? and (\d+) (day|minute)s?\.", response
    ):
        same(int(whole), int(many) * sizes[large] + int(few) * sizes[small], response)
    for days, way, first, second in re.findall(
        r"(\d+) days? (after|before) (\w+) is (\w+)\.", response
    ):
        step = int(days) if way == "after" else -int(days)
        same(DAYS.index(second), (DAYS.index(first) + step) % 7, response)
    for first, second, days in re.findall(r"From (\d+) to (\d+) \w+ it is (\d+) days?", response):
        same(int(days), int(second) - int(first), response)
    for ahead, unit, first, second in re.findall(
        r"(\d+) (hour|minute)s? after (\S+) it is (\S+)\.", response
    ):
        later = minutes(first) + int(ahead) * sizes[unit]
        same(minutes(second), later % (24 * 60), response)


def check_leap_year(prompt: str, response: str) -> None:
    year = re.search(r"\d{4}", prompt)
    assert year is not None
    reason, last = response.splitlines()
    expect(re.findall(r"\d{4}", reason) == [year[0]], response)
    for number in re.findall(r"\d+", reason)[1:]:
        denied = re.search(rf"(?:cannot be divided by|but not by) {number}\b", reason)
        expect(number in ("4", "100", "400"), response)
        same(int(year[0]) % int(number) == 0, not denied, response)
    days = (datetime.date(int(year[0]), 3, 1) - datetime.date(int(year[0]), 2, 1)).days
    same(last, "Yes, it is a leap year." if days == 29 else "No, it is no leap year.", prompt)


def minutes(clock: str) -> int:
    hours, rest = clock.split(":")
    return int(hours) * 60 + int(rest)


def check_clock(prompt: str, response: str) -> None:
    last = response.splitlines()[-1]
    if found := re.match(r"It is (\S+)\. What time is it in (\d+) minutes\?", prompt):
        right = (minutes(found[1]) + int(found[2])) % (24 * 60)
        expect(last.endswith(f" it is {right // 60}:{right % 60:02}."), f"{prompt!r} {last!r}")
    else:
        found = matched(r"(.+) begins at (\S+) and ends at (\S+)\. How long does it last\?", prompt)
        same(last, f"{found[1]} lasts {minutes(found[3]) - minutes(found[2])} minutes.", prompt)
        for start, end, length in re.findall(r"From (\S+) to (\S+): (\d+) minute", response):
            same(int(length), minutes(end) - minutes(start), response)


# Units.

SIZES = {
    "kilometre": 1_000_000, "metre": 1000, "centimetre": 10, "millimetre": 1,
    "tonne": 1_000_000, "kilogram": 1000, "gram": 1,
    "litre": 1000, "decilitre": 100, "millilitre": 1,
    "week": 604_800, "day": 86_400, "hour": 3600, "minute": 60, "second": 1,
    "euro": 100, "dollar": 100, "cent": 1,
}  # fmt: skip
AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ([a-z]+?)s?\b")


def amounts(text: str) -> list[tuple[Fraction, str]]:
    return [(Fraction(number) * SIZES[unit], unit) for number, unit in AMOUNT.findall(text)]


def check_units(prompt: str, response: str) -> None:
    check_equations(response)
    given = amounts(prompt)
    last = response.splitlines()[-1]
    for number, unit in re.findall(r"(\d+(?:\.\d+)?) ([a-z]+)", prompt + response):
        expect(
            unit.endswith("s") == (number != "1") or unit not in (*SIZES, *SIZES),
            f"{number} {unit}",
        )
    if prompt.startswith("Which is more"):
        (a, _), (b, _) = given
        shown = re.findall(r"\d+(?:\.\d+)? [a-z]+", prompt)
        right = "Both are the same." if a == b else f"{shown[0] if a > b else shown[1]} is more."
        same(last, right, prompt)
        return
    said = amounts(last)
    asked = re.search(r"How many (\w+) are|to (\w+)\.$", prompt)
    assert asked is not None, prompt
    same(f"{said[-1][1]}s", asked[1] or asked[2], prompt)
    expect(all(part[0] == sum(g for g, _ in given) for part in said), f"{prompt!r} {last!r}")


# Patterns.


def check_patterns(prompt: str, response: str) -> None:
    asked = r"Which of these does the regular expression `(.+)` match as a whole: (.+)\?$"
    if found := re.match(asked, prompt):
        right = [text for text in found[2].split(", ") if re.fullmatch(found[1], text)]
        answer = f"It matches {', '.join(right)}." if right else "It matches none of them."
        same(response.splitlines()[-1], answer, prompt)
        return
    written = matched(r"`(.+)`\n\nIt matches: (.+)\.\nIt does not match: (.+)\.", response)
    for place, wanted in ((2, True), (3, False)):
        for text in written[place].split(", "):
            same(bool(re.fullmatch(written[1], text)), wanted, f"{written[1]} and {text}")
    check_wish(prompt, written[2].split(", "), written[3].split(", "))


def check_wish(prompt: str, matches: list[str], misses: list[str]) -> None:
    """What the words of the wish ask for is what the examples show."""
    tests: list[tuple[str, Callable[[re.Match[str], str], bool]]] = [
        (r"begin with (\w) or (\w)[.?]", lambda m, t: t[0] in (m[1], m[2])),
        (r"begin with (\w)[.?]", lambda m, t: t[0] == m[1]),
        (r"end with (\w+)[.?]", lambda m, t: t.endswith(m[1])),
        (r"contain (\w) at least twice", lambda m, t: t.count(m[1]) > 1),
        (r"without the letter (\w)", lambda m, t: m[1] not in t),
        (r"exactly (\d+) letters", lambda m, t: len(t) == int(m[1])),
        (r"words of (\d+) to (\d+) letters", lambda m, t: int(m[1]) <= len(t) <= int(m[2])),
        (r"double letter", lambda m, t: any(a == b for a, b in pairwise(t))),
        (r"end with the same letter", lambda m, t: t[0] == t[-1]),
        (r"begin with a vowel", lambda m, t: t[0] in "aeiou"),
        (r"with only one", lambda m, t: sum(c in "aeiou" for c in t) < 2),
        (r"numbers of (\d+) digits", lambda m, t: len(t) == int(m[1])),
        (r"numbers of (\d+) to (\d+) digits", lambda m, t: int(m[1]) <= len(t) <= int(m[2])),
        (r"even numbers", lambda m, t: int(t) % 2 == 0),
        (r"divided by five", lambda m, t: int(t) % 5 == 0),
        (r"leading zero", lambda m, t: str(int(t)) == t),
        (r"from 00:00", lambda m, t: len(t) == 5 and t < "24:00" and t[3] < "6"),
    ]
    for pattern, holds in tests:
        if found := re.search(pattern, prompt):
            expect(all(holds(found, text) for text in matches), f"{prompt!r} {matches}")
            expect(not any(holds(found, text) for text in misses), f"{prompt!r} {misses}")


# Obedience.

WORDS = {"one": 1, "two": 2, "three": 3, "four": 4}
WISHES: list[tuple[str, Callable[[str, str], bool]]] = [
    (r"exactly (\w+) sentences?\.", lambda t, n: t.count(".") == WORDS[n]),
    (r"exactly (\w+) bullet points?", lambda t, n: [line[:2] for line in t.split("\n")] == ["- "]
     * WORDS[n]),
    (r"exactly (\w+) paragraphs?", lambda t, n: len(t.split("\n\n")) == WORDS[n]),
    (r"JSON: a list of (\w+) sentence", lambda t, n: len(json.loads(t)) == WORDS[n]),
    (r'Begin with the words "(.+?)"\.', lambda t, words: t.startswith(words)),
    (r'End with the words "(.+?)"\.', lambda t, words: t.endswith(words)),
    (r"Use (capital|small) letters only", lambda t, case: t == (t.upper() if case == "capital" else
     t.lower())),
    (r"Use (no) commas", lambda t, _: "," not in t),
    (r"at most (\d+) words", lambda t, n: len(re.findall(r"[A-Za-z0-9]+", t)) <= int(n)),
    (r'Do not use the word "(\w+)"', lambda t, word: word not in re.findall(r"[a-z]+", t.lower())),
]  # fmt: skip


def check_obedience(prompt: str, response: str) -> None:
    found = 0
    for pattern, holds in WISHES:
        for wish in re.findall(pattern, prompt):
            expect(holds(response, wish), f"{pattern} {wish}: {response!r}")
            found += 1
    expect(found, f"no wish is understood: {prompt!r}")
    subject = re.search(r"about (.+?)[.?]", prompt)
    assert subject is not None, prompt
    stem = subject[1].removeprefix("the ").lower()[:4]
    expect(stem in response.lower() or len(response) < 200, f"not about {subject[1]}: {response!r}")


# Queries.


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def printed(text: str) -> list[list[str]]:
    lines = [cells(line) for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if set("".join(line)) != {"-"}]


def check_queries(prompt: str, response: str) -> None:
    """The query, run on the printed table, gives the printed result and answers the question."""
    name = matched(r"The table (\w+):\n\n.*", prompt)[1]
    head, *rows = printed(prompt)
    database = sqlite3.connect(":memory:")
    kinds = ["INTEGER" if cell.isdigit() else "TEXT" for cell in rows[0]]
    columns = ", ".join(f"{column} {kind}" for column, kind in zip(head, kinds, strict=True))
    database.execute(f"CREATE TABLE {name} ({columns})")
    database.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?)", rows)
    query = matched(r"```sql\n(SELECT .+);\n```\n\n.+", response)[1]
    question = prompt.splitlines()[-1]
    for number in re.findall(r"\d+", query.removesuffix("LIMIT 1")):
        expect(re.search(rf"\b{number}\b", question), f"{number} is not asked for: {prompt!r}")
    result = [[str(value) for value in row] for row in database.execute(query)]
    database.close()
    same(printed(response)[1:], result, f"{prompt} {response}")
    expect(result or response.endswith("No rows."), response)
    check_question(prompt.splitlines()[-1], head, rows, result)


def check_question(
    asked: str, head: list[str], rows: list[list[str]], result: list[list[str]]
) -> None:
    """The answers that Python finds in the printed table, without SQL."""

    def column(title: str) -> list[str]:
        return [row[head.index(title)] for row in rows]

    keys = column(head[0])
    compare = {"more than": int.__gt__, "less than": int.__lt__, "at least": int.__ge__}
    if found := re.search(r"have (more than|less than|at least) (\d+) as (\w+)\?", asked):
        numbers = map(int, column(found[3]))
        right = sorted(
            k for k, n in zip(keys, numbers, strict=True) if compare[found[1]](n, int(found[2]))
        )
        same([row[0] for row in result], right, asked)
    elif found := re.search(r"sum of (\w+) over all", asked):
        same(result, [[str(sum(map(int, column(found[1]))))]], asked)
    elif found := re.search(r"has the (largest|smallest) value of (\w+)\?", asked):
        pick = max if found[1] == "largest" else min
        numbers_of = [int(n) for n in column(found[2])]
        same(result, [[keys[numbers_of.index(pick(numbers_of))]]], asked)
    elif found := re.search(r"from (\d+) to (\d+)\?", asked):
        title = matched(r".*a value of (\w+) from .*", asked)[1]
        inside = [int(found[1]) <= int(n) <= int(found[2]) for n in column(title)]
        same(
            [row[0] for row in result],
            sorted(k for k, i in zip(keys, inside, strict=True) if i),
            asked,
        )
    elif found := re.search(r"begin with (\w)\?", asked):
        right = sorted(k for k in keys if k[0].lower() == found[1].lower())
        same([row[0] for row in result], right, asked)
    elif found := re.search(r"whose (\w+) is (.+?)\. ", asked):
        right = sorted(k for k, g in zip(keys, column(found[1]), strict=True) if g == found[2])
        same([row[0] for row in result], right, asked)
    elif found := re.search(r"How many \w+ have the (\w+) (.+?)\?", asked):
        same(result, [[str(column(found[1]).count(found[2]))]], asked)
    elif found := re.search(r"different values of (\w+) are", asked):
        same([row[0] for row in result], sorted(set(column(found[1]))), asked)
    elif found := re.search(r"number of rows for each (\w+)\.", asked):
        groups = column(found[1])
        same(result, [[g, str(groups.count(g))] for g in sorted(set(groups))], asked)
    else:
        check_grouped(asked, keys, column, result)


def check_grouped(
    asked: str, keys: list[str], column: Callable[[str], list[str]], result: list[list[str]]
) -> None:
    if found := re.search(r"Show the (sum of|largest) (\w+) for each (\w+)\.", asked):
        by_group: dict[str, list[int]] = {}
        for group, number in zip(column(found[3]), column(found[2]), strict=True):
            by_group.setdefault(group, []).append(int(number))
        fold = sum if found[1] == "sum of" else max
        same(result, [[g, str(fold(by_group[g]))] for g in sorted(by_group)], asked)
        return
    found = re.search(r"and (\w+) of the (\d) rows with the largest", asked)
    assert found is not None, asked
    ranked = sorted(zip(column(found[1]), keys, strict=True), key=lambda pair: -int(pair[0]))
    same(result, [[key, number] for number, key in ranked[: int(found[2])]], asked)


# Stories.


def check_cloze(prompt: str, response: str) -> None:
    story, _, rest = prompt.partition("\n\nWhich word fills the gap?\n")
    same(story.count("_____"), 1, prompt)
    options = dict(re.findall(r"^([A-D])\) (.+)$", rest, re.MULTILINE))
    found = matched(r"The answer is ([A-D])\) (.+)\.", response)
    same(options[found[1]], found[2], prompt)
    same(len(set(options.values())), 4, prompt)
    said = {word: len(re.findall(rf"\b{word}\b", story)) for word in options.values()}
    expect(sum(map(bool, said.values())) >= 2, f"nothing else in the story: {prompt}")
    best = max(said, key=lambda word: said[word])
    same(found[2], best, f"the word that the story says most often: {prompt}")
    same([word for word in said if said[word] >= said[best]], [best], f"one answer: {prompt}")


def check_retelling(prompt: str, response: str) -> None:
    story, _, asked = prompt.rpartition("\n\n")
    questions = re.findall(r"^\d\. (.+)$", asked, re.MULTILINE) or [asked]
    answers = re.findall(r"^\d\. (.+)$", response, re.MULTILINE) or [response]
    same(len(questions), len(answers), prompt)
    same(len(set(questions)), len(questions), prompt)
    for question, answer in zip(questions, answers, strict=True):
        check_answer(story, question, answer)


def check_answer(story: str, question: str, answer: str) -> None:
    named = re.findall(r"[A-Z]\w+", re.sub(r'".*"', "", answer))
    if answer.startswith("In the end, ") or "In the end, " in answer:
        check_outcome(story, answer.partition("In the end, ")[2])
    if found := re.match(r"What is (\w+) like\?", question):
        trait = matched(rf"{found[1]} is (\w+)\.", answer)[1]
        first = " ".join(re.split(r"(?<=[.!?]) ", story)[:2])
        expect(re.search(rf"\b{trait}\b", first) and found[1] in first, f"{answer} {story!r}")
        return
    common = {"It", "Yes", "No", "The", "In", "They", "Grandma", "Grandpa", "Aunt", "Uncle"}
    if found := re.match(r"Is there somebody called ([\w ]+?) in", question):
        there = bool(re.search(rf"\b{found[1]}\b", story))
        yes, no = (
            f"Yes, {found[1]} is in the story.",
            f"No, nobody in the story is called {found[1]}.",
        )
        same(answer, yes if there else no, question)
        return
    for name in set(named) - common:
        expect(re.search(rf"\b{name}\b", story), f"{name} is not in {story!r}")
    if found := re.match(r'Who said "(.+)"\?', question):
        speaker = matched(r"(.+) said it\.", answer)[1]
        said = rf'{re.escape(found[1])},?" \w+ {speaker}\b'
        expect(re.search(said, story), f"{answer} {question} {story!r}")
        same(story.count(found[1]), 1, question)
    elif found := re.match(r"What kind of animal is (\w+)\?", question):
        kind = matched(rf"{found[1]} is an? (\w+)\.", answer)[1]
        expect(
            re.search(
                rf"{found[1]}(?: the|, an? \w+) {kind}|{kind} (?:named|called) {found[1]}",
                story,
            ),
            answer,
        )
    elif found := re.match(r"Where (?:was the .+|does the story take place)\?", question):
        where = matched(r"(?:It takes place|The .+? was) (.+)\.", answer)[1]
        expect(where.lower() in story.lower(), f"{answer} {story!r}")
    elif found := re.match(r"Who else is in the story, besides (\w+)\?", question):
        expect(found[1] not in named and named, answer)
    elif trait := re.search(r", an? (\w+ \w+)[.,]", answer):
        expect(re.search(rf"\b{trait[1]}\b", story), f"{trait[1]} is not in {story!r}")


def check_outcome(story: str, outcome: str) -> None:
    """Most of the longer words of what is told as the end are words of the story."""
    words = [word for word in re.findall(r"[a-z]{4,}", outcome.split(". ")[0].lower())]
    there = [word for word in words if word[:4] in story.lower()]
    expect(5 * len(there) >= len(words), f"{outcome!r} is not the end of {story!r}")


CHECKS: dict[str, Callable[[str, str], None]] = {
    "maths": check_maths,
    "ordering": check_ordering,
    "calendar": check_calendar,
    "units": check_units,
    "patterns": check_patterns,
    "obedience": check_obedience,
    "queries": check_queries,
    "cloze": check_cloze,
    "retelling": check_retelling,
}
