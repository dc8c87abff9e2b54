"""MANIFEST.jsonl, which records for each document of a generated corpus where it came from.

It has one line per kind with the fields that all its records share (digest, seed, model, options),
then one line per file (its SHA-256, its number of records), then one line per record of that file,
in order, with the remaining fields. `ys gen-data` writes it; this file reads it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ys_llm.errors import UserError

NAME = "MANIFEST.jsonl"
_FILE_FIELDS = {"file": str, "records": int, "sha256": str, "was": list}
_RECORD_FIELDS = {"document": str, "kind": str, "digest": str, "index": int, "seed": int}
_OLD_NAMES = {"asked": "requests", "mended": "fixed"}  # in manifests of earlier versions
_RESTORE = "Restore the file from a copy, or remove it: it can be generated again."


@dataclass(frozen=True)
class File:
    """The manifest's entry of one file; `kind` is empty for a file without records.

    `was` are hashes that the file may also have while it is being replaced.
    """

    kind: str
    sha256: str
    was: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]


Manifest = Mapping[str, File]


def read_manifest(folder: Path) -> Manifest:
    """Return the entry of each file by its name; empty if there is no manifest.

    Raises UserError, with file and line, if it is damaged.
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
            raise _damaged(path, number, f"there is no {error}") from error
    for name, (_, head) in heads.items():
        if head["records"] != len(records[name]):
            found = f"expected {head['records']} records, found {len(records[name])}"
            raise UserError(f"{path}: {name}: {found}", _RESTORE)
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
            raise _damaged(path, number, "not an object")
        yield number, {_OLD_NAMES.get(str(name), str(name)): fields[name] for name in fields}


def _record(kind: Mapping[str, Any], file: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    line = _checked(_merged(kind, fields), _RECORD_FIELDS)
    key = item_key(line["digest"], line["index"], line["seed"])
    return {**line, "key": key, "file": file}


def _checked(fields: Mapping[str, Any], types: Mapping[str, type]) -> Mapping[str, Any]:
    for name, kind in types.items():
        if not isinstance(fields[name], kind):
            raise ValueError(f"{name} as {kind.__name__}")
    return fields


def _bare_name(name: str) -> str:
    """Accept names in the manifest's own folder only: gen-data may remove what it names."""
    if Path(name).name != name:
        raise ValueError("file as a name without a folder")
    return name


def _damaged(path: Path, line: int, found: str) -> UserError:
    return UserError(f"{path}:{line}: not a line of a manifest: {found}", _RESTORE)


def item_key(digest: str, index: int, seed: int) -> str:
    """Return the key of a planned item: 128 bits in hexadecimal; `digest` is that of its kind."""
    return hashlib.blake2b(f"{digest}:{index}:{seed}".encode(), digest_size=16).hexdigest()


def _are_records(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)


def _merged(common: Any, rest: Any) -> Any:
    """Rebuild a value from the part that all records share and the rest."""
    if isinstance(common, Mapping) and isinstance(rest, Mapping):
        both = {name: _merged(common[name], rest[name]) for name in common if name in rest}
        return {**common, **rest, **both}
    if _are_records(common) and _are_records(rest) and len(common) == len(rest):
        return [_merged(part, own) for part, own in zip(common, rest, strict=True)]
    return rest


def read_bytes(path: Path) -> bytes | None:
    """Return the content of a file, or None if there is no file."""
    return path.read_bytes() if path.is_file() else None


def sha256(data: bytes) -> str:
    """Return the hash by which a manifest identifies a file."""
    return hashlib.sha256(data).hexdigest()
