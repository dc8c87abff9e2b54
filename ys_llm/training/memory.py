"""How much memory a training takes, forecast from real steps at two small batch sizes.

A child process (`memory_probe.py`) trains the model on random tokens at growing batch sizes, then
evaluates and saves it once. With peaks p at the last two sizes a < b, for any batch size B

    peak(B) = max(p(b) + (p(b) - p(a)) (B - b) / (b - a), peak of evaluating and saving)

On a CPU a peak is resident memory, on CUDA what torch has allocated. Over the settings of
`tests/training/test_memory.py` the forecast is within FORECAST_ERROR of a real training's peak.
"""

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ys_llm
from ys_llm.config.schema import Config
from ys_llm.config.sources import to_mapping
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.system import machine
from ys_llm.training.compute import Compute

FORECAST_ERROR = 0.2  # relative
MAX_BATCH_SIZE = 1 << 20  # the configuration's own limit
SHARE_OF_FREE = 0.8  # what `batch_size: auto` may use where memory_limit_gb does not say
_MULTIPLE = 8  # larger batch sizes are multiples of it: kernels work on full vectors of rows
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h


@dataclass(frozen=True)
class MemoryForecast:
    """Peak bytes of a process that trains one sequence length, by batch size.

    `steps` are (batch size, peak after a step), ascending; `base_bytes` is the process before the
    model is built, `other_bytes` its peak once it has evaluated and saved, `built_bytes` what was
    resident before the first step.
    """

    base_bytes: int
    steps: tuple[tuple[int, int], ...]
    other_bytes: int
    built_bytes: int = 0

    @property
    def bytes_per_row(self) -> float:
        """What one more sequence in the batch takes."""
        if len(self.steps) < 2:
            size, peak = self.steps[0]
            return (peak - self.base_bytes) / size
        (small, small_peak), (large, large_peak) = self.steps[-2:]
        return max(0, large_peak - small_peak) / (large - small)

    def peak_bytes(self, batch_size: int) -> int:
        """The peak at this batch size."""
        size, peak = self.steps[-1]
        return max(int(peak + self.bytes_per_row * (batch_size - size)), self.other_bytes)


def forecast_memory(
    config: Config,
    compute: Compute,
    *,
    vocab_size: int,
    seq_len: int,
    sizes: tuple[int, int] = (1, MAX_BATCH_SIZE),
    validation_tokens: int = 0,
) -> MemoryForecast:
    """Measure training steps in a child process, at the first of `sizes`, twice that, and so on.

    It stops where the peak has grown enough to extrapolate, at the last of `sizes`, and where
    memory runs out. UserError if not even one batch size can be measured.
    """
    threads = torch.get_num_threads()  # the probe uses as many as this process
    request = {
        "config": to_mapping(replace(config, train=replace(config.train, threads=threads))),
        "device": str(compute.device),
        "dtype": compute.dtype or ("bf16" if config.train.dtype == "bf16" else "fp32"),
        "backends": dict(compute.backends),
        "vocab_size": vocab_size,
        "seq_len": seq_len,
        "sizes": sizes,
        "evaluated_tokens": validation_tokens or config.train.eval_tokens,
    }
    measured = _run_probe(request)
    if not measured["steps"]:
        raise UserError(
            f"batches of {sizes[0]:,} x {seq_len:,} tokens do not fit into memory",
            "Reduce train.batch_size, train.seq_len or the model.",
            exit_code=EXIT_USAGE,
        )
    steps = tuple((size, peak) for size, peak in measured["steps"])
    return MemoryForecast(
        measured["base_bytes"], steps, measured["other_bytes"], measured["built_bytes"]
    )


