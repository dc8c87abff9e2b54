"""The same code on CUDA, and its experimental backends: `scripts/check --gpu`, on a device."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.op_cases import Case, assert_within, leaf, results, tensors_in
from support.op_cases.three_tier import RECURRENCES, Setting, recurrence_case, recurrence_weights
from support.training_runs import TrainRun, assert_same_training, column
from torch import Tensor

from ys_llm.config.schema import GenerateConfig, ModelConfig
from ys_llm.config.sources import Resolved, from_mapping
from ys_llm.inference.generate import generate, prefill
from ys_llm.model.language_model import Model
from ys_llm.ops.accuracy import TOLERANCES
from ys_llm.ops.three_tier.gemm import Gemm
from ys_llm.ops.three_tier.gpu.recurrence import resets_everywhere
from ys_llm.ops.three_tier.gpu.triton_steps import DenseSteps, HeadSteps, operands_of
from ys_llm.ops.three_tier.reference import reference
from ys_llm.ops.three_tier.select import BACKENDS, missing_requirement
from ys_llm.ops.three_tier.types import State, one_clock
from ys_llm.ops.three_tier.windowed import WindowedPass, run_pass
from ys_llm.training.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
EXPERIMENTAL = ("cuda_graph", pytest.param("triton", marks=needs_triton))
by_each = pytest.mark.parametrize("name", EXPERIMENTAL)


def on_cuda(case: Case) -> Case:
    """The same case with every tensor on the device, leaves being leaves there."""
    moved: dict[int, Tensor] = {}

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in moved:
                moved[id(value)] = value.detach().cuda().requires_grad_(value.requires_grad)
            return moved[id(value)]
        if isinstance(value, tuple):
            items = [move(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    arguments = move(case.arguments)
    options = {name: move(value) for name, value in case.options.items()}
    return Case(arguments, options, [moved[id(v)] for v in case.leaves])


def ragged(setting: Setting, length: int, batch_size: int) -> Case:
    torch.manual_seed(length)
    weights = recurrence_weights(setting, torch.float32)
    states = [leaf(batch_size, setting.d_state, dtype=torch.float32) for _ in range(3)]
    drive_TBS = leaf(length, batch_size, setting.d_state, dtype=torch.float32)
    leaves = {id(tensor): tensor for tensor in tensors_in([drive_TBS, weights, states])}
    starts_TB = torch.rand(length, batch_size) < 0.05
    arguments = (drive_TBS, weights, State(*states, 0))
    return Case(arguments, {"starts_TB": starts_TB}, list(leaves.values()))


@by_each
@pytest.mark.parametrize("length", [1, 15, 16, 17, 65])
def test_the_recurrence_equals_the_reference_on_cuda(name: str, length: int) -> None:
    for label, setting in RECURRENCES.items():
        for position, busy in ((0, False), (5, True)):
            case = recurrence_case(
                setting,
                length,
                position=position,
                with_state=busy,
                starts=busy,
                dtype=torch.float64,
            )
            expected = results(reference, case)
            for call in range(3):  # as it is, captured, replayed
                values = results(BACKENDS[name], on_cuda(case))
                assert_within(TOLERANCES["float64"], values, expected, f"{label}, {busy=}, {call=}")


WIDE = {
    "heads of 128": Setting(d_state=512, n_heads=4, summary_scale=True),
    "dense 512": Setting(d_state=512, summary_scale=True),
    "dense 2048": Setting(d_state=2048, d_summary=64, summary_scale=True),
    "heads of 200": Setting(d_state=600, n_heads=3, shaper=True, local_interval=5),
}


@by_each
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("wide", WIDE)
def test_wide_states_stay_in_the_table_of_tolerances(name: str, precision: str, wide: str) -> None:
    bound = TOLERANCES["float32" if precision == "fp32" else "bf16 in the loop"]
    for batch_size in (5, 64):
        case = ragged(WIDE[wide], 40, batch_size)
        expected = results(reference, case)
        moved = on_cuda(case)
        moved = moved._replace(options={**moved.options, "precision": precision})
        for call in range(3):
            assert_within(
                bound, results(BACKENDS[name], moved), expected, f"{batch_size=}, {call=}"
            )


@by_each
def test_passes_that_are_pending_do_not_disturb_each_other(name: str) -> None:
    cases = [on_cuda(ragged(WIDE["dense 512"], 33, rows)) for rows in (4, 4, 4, 4)]
    for number, case in enumerate(cases):
        with torch.no_grad():
            case.leaves[0].add_(number)
    expected = [results(reference, case) for case in cases]
    for _ in range(3):
        pending = [BACKENDS[name](*c.arguments, **c.options) for c in cases]
        for i in reversed(range(len(cases))):
            values = results(lambda *_, given=pending[i], **__: given, cases[i])
            assert_within(TOLERANCES["float32"], values, expected[i], f"pass {i}")


BARRIER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_gpu
test_gpu.compare_one_launch_with_many()
"""


@needs_triton
def test_the_barrier_between_programs_opens_and_orders_their_steps() -> None:
    """In a process of its own: a barrier that never opens holds the device until that ends."""
    code = BARRIER.format(
        tests=str(Path(__file__).parent), root=str(Path(__file__).resolve().parents[1])
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=180)


