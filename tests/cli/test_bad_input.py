"""Texts that cannot be read as they should be: one clear line each, and nothing is lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bad_cases import (
    TRAIN,
    Case,
    check,
    everything,
    exit_code,
    file,
    put,
    table,
    without_rights,
)

from ys_llm.data import readers
from ys_llm.data.text_files import CorpusFiles
from ys_llm.errors import EXIT_FAILED

FOX = "The fox saw the hen.\n" * 40


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_as_they_were: None) -> Path:
    """A current folder that holds another run, and no setting of the user's in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("YS_"):
            monkeypatch.delenv(name)
    put("runs/other/model.safetensors", "weights of somebody's weeks")
    put("runs/other/config.yaml", "run: other\n")
    return tmp_path


def link(path: str, target: str) -> Callable[[], None]:
    def make() -> None:
        put("texts/good.txt", FOX)
        Path(path).symlink_to(target)

    return make


def special(path: str, make_node: Callable[[str], Any], *, through: str = "") -> Callable[[], None]:
    """A file that is none, beside a good one; or a link to it."""

    def make() -> None:
        put("texts/good.txt", FOX)
        make_node(path)
        if through:
            Path(through).symlink_to(os.path.relpath(path, Path(through).parent))

    return make


def a_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(path)


def jsonl(line: str) -> Callable[[], None]:
    return file("texts/a.jsonl", '{"text": "a good line"}\n' + line + "\n")


def records(text: str) -> Callable[[], None]:
    return file("texts/a.md", "Say hello.<start>Hello.<end>\n" + text)


SHAPES = ('{"text": "..."}', '{"prompt": "...", "response": "..."}')
NO_TEXT = ("texts holds no text", ".txt, .md, .jsonl", "ys train --run new --data PATH")

