"""The sections of a run's report but its curves: what it wrote, remembers, read, and ran on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ys_llm.config.schema import Config
from ys_llm.config.shipped import shipped_folder
from ys_llm.config.strict_reader import field_helps, flatten, to_plain
from ys_llm.config.yaml_io import dump_inline
from ys_llm.system.charts import Series, line_chart
from ys_llm.system.page import details, table

Facts = Mapping[str, Any]
_SAMPLES = 8
_SAMPLE_CHARS = 1_500
_SOURCES = 100  # rows of a corpus' sources
_SESSIONS = 20
_DIGEST_CHARS = 12
_LOSSES = 8  # before a bad step
DEFAULT = "default"


def samples(rows: Sequence[Facts], prompt: str) -> Iterator[str]:
    """Texts that the model wrote while it was trained: the first, the last, some between."""
    found = [row for row in rows if isinstance(row.get("sample"), str)]
    if not found:
        yield "<p>None was written: see <code>train.sample_interval</code>.</p>"
        return
    if prompt:
        yield f'<p class="soft">Prompt: {escape(prompt.strip()[:300])}</p>'
    for row in spread(found, _SAMPLES):
        yield f"<h3>Step {row['step']:,}</h3>"
        yield f"<blockquote>{escape(row['sample'].strip()[:_SAMPLE_CHARS])}</blockquote>"


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items: the first, the last and some evenly between them."""
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def memory(facts: Facts) -> Iterator[str]:
    """Statistics of the state by tier, and the loss by position."""
    state, positions = listed(facts, "state"), listed(facts, "by_position")
    if not state and not positions:
        yield "<p>Not measured yet.</p>"
    if state:
        yield from _state(state)
    if positions:
        yield from _by_position(positions)


def _state(rows: Sequence[Facts]) -> Iterator[str]:
    """A row for each part of the state, a pair of columns for each moment."""
    moments = list(dict.fromkeys(row["tokens"] for row in rows))
    parts: dict[tuple[str, str], dict[int, Facts]] = {}
    for row in rows:
        parts.setdefault((row["layer"], row["part"]), {})[row["tokens"]] = row
    columns = ["part of the state", "numbers"]
    columns += [f"{what} at {n:,}" for n in moments for what in ("size", "change")]
    cells = [
        [
            escape(f"{layer}, {part.replace('_', ' ')}"),
            f"{max(row['numbers'] for row in found.values()):,}",
            *(text for moment in moments for text in _moment(found.get(moment, {}))),
        ]
        for (layer, part), found in parts.items()
    ]
    yield (
        "<p>One held-out document is read from a fresh state. Size is the root mean square of "
        "each part after so many tokens; change is how much of it is new since the column "
        "before, as a share of its norm.</p>"
    )
    yield table(columns, cells, label="State by tier")


def _moment(row: Facts) -> list[str]:
    change = row.get("change")
    size = f"{row['rms']:.3g}" if "rms" in row else ""
    return [size, "" if change is None else f"{change:.0%}"]


def _by_position(rows: Sequence[Facts]) -> Iterator[str]:
    points = tuple((float(row["last"] + 1), float(row["loss"])) for row in rows)
    chart = line_chart(
        [Series("loss", points, 1, is_dotted=True)], title="Loss by position", axis="token"
    )
    note = "Nats per token by the distance from a fresh state; the first is the trained length."
    yield f'<div class="charts"><figure><h3>Loss by position</h3>{chart}'
    yield f"<figcaption>{note}</figcaption></figure></div>"
    cells = [[f"{r['first']:,} to {r['last']:,}", f"{r['loss']:.4f}"] for r in rows]
    shown = table(["tokens after a fresh state", "loss"], cells, label="Loss by position")
    yield details("Loss by position as a table", shown)


def evaluations(results: Sequence[Facts]) -> Iterator[str]:
    """What was measured of the model, a table for each task."""
    for result in results:
        rows = result["rows"][:_SOURCES]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        task, step = str(result.get("task", "")), result.get("step", "?")
        yield f"<h3>{escape(task)}</h3>"
        yield f'<p class="soft">{escape(str(result.get("about", "")))}; weights of step {step}.</p>'
        cells = [[escape(_measured(row.get(name))) for name in columns] for row in rows]
        if columns:
            yield table([name.replace("_", " ") for name in columns], cells, label=task)


