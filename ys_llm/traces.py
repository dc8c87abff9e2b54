"""What a pass through a model keeps alive, traced at two small batch sizes and drawn on to any.

Every operator of a pass is followed: how many bytes are alive after each. At two batch sizes the
operators are the same, in the same order, so that

    live_i(B) = live_i(b0) + (live_i(b1) - live_i(b0)) (B - b0) / (b1 - b0)       after operator i

holds at any batch size B, and the greatest of these is the peak. The loss is traced by itself: it
goes through its logits in pieces, and their number depends on B. No mixer is named here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ys_llm.measure import state_bytes
from ys_llm.model import Model, detached
from ys_llm.ops import cross_entropy

SMALL, LARGE = 2, 3  # batch sizes traced; at 1 some copies are views
_CARRIED_BATCHES = 3  # by then a carried state is held as it is ever after
_PIECES = 4  # of a text, from which the growth of a state is read
_FEW_ROWS = 64  # of logits
Series = npt.NDArray[np.int64]


class Watch(TorchDispatchMode):
    """A watch over operators that does not import torch's compiler, 75 MB and over a second."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class LiveBytes(Watch):
    """Counts the bytes of tensors that were made on `device` in here and are still alive.

    `now` is their sum; `take` gives what it was after each operator.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.now = 0
        self._device_type = device.type
        self._series: list[int] = []
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for value in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type == self._device_type:
                self._see(value.untyped_storage())
        self._series.append(self.now)
        return result

    def take(self) -> Series:
        """The series since it was last taken, and `now`."""
        taken, self._series = np.array([*self._series, self.now], dtype=np.int64), []
        return taken

    def _see(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size


class Unfilled(Watch):
    """Leaves random initial values undrawn: a model on the meta device has shapes alone."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if (
            torch.Tag.inplace in operator.tags
            and torch.Tag.nondeterministic_seeded in operator.tags
        ):
            return args[0]
        return operator(*args, **(kwargs or {}))


class Pass(NamedTuple):
    """Bytes alive while a batch goes forward, once its hidden stream is there, and on the way back.

    `dtype` is the stream's own.
    """

    forward: Series
    held: int
    backward: Series
    dtype: torch.dtype


