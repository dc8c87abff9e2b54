"""The targets: ratios of raw times of the same round, with their spread and share of the limit.

Everything is computed from the groups alone, so that a saved file can be judged again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.layer import LOOP
from benchmarks.machine import rate
from benchmarks.rounds import Group
from benchmarks.training import LLAMA, OURS
from ys_llm.ops.accuracy import TOLERANCES

# One layer, forward and backward, over the literal loop: with a C++ compiler, and without.
C1 = {"32,256,384,1024": (7.0, 3.0), "16,256,256,512": (6.0, 2.5), "64,256,256,256": (4.5, 2.0)}
HEADS = "32,256,384,1024, 8 heads"
_EXACT_ERROR = TOLERANCES["float32"]


@dataclass(frozen=True)
class Target:
    """`values`: one per round. `at_most`: met at or below `target`, else at or above."""

    name: str
    what: str
    target: float
    values: list[float]
    unit: str = "x"
    at_most: bool = False
    share: float | None = None  # of `share_of`, a limit of this machine
    share_of: str = ""

    @property
    def figure(self) -> float:
        """The median of the rounds; NaN where nothing was measured."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        return self.figure <= self.target if self.at_most else self.figure >= self.target

    def line(self) -> str:
        """Name, figure, spread, target, verdict and share of the limit."""
        if not self.values:
            return f"{self.name:<5} {self.what}: not measured"
        spread = f"{min(self.values):.3g}-{max(self.values):.3g}"
        share = "" if self.share is None else f", {self.share:.0%} of {self.share_of}"
        return (
            f"{self.name:<5} {self.what}: {self.figure:.3g} {self.unit} ({spread}), "
            f"target {'<=' if self.at_most else '>='} {self.target:g}, "
            f"{'met' if self.met else 'not met'}{share}"
        )


def judge(groups: Sequence[Group], *, with_compiler: bool) -> list[Target]:
    """Every target that these groups have measured."""
    found = {group.name: group for group in groups}
    targets: list[Target] = []
    for group in groups:
        if group.name.startswith("layer "):
            targets += _layer(group, found["machine"], with_compiler=with_compiler)
    targets += _training(found)
    if "generation" in found:
        targets += _generation(found)
    if "data" in found:
        targets += _data(found["data"])
    if "start" in found:
        targets += _start(found["start"])
    return sorted(targets, key=lambda target: target.name)


def ratios(group: Group, slow: str, fast: str) -> list[float]:
    """How many times as fast `fast` is as `slow`, in each round; empty if one is missing."""
    pairs = zip(group.seconds.get(slow, []), group.seconds.get(fast, []), strict=False)
    return [a / b for a, b in pairs]


def _median(group: Group, case: str) -> float:
    return statistics.median(group.seconds[case])


def _fastest(group: Group, cases: Sequence[str]) -> str:
    """The fastest of those that ran; "" if none did."""
    ran = [case for case in cases if case in group.seconds]
    return min(ran, key=lambda case: _median(group, case), default="")


def _matmul(dtype: str) -> str:
    return f"matmul {'bf16' if dtype.endswith('bf16') else 'fp32'}"


def _layer(group: Group, limits: Group, *, with_compiler: bool) -> Iterator[Target]:
    shape, default = group.name.removeprefix("layer "), str(group.facts["default"])
    limit = rate(limits, _matmul(default))
    of = f"the large {_matmul(default)}"
    over_loop = ratios(group, LOOP, default)
    share = None
    if default in group.seconds:
        share = group.facts["flops"] / _median(group, default) / limit
    what = f"layer {shape}, {default} over the literal loop"
    if group.facts["shape"]["n_heads"] > 1:
        yield Target("C3", what, 12.0, over_loop, share=share, share_of=of)
        return
    target = C1.get(shape, (1.0, 1.0))[0 if with_compiler else 1]
    yield Target("C1", what, target, over_loop, share=share, share_of=of)
    yield from _against_torch(group, shape, default)
    shares = [group.facts["flops"] / s / limit for s in group.seconds.get(default, [])]
    yield Target("C4", f"layer {shape}, {default}, of {of}", 55.0, [100 * s for s in shares], "%")
    if group.facts["shape"]["S"] >= 1024:
        work, alone = group.facts["recurrence_flops"], group.seconds.get("recurrence alone", [])
        values = [100 * work / seconds / limit for seconds in alone]
        yield Target("C4", f"recurrence alone {shape}, {default}, of {of}", 70.0, values, "%")


