"""The figures of a report, judged by the bars of its class of processors.

A figure is a ratio of raw times of the same round, or a time; everything is computed from the raw
times alone, so that a saved file can be judged again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bars import AT_LEAST, AT_MOST, BARS, Bars
from benchmarks.layer import LOOP
from benchmarks.machine import matmul_name, rate
from benchmarks.rounds import Group
from benchmarks.training import LLAMA, OURS, PARTS
from ys_llm.ops.accuracy import TOLERANCES

_EXACT_ERROR = TOLERANCES["float32"]


@dataclass(frozen=True)
class Target:
    """`key` names the figure alike on every machine, `what` says how it was measured here.

    `values`: one per round; empty where it was not measured. `bar`: None where it is not judged;
    met at or below it if `at_most`, else at or above.
    """

    key: str
    what: str
    values: list[float]
    bar: float | None
    unit: str = "x"
    at_most: bool = False

    @property
    def figure(self) -> float:
        """The median of the rounds; NaN where nothing was measured."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def met(self) -> bool:
        """Whether the median reaches the bar; true where there is none."""
        if self.bar is None:
            return True
        return self.figure <= self.bar if self.at_most else self.figure >= self.bar

    @property
    def spread(self) -> str:
        """The smallest and the largest of the rounds."""
        return f"{min(self.values):.3g} to {max(self.values):.3g}" if self.values else "-"

    @property
    def verdict(self) -> str:
        """The bar, and whether it is missed."""
        if self.bar is None:
            return "-"
        missed = "not measured" if not self.values else "" if self.met else "not met"
        words = f"{'at most' if self.at_most else 'at least'} {self.bar:g}"
        return f"{words}, {missed}" if missed else words

    def line(self) -> str:
        """Figure, spread and verdict in one line."""
        if not self.values:
            return f"{self.what}: not measured"
        return f"{self.what}: {self.figure:.3g} {self.unit} ({self.spread}), {self.verdict}"


def groups_of(report: Mapping[str, Any]) -> dict[str, Group]:
    """The groups of a saved report by name."""
    return {group["name"]: Group(**group) for group in report["groups"]}


def judge(report: Mapping[str, Any]) -> list[Target]:
    """Every figure that this report gives."""
    bars, found = BARS[report["class"]], groups_of(report)
    targets: list[Target] = []
    for name, group in found.items():
        if name.startswith("layer "):
            targets += _layer(group, found["machine"], bars, report["with_compiler"])
        elif name.startswith("training "):
            targets += _training(group, bars)
        elif name.startswith("step "):
            targets += _step(group, found["machine"], bars)
    if "generation" in found:
        targets += _generation(found["generation"], found["machine"])
    if "data" in found:
        targets += _data(found["data"])
    if "start" in found:
        targets += _start(found["start"])
    return targets


def ratios(group: Group, slow: str, fast: str) -> list[float]:
    """How many times as fast `fast` is as `slow`, in each round; empty if one is missing."""
    pairs = zip(group.seconds.get(slow, []), group.seconds.get(fast, []), strict=False)
    return [a / b for a, b in pairs]


def shares(group: Group, case: str, flops: float, dtype: str, machine: Group) -> list[float]:
    """Percent of the rate of the large matmul, in each round.

    The matmul of the same round counts. A file of before that was measured: that of the machine.
    """
    name, seconds = matmul_name(dtype), group.seconds.get(case, [])
    if name not in group.seconds:
        return [100 * flops / s / rate(machine, name) for s in seconds]
    work = group.facts["work"][name]
    return [
        100 * (flops / s) / (work / limit)
        for s, limit in zip(seconds, group.seconds[name], strict=True)
    ]


def _median(group: Group, case: str) -> float:
    return statistics.median(group.seconds[case])


def _fastest(group: Group, cases: Sequence[str]) -> str:
    """The fastest of those that ran; "" if none did."""
    ran = [case for case in cases if case in group.seconds]
    return min(ran, key=lambda case: _median(group, case), default="")


def _layer(group: Group, machine: Group, bars: Bars, with_compiler: bool) -> Iterator[Target]:
    shape, default = group.facts["shape"], str(group.facts["default"])
    what, key, state = f"{group.name}, {default}", group.name, shape["S"]
    over_loop = ratios(group, LOOP, default)
    if shape["n_heads"] > 1:
        yield Target(
            f"{key} / loop", f"{what} over the literal loop", over_loop, bars.heads_over_loop
        )
        return
    wanted = bars.over_loop if with_compiler else bars.over_loop_without_compiler
    bar = wanted.get(state)
    yield Target(f"{key} / loop", f"{what} over the literal loop", over_loop, bar)
    yield from _against_torch(group, default, bars)
    of = f"of the large {matmul_name(bars.dtype)}"
    values = shares(group, default, group.facts["flops"], bars.dtype, machine)
    yield Target(f"{key} share", f"{what}, {of}", values, bars.layer_share.get(state), "%")
    if bars.recurrence_share and state >= 1024:
        work = group.facts["recurrence_flops"]
        values = shares(group, "recurrence alone", work, bars.dtype, machine)
        what = f"recurrence alone {key.removeprefix('layer ')}, {default}, {of}"
        yield Target(f"{key} recurrence share", what, values, bars.recurrence_share, "%")


