"""What each class of processors has to reach, and in which dtype.

A class is named by its best unit for matmuls, as `ys_llm.system.machine.cpu_class` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bars:
    """Bars of one class. None, or a missing entry: the figure is shown and not judged.

    `dtype`: of the matmul operands in every figure that is judged. By width of the state: times the
    literal loop (with a compiler, and without), and share of the large matmul in percent. By tokens
    a row: times the Llama block.
    """

    dtype: str
    over_loop: Mapping[int, float]
    over_loop_without_compiler: Mapping[int, float]
    heads_over_loop: float | None
    exact_over_loop: float | None
    over_lstm: float
    over_windowed: float | None
    layer_share: Mapping[int, float]
    recurrence_share: float | None
    over_llama: Mapping[int, float]
    quickstart_share: float | None


_BF16 = Bars(
    dtype="bf16",
    over_loop={1024: 7.0, 512: 6.0, 256: 4.5},
    over_loop_without_compiler={1024: 3.0, 512: 2.5, 256: 2.0},
    heads_over_loop=12.0,
    exact_over_loop=2.5,
    over_lstm=2.5,
    over_windowed=None,
    layer_share={1024: 55.0, 512: 55.0, 256: 55.0},
    recurrence_share=70.0,
    over_llama={256: 1.8, 2048: 3.5},
    quickstart_share=None,
)
_FP32 = Bars(
    dtype="fp32",
    over_loop={},
    over_loop_without_compiler={},
    heads_over_loop=None,
    exact_over_loop=None,
    over_lstm=3.0,
    over_windowed=1.25,
    layer_share={1024: 80.0, 512: 70.0, 256: 70.0},
    recurrence_share=None,
    over_llama={256: 1.5, 2048: 3.0},
    quickstart_share=60.0,
)
BARS = {
    "AMX": _BF16,
    "AVX512-BF16": _BF16,
    "AVX-512": _FP32,
    "AVX2": _FP32,
    "NEON": _FP32,
    "other": _FP32,
}
# The files of results, one for each class that was measured, in the order of the tables.
FILES = {
    "AMX": "amx.json",
    "AVX512-BF16": "avx512_bf16.json",
    "AVX-512": "avx512.json",
    "AVX2": "avx2.json",
    "NEON": "neon.json",
}
# The same on every class.
AT_MOST = {
    "far context": 1.05,  # times the seconds of a token after 100
    "loop overhead": 3.0,  # percent of a step
    "second start": 1.0,  # seconds, as those below
    "--help": 0.15,
    "first token": 2.0,
    "doctor": 10.0,
}
AT_LEAST = {
    "re-reading": 100.0,  # times the seconds of one token
    "prefill": 5.0,  # times the speed of generating
    "memory bound": 60.0,  # percent
    "64 texts": 8.0,  # times the speed of one
    "tokenising": 20.0,  # MB/s
}
