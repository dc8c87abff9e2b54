"""The README of a corpus."""

from collections.abc import Mapping, Sequence

from ys_llm.gendata.generation.generator import Order
from ys_llm.gendata.generation.journal import Entry

TEMPLATE = """# A corpus made by programs

{total} records, {megabytes:.1f} MB of text, made entirely by the programs of `ys`, with no language
model and no text from elsewhere. The licence is that of `ys` (MIT).

| files | records | kB | what |
| --- | ---: | ---: | --- |
{rows}

A record is `PROMPT<start>RESPONSE<end>` followed by a blank line. The answers are right by
construction, and a second program in the tests of `ys`, which sees only the text, derives them
again. `MANIFEST.jsonl` says of each record where it came from (`ys gen-data trace TEXT`); neither
it nor this file is read as training text.

To make it again, byte for byte (`--out DIR` names another folder than `training_data`):

```
{command}
```

Only files that `ys gen-data` wrote itself and that nobody has edited since are replaced; your own
files in this folder are left alone.

## One of each kind

{samples}
"""


def readme(order: Order, accepted: Mapping[str, Sequence[Entry]]) -> str:
    """What is in a corpus and how it was made, with the first record of each kind."""
    texts = {
        kind.name: [entry.record.text() for entry in accepted[kind.name] if entry.record]
        for kind in order.kinds
    }
    sizes = {name: sum(len(text.encode()) for text in made) for name, made in texts.items()}
    rows = [
        f"| `{kind.name}-*.md` | {len(texts[kind.name]):,} | {sizes[kind.name] // 1000:,} | "
        f"{kind.spec.description} |"
        for kind in order.kinds
    ]
    samples = [f"### {name}\n\n{_quoted(made[0])}" for name, made in texts.items() if made]
    return TEMPLATE.format(
        total=f"{sum(map(len, texts.values())):,}",
        megabytes=sum(sizes.values()) / 1e6,
        rows="\n".join(rows),
        command=order.command,
        samples="\n\n".join(samples),
    )


def _quoted(text: str) -> str:
    """As a block of Markdown; the text may have blocks of its own."""
    return f"````\n{text.strip()}\n````"
