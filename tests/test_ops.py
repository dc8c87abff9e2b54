"""Every implementation of every op against its `reference`, and the reference against the text.

An op's file is walked as soon as it lists IMPLEMENTATIONS; CASES holds the makers of its inputs.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ys_llm.ops
from ys_llm import compiled
from ys_llm.config import ModelConfig
from ys_llm.mixers import three_tier
from ys_llm.model import Model
from ys_llm.ops import cross_entropy, recurrence
from ys_llm.ops.gemm import Gemm

EPS = 1e-5
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 130)  # around both periods, and two long ones
VOCAB_SIZE = 11
ON_CUDA = ("cuda_graph", "triton")  # elsewhere they are `windowed`: test_cuda_graph.py
FILES = sorted(Path(ys_llm.ops.__file__).parent.glob("[!_]*.py"))
MODULES = {path.stem: importlib.import_module(f"ys_llm.ops.{path.stem}") for path in FILES}
OPS = sorted(name for name, module in MODULES.items() if hasattr(module, "IMPLEMENTATIONS"))

# Largest error allowed, as a share of the largest entry of the reference's tensor.
TOLERANCES = {
    # Another order of the same sums: 130 steps lose at most a few of 16 digits.
    "float64": 1e-10,
    # eps is 1.2e-7 and the worst setting measured 4e-6; a wrong term shows as 1e-2 or more.
    "float32": 3e-5,
    # Operands keep 8 bits, 4e-3 each, in products after the loop: 8e-3 measured, of gradients.
    "bf16 after the loop": 2e-2,
    # At every step too, where oneDNN rounds. A summary every 3 steps magnifies most: 7e-2 measured,
    # of `reference` with rounded operands; which of these small products oneDNN rounds is its own.
    "bf16 in the loop": 1.5e-1,
}


class Case(NamedTuple):
    """Arguments of an op with the tensors among them that take gradients."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    leaves: list[Tensor]


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


class Setting(NamedTuple):
    """A shape of the recurrence: 0 as a period leaves that tier out; as d_summary, d_state."""

    d_state: int = 16
    d_summary: int = 0
    n_heads: int = 1
    shaper: bool = False
    entry: bool = False
    drive_bias: bool = False
    shared_norm: bool = False
    local_every: int = 16
    global_every: int = 64


RECURRENCES = {
    "preset": Setting(shaper=True, shared_norm=True),
    "default": Setting(entry=True, drive_bias=True),
    "heads-local": Setting(n_heads=2, entry=True, local_every=5, global_every=0),
    "odd-periods": Setting(d_state=24, n_heads=3, shaper=True, local_every=3, global_every=7),
    "narrow-summaries": Setting(
        drive_bias=True, d_state=24, d_summary=12, n_heads=2, shaper=True, local_every=5
    ),
    "one-tier": Setting(shaper=True, local_every=0, global_every=64),
    "no-summaries": Setting(local_every=0, global_every=0),
}


def leaf(*shape: int, dtype: torch.dtype, scale: float = 1.0, around: float = 0.0) -> Tensor:
    return (around + scale * torch.randn(*shape, dtype=dtype)).requires_grad_()


def recurrence_weights(setting: Setting, dtype: torch.dtype) -> recurrence.Weights:
    s, p = setting.d_state, setting.d_state // setting.n_heads
    r = setting.d_summary or s

    def matrix(*shape: int) -> Tensor:
        # Short of 1 / sqrt(width): there narrow heads are chaotic and magnify any rounding.
        return leaf(*shape, dtype=dtype, scale=0.6 * shape[-1] ** -0.5)

    def norm(width: int) -> tuple[Tensor, Tensor]:
        return leaf(width, dtype=dtype, scale=0.3, around=1.0), leaf(width, dtype=dtype, scale=0.3)

    gain, bias = norm(s)
    tiers = [
        recurrence.Summary(
            *(matrix(s, r), matrix(s, r), matrix(r, s)),
            *((gain, bias) if setting.shared_norm else norm(r)),
            every,
        )
        if every
        else None
        for every in (setting.local_every, setting.global_every)
    ]
    return recurrence.Weights(
        matrix(s, s) if setting.n_heads == 1 else matrix(setting.n_heads, p, p),
        gain,
        bias,
        matrix(s, s) if setting.shaper else None,
        leaf(s, dtype=dtype, scale=0.3) if setting.entry else None,
        leaf(s, dtype=dtype, scale=0.3) if setting.drive_bias else None,
        *tiers,
    )


