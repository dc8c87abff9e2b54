"""Progress of `ys gen-data` on stderr: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from tqdm import tqdm

from ys_llm.gendata.generation.journal import JournalEntry

LINE_SECONDS = 10.0  # between lines if stderr is not a terminal


def format_counts(counts: Mapping[str, int]) -> str:
    """`truncated 4, duplicate 1`: the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


class ProgressBar:
    """Decided items, records per second, accepted, rejected by name, requests at once, time."""

    def __init__(self, *, total: int, done: int) -> None:
        self.total, self.done, self._done_before = total, done, done
        self.at_once = 1  # requests to the server
        self._accepted, self._rejected = 0, Counter[str]()
        self._began = self._line_time = time.monotonic()
        self._bar = tqdm(
            initial=done,
            total=total,
            unit="record",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )

    def update(self, entry: JournalEntry) -> None:
        """One more item has been decided."""
        self.done += 1
        self._accepted += entry.status == "accepted"
        self._rejected.update(rejection.name for rejection in entry.rejections)
        with suppress(OSError, ValueError):  # the terminal or the pipe may be closed
            self._bar.set_postfix_str(self._figures(), refresh=False)
            self._bar.update()
        if self._bar.disable and time.monotonic() - self._line_time >= LINE_SECONDS:
            self._line_time = time.monotonic()
            self.print(self._line())

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        with suppress(OSError, ValueError):
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Finish the bar, which stays on screen."""
        with suppress(OSError, ValueError):
            self._bar.close()

    def _figures(self) -> str:
        rejected = f", rejected: {format_counts(self._rejected)}" if self._rejected else ""
        at_once = f", {self.at_once} at once" if self.at_once > 1 else ""
        return f"{self._accepted:,} accepted{rejected}{at_once}"

    def _line(self) -> str:
        seconds = time.monotonic() - self._began
        rate = (self.done - self._done_before) / max(seconds, 1e-9)
        left = f"{(self.total - self.done) / rate / 60:.1f} min left"
        item = f"item {self.done:,}/{self.total:,}"
        return f"{item}  {rate:.2f} records/s  {left}  {self._figures()}"
