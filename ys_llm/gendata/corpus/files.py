"""The files of a corpus: names, sizes, and what may be replaced.

A file is ours while its hash is the one in the manifest; no other file is replaced or removed.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ys_llm.data.manifest import NAME, File, Manifest, read_bytes, read_manifest, sha256
from ys_llm.errors import UserError
from ys_llm.gendata.corpus.manifest import manifest_line, write_manifest
from ys_llm.gendata.generation.journal import JournalEntry
from ys_llm.gendata.programs.conversations import CONVERSATIONS, messages_line
from ys_llm.system.files import readable_os_errors, write_atomically

FILE_BYTES = 200_000  # a size that editors and reviews handle well
README = "README.md"
T = TypeVar("T")


def check_files(folder: Path, kinds: Iterable[str], *, readme: bool, force: bool) -> None:
    """Raise UserError if files that are not ours have names that will be used."""
    names = [name for kind in kinds for name in _present(folder, kind)]
    _refuse_foreign(folder, [*names, README] if readme else names, force)


def _present(folder: Path, kind: str) -> Iterator[str]:
    """The names of a kind's files, up to the first missing number."""
    numbers = itertools.count(1)
    names = (_file_name(kind, number) for number in numbers)
    return itertools.takewhile(lambda name: (folder / name).exists(), names)


def _file_name(kind: str, number: int) -> str:
    return f"{kind}-{number:02}.{'jsonl' if kind in CONVERSATIONS else 'md'}"


def _refuse_foreign(folder: Path, names: Iterable[str], force: bool) -> None:
    if force:
        return
    manifest = read_manifest(folder)
    foreign = [name for name in names if not _may_replace(folder / name, manifest)]
    if foreign:
        raise UserError(
            f"{folder} holds files that were edited or not generated: {', '.join(foreign)}",
            f"They differ from {NAME}: choose another folder with --out, or overwrite them with "
            "--force.",
        )


def _may_replace(path: Path, manifest: Manifest) -> bool:
    data, known = read_bytes(path), manifest.get(path.name)
    return data is None or (known is not None and sha256(data) in (known.sha256, *known.was))


def write_files(
    folder: Path, accepted: Mapping[str, Sequence[JournalEntry]], *, readme: str, force: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Update the files of these kinds, the README unless `readme` is empty, and the manifest.

    Files of other kinds are not touched. Returns the names of written and of removed files. After a
    kill at any point, the files are still recognised as ours. Raises UserError as `check_files`
    does, before anything is written.
    """
    before = read_manifest(folder)
    contents = dict(_contents(accepted, readme))
    after = {name: file for name, file in before.items() if file.kind not in accepted}
    after |= {name: file for name, (file, _) in contents.items()}
    changed = [name for name, (_, data) in contents.items() if read_bytes(folder / name) != data]
    dropped = [name for name in before.keys() - after.keys() if (folder / name).exists()]
    stale = sorted(name for name in dropped if _may_replace(folder / name, before))
    _refuse_foreign(folder, changed, force)
    if changed or stale:
        touched = {name: read_bytes(folder / name) for name in (*changed, *stale)}
        write_manifest(folder, {**{name: before[name] for name in stale}, **after}, was=touched)
    for name in changed:
        write_atomically(folder / name, contents[name][1])
    for name in stale:
        with readable_os_errors(folder / name):
            (folder / name).unlink()
    if after or before:
        write_manifest(folder, after)
    return tuple(changed), tuple(stale)


def _contents(
    accepted: Mapping[str, Sequence[JournalEntry]], readme: str
) -> Iterator[tuple[str, tuple[File, bytes]]]:
    for kind, entries in accepted.items():
        texts = [(entry, _text(entry)) for entry in entries]
        for number, chunk in enumerate(_chunks(texts, lambda pair: len(pair[1])), start=1):
            data = b"".join(text for _, text in chunk)
            lines = tuple(manifest_line(entry) for entry, _ in chunk)
            yield _file_name(kind, number), (File(kind, sha256(data), (), lines), data)
    if readme:
        yield README, (File("", sha256(readme.encode()), (), ()), readme.encode())


def _chunks(members: Iterable[T], n_bytes: Callable[[T], int]) -> Iterator[list[T]]:
    """The members in chunks of at most FILE_BYTES; a longer member is a chunk of its own."""
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


def _text(entry: JournalEntry) -> bytes:
    assert entry.record is not None, entry.key
    if entry.kind in CONVERSATIONS:
        return f"{messages_line(entry.record)}\n".encode()
    return entry.record.text().encode()
