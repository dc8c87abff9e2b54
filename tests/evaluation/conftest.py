"""What several evaluations are measured on."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.evaluated import DOCUMENTS, TEXTS, small_model

from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.model.language_model import Model


@pytest.fixture(scope="package")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, kind="bytes", vocab_size=258)


@pytest.fixture(scope="package")
def model(tokenizer: Tokenizer) -> Model:
    return small_model(tokenizer)


@pytest.fixture
def data(tokenizer: Tokenizer, tmp_path: Path) -> TokenShard:
    return load_or_tokenize(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="validation")
