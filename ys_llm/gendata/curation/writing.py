"""What curation keeps, in the format that the name of its file promises."""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ys_llm.data.containers import COMPRESSIONS, TABLE, text_suffix
from ys_llm.gendata.curation.worker import CheckedRecord


def line_of(path: Path, done: CheckedRecord) -> str:
    """A kept record as a file of this name has it; a row of a table as a line of JSON."""
    record, is_table = done.curated.record, path.suffix.lower() == TABLE
    is_jsonl = text_suffix(path) == ".jsonl"
    if record is None:  # plain text, or {"text": ...}
        if is_table:
            return _json({"text": done.item.text})
        return done.item.text + "\n" if is_jsonl else done.item.text
    if is_table or is_jsonl:
        return _json({"prompt": record.prompt, "response": record.response})
    return record.text()


def packed(path: Path, lines: Sequence[str]) -> bytes:
    """The bytes of a file with these lines: compressed, or a table, where its name says so.

    The same lines give the same bytes. The packages were needed to read the file before.
    """
    if path.suffix.lower() == TABLE:
        return _table([json.loads(line) for line in lines])
    data = "".join(lines).encode("utf-8")
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression == "gzip":
        return gzip.compress(data, mtime=0)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return data


def _json(fields: dict[str, str]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _table(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, write_page_checksum=True)
    return buffer.getvalue()
