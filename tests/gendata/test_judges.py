"""The judges tell answers that do what the prompt asks from those that do not."""

from __future__ import annotations

import random

import pytest

from ys_llm.gendata.judges.registry import JUDGES
from ys_llm.gendata.judges.stories import stories as judge
from ys_llm.gendata.programs.registry import MAKERS
from ys_llm.gendata.programs.stories.story import Story, make_story, story

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
        "keeps_its_hero": True,
        "keeps_names_apart": True,
        "keeps_pronouns": True,
    }
    assert judge("What is 2 + 2?", "4") == {}


YUKI = "Yuki was a shy girl. "


@pytest.mark.parametrize(
    ("answer", "apart", "kept"),
    [
        (YUKI + "Her friend Tom came. Yuki and Tom ran.", True, True),
        (YUKI + "Yuki was out with a gentle girl named Yuki.", False, True),
        (YUKI + "His friend Yuki came.", False, True),
        (YUKI + "Tom came. Then Yuki from next door came.", False, True),
        ("Once there was a goat called Bertie. So came Bertie the otter.", False, True),
        ("Bertie, a shy goat, ran. Bertie the goat slept. A shy goat named Bertie!", True, True),
        (YUKI + '"We will," said Yuki to Yuki.', False, True),
        (YUKI + '"It was a crow," said Yuki and tilted his head.', True, True),
        ('A girl named Yuki came. "Oh," said Yuki and tilted his head.', True, False),
        ("Yuki ran home. She slept. Yuki took his hand.", True, True),
        ("Yuki ran home. She slept.\n\nYuki was glad. He slept.", True, False),
        ("Yuki saw Tom. He was glad. Yuki ran. She was glad.", True, True),
        ("A shy girl ran. Her friend came.", True, True),
        ("Yuki lifted her chin. Tom had the table beside Yuki and shook his head.", True, True),
    ],
)
def test_names_are_kept_apart_and_keep_their_pronouns(answer: str, apart: bool, kept: bool) -> None:
    found = judge("Tell me a story about friendship.", answer)
    assert (found["keeps_names_apart"], found["keeps_pronouns"]) == (apart, kept)


def test_a_story_that_is_continued_is_judged_with_its_opening() -> None:
    prompt = f"Continue the story: {YUKI.strip()}"
    assert not judge(prompt, "Her friend Yuki came.")["keeps_names_apart"]
    assert judge(prompt, "Her friend Tom came.")["keeps_names_apart"]


def test_trait_and_plot_are_what_the_prompt_says() -> None:
    draw = random.Random(4)
    told: dict[str, Story] = {}
    while not {"storm", "seed"} <= told.keys():
        made = make_story(draw)
        told[made.plot] = made
    storm, seed = told["storm"].text, told["seed"].text
    prompt = "Write a story about a shy fox who waits for the end of a storm."
    assert judge(prompt, f"{storm} It was shy.") | {"keeps_its_hero": True} == {
        "names_the_asked": "fox" in storm,
        "keeps_its_hero": True,
        "keeps_names_apart": True,
        "keeps_pronouns": True,
        "names_the_trait": True,
        "tells_the_plot": True,
    }
    found = judge(prompt, seed.replace("shy", "bold"))
    assert not found["names_the_trait"] and not found["tells_the_plot"]
    assert "tells_the_plot" not in judge("Tell me a bedtime story about a shy fox.", storm)
    assert judge("Tell me a story about making room for others.", storm)["tells_the_plot"]


def test_stories_of_the_program_mostly_pass() -> None:
    draw = random.Random(1)
    found = [judge(made.prompt, made.response) for made in (story(draw) for _ in range(200))]
    asked = [one["names_the_asked"] for one in found if "names_the_asked" in one]
    assert sum(asked) >= 0.95 * len(asked)
    assert sum(one["keeps_its_hero"] for one in found) >= 0.95 * len(found)
    assert all(one["keeps_names_apart"] and one["keeps_pronouns"] for one in found)
    named = [one["tells_the_plot"] for one in found if "tells_the_plot" in one]
    assert len(named) > 100 and sum(named) >= 0.98 * len(named)


