"""What a pass through a model takes and frees, traced at two small batch sizes, drawn on to any.

Every tensor that a pass makes is written down, and when it goes. At two batch sizes the tensors
come and go in the same order, so that

    size_i(B) = size_i(b0) + (size_i(b1) - size_i(b0)) (B - b0) / (b1 - b0)        of tensor i

holds at any batch size B. The loss is traced by itself: it goes through its logits in pieces, and
their number depends on B. No mixer is named here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ys_llm.model.costs import state_bytes
from ys_llm.model.language_model import Model
from ys_llm.model.state import detach
from ys_llm.ops import cross_entropy
from ys_llm.training.heap import Heap

SMALL, LARGE = 2, 3  # batch sizes traced; at 1 some copies are views
_CARRIED_BATCHES = 3  # by then a carried state is held as it is ever after
_PIECES = 4  # of a text, from which the growth of a state is read
_FEW_ROWS = 64  # of logits
_TIMES_PLAYED = 3  # the holes of one pass make the next one's heap larger
_SMALLEST_BLOCK = 1024  # bytes; smaller ones find a hole anywhere
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """Tensors as they come and go: `names`, and `sizes` in bytes, 0 where the tensor goes."""

    names: Int64Array
    sizes: Int64Array

    def peak(self) -> int:
        """The most bytes alive at once."""
        return int(self.alive().max(initial=0))

    def alive(self) -> Int64Array:
        """Bytes alive after each event."""
        coming = self.sizes > 0
        size_of = np.zeros(int(self.names.max(initial=0)) + 1, dtype=np.int64)
        size_of[self.names[coming]] = self.sizes[coming]
        changes = np.where(coming, self.sizes, -size_of[self.names])
        return changes.cumsum()

    def heap_bytes(self) -> int:
        """What a heap takes for them, where they come and go in this order again and again."""
        heap = Heap()
        large = (self.sizes == 0) | (self.sizes >= _SMALLEST_BLOCK)
        events = list(zip(self.names[large].tolist(), self.sizes[large].tolist(), strict=True))
        for _ in range(_TIMES_PLAYED):
            left = {name for name, size in events if size}
            for name, size in events:
                if size:
                    heap.take(name, size)
                else:
                    heap.free(name)
                    left.discard(name)
            for name in left:
                heap.free(name)
        return heap.top


class LiveTensors(TorchDispatchMode):
    """Writes down the tensors that are made on `device` in here, and when they go."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device.type
        self._events: list[tuple[int, int]] = []
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._made = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for value in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type == self._device_type:
                self._see(value.untyped_storage())
        return result

    def __len__(self) -> int:
        """How much has been written down."""
        return len(self._events)

    def trace(self) -> Trace:
        """All that has been written down."""
        names, sizes = np.array(self._events, dtype=np.int64).reshape(-1, 2).T
        return Trace(names, sizes)

    def _see(self, storage: Any) -> None:
        key, name, size = id(storage), self._made, storage.nbytes()
        if key in self._alive or not size:
            return

        def gone(_: Any) -> None:
            self._events.append((name, 0))
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self._events.append((name, size))
        self._made += 1


