"""Bits per byte by kind are those of each kind's documents, read from their own starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.evaluated import nats_of

from ys_llm.data.records import Document
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.evaluation.tasks.bits_by_kind import bits_by_kind, kind_of
from ys_llm.model.language_model import Model

DOCUMENTS = [
    Document("The fox ran.", source="corpus/tales-01.md:1"),
    Document("A hen came by.", prompt="Who came?", source="corpus/tales-02.md:9"),
    Document("12 and 30", source="sums-1.md:3"),
]


def test_each_kind_has_the_bits_of_its_own_documents(model: Model, tokenizer: Tokenizer) -> None:
    rows = bits_by_kind(model, tokenizer, DOCUMENTS)
    assert [(row.kind, row.documents) for row in rows] == [("sums", 1), ("tales", 2), ("all", 3)]
    parts = [
        [tokenizer.end_id, *tokenizer.encode("The fox ran."), tokenizer.end_id],
        [tokenizer.end_id, *tokenizer.encode("Who came?"), tokenizer.start_id,
         *tokenizer.encode("A hen came by."), tokenizer.end_id],
    ]  # fmt: skip
    nats = sum(float(nats_of(model, np.array(ids), reset=False).sum()) for ids in parts)
    tales = rows[1]
    assert tales.tokens == sum(len(ids) - 1 for ids in parts)
    assert tales.bytes == len("The fox ran.Who came?A hen came by.")
    assert tales.bits_per_byte == pytest.approx(nats / math.log(2) / tales.bytes, rel=1e-5)
    assert tales.standard_error is not None
    assert rows[0].standard_error is None
    assert rows[2].bits_per_byte == pytest.approx(
        sum(row.bits_per_byte * row.bytes for row in rows[:2]) / rows[2].bytes
    )


def test_only_the_first_documents_of_a_kind_are_read(model: Model, tokenizer: Tokenizer) -> None:
    rows = bits_by_kind(model, tokenizer, DOCUMENTS, max_tokens=20)
    assert [(row.kind, row.documents) for row in rows] == [("sums", 1), ("tales", 1), ("all", 2)]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("training_data/tales-01.md:17", "tales"),
        ("novel.txt", "novel"),
        ("a/b/slice_of_life-12.md", "slice_of_life"),
        ("x-2/part-two.jsonl:3", "part-two"),
        ("README", "README"),
        ("", ""),
    ],
)
def test_a_kind_is_what_its_files_are_called(source: str, kind: str) -> None:
    assert kind_of(Document("x", source=source)) == kind
