"""Curation: each rule on its own examples, all of them together, files, and labels by a reader."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.data import items
from ys_llm.data.items import Item, read_items
from ys_llm.data.readers import read_documents
from ys_llm.data.records import Record
from ys_llm.errors import UserError
from ys_llm.gendata.curation import (
    RULE_SETS,
    STANDARD,
    LengthLimits,
    Rule,
    Verdict,
    apply_rules,
    curate_folder,
    explain,
    rules_named,
)
from ys_llm.gendata.curation.legacy_phrases import AIMS, LEGACY_PHRASES
from ys_llm.gendata.curation.reading import kind_of
from ys_llm.gendata.curation.rule import Edit, all_verdicts
from ys_llm.gendata.curation.worker import curate_record
from ys_llm.gendata.programs.registry import MAKERS

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
LABELS = Path(__file__).parent / "labels" / "curation.jsonl"
EVERY_RULE = [rule for rules in RULE_SETS.values() for rule in rules]
FIXES = [rule for rule in STANDARD if rule.kind == "fix"]
DEFECTS = "preamble note offer refusal self_reference placeholder link truncated echo mojibake"
PARTS = [
    "Here is the story:\n\n", "Sure! ", "Great summary! ", "I can't write that. ", "It rained. ",
    "\n\n", "\n---\n", "Note: it is old.\n\n", "(Note: it is.) ", "**Note:** so:\n\n* a\n* b\n",
    "[Your Name] ", "[the Rhine](rhine) ", "https://example.org ", "```\ncode\n", "cafÃ© ",
    "As an AI, I swim. ", "Let me know if you want more! ", "I hope this helps. ", "语言 ",
    '"Let me know," he said. ', "<|im_end|>", "\x00", "\ufffd", "la la la la la ", "and the",
    "Tell me about rivers.", "Tell me about rivers.\n\n", "{", "1. ", "| a | b |\n",
    "Der Fluss ist das. ", "Would you like me to?", "`", "- ", "Feel free to ask. ", "What? ",
]  # fmt: skip
MESSES = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def record_of(response: str, prompt: str = "Tell me about rivers.") -> Record:
    return Record(prompt, response)


def program_records(count: int) -> list[Record]:
    return [
        make(random.Random(f"curation:{kind}:{index}"))
        for kind, make in MAKERS.items()
        for index in range(count)
    ]


def write_records(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(record.text() for record in records), encoding="utf-8")


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder with all that a real one holds: defects, copies, plain text, JSON lines, noise."""
    records = program_records(12)
    dirty = [
        record_of(example.response, f"{rule.name} {n}?")
        for rule in STANDARD
        for n, example in enumerate(rule.positives)
        if "\x00" not in example.response
    ]
    folder = tmp_path / "messy"
    write_records(folder / "clean-1.md", records)
    write_records(folder / "clean-2.md", [*records[:5], record_of("A lake. " * 3)])
    write_records(folder / "dirty-10.md", [one for one in dirty if "<" not in one.response])
    (folder / "below").mkdir()
    (folder / "below" / "novel.txt").write_text("One long plain text.\n")
    rows = [{"prompt": "p", "response": "A row of words."}, {"text": "plain"}]
    lines = [json.dumps(row) for row in rows] + ["not json", '{"prompt": 1, "response": "x"}']
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "README.md").write_text("not a corpus file")
    return folder


# Rules


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_a_rule_fires_on_its_examples_and_spares_the_others(rule: Rule) -> None:
    assert len(rule.positives) >= (2 if rule in STANDARD else 1)
    assert len(rule.negatives) >= (2 if rule in STANDARD else 1)
    for example in rule.positives:
        result = rule.apply(example)
        assert result is not None, example
        assert rule.kind == "fix" or isinstance(result, Verdict)
    for example in rule.negatives:
        assert rule.apply(example) is None, example


@pytest.mark.parametrize("rule", STANDARD, ids=lambda rule: rule.name)
def test_what_a_rule_spares_no_other_rule_touches(rule: Rule) -> None:
    for example in rule.negatives:
        said = {other.name for other in STANDARD if other.apply(example) is not None}
        assert not said, (said, example)


@pytest.mark.parametrize("rule", FIXES, ids=lambda rule: rule.name)
def test_a_fix_fixes_its_own_defect_at_once(rule: Rule) -> None:
    for example in rule.positives:
        result = rule.apply(example)
        assert isinstance(result, Verdict) or rule.apply(result) is None


def test_names_are_unique_and_hold_every_defect_that_readers_label() -> None:
    names = [rule.name for rule in EVERY_RULE]
    assert len(names) == len(set(names))
    assert {*DEFECTS.split(), "language", "repetition"} <= {rule.name for rule in STANDARD}


