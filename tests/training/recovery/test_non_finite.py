"""Non-finite losses, gradients and weights: diagnosis, rollback, recovery."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training_runs import TrainRun, assert_same_training, column, last_tensors, rows_of
from torch import Tensor

from ys_llm.errors import EXIT_DIVERGED, UserError
from ys_llm.model.language_model import Model
from ys_llm.runs.checkpoint import read_checkpoint
from ys_llm.runs.folder import checkpoints
from ys_llm.system.files import sha256_of
from ys_llm.training.recovery.non_finite import SPIKE_NATS, SPIKE_WINDOW, is_spike
from ys_llm.training.recovery.post_mortem import replay

COMMON = ("train.checkpoint_interval=4", "train.eval_interval=4", "train.max_steps=16")


@contextmanager
def spoiled(spoil: Callable[[Model, Tensor], None]) -> Iterator[None]:
    """Every loss of a training is preceded by `spoil(model, inputs_BT)`."""
    true_forward = Model.forward

    def forward(self: Model, inputs_BT: Tensor, *rest: Any, **named: Any) -> Any:
        if self.training:
            spoil(self, inputs_BT)
        return true_forward(self, inputs_BT, *rest, **named)

    Model.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Model.forward = true_forward  # type: ignore[method-assign]


class Poison:
    """The `nth` batch that is read: whenever its text is read again, it ruins a weight again."""

    def __init__(self, nth: int, value: float = float("inf")) -> None:
        self.left, self.value = nth, value
        self.text: Tensor | None = None
        self.read = 0

    def __call__(self, model: Model, inputs_BT: Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            self.text = inputs_BT.clone()
        if self.text is not None and torch.equal(self.text, inputs_BT):
            self.read += 1
            with torch.no_grad():
                model.output.weight[3, 5] = self.value


def rollbacks_of(run: Path) -> list[dict[str, Any]]:
    text = (run / "rollbacks.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["rollbacks"]
    return found


@pytest.mark.parametrize("batching", ["shuffled", "contiguous"])
def test_a_poisoned_batch_is_rolled_back_skipped_and_recorded(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str], batching: str
) -> None:
    common = (*COMMON, f"data.batching={batching}", "model.dropout=0.1", "train.rollback_steps=2")
    poison = Poison(11)
    with spoiled(poison):
        run = train_run(*common).run
    assert poison.read == 1, "the text of the bad step must not be read again"
    assert column(run, "step") == list(range(1, 17))
    assert rollbacks_of(run) == [
        {
            "step": 11,
            "back_to": 8,
            "stage": 0,
            "skipped": 10,
            "reason": "loss nan, gradient norm nan",
        }
    ]
    output = capsys.readouterr().err
    assert "bad step     step 11: loss nan" in output
    assert "diagnosis    1 weights not finite before the step, in output.weight" in output
    assert "rollback     to step 8, for a while with 0.5 times the learning rate" in output
    rates = column(run, "learning_rate")
    assert rates[8:] == [rates[7] / 2] * 5 + [rates[7]] * 3  # until 2 steps beyond step 11
    found = json.loads((run / "post-mortem" / "step-00000011.json").read_text(encoding="utf-8"))
    assert found["diagnosis"]["kind"] == "weights"
    assert (found["stage"], found["batch_index"], found["micro_step"]) == (0, 10, 0)
    assert replay(run / "post-mortem" / "step-00000011.json").kind == "weights"


def test_a_run_that_recovered_resumes_like_any_other(
    train_run: TrainRun,
) -> None:
    """Both go back at step 11; one of them is also stopped before and after it."""
    with spoiled(Poison(11)):
        whole = train_run(*COMMON, runs="whole").run
    with spoiled(Poison(11)):
        train_run(*COMMON, "train.max_steps=7")
        run = train_run(*COMMON, "train.max_steps=13").run
    assert rollbacks_of(run) == rollbacks_of(whole)
    assert_same_training(train_run(*COMMON).run, whole)


def test_damage_before_a_checkpoint_rolls_back_to_the_one_before(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Huge but finite: the checkpoint of step 8 is saved with it, and step 9 has no loss."""
    run = train_run(*COMMON, "train.max_steps=8").run
    newest = checkpoints(run)[-1]
    spoil_checkpoint(newest, 3e38)
    summary = train_run(*COMMON)
    assert [item["back_to"] for item in rollbacks_of(run)] == [4]
    assert "rollback     to step 4" in capsys.readouterr().err
    assert (run / "superseded" / "step-00000008").is_dir()
    assert summary.steps == 16
    assert column(run, "step") == list(range(1, 17))


