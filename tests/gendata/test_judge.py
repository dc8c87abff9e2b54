"""The judge of stories tells answers that do what the prompt asks from those that do not."""

from __future__ import annotations

import random

import pytest

from ys_llm.gendata.programs.stories.judge import judge
from ys_llm.gendata.programs.stories.story import story

ASKS_ANIMAL = "Write a story about a shy fox who finds a lost owlet."


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (ASKS_ANIMAL, "Mabel the fox ran. Home was far. Mabel slept.", (True, True)),
        (ASKS_ANIMAL, "Mabel the goat ran. Home was far. Mabel slept.", (False, True)),
        (ASKS_ANIMAL, "Mabel the fox ran. Home was far. Basil slept.", (True, False)),
        (ASKS_ANIMAL, "Mabel the fox, Basil and Clover ran. Mabel slept.", (True, False)),
        (ASKS_ANIMAL, "A fox ran.", (True, False)),
        ("Tell me a story about Mabel and Basil.", "Mabel ran. So did Mabel.", (False, True)),
        ("Write a story about a kind boy.", "Noah ran. In the end Noah slept.", (True, True)),
        (
            ASKS_ANIMAL,
            'The fox Mabel and Basil ran. "May I?" said Mabel. "Will you?"',
            (True, True),
        ),
        (ASKS_ANIMAL, "The fox Mabel, Basil and Will ran to May. Mabel slept.", (True, False)),
        ("Write a story about a kind girl.", "Noah ran. In the end Noah slept.", (False, True)),
    ],
)
def test_an_answer_is_judged(prompt: str, answer: str, expected: tuple[bool, bool]) -> None:
    found = judge(prompt, answer)
    assert (found["names_the_asked"], found["keeps_its_hero"]) == expected


def test_a_prompt_without_a_subject_asks_for_a_hero_alone() -> None:
    assert judge("Tell me a story about friendship.", "Mabel ran. Mabel slept.") == {
        "keeps_its_hero": True
    }
    assert judge("What is 2 + 2?", "4") == {}


def test_stories_of_the_program_mostly_pass() -> None:
    draw = random.Random(1)
    found = [judge(made.prompt, made.response) for made in (story(draw) for _ in range(200))]
    asked = [one["names_the_asked"] for one in found if "names_the_asked" in one]
    assert sum(asked) >= 0.95 * len(asked)
    assert sum(one["keeps_its_hero"] for one in found) >= 0.95 * len(found)