def _measured(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def corpus(facts: Facts) -> Iterator[str]:
    """What was read: sizes of both sides, the leak check, and who wrote it."""
    found = facts.get("corpus")
    if not isinstance(found, dict):
        raise TypeError("the text is no object")
    if "path" in found:
        yield from _sizes(found)
    yield from _sources(listed(found, "sources"))


def _sizes(found: Facts) -> Iterator[str]:
    """Both sides of the split, and what checks have found."""
    yield f"<p><code>{escape(str(found['path']))}</code></p>"
    sides = [("training", "for training"), ("held_out", "held out")]
    cells = [
        [label, *(f"{found[side].get(unit, 0):,}" for unit in ("documents", "bytes", "tokens"))]
        for side, label in sides
        if isinstance(found.get(side), dict)
    ]
    yield table(["text", "documents", "bytes", "tokens"], cells, label="Sizes of the text")
    notes = {"leak check": found.get("leak_check"), **found.get("notes", {})}
    items = (f"<li>{escape(f'{name}: {note}')}</li>" for name, note in notes.items() if note)
    yield f"<ul>{''.join(items)}</ul>"


def _sources(rows: Sequence[Facts]) -> Iterator[str]:
    if not rows:
        yield "<p>No manifest says who wrote it.</p>"
        return
    cells = [
        [
            escape(row.get("kind") or "not in the manifest"),
            f"{row.get('records', 0):,}",
            escape(_writer(row)),
            f"<code>{escape(str(row.get('recipe', ''))[:_DIGEST_CHARS])}</code>",
        ]
        for row in rows[:_SOURCES]
    ]
    columns = ["kind", "records", "written by", "recipe"]
    yield table(columns, cells, label="Who wrote the text", words=(2, 3))
    if len(rows) > _SOURCES:
        yield f"<p>And {len(rows) - _SOURCES:,} more.</p>"


def _writer(source: Facts) -> str:
    if not source.get("kind"):
        return "unknown"
    digest = str(source.get("model_digest") or "")[:_DIGEST_CHARS]
    return f"{source.get('model') or 'a program'}{f', digest {digest}' if digest else ''}"


def settings(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Every setting with its origin and meaning; those that are not defaults first."""
    defaults = flatten(to_plain(Config()))
    chosen = {
        name: value
        for name, value in values.items()
        if _origin(name, origins) != DEFAULT and (origins or defaults.get(name) != value)
    }
    rest = {name: value for name, value in values.items() if name not in chosen}
    if chosen:
        yield _settings_table(chosen, origins, label="Settings that were given")
    if rest:
        label = "Settings left at their defaults"
        yield details(f"{label}: {len(rest)}", _settings_table(rest, origins, label=label))


def _origin(name: str, origins: Mapping[str, str]) -> str:
    while name and name not in origins:
        name = name.rpartition(".")[0]
    origin, shipped = origins.get(name, "not recorded"), f"{shipped_folder()}{os.sep}"
    return f"configs/{origin.removeprefix(shipped)}" if origin.startswith(shipped) else origin


def _settings_table(values: Mapping[str, Any], origins: Mapping[str, str], *, label: str) -> str:
    helps = field_helps(Config)
    cells = [
        [
            f"<code>{escape(name)}</code>",
            f"<code>{escape(dump_inline(value))}</code>",
            escape(_origin(name, origins)),
            escape(helps.get(name, "")),
        ]
        for name, value in values.items()
    ]
    return table(
        ["setting", "value", "from", "meaning"], cells, label=label, words=(2,), long=(1, 3)
    )


def machine(facts: Facts) -> Iterator[str]:
    """Each session: when, on what, for how long, with how much energy."""
    sessions = listed(facts, "sessions")
    if not sessions:
        yield "<p>Not recorded.</p>"
        return
    cells = [_session(one) for one in sessions[-_SESSIONS:]]
    columns = ["began", "at step", "processor", "computed with", "minutes", "energy"]
    yield table(columns, cells, label="Sessions", words=(5,), long=(2, 3))
    if all(one.get("joules") is None for one in sessions):
        yield (
            '<p class="soft">The energy counters of the processor (RAPL) could not be read; on '
            "many systems only root may.</p>"
        )
    versions = sessions[-1].get("versions")
    if isinstance(versions, dict):
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield f'<p class="soft">{escape(named)}</p>'


def _session(one: Facts) -> list[str]:
    backends = one.get("backends") or {}
    computed = [str(one.get("device", "")), str(one.get("dtype", ""))]
    computed += [f"{one.get('threads', '?')} threads"]
    computed += [f"{mixer}: {backend}" for mixer, backend in backends.items()]
    processor = f"{one.get('processor', '')}, {one.get('cores', '?')} cores"
    return [
        escape(str(one.get("began", ""))),
        f"{one.get('from_step', 0):,}",
        escape(processor),
        escape(", ".join(part for part in computed if part)),
        f"{one.get('seconds', 0.0) / 60:.1f}",
        energy(one.get("joules")),
    ]


def energy(joules: Any) -> str:
    """Joules in words; "unknown" where they were not measured."""
    if not isinstance(joules, int | float):
        return "unknown"
    return f"{joules / 3600:.2f} Wh" if joules >= 360 else f"{joules:.0f} J"


def post_mortem(rollbacks: Sequence[Facts], diagnoses: Sequence[Facts], end: str) -> Iterator[str]:
    """What went wrong: how the run ended, what was rolled back, each bad step's diagnosis."""
    if end:
        yield f'<div class="notice bad"><p><strong>{escape(end)}</strong></p></div>'
    for one in diagnoses[-_SESSIONS:]:
        yield f"<h3>Step {int(one.get('step', 0)):,}: {escape(str(one.get('reason', '')))}</h3>"
        yield f"<p>{escape(str(one.get('sentence', '')))}</p>"
        losses = [f"{loss:.3f}" for loss in listed(one, "recent_losses")[-_LOSSES:]]
        yield (
            f'<p class="soft">Loss before: {", ".join(losses) or "unknown"}; learning rate '
            f"{one.get('learning_rate', '?')}; gradient norm {escape(str(one.get('grad_norm')))}."
            "</p>"
        )
        yield details("Replay this step", f"<pre>{escape(str(one.get('replay', '')))}</pre>")
    if rollbacks:
        cells = [
            [f"{r.get('step', 0):,}", f"{r.get('back_to', 0):,}", escape(str(r.get("reason", "")))]
            for r in rollbacks
        ]
        columns = ["bad step", "back to step", "reason"]
        yield table(columns, cells, label="Rollbacks", long=(2,))


def mapped(facts: Facts, name: str) -> Mapping[str, Any]:
    """A mapping among the facts; empty where there is none."""
    found = facts.get(name)
    return found if isinstance(found, dict) else {}


def listed(facts: Facts, name: str) -> list[Any]:
    """A list among the facts; empty where there is none."""
    found = facts.get(name)
    return found if isinstance(found, list) else []
