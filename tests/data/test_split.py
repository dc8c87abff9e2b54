"""Text is held out by its content alone, and stays held out when the corpus changes."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.config.schema import DataConfig
from ys_llm.data import records
from ys_llm.data import split as split_module
from ys_llm.data.records import Document
from ys_llm.data.split import (
    BY_CONTENT_HASH,
    LONG_DOCUMENT_CHARS,
    Cut,
    Split,
    SplitRecord,
    split_documents,
)
from ys_llm.data.split_cache import load_split
from ys_llm.errors import UserError

NOVEL = "".join(f"Line {i} of a novel.  \n" for i in range(20_000))


def some_documents(n: int) -> list[Document]:
    return [Document(f"The story of number {i}.\n", source=f"{i}.txt") for i in range(n)]


def sides(split: Split) -> dict[str, str]:
    found = {document.id: "training" for document in split.training}
    for document in split.validation:
        assert found.setdefault(document.id, "validation") == "validation"
    return found


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


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
        {d.id for d in split_documents(some_documents(500), validation_fraction=f).validation}
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
    cut = int(len(NOVEL) * 0.9)
    tails = [Document(NOVEL), Document(NOVEL[cut:])]
    assert len(NOVEL[cut:]) < LONG_DOCUMENT_CHARS
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
    with pytest.raises(UserError, match="all 3 documents are held out"):
        split_documents(some_documents(3), validation_fraction=0.999999)


@pytest.mark.parametrize(
    "convert",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip(),
        lambda text: text.replace("\n", " \t\n") + "\n\n",
    ],
    ids=["line ends", "final line end", "trailing blanks"],
)
def test_a_conversion_of_line_ends_moves_no_document(convert: Callable[[str], str]) -> None:
    documents = [Document(f"One line.\nAnother, number {i}.\n") for i in range(90)]
    converted = [Document(convert(document.text)) for document in documents]
    before = split_documents(documents, validation_fraction=0.3)
    after = split_documents(converted, validation_fraction=0.3)
    assert sides(after) == sides(before)


def test_a_run_from_before_documents_had_this_identity_keeps_its_split() -> None:
    documents = [Document(f"Text {i}.\n") for i in range(200)]
    old = split_documents(documents, validation_fraction=0.3, record=SplitRecord.from_json(None))
    held_out = {d.text for d in documents if int(d.content_hash[:13], 16) / 16**13 < 0.3}
    assert set(texts(old.validation)) == held_out
    assert old.record.version == BY_CONTENT_HASH
    assert sides(split_documents(documents, validation_fraction=0.3)) != sides(old)


def resumed(first: Split, *documents: Document) -> Split:
    record = SplitRecord.from_json(json.loads(json.dumps(first.record.to_json())))
    return split_documents(documents, validation_fraction=0.1, record=record)


def test_a_novel_that_grows_moves_no_held_out_text_into_training() -> None:
    first = split_documents([Document(NOVEL)], validation_fraction=0.1)
    again = resumed(first, Document(NOVEL))
    assert (texts(again.training), texts(again.validation)) == (
        texts(first.training),
        texts(first.validation),
    )
    added = "A new chapter.\n" * 20_000
    grown = resumed(again, Document(NOVEL + added), *some_documents(3))
    assert texts(first.validation) == [text for text in texts(grown.validation) if "novel" in text]
    assert added in texts(grown.training)
    assert again.record == first.record == grown.record
    assert not first.notes and not grown.notes


def test_a_novel_with_other_line_ends_is_cut_at_the_same_place() -> None:
    first = split_documents([Document(NOVEL)], validation_fraction=0.1)
    windows = resumed(first, Document(NOVEL.replace("  \n", "\r\n")))
    held_out = first.validation[0].text
    assert windows.validation[0].text.split() == held_out.split()


def test_what_is_held_out_stays_so_where_the_held_out_part_itself_changes() -> None:
    first = split_documents([Document(NOVEL)], validation_fraction=0.1)
    begin = len(first.training[0].text)
    changed = NOVEL[: begin + 1000] + "An insertion.\n" * 50 + NOVEL[begin + 1000 :]
    again = resumed(first, Document(changed))
    assert texts(again.training) == texts(first.training)
    assert texts(again.validation) == [changed[begin:]]


def test_a_novel_that_changes_before_its_cut_is_cut_anew_and_the_header_says_so() -> None:
    first = split_documents([Document(NOVEL)], validation_fraction=0.1)
    again = resumed(first, Document("A preface.\n" + NOVEL))
    assert again.notes["split"].startswith("1 long text of this run changed before the held-out")
    assert len(again.record.cuts) == 1 and again.record != first.record


@given(st.text(alphabet="ab \n\r\té", max_size=300), st.floats(0.01, 0.9), st.text(max_size=20))
def test_a_cut_divides_a_text_exactly_wherever_it_falls(
    text: str, fraction: float, added: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_module, "LONG_DOCUMENT_CHARS", 10)
        patch.setattr(records, "_BLOCK_CHARS", 7)
        text = f"b{text}"  # so that there is something to train on
        documents = [Document(text), Document("x")]
        first = split_documents(documents, validation_fraction=fraction)
        if not first.record.cuts:
            return
        again = resumed(first, *documents)
        assert (texts(again.training), texts(again.validation)) == (
            texts(first.training),
            texts(first.validation),
        )
        grown = resumed(first, Document(text + "b" + added), documents[1])
    held_out = "".join("".join(texts(first.validation)).split())
    assert held_out == "".join("".join(texts(grown.validation)).split())


@pytest.mark.parametrize(
    "stored", [{}, {"version": 9, "cuts": []}, {"version": 2, "cuts": [{"begin": 1}]}, []]
)
def test_a_damaged_record_of_the_split_is_refused(stored: Any, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"split\.json is damaged"):
        SplitRecord.load(path)


def test_a_record_of_the_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    record = SplitRecord(cuts=(Cut(1, 2, 3, "a", "b"),))
    record.save(path)
    assert SplitRecord.load(path) == record
    assert SplitRecord.load(tmp_path / "none.json").version == BY_CONTENT_HASH


def test_the_only_text_gives_its_last_twentieth() -> None:
    text = "word " * 6_000
    split = split_documents([Document(text)], validation_fraction=0.2)
    assert len(split.validation[0].text) == pytest.approx(0.05 * len(text), rel=0.01)
    assert texts(split.training)[0] + texts(split.validation)[0] == text
    assert not split.notes
    small = split_documents([Document(text)], validation_fraction=0.01)
    assert len(small.validation[0].text) == pytest.approx(0.01 * len(text), rel=0.05)


def test_the_only_text_of_a_run_without_a_record_was_all_trained_on_and_stays_so() -> None:
    documents = [Document("word " * 6_000)]
    record = SplitRecord.from_json(None)
    split = split_documents(documents, validation_fraction=0.2, record=record)
    assert split.training == documents and not split.validation


def test_two_copies_of_a_novel_are_cut_alike() -> None:
    split = split_documents([Document(NOVEL), Document(NOVEL)], validation_fraction=0.1)
    assert len(split.record.cuts) == 1
    assert len(set(texts(split.training))) == len(set(texts(split.validation))) == 1
    assert split.leak_check.startswith("0 of 2 validation documents")


def test_of_a_small_only_text_nothing_is_held_out_and_the_header_says_what_that_means() -> None:
    for fraction in (0.05, 0.999):
        split = split_documents([Document("word " * 3_000)], validation_fraction=fraction)
        assert len(split.training) == 1 and not split.validation
        assert split.notes == {
            "held out": "nothing, so there is no validation loss: the text is one document of "
            "15.0 kB, and 20 kB are needed to hold out its end"
        }
    chosen = split_documents([Document("word " * 3_000)], validation_fraction=0)
    assert not chosen.notes


def test_documents_that_all_fall_to_training_are_said_to_give_no_validation_loss() -> None:
    split = split_documents(some_documents(3), validation_fraction=1e-9)
    assert "no validation loss: none of the 3 documents" in split.notes["held out"]


def test_the_header_names_what_was_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.pdf").write_text("%PDF-1.7")
    split = load_split(DataConfig(path=str(tmp_path)))
    assert split.notes["passed over"] == "1 file: 1 .pdf"
