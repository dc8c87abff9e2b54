"""A flag that a command lacks: what is suggested instead is something that the command takes."""

from __future__ import annotations

import argparse
import shlex

import pytest

from ys_llm.cli.main import COMMANDS, parse
from ys_llm.cli.unknown_flag import SHORT_NAMES, advice, flags_of
from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.config.strict_reader import field_helps
from ys_llm.errors import EXIT_USAGE, UserError

REQUIRED = {
    "eval": ["a_run", "a_text"],
    "compare": ["one", "two"],
    "convert": ["a_run"],
    "sft": ["a_run", "a_folder"],
    "config": ["show"],
    "export": ["a_run", "a_folder", "--to", "hf"],
}


def parser_of(command: str) -> argparse.ArgumentParser:
    found = parse([command, *REQUIRED.get(command, [])]).parser
    assert isinstance(found, argparse.ArgumentParser)
    return found


def tried() -> list[str]:
    """Flags of every command, settings and their short names, also with a letter too few."""
    flags = {flag for command in COMMANDS for flag in flags_of(parser_of(command))}
    settings = {path.rpartition(".")[2] for path in field_helps(Config)} | SHORT_NAMES.keys()
    names = flags | {f"--{name}" for name in settings}
    return sorted(names | {name[:-1] for name in names} | {f"{name}s" for name in names})


def value_for(parser: argparse.ArgumentParser, flag: str) -> list[str]:
    """A value that this flag takes, where it takes one."""
    (action,) = (a for a in parser._actions if flag in a.option_strings)
    if action.nargs == 0:
        return []
    return [str(next(iter(action.choices), "1") if action.choices else "1")]


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_suggested_is_accepted_by_the_command(command: str) -> None:
    parser = parser_of(command)
    suggestions = {advice(flag, parser) for flag in tried()} - {""}
    assert suggestions
    for suggestion in suggestions:
        flag, *words = shlex.split(
            suggestion.removeprefix(". Did you mean ").removesuffix("?").replace("VALUE", "1")
        )
        if flag == "--help":
            continue  # it would be printed
        words = words or value_for(parser, flag)
        accepted = parse([command, *REQUIRED.get(command, []), flag, *words])
        if flag == "--set":
            assert accepted.set == words
            try:
                load_config(None, overrides=words)
            except UserError as error:
                assert "is not a field" not in str(error)  # 1 need not be a value of it


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        ("run --lr 1", ""),
        ("eval a_run a_text --seed 1", ""),
        ("doctor --seed 1", ""),
        ("gen-data --kinds a", "--kind"),
        ("gen-data --output a", "--out"),
        ("gen-data --lr 1", ""),
        ("run --max_tokens 3", "--max-tokens"),
        ("run --temp 1", "--temperature"),
        ("train --conf a", "--config"),
        ("train --data.path a", "--data"),
        ("train --batch-size=3", "--set train.batch_size=VALUE"),
        ("train --model.n_layers 3", "--set model.n_layers=VALUE"),
        ("config show --lr 1", "--set train.learning_rate=VALUE"),
        ("compare one two --seed 1", "--seeds"),
        ("compare one two --lr 1", "--set train.learning_rate=VALUE"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_usage_of_its_command(
    words: str, suggested: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words.split())
    assert caught.value.code == EXIT_USAGE
    usage, *_, message = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: ys {words.split()[0]} ")
    _, _, found = message.partition(". Did you mean ")
    assert found == (f"{suggested}?" if suggested else "")
