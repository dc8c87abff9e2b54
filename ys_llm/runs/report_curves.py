"""The curves of a run's report: metrics.jsonl as charts and as a table of evaluations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ys_llm.system.charts import Level, Series, line_chart
from ys_llm.system.page import details, table

Row = Mapping[str, Any]
_BINS = 200  # of a curve over all steps: more than a chart has room for
_TABLE_ROWS = 200  # of the evaluations
_EVALUATION = {
    "step": "step",
    "tokens": "tokens",
    "val_loss": "held-out loss",
    "val_bits_per_byte": "bits per byte",
    "val_names_again_loss": "names again",
}


def curves(rows: Sequence[Row], baselines: Mapping[str, float]) -> Iterator[str]:
    """The charts of a run, and its evaluations as a table."""
    if not rows:
        yield "<p>No step was recorded yet.</p>"
        return
    yield f'<div class="charts">{"".join(_charts(rows, baselines))}</div>'
    yield from _evaluations(rows)


def _charts(rows: Sequence[Row], baselines: Mapping[str, float]) -> Iterator[str]:
    held_out = dotted(rows, "val_loss", "held out", colour=1)
    yield _figure(
        "Loss",
        "Nats per token. The band holds all steps, the line is their mean.",
        line_chart(
            [binned(rows, "loss", "training"), *held_out], title="Loss", axis="step", kind="log"
        ),
    )
    if bits := dotted(rows, "val_bits_per_byte", "model", colour=1):
        levels = [Level(name, value) for name, value in baselines.items()]
        chart = line_chart(bits, title="Bits per byte", axis="step", kind="log", levels=levels)
        note = "Of the held-out text." + (" Dashed: what simple predictors reach." * bool(levels))
        yield _figure("Bits per byte", note, chart)
    if names := dotted(rows, "val_names_again_loss", "names again", colour=1):
        chart = line_chart(names, title="Names again", axis="step", kind="zero")
        note = "Nats per token of names that their document has named before: what is remembered."
        yield _figure("Names again", note, chart)
    yield from _step_charts(rows)


def _step_charts(rows: Sequence[Row]) -> Iterator[str]:
    rate = line_chart(
        [binned(rows, "learning_rate", "learning rate", banded=False)],
        title="Learning rate",
        axis="step",
        kind="zero",
    )
    yield _figure("Learning rate", "", rate)
    norm = binned(rows, "grad_norm", "gradient norm")
    chart = line_chart([norm], title="Gradient norm", axis="step", kind="log")
    yield _figure("Gradient norm", "Before clipping.", chart)
    speed = binned(with_speed(rows), "tokens_per_second", "tokens per second", banded=False)
    chart = line_chart([speed], title="Tokens per second", axis="step", kind="zero")
    yield _figure("Tokens per second", "Of the steps alone.", chart)


def _figure(name: str, note: str, chart: str) -> str:
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(name)}</h3>{chart}{caption}</figure>"


def binned(
    rows: Sequence[Row],
    value: str,
    name: str,
    *,
    colour: int = 0,
    banded: bool = True,
    axis: str = "step",
) -> Series:
    """The mean of a value over bins of steps, and a band from the least to the greatest of each."""
    points, band = [], []
    for begin, end in _bins(len(rows)):
        found = [number(row, value) for row in rows[begin:end]]
        values = [one for one in found if math.isfinite(one)]
        if values:
            at = number(rows[end - 1], axis)
            points.append((at, math.fsum(values) / len(values)))
            band.append((at, min(values), max(values)))
    shown = tuple(band) if banded and len(rows) > len(points) else ()
    return Series(name, tuple(points), colour, shown)


def _bins(count: int) -> list[tuple[int, int]]:
    n_bins = min(_BINS, count)
    edges = [count * index // n_bins for index in range(n_bins + 1)] if n_bins else [0]
    return list(itertools.pairwise(edges))


def dotted(
    rows: Sequence[Row], name: str, label: str, *, colour: int = 0, axis: str = "step"
) -> list[Series]:
    """The rows that have this value, one dot each; none where no row has it."""
    points = tuple((number(row, axis), number(row, name)) for row in rows if name in row)
    return [Series(label, points, colour, is_dotted=len(points) <= _BINS)] if points else []


def number(row: Row, name: str) -> float:
    """A value of a row as a number; NaN for anything else."""
    found = row.get(name)
    return float(found) if isinstance(found, int | float) else math.nan


def with_speed(rows: Sequence[Row]) -> list[Row]:
    """The rows with `tokens_per_second`, of the tokens since the row before."""
    before = itertools.chain([0.0], (number(row, "tokens") for row in rows))
    return [
        {**row, "tokens_per_second": (number(row, "tokens") - tokens) / seconds}
        if (seconds := number(row, "step_seconds")) > 0
        else row
        for row, tokens in zip(rows, before, strict=False)
    ]


def _evaluations(rows: Sequence[Row]) -> Iterator[str]:
    evaluated = [row for row in rows if "val_loss" in row][-_TABLE_ROWS:]
    columns = [name for name in _EVALUATION if any(name in row for row in evaluated)]
    if not evaluated:
        return
    cells = [[_cell(row.get(name)) for name in columns] for row in evaluated]
    names = [_EVALUATION[name] for name in columns]
    yield details("Evaluations as a table", table(names, cells, label="Evaluations"))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else ""
