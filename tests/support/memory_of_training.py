"""Trains, then prints the peak memory of its process in bytes: takes CONFIG and RUNS."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ys_llm.config.sources import load_config
from ys_llm.training.loop import train
from ys_llm.training.memory import keep_freed_memory
from ys_llm.training.memory_probe import peak_bytes


def main() -> None:
    keep_freed_memory()  # as `ys train` does
    train(load_config(Path(sys.argv[1])), runs_dir=Path(sys.argv[2]))
    print(peak_bytes(torch.device("cpu")))


if __name__ == "__main__":
    main()
