"""Loss by position is the loss at these positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.evaluated import TEXTS, nats_of

from ys_llm.config.schema import Config, TrainConfig
from ys_llm.data.shards import TokenShard
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.by_position import loss_by_position, positions_of_paths
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun


def test_loss_by_position_is_the_loss_at_these_positions(model: Model, data: TokenShard) -> None:
    rows = loss_by_position(
        model, data, seq_len=16, multiple=4, max_tokens=64, reset_at_document=False
    )
    expected = nats_of(model, data.tokens[:65], reset=False)
    assert [(row.first, row.last) for row in rows] == [(0, 15), (16, 31), (32, 47), (48, 63)]
    for row in rows:
        part = expected[row.first : row.last + 1]
        assert row.tokens == len(part)
        assert row.loss == pytest.approx(float(part.mean()), abs=1e-5)


def test_loss_by_position_averages_streams_spread_over_all_data(
    model: Model, data: TokenShard
) -> None:
    rows = loss_by_position(
        model, data, seq_len=16, multiple=2, max_tokens=40 * 32, reset_at_document=False
    )
    firsts = np.linspace(0, data.n_inputs - 32, 40).astype(int)
    nats = torch.stack([nats_of(model, data.tokens[i : i + 33], reset=False) for i in firsts])
    assert [row.tokens for row in rows] == [640, 640]
    assert rows[0].loss == pytest.approx(float(nats[:, :16].mean()), abs=1e-5)
    assert rows[1].loss == pytest.approx(float(nats[:, 16:].mean()), abs=1e-5)


def test_short_data_gives_fewer_rows_and_too_short_data_an_error(
    model: Model, data: TokenShard
) -> None:
    seq_len = data.n_inputs // 3
    assert len(loss_by_position(model, data, seq_len=seq_len)) == 3
    with pytest.raises(UserError, match=f"has {data.n_inputs} tokens"):
        loss_by_position(model, data, seq_len=data.n_inputs + 1)


def test_positions_of_a_path_go_on_beyond_the_trained_length(
    model: Model, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = " ".join(TEXTS)
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    config = Config(model=model.config, train=TrainConfig(seq_len=16))
    loaded = LoadedRun(tmp_path, config, model, tokenizer, step=3, has_records=False)
    rows = positions_of_paths(loaded, [tmp_path / "long.txt"])
    assert {path for path, _ in rows} == {str(tmp_path / "long.txt")}
    assert [row.first for _, row in rows] == [16 * k for k in range(len(rows))]
    assert len(rows) == 16
