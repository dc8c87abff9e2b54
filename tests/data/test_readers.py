"""Documents are read exactly, or refused with file and line."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.config.schema import DataConfig, DataFormat
from ys_llm.data import containers, items, readers, shards, tables
from ys_llm.data.items import Item, read_items
from ys_llm.data.readers import read_corpus, read_documents
from ys_llm.data.records import Record, Texts
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.split import split_documents
from ys_llm.data.split_cache import load_split
from ys_llm.data.tally import passed_over_line
from ys_llm.data.text_files import CorpusFiles, read_blocks
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def contents(path: Path) -> set[tuple[str | None, str]]:
    return {(document.prompt, document.text) for document in read_documents(path)}


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_documents(path)
    assert caught.value.fix, "every refusal says what to do"
    return caught.value


def test_text_markdown_and_jsonl_are_read_at_every_depth(folder: Path) -> None:
    write(folder / "a.txt", "one")
    write(folder / "deep" / "er" / "b.MD", "two")
    write(folder / "c.jsonl", '{"text": "three"}\n{"prompt": "p", "response": "four"}\n')
    write(folder / "d.pdf", "not text of ours")
    assert contents(folder) == {(None, "one"), (None, "two"), (None, "three"), ("p", "four")}


def test_a_single_file_can_be_named(folder: Path) -> None:
    assert contents(write(folder / "README.md", "read when named")) == {(None, "read when named")}


def test_readme_manifest_hidden_and_empty_files_are_no_content(folder: Path) -> None:
    for name in ("README.md", "manifest.jsonl", ".hidden.txt", ".git/x.txt", "deep/readme.md"):
        write(folder / name, "no content")
    write(folder / "empty.txt", "")
    write(folder / "blank.md", " \r\n\n")
    write(folder / "empty.jsonl", '\n{"text": ""}\n')
    write(folder / "a.txt", "content")
    assert contents(folder) == {(None, "content")}


def test_line_ends_stay_and_the_byte_order_mark_goes(folder: Path) -> None:
    write(folder / "a.txt", "\ufeffone\r\ntwo\r\n\ufeff")
    write(folder / "b.jsonl", '\ufeff{"text": "three\\r\\n\u2028"}\r\n')
    write(folder / "c.md", "\ufeffq<start>a\r\n<end>\r\n")
    expected = {(None, "one\r\ntwo\r\n\ufeff"), (None, "three\r\n\u2028"), ("q", "a\r\n")}
    assert contents(folder) == expected


def test_a_loop_of_links_ends_and_each_file_is_read_once(folder: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "b.txt", "linked").parent
    write(folder / "a.txt", "own")
    (folder / "loop").symlink_to(folder)
    (folder / "again.txt").symlink_to(folder / "a.txt")
    (folder / "linked").symlink_to(outside)
    (outside / "back").symlink_to(folder)
    assert sorted(document.text for document in read_documents(folder)) == ["linked", "own"]


def test_records_are_read_whole_and_blank_lines_between_them_are_not(folder: Path) -> None:
    first = "\n one\n\nline<start>\n  first\n\n<end>\r\n \n\n"
    text = first + "two<start>second <capital><end><start>third<end>\n"
    path = write(folder / "a.md", text)
    expected = [
        (" one\n\nline", "\n  first\n\n", 2),
        ("two", "second <capital>", 10),
        ("", "third", 10),
    ]
    found = sorted(read_documents(path), key=lambda document: document.text)
    assert [(d.prompt, d.text, d.source) for d in found] == [
        (prompt, response, f"{path}:{line}") for prompt, response, line in expected
    ]


@pytest.mark.parametrize(
    "text", ["tags <end> here", "</start> only", "<end> then <start> and <end>"]
)
def test_a_text_without_records_is_one_plain_document(folder: Path, text: str) -> None:
    assert contents(write(folder / "a.txt", text)) == {(None, text)}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("q<start>a", 1, "<start> has no <end> after it"),
        ("q<start>a<end>\n\nq\n<start>a", 4, "<start> has no <end> after it"),
        ("q<start>a\n<start>b<end>", 1, "<start> has no <end> after it"),
        ("q<start>a<end>\na<end>", 2, "<end> has no <start> before it"),
        ("q<start>a<end>\nq<start> \n<end>", 2, "nothing between <start> and <end>"),
        ("q<start>a<end>\n\n\nleft over\n", 4, "text after the last <end>"),
    ],
)
def test_a_malformed_record_is_refused_with_its_line(
    folder: Path, text: str, line: int, problem: str
) -> None:
    path = write(folder / "a.md", text)
    error = refusal(folder)
    assert error.problem == f"{path}:{line}: {problem}; expected PROMPT<start>RESPONSE<end>"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "found list, not an object"),
        ("{}", "found the fields none"),
        ('{"txt": "a"}', "found the fields 'txt'"),
        ('{"prompt": "a"}', "found the fields 'prompt'"),
        ('{"text": 5}', "'text' is int, not a string"),
        ('{"prompt": "a", "response": null}', "'response' is null, not a string"),
        ('{"text": "\\ud83d"}', "'text' holds half of a character (a lone surrogate)"),
        ('{"text": "a"', "not JSON (Expecting ',' delimiter: line 1 column 13 (char 12))"),
    ],
)
def test_a_bad_line_of_json_is_refused_with_its_line(folder: Path, line: str, problem: str) -> None:
    path = write(folder / "a.jsonl", '{"text": "good"}\n\n' + line + "\n")
    assert refusal(folder).problem == f"{path}:3: {problem}"


def test_json_that_is_nested_too_deep_is_refused_too(folder: Path) -> None:
    path = write(folder / "a.jsonl", "[" * 200_000)
    assert refusal(folder).problem.startswith(f"{path}:1: brackets nested too deep")


def test_a_byte_that_is_not_text_is_named_with_line_and_offset(folder: Path) -> None:
    path = write(folder / "a.txt", b"one\ntwo \xe9t\xe9")
    error = refusal(folder)
    assert error.problem == f"{path}:2: byte 0xe9 at offset 8 is not UTF-8"
    assert f"iconv -f CP1252 -t UTF-8 {path} > NEW" in error.fix


def test_the_first_bad_byte_ends_the_reading(folder: Path) -> None:
    path = folder / "a.txt"
    with path.open("wb") as file:
        file.truncate(50_000_000)  # a hole, which reads as zeros
    tracemalloc.start()
    error = refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.problem == f"{path}:1: byte 0x00 at offset 0 is not a character of a text"
    assert "does not look like text" in error.fix
    assert peak < 10_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_a_hole_of_gigabytes_is_refused_in_little_memory(folder: Path) -> None:
    path = folder / "a.txt"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    script = (
        "import sys; from pathlib import Path; from ys_llm.data.readers import read_corpus\n"
        "try: read_corpus(Path(sys.argv[1]), scratch=Path(sys.argv[1]).parent / 'cache')\n"
        "except Exception as error: print(type(error).__name__)\n"
        "status = Path('/proc/self/status').read_text().split()\n"
        "print(status[status.index('VmHWM:') + 1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True, check=True
    )
    error, kilobytes = done.stdout.split()
    assert error == "DamagedFileError"
    assert int(kilobytes) < 150_000


def test_a_file_that_grows_while_it_is_read_is_refused_and_not_read_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "_BLOCK_BYTES", 100)
    path = write(folder / "a.txt", "one line\n" * 100)
    with path.open("a") as log, pytest.raises(UserError, match="changed while it was read"):
        for _, _ in zip(read_blocks(path), range(1000), strict=False):
            log.write("one more line, longer than what is read at a time\n" * 3)
            log.flush()


@pytest.mark.parametrize("before", [1 << 20, (1 << 20) - 1, (1 << 20) - 2])
def test_offset_and_line_count_from_the_beginning_of_the_file(folder: Path, before: int) -> None:
    text = ("x" * 99 + "\n") * 20_000
    path = write(folder / "a.txt", text[:before].encode() + "é".encode() + b"\xff\xffz")
    line = before // 100 + 1
    expected = f"{path}:{line}: byte 0xff at offset {before + 2} is not UTF-8"
    assert refusal(path).problem == expected


@given(
    st.lists(
        st.sampled_from(["<start>", "<end>", "<", "end>", "a", "\n", "é", "\r\n", " "]), max_size=30
    ),
    st.sampled_from(["a.md", "a.jsonl"]),
)
def test_what_is_read_does_not_depend_on_where_blocks_end(pieces: list[str], name: str) -> None:
    text = "".join(pieces)

    def outcome(blocks: list[str]) -> object:
        with pytest.MonkeyPatch.context() as patch:
            for module in (readers, items, tables):
                patch.setattr(module, "read_blocks", lambda path, errors="strict": iter(blocks))
            patch.setattr(readers, "find_files", lambda path, **_: CorpusFiles([path]))
            found = list(read_items(Path(name)))
            try:
                return found, read_documents(Path(name))
            except UserError as error:
                return found, str(error)

    assert outcome([text]) == outcome(list(text))


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=8))
def test_records_survive_being_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    plain = str.maketrans("", "", "<>\r\n\0")  # the tags, and blank lines before a prompt
    records = [Record(p.translate(plain).strip(), f"a{r.translate(plain)}") for p, r in pairs]
    path = tmp_path_factory.getbasetemp() / "records.md"
    path.write_text("".join(record.text() for record in records), encoding="utf-8", newline="")
    assert list(read_items(path)) == [Item(i, record) for i, record in enumerate(records, start=1)]
    found = [(document.prompt, document.text) for document in read_documents(path)]
    assert sorted(found) == sorted((record.prompt, record.response) for record in records)


def test_plain_text_that_mentions_the_tags_is_read_as_it_is(folder: Path) -> None:
    text = "A record is a prompt, <start>, a response and <end>. Then <start> again.\n"
    path = write(folder / "a.md", text)
    error = refusal(folder)
    assert error.problem.startswith(f"{path}:1: <start> has no <end> after it")
    assert "--set data.format=text" in error.fix
    documents = read_documents(folder, data_format="text")
    assert [(document.prompt, document.text) for document in documents] == [(None, text)]


def test_a_folder_of_records_takes_no_plain_text(folder: Path) -> None:
    write(folder / "a.md", "q<start>a<end>")
    path = write(folder / "b.md", "\nplain text")
    with pytest.raises(UserError) as caught:
        read_documents(folder, data_format="records")
    assert caught.value.problem.startswith(f"{path}:2: there is no <start>")
    assert len(read_documents(folder)) == 2


def test_records_are_read_as_such_whatever_the_format_of_plain_files_is(folder: Path) -> None:
    write(folder / "a.jsonl", '{"text": "one"}\n{"prompt": "p", "response": "two <start>"}\n')
    formats: tuple[DataFormat, ...] = ("auto", "text", "records")
    found = {
        frozenset((d.prompt, d.text) for d in read_documents(folder, data_format=data_format))
        for data_format in formats
    }
    assert found == {frozenset({(None, "one"), ("p", "two <start>")})}
    both = write(folder / "a.jsonl", '{"text": "one", "prompt": "p", "response": "two"}\n')
    assert [one.text for one in read_documents(both, data_format="text")] == ["one"]
    assert [one.text for one in read_documents(both)] == ["two"]


def test_files_of_other_kinds_are_counted_by_their_endings(folder: Path) -> None:
    for name in ("a.txt", "b.pdf", "c.docx", "d.html", "e.jsonl.xz", "f.PDF", "Makefile"):
        write(folder / name, "some text")
    for name in (".hidden.pdf", "README.md", "MANIFEST.jsonl", ".git/x.bin"):
        write(folder / name, "not counted")
    corpus = read_corpus(folder)
    assert [document.text for document in corpus.documents] == ["some text"]
    assert passed_over_line(corpus.tally.passed_over) == (
        "6 files: 2 .pdf, 1 .docx, 1 .html, 1 .jsonl.xz, 1 without an ending"
    )


def test_a_folder_without_text_says_what_it_holds(folder: Path) -> None:
    for name in ("a.pdf", "b.pdf", "c.docx"):
        write(folder / name, "x")
    error = refusal(folder)
    assert error.problem.endswith("file that is not empty; it holds 3 files: 2 .pdf, 1 .docx")
    assert error.fix.startswith("Convert those to text")


def test_at_most_six_endings_are_listed() -> None:
    counts = Counter({f".{letter}": 1 for letter in "abcdefgh"})
    assert passed_over_line(counts) == "8 files: 1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f, 2 others"


def test_a_path_without_text_is_refused_with_what_to_type(folder: Path) -> None:
    missing = folder / "missing"
    assert (
        refusal(missing).problem == f"{missing} does not exist; expected a file or folder of text"
    )
    assert refusal(folder).problem == (
        f"{folder} holds no text: no .txt, .md, .jsonl, .json, .csv, .tsv file that is not empty"
    )
    other = write(folder / "a.dat", "x")
    assert refusal(other).problem == f"{other} is none of .txt, .md, .jsonl, .json, .csv, .tsv"
    assert all("ys train --data PATH" in refusal(path).fix for path in (missing, folder, other))
    (folder / "dangling.txt").symlink_to(missing)
    assert refusal(folder).problem == f"{folder / 'dangling.txt'} is a link to nothing"


def test_names_and_order_of_files_do_not_matter(folder: Path, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(50)]
    for i, text in enumerate(texts):
        write(folder / f"{i}.txt", text)
    lines = [json.dumps({"text": text}) for text in reversed(texts)]
    other = write(tmp_path / "other.jsonl", "\n".join(lines))
    assert [d.text for d in read_documents(folder)] == [d.text for d in read_documents(other)]


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "SPOOL_BYTES", 1)


def test_a_large_corpus_reads_the_same_from_its_temporary_file(
    spooled: None, folder: Path, tmp_path: Path
) -> None:
    write(folder / "a.txt", "Ein größerer Text.\r\n")
    write(folder / "b.md", "Why?<start>日本語 🙂<end>\n<start>no prompt<end>")
    write(folder / "c.jsonl", '{"text": "three"}\n{"prompt": "p", "response": "four"}\n')
    write(folder / "d.txt", "größer, 日本語\n" * 20_000)
    write(folder / "e.json", json.dumps([{"text": "größer " * 20_000}, {"text": " "}]))
    write(folder / "f.csv.gz", gzip.compress("instruction,output\nWhy?,日本語\n".encode()))
    write(folder / "g.tsv", "prompt\tresponse\n\tno prompt either\nq\t\n")
    write(folder / "h.jsonl", '{"messages": []}\n{"text": "one more"}\n')
    scratch, skip = tmp_path / "cache", DataConfig(on_bad_record="skip")
    in_memory, large = read_corpus(folder, skip), read_corpus(folder, skip, scratch=scratch)
    assert in_memory.spool is None and large.spool is not None
    assert in_memory.tally == large.tally
    assert large.tally.notes()["formats"] == "5 text, 4 prompt, 1 alpaca, 1 empty"
    assert large.tally.bad_records.count == 2
    for one, other in zip(in_memory.documents, large.documents, strict=True):
        assert (one.text, one.prompt, one.source) == (other.text, other.prompt, other.source)
        assert (one.id, one.content_hash, one.n_bytes) == (
            other.id,
            other.content_hash,
            other.n_bytes,
        )
    one, other = (split_documents(c.documents, validation_fraction=0.5) for c in (in_memory, large))
    assert [d.text for d in one.validation] == [d.text for d in other.validation]
    assert [d.content_hash for d in one.training] == [d.content_hash for d in other.training]
    assert one.record.cuts == other.record.cuts != ()
    assert list(Texts(in_memory.documents)) == list(Texts(large.documents))
    assert list(scratch.iterdir()) == [], "the file has no name"


@pytest.mark.parametrize("n_files", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_the_texts_of_a_large_corpus_do_not_lie_in_memory(
    n_files: int, spooled: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "_BLOCK_BYTES", 100_000)
    monkeypatch.setattr(shards, "_PART_CHARS", 100_000)
    for number in range(10, 10 + n_files):  # some of them long enough to be cut
        words = 3_000_000 // n_files
        write(folder / f"{number}.txt", f"{number} " * (words // (1 if number % 2 else 2)))

    def peak_of_training_a_shard(scratch: Path | None) -> int:
        tracemalloc.start()
        config = DataConfig(path=str(folder), validation_fraction=0.2)
        split = load_split(config, scratch=scratch)
        tokenizer = train_tokenizer(Texts(split.training), kind="bytes", vocab_size=258)
        load_or_tokenize(split.training, tokenizer, cache_dir=tmp_path / "cache", label="training")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    assert peak_of_training_a_shard(tmp_path / "scratch") < 0.4 * n_bytes
    assert peak_of_training_a_shard(None) > n_bytes
