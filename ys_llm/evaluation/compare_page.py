"""The page of a comparison: one HTML file that needs nothing else, no script and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from ys_llm.evaluation.compare import cell
from ys_llm.evaluation.learning_curves import Curve, chart
from ys_llm.evaluation.verdicts import SIGNIFICANT, Comparison, Verdict
from ys_llm.system.page import COLOURS, document, table

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
_RATES = {
    "run": "configuration",
    "learning_rate": "learning rate",
    "bits_per_byte": "bits per byte, first seed",
    "chosen": "chosen",
}
_WORDS = {"chosen", "against", "layers", "verdict", "commit", "hardware", "command"}
_MEANS = "Means over seeds, ± standard deviation"
_STYLE = """
.answer { background: var(--panel); border-left: 4px solid var(--c0); padding: .75rem 1.25rem; }
.answer p { margin: .35rem 0; } .answer p:first-child { font-size: 1.15rem; font-weight: 600; }
"""


def page(comparison: Comparison, curves: Sequence[Curve], *, measure: str) -> str:
    """The whole page; `measure` says what the curves show."""
    names = [one.run for one in comparison.configurations]
    seeds = ", ".join(map(str, comparison.seeds))
    budget = comparison.budget or "as configured"
    title = " or ".join(names)
    return document(
        title,
        [
            f"<h1>{escape(title)}?</h1>",
            f'<p class="soft">Seeds {seeds}; budget of each run: {escape(budget)}; '
            f"{escape(_hardware(comparison))}.</p>",
            '<div class="answer">',
            *(f"<p>{escape(sentence)}</p>" for sentence in comparison.conclusion),
            "</div>",
            _table(comparison.configurations, _STANDINGS, names, heading=_MEANS),
            _table(comparison.verdicts, _VERDICTS, names, heading="Verdicts"),
            f'<p class="soft">{escape(RULE)}</p>',
            f'<h2>{escape(measure)}</h2>\n<div class="charts">',
            *_charts(curves, names),
            "</div>",
            *(
                [_table(comparison.rates, _RATES, names, heading="Learning rates that were tried")]
                if comparison.rates
                else []
            ),
            _table(comparison.runs, _RUNS, [], heading="The runs, and how to repeat each"),
        ],
        style=_STYLE,
    )


def _hardware(comparison: Comparison) -> str:
    return "; ".join(dict.fromkeys(run.hardware for run in comparison.runs))


def _charts(curves: Sequence[Curve], names: Sequence[str]) -> Iterator[str]:
    for axis in ("tokens", "seconds", "FLOPs"):
        drawing = chart(curves, names, axis=axis)
        yield f"<figure>{drawing}<figcaption>against {axis} of training</figcaption></figure>"


def _table(
    rows: Sequence[Any], columns: dict[str, str], names: Sequence[str], *, heading: str
) -> str:
    words = [number for number, name in enumerate(columns) if name in _WORDS]
    cells = [[_cell(row, name, names) for name in columns] for row in rows]
    shown = table(list(columns.values()), cells, label=heading, words=words)
    return f"<h2>{escape(heading)}</h2>\n{shown}"


def _cell(row: Any, name: str, names: Sequence[str]) -> str:
    text = escape(cell(name, getattr(row, name)))
    if name == "command":
        return f"<code>{text}</code>"
    if name in ("run", "against") and getattr(row, name) in names:
        return f'<b class="s{names.index(getattr(row, name)) % COLOURS}">{text}</b>'
    if name == "verdict" and isinstance(row, Verdict):
        return f"<b>{text}</b>"
    return text
