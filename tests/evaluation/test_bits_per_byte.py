"""Figures that a reader compares are the ones the model's own log-probabilities give."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.evaluated import DOCUMENTS, TEXTS, nats_of
from torch.utils.flop_counter import FlopCounterMode

from ys_llm.config.schema import Config, ModelConfig, TrainConfig
from ys_llm.data.shards import TokenShard
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.evaluation.bits_per_byte import evaluate_paths, evaluate_tokens
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun


@pytest.mark.parametrize("reset", [True, False])
def test_one_stream_gives_the_loss_of_one_pass(model: Model, data: TokenShard, reset: bool) -> None:
    result = evaluate_tokens(model, data, seq_len=32, batch_size=1, reset_at_document=reset)
    expected = nats_of(model, data.tokens, reset=reset)
    assert result.tokens == len(expected) == len(data.tokens) - 1
    assert result.bytes == sum(document.n_bytes for document in DOCUMENTS)
    assert result.loss == pytest.approx(float(expected.mean()), abs=1e-5)
    bits = float(expected.sum()) / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / result.bytes, abs=1e-5)


def test_rows_that_reach_back_to_a_document_start_change_nothing(
    model: Model, data: TokenShard
) -> None:
    longest = 100  # bytes of the longest document and more: the run-up holds its start
    single = evaluate_tokens(model, data, seq_len=longest, batch_size=1)
    several = evaluate_tokens(model, data, seq_len=longest, batch_size=5)
    assert several.tokens == single.tokens
    # Not equal to the last digit only where positions differ: the tiers' clocks run on.
    assert several.loss == pytest.approx(single.loss, rel=0.01)


def test_a_limit_evaluates_whole_documents_and_their_bytes(model: Model, data: TokenShard) -> None:
    result = evaluate_tokens(model, data, seq_len=16, batch_size=1, max_tokens=120)
    n = result.tokens
    assert 0 < n <= 120
    assert data.tokens[n] == 0
    assert n in data.document_offsets
    n_documents = int((data.document_offsets < n).sum())
    assert result.bytes == int(data.document_bytes[:n_documents].sum())
    expected = nats_of(model, data.tokens[: n + 1], reset=True)
    assert result.loss == pytest.approx(float(expected.mean()), abs=1e-5)


def test_a_model_in_training_is_evaluated_without_dropout_and_stays_in_training(
    tokenizer: Tokenizer, data: TokenShard
) -> None:
    config = ModelConfig(
        d_model=32, n_layers=1, d_mlp=0, dropout=0.5, options={"three_tier": {"d_state": 32}}
    )
    model = Model(config, vocab_size=tokenizer.vocab_size).train()
    results = {evaluate_tokens(model, data, seq_len=64).loss for _ in range(3)}
    assert len(results) == 1
    assert model.training


@pytest.mark.parametrize("limit", [0, 120])
def test_bf16_training_and_fp32_use_evaluate_to_the_same_figure(
    model: Model, data: TokenShard, limit: int
) -> None:
    expected = evaluate_tokens(model, data, seq_len=32, max_tokens=limit)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate_tokens(model, data, seq_len=32, max_tokens=limit) == expected


def test_an_evaluation_computes_no_gradients(model: Model, data: TokenShard) -> None:
    head = 2 * model.config.d_model * model.vocab_size

    def flops(with_grad: bool) -> int:
        tokens_BT = torch.from_numpy(data.tokens[:64].astype(np.int64))[None]
        with torch.set_grad_enabled(with_grad), FlopCounterMode(display=False) as counter:
            model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:])
        return int(counter.get_total_flops())

    # A training's forward pass also makes the gradients of the head: those of x and of W.
    assert flops(with_grad=True) - flops(with_grad=False) >= 2 * head * 63


def test_hooks_and_wrappers_of_the_head_take_effect(model: Model, data: TokenShard) -> None:
    plain = evaluate_tokens(model, data, seq_len=32)
    hook = model.output.register_forward_hook(lambda _, __, logits: 0 * logits)
    try:
        uniform = evaluate_tokens(model, data, seq_len=32)
    finally:
        hook.remove()
    assert uniform.loss == pytest.approx(math.log(model.vocab_size), abs=1e-5)
    assert plain.loss != uniform.loss


# Files and folders


def test_paths_are_evaluated_one_by_one_and_leave_nothing_behind(
    model: Model, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for name, text in [("one.txt", TEXTS[0]), ("folder/two.txt", TEXTS[1])]:
        (tmp_path / name).write_text(text, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    config = Config(model=model.config, train=TrainConfig(seq_len=32))
    loaded = LoadedRun(tmp_path, config, model, tokenizer, step=3, has_records=False)
    rows = evaluate_paths(loaded, [tmp_path / "one.txt", tmp_path / "folder"])
    assert sorted(tmp_path.rglob("*")) == before
    assert [row.documents for row in rows] == [1, 1]
    for row, text in zip(rows, TEXTS, strict=False):
        ids = [0, *tokenizer.encode(text), 0]
        expected = nats_of(model, np.array(ids), reset=True)
        assert row.result.bytes == len(text.encode())
        assert row.result.loss == pytest.approx(float(expected.mean()), abs=1e-5)
