"""The further kinds made by programs: a second program finds every answer again."""

import random
import re
import sqlite3
from collections import Counter
from functools import cache

import pytest
from support import more_kinds_checker
from support.gendata_checker import WrongError

from ys_llm.data.records import Record
from ys_llm.gendata.programs import maths, sql_tables, units
from ys_llm.gendata.programs.facts import constraint_facts, sql_facts, story_facts, table_facts
from ys_llm.gendata.programs.registry import FACTS, MAKERS
from ys_llm.gendata.programs.stories import cloze
from ys_llm.gendata.programs.stories.story import make_story
from ys_llm.gendata.verifiers.code import answered

COUNT = 500
NEW = sorted(more_kinds_checker.CHECKS)
REFUSED = (WrongError, AssertionError, ValueError, KeyError, IndexError, sqlite3.Error)
FEWEST = {"calendar": 0.75, "maths": 0.9}  # share of records that differ; questions run out


@cache
def records(kind: str) -> list[Record]:
    return [MAKERS[kind](random.Random(f"test:{index}")) for index in range(COUNT)]


@pytest.mark.parametrize("kind", NEW)
def test_a_second_program_derives_every_answer(kind: str) -> None:
    for record in records(kind):
        more_kinds_checker.CHECKS[kind](record.prompt, record.response)


@pytest.mark.parametrize("kind", NEW)
def test_the_second_program_refuses_the_answer_to_another_prompt(kind: str) -> None:
    kept = 0
    for record, other in zip(records(kind), records(kind)[1:], strict=False):
        try:
            more_kinds_checker.CHECKS[kind](record.prompt, other.response)
            kept += 1
        except REFUSED:
            pass
    assert kept < COUNT * 0.15


@pytest.mark.parametrize("kind", ["maths", "units", "calendar", "queries", "ordering"])
def test_the_second_program_refuses_a_wrong_number(kind: str) -> None:
    refused = tried = 0
    for record in records(kind)[:200]:
        last = [*re.finditer(r"(?<![\d.])\d+(?![\d.]*\d)", record.response)][-1:]
        for found in last:
            before, after = record.response[: found.start()], record.response[found.end() :]
            wrong = f"{before}{int(found[0]) + 1}{after}"
            tried += 1
            try:
                more_kinds_checker.CHECKS[kind](record.prompt, wrong)
            except REFUSED:
                refused += 1
    assert tried > 50
    assert refused >= 0.9 * tried


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_the_same_random_numbers_make_the_same_record(kind: str) -> None:
    first, again = (MAKERS[kind](random.Random("a")) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("kind", NEW)
def test_records_differ(kind: str) -> None:
    assert len(set(records(kind))) >= COUNT * FEWEST.get(kind, 0.95)


@pytest.mark.parametrize("kind", NEW)
def test_texts_are_tidy(kind: str) -> None:
    for record in records(kind):
        for part in (record.prompt, record.response):
            assert part == part.strip() != ""
            assert not re.search(r"\{|\}(?!`)|  | ,|\.\.|\n\n\n", re.sub(r"`.*?`", "x", part)), part
        record.text()


def test_every_task_of_maths_comes_up() -> None:
    starts = Counter(re.sub(r"\d+", "9", record.prompt).split()[0] for record in records("maths"))
    assert {"Simplify", "Solve", "Divide", "True", "Continue"} <= set(starts)


# Parts.


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (maths.Sum(maths.Sum(2, "+", 3), "*", 4), "(2 + 3) * 4"),
        (maths.Sum(2, "+", maths.Sum(3, "*", 4)), "2 + 3 * 4"),
        (maths.Sum(9, "-", maths.Sum(3, "+", 4)), "9 - (3 + 4)"),
        (maths.Sum(maths.Sum(9, "-", 3), "-", 4), "9 - 3 - 4"),
        (maths.Sum(9, "-", maths.Sum(3, "*", 2)), "9 - 3 * 2"),
    ],
)
def test_brackets_stand_where_they_are_needed(asked: maths.Sum, shown: str) -> None:
    assert str(asked) == shown
    assert eval(shown) == maths.steps(asked, [])


