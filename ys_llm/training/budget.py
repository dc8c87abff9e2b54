"""How long a run takes, from a burst of real steps; and the steps that `train.minutes` comes to.

The burst times a few steps of each stage, a part of an evaluation, one checkpoint and one sample.
Each is multiplied by how often the plan has it.
"""

import copy
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ys_llm.config.schema import Config, Stage, TrainConfig, in_steps
from ys_llm.data.batches import evaluation_span
from ys_llm.data.shards import TokenShard
from ys_llm.evaluation.bits_per_byte import EVALUATION_ROWS
from ys_llm.runs.checkpoint import save_checkpoint
from ys_llm.training.metrics import log_line
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.ranks.evaluate import evaluate_together
from ys_llm.training.ranks.parallel import replicated
from ys_llm.training.samples import sample_text
from ys_llm.training.steps import forward_backward, optimizer_step
from ys_llm.training.trainer import Run, TrainState, random_state, set_random_state

BURST_SECONDS = 4.0  # of steps, for each stage
_WARM_UP_STEPS = 2  # the first ones allocate memory, and fill caches
EVALUATED_TOKENS = 30_000  # of one evaluation, scaled to all of its tokens
_LONGEST_WARM_UP = 10  # a learning rate warms up over at most one in ten of the measured steps


