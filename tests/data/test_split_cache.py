"""An unchanged corpus is not read again; one that may have changed is."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ys_llm.config.schema import DataConfig
from ys_llm.data import readers, split_cache
from ys_llm.data import split as split_module
from ys_llm.data.records import Texts
from ys_llm.data.split import Split, SplitRecord
from ys_llm.data.split_cache import load_split
from ys_llm.errors import UserError

Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus that counts as large, as if it had been written long ago: plain text and records."""
    monkeypatch.setattr(readers, "SPOOL_BYTES", 1)
    monkeypatch.setattr(split_module, "LONG_DOCUMENT_CHARS", 35_000)
    monkeypatch.setattr(split_cache, "_SETTLED_NANOSECONDS", -(10**18))
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "novel.txt").write_text("größer, 日本語\n" * 3_000, encoding="utf-8")
    (folder / "0.md").write_text("a text: 1\n")
    stories = "".join(f"Why {n}?<start>Since {n}.\n<end>\n" for n in range(40))
    (folder / "stories.md").write_text(stories)
    (folder / "a: 7").mkdir()
    lines = (json.dumps({"text": f"text {n}"}) for n in range(40))
    (folder / "a: 7" / "lines.jsonl").write_text("\n".join(lines))
    (folder / "b.pdf").write_text("%PDF-")
    return folder


