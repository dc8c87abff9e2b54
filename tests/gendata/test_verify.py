"""Verifiers: what is right passes, and every kind of wrong is refused with its reason."""

import csv
import io
import json
import sqlite3
import sys
import time
from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.data.records import Record
from ys_llm.errors import UserError
from ys_llm.gendata.verifiers.code import answered
from ys_llm.gendata.verifiers.sums import calculated
from ys_llm.gendata.verifiers.verify import VERIFIERS, verifier

SCHEMA = """CREATE TABLE pets (name TEXT, kind TEXT, age INTEGER, weight INTEGER);
INSERT INTO pets VALUES ('Rex', 'dog', 3, 20), ('Mia', 'cat', 5, 4), ('O''Hara', 'cat', 9, 5);"""
ROWS = [{"name": "Ann", "age": 7, "fee": 2.5}, {"name": "Bo, Jr.", "age": 31, "fee": 10.0}]
ENDLESS = "SELECT count(*) FROM pets a, pets b" + "".join(f", pets c{i}" for i in range(30))


def reason(name: str, prompt: str, response: str, **more: object) -> str:
    """The verdict of a verifier; what is text is a slot, everything else a setting."""
    slots = {key: value for key, value in more.items() if isinstance(value, str)}
    settings = {key: value for key, value in more.items() if not isinstance(value, str)}
    return verifier(name, settings)(Record(prompt, response), slots)


# Settings.


def test_settings_are_read_strictly() -> None:
    with pytest.raises(UserError) as error:
        verifier("words", {"least": "many", "mots": 3})
    assert "mots is not a setting. Did you mean most?" in str(error.value)
    assert "least must be an integer" in str(error.value)


def test_a_list_in_yaml_is_read_as_names() -> None:
    verify = verifier("mentions", {"names": ["a"]})
    assert verify(Record("", "a fox"), {"a": "fox"}) == ""


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_every_verifier_says_what_it_checks(name: str) -> None:
    assert (VERIFIERS[name].__doc__ or "").strip()


# Prose.


@pytest.mark.parametrize(
    ("name", "settings", "response", "wrong"),
    [
        ("words", {"least": 3}, "one two-fold three's", ""),
        ("words", {"least": 4}, "one two three", "3 words, expected at least 4"),
        ("words", {"most": 2}, "one two three", "3 words, expected at most 2"),
        ("words", {}, " ... ", "0 words"),
        ("lines", {"least": 2, "most": 2}, "a\n\n b\n", ""),
        ("lines", {"least": 2}, "a\n \n", "1 lines"),
        ("lines", {"most": 1}, "a\nb", "2 lines"),
        ("one_of", {"values": ["joy", "anger"]}, "joy", ""),
        ("one_of", {"values": ["joy", "anger"]}, "Joy.", "'Joy.' is none of the 2"),
    ],
)
def test_length_and_choice(
    name: str, settings: dict[str, object], response: str, wrong: str
) -> None:
    told = verifier(name, settings)(Record("?", response), {})
    assert told.startswith(wrong) and bool(told) == bool(wrong)


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("Why is it so?", ""),
        ("Why is it so? ", ""),
        ("Tell me why.", "does not end with a question mark"),
        ("", "does not end with a question mark"),
        ("why " * 61 + "?", "a question of 61 words"),
    ],
)
def test_a_prompt_is_a_question(prompt: str, wrong: str) -> None:
    told = reason("question", prompt, "x")
    assert wrong in told and bool(told) == bool(wrong)


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        ("Mia: Hello.\nBen: Hi.\nMia: Rain?\nBen: Rain.", ""),
        ("**Mia:** Hello.\n**Ben:** Hi.\n[Mia]: So?\nBEN: So.", ""),
        ("Mia: Hello.\nBen: Hi.\nMia: Well?", "Ben speaks 1 times"),
        ("Mia says Ben: hello", "Mia speaks 0 times"),
        ("Mia:\nBen:\nMia:\nBen:", "Mia speaks 0 times"),
    ],
)
def test_both_speakers_speak(response: str, wrong: str) -> None:
    told = reason("speakers", "", response, a="Mia", b="Ben", names=["a", "b"])
    assert told.startswith(wrong) and bool(told) == bool(wrong)


