"""Near duplicates against brute force: every pair compared, with sets of words, no hashes."""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.gendata.curation.near_duplicates import (
    HASHES,
    NearDuplicates,
    band_rows,
    find_pairs,
    jaccard,
    shingles_of,
    signature_of,
)
from ys_llm.gendata.programs.registry import MAKERS

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
THRESHOLD = 0.8
SMALLEST_SHINGLE = 3510524959979495546
FIRST_MINIMA = [543844474, 896061164, 177355373]
WORDS = st.lists(
    st.sampled_from(["river", "lake", "sea", "Rain", "rain,", "snow", "ice"]), max_size=30
)


def words_of(text: str) -> list[str]:
    """As the module says: of ASCII the letters and digits, and all that is not ASCII."""
    return re.findall(r"[a-z0-9\u0080-\U0010ffff]+", text.lower())


def slow_shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = [word for word in words_of(text)]
    return frozenset(tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4)))


def brute_force(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """All pairs at or over the threshold; sets that share nothing are never paired."""
    sets = [slow_shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    found = {}
    for number, shingles in enumerate(sets):
        shared: dict[int, int] = defaultdict(int)
        for shingle in shingles:
            for other in holders[shingle]:
                shared[other] += 1
            holders[shingle].append(number)
        for other, count in shared.items():
            value = count / (len(shingles) + len(sets[other]) - count)
            if value >= threshold:
                found[other, number] = value
    return found


def edited(text: str, changes: int, generator: random.Random) -> str:
    words = text.split(" ")
    for _ in range(changes):
        place = generator.randrange(len(words))
        edit = generator.choice(("drop", "double", "replace"))
        new = {"drop": [], "double": [words[place]] * 2, "replace": ["otter"]}[edit]
        words[place : place + 1] = new or ([] if len(words) > 5 else [words[place]])
    return " ".join(words)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """800 records of all program kinds, and 400 of them again with a few words changed."""
    generator = random.Random("near duplicates")
    originals = []
    for index in range(160):
        for kind, make in MAKERS.items():
            record = make(random.Random(f"{kind}:{index}"))
            originals.append(f"{record.prompt}\n{record.response}")
    copies = [
        edited(generator.choice(originals), generator.randrange(6), generator) for _ in range(400)
    ]
    mixed = originals + copies
    generator.shuffle(mixed)
    return mixed


def test_banding_finds_what_comparing_every_pair_finds(texts: list[str]) -> None:
    expected = brute_force(texts, THRESHOLD)
    found = {(i, j): value for i, j, value in find_pairs(texts, THRESHOLD)}
    assert len(expected) > 150
    assert found.keys() <= expected.keys()
    assert len(found) >= 0.97 * len(expected)
    assert all(found[pair] == pytest.approx(expected[pair]) for pair in found)


def test_the_pairs_of_a_plain_double_loop_are_those_of_the_faster_brute_force(
    texts: list[str],
) -> None:
    some = texts[:200]
    sets = [slow_shingles(text) for text in some]
    slow = {
        (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for i, j in itertools.combinations(range(len(some)), 2)
    }
    over = {pair: value for pair, value in slow.items() if value >= THRESHOLD}
    assert over == brute_force(some, THRESHOLD)


def test_of_what_is_kept_no_two_are_near(texts: list[str]) -> None:
    near = NearDuplicates(THRESHOLD)
    kept, dropped = [], {}
    for number, text in enumerate(texts):
        shingles = shingles_of(text)
        match = near.add(number, shingles, signature_of(shingles))
        if match is None:
            kept.append(number)
        else:
            dropped[number] = match
    assert not find_pairs([texts[number] for number in kept], THRESHOLD)
    assert dropped
    for number, match in dropped.items():
        assert match.number in kept
        assert match.number < number
        assert match.jaccard >= THRESHOLD
        assert match.jaccard == jaccard(
            shingles_of(texts[number]), shingles_of(texts[match.number])
        )


@given(WORDS, WORDS)
def test_the_hashed_jaccard_is_the_one_of_the_words(one: list[str], other: list[str]) -> None:
    a, b = slow_shingles(" ".join(one)), slow_shingles(" ".join(other))
    hashed = jaccard(shingles_of(" ".join(one)), shingles_of(" ".join(other)))
    assert hashed == pytest.approx(len(a & b) / len(a | b))


def test_signatures_estimate_the_jaccard(texts: list[str]) -> None:
    pairs = find_pairs(texts, 0.5)
    signatures = {i: signature_of(shingles_of(texts[i])) for pair in pairs for i in pair[:2]}
    errors = [abs((signatures[i] == signatures[j]).mean() - value) for i, j, value in pairs]
    assert sum(errors) / len(errors) < 0.06
    assert max(errors) < 0.2  # what `add` allows for


def test_a_signature_is_the_same_on_every_machine() -> None:
    shingles = shingles_of("The river runs past the old mill and on to the sea — always.")
    assert len(shingles) == 10
    assert shingles.tolist()[0] == SMALLEST_SHINGLE
    assert signature_of(shingles)[:3].tolist() == FIRST_MINIMA


def test_long_texts_have_the_signature_of_their_parts() -> None:
    words = [f"word{number}" for number in range(10_000)]
    whole, head, tail = (
        signature_of(shingles_of(" ".join(part))) for part in (words, words[:6000], words[5996:])
    )
    assert (whole == [min(pair) for pair in zip(head, tail, strict=True)]).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_as_high_as_the_recall_allows(threshold: float) -> None:
    def recall(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (HASHES // rows)

    rows = band_rows(threshold)
    assert recall(rows) >= 0.99
    assert rows == HASHES or recall(rows + 1) < 0.99


@pytest.mark.parametrize("text", ["", " ", "?!", "one", "\0", "\ud800 half", "語 語 語 語 語 語"])
def test_any_text_has_shingles(text: str) -> None:
    shingles = shingles_of(text)
    assert len(shingles) >= 1
    assert jaccard(shingles, shingles) == 1


@pytest.mark.slow
def test_recall_on_five_thousand_real_records() -> None:
    if not CORPUS.is_dir():
        pytest.skip("there is no shared corpus beside this repository")
    # The kinds that repeat themselves, whole, and a random draw of the others: 5,000 in all.
    everything: dict[bool, list[str]] = {True: [], False: []}
    for path in sorted(CORPUS.glob("*.md")):
        repeats = "sentiment" in path.name or "jokes" in path.name
        everything[repeats] += path.read_text("utf-8").split("<end>")[:-1]
    draw = random.Random(5).sample(everything[False], 5000 - len(everything[True]))
    texts = everything[True] + draw
    expected = brute_force(texts, THRESHOLD)
    found = {(i, j) for i, j, _ in find_pairs(texts, THRESHOLD)}
    recall = len(found & expected.keys()) / len(expected)
    inexact = [pair for pair, value in expected.items() if value < 1]
    part = sum(pair in found for pair in inexact) / max(1, len(inexact))
    print(f"{len(texts):,} records, {len(expected):,} pairs at {THRESHOLD}, recall {recall:.4f};")
    print(f"{len(inexact):,} of them not the same, recall {part:.4f}")
    assert found <= expected.keys()
    assert recall >= 0.97
