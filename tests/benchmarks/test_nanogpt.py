"""The baseline is the published one: its size, its schedule, and that it learns."""

from __future__ import annotations

import math
import re

import pytest
import torch

from benchmarks import nanogpt


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 200, encoding="utf-8")
    return path


def test_the_model_has_the_size_that_its_source_names():
    counted = sum(p.numel() for p in nanogpt.Gpt(vocab_size=65).parameters())
    assert counted - nanogpt.BLOCK * nanogpt.WIDTH == 795_904  # "0.80M", without positions


def test_no_character_sees_a_later_one():
    torch.manual_seed(0)
    model = nanogpt.Gpt(vocab_size=9)
    tokens = torch.randint(9, (1, 8))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 9
    first, second = (model.layers(model.embedding(row))[0, :-1] for row in (tokens, changed))
    assert torch.equal(first, second)


def test_the_learning_rate_warms_up_and_ends_at_the_lowest():
    rates = [nanogpt.learning_rate(n, 2000) for n in range(2000)]
    assert max(rates) == nanogpt.HIGHEST and rates.index(max(rates)) == nanogpt.WARMUP
    assert rates[: nanogpt.WARMUP] == sorted(rates[: nanogpt.WARMUP])
    assert math.isclose(rates[-1], nanogpt.LOWEST, rel_tol=1e-3)


def test_it_learns_a_text_and_says_how_fast(text, capsys):
    assert nanogpt.main(["--data", str(text), "--iterations", "60", "--threads", "1"]) == 0
    line = capsys.readouterr().out.strip()
    found = re.search(r"^60 iterations in .* characters/s; validation loss ([\d.]+)$", line)
    assert found is not None, line
    assert float(found[1]) < 1.5 < math.log(11)  # of eleven characters drawn at random


@pytest.mark.parametrize("content", [b"too short", b"\xff\xfe\x00"])
def test_an_unusable_text_is_refused_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    assert nanogpt.main(["--data", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"benchmarks: --data {path}")
