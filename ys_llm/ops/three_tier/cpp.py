"""The three-tier recurrence in C++: one call forward, one backward.

`csrc/three_tier/` follows the equation of `reference.py`. The weights are packed once per pass; the
loop over time calls neither Python nor torch. The gradient of every matrix is one matmul of torch
over all steps, here, after the loop.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.ops import weight_grad as weight_grad_op
from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.types import State, Summary, Weights, flat, one_clock, unflat

_Tensors = dict[str, Tensor | None]
_VECTORS = ("gain", "bias", "summary_scale", "drive_bias", "gate_bias")  # of `Weights`
_CACHED_BYTES = 1 << 20  # of a state controller that stays in a core's cache during the loop


class Operands(NamedTuple):
    """The dtype of matmul operands, its number in C++ (`enum ys_operands`), the dtype of sums."""

    number: int
    dtype: torch.dtype
    sum_dtype: torch.dtype


_F64 = Operands(0, torch.float64, torch.float64)
_F32 = Operands(1, torch.float32, torch.float32)
_BF16 = Operands(2, torch.bfloat16, torch.float32)


def library() -> loader.Library | None:
    """The compiled library, where there is one."""
    return loader.load()


def unavailable_reason() -> str:
    """Why there is no compiled library."""
    return loader.unavailable_reason()


def units() -> str:
    """The instructions of the matmuls: AMX, AVX512-BF16, AVX-512 or vectors."""
    found = library()
    return "" if found is None else str(found.ffi.string(found.lib.ys_units()), "ascii")


def grid(*, batch_size: int, d_state: int, n_heads: int, threads: int) -> tuple[int, int]:
    """How threads share the work: (groups of rows, groups of columns).

    Groups of rows never wait for each other, and each reads all of the controller at every step.
    Groups of columns read a part of it each, and wait for each other unless heads separate them.
    """
    is_large = 2 * d_state * d_state // n_heads > _CACHED_BYTES
    if is_large and (n_heads == 1 or n_heads % threads == 0):
        return 1, threads
    return min(threads, batch_size), 1


class _Kernels:
    """The C++ functions for one type of operands: packs matrices, runs passes."""

    def __init__(self, operands: Operands) -> None:
        found = library()
        assert found is not None, "the cpp backend was called without a compiled library"
        self.library, self.operands = found, operands

    def pack(self, matrix: Tensor | None, *, transposed: bool = False) -> Tensor | None:
        """The matrix, or one for each head, in the panels that the loop multiplies by."""
        if matrix is None:
            return None
        matrix = matrix.to(self.operands.sum_dtype).contiguous()
        blocks = matrix.unsqueeze(0) if matrix.dim() == 2 else matrix
        if transposed:
            blocks = blocks.transpose(1, 2)
        n, rows, columns = blocks.shape
        lib, number = self.library.lib, self.operands.number
        size = n * lib.ys_packed_size(number, rows, columns)
        packed = torch.empty(size, dtype=self.operands.dtype)
        source, to = self.library.pointer(blocks), self.library.pointer(packed)
        lib.ys_pack(number, source, n, *blocks.stride(), rows, columns, to)
        return packed

    def new_pass(self) -> Any:
        """An empty `struct ys_three_tier_pass *`."""
        return self.library.ffi.new("struct ys_three_tier_pass *")

    def fill(self, struct: Any, tensors: _Tensors) -> None:
        """Point the fields of a struct at tensors, which the caller keeps alive."""
        for name, tensor in tensors.items():
            setattr(struct, name, self.library.pointer(tensor))

    def run(self, arguments: Any, *, backward: bool) -> None:
        """One pass over the sequence."""
        lib = self.library.lib
        run = lib.ys_three_tier_backward if backward else lib.ys_three_tier_forward
        run(self.operands.number, arguments)


class _Pass:
    """One pass over T steps, forward and then backward; keeps what backward needs."""

    def __init__(
        self, weights: Weights, kernels: _Kernels, position: int, starts_TB: Tensor | None
    ) -> None:
        self.weights, self.kernels, self.position = weights, kernels, position
        self.starts = None if starts_TB is None else starts_TB.to(torch.uint8).contiguous()
        self.summaries = (weights.local_summary, weights.global_summary)
        self.saved: _Tensors = {}
        self.saved_of_summaries: list[_Tensors] = [{}, {}]

    def forward(self, drive: Tensor, before: list[Tensor], *, save: bool) -> list[Tensor]:
        """Every h, then h, L and G after the last step; `before` are those before the first."""
        _, dtype, sum_dtype = self.kernels.operands
        d_state, self.drive_shape = len(self.weights.gain), drive.shape
        self.sizes = length, batch, _ = (*drive.shape[:2], d_state)
        self.h = torch.empty((length + 1, batch, d_state), dtype=dtype)  # h[0] is before step 0
        self.h[0] = before[0]
        after = [value.to(sum_dtype) + 0 for value in before]
        self._allocate_saved(save=save)
        drive = drive.to(dtype).contiguous()
        main: _Tensors = {"drive": drive, "main": after[0]}
        values: list[_Tensors] = [{"value": value} for value in after[1:]]
        self._run(main, values, save=save, backward=False)
        if self.weights.gate_bias is not None:  # backward reads the gate's input again
            self.saved["drive"] = drive
        return [self.h[1:], *after]

    def _allocate_saved(self, *, save: bool) -> None:
        """Memory for what each step saves, or for one step where no backward pass follows."""
        weights, (_, dtype, sum_dtype) = self.weights, self.kernels.operands
        length, batch, d_state = self.sizes

        def empty(n: int, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
            """Memory for n steps, or for one where nothing is saved."""
            return torch.empty((n if save else 1, *shape), dtype=dtype)

        updates = len(self._update_steps())
        vectors = {name: getattr(weights, name) for name in _VECTORS}
        self.saved = {
            **{name: None if v is None else v.to(sum_dtype) for name, v in vectors.items()},
            "x_hat": empty(length, batch, d_state),
            "rstd": empty(length, batch, weights.n_heads, dtype=sum_dtype),
            "summary_sum": empty(updates + 1, batch, d_state, dtype=sum_dtype),
            "y": None if weights.output_shaper is None else empty(updates, batch, d_state),
        }
        for saved, summary in zip(self.saved_of_summaries, self.summaries, strict=True):
            if summary:
                n, width = len(self._update_steps(summary)), len(summary.gain)
                saved |= {
                    "gain": summary.gain.to(sum_dtype),
                    "bias": summary.bias.to(sum_dtype),
                    "old_value": empty(n, batch, d_state),
                    "normed": empty(n, batch, width),
                    "x_hat": empty(n, batch, width, dtype=sum_dtype),
                    "rstd": empty(n, batch, weights.n_heads, dtype=sum_dtype),
                }

    def backward(self, grad_h: Tensor, grads_after: list[Tensor]) -> list[Any]:
        """Gradients of drive, h0, L0, G0 and every weight, in the order of `flat`."""
        _, dtype, sum_dtype = self.kernels.operands
        before = [grad.to(sum_dtype) + 0 for grad in grads_after]
        main: _Tensors = {
            "main": before[0],
            "d_h": grad_h.to(dtype).contiguous(),
            "d_drive": torch.empty(self.drive_shape, dtype=dtype),
            "kept": None if "drive" not in self.saved else torch.empty(self.sizes, dtype=dtype),
            **_empty_like(self.saved, d_y="y", **{f"d_{name}": name for name in _VECTORS}),
        }
        names = {"d_value": "old_value", "d_pre": "normed", "d_gain": "gain", "d_bias": "bias"}
        summaries: list[_Tensors] = [
            {"value": value, **(_empty_like(saved, **names) if saved else {})}
            for value, saved in zip(before[1:], self.saved_of_summaries, strict=True)
        ]
        self._run(main, summaries, save=True, backward=True)
        return [main["d_drive"], *before, *self._main_grads(main), *self._summary_grads(summaries)]

    def _run(
        self, main: _Tensors, of_summaries: list[_Tensors], *, save: bool, backward: bool
    ) -> None:
        weights, pack = self.weights, partial(self.kernels.pack, transposed=backward)
        arguments = self.kernels.new_pass()
        arguments.length, arguments.batch, arguments.d_state = self.sizes
        arguments.n_heads, arguments.position = weights.n_heads, self.position
        arguments.row_groups, arguments.column_groups = grid(
            batch_size=arguments.batch,
            d_state=arguments.d_state,
            n_heads=weights.n_heads,
            threads=torch.get_num_threads(),
        )
        arguments.saves = int(save)
        matrices: _Tensors = {
            "controller": pack(weights.state_controller),
            "shaper": pack(weights.output_shaper),
        }
        self.kernels.fill(arguments, matrices | {"h": self.h[1:]} | self.saved | main)
        if self.starts is not None:
            arguments.starts = self.kernels.library.pointer(self.starts)
        packed = []  # kept alive until the pass is done
        for struct, summary, grads, saved in zip(
            arguments.summaries, self.summaries, of_summaries, self.saved_of_summaries, strict=True
        ):
            packed.append(_packed(summary, pack))
            self.kernels.fill(struct, packed[-1] | saved | grads)
            if summary:
                struct.interval, struct.width = summary.every, len(summary.gain)
        self.kernels.run(arguments, backward=backward)

    def _update_steps(self, *summaries: Summary) -> list[int]:
        """The steps after which any of these summaries, by default of both, is updated."""
        intervals = [summary.every for summary in summaries or self.summaries if summary]
        steps = range(self.sizes[0])
        return [t for t in steps if any((self.position + t + 1) % n == 0 for n in intervals)]

    def _main_grads(self, grads: _Tensors) -> list[Tensor | None]:
        """Of the main tensors of the weights, in the order of `flat`."""
        weights, kept = self.weights, grads["kept"]
        d_pre = cast(Tensor, grads["d_drive"])[..., : self.sizes[2]]
        if kept is None:
            kept = self.h[:-1]
            if self.starts is not None:  # h before a document's start was not read
                d_pre = d_pre.masked_fill(self.starts.bool().unsqueeze(2), 0)
        like = weights.state_controller
        d_controller = weight_grad(kept.flatten(0, 1), d_pre.flatten(0, 1), like)
        d_shaper = None
        if weights.output_shaper is not None:
            h_TBS = self.h[1:][self._update_steps()].flatten(0, 1)
            d_y = cast(Tensor, grads["d_y"]).flatten(0, 1)
            d_shaper = weight_grad(h_TBS, d_y, weights.output_shaper)
        d_gain, d_bias, *of_others = (grads[f"d_{name}"] for name in _VECTORS)
        return [d_controller, d_gain, d_bias, d_shaper, *of_others]

    def _summary_grads(self, grads_of: list[_Tensors]) -> list[Tensor | None]:
        grads: list[Tensor | None] = []
        for summary, saved, own in zip(
            self.summaries, self.saved_of_summaries, grads_of, strict=True
        ):
            if summary is None:
                grads += [None] * 5
                continue
            old_value, normed, d_value, d_pre = (
                cast(Tensor, value).flatten(0, 1)
                for value in (saved["old_value"], saved["normed"], own["d_value"], own["d_pre"])
            )
            grads += [
                weight_grad(old_value, d_pre, summary.state_controller),
                weight_grad(self._summary_input(summary), d_pre, summary.input_influencer),
                weight_grad(normed, d_value, summary.output_shaper),
                own["d_gain"],
                own["d_bias"],
            ]
        return grads

    def _summary_input(self, summary: Summary) -> Tensor:
        """The y that each update of this summary read."""
        steps = self._update_steps(summary)
        if (y := self.saved["y"]) is None:
            return self.h[1:][steps].flatten(0, 1)
        all_steps = self._update_steps()
        return y[[all_steps.index(t) for t in steps]].flatten(0, 1)


def _packed(summary: Summary | None, pack: Any) -> _Tensors:
    if summary is None:
        return {}
    names = ("controller", "influencer", "shaper")
    return {name: pack(matrix) for name, matrix in zip(names, summary[:3], strict=True)}


def _empty_like(tensors: _Tensors, **names: str) -> _Tensors:
    """Memory for gradients, by their names, of the tensors with these names."""
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
    """The bridge to autograd: tensors in, tensors out; the pass is kept in between."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: _Kernels,
        weights: Weights,
        position: int,
        starts_TB: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        """Every h, then h, L and G after the last step."""
        drive, h0, local, glob, *weight_tensors = tensors
        ctx.run = _Pass(unflat(weight_tensors, weights), kernels, position, starts_TB)
        save = any(ctx.needs_input_grad)
        h_TBS, *after = ctx.run.forward(drive, [h0, local, glob], save=save)
        ctx.dtypes = [None if t is None else t.dtype for t in tensors]
        return h_TBS, *after

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of drive, h0, L0, G0 and every weight."""
        results = ctx.run.backward(grads[0], list(grads[1:]))
        return (None,) * 4 + tuple(
            grad if grad is None else grad.to(dtype)
            for grad, dtype in zip(results, ctx.dtypes, strict=True)
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

    On a CPU only, and only where `library` finds it. With bfloat16 operands every h is bfloat16,
    the operand of the next matmul; the state stays float32. Runs outside autocast.
    """
    kernels, clock = _Kernels(_operands(drive_TBS, precision)), one_clock(state)
    with torch.autocast("cpu", enabled=False):
        h_TBS, main, local, glob = _Recurrence.apply(  # type: ignore[no-untyped-call]
            kernels, weights, clock, starts_TB, drive_TBS, *state[:3], *flat(weights)
        )
    return h_TBS, State(main, local, glob, clock + len(drive_TBS))


def _operands(drive: Tensor, precision: Precision) -> Operands:
    if drive.dtype == torch.float64:
        return _F64
    return _BF16 if precision == "bf16" else _F32
