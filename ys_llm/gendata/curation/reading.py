"""The files that curation reads, their order, and the kind that a file name indicates."""

from pathlib import Path

from ys_llm.data.containers import COMPRESSIONS, TABLE, shown, text_suffix
from ys_llm.data.text_files import find_files
from ys_llm.errors import UserError, command_line

_SUFFIXES = (".txt", ".md", ".jsonl")  # plain, or compressed


def corpus_files(root: Path) -> list[Path]:
    """List the files of text and records, sorted by name, numbers in them by value."""
    files = find_files(root, command=command_line("gen-data", "curate", "PATH", out="DIR")).paths
    found = [path for path in files if path.is_file() and _is_curated(path)]
    if not found:
        raise UserError(
            f"{shown(root)} holds no {', '.join(_SUFFIXES)} file", "Name another folder."
        )
    return sorted(found, key=_by_number)


def _is_curated(path: Path) -> bool:
    return text_suffix(path) in _SUFFIXES or path.suffix.lower() == TABLE


def _by_number(path: Path) -> tuple[str, int, str]:
    stem = _stem(path)
    head = stem.rstrip("0123456789")
    digits = stem[len(head) :]
    return (str(path.parent / head), int(digits[:18] or 0), path.name)


def kind_of(name: str) -> str:
    """Return the kind that a file's name begins with: `stories` of `stories-07.md.gz`."""
    stem = _stem(Path(name))
    head = stem.rstrip("0123456789").rstrip("-_. ")
    return head or stem


def _stem(path: Path) -> str:
    return path.with_suffix("").stem if path.suffix.lower() in COMPRESSIONS else path.stem
