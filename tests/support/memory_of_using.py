"""Reads a long prompt with a run's model: `python memory_of_using.py RUN`.

Prints {"predicted", "measured"} in bytes as JSON. The peak is measured first: a prediction brings
parts of torch with it that using a model does not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.generate import complete
from ys_llm.runs.checkpoint import load_run
from ys_llm.training.memory import Predictor, peak_bytes


def main() -> None:
    torch.set_num_threads(1)
    loaded = load_run(Path(sys.argv[1]))
    prompt = "a long prompt " * 145
    sampling = GenerateConfig(max_tokens=20, seed=1)
    pieces = complete(loaded.model, loaded.tokenizer, prompt, sampling=sampling, plain=True)
    assert "".join(pieces)
    measured = peak_bytes()
    predicted = Predictor(loaded.config, loaded.model, dtype="fp32").predict().inference
    print(json.dumps({"predicted": predicted, "measured": measured}))


if __name__ == "__main__":
    main()
