"""`ys doctor`: what this machine has, how fast it is, what `auto` chooses here, what would help."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ys_llm.config.sources import load_config
from ys_llm.csrc import loader
from ys_llm.csrc.loader import Unavailable
from ys_llm.errors import UserError, command_line
from ys_llm.model.language_model import Model
from ys_llm.ops import choices
from ys_llm.system.files import write_atomically
from ys_llm.system.machine import Machine, inspect_machine, versions
from ys_llm.system.sizes import human_size
from ys_llm.training.compute import (
    bf16_problem,
    copy_rate,
    matmul_rate,
    process_settings,
    resolve_dtype,
    thread_choice,
)

GB = 10**9
LITTLE_MEMORY, LITTLE_DISK = 2 * GB, 1 * GB  # the default run uses 1.4 and about 0.3
SLOW_WRITE_SECONDS = 0.1  # for one small synced file; a checkpoint syncs ten times
MUCH_SWAPPED = GB // 4
PROBE = b"\0" * 4096
BUSY = 0.5  # share of the cores
SHOWN_RECORDS = 6
REMEASURE = command_line("doctor", remeasure=True)
CAPABILITY = "ATEN_CPU_CAPABILITY"
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SHOWN_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


@dataclass(frozen=True)
class WriteTest:
    """Whether `folder` can be written; its free bytes, and seconds for one small synced file."""

    folder: Path
    free_bytes: int
    seconds: float | None
    problem: str = ""


@dataclass(frozen=True)
class Checkup:
    """Everything that was measured, as plain data. Rates are FLOP/s and bytes/s on `device`.

    `thread_source` sets the number of threads; `bf16_problem` is why bf16 has no rate. `dtype` and
    `backend` are what `auto` chooses for the default model, each with its reason. `disturbed`: how
    many of the kept measurements were disturbed by other work.
    """

    machine: Machine
    versions: Mapping[str, str]
    debug_builds: tuple[str, ...]
    environment: Mapping[str, str]
    threads: int
    thread_source: str
    instructions: str
    cuda_build: str
    gpu: str
    matmul_rates: Mapping[str, float]
    bf16_problem: str
    copy_rate: float
    writing: WriteTest
    compiler: str
    unavailable: Unavailable | None  # why there is no compiled code
    dtype: tuple[str, str]
    backend: tuple[str, str]
    records: tuple[str, ...]
    disturbed: int
    records_folder: Path | None


def doctor(environment: Mapping[str, str], *, runs_dir: Path = Path("runs")) -> str:
    """The report: one fact per line, then what would make training faster or safer."""
    return as_text(examine(environment, runs_dir=runs_dir))


def as_text(checkup: Checkup) -> str:
    """Facts and advice, one per line, in aligned columns."""
    rows = report(checkup) + [("advice", text) for text in advice(checkup)]
    return "\n".join(f"{label:<13} {text}" for label, text in rows)


def examine(
    environment: Mapping[str, str], *, runs_dir: Path = Path("runs"), root: Path = Path("/")
) -> Checkup:
    """Inspect and measure everything once, in a few seconds.

    Leaves nothing behind but the compiled kernels, where they were not compiled yet.
    """
    machine = inspect_machine(root)  # first, so that the load is not this program's own
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader.build(announce=lambda line: print(line, file=sys.stderr))
    threads, thread_source = thread_choice()
    problem = bf16_problem(device)
    with process_settings(load_config(None).config.train):
        dtype, backend = _choices(device)
        rates = matmul_rates(device, has_bf16=not problem)
        records = choices.records()
    return Checkup(
        machine=machine,
        versions=versions(),
        debug_builds=_debug_builds(),
        environment=environment,
        threads=threads,
        thread_source=thread_source,
        instructions=torch.backends.cpu.get_cpu_capability(),
        cuda_build=torch.version.cuda or "",
        gpu=_gpu(),
        matmul_rates=rates,
        bf16_problem=problem,
        copy_rate=copy_rate(device),
        writing=try_writing(runs_dir),
        compiler=loader.compiler_version(),
        unavailable=loader.unavailable(),
        dtype=dtype,
        backend=backend,
        records=tuple(map(choices.shown, records)),
        disturbed=sum(bool(record.disturbance) for record in records),
        records_folder=choices.records_folder(),
    )


def _debug_builds() -> tuple[str, ...]:
    debug = {"torch": torch.version.debug, "python": hasattr(sys, "gettotalrefcount")}
    return tuple(name for name, is_debug in debug.items() if is_debug)


def _gpu() -> str:
    if not torch.cuda.is_available():
        return ""
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {human_size(found.total_memory)}"


def _choices(device: torch.device) -> tuple[tuple[str, str], tuple[str, str]]:
    """What `auto` chooses for the default model, and why: dtype and backend."""
    config = load_config(None).config
    dtype, reason = resolve_dtype(config.train, device)
    model = Model(config.model, vocab_size=1).to(device)
    selected = model.select_backends(batch_size=config.train.plan[0].batch_size, precision=dtype)
    return (dtype, reason), next(iter(selected.values()))


def matmul_rates(device: torch.device, *, has_bf16: bool) -> dict[str, float]:
    """FLOP/s of a matmul by dtype; bf16 only where it is not emulated, else it takes minutes."""
    dtypes = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if has_bf16 else {})
    return {name: matmul_rate(dtype, device) for name, dtype in dtypes.items()}


def try_writing(runs_dir: Path) -> WriteTest:
    """Write and remove a file where runs are, or would be, as a checkpoint would."""
    folder = runs_dir.absolute()
    while not os.path.isdir(folder):  # also where its parent may not be read
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    probe = folder / f".ys-doctor-{os.getpid()}"
    began = time.perf_counter()
    try:
        write_atomically(probe, PROBE)
    except UserError as error:
        return WriteTest(folder, free, None, error.problem)
    seconds = time.perf_counter() - began
    probe.unlink()
    return WriteTest(folder, free, seconds)


def report(checkup: Checkup) -> list[tuple[str, str]]:
    """Every fact with its label, in the order in which they are printed."""
    return [*checkup.versions.items(), *_machine_rows(checkup.machine), *_torch_rows(checkup)]


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    physical = machine.physical_cores or "an unknown number of"
    quota = machine.core_quota
    quota_text = "" if quota is None else f"; quota {quota:g} ({machine.quota_source})"
    allowed = f"{machine.allowed_cores} allowed, {physical} physical{quota_text}"
    memory = human_size(machine.memory_bytes)
    limit = "" if machine.limit_bytes is None else f", limit {human_size(machine.limit_bytes)}"
    features = [name for name in SHOWN_FEATURES if name in machine.features]
    load = "unknown" if machine.load is None else f"{machine.load:.2f} in the last minute"
    return [
        ("system", f"{machine.system}, {machine.architecture}"),
        ("processor", machine.processor),
        ("features", " ".join(features) or "unknown"),
        ("cores", f"{machine.logical_cores} logical; {allowed}"),
        ("load", load),
        ("memory", f"{human_size(machine.free_bytes)} free of {memory}{limit}"),
        ("swap", f"{human_size(machine.swapped_bytes)} in use"),
    ]


def _torch_rows(checkup: Checkup) -> list[tuple[str, str]]:
    writing, rates, problem = checkup.writing, checkup.matmul_rates, checkup.bf16_problem
    written = writing.problem or f"{1000 * (writing.seconds or 0):.1f} ms for a small synced file"
    return [
        ("torch build", f"CUDA {checkup.cuda_build}" if checkup.cuda_build else "CPU only"),
        ("gpu", checkup.gpu or "none that torch can use"),
        ("threads", f"{checkup.threads} ({checkup.thread_source})"),
        ("instructions", checkup.instructions),
        *((f"{name} matmul", f"{rate / 1e9:,.0f} GFLOP/s") for name, rate in rates.items()),
        *([("bf16 matmul", problem)] if problem else []),
        ("copying", f"{checkup.copy_rate / 1e9:,.1f} GB/s"),
        ("disk", f"{human_size(writing.free_bytes)} free in {writing.folder}"),
        ("writing", written),
        ("compiler", checkup.compiler or "none"),
        ("compiled code", checkup.unavailable.problem if checkup.unavailable else "ready"),
        ("dtype", ": ".join(checkup.dtype)),
        ("backend", ": ".join(checkup.backend)),
        *_record_rows(checkup),
    ]


def _record_rows(checkup: Checkup) -> list[tuple[str, str]]:
    """The newest measurements that decide here, and how to measure again."""
    shown = checkup.records[:SHOWN_RECORDS]
    if not shown:
        return [("measured", "nothing that is kept")]
    rows = [(f"measured {number}", text) for number, text in enumerate(shown, 1)]
    again = f"{REMEASURE}; new runs then choose by it (kept in {checkup.records_folder})"
    return [*rows, ("measure again", again)]


def _thread_settings(checkup: Checkup) -> str:
    given = checkup.environment
    return ", ".join(f"{name}={given[name]}" for name in THREAD_SETTINGS if given.get(name))


def advice(checkup: Checkup) -> list[str]:
    """What to do about it, the most important first; one line where everything is fine."""
    return [text for rule in RULES if (text := rule(checkup))] or ["none: everything is fine"]


def cannot_write(checkup: Checkup) -> str:
    """Nothing can be trained where nothing can be written."""
    problem = checkup.writing.problem
    return f"{problem}: fix that, or train in a folder that you may write to" if problem else ""


def little_disk(checkup: Checkup) -> str:
    """The corpus' tokens and three checkpoints have to fit."""
    writing = checkup.writing
    if writing.free_bytes >= LITTLE_DISK:
        return ""
    return f"only {human_size(writing.free_bytes)} free in {writing.folder}: free some space"


