"""One page with the curves of several runs, and what their settings differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ys_llm.config.sources import load_config, to_mapping
from ys_llm.config.strict_reader import flatten
from ys_llm.config.yaml_io import dump_inline
from ys_llm.errors import UserError, command_line
from ys_llm.runs.history import METRICS, read_metrics, read_object
from ys_llm.runs.report_curves import binned, dotted, number, with_speed
from ys_llm.system.charts import Kind, Series, line_chart
from ys_llm.system.page import COLOURS, READING_STYLE, document, table

_CURVES: Mapping[str, tuple[str, Kind]] = {
    "loss": ("Training loss, nats per token", "log"),
    "val_bits_per_byte": ("Bits per byte of the held-out text", "log"),
    "val_names_again_loss": ("Names again, nats per token", "zero"),
    "learning_rate": ("Learning rate", "zero"),
    "tokens_per_second": ("Tokens per second", "zero"),
}


@dataclass(frozen=True)
class _Run:
    name: str
    rows: Sequence[Mapping[str, Any]]
    described: Mapping[str, Any]
    settings: Mapping[str, Any]


def comparison_page(folders: Sequence[Path]) -> str:
    """The page of several runs, in the order given."""
    runs = [_read(folder) for folder in folders]
    names = " and ".join(run.name for run in runs)
    advised = command_line("compare", "ONE", "OTHER", seeds=3)
    body = [
        f'<header><p class="soft">Curves of several runs</p><h1>{escape(names)}</h1>',
        f"<p>One seed each says little: <code>{advised}</code> trains several, and says what "
        "they show.</p></header>\n<main>",
        "<h2>Figures</h2>",
        _figures(runs),
        '<h2>Curves</h2><div class="charts">',
        *_charts(runs),
        "</div>\n<h2>Settings that differ</h2>",
        _differences(runs),
        "</main>",
    ]
    return document(names, body, style=READING_STYLE)


def _read(folder: Path) -> _Run:
    try:
        settings = flatten(to_mapping(load_config(folder / "config.yaml").config))
    except UserError:
        settings = {}
    rows = with_speed(read_metrics(folder / METRICS))
    return _Run(folder.name, rows, read_object(folder / "config.json"), settings)


def _figures(runs: Sequence[_Run]) -> str:
    cells = [[_name(run.name, index), *_row(run)] for index, run in enumerate(runs)]
    columns = ["run", "parameters", "steps", "tokens", "minutes", "bits per byte", "names again"]
    return table(columns, cells, label="Figures of the runs")


def _name(name: str, index: int) -> str:
    return f'<b class="s{index % COLOURS}">{escape(name)}</b>'


def _row(run: _Run) -> Iterator[str]:
    last = run.rows[-1] if run.rows else {}
    yield _shown(run.described.get("parameters"), ",")
    yield _shown(last.get("step"), ",")
    yield _shown(last.get("tokens"), ",")
    yield f"{number(last, 'seconds') / 60:.1f}" if "seconds" in last else ""
    yield _shown(run.described.get("val_bits_per_byte"), ".4f")
    names = [row["val_names_again_loss"] for row in run.rows if "val_names_again_loss" in row]
    yield _shown(names[-1] if names else None, ".2f")


def _shown(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def _charts(runs: Sequence[_Run]) -> Iterator[str]:
    for name, (title, kind) in _CURVES.items():
        series = [one for index, run in enumerate(runs) for one in _curve(run, name, index)]
        if series:
            chart = line_chart(series, title=title, axis="tokens", kind=kind)
            note = "against tokens of training"
            yield f"<figure><h3>{title}</h3>{chart}<figcaption>{note}</figcaption></figure>"


def _curve(run: _Run, name: str, colour: int) -> list[Series]:
    if name.startswith("val_"):
        return dotted(run.rows, name, run.name, colour=colour, axis="tokens")
    if not run.rows:
        return []
    return [binned(run.rows, name, run.name, colour=colour, banded=False, axis="tokens")]


def _differences(runs: Sequence[_Run]) -> str:
    every = dict.fromkeys(name for run in runs for name in run.settings if name != "run")
    names = [name for name in every if len({repr(run.settings.get(name)) for run in runs}) > 1]
    if not names:
        return "<p>None.</p>"
    cells = [
        [f"<code>{name}</code>", *(escape(dump_inline(r.settings.get(name))) for r in runs)]
        for name in names
    ]
    columns = ["setting", *(run.name for run in runs)]
    return table(columns, cells, label="Settings that differ", long=range(1, len(columns)))
