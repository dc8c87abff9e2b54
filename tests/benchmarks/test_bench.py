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

from benchmarks import command, figure, layer, machine, rounds, startup, targets, training
from benchmarks.rounds import Effort, Group
from ys_llm.training import steps

ROOT = Path(__file__).resolve().parents[2]
QUICK = Effort(rounds=2, quick=True)
ENVIRONMENT = ("command", "commit", "dirty", "date", "processor", "cores", "threads", "torch")


@pytest.fixture
def wrong_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend whose outputs are right and whose gradients are 1 % too large."""

    def careless(drive: Tensor, *arguments: Any, **options: Any) -> Any:
        h, state = layer.BACKENDS["reference"](drive, *arguments, **options)
        return h.detach() + 1.01 * (h - h.detach()), state

    monkeypatch.setitem(layer.BACKENDS, "careless", careless)


@pytest.fixture
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "SHAPES", layer.SHAPES[:1])


def test_cases_are_run_in_turns_after_a_warm_up() -> None:
    seen: list[str] = []

    def slow(name: str) -> Callable[[], None]:
        def run() -> None:
            seen.append(name)
            time.sleep(rounds.SHORTEST_SECONDS)

        return run

    seconds, left_out = rounds.interleaved({"a": slow("a"), "b": slow("b")}, rounds=3)
    assert seen == ["a", "a", "b", "b", *("a", "b") * 3]
    assert left_out == {} and all(len(values) == 3 for values in seconds.values())


def test_what_torch_cannot_run_is_left_out_with_its_reason_and_only_where_it_may_be() -> None:
    def broken() -> None:
        raise RuntimeError("not implemented for BFloat16\nand more")

    seconds, left_out = rounds.interleaved({"a": broken}, rounds=1, may_fail=["a"])
    assert (seconds, left_out) == ({}, {"a": "not implemented for BFloat16"})
    with pytest.raises(RuntimeError, match="BFloat16"):
        rounds.interleaved({"a": broken}, rounds=1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("n_heads", [1, 8])
@pytest.mark.parametrize("name", ["reference", "windowed"])
def test_right_implementations_may_be_timed(name: str, n_heads: int, dtype: str) -> None:
    _, why = layer.failure_of(name, dtype, n_heads=n_heads)
    assert why == ""


def test_a_wrong_gradient_is_not_timed_and_is_reported(wrong_gain: None, one_shape: None) -> None:
    (group,) = layer.measure(QUICK, left_out={})
    assert not [case for case in group.seconds if "careless" in case]
    for case in ("careless fp32", "careless bf16"):
        assert group.facts["left_out"][case].startswith("wrong: error ")
        assert "reference in float64" in group.facts["left_out"][case]
    assert [line.split(": ")[1] for line in command.wrong([group])] == [
        "careless fp32",
        "careless bf16",
    ]


def test_a_wrong_implementation_ends_in_exit_code_1(
    wrong_gain: None, one_shape: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "layer.json"
    assert command.main(["layer", "--quick", "--rounds", "1", "--out", str(out)]) == 1
    assert "careless fp32" in capsys.readouterr().out
    assert len(json.loads(out.read_text(encoding="utf-8"))["wrong"]) == 2


def test_a_backend_that_cannot_run_is_named_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, one_shape: None
) -> None:
    def absent(*arguments: Any, **options: Any) -> Any:
        raise OSError("there is no compiler")

    monkeypatch.setitem(layer.BACKENDS, "absent", absent)
    (group,) = layer.measure(QUICK, left_out={"cpp": "--without-compiler"})
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
    words = ["layer", "generate", "--quick", "--rounds", "2", "--out", str(out)]
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


def test_every_target_is_what_the_raw_times_give(report: dict[str, Any]) -> None:
    groups = {group["name"]: group for group in report["groups"]}
    layers = [group for name, group in groups.items() if name.startswith("layer ")]
    c1 = [target for target in report["targets"] if target["name"] == "C1"]
    assert len(layers) == 4 and len(c1) == 3
    for group, target in zip(layers, c1, strict=False):
        times = group["seconds"]
        default = group["facts"]["default"]
        expected = [a / b for a, b in zip(times["reference fp32"], times[default], strict=True)]
        assert target["values"] == pytest.approx(expected)
        assert target["figure"] == pytest.approx(statistics.median(expected))
        best = min(groups["machine"]["seconds"]["matmul bf16"])
        rate = groups["machine"]["facts"]["work"]["matmul bf16"] / best
        if default.endswith("bf16"):
            share = group["facts"]["flops"] / statistics.median(times[default]) / rate
            assert target["share"] == pytest.approx(share)


def test_a_saved_file_is_judged_again_alike(report: dict[str, Any]) -> None:
    groups = [Group(**group) for group in report["groups"]]
    again = targets.judge(groups, with_compiler=report["with_compiler"])
    assert [json.loads(json.dumps(asdict(target))) for target in again] == [
        {name: target[name] for name in asdict(again[0])} for target in report["targets"]
    ]


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (targets.Target("C1", "", 7.0, [6.0, 7.0, 9.0]), True),
        (targets.Target("C1", "", 7.0, [8.0, 6.9, 6.0]), False),
        (targets.Target("C8", "", 1.05, [1.0, 1.06, 1.04], at_most=True), True),
        (targets.Target("C8", "", 1.05, [1.1, 1.06, 1.04], at_most=True), False),
        (targets.Target("C3", "", 12.0, []), False),
    ],
)
def test_a_target_is_met_by_the_median_of_its_rounds(target: targets.Target, met: bool) -> None:
    assert target.met is met
    assert ("met" in target.line().split(", ")) is met
    assert ("not measured" in target.line()) is not bool(target.values)


def test_without_a_compiler_the_targets_are_others() -> None:
    facts = {
        **{"default": "windowed fp32", "flops": 1.0, "errors": {"windowed fp32": 1e-7}},
        "shape": asdict(layer.SHAPES[1]),
    }
    seconds = {"reference fp32": [2.0], "windowed fp32": [1.0], "nn.LSTM fp32": [3.0]}
    group = Group(f"layer {layer.SHAPES[1]}", seconds, facts)
    limits = Group("machine", {"matmul fp32": [1.0]}, {"work": {"matmul fp32": 8.0}})
    with_one, without = (
        {
            target.name + target.what[:5]: target
            for target in targets.judge([limits, group], with_compiler=c)
        }
        for c in (True, False)
    )
    assert (with_one["C1layer"].target, without["C1layer"].target) == (6.0, 2.5)
    assert with_one["C1layer"].share == 1 / 8
    assert {str(shape) for shape in layer.SHAPES} == {*targets.C1, targets.HEADS}


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
    for words in (["layers"], ["figure"], ["layer", "--rounds", "0"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(words)
        assert stopped.value.code == 2
    assert command.main(["figure", str(tmp_path / "none.json")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_training_is_measured_whole_and_in_parts(corpus: Path, tmp_path: Path) -> None:
    before = (torch.autograd.backward, steps.clip_gradients)
    split = startup.read_split(corpus)
    groups = training.measure(QUICK, corpus=corpus, split=split, folder=tmp_path / "run")
    assert before == (torch.autograd.backward, steps.clip_gradients)
    assert [group.name for group in groups] == [
        *("training T 32", "step T 32"),
        *("training T 64", "step T 64"),
    ]
    for whole, parts in zip(groups[::2], groups[1::2], strict=True):
        assert set(whole.seconds) == {training.OURS, training.LLAMA}
        sums = zip(*(parts.seconds[p] for p in ("forward", "backward", "optimizer")), strict=True)
        for spent, step in zip(sums, parts.seconds["step"], strict=True):
            assert 0 < sum(spent) < step


def test_a_part_that_the_step_calls_by_another_name_is_noticed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step then never calls the timed function: its seconds would count as overhead."""
    unpatched = FunctionType(steps.forward_backward.__code__, dict(vars(steps)))
    monkeypatch.setattr(steps, "forward_backward", unpatched)
    split = startup.read_split(corpus)
    with pytest.raises(AssertionError, match="clip_gradients"):
        training.measure(QUICK, corpus=corpus, split=split, folder=tmp_path / "run")


