"""A question about a printed table, the query that answers it, and its result from sqlite."""

import random

from ys_llm.data.records import Record
from ys_llm.gendata.programs.sql_tables import ASKING, markdown, random_table
from ys_llm.gendata.verifiers.code import answered_with_names

ENDINGS = ("Answer in SQL.", "Write the SQL query and its result.", "Use SQL.")


def queries(rng: random.Random) -> Record:
    """One table and one question; sqlite computes the result."""
    table = random_table(rng)
    asked, query = rng.choice(ASKING)(rng, table)
    names, rows = answered_with_names(table.schema(), query)
    shown = markdown(names, rows) if rows else "No rows."
    prompt = (
        f"The table {table.design.name}:\n\n{table.markdown()}\n\n{asked} {rng.choice(ENDINGS)}"
    )
    return Record(prompt, f"```sql\n{query}\n```\n\n{shown}")
