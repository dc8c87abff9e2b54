"""Every backend of every op against its `reference`: outputs, final state and every gradient.

An op is a module of `ys_llm/ops/` with BACKENDS, `reference` first: a file, or the `select.py` of a
folder. It is found by its name, and so are its inputs, in `tests/support/op_cases/`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.op_cases import Case, assert_within, largest_error, leaf, results
from torch import Tensor

import ys_llm.ops
from ys_llm.csrc import loader
from ys_llm.ops import cross_entropy
from ys_llm.ops.accuracy import FLOOR, TOLERANCES

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 130)  # around both intervals, and two long ones
OPS_FOLDER = Path(ys_llm.ops.__file__).parent


def op_modules() -> dict[str, ModuleType]:
    """Modules with BACKENDS, by the name of their file or folder."""
    found = {}
    for path in sorted([*OPS_FOLDER.glob("[!_]*.py"), *OPS_FOLDER.glob("*/select.py")]):
        inside = path.relative_to(OPS_FOLDER).with_suffix("").parts
        module = importlib.import_module(".".join(("ys_llm", "ops", *inside)))
        if hasattr(module, "BACKENDS"):
            found[inside[0]] = module
    return found


OPS = op_modules()


def case_module(op: str) -> ModuleType:
    try:
        return importlib.import_module(f"support.op_cases.{op}")
    except ModuleNotFoundError as error:
        raise AssertionError(
            f"write tests/support/op_cases/{op}.py: cases(length, dtype)"
        ) from error


def cases(op: str, length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    yield from case_module(op).cases(length, dtype)


@cache
def expected_results(op: str, length: int, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    reference = OPS[op].BACKENDS["reference"]
    return {label: results(reference, case) for label, case in cases(op, length, dtype)}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows of logits at once, so that the lengths tested end inside, at and past a chunk."""
    monkeypatch.setattr(
        cross_entropy, "CHUNK_ELEMENTS", 16 * case_module("cross_entropy").VOCAB_SIZE
    )


def unavailable(module: ModuleType, name: str) -> str:
    """Why this backend cannot run on this machine's CPU; empty: it can."""
    if hasattr(module, "missing_requirement"):
        return (module.missing_requirement(name, "cpu") or ("",))[0]
    if name == "cpp" and loader.compiler() is None:
        return loader.unavailable_reason()
    return ""


def backends() -> Iterator[Any]:
    for op, module in OPS.items():
        experimental = getattr(module, "EXPERIMENTAL", ())  # need a GPU: test_gpu.py
        for name in module.BACKENDS:
            if name != "reference" and name not in experimental:
                yield pytest.param(op, name, id=f"{op}-{name}")


@pytest.fixture
def backend(op: str, name: str) -> Callable[..., Any]:
    """Looked for when the test runs: the kernels are compiled by then."""
    if reason := unavailable(OPS[op], name):
        pytest.skip(reason)
    function: Callable[..., Any] = OPS[op].BACKENDS[name]
    return function


every_backend = pytest.mark.parametrize(("op", "name"), [*backends()])
every_op = pytest.mark.parametrize("op", OPS)


@every_op
def test_reference_comes_first_and_every_backend_takes_the_same_arguments(op: str) -> None:
    assert next(iter(OPS[op].BACKENDS)) == "reference"
    signatures = {
        name: list(inspect.signature(function).parameters)
        for name, function in OPS[op].BACKENDS.items()
    }
    assert all(names == signatures["reference"] for names in signatures.values()), signatures


@every_backend
@pytest.mark.parametrize("length", LENGTHS)
def test_a_backend_equals_the_reference(
    op: str, name: str, length: int, backend: Callable[..., Any]
) -> None:
    expected = expected_results(op, length, torch.float64)
    for label, case in cases(op, length, torch.float64):
        assert_within(TOLERANCES["float64"], results(backend, case), expected[label], label)


@every_backend
@pytest.mark.parametrize("length", [17, 130])
def test_float32_errors_stay_in_the_table(
    op: str, name: str, length: int, backend: Callable[..., Any]
) -> None:
    expected = expected_results(op, length, torch.float32)
    for label, case in cases(op, length, torch.float32):
        assert_within(TOLERANCES["float32"], results(backend, case), expected[label], label)


@every_backend
@pytest.mark.parametrize("length", [17, 130])
def test_bf16_errors_stay_in_the_table(
    op: str, name: str, length: int, backend: Callable[..., Any]
) -> None:
    tolerance = TOLERANCES[bf16_row(op, name)]
    expected = expected_results(op, length, torch.float32)
    for label, case in cases(op, length, torch.float32):
        assert_within(tolerance, in_bf16(backend, case), expected[label], label)


def bf16_row(op: str, name: str) -> str:
    """The row of the table for bfloat16 operands: a case module may name another for a backend."""
    rows: dict[str, str] = getattr(case_module(op), "BF16_ROWS", {})
    return rows.get(name, "bf16 after the loop")


def in_bf16(function: Callable[..., Any], case: Case) -> list[Tensor]:
    """Results with bfloat16 operands: by argument where the op has one, else under autocast."""
    if "precision" in inspect.signature(function).parameters:
        return results(function, case._replace(options={**case.options, "precision": "bf16"}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return results(function, case)


@every_op
@pytest.mark.parametrize("row", TOLERANCES)
def test_all_zeros_are_an_error_in_every_tensor(op: str, row: str) -> None:
    """No tolerance is so wide that a tensor that was never computed passes."""
    for label, expected in expected_results(op, 17, torch.float64).items():
        for number, tensor in enumerate(expected):
            if tensor.any():
                assert tensor.abs().max() > FLOOR, f"{label}: output {number} is too small a test"
                error = largest_error([torch.zeros_like(tensor)], [tensor])
                assert error > TOLERANCES[row], f"{label}: output {number}"


def test_memory_handed_out_is_filled_with_nan() -> None:
    like = torch.zeros(1000)
    for memory in (torch.empty(1000), torch.empty_like(like), like.new_empty(1000)):
        assert memory.isnan().all()


def test_a_backend_that_reads_memory_before_writing_it_is_caught() -> None:
    def careless(x: Tensor) -> Tensor:
        return torch.empty_like(x) * 0.0 + x

    case = Case((x := leaf(3, 4, dtype=torch.float64),), {}, [x])
    with pytest.raises(AssertionError, match="error nan"):
        assert_within(1.0, results(careless, case), results(torch.clone, case))
