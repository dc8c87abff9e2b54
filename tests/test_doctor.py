"""`ys doctor`: its facts are this machine's, and its advice fits machines of every kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from ys_llm.cli.main import main
from ys_llm.config.sources import load_config
from ys_llm.csrc import loader
from ys_llm.csrc.loader import Unavailable
from ys_llm.doctor import (
    GB,
    RULES,
    Checkup,
    WriteTest,
    advice,
    as_text,
    doctor,
    examine,
    matmul_rates,
    report,
    try_writing,
)
from ys_llm.ops.three_tier import select
from ys_llm.system import machine
from ys_llm.system.machine import Machine
from ys_llm.training import compute

HEALTHY = Checkup(
    machine=Machine(
        system="Linux 6.1",
        architecture="x86_64",
        processor="AMD Ryzen 7",
        features=frozenset({"avx2", "avx512f", "avx512_bf16"}),
        logical_cores=16,
        physical_cores=8,
        allowed_cores=16,
        core_quota=None,
        quota_source="",
        load=0.4,
        memory_bytes=32 * GB,
        free_bytes=24 * GB,
        limit_bytes=None,
        swapped_bytes=0,
        has_nvidia_driver=False,
    ),
    versions={"ys": "0.1.0", "torch": "2.13"},
    debug_builds=(),
    environment={},
    threads=8,
    thread_source="physical cores",
    instructions="AVX512",
    cuda_build="",
    gpu="",
    matmul_rates={"fp32": 5e11, "bf16": 1e12},
    bf16_problem="",
    copy_rate=2e10,
    writing=WriteTest(Path("runs"), 100 * GB, 0.004),
    dtype=("fp32", "as configured"),
    backend=("windowed", "it is faster"),
    records=("dtype (size 1024): bf16, it is faster", "backend (batch 32): cpp, it is faster"),
    disturbed=0,
    records_folder=Path("my cache"),
    compiler="g++ 12.2",
    unavailable=None,
)
LIMITED = WriteTest(Path("runs"), 100 * GB, None, "runs cannot be written: Read-only file system")


def changed(**changes: Any) -> Checkup:
    """The healthy machine with some of its own facts or of torch's replaced."""
    own = {name: value for name, value in changes.items() if hasattr(HEALTHY.machine, name)}
    rest = {name: value for name, value in changes.items() if name not in own}
    return replace(HEALTHY, machine=replace(HEALTHY.machine, **own), **rest)


@pytest.fixture(scope="module")
def checkup(tmp_path_factory: pytest.TempPathFactory) -> Checkup:
    return examine({}, runs_dir=tmp_path_factory.mktemp("doctor") / "runs")


def test_a_healthy_machine_needs_nothing() -> None:
    assert advice(HEALTHY) == ["none: everything is fine"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"writing": LIMITED}, "runs cannot be written: Read-only file system: fix that"),
        ({"writing": WriteTest(Path("runs"), GB // 2, 0.004)}, "only 500.0 MB free in runs"),
        (
            {"writing": WriteTest(Path("runs"), 100 * GB, 0.3)},
            "a small synced file in runs takes 0.3 s",
        ),
        ({"free_bytes": GB}, "only 1.0 GB of memory free"),
        ({"swapped_bytes": 3 * GB}, "3.0 GB swapped out"),
        ({"has_nvidia_driver": True}, "torch is built for CPUs only"),
        ({"has_nvidia_driver": True, "cuda_build": "12.6"}, "torch finds no GPU"),
        ({"debug_builds": ("torch", "python")}, "a debug build of torch and python is slow"),
        (
            {"threads": 1, "environment": {"OMP_NUM_THREADS": "1"}},
            "OMP_NUM_THREADS=1 leaves 7 of 8 cores idle: unset it, or --set train.threads=8",
        ),
        (
            {"unavailable": Unavailable("there is no C++ compiler", "Install g++")},
            "there is no C++ compiler, so training is slower. Install g++",
        ),
        ({"disturbed": 1}, "other work disturbed 1 of the measurements above"),
        ({"disturbed": 1}, "when nothing else runs, type: ys doctor --remeasure"),
        ({"threads": 6}, "torch leaves 2 of 8 cores idle: --set train.threads=8"),
        ({"threads": 20}, "20 threads share 16 cores: --set train.threads=8"),
        ({"load": 9.0}, "9.0 processes were running on 16 cores"),
        ({"instructions": "DEFAULT", "features": frozenset({"sse2"})}, "has no AVX2"),
        (
            {"instructions": "AVX2", "environment": {"ATEN_CPU_CAPABILITY": "avx2"}},
            "ATEN_CPU_CAPABILITY=avx2 keeps torch from using AVX512: unset it",
        ),
        (
            {"instructions": "DEFAULT", "environment": {"ATEN_CPU_CAPABILITY": "default"}},
            "ATEN_CPU_CAPABILITY=default keeps torch from using AVX512: unset it",
        ),
    ],
)
def test_each_problem_has_its_advice(changes: dict[str, Any], expected: str) -> None:
    given = advice(changed(**changes))
    assert len(given) == 1
    assert expected in given[0]


def test_a_container_learns_of_its_quota_and_its_threads() -> None:
    assert advice(changed(core_quota=2.0)) == [
        "8 threads share 2 cores: --set train.threads=2",
        "this container may use 2 of 16 cores: raise its limit if you can",
    ]
    assert advice(changed(core_quota=16.0)) == ["none: everything is fine"]


def test_a_pinned_process_is_reported() -> None:
    (given,) = advice(changed(allowed_cores=8))
    assert given == "this process is pinned to 8 of 16 cores: see `taskset -p $$`"


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "NVIDIA H100, 80 GB", "cuda_build": "12.6", "has_nvidia_driver": True},
        {"gpu": "NVIDIA H100, 80 GB", "threads": 1},
        {"gpu": "NVIDIA H100, 80 GB", "unavailable": Unavailable("there is no C++ compiler", "")},
        {"system": "Darwin 24", "unavailable": Unavailable("only on Linux", "Nothing to do")},
        {"architecture": "arm64", "features": frozenset(), "instructions": "DEFAULT"},
        {"instructions": "AVX2"},  # torch's own choice
        {"features": frozenset()},  # no /proc, and torch uses AVX-512
        {"physical_cores": None, "threads": 16, "load": None},
        {"core_quota": 0.5, "allowed_cores": 1, "logical_cores": 1, "threads": 1, "load": 0.1},
    ],
)
def test_what_is_no_problem_has_no_advice(changes: dict[str, Any]) -> None:
    given = [text for text in advice(changed(**changes)) if not text.startswith("this container")]
    assert given in ([], ["none: everything is fine"])


