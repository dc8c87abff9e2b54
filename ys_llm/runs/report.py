"""A run's report: report.html, one file that works offline, written while training goes on.

It shows what the run's folder holds (metrics.jsonl, config.yaml, config.json, rollbacks.json,
post-mortem/) and report.json, which training writes beside it. What is missing is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from ys_llm import __version__
from ys_llm.config.sources import load_config, to_mapping
from ys_llm.config.strict_reader import flatten
from ys_llm.errors import UserError, command_line
from ys_llm.runs import report_sections as sections
from ys_llm.runs.folder import REPORT
from ys_llm.runs.history import (
    METRICS,
    ROLLBACKS,
    evaluations,
    post_mortems,
    read_facts,
    read_metrics,
    read_object,
)
from ys_llm.runs.report_curves import curves
from ys_llm.system.files import write_atomically
from ys_llm.system.page import READING_STYLE, contents, document, figures

DONE, TRAINING = "done", "training"
Section = tuple[str, str, Callable[[], Iterable[str]]]  # id, heading, content


def write_report(folder: Path) -> Path:
    """Write a run's report.html as its files are now; returns the path."""
    path = folder / REPORT
    write_atomically(path, report_page(folder), create_folder=False)
    return path


def report_page(folder: Path) -> str:
    """The page of a run."""
    facts, rows = read_facts(folder), read_metrics(folder / METRICS)
    described = read_object(folder / "config.json")
    shown = _sections(folder, facts, rows, described)
    body = [
        "<header>",
        '<p class="soft">Training report</p>',
        f"<h1>{escape(folder.name)}</h1>",
        f"<p>{escape(_summary(facts, rows, described))}</p>",
        figures(_figures(facts, rows, described)),
        contents({name: heading for name, heading, _ in shown}),
        "</header>\n<main>",
        *(part for section in shown for part in _section(*section)),
        f"</main>\n{_footer(folder)}",
    ]
    return document(f"{folder.name}: training report", body, style=READING_STYLE)


def _sections(
    folder: Path,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
) -> list[Section]:
    text = {"sources": described.get("sources"), **sections.mapped(facts, "corpus")}
    found: list[Section] = [
        ("curves", "Curves", partial(curves, rows, _baselines(facts))),
        ("samples", "Samples", partial(sections.samples, rows, str(facts.get("prompt", "")))),
        ("memory", "Memory", partial(sections.memory, facts)),
        ("text", "Text", partial(sections.corpus, {"corpus": text})),
        ("settings", "Settings", partial(_settings, folder, facts)),
        ("machine", "Machine and time", partial(sections.machine, facts)),
    ]
    if results := evaluations(folder):
        content = partial(sections.evaluations, results)
        found.insert(3, ("evaluations", "Evaluations", content))
    rollbacks = sections.listed(read_object(folder / ROLLBACKS), "rollbacks")
    diagnoses, end = list(post_mortems(folder)), _bad_end(facts)
    if rollbacks or diagnoses or end:
        content = partial(sections.post_mortem, rollbacks, diagnoses, end)
        at = 0 if end else len(found)
        found.insert(at, ("post-mortem", "Post-mortem", content))
    return found


def _baselines(facts: Mapping[str, Any]) -> dict[str, float]:
    found = sections.mapped(facts, "baselines")
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _bad_end(facts: Mapping[str, Any]) -> str:
    """How the run ended, unless it goes on, is done, or was stopped to be resumed."""
    return str(facts.get("status", "")) if facts.get("ended_badly") else ""


def _section(name: str, heading: str, content: Callable[[], Iterable[str]]) -> Iterator[str]:
    """A section under its heading; a damaged file costs its section, not the page."""
    yield f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>'
    try:
        yield "\n".join(content())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = escape(f"{type(error).__name__}: {error}")
        yield f"<p>Cannot be shown: a file of this run is damaged ({found}).</p>"
    yield "</section>"


def _summary(
    facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], described: Mapping[str, Any]
) -> str:
    """What was trained, in one or two sentences."""
    layers = sections.listed(described, "layers") or sections.listed(facts, "layers")
    n_layers = described.get("n_layers") or len(layers)
    plural = "layer" if n_layers == 1 else "layers"
    mixers = f", {n_layers} {plural} of {', '.join(map(str, layers))}" if layers else ""
    n_parameters = _count(described.get("parameters") or facts.get("parameters"))
    text = sections.mapped(facts, "corpus").get("path")
    last = rows[-1] if rows else {}
    steps, total = _count(last.get("step", 0)), facts.get("total_steps")
    steps += f" of {total:,}" if isinstance(total, int) else ""
    tokens, on_text = _count(last.get("tokens", 0)), f" on {text}" if text else ""
    trained = f"trained{on_text} for {steps} steps, {tokens} tokens"
    return f"{n_parameters} parameters{mixers}; {trained}. {_status(facts)}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unknown number of"


def _status(facts: Mapping[str, Any]) -> str:
    status = str(facts.get("status", ""))
    if status == TRAINING:
        return "Training went on when this was written."
    return "Training is done." if status == DONE else status[:1].upper() + status[1:]


def _figures(
    facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], described: Mapping[str, Any]
) -> dict[str, str]:
    """The figures at the head of the page; those that are unknown are left out."""
    result, baselines = sections.mapped(facts, "result"), _baselines(facts)
    bits = result.get("bits_per_byte") or described.get("val_bits_per_byte")
    names = [row["val_names_again_loss"] for row in rows if "val_names_again_loss" in row]
    found: dict[str, str] = {}
    if isinstance(bits, float):
        found["bits per byte, held out"] = f"{bits:.4f}"
    if baselines:
        name = min(baselines, key=lambda one: baselines[one])
        found[f"bits per byte of {name}"] = f"{baselines[name]:.3f}"
    if names:
        found["nats on names again"] = f"{names[-1]:.2f}"
    return found | _costs(facts, rows[-1] if rows else {})


def _costs(facts: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, str]:
    """Speed, time and energy, as far as they are known."""
    seconds, tokens = last.get("seconds"), last.get("tokens")
    found: dict[str, str] = {}
    if isinstance(seconds, float) and isinstance(tokens, int) and seconds > 0:
        found["tokens per second"] = f"{tokens / seconds:,.0f}"
        found["minutes of training"] = f"{seconds / 60:.1f}"
    sessions = [one for one in sections.listed(facts, "sessions") if isinstance(one, dict)]
    joules = [one.get("joules") for one in sessions]
    known = [one for one in joules if isinstance(one, int | float)]
    if known and len(known) == len(joules):
        found["energy of the processors"] = sections.energy(sum(known))
    return found


def _settings(folder: Path, facts: Mapping[str, Any]) -> Iterable[str]:
    try:
        config = load_config(folder / "config.yaml").config
    except UserError as error:
        return [f"<p>{escape(error.problem)}</p>"]
    return sections.settings(flatten(to_mapping(config)), sections.mapped(facts, "origins"))


def _footer(folder: Path) -> str:
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    refresh = command_line("report", folder.name)
    return (
        f'<footer class="soft"><p>Written by ys {__version__}, {written}. To write it again, type: '
        f"<code>{escape(refresh)}</code></p></footer>"
    )