def little_memory(checkup: Checkup) -> str:
    """The default run's peak has to fit."""
    free = checkup.machine.free_bytes
    if free >= LITTLE_MEMORY:
        return ""
    return f"only {human_size(free)} of memory free: close programs, or --set train.batch_size=auto"


def swapping(checkup: Checkup) -> str:
    """Memory that has to be read back from disk before it can be used."""
    swapped = checkup.machine.swapped_bytes
    if swapped < MUCH_SWAPPED:
        return ""
    return f"{human_size(swapped)} swapped out: close programs"


def idle_gpu(checkup: Checkup) -> str:
    """A GPU that torch cannot reach."""
    if checkup.gpu or not checkup.machine.has_nvidia_driver:
        return ""
    if checkup.cuda_build:
        return "there is an NVIDIA driver, but torch finds no GPU: compare `nvidia-smi`'s CUDA"
    return "there is an NVIDIA driver, but torch is built for CPUs only: install a CUDA build"


def debug_build(checkup: Checkup) -> str:
    """Libraries built with checks that only their developers need."""
    named = " and ".join(checkup.debug_builds)
    return f"a debug build of {named} is slow: install a release" if named else ""


def idle_cores(checkup: Checkup) -> str:
    """Fewer threads than cores."""
    usable = checkup.machine.usable_cores
    if checkup.gpu or checkup.threads >= usable:
        return ""
    left = f"leaves {usable - checkup.threads} of {usable} cores idle"
    if settings := _thread_settings(checkup):
        return f"{settings} {left}: unset it, or --set train.threads={usable}"
    return f"torch {left}: --set train.threads={usable}"


