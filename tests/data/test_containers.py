"""Compressed files and tables are read as the text they hold; a damaged one is named, not cut."""

import gzip
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.config.schema import DataConfig
from ys_llm.data import readers
from ys_llm.data.containers import DamagedFileError
from ys_llm.data.conversations import read_examples
from ys_llm.data.items import read_items
from ys_llm.data.readers import read_documents
from ys_llm.data.split_cache import load_split
from ys_llm.data.tables import rows_of
from ys_llm.errors import UserError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

ROWS: list[dict[str, Any]] = [{"text": f"größer {n}\n日本語 {'x' * n}"} for n in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(data: bytes) -> bytes:
    return bytes(zstandard.ZstdCompressor().compress(data))


def table(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def documents(path: Path) -> list[tuple[str | None, str]]:
    return [(document.prompt, document.text) for document in read_documents(path)]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_same_text_in_any_container_gives_the_same_documents(tmp_path: Path) -> None:
    half = len(LINES) // 2
    paths = [
        written(tmp_path / "b.jsonl.gz", gzip.compress(LINES[:half]) + gzip.compress(LINES[half:])),
        written(tmp_path / "c.JSONL.zst", zstd(LINES[:half]) + zstd(LINES[half:])),
        table(tmp_path / "d.parquet", [{**row, "n": 1} for row in ROWS]),
    ]
    expected = documents(written(tmp_path / "a.jsonl", LINES))
    for path in paths:
        assert documents(path) == expected
        assert len(list(read_items(path))) == len(ROWS), "curation reads them too"
    assert documents(written(tmp_path / "e.txt.zst", zstd(b"one"))) == [(None, "one")]
    assert documents(written(tmp_path / "f.md.gz", gzip.compress(b"p<start>r<end>"))) == [
        ("p", "r")
    ]


CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho 🙂"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "a\n"}, {"from": "gpt", "value": "b"}]}
PAIR = {"prompt": "Who?", "chosen": "A cat.", "rejected": "No."}
CHATS = "".join(json.dumps(record) + "\n" for record in (CHAT, SHAREGPT, PAIR)).encode()


def test_conversations_in_any_container_are_the_same(tmp_path: Path) -> None:
    def found(path: Path) -> list[tuple[Any, ...]]:
        examples = read_examples(path)
        assert examples.forms == {"messages": 1, "conversations": 1, "preferences": 1}
        return [replace(one, source="") for one in examples.found]

    expected = found(written(tmp_path / "a.jsonl", CHATS))
    assert found(written(tmp_path / "a.jsonl.gz", gzip.compress(CHATS))) == expected
    assert found(written(tmp_path / "A.JSONL.ZST", zstd(CHATS[:50]) + zstd(CHATS[50:]))) == expected
    assert found(written(tmp_path / "a.json", CHATS)) == expected, "lines of JSON by another name"
    array = f"[{','.join(CHATS.decode().splitlines())}]".encode()
    assert found(written(tmp_path / "a.json.gz", gzip.compress(array))) == expected
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder / "a.csv.gz", gzip.compress(b"instruction,output\nSay,Ho\n"))
    # Each row has the columns of one form, and null in the others.
    null = dict.fromkeys(("messages", "conversations", "system"))
    table(folder / "b.parquet", [{**null, **CHAT}, {**null, **SHAREGPT}, null])
    (folder / "sub").mkdir()
    written(folder / "sub" / "c.tsv.zst", zstd(b"prompt\tresponse\np\tr\n"))
    examples = read_examples(folder)
    assert examples.forms == {
        "alpaca": 1,
        "prompt": 1,
        "messages": 1,
        "conversations": 1,
        "empty": 1,
    }


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.csv.gz", "a.parquet"])
def test_conversations_in_a_file_that_is_cut_off_are_no_shorter_text(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        whole = table(path, [CHAT] * 9).read_bytes()
    else:
        data = b"prompt,response\n" + b"p,r\n" * 99 if ".csv" in name else CHATS
        whole = (zstd if name.endswith("zst") else gzip.compress)(data)
    written(path, whole[:-9])
    with pytest.raises(DamagedFileError, match=re.escape(name)):
        read_examples(path, DataConfig(on_bad_record="skip"))


JSON = ['{"text": "é\\n"}', "12", "[]", "[1, {}]", '"a"', "\n", ",", "]", " ", "{", "[", "nul"]
CELLS = ["text", ",", "\n", "\r", "\r\n", '"', "a", "\u2028"]


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(JSON), max_size=12).map("".join),
    st.lists(st.sampled_from(CELLS), max_size=20).map("".join),
)
def test_records_do_not_depend_on_where_blocks_end(json_text: str, csv_text: str) -> None:
    for text, suffix in ((f"[{json_text}", ".json"), (json_text, ".json"), (csv_text, ".csv")):
        whole = list(rows_of([text], suffix))
        assert list(rows_of(list(text), suffix)) == whole
        assert list(rows_of([text[:5], "", text[5:]], suffix)) == whole