class Loader:
    """Loads the split of a folder with a cache, and counts how often the texts were read."""

    def __init__(self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self._folder, self._cache = 0, folder, cache
        original = split_cache.read_corpus

        def counted(*arguments: Any, **named: Any) -> Any:
            self.reads += 1
            return original(*arguments, **named)

        monkeypatch.setattr(split_cache, "read_corpus", counted)

    def __call__(
        self, record: SplitRecord | None = None, *, cached: bool = True, **settings: Any
    ) -> Split:
        config = DataConfig(path=str(self._folder), **{"validation_fraction": 0.2, **settings})
        cache = self._cache if cached else None
        return load_split(config, record=record, scratch=self._cache, cache_dir=cache)


@pytest.fixture
def load(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    return Loader(folder, tmp_path / "cache", monkeypatch)


def facts(split: Split) -> Iterator[Any]:
    """What a header, a token cache and a checkpoint say of a split."""
    yield split.leak_check
    yield split.notes
    yield split.record
    for side in (split.training, split.validation):
        for d in side:
            yield d.id, d.content_hash, d.n_bytes, d.n_chars, d.source, d.has_prompt
        yield next(d.prompt for d in side if d.has_prompt)


def same(one: Split, other: Split) -> bool:
    return list(facts(one)) == list(facts(other))


def test_an_unchanged_corpus_is_not_read_again(load: Loader) -> None:
    first = load()
    assert first.record.cuts and len(first.validation) > 5
    assert same(load(), first) and load.reads == 1
    # A run that has saved a checkpoint has a record of its cuts.
    assert same(load(first.record), first) and load.reads == 1
    assert same(load(first.record, cached=False), first)


CHANGES: dict[str, Change] = {
    "a text of the same size and the same time": lambda f: rewritten(f / "0.md", "A text: 1\n"),
    "a copy in the place of the original": lambda f: copied(f / "0.md"),
    "a touched file": lambda f: os.utime(f / "0.md", ns=(1, 1)),
    "a longer text": lambda f: (f / "0.md").write_text("a text: 1, 2\n"),
    "a renamed file": lambda f: (f / "0.md").rename(f / "1.md"),
    "a file in another folder": lambda f: (f / "0.md").rename(f / "a: 7" / "0.md"),
    "one more text": lambda f: (f / "new.txt").write_text("new"),
    "one text less": lambda f: (f / "0.md").unlink(),
    "a file of another kind": lambda f: (f / "c.log").write_text("1,2"),
}


def rewritten(path: Path, text: str) -> None:
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def copied(path: Path) -> None:
    shutil.copy2(path, path.with_name("x"))
    os.replace(path.with_name("x"), path)


@pytest.mark.parametrize("change", CHANGES)
def test_a_corpus_that_may_have_changed_is_read_again(
    change: str, load: Loader, folder: Path
) -> None:
    record = load().record
    CHANGES[change](folder)
    again = load(record)
    assert load.reads == 2
    assert same(again, load(record, cached=False))
    assert same(load(record), again) and load.reads == 3, "the new state is kept"


@pytest.mark.parametrize(
    "settings", [{"validation_fraction": 0.3}, {"format": "text"}, {"path": "elsewhere"}]
)
def test_other_settings_read_the_text_again(
    settings: dict[str, Any], load: Loader, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    if "path" in settings:
        load._folder = folder.rename(folder.with_name("elsewhere"))
        settings = {}
    load(**settings)
    assert load.reads == 2


def test_another_record_of_the_cuts_reads_the_text_again(load: Loader) -> None:
    first = load()
    load(SplitRecord(1, first.record.cuts))
    load(SplitRecord(2, (*first.record.cuts, *load(validation_fraction=0.3).record.cuts)))
    assert load.reads == 4


def test_a_split_that_its_own_record_would_change_is_read_again(load: Loader, folder: Path) -> None:
    """A short text is the beginning of the novel: the record of the cut is found in it, too."""
    text = (folder / "novel.txt").read_text(encoding="utf-8")
    (folder / "part.txt").write_text(text[:34_000], encoding="utf-8")
    first = load()
    again = load(first.record)
    assert load.reads == 2
    assert same(again, load(first.record, cached=False)) and not same(again, first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    ],
)
def test_a_damaged_file_is_not_used(
    damage: Callable[[bytes], bytes], load: Loader, tmp_path: Path
) -> None:
    first, kept = load(), tmp_path / "cache" / split_cache.NAME
    kept.write_bytes(damage(kept.read_bytes()))
    assert same(load(), first) and load.reads == 2
    assert same(load(), first) and load.reads == 2


def test_a_text_that_is_asked_for_is_read_after_all_once(load: Loader) -> None:
    first = load()
    kept = load()
    for one, other in ((first.training, kept.training), (first.validation, kept.validation)):
        assert list(Texts(one)) == list(Texts(other))
        assert [d.prompt for d in one] == [d.prompt for d in other]
        assert one[0].part(1, 3).text == other[0].part(1, 3).text
    assert load.reads == 2


def test_a_text_that_changed_before_it_is_asked_for_is_refused(load: Loader, folder: Path) -> None:
    load()
    kept = load()
    (folder / "stories.md").write_text("q<start>a<end>")
    with pytest.raises(UserError, match="the text changed"):
        list(Texts([*kept.training, *kept.validation]))


def test_files_written_just_now_could_be_written_again_unnoticed(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_cache, "_SETTLED_NANOSECONDS", 10**12)
    load()
    load()
    assert load.reads == 2


def test_a_corpus_that_changes_while_it_is_read_is_not_kept(
    load: Loader, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = split_cache.split_table

    def changed_meanwhile(*arguments: Any, **named: Any) -> Any:
        (folder / "0.md").write_text("a text: 2\n")
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(split_cache, "split_table", changed_meanwhile)
        load()
    load()
    assert load.reads == 2


def test_a_small_corpus_and_a_folder_that_cannot_be_written_are_read_every_time(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache" / split_cache.NAME).mkdir(parents=True)
    first = load()
    assert same(load(), first) and load.reads == 2
    (tmp_path / "cache" / split_cache.NAME).rmdir()
    monkeypatch.setattr(readers, "SPOOL_BYTES", 10**9)
    load()
    assert not (tmp_path / "cache" / split_cache.NAME).exists()


def test_links_are_followed_to_what_they_name(load: Loader, folder: Path, tmp_path: Path) -> None:
    target = folder.with_name("outside.txt")
    target.write_text("outside\n")
    (folder / "link.txt").symlink_to(target)
    load()
    load()
    assert load.reads == 1
    rewritten(target, "OUTSIDE\n")
    load()
    assert load.reads == 2
