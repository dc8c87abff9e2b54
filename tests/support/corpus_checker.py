"""The second program for a corpus folder: every record of every kind that programs make.

`python tests/corpus_checker.py training_data` checks a folder and prints how many records of each
kind hold. It shares no code with `ys_llm.gendata`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from support import gendata_checker, more_kinds_checker
from support.gendata_checker import expect, read_records

ALL = {**gendata_checker.CHECKS, **more_kinds_checker.CHECKS}
RENAMED = {"format": "formats", "regex": "patterns", "rooms": "scenes", "tales": "stories"}
# By the kind, which is what its files are called; the checkers know the names of the programs.
CHECKS: Mapping[str, Callable[[str, str], None]] = {
    **{name: check for name, check in ALL.items() if name not in RENAMED.values()},
    **{kind: ALL[name] for kind, name in RENAMED.items()},
}


def check_folder(folder: Path) -> Counter[str]:
    """Check every record of a corpus folder; how many of each kind there are."""
    counts: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("*-*.md")):
        kind = path.name.split("-")[0]
        for record in read_records(path):
            expect(record not in seen, f"twice: {record!r}")
            seen.add(record)
            CHECKS[kind](*record)
            counts[kind] += 1
    return counts


if __name__ == "__main__":
    print(dict(check_folder(Path(sys.argv[1]))))