@pytest.mark.parametrize(
    ("response", "lines", "wrong"),
    [
        ("The fox ran.\nTwo foxes slept.", 2, ""),
        ("The fox ran.\nIt slept.", 2, "'fox' is in 1 lines"),
        ("An outfoxed owl.", 0, "'fox' is in 0 lines"),
    ],
)
def test_a_word_is_mentioned(response: str, lines: int, wrong: str) -> None:
    told = reason("mentions", "", response, a="fox", names=["a"], lines=lines)
    assert told.startswith(wrong) and bool(told) == bool(wrong)


@pytest.mark.parametrize("word", ["carry", "hope", "quiet"])
def test_a_form_of_a_word_is_the_word(word: str) -> None:
    text = {"carry": "She carried it.", "hope": "Hoping helps.", "quiet": "Quieter!"}[word]
    assert reason("mentions", "", text, a=word, names=["a"]) == ""
    assert reason("absent", "", text, a=word, names=["a"]) == f"{word!r} is in the response"


def test_a_word_is_looked_for_on_the_side_that_is_named() -> None:
    verify = verifier("absent", {"names": ["mood"], "where": "prompt"})
    assert verify(Record("What a day!", "joy"), {"mood": "joy"}) == ""
    assert verify(Record("Such joy!", "joy"), {"mood": "joy"}) == "'joy' is in the prompt"


def test_a_copy_is_no_paraphrase() -> None:
    story = "The fox went to the river and drank the cold water until the sun was gone."
    assert reason("unlike", f"Again: {story}", story).startswith("100 % of the response is copied")
    assert reason("unlike", f"Again: {story}", "A fox drank from a river till night came.") == ""


BLANK = "A triangle has three _____.\nA) angles\nB) circles\nC) wheels\nD) roofs"


@pytest.mark.parametrize(
    ("prompt", "response", "wrong"),
    [
        (BLANK, "It is so. The answer is A.", ""),
        (BLANK, "The answer is A) angles.", ""),
        (BLANK, "So.\n**The answer is A) angles**", ""),
        (BLANK, "The answer is: A", ""),
        (BLANK, "The answer is A) circles.", "A is 'angles', not 'circles'"),
        (BLANK, "The answer is E.", "the response does not end"),
        (BLANK, "Angles.", "the response does not end"),
        (BLANK.replace("D) roofs", ""), "The answer is A.", "the options are A, B, C"),
        (BLANK.replace("roofs", "Angles"), "The answer is A.", "two options are the same"),
        (BLANK.replace("_____", "angles"), "The answer is A.", "0 gaps"),
        (BLANK + "\n_____", "The answer is A.", "2 gaps"),
    ],
)
def test_the_answer_of_a_gap_is_among_its_options(prompt: str, response: str, wrong: str) -> None:
    told = reason("blank", prompt, response)
    assert told.startswith(wrong) and bool(told) == bool(wrong)


def test_two_answers_have_to_agree() -> None:
    one, other, none = "So. The answer is B.", "Thus the answer is C.", "I do not know."
    assert reason("agree", "", "", a=one, b=one, names=["a", "b"]) == ""
    assert "are B, C" in reason("agree", "", "", a=one, b=other, names=["a", "b"])
    assert "none" in reason("agree", "", "", a=none, b=none, names=["a", "b"])


# Sums.


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        ("3 + 4 = 7", ""),
        ("Ones: 9 + 4 = 13. Write 3, carry 1.\n19 + 4 = 23", ""),
        ("(3 + 4) * 5 - 2 = 33", ""),
        ("7 × 8 = 56 and 56 ÷ 7 = 8", ""),
        ("1,200 + 34 = 1,234", ""),
        ("10 / 3 = 3.33", ""),
        ("2 - 5 = -3", ""),
        ("0.1 + 0.2 = 0.3", ""),
        ("12/18 = 2/3 because 12 / 6 = 2", ""),
        ("2 * x + 3 = 7, so 7 - 3 = 4", ""),
        ("3 + 4 = 8", "3 + 4 is not 8"),
        ("Ten: 3 + 4 = 7\nthen 7 * 2 = 15.", "7 * 2 is not 15"),
        ("10 / 3 = 3.34", "10 / 3 is not 3.34"),
        ("10 / 3 = 3", "10 / 3 is not 3"),
        ("no sum here", "0 equations"),
        ("5 = 5", "0 equations"),
        ("5 / 0 = 0", "0 equations"),
    ],
)
def test_every_equation_is_calculated_again(response: str, wrong: str) -> None:
    told = reason("arithmetic", "", response)
    assert told.startswith(wrong) and bool(told) == bool(wrong)


