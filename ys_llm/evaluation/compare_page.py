"""The page of a comparison: one HTML file that needs nothing else, no script and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from ys_llm.evaluation.compare import cell
from ys_llm.evaluation.learning_curves import COLOURS, Curve, chart
from ys_llm.evaluation.verdicts import SIGNIFICANT, Comparison, Verdict

RULE = (
    f"A configuration is better or worse where its bits per byte differ from the other one's "
    f"with p < {SIGNIFICANT:g} over documents and with p < {SIGNIFICANT:g} over seeds; all else is "
    "not shown."
)
_STANDINGS = {
    "run": "configuration",
    "layers": "layers",
    "bits_per_byte": "bits per byte",
    "names_again": "nats of a name again",
    "tokens_per_second": "tokens/s trained",
    "generated_per_second": "tokens/s generated",
    "peak_memory": "memory of a step",
    "parameters": "parameters",
    "state_bytes": "bytes of state",
    "flops_per_token": "FLOPs a token",
    "tokens": "tokens",
    "seconds": "seconds",
    "learning_rate": "learning rate",
}
_VERDICTS = {
    "run": "configuration",
    "against": "against",
    "verdict": "verdict",
    "difference": "difference, bits per byte",
    "p_over_documents": "p over documents",
    "documents": "documents or parts",
    "p_over_seeds": "p over seeds",
    "seeds": "seeds",
    "seed_deviation": "deviation of seeds",
}
_RUNS = {
    "run": "run",
    "seed": "seed",
    "steps": "steps",
    "bits_per_byte": "bits per byte",
    "commit": "commit",
    "hardware": "hardware",
    "command": "command",
}
_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1a; --soft: #5f5e5a; --line: #d9d7d0;
  --page: #fdfcfa; --panel: #f4f2ed;
  --c0: #2364aa; --c1: #c4500c; --c2: #0b7a5c; --c3: #7a45b5; --c4: #b0246c; --c5: #6d6200; }
@media (prefers-color-scheme: dark) { :root { --text: #e9e7e1; --soft: #a5a39c; --line: #3b3a37;
  --page: #191918; --panel: #232321;
  --c0: #7db4f0; --c1: #f09a5c; --c2: #5fcfa9; --c3: #c09bf0; --c4: #f083b8; --c5: #d2c455; } }
body { background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  max-width: 66rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.answer { background: var(--panel); border-left: 4px solid var(--c0); padding: .75rem 1.25rem; }
.answer p { margin: .35rem 0; } .answer p:first-child { font-size: 1.15rem; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: bottom; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 500; color: var(--soft); white-space: normal; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; flex: 1 1 18rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
code { font-size: .8rem; }
""" + "\n".join(
    f".s{index} {{ color: var(--c{index}); }} svg text.s{index} {{ fill: var(--c{index}); }}"
    for index in range(COLOURS)
)


def page(comparison: Comparison, curves: Sequence[Curve], *, measure: str) -> str:
    """The whole page; `measure` says what the curves show."""
    names = [one.run for one in comparison.configurations]
    seeds = ", ".join(map(str, comparison.seeds))
    budget = comparison.budget or "as configured"
    title = escape(" or ".join(names))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{title}?</h1>",
            f'<p class="soft">Seeds {seeds}; budget of each run: {escape(budget)}; '
            f"{escape(_hardware(comparison))}.</p>",
            '<div class="answer">',
            *(f"<p>{escape(sentence)}</p>" for sentence in comparison.conclusion),
            "</div>\n<h2>Means over seeds, ± standard deviation</h2>",
            _table(comparison.configurations, _STANDINGS, names),
            "<h2>Verdicts</h2>",
            _table(comparison.verdicts, _VERDICTS, names),
            f'<p class="soft">{escape(RULE)}</p>',
            f'<h2>{escape(measure)}</h2>\n<div class="charts">',
            *_charts(curves, names),
            "</div>\n<h2>The runs, and how to repeat each</h2>",
            _table(comparison.runs, _RUNS, []),
            "</body>\n</html>\n",
        ]
    )


def _hardware(comparison: Comparison) -> str:
    return "; ".join(dict.fromkeys(run.hardware for run in comparison.runs))


def _charts(curves: Sequence[Curve], names: Sequence[str]) -> Iterator[str]:
    for axis in ("tokens", "seconds", "FLOPs"):
        drawing = chart(curves, names, axis=axis)
        yield f"<figure>{drawing}<figcaption>against {axis} of training</figcaption></figure>"


def _table(rows: Sequence[Any], columns: dict[str, str], names: Sequence[str]) -> str:
    words = {"against", "layers", "verdict", "commit", "hardware", "command"}
    marks = {name: ' class="words"' if name in words else "" for name in columns}
    head = "".join(f"<th{marks[name]}>{escape(text)}</th>" for name, text in columns.items())
    body = "".join(
        "<tr>"
        + "".join(f"<td{marks[name]}>{_cell(row, name, names)}</td>" for name in columns)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(row: Any, name: str, names: Sequence[str]) -> str:
    text = escape(cell(name, getattr(row, name)))
    if name == "command":
        return f"<code>{text}</code>"
    if name in ("run", "against") and getattr(row, name) in names:
        return f'<b class="s{names.index(getattr(row, name)) % COLOURS}">{text}</b>'
    if name == "verdict" and isinstance(row, Verdict):
        return f"<b>{text}</b>"
    return text
