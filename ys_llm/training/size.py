"""`model.size: auto`: the largest size that reads enough tokens in the minutes of the run.

Enough is a fixed number of tokens for each parameter. In runs of one and three minutes, on two
classes of processor, sizes that read 11 to 18 were the best of those tried, and no size that read
5.9 or less beat the next smaller one (one seed; one pair is level): docs/training.md has the table.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from ys_llm.config.schema import Config
from ys_llm.config.sizes import AUTO, size_names
from ys_llm.config.sources import with_size
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.training.budget import step_seconds
from ys_llm.training.compute import Compute, compile_kernels, resolve_dtype
from ys_llm.training.metrics import log_line
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.trainer import Run, TrainingData

ENOUGH_TOKENS = 8.0  # read for each parameter; between 5.9, too few, and 10.9
BURST_SECONDS = 1.5  # of steps, for each size that is tried; at least two steps


def choose_size(
    config: Config, folder: Path, tokenizer: Tokenizer, data: TrainingData, device: torch.device
) -> Config:
    """The configuration with `model.size: auto` resolved; the header says to what, and why.

    Sizes are tried from the smallest on, each by a burst of real steps, up to the first that would
    read too little. Even the smallest is taken where no size reads enough.
    """
    minutes = config.train.minutes
    assert minutes is not None, "a size is chosen for a number of minutes"
    if device.type == "cpu":
        compile_kernels()
    chosen, note = config, ""
    for count, sized in _sizes(config, tokenizer.vocab_size):
        each = 60 * minutes * _tokens_per_second(sized, folder, tokenizer, data, device) / count
        if chosen.model.size != AUTO and each < ENOUGH_TOKENS:
            note = f"; {sized.model.size} would read {each:.1f}, and {ENOUGH_TOKENS:g} are enough"
            break
        chosen, line = sized, _line(sized, count, each)
    log_line(f"size         auto: {line}{note}")
    return chosen


def _sizes(config: Config, vocab_size: int) -> Iterator[tuple[int, Config]]:
    """The number of parameters and the configuration of every size, the smallest first."""
    sized = [with_size(config, name) for name in size_names()]
    with torch.device("meta"):
        counts = [parameter_count(Model(one.model, vocab_size=vocab_size)) for one in sized]
    return iter(sorted(zip(counts, sized, strict=True), key=lambda pair: pair[0]))


def _tokens_per_second(
    config: Config, folder: Path, tokenizer: Tokenizer, data: TrainingData, device: torch.device
) -> float:
    """How fast a model of this size trains here, in a burst of steps on a model of its own."""
    train, stage = config.train, config.train.plan[0]
    model = Model(config.model, vocab_size=tokenizer.vocab_size, backends=train.backend).to(device)
    dtype, _ = resolve_dtype(train, device)
    selected = model.select_backends(
        batch_size=stage.batch_size,
        precision=dtype,
        previous={},
        timed=not train.deterministic,
    )
    compute = Compute(device, dtype, {mixer: backend for mixer, (backend, _) in selected.items()})
    run = Run(config, folder, tokenizer, data, model, make_optimizer(model, train), compute)
    tokens = stage.seq_len * stage.batch_size * train.grad_accum_steps
    return tokens / step_seconds(run, 0, BURST_SECONDS)


def _line(config: Config, count: int, each: float) -> str:
    """The size, and what it comes to."""
    model, minutes = config.model, config.train.minutes
    layers = "1 layer" if model.n_layers == 1 else f"{model.n_layers} layers"
    return (
        f"{model.size}, d_model {model.d_model}, {layers}, {count / 1e6:.1f} M parameters: "
        f"{each:.1f} tokens a parameter in {minutes:g} minutes"
    )
