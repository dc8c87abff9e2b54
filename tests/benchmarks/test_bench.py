"""python -m benchmarks: what it refuses to time, what it writes, what it makes of the raw times.

No time is asserted here: a busy machine is slow, and nothing is wrong for that.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import command, figure, layer, lstm, machine, rounds, sections, targets, training
from benchmarks.bars import BARS, FILES
from benchmarks.rounds import Budget, Effort, Group
from benchmarks.startup import read_split
from benchmarks.training import Workplace
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.training import steps

ROOT = Path(__file__).resolve().parents[2]
QUICK = Effort(quick=True)
ENVIRONMENT = (
    *("command", "commit", "dirty", "date", "class", "processor", "cores", "threads", "torch"),
)
LIMITS = Group("machine", {"matmul fp32": [1.0]}, {"work": {"matmul fp32": 1e12}})


@pytest.fixture
def wrong_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend whose outputs are right and whose gradients are 1 % too large."""

    def careless(drive: Tensor, *arguments: Any, **options: Any) -> Any:
        h, state = layer.BACKENDS["reference"](drive, *arguments, **options)
        return h.detach() + 1.01 * (h - h.detach()), state

    monkeypatch.setitem(layer.BACKENDS, "careless", careless)


@pytest.fixture
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [part for part in sections.PARTS if not part.name.startswith("layer ")]
    kept.append(sections.Part("layer", "layer", 1, layer.SHAPES[0]))
    monkeypatch.setattr(sections, "PARTS", tuple(kept))


