"""Files and manifest of a corpus: whose they are, and where each record came from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.gendata_runs import content, entries, fill, llm, make_plan, write_kinds

from ys_llm.data.manifest import NAME as MANIFEST
from ys_llm.data.manifest import read_manifest
from ys_llm.data.provenance import provenance_of, trace
from ys_llm.data.readers import read_documents
from ys_llm.data.records import Document, Record, content_hash, document_id
from ys_llm.errors import EXIT_FAILED, UserError
from ys_llm.gendata import command
from ys_llm.gendata.corpus import files as corpus_files

HAS_A_HASH = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(autouse=True, scope="module")
def no_power_is_cut() -> Iterator[None]:
    """Skip fsync, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def made(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    with llm() as server:
        fill(make_plan(kinds), out, server)
    return out


@pytest.fixture
def spelled(kinds: Path, tmp_path: Path) -> Path:
    """A folder that a program has filled."""
    fill(make_plan(kinds, "spell"), tmp_path / "spelled")
    return tmp_path / "spelled"


def manifest_lines(out: Path) -> list[dict[str, Any]]:
    """As they are in the file."""
    return [json.loads(line) for line in (out / MANIFEST).read_text("utf-8").splitlines()]


def records(out: Path) -> list[Mapping[str, Any]]:
    """As they are read: each with all of its fields."""
    return [line for file in read_manifest(out).values() for line in file.records]


def test_the_manifest_names_exactly_what_training_reads(made: Path) -> None:
    documents = read_documents(made)
    assert documents and all(document.prompt is not None for document in documents)
    assert Counter(document.id for document in documents) == Counter(
        line["document"] for line in records(made)
    )
    for document in documents:
        known = next(line for line in records(made) if line["document"] == document.id)
        assert Path(document.source.rpartition(":")[0]).name == known["file"]


@pytest.mark.parametrize(
    ("prompt", "text"), [(None, "a"), ("", "a"), ("é\n", "“a”\r\n"), ("a", "")]
)
def test_the_key_of_a_document_is_that_of_the_corpus(prompt: str | None, text: str) -> None:
    assert document_id(text, prompt) == Document(text, prompt).id


def test_the_manifest_says_where_a_record_came_from(made: Path) -> None:
    by_key = {entry["key"]: entry for entry in entries(made)}
    for line in records(made):
        assert HAS_A_HASH.fullmatch(line["digest"]) and line["seed"] == 1
        if line["kind"] == "spell":
            assert "time" not in line and "model" not in line
            continue
        entry = by_key[line["key"]]
        assert (line["kind"], line["index"]) == (entry["kind"], entry["index"])
        assert line["model"] == "tiny" and len(line["model_digest"]) == 64
        assert line["server"].startswith("ollama ")
        assert [set(asked) for asked in line["requests"]] == [
            {"prompt", "system", "options"}
        ] * len(line["requests"])
        for asked in line["requests"]:
            assert {"seed", "num_predict", "num_ctx", "temperature"} <= asked["options"].keys()
        assert line["time"].endswith("+00:00")
        assert line.get("rejected", []) == [one["name"] for one in entry["rejections"]]
        assert line["verified"] == entry["provenance"]["verified"]


def test_what_all_records_of_a_kind_share_stands_once(made: Path) -> None:
    lines = {line["document"]: line for line in manifest_lines(made) if "document" in line}
    assert len(lines) == len(records(made))
    for whole in records(made):
        line = lines[whole["document"]]
        if whole["kind"] == "spell":
            assert line.keys() == {"document", "index"}
            continue
        assert not line.keys() & {"kind", "digest", "seed", "model", "model_digest", "verified"}
        assert [set(asked["options"]) for asked in line["requests"]] == [{"seed"}] * len(
            line["requests"]
        )
        assert {"time", "seconds"} < line.keys()
    by_key = {entry["key"]: entry["provenance"] for entry in entries(made)}
    for whole in records(made):
        if whole["kind"] != "spell":
            assert whole["requests"] == by_key[whole["key"]]["requests"]


def test_a_file_ends_before_it_grows_too_large(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "FILE_BYTES", 700)
    fill(make_plan(kinds, "spell"), tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.md"))
    assert [path.name for path in files[:2]] == ["spell-01.md", "spell-02.md"] and len(files) > 2
    assert all(path.stat().st_size <= 700 for path in files)
    assert len(read_documents(tmp_path / "out")) == len(records(tmp_path / "out"))


def test_a_program_makes_the_same_bytes_again(kinds: Path, spelled: Path, tmp_path: Path) -> None:
    fill(make_plan(kinds, "spell"), tmp_path / "again")
    assert {path.name for path in spelled.iterdir()} == {"spell-01.md", MANIFEST}
    for path in spelled.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    result = fill(make_plan(kinds, "spell"), spelled)
    assert result.decided_now == result.planned and result.written == ()
    assert str(result).endswith("complete already. Nothing to do.")


def test_a_program_stopped_half_way_leaves_its_files_as_they_were(
    kinds: Path, spelled: Path
) -> None:
    before, calls = content(spelled), iter(range(10**9))
    result = fill(make_plan(kinds, "spell"), spelled, should_stop=lambda: next(calls) > 30)
    assert result.stopped and 0 < result.missing < result.planned
    assert (result.written, result.removed, content(spelled)) == ((), (), before)


def test_the_readme_says_what_was_made_and_how(kinds: Path, spelled: Path) -> None:
    whole = replace(make_plan(kinds, "spell"), command="ys gen-data --seed 1")
    assert fill(whole, spelled).written == ("README.md",)
    said = (spelled / "README.md").read_text("utf-8")
    assert "```\nys gen-data --seed 1\n```" in said
    assert "| `spell-*.md` | 40 |" in said and "words spelled, by a program" in said
    assert (spelled / "spell-01.md").read_text("utf-8").split("<end>")[0] in said
    assert fill(whole, spelled).written == ()
    with llm() as server:
        fill(make_plan(kinds, "retold"), spelled, server)
    assert (spelled / "README.md").read_text("utf-8") == said
    (spelled / "README.md").write_text("My own.")
    with pytest.raises(UserError, match=r"README\.md"):
        fill(whole, spelled)
    assert (spelled / "README.md").read_text("utf-8") == "My own."


# Files that are not ours.


@pytest.mark.parametrize("before", [True, False], ids=["before anything is asked", "meanwhile"])
def test_a_foreign_file_is_never_replaced(before: bool, kinds: Path, tmp_path: Path) -> None:
    diary = tmp_path / "out" / "tale-01.md"
    diary.parent.mkdir()
    if before:
        diary.write_text("My diary.")
    with llm() as server:

        def stop() -> bool:  # asked while the run is under way
            if not diary.exists():
                diary.write_text("My diary.")
            return False

        with pytest.raises(UserError, match=r"edited or not generated: tale-01\.md") as raised:
            fill(make_plan(kinds, "tale", count=2), tmp_path / "out", server, should_stop=stop)
        assert bool(server.asked) != before
        assert "--out" in raised.value.fix and "--force" in raised.value.fix
        assert diary.read_text() == "My diary."
        fill(make_plan(kinds, "tale", count=2), tmp_path / "out", server, force=True)
    assert "<start>" in diary.read_text()


def test_a_file_that_was_edited_stays(kinds: Path, spelled: Path) -> None:
    path = spelled / "spell-01.md"
    edited = path.read_text().replace("<end>\n\n", "<end>\n\n", 1) + "Mine<start>too<end>\n\n"
    path.write_text(edited)
    with pytest.raises(UserError, match=r"spell-01\.md"):
        fill(make_plan(kinds, "spell"), spelled)
    assert path.read_text() == edited
    fill(make_plan(kinds, "spell"), spelled, force=True)
    assert "Mine" not in path.read_text()


def test_other_files_of_the_folder_are_left_alone(kinds: Path, spelled: Path) -> None:
    (spelled / "notes.md").write_text("Notes.")
    (spelled / "spell-extra.md").write_text("A note on spelling.")
    (spelled / "manifest.json").write_text("{}")
    fill(make_plan(kinds, "spell", count=3), spelled)
    assert (spelled / "notes.md").read_text() == "Notes."
    assert (spelled / "spell-extra.md").read_text() == "A note on spelling."
    assert (spelled / "manifest.json").read_text() == "{}"


def test_a_kind_with_fewer_records_leaves_no_old_files(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "FILE_BYTES", 700)
    out = tmp_path / "out"
    fill(make_plan(kinds, "spell"), out)
    many = sorted(path.name for path in out.glob("*.md"))
    result = fill(make_plan(kinds, "spell", count=5), out)
    assert sorted(path.name for path in out.glob("*.md")) == ["spell-01.md"]
    assert result.removed == tuple(many[1:]) and len(records(out)) == result.accepted == 5


def test_an_old_file_that_was_edited_is_not_removed(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "FILE_BYTES", 700)
    out = tmp_path / "out"
    fill(make_plan(kinds, "spell"), out)
    (out / "spell-03.md").write_text("Mine.")
    fill(make_plan(kinds, "spell", count=5), out, force=True)
    assert (out / "spell-03.md").read_text() == "Mine." and not (out / "spell-02.md").exists()


def test_kinds_made_before_keep_their_files(kinds: Path, spelled: Path) -> None:
    before = content(spelled)
    with llm() as server:
        fill(make_plan(kinds, "retold"), spelled, server)
    after = content(spelled)
    assert after["spell-01.md"] == before["spell-01.md"]
    assert set(before[MANIFEST].splitlines()) < set(after[MANIFEST].splitlines())
    assert {line["kind"] for line in records(spelled)} == {"spell", "retold"}


DAMAGES = {
    "not JSON": lambda lines: [lines[0], "{", *lines[2:]],
    "a list": lambda lines: [lines[0], "[]", *lines[2:]],
    "a record without its file": lambda lines: [lines[0], *lines[2:]],
    "a record without a number": lambda lines: [*lines[:2], '{"document": "x"}', *lines[3:]],
    "a record without its kind": lambda lines: [*lines[1:]],
    "a file in another folder": lambda lines: [
        lines[0],
        lines[1].replace("spell-01.md", "../spell-01.md"),
        *lines[2:],
    ],
    "a record too few": lambda lines: lines[:-1],
    "half a line": lambda lines: [*lines[:-1], lines[-1][:20]],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_named_with_its_line(damage: str, kinds: Path, spelled: Path) -> None:
    lines = (spelled / MANIFEST).read_text().splitlines()
    text = "\n".join(DAMAGES[damage](lines))
    (spelled / MANIFEST).write_text(text)
    for act in (lambda: fill(make_plan(kinds, "spell"), spelled), lambda: trace(spelled, "the")):
        with pytest.raises(UserError, match=re.escape(f"{spelled / MANIFEST}:")) as raised:
            act()
        assert "\n" not in str(raised.value) and raised.value.fix
    assert (spelled / MANIFEST).read_text() == text


# Asking.


def test_a_sentence_leads_to_its_record(made: Path) -> None:
    entry = next(
        entry
        for entry in entries(made)
        if entry["kind"] == "tale" and entry["status"] == "accepted"
    )
    sentence = entry["record"]["response"][20:90]
    found = trace(made, f"  {sentence.upper()}\n".replace(" ", "\n"))
    assert entry["key"] in {finding.line["key"] for finding in found}
    finding = next(one for one in found if one.line["key"] == entry["key"])
    assert finding.record.response == entry["record"]["response"]
    text = finding.path.read_text(encoding="utf-8").split("<end>")[finding.number - 1]
    assert text.endswith(entry["record"]["response"])
    said = str(finding)
    for piece in ("tale", "tiny", entry["key"], entry["provenance"]["digest"], "seed", "words"):
        assert piece in said
    for asked in entry["provenance"]["requests"]:
        assert asked["prompt"] in said and f"seed {asked['options']['seed']}" in said


def test_a_sentence_of_a_program_has_no_model(spelled: Path) -> None:
    prompt = read_documents(spelled)[0].prompt
    assert prompt and "a program wrote it" in str(trace(spelled, prompt)[0])


def test_a_text_that_was_not_generated_is_not_found(made: Path) -> None:
    assert trace(made, "Colourless green ideas sleep furiously.") == []
    said, code = command.trace("Colourless green ideas sleep furiously.", made)
    assert code == EXIT_FAILED and str(made) in said
    said, code = command.trace("the", made)
    assert code == 0 and said.count("digest") >= 10 and said.splitlines()[-1].startswith("and ")


@pytest.mark.parametrize("text", ["", " \n"])
def test_no_text_leads_nowhere(text: str, made: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        trace(made, text)


def test_a_folder_without_a_manifest_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=MANIFEST):
        trace(tmp_path, "the")


def test_a_model_card_learns_what_its_documents_were_made_by(made: Path, tmp_path: Path) -> None:
    documents = read_documents(made)
    found = provenance_of(made, [*documents, Document("of no manifest")])
    assert found.unknown == 1 and sum(found.counts.values()) == len(documents)
    by_kind = Counter[str]()
    for source, count in found.counts.items():
        by_kind[source.kind] += count
        assert source.model == ("" if source.kind == "spell" else "tiny")
        assert HAS_A_HASH.fullmatch(source.digest)
    assert by_kind == Counter(line["kind"] for line in records(made))
    assert provenance_of(made.parent, documents) == replace(found, unknown=0), (
        "folders below count too"
    )
    tales = read_documents(made / "tale-01.md")
    assert {source.kind for source in provenance_of(made / "tale-01.md", tales).counts} == {"tale"}
    assert provenance_of(tmp_path, documents).unknown == len(documents)


def test_what_is_not_known_is_not_claimed(made: Path, tmp_path: Path) -> None:
    mine = Document("My own text.")
    found = provenance_of(made, [mine, mine])
    assert found.unknown == 2 and not found.counts


def test_a_corpus_with_other_line_ends_is_known_all_the_same(made: Path, tmp_path: Path) -> None:
    converted = tmp_path / "converted"
    shutil.copytree(made, converted)
    for path in converted.glob("*.md"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert provenance_of(converted, read_documents(converted)).unknown == 0
    assert trace(converted, read_documents(made)[0].text)


def test_a_manifest_with_exact_hashes_of_texts_is_known_too(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    text = "An answer with a blank at its end. \n"
    (tmp_path / "tale-01.md").write_text(Record("Why?", text).text())
    head = {"file": "tale-01.md", "records": 1, "sha256": "", "was": []}
    line = {"document": content_hash(text, "Why?"), "index": 0}
    shared = {"kind": "tale", "digest": "d", "seed": 1}
    lines = "\n".join(json.dumps(each) for each in (shared, head, line))
    (tmp_path / MANIFEST).write_text(lines)
    assert provenance_of(tmp_path, read_documents(tmp_path)).unknown == 0
    assert len(trace(tmp_path, "a blank at its end")) == 1


def test_a_manifest_of_an_earlier_version_is_read(made: Path, tmp_path: Path) -> None:
    data = (made / MANIFEST).read_bytes()
    old = data.replace(b'"requests"', b'"asked"').replace(b'"fixed"', b'"mended"')
    assert old != data
    (tmp_path / MANIFEST).write_bytes(old)
    assert read_manifest(tmp_path) == read_manifest(made)


# The actions of the command.


def test_the_list_shows_every_kind(kinds: Path) -> None:
    lines = command.list_kinds([kinds]).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["retold", "chain", "3"],
        ["spell", "program", "40"],
        ["tale", "ollama", "10"],
    ]
    assert lines[1].endswith("words spelled, by a program")


def test_a_dry_run_shows_the_prompts_that_a_run_sends(kinds: Path, made: Path) -> None:
    shown = command.dry_run(["tale", "spell", "retold"], seed=1, folders=[kinds])
    assert len(re.findall(r"^--- \w+ \d+, .*made by a program|for title$|for answer$", shown, re.M))
    assert len(shown.split("\n\n--- ")) == command.DRY_RUN_PROMPTS
    sent = [asked["prompt"] for entry in entries(made) for asked in entry["provenance"]["requests"]]
    for prompt in re.findall(r"^Name a tale .*$", shown, re.M):
        assert prompt in sent
    assert "Tell the tale '{title}' of" in shown and "(system) Write the tale alone." in shown


def test_a_check_names_each_thing_once(kinds: Path) -> None:
    with llm() as server:
        said, code = command.check(server.address, command.models_of(["tale", "retold"], [kinds]))
        assert code == 0 and [line.split()[0] for line in said.splitlines()] == [
            *("server", "model", "sample")
        ]
        said, code = command.check(server.address, ["tiny", "missing"])
    assert code == EXIT_FAILED and "ollama pull missing" in said
    assert command.models_of([], [kinds]) == ["tiny"]


def test_an_unknown_kind_is_named(kinds: Path, tmp_path: Path) -> None:
    request = command.GenerateRequest(("tael",), tmp_path / "out", folders=(kinds,))
    with pytest.raises(UserError, match="no kind tael"):
        command.make(request)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_curated_and_a_record_explained(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    raw = "Q<start>Sure! Here is an answer:\n\nRivers run to the sea.<end>\n\n"
    (tmp_path / "raw" / "tale-01.md").write_text(raw)
    assert "1 records read, 1 kept (1 of them fixed)" in command.curate(
        tmp_path / "raw", tmp_path / "good"
    )
    assert (
        tmp_path / "good" / "tale-01.md"
    ).read_text() == "Q<start>Rivers run to the sea.<end>\n\n"
    for which in ("1", "Rivers run"):
        assert "preamble fixes" in command.explain(tmp_path / "raw" / "tale-01.md", which)


def test_an_empty_manifest_knows_nothing(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}
