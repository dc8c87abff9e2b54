"""What fine-tuning gives: replies by kind before and after, forgetting, and the share of methods.

    python benchmarks/replies.py conversations full lora state ...

prints a table for each run (of `ys sft` on that folder): greedy replies to the conversations that
it has held out, exact matches by the kinds that files are named after, how many ended and spoke
for nobody else, and how many obey the style and the name that a system text sets.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from ys_llm.data.chat import Conversation
from ys_llm.data.conversations import read_examples
from ys_llm.data.split import SplitRecord
from ys_llm.evaluation.replies import replies_by_kind, replies_to, shares
from ys_llm.gendata.judges.conversations import obeys
from ys_llm.runs.folder import SPLIT, find_run
from ys_llm.runs.history import read_metrics
from ys_llm.runs.model_files import LoadedRun, load_run
from ys_llm.training.tuning import load_source


def held_out(loaded: LoadedRun, path: Path, most: int) -> Iterator[tuple[str, Conversation]]:
    """Conversations that the run has held out, each with the kind that its file is named after."""
    examples = read_examples(path)
    source = load_source(loaded.config, examples, SplitRecord.load(loaded.path / SPLIT))
    for document in source.split.validation[:most]:
        found = source.found[document.content_hash]
        if isinstance(found, Conversation):
            file = Path(found.source.rpartition(":")[0])
            yield file.stem.rpartition("-")[0] or file.stem, found


def obedience(
    loaded: LoadedRun, conversations: Iterable[tuple[str, Conversation]]
) -> dict[str, list[bool]]:
    """Whether the replies under a system text have its style and its name."""
    found: dict[str, list[bool]] = defaultdict(list)
    for _, conversation in conversations:
        first, *_ = turns = conversation.turns
        if first.role != "system":
            continue
        asked = [before.text for before, turn in pairwise(turns) if turn.role == "assistant"]
        for question, reply in zip(asked, replies_to(loaded, conversation), strict=True):
            for what, holds in obeys(first.text, question, reply.text).items():
                found[what].append(holds)
    return dict(found)


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
        obeyed = obedience(loaded, held_out(loaded, arguments.data, arguments.most))
        for what, holds in obeyed.items():
            print(f"obeys the {what:14} {len(holds):8,} {sum(holds) / len(holds):7.1%}")


if __name__ == "__main__":
    main()
