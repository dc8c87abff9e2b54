"""Documents are read exactly, split by content alone, and refused with file and line."""

import json
import random
from pathlib import Path

import pytest

from ys_llm.data.readers import (
    LONG_DOCUMENT_CHARS,
    Document,
    Split,
    read_documents,
    split_documents,
)
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


def some_documents(n: int) -> list[Document]:
    return [Document(f"The story of number {i}.", source=f"{i}.txt") for i in range(n)]


def sides(split: Split) -> dict[str, str]:
    found = {document.key: "training" for document in split.training}
    for document in split.validation:
        assert found.setdefault(document.key, "validation") == "validation"
    return found


def test_text_markdown_and_jsonl_are_read_at_every_depth(folder: Path) -> None:
    write(folder / "a.txt", "one")
    write(folder / "deep" / "er" / "b.MD", "two")
    write(folder / "c.jsonl", '{"text": "three"}\n{"prompt": "p", "response": "four"}\n')
    write(folder / "d.csv", "not text of ours")
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
    text = first + "two<start>second <upper><end><start>third<end>\n"
    path = write(folder / "a.md", text)
    expected = [
        (" one\n\nline", "\n  first\n\n", 2),
        ("two", "second <upper>", 10),
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
        ('{"text": "a", "prompt": "b"}', "found the fields 'text', 'prompt'"),
        ('{"text": 5}', "'text' is int, not a string"),
        ('{"prompt": "a", "response": null}', "'response' is NoneType, not a string"),
        ('{"text": "\\ud83d"}', "'text' holds half of a character (a lone surrogate)"),
        ('{"text": "a"', "not JSON (Expecting ',' delimiter: line 1 column 13 (char 12))"),
    ],
)
def test_a_bad_line_of_json_is_refused_with_its_line(folder: Path, line: str, problem: str) -> None:
    path = write(folder / "a.jsonl", '{"text": "good"}\n\n' + line + "\n")
    assert refusal(folder).problem == f"{path}:3: {problem}"


def test_json_that_is_nested_too_deep_is_refused_too(folder: Path) -> None:
    path = write(folder / "a.jsonl", "[" * 200_000)
    assert refusal(folder).problem.startswith(f"{path}:1: brackets within brackets")


def test_bytes_that_are_no_text_are_refused_with_line_and_offset(folder: Path) -> None:
    path = write(folder / "a.txt", b"one\ntwo \xe9t\xe9")
    error = refusal(folder)
    assert error.problem == f"{path}:2: byte 0xe9 at offset 8 is not UTF-8"
    assert error.fix.startswith("If the file is LATIN1, type: iconv -f LATIN1 -t UTF-8 OLD > NEW")
    path = write(folder / "a.txt", "one".encode("utf-16"))
    assert "If the file is UTF-16" in refusal(path).fix


def test_a_path_without_text_is_refused_with_what_to_type(folder: Path) -> None:
    missing = folder / "missing"
    assert (
        refusal(missing).problem == f"{missing} does not exist; expected a file or folder of text"
    )
    assert refusal(folder).problem == (
        f"{folder} holds no text: no .txt, .md, .jsonl file that is not empty"
    )
    other = write(folder / "a.csv", "x")
    assert refusal(other).problem == f"{other} is none of .txt, .md, .jsonl"
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


def test_the_key_tells_prompt_from_text_and_forgets_the_source() -> None:
    alike = [Document("ab", source=source) for source in ("x", "y")]
    different = [Document("ab"), Document("ab", ""), Document("b", "a"), Document("", "ab")]
    assert alike[0].key == alike[1].key
    assert len({document.key for document in different}) == 4
    assert Document("é", "日").n_bytes == 5


def test_a_document_never_moves_when_files_are_added_renamed_or_reordered() -> None:
    documents = some_documents(400)
    before = sides(split_documents(documents, validation_fraction=0.2))
    more = [Document(d.text, source="renamed") for d in documents] + [
        Document(f"Something new, {i}.") for i in range(400)
    ]
    random.Random(0).shuffle(more)
    after = sides(split_documents(more, validation_fraction=0.2))
    assert {key: after[key] for key in before} == before


def test_the_validation_side_has_about_the_fraction_asked_for() -> None:
    split = split_documents(some_documents(5000), validation_fraction=0.1)
    assert 400 < len(split.validation) < 600
    assert len(split.training) + len(split.validation) == 5000


def test_a_document_stays_in_validation_when_the_fraction_grows() -> None:
    small, large = (
        {d.key for d in split_documents(some_documents(500), validation_fraction=f).validation}
        for f in (0.1, 0.3)
    )
    assert small < large


def test_duplicates_land_on_one_side_and_the_leak_check_counts_them() -> None:
    split = split_documents(some_documents(300) + some_documents(200), validation_fraction=0.2)
    sides(split)
    n_training, n_validation = len(split.training), len(split.validation)
    assert split.leak_check == (
        f"0 of {n_validation} validation documents are also among the {n_training} for training; "
        "200 exact duplicates, each on the side of its original"
    )


def test_the_leak_check_reports_a_real_leak() -> None:
    novel = "".join(f"Line {i} of a novel.\n" for i in range(20_000))
    cut = int(len(novel) * 0.9)
    tails = [Document(novel), Document(novel[cut:])]
    assert len(novel[cut:]) < LONG_DOCUMENT_CHARS
    expected = "1 of 1 validation documents are also among the 2 for training; 1 exact duplicates"
    assert split_documents(tails, validation_fraction=0.1).leak_check == expected


def test_one_long_text_gives_its_last_tenth_to_validation() -> None:
    text = "".join(f"Line {i} of a play.\n" for i in range(60_000))
    split = split_documents([Document(text, source="play.txt")], validation_fraction=0.1)
    assert [document.text for document in split.training] == [text[: int(len(text) * 0.9)]]
    assert split.training[0].text + split.validation[0].text == text
    assert split.validation[0].source == "play.txt"


def test_long_records_and_shorter_texts_are_never_cut() -> None:
    long = "x" * (LONG_DOCUMENT_CHARS + 1)
    documents = [Document(long, prompt="p"), Document(long[:-1]), *some_documents(20)]
    split = split_documents(documents, validation_fraction=0.5)
    assert len(split.training) + len(split.validation) == 22


def test_a_fraction_of_zero_trains_on_everything() -> None:
    long = Document("word " * LONG_DOCUMENT_CHARS)
    split = split_documents([long, *some_documents(50)], validation_fraction=0.0)
    assert len(split.training) == 51
    assert split.validation == []


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(UserError, match="all 3 documents fell to validation"):
        split_documents(some_documents(3), validation_fraction=0.999999)
