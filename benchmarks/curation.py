"""How fast `ys gen-data curate` works on a folder, and the memory of its largest process.

    python -m benchmarks.curation FOLDER [--processes 2]

Prints one line: text, rate by the clock, seconds of processor time of all processes (other work on
the machine slows the clock more than these), memory, and the class of the processor.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ys_llm.gendata.curation import curate_folder
from ys_llm.system.machine import cpu_class

_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


@dataclass(frozen=True)
class Measured:
    """What one run took."""

    bytes_read: int
    seconds: float
    processor_seconds: float
    peak_bytes: int  # of the largest process

    def line(self, processes: int) -> str:
        """The run in one line."""
        megabytes = self.bytes_read / 1e6
        return (
            f"{megabytes:.1f} MB, processes {processes}: {megabytes / self.seconds:.2f} MB/s, "
            f"{self.processor_seconds:.1f} s of processor time, "
            f"{self.peak_bytes / 1e6:.0f} MB at most in one process, {cpu_class()}"
        )


def measure(folder: Path, *, processes: int) -> Measured:
    """Curate a folder once, into a folder that is removed again."""
    before, begun = _processor_seconds(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        report = curate_folder(folder, Path(out) / "out", processes=processes)
    return Measured(
        report.bytes_read,
        time.perf_counter() - begun,
        _processor_seconds() - before,
        1024 * max(resource.getrusage(who).ru_maxrss for who in _WHO),
    )


def _processor_seconds() -> float:
    used = map(resource.getrusage, _WHO)
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print(measure(arguments.folder, processes=arguments.processes).line(arguments.processes))


if __name__ == "__main__":
    main()
