"""The tables of README.md and docs/speed.md, written from the result files of all classes.

A text holds `<!-- speed: NAME -->`, what is replaced, and `<!-- /speed -->`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import figure
from benchmarks.bars import BARS, FILES, Bars
from benchmarks.layer import SHAPES
from benchmarks.machine import ROOT, matmul_name, rate
from benchmarks.rounds import Group
from benchmarks.targets import Target, groups_of, judge, table
from benchmarks.training import LENGTHS, LLAMA, OURS, PARTS
from ys_llm.errors import UserError
from ys_llm.system.files import write_atomically

PAGES = ("README.md", "docs/speed.md")
WIDEST = f"layer {SHAPES[0]}"
_BLOCK = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- /speed -->)", re.DOTALL)
_MISSING = "–"


@dataclass(frozen=True)
class Result:
    """One result file: `name` is that of the file, without folder and suffix."""

    name: str
    report: Mapping[str, Any]

    @cached_property
    def groups(self) -> dict[str, Group]:
        """By name."""
        return groups_of(self.report)

    @cached_property
    def targets(self) -> dict[str, Target]:
        """By key."""
        return {target.key: target for target in judge(self.report)}

    @property
    def bars(self) -> Bars:
        """Those of the processor's class."""
        return BARS[self.report["class"]]

    @property
    def title(self) -> str:
        """Processor and class; plainly, where the processor has more than it was allowed."""
        processor = self.report["processor"].replace("(R)", "").replace(" Processor", "")
        if self.report["restricted_to"]:
            return f"{processor} restricted to {self.report['restricted_to']}"
        return f"{processor}, {self.report['class']}"

    def tokens_per_second(self, group: str, case: str) -> str:
        """The median speed of a case, or a dash."""
        found = self.groups.get(group)
        if found is None or case not in found.seconds:
            return _MISSING
        tokens = found.facts["tokens"]
        n_tokens = tokens[case] if isinstance(tokens, dict) else tokens
        return f"{n_tokens / statistics.median(found.seconds[case]):,.0f}"

    def figure(self, key: str) -> str:
        """A target's figure, with its bar where that is missed."""
        target = self.targets.get(key)
        if target is None or not target.values:
            return _MISSING
        missed = "" if target.met else f" (bar: {target.bar:g})"
        unit = " %" if target.unit == "%" else ""
        return f"{target.figure:.{0 if unit else 1}f}{unit}{missed}"


