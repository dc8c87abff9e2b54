"""What a run computes with: device, dtype, the backend of each mixer, process-wide settings.

Each is chosen once per run, shown in the header, saved with every checkpoint and reused on resume.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ys_llm.config.schema import TrainConfig
from ys_llm.csrc import loader
from ys_llm.model.device import resolve_device
from ys_llm.model.language_model import Model
from ys_llm.ops.choices import CHOSEN_BEFORE, NOT_KEPT, Answer, Question, recorded, time_in_turn
from ys_llm.ops.precision import Precision
from ys_llm.system.machine import inspect_machine, thread_setting
from ys_llm.training.metrics import log_line

BF16_GAIN = 1.5  # bf16 matmuls must be this much faster than fp32 ones to be worth their rounding
BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}  # processor flags; the last is ARM's
_PROBE_SIZE = 1024  # rows and columns of the timed matmuls: large enough to reach the full rate
_PROBE_ROUNDS = 5
_SMALL_PROBE_SIZE = 256  # of matmuls that take 30 ms where bf16 is emulated
_SMALL_PROBES = 12  # at most: the first calls, and those beside other work, take long anyway
_COPY_BYTES = 1 << 26  # larger than every cache
_SLOWEST_UNIT = 1e10  # FLOP/s: emulated bf16 reaches 1 to 3 GFLOP/s, hardware some hundred


@dataclass(frozen=True)
class Compute:
    """The device, the dtype of matmul operands and the backend of each mixer; None: not chosen.

    `origin` says in the header where a choice that is kept was made.
    """

    device: torch.device
    dtype: Precision | None = None
    backends: Mapping[str, str] = field(default_factory=dict)  # by mixer name
    origin: str = "as when the run began"

    def autocast(self) -> torch.autocast:
        """bf16 operands where the run's dtype is bf16; weights and state stay float32."""
        enabled = self.dtype == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


@contextmanager
def process_settings(config: TrainConfig, processes: int = 1) -> Iterator[None]:
    """Threads, denormals, determinism and random numbers as training needs them.

    The cores are divided among as many `processes` of this machine.

    Denormal states and moments are flushed to 0: arithmetic on them is slow. On exit, also by an
    exception, every setting is restored.
    """
    threads, flushed = torch.get_num_threads(), _denormals_are_flushed()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(cuda):
        try:
            torch.set_num_threads(config.threads or default_threads(processes))
            torch.set_flush_denormal(True)
            if config.deterministic:
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flushed)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _denormals_are_flushed() -> bool:
    """Whether this thread flushes denormals to 0; torch can set this but not report it."""
    return sys.float_info.min * 0.5 == 0.0


