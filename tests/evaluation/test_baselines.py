"""Baselines are what the compressors say, and are computed once for the same documents."""

from __future__ import annotations

import gzip
import lzma
import math
from pathlib import Path

import pytest

from ys_llm.data.records import Document
from ys_llm.errors import UserError
from ys_llm.evaluation import baselines as baselines_module
from ys_llm.evaluation.baselines import baselines, cached_baselines


def test_the_unigram_counts_training_bytes_and_adds_one() -> None:
    training = [Document(text="aab"), Document(text="b", prompt="a")]
    found = baselines(training, [Document(text="abc")])["unigram"]
    counts = {"a": 3, "b": 2, "c": 0}
    bits = [-math.log2((counts[letter] + 1) / (5 + 256)) for letter in "abc"]
    assert found == pytest.approx(sum(bits) / 3)


def test_gzip_and_xz_are_the_sizes_of_the_compressed_validation_text() -> None:
    validation = [
        Document(text="the cat sat on the mat " * 50),
        Document(text="é" * 20, prompt="x"),
    ]
    ordered = sorted(validation, key=lambda document: document.content_hash)
    text = "".join((document.prompt or "") + document.text for document in ordered).encode()
    found = baselines([Document(text="abc")], validation)
    assert baselines([Document(text="abc")], validation[::-1]) == found
    assert found["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert found["xz"] == 8 * len(lzma.compress(text)) / len(text)


def test_of_a_larger_text_its_first_part_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    validation = [Document(text=f"{n}" * 40) for n in range(9)]
    first = min(validation, key=lambda document: document.content_hash)
    expected = baselines([Document(text="abc")], [first])
    monkeypatch.setattr(baselines_module, "COMPRESSED_BYTES", 1)
    assert baselines([Document(text="abc")], validation) == expected


def test_an_empty_validation_split_is_the_users_error() -> None:
    with pytest.raises(UserError, match="holds no text"):
        baselines([Document(text="abc")], [])


def test_baselines_are_cached_by_what_the_documents_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, validation = [Document(text="aab"), Document(text="b")], [Document(text="abc")]
    found = cached_baselines(training, validation, cache_dir=tmp_path)
    assert found == baselines(training, validation)
    monkeypatch.setattr(baselines_module, "baselines", lambda *_: {"made anew": 1.0})
    assert cached_baselines(training[::-1], validation, cache_dir=tmp_path) == found
    for other in ((training[:1], validation), (training, training), (validation, training)):
        assert cached_baselines(*other, cache_dir=tmp_path) == {"made anew": 1.0}


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"unigram": 1.0}', '{"unigram": 1.0, "gzip": NaN, "xz": 2.0}']
)
def test_damaged_baselines_are_made_again(tmp_path: Path, damage: str) -> None:
    documents = [Document(text="aab")]
    found = cached_baselines(documents, documents, cache_dir=tmp_path)
    (cached,) = tmp_path.glob("*/baselines.json")
    cached.write_text(damage, encoding="utf-8")
    assert cached_baselines(documents, documents, cache_dir=tmp_path) == found
    assert cached.read_text(encoding="utf-8") != damage
