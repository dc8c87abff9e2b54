"""The conversations: the same bytes again, and every reply derived by a second program."""

import itertools
import json
import random
from pathlib import Path

import pytest
from support import conversation_checker
from support.gendata_checker import WrongError

from ys_llm.cli.main import main
from ys_llm.gendata.judges.conversations import obeys
from ys_llm.gendata.programs.conversations import CONVERSATIONS, messages_line
from ys_llm.gendata.recipes.load import load_recipes, program_recipes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "conversations"
KINDS = sorted(CONVERSATIONS)


def test_a_second_program_derives_every_reply() -> None:
    counts = conversation_checker.check_folder(FOLDER)
    assert counts == {kind.name: kind.spec.count for kind in load_recipes(KINDS)}
    assert sum(counts.values()) == 3000


def test_the_command_in_their_readme_makes_them(tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert f"--kind {','.join(KINDS)} --out conversations\n" in (FOLDER / "README.md").read_text()
    assert main(["gen-data", "--kind", ",".join(KINDS), "--out", str(out)]) == 0
    made = {path.name: path.read_bytes() for path in out.iterdir()}
    kept = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert {name for name in kept if made.get(name) != kept[name]} == {"README.md"}


def test_the_corpus_for_pretraining_has_none_of_them() -> None:
    assert not {recipe.spec.program for recipe in program_recipes()} & set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_program_refuses_another_reply(kind: str) -> None:
    draw = random.Random(kind)
    lines = [json.loads(messages_line(CONVERSATIONS[kind](draw))) for _ in range(60)]
    kept = 0
    for line, other in itertools.pairwise(lines):
        wrong = {**line["messages"][-1], "content": other["messages"][-1]["content"]}
        try:
            text = json.dumps({"messages": [*line["messages"][:-1], wrong]})
            conversation_checker.check_conversation(text)
            kept += 1
        except WrongError:
            pass
    assert kept <= 15  # "You are welcome." is right more than once


@pytest.mark.parametrize("kind", ["chat_names", "chat_styles", "chat_mixed"])
def test_replies_obey_their_system_text_and_replies_without_it_do_not(kind: str) -> None:
    draw = random.Random(kind)
    judged = refused = 0
    for line in (json.loads(messages_line(CONVERSATIONS[kind](draw))) for _ in range(60)):
        first, *turns = line["messages"]
        system = first["content"] if first["role"] == "system" else ""
        for asked, reply in zip(turns[::2], turns[1::2], strict=False) if system else ():
            found = obeys(system, asked["content"], reply["content"])
            judged += bool(found)
            assert all(found.values()), (system, reply)
            refused += bool(found) and not all(obeys(system, asked["content"], "I Am.").values())
    assert judged > 30 and refused == judged


def test_a_system_text_that_sets_nothing_is_not_judged() -> None:
    assert obeys("Be kind.", "Who are you?", "I am Pip.") == {}
    assert obeys("Your name is Pip.", "Spell fox.", "F-O-X.") == {}
