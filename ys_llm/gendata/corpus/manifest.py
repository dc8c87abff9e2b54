"""Writing MANIFEST.jsonl: what `ys_llm.data.manifest` reads."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ys_llm.config.strict_reader import to_plain
from ys_llm.data.manifest import NAME, File, Manifest, item_key, read_bytes, sha256
from ys_llm.data.records import document_id
from ys_llm.gendata.corpus.delta import NOTHING, shared, without
from ys_llm.gendata.generation.journal import JournalEntry
from ys_llm.system.files import write_atomically

_FOLLOWING = ("key", "file")  # follow from the other fields and from the line's place
_OWN = ("document", "index", "time", "seconds")  # never shared, even if equal


def manifest_line(entry: JournalEntry) -> dict[str, Any]:
    """The manifest's line for an accepted record.

    A program's record has no time, so that the same command writes the same bytes.
    """
    assert entry.record is not None, entry.key
    origin = entry.provenance
    assert entry.key == item_key(origin.digest, entry.index, origin.seed), entry.key
    line: dict[str, Any] = {
        "kind": entry.kind,
        "digest": origin.digest,
        "seed": origin.seed,
        "document": document_id(entry.record.response, entry.record.prompt),
        "index": entry.index,
    }
    verdicts = {
        "verified": list(origin.verified),
        "fixed": list(origin.fixed),
        "rejected": [rejection.name for rejection in entry.rejections],
    }
    line |= {name: names for name, names in verdicts.items() if names}
    if origin.model:
        line |= {"model": origin.model, "model_digest": origin.model_digest}
        line |= {"server": origin.server} if origin.server else {}
        line |= {"requests": to_plain(origin.requests)}
        line |= {"time": origin.time, "seconds": origin.seconds}
    return line


def write_manifest(
    folder: Path, manifest: Manifest, was: Mapping[str, bytes | None] | None = None
) -> None:
    """Write it if it has changed; `was` is the content of files that are about to change."""
    present = {name: data for name, data in (was or {}).items() if data is not None}
    known = [
        (name, replace(file, was=(sha256(present[name]),) if name in present else ()))
        for name, file in sorted(manifest.items(), key=lambda pair: (pair[1].kind, pair[0]))
    ]
    by_kind = itertools.groupby(known, key=lambda pair: pair[1].kind)
    lines = (line for kind, files in by_kind for line in _lines(kind, list(files)))
    # Sorted, so that reading and writing again gives the same bytes.
    texts = (json.dumps(line, ensure_ascii=False, sort_keys=True) for line in lines)
    data = "".join(f"{text}\n" for text in texts).encode()
    if read_bytes(folder / NAME) != data:
        write_atomically(folder / NAME, data)


def _lines(kind: str, files: Iterable[tuple[str, File]]) -> Iterator[Mapping[str, Any]]:
    """The lines of a kind: the shared fields, then each file with the rest of its records."""
    bare = {
        name: [_without_names(line, _FOLLOWING) for line in file.records] for name, file in files
    }
    common = shared([_without_names(line, _OWN) for lines in bare.values() for line in lines])
    if kind:
        yield {"kind": kind} if common is NOTHING else common
    for name, file in files:
        head = {"file": name, "records": len(file.records), "sha256": file.sha256}
        yield head | {"was": list(file.was)}
        yield from (without(line, common) for line in bare[name])


def _without_names(line: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}
