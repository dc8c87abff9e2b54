"""The calendar and the clock: the date or time that a prompt asks for is found again."""

import re
from collections.abc import Mapping

from ys_llm.gendata.judges.said import ends_with_number, last_line, last_named
from ys_llm.gendata.programs.dates import DAYS, LENGTHS, MONTHS

_WEEKDAY = re.compile(r"Which day of the week is (\d+) days (before|after) (\w+)\?")
_SAME_MONTH = re.compile(r"(\d+) (\w+) is a (\w+)\. Which day of the week is (\d+) \2\?")
_LENGTH = re.compile(r"How many days does (\w+) have\?")
_NEXT = re.compile(r"Which month comes (before|after) (\w+)\?")
_AHEAD = re.compile(r"Which month is (\d+) months after (\w+)\?")
_LEAP = re.compile(r"(?:Is (\d+) a leap year|Does February have 29 days in (\d+))\?")
_BETWEEN = re.compile(r"How many days is it from (\d+) (\w+) to (\d+) (\w+) in a common year\?")
_LATER = re.compile(r"It is (\d+):(\d+)\. What time is it in (\d+) minutes\?")
_LASTING = re.compile(r".+ begins at (\d+):(\d+) and ends at (\d+):(\d+)\. How long does it last\?")


def calendar(prompt: str, answer: str) -> Mapping[str, bool]:
    """`weekday`, `month`, `leap_year`, `days_between`, `time`."""
    for judge in (_weekday, _month, _leap_year, _days_between, _time):
        if found := judge(prompt, answer):
            return found
    return {}


def _weekday(prompt: str, answer: str) -> Mapping[str, bool]:
    if (found := _WEEKDAY.fullmatch(prompt)) and found[3] in DAYS:
        days = int(found[1]) if found[2] == "after" else -int(found[1])
        expected = DAYS[(DAYS.index(found[3]) + days) % 7]
    elif (found := _SAME_MONTH.fullmatch(prompt)) and found[3] in DAYS:
        expected = DAYS[(DAYS.index(found[3]) + int(found[4]) - int(found[1])) % 7]
    else:
        return {}
    return {"weekday": last_named(answer, DAYS) == expected}


def _month(prompt: str, answer: str) -> Mapping[str, bool]:
    if (found := _LENGTH.fullmatch(prompt)) and found[1] in MONTHS:
        length = LENGTHS[MONTHS.index(found[1])]
        return {"month": f"{found[1]} has {length} days" in answer}
    if (found := _NEXT.fullmatch(prompt)) and found[2] in MONTHS:
        step = 1 if found[1] == "after" else -1
        expected = MONTHS[(MONTHS.index(found[2]) + step) % 12]
        return {"month": answer.strip().startswith(f"{expected} comes {found[1]}")}
    if (found := _AHEAD.fullmatch(prompt)) and found[2] in MONTHS:
        expected = MONTHS[(MONTHS.index(found[2]) + int(found[1])) % 12]
        return {"month": last_named(answer, MONTHS) == expected}
    return {}


def _leap_year(prompt: str, answer: str) -> Mapping[str, bool]:
    found = _LEAP.fullmatch(prompt)
    if not found:
        return {}
    year = int(found[1] or found[2])
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return {"leap_year": last_line(answer).startswith("Yes," if is_leap else "No,")}


def _days_between(prompt: str, answer: str) -> Mapping[str, bool]:
    found = _BETWEEN.fullmatch(prompt)
    if not found or not {found[2], found[4]} <= set(MONTHS):
        return {}
    first, last = (sum(LENGTHS[: MONTHS.index(found[at + 1])]) + int(found[at]) for at in (1, 3))
    return {"days_between": ends_with_number(answer, last - first)}


def _time(prompt: str, answer: str) -> Mapping[str, bool]:
    if found := _LATER.fullmatch(prompt):
        hours, minutes, ahead = map(int, found.groups())
        now = hours * 60 + minutes + ahead
        clocks = re.findall(r"\d+:\d\d", last_line(answer))
        return {"time": clocks[-1:] == [f"{now // 60 % 24}:{now % 60:02}"]}
    if found := _LASTING.fullmatch(prompt):
        begin_hour, begin, end_hour, end = map(int, found.groups())
        length = (end_hour - begin_hour) * 60 + end - begin
        return {"time": ends_with_number(answer, length)}
    return {}