def test_the_programs_make_nothing_that_a_rule_touches() -> None:
    for record in program_records(150):
        curated = apply_rules(record, STANDARD)
        assert curated.record == record, curated


@given(MESSES, MESSES)
@settings(max_examples=400, deadline=None)
def test_what_comes_out_comes_out_unchanged_again(prompt: str, response: str) -> None:
    curated = apply_rules(Record(prompt, response), STANDARD)
    if curated.record is not None:
        again = apply_rules(curated.record, STANDARD)
        assert again.record == curated.record
        assert not again.edits
        assert not any(rule.apply(curated.record) for rule in STANDARD)


@given(MESSES)
@settings(max_examples=300, deadline=None)
def test_every_fix_shortens_and_adds_nothing(response: str) -> None:
    curated = apply_rules(record_of(response), STANDARD)
    for edit in curated.edits:
        assert len(edit.after.response) < len(edit.before.response)
        if edit.rule != "mojibake":
            assert not Counter(edit.after.response) - Counter(edit.before.response + "\n")


@given(MESSES, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_whether_a_clean_record_is_kept_does_not_hang_on_the_order_of_rules(
    response: str, generator: random.Random
) -> None:
    rules = list(STANDARD)
    generator.shuffle(rules)
    silent = not all_verdicts(record_of(response), STANDARD)
    assert silent == (apply_rules(record_of(response), rules).record == record_of(response))


@given(st.text(max_size=300), st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_rules_survive_any_text(prompt: str, response: str) -> None:
    for rules in RULE_SETS.values():
        apply_rules(Record(prompt, response), rules)


@pytest.mark.parametrize(
    "unit",
    ["a", " ", "\n", "[", "`", "```\n", "*", '"', "(", "Note: ", "Note: a\n\n", "Let me know! ",
     "Sure! ", "Here is a list:\n", "[a](b) ", "â€", "---\n", "{", "I hope this helps. \n\n"],
)  # fmt: skip
def test_rules_take_time_in_proportion_to_the_text(unit: str) -> None:
    def seconds(size: int) -> float:
        record = record_of(unit * (size // len(unit)))
        begin = time.process_time()
        apply_rules(record, STANDARD)
        return time.process_time() - begin

    assert seconds(400_000) < 16 * max(seconds(50_000), 0.05)


def test_all_verdicts_names_every_rule_that_has_something_to_say() -> None:
    said = all_verdicts(
        record_of("Sure! Here you are.\n\nI am [Your Name].\n\nNote: no."), STANDARD
    )
    assert said.keys() == {"preamble", "note", "placeholder"}
    assert isinstance(said["note"], Edit)
    assert isinstance(said["placeholder"], Verdict)


def test_rules_are_chosen_by_name_or_by_set() -> None:
    assert rules_named(["standard"]) == STANDARD
    assert [rule.name for rule in rules_named(["offer", "note", "offer"])] == ["offer", "note"]
    assert set(rules_named(["legacy", "note"])) > set(LEGACY_PHRASES)
    with pytest.raises(UserError, match="no curation rule 'notes'"):
        rules_named(["notes"])


def test_lengths_are_tested_before_the_rules_and_after_them() -> None:
    limits = LengthLimits(min_chars=10, max_chars=40)
    long = curate_record(record_of("river " * 10), STANDARD, limits)
    assert long.verdict and long.verdict.rule == "length"
    short = curate_record(record_of("Rivers.\n\nI hope this helps!"), STANDARD, limits)
    assert short.verdict and short.verdict.rule == "length"
    assert [edit.rule for edit in short.edits] == ["offer"]


# Folders


def test_a_folder_is_curated_and_nothing_is_lost(messy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = curate_folder(messy, out)
    total = report.totals
    assert total.read == total.kept + total.dropped
    dropped = [json.loads(line) for line in lines_of(out / ".curation/dropped.jsonl")]
    assert len(dropped) == total.dropped
    assert {"duplicate", "refusal", "unreadable", "self_reference"} <= report.rules.keys()
    assert (out / "below/novel.txt").read_bytes() == (messy / "below/novel.txt").read_bytes()
    assert (out / "clean-1.md").read_bytes() == (messy / "clean-1.md").read_bytes()
    assert not (out / "README.md").exists()
    assert len(read_documents(out)) == total.kept


def test_the_report_is_there_for_programs_and_people(messy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = curate_folder(messy, out)
    told = json.loads((out / ".curation/report.json").read_text("utf-8"))
    assert told["totals"]["kept"] == report.totals.kept
    for name, digest in told["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    for count in told["rules"].values():
        assert count["records"] == sum(count["kinds"].values())
        assert 1 <= len(count["examples"]) <= 10
    assert "## preamble" in (out / ".curation/report.md").read_text("utf-8")
    edits = [json.loads(line) for line in lines_of(out / ".curation/edits.jsonl")]
    preambles = [row for row in edits if row["rule"] == "preamble"]
    assert any("-Here are five facts about rivers:" in row["diff"] for row in preambles)


def test_curating_twice_changes_nothing_more(messy: Path, tmp_path: Path) -> None:
    curate_folder(messy, tmp_path / "one")
    again = curate_folder(tmp_path / "one", tmp_path / "two")
    first, second = files_in(tmp_path / "one"), files_in(tmp_path / "two")
    assert again.totals.dropped == again.totals.edited == 0
    assert {name: data for name, data in first.items() if name[0] != "."} == {
        name: data for name, data in second.items() if name[0] != "."
    }


def test_two_processes_write_the_same_bytes_as_one(messy: Path, tmp_path: Path) -> None:
    for number in range(3):
        write_records(messy / f"more-{number}.md", program_records(20 + number))
    curate_folder(messy, tmp_path / "one", processes=1)
    curate_folder(messy, tmp_path / "two", processes=2)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_an_earlier_result_is_replaced_and_a_changed_one_is_not(
    messy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    curate_folder(messy, out)
    before = files_in(out)
    (messy / "clean-2.md").unlink()
    curate_folder(messy, out)
    assert files_in(out).keys() == before.keys() - {"clean-2.md"}
    with (out / "clean-1.md").open("a") as file:
        file.write("mine")
    with pytest.raises(UserError, match=r"did not write: clean-1\.md"):
        curate_folder(messy, out)
    assert (out / "clean-1.md").read_text("utf-8").endswith("mine")


def compressed(name: str, text: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(text.encode())
    if name.endswith(".zst"):
        return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(text.encode()))
    if not name.endswith(".parquet"):
        return text.encode()
    table, buffer = pytest.importorskip("pyarrow").Table, io.BytesIO()
    rows = [json.loads(line) for line in text.splitlines()]
    pytest.importorskip("pyarrow.parquet").write_table(table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("rivers-1.md.gz", "rivers-1.md"),
        ("rivers-1.jsonl.gz", "rivers-1.jsonl"),
        ("rivers-1.JSONL.zst", "rivers-1.jsonl"),
        ("rivers-1.parquet", "rivers-1.jsonl"),
        ("texts-1.parquet", "texts-1.jsonl"),
        ("texts-1.txt.gz", "texts-1.txt"),
    ],
)
def test_what_is_kept_is_readable_under_its_name(tmp_path: Path, name: str, plain: str) -> None:
    """A compressed file stays one, a table a table; both hold what a plain file would."""
    river = {
        "prompt": "Name a river.",
        "response": "The Danube\u00a0is long.\n\nI hope this helps!",
    }
    text = {
        "rivers-1.md": f"{river['prompt']}<start>{river['response']}<end>\n\n",
        "rivers-1.jsonl": json.dumps(river) + "\n",
        "texts-1.jsonl": json.dumps({"text": "A plain text."}) + "\n",
        "texts-1.txt": "A plain text.",
    }[plain]
    found = {}
    for path in (tmp_path / "plain" / plain, tmp_path / "packed" / name):
        path.parent.mkdir()
        path.write_bytes(compressed(path.name, text))
        out = tmp_path / f"{path.parent.name}-out"
        report = curate_folder(path.parent, out)
        assert list(report.kinds) == [plain.partition("-")[0]]
        first = (out / path.name).read_bytes()
        curate_folder(path.parent, out)
        assert (out / path.name).read_bytes() == first
        found[path.name] = [(one.prompt, one.text) for one in read_documents(out)]
    assert found[name] == found[plain] != []
    assert "helps" not in str(found)


@pytest.mark.parametrize("where", [".", "..", "inside"])
def test_a_result_never_lies_inside_its_source(messy: Path, where: str) -> None:
    before = files_in(messy)
    with pytest.raises(UserError, match="contains the other"):
        curate_folder(messy, messy / where)
    assert files_in(messy) == before


def test_a_failure_leaves_nothing_half_done(
    messy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    curate_folder(messy, out)
    before = files_in(out)
    rule = Rule("broken", "drop", "fails", lambda record: 1 // 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        curate_folder(messy, out, rules=[rule])
    assert files_in(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messy", "out"]


def test_near_duplicates_go_and_the_first_stays(tmp_path: Path) -> None:
    story = " ".join(f"River {n} ran to town {n + 1}." for n in range(60))
    write_records(tmp_path / "in/a-1.md", [record_of(story, "One?")])
    changed = story.replace("town 7.", "town seven.")
    write_records(tmp_path / "in/a-2.md", [record_of(changed, "One?"), record_of("A sea.", "Two?")])
    report = curate_folder(tmp_path / "in", tmp_path / "out")
    assert report.rules["near_duplicate"].records == 1
    assert report.rules["near_duplicate"].examples[0]["where"] == "a-2.md:1"
    assert "a-1.md:1" in report.rules["near_duplicate"].examples[0]["reason"]
    without = curate_folder(tmp_path / "in", tmp_path / "out", near=0)
    assert "near_duplicate" not in without.rules


def test_one_prompt_is_answered_a_limited_number_of_times(tmp_path: Path) -> None:
    answers = [record_of(f"Answer number {number}.") for number in range(5)]
    write_records(tmp_path / "in/a.md", answers)
    limits = LengthLimits(per_prompt=3)
    report = curate_folder(tmp_path / "in", tmp_path / "out", limits=limits)
    assert report.totals.kept == 3
    assert report.rules["per_prompt"].records == 2


def test_broken_files_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    good = record_of("A whole record.").text()
    folder.mkdir()
    (folder / "cut.md").write_bytes(f"{good}Half a prompt<start>and half of".encode())
    (folder / "latin.md").write_bytes(good.encode() + b"What?<start>caf\xe9 au lait<end>\n")
    (folder / "nul.md").write_bytes(good.replace("whole", "w\0ole").encode() + good.encode())
    (folder / "twice.md").write_bytes(f"a<start>b<start>c<end>{good}".encode())
    (folder / "utf16.txt").write_bytes("plain text".encode("utf-16"))
    (folder / "empty.md").write_bytes(b"")
    (folder / "deep.jsonl").write_bytes(b"[" * 100_000 + b"\n")
    report = curate_folder(folder, tmp_path / "out")
    counts = {name: count.records for name, count in report.rules.items()}
    assert counts == {"unreadable": 5, "duplicate": 3, "mojibake": 1, "control_tag": 1}
    assert report.totals.kept == 1
    assert len(read_documents(tmp_path / "out")) == 1


def test_a_huge_line_is_read_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "LONGEST_PIECE", 3_000_000)
    good = record_of("A whole record.").text()
    path = tmp_path / "huge.md"
    path.write_text(f"{good}x<start>{'y' * 9_000_000}<end>{good}", encoding="utf-8")
    found = list(read_items(path))
    assert [item.record is not None for item in found] == [True, False, True]
    assert len(found[1].text) < 3_000_000


def test_records_come_through_the_reader_as_they_were_written(tmp_path: Path) -> None:
    records = [*program_records(10), Record("", "no prompt"), Record("  in", "\n out \n")]
    write_records(tmp_path / "a.md", records)
    assert list(read_items(tmp_path / "a.md")) == [
        Item(number, record) for number, record in enumerate(records, start=1)
    ]


@given(st.lists(st.sampled_from(["<start>", "<end>", "<", "end>", "a", "\n", "é"]), max_size=30))
def test_the_reader_does_not_hang_on_where_its_blocks_end(pieces: list[str]) -> None:
    text = "".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "read_blocks", lambda path, errors: iter([text]))
        whole = list(read_items(Path("a.md")))
        patch.setattr(items, "read_blocks", lambda path, errors: iter(text))
        assert list(read_items(Path("a.md"))) == whole


@pytest.mark.parametrize(
    ("name", "kind"),
    [("generated-bedtime-12.md", "generated-bedtime"), ("a/stories-01.md", "stories"),
     ("7.md", "7"), ("notes.txt", "notes")],
)  # fmt: skip
def test_the_kind_is_the_name_without_its_number(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        curate_folder(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no \.txt, \.md, \.jsonl file"):
        curate_folder(tmp_path, tmp_path.parent / "out")
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(UserError, match=r"holds no \.txt, \.md, \.jsonl file"):
        curate_folder(tmp_path / "a.csv", tmp_path / "out")


# Explaining


def test_a_record_is_explained_by_number_and_by_text(messy: Path) -> None:
    text = explain(messy, "I can't fulfill")
    assert "dirty-10.md" in text
    assert "refusal drops: the response begins by refusing" in text
    assert 'line 1: "I can\'t fulfill that request."' in text
    assert explain(messy / "clean-1.md", 3).endswith("clean-1.md:3: kept unchanged")
    mends = explain(messy, "five facts")
    assert "kept, fixed" in mends
    assert "-Here are five facts about rivers:" in mends
    with pytest.raises(UserError, match="holds no record 99"):
        explain(messy / "rows.jsonl", 99)


# Against the labels of a reader, and the real corpus


def labelled() -> list[tuple[dict[str, list[str]], Record]]:
    if not CORPUS.is_dir():
        pytest.skip("there is no shared corpus beside this repository")
    if not LABELS.is_file():
        pytest.skip("there are no labels")
    by_hash = {}
    for path in CORPUS.glob("*.md"):
        for piece in path.read_text("utf-8").split("<end>")[:-1]:
            text = piece.lstrip("\n") + "<end>"
            by_hash[hashlib.sha256(text.encode()).hexdigest()] = text.removesuffix("<end>")
    rows = [json.loads(line) for line in LABELS.read_text("utf-8").splitlines()]
    return [(row, Record(*by_hash[row["hash"]].split("<start>"))) for row in rows]


def said_of(record: Record, rules: tuple[Rule, ...]) -> set[str]:
    """Rules that act; labels are about responses, so results about a prompt are left out."""
    said = all_verdicts(record, rules)
    return {
        name
        for name, what in said.items()
        if not (isinstance(what, Verdict) and what.reason.endswith("in the prompt"))
    }


def agreement(rules: tuple[Rule, ...], aims: dict[str, str]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for row, record in labelled():
        fired = {aims.get(name, name) for name in said_of(record, rules)}
        for name in {*fired, *row["defects"]}:
            right = (name in fired, name in row["defects"])
            which = {(True, True): "right", (True, False): "wrong", (False, True): "missed"}[right]
            counts.setdefault(name, Counter())[which] += 1
    return counts


def rates(count: Counter[str]) -> tuple[float, float]:
    fired, there = count["right"] + count["wrong"], count["right"] + count["missed"]
    return count["right"] / max(1, fired), count["right"] / max(1, there)


def show(counts: dict[str, Counter[str]]) -> None:
    for name, count in sorted(counts.items()):
        precision, recall = rates(count)
        print(f"{name:16} {dict(count)} precision {precision:.3f} recall {recall:.3f}")


def test_rules_agree_with_a_reader() -> None:
    counts = agreement(STANDARD, {})
    for name in ("copy", "comment", "chat_line", "feedback"):  # readers were not asked about them
        counts.pop(name, None)
    show(counts)
    dropping = (
        "refusal",
        "self_reference",
        "placeholder",
        "link",
        "truncated",
        "echo",
        "repetition",
    )
    pooled = sum((counts[name] for name in dropping), Counter())
    precision, recall = rates(pooled)
    assert precision >= 0.95
    assert recall >= 0.9
    for name in ("preamble", "note", "offer"):
        precision, recall = rates(counts[name])
        assert precision >= 0.9, name
        assert recall >= 0.85, name


def test_the_legacy_phrases_agree_less() -> None:
    counts = agreement(LEGACY_PHRASES, {f"legacy/{phrase}": aim for phrase, aim in AIMS.items()})
    show(counts)
    pooled = sum((counts[name] for name in set(AIMS.values())), Counter())
    precision, recall = rates(pooled)
    assert precision < 0.5
    assert recall < 0.8


@pytest.mark.slow
def test_the_whole_corpus_is_curated_in_bounded_memory(tmp_path: Path) -> None:
    """How fast it is, `python -m benchmarks.curation` tells."""
    if not CORPUS.is_dir():
        pytest.skip("there is no shared corpus beside this repository")
    code = (
        "import sys; from pathlib import Path; from benchmarks.curation import measure\n"
        "if __name__ == '__main__':\n"
        "    print(measure(Path(sys.argv[1]), processes=2).peak_bytes)\n"
    )
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), str(CORPUS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert int(result.stdout) < 500_000_000


@pytest.mark.slow
def test_exact_duplicates_are_those_of_a_brute_force_count(tmp_path: Path) -> None:
    if not CORPUS.is_dir():
        pytest.skip("there is no shared corpus beside this repository")
    report = curate_folder(
        CORPUS, tmp_path / "out", rules=[], near=0, limits=LengthLimits(per_prompt=10**9)
    )
    pieces = [
        piece.lstrip("\n")
        for path in CORPUS.glob("*.md")
        for piece in path.read_text("utf-8").split("<end>")[:-1]
    ]
    assert report.rules["duplicate"].records == len(pieces) - len(set(pieces)) > 0
