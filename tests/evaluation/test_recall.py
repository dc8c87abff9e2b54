"""Mentions are found with every tokenizer; recall is the loss on their tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluated import nats_of, small_model
from support.training_runs import TrainRun

from ys_llm.config.schema import TokenizerKind
from ys_llm.data.records import Document
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.split import SplitRecord
from ys_llm.data.split_cache import load_split
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.data.words import CommonWords
from ys_llm.errors import UserError
from ys_llm.evaluation.bits_per_byte import evaluate_paths
from ys_llm.evaluation.mentions import documents_of, find_mentions
from ys_llm.evaluation.recall import measure_recall, ratio, recall_of_paths, recall_rows
from ys_llm.evaluation.token_losses import losses_of_documents
from ys_llm.runs.model_files import load_run

STORIES = [
    ("Tell of an owl.", "Soon the owl met Élodie. Then came McKay, and Élodie saw McKay."),
    (None, "A fox sat. And then the fox saw Élodie; she and Élodie sat. Nobody came."),
    (None, "Nothing here."),
]
DOCUMENTS = [Document(text, prompt) for prompt, text in STORIES]
COMMON = CommonWords(frozenset({"the", "then", "and", "a", "sat", "saw", "came"}))
KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)


def tokenizer_of(kind: TokenizerKind) -> Tokenizer:
    texts = [text for document in DOCUMENTS for text in (document.prompt or "", document.text)]
    return train_tokenizer(texts, kind=kind, vocab_size=300)


def ids_of(tokenizer: Tokenizer, document: Document) -> np.ndarray:
    prompt = []
    if document.prompt is not None:
        prompt = [*tokenizer.encode(document.prompt), tokenizer.start_id]
    return np.array([*prompt, *tokenizer.encode(document.text), tokenizer.end_id])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_words_are_found_with_every_tokenizer(kind: TokenizerKind) -> None:
    tokenizer = tokenizer_of(kind)
    documents = [ids_of(tokenizer, document) for document in DOCUMENTS]
    found = find_mentions(documents, tokenizer, COMMON)
    words = [
        (
            mention.document,
            tokenizer.decode(documents[mention.document][mention.first : mention.last + 1]).strip(),
            mention.is_name,
            mention.distance > 0,
        )
        for mention in found
    ]
    assert words == [
        (0, "owl", False, False),
        (0, "owl", False, True),
        (0, "Élodie", True, False),
        (0, "McKay", True, False),
        (0, "Élodie", True, True),
        (0, "McKay", True, True),
        (1, "fox", False, False),
        (1, "fox", False, True),
        (1, "Élodie", True, False),
        (1, "Élodie", True, True),
    ]


@given(st.lists(st.text(alphabet="abÉé .,'", min_size=1, max_size=30), min_size=1, max_size=3))
def test_every_later_mention_has_the_distance_to_the_one_before(texts: list[str]) -> None:
    tokenizer = train_tokenizer(texts, kind="chars", vocab_size=300)
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_id]) for text in texts]
    last: dict[tuple[int, str], int] = {}
    counts: dict[tuple[int, str], int] = {}
    for mention in find_mentions(documents, tokenizer, CommonWords(frozenset({"a"}))):
        ids = documents[mention.document][mention.first : mention.last + 1]
        word = mention.document, tokenizer.decode(ids).lower()
        assert word[1].isalpha() and word[1] != "a"
        assert mention.distance == (mention.first - last[word] if word in last else 0)
        last[word], counts[word] = mention.last, counts.get(word, 0) + 1
    assert all(count > 1 for count in counts.values())


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_losses_are_those_of_each_document_from_its_start(kind: TokenizerKind) -> None:
    tokenizer = tokenizer_of(kind)
    model = small_model(tokenizer)
    documents = [ids_of(tokenizer, document) for document in DOCUMENTS]
    for ids, found in zip(
        documents, losses_of_documents(model, documents, first_id=0), strict=True
    ):
        expected = nats_of(model, np.array([0, *ids]), reset=False).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_long_document_is_read_in_parts_with_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("bytes")
    model = small_model(tokenizer)
    documents = [ids_of(tokenizer, document) for document in DOCUMENTS]
    whole = losses_of_documents(model, documents, first_id=0)
    monkeypatch.setattr("ys_llm.evaluation.token_losses._COLUMNS", 7)
    for left, right in zip(whole, losses_of_documents(model, documents, first_id=0), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_rows_are_means_over_the_tokens_of_each_kind() -> None:
    tokenizer = tokenizer_of("bytes")
    documents = [ids_of(tokenizer, document) for document in DOCUMENTS]
    mentions = find_mentions(documents, tokenizer, COMMON)
    losses = [np.ones(len(ids)) for ids in documents]
    for mention in mentions:
        losses[mention.document][mention.first : mention.last + 1] = 2 if mention.distance else 6
    rows = {(row.words, row.mention, row.distance): row for row in recall_rows(losses, mentions)}
    first, again = rows["names", "first", ""], rows["names", "again", ""]
    assert (first.nats_per_token, again.nats_per_token) == (6, 2)
    assert rows["names", "difference", ""].nats_per_token == 4
    assert again.mentions == 3
    assert again.tokens == len("ÉlodieMcKayÉlodie".encode())
    assert again.nats_per_mention == pytest.approx(2 * again.tokens / 3)
    assert rows["all", "rest", ""].nats_per_token == 1
    assert rows["all", "all", ""].tokens == sum(map(len, documents))
    by_distance = [row for key, row in rows.items() if key[0] == "rare" and key[2]]
    assert sum(row.mentions for row in by_distance) == rows["rare", "again", ""].mentions


def test_the_standard_error_is_that_of_means_of_documents() -> None:
    means, counts = np.array([1.0, 2.0, 6.0]), np.ones(3)
    value, error = ratio(means, counts)
    assert value == 3
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(3))
    assert ratio(means[:1], counts[:1]) == (1, None)


def test_a_shard_gives_its_documents_and_a_text_without_repetition_an_error(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bytes")
    data = load_or_tokenize(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="validation")
    found = sorted(tuple(ids) for ids in documents_of(data))
    assert found == sorted(tuple(ids_of(tokenizer, document)) for document in DOCUMENTS)
    assert len(documents_of(data, max_tokens=1)) == 1
    rows = measure_recall(small_model(tokenizer), data, tokenizer, COMMON)
    assert {row.words for row in rows} == {"names", "rare", "all"}
    json.dumps([vars(row) for row in rows], allow_nan=False)
    data = load_or_tokenize(DOCUMENTS[2:], tokenizer, cache_dir=tmp_path, label="validation")
    with pytest.raises(UserError, match="no rare word"):
        measure_recall(small_model(tokenizer), data, tokenizer, COMMON)


def test_a_trained_run_keeps_its_common_words_and_can_count_them_again(
    train_run: TrainRun, corpus: Path, tmp_path: Path
) -> None:
    run = train_run().run
    (tmp_path / "new.txt").write_text("Soon Zed met Zoe. And then Zed saw that Zoe saw Zed.")
    loaded = load_run(run)
    stored = CommonWords.load(run / "common_words.json")
    assert stored and {"the", "sat", "birds"} <= stored.words
    rows = recall_of_paths(loaded, [tmp_path / "new.txt"])
    assert {row.mentions for _, row in rows if row.words == "names" and not row.distance} == {2, 3}
    (run / "common_words.json").unlink()
    assert recall_of_paths(loaded, [tmp_path / "new.txt"]) == rows
    shutil.rmtree(corpus)
    with pytest.raises(UserError, match=r"has no common_words\.json"):
        recall_of_paths(loaded, [tmp_path / "new.txt"])


def test_held_out_text_is_evaluated_alone(train_run: TrainRun, corpus: Path) -> None:
    loaded = load_run(train_run("data.validation_fraction=0.3").run)
    [every] = evaluate_paths(loaded, [corpus])
    [held_out] = evaluate_paths(loaded, [corpus], held_out=True)
    assert 0 < held_out.documents < every.documents
    record = SplitRecord.load(loaded.path / "split.json")
    split = load_split(loaded.config.data, record=record)
    assert held_out.documents == len(split.validation)
