"""Replicas of one training that come and go: whose gradients are averaged, who reads which text.

Before a step all replicas that are there agree on who takes part (a quorum, which a lighthouse
counts), and one that is behind is given the state of another. The replica with rank r among them
reads piece

    pieces read so far + r        a piece is what a step of one process reads

so that no text is lost or read twice: a step that fails, because a replica dies in it, is
repeated by those that are left. torchft does the work; every replica keeps a folder of its own.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.system.signals import StopRequest
from ys_llm.training.metrics import log_line

_PAUSE = 0.5  # seconds between two attempts


@dataclass
class Replicas:
    """This replica and those that take part with it; `recipe` is a number that all must share.

    `recipe` is below 2^20, so that the mean of equal ones is exact in float32.
    """

    manager: Any  # torchft's, which has no types
    recipe: int
    taking_part: int = field(default=0, init=False)

    def begin(self, step: int, pieces: int, stop: StopRequest) -> bool:
        """Agree on who takes part in the coming step, and catch up; False where that failed.

        UserError where a stop is requested while others are waited for.
        """
        if (self.manager.current_step(), self.pieces) != (step, pieces):
            self.manager.load_state_dict({"step": step, "batches_committed": pieces})
        try:
            self.manager.start_quorum()
        except (RuntimeError, TimeoutError):
            self.manager._quorum_future = None  # or each later attempt would end with this error
            self._tell(0)
            if stop.signal:
                raise UserError(
                    f"stopped by {stop.name} while waiting for other replicas",
                    exit_code=stop.exit_code,
                ) from None
            time.sleep(_PAUSE)
            return False
        if self.manager.errored() is None:
            self._tell(self.manager.num_participants())
        return self.manager.errored() is None

    def _tell(self, count: int) -> None:
        if count != self.taking_part:
            words = f"{count} of this training" if count else "waiting for the lighthouse"
            log_line(f"replicas     {words}, from step {self.manager.current_step() + 1:,}")
        self.taking_part = count

    @property
    def pieces(self) -> int:
        """Pieces that all replicas together have read."""
        return int(self.manager.batches_committed())

    @property
    def piece(self) -> int:
        """What this replica reads in the coming step; a spare one reads what it does not use."""
        return self.pieces + int(self.manager.participating_rank() or 0)

    @torch.no_grad()
    def average(self, model: nn.Module, loss: float) -> float:
        """Average gradients and loss over those that take part, in one message.

        UserError where another replica has another recipe: other settings, other text.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        told = torch.tensor([loss, float(self.recipe)])
        message = torch.cat([g.detach().reshape(-1).float().cpu() for g in gradients] + [told])
        self.manager.allreduce(message).wait()
        if self.manager.errored() is not None:
            return loss
        if float(message[-1]) != self.recipe:
            raise UserError(
                "another replica of this training reads other text or has other settings",
                "Start all replicas with the same --data, --config and --set.",
                exit_code=EXIT_USAGE,
            )
        _put(message, trained, gradients)
        return float(message[-2])

    def committed(self) -> bool:
        """Whether this step counts: nothing went wrong on the way."""
        return bool(self.manager.should_commit())

    def leave(self) -> None:
        """The others go on without this one."""
        with suppress(RuntimeError):
            self.manager.shutdown(wait=False)


def _put(message: Tensor, trained: list[nn.Parameter], gradients: list[Tensor]) -> None:
    at = 0
    for parameter, gradient in zip(trained, gradients, strict=True):
        gradient.copy_(message[at : at + gradient.numel()].view_as(gradient))
        parameter.grad, at = gradient, at + gradient.numel()