sums = st.recursive(
    st.integers(0, 999).map(str),
    lambda part: st.tuples(part, st.sampled_from("+-*"), part).map(lambda t: f"({' '.join(t)})"),
    max_leaves=6,
)


@given(sums, st.integers(-3, 3).filter(bool))
def test_sums_agree_with_python(text: str, error: int) -> None:
    value = eval(text)
    assert calculated(text) == value
    wrong = reason("arithmetic", "", f"{text} + 0 = {value + error}")
    assert wrong.endswith(f"is not {value + error}")
    assert reason("arithmetic", "", f"{text} + 0 = {value}") == ""


@pytest.mark.parametrize(
    "text", ["2 ** 9", "a + 1", "__import__('os')", "1e400 * 2 if 1 else 0", ""]
)
def test_nothing_but_sums_is_calculated(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        calculated(text)


def test_brackets_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        calculated("(" * 10_000)


def test_decimals_are_exact() -> None:
    assert calculated("0.1 + 0.2") == Fraction(3, 10)


@pytest.mark.parametrize(
    ("prompt", "response", "wrong"),
    [
        ("Spell fox.", "F-O-X", ""),
        ("Spell fox backwards.", "X-O-F", ""),
        ("How many e's has Eve?", "E-V-E\nThe letter e occurs 2 times.", ""),
        ("How many e's has Eve?", "E-V-E\nThe letter e occurs 1 time.", "e occurs 2 times"),
        ("How long is egg?", "E-G-G\nThe word has 3 letters.", ""),
        ("How long is egg?", "E-G-G\nThe word has 4 letters.", "'egg' has 3 letters"),
        ("First letter of owl?", "The first letter of owl is o.", ""),
        ("Last letter of owl?", "The last letter of owl is w.", "the last letter of owl is not w"),
        ("Spell fox.", "F-O-C-S", "focs is not a word of the prompt"),
        ("Spell pot roast.", "P-O-T- -R-O-A-S-T\nThe letter o is found 2 times.", ""),
        ("Spell Summer.", "S-U-M-M-E-R\nThe letter s is found 0 times.", "s occurs 1 times"),
        ("Spell fox.", "fox", "nothing is spelled"),
    ],
)
def test_letters_are_counted_again(prompt: str, response: str, wrong: str) -> None:
    told = reason("spelling", prompt, response)
    assert told.startswith(wrong) and bool(told) == bool(wrong)


@given(st.from_regex(r"[A-Za-z]{2,12}", fullmatch=True), st.integers(0, 15))
def test_a_count_passes_only_if_it_is_right(word: str, number: int) -> None:
    text = f"{'-'.join(word.upper())}\nThe letter {word[0]} occurs {number} times."
    right = sum(letter.lower() == word[0].lower() for letter in word)
    assert (reason("spelling", f"Count in {word}.", text) == "") == (number == right)


# Constraints.


def obeys(response: str, *rules: tuple[str, object]) -> str:
    given = json.dumps([{"rule": rule, "value": value} for rule, value in rules])
    return reason("constraints", "", response, constraints=given)


@pytest.mark.parametrize(
    ("rule", "value", "right", "wrong"),
    [
        ("most_characters", 5, "12345", "123456"),
        ("least_words", 2, "one two", "one-two"),
        ("most_words", 2, "one two", "one two three"),
        ("no_commas", 1, "a; b", "a, b"),
        ("lowercase", 1, "a b 1", "a B"),
        ("lowercase", 1, "é", "123"),
        ("uppercase", 1, "A B 1", "A b"),
        ("paragraphs", 2, "a\nb\n\n\nc", "a\nb"),
        ("sentences", 2, "It is 3.5 m. So?", "It is."),
        ("bullets", 2, "- a\n- b", "- a\nb"),
        ("bullets", 0, "a-b", "* a"),
        ("without_word", "and", "band of sand", "this And that"),
        ("with_word", "fox", "A Fox!", "foxes"),
        ("starts_with", "Well,", "Well, no", "well, no"),
        ("ends_with", "The end.", "So. The end.", "The end. So."),
        ("json", 1, '{"a": [1]}', "{'a': 1}"),
        ("json", 1, "```json\n[1, 2]\n```", "[1, 2"),
    ],
)
def test_a_constraint_is_checked(rule: str, value: object, right: str, wrong: str) -> None:
    assert obeys(right, (rule, value)) == ""
    assert obeys(wrong, (rule, value)) == f"{rule} {value} is not satisfied"


def test_every_constraint_counts() -> None:
    assert obeys("a b", ("most_words", 2), ("no_commas", 1)) == ""
    assert obeys("a, b", ("most_words", 2), ("no_commas", 1)) == "no_commas 1 is not satisfied"


def test_json_without_end_is_not_obeyed() -> None:
    assert obeys("[" * 100_000, ("json", 1)) != ""


# Tables.


def written(form: str, rows: list[dict[str, object]]) -> str:
    if form == "json":
        return json.dumps(rows, indent=2)
    if form == "yaml":
        return yaml.safe_dump(rows, sort_keys=False, allow_unicode=True)
    cells = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    if form == "csv":
        out = io.StringIO()
        csv.writer(out).writerows(cells)
        return out.getvalue()
    cells.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


FORMS = ("json", "csv", "yaml", "markdown")


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
def test_a_table_is_the_same_in_every_form(source: str, target: str) -> None:
    prompt = f"Convert:\n\n{written(source, ROWS)}"
    assert reason("table", prompt, written(target, ROWS)) == ""
    changed = [ROWS[0], {**ROWS[1], "age": 32}]
    assert reason("table", prompt, written(target, changed)).startswith("row 2: age is '32'")
    assert reason("table", prompt, written(target, ROWS[:1])) == "1 rows, the source has 2"
    fewer = [{name: row[name] for name in ("name", "age")} for row in ROWS]
    assert reason("table", prompt, written(target, fewer)).startswith("columns name, age")
    assert reason("table", prompt.replace("\n\n", "\n", 1), written(target, ROWS)) == ""
    fenced = f"```{target}\n{written(target, ROWS).strip()}\n```"
    assert reason("table", prompt, fenced) == ""


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json", "[{]"),
        ("json", '"a"'),
        ("json", '[{"a": {"b": 1}}]'),
        ("json", "[]"),
        ("yaml", "- a: [1"),
        ("yaml", "- a\n- b"),
        ("yaml", "- !!python/object:os.system {}"),
        ("csv", "name,age\nAnn"),
        ("csv", ""),
        ("markdown", "| a |\n| b |"),
        ("markdown", "a | b"),
    ],
)
def test_what_is_no_table_is_refused(form: str, text: str) -> None:
    told = reason("table", "", text, rows=json.dumps(ROWS), form=form)
    assert told.startswith(f"no {form}: ")


