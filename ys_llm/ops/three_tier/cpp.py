"""The three-tier recurrence as one call of compiled code forward, and one back.

The C++ (`ys_llm/csrc/recurrence.cpp`) keeps to the equation of `recurrence.py`. The weights are
packed once per pass; inside, nothing is asked of Python or torch. The gradient of every matrix is
one product of torch's over all steps, here, after the loop.
"""

import ctypes
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.ops import weight_grad as weight_grad_op
from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.types import State, Summary, Weights, flat, one_clock, unflat

KERNEL = "recurrence"
_Tensors = dict[str, Tensor | None]
_FITTING_BYTES = (
    1 << 20
)  # of a state controller that each core has room for beside what it works on


class _Operands(NamedTuple):
    """The type of the products' operands, its number in the C++ code, and the type of sums."""

    number: int
    dtype: torch.dtype
    real: torch.dtype


_F64 = _Operands(0, torch.float64, torch.float64)
_F32 = _Operands(1, torch.float32, torch.float32)
_BF16 = _Operands(2, torch.bfloat16, torch.float32)


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names.split()]


def _numbers(names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names.split()]


class _TierArguments(ctypes.Structure):
    """`Tier` of the C++ code."""

    _fields_ = (
        *_numbers("every width"),
        *_pointers("controller influencer shaper gain bias held"),
        *_pointers("old_held x_hat rstd normed d_held d_pre d_gain d_bias"),
    )


class _PassArguments(ctypes.Structure):
    """`Pass` of the C++ code."""

    _fields_ = (
        *_numbers("length batch d_state heads position row_groups column_groups keeps"),
        *_pointers(
            "drive starts controller shaper gain bias entry drive_bias main h x_hat rstd held_sum y"
        ),
        *_pointers("d_h d_pre d_y d_gain d_bias d_entry d_drive_bias"),
        ("tiers", _TierArguments * 2),
    )


def library() -> ctypes.CDLL | None:
    """The compiled code where there is any."""
    found = loader.ready(KERNEL)
    if found is not None:
        found.ys_packed_size.restype = ctypes.c_int64
        found.ys_units.restype = ctypes.c_char_p
    return found


def unavailable_reason() -> str:
    """Why `library` gives none."""
    return loader.unavailable_reason(KERNEL)


def units() -> str:
    """What the compiled products run on: AMX, AVX512-BF16, AVX-512 or any vectors."""
    found = library()
    return "" if found is None else str(found.ys_units(), "ascii")


def grid(*, batch_size: int, d_state: int, n_heads: int, threads: int) -> tuple[int, int]:
    """How threads share the work: (groups of rows, groups of columns).

    Rows never wait for each other, and each group of them reads the whole controller at every step.
    Columns each read their own of it; they wait for each other, but for those of different heads.
    """
    is_large = 2 * d_state * d_state // n_heads > _FITTING_BYTES
    if is_large and (n_heads == 1 or n_heads % threads == 0):
        return 1, threads
    return min(threads, batch_size), 1


class _Code:
    """The C++ functions for one type of operands: packs matrices, runs passes."""

    def __init__(self, operands: _Operands) -> None:
        found = library()
        assert found is not None, "asked for compiled code where `library` gives none"
        self.library, self.operands = found, operands

    def pack(self, matrix: Tensor | None, *, transposed: bool = False) -> Tensor | None:
        """The matrix, or one for each head, in the panels in which the loop multiplies by it."""
        if matrix is None:
            return None
        matrix = matrix.to(self.operands.real).contiguous()
        blocks = matrix.unsqueeze(0) if matrix.dim() == 2 else matrix
        if transposed:
            blocks = blocks.transpose(1, 2)
        n, rows, columns = blocks.shape
        size = n * self.library.ys_packed_size(self.operands.number, *_sizes(rows, columns))
        packed = torch.empty(size, dtype=self.operands.dtype)
        self.library.ys_pack(
            self.operands.number,
            ctypes.c_void_p(blocks.data_ptr()),
            *_sizes(n, *blocks.stride(), rows, columns),
            ctypes.c_void_p(packed.data_ptr()),
        )
        return packed

    def run(self, arguments: _PassArguments, *, back: bool) -> None:
        """One pass over the sequence."""
        self.library.ys_recurrence(self.operands.number, ctypes.byref(arguments), int(back))


def _sizes(*numbers: int) -> tuple[ctypes.c_int64, ...]:
    return tuple(map(ctypes.c_int64, numbers))


def _fill(structure: ctypes.Structure, tensors: _Tensors) -> None:
    """Point the fields of a structure at tensors, which the caller keeps alive."""
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(structure, name, tensor.data_ptr())


