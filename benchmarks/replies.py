"""What fine-tuning gives: replies by kind before and after, forgetting, and the share of methods.

python -m benchmarks.replies conversations before full lora ...     judges runs of `ys sft`
python -m benchmarks.replies --table                                prints what was found

The first writes benchmarks/replies.json: greedy replies to the conversations that a run has held
out, exact matches by the kinds that files are named after, how many ended and spoke for nobody
else, how many obey the style and the name that a system text sets, and the bits per byte of the
base's own text. `before` is a run of one step with a rate of next to nothing: the base, with tokens
for the roles.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT
from ys_llm.data.chat import Conversation
from ys_llm.data.conversations import read_examples
from ys_llm.data.split import SplitRecord
from ys_llm.evaluation.compare import code_version, hardware
from ys_llm.evaluation.replies import EVERYTHING, Reply, replies_to, shares
from ys_llm.gendata.judges.conversations import obeys
from ys_llm.model.costs import parameter_count
from ys_llm.runs.adapters import read_adapter
from ys_llm.runs.folder import ADAPTER, SPLIT, find_run
from ys_llm.runs.history import read_metrics
from ys_llm.runs.model_files import LoadedRun, load_run
from ys_llm.system.files import write_atomically
from ys_llm.system.machine import cpu_class
from ys_llm.training.tuning import load_source

RESULTS = ROOT / "benchmarks/replies.json"
BEFORE, FULL = "before", "full"  # the rows that the others are compared with
Row = Mapping[str, Any]


def held_out(loaded: LoadedRun, path: Path, most: int) -> Iterator[tuple[str, Conversation]]:
    """Conversations that the run has held out, each with the kind that its file is named after."""
    examples = read_examples(path)
    source = load_source(loaded.config, examples, SplitRecord.load(loaded.path / SPLIT))
    for document in source.split.validation[:most]:
        found = source.found[document.content_hash]
        if isinstance(found, Conversation):
            file = Path(found.source.rpartition(":")[0])
            yield file.stem.rpartition("-")[0] or file.stem, found


def judged(loaded: LoadedRun, path: Path, most: int) -> dict[str, Any]:
    """The row of a run."""
    by_kind: dict[str, list[Reply]] = defaultdict(list)
    obeyed: dict[str, list[bool]] = defaultdict(list)
    for kind, conversation in held_out(loaded, path, most):
        replies = replies_to(loaded, conversation)
        by_kind[kind] += replies
        for what, holds in obedience(conversation, replies):
            obeyed[what].append(holds)
    rows = [row for row in read_metrics(loaded.path / "metrics.jsonl") if "val_loss" in row]
    best = min(rows, key=lambda row: float(row["val_bits_per_byte"]))
    return {
        "name": loaded.config.run,
        "sft": {"method": loaded.config.sft.method, "replay": loaded.config.sft.replay},
        "rate": loaded.config.train.learning_rate,
        "steps": loaded.config.train.max_steps,
        "trained": trained(loaded),
        "base_bits_per_byte": best.get("base_bits_per_byte"),
        "replies": {kind: asdict(share) for kind, share in sorted(shares(by_kind).items())},
        "obeyed": {what: [len(all_), sum(all_) / len(all_)] for what, all_ in obeyed.items()},
    }


def obedience(conversation: Conversation, replies: Sequence[Reply]) -> Iterator[tuple[str, bool]]:
    """Whether each reply under a system text has its style and its name."""
    first, *_ = turns = conversation.turns
    if first.role != "system":
        return
    asked = [before.text for before, turn in pairwise(turns) if turn.role == "assistant"]
    for question, reply in zip(asked, replies, strict=True):
        yield from obeys(first.text, question, reply.text).items()


def trained(loaded: LoadedRun) -> int:
    """How many numbers the run has learned."""
    if loaded.model.initial_state is not None:
        return sum(value.numel() for value in loaded.model.initial_state.values)
    if not (loaded.path / ADAPTER).exists():
        return parameter_count(loaded.model)
    saved = read_adapter(loaded.path)
    factors = [factor for pair in saved.adapter.factors.values() for factor in pair]
    return sum(tensor.numel() for tensor in (*factors, *saved.rows.values()))


def markdown(found: Mapping[str, Any]) -> list[str]:
    """The tables: what each run gives, and exact replies by kind."""
    rows = {row["name"]: row for row in found["rows"]}
    lines = [
        "| | numbers learned | exact replies | of the gain of `full` | ended "
        "| spoke for nobody else | style obeyed | name obeyed | bits per byte of the base's text |",
        "|---|" + "---:|" * 8,
        *(_line(row, rows) for row in rows.values()),
        "",
        "| exact replies | " + " | ".join(f"`{name}`" for name in rows) + " |",
        "|---|" + "---:|" * len(rows),
    ]
    for kind in rows[FULL]["replies"]:
        cells = [f"{row['replies'][kind]['exact']:.0%}".replace("%", " %") for row in rows.values()]
        if kind != EVERYTHING:
            lines.append(f"| {kind.removeprefix('chat_')} | " + " | ".join(cells) + " |")
    return lines


def _line(row: Row, rows: Mapping[str, Row]) -> str:
    everything, before = row["replies"][EVERYTHING], rows[BEFORE]["replies"][EVERYTHING]["exact"]
    gain = everything["exact"] - before
    share = gain / (rows[FULL]["replies"][EVERYTHING]["exact"] - before)
    is_compared = row["name"] not in (BEFORE, FULL)
    cells = [
        f"`{row['name']}`",
        "–" if row["name"] == BEFORE else f"{row['trained']:,}",
        _percent(everything["exact"]),
        _percent(share) if is_compared else "–",
        _percent(everything["ended"]),
        _percent(everything["alone"]),
        *(_percent(row["obeyed"][what][1]) for what in ("style", "name")),
        _forgetting(row, rows[BEFORE]),
    ]
    return "| " + " | ".join(cells) + " |"


def _forgetting(row: Row, before: Row) -> str:
    bits, first = row["base_bits_per_byte"], before["base_bits_per_byte"]
    if bits is None:
        return "as before, without the state"
    return f"{bits:.4f}" if row is before else f"{bits:.4f} ({bits / first - 1:+.1%})"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def main() -> None:
    """Judge each run, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--most", type=int, default=300, help="conversations")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was found")
    arguments = parser.parse_args()
    known = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {"rows": []}
    for name in arguments.runs:
        row = judged(load_run(find_run(Path("runs"), name)), arguments.data, arguments.most)
        known = {
            "commit": code_version(),
            "hardware": hardware("cpu"),
            "class": cpu_class(),
            "torch": torch.__version__,
            "rows": [*(old for old in known["rows"] if old["name"] != row["name"]), row],
        }
        write_atomically(arguments.out, json.dumps(known, indent=1) + "\n", create_folder=False)
    if arguments.table:
        print("\n".join(markdown(known)))


if __name__ == "__main__":
    main()
