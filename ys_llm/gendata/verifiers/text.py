"""Verifiers of prose: length, speakers, required and forbidden words."""

import json
import re
from collections.abc import Mapping

from ys_llm.data.records import Record

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_OPTION = re.compile(r"^\s*([A-D])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
_GAP = re.compile(r"_{3,}")
_ANSWER = re.compile(r"\banswer is:?\s*\**\(?([A-D])\b(?:[).:]?\s*([^\n*]+?))?\W*$", re.IGNORECASE)


def json_object(record: Record, slots: Mapping[str, str], *, keys: tuple[str, ...] = ()) -> str:
    """The response is one JSON object, with these keys at least."""
    try:
        found = json.loads(record.response)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(found, dict):
        return "not an object of JSON"
    missing = [key for key in keys if key not in found]
    return f"the keys {', '.join(missing)} are missing" if missing else ""


def words(record: Record, slots: Mapping[str, str], least: int = 1, most: int = 0) -> str:
    """The response has `least` to `most` words; `most: 0` is no limit."""
    number = len(_WORD.findall(record.response))
    if number < least:
        return f"{number} words, expected at least {least}"
    return f"{number} words, expected at most {most}" if most and number > most else ""


def lines(record: Record, slots: Mapping[str, str], least: int = 1, most: int = 0) -> str:
    """The response has `least` to `most` non-empty lines; `most: 0` is no limit."""
    number = sum(bool(line.strip()) for line in record.response.splitlines())
    if number < least:
        return f"{number} lines, expected at least {least}"
    return f"{number} lines, expected at most {most}" if most and number > most else ""


def question(record: Record, slots: Mapping[str, str], words: int = 60) -> str:
    """The prompt is one question: it ends with a question mark, and has at most `words` words."""
    prompt = record.prompt.strip()
    if not prompt.endswith("?"):
        return f"the prompt does not end with a question mark: {prompt[-30:]!r}"
    number = len(_WORD.findall(prompt))
    return f"a question of {number} words, expected at most {words}" if number > words else ""


def speakers(
    record: Record,
    slots: Mapping[str, str],
    names: tuple[str, ...] = (),
    turns: int = 2,
) -> str:
    """Each of the slots `names` begins at least `turns` lines of the response: `Mia: ...`."""
    for name in (slots[name] for name in names):
        pattern = rf"^[ \t*_\[]*{re.escape(name)}[ \t*_\]]*:[ \t*_]*\S"
        number = len(re.findall(pattern, record.response, re.MULTILINE | re.IGNORECASE))
        if number < turns:
            return f"{name} speaks {number} times, expected at least {turns}"
    return ""


def mentions(
    record: Record, slots: Mapping[str, str], names: tuple[str, ...] = (), lines: int = 0
) -> str:
    """The response contains the values of the slots, in at least `lines` of its lines."""
    for value in (slots[name] for name in names):
        pattern = _with_endings(value)
        number = sum(bool(pattern.search(line)) for line in record.response.splitlines())
        if number < max(1, lines):
            return f"{value!r} is in {number} lines, expected at least {max(1, lines)}"
    return ""


def absent(
    record: Record,
    slots: Mapping[str, str],
    names: tuple[str, ...] = (),
    where: str = "response",
) -> str:
    """The values of the slots are not in the prompt or not in the response, by `where`."""
    text = record.prompt if where == "prompt" else record.response
    for value in (slots[name] for name in names):
        if _with_endings(value).search(text):
            return f"{value!r} is in the {where}"
    return ""


def _with_endings(value: str) -> re.Pattern[str]:
    """A pattern for the value as separate words, also as a plural or a verb form."""
    stem = re.escape(value[:-1] if value.endswith(("e", "y")) and len(value) > 3 else value)
    return re.compile(rf"(?<!\w){stem}\w{{0,4}}(?!\w)", re.IGNORECASE)


def one_of(record: Record, slots: Mapping[str, str], values: tuple[str, ...] = ()) -> str:
    """The response is one of the values, and nothing else."""
    if record.response in values:
        return ""
    return f"{record.response[:40]!r} is none of the {len(values)} known answers"


def unlike(record: Record, slots: Mapping[str, str], share: int = 80) -> str:
    """At most `share` percent of the response's three-word runs are in the prompt."""
    own, other = _runs(record.response), _runs(record.prompt)
    copied = 100 * len(own & other) // len(own) if own else 0
    return f"{copied} % of the response is copied from the prompt" if copied > share else ""


def _runs(text: str) -> set[tuple[str, ...]]:
    words_in_order = _WORD.findall(text.lower())
    return set(zip(words_in_order, words_in_order[1:], words_in_order[2:], strict=False))


def blank(record: Record, slots: Mapping[str, str]) -> str:
    """One gap `_____`, options A) to D) that differ, and an answer that is one of them."""
    if len(_GAP.findall(record.prompt)) != 1:
        return f"{len(_GAP.findall(record.prompt))} gaps in the prompt, expected one"
    options = dict(_OPTION.findall(record.prompt))
    if list(options) != list("ABCD"):
        return f"the options are {', '.join(options) or 'none'}, expected A, B, C and D"
    if len({option.lower() for option in options.values()}) < len(options):
        return "two options are the same"
    answer = _ANSWER.search(record.response.strip())
    if not answer:
        return "the response does not end with `The answer is ...`"
    right = options[answer[1].upper()]
    given = (answer[2] or "").strip(" .*:") or right
    return "" if given.lower() == right.lower() else f"{answer[1]} is {right!r}, not {given!r}"


def agree(record: Record, slots: Mapping[str, str], names: tuple[str, ...] = ()) -> str:
    """The last `The answer is X` is the same in all of the slots, asked for independently."""
    found = [_ANSWER.search(slots[name].strip()) for name in names]
    letters = [match[1].upper() if match else "none" for match in found]
    agreed = len(set(letters)) == 1 and "none" not in letters
    return "" if agreed else f"the answers are {', '.join(letters)}"
