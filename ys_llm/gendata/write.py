"""From records to files: names, manifest, README, and what may be written over."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ys_llm.errors import UserError
from ys_llm.files import write_atomically
from ys_llm.gendata.readme import readme
from ys_llm.gendata.recipe import Recipe, make_records
from ys_llm.gendata.record import Record

VERSION = 1  # raise it when the same recipe gives other bytes
FILE_BYTES = 200_000  # a size that editors and reviews still open gladly
MANIFEST = "manifest.json"
README = "README.md"
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """What a run of the generators did; `str()` says it in one sentence."""

    folder: Path
    records: int
    n_bytes: int
    written: tuple[str, ...]
    removed: tuple[str, ...]

    def __str__(self) -> str:
        size = f"{self.records:,} records, {self.n_bytes / 1e6:.1f} MB"
        if not self.written and not self.removed:
            return f"{self.folder} is complete already: {size}. Nothing to do."
        removed = f", {len(self.removed)} old ones removed" if self.removed else ""
        return f"{self.folder}: {size}; {len(self.written)} files written{removed}."


def plan_files(recipe: Recipe) -> dict[str, bytes]:
    """Every file of the corpus, name and content, the manifest last."""
    records = make_records(recipe)
    files: dict[str, bytes] = {}
    counts: dict[str, int] = {}
    for kind, members in records.items():
        for number, chunk in enumerate(chunks(members, _n_bytes), start=1):
            name = f"{kind}-{number:02}.md"
            files[name] = "".join(record.text() for record in chunk).encode()
            counts[name] = len(chunk)
    sizes = {
        kind: sum(len(r.text().encode()) for r in members) for kind, members in records.items()
    }
    files[README] = readme(records, sizes).encode()
    files[MANIFEST] = _manifest(recipe, files, counts).encode()
    return files


def chunks(members: Iterable[T], n_bytes: Callable[[T], int]) -> Iterator[list[T]]:
    """The members in runs of FILE_BYTES at most; a longer one is a run of its own."""
    chunk: list[T] = []
    size = 0
    for member in members:
        length = n_bytes(member)
        if chunk and size + length > FILE_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(member)
        size += length
    if chunk:
        yield chunk


def _n_bytes(record: Record) -> int:
    return len(record.text().encode())


def _manifest(recipe: Recipe, files: Mapping[str, bytes], counts: Mapping[str, int]) -> str:
    entries = {
        name: {"sha256": _sha256(data), "bytes": len(data), "records": counts.get(name, 0)}
        for name, data in files.items()
    }
    content = {"generator": "ys gen-data", "version": VERSION, "recipe": asdict(recipe)}
    return json.dumps(content | {"files": entries}, indent=2) + "\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_corpus(recipe: Recipe, folder: Path, *, force: bool = False) -> Summary:
    """Bring `folder` to the state of the recipe; only files of our own making are replaced.

    A file is ours if the manifest in the folder names it with the hash that it still has. Files
    that neither the recipe nor the manifest knows are left alone. Raises UserError, before
    anything is written, if a file that would be written over is not ours and `force` is not set.
    """
    files = plan_files(recipe)
    on_disk = {name: _read(folder / name) for name in files}
    changed = [name for name, data in files.items() if on_disk[name] != data]
    ours = _ours(folder)
    edited = [name for name in changed if on_disk[name] is not None and name not in ours]
    if edited and not force:
        raise UserError(
            f"{folder} holds files that are not as they were generated: {', '.join(edited)}",
            "Choose another folder with --out, or write over them with --force.",
        )
    stale = sorted(ours - set(files))
    for name in changed:
        write_atomically(folder / name, files[name])
    for name in stale:
        (folder / name).unlink()
    records = sum(getattr(recipe.kinds, kind) for kind in asdict(recipe.kinds))
    n_bytes = sum(len(data) for name, data in files.items() if name not in (README, MANIFEST))
    return Summary(folder, records, n_bytes, tuple(changed), tuple(stale))


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _ours(folder: Path) -> set[str]:
    """Names of the files in the folder that the generator wrote and nobody has touched since."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        hashes = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
    inside = [name for name in hashes if Path(name).name == name]
    content = {name: _read(folder / name) for name in inside}
    return {MANIFEST} | {
        name for name, data in content.items() if data is not None and _sha256(data) == hashes[name]
    }
