"""What a run of `ys gen-data` shows on stderr: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from tqdm import tqdm

from ys_llm.gendata.generation.journal import Entry

LINE_SECONDS = 10.0  # between lines where stderr is no terminal


def counted(counts: Mapping[str, int]) -> str:
    """`truncated 4, duplicate 1`: the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


class ProgressBar:
    """Items decided, records per second, accepted, rejected by name, time left."""

    def __init__(self, *, total: int, done: int) -> None:
        self.total, self.done, self._done_before = total, done, done
        self._accepted, self._rejected = 0, Counter[str]()
        self._began = self._said = time.monotonic()
        self._bar = tqdm(
            initial=done,
            total=total,
            unit="record",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )

    def show(self, entry: Entry) -> None:
        """One more item has been decided."""
        self.done += 1
        self._accepted += entry.status == "accepted"
        self._rejected.update(rejection.name for rejection in entry.rejections)
        with suppress(OSError, ValueError):  # the terminal, or who read the pipe, may have left
            self._bar.set_postfix_str(self._figures(), refresh=False)
            self._bar.update()
        if self._bar.disable and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self.say(self._line())

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        with suppress(OSError, ValueError):
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        with suppress(OSError, ValueError):
            self._bar.close()

    def _figures(self) -> str:
        rejected = f", rejected: {counted(self._rejected)}" if self._rejected else ""
        return f"{self._accepted:,} accepted{rejected}"

    def _line(self) -> str:
        seconds = time.monotonic() - self._began
        rate = (self.done - self._done_before) / seconds
        left = f"{(self.total - self.done) / rate / 60:.1f} min left"
        at = f"item {self.done:,}/{self.total:,}"
        return f"{at}  {rate:.2f} records/s  {left}  {self._figures()}"
