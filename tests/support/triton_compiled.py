"""The Triton kernels compiled for an H100 (sm_90), with the tilings that shapes get there.

Needs no GPU: Triton contains the assembler. `test_triton.py` runs this in a process with a cache of
its own. A kernel that spills registers to memory fails here instead of running slowly.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.gpu import triton_dense, triton_heads
from ys_llm.ops.three_tier.gpu.triton_steps import DenseSteps, HeadSteps, operands_of
from ys_llm.ops.three_tier.types import Weights

PROCESSORS = 132
FEW_BYTES = 64  # 16 of 255 registers: no loop waits for those
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
NUMBERS = {"steps", "begin", "end", "batch_size", "width"}
LAUNCH = {"num_warps", "launch_cooperative_grid"}

# Width and heads of the state controller, batch; the three shapes of the GPU bars are among them.
HEADS = [(128, 8, 8), (64, 4, 64), (128, 1, 16), (24, 3, 3)]
DENSE = [(2048, 1, 64), (512, 1, 16), (1024, 1, 32), (256, 4, 16), (2048, 1, 256), (200, 1, 5)]


def weights_of(width: int, heads: int) -> Weights:
    shape = (width, width) if heads == 1 else (heads, width, width)
    return Weights(torch.zeros(shape), torch.zeros(width * heads), torch.zeros(width * heads))


def stack_bytes(
    kernel: Any, constants: dict[str, Any], numbers: dict[str, int], operands: str, at: Path
) -> int:
    """Compile for compute capability 9.0; bytes per thread that did not fit into registers.

    As for a launch, the compiler is told which pointers and numbers are multiples of 16.
    """
    options = {name: constants.pop(name) for name in LAUNCH & set(constants)}
    types = dict.fromkeys(constants, "constexpr") | dict.fromkeys(NUMBERS, "i32")
    types |= dict.fromkeys(("controller_HPP", "matrix_HPP"), f"*{operands}")
    types |= dict.fromkeys(("published_2BS", "published_22BS"), f"*{operands}")
    types |= {"counters": "*u32"}
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    whole = {name for name, value in numbers.items() if value % 16 == 0}
    known = [i for i, (n, kind) in enumerate(signature.items()) if kind[0] == "*" or n in whole]
    source = ASTSource(
        kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in known}
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    (at / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", at / "kernel.cubin"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"STACK:(\d+)", usage)
    return int(found)


@pytest.mark.parametrize("masked", [False, True], ids=["", "starts"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("width", "heads", "batch_size"), HEADS)
def test_kernels_of_narrow_heads_fit_into_registers(
    width: int, heads: int, batch_size: int, precision: Precision, masked: bool, tmp_path: Path
) -> None:
    if precision == "fp32" and width > 64:
        pytest.skip("such heads are wide ones in float32")
    kernels = HeadSteps(operands_of(weights_of(width, heads), precision))
    _, tiling = kernels.tiling(batch_size)
    for kernel in (triton_heads.forward, triton_heads.backward):
        constants = {**tiling, "MASKED": masked, "WIDEN": False}
        operands = TYPES[kernels.operands.matrix_HPP.dtype]
        stack = stack_bytes(kernel, constants, {"width": width}, operands, tmp_path)
        assert stack <= FEW_BYTES


@pytest.mark.parametrize("begins", [True, False], ids=["all-steps", "one-step"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("width", "heads", "batch_size"), DENSE)
def test_kernels_of_wide_heads_fit_into_registers(
    width: int, heads: int, batch_size: int, precision: Precision, begins: bool, tmp_path: Path
) -> None:
    kernels = DenseSteps(operands_of(weights_of(width, heads), precision), n_processors=PROCESSORS)
    for kernel in (triton_dense.forward, triton_dense.backward):
        constants = {**kernels.tiling(batch_size), "MASKED": True, "WIDEN": False}
        constants |= {"WIDTH": width, "N_HEADS": heads, "BEGINS": begins}
        constants |= {"launch_cooperative_grid": begins}
        operands = TYPES[kernels.operands.matrix_HPP.dtype]
        assert stack_bytes(kernel, constants, {}, operands, tmp_path) <= FEW_BYTES