@pytest.fixture
def bf16_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with bf16 instructions; tiny shapes run anywhere."""
    monkeypatch.setattr(machine, "BF16_FEATURES", machine.inspect_machine().features)


def layer_group(left_out: dict[str, str] | None = None) -> Group:
    (group,) = layer.measure(layer.SHAPES[0], QUICK, limits=LIMITS, left_out=left_out or {})
    return group


def waits(seconds: float, *, seen: list[str] | None = None, name: str = "") -> Callable[[], None]:
    def run() -> None:
        if seen is not None:
            seen.append(name)
        time.sleep(seconds)

    return run


def test_cases_are_run_in_turns_after_a_warm_up() -> None:
    seen: list[str] = []
    cases = {n: waits(rounds.SHORTEST_SECONDS, seen=seen, name=n) for n in ("a", "b")}
    seconds, left_out = rounds.interleaved(cases, QUICK)
    assert seen == ["a", "a", "b", "b", *("a", "b") * rounds.FEWEST_ROUNDS]
    assert left_out == {} and all(len(v) == rounds.FEWEST_ROUNDS for v in seconds.values())


def test_time_that_is_left_gives_more_rounds_up_to_a_limit() -> None:
    cases = {"a": waits(rounds.SHORTEST_SECONDS)}
    seconds, _ = rounds.interleaved(cases, Effort())
    assert len(seconds["a"]) == rounds.MOST_ROUNDS
    seconds, _ = rounds.interleaved(cases, Effort(0.0), keep=["a"])
    assert len(seconds["a"]) == rounds.FEWEST_ROUNDS


def test_what_does_not_fit_is_left_out_the_slowest_first_and_named() -> None:
    cases = {"kept": waits(0.05), "slow": waits(0.5), "quick": waits(0.02)}
    seconds, left_out = rounds.interleaved(cases, Effort(1.9), keep=["kept"])
    assert set(seconds) == {"kept", "quick"}
    assert left_out == {"slow": "no time for it: one run takes 0.5 s"}
    seconds, left_out = rounds.interleaved(cases, Effort(0.0), keep=["kept"])
    assert set(seconds) == {"kept"}
    assert set(left_out.values()) == {"no time was left for it"}


def test_what_one_part_leaves_the_others_get() -> None:
    budget = Budget(time.perf_counter() + 100, {"a": 1, "b": 1, "c": 2})
    assert budget.share("a") == pytest.approx(25, rel=0.1)
    assert budget.share("b") == pytest.approx(100 / 3, rel=0.1)
    assert budget.share("c") == pytest.approx(100, rel=0.1)
    assert Budget(time.perf_counter() - 1, {"late": 1}).share("late") == 0


def test_a_slow_machine_gets_shorter_rows_and_smaller_steps() -> None:
    shape, effort = layer.SHAPES[0], Effort(60)
    assert layer.fitting(shape, effort, 1e12) == shape
    slow = layer.fitting(shape, effort, 2e10)
    assert slow.T < shape.T and slow.B == shape.B
    assert layer.fitting(shape, effort, 1e6).T == layer.FEWEST_TOKENS
    assert training.fitting(2048, effort, 1e12) == training.TOKENS_PER_STEP
    assert training.fitting(2048, effort, 1e6) == 2048
    assert training.fitting(256, effort, 1e6) < training.TOKENS_PER_STEP


def test_a_row_that_was_shortened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "FEWEST_TOKENS", 16)
    slow = Group("machine", {"matmul fp32": [1.0]}, {"work": {"matmul fp32": 1.0}})
    (group,) = layer.measure(
        layer.SHAPES[2], Effort(0.0, quick=True), limits=slow, left_out={"cpp": "not now"}
    )
    assert group.name == "layer 2,32,32,16" and group.facts["shape"]["T"] == 16
    assert group.facts["note"].startswith("16 tokens a row instead of 32")


def test_what_torch_cannot_run_is_left_out_with_its_reason_and_only_where_it_may_be() -> None:
    def broken() -> None:
        raise RuntimeError("not implemented for BFloat16\nand more")

    seconds, left_out = rounds.interleaved({"a": broken}, QUICK, may_fail=["a"])
    assert (seconds, left_out) == ({}, {"a": "not implemented for BFloat16"})
    with pytest.raises(RuntimeError, match="BFloat16"):
        rounds.interleaved({"a": broken}, QUICK)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("n_heads", [1, 8])
@pytest.mark.parametrize("name", ["reference", "windowed"])
def test_right_implementations_may_be_timed(name: str, n_heads: int, dtype: str) -> None:
    _, why = layer.failure_of(name, dtype, n_heads=n_heads)
    assert why == ""


def test_a_wrong_gradient_is_not_timed_and_is_reported(wrong_gain: None, bf16_here: None) -> None:
    group = layer_group()
    assert not [case for case in group.seconds if "careless" in case]
    for case in ("careless fp32", "careless bf16"):
        assert group.facts["left_out"][case].startswith("wrong: error ")
        assert "reference in float64" in group.facts["left_out"][case]
    assert [line.split(": ")[1] for line in command.wrong([group])] == [
        "careless fp32",
        "careless bf16",
    ]


def test_a_wrong_implementation_ends_in_exit_code_1(
    wrong_gain: None,
    one_shape: None,
    bf16_here: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "layer.json"
    assert command.main(["layer", "--quick", "--out", str(out)]) == 1
    assert "careless fp32" in capsys.readouterr().out
    assert len(json.loads(out.read_text(encoding="utf-8"))["wrong"]) == 2


def test_a_backend_that_cannot_run_is_named_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*arguments: Any, **options: Any) -> Any:
        raise OSError("there is no compiler")

    monkeypatch.setitem(layer.BACKENDS, "absent", absent)
    group = layer_group({"cpp": "--without-compiler"})
    assert group.facts["left_out"]["absent fp32"] == "it does not run here: there is no compiler"
    assert group.facts["left_out"]["cpp"] == "--without-compiler"
    assert not [case for case in group.seconds if case.startswith(("absent", "cpp"))]
    assert command.wrong([group]) == []


def test_onednn_is_asked_for_only_while_its_cases_run() -> None:
    settings: Any = torch.backends.mkldnn
    before = settings.matmul.fp32_precision
    with pytest.raises(ValueError, match="stop"), layer.onednn_matmuls():
        assert settings.matmul.fp32_precision == "bf16"
        raise ValueError("stop")
    assert settings.matmul.fp32_precision == before


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What `bench.py layer generate --quick` writes."""
    out = tmp_path_factory.mktemp("bench") / "quick.json"
    words = ["layer", "generate", "--quick", "--out", str(out)]
    assert command.main(words) == 0
    yield json.loads(out.read_text(encoding="utf-8"))