def test_a_long_array_is_read_a_record_at_a_time() -> None:
    block = '{"text": "' + "x" * 1000 + '"},\n'
    taken = 0

    def blocks() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 1000):
            yield block if taken > 1 else "[" + block

    rows = rows_of(blocks(), ".json")
    assert [next(rows).line for _ in range(5)] == [1, 2, 3, 4, 5]
    assert taken < 12
    broken = rows_of(chain(['[{"text": 1},\n{"text" 2},\n'], blocks()), ".json")
    assert [row.line for row in broken] == [1, 2]
    assert taken < 12, "what is broken is not read to the end in search of its end"


def test_zeros_at_the_end_of_a_compressed_file_are_not_text(tmp_path: Path) -> None:
    assert documents(written(tmp_path / "a.txt.gz", gzip.compress(b"one") + bytes(20_000))) == [
        (None, "one")
    ]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_off_or_corrupt_is_named(suffix: str, tmp_path: Path) -> None:
    noise = bytes(range(7, 256)) * 400
    whole = (gzip.compress if suffix == ".gz" else zstd)(LINES + noise.hex().encode())
    path = tmp_path / f"a.jsonl{suffix}"
    for cut in (3, len(whole) // 2, len(whole) - 1):
        with pytest.raises(DamagedFileError, match=rf"a\.jsonl{suffix} is cut off: .* after [\d,]"):
            read_documents(written(path, whole[:cut]))
    with pytest.raises(DamagedFileError, match=rf"a\.jsonl{suffix} is corrupt after [\d,]+ bytes"):
        read_documents(written(path, whole + b"no frame"))


def test_rows_of_a_table_without_a_text_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": None}, {"text": ""}, {"text": "one"}]
    assert documents(table(tmp_path / "a.parquet", rows)) == [(None, "one")]
    pairs = [{"prompt": "p", "response": "r", "score": 1}, {"prompt": None, "response": "x"}]
    assert documents(table(tmp_path / "b.parquet", pairs)) == [("p", "r")]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"body": "one", "n": 1}], r"a\.parquet: found the columns 'body', 'n'"),
        ([{"text": 1}], r"a\.parquet:1: 'text' is int, not a string"),
        ([{"text": ["one"]}], r"a\.parquet:1: 'text' is list, not a string"),
    ],
)
def test_a_table_of_another_shape_is_refused(
    rows: list[dict[str, Any]], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        read_documents(table(tmp_path / "a.parquet", rows))


def test_a_table_without_rows_holds_no_text(tmp_path: Path) -> None:
    empty = table(tmp_path / "a.parquet", [{"text": "one"}][:1])
    parquet.write_table(parquet.read_table(empty).slice(0, 0), empty)
    with pytest.raises(UserError, match="holds no text"):
        read_documents(empty)


def test_a_table_that_is_cut_off_or_corrupt_is_named(tmp_path: Path) -> None:
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    path = table(tmp_path / "a.parquet", ROWS, **options)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-4]):
        with pytest.raises(DamagedFileError, match=r"a\.parquet is no whole Parquet table"):
            read_documents(written(path, damaged))
    middle = whole.index("größer 150".encode())
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    with pytest.raises(DamagedFileError, match=r"a\.parquet is corrupt after \d+ rows"):
        read_documents(written(path, flipped))


@pytest.mark.parametrize(
    ("name", "package"), [("a.txt.zst", "zstandard"), ("a.parquet", "pyarrow")]
)
def test_a_missing_package_is_named_with_what_to_type(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package}, which is not installed") as caught:
        read_documents(written(tmp_path / name, b"any"))
    assert caught.value.fix == 'Type: pip install "ys_llm[data]"'


DAMAGED: dict[str, bytes] = {
    "cut.jsonl.gz": gzip.compress(LINES)[:-20],
    "utf16.txt": "größer".encode("utf-16"),
    "no-table.parquet": b"PAR1 and nothing else",
}


@pytest.mark.parametrize("spool_bytes", [0, 10**9])
def test_a_damaged_file_is_named_and_the_others_are_read_where_that_is_chosen(
    spool_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "SPOOL_BYTES", spool_bytes)
    folder, stories = tmp_path / "texts", "".join(f"{n}<start>a.<end>" for n in range(20))
    folder.mkdir()
    (folder / "whole.md").write_text(stories)
    (folder / "cut.jsonl").write_text('{"text": "a text"}\n')
    for name, data in DAMAGED.items():
        (folder / name).write_bytes(data)
        config = DataConfig(path=str(folder))
        with pytest.raises(UserError, match=name):
            load_split(config, scratch=tmp_path)
        skip = replace(config, on_bad_shard="skip")
        split = load_split(skip, scratch=tmp_path, cache_dir=tmp_path / "cache")
        assert name in split.notes["skipped"]
        assert len(split.training) + len(split.validation) == 21
        assert not list(tmp_path.glob("cache/*")), "it may be whole the next time"
        (folder / name).unlink()
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.txt is a link to nothing"):
        load_split(config, scratch=tmp_path)
    assert "gone.txt" in load_split(skip, scratch=tmp_path).notes["skipped"]
