"""Shards say exactly what the documents say, and are never read stale or damaged."""

import json
import os
import shutil
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.config.schema import TokenizerKind
from ys_llm.data import shards as shards_module
from ys_llm.data.records import Document
from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import UserError

END = 0
TEXTS = ["the cat sat", "on the mat\n\nand École ½", "", "日本語 🙂", "a" * 300]
DOCUMENTS = [Document(text=text) for text in TEXTS] + [Document(text="4", prompt="2 + 2 =")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, kind="bytes", vocab_size=258)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    texts = ["Ba aB'a a.\n\ta é日 " * 5 + str(i) for i in range(9)]
    return {
        kind: train_tokenizer(texts, kind=kind, vocab_size=300) for kind in get_args(TokenizerKind)
    }


def load(documents: list[Document], tokenizer: Tokenizer, folder: Path) -> TokenShard:
    return load_or_tokenize(documents, tokenizer, cache_dir=folder, label="training")


def test_a_shard_is_the_documents_between_end_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = load(DOCUMENTS, tokenizer, tmp_path)
    by_key = sorted(DOCUMENTS, key=lambda document: document.content_hash)
    expected = [END]
    for document in by_key:
        if document.prompt is not None:
            expected += [*tokenizer.encode(document.prompt), tokenizer.start_id]
        expected += [*tokenizer.encode(document.text), END]
    assert data.tokens.tolist() == expected
    assert data.tokens.dtype == np.uint16
    assert isinstance(data.tokens, np.memmap)
    assert (data.tokens[data.document_offsets] == END).all()
    assert data.document_bytes.tolist() == [document.n_bytes for document in by_key]
    assert data.n_bytes == sum(len(text.encode()) for text in TEXTS) + len("2 + 2 =4")


def test_the_order_of_the_documents_does_not_matter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    forward = load(DOCUMENTS, tokenizer, tmp_path / "a")
    backward = load_or_tokenize(
        DOCUMENTS[::-1], tokenizer, cache_dir=tmp_path / "b", label="training"
    )
    assert forward.tokens.tolist() == backward.tokens.tolist()
    assert [p.name for p in (tmp_path / "a").iterdir()] == [
        p.name for p in (tmp_path / "b").iterdir()
    ]


def test_a_second_call_reads_the_cache(tokenizer: Tokenizer, tmp_path: Path) -> None:
    load(DOCUMENTS, tokenizer, tmp_path)
    (shard,) = tmp_path.glob("*/tokens.bin")
    written = shard.stat().st_mtime_ns
    load(DOCUMENTS, tokenizer, tmp_path)
    assert shard.stat().st_mtime_ns == written


