"""`ys plan`: what a training needs on a cluster: DDP, FSDP2 or DiLoCo between nodes.

Nothing is timed: sizes are those of the model, times are formulas (`plan_formulas.py`). All
weights, gradients and moments are fp32. A step reads train.batch_size * train.grad_accum_steps
rows, divided among the devices; each takes as many rows at once as fit into its memory.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ys_llm.config.cluster import Cluster
from ys_llm.config.schema import Config
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.costs import flops_per_token, parameter_count
from ys_llm.model.language_model import Model
from ys_llm.ops.cross_entropy import CHUNK_ELEMENTS
from ys_llm.system.sizes import human_size
from ys_llm.training.kept_bytes import kept_bytes
from ys_llm.training.plan_formulas import Failures, all_reduce_seconds, expected_maximum
from ys_llm.training.plan_simulator import simulate_wall_seconds

METHODS = ("DDP", "FSDP2", "DiLoCo")
_WEIGHT = 4  # bytes
_TRAINED = 4 * _WEIGHT  # bytes of a parameter with its gradient and AdamW's two moments
_SAVED = 3 * _WEIGHT  # of them in a checkpoint
_OUTER = 2 * _WEIGHT  # DiLoCo's: weights before the round, and momentum
_CAST = 2  # of the copy that bf16 matmuls work with, until the end of the backward pass
_BUCKET = 25 << 20  # bytes of gradients that DDP sends at once
_DAY, _MWH = 86_400.0, 3.6e9


@dataclass(frozen=True)
class Workload:
    """What is trained: `flops` of a token in training, `kept_bytes` of its activations.

    `cast_bytes` are those of a parameter besides fp32, `logit_bytes` of a token's with gradient.
    """

    parameters: int
    flops: int
    kept_bytes: int
    depth: int
    seq_len: int
    rows: int  # of a step
    tokens: int  # in all
    cast_bytes: int = 0
    logit_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Of all weights, which is also what all gradients take."""
        return _WEIGHT * self.parameters

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.seq_len


@dataclass(frozen=True)
class Plan:
    """One way to train; seconds and bytes are 0 where it does not fit.

    `rows_at_once` of a device; `wire_bytes` are those that all nodes together (on one node, all
    devices) send for a token. `days` are expected ones, failures included; `checkpoint_seconds` is
    the interval between checkpoints.
    """

    method: str
    devices: int
    problem: str  # why not; "" where it fits
    memory_bytes: int
    rows_at_once: int = 0
    tokens_per_second: float = 0.0
    wire_bytes: float = 0.0
    checkpoint_seconds: float = 0.0
    days: float = 0.0
    megawatt_hours: float = 0.0
    simulated_days: tuple[float, ...] = ()  # of each simulated run, ascending


def workload_of(config: Config, cluster: Cluster, *, tokens: int | None = None) -> Workload:
    """The work of a configuration; the longest stage stands for all. UserError for `auto` sizes."""
    if config.train.batch_size == "auto" and not config.train.stages:
        raise UserError(
            "train.batch_size is auto, which a plan cannot measure",
            "Type the size: --set train.batch_size=32",
            exit_code=EXIT_USAGE,
        )
    stage, vocabulary = config.train.plan[-1], config.tokenizer.vocab_size
    with torch.device("meta"):
        model = Model(config.model, vocab_size=vocabulary)
    stages = config.train.plan
    planned = sum(one.steps * one.batch_size * one.seq_len for one in stages)
    return Workload(
        parameter_count(model),
        3 * flops_per_token(model, stage.seq_len, training=True),
        kept_bytes(config, cluster.dtype, seq_len=stage.seq_len),
        config.model.depth,
        stage.seq_len,
        stage.batch_size * config.train.grad_accum_steps,
        tokens or planned * config.train.grad_accum_steps,
        _CAST if cluster.dtype == "bf16" else 0,
        2 * _WEIGHT * vocabulary,
    )


def with_devices(cluster: Cluster, devices: int) -> Cluster:
    """The cluster with so many devices: whole nodes, or a part of one. UserError for others."""
    whole, rest = divmod(devices, cluster.devices_per_node)
    if devices < cluster.devices_per_node:
        return replace(cluster, nodes=1, devices_per_node=devices)
    if rest:
        raise UserError(
            f"{devices:,} devices are no whole number of nodes of {cluster.devices_per_node}",
            f"Type --devices {whole * cluster.devices_per_node}",
            exit_code=EXIT_USAGE,
        )
    return replace(cluster, nodes=whole)


