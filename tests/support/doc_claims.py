"""Reads what a page of documentation claims, and checks it against the real thing.

    <!-- check: NAME -->         the console block below is run; blocks of one NAME share a folder
    <!-- check-slow: NAME -->    the same, with the slow tests
    <!-- check: skip REASON -->  it is not run, and the summary of the tests says so
    <!-- count: configs/x.yaml vocab=4096 -->12,345<!-- /count -->  parameters of that model

A console block holds `$ command` lines (a backslash at the end continues the line), each followed
by what a terminal shows, output and errors together. A line `...` stands for any lines,
`...` within a line for any characters. A command must end with 0, or as its comment says:
`$ ys run no  # exit 3`.
"""

import dataclasses
import functools
import importlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config, to_mapping
from ys_llm.model.language_model import Model

NOT_COPIED = (".git", ".venv", "runs", "build", "dist", ".*cache", ".hypothesis", "__pycache__")
MARK = re.compile(r"<!--\s*(check|check-slow):\s*(.*?)\s*-->")
SECTIONS = "|".join(field.name for field in dataclasses.fields(Config) if field.name != "run")
OPTION_ROW = re.compile(
    rf"^\|\s*`((?:{SECTIONS})\.[\w.]+)`\s*\|\s*([^|\n]*?)\s*\|[^\n]+\|$", re.MULTILINE
)
COUNT = re.compile(r"<!-- count: (\S+) vocab=(\d+) -->([\d,]+)<!-- /count -->")


@dataclasses.dataclass(frozen=True)
class Command:
    line: int
    text: str
    expected: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        announced = re.search(r"#\s*exit (\d+)\s*$", self.text)
        return int(announced[1]) if announced else 0


@dataclasses.dataclass(frozen=True)
class Block:
    line: int
    info: str
    lines: tuple[str, ...]
    mark: str
    name: str

    @property
    def skipped(self) -> bool:
        return self.name == "skip" or self.name.startswith("skip ")

    @property
    def commands(self) -> list[Command]:
        found: list[Command] = []
        numbered = enumerate(self.lines, self.line + 1)
        for number, line in numbered:
            if line.startswith("$ "):
                while line.endswith("\\"):
                    line = line[:-1] + next(numbered)[1]
                found.append(Command(number, line[2:], ()))
            elif found:
                expected = (*found[-1].expected, line)
                found[-1] = dataclasses.replace(found[-1], expected=expected)
        return found


def fenced_blocks(text: str) -> Iterator[Block]:
    """Every fenced block, with the mark in the last line of text before it."""
    before = ""
    numbered = enumerate(text.splitlines(), 1)
    for number, line in numbered:
        if line.startswith("```"):
            body = tuple(row for _, row in itertools.takewhile(lambda r: r[1] != "```", numbered))
            mark = MARK.fullmatch(before)
            yield Block(number, line[3:].strip(), body, *(mark.groups() if mark else ("", "")))
            before = ""
        elif line.strip():
            before = line.strip()


def console_blocks(text: str) -> list[Block]:
    return [block for block in fenced_blocks(text) if block.info == "console"]


def form_problems(text: str) -> list[str]:
    """What keeps a claim from being checked at all: no mark, no reason, a mark without a block."""
    problems = []
    for block in fenced_blocks(text):
        shell = block.info in {"sh", "bash", "shell"} or any(
            x.startswith("$ ") for x in block.lines
        )
        if shell and block.info != "console":
            problems.append(f"line {block.line}: a block of commands must be ```console")
        if block.info == "console" and not block.name:
            problems.append(f"line {block.line}: no <!-- check: NAME --> before the console block")
        if block.info == "console" and not block.commands:
            problems.append(f"line {block.line}: no `$ command` in the console block")
        if block.name == "skip":
            problems.append(f"line {block.line}: skip needs a reason")
    marked = sum(bool(block.mark) for block in console_blocks(text))
    if marked != len(MARK.findall(text)):
        problems.append("a check mark does not stand right before a console block")
    if text.count("<!-- count") != len(COUNT.findall(text)):
        problems.append("a count is not <!-- count: FILE vocab=N -->1,234<!-- /count -->")
    return problems


def sessions(text: str) -> dict[str, list[Block]]:
    """Blocks to run, by name; those of one name run one after another in one folder."""
    named: dict[str, list[Block]] = {}
    for block in console_blocks(text):
        if block.name and not block.skipped:
            named.setdefault(block.name, []).append(block)
    return named


def is_slow(blocks: Iterable[Block]) -> bool:
    return any(block.mark == "check-slow" for block in blocks)


def output_matches(expected: Iterable[str], actual: str) -> bool:
    parts = [
        r"(?:.*\n)*?"
        if line.strip() == "..."
        else ".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"\n"
        for line in expected
    ]
    shown = "".join(line.rstrip() + "\n" for line in actual.splitlines())
    return re.fullmatch("".join(parts), shown) is not None


def copy_project(root: Path, folder: Path) -> None:
    shutil.copytree(
        root, folder, ignore=shutil.ignore_patterns(*NOT_COPIED, "*.egg-info"), dirs_exist_ok=True
    )


