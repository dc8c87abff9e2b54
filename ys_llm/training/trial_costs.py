"""What a run of a comparison costs besides its time: memory of training, speed of generation."""

import time
from collections.abc import Callable

import torch

from ys_llm.config.schema import Config
from ys_llm.inference.decode_step import decode_rows
from ys_llm.inference.decoder import decoder_of
from ys_llm.inference.generate import prefill
from ys_llm.model.language_model import Model
from ys_llm.training.compute import Compute
from ys_llm.training.memory import release_freed_memory
from ys_llm.training.memory_probe import (
    new_run,
    peak_bytes,
    reset_peak,
    resident_bytes,
    train_steps,
)

_ROUNDS, _TOKENS = 4, 24
_STALE = 1.25  # a peak this far above what is resident was not reset


def step_memory(config: Config, compute: Compute, *, vocab_size: int) -> int | None:
    """Peak bytes of training steps of the largest batch, beyond what this process had before.

    The model is a new one, on random tokens: weights, gradients, moments and activations. None
    where the system cannot tell the peak of a part of a process.
    """
    stage = max(config.train.plan, key=lambda stage: stage.seq_len * stage.batch_size)
    risen = _peak_meter(compute.device)
    run = new_run(config, compute, vocab_size=vocab_size, seq_len=stage.seq_len)
    train_steps(run, stage.seq_len, stage.batch_size)
    return risen()


def _peak_meter(device: torch.device) -> Callable[[], int | None]:
    """Begin to measure memory; the result says how far it has risen at most since then.

    On a CPU it is resident memory, on CUDA what torch has allocated.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - allocated
    release_freed_memory()
    reset_peak()
    before = resident_bytes()
    is_reset = peak_bytes(device) < _STALE * before
    return lambda: max(0, peak_bytes(device) - before) if is_reset else None


def generation_speed(model: Model, *, first_id: int) -> float:
    """Tokens/s of one text, the most probable token each time, in the fastest of a few rounds."""
    rows, token, seconds = decode_rows(model, decoder_of(model)), first_id, list[float]()
    rows.add([prefill(model, [first_id]).state])
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_TOKENS):
            token = int(rows.step([token])[0].argmax())
        seconds.append(time.perf_counter() - began)
    return _TOKENS / max(min(seconds), 1e-9)
