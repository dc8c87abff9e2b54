"""Calls every function of the library that was compiled with the flags on the command line.

Prints the names of the functions that were called. Run by `test_sanitizers.py`.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from typing import Any

import torch

from ys_llm.config.schema import CopyConfig, GenerateConfig, ModelConfig
from ys_llm.csrc import loader
from ys_llm.inference.compiled_sampling import PENALTY_WINDOW, draw_rows
from ys_llm.inference.decoder import Decoder
from ys_llm.mixers.three_tier import Mixer, Options
from ys_llm.model.language_model import Model
from ys_llm.model.quantize import quantize_linears
from ys_llm.ops.head_products import ByKernel
from ys_llm.ops.three_tier import cpp
from ys_llm.ops.three_tier.types import State

SUFFIXES = {"b": ("uint16_t", 2), "f": ("float", 4), "d": ("double", 8)}
WIDTHS = (1, 7, 16, 33, 100)
ROWS = (1, 3, 17, 70)
THREADS = (1, 2)


class Counted:
    """The library's functions, which remember that they were called."""

    def __init__(self, lib: Any) -> None:
        self._lib, self.called = lib, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._lib, name)


class Memory:
    """Arrays of exactly the size asked for, from malloc, filled with small numbers."""

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        ffi_c = type(ffi)()
        ffi_c.cdef("void* malloc(size_t); void free(void*); void* memset(void*, int, size_t);")
        self._c, self._ffi_c = ffi_c.dlopen(None), ffi_c
        self._allocated: list[Any] = []

    def array(self, suffix: str, n: int) -> Any:
        """n numbers of the type with this suffix, all 0."""
        ctype, size = {**SUFFIXES, "i": ("int64_t", 8), "t": ("int32_t", 4)}[suffix]
        memory = self._c.malloc(max(1, n * size))
        self._c.memset(memory, 0, n * size)
        self._allocated.append(memory)
        address = int(self._ffi_c.cast("uintptr_t", memory))
        return self._ffi.cast(f"{ctype} *", address)

    def free(self) -> None:
        """All of them."""
        for memory in self._allocated:
            self._c.free(memory)
        self._allocated.clear()


def call_rowwise(lib: Any, memory: Memory, rows: int, width: int, threads: int) -> None:
    """Norm, gate and loss, in every combination of types."""
    null, size = loader_ffi().NULL, rows * width
    for x, a, y in ("ddd", "fff", "ffb", "fbf", "fbb"):
        for has_delta in (False, True):
            delta = memory.array(a, size) if has_delta else null
            residual, gain = memory.array(x, size), memory.array(x, width)
            output, r_rms = memory.array(y, size), memory.array(x, rows)
            forward = getattr(lib, f"ys_rms_norm_forward_{x}{a}{y}")
            source = memory.array(x, size)
            forward(source, delta, gain, residual, output, r_rms, rows, width, 1e-5, threads)
            backward = getattr(lib, f"ys_rms_norm_backward_{x}{a}{y}")
            d_out = memory.array(x, size) if has_delta else null
            d_delta = memory.array(a, size) if has_delta else null
            d_residual, d_gain = memory.array(x, size), memory.array(x, width)
            given = (output, d_out, residual, gain, r_rms, d_residual, d_delta, d_gain)
            backward(*given, rows, width, threads)
    for t, p in ("dd", "ff", "bf"):
        gate_up, act = memory.array(t, 2 * size), memory.array(t, size)
        getattr(lib, f"ys_swiglu_gate_forward_{t}")(gate_up, act, rows, width, threads)
        d_gate_up = memory.array(t, 2 * size)
        backward = getattr(lib, f"ys_swiglu_gate_backward_{t}")
        backward(gate_up, act, d_gate_up, act, rows, width, threads)
        targets = memory.array("i", rows)
        targets[0], targets[rows - 1] = width, width - 1  # the first is no class
        for optional in (False, True):
            bias = memory.array(p, width) if optional else null
            d_bias = memory.array(p, width) if optional else null
            weights = memory.array(p, rows) if optional else null
            if optional:
                weights[rows - 1] = 0.5
            loss = getattr(lib, f"ys_cross_entropy_{t}")
            logits, losses = memory.array(t, size), memory.array(p, rows)
            mixture = [memory.array(p, rows) if optional else null for _ in range(4)]
            given = (logits, bias, targets, weights, *mixture[:2], losses, *mixture[2:], d_bias)
            loss(*given, rows, width, threads)
    lib.ys_add_to_fb(memory.array("f", size), memory.array("b", size), size, threads)
    memory.free()


