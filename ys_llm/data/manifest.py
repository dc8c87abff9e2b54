"""MANIFEST.jsonl, which says of each record of a corpus where it came from.

It has a line for each kind with what all its records share (digest, seed, model, options), below it
one for each file (its hash, how many records), and below that one for each record in it, in order,
with what it has beside. A file is ours while it has the hash that the manifest gives it.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ys_llm.config.strict_reader import to_plain
from ys_llm.data.records import document_id
from ys_llm.errors import UserError
from ys_llm.gendata.corpus.delta import NOTHING, merged, shared, without
from ys_llm.gendata.generation.journal import Entry
from ys_llm.gendata.recipes.item_key import item_key
from ys_llm.system.files import write_atomically

NAME = "MANIFEST.jsonl"
_FILE_FIELDS = {"file": str, "records": int, "sha256": str, "was": list}
_RECORD_FIELDS = {"document": str, "kind": str, "digest": str, "index": int, "seed": int}
_FOLLOWING = ("key", "file")  # from the other fields, and from the place in the manifest
_OWN = ("document", "index", "time", "seconds")  # of each record, even where some are alike
_GIVE_BACK = "Put a good copy of the file back, or move it away: it can be made again."


@dataclass(frozen=True)
class File:
    """A file as the manifest knows it. `was`: hashes it may have while it is being replaced.

    `kind` is empty for what holds no records.
    """

    kind: str
    sha256: str
    was: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]


Manifest = Mapping[str, File]


def read_manifest(folder: Path) -> Manifest:
    """File name -> what the manifest says of it; empty where there is no manifest.

    Raises UserError, with file and line, where it is damaged.
    """
    path = folder / NAME
    heads: dict[str, tuple[str, Mapping[str, Any]]] = {}
    records: dict[str, list[Mapping[str, Any]]] = {}
    kind: Mapping[str, Any] = {"kind": ""}
    name = ""
    for number, fields in _json_lines(path):
        try:
            if "document" in fields:
                records[name].append(_record(kind, name, fields))
            elif "sha256" in fields:
                name = _bare_name(_checked(fields, _FILE_FIELDS)["file"])
                heads[name], records[name] = (kind["kind"], fields), []
            else:
                kind, name = _checked(fields, {"kind": str}), ""
        except (KeyError, ValueError, RecursionError) as error:
            raise _damaged(path, number, f"without {error}") from error
    for name, (_, head) in heads.items():
        if head["records"] != len(records[name]):
            found = f"{head['records']} records announced, {len(records[name])} there"
            raise UserError(f"{path}: {name}: {found}", _GIVE_BACK)
    return {
        name: File(of, head["sha256"], tuple(head["was"]), tuple(records[name]))
        for name, (of, head) in heads.items()
    }


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else (), start=1):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, number, f"not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise _damaged(path, number, "no object")
        yield number, fields


def _record(kind: Mapping[str, Any], file: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    line = _checked(merged(kind, fields), _RECORD_FIELDS)
    key = item_key(line["digest"], line["index"], line["seed"])
    return {**line, "key": key, "file": file}


def _checked(fields: Mapping[str, Any], types: Mapping[str, type]) -> Mapping[str, Any]:
    for name, kind in types.items():
        if not isinstance(fields[name], kind):
            raise ValueError(f"{name} as {kind.__name__}")
    return fields


def _bare_name(name: str) -> str:
    """A manifest may speak of the files beside it alone: what it names may be removed."""
    if Path(name).name != name:
        raise ValueError("file as a name without a folder")
    return name


def _damaged(path: Path, line: int, found: str) -> UserError:
    return UserError(f"{path}:{line}: no line of a manifest: {found}", _GIVE_BACK)


def manifest_line(entry: Entry) -> dict[str, Any]:
    """What the manifest says of an accepted record.

    Of a program's record no time: the same recipe is to give the same bytes again.
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
        "mended": list(origin.mended),
        "rejected": [rejection.name for rejection in entry.rejections],
    }
    line |= {name: said for name, said in verdicts.items() if said}
    if origin.model:
        line |= {"model": origin.model, "model_digest": origin.model_digest}
        line |= {"asked": to_plain(origin.asked), "time": origin.time, "seconds": origin.seconds}
    return line


def write_manifest(
    folder: Path, manifest: Manifest, was: Mapping[str, bytes | None] | None = None
) -> None:
    """Write it if it has changed; `was` holds what is in files that are about to change."""
    held = {name: data for name, data in (was or {}).items() if data is not None}
    known = [
        (name, replace(file, was=(sha256(held[name]),) if name in held else ()))
        for name, file in sorted(manifest.items(), key=lambda pair: (pair[1].kind, pair[0]))
    ]
    by_kind = itertools.groupby(known, key=lambda pair: pair[1].kind)
    lines = (line for kind, files in by_kind for line in _lines(kind, list(files)))
    # Sorted, so that what was read and is written again has the same bytes.
    texts = (json.dumps(line, ensure_ascii=False, sort_keys=True) for line in lines)
    data = "".join(f"{text}\n" for text in texts).encode()
    if read_bytes(folder / NAME) != data:
        write_atomically(folder / NAME, data)


def _lines(kind: str, files: Iterable[tuple[str, File]]) -> Iterator[Mapping[str, Any]]:
    """The lines of a kind: what its records share, then each file with the rest of its records."""
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


def read_bytes(path: Path) -> bytes | None:
    """What is in a file; None where there is none."""
    return path.read_bytes() if path.is_file() else None


def sha256(data: bytes) -> str:
    """The hash by which the manifest knows a file."""
    return hashlib.sha256(data).hexdigest()