def test_no_dtype_is_timed_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BF16_FEATURES", frozenset())
    group = machine.measure(QUICK)
    assert set(group.seconds) == {"read memory", "matmul fp32"}


@pytest.mark.slow
def test_all_sections_run(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    words = ["all", "--quick", "--rounds", "2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(out.read_text(encoding="utf-8"))
    names = {target["name"] for target in report["targets"]}
    assert names == {"C1", "C2", "C3", "C4", "C5", "C7", "C8", "C9", "start"}
    assert all(target["values"] for target in report["targets"])


def test_the_speeds_that_are_shown_are_those_of_the_file_that_is_named() -> None:
    paths = (ROOT / "README.md", *ROOT.glob("docs/*.md"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    saved = json.loads((ROOT / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))
    assert saved["command"] in text
    assert not saved["dirty"] and not saved["wrong"]
    groups = [Group(**group) for group in saved["groups"]]
    rows = targets.table(targets.judge(groups, with_compiler=True)).splitlines()[2:]
    missing = [row for row in rows if row not in text]
    assert not missing, "take them from: python -m benchmarks table benchmarks/cpu.json"


def test_the_figure_of_the_readme_is_drawn_from_that_file(tmp_path: Path) -> None:
    drawn = tmp_path / "cpu.svg"
    saved = ROOT / "benchmarks" / "cpu.json"
    assert command.main(["figure", str(saved), "--out", str(drawn)]) == 0
    assert drawn.read_bytes() == (ROOT / "benchmarks" / "cpu.svg").read_bytes()