def compare_one_launch_with_many() -> None:
    """All steps in one launch give the very bits of a launch for each step, 50 times over."""
    torch.manual_seed(0)
    setting = Setting(d_state=2048, local_interval=0, global_interval=0)
    weights = on_cuda(Case((recurrence_weights(setting, torch.float32),), {}, [])).arguments[0]
    h_BS = torch.randn(64, 2048, device="cuda")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for _ in range(50):
        drive_WBS, grad_WBS = torch.randn(2, 64, 64, 2048, device="cuda")
        found = []
        for together in (True, False):
            operands = operands_of(weights, "bf16")
            steps = DenseSteps(operands, n_processors=processors, together=together)
            pre_WBS, d_h_WBS = drive_WBS.clone(), grad_WBS.clone()
            no_resets = resets_everywhere(None, torch.float32)
            h_WBS, trail = steps.forward(pre_WBS, h_BS, no_resets)
            d_pre_WBS = steps.backward(d_h_WBS, torch.zeros_like(h_BS), trail, no_resets)
            found.append((h_WBS, d_h_WBS, d_pre_WBS))
        assert all(map(torch.equal, *found))


@needs_triton
@pytest.mark.parametrize("kernels", [HeadSteps, DenseSteps])
def test_either_kind_of_kernels_serves_heads_that_both_can_hold(kernels: Any) -> None:
    case = ragged(Setting(d_state=192, n_heads=3, summary_scale=True), 40, 20)
    options = {"n_processors": 132} if kernels is DenseSteps else {}

    def run(drive_TBS: Tensor, weights: Any, state: Any, *, starts_TB: Tensor) -> Any:
        def begin(weights: Any, starts_TB: Tensor | None) -> WindowedPass:
            resets = resets_everywhere(starts_TB, torch.float32)
            steps = kernels(operands_of(weights, "fp32"), **options)
            return WindowedPass(weights, Gemm("fp32"), one_clock(state), resets, steps)

        return run_pass(begin, drive_TBS, weights, state, starts_TB)

    assert_within(TOLERANCES["float32"], results(run, on_cuda(case)), results(reference, case))


def test_generate_on_cuda_writes_what_it_writes_on_the_cpu() -> None:
    torch.manual_seed(0)
    model = Model(ModelConfig(d_model=32, n_layers=2, d_mlp=64), vocab_size=50).double().eval()
    sampling = GenerateConfig(max_tokens=70, temperature=0.0)
    written = [
        [step.id for step in generate(at, prefill(at, range(9)), sampling=sampling, end_ids=[49])]
        for at in (model, copy.deepcopy(model).cuda())
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize("mixer", ["three_tier", "softmax_attention"])
def test_a_model_says_the_same_on_both_devices(mixer: str) -> None:
    torch.manual_seed(0)
    model = Model(ModelConfig(d_model=32, n_layers=2, d_mlp=64, layers=(mixer,)), vocab_size=50)
    model = model.double()
    tokens_BT = torch.randint(50, (3, 70))
    starts_BT = torch.rand(3, 70) < 0.05
    logits_BTV, _ = model(tokens_BT, None, starts_BT)
    on_gpu_BTV, _ = model.cuda()(tokens_BT.cuda(), None, starts_BT.cuda())
    assert torch.allclose(on_gpu_BTV.cpu(), logits_BTV, atol=1e-10)


YS_V0_3 = {
    "block": "plain",
    "d_model": 48,
    "n_layers": 1,
    "d_mlp": 0,
    "options": {
        "d_state": 192,
        "d_summary": 0,
        "factored": True,
        "shared_norm": True,
        "summary_scale": "fixed",
    },
}
STACK = {"d_model": 32, "n_layers": 2, "d_mlp": 64, "options": {"three_tier": {"d_state": 32}}}


@pytest.mark.parametrize("backend", ["auto", "windowed", *EXPERIMENTAL])
@pytest.mark.parametrize("model", [STACK, YS_V0_3], ids=["stack", "ys_v0_3"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_on_cuda_learns(
    tmp_path: Path, dtype: str, model: dict[str, Any], backend: str
) -> None:
    if backend != "auto" and (missing := missing_requirement(backend)):
        pytest.skip(missing[0])
    text = "".join(f"the {n} cats sat on the {n} mats. " for n in range(500))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    config = from_mapping(
        {
            "run": "gpu",
            "data": {"path": str(tmp_path / "text.txt"), "validation_fraction": 0.0},
            "tokenizer": {"kind": "bytes"},
            "model": model,
            "train": {
                "max_steps": 60,
                "seq_len": 64,
                "batch_size": 8,
                "device": "cuda",
                "dtype": dtype,
                "backend": {"three_tier": backend},
                "eval_interval": 60,
                "sample_interval": 0,
            },
        }
    )
    summary = train(Resolved(config, {}), runs_dir=tmp_path / "runs")
    losses = [
        float(line.split('"loss": ')[1].split(",")[0])
        for line in (summary.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert losses[-1] < losses[0] / 2


CUDA = (
    "train.device=cuda",
    "train.deterministic=true",
    "model.dropout=0.2",
    "data.batching=contiguous",
)


def test_a_resumed_run_is_bit_for_bit_the_same_with_deterministic_kernels(
    train_run: TrainRun,
) -> None:
    whole = train_run(*CUDA, "train.max_steps=9", runs="whole").run
    train_run(*CUDA, "train.max_steps=5")
    assert_same_training(train_run(*CUDA, "train.max_steps=9").run, whole)


def test_a_run_moves_between_devices_and_says_so(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run("train.max_steps=3")
    run = train_run(*CUDA[:1], "train.max_steps=6").run
    assert "changed      device was cpu and is now " in capsys.readouterr().err
    train_run("train.max_steps=9")
    assert "and is now cpu" in capsys.readouterr().err
    assert column(run, "step") == list(range(1, 10))