cells = st.text("abc xyz,.'é", min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.tuples(cells, st.integers(), st.booleans()), min_size=1, max_size=4))
def test_json_and_yaml_hold_any_cells(rows: list[tuple[str, int, bool]]) -> None:
    records: list[dict[str, object]] = [dict(zip("abc", row, strict=True)) for row in rows]
    source = json.dumps(records)
    assert reason("table", "", written("yaml", records), rows=source, form="yaml") == ""
    assert reason("table", "", written("json", records), rows=source, form="json") == ""


@pytest.mark.parametrize(
    ("prose", "wrong"),
    [
        ("Ann is 7 and pays 2.5; Bo, Jr. is 31 and pays 10.0.", ""),
        ("ann is 7 and pays 2.5; bo, jr. is 31 and pays 10.0.", ""),
        ("Ann is 7 and pays 2.5; Bo, Jr. is 310 and pays 10.0.", "age '31' is not in the text"),
        ("Ann is seven and pays 2.5; Bo, Jr. is 31 and pays 10.0.", "age '7'"),
        ("Ann is 7 and pays 2.51; Bo, Jr. is 31 and pays 10.0.", "fee '2.5'"),
        ("Ann pays 2.5 and is 1.7; Bo, Jr. is 31 and pays 10.0.", "age '7'"),
    ],
)
def test_every_fact_is_in_the_prose(prose: str, wrong: str) -> None:
    told = reason("facts_in_prose", prose, "", rows=json.dumps(ROWS))
    assert told.startswith(wrong) and bool(told) == bool(wrong)