def test_the_file_says_what_its_figures_depend_on(report: dict[str, Any]) -> None:
    for name in ENVIRONMENT:
        assert report[name] not in ("", None), name
    assert report["command"].startswith("python -m benchmarks layer generate --quick")
    assert report["groups"][0]["name"] == "machine"
    for group in report["groups"]:
        lengths = {len(values) for values in group["seconds"].values()}
        assert len(lengths) == 1 and all(s > 0 for v in group["seconds"].values() for s in v)


def test_every_figure_is_what_the_raw_times_give(report: dict[str, Any]) -> None:
    judged = {target.key: target for target in targets.judge(report)}
    layers = [group for group in report["groups"] if group["name"].startswith("layer ")]
    assert len(layers) == 4
    for group in layers:
        times, default, dtype = group["seconds"], group["facts"]["default"], machine.bars().dtype
        expected = [a / b for a, b in zip(times["reference fp32"], times[default], strict=True)]
        assert judged[f"{group['name']} / loop"].values == pytest.approx(expected)
        if "8 heads" in group["name"]:
            continue
        limit = zip(times[default], times[f"matmul {dtype}"], strict=True)
        work = group["facts"]["work"][f"matmul {dtype}"]
        expected = [100 * group["facts"]["flops"] / s / (work / m) for s, m in limit]
        share = judged[f"{group['name']} share"]
        assert share.values == pytest.approx(expected)
        assert share.figure == pytest.approx(statistics.median(expected))
    texts = judged["64 texts"]
    (generation,) = (group for group in report["groups"] if group["name"] == "generation")
    near, many = (generation["seconds"][generation["facts"]["cases"][n]] for n in ("near", "texts"))
    assert texts.values == pytest.approx([64 * a / b for a, b in zip(near, many, strict=True)])


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (targets.Target("a", "", [6.0, 7.0, 9.0], 7.0), True),
        (targets.Target("a", "", [8.0, 6.9, 6.0], 7.0), False),
        (targets.Target("a", "", [1.0, 1.06, 1.04], 1.05, at_most=True), True),
        (targets.Target("a", "", [1.1, 1.06, 1.04], 1.05, at_most=True), False),
        (targets.Target("a", "", [], 12.0), False),
        (targets.Target("a", "", [1.0], None), True),
    ],
)
def test_a_target_is_met_by_the_median_of_its_rounds(target: targets.Target, met: bool) -> None:
    assert target.met is met
    assert ("not met" in target.verdict) is (not met and bool(target.values))
    assert ("not measured" in target.line()) is not bool(target.values)


def report_of(cpu_class: str, *, with_compiler: bool = True) -> dict[str, Any]:
    """One layer and one training on a processor of this class, all at half the large matmul."""
    dtype = BARS[cpu_class].dtype
    default, limit = f"cpp {dtype}", f"matmul {dtype}"
    layers = {
        "facts": {
            **{"default": default, "flops": 1.0, "recurrence_flops": 1.0, "work": {limit: 2.0}},
            **{"shape": asdict(layer.SHAPES[1]), "errors": {"cpp fp32": 1e-7}, "left_out": {}},
        },
        "seconds": {
            **{"reference fp32": [5.0], f"windowed {dtype}": [1.2], "nn.LSTM fp32": [2.9]},
            **{default: [1.0], limit: [1.0]},
        },
    }
    facts = {"backend": "cpp", "dtype": dtype, "parameters": 5, "flops": 1.0}
    cases = [f"default {dtype}", f"llama {dtype}"]
    trained = {
        "facts": {"tokens": dict.fromkeys(cases, 8192), **dict.fromkeys(cases, facts)},
        "seconds": dict(zip(cases, ([1.0], [1.7]), strict=True)),
    }
    return {
        "class": cpu_class,
        "with_compiler": with_compiler,
        "groups": [
            {"name": "machine", "seconds": {limit: [1.0]}, "facts": {"work": {limit: 2.0}}},
            {"name": f"layer {layer.SHAPES[1]}", **layers},
            {"name": "training T 256", **trained},
        ],
    }


def bars_of(report: dict[str, Any]) -> dict[str, tuple[float | None, bool]]:
    return {t.key: (t.bar, t.met) for t in targets.judge(report)}


