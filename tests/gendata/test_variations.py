"""Words of stories that stand for each other, and details that are told and picked up again."""

import random
from collections import Counter

import pytest

from ys_llm.gendata.programs.grammar import expand
from ys_llm.gendata.programs.stories import story as stories
from ys_llm.gendata.programs.stories.lore import details
from ys_llm.gendata.programs.stories.stage import RECALL, TOLD, drop_marks
from ys_llm.gendata.programs.stories.variations import varied


def test_a_word_of_a_row_becomes_any_word_of_it_with_its_capital() -> None:
    tellings = Counter(
        expand(varied("Nobody ran to {nobody}."), {"nobody": "the door"}, random.Random(i))
        for i in range(60)
    )
    first = {telling.split(" the door")[0] for telling in tellings}
    assert first >= {"Nobody ran to", "No one hurried to", "Nobody raced to"}
    assert all(telling.endswith("the door.") for telling in tellings)


@pytest.mark.parametrize("text", ["as far away as before", "It is not every day that", "a nobodys"])
def test_what_would_be_wrong_in_other_words_stays(text: str) -> None:
    assert {expand(varied(text), {}, random.Random(i)) for i in range(20)} == {text}


def test_nothing_is_recalled_that_was_not_told() -> None:
    recalled = f"The end. {RECALL}The cape was wet.{RECALL}"
    assert drop_marks(recalled) == "The end. "
    assert drop_marks(f"{TOLD}He wore a cape. {recalled}").endswith("The cape was wet.")


def test_every_detail_that_a_story_recalls_was_told_before() -> None:
    buttons = {f" {metal} buttons" for metal in details()["buttons"].lists["metal"]}
    seen = 0
    for index in range(150):
        text = stories.make_story(random.Random(f"recall:{index}")).whole
        for said in buttons:
            if said in text:
                seen += 1
                assert text.index(said) < len(text) / 3, text
    assert seen > 5
