"""What a sequence mixer is, and how one is found: by the name of its file in this folder.

A file of this folder holds `Options`, a frozen dataclass of what a configuration may set under
`model.options.<name>`, and `Mixer`, a `torch.nn.Module` with the methods below, built as
`Mixer(d_model, options, backend=name)`. It may hold `CONTRACT_OPTIONS`, more settings to test, and
`CONSTANTS`, a dict of the numbers that its equations need besides its options, for config.json. A
module whose parameters of two or more dimensions must not decay under AdamW names them in a tuple
`no_weight_decay`; vectors never decay.

`tests/mixers` tests every file here against this contract.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.ops.precision import Precision

_NOT_MIXERS = ("protocol",)


class Matrix(NamedTuple):
    """x -> x matrix, in blocks where the matrix is H x P x P; used at one token in `interval`."""

    matrix: Tensor
    interval: int = 1


class Chain(NamedTuple):
    """x -> second(first(x)): a linear layer and a matrix, which the decoder folds into one map."""

    first: nn.Module | Tensor
    second: nn.Module | Tensor


class DecodeSpec(NamedTuple):
    """What a mixer provides for its compiled decode step.

    `kind` is the name under which its step is registered (`csrc/mixer_step.h`). `weights` are the
    fields of `struct ys_<kind>_weights` in `csrc/api.h` by name: a linear layer, Matrix or Chain
    for a `ys_linear`, a tensor for a pointer, a number, None for null, and dicts and lists of them.
    They are the mixer's own modules and parameters, not copies. `state` names the tensors of the
    mixer's state, as `model.state.flatten` does, in the order in which the step keeps them.
    """

    kind: str
    weights: dict[str, Any]
    state: tuple[str, ...]


class Mixer(Protocol):
    """A causal map over time with a carried state.

    The state is a tree (dicts, lists, tuples) of tensors, batch first; a leaf that grows with time
    has time as its second dimension. It holds no clock: `position_B` says how many tokens each row
    has read.
    """

    backends: tuple[str, ...]  # names that `backend` may have besides "auto"
    backend: str  # in use; "auto" until `select_backend`
    time_major: bool  # fastest where x_BTD is stored as T x B x D

    def __call__(
        self, x_BTD: Tensor, state: Any, starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Tensor, Any]:
        """Return y_BTD and the state after the last token, for any T >= 1.

        `starts_BT` (bool) marks first tokens of documents, before which the mixer sees nothing.
        `position_B` (int64, on the CPU) are the clocks of the first tokens. Rows may be at
        different clocks, and zeros that pad a growing leaf on the left must change nothing.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in `torch.nn.Module`."""

    def init_state(self, batch_size: int) -> Any:
        """The state before the first token."""

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens."""

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2, mean over the first `seq_len` tokens."""

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """Resolve `backend: auto` for this machine; returns the backend and the reason.

        `previous` is what the run used before, or another layer: it is kept where it can run. With
        `timed=False` nothing is measured, so that the same machine chooses the same.
        """

    def decode_spec(self) -> DecodeSpec | None:
        """The weights and state of the compiled decode step; None where there is no such step."""


def mixer_names() -> list[str]:
    """The mixers there are: the files of `ys_llm/mixers/`."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = (module.name for module in found if not module.ispkg)
    return sorted(name for name in names if name not in _NOT_MIXERS)


def mixer_module(name: str, *, where: str = "model.layers") -> Any:
    """The module of a mixer, with its `Options` and `Mixer`; UserError where there is none.

    `where`, the setting that names it, opens the message.
    """
    if name not in mixer_names():
        raise UserError(
            f"{where}: there is no mixer {name!r}",
            f"Choose one of {', '.join(mixer_names())}, or write ys_llm/mixers/{name}.py",
            exit_code=EXIT_USAGE,
        )
    return importlib.import_module(f"ys_llm.mixers.{name}")


def backend_of(mixer: str, asked: str, backends: Sequence[str]) -> str:
    """The backend that a configuration asks for; "auto" is the last of `backends`, the fastest.

    Raises UserError where there is no such backend.
    """
    if asked in ("auto", *backends):
        return backends[-1] if asked == "auto" else asked
    raise UserError(
        f"train.backend.{mixer}: there is no backend {asked!r}",
        f"Choose auto, {', '.join(backends)}",
        exit_code=EXIT_USAGE,
    )
