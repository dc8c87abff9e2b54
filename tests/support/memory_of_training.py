"""Predicts the peak memory of a training, then trains: `python memory_of_training.py CONFIG RUNS`.

Prints {"predicted", "measured"} and the parts of the prediction as JSON, in bytes. A process of its
own, because a peak is one of a process. Measured is the whole training with its evaluations and
checkpoints; before it, what was freed goes back, and the peak is set to what is left.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.data.readers import read_documents
from ys_llm.data.split import split_documents
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.model.language_model import Model
from ys_llm.training.loop import train
from ys_llm.training.memory import Memory, Predictor, give_back_freed_memory, peak_bytes


def predicted(config: Config) -> Memory:
    split = split_documents(
        read_documents(Path(config.data.path)), validation_fraction=config.data.validation_fraction
    )
    tokenizer = train_tokenizer(
        [document.text for document in split.training],
        kind=config.tokenizer.kind,
        vocab_size=config.tokenizer.vocab_size,
    )
    n_tokens = sum(len(tokenizer.encode(document.text)) + 1 for document in split.validation)
    model = Model(config.model, vocab_size=tokenizer.vocab_size)
    dtype = config.train.dtype
    return Predictor(config, model, dtype=dtype, validation_tokens=n_tokens).predict()


def main() -> None:
    resolved = load_config(Path(sys.argv[1]))
    torch.set_num_threads(resolved.config.train.threads)
    torch.set_flush_denormal(True)
    memory = predicted(resolved.config)
    give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    train(resolved, runs_dir=Path(sys.argv[2]))
    print(json.dumps({"predicted": memory.training, "measured": peak_bytes(), **memory.parts}))


if __name__ == "__main__":
    main()
