"""What manifests say about documents: the record that contains a text, the sources of a set."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ys_llm.data import manifest
from ys_llm.data.items import read_items
from ys_llm.data.records import Document, Record
from ys_llm.errors import UserError, command_line

_SHOWN_CHARS = 300  # of a prompt
_T = TypeVar("_T")


@dataclass(frozen=True)
class TracedRecord:
    """A record of a corpus with what the manifest says about it (`line`)."""

    path: Path
    number: int  # of the record in its file, from 1
    record: Record
    line: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        line = self.line
        yield f"{self.path}:{self.number}"
        yield f"  prompt    {_one_line(self.record.prompt)}"
        yield f"  kind      {line['kind']}, digest {line['digest']}"
        yield f"  item      {line['index']} of seed {line.get('seed', '?')}, key {line['key']}"
        if line.get("model"):
            by = f", by {line['server']}" if line.get("server") else ""
            yield f"  model     {line['model']}, digest {line.get('model_digest') or 'unknown'}{by}"
            yield f"  made      {line.get('time', '?')}, in {line.get('seconds', '?')} s"
        else:
            yield "  model     none: a program wrote it"
        for request in line.get("requests", ()):
            yield f"  request   {_one_line(request['prompt'])}"
            if request["system"]:
                yield f"  system    {_one_line(request['system'])}"
            yield f"  options   {', '.join(f'{k} {v}' for k, v in request['options'].items())}"
        for name in ("verified", "fixed", "rejected"):
            if line.get(name):
                yield f"  {name:8}  {', '.join(line[name])}"


def trace(folder: Path, text: str) -> list[TracedRecord]:
    """Find the records of a corpus that contain a text; line breaks and case do not matter.

    Raises UserError for a folder without a manifest, and for a text without words.
    """
    wanted = _normalised(text)
    if not wanted:
        raise UserError("there is no text to look for", "Give some words of it.")
    return [
        found
        for found in _known_records(folder)
        if wanted in _normalised(found.record.prompt)
        or wanted in _normalised(found.record.response)
    ]


@dataclass(frozen=True)
class Source:
    """What made a record: a kind of a recipe, and a model unless a program wrote it."""

    kind: str
    digest: str
    model: str
    model_digest: str


@dataclass(frozen=True)
class Provenance:
    """How many documents each source made, and how many are in no manifest."""

    counts: Mapping[Source, int]
    unknown: int


def provenance_of(path: Path, documents: Sequence[Document]) -> Provenance:
    """Look up what made these documents, which were read from `path`.

    For a file, the manifest of its folder is read; for a folder, those of all folders below it.
    Raises UserError where one is damaged.
    """
    sources: dict[str, Source] = {}
    for folder in _folders_with_manifest(path):
        for file in manifest.read_manifest(folder).values():
            sources.update((line["document"], _source(line)) for line in file.records)
    if not sources:
        return Provenance({}, len(documents))
    counts: Counter[Source] = Counter()
    unknown = 0
    for document in documents:
        source = _find(sources, document)
        counts.update([source] if source else [])
        unknown += source is None
    return Provenance(counts, unknown)


def _folders_with_manifest(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path.parent] if (path.parent / manifest.NAME).exists() else []
    return [found.parent for found in sorted(path.rglob(manifest.NAME))]


def _find(by_document: Mapping[str, _T], document: Document) -> _T | None:
    """Look a document up by its id, or by the exact hash that earlier manifests have."""
    return by_document.get(document.id) or by_document.get(document.content_hash)


def _source(line: Mapping[str, Any]) -> Source:
    model, digest = (str(line.get(name) or "") for name in ("model", "model_digest"))
    return Source(line["kind"], line["digest"], model, digest)


def _known_records(folder: Path) -> Iterator[TracedRecord]:
    """Yield every record that the manifest knows; added and edited ones are left out."""
    files = manifest.read_manifest(folder)
    if not files:
        raise UserError(
            f"{folder} has no {manifest.NAME}, which says where its records came from",
            f"Name a folder that `{command_line('gen-data')}` has made: --data DIR",
        )
    for name, file in files.items():
        path = folder / name
        lines = {line["document"]: line for line in file.records}
        for item in read_items(path) if path.exists() else ():
            if item.record is None:
                continue
            line = _find(lines, Document(item.record.response, item.record.prompt))
            if line:
                yield TracedRecord(path, item.number, item.record, line)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 3]}..."


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()
