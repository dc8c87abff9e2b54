"""The text of a training on every machine: the same shards, made once a machine.

The processes of the first machine map the shards of the first process into memory. On another
machine one process makes them from the text at the same path; a text that differs is refused.
"""

from pathlib import Path
from typing import Any

from ys_llm.config.schema import Config
from ys_llm.data.shards import TokenShard, load_or_tokenize, open_shard
from ys_llm.data.split import SplitRecord
from ys_llm.data.split_cache import load_split
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.system.files import make_folder
from ys_llm.training.ranks.group import Ranks
from ys_llm.training.trainer import TrainingData

_SIDES = ("training", "validation")


def described_text(data: TrainingData, record: SplitRecord) -> dict[str, Any]:
    """What the others need to find or make the same shards."""
    shards = {"training": data.training, "validation": data.validation}
    folders = {name: str(shard.folder.absolute()) for name, shard in shards.items() if shard}
    return {"folders": folders, "split": record.to_json(), "has_records": data.has_records}


def opened_text(
    ranks: Ranks, config: Config, tokenizer: Tokenizer, text: dict[str, Any], cache: Path
) -> TrainingData:
    """The same text in another process; `cache` is where another machine keeps its shards."""
    place, folders = ranks.place, {name: Path(path) for name, path in text["folders"].items()}
    assert place is not None, "a process alone makes its own"
    if place.machine:
        if place.local_rank == 0:
            _make_shards(config, tokenizer, text, cache)
        folders = {name: cache / path.name for name, path in folders.items()}
    ranks.wait()
    shards: dict[str, TokenShard] = {}
    for name, folder in folders.items():
        shards[name] = open_shard(folder)
    return TrainingData(
        shards["training"],
        shards.get("validation"),
        has_records=text["has_records"],
        sample_prompt="",
        baselines={},
    )


def _make_shards(config: Config, tokenizer: Tokenizer, text: dict[str, Any], cache: Path) -> None:
    make_folder(cache)
    split = load_split(
        config.data, record=SplitRecord.from_json(text["split"]), scratch=cache, cache_dir=cache
    )
    for name, documents in zip(_SIDES, (split.training, split.validation), strict=True):
        expected = text["folders"].get(name)
        if not documents and expected is None:
            continue
        shard = load_or_tokenize(documents, tokenizer, cache_dir=cache, label=name)
        if expected is None or shard.folder.name != Path(expected).name:
            raise UserError(
                f"{config.data.path} holds other {name} text on this machine than on that of "
                f"process 0 ({len(documents):,} documents here)",
                f"Copy the same files to {config.data.path} on every machine.",
            )