def test_an_amount_is_written_without_needless_zeros() -> None:
    assert units.written(units.Fraction(5, 2)) == "2.5"
    assert units.written(units.Fraction(100)) == "100"


def test_every_query_runs_on_its_table() -> None:
    for index in range(100):
        rng = random.Random(index)
        table = sql_tables.random_table(rng)
        for ask in sql_tables.ASKING:
            _question, query = ask(rng, table)
            answered(table.schema(), query)


def test_a_quote_in_a_value_is_doubled() -> None:
    assert sql_tables.literal("O'Hara") == "'O''Hara'"


def test_keys_and_numbers_of_a_table_differ_so_that_every_order_is_one() -> None:
    for index in range(200):
        rows = sql_tables.random_table(random.Random(index)).rows
        for place in (0, 2, 3):
            assert len({row[place] for row in rows}) == len(rows)


def test_every_question_about_a_story_is_asked() -> None:
    prompts = "\n".join(record.prompt for record in records("retelling"))
    for begin in ("Who is the story about", "Who else is", "Is there somebody",
                  "What does the story", "How does the story end", "What kind of animal", " like?",
                  "Where was the", "Where does the story", "Who said", "Summarise this story",
                  "What was", "Who came to help"):  # fmt: skip
        assert begin in prompt_lines(prompts), begin


def prompt_lines(prompts: str) -> str:
    return "\n".join(line for line in prompts.splitlines() if len(line) < 160)


def test_a_gap_is_a_word_that_the_story_says_elsewhere_and_has_rivals_in_it() -> None:
    for index in range(100):
        whole = make_story(random.Random(index)).whole
        for word, sentence, traps in cloze.gaps(whole):
            assert whole.count(sentence) == 1
            assert len(re.findall(rf"\b{word}\b", whole)) > cloze.LEAST_MENTIONS
            assert traps and all(re.search(rf"\b{trap}\b", whole) for trap in traps)


def test_the_whole_story_is_the_opening_and_the_rest() -> None:
    for index in range(200):
        told = make_story(random.Random(index))
        opening = told.prompt.removeprefix("Continue the story: ")
        if opening == told.prompt:
            assert told.whole == told.text
        else:
            assert told.whole.startswith(opening) and told.whole.endswith(told.text)
        assert "{" not in told.gist + told.theme


# Facts of chains.


@pytest.mark.parametrize("name", sorted(FACTS))
def test_facts_follow_from_their_random_numbers(name: str) -> None:
    first, again = (FACTS[name](random.Random(5)) for _ in range(2))
    assert first == again
    names = {tuple(FACTS[name](random.Random(index))) for index in range(50)}
    assert len(names) == 1
    assert all(value for index in range(50) for value in FACTS[name](random.Random(index)).values())


def test_the_forms_of_a_table_are_one_table() -> None:
    for index in range(50):
        facts = table_facts(random.Random(index))
        head, *_ = more_kinds_checker.printed(facts["markdown"])
        assert ", ".join(head) == facts["columns"]


def test_facts_for_sql_print_the_table_that_their_schema_makes() -> None:
    for index in range(50):
        facts = sql_facts(random.Random(index))
        rows = answered(facts["schema"], f"SELECT * FROM {facts['name']}")
        printed = more_kinds_checker.printed(facts["table"])[1:]
        assert [[str(value) for value in row] for row in rows] == printed


def test_the_hero_of_the_facts_is_in_the_story() -> None:
    for index in range(50):
        facts = story_facts(random.Random(index))
        assert facts["hero"] in facts["story"]


def test_every_constraint_is_drawn() -> None:
    drawn = " ".join(constraint_facts(random.Random(i))["constraints"] for i in range(400))
    for rule in ("most_characters", "least_words", "lowercase", "uppercase", "paragraphs",
                 "bullets", "sentences", "json", "without_word", "ends_with",
                 "no_commas"):  # fmt: skip
        assert f'"{rule}"' in drawn
