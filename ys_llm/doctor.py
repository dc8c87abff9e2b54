"""`ys doctor`: what this machine has, how fast it is, what `auto` takes here, what would help."""

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
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.system.files import write_atomically
from ys_llm.system.machine import Machine, inspect_machine, versions
from ys_llm.training.compute import compile_kernels, matmul_rate, resolve_dtype, synchronise

GB = 10**9
LITTLE_MEMORY, LITTLE_DISK = 2 * GB, 1 * GB  # the default run takes 1.4 and some 0.3
SLOW_SYNC = 0.1  # seconds; a checkpoint syncs ten times
MUCH_SWAPPED = GB // 4
COPIED = 1 << 26  # bytes: beyond every cache
PROBE = b"\0" * 4096
BUSY = 0.5  # share of the cores
CAPABILITY = "ATEN_CPU_CAPABILITY"
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TOLD_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


@dataclass(frozen=True)
class Writing:
    """Whether `folder` can be written; bytes free there, seconds that a small safe write takes."""

    folder: Path
    free_bytes: int
    seconds: float | None
    problem: str = ""


@dataclass(frozen=True)
class Checkup:
    """All that was found out, as plain data. Rates are FLOP/s and bytes/s on `device`."""

    machine: Machine
    versions: Mapping[str, str]
    debug_builds: tuple[str, ...]
    environment: Mapping[str, str]
    threads: int
    instructions: str
    cuda_build: str
    gpu: str
    rates: Mapping[str, float]
    copy_rate: float
    writing: Writing
    dtype: tuple[str, str]
    kernels: tuple[str, str]
    unavailable: loader.Unavailable | None


def doctor(environment: Mapping[str, str], *, runs_dir: Path = Path("runs")) -> str:
    """The whole report: a fact a line, then what would make training faster or safer."""
    return as_text(examine(environment, runs_dir=runs_dir))


def as_text(checkup: Checkup) -> str:
    """Facts and advice, one a line, the texts below each other."""
    rows = report(checkup) + [("advice", text) for text in advice(checkup)]
    return "\n".join(f"{label:<13} {text}" for label, text in rows)


def examine(
    environment: Mapping[str, str], *, runs_dir: Path = Path("runs"), root: Path = Path("/")
) -> Checkup:
    """Look at everything once and measure what nothing tells; leaves nothing behind."""
    machine = inspect_machine(root)  # first: the load must not be this program's own
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    compile_kernels()
    dtype, kernels = _choices(device)
    return Checkup(
        machine=machine,
        versions=versions(),
        debug_builds=_debug_builds(),
        environment=environment,
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cuda_build=torch.version.cuda or "",
        gpu=_gpu(),
        rates={name: matmul_rate(dtype, device) for name, dtype in dtypes.items()},
        copy_rate=copy_rate(device),
        writing=try_writing(runs_dir),
        dtype=dtype,
        kernels=kernels,
        unavailable=loader.unavailable(),
    )


def _debug_builds() -> tuple[str, ...]:
    debug = {"torch": torch.version.debug, "python": hasattr(sys, "gettotalrefcount")}
    return tuple(name for name, is_debug in debug.items() if is_debug)


def _gpu() -> str:
    if not torch.cuda.is_available():
        return ""
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / GB:.1f} GB"