def test_every_rule_explains_itself() -> None:
    assert all(rule.__doc__ for rule in RULES)


def test_the_facts_are_what_torch_and_the_system_say(checkup: Checkup) -> None:
    assert (checkup.threads, checkup.thread_source) == compute.thread_choice()
    assert checkup.instructions == torch.backends.cpu.get_cpu_capability()
    assert bool(checkup.gpu) == torch.cuda.is_available()
    assert checkup.machine.logical_cores == os.cpu_count()
    assert all(1e8 < rate < 1e16 for rate in checkup.matmul_rates.values())
    assert "fp32" in checkup.matmul_rates


def test_the_choices_are_the_trainings_own(checkup: Checkup) -> None:
    dtype, why = checkup.dtype
    assert dtype in ("fp32", "bf16")
    assert why
    backend, why = checkup.backend
    assert backend in select.BACKENDS
    assert why
    assert load_config(None).config.model.layers == ("three_tier",)


def test_bf16_is_measured_only_where_it_is_not_emulated() -> None:
    assert set(matmul_rates(torch.device("cpu"), has_bf16=False)) == {"fp32"}
    slow = replace(HEALTHY, matmul_rates={"fp32": 1e11}, bf16_problem="no bf16 hardware")
    assert dict(report(slow))["bf16 matmul"] == "no bf16 hardware"