def call_copied_mass(lib: Any, memory: Memory, threads: int) -> None:
    """Tiles of queries that see one key, some, and all of those before them; some have expired."""
    for suffix, masses in (("b", "f"), ("f", "f"), ("d", "d")):
        for batch, queries, width in ((1, 1, 1), (2, 3, 17), (3, 70, 100)):
            scores, first = (
                memory.array(suffix, batch * queries * width),
                memory.array("i", batch * queries),
            )
            for row in range(batch * queries):
                first[row] = min(row % 5, width - queries + row % queries)
                if width > queries and row % 3 == 0:
                    scores[row * width] = 0xFF80 if suffix == "b" else -math.inf
            tokens, targets = memory.array("t", batch * width), memory.array("t", batch * queries)
            sentinel, rest, mass, common = (memory.array(masses, batch * queries) for _ in range(4))
            copied_mass = getattr(lib, f"ys_copied_mass_{suffix}")
            arrays = (scores, sentinel, first, tokens, targets, rest, mass)
            copied_mass(*arrays, batch, queries, width, threads)
            backward = getattr(lib, f"ys_copied_mass_backward_{suffix}")
            d_scores = memory.array(suffix, batch * queries * width)
            backward(scores, mass, common, d_scores, batch * queries, width, threads)
    memory.free()


def call_convolution(lib: Any, memory: Memory, threads: int) -> None:
    """Texts shorter and longer than the taps, rows below and above a vector, in both orders."""
    sizes_of_texts = ((1, 1, 1, 1), (2, 2, 17, 3), (3, 40, 33, 3), (1, 35, 100, 2))
    for suffix, wide in (("b", "f"), ("f", "f"), ("d", "d")):
        for batch, length, width, earlier in sizes_of_texts:
            size = batch * length * width
            x, y, d_x = (memory.array(suffix, size) for _ in range(3))
            weight, d_weight = (memory.array(wide, earlier * width) for _ in range(2))
            past, d_past = (memory.array(wide, batch * earlier * width) for _ in range(2))
            reach = memory.array("t", batch * length)
            for token in range(batch * length):
                reach[token] = token % (earlier + 1)
            for time_major, seen in itertools.product((0, 1), (reach, loader_ffi().NULL)):
                sizes = (batch, length, width, earlier, time_major, threads)
                forward = getattr(lib, f"ys_convolution_forward_{suffix}")
                forward(x, weight, past, seen, y, *sizes)
                backward = getattr(lib, f"ys_convolution_backward_{suffix}")
                backward(y, x, weight, past, seen, d_x, d_weight, d_past, *sizes)
    memory.free()


def call_weight_grad(lib: Any, memory: Memory) -> None:
    """Where this processor has it; elsewhere a call does nothing."""
    lib.ys_has_weight_grad()
    for rows, k, m in ((1, 32, 32), (33, 64, 32), (700, 32, 96)):
        arrays = [memory.array("b", rows * k), memory.array("b", rows * m)]
        packed = torch.empty(lib.ys_weight_grad_workspace(k, m), dtype=torch.bfloat16)
        sums, out = torch.empty(k, m), torch.empty(k, m)
        library = the_library()
        lib.ys_weight_grad(
            *(arrays[0], k, arrays[1], m, rows, k, m),
            *(library.pointer(packed), library.pointer(sums), library.pointer(out), 2),
        )
    memory.free()


