"""Every backend of every op against its `reference`, and the reference against the text.

An op's file is walked as soon as it lists BACKENDS; CASES holds the makers of its inputs.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.op_cases import (
    CASES,
    RECURRENCES,
    TOLERANCES,
    VOCAB_SIZE,
    Case,
    largest_error,
    leaf,
    recurrence_case,
    results,
)
from torch import Tensor

import ys_llm.ops
from ys_llm.config.schema import ModelConfig
from ys_llm.csrc import loader
from ys_llm.mixers import three_tier
from ys_llm.model.language_model import Model
from ys_llm.model.state import initial_positions
from ys_llm.ops import cross_entropy
from ys_llm.ops.three_tier import reference
from ys_llm.ops.three_tier.gemm import Gemm

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 130)  # around both periods, and two long ones
ON_CUDA = ("cuda_graph", "triton")  # elsewhere they are `windowed`: test_cuda_graph.py
OPS_FOLDER = Path(ys_llm.ops.__file__).parent
# An op is a file of ops/, or the `reference.py` of a folder there, by which it is then named.
FILES = sorted([*OPS_FOLDER.glob("[!_]*.py"), *OPS_FOLDER.glob("*/reference.py")])
MODULES = {
    (path.parent if path.stem == "reference" else path).stem: importlib.import_module(
        ".".join(("ys_llm", "ops", *path.relative_to(OPS_FOLDER).with_suffix("").parts))
    )
    for path in FILES
}
OPS = sorted(name for name, module in MODULES.items() if hasattr(module, "BACKENDS"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows of logits at once, so that the lengths tested end inside, at and past a chunk."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 16 * VOCAB_SIZE)


def test_every_op_is_walked() -> None:
    assert OPS
    assert sorted(CASES) == OPS, "an op with BACKENDS and its maker of inputs come together"
    for op in OPS:
        assert next(iter(MODULES[op].BACKENDS)) == "reference"


def needs_its_machine(name: str) -> list[pytest.MarkDecorator]:
    """Not without a compiler what is compiled on first use, nor without a GPU what runs there."""
    if name == "cpp" and loader.compiler() is None:
        return [pytest.mark.skip(reason=loader.unavailable_reason("rows"))]
    if name in ON_CUDA:
        return [pytest.mark.skip(reason="test_gpu.py has it, on a CUDA device")]
    return []


def fast_backends() -> Iterator[Any]:
    for op in OPS:
        for name in MODULES[op].BACKENDS:
            if name != "reference":
                yield pytest.param(op, name, id=f"{op}-{name}", marks=needs_its_machine(name))


every_backend = pytest.mark.parametrize(("op", "name"), [*fast_backends()])


@every_backend
@pytest.mark.parametrize("length", LENGTHS)
def test_a_backend_equals_the_reference(op: str, name: str, length: int) -> None:
    module = MODULES[op]
    for label, case in CASES[op](length, torch.float64):
        expected = results(module.reference, case)
        error = largest_error(results(module.BACKENDS[name], case), expected)
        assert error <= TOLERANCES["float64"], f"{label}: error {error:.1e}"


@every_backend
@pytest.mark.parametrize("length", [17, 130])
def test_float32_errors_stay_in_the_table(op: str, name: str, length: int) -> None:
    module = MODULES[op]
    kind = "bf16 in the loop" if rounds_in_the_loop(name) else "float32"
    for label, case in CASES[op](length, torch.float32):
        expected = results(module.reference, case)
        error = largest_error(results(module.BACKENDS[name], case), expected)
        assert error <= TOLERANCES[kind], f"{label}: error {error:.1e}"


@every_backend
@pytest.mark.parametrize("length", [17, 130])
def test_bf16_operands_err_as_much_as_the_table_says(op: str, name: str, length: int) -> None:
    module = MODULES[op]
    loop_rounds = rounds_in_the_loop(name) or (op, name) == ("three_tier", "cpp")
    kind = "bf16 in the loop" if loop_rounds else "bf16 after the loop"
    for label, case in CASES[op](length, torch.float32):
        expected = results(module.reference, case)
        error = largest_error(in_bf16(module.BACKENDS[name], case), expected)
        assert error <= TOLERANCES[kind], f"{label}: error {error:.1e}"


def in_bf16(function: Callable[..., Any], case: Case) -> list[Tensor]:
    """Results with bfloat16 operands: by argument where the op has one, else under autocast."""
    if "precision" in inspect.signature(function).parameters:
        return results(function, case._replace(options={**case.options, "precision": "bf16"}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return results(function, case)


def rounds_in_the_loop(name: str) -> bool:
    """Whether oneDNN, asked for its fast float32 products, rounds their operands on this CPU."""
    if not name.endswith("onednn"):
        return False
    x, gemm = torch.randn(64, 64), Gemm("fp32", onednn=True)
    with gemm.context(x):
        error = (gemm.product(x, x) - (x.double() @ x.double()).float()).abs().max()
    return bool(error > 1e-3)


def test_memory_handed_out_is_filled_with_nan() -> None:
    like = torch.zeros(1000)
    for memory in (torch.empty(1000), torch.empty_like(like), like.new_empty(1000)):
        assert memory.isnan().all()


def test_a_backend_that_reads_memory_before_writing_it_is_caught() -> None:
    def careless(drive: Tensor, weights: Any, state: Any, **options: Any) -> Any:
        return torch.empty_like(drive) * 0.0 + drive, state

    setting = RECURRENCES["no-summaries"]
    case = recurrence_case(setting, 2, position=0, held=False, starts=False, dtype=torch.float64)
    with pytest.raises(AssertionError, match="NaN"):
        largest_error(results(careless, case), results(careless, case))


# The preset against a loop written from the definition, at widths that keep it quick.
D_MODEL, D_STATE = 12, 16
PRESET = replace(three_tier.PRESET_V0_3, d_state=D_STATE)


def literal_loop(x_BTE: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs and the last h, L and G, statement by statement as the definition has them."""

    def ln(v: Tensor) -> Tensor:
        return F.layer_norm(v, [D_STATE], p["norm.weight"], p["norm.bias"], 1e-5)

    def updated(held: Tensor, y: Tensor, tier: str) -> Tensor:
        pre = held @ p[f"{tier}.state_controller"] + y @ p[f"{tier}.input_influencer"]
        return ln(pre) @ p[f"{tier}.output_shaper"]

    h = L = G = x_BTE.new_zeros(len(x_BTE), D_STATE)
    outputs = []
    for t in range(x_BTE.shape[1]):
        u = x_BTE[:, t] @ p["in_proj.weight"].t() + p["in_proj.bias"]
        h = ln(h @ p["state_controller"] + u @ p["input_influencer"] + G + L)
        y = h @ p["output_shaper"]
        outputs.append(y @ p["out_proj.weight"].t() + p["out_proj.bias"])
        if t % 64 == 63:
            pre = (
                G @ p["global_summary.state_controller"] + y @ p["global_summary.input_influencer"]
            )
            G = ln(pre) @ p["global_summary.output_shaper"]
        if t % 16 == 15:
            L = updated(L, y, "local_summary")
    return torch.stack(outputs, dim=1), h, L, G


