"""Random tables for SQL, and questions about them with the query that answers each."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ys_llm.gendata.programs.formats import CITIES, COLOURS
from ys_llm.gendata.programs.words import ANIMALS, CHILDREN, FOODS, THINGS

Value = str | int
NAMES = CHILDREN["she"] + CHILDREN["he"]


@dataclass(frozen=True)
class Design:
    """The design of a table: the name of its rows, a key column, groups, two integer columns."""

    name: str
    key: tuple[str, tuple[str, ...]]
    group: tuple[str, tuple[str, ...]]
    first: tuple[str, int, int]
    second: tuple[str, int, int]

    @property
    def columns(self) -> tuple[str, ...]:
        """The column names in order."""
        return (self.key[0], self.group[0], self.first[0], self.second[0])


DESIGNS = (
    Design("pupils", ("name", NAMES), ("house", COLOURS[:4]), ("age", 6, 17), ("points", 0, 60)),
    Design("products", ("item", tuple(t.noun for t in THINGS)), ("colour", COLOURS[:5]),
           ("price", 1, 90), ("stock", 0, 200)),
    Design("dishes", ("dish", FOODS), ("cook", NAMES[:5]), ("minutes", 5, 120), ("servings", 1, 8)),
    Design("trips", ("traveller", NAMES), ("city", CITIES[:6]), ("days", 1, 30), ("cost", 40, 990)),
    Design("animals", ("kind", tuple(a.kind for a in ANIMALS)),
           ("area", ("forest", "river", "farm")),
           ("weight", 1, 300), ("count", 1, 40)),
    Design("players", ("player", NAMES), ("team", COLOURS[4:8]),
           ("goals", 0, 25), ("games", 5, 40)),
    Design("books", ("reader", NAMES), ("genre", ("comedy", "mystery", "fantasy", "history")),
           ("pages", 40, 700), ("stars", 1, 5)),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A design with its rows."""

    design: Design
    rows: tuple[tuple[Value, ...], ...]

    def schema(self) -> str:
        """The SQL statements that create the table."""
        types = ("TEXT", "TEXT", "INTEGER", "INTEGER")
        columns = ", ".join(f"{n} {t}" for n, t in zip(self.design.columns, types, strict=True))
        rows = ",\n".join(f"  ({', '.join(map(literal, row))})" for row in self.rows)
        name = self.design.name
        return f"CREATE TABLE {name} ({columns});\nINSERT INTO {name} VALUES\n{rows};"

    def markdown(self) -> str:
        """The table as Markdown."""
        return markdown(self.design.columns, self.rows)


def literal(value: Value) -> str:
    """A value as SQL writes it."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def markdown(columns: tuple[str, ...], rows: Iterable[Sequence[Value]]) -> str:
    """Rows as a Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def random_table(rng: random.Random, *, most_rows: int = 7) -> Table:
    """A table of four to `most_rows` rows; keys and numbers are unique, so orders are defined."""
    design = rng.choice(DESIGNS)
    count = rng.randint(4, min(most_rows, design.second[2] - design.second[1] + 1))
    keys = rng.sample(design.key[1], count)
    groups = rng.sample(design.group[1], rng.randint(2, 3))
    firsts, seconds = (
        rng.sample(range(low, high + 1), count) for _, low, high in (design.first, design.second)
    )
    chosen = [rng.choice(groups) for _ in range(count)]
    return Table(design, tuple(zip(keys, chosen, firsts, seconds, strict=True)))


Asked = tuple[str, str]  # a question, and the query that answers it


def _threshold(rng: random.Random, table: Table) -> Asked:
    design, place = table.design, rng.choice((2, 3))
    column, limit = design.columns[place], rng.choice(table.rows)[place]
    word, sign = rng.choice((("more than", ">"), ("less than", "<"), ("at least", ">=")))
    key = design.key[0]
    return (
        f"Which {design.name} have {word} {limit} as {column}?",
        f"SELECT {key} FROM {design.name} WHERE {column} {sign} {limit} ORDER BY {key};",
    )


def _group_is(rng: random.Random, table: Table) -> Asked:
    design, value = table.design, rng.choice(table.rows)[1]
    key, group = design.key[0], design.group[0]
    return (
        f"List the {key} of all {design.name} whose {group} is {value}.",
        f"SELECT {key} FROM {design.name} WHERE {group} = {literal(value)} ORDER BY {key};",
    )


def _count(rng: random.Random, table: Table) -> Asked:
    design, value = table.design, rng.choice(table.rows)[1]
    group = design.group[0]
    return (
        f"How many {design.name} have the {group} {value}?",
        f"SELECT COUNT(*) FROM {design.name} WHERE {group} = {literal(value)};",
    )


def _total(rng: random.Random, table: Table) -> Asked:
    design, column = table.design, rng.choice(table.design.columns[2:])
    return (
        f"What is the sum of {column} over all {design.name}?",
        f"SELECT SUM({column}) FROM {design.name};",
    )


def _extreme(rng: random.Random, table: Table) -> Asked:
    design, column = table.design, rng.choice(table.design.columns[2:])
    word, order = rng.choice((("largest", "DESC"), ("smallest", "ASC")))
    key = design.key[0]
    return (
        f"Which {key} has the {word} value of {column}?",
        f"SELECT {key} FROM {design.name} ORDER BY {column} {order} LIMIT 1;",
    )


def _top(rng: random.Random, table: Table) -> Asked:
    design, column, number = table.design, rng.choice(table.design.columns[2:]), rng.randint(2, 3)
    key = design.key[0]
    return (
        f"Show {key} and {column} of the {number} rows with the largest values of {column}.",
        f"SELECT {key}, {column} FROM {design.name} ORDER BY {column} DESC LIMIT {number};",
    )


def _per_group(rng: random.Random, table: Table) -> Asked:
    design = table.design
    group, column = design.group[0], rng.choice(design.columns[2:])
    said, function = rng.choice(
        (("the number of rows", "COUNT(*)"), (f"the sum of {column}", f"SUM({column})"),
         (f"the largest {column}", f"MAX({column})"))
    )  # fmt: skip
    return (
        f"Show {said} for each {group}.",
        f"SELECT {group}, {function} FROM {design.name} GROUP BY {group} ORDER BY {group};",
    )


def _distinct(rng: random.Random, table: Table) -> Asked:
    design = table.design
    group = design.group[0]
    return (
        f"Which different values of {group} are there?",
        f"SELECT DISTINCT {group} FROM {design.name} ORDER BY {group};",
    )


def _range(rng: random.Random, table: Table) -> Asked:
    design, place = table.design, rng.choice((2, 3))
    column, key = design.columns[place], design.key[0]
    low, high = sorted(rng.sample([int(row[place]) for row in table.rows], 2))
    return (
        f"Which {design.name} have a value of {column} from {low} to {high}?",
        f"SELECT {key} FROM {design.name} WHERE {column} BETWEEN {low} AND {high} ORDER BY {key};",
    )


def _starts(rng: random.Random, table: Table) -> Asked:
    design = table.design
    key, letter = design.key[0], str(rng.choice(table.rows)[0])[0]
    return (
        f"Which values of {key} begin with {letter}?",
        f"SELECT {key} FROM {design.name} WHERE {key} LIKE '{letter}%' ORDER BY {key};",
    )


ASKING: tuple[Callable[[random.Random, Table], Asked], ...] = (
    _threshold, _group_is, _count, _total, _extreme, _top, _per_group, _distinct, _range, _starts,
)  # fmt: skip
