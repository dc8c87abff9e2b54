"""Text at an address is the text of its files: fetched whole, or named."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ys_llm.config.schema import DataConfig
from ys_llm.data import readers, remote, split_cache
from ys_llm.data.split import Split
from ys_llm.data.split_cache import load_split
from ys_llm.errors import UserError

fsspec = pytest.importorskip("fsspec")

LINES = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(40)).encode()
FILES = {
    "a.jsonl": LINES,
    "below/b.jsonl.gz": gzip.compress(LINES.replace(b"text ", b"other ")),
    "below/c.txt": "größer\n".encode(),
    "below/README.md": b"about",
    ".hidden/d.txt": b"hidden",
    "e.pdf": b"%PDF-",
}


@pytest.fixture(params=[0, 10**9], ids=["rows", "memory"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system in memory with a folder of texts."""
    monkeypatch.setattr(readers, "SPOOL_BYTES", request.param)
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0)
    found = fsspec.filesystem("memory")
    for name, data in FILES.items():
        found.pipe_file(f"/texts/{name}", data)
    yield found
    found.rm("/texts", recursive=True)


def load(place: str | Path, scratch: Path, **settings: Any) -> Split:
    return load_split(DataConfig(path=str(place), **settings), scratch=scratch, cache_dir=scratch)


def test_an_address_gives_the_documents_of_the_same_files_here(system: Any, tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_bytes(data)
    here = load(tmp_path / "texts", tmp_path / "here")
    (tmp_path / "there").mkdir()
    for address in ("memory://texts", f"file://{tmp_path}/texts"):
        there = load(address, tmp_path / "there")
        assert [d.content_hash for d in there.training] == [d.content_hash for d in here.training]
        assert [d.text for d in there.validation] == [d.text for d in here.validation]
        assert there.notes == here.notes
        assert all(d.source.startswith(address.partition(":")[0]) for d in there.training)
    one = load("memory://texts/a.jsonl", tmp_path / "there")
    assert len(one.training) + len(one.validation) == 40
    left = [path for path in (tmp_path / "there").iterdir() if path.name.startswith(".")]
    assert not left, "each file is removed when it has been read"


def test_a_file_that_comes_short_is_fetched_again(
    system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [0], type(system).get_file

    def sometimes(self: Any, url: str, path: str, **named: Any) -> None:
        original(self, url, path, **named)
        calls[0] += 1
        if calls[0] == 1:
            raise ConnectionError("reset")
        if calls[0] == 2:
            Path(path).write_bytes(LINES[:100])

    monkeypatch.setattr(type(system), "get_file", sometimes)
    split = load("memory://texts/a.jsonl", tmp_path)
    assert calls == [3] and len(split.training) + len(split.validation) == 40


def test_a_file_that_never_comes_is_named_or_left_out(
    system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(system).get_file

    def broken(self: Any, url: str, path: str, **named: Any) -> None:
        if url.endswith("b.jsonl.gz"):
            raise ConnectionError("reset by peer")
        original(self, url, path, **named)

    monkeypatch.setattr(type(system), "get_file", broken)
    with pytest.raises(UserError, match=r"b\.jsonl\.gz cannot be fetched: reset by peer"):
        load("memory://texts", tmp_path)
    split = load("memory://texts", tmp_path, on_bad_shard="skip")
    assert len(split.training) + len(split.validation) == 41
    assert "b.jsonl.gz cannot be fetched" in split.notes["skipped"]


def test_a_damaged_file_is_named_by_its_address(system: Any, tmp_path: Path) -> None:
    system.pipe_file("/texts/below/b.jsonl.gz", FILES["below/b.jsonl.gz"][:-9])
    with pytest.raises(UserError) as refused:
        load("memory://texts", tmp_path)
    assert refused.value.problem.startswith("memory:///texts/below/b.jsonl.gz is cut off")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("memory://nowhere", "cannot be listed"),
        ("nosuch://a/b", "Protocol not known"),
        ("memory://texts/e.pdf", "holds no text"),
    ],
)
def test_an_address_without_text_is_one_clear_line(
    address: str, problem: str, system: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        load(address, tmp_path)


def test_a_missing_package_is_named(
    system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match=r"s3://bucket/texts needs a package .*: Install s3fs"):
        load("s3://bucket/texts", tmp_path)


def test_text_elsewhere_that_has_not_changed_is_not_fetched_again(
    system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if readers.SPOOL_BYTES:
        pytest.skip("a small text is read every time")
    first = load("memory://texts", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(split_cache, "_read_split", None)
        again = load("memory://texts", tmp_path)
    assert [d.content_hash for d in again.training] == [d.content_hash for d in first.training]
    system.pipe_file("/texts/below/c.txt", b"another text\n")
    changed = load("memory://texts", tmp_path)
    assert "another text\n" in [d.text for d in [*changed.training, *changed.validation]]
