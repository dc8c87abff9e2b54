"""A corpus whose documents are rows of a file gives the split and the shards of one in memory."""

import gzip
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ys_llm.config.schema import DataConfig
from ys_llm.data import document_table, readers, spool
from ys_llm.data import split as split_module
from ys_llm.data.document_table import DocumentTable, has_prompts, sorted_hashes
from ys_llm.data.records import Texts
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.split import Split
from ys_llm.data.split_cache import load_split
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.data.words import common_words
from ys_llm.errors import UserError
from ys_llm.evaluation.baselines import cached_baselines

WORDS = st.lists(st.sampled_from(["a", "größer ", "\r\n", " \n", "日本", "to be "]), max_size=30)
TEXT = WORDS.map("".join)
RECORDS = st.lists(st.tuples(TEXT, TEXT.map(lambda text: text + ".")), min_size=1, max_size=8)
NAMES = ["a.txt", "b.md", "c.jsonl", "d.jsonl.gz", "e.txt"]


@pytest.fixture(autouse=True, scope="module")
def small_limits() -> Iterator[None]:
    """A few bytes are much text here: several buckets, buffers that fill up, long texts, cuts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_BUCKET_BYTES", 100)
        patch.setattr(spool, "_BUFFERED_BYTES", 300)
        patch.setattr(spool, "_APART_BYTES", 150)
        patch.setattr(split_module, "LONG_DOCUMENT_CHARS", 120)
        patch.setattr(split_module, "SINGLE_DOCUMENT_BYTES", 60)
        patch.setattr(document_table, "_IDS_AT_ONCE", 3)
        patch.setattr(document_table, "_HASHES_AT_ONCE", 2)
        patch.setattr(document_table, "_ROWS_AT_ONCE", 2)
        yield


def content(name: str, pairs: list[tuple[str, str]]) -> bytes:
    """A file of this name: plain text, records, or lines of either."""
    if "jsonl" in name:
        lines = [json.dumps({"text": text}) for _, text in pairs]
        lines += [json.dumps({"prompt": prompt, "response": text}) for prompt, text in pairs]
        data = "\n".join(lines).encode()
        return gzip.compress(data) if name.endswith(".gz") else data
    if name == "b.md":
        return "".join(f"{prompt}<start>{text}<end>" for prompt, text in pairs).encode()
    return "".join(text for _, text in pairs).encode()


def load(folder: Path, cache: Path, *, table: bool) -> Split:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "SPOOL_BYTES", 0 if table else 10**12)
        split = load_split(DataConfig(path=str(folder), validation_fraction=0.3), scratch=cache)
    assert isinstance(split.training, DocumentTable) == table
    return split


def facts(folder: Path, cache: Path, *, table: bool) -> Iterator[Any]:
    """All that a run learns of its text: documents, hashes, shards to the byte, baselines.

    Of a text that is refused, as one of which everything is held out, it is the reason.
    """
    try:
        split = load(folder, cache, table=table)
    except UserError as error:
        yield str(error)
        return
    yield split.leak_check, split.notes, split.record, split.is_repeatable
    tokenizer = train_tokenizer(Texts(split.training), kind="bpe", vocab_size=300)
    yield tokenizer.fingerprint
    for side in (split.training, split.validation):
        yield sorted((d.content_hash, d.source, d.prompt, d.text, d.id, d.n_chars) for d in side)
        yield b"".join(sorted_hashes(side, after=b"\n")), has_prompts(side)
        if side:
            shard = load_or_tokenize(side, tokenizer, cache_dir=cache, label="text").folder
            yield shard.name
            meta = json.loads((shard / "meta.json").read_text())
            yield {**meta, "checked": None}
            yield [(shard / name).read_bytes() for name in ("tokens.bin", "index.bin")]
    if split.validation:
        yield cached_baselines(split.training, split.validation, cache_dir=cache)
    yield common_words(split.training)


@settings(max_examples=15)
@given(files=st.dictionaries(st.sampled_from(NAMES), RECORDS, min_size=1))
@example(files={"b.md": [("", "a."), ("", "a.")]})  # all of it is held out
def test_rows_of_a_file_are_the_documents_in_memory(
    files: dict[str, list[tuple[str, str]]],
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "texts")
        folder.mkdir()
        for name, pairs in files.items():
            (folder / name).write_bytes(content(name, pairs))
        found = [
            list(facts(folder, Path(place, name), table=table))
            for name, table in (("memory", False), ("table", True))
        ]
    assert found[0] == found[1]


def test_a_table_is_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content("a.jsonl", [(f"p{n}", f"t{n}") for n in range(40)]))
    table = load(tmp_path / "a.jsonl", tmp_path / "cache", table=True).training
    every = [(d.text, d.prompt, d.source) for d in table]
    assert every == [
        (d.text, d.prompt, d.source) for d in map(table.__getitem__, range(len(table)))
    ]
    assert table[-1].text == every[-1][0] and [d.text for d in table[1:3]] == [
        text for text, _, _ in every[1:3]
    ]
    with pytest.raises(IndexError):
        table[len(table)]


LOAD = """
import sys
from pathlib import Path
from ys_llm.config.schema import DataConfig
from ys_llm.data.split_cache import load_split
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.tokenizer import train_tokenizer
cache = Path(sys.argv[2])
print("begins", flush=True)
split = load_split(DataConfig(path=sys.argv[1], validation_fraction=0.1), scratch=cache)
tokenizer = train_tokenizer(["a text"], kind="bytes", vocab_size=258)
print(load_or_tokenize(split.training, tokenizer, cache_dir=cache, label="t").folder.name)
"""


@pytest.mark.slow
def test_nothing_of_a_killed_preparation_is_used(tmp_path: Path) -> None:
    """Killed while it reads or encodes: the next start gives the bytes of an unbroken one."""
    texts = tmp_path / "a.jsonl"
    with texts.open("w") as file:
        file.writelines(
            json.dumps({"text": f"{n} is a number. " * 9}) + "\n" for n in range(60_000)
        )

    def started(cache: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LOAD, str(texts), str(tmp_path / cache)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout and process.stdout.readline() == "begins\n"
        return process

    whole, _ = started("whole").communicate()
    for seconds in (0.2, 1.0, 1.8):
        with started("killed") as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
    after, _ = started("killed").communicate()
    assert after == whole
    for name in ("tokens.bin", "index.bin"):
        made = [
            (tmp_path / cache / whole.strip() / name).read_bytes() for cache in ("whole", "killed")
        ]
        assert made[0] == made[1]
