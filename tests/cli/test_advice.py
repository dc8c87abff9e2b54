"""Every command that a message advises: built by one function, accepted by the real parser."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.sources import SOURCES, for_every, name_of

from ys_llm.cli.main import COMMANDS, parse
from ys_llm.config.schema import Config
from ys_llm.config.sources import Resolved
from ys_llm.errors import command_line

WRITTEN = re.compile(rf"\bys (?:{'|'.join([*COMMANDS, 'help'])})\b")
# Texts that are no messages: the ends of help texts (`test_cli.py` parses their examples), and the
# README of a corpus, whose commands are parsed here.
TEXTS = {"EXAMPLES", "_OVERVIEW", "TEMPLATE"}
# Where no run is known yet, or the words and flags of a whole request are passed on; what these
# build is parsed in `test_cli.py` and in `gendata/test_pipeline.py`.
WITHOUT_RUN = {"ys_llm/runs/folder.py", "ys_llm/data/readers.py"}
PASSED_ON = {
    "ys_llm/config/sources.py",
    "ys_llm/cli/train.py",
    "ys_llm/cli/sft.py",
    "ys_llm/cli/compare.py",
    "ys_llm/training/trials.py",
    "ys_llm/gendata/command.py",
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def texts_of(tree: ast.Module) -> Iterator[ast.expr]:
    """Docstrings, and the values of the constants in TEXTS."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            yield body[0].value
        if isinstance(node, ast.Assign) and {ast.unparse(t) for t in node.targets} & TEXTS:
            yield from (
                node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            )


@for_every(SOURCES)
def test_no_message_spells_a_command_out(path: Path) -> None:
    """`errors.command_line` quotes for the shell, and asks for the run."""
    tree = tree_of(path)
    excused = set(texts_of(tree))
    spelled = [
        f"line {node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in excused
        if WRITTEN.search(node.value)
    ]
    assert not spelled, f"{name_of(path)}: use command_line: {spelled}"


def test_the_commands_in_the_readme_of_a_corpus_are_accepted() -> None:
    from ys_llm.gendata.corpus.readme import TEMPLATE

    commands = re.findall(r"`ys ([^`]+)`", TEMPLATE)
    assert commands
    for command in commands:
        assert parse(shlex.split(command)).command == "gen-data"


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "command_line",
                "resolved.train_command",
            ):
                yield name_of(path), node


CALLS = [pytest.param(*call, id=f"{call[0]}:{call[1].lineno}") for call in calls()]


def value_of(node: ast.expr) -> object:
    """A literal's own value; something of the same shape for what is only known at run time."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ["train.seed=1"] if isinstance(node, ast.List) else "1"


KNOWN_VALUES = {"task": "parity"}  # flags with choices


def given(call: ast.Call) -> tuple[list[str], dict[str, object]]:
    """The words and flags that a call spells out."""
    words = [str(value_of(word)) for word in call.args if not isinstance(word, ast.Starred)]
    flags = {flag.arg: value_of(flag.value) for flag in call.keywords if flag.arg}
    return words, {name: KNOWN_VALUES.get(name, value) for name, value in flags.items()}


@pytest.mark.parametrize(("file", "call"), CALLS)
def test_every_command_that_is_built_is_accepted(file: str, call: ast.Call) -> None:
    words, flags = given(call)
    if ast.unparse(call.func) == "resolved.train_command":
        words, flags = ["train", *words], {"run": "1", "set": ["train.seed=1"], **flags}
    elif file in PASSED_ON:
        flags |= {"retry_dropped": True} if "retry_dropped" in flags else {}
    if call.keywords and not flags:
        assert file in PASSED_ON
        return
    accepted = parse(shlex.split(command_line(*words, **flags))[1:])
    assert accepted.command == words[0]
    if words[0] == "train" and file not in WITHOUT_RUN | PASSED_ON:
        assert {"run", "init_from"} & flags.keys(), "it would train runs/default"


TYPED: dict[str, object] = {
    "set": ["train.max_steps=9", "train.seed=4", "generate.top_p=0.9"],
    "minutes": "2",
    "size": "m",
}


@pytest.mark.parametrize(
    ("file", "call"), [c for c in CALLS if ast.unparse(c.values[1].func) != "command_line"]
)
def test_an_advice_to_train_repeats_everything_that_was_typed(file: str, call: ast.Call) -> None:
    """`file` names the case: what to type when text has moved, when checkpoints are gone, ..."""
    words, flags = given(call)
    resolved = Resolved(Config(run="mine"), {}, flags=TYPED)
    accepted = parse(shlex.split(resolved.train_command(*words, **flags))[1:])
    assert {name: getattr(accepted, name) for name in TYPED} == TYPED, file


def test_there_are_calls_to_check() -> None:
    assert len(CALLS) > 25
