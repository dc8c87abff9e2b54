"""The same table in JSON, CSV, YAML and Markdown; numbers and booleans keep their types."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterable

import yaml

from ys_llm.data.records import Record
from ys_llm.gendata.programs.words import ADULTS, ANIMAL_NAMES, ANIMALS, CHILDREN, FOODS, THINGS

Value = str | int | float | bool
Row = dict[str, Value]
Column = Callable[[random.Random], Value]

FORMATS = ("json", "csv", "yaml", "markdown")
ASKING = (
    "Convert this {source} to {target}:\n\n{text}",
    "Change the following {source} into {target}.\n\n{text}",
    "Write this table as {target}:\n\n{text}",
    "Here is some {source}. Please give me the same data as {target}.\n\n{text}",
)
CITIES = ("Oslo", "Lima", "Cairo", "Kyoto", "Porto", "Quebec", "Nairobi", "Vienna", "Hobart",
          "Dublin", "Riga", "Bergen", "San Jose", "Washington, D.C.")  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple")
PARTS = ("north", "south", "east", "west")


def _one_of(options: tuple[str, ...]) -> Column:
    return lambda rng: rng.choice(options)


def _whole(low: int, high: int) -> Column:
    return lambda rng: rng.randint(low, high)


def _decimal(low: int, high: int) -> Column:
    return lambda rng: rng.randint(low * 10, high * 10) / 10


def _truth(rng: random.Random) -> bool:
    return rng.random() < 0.5


def _flat(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for group in groups for name in group)


PEOPLE = _one_of(_flat(CHILDREN.values()))
TABLES: tuple[dict[str, Column], ...] = (
    {"name": PEOPLE, "age": _whole(4, 90), "city": _one_of(CITIES), "member": _truth},
    {"pet": _one_of(_flat(ANIMAL_NAMES.values())), "kind": _one_of(tuple(a.kind for a in ANIMALS)),
     "weight": _decimal(1, 40), "vaccinated": _truth, "owner": PEOPLE},
    {"item": _one_of(tuple(t.noun for t in THINGS)), "colour": _one_of(COLOURS),
     "price": _decimal(1, 60), "stock": _whole(0, 300), "on_sale": _truth},
    {"city": _one_of(CITIES), "temperature": _decimal(-15, 38), "humidity": _whole(10, 99),
     "rain": _truth},
    {"dish": _one_of(FOODS), "cook": _one_of(_flat(ADULTS.values())), "minutes": _whole(5, 120),
     "servings": _whole(1, 12), "sweet": _truth},
    {"player": PEOPLE, "team": _one_of(COLOURS), "goals": _whole(0, 30),
     "average": _decimal(0, 9), "captain": _truth},
    {"train": _whole(100, 999), "from": _one_of(CITIES), "platform": _whole(1, 12),
     "late": _truth, "direction": _one_of(PARTS)},
)  # fmt: skip


def table(rng: random.Random) -> list[Row]:
    """Two to five rows with at least two columns of one of the tables."""
    columns = rng.choice(TABLES)
    names = list(columns)
    keep = sorted(rng.sample(range(len(names)), rng.randint(2, len(names))))
    return [{names[i]: columns[names[i]](rng) for i in keep} for _ in range(rng.randint(2, 5))]


def write(rows: list[Row], form: str) -> str:
    """The rows in one of the `FORMATS`, without a final line break."""
    writers = {"json": _json, "csv": _csv, "yaml": _yaml, "markdown": _markdown}
    return writers[form](rows).strip("\n")


def _cell(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json(rows: list[Row]) -> str:
    return "[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]"


def _csv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return out.getvalue()


def _yaml(rows: list[Row]) -> str:
    return yaml.safe_dump(rows, sort_keys=False, width=1000)


def _markdown(rows: list[Row]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def formats(rng: random.Random) -> Record:
    """One table, to be converted into another format."""
    rows = table(rng)
    source, target = rng.sample(FORMATS, 2)
    names = {"markdown": "markdown table"}
    prompt = rng.choice(ASKING).format(
        source=names.get(source, source),
        target=f"a {names[target]}" if target in names else target,
        text=write(rows, source),
    )
    return Record(prompt, write(rows, target))