def test_changed_text_of_the_same_name_is_encoded_anew(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    before = [Document(text="old text", source="story.txt")]
    after = [Document(text="new text", source="story.txt")]
    load(before, tokenizer, tmp_path)
    data = load(after, tokenizer, tmp_path)
    assert tokenizer.decode(data.tokens.tolist()) == "new text"


def test_another_tokenizer_never_meets_the_ids_of_the_first(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    documents = [Document(text="the cat sat on the mat")]
    other = train_tokenizer(["the cat sat on the mat"], kind="chars", vocab_size=300)
    load(documents, tokenizer, tmp_path)
    data = load(documents, other, tmp_path)
    assert data.tokens.tolist() == [END, *other.encode("the cat sat on the mat"), END]


@pytest.mark.parametrize("name", ["tokens.bin", "index.bin", "meta.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_cache_is_made_again(
    tokenizer: Tokenizer, tmp_path: Path, name: str, harm: str
) -> None:
    whole = load_or_tokenize(
        DOCUMENTS, tokenizer, cache_dir=tmp_path, label="training"
    ).tokens.tolist()
    (path,) = tmp_path.glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    again = load(DOCUMENTS, tokenizer, tmp_path)
    assert again.tokens.tolist() == whole
    assert again.document_bytes.sum() == sum(document.n_bytes for document in DOCUMENTS)


def test_no_temporary_file_stays(tokenizer: Tokenizer, tmp_path: Path) -> None:
    load(DOCUMENTS, tokenizer, tmp_path)
    assert {path.name for path in tmp_path.glob("*/*")} == {"tokens.bin", "index.bin", "meta.json"}


def test_several_processes_write_the_same_shard(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(DOCUMENTS, tokenizer, tmp_path / "one")
    monkeypatch.setattr(shards_module, "_PARALLEL_BYTES", 0)
    monkeypatch.setattr(shards_module, "_MAX_PROCESSES", 2)
    monkeypatch.setattr(shards_module, "_PART_CHARS", 16)
    parallel = load(DOCUMENTS, tokenizer, tmp_path / "many")
    assert parallel.tokens.tolist() == whole.tokens.tolist()
    assert parallel.document_offsets.tolist() == whole.document_offsets.tolist()


@pytest.mark.parametrize("kind", get_args(TokenizerKind))
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(alphabet="aB '.\n\té日", max_size=60), min_size=1, max_size=3))
def test_a_document_that_is_encoded_in_parts_has_the_tokens_of_the_whole(
    trained: dict[str, Tokenizer], kind: str, texts: list[str]
) -> None:
    documents = [Document(texts[0]), *(Document(text, prompt=text[::-1]) for text in texts[1:])]
    by_hash = sorted(documents, key=lambda document: document.content_hash)
    encode = trained[kind].encode
    expected = [END]
    for document in by_hash:
        if document.prompt is not None:
            expected += [*encode(document.prompt), trained[kind].start_id]
        expected += [*encode(document.text), END]
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(shards_module, "_PART_CHARS", 7)
        data = load(documents, trained[kind], Path(folder))
        assert data.tokens.tolist() == expected
        assert data.n_bytes == sum(document.n_bytes for document in documents)


def test_no_documents_is_the_users_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="validation split holds no documents"):
        load_or_tokenize([], tokenizer, cache_dir=tmp_path, label="validation")


def test_a_shard_that_was_checked_is_not_read_again(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(DOCUMENTS, tokenizer, tmp_path).tokens.tolist()
    read: list[int] = []
    monkeypatch.setattr(zlib, "crc32", lambda data, value=0: read.append(len(data)) or 0)
    assert load(DOCUMENTS, tokenizer, tmp_path).tokens.tolist() == whole
    assert read == []


def test_a_copied_shard_is_checked_once(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(DOCUMENTS, tokenizer, tmp_path / "a").tokens.tolist()
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy2)
    real, checks = zlib.crc32, []
    monkeypatch.setattr(zlib, "crc32", lambda data, value=0: checks.append(1) or real(data, value))
    assert load(DOCUMENTS, tokenizer, tmp_path / "b").tokens.tolist() == whole
    assert checks
    checks.clear()
    assert load(DOCUMENTS, tokenizer, tmp_path / "b").tokens.tolist() == whole
    assert not checks


def test_damage_is_found_where_size_and_time_of_a_file_were_put_back(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = load(DOCUMENTS, tokenizer, tmp_path).tokens.tolist()
    (path,) = tmp_path.glob("*/tokens.bin")
    before, content = path.stat(), bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(DOCUMENTS, tokenizer, tmp_path).tokens.tolist() == whole


def test_a_shard_without_a_note_of_its_check_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = load(DOCUMENTS, tokenizer, tmp_path).tokens.tolist()
    (path,) = tmp_path.glob("*/meta.json")
    meta = json.loads(path.read_text())
    del meta["checked"]
    path.write_text(json.dumps(meta))
    (tokens,) = tmp_path.glob("*/tokens.bin")
    made = tokens.stat().st_mtime_ns
    assert load(DOCUMENTS, tokenizer, tmp_path).tokens.tolist() == whole
    assert tokens.stat().st_mtime_ns == made
    assert "checked" in json.loads(path.read_text())


def test_plain_text_with_the_tags_in_it_holds_no_control_token(tmp_path: Path) -> None:
    text = "A record: <start> and <end>, <end><start>; `<END>`.\n" * 3
    for kind in get_args(TokenizerKind):
        trained = train_tokenizer([text] * 3, kind=kind, vocab_size=400)
        tokens = load([Document(text)], trained, tmp_path).tokens.tolist()
        inner = tokens[1:-1]
        assert tokens[0] == tokens[-1] == trained.end_id
        assert not {trained.end_id, trained.start_id} & set(inner)
        assert trained.decode(inner) == text
