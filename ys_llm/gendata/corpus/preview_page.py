"""The page of a preview: one HTML file that works offline."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from ys_llm.gendata.corpus.preview import Finding, Kind, Preview
from ys_llm.system.charts import histogram
from ys_llm.system.page import READING_STYLE, contents, details, document, figures, table

_SHOWN_CHARS = 1_200  # of a sample
_SHOWN_DUPLICATES = 50
_MOST_KINDS = 60  # with samples: beyond them the page would grow too large
_BARS = 24
_STYLE = """
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 0 2.5rem; } .samples pre { border: 0; padding: 0; margin: 0 0 .5rem; color: var(--soft);
  font-family: inherit; font-size: .875rem; } figure { max-width: 20rem; }
pre.diff { border-left-color: var(--c0); } pre ins, pre del { display: block; }
"""


def preview_page(shown: Preview) -> str:
    """The whole page."""
    sections = {"kinds": "Kinds", "rules": "Rules", "duplicates": "Duplicates"}
    sections |= {"refused": "Refused answers"} if shown.items_accepted + shown.items_dropped else {}
    sections["samples"] = "Samples"
    content = {
        "kinds": _kinds,
        "rules": _rules,
        "duplicates": _duplicates,
        "refused": _refusals,
        "samples": _samples,
    }
    body = [
        f'<header><p class="soft">Preview of a corpus</p><h1>{escape(str(shown.path))}</h1>',
        figures(_figures(shown)),
        contents(sections),
        "</header>\n<main>",
    ]
    for name, heading in sections.items():
        body.append(f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>')
        body += [*content[name](shown), "</section>"]
    return document(f"{shown.path}: preview", [*body, "</main>"], style=READING_STYLE + _STYLE)


def _figures(shown: Preview) -> dict[str, str]:
    lengths = [length for kind in shown.kinds.values() for length in kind.lengths]
    found = {
        "records": f"{len(lengths):,}",
        "kinds": f"{len(shown.kinds):,}",
        "megabytes": f"{sum(kind.bytes for kind in shown.kinds.values()) / 1e6:.1f}",
        "characters, median": f"{statistics.median(lengths):,.0f}" if lengths else "0",
        "identical records": f"{len(shown.duplicates):,}",
    }
    if shown.items_dropped:
        found["items dropped"] = f"{shown.items_dropped:,}"
    return found


def _kinds(shown: Preview) -> Iterator[str]:
    cells = [
        [
            escape(name),
            f"{len(kind.lengths):,}",
            f"{kind.bytes / 1000:,.0f}",
            f"{statistics.median(kind.lengths):,.0f}",
            f"{max(kind.lengths):,}",
            f"{kind.duplicates:,}",
        ]
        for name, kind in sorted(shown.kinds.items())
    ]
    columns = ["kind", "records", "kB", "characters, median", "longest", "identical"]
    yield table(columns, cells, label="Records by kind")
    if shown.unreadable:
        cells = [[escape(where), escape(why)] for where, why in shown.unreadable[:50]]
        yield f"<h3>Not readable: {len(shown.unreadable):,}</h3>"
        yield table(["record", "problem"], cells, label="What cannot be read", long=(1,))


def _rules(shown: Preview) -> Iterator[str]:
    yield f"<p>{escape(shown.origin)}</p>"
    fired = {name: one for name, one in shown.rules.items() if one.records}
    silent = [name for name in shown.rules if name not in fired]
    if not fired:
        yield "<p>No rule acted on any record.</p>"
    yield from _findings(fired)
    if silent:
        yield f'<p class="soft">Acted on no record: {escape(", ".join(silent))}.</p>'


def _findings(found: Mapping[str, Finding]) -> Iterator[str]:
    by_size = sorted(found.items(), key=lambda pair: (-pair[1].records, pair[0]))
    for name, one in by_size:
        yield f"<h3>{escape(name)}: {one.records:,}</h3>"
        if one.description:
            yield f"<p>{escape(one.description)}</p>"
        examples = [_example(example) for example in one.examples]
        yield from examples[:1]
        if examples[1:]:
            yield details(f"{len(examples) - 1} more", "".join(examples[1:]))


def _example(example: Mapping[str, str]) -> str:
    head = f'<p class="soft">{escape(example.get("where", ""))}</p>'
    if diff := example.get("diff"):
        return f'{head}<pre class="diff">{"".join(map(_diff_line, diff.splitlines()))}</pre>'
    text = example.get("text", "")
    shown = f"<pre>{escape(text[:_SHOWN_CHARS])}</pre>" if text else ""
    return f"{head}<p>{escape(example.get('reason', ''))}</p>{shown}"


def _diff_line(line: str) -> str:
    """The sign stays in the text: colour alone says nothing to many."""
    tag = {"+": "ins", "-": "del"}.get(line[:1])
    return f"<{tag}>{escape(line)}</{tag}>" if tag else f"{escape(line)}\n"


def _duplicates(shown: Preview) -> Iterator[str]:
    if not shown.duplicates:
        yield "<p>No two records are identical.</p>"
        return
    cells = [[escape(one), escape(other)] for one, other in shown.duplicates[:_SHOWN_DUPLICATES]]
    more = len(shown.duplicates) - len(cells)
    yield table(["record", "is identical to"], cells, label="Identical records", words=(1,))
    if more > 0:
        yield f"<p>And {more:,} more.</p>"


def _refusals(shown: Preview) -> Iterator[str]:
    yield (
        f"<p>Of the items of the plan {shown.items_accepted:,} have a record and "
        f"{shown.items_dropped:,} were dropped.</p>"
    )
    yield from _findings(shown.refusals)


def _samples(shown: Preview) -> Iterator[str]:
    for name, kind in sorted(shown.kinds.items())[:_MOST_KINDS]:
        yield f"<h3>{escape(name)}</h3>"
        yield _lengths(name, kind)
        samples = "".join(
            f'<div><p class="soft">{escape(where)}</p>{_prompt(record.prompt)}'
            f"<blockquote>{escape(_cut(record.response))}</blockquote></div>"
            for where, record in kind.samples
        )
        yield f'<div class="samples">{samples}</div>'


def _prompt(prompt: str) -> str:
    return f"<pre>{escape(_cut(prompt))}</pre>" if prompt else ""


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _lengths(name: str, kind: Kind) -> str:
    """A histogram of the lengths; those beyond the 99th percentile are in the last bar."""
    lengths = sorted(kind.lengths)
    step = lengths[(len(lengths) - 1) * 99 // 100] // _BARS + 1
    top = step * _BARS
    edges = [step * index for index in range(_BARS + 1)]
    counts = _counts(lengths, top)
    title = (
        f"Lengths of {name}: from {lengths[0]:,} to {lengths[-1]:,} characters, median "
        f"{statistics.median(lengths):,.0f}"
    )
    note = "Characters of the responses"
    chart = histogram(counts, edges, title=title)
    return f"<figure>{chart}<figcaption>{note}</figcaption></figure>"


def _counts(lengths: Sequence[int], top: int) -> list[int]:
    counts = [0] * _BARS
    for length in lengths:
        counts[min(_BARS - 1, length * _BARS // top)] += 1
    return counts
