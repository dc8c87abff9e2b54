"""Kinds, a model and child processes for the tests of `ys gen-data`.

The model is a function behind the fault server. Depending on prompt and seed, its answers are good,
need fixing by curation, or are rejected by curation, a verifier or a limit.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from support.ollama_faults import FaultServer, answer_text, prompt_of
from support.power_cut import Call, watching
from ys_llm.errors import UserError
from ys_llm.gendata.backends.ollama import Ollama
from ys_llm.gendata.command import GenerateRequest, make
from ys_llm.gendata.generation.generate import GenerateResult, generate
from ys_llm.gendata.generation.generator import Plan
from ys_llm.gendata.generation.journal import NAME as JOURNAL
from ys_llm.gendata.recipes.load import load_recipes

# Imported by the fork server, which does not know the folder of the tests.
PRELOADED = [
    "pytest",
    "ys_llm.gendata.command",
    "ys_llm.gendata.backends.ollama",
    "ys_llm.gendata.generation.generate",
]
PRELOADED += ["ys_llm.gendata.generation.attempts", "ys_llm.gendata.curation", "http.server"]
SECONDS = 60.0  # for what takes less than a second on an idle machine
TALE = """\
description: tales, whose title is asked for first
model: tiny
slots: {who: [a fox, a miller, a sailor, a queen], where: [on a hill, by the sea, in a cellar]}
ask:
  - {name: title, prompts: ["Name a tale of {who} {where}."], take: line}
  - {prompts: ["Tell the tale '{title}' of {who} {where}."], system: Write the tale alone.}
output: {prompts: ["Tell me of {who} {where}.", "A tale of {who}, please."]}
sampling: {num_predict: 60}
verifiers: {words: {least: 5, most: 100}}
count: 10
max_tries: 4
"""
RETOLD = """\
description: a story of a program, retold by the model; a program checks for the hero
backend: chain
model: tiny
program: story
ask:
  - {prompts: ["Tell it again: {story}"], sampling: {num_predict: 900}}
output: {prompts: ["Retell: {story}"]}
rules: []
verifiers: {mentions: {names: [hero]}}
count: 3
"""
SPELL = """\
description: words spelled, by a program
backend: program
program: spelling
rules: []
verifiers: {spelling: {}}
count: 40
"""
KINDS = {"tale": TALE, "retold": RETOLD, "spell": SPELL}
COPIED = (
    "An old miller mended the broken gate before the rain came, and then he went home, lit a fire, "
    "boiled two eggs, ate them slowly with brown bread and salt, read a letter from his aunt, who "
    "lived far away near the harbour, put it back into its drawer, and slept until the cock crowed."
)


def write_kinds(folder: Path, **kinds: str) -> Path:
    """The folder with these kind files, or with all of the above."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (kinds or KINDS).items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def model(body: Mapping[str, Any]) -> str:
    """The answer to a request."""
    prompt, seed = prompt_of(body), body["options"]["seed"]
    if prompt.startswith("Name "):
        return f'Here is a title:\n"{answer_text(body).split(".")[0]} {seed % 97}"'
    if prompt.startswith("Tell it again: "):
        return prompt.removeprefix("Tell it again: ") if seed % 3 else "Nobody was there."
    drawn = random.Random(f"{prompt}|{seed}").random()
    if drawn < 0.12:
        return "No."
    if drawn < 0.24:
        return "I can't fulfill that request."
    if drawn < 0.34:
        return " ".join(["on and on it went"] * 20)  # longer than num_predict
    if drawn < 0.7:
        return COPIED
    if drawn < 0.85:
        return f"Here is the tale:\n\n{answer_text(body)}"
    return answer_text(body)


def llm(*script: str, **how: Any) -> FaultServer:
    """The model behind a server, after these faults."""
    return FaultServer(*script, answer=model, **how)


def make_plan(kinds: Path, *names: str, seed: int = 1, count: int | None = None) -> Plan:
    """A plan of all kinds of a folder, or of some."""
    chosen = names or tuple(sorted(path.stem for path in kinds.glob("*.yaml")))
    return Plan(tuple(load_recipes(chosen, [kinds])), seed, count)


def fill(request: Plan, out: Path, server: FaultServer | None = None, **how: Any) -> GenerateResult:
    """Run a plan in this process, with short timeouts; without a server, no model may be used."""

    def connect() -> Ollama:
        assert server is not None, "a back end was asked for"
        return Ollama(
            server.address,
            first_seconds=deadlines.get("first_seconds", 0.3),
            stall_seconds=0.3,
            total_seconds=deadlines.get("total_seconds", 20.0),
            pauses=(0.01,),
        )

    names = ("first_seconds", "total_seconds")
    deadlines = {name: how.pop(name) for name in names if name in how}
    return generate(request, out, connect=connect, **how)


def journal_lines(out: Path) -> list[dict[str, Any]]:
    """The journal's lines, by another reader than the project's; none without a journal."""
    if not (out / JOURNAL).exists():
        return []
    lines = (out / JOURNAL).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


def entries(out: Path) -> list[dict[str, Any]]:
    """The decisions in the journal."""
    return [line for line in journal_lines(out) if "answer_to" not in line]


def answers(out: Path) -> list[dict[str, Any]]:
    """The answers in the journal."""
    return [line for line in journal_lines(out) if "answer_to" in line]


def timeless(text: str) -> str:
    """A text without times."""
    return re.sub(r'"(?:time|seconds)": [^,}]+', "", text)


def content(out: Path) -> dict[str, str]:
    """All files of a folder, by name, without times; of the journal, the decisions."""
    files = {path.name: timeless(path.read_text(encoding="utf-8")) for path in out.iterdir()}
    if JOURNAL in files:
        files[JOURNAL] = timeless("\n".join(json.dumps(entry) for entry in entries(out)))
    return files


class Killer:
    """A listener of file operations: kills this process at one of them, amid a write."""

    def __init__(self, at: int, count_in: Path | None) -> None:
        self._at, self._number, self._count_in = at, 0, count_in

    def __call__(self, call: Call) -> Callable[[], None] | None:
        number, self._number = self._number, self._number + 1
        if number == self._at:
            if call.name == "write":
                _write_half(call)
            os.kill(os.getpid(), signal.SIGKILL)
        if self._count_in:
            self._count_in.write_text(str(self._number))
        return None


def _write_half(call: Call) -> None:
    with open(f"/proc/self/fd/{call.descriptor}", "ab", buffering=0) as file:
        file.write(call.data[: len(call.data) // 2])


def child_main(request: GenerateRequest, said: str, kill_at: int, count_in: Path | None) -> None:
    """The child: `ys gen-data` with this request, killed at one of its file operations."""
    for number, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with watching(request.out, Killer(kill_at, count_in)):
        try:
            code = make(request)
        except UserError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
    sys.exit(code)


@contextlib.contextmanager
def child(
    request: GenerateRequest, said: Path, *, kill_at: int = -1, count_in: Path | None = None
) -> Iterator[ForkServerProcess]:
    """A process that runs `make`, forked from one that has imported all that it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=child_main, args=(request, str(said), kill_at, count_in))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_child(request: GenerateRequest, said: Path, **how: Any) -> int:
    """The exit code of a child, minus the signal that killed it."""
    with child(request, said, **how) as process:
        process.join(SECONDS)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode
