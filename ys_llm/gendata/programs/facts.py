"""Facts that a model is to write about: tables, stories, constraints, databases."""

import json
import random

from ys_llm.gendata.programs.formats import FORMATS, table, write
from ys_llm.gendata.programs.sql_tables import random_table
from ys_llm.gendata.programs.stories.story import make_story

FORM_NAMES = {
    "json": "JSON, a list of objects,",
    "csv": "CSV",
    "yaml": "YAML, a list of mappings,",
    "markdown": "a markdown table",
}
OPERATIONS = (  # words of the question, and what the query must contain
    ("a condition with WHERE", "WHERE"),
    ("sorting with ORDER BY", "ORDER BY"),
    ("the first few rows with LIMIT", "LIMIT"),
    ("counting with COUNT", "COUNT"),
    ("a sum with SUM", "SUM"),
    ("an average with AVG", "AVG"),
    ("the largest value with MAX", "MAX"),
    ("the smallest value with MIN", "MIN"),
    ("groups with GROUP BY", "GROUP BY"),
    ("groups that are filtered with HAVING", "HAVING"),
    ("different values with DISTINCT", "DISTINCT"),
    ("a range with BETWEEN", "BETWEEN"),
    ("a pattern with LIKE", "LIKE"),
    ("a list of values with IN", "IN"),
    ("a case distinction with CASE", "CASE"),
    ("a query within the query, in brackets", "SELECT"),
)
FORBIDDEN = (
    "very",
    "good",
    "nice",
    "thing",
    "always",
    "really",
    "beautiful",
    "and",
    "because",
    "it",
)
CLOSINGS = ("That is all.", "The end.", "Try it!", "What do you think?", "Remember that.")


def story_facts(rng: random.Random) -> dict[str, str]:
    """{story} and its {hero}."""
    story = make_story(rng)
    return {"story": story.whole, "hero": story.cast["a"].name}


def table_facts(rng: random.Random) -> dict[str, str]:
    """A table without booleans, which prose can word in too many ways: {rows} and its formats."""
    while True:
        rows = [
            {name: value for name, value in row.items() if not isinstance(value, bool)}
            for row in table(rng)
        ]
        if len(rows[0]) > 1:
            break
    form = rng.choice(FORMATS)
    return {
        "rows": json.dumps(rows),
        "markdown": write(rows, "markdown"),
        "columns": ", ".join(rows[0]),
        "form": form,
        "form_name": FORM_NAMES[form].rstrip(","),
        "table": write(rows, form),
    }


def sql_facts(rng: random.Random) -> dict[str, str]:
    """A database {schema}, the {table} called {name}, an {operation} and its {keyword}."""
    chosen = random_table(rng)
    operation, keyword = rng.choice(OPERATIONS)
    return {
        "schema": chosen.schema(),
        "table": chosen.markdown(),
        "name": chosen.design.name,
        "operation": operation,
        "keyword": keyword,
    }


def constraint_facts(rng: random.Random) -> dict[str, str]:
    """One to three compatible constraints: {wishes} in words, {constraints} as JSON."""
    chosen = rng.sample((_length, _case, _shape, _words, _commas), rng.randint(1, 3))
    drawn = [draw(rng) for draw in chosen]
    drawn = [wish for wish in drawn if not _clashes(wish[0], {rule for rule, _, _ in drawn})]
    rules = [{"rule": rule, "value": value} for rule, value, _ in drawn]
    wishes = "\n".join(f"- {words}" for _, _, words in drawn)
    return {"wishes": wishes, "constraints": json.dumps(rules)}


Constraint = tuple[str, int | str, str]  # rule of verifiers/constraints.py, value, wording
FITS_JSON = ("json", "most_characters", "without_word")


def _clashes(rule: str, among: set[str]) -> bool:
    """Whether a rule conflicts with another one, which then stays."""
    if "json" in among:
        return rule not in FITS_JSON
    fixed_ending = rule == "ends_with"  # it has its own case, and is a sentence without a bullet
    return fixed_ending and bool(among & {"lowercase", "uppercase", "bullets"})


def _length(rng: random.Random) -> Constraint:
    number = rng.randrange(120, 601, 20)
    return rng.choice((
        ("most_characters", number, f"Use at most {number} characters."),
        ("most_words", number // 6, f"Use at most {number // 6} words."),
        ("least_words", number // 6, f"Use at least {number // 6} words."),
    ))  # fmt: skip


def _case(rng: random.Random) -> Constraint:
    return rng.choice((
        ("lowercase", 1, "Use small letters only."),
        ("uppercase", 1, "Use capital letters only."),
    ))  # fmt: skip


def _shape(rng: random.Random) -> Constraint:
    number = rng.randint(2, 5)
    return rng.choice((
        ("paragraphs", number, f"Write exactly {number} paragraphs, parted by empty lines."),
        ("bullets", number, f"Write exactly {number} bullet points that begin with \"- \"."),
        ("sentences", number, f"Write exactly {number} sentences."),
        ("json", 1, "Answer with valid JSON and nothing else."),
    ))  # fmt: skip


def _words(rng: random.Random) -> Constraint:
    word, closing = rng.choice(FORBIDDEN), rng.choice(CLOSINGS)
    return rng.choice((
        ("without_word", word, f"Do not use the word \"{word}\"."),
        ("ends_with", closing, f"End with exactly these words: {closing}"),
    ))  # fmt: skip


def _commas(_rng: random.Random) -> Constraint:
    return ("no_commas", 1, "Use no commas.")