def _run_probe(request: dict[str, Any]) -> dict[str, Any]:
    """What memory_probe.py prints for this request, in a process of its own."""
    package = str(Path(ys_llm.__file__).parent.parent)
    # -P: the child must not import what happens to be in the current folder.
    code = (
        f"import sys; sys.path.insert(0, {package!r}); "
        "from ys_llm.training.memory_probe import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"memory could not be measured: the process that trains a step failed ({last})",
            "Free some memory, or reduce train.seq_len or the model.",
        )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def largest_batch_size(
    config: Config,
    compute: Compute,
    *,
    vocab_size: int,
    validation_tokens: int = 0,
    processes: int = 1,
) -> int:
    """The largest batch size whose forecast peak is within what training may use.

    On a CPU as many `processes` divide it, and the batch is that of each.

    `compute` has the dtype and the backends that training will use. The limit is
    train.memory_limit_gb, or SHARE_OF_FREE of what is free. From 8 on the size is a multiple of 8.
    UserError if not even one sequence fits, or if free memory is unknown.
    """
    device = compute.device
    limit, seq_len = _limit(config, device), config.train.seq_len
    forecast = forecast_memory(
        config,
        compute,
        vocab_size=vocab_size,
        seq_len=seq_len,
        validation_tokens=validation_tokens,
    )
    if device.type == "cpu":
        limit //= processes
    if device.type == "cpu" and not config.train.memory_limit_gb:
        limit += forecast.base_bytes  # what this process already uses
    if forecast.peak_bytes(1) > limit:
        raise UserError(
            f"train.batch_size: auto does not fit: one sequence of {seq_len:,} tokens needs "
            f"{_gigabytes(forecast.peak_bytes(1))}, but only {_gigabytes(limit)} may be used",
            "Reduce train.seq_len or the model, or raise train.memory_limit_gb.",
            exit_code=EXIT_USAGE,
        )
    size, peak = forecast.steps[-1]
    largest = max(1, size + int((limit - peak) // max(1, forecast.bytes_per_row)))
    while (
        device.type == "cuda" and largest > size and not _runs(config, compute, largest, vocab_size)
    ):
        largest = max(size, largest // 2)
    return largest if largest < _MULTIPLE else largest // _MULTIPLE * _MULTIPLE


def _runs(config: Config, compute: Compute, batch_size: int, vocab_size: int) -> bool:
    """Whether CUDA has the memory for this batch size: fragmentation can defeat a forecast."""
    try:
        forecast_memory(
            config,
            compute,
            vocab_size=vocab_size,
            seq_len=config.train.seq_len,
            sizes=(batch_size, batch_size),
        )
    except UserError:
        return False
    return True


def _limit(config: Config, device: torch.device) -> int:
    """Bytes that training may use."""
    if config.train.memory_limit_gb:
        return int(config.train.memory_limit_gb * 1e9)
    free = available_bytes(device)
    if free is None:
        raise UserError(
            "train.batch_size: auto needs the amount of free memory, which is unknown here",
            "Set it: --set train.memory_limit_gb=8, or choose a size: --set train.batch_size=32",
            exit_code=EXIT_USAGE,
        )
    return int(SHARE_OF_FREE * free)


def check_fits(config: Config, *, vocab_size: int, device: torch.device) -> None:
    """Raise UserError (2) for a model or batch that cannot fit; costs nothing.

    Counts weights, gradients and moments, and two activations per block for a batch: less than any
    mixer keeps.
    """
    free = available_bytes(device)
    if free is None:
        return
    with torch.device("meta"):
        parameters = parameter_count(Model(config.model, vocab_size=vocab_size))
    needed = 4 * 4 * parameters
    if needed > free:
        raise UserError(
            f"the model has {parameters:,} parameters; training needs at least "
            f"{_gigabytes(needed)} of memory, but only {_gigabytes(free)} is free",
            "Reduce model.d_model, model.n_layers, model.d_mlp or tokenizer.vocab_size.",
            exit_code=EXIT_USAGE,
        )
    for stage in config.train.plan if config.train.batch_size != "auto" else ():
        activation = 4 * stage.seq_len * stage.batch_size * config.model.d_model
        batch_bytes = 2 * config.model.n_layers * activation
        if needed + batch_bytes > free:
            raise UserError(
                f"batches of {stage.batch_size:,} x {stage.seq_len:,} tokens need at least "
                f"{_gigabytes(batch_bytes)} of memory, but only {_gigabytes(free)} is free",
                "Reduce train.batch_size or train.seq_len, or let the run choose: "
                "--set train.batch_size=auto",
                exit_code=EXIT_USAGE,
            )


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device, within the limits of the control group; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.inspect_machine().free_bytes


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks for the rest of the process; for programs, not libraries.

    Every step frees and allocates the same large tensors; otherwise their pages are faulted in
    again at every step (LOG.md, section 1). No effect without glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Return free heap pages to the kernel, before work that allocates blocks of other sizes.

    Steps, evaluations and checkpoints do not fit into each other's freed blocks: without
    this, fragmentation adds up. Takes milliseconds; no effect without glibc.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
