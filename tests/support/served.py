"""`ys serve` in a thread of the tests, on a port of its own, with small models."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from ys_llm.config.sources import load_config
from ys_llm.inference.engine import Engine
from ys_llm.runs.model_files import LoadedRun, load_run, tensor_bytes, weights
from ys_llm.serving.server import Serving, listen, server_for
from ys_llm.training.loop import train

START_SECONDS = 60.0
RECORDS = "".join(
    f"Who sat on the mat in story {i}?<start>The {pet} sat there, and then it slept.<end>\n\n"
    for i, pet in enumerate(["cat", "dog", "fox"] * 10)
)
SETTINGS = (
    "data.validation_fraction=0.2",
    "tokenizer.kind=bpe",
    "tokenizer.vocab_size=300",
    "model.d_model=32",
    "model.n_layers=2",
    "model.d_mlp=32",
    "model.options.three_tier.d_state=32",
    "model.copy.window=64",
    "model.copy.width=8",
    "train.max_steps=3",
    "train.seq_len=32",
    "train.batch_size=2",
    "train.warmup_steps=1",
    "train.eval_tokens=100",
    "train.sample_interval=0",
    "train.device=cpu",
    "train.dtype=fp32",
    "train.backend={three_tier: windowed}",
    "train.threads=1",
    "generate.max_tokens=24",
)


def train_small(folder: Path, *changes: str) -> Path:
    """A run whose weights are moved away from those of training, so that its texts differ."""
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "records.txt").write_text(RECORDS)
    overrides = [*SETTINGS, f"data.path={corpus}", *changes]
    run = train(load_config(None, overrides=overrides), runs_dir=folder / "runs").run
    loaded = load_run(run)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    (run / "model.safetensors").write_bytes(tensor_bytes(weights(loaded.model)))
    return run


@dataclass
class Served:
    """A server that runs, and the models that it serves."""

    url: str
    runs: dict[str, Path]

    def client(self, **more: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=START_SECONDS, **more)  # type: ignore[arg-type]

    def engine(self, name: str) -> Engine:
        """The same model without a server."""
        return Engine(self.loaded(name))

    def loaded(self, name: str) -> LoadedRun:
        return load_run(self.runs[name])


@contextmanager
def served(serving: Serving) -> Iterator[Served]:
    with listen("127.0.0.1", 0) as listener:
        server = server_for(serving)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        ends = time.monotonic() + START_SECONDS
        while not server.started:
            assert thread.is_alive() and time.monotonic() < ends, "the server did not start"
            time.sleep(0.01)
        port = listener.getsockname()[1]
        try:
            yield Served(f"http://127.0.0.1:{port}", dict(serving.runs))
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)
            assert not thread.is_alive()