class _Pass:
    """One pass over T steps and back; holds what the way back needs."""

    def __init__(
        self, weights: Weights, code: _Code, position: int, starts_TB: Tensor | None
    ) -> None:
        self.weights, self.code, self.position = weights, code, position
        self.starts = None if starts_TB is None else starts_TB.to(torch.uint8).contiguous()
        self.summaries = (weights.local_summary, weights.global_summary)
        self.kept: _Tensors = {}
        self.kept_of_tiers: list[_Tensors] = [{}, {}]

    def forward(self, drive: Tensor, before: list[Tensor], *, keep: bool) -> list[Tensor]:
        """Every h, then h, L and G after the last step; `before` are those before the first."""
        weights, (dtype, real) = self.weights, self.code.operands[1:]
        self.sizes = length, batch, d_state = drive.shape
        self.h = torch.empty((length + 1, batch, d_state), dtype=dtype)  # that before step 0, too
        self.h[0] = before[0]
        after = [value.to(real) + 0 for value in before]

        def room(n: int, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty((n if keep else 1, *shape), dtype=dtype)

        firings = len(self._fired())
        self.kept = {
            "gain": weights.gain.to(real),
            "bias": weights.bias.to(real),
            "entry": None if weights.entry is None else weights.entry.to(real),
            "drive_bias": None if weights.drive_bias is None else weights.drive_bias.to(real),
            "x_hat": room(length, batch, d_state),
            "rstd": room(length, batch, weights.n_heads, dtype=real),
            "held_sum": room(firings + 1, batch, d_state, dtype=real),
            "y": None if weights.output_shaper is None else room(firings, batch, d_state),
        }
        for kept, summary in zip(self.kept_of_tiers, self.summaries, strict=True):
            if summary:
                n, width = len(self._fired(summary)), len(summary.gain)
                kept |= {
                    "gain": summary.gain.to(real),
                    "bias": summary.bias.to(real),
                    "old_held": room(n, batch, d_state),
                    "normed": room(n, batch, width),
                    "x_hat": room(n, batch, width, dtype=real),
                    "rstd": room(n, batch, weights.n_heads, dtype=real),
                }
        drive = drive.to(dtype).contiguous()
        main: _Tensors = {"drive": drive, "h": self.h[1:], "main": after[0]}
        tiers: list[_Tensors] = [{"held": value} for value in after[1:]]
        self._run(main, tiers, keep=keep, back=False)
        return [self.h[1:], *after]

    def backward(self, grad_h: Tensor, grads_after: list[Tensor]) -> list[Any]:
        """Gradients of drive, h0, L0, G0 and every weight, in the order of `flat`."""
        dtype, real = self.code.operands[1:]
        before = [grad.to(real) + 0 for grad in grads_after]
        main: _Tensors = {
            "main": before[0],
            "d_h": grad_h.to(dtype).contiguous(),
            "d_pre": torch.empty(self.sizes, dtype=dtype),
            **_like(self.kept, d_gain="gain", d_bias="bias", d_entry="entry", d_y="y"),
            **_like(self.kept, d_drive_bias="drive_bias"),
        }
        names = {"d_held": "old_held", "d_pre": "normed", "d_gain": "gain", "d_bias": "bias"}
        tiers: list[_Tensors] = [
            {"held": held, **(_like(kept, **names) if kept else {})}
            for held, kept in zip(before[1:], self.kept_of_tiers, strict=True)
        ]
        self._run(main, tiers, keep=True, back=True)
        return [main["d_pre"], *before, *self._main_grads(main), *self._tier_grads(tiers)]

    def _run(self, main: _Tensors, tiers: list[_Tensors], *, keep: bool, back: bool) -> None:
        weights, pack = self.weights, partial(self.code.pack, transposed=back)
        length, batch, d_state = self.sizes
        groups = grid(
            batch_size=batch,
            d_state=d_state,
            n_heads=weights.n_heads,
            threads=torch.get_num_threads(),
        )
        run = _PassArguments(
            length, batch, d_state, weights.n_heads, self.position, *groups, int(keep)
        )
        matrices: _Tensors = {
            "controller": pack(weights.state_controller),
            "shaper": pack(weights.output_shaper),
        }
        _fill(run, matrices | self.kept | main | {"starts": self.starts})
        packed = []  # alive until the pass is done
        for tier, summary, given, kept in zip(
            run.tiers, self.summaries, tiers, self.kept_of_tiers, strict=True
        ):
            packed.append(_packed(summary, pack))
            _fill(tier, packed[-1] | kept | given)
            if summary:
                tier.every, tier.width = summary.every, len(summary.gain)
        self.code.run(run, back=back)

    def _fired(self, *summaries: Summary) -> list[int]:
        """The steps after which any of these summaries, or of all, is renewed."""
        every = [summary.every for summary in summaries or self.summaries if summary]
        steps = range(self.sizes[0])
        return [t for t in steps if any((self.position + t + 1) % e == 0 for e in every)]

    def _main_grads(self, made: _Tensors) -> list[Tensor | None]:
        """Of state controller, gain, bias, output shaper, entry and the drive's bias."""
        weights, d_pre = self.weights, cast(Tensor, made["d_pre"])
        if self.starts is not None:  # h before a document's start was not read
            d_pre = d_pre.masked_fill(self.starts.bool().unsqueeze(2), 0)
        like = weights.state_controller
        d_controller = weight_grad(self.h[:-1].flatten(0, 1), d_pre.flatten(0, 1), like)
        d_shaper = None
        if weights.output_shaper is not None:
            y_TBS = self.h[1:][self._fired()].flatten(0, 1)
            d_y = cast(Tensor, made["d_y"]).flatten(0, 1)
            d_shaper = weight_grad(y_TBS, d_y, weights.output_shaper)
        vectors = [made["d_gain"], made["d_bias"], d_shaper, made["d_entry"], made["d_drive_bias"]]
        return [d_controller, *vectors]

    def _tier_grads(self, tiers: list[_Tensors]) -> list[Tensor | None]:
        grads: list[Tensor | None] = []
        for summary, kept, made in zip(self.summaries, self.kept_of_tiers, tiers, strict=True):
            if summary is None:
                grads += [None] * 5
                continue
            held, normed, d_held, d_pre = (
                cast(Tensor, value).flatten(0, 1)
                for value in (kept["old_held"], kept["normed"], made["d_held"], made["d_pre"])
            )
            grads += [
                weight_grad(held, d_pre, summary.state_controller),
                weight_grad(self._read(summary), d_pre, summary.input_influencer),
                weight_grad(normed, d_held, summary.output_shaper),
                made["d_gain"],
                made["d_bias"],
            ]
        return grads

    def _read(self, summary: Summary) -> Tensor:
        """What this summary read: y where it was renewed."""
        fired = self._fired(summary)
        if (y := self.kept["y"]) is None:
            return self.h[1:][fired].flatten(0, 1)
        whole = self._fired()
        return y[[whole.index(t) for t in fired]].flatten(0, 1)


def _packed(summary: Summary | None, pack: Any) -> _Tensors:
    if summary is None:
        return {}
    names = ("controller", "influencer", "shaper")
    return {name: pack(matrix) for name, matrix in zip(names, summary[:3], strict=True)}


def _like(tensors: _Tensors, **names: str) -> _Tensors:
    """Room for gradients, by their names, of the tensors with these names."""
    found = {name: tensors[of] for name, of in names.items()}
    return {name: None if of is None else torch.empty_like(of) for name, of in found.items()}


def weight_grad(x_NS: Tensor, grad_NS: Tensor, like: Tensor) -> Tensor:
    """The gradient of `like` in x @ like (a block for each head where it has three dimensions)."""
    if like.dim() == 2:
        return weight_grad_op.weight_grad(x_NS, grad_NS).to(like.dtype)
    heads = [
        x_NP.t() @ grad_NP
        for x_NP, grad_NP in zip(x_NS.chunk(len(like), 1), grad_NS.chunk(len(like), 1), strict=True)
    ]
    return torch.stack(heads).to(like.dtype)


class _Recurrence(torch.autograd.Function):
    """The bridge to autograd: tensors in, tensors out, and the pass kept between."""

    @staticmethod
    def forward(ctx: Any, settings: Any, *tensors: Any) -> tuple[Tensor, ...]:
        like, code, position, starts_TB = settings
        drive, h0, local, glob, *flat = tensors
        ctx.run = _Pass(unflat(flat, like), code, position, starts_TB)
        keep = any(ctx.needs_input_grad)
        h_TBS, *after = ctx.run.forward(drive, [h0, local, glob], keep=keep)
        ctx.dtypes = [None if t is None else t.dtype for t in tensors]
        return h_TBS, *after

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        given = ctx.run.backward(grads[0], list(grads[1:]))
        return None, *(
            grad if grad is None else grad.to(dtype)
            for grad, dtype in zip(given, ctx.dtypes, strict=True)
        )


def cpp(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """As `reference`, in C++ compiled on this machine: one call forward, one call backward.

    On a CPU only, and only where `library` finds it. With bfloat16 operands every h is bfloat16, as
    the next matmul takes it; the state stays float32. Runs outside autocast.
    """
    settings = (weights, _Code(_operands(drive_TBS, precision)), one_clock(state), starts_TB)
    with torch.autocast("cpu", enabled=False):
        h_TBS, main, local, glob = _Recurrence.apply(  # type: ignore[no-untyped-call]
            settings, drive_TBS, *state[:3], *flat(weights)
        )
    return h_TBS, State(main, local, glob, one_clock(state) + len(drive_TBS))


def _operands(drive: Tensor, precision: Precision) -> _Operands:
    if drive.dtype == torch.float64:
        return _F64
    return _BF16 if precision == "bf16" else _F32
