"""The comparison of a model with and without a copy tier runs, and prints a line for each pair."""

import re

import pytest

from benchmarks.copy_tier import main


def test_generation_is_compared_early_late_and_for_many(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["generation", "--quick", "--seconds", "1"])
    lines = capsys.readouterr().out.splitlines()
    names = ["one text after 100", "one text after 600", "4 texts after 600"]
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert re.fullmatch(rf"{name} +[\d.]+ +[\d.]+ us a token  [+-][\d.]+%", line)
