"""`python -m benchmarks.gpu [--out FILE]`: is ys correct on this GPU, and how fast? Experimental.

Within ten minutes: the tests that need a CUDA device, then each backend of the three-tier layer at
the three target shapes, next to cuDNN's LSTM of the same width, and full training steps. Times are
medians of interleaved rounds, forward and backward, bfloat16 operands; per step of the recurrence
where a layer is timed.

What differs from `reference`, or never ends, is named and not timed. A kernel whose barrier never
opens would occupy the device for ever, so every check is a process of its own with two minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.config.sources import load_config
from ys_llm.mixers.three_tier import Mixer, Options
from ys_llm.model.language_model import Model
from ys_llm.model.state import initial_positions
from ys_llm.ops import accuracy
from ys_llm.ops.three_tier.select import BACKENDS
from ys_llm.ops.three_tier.types import State
from ys_llm.system.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ((64, 512, 768, 2048, 1), (16, 256, 256, 512, 1), (8, 1024, 512, 1024, 8))
NAMES = ("windowed", "cuda_graph", "triton")
# Microseconds per step, forward and backward: as a graph, and by persistent kernels.
TARGETS = {"cuda_graph": (18, 14, 14), "triton": (10, 5, 5)}
CHECK_SECONDS, TEST_SECONDS = 120, 300
TOLERANCES = {
    "fp32": accuracy.TOLERANCES["float32"],
    "bf16": accuracy.TOLERANCES["bf16 in the loop"],
}
Group = dict[str, Any]


def main(words: list[str]) -> int:
    """Check, measure, print, write; 1 where there is no device or something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-tests", action="store_true", help="only check and measure")
    parser.add_argument("--check", nargs=2, metavar=("NAME", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device is visible, so there is nothing to time")
        return 1
    if arguments.check:
        name, number = arguments.check
        return 0 if is_correct(name, SHAPES[int(number)]) else 1
    wrong = [] if arguments.no_tests else failed_tests()
    groups = [group for group in measured(arguments.rounds, wrong)]
    report = {**environment(), "wrong": wrong, "groups": groups, "targets": targets(groups)}
    write_atomically(arguments.out, json.dumps(report, indent=1) + "\n")
    for line in (*wrong, *(f"{t['name']}: {t['value']:.2f}" for t in report["targets"])):
        print(line)
    return 1 if wrong else 0


def environment() -> dict[str, Any]:
    """Everything that a figure depends on besides the code's own choices."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    device = torch.cuda.get_device_properties(0)
    return {
        "command": "python -m benchmarks.gpu",
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": device.name,
        "multiprocessors": device.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton_version(),
    }


def triton_version() -> str:
    """The version of the installed Triton."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def failed_tests() -> list[str]:
    """The tests that need a CUDA device, in a process with a time limit."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"tests/test_gpu.py did not end within {TEST_SECONDS} s"]
    return [] if done.returncode == 0 else ["tests/test_gpu.py failed"]


def measured(rounds: int, wrong: list[str]) -> Iterator[Group]:
    """One group after another, printed as it is measured; adds to `wrong` what is not timed."""
    makers: list[Callable[[], Group]] = [
        *((lambda number=number: layer_group(number, rounds, wrong)) for number in range(3)),
        lambda: training_group(rounds),
        lambda: generation_group(rounds),
    ]
    for make in makers:
        group = make()
        print(group["name"])
        for case, seconds in group["seconds"].items():
            unit = 1e6 * statistics.median(seconds) / group["facts"]["steps"]
            print(f"  {case:<28} {unit:9.2f} us per step")
        yield group
        torch.cuda.empty_cache()


def layer_group(number: int, rounds: int, wrong: list[str]) -> Group:
    """The layer by each backend that is correct at this shape, and cuDNN's LSTM."""
    shape = SHAPES[number]
    batch_size, steps, d_model, d_state, _ = shape
    x_BTD = torch.randn(batch_size, steps, d_model, device="cuda")
    cases = {}
    for name in NAMES:
        if name not in BACKENDS:
            wrong.append(f"{name} is not listed in BACKENDS")
        elif is_correct_in_time(name, number):
            cases[name] = layer_step(name, shape, x_BTD)
        else:
            wrong.append(f"{name} at {shape} differs from reference or does not end: not timed")
    for dtype in (torch.float16, torch.bfloat16):
        lstm = nn.LSTM(d_model, d_state, batch_first=True, device="cuda", dtype=dtype)
        cases[f"nn.LSTM {dtype}".replace("torch.", "")] = lstm_step(lstm, x_BTD.to(dtype))
    facts = {"shape": shape, "steps": steps, "dtype": "bf16 operands, fp32 sums"}
    return {"name": f"layer {shape}", "seconds": interleaved(cases, rounds), "facts": facts}


def is_correct_in_time(name: str, number: int) -> bool:
    """`is_correct` in a separate process."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--check", name, str(number)]
    try:
        return subprocess.run(command, cwd=ROOT, timeout=CHECK_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def is_correct(name: str, shape: tuple[int, ...]) -> bool:
    """Outputs, state and every gradient of 70 steps against `reference`, captured and replayed."""
    worst: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        expected = layer_results("reference", shape, "fp32")
        for _ in range(3):  # first call, captured, replayed
            values = layer_results(name, shape, precision)
            error = accuracy.largest_error(values, expected)
            worst[precision] = max(worst.get(precision, 0.0), error)
    print(f"  {name} at {shape}: largest errors {worst}")
    return all(worst[precision] <= TOLERANCES[precision] for precision in worst)


def layer_results(name: str, shape: tuple[int, ...], precision: str) -> list[Tensor]:
    """The results of the recurrence on 70 steps of the same random inputs."""
    batch_size, _, d_model, d_state, heads = shape
    torch.manual_seed(0)
    mixer = Mixer(d_model, Options(d_state=d_state, n_heads=heads)).cuda()
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.dim() > 1:  # where summaries matter, below the scale of chaos
                parameter.normal_(std=0.6 * parameter.shape[-1] ** -0.5)
    drive_TBS = torch.randn(70, batch_size, d_state, device="cuda", requires_grad=True)
    starts_TB = torch.rand(70, batch_size, device="cuda") < 0.03
    state = mixer.init_state(batch_size)
    h_TBS, after = BACKENDS[name](
        drive_TBS,
        mixer.recurrence_weights(),
        State(**state, position=0),
        starts_TB=starts_TB,
        precision=precision,
    )
    outputs = [h_TBS.float(), *after[:3]]
    used = [p for n, p in mixer.named_parameters() if not n.startswith(("in_proj", "out_proj"))]
    loss = torch.stack([(o * torch.randn_like(o)).sum() for o in outputs]).sum()
    gradients = torch.autograd.grad(loss, [drive_TBS, *used], allow_unused=True)
    return [*outputs, *(gradient for gradient in gradients if gradient is not None)]


def layer_step(name: str, shape: tuple[int, ...], x_BTD: Tensor) -> Callable[[], None]:
    """Forward and backward of one mixer under bfloat16 autocast."""
    options = Options(d_state=shape[3], n_heads=shape[4])
    mixer = Mixer(shape[2], options, backend=name).cuda()
    grad_BTD = torch.randn_like(x_BTD)
    state, position_B = mixer.init_state(len(x_BTD)), initial_positions(len(x_BTD))

    def step() -> None:
        mixer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y_BTD, _ = mixer(x_BTD, state, None, position_B)
        y_BTD.backward(grad_BTD.to(y_BTD.dtype))

    return step


def lstm_step(lstm: nn.LSTM, x_BTD: Tensor) -> Callable[[], None]:
    """Forward and backward of cuDNN's LSTM in the dtype of its input."""
    grad_BTS = torch.randn(*x_BTD.shape[:2], lstm.hidden_size, device="cuda", dtype=x_BTD.dtype)

    def step() -> None:
        lstm.zero_grad(set_to_none=True)
        lstm(x_BTD)[0].backward(grad_BTS)

    return step


def training_group(rounds: int) -> Group:
    """A full step of the preset, its optimizer included: tokens/s = batch * steps / seconds."""
    config = load_config(ROOT / "configs" / "ys_v0_3.yaml").config
    batch_size, steps = 64, 512
    tokens_BT = torch.randint(4096, (batch_size, steps), device="cuda")
    cases = {}
    for name in filter(BACKENDS.__contains__, NAMES):
        model = Model(config.model, vocab_size=4096, backends={"three_tier": name}).cuda()
        cases[name] = model_step(model, tokens_BT)
    facts = {"config": "configs/ys_v0_3.yaml", "batch_size": batch_size, "steps": steps}
    return {"name": "training step", "seconds": interleaved(cases, rounds), "facts": facts}


def model_step(model: Model, tokens_BT: Tensor) -> Callable[[], None]:
    """Loss, gradients and one step of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss, _ = model(tokens_BT, targets_BT=tokens_BT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def generation_group(rounds: int) -> Group:
    """64 tokens of the default model, one forward pass each."""
    model = Model(load_config(None).config.model, vocab_size=4096).cuda().eval()

    def eager() -> None:
        state = model.init_state(1)
        with torch.inference_mode():
            for id in range(64):
                _, state = model(torch.tensor([[id]], device="cuda"), state)

    facts = {"steps": 64, "unit": "token"}
    seconds = interleaved({"eager": eager}, rounds)
    return {"name": "generation, batch 1", "seconds": seconds, "facts": facts}


def interleaved(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case, round by round: a, b, c, a, b, c; each is run three times before."""
    for run in cases.values():
        for _ in range(3):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            seconds[name].append(seconds_of(run))
    return seconds


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds on the device from the first launch to the end of the last."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def targets(groups: list[Group]) -> list[dict[str, Any]]:
    """Each target with what was measured: us per step, and times the speed of eager and cuDNN."""
    found = []
    for number, group in enumerate(groups[: len(SHAPES)]):
        steps = group["facts"]["steps"]
        us = {k: 1e6 * statistics.median(v) / steps for k, v in group["seconds"].items()}
        lstm = min(value for name, value in us.items() if name.startswith("nn.LSTM"))
        for name, most in TARGETS.items():
            if name not in us:
                continue
            label = f"{group['name']} {name}"
            found.append(
                {"name": f"{label}, us per step", "value": us[name], "at_most": most[number]}
            )
            found.append({"name": f"{label}, times cuDNN's speed", "value": lstm / us[name]})
            if "windowed" in us:
                found.append({"name": f"{label}, times eager", "value": us["windowed"] / us[name]})
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
