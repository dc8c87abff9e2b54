"""What replicas that come and go change in a step; nothing where a run is none of them."""

from contextlib import AbstractContextManager, nullcontext

from ys_llm.errors import EXIT_DIVERGED, UserError, command_line
from ys_llm.system.signals import StopRequest
from ys_llm.training.elastic.join import Elastic, joined
from ys_llm.training.recovery.non_finite import NonFiniteError
from ys_llm.training.trainer import Run, TrainState


def replica(run: Run, state: TrainState, elastic: Elastic | None) -> AbstractContextManager[Run]:
    """The run, as a replica where `elastic` says of what."""
    return nullcontext(run) if elastic is None else joined(run, state, elastic)


def may_begin(run: Run, state: TrainState, stop: StopRequest) -> bool:
    """Whether the replicas that are there agree to begin a step; try again where not."""
    if run.replicas is None:
        return True
    pieces = state.progress.step if state.pieces is None else state.pieces
    if not run.replicas.begin(state.progress.step, pieces, stop):
        return False
    state.pieces = run.replicas.pieces  # more, where this replica has caught up
    return True


def counts(run: Run, state: TrainState) -> bool:
    """Whether the gradients are those of all replicas; where not, they are thrown away."""
    if run.replicas is None:
        return True
    if not run.replicas.committed():
        run.optimizer.zero_grad(set_to_none=True)
        return False
    state.pieces = run.replicas.pieces
    return True


def check_may_roll_back(run: Run, state: TrainState, error: NonFiniteError) -> None:
    """UserError (5) in a replica: each would return to a checkpoint of its own."""
    if run.replicas is not None:
        raise UserError(
            f"step {state.progress.step + 1:,} has failed in all replicas ({error}), and replicas "
            "that come and go do not roll back",
            "To resume from the last checkpoint at a lower learning rate, type: "
            + command_line("train", run=run.config.run, set="train.learning_rate=..."),
            exit_code=EXIT_DIVERGED,
        ) from error