def crowded_cores(checkup: Checkup) -> str:
    """More threads than cores: each waits for the others at every matmul."""
    machine = checkup.machine
    cores = min(machine.allowed_cores, machine.core_quota or machine.allowed_cores)
    if checkup.threads <= max(1, cores):
        return ""
    usable = machine.usable_cores
    return f"{checkup.threads} threads share {cores:g} cores: --set train.threads={usable}"


def core_quota(checkup: Checkup) -> str:
    """A container that may not use all the cores it sees."""
    quota, cores = checkup.machine.core_quota, checkup.machine.allowed_cores
    if quota is None or quota >= cores:
        return ""
    return f"this container may use {quota:g} of {cores} cores: raise its limit if you can"


def pinned(checkup: Checkup) -> str:
    """A process that the scheduler keeps on some of the cores."""
    allowed, cores = checkup.machine.allowed_cores, checkup.machine.logical_cores
    if allowed >= cores:
        return ""
    return f"this process is pinned to {allowed} of {cores} cores: see `taskset -p $$`"


def busy(checkup: Checkup) -> str:
    """Other programs on the same cores."""
    load, cores = checkup.machine.load or 0.0, checkup.machine.logical_cores
    if load < BUSY * cores:
        return ""
    return f"{load:.1f} processes were running on {cores} cores before this check: see `top`"


def instructions(checkup: Checkup) -> str:
    """Vector instructions that the processor lacks, or that torch was told not to use."""
    machine, used = checkup.machine, checkup.instructions
    if machine.architecture.lower() not in ("x86_64", "amd64"):
        return ""
    if not {"avx2", "avx512f"} & machine.features and not used.startswith("AVX"):
        return "the processor has no AVX2, and matmuls are slow without it"
    setting = checkup.environment.get(CAPABILITY, "")
    better = "AVX512" if "avx512f" in machine.features else "AVX2"
    if setting and better not in used:
        return f"{CAPABILITY}={setting} keeps torch from using {better}: unset it"
    return ""


def no_compiled_code(checkup: Checkup) -> str:
    """A CPU that could train faster; nothing can be done outside Linux."""
    missing = checkup.unavailable
    if checkup.gpu or missing is None or not checkup.machine.system.startswith("Linux"):
        return ""
    return f"{missing.problem}, so training is slower. {missing.fix}"


def disturbed_measurement(checkup: Checkup) -> str:
    """A choice that was made beside other work, and is kept."""
    if not checkup.disturbed:
        return ""
    return (
        f"other work disturbed {checkup.disturbed} of the measurements above, and defaults were "
        f"chosen: when nothing else runs, type: {REMEASURE}"
    )


def slow_disk(checkup: Checkup) -> str:
    """A checkpoint syncs some ten times."""
    writing = checkup.writing
    if writing.seconds is None or writing.seconds < SLOW_WRITE_SECONDS:
        return ""
    return (
        f"a small synced file in {writing.folder} takes {writing.seconds:.1f} s: "
        f"put runs/ on another disk, or raise train.checkpoint_interval"
    )


RULES: tuple[Callable[[Checkup], str], ...] = (
    cannot_write,
    little_disk,
    little_memory,
    swapping,
    idle_gpu,
    debug_build,
    idle_cores,
    crowded_cores,
    core_quota,
    pinned,
    busy,
    instructions,
    no_compiled_code,
    disturbed_measurement,
    slow_disk,
)
