"""Curation by kinds of fault: several unlike cases of each, and what looks like it and is right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.data.records import Record
from ys_llm.gendata.curation import STANDARD, Edit, Verdict, apply_rules
from ys_llm.gendata.curation.corruption import LANGUAGE
from ys_llm.gendata.curation.report import difference
from ys_llm.gendata.curation.structure import balance

ASKED = "Tell me about rivers."
BODY = "Rivers run from the hills to the sea.\n\nThey carry water, sand and boats to the towns."
LONG = "The river is wide here, and the town lies on both sides of it. " * 4


def outcome(response: str, prompt: str = ASKED) -> str:
    """The response that is left, or the rule that dropped it, in angle brackets."""
    curated = apply_rules(Record(prompt, response), STANDARD)
    assert curated.verdict or curated.record
    return (
        f"<{curated.verdict.rule}>"
        if curated.verdict
        else str(curated.record and curated.record.response)
    )


def said(response: str, prompt: str) -> str:
    """What the rule on languages says."""
    verdict = LANGUAGE.apply(Record(prompt, response))
    return verdict.reason if isinstance(verdict, Verdict) else ""


def kept(response: str, prompt: str = ASKED) -> bool:
    return outcome(response, prompt) == response


@pytest.mark.parametrize(
    ("response", "left"),
    [
        (f"{BODY}\n\nNote: a shorter form:\n\n```sql\nSELECT 2;\n```", BODY),
        (
            "Here is one query for the rivers:\n\n```sql\nSELECT 1;\n```\n\nNote: it is slow.\n",
            "```sql\nSELECT 1;\n```\n",
        ),
        (f"{BODY}\n\n(Note: this is short.\n\nIt is not all.)", BODY),
        (f"{BODY}\n```sql\nSELECT 1; -- Note: slow\n```", None),
    ],
)
def test_a_note_goes_with_its_block_or_not_at_all(response: str, left: str | None) -> None:
    assert outcome(response).strip() == (response if left is None else left).strip()


@pytest.mark.parametrize(
    "code",
    [
        "int add(int a, int b) {\n    return a + b;\n}\nint x = add(1, 2);",
        "SELECT name\nFROM rivers\nWHERE length > 100;",
        "const rivers = [];\nrivers.push(1);\nconsole.log(rivers);",
        "server:\n  port: 80\n  host: here\ndata:",
        "name: Anna\nitems:\n  - oars\n  - sails\ndata:",
        '{"river": {"name": "Rhine", "towns": ["Bonn", "Basel"]}}',
    ],
)
def test_code_without_a_fence_is_whole(code: str) -> None:
    assert kept(code)


@pytest.mark.parametrize(
    "response",
    [
        '{"name": "Anna", "hobbies": ["reading", "swi',
        '{"name": "Anna", "hobbies": ["reading"]',
        'This is a person:\n\n{"name": "Anna",\n "age": 3,',
        '[{"a": 1}, {"a": 2}',
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4",
    ],
)
def test_open_json_and_open_rows_are_truncated(response: str) -> None:
    assert outcome(response) == "<truncated>"


def test_one_slot_costs_its_line_or_sentence_and_no_more() -> None:
    book = "\n\n".join(f"{word}: {BODY}" for word in ("One", "Two"))
    assert outcome(f"{book}\n\nNext: [insert title]\n\nThe end.") == f"{book}\n\n\nThe end."
    assert outcome(f"{BODY} I'm your host, [Name]. It is late.") == f"{BODY} It is late."
    assert outcome("Dear [Name], I am [Your Name] of [Company Name].") == "<placeholder>"


@pytest.mark.parametrize(
    ("response", "prompt"),
    [
        ("Dear [Name],\n\nI resign.\n\n[Your Name]", "Write a resignation letter as a template."),
        ("Read row[name] first, then row[date].", ASKED),
        ("$ ys login --token <your token>", ASKED),
        ("[Segment 2: Key Players]\n\nHost: Hello, all.", ASKED),
        ("Anna: So.\n\n[Insert awkward pause]\n\nTom: Yes.", ASKED),
    ],
)
def test_slots_that_were_asked_for_code_and_directions_are_spared(
    response: str, prompt: str
) -> None:
    assert kept(response, prompt)


@pytest.mark.parametrize(
    ("response", "prompt"),
    [
        ("# Rivers\n\n[![build](https://x.org/b.svg)](https://x.org)\n\nA library.", "A project?"),
        ('import urllib.request\nurllib.request.urlopen("https://x.org/a")', "Fetch a page."),
        ("Type this:\n\n    curl https://x.org/a", "How do I fetch it?"),
        ("Anna's page is https://a.org now.", "| Anna | https://a.org |\nWhere is Anna?"),
        ("Read https://learn.org/haskell first.", "What are good resources to learn Haskell?"),
    ],
)
def test_links_that_belong_there_are_spared(response: str, prompt: str) -> None:
    assert kept(response, prompt)


PAIRS = {
    "German": (
        "Was ist die Hauptstadt von Österreich?",
        "Die Hauptstadt von Österreich ist Wien, und das ist auch die größte Stadt im Land.",
    ),
    "French": (
        "Quelle est la capitale de la France ?",
        "La capitale de la France est Paris, qui est une ville sur la Seine avec des ponts.",
    ),
    "Spanish": (
        "¿Cuál es la capital de España?",
        "La capital de España es Madrid, que es una de las ciudades más grandes de Europa.",
    ),
    "Chinese": ("中国的首都是哪里？", "中国的首都是北京，是一座有三千年历史的城市。"),
    "Arabic": ("ما هي عاصمة مصر؟", "عاصمة مصر هي القاهرة، وهي مدينة كبيرة على النيل."),
}


@pytest.mark.parametrize("language", PAIRS)
def test_an_answer_in_the_language_of_its_prompt_is_right(language: str) -> None:
    prompt, response = PAIRS[language]
    assert kept(response, prompt)
    assert outcome(response) == "<language>"


@pytest.mark.parametrize(
    "response",
    [
        "Die Flüsse sind lang, und das Wasser ist nicht kalt, aber die Kinder sind auf dem Eis.",
        "Les rivières sont longues, mais elles ne sont pas froides, et nous avons un bateau.",
    ],
)
def test_an_answer_in_another_language_is_found_in_one_sentence(response: str) -> None:
    assert outcome(response) == "<language>"


def test_a_language_that_changes_in_mid_text_is_found() -> None:
    english = " ".join(
        f"{who} of the town went to the river in the {when} to look for the boat of the king."
        for who, when in zip(
            ("A boy", "Two men", "The cook", "My aunt", "An old judge", "The girls"),
            ("spring", "rain", "night", "morning", "storm", "snow"),
            strict=True,
        )
    )
    for prompt, response in (PAIRS["German"], PAIRS["French"], PAIRS["Spanish"]):
        other = f"{response} {response.replace('ist', 'war').replace('es', 'fue')} {response}"
        assert "changes from English" in said(f"{english} {other}", ASKED)
        assert "to English" in said(f"{other} {english}", prompt)


@pytest.mark.parametrize(
    "response",
    [
        "I can't help but smile when I think of that summer.",
        "I couldn't help laughing when the boat sank.",
        "Here is what Grandma said:\n\nThe river is old.",
        "Of course! cried the king. Bring me the boat.",
        "Dear Tom,\n\nthe river is high and the boat is ready.\n\nBest,",
        "My love,\n\nI write to you from the river.\n\nYours always,",
    ],
)
def test_fiction_and_letters_are_spared(response: str) -> None:
    assert kept(response)


@pytest.mark.parametrize(
    "closing",
    [
        "This script offers a lively episode about rivers.",
        "That is a basic overview of rivers.",
        "We hope this was helpful!",
        "How should the story go on?",
        "This article provides an overview of rivers, boats and towns.",
    ],
)
def test_closing_comments_go(closing: str) -> None:
    assert outcome(f"{BODY}\n\n{closing}") == BODY


@pytest.mark.parametrize(
    "line",
    [
        "Now, here is a short story that has tea in it:",
        "And now, here's a poem about the river:",
        "Here's a short story that includes a boat:",
        "Now, let me craft a short story for you:",
    ],
)
def test_chat_lines_between_two_parts_go(line: str) -> None:
    assert outcome(f"{BODY}\n\n{line}\n\n---\n\nAnna rowed.") == f"{BODY}\n\nAnna rowed."


@pytest.mark.parametrize(
    "opening",
    [
        "Your guide is well structured, and I especially like the part on boats.",
        "You've provided a clear list of what rivers do. Each point is right.",
        "This is a comprehensive guide to rivers. The strategies provided are clear.",
        "A thoughtful and well-argued perspective on rivers! Your points are spot on.",
        "The passage describes a river and a town. It offers several useful details.",
        "Great description! Here's a summary of the main points:\n\n* It is wide.",
        "No need to expand on that. Shall we talk of lakes?",
        "It looks like you've written a short text on a river. Your details are vivid.",
    ],
)
def test_feedback_is_no_answer_unless_it_was_asked_for(opening: str) -> None:
    assert outcome(opening, LONG) == "<feedback>"
    assert outcome(opening, f"Please review this text. {LONG}") != "<feedback>"


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (f"Dear Anna, {LONG}", "Dear Tom, your points about the river are good and useful."),
        (f"{LONG} Is this a good text?", "Your text is clear and well structured."),
        (f"What does this text say? {LONG}", "The text describes a wide river. It is clear."),
        (f"Summarize this: {LONG}", "This text gives a clear account of a river and a town."),
        (LONG, "This is the year in which the river froze, and the town with it."),
    ],
)
def test_a_review_that_was_asked_for_and_a_reply_are_answers(prompt: str, response: str) -> None:
    assert outcome(response, prompt) != "<feedback>"


@pytest.mark.parametrize("end", [":", ","])
def test_a_paragraph_without_a_prompt_is_part_of_a_text(end: str) -> None:
    paragraph = f"It was late. At the gate stood an old man, who said to all that came by{end}"
    assert kept(paragraph, "")
    assert outcome(paragraph) == "<truncated>"
    assert outcome(f"{BODY}\n\n{paragraph}", "") == "<truncated>"


DAMAGE = {
    "a paragraph four times": f"{LONG}\n\n" * 4,
    "a list of one": " ".join(f"{n}. Apple" for n in range(1, 31)),
    "a cycle of four": " ".join(["Rhine, Main, Elbe, Oder,"] * 10),
    "a syllable": "ha" * 300,
    "an emoji": "So it is: " + "🦊" * 200,
    "emoji with blanks": "So it is: " + "🦊 " * 200,
    "headings": "".join(f"## Conclusion\n\nRiver {n} ends at sea {n}.\n\n" for n in "abcde"),
    "questions": "".join(f"Question: What is {n}?\nAnswer: It is {n}{n}.\n\n" for n in "abcdef"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_loops_of_small_models_are_dropped(name: str) -> None:
    assert outcome(DAMAGE[name].strip()) == "<repetition>"


@pytest.mark.parametrize("leak", ["### Instruction:\nName a river.", "User: And lakes?"])
def test_leaked_turns_are_dropped(leak: str) -> None:
    assert outcome(f"{BODY}\n\n{leak}") == "<control_tag>"


def test_a_list_given_back_is_a_copy() -> None:
    things = ("oars", "sails", "ropes", "lamps", "maps", "hooks", "nets", "flags", "pails")
    items = [
        f"* **{thing}**: keep the {thing} dry and near the stern of the boat" for thing in things
    ]
    asked, own = (
        "\n".join(items),
        "That is what every good sailor of the river has to know by heart.",
    )
    assert outcome(f"{asked}\n\n{own}", f"What to keep?\n{asked}") in ("<copy>", "<echo>")


def test_every_edit_is_in_the_diff() -> None:
    lines = [f"line {n}" for n in range(2500)]
    before = Record(ASKED, "\n".join([*lines[:900], "-- gone", *lines[900:], "Note: gone too."]))
    shown = difference(Edit("note", before, Record(ASKED, "\n".join(lines))))
    assert "--- gone" in shown and "-Note: gone too." in shown
    assert len(shown.splitlines()) < 10
    short = Edit("note", Record(ASKED, "-- a\nb"), Record(ASKED, "b"))
    assert "--- a" in difference(short)


PARTS = [
    "Note: so:\n\n", "```sql\nSELECT 1;\n```\n", "```", "`x` ", "(Note: it is. ", "[Note: a]\n\n",
    "(", ")", "[", "]", "{", "}", "Here is a list:\n\n", "Sure! ", "I hope this helps. ", "\n\n",
    "I am [Your Name]. ", "Now, here's a story about it:\n\n", "It rained. ", "- a\n", ":)", "1) ",
    "That's rivers in simple terms!", "[the Rhine](rhine) ", "Please note that (see below) it ",
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_mend_changes_the_parity_of_fences_or_brackets(response: str) -> None:
    for edit in apply_rules(Record(ASKED, response), STANDARD).edits:
        assert balance(edit.after.response) == balance(edit.before.response)