def recurrence_case(
    setting: Setting, length: int, *, position: int, held: bool, starts: bool, dtype: torch.dtype
) -> Case:
    """`held`: the state before the first token is not zero; `starts`: documents begin inside."""
    torch.manual_seed(length)
    weights = recurrence_weights(setting, dtype)
    scale = 1.0 if held else 0.0
    state = [leaf(3, setting.d_state, dtype=dtype, scale=scale) for _ in range(3)]
    drive_TBS = leaf(length, 3, setting.d_state, dtype=dtype)
    starts_TB = torch.rand(length, 3) < 0.1 if starts else None
    leaves = {id(tensor): tensor for tensor in tensors_in([drive_TBS, weights, state])}
    arguments = (drive_TBS, weights, recurrence.State(*state, position))
    return Case(arguments, {"starts_TB": starts_TB}, list(leaves.values()))


def recurrence_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    choices = product(RECURRENCES.items(), (0, 5), (False, True), (False, True))
    for (name, setting), position, held, starts in choices:
        label = f"{name}, clock {position}, {held=}, {starts=}"
        case = recurrence_case(
            setting, length, position=position, held=held, starts=starts, dtype=dtype
        )
        yield label, case


def cross_entropy_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for bias in (False, True):
        torch.manual_seed(length)
        x_ND, weight_VD = leaf(length, 5, dtype=dtype), leaf(VOCAB_SIZE, 5, dtype=dtype)
        leaves = [x_ND, weight_VD, *([leaf(VOCAB_SIZE, dtype=dtype)] if bias else [])]
        targets_N = torch.randint(VOCAB_SIZE, (length,))
        yield (
            f"{bias=}",
            Case((x_ND, weight_VD, leaves[2] if bias else None, targets_N), {}, leaves),
        )


def rms_norm_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    shapes = [(length, 7), (3, length, 8), (2, length, 33)]
    for shape, scale, adds in product(shapes, (1e-2, 1.0, 1e3), (False, True)):
        torch.manual_seed(length)
        x = (scale * torch.randn(shape, dtype=dtype)).index_fill_(-2, torch.tensor([0]), 0.0)
        added = (scale * torch.randn(shape, dtype=dtype)).index_fill_(-2, torch.tensor([0]), 0.0)
        gain_D = leaf(shape[-1], dtype=dtype, scale=0.3, around=1.0)
        leaves = [x.requires_grad_(), *([added.requires_grad_()] if adds else []), gain_D]
        arguments = (x, added if adds else None, gain_D, EPS)
        yield f"{shape=}, {scale=}, {adds=}, first rows 0", Case(arguments, {}, leaves)


def swiglu_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for (d_model, width), time_major in product([(7, 1), (8, 17), (5, 33)], (False, True)):
        torch.manual_seed(length)
        shapes = ((width, d_model), (width, d_model), (d_model, width))
        weights = [leaf(*shape, dtype=dtype, scale=shape[1] ** -0.5) for shape in shapes]
        x_BTD = leaf(3, length, d_model, dtype=dtype)
        if time_major:
            x_BTD = leaf(length, 3, d_model, dtype=dtype).detach().transpose(0, 1).requires_grad_()
        yield f"{d_model=}, {width=}, {time_major=}", Case((x_BTD, *weights), {}, [x_BTD, *weights])


def weight_grad_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for k, m in ((5, 7), (32, 64)):
        torch.manual_seed(length)
        leaves = [leaf(length, k, dtype=dtype), leaf(length, m, dtype=dtype)]
        yield f"{k} x {m}", Case(tuple(leaves), {}, leaves)


def linear_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for shape in ((length, 5), (3, length, 8)):
        torch.manual_seed(length)
        leaves = [leaf(*shape, dtype=dtype), leaf(6, shape[-1], dtype=dtype)]
        yield f"{shape=}", Case(tuple(leaves), {}, leaves)