def test_each_class_is_judged_by_its_own_bars() -> None:
    layer_name = f"layer {layer.SHAPES[1]}"
    old, new = bars_of(report_of("AVX2")), bars_of(report_of("AMX"))
    assert old[f"{layer_name} / LSTM"] == (3.0, False)
    assert new[f"{layer_name} / LSTM"] == (2.5, True)
    assert old[f"{layer_name} / windowed"] == (1.25, False)
    assert new[f"{layer_name} / windowed"] == (None, True)
    assert old[f"{layer_name} share"] == (70.0, False)
    assert new[f"{layer_name} share"] == (55.0, False)
    assert old["training T 256 / llama fp32"] == (1.5, True)
    assert new["training T 256 / llama bf16"] == (1.8, False)
    assert set(FILES) == set(BARS) - {"other"}


def test_without_a_compiler_the_bars_are_others() -> None:
    key = f"layer {layer.SHAPES[1]} / loop"
    assert bars_of(report_of("AMX"))[key] == (6.0, False)
    assert bars_of(report_of("AMX", with_compiler=False))[key] == (2.5, True)
    assert set(BARS["AMX"].over_loop) == {shape.S for shape in layer.SHAPES}


def test_a_comparison_that_is_not_fair_is_shown_and_not_judged() -> None:
    report = report_of("AVX2")
    report["groups"][2]["facts"]["note"] = "the other side was slow for another reason"
    assert bars_of(report)["training T 256 / llama fp32"] == (None, True)


def test_the_figure_shows_every_named_case_to_scale(report: dict[str, Any]) -> None:
    root = ElementTree.fromstring(figure.svg(report))
    name = "{http://www.w3.org/2000/svg}"
    shown = [text.text or "" for text in root.iter(f"{name}text")]
    widths = [float(target.get("width", "nan")) for target in root.iter(f"{name}rect")]
    layers = [group for group in report["groups"] if group["name"].startswith("layer ")]
    cases = [(group, case) for group in layers for case in figure.case_rates(group)]
    assert len(widths) == len(cases)
    assert sum(text.startswith("large matmuls alone") for text in shown) == len(layers)
    for label, _ in figure.NAMES.values():
        if "cpp" not in label:
            assert label in shown
    first = [width for width, (group, _) in zip(widths, cases, strict=True) if group is layers[0]]
    rates = list(figure.case_rates(layers[0]).values())
    for width, rate in zip(first, rates, strict=True):
        assert width == pytest.approx(first[0] * rate / rates[0], rel=0.2) or width == 1.0


def test_a_figure_is_drawn_again_from_its_file(report: dict[str, Any], tmp_path: Path) -> None:
    saved = tmp_path / "some.json"
    saved.write_text(json.dumps(report), encoding="utf-8")
    assert command.main(["figure", str(saved)]) == 0
    assert (tmp_path / "some.svg").read_text(encoding="utf-8") == figure.svg(report)
    report_without = {**report, "groups": report["groups"][:1]}
    assert "no layer was measured" in figure.svg(report_without)


