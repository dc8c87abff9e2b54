"""The README of a corpus."""

from collections.abc import Mapping, Sequence

from ys_llm.gendata.generation.generator import Plan
from ys_llm.gendata.generation.journal import JournalEntry

TEMPLATE = """# A corpus made by programs

{total} records, {megabytes:.1f} MB of text, made by the programs of `ys` alone: no language model,
no text from elsewhere. The licence is that of `ys` (MIT).

| files | records | kB | content |
| --- | ---: | ---: | --- |
{rows}

A record is `PROMPT<start>RESPONSE<end>` followed by a blank line. The answers are correct by
construction, and an independent program in the tests of `ys`, which sees only the text, checks each
of them. `MANIFEST.jsonl` records the origin of every record (`ys gen-data trace TEXT`). Training
reads neither the manifest nor this file.

To reproduce this folder byte for byte (`--out DIR` writes to another folder than `training_data`):

```
{command}
```

`ys gen-data` replaces only files that it wrote and that were not edited since. Your own files in
this folder are not touched.

## One record of each kind

{samples}
"""


def readme(plan: Plan, accepted: Mapping[str, Sequence[JournalEntry]]) -> str:
    """The content of a corpus and how to reproduce it, with the first record of each kind."""
    texts = {
        recipe.name: [entry.record.text() for entry in accepted[recipe.name] if entry.record]
        for recipe in plan.recipes
    }
    sizes = {name: sum(len(text.encode()) for text in made) for name, made in texts.items()}
    rows = [
        f"| `{recipe.name}-*.md` | {len(texts[recipe.name]):,} | {sizes[recipe.name] // 1000:,} | "
        f"{recipe.spec.description} |"
        for recipe in plan.recipes
    ]
    samples = [f"### {name}\n\n{_quoted(made[0])}" for name, made in texts.items() if made]
    return TEMPLATE.format(
        total=f"{sum(map(len, texts.values())):,}",
        megabytes=sum(sizes.values()) / 1e6,
        rows="\n".join(rows),
        command=plan.command,
        samples="\n\n".join(samples),
    )


def _quoted(text: str) -> str:
    """As a code block of Markdown; the text may contain code blocks of its own."""
    return f"````\n{text.strip()}\n````"