def _against_torch(group: Group, shape: str, default: str) -> Iterator[Target]:
    lstm = _fastest(group, [case for case in group.seconds if case.startswith("nn.LSTM")])
    values = ratios(group, lstm, default)
    yield Target("C2", f"layer {shape}, {default} over {lstm}", 2.5, values)
    errors: Mapping[str, float] = group.facts["errors"]
    exact = _fastest(
        group,
        [
            case
            for case, error in errors.items()
            if case.endswith(" fp32") and case != LOOP and error <= _EXACT_ERROR
        ],
    )
    values = ratios(group, LOOP, exact)
    yield Target("C2", f"layer {shape}, exact {exact} over the literal loop", 2.5, values)


def _training(found: Mapping[str, Group]) -> Iterator[Target]:
    sides = [group for name, group in found.items() if name.startswith("training ")]
    for group, target in zip(sides, (2.0, 4.0), strict=False):
        ours: dict[str, Any] = group.facts[OURS]
        limit = rate(found["machine"], _matmul(ours["dtype"]))
        yield Target(
            "C5",
            f"{group.name}, {ours['backend']} {ours['dtype']} over the Llama block",
            target,
            ratios(group, LLAMA, OURS),
            share=ours["flops"] / _median(group, OURS) / limit,
            share_of=f"the large {_matmul(ours['dtype'])}",
        )
    for name, group in found.items():
        if name.startswith("step "):
            parts = zip(*(group.seconds[p] for p in ("forward", "backward", "optimizer")),
                        strict=True)  # fmt: skip
            values = [
                100 * (1 - sum(part) / whole)
                for part, whole in zip(parts, group.seconds["step"], strict=True)
            ]
            yield Target("C5", f"loop overhead, {name}", 3.0, values, "%", at_most=True)


def _generation(found: Mapping[str, Group]) -> Iterator[Target]:
    group = found["generation"]
    cases, tokens = group.facts["cases"], group.facts["tokens"]
    near, far, read, write = (cases[name] for name in ("near", "far", "read", "write"))
    per_token = [seconds / tokens[near] for seconds in group.seconds[near]]
    weights = found["weights"]
    memory = max(
        rate(found["machine"], "read memory"),
        weights.facts["bytes"] / min(weights.seconds["read as many bytes"]),
    )
    bound = group.facts["bytes_per_token"] / memory
    yield Target("C8", f"{far} over {near}", 1.05, ratios(group, far, near), at_most=True)
    again = [r / s for r, s in zip(group.seconds[read], per_token, strict=True)]
    yield Target("C8", f"one token over {read} again", 100.0, again)
    yield Target(
        "C8",
        f"of the bound by memory, {1e-9 * memory:.0f} GB/s, {group.facts['parameters']:,} weights",
        50.0,
        [100 * bound / seconds for seconds in per_token],
        "%",
    )
    yield Target("C9", f"{read} over {write}", 5.0, ratios(group, write, read))


def _data(group: Group) -> Iterator[Target]:
    megabytes = group.facts["encoded_bytes"] / 1e6
    rates = [megabytes / seconds for seconds in group.seconds["encoding"]]
    yield Target("C7", f"tokenising {megabytes:.1f} MB", 20.0, rates, "MB/s")
    what = f"second start with {group.facts['corpus_bytes'] / 1e6:.1f} MB of text"
    yield Target("C7", what, 1.0, group.seconds["second start"], "s", at_most=True)


def _start(group: Group) -> Iterator[Target]:
    yield Target("start", "ys --help", 0.15, group.seconds["--help"], "s", at_most=True)
    torch = _median(group, "import torch")
    what = f"ys run to its first token ({torch:.2f} s are `import torch`)"
    yield Target("start", what, 2.0, group.seconds["first token"], "s", at_most=True)


def table(targets: Sequence[Target]) -> str:
    """The targets as rows of a Markdown table."""
    rows = ["| what | measured | rounds | target |", "| --- | --- | --- | --- |"]
    for target in targets:
        goal = f"{'at most' if target.at_most else 'at least'} {target.target:g}"
        verdict = "" if target.met else ", not met"
        spread = "-"
        if target.values:
            spread = f"{min(target.values):.3g} to {max(target.values):.3g}"
        rows.append(
            f"| {target.what} | {target.figure:.3g} {target.unit} | {spread} | {goal}{verdict} |"
        )
    return "\n".join(rows)