TEXTS = (
    Case("nothing there", TRAIN, ("texts does not exist", "ys train --run new --data PATH")),
    Case("empty file", TRAIN, NO_TEXT, file("texts/a.txt")),
    Case("empty folder", TRAIN, NO_TEXT, lambda: Path("texts").mkdir()),
    Case("only spaces", TRAIN, NO_TEXT, file("texts/a.txt", " \n\t\n" * 500)),
    Case("nothing but a byte-order mark", TRAIN, NO_TEXT, file("texts/a.txt", b"\xef\xbb\xbf")),
    Case(
        "latin-1",
        TRAIN,
        ("texts/a.txt:2: byte 0xe9 at offset 10", "iconv -f CP1252 -t UTF-8"),
        file("texts/a.txt", b"one line\nd\xe9j\xe0 vu\n"),
    ),
    Case(
        "utf-16",
        TRAIN,
        ("texts/a.txt:1: byte 0xff at offset 0", "iconv -f UTF-16 -t UTF-8"),
        file("texts/a.txt", FOX.encode("utf-16")),
    ),
    Case(
        "utf-16 without its mark",
        TRAIN,
        ("texts/a.txt:1: byte 0x00 at offset 1", "iconv -f UTF-16LE -t UTF-8"),
        file("texts/a.txt", FOX.encode("utf-16-le")),
    ),
    Case(
        "a program named .txt",
        TRAIN,
        ("texts/a.txt is a program; expected text in UTF-8", "Leave it out"),
        file("texts/a.txt", b"\x7fELF\x00\x01\x02\x03" * 100),
    ),
    Case(
        "a table without a text",
        (*TRAIN, "--data", "a.csv"),
        ("a.csv:1: found the columns", "skip"),
        file("a.csv", FOX),
    ),
    Case(
        "a link to nothing",
        TRAIN,
        ("texts/b.txt is a link to nothing", "remove the link"),
        link("texts/b.txt", "gone.txt"),
    ),
    Case(
        "a link to itself",
        TRAIN,
        ("texts/b.txt is a link to nothing", "remove the link"),
        link("texts/b.txt", "b.txt"),
    ),
    Case(
        "a link to nothing as the corpus",
        (*TRAIN, "--data", "here"),
        ("here is a link to nothing", "ys train --run new --data PATH"),
        link("here", "gone"),
    ),
    Case(
        "a pipe",
        TRAIN,
        ("texts/b.txt is a pipe", "Copy its content"),
        special("texts/b.txt", os.mkfifo),
    ),
    Case(
        "a link to a pipe",
        TRAIN,
        ("texts/b.txt is a pipe",),
        special("pipe", os.mkfifo, through="texts/b.txt"),
    ),
    Case(
        "a pipe as the corpus",
        (*TRAIN, "--data", "pipe.txt"),
        ("pipe.txt is a pipe",),
        special("pipe.txt", os.mkfifo),
    ),
    Case(
        "an endless device",
        TRAIN,
        ("texts/b.txt is a device",),
        link("texts/b.txt", "/dev/zero"),
    ),
    Case(
        "an endless device as the corpus",
        (*TRAIN, "--data", "/dev/zero"),
        ("/dev/zero is a device",),
    ),
    Case(
        "a pipe named .docx as the corpus",
        (*TRAIN, "--data", "pipe.docx"),
        ("pipe.docx is a pipe",),
        special("pipe.docx", os.mkfifo),
    ),
    Case(
        "pipes and sockets of other names",
        TRAIN,
        ("texts holds no text", "it holds 2 files: 1 .docx, 1 .pdf"),
        lambda: (Path("texts").mkdir(), os.mkfifo("texts/a.pdf"), a_socket("texts/b.docx")),
    ),
    Case(
        "the beginning of a Word document",
        (*TRAIN, "--data", "w.docx"),
        ("w.docx is a Word document; expected one of .txt", "Save it as plain text"),
        file("w.docx", b"PK\x03\x04xx[Content_Types].xml word/"),
    ),
    Case(
        "the beginning of a zip archive",
        (*TRAIN, "--data", "w.docx"),
        ("w.docx is a zip archive", "Unpack it"),
        file("w.docx", b"PK\x03\x04"),
    ),
    Case(
        "an empty Word document",
        (*TRAIN, "--data", "w.docx"),
        ("w.docx is none of .txt", "Rename it if it is text"),
        file("w.docx"),
    ),
    Case(
        "the beginning of a gzip archive",
        (*TRAIN, "--data", "a.txt.gz"),
        ("a.txt.gz is cut off", "download it again"),
        file("a.txt.gz", b"\x1f\x8b"),
    ),
    Case(
        "the beginning of a PDF document",
        (*TRAIN, "--data", "a.pdf"),
        ("a.pdf is a PDF document", "pdftotext"),
        file("a.pdf", b"%PDF-"),
    ),
    Case("a socket", TRAIN, ("texts/b.txt is a socket",), special("texts/b.txt", a_socket)),
    Case(
        "a folder named .txt",
        (*TRAIN, "--data", "a.txt"),
        ("a.txt holds no text",),
        lambda: Path("a.txt").mkdir(),
    ),
    Case("no json", TRAIN, ("texts/a.jsonl:2: not JSON", *SHAPES), jsonl("{'text': 'a'}")),
    Case("a list", TRAIN, ("texts/a.jsonl:2: found list, not an object", *SHAPES), jsonl("[1]")),
    Case(
        "json too deep",
        TRAIN,
        ("a.jsonl:2: brackets nested too deep", *SHAPES),
        jsonl("[" * 10**6),
    ),
    Case("a number too long", TRAIN, ("a.jsonl:2: not JSON", "digits"), jsonl("9" * 5000)),
    Case(
        "other fields",
        TRAIN,
        ("a.jsonl:2: found the fields 'a', 'b'", *SHAPES),
        jsonl('{"a": 1, "b": 2}'),
    ),
    Case(
        "a hundred thousand fields",
        TRAIN,
        ("a.jsonl:2: found the fields '0', '1', '2', '3', '4' and 99,995 more", *SHAPES),
        jsonl("{" + ", ".join(f'"{i}": 0' for i in range(10**5)) + "}"),
    ),
    Case(
        "a field given twice",
        TRAIN,
        ("a.jsonl:2: not JSON (the field 'text' is given twice)", *SHAPES),
        jsonl('{"text": "one", "text": "two"}'),
    ),
    Case(
        "text that is a number",
        TRAIN,
        ("a.jsonl:2: 'text' is int, not a string",),
        jsonl('{"text": 1}'),
    ),
    Case("half a character", TRAIN, ("a.jsonl:2:", "surrogate"), jsonl(r'{"text": "\ud800"}')),
    Case(
        "start, no end",
        TRAIN,
        ("a.md:2: <start> has no <end>", "--set data.format=text"),
        records("And?<start>Yes.\n"),
    ),
    Case(
        "no records where records are expected",
        (*TRAIN, "--set", "data.format=records"),
        ("a.txt:1: there is no <start>", "leave out --set data.format=records"),
        file("texts/a.txt", FOX),
    ),
    Case(
        "no text but other files",
        TRAIN,
        ("texts holds no text", "it holds 1 file: 1 .pdf", "Convert those to text"),
        file("texts/a.pdf", b"%PDF-1.7"),
    ),
    Case(
        "a gzip archive named .txt",
        TRAIN,
        ("texts/a.txt is a gzip archive; expected text in UTF-8", "gunzip"),
        file("texts/a.txt", b"\x1f\x8b\x08\x00"),
    ),
    Case(
        "a GBK file",
        TRAIN,
        (
            "texts/a.txt:1: byte 0xcb at offset 0 is not UTF-8",
            "iconv -f GB18030 -t UTF-8 texts/a.txt",
        ),
        file("texts/a.txt", "他们在村子里住了很多年，每天早上都去河边打水。".encode("gbk")),
    ),
    Case("end, no start", TRAIN, ("a.md:2: <end> has no <start>",), records("And?<end>\n")),
    Case("no response", TRAIN, ("a.md:2: nothing between",), records("And?<start>  <end>\n")),
    Case("text behind the last end", TRAIN, ("a.md:2: text after",), records("And?\n")),
    Case(
        "a name of two lines",
        TRAIN,
        (r"texts/a\nb.txt:1: byte 0xff",),
        file("texts/a\nb.txt", b"\xff"),
    ),
    Case(
        "less than one window",
        (*TRAIN, "--set", "train.seq_len=500", "--set", "data.validation_fraction=0"),
        ("has 22 tokens", "needs at least 501", "--set train.seq_len=21"),
        file("texts/a.txt", "The fox saw the hen."),
    ),
    Case(
        "all held out",
        (*TRAIN, "--set", "data.validation_fraction=0.999999"),
        ("all 2 documents are held out", "--set data.validation_fraction=0"),
        file("texts/a.jsonl", '{"text": "one"}\n{"text": "two"}\n'),
    ),
)


