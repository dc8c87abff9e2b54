"""Figures that a reader compares are the ones the model's own log-probabilities give."""

from __future__ import annotations

import gzip
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ys_llm.config.schema import Config, ModelConfig, TrainConfig
from ys_llm.data.records import Document
from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation import bits_per_byte as evaluate_module
from ys_llm.evaluation.bits_per_byte import (
    baselines,
    cached_baselines,
    evaluate_paths,
    evaluate_tokens,
    loss_by_position,
    positions_of_paths,
)
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

TEXTS = [f"Story {i}: École, and the cat sat {'very ' * i}still." for i in range(12)]
DOCUMENTS = [Document(text=text) for text in TEXTS] + [Document(text="4", prompt="2 + 2 =")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, kind="bytes", vocab_size=258)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    torch.manual_seed(1)
    config = ModelConfig(d_model=32, n_layers=2, d_mlp=64, options={"three_tier": {"d_state": 32}})
    return Model(config, vocab_size=tokenizer.vocab_size).eval()


@pytest.fixture
def data(tokenizer: Tokenizer, tmp_path: Path) -> TokenShard:
    return load_or_tokenize(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="validation")


def nats_of(model: Model, tokens: np.ndarray, *, reset: bool) -> torch.Tensor:
    """Loss of each token but the first, from one pass over all."""
    ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))[None]
    starts = ids[:, :-1] == 0 if reset else None
    with torch.inference_mode():
        logits, _ = model(ids[:, :-1], None, starts)
    logprobs = torch.log_softmax(logits[0].double(), -1)
    return -logprobs.gather(1, ids[0, 1:, None])[:, 0]


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


# Loss by position


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


# Baselines


def test_the_unigram_counts_training_bytes_and_adds_one() -> None:
    training = [Document(text="aab"), Document(text="b", prompt="a")]
    found = baselines(training, [Document(text="abc")])["unigram"]
    counts = {"a": 3, "b": 2, "c": 0}
    bits = [-math.log2((counts[letter] + 1) / (5 + 256)) for letter in "abc"]
    assert found == pytest.approx(sum(bits) / 3)


def test_gzip_and_xz_are_the_sizes_of_the_compressed_validation_text() -> None:
    validation = [
        Document(text="the cat sat on the mat " * 50),
        Document(text="é" * 20, prompt="x"),
    ]
    text = ("the cat sat on the mat " * 50 + "x" + "é" * 20).encode()
    found = baselines([Document(text="abc")], validation)
    assert found["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert found["xz"] == 8 * len(lzma.compress(text)) / len(text)


def test_an_empty_validation_split_is_the_users_error() -> None:
    with pytest.raises(UserError, match="holds no text"):
        baselines([Document(text="abc")], [])


def test_baselines_are_kept_for_what_the_documents_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, validation = [Document(text="aab"), Document(text="b")], [Document(text="abc")]
    found = cached_baselines(training, validation, cache_dir=tmp_path)
    assert found == baselines(training, validation)
    monkeypatch.setattr(evaluate_module, "baselines", lambda *_: {"made anew": 1.0})
    assert cached_baselines(training[::-1], validation, cache_dir=tmp_path) == found
    for other in ((training[:1], validation), (training, training), (validation, training)):
        assert cached_baselines(*other, cache_dir=tmp_path) == {"made anew": 1.0}


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"unigram": 1.0}', '{"unigram": 1.0, "gzip": NaN, "xz": 2.0}']
)
def test_damaged_baselines_are_made_again(tmp_path: Path, damage: str) -> None:
    documents = [Document(text="aab")]
    found = cached_baselines(documents, documents, cache_dir=tmp_path)
    (kept,) = tmp_path.glob("*/baselines.json")
    kept.write_text(damage, encoding="utf-8")
    assert cached_baselines(documents, documents, cache_dir=tmp_path) == found
    assert kept.read_text(encoding="utf-8") != damage


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


def test_positions_of_a_path_go_on_beyond_the_trained_length(model, tokenizer, tmp_path):
    text = " ".join(TEXTS)
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    config = Config(model=model.config, train=TrainConfig(seq_len=16))
    loaded = LoadedRun(tmp_path, config, model, tokenizer, step=3, has_records=False)
    rows = positions_of_paths(loaded, [tmp_path / "long.txt"])
    assert {path for path, _ in rows} == {str(tmp_path / "long.txt")}
    assert [row.first for _, row in rows] == [16 * k for k in range(len(rows))]
    assert len(rows) == 16
