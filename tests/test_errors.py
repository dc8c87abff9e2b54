"""The exception that users see, and the commands that are advised."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.errors import UserError, command_line


@given(st.text(min_size=1), st.integers(), st.lists(st.text(), max_size=3))
def test_a_shell_reads_an_advised_command_as_it_was_meant(
    word: str, seed: int, settings: list[str]
) -> None:
    words = shlex.split(command_line(word, resume_step=seed, set=settings))
    repeated = [part for item in settings for part in ("--set", item)]
    assert words == ["ys", word, "--resume-step", str(seed), *repeated]


def test_a_flag_without_a_value_is_left_out_and_zero_is_a_value() -> None:
    shown = command_line("train", run=None, data="", dry_run=False, yes=True, seed=0)
    assert shown == "ys train --yes --seed 0"


@pytest.mark.parametrize(
    ("problem", "shown"), [("a is b", "a is b. Type c"), ("is a b?", "is a b? Type c")]
)
def test_problem_and_fix_read_as_two_sentences(problem: str, shown: str) -> None:
    assert str(UserError(problem, "Type c")) == shown