@dataclass(frozen=True)
class Costs:
    """Measured seconds of each thing that a training does; of a step, by stage."""

    step: tuple[float, ...]
    evaluation: float
    final_evaluation: float
    checkpoint: float
    sample: float

    def seconds(self, config: TrainConfig) -> dict[str, float]:
        """Seconds of all steps, evaluations, checkpoints and samples of this plan.

        Each evaluation is assumed to be the best so far: its weights, a third of a checkpoint, are
        published, and a checkpoint is saved.
        """
        total = config.total_steps
        evaluate, save, sample = (
            in_steps(interval, total)
            for interval in (
                config.eval_interval,
                config.checkpoint_interval,
                config.sample_interval,
            )
        )
        evaluations = -(-total // evaluate)
        saves = 1 + evaluations + total // save - total // math.lcm(evaluate, save)
        samples = (total - 1) // sample if sample else 0
        return {
            "steps": seconds_of(config, self.step),
            "evaluations": evaluations * self.evaluation + self.final_evaluation,
            "checkpoints": (saves + evaluations / 3) * self.checkpoint,
            "samples": samples * self.sample,
        }


def fit_to_minutes(run: Run) -> Run:
    """The run with as many steps as `train.minutes` comes to here, which the header then says.

    The burst trains a copy, and the random numbers are restored: training is bit for bit that of a
    run that was given this number of steps. Of several processes the first decides.
    """
    minutes = run.config.train.minutes
    assert minutes is not None, "there is nothing to fit to"
    before = random_state(run.device)
    model = copy.deepcopy(run.model)
    optimizer, parallel = make_optimizer(model, run.config.train), replicated(model, run.ranks)
    rehearsal = replace(run, model=model, optimizer=optimizer, parallel=parallel)
    place = run.folder if run.ranks.is_first else None
    with tempfile.TemporaryDirectory(prefix=".burst-", suffix=".tmp", dir=place) as scratch:
        costs = measure(rehearsal, Path(scratch))
    set_random_state(before, run.device)
    total_steps = run.ranks.tell(steps_within(60 * minutes, costs, run.config))
    config = with_steps(run.config, total_steps)
    log_line(minutes_line(config.train, costs))
    return replace(run, config=config)


def steps_within(seconds: float, costs: Costs, config: Config) -> int:
    """The largest number of steps that takes at most `seconds`; at least one for each stage."""
    least = len(config.train.plan)
    most = max(least, int(seconds / min(costs.step)))
    while least < most:
        middle = (least + most + 1) // 2
        if sum(costs.seconds(with_steps(config, middle).train).values()) <= seconds:
            least = middle
        else:
            most = middle - 1
    return least


def with_steps(config: Config, total_steps: int) -> Config:
    """The configuration with this number of steps, to which stages and warm-up are fitted.

    Stages keep their proportions. Idempotent: the same steps again change nothing.
    """
    train = config.train
    stages, warmup = _scaled(train.stages, total_steps), train.warmup_steps
    if in_steps(warmup, total_steps) > max(1, total_steps // _LONGEST_WARM_UP):
        warmup = max(1, total_steps // _LONGEST_WARM_UP)
    max_steps = train.max_steps if stages else total_steps
    fitted = replace(train, max_steps=max_steps, stages=stages, warmup_steps=warmup)
    return replace(config, train=fitted)


def _scaled(stages: tuple[Stage, ...], total_steps: int) -> tuple[Stage, ...]:
    """The stages with steps in the same proportions that add up to `total_steps`, each at least 1.

    `total_steps` is at least the number of stages.
    """
    planned, scaled, begin, done = sum(stage.steps for stage in stages), list[Stage](), 0, 0
    for index, stage in enumerate(stages):
        done += stage.steps
        rounded = (2 * total_steps * done + planned) // (2 * planned)
        end = min(max(begin + 1, rounded), total_steps - (len(stages) - 1 - index))
        scaled.append(replace(stage, steps=end - begin))
        begin = end
    return tuple(scaled)


def minutes_line(config: TrainConfig, costs: Costs) -> str:
    """What the minutes come to, for the header and the forecast."""
    each = {s.seq_len * s.batch_size * config.grad_accum_steps: s for s in config.plan}
    sizes = f"{min(each):,}" if len(each) == 1 else f"{min(each):,} to {max(each):,}"
    parts = costs.seconds(config)
    speed = tokens_of(config) / parts.pop("steps")
    rest = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items())
    return (
        f"minutes      {config.minutes:g} min = {config.total_steps:,} steps of {sizes} tokens at "
        f"{speed:,.0f} tokens/s; {rest}"
    )


def tokens_of(config: TrainConfig) -> int:
    """Tokens that the plan reads."""
    batches = sum(stage.steps * stage.seq_len * stage.batch_size for stage in config.plan)
    return batches * config.grad_accum_steps


def seconds_of(config: TrainConfig, of_step: Sequence[float]) -> float:
    """Seconds of all steps of the plan, given those of a step of each stage."""
    stages = zip(config.plan, of_step, strict=True)
    return sum(stage.steps * seconds for stage, seconds in stages)


def measure(run: Run, scratch: Path) -> Costs:
    """Time the parts of this training; changes the run's weights, writes only to `scratch`."""
    stages = range(len(run.config.train.plan))
    steps = tuple(step_seconds(run, index, BURST_SECONDS) for index in stages)
    evaluation, final_evaluation = _evaluation_seconds(run)
    return Costs(
        steps,
        evaluation,
        final_evaluation,
        _checkpoint_seconds(run, scratch),
        _sample_seconds(run),
    )


def step_seconds(run: Run, stage_index: int, burst_seconds: float) -> float:
    """Median seconds of real steps of a stage, without those that warm up; changes the weights."""
    plan, state, seconds = run.config.train.plan, TrainState(), list[float]()
    first = sum(stage.steps for stage in plan[:stage_index])
    ends = time.perf_counter() + burst_seconds
    for number in itertools.count():
        state.progress.step = first + number % plan[stage_index].steps
        gradients = forward_backward(run, state)
        seconds.append(optimizer_step(run, state, gradients)["step_seconds"])
        state.progress.recent_losses.clear()  # these are not the run's: no spike among them counts
        if run.ranks.tell(number > 0 and time.perf_counter() >= ends):
            break
    return statistics.median(seconds[_WARM_UP_STEPS:] or seconds[1:])


def _evaluation_seconds(run: Run) -> tuple[float, float]:
    """Seconds of one evaluation, and of the last one over all held-out text."""
    held_out, config = run.data.validation, run.config.train
    if held_out is None:
        return 0.0, 0.0
    seq_len = config.plan[-1].seq_len
    # The first one allocates memory and fills caches.
    per_token = min(_seconds_per_token(run, held_out, seq_len) for _ in range(2))
    one = evaluation_span(held_out, max_tokens=config.eval_tokens)[0]
    return (
        per_token * _tokens_read(one, seq_len),
        per_token * _tokens_read(held_out.n_inputs, seq_len),
    )


def _seconds_per_token(run: Run, held_out: TokenShard, seq_len: int) -> float:
    """Seconds that part of an evaluation takes for each token that it reads."""
    began = time.perf_counter()
    result = evaluate_together(run, held_out, max_tokens=EVALUATED_TOKENS)
    return (time.perf_counter() - began) / _tokens_read(result.tokens, seq_len)


def _tokens_read(scored: int, seq_len: int) -> int:
    """Each row of an evaluation reads one sequence length before the tokens that it scores."""
    return scored + seq_len * max(1, min(EVALUATION_ROWS, scored // seq_len))


def _checkpoint_seconds(run: Run, scratch: Path) -> float:
    """One checkpoint, written to the temporary folder, by the first process."""
    began = time.perf_counter()
    if not run.ranks.is_first:
        return 0.0
    tensors = random_state(run.device)
    save_checkpoint(scratch, run.model, run.optimizer, progress={"step": 0}, tensors=tensors)
    return time.perf_counter() - began


def _sample_seconds(run: Run) -> float:
    began = time.perf_counter()
    if run.config.train.sample_interval and run.ranks.is_first:
        sample_text(run, seed=0)
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is read most easily."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
