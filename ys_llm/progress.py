"""What a training shows and writes down: header, bar or lines on stderr, and metrics.jsonl."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from ys_llm.files import write_atomically

LINES_EVERY = 50  # steps between lines where stderr is no terminal


class Progress:
    """A tqdm bar with loss, speed and ETA on a terminal; plain lines elsewhere."""

    def __init__(self, *, begin: int, total: int) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.total = total
        self.bar = tqdm(
            initial=begin,
            total=total,
            unit="step",
            dynamic_ncols=True,
            disable=not self.is_terminal,
            file=sys.stderr,
        )

    def step(self, row: Mapping[str, Any], *, speed: float, seconds_left: float) -> None:
        """Show one finished step."""
        figures = f"loss {row['loss']:.3f}  {speed:,.0f} tokens/s"
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update()
        if not self.is_terminal and (row["step"] % LINES_EVERY == 0 or row["step"] == self.total):
            left = f"{seconds_left / 60:.1f} min left"
            self.say(f"step {row['step']:>6,}/{self.total:,}  {figures}  {left}")

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


class Metrics:
    """metrics.jsonl: one row a step, names and units stable.

    step, tokens (seen so far), loss (nats per token), learning_rate, grad_norm (before clipping),
    step_seconds, seconds (of training so far); rows of evaluations add val_loss and
    val_bits_per_byte.
    """

    def __init__(self, path: Path, *, keep_to_step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= keep_to_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file: TextIO = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it reaches the file system at once."""
        self.file.write(json.dumps(dict(row)) + "\n")
        self.file.flush()

    def close(self) -> None:
        """No more rows."""
        self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut off by a crash is left out."""
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def say(text: str) -> None:
    """One line of the header, on stderr."""
    print(text, file=sys.stderr, flush=True)