def default_threads(processes: int = 1) -> int:
    """Threads of a run that sets none, in each of as many processes on this machine.

    torchrun sets OMP_NUM_THREADS=1 for several where nobody has set it: that is no choice.
    """
    setting = thread_setting()
    if processes == 1 or (setting and not setting.endswith("=1")):
        return thread_choice()[0]
    return max(1, inspect_machine().core_limit[0] // processes)


def thread_choice() -> tuple[int, str]:
    """Threads of a run that sets none, and what sets the number.

    As many as OMP_NUM_THREADS or MKL_NUM_THREADS say, which torch obeys, else as many as have a
    core of their own: with more, the scheduler pauses some, and the others wait for them.
    """
    threads = torch.get_num_threads()
    if setting := thread_setting():
        return threads, setting
    limit, source = inspect_machine().core_limit
    return (threads, "torch's own number") if threads < limit else (limit, source)


def select_device(config: TrainConfig) -> torch.device:
    """The configured device; `auto` is CUDA where there is one."""
    return resolve_device(config.device, setting="train.device", fix="Type --set train.device=cpu")


def select_backends(config: TrainConfig, model: Model, previous: Compute) -> Compute:
    """Choose dtype and backends for the model on the device of `previous`, and log them.

    What `previous` sets (from a checkpoint made on this machine, or earlier in this start) is kept;
    a probe chooses the rest, without timing anything where `train.deterministic` is set.
    """
    device = previous.device
    if device.type == "cpu":
        log_line(f"compiler     {compile_kernels()}")
    if config.dtype == "auto" and previous.dtype:
        dtype, reason = previous.dtype, previous.origin
    else:
        dtype, reason = resolve_dtype(config, device)
    log_line(f"device       {describe(device)}; {dtype} ({reason})")
    selected = model.select_backends(
        batch_size=max(stage.batch_size for stage in config.plan),
        precision=dtype,
        previous=previous.backends,
        timed=not config.deterministic,
    )
    for mixer, (backend, reason) in selected.items():
        why = previous.origin if reason == CHOSEN_BEFORE else reason
        log_line(f"backend      {mixer}: {backend} ({why})")
    return Compute(device, dtype, {mixer: backend for mixer, (backend, _) in selected.items()})


def compile_kernels() -> str:
    """Compile the C++ code unless it is compiled already; returns the outcome, for the header."""
    began = time.perf_counter()
    if loader.build() is None:
        return f"none, torch alone, which is slower: {loader.unavailable()}"
    seconds = time.perf_counter() - began
    how = f"compiled in {seconds:.0f} s" if seconds >= 1 else "already compiled"
    return f"{loader.compiler_version() or 'none'}; kernels {how}"


def resolve_dtype(config: TrainConfig, device: torch.device) -> tuple[Precision, str]:
    """The dtype of matmul operands, and why; `auto` chooses bf16 where it is much faster.

    A processor without bf16 instructions emulates bf16 matmuls: there `auto` is fp32 without a
    measurement, which alone would take minutes.
    """
    if config.dtype != "auto":
        return config.dtype, "configured"
    unit = bf16_unit(device)
    if not unit:
        return "fp32", "no bf16 hardware"
    by_hardware: Precision = "bf16" if unit in ("amx_bf16", "cuda") else "fp32"
    if config.deterministic:
        return by_hardware, f"by hardware ({unit}), not timed"
    details = {"device": describe(device), "size": str(_PROBE_SIZE)}
    question = Question("dtype", ("fp32", "bf16"), details)
    record = recorded(question, partial(_measure_dtype, device))
    if record is None:
        return by_hardware, f"by hardware ({unit}), {NOT_KEPT}"
    return ("bf16" if record.choice == "bf16" else "fp32"), record.explanation


def _measure_dtype(device: torch.device) -> Answer:
    """bf16 where its matmuls are much faster than those of fp32, or could not be timed."""
    if problem := bf16_problem(device):
        return Answer("fp32", problem, {})
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    candidates = {name: partial(matmul_seconds, dtype, device) for name, dtype in dtypes.items()}
    for warm_up in candidates.values():
        warm_up()
    timings = time_in_turn(candidates)
    if timings.disturbance:
        reason = f"bf16 hardware, not timed: {timings.disturbance}"
        return Answer("bf16", reason, timings.seconds, timings.disturbance)
    gain = timings.gain("bf16", over="fp32")
    reason = f"bf16 matmuls run at {gain:.1f} times the speed of fp32, {BF16_GAIN} needed"
    return Answer("bf16" if gain >= BF16_GAIN else "fp32", reason, timings.seconds)


def bf16_problem(device: torch.device) -> str:
    """Why bf16 matmuls of full size would take minutes here; "" where they do not."""
    if not bf16_unit(device):
        return "no bf16 hardware"
    return "torch emulates bf16 matmuls here" if _is_emulated(device) else ""


def _is_emulated(device: torch.device) -> bool:
    """Whether torch multiplies bf16 matrices without the hardware for it: asked of small ones.

    A variable such as ONEDNN_MAX_CPU_ISA can keep torch from using what the processor has.
    """
    slowest = 2 * _SMALL_PROBE_SIZE**3 / _SLOWEST_UNIT
    size, tries = _SMALL_PROBE_SIZE, range(_SMALL_PROBES)
    return all(matmul_seconds(torch.bfloat16, device, size=size) > slowest for _ in tries)


def bf16_unit(device: torch.device) -> str:
    """The fastest unit for bf16 matmuls: a processor flag, "cuda", or "" where there is none."""
    if device.type == "cuda":
        return "cuda" if torch.cuda.get_device_capability(device) >= (8, 0) else ""
    found = BF16_FEATURES & inspect_machine().features
    return next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in found), "")


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matmul of this dtype: the median of some rounds after a warm-up."""
    seconds = [matmul_seconds(dtype, device) for _ in range(1 + _PROBE_ROUNDS)][1:]
    return float(2 * _PROBE_SIZE**3 / statistics.median(seconds))


def matmul_seconds(dtype: torch.dtype, device: torch.device, *, size: int = _PROBE_SIZE) -> float:
    """Seconds of one square matmul of this dtype."""
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    synchronise(device)
    began = time.perf_counter()
    a @ b
    synchronise(device)
    return time.perf_counter() - began


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy larger than any cache; the best of five."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = [_timed(lambda: target.copy_(source), device) for _ in range(6)]
    return 2 * _COPY_BYTES / min(seconds[1:])  # the first also maps the memory


def _timed(operation: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    operation()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its queue, so that timings include its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """The device, for the header."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def machine_identity(device: torch.device) -> dict[str, Any]:
    """What the best choice of dtype and backend depends on."""
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "processor": inspect_machine().processor,
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }


def previous_compute(environment: Mapping[str, Any], device: torch.device) -> Compute:
    """What a checkpoint's environment chose, where it was saved on a machine like this one.

    Elsewhere another choice may be better, and the bits would differ in any case.
    """
    here = machine_identity(device)
    if any(environment.get(name) != value for name, value in here.items()):
        return Compute(device)
    return Compute(device, environment.get("dtype"), environment.get("backends", {}))
