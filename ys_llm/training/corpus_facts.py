"""What is known about the text of a run: sizes for the report, and writers for the model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ys_llm.config.schema import Config
from ys_llm.data.provenance import provenance_of
from ys_llm.data.records import Document
from ys_llm.data.split import Split
from ys_llm.errors import UserError
from ys_llm.training.header import writers_text
from ys_llm.training.metrics import log_line
from ys_llm.training.trainer import TrainingData


def describe_corpus(config: Config, split: Split, data: TrainingData) -> dict[str, Any]:
    """Path, sizes of both sides, leak check and notes, for the report."""
    sides = {
        "training": (split.training, data.training),
        "held_out": (split.validation, data.validation),
    }
    sizes = {
        name: {
            "documents": len(documents),
            "bytes": shard.n_bytes if shard else 0,
            "tokens": shard.n_inputs if shard else 0,
        }
        for name, (documents, shard) in sides.items()
    }
    notes = {"path": config.data.path, "leak_check": split.leak_check, "notes": split.notes}
    return {**notes, **sizes}


def sources_of(config: Config, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """What made the training documents, for the model card; empty where no manifest says."""
    try:
        found = provenance_of(Path(config.data.path), documents)
    except (UserError, OSError) as error:  # it may belong to another program
        log_line(f"written by   unknown: {error}")
        return []
    if not found.counts:
        return []
    log_line(f"written by   {writers_text(found)}")
    by_kind = sorted(found.counts.items(), key=lambda pair: (pair[0].kind, -pair[1]))
    sources = [
        {
            "kind": source.kind,
            "recipe": source.digest,
            "model": source.model,
            "model_digest": source.model_digest,
            "records": records,
        }
        for source, records in by_kind
    ]
    unknown = {"kind": "", "recipe": "", "model": "", "model_digest": "", "records": found.unknown}
    return [*sources, *([unknown] if found.unknown else [])]