def call_linear(lib: Any, memory: Memory) -> None:
    """A matmul and the gradient of its matrix: odd sizes, more than a piece of rows or of k.

    Rows lie next to each other, or apart; the last ends with its last number.
    """
    shapes = ((1, 1, 1, 1), (33, 7, 100, 2), (600, 33, 17, 2), (40, 1100, 9, 2), (1030, 5, 33, 2))
    for (rows, k, m, threads), apart in itertools.product(shapes, (0, 3)):
        size = lib.ys_packed_size(lib.YS_F32, k, m)
        stride_x, stride_dy = k + apart, m + apart
        x = memory.array("f", (rows - 1) * stride_x + k)
        weight, packed_weight = memory.array("f", k * m), memory.array("f", size)
        for stride_k, stride_m in ((m, 1), (1, k)):
            lib.ys_pack(lib.YS_F32, weight, 1, 0, stride_k, stride_m, k, m, packed_weight)
        out = memory.array("f", rows * m)
        lib.ys_matmul_f(x, stride_x, packed_weight, rows, k, m, out, threads)
        dy = memory.array("f", (rows - 1) * stride_dy + m)
        packed = memory.array("f", lib.ys_weight_grad_workspace_f(k))
        sums, d_weight = memory.array("f", size), memory.array("f", k * m)
        for begins in (1, 0):
            operands = (x, stride_x, dy, stride_dy, rows, k, m, packed, sums)
            lib.ys_add_weight_grad_f(*operands, begins, threads)
        lib.ys_unpack_f(sums, k, m, d_weight, threads)
    memory.free()


def call_head() -> None:
    """A head over a vocabulary by the float32 kernels, its rows in chunks that end inside."""
    for rows, width, vocab_size, chunk in ((1, 5, 3, 4), (70, 33, 101, 32), (600, 40, 257, 256)):
        x_ND, weight_VD = torch.randn(rows, width), torch.randn(vocab_size, width)
        head, d_x = ByKernel(weight_VD), torch.empty(rows, width)
        for begin in range(0, rows, chunk):
            part = slice(begin, begin + chunk)
            logits_NV = head.logits(x_ND[part])
            head.d_x(logits_NV, d_x[part])
            head.add_d_weight(logits_NV, x_ND[part])
        assert head.d_weight().shape == weight_VD.shape


def call_recurrence(d_state: int, d_summary: int, n_heads: int, *, factored: bool) -> None:
    """Passes forward and backward in every operand type, from inside a window."""
    width = d_summary or d_state
    for dtype, precision in (
        (torch.float64, "fp32"),
        (torch.float32, "fp32"),
        (torch.float32, "bf16"),
    ):
        options = Options(
            d_state=d_state,
            d_summary=width,
            n_heads=n_heads,
            factored=factored,
            local_interval=3,
            global_interval=7,
        )
        weights = Mixer(8, options).to(dtype).recurrence_weights()
        for length, batch, grid in ((1, 1, (1, 1)), (17, 5, (2, 1)), (10, 3, (1, 2))):
            cpp.grid = lambda grid=grid, **_: grid  # type: ignore[assignment]
            drive = torch.randn(length, batch, d_state, dtype=dtype, requires_grad=True)
            state = State(*(torch.randn(batch, d_state, dtype=dtype) for _ in range(3)), 5)
            starts = torch.rand(length, batch) < 0.2
            if not factored:
                weights = weights._replace(gate_bias=torch.randn(d_state, dtype=dtype))
                drive = torch.randn(length, batch, 2 * d_state, dtype=dtype, requires_grad=True)
            h, _ = cpp.cpp(drive, weights, state, starts_TB=starts, precision=precision)  # type: ignore[arg-type]
            h.double().sum().backward()


