"""A diagnosis: the first non-finite tensor of a step, in full and in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DiagnosisKind = Literal[
    "weights", "state", "forward", "loss", "backward", "norm", "not reproduced", "finite"
]
_SHOWN = 4  # rows or tensors that a sentence lists


@dataclass(frozen=True)
class Diagnosis:
    """The first non-finite tensor. `step` and `rows` count from 0 in the batch's T and B.

    `where` is a module or parameter by its name in torch; `entries` are entries of a mixer's state;
    `parameters` lists those that are non-finite themselves ("weights") or have such a gradient.
    """

    kind: DiagnosisKind
    where: str = ""
    layer: int | None = None
    entries: tuple[str, ...] = ()
    step: int | None = None
    rows: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()
    non_finite_count: int = 0
    loss: float | None = None
    grad_norm: float | None = None

    @property
    def sentence(self) -> str:
        """The diagnosis in one line."""
        listed, entries = _listed(self.parameters), _listed(self.entries)
        match self.kind:
            case "weights":
                return f"{self.non_finite_count:,} weights not finite before the step, in {listed}"
            case "state":
                of = "the copy tier" if self.layer is None else f"layer {self.layer}"
                return f"carried state of {of}: {entries} not finite{self._rows(' in')}"
            case "forward":
                what = f"{entries} state" if self.entries else "output"
                finite = "(weights, carried state and inputs finite)"
                return f"{self.where}: {what} not finite{self._extent('on')} {finite}"
            case "loss":
                finite = "(input of the head finite)"
                return f"{self.where}: not finite{self._extent('on')} {finite}"
            case "backward":
                found = f"{self.where}: gradient not finite{self._extent('back')}"
                bad = f"; not finite for {listed}" if listed else ""
                return f"{found} (loss {self.loss:.4g} and all activations finite){bad}"
            case "norm":
                found = "the norm of all gradients overflows, while each gradient is finite"
                return f"{found}; the largest is of {self.where}"
        figures = f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}"
        if self.kind == "finite":
            return f"all values of the step are finite ({figures})"
        return (
            f"not reproduced: the same weights, batch, state and random numbers now give {figures};"
            " suspect the memory or processor of this machine, or non-deterministic kernels"
        )

    def _extent(self, direction: str) -> str:
        if self.step is None:
            return self._rows(" in")
        return f" from step {self.step}{self._rows(' of')} {direction}"

    def _rows(self, preposition: str) -> str:
        noun = "row" if len(self.rows) == 1 else "rows"
        return f"{preposition} {noun} {_listed(self.rows)}" if self.rows else ""


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(str(item) for item in items[:_SHOWN]) + more