class _Loss(torch.autograd.Function):
    """Stands for the loss: takes the hidden stream, gives back a gradient of its size.

    Of zeros: what vanishes on its way back takes 100 times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.like = x.shape, x.dtype
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        shape, dtype = ctx.like
        return grads[0].new_zeros(shape, dtype=dtype)


class Tracer:
    """Traces of one model. `precision` is what a run calls its dtype, "fp32" or "bf16".

    `resets`: the state is forgotten where a document starts. In a trace one starts at every token,
    which needs the most.
    """

    def __init__(self, model: Model, *, precision: str, resets: bool) -> None:
        self.model, self.precision, self.resets = model, precision, resets
        self.device = next(model.parameters()).device
        self._losses: dict[tuple[int, torch.dtype], int] = {}

    def training_pass(
        self, seq_len: int, batch_size: int, *, carried: bool, accumulated: bool
    ) -> Pass:
        """One batch forward and back, the loss aside.

        `carried`: it takes up the state of batches before it. `accumulated`: its gradients are
        added to those of a batch before it, which are not counted.
        """
        live, state, older = LiveBytes(self.device), None, 0
        self.model.train()
        with live:
            for left in reversed(range(_CARRIED_BATCHES if carried else 1 + accumulated)):
                tokens_BT, starts_BT = self._batch(batch_size, seq_len)
                live.take()
                with self._autocast():
                    x_BTD, after = self.model.hidden(tokens_BT, state, starts_BT)
                forward, held, dtype = live.take(), live.now, x_BTD.dtype
                state = detached(after) if carried else None
                loss = _Loss.apply(x_BTD)  # type: ignore[no-untyped-call]
                del x_BTD
                torch.autograd.backward(loss)
                backward = live.take()
                del after
                if accumulated:  # as in training, the loss of the batch before is held meanwhile
                    older = self._gradient_bytes() if left else older
                    continue
                del loss
                self.model.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        return Pass(forward - older, held - older, backward - older, dtype)

    def _gradient_bytes(self) -> int:
        return sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)

    def loss_peak(self, n_tokens: int, dtype: torch.dtype) -> int:
        """Bytes that the loss of `n_tokens` takes at most, beside the hidden stream it reads."""
        rows = max(1, cross_entropy.CHUNK_ELEMENTS // self.model.vocab_size)
        first, second = (rows, 2 * rows) if n_tokens > rows else (_FEW_ROWS, 2 * _FEW_ROWS)
        small, large = (self._loss_peak(n, dtype) for n in (first, second))
        return small + (large - small) * (n_tokens - first) // (second - first)

    def _loss_peak(self, n_tokens: int, dtype: torch.dtype) -> int:
        key = (n_tokens, dtype)
        if key not in self._losses:
            x_ND, targets_N = self._rows(n_tokens, dtype)
            live, head = LiveBytes(self.device), self.model.output
            with live:
                with self._autocast():
                    loss = cross_entropy.chunked(
                        x_ND.requires_grad_(), head.weight, head.bias, targets_N
                    )
                torch.autograd.backward(loss)
            self._losses[key] = int(live.take().max())
            self.model.zero_grad(set_to_none=True)
        return self._losses[key]

    def scoring_peak(self, seq_len: int, batch_size: int, n_tokens: int) -> int:
        """Bytes that scoring `n_tokens` in each row takes at most, `seq_len` at a time."""
        state_sizes = [
            state_bytes(self.model, batch_size=1, seq_len=n)
            for n in (seq_len, (_PIECES - 1) * seq_len, _PIECES * seq_len, n_tokens)
        ]
        first, before, last, final = state_sizes
        pieces = min(-(-n_tokens // seq_len), 2 if first == final else _PIECES)
        small, large = (self._scoring_peaks(seq_len, b, pieces) for b in (SMALL, LARGE))
        peaks = drawn_on(small, large, batch_size)
        if final <= last or before == last:
            return int(peaks.max())
        return int(peaks[-1] + (peaks[-1] - peaks[-2]) * (final - last) // (last - before))

    def _scoring_peaks(self, seq_len: int, batch_size: int, pieces: int) -> Series:
        """The peaks of the first pieces of a text, each taking up the state of the one before."""
        live, state, peaks = LiveBytes(self.device), None, []
        with self._evaluating(), live:
            for _ in range(pieces):
                tokens_BT, starts_BT = self._batch(batch_size, seq_len)
                x_BTD, state = self.model.hidden(tokens_BT, state, starts_BT)
                scored_ND = x_BTD.flatten(0, 1).clone()
                peaks.append(live.take().max())
                del scored_ND
        return np.array(peaks)

    def head_peak(self, n_tokens: int) -> int:
        """Bytes that the logits of `n_tokens` and their scores take at most."""
        small, large = (self._head_peak(n) for n in (_FEW_ROWS, 2 * _FEW_ROWS))
        return small + (large - small) * (n_tokens - _FEW_ROWS) // _FEW_ROWS

    def _head_peak(self, n_tokens: int) -> int:
        x_ND, targets_N = self._rows(n_tokens, torch.float32)
        live = LiveBytes(self.device)
        with self._evaluating(), live:
            functional.cross_entropy(self.model.head(x_ND).float(), targets_N, reduction="none")
        return int(live.take().max())

    def reading_peak(self, n_tokens: int) -> int:
        """Bytes that reading a prompt takes at most, in one row, `n_tokens` at a time."""
        live, state = LiveBytes(self.device), None
        with self._evaluating(precision="fp32"), live:
            for _ in range(2):
                tokens_BT, _ = self._batch(1, n_tokens)
                x_BTD, state = self.model.hidden(tokens_BT, state)
                self.model.head(x_BTD[:, -1:])
        return int(live.take().max())

    def _batch(self, batch_size: int, seq_len: int) -> tuple[Tensor, Tensor | None]:
        tokens_BT = torch.zeros(batch_size, seq_len, dtype=torch.int64, device=self.device)
        return tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool) if self.resets else None

    def _rows(self, n_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Hidden stream and targets of this many tokens."""
        d_model = self.model.config.d_model
        x_ND = torch.zeros(n_tokens, d_model, dtype=dtype, device=self.device)
        return x_ND, torch.zeros(n_tokens, dtype=torch.int64, device=self.device)

    def _autocast(self, precision: str = "") -> torch.autocast:
        enabled = (precision or self.precision) == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    @contextmanager
    def _evaluating(self, precision: str = "") -> Iterator[None]:
        self.model.eval()
        with torch.inference_mode(), self._autocast(precision):
            yield


class Step:
    """The training of one batch of `seq_len` tokens a row, traced once for any batch size."""

    def __init__(self, tracer: Tracer, seq_len: int, *, carried: bool, accumulated: bool) -> None:
        self._tracer, self._seq_len = tracer, seq_len
        self._small, self._large = (
            tracer.training_pass(seq_len, b, carried=carried, accumulated=accumulated)
            for b in (SMALL, LARGE)
        )

    def peak(self, batch_size: int) -> int:
        """Bytes of gradients and activations that are alive at once, at most."""
        small, large = self._small, self._large
        held = small.held + (large.held - small.held) * (batch_size - SMALL) // (LARGE - SMALL)
        loss = self._tracer.loss_peak(batch_size * self._seq_len, small.dtype)
        head = sum(p.nbytes for p in self._tracer.model.output.parameters())  # its gradients
        forward = drawn_on(small.forward, large.forward, batch_size).max()
        backward = drawn_on(small.backward, large.backward, batch_size).max()
        return int(max(forward, held + loss, head + backward))


def drawn_on(small: Series, large: Series, batch_size: int) -> Series:
    """The series at `batch_size` from those at SMALL and LARGE, operator by operator.

    Where a mixer's operators depend on the batch size, the peaks alone are drawn on.
    """
    if small.shape != large.shape:
        small, large = small.max(keepdims=True), large.max(keepdims=True)
    return small + (large - small) * (batch_size - SMALL) // (LARGE - SMALL)
