"""What fine-tuning gives: replies by kind before and after, forgetting, and the share of methods.

    python benchmarks/replies.py conversations full lora state ...

prints a table for each run (of `ys sft` on that folder): greedy replies to the conversations that
it has held out, exact matches by the kinds that files are named after, and how many ended and spoke
for nobody else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from ys_llm.data.chat import Conversation
from ys_llm.data.conversations import read_examples
from ys_llm.data.split import SplitRecord
from ys_llm.evaluation.replies import replies_by_kind, shares
from ys_llm.runs.folder import SPLIT, find_run
from ys_llm.runs.history import read_metrics
from ys_llm.runs.model_files import LoadedRun, load_run
from ys_llm.training.tuning import load_source


def held_out(loaded: LoadedRun, path: Path, most: int) -> Iterator[tuple[str, Conversation]]:
    """Conversations that the run has held out, each with the kind that its file is named after."""
    examples = read_examples(path).found
    source = load_source(loaded.config, examples, SplitRecord.load(loaded.path / SPLIT))
    for document in source.split.validation[:most]:
        found = source.found[document.content_hash]
        if isinstance(found, Conversation):
            file = Path(found.source.rpartition(":")[0])
            yield file.stem.rpartition("-")[0] or file.stem, found


def main() -> None:
    """Measure each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--most", type=int, default=300, help="conversations")
    arguments = parser.parse_args()
    for name in arguments.runs:
        path = find_run(Path("runs"), name)
        loaded = load_run(path)
        found = shares(replies_by_kind(loaded, held_out(loaded, arguments.data, arguments.most)))
        rows = [row for row in read_metrics(path / "metrics.jsonl") if "val_loss" in row]
        last = min(rows, key=lambda row: row["val_bits_per_byte"]) if rows else {}
        print(f"\n{name}: {json.dumps({k: last[k] for k in last if 'bits' in k or 'loss' in k})}")
        print(f"{'kind':24} {'replies':>8} {'exact':>7} {'ended':>7} {'alone':>7}")
        for kind, share in found.items():
            row = f"{share.exact:7.1%} {share.ended:7.1%} {share.alone:7.1%}"
            print(f"{kind or '-':24} {share.replies:8,} {row}")


if __name__ == "__main__":
    main()
