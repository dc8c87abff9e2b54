"""A small model, documents, and their loss by one forward pass."""

from __future__ import annotations

import numpy as np
import torch

from ys_llm.config.schema import ModelConfig
from ys_llm.data.records import Document
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.model.language_model import Model

TEXTS = [f"Story {i}: École, and the cat sat {'very ' * i}still." for i in range(12)]
DOCUMENTS = [Document(text=text) for text in TEXTS] + [Document(text="4", prompt="2 + 2 =")]


def small_model(tokenizer: Tokenizer) -> Model:
    torch.manual_seed(1)
    config = ModelConfig(d_model=32, n_layers=2, d_mlp=64, options={"three_tier": {"d_state": 32}})
    return Model(config, vocab_size=tokenizer.vocab_size).eval()


def nats_of(model: Model, tokens: np.ndarray, *, reset: bool) -> torch.Tensor:
    """Loss of each token but the first, from one pass over all."""
    ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))[None]
    starts = ids[:, :-1] == 0 if reset else None
    with torch.inference_mode():
        logits, _ = model(ids[:, :-1], None, starts)
    logprobs = torch.log_softmax(logits[0].double(), -1)
    return -logprobs.gather(1, ids[0, 1:, None])[:, 0]