def _choices(device: torch.device) -> tuple[tuple[str, str], tuple[str, str]]:
    """What the defaults come to here: dtype, and the kernels of the default model, with reasons."""
    config = load_config(None).config
    dtype, why = resolve_dtype(config.train, device)
    model = Model(config.model, vocab_size=1, backends=config.train.backend)
    selected = model.to(device).select_backends(
        batch_size=config.train.plan[0].batch_size,
        precision="bf16" if dtype == "bf16" else "fp32",
    )
    return (dtype, why), next(iter(selected.values()))


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy too large for any cache; the best of five."""
    source = torch.ones(COPIED // 4, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(6):  # the first also takes the memory from the system
        synchronise(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * COPIED / min(seconds[1:])


def try_writing(runs_dir: Path) -> Writing:
    """Write a file where runs go, or would go, as checkpoints are written, and take it away."""
    folder = runs_dir.absolute()
    while not os.path.isdir(folder):  # also where its parent may not be looked into
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    probe = folder / f".ys-doctor-{os.getpid()}"
    begin = time.perf_counter()
    try:
        write_atomically(probe, PROBE)
    except UserError as error:
        return Writing(folder, free, None, error.problem)
    seconds = time.perf_counter() - begin
    probe.unlink()
    return Writing(folder, free, seconds)


def report(checkup: Checkup) -> list[tuple[str, str]]:
    """Every fact with its label, in the order in which they are printed."""
    return [*checkup.versions.items(), *_about_machine(checkup.machine), *_about_torch(checkup)]


def _about_machine(machine: Machine) -> list[tuple[str, str]]:
    physical = machine.physical_cores or "an unknown number of"
    quota = "" if machine.core_quota is None else f", a quota of {machine.core_quota:g}"
    limit = "" if machine.limit_bytes is None else f", limit {_gb(machine.limit_bytes)}"
    features = [name for name in TOLD_FEATURES if name in machine.features]
    load = "unknown" if machine.load is None else f"{machine.load:.2f} in the last minute"
    return [
        ("system", f"{machine.system}, {machine.architecture}"),
        ("processor", machine.processor),
        ("features", " ".join(features) or "unknown"),
        (
            "cores",
            f"{machine.logical_cores} logical, {physical} physical; "
            f"{machine.allowed_cores} allowed{quota}",
        ),
        ("load", load),
        ("memory", f"{_gb(machine.free_bytes)} free of {_gb(machine.memory_bytes)}{limit}"),
        ("swap", f"{_gb(machine.swapped_bytes)} in use"),
    ]


def _about_torch(checkup: Checkup) -> list[tuple[str, str]]:
    settings = _thread_settings(checkup)
    writing = checkup.writing
    written = writing.problem or f"{1000 * (writing.seconds or 0):.1f} ms for a small synced file"
    rates = [
        (f"{name} products", f"{rate / 1e9:,.0f} GFLOP/s") for name, rate in checkup.rates.items()
    ]
    return [
        ("torch build", f"CUDA {checkup.cuda_build}" if checkup.cuda_build else "CPU only"),
        ("gpu", checkup.gpu or "none that torch can use"),
        ("threads", f"{checkup.threads}{f' ({settings})' if settings else ''}"),
        ("instructions", checkup.instructions),
        *rates,
        ("copying", f"{checkup.copy_rate / 1e9:,.1f} GB/s"),
        ("disk", f"{_gb(writing.free_bytes)} free in {writing.folder}"),
        ("writing", written),
        (
            "compiler",
            checkup.unavailable.problem if checkup.unavailable else loader.compiler_version(),
        ),
        ("dtype", ": ".join(checkup.dtype)),
        ("kernels", ": ".join(checkup.kernels)),
    ]


def _gb(count: int) -> str:
    return f"{count / GB:.1f} GB"


def _thread_settings(checkup: Checkup) -> str:
    told = checkup.environment
    return ", ".join(f"{name}={told[name]}" for name in THREAD_SETTINGS if told.get(name))


def advice(checkup: Checkup) -> list[str]:
    """What to do about it, the weightiest first; one line where nothing stands out."""
    return [text for rule in RULES if (text := rule(checkup))] or ["nothing: all is well"]


def cannot_write(checkup: Checkup) -> str:
    """Nothing can be trained where nothing can be written."""
    problem = checkup.writing.problem
    return f"{problem}: mend that, or train in a folder that you may write to" if problem else ""


def little_disk(checkup: Checkup) -> str:
    """The corpus' tokens and three checkpoints have to fit."""
    writing = checkup.writing
    if writing.free_bytes >= LITTLE_DISK:
        return ""
    return f"only {_gb(writing.free_bytes)} are free in {writing.folder}: make room"


def little_memory(checkup: Checkup) -> str:
    """The default run's peak has to fit."""
    free = checkup.machine.free_bytes
    if free >= LITTLE_MEMORY:
        return ""
    return f"only {_gb(free)} of memory are free: close programs, or --set train.batch_size=auto"