def from_start(mixer: three_tier.Mixer, x_BTE: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return mixer(x_BTE, mixer.init_state(len(x_BTE)), None, initial_positions(len(x_BTE)))  # type: ignore[no-any-return]


def preset(backend: str) -> three_tier.Mixer:
    mixer = three_tier.Mixer(D_MODEL, PRESET, backend=backend).double()
    with torch.no_grad():  # away from gain 1 and bias 0, which would hide a term
        for parameter in mixer.norm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


@pytest.mark.parametrize("backend", [name for name in reference.BACKENDS if name not in ON_CUDA])
def test_the_preset_equals_the_literal_loop_at_every_length(backend: str) -> None:
    mixer = preset(backend)
    names, parameters = zip(*mixer.named_parameters(), strict=True)

    def by_the_mixer(x_BTE: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        output, state = from_start(mixer, x_BTE)
        return output, state["main"], state["local_summary"], state["global_summary"]

    def by_the_loop(x_BTE: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return literal_loop(x_BTE, dict(zip(names, tensors, strict=True)))

    for length in range(1, 131):
        x_BTE = leaf(2, length, D_MODEL, dtype=torch.float64)
        case = Case((x_BTE, *parameters), {}, [x_BTE, *parameters])
        error = largest_error(results(by_the_mixer, case), results(by_the_loop, case))
        assert error <= TOLERANCES["float64"], f"length {length}: error {error:.1e}"


@pytest.mark.parametrize("k", [1, 15, 16, 17, 63, 64, 65, 200])
@torch.no_grad()
def test_the_token_k_steps_back_changes_the_output(k: int) -> None:
    mixer, x_BTE = preset("auto"), torch.randn(1, 201, D_MODEL, dtype=torch.float64)
    changed_BTE = x_BTE.clone()
    changed_BTE[:, -1 - k] += torch.randn(D_MODEL, dtype=torch.float64)
    before, after = (from_start(mixer, x)[0][:, -1] for x in (x_BTE, changed_BTE))
    assert (after - before).abs().max() > 1e-12  # rounding alone moves it by less than 1e-14


def test_the_preset_carries_its_authors_names_and_sizes() -> None:
    with torch.device("meta"):
        mixer = three_tier.Mixer(768, three_tier.PRESET_V0_3)
    sizes = {name: tuple(parameter.shape) for name, parameter in mixer.named_parameters()}
    matrices = ["state_controller", "input_influencer", "output_shaper"]
    tiers = ["", "local_summary.", "global_summary."]
    assert sizes == {
        **{f"{tier}{matrix}": (2048, 2048) for tier in tiers for matrix in matrices},
        "in_proj.weight": (2048, 768),
        "in_proj.bias": (2048,),
        "out_proj.weight": (768, 2048),
        "out_proj.bias": (768,),
        "norm.weight": (2048,),
        "norm.bias": (2048,),
    }


@pytest.mark.parametrize("vocab_size", [256, 4096])
def test_the_preset_has_the_parameters_of_the_source(vocab_size: int) -> None:
    config = ModelConfig(
        block="plain",
        d_model=768,
        n_layers=1,
        d_mlp=0,
        mixer="three_tier",
        options=asdict(three_tier.PRESET_V0_3),
    )
    with torch.device("meta"):
        model = Model(config, vocab_size=vocab_size)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 40_901_376 + 1_537 * vocab_size
