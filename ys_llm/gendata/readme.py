"""The README of a generated corpus."""

from collections.abc import Mapping, Sequence

from ys_llm.gendata.record import Record

KINDS = {
    "stories": "Short stories. Each is played through first (who is there, what they want, where "
    "things lie, what goes wrong and why) and then told in words drawn from a grammar.",
    "arithmetic": "Sums, differences, products by parts, comparisons and two-step word problems, "
    "with every step.",
    "spelling": "Words spelled, reversed, measured, and their letters counted; capitals and small "
    "letters count as the same letter.",
    "formats": "One table in two of the formats json, csv, yaml and markdown. Numbers and truth "
    "values keep their types.",
    "scenes": "A small scene in which things are moved about, and a question about its end.",
}
TEMPLATE = """# training_data

A small corpus to begin with: {total} records, {megabytes:.1f} MB of text, made entirely by the
generators of this project, with no language model and no text from elsewhere. The licence is the
project's own (MIT).

{table}

A record is `PROMPT<start>RESPONSE<end>` followed by a blank line. The answers are right by
construction, and a second program in the tests, which sees only the text, derives them again.
This file and `manifest.json` (recipe, seed, and the hash of every file) are not read as training
text.

To make it again, byte for byte:

```
ys gen-data configs/gen/starter.yaml
```

It replaces only files that it wrote itself and that nobody has edited since; your own files in
this folder are left alone.

## One of each kind

{samples}
"""


def readme(records: Mapping[str, Sequence[Record]], sizes: Mapping[str, int]) -> str:
    """What is in the folder, with the first record of each kind."""
    present = [kind for kind in KINDS if records[kind]]
    rows = ["| files | records | kB | what |", "| --- | ---: | ---: | --- |"]
    rows += [
        f"| `{kind}-*.md` | {len(records[kind]):,} | {sizes[kind] // 1000:,} | {KINDS[kind]} |"
        for kind in present
    ]
    samples = [f"### {kind}\n\n```\n{records[kind][0].text().strip()}\n```" for kind in present]
    return TEMPLATE.format(
        total=f"{sum(map(len, records.values())):,}",
        megabytes=sum(sizes.values()) / 1e6,
        table="\n".join(rows),
        samples="\n\n".join(samples),
    )