def test_wrong_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["layers"], ["figure"], ["layer", "--minutes", "0"], ["tables", "x"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(words)
        assert stopped.value.code == 2
    assert command.main(["figure", str(tmp_path / "none.json")]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.fixture
def place(corpus: Path, tmp_path: Path) -> Workplace:
    return Workplace(corpus, read_split(corpus), tmp_path / "run")


def test_training_is_timed_for_each_side_in_each_dtype(place: Workplace, bf16_here: None) -> None:
    (group,) = training.measure(32, QUICK, place, LIMITS)
    cases = {f"{side} {dtype}" for side in training.SIDES for dtype in ("fp32", "bf16")}
    assert set(group.seconds) == {*cases, f"matmul {machine.bars().dtype}"}
    assert all(group.facts[case]["dtype"] == case.split()[1] for case in cases)
    assert group.facts["default fp32"]["backend"] != group.facts["llama fp32"]["backend"]


def test_the_lstm_is_in_every_block_and_is_trained(place: Workplace) -> None:
    run = place.run(training.LSTM, training._shape(32, 128, "fp32", training.LSTM), quick=True)
    lstms = [mixer.lstm for mixer in run.model.mixers]
    assert len(lstms) == 2 and all(isinstance(one, torch.nn.LSTM) for one in lstms)
    before = [one.weight_hh_l0.detach().clone() for one in lstms]
    state = training.TrainState()
    steps.optimizer_step(run, state, steps.forward_backward(run, state))
    for old, one in zip(before, lstms, strict=True):
        assert not torch.equal(old, one.weight_hh_l0)


def test_every_dtype_of_a_judged_side_is_timed_however_short_the_time_is(
    place: Workplace, bf16_here: None
) -> None:
    (group,) = training.measure(32, Effort(0.0, quick=True), place, LIMITS)
    judged = {f"{side} {dtype}" for side in training.JUDGED for dtype in ("fp32", "bf16")}
    assert set(group.seconds) == {*judged, f"matmul {machine.bars().dtype}"}
    assert set(group.facts["left_out"]) == {
        f"{side} {dtype}" for side in ("min_gru", "nn.LSTM") for dtype in ("fp32", "bf16")
    }


def test_a_step_is_taken_apart(place: Workplace) -> None:
    before = (torch.autograd.backward, steps.clip_gradients, steps.next_batch)
    groups = training.measure_steps(QUICK, place)
    assert before == (torch.autograd.backward, steps.clip_gradients, steps.next_batch)
    assert [group.name for group in groups] == ["step default", "step quickstart"]
    for group in groups:
        whole, *parts = (group.seconds[name] for name in ("step", *training.PARTS))
        assert all(0 < sum(spent) < step for step, *spent in zip(whole, *parts, strict=True))
        counted = [sum(spent[:4]) for spent in zip(*parts, strict=True)]
        expected = [100 * (1 - part / step) for part, step in zip(counted, whole, strict=True)]
        assert targets.overhead(group) == pytest.approx(expected)


def test_the_sides_of_the_comparison_have_equal_numbers_of_parameters() -> None:
    counts = []
    for side in training.SIDES:
        with torch.device("meta"):
            model = Model(training.config_of(side, []).model, vocab_size=4096)
            model = lstm.put_in(model) if side == training.LSTM else model
        counts.append(parameter_count(model))
    assert max(counts) < 1.02 * min(counts)


def test_a_part_that_the_step_calls_by_another_name_is_noticed(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step then never calls the timed function: its seconds would count as overhead."""
    unpatched = FunctionType(steps.forward_backward.__code__, dict(vars(steps)))
    monkeypatch.setattr(steps, "forward_backward", unpatched)
    with pytest.raises(AssertionError, match="clip_gradients"):
        training.measure_steps(QUICK, place)


def test_no_dtype_is_timed_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BF16_FEATURES", frozenset())
    group = machine.measure(QUICK)
    assert set(group.seconds) == {"read memory", "matmul fp32"}


def test_an_older_processor_is_imitated_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str]) -> Any:
        started.append((command, env))
        return subprocess.CompletedProcess(command, 3)

    for name in machine.RESTRICTIONS["avx2"]:
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(command.subprocess, "run", run)
        assert command.main(["layer", "--cpu-level", "avx2"]) == 3
    ((words, environment),) = started
    assert words[1:] == ["-m", "benchmarks", "layer", "--cpu-level", "avx2"]
    assert machine.RESTRICTIONS["avx2"].items() <= environment.items()
    for name, value in machine.RESTRICTIONS["avx2"].items():
        monkeypatch.setenv(name, value)
    if machine.cpu_class() == "AVX2":
        facts = machine.environment("", with_compiler=False)
        assert (facts["class"], facts["variables"]) == ("AVX2", machine.RESTRICTIONS["avx2"])
        assert machine.dtypes() == ("fp32",) and machine.bars().dtype == "fp32"


@pytest.mark.slow
@pytest.mark.parametrize("level", [[], ["--cpu-level", "avx2"]])
def test_all_sections_run(tmp_path: Path, level: list[str]) -> None:
    out = tmp_path / "all.json"
    words = ["all", "--quick", *level, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {part.section for part in sections.PARTS} == set(sections.SECTIONS)
    groups = {group["name"].split()[0] for group in report["groups"]}
    assert groups == {"machine", "layer", "generation", "data", "training", "step", "start"}
    assert all(target.values for target in targets.judge(report))
    if level:
        assert report["class"] == "AVX2"
        assert not [c for group in report["groups"] for c in group["seconds"] if "bf16" in c]
