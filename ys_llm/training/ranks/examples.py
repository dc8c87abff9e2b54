"""What a run that is fine-tuned has besides others, in every process: the first one sends it.

Neither the base nor the examples are needed on another machine.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ys_llm.data.shards import TokenShard, open_shard
from ys_llm.runs.adapters import Base
from ys_llm.training.ranks.group import Ranks
from ys_llm.training.trainer import Run, TrainingData, Tuning

_SHARDS = ("training", "validation", "replay")


def described_tuning(run: Run) -> dict[str, Any] | None:
    """What the others must know to build the same run, besides the tokens; None for other runs."""
    if run.tuning is None:
        return None
    return {
        "base": asdict(run.tuning.base),
        "new_tokens": run.tuning.new_tokens,
        "has_records": run.data.has_records,
        "folders": {name: _folder(shard) for name, shard in _shards_of(run).items()},
    }


def send_examples(run: Run) -> None:
    """Give the others the tokens that they read."""
    if run.tuning is not None:
        for shard in _shards_of(run).values():
            _share(run.ranks, shard, _folder(shard))


def received_examples(ranks: Ranks, told: dict[str, Any]) -> tuple[TrainingData, Tuning]:
    """The text of a run that is fine-tuned, in a process that is not the first."""
    shards = {name: _share(ranks, None, folder) for name, folder in told["folders"].items()}
    training = shards["training"]
    assert training is not None, "a run that learns from nothing is refused"
    data = TrainingData(
        training,
        shards["validation"],
        has_records=told["has_records"],
        sample_prompt="",
        baselines={},
    )
    tuning = Tuning(Base(**told["base"]), shards["replay"], new_tokens=told["new_tokens"])
    return data, tuning


def _shards_of(run: Run) -> dict[str, TokenShard | None]:
    assert run.tuning is not None
    shards = (run.data.training, run.data.validation, run.tuning.replay)
    return dict(zip(_SHARDS, shards, strict=True))


def _folder(shard: TokenShard | None) -> str | None:
    """Where the other processes of a machine find it: nowhere where it is in memory, or none."""
    if shard is None:
        return None
    return str(shard.folder.absolute()) if isinstance(shard.tokens, np.memmap) else ""


def _share(ranks: Ranks, shard: TokenShard | None, folder: str | None) -> TokenShard | None:
    """The shard of the first process: those of its machine map it, the others are sent it."""
    if folder is None:
        return None
    if not folder or ranks.local_size < ranks.size:
        received = ranks.share_tensors({} if shard is None else _tensors_of(shard))
        if shard is None:
            shard = _shard_of(received)
    if shard is None or (folder and _is_with_first(ranks)):
        shard = open_shard(Path(folder))
    return shard


def _is_with_first(ranks: Ranks) -> bool:
    return ranks.place is not None and ranks.place.machine == 0


def _tensors_of(shard: TokenShard) -> dict[str, Tensor]:
    arrays = {
        "tokens": shard.tokens,
        "offsets": shard.document_offsets,
        "bytes": shard.document_bytes,
        "counts": shard.counts,
    }
    return {name: torch.from_numpy(np.array(a)) for name, a in arrays.items() if a is not None}


def _shard_of(tensors: dict[str, Tensor]) -> TokenShard:
    found = {name: tensor.numpy() for name, tensor in tensors.items()}
    return TokenShard(found["tokens"], found["offsets"], found["bytes"], found.get("counts"))
