"""The preview of a corpus: what is counted, which rules fire, and a page that works offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.html_pages import Page, problems_of

from ys_llm.cli.main import main
from ys_llm.data.records import Record
from ys_llm.errors import UserError
from ys_llm.gendata.corpus.preview import SAMPLES, preview
from ys_llm.gendata.corpus.preview_page import preview_page
from ys_llm.gendata.curation import curate_folder
from ys_llm.gendata.curation.rules import STANDARD
from ys_llm.gendata.generation.journal import NAME as JOURNAL

ANSWER = "Hen {0} found {0} <b>seeds</b> and ate them."
PLAIN = [Record(f"Tell of hen {n}.", ANSWER.format(n)) for n in range(9)]
PREAMBLE = Record("Tell of a fox.", "Sure! Here is a story:\n\nA fox ran over the hill to the sea.")
REFUSAL = Record("Tell of a cat.", "I'm sorry, but I can't help with that request.")
REJECTED = {
    "key": "k",
    "kind": "tales",
    "index": 4,
    "status": "dropped",
    "record": None,
    "tries": 1,
    "provenance": {
        **{"digest": "d", "seed": 1, "time": "", "seconds": 1.0, "model": "m", "model_digest": ""},
        **{"requests": [], "fixed": [], "verified": []},
    },
    "reason": "too short",
    "rejections": [{"name": "length", "reason": "only 3 <words>"}],
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    tales = [*PLAIN, PREAMBLE, REFUSAL, PLAIN[0]]
    (folder / "tales-01.md").write_text("".join(record.text() for record in tales))
    (folder / "notes.txt").write_text("A plain text, which is one document.")
    return folder


def test_records_are_counted_by_kind_and_identical_ones_are_found(corpus: Path) -> None:
    shown = preview(corpus, rules=STANDARD)
    assert {name: len(kind.lengths) for name, kind in shown.kinds.items()} == {
        "tales": 12,
        "notes": 1,
    }
    assert shown.duplicates == [("tales-01.md:12", "tales-01.md:1")]
    samples = [where for where, _ in shown.kinds["tales"].samples]
    assert len(samples) == SAMPLES and samples == sorted(
        samples, key=lambda w: int(w.split(":")[1])
    )


def test_rules_are_tried_and_nothing_is_written(corpus: Path) -> None:
    before = {path: path.read_bytes() for path in corpus.rglob("*")}
    shown = preview(corpus, rules=STANDARD)
    fired = {name: one for name, one in shown.rules.items() if one.records}
    (edit,) = fired["preamble"].examples
    assert "-Sure! Here is a story:" in edit["diff"]
    assert fired["refusal"].records == 1
    assert {path: path.read_bytes() for path in corpus.rglob("*")} == before


def test_of_a_curated_folder_the_notes_of_curation_are_shown(corpus: Path, tmp_path: Path) -> None:
    curate_folder(corpus, tmp_path / "clean")
    shown = preview(tmp_path / "clean", rules=STANDARD)
    assert shown.origin.startswith("Curation read 13 records, kept 11")
    (refused,) = shown.rules["refusal"].examples
    assert "I'm sorry" in refused["text"]
    assert "-Sure! Here is a story:" in shown.rules["preamble"].examples[0]["diff"]


def test_refused_answers_of_a_model_are_shown_with_their_reasons(corpus: Path) -> None:
    (corpus / JOURNAL).write_text(json.dumps(REJECTED) + "\n")
    html = preview_page(preview(corpus, rules=STANDARD))
    assert problems_of(html) == []
    assert "only 3 <words>" in Page(html).text and "1 were dropped" in html


def test_the_command_writes_a_page_beside_the_corpus(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gen-data", "preview", str(corpus)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == corpus.parent / "corpus-preview.html"
    html = path.read_text(encoding="utf-8")
    assert problems_of(html) == []
    assert "<b>seeds</b>" in Page(html).text


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.txt"):
        preview(tmp_path, rules=STANDARD)