CASES = {
    "cross_entropy": cross_entropy_cases,
    "linear": linear_cases,
    "recurrence": recurrence_cases,
    "rms_norm": rms_norm_cases,
    "swiglu": swiglu_cases,
    "weight_grad": weight_grad_cases,
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows of logits at once, so that the lengths tested end inside, at and past a chunk."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 16 * VOCAB_SIZE)


def test_every_op_is_walked() -> None:
    assert OPS
    assert sorted(CASES) == OPS, "an op with IMPLEMENTATIONS and its maker of inputs come together"
    for op in OPS:
        assert next(iter(MODULES[op].IMPLEMENTATIONS)) == "reference"


def results(function: Callable[..., Any], case: Case) -> list[Tensor]:
    """Outputs, final state and every gradient; the cotangents are the same for all."""
    outputs = list(tensors_in(function(*case.arguments, **case.options)))
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    loss = torch.stack([(o * c).sum() for o, c in zip(outputs, cotangents, strict=True)]).sum()
    gradients = torch.autograd.grad(loss, case.leaves, allow_unused=True)
    pairs = zip(gradients, case.leaves, strict=True)
    filled = [torch.zeros_like(v) if g is None else g for g, v in pairs]
    return [*(output.detach() for output in outputs), *filled]


def largest_error(values: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error of any tensor as a share of its largest entry, but at least of 1."""
    errors = [
        ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1)).item()
        for ours, theirs in zip(values, expected, strict=True)
    ]
    assert not any(error != error for error in errors), "NaN: memory was read before it was written"
    return max(errors)


def needs_its_machine(name: str) -> list[pytest.MarkDecorator]:
    """Not without a compiler what is compiled on first use, nor without a GPU what runs there."""
    if name == "compiled" and compiled.compiler() is None:
        return [pytest.mark.skip(reason=compiled.why_not("rows"))]
    if name in ON_CUDA:
        return [pytest.mark.skip(reason="test_gpu.py has it, on a CUDA device")]
    return []


def fast_implementations() -> Iterator[Any]:
    for op in OPS:
        for name in MODULES[op].IMPLEMENTATIONS:
            if name != "reference":
                yield pytest.param(op, name, id=f"{op}-{name}", marks=needs_its_machine(name))


every_implementation = pytest.mark.parametrize(("op", "name"), [*fast_implementations()])


@every_implementation
@pytest.mark.parametrize("length", LENGTHS)
def test_an_implementation_equals_the_reference(op: str, name: str, length: int) -> None:
    module = MODULES[op]
    for label, case in CASES[op](length, torch.float64):
        expected = results(module.reference, case)
        error = largest_error(results(module.IMPLEMENTATIONS[name], case), expected)
        assert error <= TOLERANCES["float64"], f"{label}: error {error:.1e}"


@every_implementation
@pytest.mark.parametrize("length", [17, 130])
def test_float32_errors_stay_in_the_table(op: str, name: str, length: int) -> None:
    module = MODULES[op]
    kind = "bf16 in the loop" if rounds_in_the_loop(name) else "float32"
    for label, case in CASES[op](length, torch.float32):
        expected = results(module.reference, case)
        error = largest_error(results(module.IMPLEMENTATIONS[name], case), expected)
        assert error <= TOLERANCES[kind], f"{label}: error {error:.1e}"


@every_implementation
@pytest.mark.parametrize("length", [17, 130])
def test_bf16_operands_err_as_much_as_the_table_says(op: str, name: str, length: int) -> None:
    module = MODULES[op]
    loop_rounds = rounds_in_the_loop(name) or (op, name) == ("recurrence", "compiled")
    kind = "bf16 in the loop" if loop_rounds else "bf16 after the loop"
    for label, case in CASES[op](length, torch.float32):
        expected = results(module.reference, case)
        error = largest_error(in_bf16(module.IMPLEMENTATIONS[name], case), expected)
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


def test_an_implementation_that_reads_memory_before_writing_it_is_caught() -> None:
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


def preset(implementation: str) -> three_tier.Mixer:
    mixer = three_tier.Mixer(D_MODEL, PRESET, implementation=implementation).double()
    with torch.no_grad():  # away from gain 1 and bias 0, which would hide a term
        for parameter in mixer.norm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


@pytest.mark.parametrize(
    "implementation", [name for name in recurrence.IMPLEMENTATIONS if name not in ON_CUDA]
)
def test_the_preset_equals_the_literal_loop_at_every_length(implementation: str) -> None:
    mixer = preset(implementation)
    names, parameters = zip(*mixer.named_parameters(), strict=True)

    def by_the_mixer(x_BTE: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        output, state = mixer(x_BTE)
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
    before, after = mixer(x_BTE)[0][:, -1], mixer(changed_BTE)[0][:, -1]
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
        wiring="bare",
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