# The program that makes the records of a kind, and a change of a right answer that makes it wrong.
KINDS = {
    "cloze": "cloze",
    "rooms": "scenes",
    "spelling": "spelling",
    "arithmetic": "arithmetic",
    "maths": "maths",
    "units": "units",
    "calendar": "calendar",
    "ordering": "ordering",
    "format": "formats",
    "obedience": "obedience",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_of_a_kind_is_understood_by_its_judge_alone_and_right(kind: str) -> None:
    draw = random.Random(f"judges {kind}")
    for record in (MAKERS[KINDS[kind]](draw) for _ in range(150)):
        found = JUDGES[kind](record.prompt, record.response)
        assert found and all(found.values()), (record, found)
        others = [name for name, judge in JUDGES.items() if judge(record.prompt, record.response)]
        assert others == [kind], record


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_to_another_prompt_is_mostly_wrong(kind: str) -> None:
    draw = random.Random(f"others {kind}")
    records = [MAKERS[KINDS[kind]](draw) for _ in range(100)]
    right = [
        all(JUDGES[kind](one.prompt, other.response).values())
        for one, other in zip(records, [*records[1:], records[0]], strict=True)
    ]
    assert sum(right) <= 25


@pytest.mark.parametrize(
    ("kind", "prompt", "answer", "expected"),
    [
        ("spelling", "Spell garden.", "B-A-R-B-L-E", {"spell": False}),
        ("spelling", "Spell garden.", "G-A-R-D-E-N", {"spell": True}),
        ("spelling", "Spell garden backwards.", "G-A-R-D-E-N", {"backwards": False}),
        ("spelling", "Count the letter r in carrot.", "C-A-R-R-O-T\nThe letter r occurs 2 times.",
         {"count": True}),
        ("spelling", "Count the letter r in carrot.", "C-A-R-O-T\nThe letter r occurs 2 times.",
         {"count": False}),
        ("spelling", "How long is the word fox?", "F-O-X\nThe word has 4 letters.",
         {"length": False}),
        ("arithmetic", "What is 12 + 9?", "Ones: 2 + 9 = 11.\n12 + 9 = 21", {"sum": True}),
        ("arithmetic", "What is 12 + 9?", "12 + 8 = 20", {"sum": False}),
        ("arithmetic", "Which number is smaller, 7 or 7?", "Neither. They are equal.",
         {"comparison": True}),
        ("maths", "True or false: 2 * 3 == 7?", "2 * 3 = 6\nTrue", {"truth": False}),
        ("maths", "What comes next: 1, 2, 4, 8?", "8 * 2 = 16", {"sequence": True}),
        ("maths", "Solve x - 3 = 4.", "4 + 3 = 7\nx = 7", {"equation": True}),
        ("units", "Convert 2 litres to millilitres.", "2 litres = 2000 litres",
         {"conversion": False}),
        ("calendar", "Is 1900 a leap year?", "Yes, it is a leap year.", {"leap_year": False}),
        ("ordering", "Ada is older than Ben. Cal is younger than Ben. Who is the oldest?",
         "From oldest to youngest: Ada, Ben, Cal.\nAda is the oldest.", {"people": True}),
        ("rooms", "The red cup is in the box. Mia takes the cup. Where is the cup now?",
         "The cup is in the box.", {"where": False}),
        ("format", "Convert this csv to json:\n\na,b\n1,2", "| a | b |\n| --- | --- |\n| 1 | 2 |",
         {"form": False, "cells": False}),
        ("format", "Convert this csv to json:\n\na,b\n1,2", '[{"a": 1, "b": 3}]',
         {"form": True, "cells": False}),
        ("obedience", "Write about bees. Write exactly two sentences. Use no commas.",
         "Bees fly, and sting. A bee hums.", {"count": True, "words": False}),
        ("cloze", "Ivy ran. _____ fell.\n\nWhich word fills the gap?\nA) Tom\nB) Ivy",
         "The answer is A) Tom.", {"word": False}),
    ],
)  # fmt: skip
def test_hand_made_answers_are_judged(
    kind: str, prompt: str, answer: str, expected: dict[str, bool]
) -> None:
    assert JUDGES[kind](prompt, answer) == expected


@pytest.mark.parametrize("answer", ["", "\n", "0", "x = ", "|", "Yes, 5:00 = 3/0 cups"])
def test_no_answer_is_too_strange_to_be_judged(answer: str) -> None:
    draw = random.Random(9)
    for kind, maker in KINDS.items():
        prompt = MAKERS[maker](draw).prompt
        found = JUDGES[kind](prompt, answer)
        assert found
        if kind != "obedience":  # `0` is one paragraph of at most ten words
            assert not all(found.values()), (kind, prompt)


@pytest.mark.parametrize("prompt", ["Hello", "", "What is up?", "Sort these: b, a.", "Spell it."])
def test_prompts_of_no_kind_are_left_alone(prompt: str) -> None:
    assert [
        name for name, judge in JUDGES.items() if name != "spelling" and judge(prompt, "a")
    ] == []
