"""Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal, is its update.

    M <- mu M + (1 - mu) G                 G: the gradient, m x n
    U = orthogonal((1 - mu) G + mu M)      Nesterov's look ahead
    W <- W - rate (0.2 sqrt(max(m, n)) U + decay W)

All singular values of U are near 1, so that directions which the gradients rarely show are learned
as fast as those which they always do. The factor gives U the size of AdamW's updates, so that
one learning rate serves both (Liu et al. 2025, arXiv 2502.16982). Everything that is no matrix
between activations (embedding, head, norms, biases) is AdamW's.

Newton-Schulz iteration, on X = M / |M| with at most as many rows as columns:

    X <- a X + (b A + c A A) X      A = X X'      a, b, c = 3.4445, -4.7750, 2.0315

Five iterations bring singular values from .01 to 1 into .68 to 1.13 (Jordan et al. 2024).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.ops.precision import compute_dtype

MOMENTUM = 0.95
ITERATIONS = 5
UPDATE_RMS = 0.2  # of AdamW's updates, about
_A, _B, _C = 3.4445, -4.7750, 2.0315


class MuonAdamW(torch.optim.Optimizer):
    """Muon for `matrices`, AdamW for the groups of `adamw`; see the top of this file.

    A matrix has one moment, `exp_avg`. Its group names it under `moments`, for checkpoints.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        adamw: torch.optim.AdamW,
        *,
        weight_decay: float,
    ) -> None:
        group = {"params": list(matrices), "weight_decay": weight_decay, "moments": ("exp_avg",)}
        super().__init__([group], {"lr": adamw.defaults["lr"]})
        self.param_groups += adamw.param_groups
        adamw.state = self.state
        self._adamw = adamw

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None, "a closure is not called"
        group = self.param_groups[0]
        for parameters in _by_shape(one for one in group["params"] if one.grad is not None):
            self._step(parameters, group)
        self._adamw.step()

    def _step(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        """A step of matrices of one shape."""
        updates = [self._moved(parameter) for parameter in parameters]
        made = orthogonal(torch.stack(updates))
        rate, size = group["lr"], UPDATE_RMS * max(made.shape[-2:]) ** 0.5
        for parameter, update in zip(parameters, made.unbind(0), strict=True):
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.add_(update, alpha=-rate * size)

    def _moved(self, parameter: nn.Parameter) -> Tensor:
        """Move the momentum; returns what it will be after another such gradient."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        momentum = state.setdefault("exp_avg", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def _by_shape(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Those with a gradient, by shape."""
    found: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            found[parameter.shape].append(parameter)
    return found.values()


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix to each of ... x M x N, about."""
    m, n = matrices.shape[-2:]
    x = matrices.reshape(-1, m, n)
    x = x.mT if m > n else x
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)).to(compute_dtype(x))
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        x = torch.baddbmm(x, polynomial, x, beta=_A)
    x = x.mT if m > n else x
    return x.reshape(matrices.shape).to(matrices.dtype)