@pytest.mark.slow
def test_without_bf16_hardware_no_bf16_matmul_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two cores with AVX2 alone the full size takes a minute."""
    monkeypatch.setenv("YS_CPU_LEVEL", "avx2")
    right, dtypes = compute.matmul_seconds, set[torch.dtype]()

    def counted(dtype: torch.dtype, *arguments: Any, **options: Any) -> float:
        dtypes.add(dtype)
        return right(dtype, *arguments, **options)

    monkeypatch.setattr(compute, "matmul_seconds", counted)
    checkup = examine({}, runs_dir=tmp_path)
    assert dtypes == {torch.float32}
    assert checkup.bf16_problem == "no bf16 hardware"
    assert checkup.dtype == ("fp32", "no bf16 hardware")


def test_the_records_are_shown_with_how_to_measure_again() -> None:
    rows = dict(report(HEALTHY))
    assert rows["measured 1"] == "dtype (size 1024): bf16, it is faster"
    assert rows["measure again"].startswith("ys doctor --remeasure; ")
    assert dict(report(replace(HEALTHY, records=())))["measured"] == "nothing that is kept"


def test_what_the_doctor_measured_is_what_a_training_reads(
    tmp_path: Path, own_records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_seconds", lambda name, *rest: 1.0)
    first = examine({}, runs_dir=tmp_path)
    monkeypatch.setattr(select, "_seconds", None)
    assert examine({}, runs_dir=tmp_path).backend == first.backend
    assert len(first.records) == len(list(own_records.glob("*.json")))


def test_a_disturbed_measurement_is_told_with_its_figures_and_replaced_by_remeasuring(
    tmp_path: Path,
    own_records: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_machine: None,
) -> None:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(compute, "matmul_seconds", lambda *_, **__: 0.001)

    def told(cpp: Iterable[float], *flags: str) -> str:
        rounds = iter(cpp)
        times = {"cpp": lambda: next(rounds), "windowed": lambda: 0.004}
        monkeypatch.setattr(select, "_seconds", lambda name, *rest: times[name]())
        assert main(["doctor", *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        return "\n".join(
            line for line in lines if re.match("measured|advice .*measure|backend ", line)
        )

    disturbed = told(cycle([0.001, 0.002]))
    assert re.search(r"measured .* cpp, .* the default: rounds differed by 2\.0 times", disturbed)
    assert re.search(r"as measured on this machine on \d{4}-\d\d-\d\d \(cpp 1\.00 ms, ", disturbed)
    assert "type: ys doctor --remeasure" in disturbed
    assert told([]).partition("measured")[2] == disturbed.partition("measured")[2], "kept"
    calm = told(repeat(0.016), "--remeasure")
    assert re.search(r"measured .*: windowed, .* \(cpp 16\.00 ms, windowed 4\.00 ms\)", calm)
    assert "advice" not in calm
    assert told([]) == calm


@pytest.fixture
def torch_has_eight_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("limits", "threads", "source"),
    [
        ({}, 8, "physical cores"),
        ({"physical_cores": 16}, 8, "torch's own number"),
        ({"physical_cores": 4}, 4, "physical cores"),
        ({"allowed_cores": 2, "physical_cores": 2}, 2, "CPU affinity: 2 of 16"),
        ({"allowed_cores": 2, "physical_cores": 1}, 1, "physical cores"),
        ({"core_quota": 64.0}, 8, "physical cores"),
        ({"core_quota": 2.5}, 2, "quota of 2.5 cores in /sys/fs/cgroup/cpu.max"),
        ({"core_quota": 1.0}, 1, "quota of 1 cores in /sys/fs/cgroup/cpu.max"),
        ({"core_quota": 0.5}, 1, "quota of 0.5 cores in /sys/fs/cgroup/cpu.max"),
    ],
)
def test_a_training_takes_the_threads_that_have_a_core_each(
    limits: dict[str, Any],
    threads: int,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    torch_has_eight_threads: None,
) -> None:
    machine = replace(HEALTHY.machine, quota_source="/sys/fs/cgroup/cpu.max", **limits)
    monkeypatch.setattr(compute, "inspect_machine", lambda: machine)
    assert compute.thread_choice() == (threads, source)
    given = advice(changed(**limits, threads=threads))
    assert not [text for text in given if "train.threads" in text and "idle" not in text]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_environment_sets_the_threads_even_beyond_a_quota(
    name: str, monkeypatch: pytest.MonkeyPatch, torch_has_eight_threads: None
) -> None:
    limited = replace(HEALTHY.machine, core_quota=1.0)
    monkeypatch.setattr(compute, "inspect_machine", lambda: limited)
    monkeypatch.setenv(name, "8")
    assert compute.thread_choice() == (8, f"{name}=8")
    assert "8 threads share 1 cores: --set train.threads=1" in advice(changed(core_quota=1.0))


def test_a_training_runs_with_the_threads_that_were_chosen(
    monkeypatch: pytest.MonkeyPatch, threads_as_they_were: None
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    limited = replace(HEALTHY.machine, core_quota=1.0)
    monkeypatch.setattr(compute, "inspect_machine", lambda: limited)
    with compute.process_settings(load_config(None).config.train):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_copying_is_slower_than_any_cache_and_faster_than_any_disk() -> None:
    assert 1e8 < compute.copy_rate(torch.device("cpu")) < 1e13


def test_there_is_one_line_for_each_fact() -> None:
    lines = as_text(HEALTHY).splitlines()
    facts = report(HEALTHY)
    assert len(lines) == len(facts) + 1
    for line, (label, text) in zip(lines, facts, strict=False):
        assert line == f"{label:<13} {text}"
        assert len(label) <= 13
        assert text.strip() == text != ""
    assert lines[-1] == "advice        none: everything is fine"
    assert len({label for label, _ in facts}) == len(facts)


def test_the_whole_report_is_made_here(tmp_path: Path) -> None:
    text = doctor({}, runs_dir=tmp_path / "runs")
    assert f"torch         {torch.__version__}" in text
    assert f"threads       {compute.default_threads()} (" in text
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_proc_says_unknown(checkup: Checkup, tmp_path: Path) -> None:
    rows = dict(report(replace(checkup, machine=machine.inspect_machine(tmp_path))))
    assert rows["features"] == "unknown"
    assert "unknown" not in rows["memory"]  # known on every platform


def test_a_folder_that_is_not_there_yet_is_tried_where_it_would_be(tmp_path: Path) -> None:
    writing = try_writing(tmp_path / "not" / "yet")
    assert writing.folder == tmp_path
    assert writing.problem == ""
    assert 0 < (writing.seconds or 0) < 60
    assert writing.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    writing = try_writing(tmp_path)
    assert writing.seconds is None
    assert "No space left on device" in writing.problem
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in dict(report(replace(HEALTHY, writing=writing)))["writing"]
