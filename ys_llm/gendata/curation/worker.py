"""The work of one process: rules, hashes and shingles of a batch of records."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ys_llm.data.items import Item
from ys_llm.data.records import Record, content_hash
from ys_llm.gendata.curation.near_duplicates import (
    Shingles,
    Signature,
    shingles_of,
    signature_of,
)
from ys_llm.gendata.curation.rule import Curated, Rule, Verdict, apply_rules

BATCH_CHARS = 400_000  # a few milliseconds to send, 0.1 s to process


@dataclass(frozen=True)
class LengthLimits:
    """Allowed length of a response in characters, and number of responses to one prompt."""

    min_chars: int = 1
    max_chars: int = 1_000_000
    per_prompt: int = 25


@dataclass(frozen=True)
class CurationJob:
    """What to do with every record, the same in all processes; `near` 0: no shingles."""

    rules: tuple[Rule, ...]
    limits: LengthLimits
    near: float


@dataclass(frozen=True)
class RecordBatch:
    """Records of one file; `file` is its index in the list."""

    file: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class CheckedRecord:
    """One record with the results that depend on no other record."""

    item: Item
    curated: Curated
    key: str = ""
    shingles: Shingles | None = None
    signature: Signature | None = None


def batches(file: int, items: Iterable[Item]) -> Iterator[RecordBatch]:
    """The records of a file in batches; the last one may be empty."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        record = item.record
        size += len(record.prompt) + len(record.response) if record else len(item.text)
        if size > BATCH_CHARS:
            yield RecordBatch(file, tuple(batch))
            batch, size = [], 0
    yield RecordBatch(file, tuple(batch))


def work(job: CurationJob, batch: RecordBatch) -> tuple[int, list[CheckedRecord]]:
    """Process a batch; runs in a worker process."""
    return batch.file, [_done(job, item) for item in batch.items]


def _done(job: CurationJob, item: Item) -> CheckedRecord:
    if item.record is None:
        verdict = Verdict("unreadable", item.problem) if item.problem else None
        return CheckedRecord(item, Curated(None, (), verdict), content_hash(item.text))
    curated = curate_record(item.record, job.rules, job.limits)
    if curated.record is None:
        return CheckedRecord(item, curated)
    record = curated.record
    key = content_hash(record.response, record.prompt)
    if not job.near:
        return CheckedRecord(item, curated, key)
    shingles = shingles_of(f"{record.prompt}\n{record.response}")
    return CheckedRecord(item, curated, key, shingles, signature_of(shingles))


def curate_record(record: Record, rules: Sequence[Rule], limits: LengthLimits) -> Curated:
    """Apply the rules and the length limits; a fix may leave too little."""
    if len(record.response) > limits.max_chars:
        return Curated(None, (), _length(record, f"over {limits.max_chars:,}"))
    curated = apply_rules(record, rules)
    if curated.record is not None and len(curated.record.response.strip()) < limits.min_chars:
        verdict = _length(curated.record, f"under {limits.min_chars:,}")
        return Curated(None, curated.edits, verdict)
    return curated


def _length(record: Record, limit: str) -> Verdict:
    return Verdict("length", f"{len(record.response):,} characters: {limit}")
