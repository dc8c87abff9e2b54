"""Asking a manifest: where a sentence came from, and what a set of documents was made by."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ys_llm.data import manifest
from ys_llm.data.readers import read_items
from ys_llm.data.records import Record, document_id
from ys_llm.errors import UserError

_SHOWN_CHARS = 300  # of a prompt


@dataclass(frozen=True)
class Finding:
    """A record that holds a text; `line` is what the manifest says of it."""

    path: Path
    number: int  # of the record in its file, from 1
    record: Record
    line: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        line = self.line
        yield f"{self.path}:{self.number}"
        yield f"  prompt    {_short(self.record.prompt)}"
        yield f"  kind      {line['kind']}, digest {line['digest']}"
        yield f"  item      {line['index']} of seed {line.get('seed', '?')}, key {line['key']}"
        if line.get("model"):
            yield f"  model     {line['model']}, digest {line.get('model_digest') or 'unknown'}"
            yield f"  made      {line.get('time', '?')}, in {line.get('seconds', '?')} s"
        else:
            yield "  model     none: a program wrote it"
        for asked in line.get("requests", ()):
            yield f"  asked     {_short(asked['prompt'])}"
            if asked["system"]:
                yield f"  system    {_short(asked['system'])}"
            yield f"  options   {', '.join(f'{k} {v}' for k, v in asked['options'].items())}"
        for what in ("verified", "fixed", "rejected"):
            if line.get(what):
                yield f"  {what:8}  {', '.join(line[what])}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 3]}..."


def trace(folder: Path, text: str) -> list[Finding]:
    """The records of a corpus that hold a text, wherever its lines break and however it is cased.

    Raises UserError for a folder without a manifest, and for a text without words.
    """
    wanted = _plain(text)
    if not wanted:
        raise UserError("there is no text to look for", "Give some words of it.")
    return [
        Finding(path, number, record, line)
        for path, number, record, line in _records(folder)
        if wanted in _plain(record.prompt) or wanted in _plain(record.response)
    ]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _records(folder: Path) -> Iterator[tuple[Path, int, Record, Mapping[str, Any]]]:
    """Every record that the manifest knows; those that somebody has put in or changed are not."""
    files = manifest.read_manifest(folder)
    if not files:
        raise UserError(
            f"{folder} has no {manifest.NAME}, which says where its records came from",
            "Name a folder that `ys gen-data` has made: --data DIR",
        )
    for name, file in files.items():
        known = {line["document"]: line for line in file.records}
        for item in read_items(folder / name) if (folder / name).exists() else ():
            record = item.record
            line = record and known.get(document_id(record.response, record.prompt))
            if record and line:
                yield folder / name, item.number, record, line


@dataclass(frozen=True)
class Source:
    """What a record was made by. `model` is empty where a program made it."""

    kind: str
    digest: str
    model: str
    model_digest: str


@dataclass(frozen=True)
class Seen:
    """How many documents each source made, and of how many no manifest knows."""

    counts: Mapping[Source, int]
    unknown: int


def seen(path: Path, documents: Iterable[str]) -> Seen:
    """What made these documents, by their keys; `path` is what was trained on.

    A file counts with the manifest of its folder, a folder with those of all folders below it.
    """
    root = path if path.is_dir() else path.parent
    folders = [found.parent for found in sorted(root.rglob(manifest.NAME))]
    if root == path.parent:
        folders = [folder for folder in folders if folder == root]
    sources: dict[str, Source] = {}
    for folder in folders:
        for file in manifest.read_manifest(folder).values():
            sources.update((line["document"], _source(line)) for line in file.records)
    counts: Counter[Source] = Counter()
    unknown = 0
    for document in documents:
        source = sources.get(document)
        counts.update([source] if source else [])
        unknown += source is None
    return Seen(counts, unknown)


def _source(line: Mapping[str, Any]) -> Source:
    model, digest = (str(line.get(name) or "") for name in ("model", "model_digest"))
    return Source(line["kind"], line["digest"], model, digest)