def read(path: Path) -> dict[str, Any]:
    """A saved report; UserError where there is none."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "Make it: python -m benchmarks layer --out FILE"
        ) from error
    return report


def results(folder: Path = ROOT / "benchmarks") -> list[Result]:
    """The result files that exist, in the order of the classes."""
    paths = [folder / name for name in FILES.values()]
    return [Result(path.stem, read(path)) for path in paths if path.exists()]


def blocks(found: Sequence[Result]) -> dict[str, str]:
    """The text of each marked place."""
    details = "\n\n".join("\n\n".join(_details(result)) for result in found)
    short = [list(_ROWS)[number] for number in _SHORT]
    return {
        "short": side_by_side(found, {name: _ROWS[name] for name in short}),
        "classes": side_by_side(found, _ROWS),
        "details": details,
    }


def show() -> Iterator[str]:
    """All generated texts."""
    yield from blocks(results()).values()


def rewritten(text: str, texts: Mapping[str, str]) -> str:
    """A page with its marked places filled."""
    return _BLOCK.sub(lambda place: f"{place[1]}{texts[place[2]]}\n{place[3]}", text)


def write(root: Path) -> Iterator[str]:
    """Fill the pages, draw the figures; yields the path of each."""
    found = results(root / "benchmarks")
    texts = blocks(found)
    for name in PAGES:
        page = root / name
        write_atomically(page, rewritten(page.read_text(encoding="utf-8"), texts))
        yield name
    for result in found:
        write_atomically(root / "benchmarks" / f"{result.name}.svg", figure.svg(result.report))
        yield f"benchmarks/{result.name}.svg"


def side_by_side(found: Sequence[Result], rows: Mapping[str, Callable[[Result], str]]) -> str:
    """One column for each class."""
    titles = [result.title for result in found]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(found)}"]
    lines += [f"| {name} | {' | '.join(map(cell, found))} |" for name, cell in rows.items()]
    return "\n".join(lines)


def _layer(result: Result) -> str:
    group = result.groups.get(WIDEST)
    case = "" if group is None else group.facts["default"]
    return result.tokens_per_second(WIDEST, case)


def _large_matmul(result: Result) -> str:
    return f"{rate(result.groups['machine'], matmul_name(result.bars.dtype)) / 1e9:,.0f}"


def _over_llama(seq_len: int) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        group = f"training T {seq_len}"
        if group not in result.groups or "note" in result.groups[group].facts:
            return _MISSING
        return result.figure(f"{group} / {LLAMA} {result.bars.dtype}")

    return cell


def _generated(case: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        found = result.groups.get("generation")
        cases = {} if found is None else found.facts["cases"]
        return result.tokens_per_second("generation", cases[case]) if case in cases else _MISSING

    return cell


_ROWS: dict[str, Callable[[Result], str]] = {
    "dtype of the matmuls in training": lambda r: r.bars.dtype,
    "large matmul of that dtype, GFLOP/s": _large_matmul,
    "layer with a state of 1,024, forward and backward, tokens/s": _layer,
    "… times `nn.LSTM`": lambda r: r.figure(f"{WIDEST} / LSTM"),
    "… times the same without a compiler": lambda r: r.figure(f"{WIDEST} / windowed"),
    "… of the large matmul": lambda r: r.figure(f"{WIDEST} share"),
    "training the default model, tokens/s": lambda r: r.tokens_per_second(
        f"training T {LENGTHS[0]}", f"{OURS} {r.bars.dtype}"
    ),
    **{f"… times the Llama block, {n:,} tokens a row": _over_llama(n) for n in LENGTHS},
    "training the quickstart's model, tokens/s": lambda r: r.tokens_per_second(
        "step quickstart", "step"
    ),
    "… of the large matmul, all of a step counted": lambda r: r.figure("step share quickstart"),
    "generation with 10 million weights, tokens/s": _generated("near"),
    "… of the bound by memory": lambda r: r.figure("memory bound"),
    "… 64 texts at once": _generated("texts"),
}
_SHORT = (0, 2, 3, 6, 7, 8, 9, 11, 13)  # of those rows, in README.md


def _details(result: Result) -> Iterator[str]:
    """The section of one class: how it was measured, its figure, and all of its tables."""
    report = result.report
    yield f"### {result.title}"
    yield (
        f"![Tokens per second of one layer, forward and backward, compared with torch's recurrent "
        f"layers](../benchmarks/{result.name}.svg)"
    )
    yield (
        f"`benchmarks/{result.name}.json`, written by `{report['command']}` at commit "
        f"{report['commit']} on {report['date'][:10]}: {report['threads']} threads, torch "
        f"{report['torch']}, {report['compiler']}. Figures in {result.bars.dtype} are judged."
    )
    if report["restricted_to"]:
        yield (
            f"This processor has more than {report['restricted_to']}: `ys`, torch and torch's "
            f"libraries were kept to {report['restricted_to']} for this file. Its clock, caches "
            "and memory are those of a newer processor than any that stops there."
        )
    yield table(list(result.targets.values()))
    training = {name: g for name, g in result.groups.items() if name.startswith("training ")}
    if training:
        yield "Training steps of 8,192 tokens, tokens/s:"
        yield _training(result, training)
    steps = {name: g for name, g in result.groups.items() if name.startswith("step ")}
    if steps:
        yield "Where the time of a step goes, in percent:"
        yield _steps(result, steps)
    notes = list(_notes(result))
    if notes:
        yield "\n".join(notes)


def _training(result: Result, groups: Mapping[str, Group]) -> str:
    cases = dict.fromkeys(case for group in groups.values() for case in group.facts["tokens"])
    heads = [name.removeprefix("training ") for name in groups]
    lines = [f"| | parameters | {' | '.join(heads)} |", f"|---|---:|{'---:|' * len(heads)}"]
    for case in cases:
        facts = next(g.facts[case] for g in groups.values() if case in g.facts)
        speeds = [result.tokens_per_second(name, case) for name in groups]
        lines.append(f"| {case} | {facts['parameters']:,} | {' | '.join(speeds)} |")
    return "\n".join(lines)


def _steps(result: Result, groups: Mapping[str, Group]) -> str:
    names = [*PARTS, "rest"]
    lines = [f"| | tokens/s | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    for name, group in groups.items():
        whole = statistics.median(group.seconds["step"])
        parts = {
            part: 100 * statistics.median(group.seconds[part]) / whole
            for part in PARTS
            if part in group.seconds
        }
        parts["rest"] = 100 - sum(parts.values())
        cells = [f"{parts[part]:.1f}" if part in parts else _MISSING for part in names]
        speed = result.tokens_per_second(name, "step")
        lines.append(f"| {name.removeprefix('step ')} | {speed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _notes(result: Result) -> Iterator[str]:
    """What was made smaller or left out for want of time, or measured in another way."""
    for name, group in result.groups.items():
        if "note" in group.facts:
            yield f"- {name}: {group.facts['note']}."
        for case, why in group.facts.get("left_out", {}).items():
            yield f"- {name}, {case}: not timed, {why}."
