"""The rules against the halves of three readings that they were not tuned on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ys_llm.data.records import Record
from ys_llm.gendata.curation import STANDARD, Curated, apply_rules

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
LABELS = Path(__file__).parent / "labels"
READINGS = [f"{name}-reading.jsonl" for name in ("second", "third", "fourth")]


def rows(name: str) -> list[dict[str, Any]]:
    lines = (LABELS / name).read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["half"] == "reported"]


@cache
def texts() -> dict[str, Record]:
    """The labelled records of the corpus by hash."""
    if not CORPUS.is_dir():
        pytest.skip("there is no shared corpus beside this repository")
    wanted = [row for name in READINGS for row in rows(name)]
    hashes, found = {row["hash"] for row in wanted}, {}
    for file in {row["file"] for row in wanted}:
        for piece in (CORPUS / file).read_text("utf-8").split("<end>")[:-1]:
            text = piece.lstrip("\n") + "<end>"
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest in hashes:
                found[digest] = Record(*text.removesuffix("<end>").split("<start>"))
    return found


def count_drops(pairs: list[tuple[dict[str, Any], Curated]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row, curated in pairs:
        dropped = curated.record is None
        if row["drop"]:
            counts["right" if dropped else "missed"] += 1
        elif dropped and not any(len(doubt) == 1 for doubt in row["doubt"]):
            counts["wrong"] += 1
    return counts


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def count_mends(
    pairs: list[tuple[dict[str, Any], Curated]], before: dict[str, Record]
) -> Counter[str]:
    """Labelled spans that are gone or still there, and records without doubts that differ."""
    counts: Counter[str] = Counter()
    for row, curated in pairs:
        if curated.record is None or row["drop"]:
            continue
        response, left = before[row["hash"]].response, letters(curated.record.response)
        for _, start, end in row["mend"]:
            counts["missed" if letters(response[start:end]) in left else "right"] += 1
        if row["doubt"]:
            continue
        kept, at = "", 0
        for _, start, end in sorted(row["mend"], key=lambda mend: mend[1]):
            kept, at = kept + response[at:start], end
        counts["wrong"] += letters(kept + response[at:]) != left
    return counts


def rates(counts: Counter[str]) -> tuple[float, float]:
    print(dict(counts))
    said, there = counts["right"] + counts["wrong"], counts["right"] + counts["missed"]
    return counts["right"] / max(1, said), counts["right"] / max(1, there)


def test_answers_of_a_small_model_are_dropped_for_their_damage_alone() -> None:
    read = rows("small-model.jsonl")
    pairs = [(row, apply_rules(Record(row["prompt"], row["response"]), STANDARD)) for row in read]
    precision, recall = rates(count_drops(pairs))
    assert precision >= 0.95
    assert recall >= 0.75


@pytest.mark.parametrize(
    ("name", "dropping", "mending"),
    [
        ("second", (0.85, 0.85), (0.95, 0.95)),
        ("third", (0.95, 0.95), (0.95, 0.95)),
        ("fourth", (0.97, 0.92), (0.97, 0.90)),
    ],
)
def test_the_half_that_no_rule_was_tuned_on(
    name: str, dropping: tuple[float, float], mending: tuple[float, float]
) -> None:
    read, records = rows(f"{name}-reading.jsonl"), texts()
    pairs = [(row, apply_rules(records[row["hash"]], STANDARD)) for row in read]
    for found, least in (
        (rates(count_drops(pairs)), dropping),
        (rates(count_mends(pairs, records)), mending),
    ):
        assert found[0] >= least[0] and found[1] >= least[1]