def drawn_on(small: Trace, large: Trace, batch_size: int) -> Trace:
    """The trace at `batch_size` from those at SMALL and LARGE.

    Where a mixer makes other tensors for another batch size, all are taken to grow with it.
    """
    if not np.array_equal(small.names, large.names):
        return Trace(large.names, large.sizes * batch_size // LARGE)
    more = (large.sizes - small.sizes) * (batch_size - SMALL) // (LARGE - SMALL)
    return Trace(small.names, small.sizes + more)


@dataclass(frozen=True)
class _Pass:
    """A trace, where in it each loss is computed and gone back through, and what dtype it reads.

    What the loss reads is there for its way forward; by its way back it may be gone.
    """

    trace: Trace
    losses: list[tuple[int, int]]
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
        self._losses: dict[tuple[int, torch.dtype], tuple[int, int]] = {}

    def training_pass(
        self, seq_len: int, batch_size: int, *, carried: bool, accumulated: bool
    ) -> _Pass:
        """One batch forward and back, the loss aside.

        `carried`: batches before it hand their state on. `accumulated`: its gradients are added to
        those of a batch before it.
        """
        live, losses, state = LiveTensors(self.device), list[tuple[int, int]](), None
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        with live:
            for _ in range(_CARRIED_BATCHES if carried else 1 + accumulated):
                tokens_BT, starts_BT = self._batch(batch_size, seq_len)
                with self._autocast():
                    x_BTD, after = self.model._hidden(tokens_BT, state, starts_BT)
                state, dtype = detach(after) if carried else None, x_BTD.dtype
                forward = len(live)
                loss = _Loss.apply(x_BTD)  # type: ignore[no-untyped-call]
                del x_BTD
                losses.append((forward, len(live)))
                torch.autograd.backward(loss)
                del after, loss
                if not accumulated:
                    self.model.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        return _Pass(live.trace(), losses, dtype)

    def loss_peaks(self, n_tokens: int, dtype: torch.dtype) -> list[int]:
        """Bytes that the loss of `n_tokens` takes at most, forward and back.

        Beside the hidden stream it reads.
        """
        rows = max(1, cross_entropy.CHUNK_ELEMENTS // self.model.vocab_size)
        first, second = (rows, 2 * rows) if n_tokens > rows else (_FEW_ROWS, 2 * _FEW_ROWS)
        peaks = zip(*(self._loss_peaks(n, dtype) for n in (first, second)), strict=True)
        return [
            small + (large - small) * (n_tokens - first) // (second - first)
            for small, large in peaks
        ]

    def _loss_peaks(self, n_tokens: int, dtype: torch.dtype) -> tuple[int, int]:
        key = (n_tokens, dtype)
        if key not in self._losses:
            x_ND, targets_N = self._rows(n_tokens, dtype)
            live, head = LiveTensors(self.device), self.model.output
            with live:
                x_ND.view_as(x_ND)  # seen now, or at its first piece: not the loss's either way
                with self._autocast():
                    loss = cross_entropy.cross_entropy(head, x_ND.requires_grad_(), targets_N)
                turn = len(live)
                torch.autograd.backward(loss)
            alive = live.trace().alive() - x_ND.nbytes
            self._losses[key] = int(alive[:turn].max()), int(alive[turn:].max())
            self.model.zero_grad(set_to_none=True)
        return self._losses[key]

    def scoring(self, seq_len: int, batch_size: int, n_tokens: int) -> tuple[Trace, int]:
        """The scoring of `n_tokens` in each row, `seq_len` at a time; and bytes to be added to it.

        These are by how much a carried state grows after the pieces that were traced, read from
        the last two of them.
        """
        first, before, last, final = (
            state_bytes(self.model, batch_size=1, seq_len=n)
            for n in (seq_len, (_PIECES - 1) * seq_len, _PIECES * seq_len, n_tokens)
        )
        pieces = min(-(-n_tokens // seq_len), 2 if first == final else _PIECES)
        trace = self._scoring(seq_len, batch_size, pieces)
        if final <= last or before == last:
            return trace, 0
        growth = trace.peak() - self._scoring(seq_len, batch_size, pieces - 1).peak()
        return trace, growth * (final - last) // (last - before)

    def _scoring(self, seq_len: int, batch_size: int, pieces: int) -> Trace:
        """The first pieces of a text, each taking up the state of the one before."""
        small, large = (self._scored(seq_len, b, pieces) for b in (SMALL, LARGE))
        return drawn_on(small, large, batch_size)

    def _scored(self, seq_len: int, batch_size: int, pieces: int) -> Trace:
        live, state = LiveTensors(self.device), None
        with self._evaluating(self.precision), live:
            for _ in range(pieces):
                tokens_BT, starts_BT = self._batch(batch_size, seq_len)
                x_BTD, state = self.model._hidden(tokens_BT, state, starts_BT)
                x_BTD.flatten(0, 1).clone()  # as those that are scored are picked
        return live.trace()

    def head_peak(self, n_tokens: int) -> int:
        """Bytes that the logits of `n_tokens` and their scores take at most."""
        small, large = (self._head_peak(n) for n in (_FEW_ROWS, 2 * _FEW_ROWS))
        return small + (large - small) * (n_tokens - _FEW_ROWS) // _FEW_ROWS

    def _head_peak(self, n_tokens: int) -> int:
        x_ND, targets_N = self._rows(n_tokens, torch.float32)
        live = LiveTensors(self.device)
        with self._evaluating(self.precision), live:
            functional.cross_entropy(self.model.output(x_ND).float(), targets_N, reduction="none")
        return live.trace().peak()

    def reading(self, n_tokens: int) -> Trace:
        """A prompt read in one row, `n_tokens` at a time; always in float32."""
        live, state = LiveTensors(self.device), None
        with self._evaluating("fp32"), live:
            for _ in range(2):
                tokens_BT, _ = self._batch(1, n_tokens)
                x_BTD, state = self.model._hidden(tokens_BT, state, None)
                self.model.output(x_BTD[:, -1:])
        return live.trace()

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
    def _evaluating(self, precision: str) -> Iterator[None]:
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

    def trace(self, batch_size: int) -> Trace:
        """All that it takes: activations, gradients, the loss. Not weights and moments."""
        passes = drawn_on(self._small.trace, self._large.trace, batch_size)
        forward, back = map(list, zip(*self._large.losses, strict=True))
        peaks = self._tracer.loss_peaks(batch_size * self._seq_len, self._large.dtype)
        head_bytes = sum(p.nbytes for p in self._tracer.model.output.parameters())  # its gradients
        name, n = int(passes.names.max()) + 1, len(forward)
        at = [*forward, *forward, *back, *back, back[0]]
        names = [name] * 2 * n + [name + 1] * 2 * n + [name + 2]
        sizes = [peaks[0]] * n + [0] * n + [peaks[1]] * n + [0] * n + [head_bytes]
        return Trace(np.insert(passes.names, at, names), np.insert(passes.sizes, at, sizes))
