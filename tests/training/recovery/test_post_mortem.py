"""The files of a post-mortem: they read back exactly, and the failure is found in them again."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ys_llm.config.schema import Config, ModelConfig, TrainConfig
from ys_llm.config.sources import to_yaml
from ys_llm.data.batches import Batch
from ys_llm.errors import UserError
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten
from ys_llm.training.recovery.diagnosis import StepInputs, capture_inputs, diagnose
from ys_llm.training.recovery.post_mortem import load, replay, write
from ys_llm.training.recovery.report import Diagnosis

VOCAB_SIZE = 30
B, T = 3, 70
FACTS = {
    "step": 12,
    "loss": math.nan,
    "grad_norm": math.inf,
    "learning_rate": 0.003,
    "stage": 0,
    "batch_index": 11,
    "dtype": "fp32",
    "backends": {"three_tier": "windowed"},
}

every_mixer = pytest.mark.parametrize("mixer", mixer_names())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "it's mine"


def config_of(mixer: str) -> Config:
    model = ModelConfig(d_model=16, n_layers=2, d_mlp=24, layers=(mixer,), dropout=0.1)
    return Config(model=model, train=TrainConfig(device="cpu"))


def model_of(mixer: str, run: Path) -> Any:
    config = config_of(mixer)
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config))
    model = Model(config.model, vocab_size=VOCAB_SIZE).train()
    model.select_backends(batch_size=B, precision="fp32", previous=FACTS["backends"])
    return model


def inputs_of(model: Model, *, streams: bool) -> StepInputs:
    inputs_BT, targets_BT = torch.randint(VOCAB_SIZE, (2, B, T))
    state = model(torch.randint(VOCAB_SIZE, (B, 5)))[1] if streams else None
    starts_BT = inputs_BT == 0
    batch = Batch(inputs_BT, targets_BT, starts_BT, carry=streams)
    return capture_inputs(batch, state, starts_BT if streams else None)


def post_mortem(model: Model, inputs: StepInputs, run: Path) -> Path:
    diagnosis = diagnose(model, inputs, autocast=torch.autocast("cpu", enabled=False))
    return write(run, diagnosis, inputs, model=model, facts=FACTS)


def overflow(model: Any) -> None:
    with torch.no_grad():
        model.blocks[1].mlp.up.weight.mul_(1e20)
        model.blocks[1].mlp.down.weight.fill_(1e38)


def assert_same(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@every_mixer
@pytest.mark.parametrize("streams", [False, True])
def test_what_a_step_read_comes_back_bit_for_bit(mixer: str, streams: bool, run: Path) -> None:
    model = model_of(mixer, run)
    inputs = inputs_of(model, streams=streams)
    again, weights = load(post_mortem(model, inputs, run))
    assert torch.equal(again.batch.inputs_BT, inputs.batch.inputs_BT)
    assert torch.equal(again.batch.targets_BT, inputs.batch.targets_BT)
    assert torch.equal(again.batch.starts_BT, inputs.batch.starts_BT)
    assert again.batch.carry == streams
    assert (again.starts_BT is None) == (inputs.starts_BT is None)
    assert (again.state is None) == (inputs.state is None)
    if inputs.state is not None and again.state is not None:
        assert_same(flatten(again.state), flatten(inputs.state))
    assert_same(dict(again.random), dict(inputs.random))
    assert_same(weights, dict(model.named_parameters()))


@every_mixer
@pytest.mark.parametrize("streams", [False, True])
def test_the_failure_is_found_again_in_the_files(mixer: str, streams: bool, run: Path) -> None:
    model = model_of(mixer, run)
    overflow(model)
    inputs = inputs_of(model, streams=streams)
    found = diagnose(model, inputs, autocast=torch.autocast("cpu", enabled=False))
    assert found.kind == "forward"
    torch.rand(7)
    assert replay(post_mortem(model, inputs, run)) == found


def test_what_was_not_reproduced_gives_the_same_loss_again(run: Path) -> None:
    model = model_of("three_tier", run)
    inputs = inputs_of(model, streams=True)
    path = post_mortem(model, inputs, run)
    found = replay(path)
    assert found.kind == "not reproduced"
    assert found.loss == json.loads(path.read_text())["diagnosis"]["loss"]


def test_a_step_without_bad_numbers_is_finite_again(run: Path) -> None:
    model = model_of("three_tier", run)
    inputs = inputs_of(model, streams=False)
    diagnosis = Diagnosis("finite", loss=9.5, grad_norm=80.25)  # a spike
    assert diagnosis.sentence == "all values of the step are finite (loss 9.5, gradient norm 80.25)"
    path = write(run, diagnosis, inputs, model=model, facts=FACTS)
    assert replay(path).kind == "finite"


def strict(text: str) -> Any:
    """Parse as JSON is defined: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_json_tells_a_reader_what_happened(run: Path) -> None:
    model = model_of("three_tier", run)
    overflow(model)
    inputs = inputs_of(model, streams=False)
    diagnosis = diagnose(model, inputs, autocast=torch.autocast("cpu", enabled=False))
    path = write(run, diagnosis, inputs, model=model, facts=FACTS)
    assert path == run / "post-mortem" / "step-00000012.json"
    told = strict(path.read_text())
    assert told["sentence"] == diagnosis.sentence
    assert told["diagnosis"]["where"] == asdict(diagnosis)["where"] == "blocks.1.mlp"
    assert (told["loss"], told["grad_norm"]) == ("nan", "inf")
    assert (told["step"], told["stage"], told["batch_index"]) == (12, 0, 11)
    assert told["learning_rate"] == 0.003
    assert told["versions"]["torch"] == torch.__version__
    norms = told["weight_norms"]
    assert norms.keys() == dict(model.named_parameters()).keys()
    assert norms["embedding.weight"] == pytest.approx(model.embedding.weight.norm().item())


def test_the_command_in_the_json_finds_it_again(run: Path) -> None:
    model = model_of("three_tier", run)
    overflow(model)
    told = strict(post_mortem(model, inputs_of(model, streams=True), run).read_text())
    python, *arguments = shlex.split(told["replay"])
    assert python == "python"
    answer = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == told["sentence"]


def test_a_second_post_mortem_of_a_step_does_not_replace_the_first(run: Path) -> None:
    model = model_of("softmax_attention", run)
    inputs = inputs_of(model, streams=False)
    first = post_mortem(model, inputs, run)
    before = first.read_bytes()
    second = post_mortem(model, inputs, run)
    assert second.name == "step-00000012-2.json"
    assert first.read_bytes() == before
    assert {path.name for path in first.parent.iterdir()} == {
        f"{path.stem}{suffix}" for path in (first, second) for suffix in (".json", ".safetensors")
    }


def test_a_damaged_file_is_named(run: Path) -> None:
    model = model_of("three_tier", run)
    path = post_mortem(model, inputs_of(model, streams=False), run)
    tensors = path.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step-00000012\.safetensors"):
        load(path)


def test_a_file_that_holds_something_else_is_named(run: Path) -> None:
    model = model_of("three_tier", run)
    path = post_mortem(model, inputs_of(model, streams=False), run)
    save_file({"inputs_BT": torch.zeros(2, 2)}, path.with_suffix(".safetensors"))
    with pytest.raises(UserError, match="lacks targets_BT"):
        load(path)