def shell_environment(commands: Path | None = None) -> dict[str, str]:
    """The caller's, with these or this Python's commands first and without settings of `ys`."""
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith("YS_")}
    first = [commands] if commands else []
    return kept | {
        "PATH": os.pathsep.join(map(str, (*first, Path(sys.executable).parent, kept["PATH"]))),
        "PYTHONUNBUFFERED": "1",  # so that output and errors come in the order of a terminal
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }


def run_shell(
    text: str, folder: Path, *, timeout_seconds: float, commands: Path | None = None
) -> tuple[int, str]:
    """Exit code and what a terminal would show; those in the folder `commands` come first."""
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=folder,
        env=shell_environment(commands),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,  # so that a time-out ends the command's children too
    ) as process:
        try:
            shown, _ = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, shown


def session_problem(
    page: str,
    blocks: Iterable[Block],
    folder: Path,
    *,
    timeout_seconds: float,
    commands: Path | None = None,
) -> str:
    """Run the commands in order up to the first that does not do what the page claims."""
    for command in (command for block in blocks for command in block.commands):
        code, shown = run_shell(
            command.text, folder, timeout_seconds=timeout_seconds, commands=commands
        )
        expected = [*command.expected]
        while expected and not expected[-1].strip():
            expected.pop()
        if code == command.exit_code and output_matches(expected, shown):
            continue
        claimed = "\n".join(expected)
        return (
            f"{page}:{command.line}: $ {command.text}\n"
            f"--- claimed (exit {command.exit_code})\n{claimed}\n"
            f"--- shown (exit {code})\n{shown}"
        )
    return ""


def mentioned_commands(text: str) -> list[list[str]]:
    """The words of every `ys ...` in code within sentences and in console blocks."""
    fenced = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`(ys [^`]+)`", fenced.sub("", text))
    lines = [re.sub(r"[\[\]]", " ", span) for span in spans]
    lines += [command.text for block in console_blocks(text) for command in block.commands]
    found = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for operator, words in itertools.groupby(lexer, lambda word: set(word) <= set("|&;<>()")):
            command = [word for word in words if not re.match(r"[A-Z]\w*=", word)]
            if not operator and command[:1] == ["ys"]:
                found.append(command)
    return found


@functools.cache
def _help(verb: tuple[str, ...], folder: Path, commands: Path | None) -> tuple[int, str]:
    return run_shell(shlex.join([*verb, "--help"]), folder, timeout_seconds=60, commands=commands)


def help_problems(text: str, folder: Path, *, commands: Path | None = None) -> list[str]:
    """Flags and commands that a page names and `ys COMMAND --help` does not know."""
    flags: dict[tuple[str, ...], set[str]] = {}
    for command in mentioned_commands(text):
        verb = tuple(itertools.takewhile(lambda word: not word.startswith("-"), command))
        named = {word.split("=")[0] for word in command if word.startswith("--")}
        flags.setdefault(verb, set()).update(named)
    problems = []
    for verb, named in flags.items():
        code, shown = _help(verb, folder, commands)
        if code:
            problems.append(f"`{shlex.join(verb)} --help` ends with {code}:\n{shown}")
            continue
        known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown))
        problems += [f"{shlex.join(verb)} knows no {flag}" for flag in sorted(named - known)]
    return problems


def default_values() -> dict[str, Any]:
    """Dotted name -> default of every option, those of the default mixer included."""
    values: dict[str, Any] = {}
    for section, options in to_mapping(Config()).items():
        if isinstance(options, dict):
            for name, value in options.items():
                parts = value if name in ("copy", "cross", "lora") else {}
                values |= {f"{section}.{name}.{part}": one for part, one in parts.items()}
                values[f"{section}.{name}"] = value
    for mixer in Config().model.layers:
        module = importlib.import_module(f"ys_llm.mixers.{mixer}")
        for name, value in dataclasses.asdict(module.Options()).items():
            values[f"model.options.{mixer}.{name}"] = value
    return values


def option_rows(text: str) -> list[tuple[str, str]]:
    return OPTION_ROW.findall(text)


def same_value(shown: str, actual: Any) -> bool:
    if isinstance(actual, float):  # YAML reads 1e-3 as a string
        return re.fullmatch(r"[-+.\de]+", shown) is not None and float(shown) == actual
    value = yaml.safe_load(shown)
    return type(value) is type(actual) and bool(value == actual)


def option_problems(text: str) -> list[str]:
    defaults = default_values()
    problems = []
    for name, cell in option_rows(text):
        if name not in defaults:
            problems.append(f"{name} is no option")
        elif not same_value(cell.strip("` "), defaults[name]):
            problems.append(f"{name} is {defaults[name]!r} by default, not {cell}")
    return problems


def count_problems(text: str, root: Path) -> list[str]:
    """Parameter counts that are not those of the model built from the file."""
    problems = []
    for path, vocab_size, claimed in COUNT.findall(text):
        config = load_config(root / path).config
        with torch.device("meta"):
            model = Model(config.model, vocab_size=int(vocab_size))
        real = sum(parameter.numel() for parameter in model.parameters())
        if f"{real:,}" != claimed:
            problems.append(
                f"{path} with vocab={vocab_size} has {real:,} parameters, not {claimed}"
            )
    return problems
