"""The kernels on 64-bit ARM: they compile without a warning, and compute under an emulator what
`reference` and the modules compute here. Nothing is said about their speed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import emulated
from support.emulated import EmulatedLibrary
from support.op_cases import Case, assert_within, results
from support.op_cases.three_tier import Setting, recurrence_case
from torch import Tensor

from ys_llm.config.schema import CopyConfig, GenerateConfig, ModelConfig
from ys_llm.csrc import loader
from ys_llm.inference.compiled_sampling import draw_rows
from ys_llm.inference.decoder import Decoder
from ys_llm.model.language_model import Model
from ys_llm.model.quantize import Quantization, quantize_linears
from ys_llm.ops import matmul, weight_grad
from ys_llm.ops.accuracy import TOLERANCES
from ys_llm.ops.three_tier import cpp
from ys_llm.ops.three_tier.reference import reference

pytestmark = pytest.mark.slow
# The last block of rows, the last panel of columns and the last vector are full in some, in others
# not: a block has 10 rows, or 7 in bfloat16, and a panel 8 columns, or 4 in double.
SETTINGS = {
    "wide": Setting(d_state=96, d_summary=32, summary_scale=True, drive_bias=True),
    "chains": Setting(d_state=64, shaper=True, shared_norm=True, local_interval=3),
    "heads": Setting(d_state=48, d_summary=12, n_heads=2, shaper=True, local_interval=9),
    "odd": Setting(d_state=39, d_summary=7, local_interval=6, global_interval=0),
}
MODELS: dict[str, dict[str, Any]] = {
    "odd": {"d_model": 33, "d_mlp": 17, "options": {"d_state": 7, "d_summary": 5}},
    "heads": {"options": {"d_state": 24, "d_summary": 6, "n_heads": 3, "factored": True}},
    "wide": {"options": {"d_state": 80, "local_interval": 2, "global_interval": 5}},
    "copy": {"copy": CopyConfig(5, 7), "options": {"d_state": 24}},
}


@pytest.fixture(scope="module", params=list(emulated.PROCESSORS))
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library for the oldest and for a new processor."""
    if problem := emulated.missing(emulated.COMPILER, emulated.EMULATOR):
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("arm")
    flags = (emulated.PROCESSORS[request.param],)
    return EmulatedLibrary(emulated.build_driver(folder, flags))


@pytest.fixture(autouse=True)
def loaded(arm: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It serves all operators, and every test calls it."""
    monkeypatch.setattr(loader, "load", lambda **_: arm)
    arm.arrays.clear()
    arm.called.clear()
    yield
    assert arm.called


@pytest.fixture
def two_threads(threads_as_they_were: None) -> None:
    torch.set_num_threads(2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_recurrence_equals_the_reference(
    name: str, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, final state and every gradient, however threads divide the work."""
    monkeypatch.setattr(cpp, "grid", lambda **_: grid)
    for kind in ("float64", "float32", "bf16 in the loop"):
        dtype = torch.float64 if kind == "float64" else torch.float32
        case = recurrence_case(
            SETTINGS[name], 34, position=5, with_state=True, starts=True, dtype=dtype
        )
        if kind.startswith("bf16"):
            case = case._replace(options={**case.options, "precision": "bf16"})
        assert_within(TOLERANCES[kind], results(cpp.cpp, case), results(reference, case), kind)


@pytest.mark.parametrize("op", ["rms_norm", "swiglu", "cross_entropy"])
def test_row_kernels_equal_the_reference(op: str) -> None:
    length = 17
    backends = importlib.import_module(f"ys_llm.ops.{op}").BACKENDS
    cases = importlib.import_module(f"support.op_cases.{op}").cases
    for kind in ("float64", "float32"):
        for label, case in cases(length, getattr(torch, kind)):
            found, expected = (results(backends[name], case) for name in ("cpp", "reference"))
            assert_within(TOLERANCES[kind], found, expected, f"{label}, {kind}")
    for label, case in cases(length, torch.float32):
        found, expected = in_bf16(backends["cpp"], case), results(backends["reference"], case)
        assert_within(TOLERANCES["bf16 after the loop"], found, expected, f"{label}, bf16")


def in_bf16(function: Any, case: Case) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return results(function, case)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("rows", "k", "m"), [(1, 1, 1), (71, 33, 45), (260, 130, 8), (40, 1100, 9)]
)
def test_large_matmuls_equal_torch(rows: int, k: int, m: int) -> None:
    torch.manual_seed(0)
    x, w, dy = torch.randn(rows, k), torch.randn(m, k).t(), torch.randn(rows, m)
    assert_within(TOLERANCES["float32"], [matmul.cpp(x, w)], [x @ w])
    assert_within(TOLERANCES["float32"], [weight_grad.cpp_f32(x, dy)], [x.t() @ dy])


def test_draws_are_those_of_this_machine(
    arm: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits_NV, uniforms = 3 * torch.randn(20, 101), torch.rand(20).tolist()
    recents = [[i, i + 1] for i in range(20)]
    sampling = GenerateConfig(temperature=0.8, top_k=30, top_p=0.9, repetition_penalty=1.2)
    monkeypatch.undo()
    here = loader.build()
    assert here is not None
    for logits in (logits_NV, logits_NV.double()):
        (ids, logprobs), (expected, theirs) = (
            zip(*draw_rows(library, logits, sampling, recents, uniforms), strict=True)
            for library in (arm, here)  # type: ignore[arg-type]
        )
        assert ids == expected
        assert logprobs == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("shape", list(MODELS))
@pytest.mark.parametrize("quantization", [None, "bf16", "int8"])
def test_decoding_equals_the_modules(
    shape: str, quantization: Quantization | None, arm: EmulatedLibrary
) -> None:
    for dtype in (torch.float32,) if quantization else (torch.float32, torch.float64):
        torch.manual_seed(1)
        changes = {**MODELS[shape], "options": {"three_tier": MODELS[shape]["options"]}}
        config = ModelConfig(**{"d_model": 32, "n_layers": 2, "d_mlp": 48, **changes})
        model = Model(config, vocab_size=101).to(dtype).eval()
        if quantization:
            quantize_linears(model, quantization)
        ids = torch.randint(101, (7,)).tolist()
        specs = [spec for mixer in model.mixers if (spec := mixer.decode_spec())]
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0][0]
            decoder = Decoder(model, specs, arm)  # type: ignore[arg-type]
        sequences = [decoder.sequence(model.init_state(1)) for _ in range(9)]
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        for id, wanted in zip(ids, expected, strict=True):
            for logits in decoder.step(sequences, [id] * 9, threads=2):
                torch.testing.assert_close(logits, wanted, atol=tolerance, rtol=tolerance)
