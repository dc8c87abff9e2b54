"""`ys plan`: what a training needs on a cluster, by formulas; nothing is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ys_llm.cli.common import ConfigArguments, add_config_flags, resolve
from ys_llm.errors import UsageError

if TYPE_CHECKING:
    from ys_llm.training.plan import Plan, Workload

DEFAULT_CLUSTER, DEFAULT_INNER_STEPS = "h100", 100
EXAMPLES = """\
examples:
  ys plan --config lillm_300m --cluster h100 --tokens 1e11
  ys plan --config lillm_300m --cluster h100 --devices 8,64,512 --set train.batch_size=512
  ys plan --cluster mine.yaml --simulate 100    days with their spread, failures drawn one by one
  ys plan --cluster mine.yaml --json

A cluster is a shipped name (h100, laptops) or a YAML file: copy one of configs/clusters/. DDP keeps
all weights on every device, FSDP2 a share; DiLoCo averages the weights of the nodes now and then.
bytes/token is what the nodes send each other (on one node, the devices). The interval between
checkpoints is the one that loses least, and days count failures (Daly 2006). docs/planning.md has
the assumptions, and a table up to 10,000 devices.
"""
_HEADS = (
    "devices",
    "method",
    "GB each",
    "rows",
    "tokens/s",
    "bytes/token",
    "checkpoint",
    "days",
    "MWh",
)


@dataclass(frozen=True)
class Arguments(ConfigArguments):
    """The arguments of `ys plan`."""

    cluster: str = DEFAULT_CLUSTER
    devices: str | None = None
    tokens: float | None = None
    inner_steps: int = DEFAULT_INNER_STEPS
    simulate: int = 0
    json: bool = False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys plan`."""
    add = parser.add_argument
    add_config_flags(parser)
    cluster = f"a shipped cluster, or a YAML file (default: {DEFAULT_CLUSTER})"
    add("--cluster", metavar="NAME_OR_FILE", default=DEFAULT_CLUSTER, help=cluster)
    add("--devices", metavar="N[,N...]", help="use so many devices of it (default: all)")
    add("--tokens", metavar="N", type=float, help="tokens in all (default: as configured)")
    inner = f"DiLoCo: steps between two exchanges (default: {DEFAULT_INNER_STEPS})"
    add("--inner-steps", metavar="H", type=int, default=DEFAULT_INNER_STEPS, help=inner)
    simulate = "draw the failures of so many runs, and show the days of nine in ten"
    add("--simulate", metavar="RUNS", type=int, default=0, help=simulate)
    add("--json", action="store_true", help="print everything as JSON")


def run(arguments: Arguments) -> int:
    """Print the plans; the exit code."""
    counts = _device_counts(arguments)
    from ys_llm.config.cluster import read_cluster
    from ys_llm.training.plan import plans, with_devices, workload_of

    cluster, resolved = read_cluster(arguments.cluster), resolve(arguments)
    tokens = None if arguments.tokens is None else int(arguments.tokens)
    work = workload_of(resolved.config, cluster, tokens=tokens)
    simulations, inner_steps = arguments.simulate, arguments.inner_steps
    found = [
        (count, plan)
        for count in counts or [cluster.devices]
        for plan in plans(
            work, with_devices(cluster, count), inner_steps=inner_steps, simulations=simulations
        )
    ]
    if arguments.json:
        rows = [{"of_devices": count, **asdict(plan)} for count, plan in found]
        described = {"cluster": asdict(cluster), "workload": asdict(work), "plans": rows}
        print(json.dumps(described, indent=1))
    else:
        print("\n".join(_page(work, found)))
    return 0


def _device_counts(arguments: Arguments) -> list[int]:
    """Those of --devices; UsageError for numbers that mean nothing."""
    words = [] if arguments.devices is None else arguments.devices.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise UsageError(f"--devices must be numbers such as 8,64, found {arguments.devices}")
    if arguments.tokens is not None and not 1 <= arguments.tokens <= 1e18:
        raise UsageError(f"--tokens must be 1 to 1e18, found {arguments.tokens:g}")
    if arguments.inner_steps < 1:
        raise UsageError(f"--inner-steps must be at least 1, found {arguments.inner_steps}")
    if not 0 <= arguments.simulate <= 10_000:
        raise UsageError(f"--simulate must be 0 to 10000 runs, found {arguments.simulate}")
    return [int(word) for word in words]


def _page(work: Workload, found: Sequence[tuple[int, Plan]]) -> list[str]:
    """What is trained, and a line for each number of devices and method."""
    lines = [
        f"model        {work.parameters:,} parameters, {work.flops / 1e9:,.2f} GFLOP per token",
        f"step         {work.rows:,} rows of {work.seq_len:,} tokens; {work.tokens:,} tokens are "
        f"{-(-work.tokens // work.step_tokens):,} steps",
        "",
    ]
    rows = [_HEADS, *(_cells(count, plan) for count, plan in found)]
    widths = [max(len(row[at]) for row in rows if len(row) == len(_HEADS)) for at in range(9)]
    for row in rows:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*padded[:1], row[1].ljust(widths[1]), *padded[2:], *row[9:]]))
    idle = {count: count - plan.devices for count, plan in found if plan.devices < count}
    lines += [
        f"{n:,} of {count:,} devices have no row: use a larger train.batch_size"
        for count, n in idle.items()
    ]
    return [line.rstrip() for line in lines]


def _cells(count: int, plan: Plan) -> tuple[str, ...]:
    if plan.problem:
        return (f"{count:,}", plan.method, plan.problem)
    days = _number(plan.days)
    if plan.simulated_days:
        runs = plan.simulated_days
        low, high = runs[len(runs) // 20], runs[-1 - len(runs) // 20]
        days += f" ({_number(low)} to {_number(high)})"
    return (
        f"{count:,}",
        plan.method,
        f"{plan.memory_bytes / 1e9:,.1f}",
        f"{plan.rows_at_once:,}",
        f"{plan.tokens_per_second:,.0f}",
        _number(plan.wire_bytes),
        f"{plan.checkpoint_seconds / 60:,.0f} min" if plan.checkpoint_seconds else "–",
        days,
        _number(plan.megawatt_hours),
    )


def _number(value: float) -> str:
    """Three digits that count, or all of a large number."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
