"""How much memory a training and its model will take, found without running them at full size.

    peak = program + weights + moments + max(a step, an evaluation and the saving after it)

What a step and an evaluation keep alive is traced (`traces.py`). On a CPU the process grows by more
than that: blocks are taken and freed in an order that leaves holes in the heap, and glibc asks for
96 bytes more than a tensor needs so as to align it, so that the hole a tensor leaves is too small
for the next one of its size.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from ys_llm.config.schema import Config
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.system import machine
from ys_llm.training.traces import SMALL, Step, Trace, Tracer

# What a process grows by for each byte that `heap.py` finds for a step and for an evaluation: what
# is no tensor makes holes too, and oneDNN takes buffers for bf16 products. Measured with glibc 2.36
# and torch 2.13 at 1.13 to 1.42 and 0.95 to 1.3; in bf16 at 1.3 to 1.5 and 1.1 to 1.8.
STEP_HOLES = {"fp32": 1.25, "bf16": 1.4}
EVALUATION_HOLES = {"fp32": 1.25, "bf16": 1.8}
CUDA_HOLES = 1.1  # torch has an allocator of its own there
# Code and buffers that a training has use for and a traced pass has not.
LIBRARY_BYTES = {"fp32": 10_000_000, "bf16": 30_000_000}
COMPILER_BYTES = 75_000_000  # torch's optimizers import its compiler; using a model does not
_FEW_TOKENS = 16
SAVED_COPIES = 2  # of what is saved: the bytes of each tensor, and those of the file
LOADED_COPIES = 2  # of a model's weights while it is loaded: the file, and its tensors
EVALUATED_ROWS, SCORED_TOKENS, READ_TOKENS = 32, 2048, 1024  # as evaluate.py and generate.py do
SHARE_OF_FREE = 0.8  # what `batch_size: auto` may use where it is not told
_EVEN = 8  # what larger batch sizes are a multiple of, as kernels like it


@dataclass(frozen=True)
class Memory:
    """Predicted peaks of a process in bytes, and what that of training is made of."""

    training: int
    inference: int
    parts: dict[str, int]


class Predictor:
    """Predictions for a configuration and its model, at any length and batch size.

    `dtype` is "fp32" or "bf16"; `validation_tokens` is how many there are, 0 where it is not known.
    The model is used for the traces: what it says does not matter, and its gradients are dropped.
    """

    def __init__(
        self, config: Config, model: Model, *, dtype: str, validation_tokens: int = 0
    ) -> None:
        self.config = config
        self._on_cpu = next(model.parameters()).device.type == "cpu"
        self._evaluated = validation_tokens or config.train.eval_tokens
        self._tracer = Tracer(model, precision=dtype, resets=config.data.reset_at_document)
        self._weights = sum(parameter.nbytes for parameter in model.parameters())
        self._program = self._measured_program() if self._on_cpu else 0
        self._steps: dict[int, Step] = {}
        self._evaluations: dict[int, int] = {}

    def _measured_program(self) -> int:
        """What this process holds beside the model, once a pass has brought in the libraries."""
        self._tracer.training_pass(_FEW_TOKENS, SMALL, carried=False, accumulated=False)
        self._tracer.loss_peaks(_FEW_TOKENS, torch.float32)
        give_back_freed_memory()
        return resident_bytes() - self._weights + LIBRARY_BYTES[self._tracer.precision]

    def predict(self) -> Memory:
        """The greatest peak of all stages of the plan, and that of using the model."""
        plan = self.config.train.plan
        stages = [
            self.parts(stage.seq_len, stage.batch_size, evaluated=plan[-1].seq_len)
            for stage in plan
        ]
        parts = max(stages, key=peak_of)
        return Memory(peak_of(parts), self.inference(), parts)

    def parts(self, seq_len: int, batch_size: int, *, evaluated: int = 0) -> dict[str, int]:
        """What training takes with batches of this shape; `peak_of` it is the prediction.

        `evaluated` is the length that evaluations go on with, 0 where it is the same.
        """
        return {
            "program": self._program,
            "weights": self._weights,
            "moments": 2 * self._weights,
            "step": self._taken(self._step(seq_len).trace(batch_size), STEP_HOLES),
            "evaluation": self._evaluation(evaluated or seq_len),
            "saving": SAVED_COPIES * 2 * self._weights if self._on_cpu else 0,
        }

    def inference(self) -> int:
        """The peak of loading the model and reading a prompt of 2,048 tokens with it."""
        reading = self._taken(self._tracer.reading(READ_TOKENS), EVALUATION_HOLES)
        if not self._on_cpu:
            return self._weights + reading
        program = self._program - COMPILER_BYTES - LIBRARY_BYTES[self._tracer.precision]
        return program + self._weights + max(LOADED_COPIES * self._weights, reading)

    def _step(self, seq_len: int) -> Step:
        if seq_len not in self._steps:
            carried = self.config.data.batching == "contiguous"
            accumulated = self.config.train.grad_accum_steps > 1
            self._steps[seq_len] = Step(
                self._tracer, seq_len, carried=carried, accumulated=accumulated
            )
        return self._steps[seq_len]

    def _evaluation(self, seq_len: int) -> int:
        if seq_len not in self._evaluations:
            rows = max(1, min(EVALUATED_ROWS, self._evaluated // seq_len))
            a_row = self._evaluated // rows + seq_len  # each begins to read a length earlier
            pieces, growth = self._tracer.scoring(seq_len, rows, a_row)
            head = self._tracer.head_peak(min(SCORED_TOKENS, rows * seq_len))
            self._evaluations[seq_len] = self._taken(pieces, EVALUATION_HOLES) + growth + head
        return self._evaluations[seq_len]

    def _taken(self, trace: Trace, holes: dict[str, float]) -> int:
        if self._on_cpu:
            return int(trace.heap_bytes() * holes[self._tracer.precision])
        return int(trace.peak() * CUDA_HOLES)


def peak_of(parts: dict[str, int]) -> int:
    """What stays, and the greater of what comes and goes."""
    staying = parts["program"] + parts["weights"] + parts["moments"]
    return staying + max(parts["step"], parts["evaluation"] + parts["saving"])


def largest_batch_size(config: Config, *, vocab_size: int, device: torch.device) -> int:
    """The largest batch size whose predicted peak is below what training may use.

    That is train.memory_limit_gb, or SHARE_OF_FREE of what is free. From 8 on it is rounded down to
    a multiple of 8. UserError where not even one sequence fits.
    """
    limit, train = _limit(config, device), config.train
    dtype = "bf16" if train.dtype == "bf16" else "fp32"  # auto: the one that takes more
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        model = Model(config.model, vocab_size=vocab_size, backend=config.train.backend).to(device)
    predictor = Predictor(config, model, dtype=dtype)

    def fits(batch_size: int) -> bool:
        return peak_of(predictor.parts(train.seq_len, batch_size)) <= limit

    if not fits(1):
        raise UserError(
            f"train.batch_size: auto finds no room: one sequence of {train.seq_len} tokens takes "
            f"{_gigabytes(peak_of(predictor.parts(train.seq_len, 1)))}, and "
            f"{_gigabytes(limit)} may be used",
            "Set train.seq_len or the model smaller, or train.memory_limit_gb larger.",
            exit_code=EXIT_USAGE,
        )
    fitting, beyond = 1, 2
    while fits(beyond):
        fitting, beyond = beyond, 2 * beyond
    unit = 1 if beyond <= _EVEN else _EVEN
    while beyond - fitting > unit:
        middle = (fitting + beyond) // 2 // unit * unit
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


def _limit(config: Config, device: torch.device) -> int:
    """Bytes that the whole process may use."""
    if config.train.memory_limit_gb:
        return int(config.train.memory_limit_gb * 1e9)
    here = resident_bytes() if device.type == "cpu" else 0
    return here + int(SHARE_OF_FREE * available_bytes(device))


def check_fits(config: Config, *, vocab_size: int, device: torch.device) -> None:
    """Refuse a model, or a batch, that must take more than there is room for.

    Counted are weights, gradients and moments, and of a batch two streams for each block: less than
    any mixer keeps. Raises UserError (2). Costs nothing: no number of the model is made.
    """
    with torch.device("meta"):
        model = Model(config.model, vocab_size=vocab_size)
    needed, there = 4 * 4 * parameter_count(model), available_bytes(device)
    if needed > there:
        raise UserError(
            f"the model has {parameter_count(model):,} parameters; to train it takes at least "
            f"{_gigabytes(needed)} of memory, and {_gigabytes(there)} are free",
            "Set model.d_model, model.n_layers, model.d_mlp or tokenizer.vocab_size smaller.",
            exit_code=EXIT_USAGE,
        )
    for stage in config.train.plan if config.train.batch_size != "auto" else ():
        stream = 4 * stage.seq_len * stage.batch_size * config.model.d_model
        if needed + 2 * config.model.n_layers * stream > there:
            raise UserError(
                f"batches of {stage.batch_size:,} x {stage.seq_len:,} tokens take at least "
                f"{_gigabytes(2 * config.model.n_layers * stream)} of memory, and "
                f"{_gigabytes(there)} are free",
                "Set train.batch_size or train.seq_len smaller; see: ys train --dry-run",
                exit_code=EXIT_USAGE,
            )


def available_bytes(device: torch.device) -> int:
    """Memory that is free for this process on the device, the limits of its group included."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = machine.inspect_machine().free_bytes
    return 1 << 62 if free is None else free


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not tell."""
    return _own_figure("VmRSS")


def peak_bytes() -> int:
    """The most that this process has held so far; 0 where the system does not tell."""
    return _own_figure("VmHWM")


def _own_figure(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def give_back_freed_memory() -> None:
    """Return the free pages of the heap to the kernel, before work that takes other blocks.

    Steps, evaluations and savings do not fit into each other's holes: without this, what they waste
    adds up. It takes milliseconds; where the library is not glibc, nothing is done.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
