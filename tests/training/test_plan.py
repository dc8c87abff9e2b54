"""Plans: small cases of the simulator equal the closed forms, and these equal what is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from ys_llm.config.cluster import Cluster, read_cluster
from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.errors import UserError
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.training.kept_bytes import kept_bytes
from ys_llm.training.plan import Plan, Workload, plans, with_devices, workload_of
from ys_llm.training.plan_formulas import Failures, all_reduce_seconds, expected_maximum
from ys_llm.training.plan_simulator import simulate_slowest, simulate_wall_seconds

FAILURES = Failures(mtbf=1000.0, checkpoint=20.0, restart=50.0)
# 10^9 FLOP/s in a step, 10^9 bytes/s between nodes; a million weights, a step of 64,000 tokens.
SMALL = Cluster(
    nodes=4,
    devices_per_node=2,
    tflops=0.01,
    utilization=0.1,
    node_gbit=8000.0,
    network_gbit=8.0,
    latency_us=0.0,
    backend="nccl",
    jitter=0.0,
    mtbf_hours=1e9,
)
WORK = Workload(
    parameters=1_000_000,
    flops=6_000_000,
    kept_bytes=10_000,
    depth=4,
    seq_len=1000,
    rows=64,
    tokens=64_000_000,
)


def by_method(work: Workload, cluster: Cluster, *, inner_steps: int = 100) -> dict[str, Plan]:
    return {plan.method: plan for plan in plans(work, cluster, inner_steps=inner_steps)}


@pytest.mark.parametrize("interval", [50.0, None, 600.0])
def test_simulated_failures_cost_what_dalys_formula_says(interval: float | None) -> None:
    draw = random.Random(1)
    work = 20 * (interval or FAILURES.interval)  # whole stretches, as the formula has them
    runs = [simulate_wall_seconds(FAILURES, work, draw, interval=interval) for _ in range(2000)]
    assert fmean(runs) == pytest.approx(FAILURES.wall_seconds(work, interval), rel=0.02)


def test_without_failures_only_checkpoints_cost() -> None:
    safe = replace(FAILURES, mtbf=1e12)
    assert safe.wall_seconds(1000.0, 100.0) == pytest.approx(1200.0)
    assert simulate_wall_seconds(safe, 1000.0, random.Random(0), interval=100.0) == 1200.0


def test_the_interval_is_the_one_that_loses_least() -> None:
    best = FAILURES.wall_seconds(1e6)
    candidates = [FAILURES.wall_seconds(1e6, float(tau)) for tau in range(20, 1000)]
    assert best == pytest.approx(min(candidates), rel=1e-3)
    young = math.sqrt(2 * 1.0 * 1e6)
    assert Failures(1e6, 1.0, 0.0).interval == pytest.approx(young, rel=0.01)


def test_too_many_failures_leave_no_progress() -> None:
    assert Failures(1.0, 10.0, 1000.0).wall_seconds(1e3) == math.inf
    assert Failures(1.0, 10.0, 1.0).interval == 1.0


@pytest.mark.parametrize("devices", [2, 10, 60])
def test_simulated_stragglers_are_as_slow_as_the_formula_says(devices: int) -> None:
    slowest = simulate_slowest(devices, 0.1, random.Random(2), steps=1500)
    assert slowest == pytest.approx(1 + 0.1 * expected_maximum(devices), rel=0.005)
    rarely = simulate_slowest(devices, 0.1, random.Random(2), steps=3200, together=16)
    assert rarely == pytest.approx(1 + 0.1 * expected_maximum(devices) / 4, rel=0.005)


def test_an_all_reduce_sends_all_but_ones_own_share_twice() -> None:
    assert all_reduce_seconds(8e9, 1, 1e9) == 0
    assert all_reduce_seconds(8e9, 2, 1e9) == pytest.approx(8.0)
    assert all_reduce_seconds(8e9, 4, 1e9, latency=0.5) == pytest.approx(12.0 + 2.0)


def test_a_plan_of_ddp_is_compute_and_what_the_network_adds() -> None:
    plan = by_method(WORK, SMALL)["DDP"]
    compute, reduce = 8 * 1000 * 6e6 / 1e9, 6e-3 + 4e6 / 1e12  # 8 rows of each device
    assert plan.tokens_per_second == pytest.approx(64_000 / (compute + reduce))  # in one bucket
    assert plan.memory_bytes == 16_000_000 + 8 * 10_000_000
    assert plan.wire_bytes == pytest.approx(2 * 3 * 4e6 / 64_000)
    large = replace(WORK, parameters=100_000_000)  # 600 ms, of which a bucket is the last
    last = 0.6004 * (25 << 20) / 4e8
    found = by_method(large, SMALL)["DDP"]
    assert found.tokens_per_second == pytest.approx(64_000 / (compute + last), rel=1e-6)
    slow = by_method(large, replace(SMALL, network_gbit=0.08))["DDP"]  # 60 s
    seconds = compute / 3 + 60 + 4e-4
    assert slow.tokens_per_second == pytest.approx(64_000 / seconds)


def test_bf16_keeps_a_copy_and_logits_come_in_chunks() -> None:
    work = replace(WORK, cast_bytes=2, logit_bytes=80_000)
    found = by_method(work, SMALL)
    assert found["DDP"].memory_bytes == 18_000_000 + 8 * 10_000_000 + 8 * (1 << 22)
    assert found["FSDP2"].memory_bytes == 4_000_000 + 8 * 10_000_000 + 8 * (1 << 22) + 1_600_000


def test_gloo_sends_more_for_shares_and_hides_nothing() -> None:
    gloo = replace(SMALL, backend="gloo", network_gbit=0.08)  # 0.6 s an all-reduce
    found, other = (by_method(WORK, c)["FSDP2"] for c in (gloo, replace(gloo, backend="nccl")))
    compute, reduce = 48.0, 0.6 + 4e-6
    assert found.wire_bytes == pytest.approx(2 * 2 * 3 * 4e6 / 64_000)
    assert found.tokens_per_second == pytest.approx(64_000 / (compute + 2 * reduce))
    assert other.wire_bytes == pytest.approx(0.75 * found.wire_bytes)
    assert other.tokens_per_second == pytest.approx(64_000 / compute)


def test_a_model_too_large_for_a_device_fits_in_shares() -> None:
    found = by_method(WORK, replace(SMALL, memory_gb=0.0145))
    assert found["DDP"].problem == "needs 26.0 MB of each device"
    assert not found["FSDP2"].problem
    assert found["FSDP2"].rows_at_once == 1
    assert found["FSDP2"].wire_bytes == pytest.approx(8 * 1.5 * 2 * 3 * 4e6 / 64_000)
    assert found["FSDP2"].memory_bytes <= 14_500_000
    assert found["DiLoCo"].problem  # two devices hold not even their half of it


def test_diloco_sends_a_share_of_what_ddp_does() -> None:
    found = by_method(WORK, replace(SMALL, network_gbit=8e-4), inner_steps=50)
    assert found["DDP"].wire_bytes == pytest.approx(50 * found["DiLoCo"].wire_bytes)
    compute = 8 * 1000 * 6e6 / 1e9
    seconds = 50 * (compute + 4e-6) + 60.0
    assert found["DiLoCo"].tokens_per_second == pytest.approx(50 * 64_000 / seconds)
    assert found["DiLoCo"].memory_bytes == found["DDP"].memory_bytes + 8_000_000


def test_one_node_has_nobody_to_average_with() -> None:
    assert set(by_method(WORK, replace(SMALL, nodes=1))) == {"DDP", "FSDP2"}


def test_failures_lengthen_days_and_energy_follows_them() -> None:
    often = replace(SMALL, mtbf_hours=1.0, restart_minutes=1.0, watts=100.0, pue=1.5)
    rare, frequent = by_method(WORK, SMALL)["DDP"], by_method(WORK, often)["DDP"]
    assert frequent.tokens_per_second == rare.tokens_per_second
    assert frequent.days > 1.1 * rare.days
    assert frequent.checkpoint_seconds < rare.checkpoint_seconds
    assert frequent.megawatt_hours == pytest.approx(8 * 100 * 1.5 * frequent.days * 24 / 1e6)
    lonely = by_method(WORK, often, inner_steps=5)["DiLoCo"]
    assert lonely.days < frequent.days


def test_simulated_days_lie_around_the_expected_ones() -> None:
    often = replace(SMALL, mtbf_hours=10.0, restart_minutes=1.0)
    plan = next(plans(WORK, often, inner_steps=100, simulations=500))
    assert list(plan.simulated_days) == sorted(plan.simulated_days)
    assert fmean(plan.simulated_days) == pytest.approx(plan.days, rel=0.03)


def test_devices_without_a_row_do_not_work() -> None:
    plan = by_method(replace(WORK, rows=5), SMALL)["DDP"]
    assert plan.devices == 5
    assert plan.tokens_per_second == pytest.approx(5000 / (1000 * 6e6 / 1e9), rel=2e-3)


def test_a_number_of_devices_is_whole_nodes_or_a_part_of_one() -> None:
    assert with_devices(SMALL, 6).nodes == 3
    part = with_devices(replace(SMALL, devices_per_node=8), 4)
    assert (part.nodes, part.devices_per_node) == (1, 4)
    with pytest.raises(UserError, match=r"7 devices .* --devices 6"):
        with_devices(SMALL, 7)


def test_a_workload_is_that_of_the_real_model() -> None:
    config = load_config(None, overrides=["train.grad_accum_steps=2", "train.max_steps=10"]).config
    work = workload_of(config, SMALL)
    with torch.device("meta"):
        model = Model(config.model, vocab_size=config.tokenizer.vocab_size)
    assert work.parameters == parameter_count(model)
    assert (work.rows, work.seq_len, work.tokens) == (64, 256, 10 * 64 * 256)
    assert workload_of(config, SMALL, tokens=5).tokens == 5
    assert (work.cast_bytes, work.logit_bytes) == (2, 8 * config.tokenizer.vocab_size)


def test_what_is_kept_is_counted_for_each_mixer() -> None:
    few = ("model.d_model=32", "model.d_mlp=32", "tokenizer.vocab_size=300", "train.seq_len=64")

    def kept(layers: str, n_layers: int) -> int:
        changes = [*few, f"model.layers={layers}", f"model.n_layers={n_layers}"]
        config = load_config(None, overrides=changes).config
        return kept_bytes(config, "fp32", seq_len=64)

    one, two, four = (kept("[min_gru]", n) for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), abs=2)
    mean = (two + kept("[rwkv7]", 2)) / 2
    assert mean != two and kept("[min_gru, rwkv7]", 2) == pytest.approx(mean, abs=2)


def test_a_batch_size_that_is_measured_later_is_refused() -> None:
    config: Config = load_config(None, overrides=["train.batch_size=auto"]).config
    with pytest.raises(UserError, match=r"--set train\.batch_size=32"):
        workload_of(config, SMALL)


@pytest.mark.parametrize("name", ["h100", "laptops"])
def test_shipped_clusters_are_read(name: str) -> None:
    assert read_cluster(name).devices > 1


def test_a_wrong_cluster_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("nodes: 0\nmemory: 8\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_cluster(str(path))
    assert "nodes must be at least 1, found 0" in str(caught.value)
    assert "memory is not a field. Did you mean memory_gb?" in str(caught.value)
    with pytest.raises(UserError, match="Did you mean h100"):
        read_cluster("h10")