def call_decoder(
    library: loader.Library,
    dtype: torch.dtype,
    quantization: str,
    window: int,
    vocab_size: int = 29,
    **changes: Any,
) -> None:
    """Seven steps for one and for many sequences, with updates of both summaries.

    `window` is that of the copy tier, whose ring goes round where it is small. Some sequences
    begin empty, some with what a pass over six tokens has left: a ring that is full or not.
    """
    options = {"d_state": 21, "d_summary": 6, "n_heads": 3, "local_interval": 2, **changes}
    options["global_interval"] = 3
    settings = ModelConfig(
        **{"d_model": 19, "n_layers": 2, "d_mlp": 23, "copy": CopyConfig(window, 5)},
        options={"three_tier": options},
    )
    model = Model(settings, vocab_size=vocab_size).to(dtype).eval()
    if quantization:
        quantize_linears(model, quantization)  # type: ignore[arg-type]
    specs = [spec for mixer in model.mixers if (spec := mixer.decode_spec())]
    with torch.no_grad():
        decoder = Decoder(model, specs, library)
        read = model(torch.arange(6)[None] % vocab_size)[1]
    for n in (1, 3, 64):
        begin = (model.init_state(1), read)
        sequences = [decoder.sequence(begin[(n + b) % 2]) for b in range(n)]
        for t in range(7):
            decoder.step(sequences, [(t + b) % vocab_size for b in range(n)], threads=1 + t % 2)
        decoder.state(sequences[0])


def call_sampling(library: loader.Library) -> None:
    """Every filter, a penalty on the last token, and a logit that is none."""
    for dtype in (torch.float32, torch.float64):
        for n, vocab_size in ((1, 1), (3, 17), (5, 4096)):
            logits = torch.randn(n, vocab_size, dtype=dtype)
            logits[-1, -1] = torch.inf
            for options in ({"top_p": 1.0}, {"top_p": 0.9, "min_p": 0.1}, {"top_k": 3}):
                sampling = GenerateConfig(repetition_penalty=1.5, **options)  # type: ignore[arg-type]
                recents = [[vocab_size - 1] * PENALTY_WINDOW] * n
                draw_rows(library, logits, sampling, recents, [0.9] * n)


def the_library() -> loader.Library:
    """The one with sanitizers, which then also serves all operators."""
    library = loader.build(flags=tuple(sys.argv[1:]))
    assert library is not None, loader.unavailable_reason(flags=tuple(sys.argv[1:]))
    return library


def loader_ffi() -> Any:
    return the_library().ffi


def main() -> None:
    del os.environ["LD_PRELOAD"]  # not for the compiler
    library = the_library()
    counted = Counted(library.lib)
    object.__setattr__(library, "lib", counted)
    loader.load = lambda **_: library
    memory = Memory(library.ffi)
    for rows in ROWS:
        for width in WIDTHS:
            for threads in THREADS:
                call_rowwise(counted, memory, rows, width, threads)
    for threads in THREADS:
        call_copied_mass(counted, memory, threads)
        call_convolution(counted, memory, threads)
    call_weight_grad(counted, memory)
    call_linear(counted, memory)
    torch.set_num_threads(2)
    call_head()
    for shape in ((1, 0, 1), (39, 7, 1), (96, 32, 1), (72, 12, 2)):
        call_recurrence(*shape, factored=False)
    call_recurrence(24, 0, 1, factored=True)
    for dtype, quantization in (
        (torch.float64, ""),
        (torch.float32, ""),
        (torch.float32, "bf16"),
        (torch.float32, "int8"),
    ):
        for window in (0, 3, 20):
            call_decoder(library, dtype, quantization, window)
        call_decoder(library, dtype, quantization, 1, vocab_size=3, state_gate=True)
        call_decoder(library, dtype, quantization, 0, d_summary=21, factored=True)
    call_sampling(library)
    library.ffi.string(counted.ys_units())
    counted.ys_layout()
    print(*sorted(counted.called))


if __name__ == "__main__":
    main()
