"""Tokens are selected by how far their loss exceeds that of a reference run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.training_runs import TrainRun, assert_same_training, column, last_tensors
from torch import Tensor

from ys_llm.config.schema import ModelConfig
from ys_llm.config.sources import load_config
from ys_llm.data.batches import IGNORE_INDEX, Batch
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten
from ys_llm.training import selection
from ys_llm.training.selection import select, target_nats

VOCAB_SIZE, T = 20, 12
SMALL = {"d_model": 8, "n_layers": 1, "d_mlp": 8}


def model_of(*layers: str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = Model(ModelConfig(layers=layers, **SMALL, dropout=0.5), vocab_size=VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model.double().train()


def batch_of() -> Batch:
    generator = torch.Generator().manual_seed(3)
    tokens_BT = torch.randint(VOCAB_SIZE, (3, T + 1), generator=generator)
    targets_BT = tokens_BT[:, 1:].clone()
    targets_BT[0, -2:] = IGNORE_INDEX
    starts_BT = torch.zeros(3, T, dtype=torch.bool)
    starts_BT[1, 4] = True
    return Batch(tokens_BT[:, :-1], targets_BT, starts_BT, carry=False)


def literal_nats(model: Model, batch: Batch) -> Tensor:
    model.eval()
    log_p = F.log_softmax(model(batch.inputs_BT, None, batch.starts_BT)[0], -1)
    model.train()
    nats = -log_p.gather(2, batch.targets_BT.clamp_min(0)[..., None])[..., 0]
    return nats.masked_fill(batch.targets_BT == IGNORE_INDEX, 0).detach()


@pytest.mark.parametrize("rows_at_once", [1, 3])
def test_losses_and_state_are_those_of_one_pass_without_dropout(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_LOGITS", rows_at_once * T * VOCAB_SIZE)
    model, batch = model_of("softmax_attention"), batch_of()
    nats_BT, after = target_nats(model, batch, None, batch.starts_BT)
    torch.testing.assert_close(nats_BT, literal_nats(model, batch))
    assert model.training
    expected = flatten(model(batch.inputs_BT, None, batch.starts_BT)[1])
    assert {name: x.shape for name, x in flatten(after).items()} == {
        name: x.shape for name, x in expected.items()
    }


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_the_tokens_with_the_highest_excess_are_kept(fraction: float) -> None:
    model, reference, batch = model_of("min_gru"), model_of("min_gru", seed=1), batch_of()
    chosen, _, facts = select(
        model, reference, batch, (None, None), batch.starts_BT, fraction=fraction
    )
    counts_BT = batch.targets_BT != IGNORE_INDEX
    excess_BT = literal_nats(model, batch) - literal_nats(reference, batch)
    kept_BT = chosen.targets_BT != IGNORE_INDEX
    assert int(kept_BT.sum()) == round(fraction * int(counts_BT.sum()))
    assert not (kept_BT & ~counts_BT).any()
    assert torch.equal(chosen.targets_BT[kept_BT], batch.targets_BT[kept_BT])
    if fraction < 1:
        assert excess_BT[kept_BT].min() >= excess_BT[counts_BT & ~kept_BT].max()
    assert facts.share == pytest.approx(fraction, abs=0.02)
    assert facts.excess == pytest.approx(float(excess_BT[kept_BT].mean()))
    assert facts.loss_of_all == pytest.approx(float(literal_nats(model, batch)[counts_BT].mean()))


def test_a_batch_without_targets_selects_none() -> None:
    batch = batch_of()
    batch.targets_BT.fill_(IGNORE_INDEX)
    arguments = (model_of("min_gru"), model_of("min_gru", seed=1), batch, (None, None), None)
    chosen, _, facts = select(*arguments, fraction=0.5)
    assert torch.equal(chosen.targets_BT, batch.targets_BT)
    assert facts == (0.0, 0.0, 0.0)


def test_a_run_with_a_reference_resumes_as_if_it_had_not_stopped(train_run: TrainRun) -> None:
    train_run("run=reference", "model.layers=[min_gru]", "train.max_steps=4")
    common = (
        *("train.reference_run=reference", "train.select_fraction=0.25"),
        *("data.batching=contiguous", "model.dropout=0.2", "train.grad_accum_steps=2"),
    )
    whole = train_run(*common, "run=whole", "train.max_steps=7")
    train_run(*common, "train.max_steps=4")
    parts = train_run(*common, "train.max_steps=7")
    assert_same_training(parts.run, whole.run)
    assert any("reference_carried" in name for name in last_tensors(parts.run))
    assert column(parts.run, "selected_fraction") == [0.25] * 7
    assert column(parts.run, "excess_loss") == column(whole.run, "excess_loss")
    assert all(loss > 0 for loss in column(parts.run, "loss_of_all_tokens"))


def test_a_reference_with_another_tokenizer_is_refused(train_run: TrainRun) -> None:
    train_run("run=reference", "model.layers=[min_gru]", "train.max_steps=1")
    train_run("tokenizer.kind=chars", "train.max_steps=1")
    with pytest.raises(UserError, match="is not that of") as caught:
        train_run(
            "tokenizer.kind=chars",
            *("train.reference_run=reference", "train.select_fraction=0.5", "train.max_steps=2"),
        )
    assert "ys train --run reference --init-from mine" in caught.value.fix


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ("train.select_fraction=0.5", "Type --set train.reference_run=RUN"),
        ("train.reference_run=other", "Type --set train.select_fraction=0.6"),
    ],
)
def test_one_setting_without_the_other_is_refused(setting: str, fix: str) -> None:
    with pytest.raises(UserError, match=fix):
        load_config(None, overrides=[setting])