# Code.


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        ("def f(x: int) -> int:\n    return x + 1", ""),
        ("```python\nclass A:\n    pass\n```", ""),
        ("Here:\n```py\ndef f():\n    pass\n```\nDone.", ""),
        ("def f(:\n  pass", "not Python"),
        ("print(1)", "it defines no function"),
        ("Here is a function.", "not Python"),
        ("x = '\0'", "not Python"),
    ],
)
def test_python_is_parsed(response: str, wrong: str) -> None:
    told = reason("python", "", response)
    assert told.startswith(wrong) and bool(told) == bool(wrong)


def test_python_is_not_run_unless_the_kind_asks() -> None:
    code = "def f():\n    pass\nraise ValueError('ran')"
    assert reason("python", "", code) == ""
    assert reason("python", "", code, run=True) == "failed: ValueError: ran"


def test_python_that_works_is_run() -> None:
    assert reason("python", "", "def f():\n    return 2\nassert f() == 2", run=True) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits on Windows")
@pytest.mark.parametrize(
    "deed",
    [
        "__import__('pathlib').Path('x').write_text('x')",
        "x = bytearray(10**9)",
        "import resource as r; assert r.getrlimit(r.RLIMIT_NPROC) != (0, 0)",
        "import sys; sys.exit(3)",
    ],
)
def test_what_runs_has_limits(deed: str) -> None:
    assert reason("python", "", f"def f():\n    pass\n{deed}", run=True).startswith("failed: ")


def test_what_runs_for_ever_is_stopped() -> None:
    began = time.monotonic()
    told = reason("python", "", "def f():\n    pass\nwhile True:\n    pass", run=True, seconds=1)
    assert told == "did not end within 1 seconds"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        ("`b.*`", ""),
        ("```regex\nb.*\n```", ""),
        ("Use this:\nb.*", ""),
        ("`b+`", "the pattern is wrong about 'bear'"),
        ("`.*`", "the pattern is wrong about 'cat'"),
        ("`(`", "not a pattern"),
        ("`" + "b" * 301 + "`", "a pattern of 301 characters"),
    ],
)
def test_a_pattern_meets_its_examples(response: str, wrong: str) -> None:
    told = reason("regex", "", response, matches="bear\nboat", misses="cat\nabc")
    assert told.startswith(wrong) and bool(told) == bool(wrong)


def test_a_pattern_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ys_llm.gendata.verifiers.code._PATTERN_SECONDS", 1.0)
    told = reason("regex", "", "`(a+)+`", matches="", misses="a" * 40 + "b")
    assert told == "the pattern did not end within 1 seconds"


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        ("SELECT name FROM pets WHERE kind = 'cat' ORDER BY age;", ""),
        ("```sql\nSELECT count(*) FROM pets\n```\nThat counts.", ""),
        ("with c as (select * from pets) select name from c", ""),
        ("SELECT name FROM pets WHERE age > 90", "the query gives 0 rows"),
        ("SELECT nme FROM pets", "the query fails: no such column"),
        ("SELECT name FROM", "the query fails: incomplete input"),
        ("DELETE FROM pets", "there is no query"),
        ("WITH a AS (SELECT 1) DELETE FROM pets", "the query fails: not authorized"),
        ("SELECT load_extension('x')", "the query fails: not authorized"),
        ("SELECT length(zeroblob(2000000))", "the query fails: string or blob too big"),
        ("", "there is no query"),
    ],
)
def test_a_query_runs_and_only_reads(response: str, wrong: str) -> None:
    told = reason("sql", "", response, schema=SCHEMA, rows=1)
    assert told.startswith(wrong) and bool(told) == bool(wrong)


def test_a_query_gives_the_stated_result() -> None:
    query = "SELECT name FROM pets WHERE kind = 'cat' ORDER BY name"
    assert reason("sql", "", query, schema=SCHEMA, result='[["Mia"], ["O\'Hara"]]') == ""
    told = reason("sql", "", query, schema=SCHEMA, result='[["Mia"]]')
    assert told.startswith("the query gives [('Mia',)")


def test_a_query_without_end_is_interrupted() -> None:
    began = time.monotonic()
    assert reason("sql", "", ENDLESS, schema=SCHEMA) == "the query fails: interrupted"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "query", ["ATTACH 'a.db' AS a", "PRAGMA user_version = 3", "VACUUM INTO 'a'"]
)
def test_no_other_database_is_reached(query: str) -> None:
    with pytest.raises(sqlite3.Error, match=r"not authorized|authorization denied"):
        answered(SCHEMA, query)