def _against_torch(group: Group, default: str, bars: Bars) -> Iterator[Target]:
    what, key = f"{group.name}, {default}", group.name
    lstm = _fastest(group, [case for case in group.seconds if case.startswith("nn.LSTM")])
    yield Target(
        f"{key} / LSTM", f"{what} over {lstm}", ratios(group, lstm, default), bars.over_lstm
    )
    without = f"windowed {bars.dtype}"
    if default != without:
        values = ratios(group, without, default)
        yield Target(f"{key} / windowed", f"{what} over {without}", values, bars.over_windowed)
    if bars.exact_over_loop is None:
        return
    exact = _fastest(
        group,
        [
            case
            for case, error in group.facts["errors"].items()
            if case.endswith(" fp32") and case != LOOP and error <= _EXACT_ERROR
        ],
    )
    values, what = ratios(group, LOOP, exact), f"{key}, exact {exact} over the literal loop"
    yield Target(f"{key} exact / loop", what, values, bars.exact_over_loop)


def _training(group: Group, bars: Bars) -> Iterator[Target]:
    """Each baseline in the same dtype; only the Llama block in the dtype of the class is judged."""
    sides = [case for case in group.facts["tokens"] if case in group.seconds]
    seq_len = int(group.name.rpartition(" ")[2])
    for theirs in sides:
        side, dtype = theirs.rsplit(" ", 1)
        ours = f"{OURS} {dtype}"
        if side == OURS or ours not in sides:
            continue
        judged = side == LLAMA and dtype == bars.dtype and "note" not in group.facts
        bar = bars.over_llama.get(seq_len) if judged else None
        what = f"{group.name}, {group.facts[ours]['backend']} {dtype} over {side}"
        yield Target(f"{group.name} / {theirs}", what, ratios(group, theirs, ours), bar)


def overhead(group: Group) -> list[float]:
    """Percent of each step that is neither forward, backward, gradient norm nor optimizer."""
    counted = [group.seconds[part] for part in PARTS if part != "data" and part in group.seconds]
    return [
        100 * (1 - sum(parts) / whole)
        for whole, *parts in zip(group.seconds["step"], *counted, strict=True)
    ]


def _step(group: Group, machine: Group, bars: Bars) -> Iterator[Target]:
    what, model = f"loop overhead, {group.name}", group.name.removeprefix("step ")
    bar = AT_MOST["loop overhead"]
    yield Target(f"overhead {model}", what, overhead(group), bar, "%", at_most=True)
    if "flops" in group.facts:
        values = shares(group, "step", group.facts["flops"], bars.dtype, machine)
        what = f"training step of {model}, {group.facts['dtype']}, of the large matmul"
        judged = bars.quickstart_share if model == "quickstart" else None
        yield Target(f"step share {model}", what, values, judged, "%")


def _generation(group: Group, machine: Group) -> Iterator[Target]:
    cases, tokens = group.facts["cases"], group.facts["tokens"]
    near, far, read, write = (cases[name] for name in ("near", "far", "read", "write"))
    per_token = [seconds / tokens[near] for seconds in group.seconds[near]]
    n_bytes = group.facts["bytes_per_token"]
    memory = max(rate(machine, "read memory"), rate(group, "read as many bytes"))
    values = ratios(group, far, near)
    yield Target("far", f"{far} over {near}", values, AT_MOST["far context"], at_most=True)
    again = [r / s for r, s in zip(group.seconds[read], per_token, strict=True)]
    yield Target("re-reading", f"one token over {read} again", again, AT_LEAST["re-reading"])
    what = (
        f"of the bound by memory, {1e-9 * memory:.0f} GB/s, {group.facts['parameters']:,} weights"
    )
    values = [100 * n_bytes / memory / seconds for seconds in per_token]
    yield Target("memory bound", what, values, AT_LEAST["memory bound"], "%")
    if "texts" in cases:
        texts = cases["texts"]
        values = [v * tokens[texts] / tokens[near] for v in ratios(group, near, texts)]
        yield Target("64 texts", f"{texts} over one", values, AT_LEAST["64 texts"])
    values = ratios(group, write, read)
    yield Target("prefill", f"{read} over {write}", values, AT_LEAST["prefill"])


def _data(group: Group) -> Iterator[Target]:
    megabytes = group.facts["encoded_bytes"] / 1e6
    rates = [megabytes / seconds for seconds in group.seconds["encoding"]]
    what = f"tokenising {megabytes:.1f} MB"
    yield Target("tokenising", what, rates, AT_LEAST["tokenising"], "MB/s")
    what = f"second start with {group.facts['corpus_bytes'] / 1e6:.1f} MB of text"
    values, bar = group.seconds["second start"], AT_MOST["second start"]
    yield Target("second start", what, values, bar, "s", at_most=True)


def _start(group: Group) -> Iterator[Target]:
    torch = _median(group, "import torch")
    named = {
        "--help": "ys --help",
        "first token": f"ys run to its first token ({torch:.2f} s are `import torch`)",
        "doctor": "ys doctor",
    }
    for key, what in named.items():
        if key in group.seconds:
            yield Target(key, what, group.seconds[key], AT_MOST[key], "s", at_most=True)


def table(targets: Sequence[Target]) -> str:
    """The targets as rows of a Markdown table."""
    rows = ["| what | measured | rounds | bar |", "| --- | --- | --- | --- |"]
    for target in targets:
        measured = f"{target.figure:.3g} {target.unit}" if target.values else "-"
        rows.append(f"| {target.what} | {measured} | {target.spread} | {target.verdict} |")
    return "\n".join(rows)