def swapping(checkup: Checkup) -> str:
    """Memory that comes back from a disk is a thousand times as slow."""
    swapped = checkup.machine.swapped_bytes
    return "" if swapped < MUCH_SWAPPED else f"{_gb(swapped)} are swapped out: close programs"


def idle_gpu(checkup: Checkup) -> str:
    """A GPU that torch cannot reach."""
    if checkup.gpu or not checkup.machine.has_nvidia_driver:
        return ""
    if checkup.cuda_build:
        return "torch sees no GPU, though an NVIDIA driver is here: compare `nvidia-smi`'s CUDA"
    return "torch is built for CPUs only, though an NVIDIA driver is here: install a CUDA build"


def debug_build(checkup: Checkup) -> str:
    """Several times as slow, by checks that only their developers want."""
    named = " and ".join(checkup.debug_builds)
    return f"a debug build of {named} is slow: install a release" if named else ""


def idle_cores(checkup: Checkup) -> str:
    """Fewer threads than cores."""
    usable = checkup.machine.usable_cores
    if checkup.gpu or checkup.threads >= usable:
        return ""
    left = f"leaves {usable - checkup.threads} of {usable} cores idle"
    settings = _thread_settings(checkup)
    if settings:
        return f"{settings} {left}: unset it, or --set train.threads={usable}"
    return f"torch {left}: --set train.threads={usable}"


def crowded_cores(checkup: Checkup) -> str:
    """More threads than cores: each waits for the others at every product."""
    machine = checkup.machine
    most = min(machine.allowed_cores, machine.core_quota or machine.allowed_cores)
    if checkup.threads <= max(1, most):
        return ""
    usable = machine.usable_cores
    return f"{checkup.threads} threads share {most:g} cores: --set train.threads={usable}"


def core_quota(checkup: Checkup) -> str:
    """A container that may not use what it sees."""
    quota, cores = checkup.machine.core_quota, checkup.machine.allowed_cores
    if quota is None or quota >= cores:
        return ""
    return f"this container may use {quota:g} of {cores} cores: raise its limit, if it is yours"


def pinned(checkup: Checkup) -> str:
    """A process kept on some of the cores."""
    allowed, cores = checkup.machine.allowed_cores, checkup.machine.logical_cores
    if allowed >= cores:
        return ""
    return f"this process is kept on {allowed} of {cores} cores: see `taskset -p $$`"


def busy(checkup: Checkup) -> str:
    """Others at work on the same cores."""
    load, cores = checkup.machine.load or 0.0, checkup.machine.logical_cores
    if load < BUSY * cores:
        return ""
    return f"{load:.1f} programs were at work on {cores} cores before this began: see `top`"


def instructions(checkup: Checkup) -> str:
    """Vector instructions that the processor lacks, or that torch was told to leave alone."""
    machine, taken = checkup.machine, checkup.instructions
    if machine.architecture.lower() not in ("x86_64", "amd64"):
        return ""
    if not {"avx2", "avx512f"} & machine.features and not taken.startswith("AVX"):
        return "the processor has no AVX2: products take several times as long as they could"
    told = checkup.environment.get(CAPABILITY, "")
    better = "AVX512" if "avx512f" in machine.features else "AVX2"
    if told and better not in taken:
        return f"{CAPABILITY}={told} keeps torch from {better}: unset it"
    return ""


def no_compiled_code(checkup: Checkup) -> str:
    """A CPU that trains through torch's own operators alone."""
    if checkup.gpu or not checkup.unavailable or not checkup.unavailable.fix:
        return ""
    return f"{checkup.unavailable.problem}. {checkup.unavailable.fix}"


def slow_disk(checkup: Checkup) -> str:
    """A checkpoint syncs some ten times."""
    writing = checkup.writing
    if writing.seconds is None or writing.seconds < SLOW_SYNC:
        return ""
    return (
        f"{writing.folder} takes {writing.seconds:.1f} s to write safely: "
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
    slow_disk,
)
