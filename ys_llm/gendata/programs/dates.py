"""The calendar and the clock: weekdays, months, leap years, days between dates, hours."""

import random
from collections.abc import Callable

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import counted

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December")  # fmt: skip
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # of a common year


def weekday(rng: random.Random) -> Record:
    """A number of days after or before a weekday."""
    day, days = rng.randrange(7), rng.randint(2, 40)
    back = rng.random() < 0.3
    weeks, rest = divmod(days, 7)
    found = DAYS[(day - rest if back else day + rest) % 7]
    way = "before" if back else "after"
    lines = [f"{days} days are {counted(weeks, 'week')} and {counted(rest, 'day')}."]
    lines.append(f"{counted(rest, 'day')} {way} {DAYS[day]} is {found}."
                 if rest else f"Whole weeks lead to the same day, {found}.")  # fmt: skip
    prompt = f"Which day of the week is {days} days {way} {DAYS[day]}?"
    return Record(prompt, "\n".join(lines))


def same_month(rng: random.Random) -> Record:
    """The weekday of another date of the same month."""
    month, day = rng.randrange(12), rng.randrange(7)
    first, second = sorted(rng.sample(range(1, LENGTHS[month] + 1), 2))
    gap = second - first
    found = DAYS[(day + gap) % 7]
    name = MONTHS[month]
    lines = (f"From {first} to {second} {name} it is {counted(gap, 'day')}.",
             f"{gap} = {gap // 7} * 7 + {gap % 7}",
             f"{second} {name} is a {found}.")  # fmt: skip
    return Record(
        f"{first} {name} is a {DAYS[day]}. Which day of the week is {second} {name}?",
        "\n".join(lines),
    )


def month(rng: random.Random) -> Record:
    """The length of a month, and which one comes before or after it."""
    number = rng.randrange(12)
    name = MONTHS[number]
    kind = rng.randrange(3)
    if kind == 0:
        leap = " in a common year and 29 in a leap year" if number == 1 else ""
        return Record(f"How many days does {name} have?",
                      f"{name} has {LENGTHS[number]} days{leap}.")  # fmt: skip
    if kind == 1:
        way, other = rng.choice((("after", number + 1), ("before", number - 1)))
        return Record(
            f"Which month comes {way} {name}?", f"{MONTHS[other % 12]} comes {way} {name}."
        )
    ahead = rng.randint(2, 20)
    found = MONTHS[(number + ahead) % 12]
    line = f"{ahead} = {ahead // 12} * 12 + {ahead % 12}"
    return Record(f"Which month is {ahead} months after {name}?", f"{line}\nIt is {found}.")


def leap_year(rng: random.Random) -> Record:
    """Whether a year is a leap year, with the rule that decides."""
    year = rng.choice((rng.randint(1600, 2100), rng.randrange(1600, 2101, 100)))
    if year % 4:
        reason, leap = f"{year} cannot be divided by 4", False
    elif year % 100:
        reason, leap = f"{year} can be divided by 4, but not by 100", True
    elif year % 400:
        reason, leap = f"{year} can be divided by 100, but not by 400", False
    else:
        reason, leap = f"{year} can be divided by 400", True
    answer = "a leap year" if leap else "no leap year"
    prompt = rng.choice(("Is {} a leap year?", "Does February have 29 days in {}?"))
    return Record(prompt.format(year), f"{reason}.\n{'Yes' if leap else 'No'}, it is {answer}.")


def between(rng: random.Random) -> Record:
    """Days between two dates of a common year, month by month."""
    first, last = sorted(rng.sample(range(12), 2))
    last = min(last, first + 3)
    day, end = rng.randint(1, LENGTHS[first]), rng.randint(1, LENGTHS[last])
    parts = [LENGTHS[first] - day, *LENGTHS[first + 1 : last], end]
    lines = [f"Left of {MONTHS[first]}: {LENGTHS[first]} - {day} = {parts[0]}"]
    lines += [f"{MONTHS[i]}: {LENGTHS[i]}" for i in range(first + 1, last)]
    lines.append(f"{MONTHS[last]}: {end}")
    lines.append(f"{' + '.join(map(str, parts))} = {sum(parts)}")
    prompt = (f"How many days is it from {day} {MONTHS[first]} to {end} {MONTHS[last]} "
              "in a common year?")  # fmt: skip
    return Record(prompt, "\n".join([*lines, f"It is {counted(sum(parts), 'day')}."]))


def _clock(minutes: int) -> str:
    return f"{minutes // 60 % 24}:{minutes % 60:02}"


def later(rng: random.Random) -> Record:
    """The time some minutes later."""
    now, ahead = rng.randrange(0, 24 * 60, 5), rng.randrange(10, 300, 5)
    hours, minutes = divmod(ahead, 60)
    between = _clock(now + hours * 60)
    lines = []
    if hours:
        lines = [f"{ahead} minutes are {counted(hours, 'hour')} and {counted(minutes, 'minute')}."]
        lines.append(f"{counted(hours, 'hour')} after {_clock(now)} it is {between}.")
    if minutes:
        lines.append(f"{counted(minutes, 'minute')} after {between} it is {_clock(now + ahead)}.")
    return Record(f"It is {_clock(now)}. What time is it in {ahead} minutes?", "\n".join(lines))


# What lasts for some time, and the minutes between which it may.
EVENTS = (
    ("A film", 70, 185), ("A lesson", 30, 95), ("A train journey", 10, 300),
    ("A concert", 50, 155), ("A walk", 10, 245), ("A match", 40, 125),
)  # fmt: skip


def lasting(rng: random.Random) -> Record:
    """The duration between two times."""
    begin = rng.randrange(6 * 60, 18 * 60, 5)
    what, shortest, longest = rng.choice(EVENTS)
    length = rng.randrange(shortest, longest, 5)
    end = begin + length
    to_hour = (-begin) % 60
    prompt = f"{what} begins at {_clock(begin)} and ends at {_clock(end)}. How long does it last?"
    answer = f"{what} lasts {counted(length, 'minute')}."
    if to_hour >= length:
        return Record(prompt, f"{end % 60 or 60} - {begin % 60} = {length}\n{answer}")
    rest = length - to_hour
    lines = (f"From {_clock(begin)} to {_clock(begin + to_hour)}: {counted(to_hour, 'minute')}.",
             f"From {_clock(begin + to_hour)} to {_clock(end)}: {counted(rest, 'minute')}.",
             f"{to_hour} + {rest} = {length}", answer)  # fmt: skip
    return Record(prompt, "\n".join(lines))


TASKS: tuple[Callable[[random.Random], Record], ...] = (
    weekday, same_month, month, leap_year, between, later, lasting,
)  # fmt: skip


def dates(rng: random.Random) -> Record:
    """One of the tasks."""
    return rng.choice(TASKS)(rng)