def plans(
    work: Workload, cluster: Cluster, *, inner_steps: int, simulations: int = 0
) -> Iterator[Plan]:
    """A plan of each method; `inner_steps` between two exchanges of DiLoCo."""
    yield _finished(_ddp(work, cluster), work, cluster, simulations)
    yield _finished(_fsdp(work, cluster), work, cluster, simulations)
    if cluster.nodes > 1:
        yield _diloco(work, cluster, inner_steps)


@dataclass(frozen=True)
class _Layout:
    """Rows of each device in a step, in `passes` of `at_once`; 0 where not one fits."""

    ranks: int  # devices that have rows
    rows: int
    at_once: int
    memory_bytes: int

    @property
    def passes(self) -> int:
        return -(-self.rows // max(1, self.at_once))


def _layout(work: Workload, cluster: Cluster, fixed: float) -> _Layout:
    """As many rows at once as fit beside `fixed` bytes, and no more passes than that needs."""
    ranks = min(cluster.devices, work.rows)
    rows, row_bytes = -(-work.rows // ranks), work.seq_len * work.kept_bytes
    fixed += min(rows * work.seq_len * work.logit_bytes, 2 * _WEIGHT * CHUNK_ELEMENTS)
    most = min(rows, int((cluster.memory_gb * 1e9 - fixed) // row_bytes))
    if most < 1:
        return _Layout(ranks, rows, 0, int(fixed + row_bytes))
    at_once = -(-rows // -(-rows // most))
    return _Layout(ranks, rows, at_once, int(fixed + at_once * row_bytes))


def _ddp(work: Workload, cluster: Cluster) -> Plan:
    """Every device has all weights; gradients are summed while the last backward pass goes on.

    step = compute + max(last bucket, all-reduce - 2/3 compute / passes)

    The last bucket is full when the pass is over; a model of fewer bytes has no other.
    """
    layout = _layout(work, cluster, (_TRAINED + work.cast_bytes) * work.parameters)
    compute, reduce = _compute(work, cluster, layout), _all_reduce(work, cluster)
    hidden = 2 / 3 * compute / layout.passes
    last = reduce * min(1.0, _BUCKET / work.weight_bytes)
    seconds = compute * _slowest(cluster, layout.ranks) + max(last, reduce - hidden)
    return _plan("DDP", layout, work, seconds, _sent(work, cluster))


def _fsdp(work: Workload, cluster: Cluster) -> Plan:
    """Every device has a share of weights, gradients and moments; two blocks are whole at a time.

    Each pass gathers the weights twice and sums the gradients once, which sends 1.5 times what DDP
    does (Rajbhandari et al. 2020, arXiv 1910.02054), hidden behind the compute where it is shorter.
    gloo sums them whole on every device, which makes it twice as much, and hides nothing.
    """
    whole = 2 * work.weight_bytes / (work.depth + 1)
    shared = (_TRAINED / cluster.devices + work.cast_bytes) * work.parameters
    layout = _layout(work, cluster, shared + whole)
    compute = _compute(work, cluster, layout) * _slowest(cluster, layout.ranks)
    is_hidden = cluster.backend == "nccl"
    transfers = (1.5 if is_hidden else 2.0) * layout.passes
    reduce = transfers * _all_reduce(work, cluster)
    seconds = max(compute, reduce) if is_hidden else compute + reduce
    return _plan("FSDP2", layout, work, seconds, transfers * _sent(work, cluster))


def _diloco(work: Workload, cluster: Cluster, inner_steps: int) -> Plan:
    """Every node trains by itself, by DDP or else FSDP2; from time to time weights are averaged.

    A node that fails costs its own round; the others go on:
    time of the work * (1 + (restart + round / 2) / mtbf of a node)
    Stragglers: jitter of a round of H steps grows with sqrt(H) (independent steps).
    """
    node = replace(cluster, nodes=1)
    share = replace(work, rows=-(-work.rows // cluster.nodes))
    outer = _OUTER * work.parameters
    room = replace(node, memory_gb=max(1e-9, node.memory_gb - outer / 1e9))
    inside = _ddp(share, room)
    if inside.problem:
        room = replace(node, memory_gb=node.memory_gb - outer / 1e9 / node.devices)
        outer, inside = outer // node.devices, _fsdp(share, room)
    inside = replace(inside, method="DiLoCo", devices=cluster.devices)
    inside = replace(inside, memory_bytes=inside.memory_bytes + outer)
    if inside.problem:
        return replace(inside, problem=_does_not_fit(inside.memory_bytes))
    step = share.step_tokens / inside.tokens_per_second
    apart = 1 + cluster.jitter * expected_maximum(cluster.nodes) / math.sqrt(inner_steps)
    exchange = all_reduce_seconds(
        work.weight_bytes, cluster.nodes, _network(cluster), _latency(cluster)
    )
    round_seconds = inner_steps * step * apart + exchange
    rate = inner_steps * work.step_tokens / round_seconds
    lost = (60 * cluster.restart_minutes + round_seconds / 2) / _mtbf(node)
    seconds = work.tokens / rate * (1 + lost)
    return replace(
        inside,
        tokens_per_second=rate,
        wire_bytes=_sent(work, cluster) / work.step_tokens / inner_steps,
        days=seconds / _DAY,
        megawatt_hours=_energy(cluster, seconds),
    )


def _plan(method: str, layout: _Layout, work: Workload, seconds: float, sent: float) -> Plan:
    if not layout.at_once:
        problem = _does_not_fit(layout.memory_bytes)
        return Plan(method, layout.ranks, problem, layout.memory_bytes)
    return Plan(
        method,
        layout.ranks,
        "",
        layout.memory_bytes,
        layout.at_once,
        work.step_tokens / seconds,
        sent / work.step_tokens,
    )


def _does_not_fit(needed: int) -> str:
    return f"needs {human_size(needed)} of each device"


def _finished(plan: Plan, work: Workload, cluster: Cluster, simulations: int) -> Plan:
    """With checkpoints, failures and energy: one device that fails stops all."""
    if plan.problem:
        return plan
    checkpoint = _SAVED * work.parameters / (cluster.storage_gb * 1e9)
    failures = Failures(_mtbf(cluster), checkpoint, 60 * cluster.restart_minutes)
    busy = work.tokens / plan.tokens_per_second
    seconds = failures.wall_seconds(busy)
    draw = random.Random(0)
    runs = (simulate_wall_seconds(failures, busy, draw) for _ in range(simulations))
    return replace(
        plan,
        checkpoint_seconds=failures.interval,
        days=seconds / _DAY,
        megawatt_hours=_energy(cluster, seconds),
        simulated_days=tuple(sorted(run / _DAY for run in runs)),
    )


def _compute(work: Workload, cluster: Cluster, layout: _Layout) -> float:
    """Seconds of forward and backward passes of the device with the most rows."""
    flops = layout.rows * work.seq_len * work.flops
    return flops / (cluster.tflops * 1e12 * cluster.utilization)


def _slowest(cluster: Cluster, ranks: int) -> float:
    """How much longer a step is where all wait for the slowest."""
    return 1 + cluster.jitter * expected_maximum(ranks)


def _all_reduce(work: Workload, cluster: Cluster) -> float:
    """Within the nodes, then between them, each device with its share of the tensor."""
    inside = all_reduce_seconds(
        work.weight_bytes, cluster.devices_per_node, cluster.node_gbit * 1e9 / 8
    )
    between = all_reduce_seconds(
        work.weight_bytes, cluster.nodes, _network(cluster), _latency(cluster)
    )
    return inside + between


def _sent(work: Workload, cluster: Cluster) -> float:
    """Bytes that all nodes send for an all-reduce; all devices where there is one node."""
    ranks = cluster.nodes if cluster.nodes > 1 else cluster.devices
    return 2.0 * (ranks - 1) * work.weight_bytes


def _network(cluster: Cluster) -> float:
    return cluster.network_gbit * 1e9 / 8


def _latency(cluster: Cluster) -> float:
    return cluster.latency_us * 1e-6


def _mtbf(cluster: Cluster) -> float:
    """Seconds between two failures of any device."""
    return 3600 * cluster.mtbf_hours / cluster.devices


def _energy(cluster: Cluster, seconds: float) -> float:
    """MWh of all devices."""
    return cluster.devices * cluster.watts * cluster.pue * seconds / _MWH