def spoil_checkpoint(path: Path, value: float) -> None:
    """As if the step before it had made this weight huge: nothing is damaged on disk."""
    saved = read_checkpoint(path)
    weights = {name: tensor.clone() for name, tensor in saved.weights.items()}
    weights["output.weight"].fill_(value)
    file = path / "model.safetensors"
    before = sha256_of(file)
    file.write_bytes(safetensors.torch.save(weights))
    sums = path / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, sha256_of(file)))


def test_a_hopeless_run_ends_with_its_own_exit_code(train_run: TrainRun) -> None:
    def always(model: Model, inputs_BT: Tensor) -> None:
        with torch.no_grad():
            model.output.weight[0, 0] = float("nan")

    good = train_run(*COMMON, "train.max_steps=8").run
    before = last_tensors(good)
    with spoiled(always), pytest.raises(UserError) as caught:
        train_run(*COMMON, "train.max_rollbacks=2")
    assert caught.value.exit_code == EXIT_DIVERGED
    message = str(caught.value)
    assert "diverged at step 5" in message  # the checkpoint of step 8 was under suspicion
    assert "after 2 rollbacks" in message
    assert "--set train.learning_rate=0.00075 --set train.max_rollbacks=5" in message
    assert len(rollbacks_of(good)) == 2
    after = last_tensors(good)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert train_run(*COMMON, "train.max_steps=10", "train.max_rollbacks=9").steps == 10
    assert before.keys() == after.keys()


def test_without_rollbacks_the_first_non_finite_step_ends_the_run(train_run: TrainRun) -> None:
    with spoiled(Poison(6)), pytest.raises(UserError, match="diverged at step 6") as caught:
        train_run(*COMMON, "train.max_rollbacks=0")
    assert caught.value.exit_code == EXIT_DIVERGED


def test_a_made_to_diverge_run_ends_within_noise_of_the_healthy_one(train_run: TrainRun) -> None:
    """The noise is what another seed changes; six weights are ruined by a batch on the way."""
    longer = ("train.max_steps=120", "train.checkpoint_interval=20", "train.eval_interval=60")
    rate = "train.learning_rate=3e-3"
    healthy = [
        train_run(*longer, rate, f"train.seed={seed}", runs=f"seed{seed}").val_loss
        for seed in (1337, 1, 2, 3)
    ]
    with spoiled(Poison(71)):
        recovered = train_run(*longer, rate)
    assert len(rollbacks_of(recovered.run)) == 1
    assert recovered.val_loss is not None
    losses = [loss for loss in healthy if loss is not None]
    spread = max(losses) - min(losses)
    assert recovered.val_loss < max(losses) + spread


def test_a_spike_is_written_down_and_on_request_rollbacks_of(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("train.max_steps=70", "train.checkpoint_interval=10", "train.eval_interval=70")
    jump = Poison(63, value=300.0)
    with spoiled(jump):
        run = train_run(*steps, runs="logged").run
    spikes = [row["step"] for row in rows_of(run) if row.get("spike")]
    assert spikes[0] == 63
    assert "loss spike   step 63: loss " in capsys.readouterr().err
    assert not (run / "rollbacks.json").exists()
    with spoiled(Poison(63, value=300.0)):
        run = train_run(*steps, "train.on_spike=rollback").run
    assert [(item["step"], item["back_to"]) for item in rollbacks_of(run)] == [(63, 60)]
    assert not any(row.get("spike") for row in rows_of(run))
    found = json.loads((run / "post-mortem" / "step-00000063.json").read_text(encoding="utf-8"))
    assert found["diagnosis"]["kind"] == "finite"
    assert found["reason"].startswith("loss spike of ")


@given(st.integers(0, 10_000), st.floats(0.0, 0.2))
def test_the_noise_of_a_healthy_run_is_no_spike(seed: int, noise: float) -> None:
    draw = random.Random(seed)
    losses = [3.0 - 0.005 * i + draw.gauss(0.0, noise) for i in range(SPIKE_WINDOW + 20)]
    for i in range(SPIKE_WINDOW, len(losses)):
        ahead = losses[i] - sorted(losses[i - SPIKE_WINDOW : i])[SPIKE_WINDOW // 2]
        assert not is_spike(losses[i], losses[i - SPIKE_WINDOW : i]) or ahead > 4 * noise


def test_a_spike_is_what_the_rule_says() -> None:
    calm = [2.0, 2.1] * (SPIKE_WINDOW // 2)  # median 2.05, deviation 0.05 * 1.4826
    assert not is_spike(2.05 + SPIKE_NATS, calm)
    assert not is_spike(2.05 + 8 * 1.4826 * 0.05 - 1e-6, calm)
    assert is_spike(2.05 + 8 * 1.4826 * 0.05 + 1e-6, calm)
    assert not is_spike(100.0, calm[1:]), "too few steps to compare with"
    assert is_spike(float("inf"), calm)