@table(*TEXTS)
def test_a_bad_text_is_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    check(case, capsys)


@pytest.mark.parametrize("locked", ["texts/a.txt", "texts/deep"])
def test_what_may_not_be_read_is_named(
    locked: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("texts/a.txt", FOX)
    put("texts/deep/b.txt", FOX)
    before = everything(except_for="runs/new")
    for writable in (folder, Path("runs")):
        writable.chmod(0o777)
    Path(locked).chmod(0)
    with without_rights():
        assert exit_code(*TRAIN) == EXIT_FAILED
    Path(locked).chmod(0o755)
    assert capsys.readouterr().err == (
        f"ys: {locked} cannot be read: Permission denied. "
        "Make it readable, or move it out of the folder.\n"
    )
    assert everything(except_for="runs/new") == before


def test_a_text_that_vanishes_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("texts/a.txt", FOX)
    listed = readers.find_files

    def list_and_remove(root: Path, **named: Any) -> CorpusFiles:
        files = listed(root, **named)
        for path in files.paths:
            path.unlink()
        return files

    monkeypatch.setattr(readers, "find_files", list_and_remove)
    assert exit_code(*TRAIN) == EXIT_FAILED
    assert capsys.readouterr().err == (
        "ys: texts/a.txt was removed after the folder was listed. "
        "Wait until the program that moves it is done, then type the command again.\n"
    )


@pytest.mark.parametrize("change", [b"more", b""])
def test_a_text_that_changes_while_it_is_read_is_named(
    change: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("texts/a.txt", FOX)
    look = os.fstat
    looks: list[int] = []

    def look_and_change(descriptor: int) -> os.stat_result:
        found = look(descriptor)
        if not looks and found.st_size == len(FOX):
            looks.append(descriptor)
            with open("texts/a.txt", "r+b") as other:
                other.truncate(10)
                other.write(change)
        return found

    monkeypatch.setattr(os, "fstat", look_and_change)
    code = exit_code(*TRAIN)
    assert looks
    assert code == EXIT_FAILED
    error = capsys.readouterr().err
    assert error.startswith("ys: texts/a.txt changed while it was read. ")
    assert error.count("\n") == 1


TAGS = "A record is a prompt, <start>, a response. An <end> ends it. <start> is a tag.\n"
FINE = {
    "a text about the tags": (file("texts/a.txt", TAGS * 20), ("data.format=text",)),
    "one document": (file("texts/a.txt", FOX), ("data.validation_fraction=0",)),
    "a batch of one": (
        file("texts/a.txt", FOX),
        ("train.batch_size=1", "data.validation_fraction=0"),
    ),
    "a batch larger than the text": (
        file("texts/a.txt", FOX),
        ("train.batch_size=200", "data.validation_fraction=0"),
    ),
    "a folder that links to itself": (
        special("texts/a.txt", lambda path: put(path, FOX), through="texts/deep"),
        ("data.validation_fraction=0",),
    ),
    "nothing held out": (file("texts/a.txt", FOX), ("data.validation_fraction=1e-9",)),
    "one line": (file("texts/a.txt", FOX.replace("\n", " ")), ("data.validation_fraction=0",)),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_odd_but_enough_is_trained_on(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, changes = FINE[name]
    if name == "a folder that links to itself":
        put("texts/a.txt", FOX)
        Path("texts/deep").symlink_to("../texts")
    else:
        make()
    before = everything(except_for="runs/new")
    words = [word for change in changes for word in ("--set", change)]
    assert exit_code(*TRAIN, *words, "--set", "train.max_steps=2") == 0, capsys.readouterr().err
    assert everything(except_for="runs/new") == before


def test_one_line_of_ten_megabytes_is_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    put("texts/a.txt", b"x" * 10_000_000)
    few = ("--set", "train.max_steps=2", "--set", "data.validation_fraction=1e-4")
    assert exit_code(*TRAIN, *few) == 0, capsys.readouterr().err
