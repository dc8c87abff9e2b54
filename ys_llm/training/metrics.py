"""Output of training: header lines and a progress bar on stderr, and metrics.jsonl."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ys_llm.runs.history import read_metrics
from ys_llm.system.files import Journal, write_atomically

LINE_INTERVAL = 50  # steps between lines where stderr is not a terminal
_IS_SILENT: ContextVar[bool] = ContextVar("is_silent", default=False)


@contextmanager
def silenced(is_silent: bool = True) -> Iterator[None]:
    """Show no line of a training until the context ends: of several processes one speaks."""
    before = _IS_SILENT.set(is_silent)
    try:
        yield
    finally:
        _IS_SILENT.reset(before)


class _Stderr:
    """stderr that survives a closed terminal or pipe: training continues without a reader."""

    def write(self, text: str) -> None:
        """Write, if anybody reads."""
        with suppress(OSError, ValueError):
            if not _IS_SILENT.get():
                sys.stderr.write(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class Progress:
    """A tqdm bar with loss, speed and remaining time on a terminal; plain lines elsewhere."""

    def __init__(self, *, begin: int, total: int) -> None:
        self.stderr = _Stderr()
        self.is_terminal = sys.stderr.isatty() and not _IS_SILENT.get()
        self.total = total
        self.bar = tqdm(
            initial=begin,
            total=total,
            unit="step",
            dynamic_ncols=True,
            disable=not self.is_terminal,
            file=self.stderr,
        )

    def step(self, row: Mapping[str, Any], *, speed: float, seconds_left: float) -> None:
        """Show a finished step; `speed` is in tokens per second."""
        figures = f"loss {row['loss']:.3f}  {speed:,.0f} tokens/s"
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update()
        at_line = row["step"] % LINE_INTERVAL == 0 or row["step"] == self.total
        if not self.is_terminal and at_line:
            left = f"{seconds_left / 60:.1f} min left"
            self.log_line(f"step {row['step']:>6,}/{self.total:,}  {figures}  {left}")

    def log_line(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=self.stderr)
        self.stderr.flush()

    def close(self) -> None:
        """Finish the bar, which stays on screen."""
        self.bar.close()

    def move_to(self, step: int) -> None:
        """Continue from an earlier step."""
        self.bar.n = step
        self.bar.refresh()


class Metrics:
    """metrics.jsonl: one row per step, with stable names and units.

    step, tokens (seen so far), loss (nats per token), learning_rate, grad_norm (before clipping),
    step_seconds, seconds (of training so far); rows of evaluations add val_loss and
    val_bits_per_byte, and val_names_again_loss where names come again (see recall_curve.py); others
    `sample` (generated text) and `spike` (see recovery/non_finite.py).
    """

    def __init__(self, path: Path | None, *, keep_to_step: int) -> None:
        """Without a path nothing is written: of several processes one writes."""
        self.path = path
        self.journal: Journal | None = None
        self.truncate(keep_to_step)

    def truncate(self, keep_to_step: int) -> None:
        """Remove the rows after this step, from which training resumes."""
        self.close()
        if self.path is None:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= keep_to_step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.path, text, create_folder=False)
        self.journal = Journal(self.path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, flushed to the file system."""
        if self.path is not None:
            assert self.journal is not None, "written to after close"
            self.journal.write(json.dumps(dict(row)))

    def sync(self) -> None:
        """Make the rows survive a power cut, before a checkpoint that depends on them."""
        if self.path is not None:
            assert self.journal is not None, "synced after close"
            self.journal.sync()

    def close(self) -> None:
        """Close the file; no more rows can be written."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None


def log_line(text: str) -> None:
    """One line on stderr."""
    _Stderr().write(f"{text}\n")
    _Stderr().flush()
