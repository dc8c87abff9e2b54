"""Random sequences of commands and faults on one run, checked against a simple model of it.

The model predicts what must be there after each command: how many steps, whether a trained model,
which exit code, which files. A sequence is drawn from its number alone; if it fails, its history
of commands is shown.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.forked import Ended, ForkServer
from support.training_runs import (
    RUN_FOLDER,
    assert_same_training,
    column,
    sentences,
    settings,
    write_corpus,
)

from ys_llm.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NO_MODEL,
    EXIT_TERMINATED,
    EXIT_USAGE,
)
from ys_llm.runs.checkpoint import read_checkpoint
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import load_run

SEQUENCES = 200
IN_THE_ORDINARY_SUITE = (0, 1, 2, 3, 4, 8)  # together they draw every command
COMMANDS = 8
SHORTEST = 3  # steps: the warm-up and one more, so that asking for more changes none of the first
MOST_OPERATIONS = 260  # file operations of a short training; a fault may come too late to happen
ALLOWED_NAMES = RUN_FOLDER | {"superseded", "notes.txt"}
BASE = {"train.checkpoint_interval": "3", "train.eval_interval": "4", "train.sample_interval": "5"}
HARMLESS = {
    "train.checkpoint_interval": ("1", "2", "4"),
    "train.eval_interval": ("2", "5"),
    "train.sample_interval": ("0", "3"),
    "train.keep_checkpoint_every": ("0", "2"),
    "train.keep_checkpoints": ("1", "3"),
}
FORBIDDEN = (
    "model.d_model=32",
    "model.options.three_tier.d_state=8",
    "tokenizer.kind=chars",
    "data.validation_fraction=0.3",
)


@dataclass
class Wholes:
    """Uninterrupted runs by their number of steps, made on demand."""

    base: Path
    forks: ForkServer
    made: dict[int, Path] = field(default_factory=dict)

    def run(self, steps: int) -> Path:
        if steps not in self.made:
            folder = self.base / f"{steps}"
            folder.mkdir()
            ended = self.forks.run(*words(self.base / "corpus", steps, BASE), folder=folder)
            assert ended.code == 0, ended.stderr
            self.made[steps] = folder / "runs" / "mine"
        return self.made[steps]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Wholes:
    base = tmp_path_factory.mktemp("wholes")
    write_corpus(base / "corpus", sentences(40))
    return Wholes(base, forks)


def words(corpus: Path, steps: int, changes: dict[str, str]) -> list[str]:
    given = [f"{name}={value}" for name, value in changes.items()]
    every = settings(corpus, (*given, f"train.max_steps={steps}"))
    return ["train", *(word for setting in every for word in ("--set", setting))]


@dataclass
class Life:
    """A run, what is done to it, and what must hold afterwards."""

    draw: random.Random
    folder: Path
    forks: ForkServer
    wholes: Wholes
    changes: dict[str, str] = field(default_factory=lambda: dict(BASE))
    target: int = 0  # steps asked for last
    saved: int = 0  # steps that must never be lost
    has_model: bool = False
    is_finished: bool = False  # the last training finished
    is_pure: bool = True  # as an uninterrupted run would be
    corpus: dict[str, bytes] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    cuts: int = 0

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "mine"

    def train(self) -> None:
        """More steps, or the same command again."""
        self.target = max(SHORTEST, self.target + self.draw.choice((0, 1, 3, 5)))
        self.expect(0, self.start())
        self.finished()

    def resume_by_name(self) -> None:
        """`ys train --run mine`, with the settings saved in the run."""
        if self.is_finished:
            self.expect(0, self.command("train", "--run", "mine"))
            self.finished()

    def be_killed(self) -> None:
        self.target = max(SHORTEST, self.target) + self.draw.randrange(4)
        kind = self.draw.choice(("kill", "kill", "power cut", "unlucky power cut"))
        ended = self.start(fault=kind)
        self.expect({0, -signal.SIGKILL}, ended)
        if ended.code and "power cut" in kind:
            self.folder = self.folder.with_name(f"after-{self.cuts}")
            self.cuts += 1
        self.finished() if ended.code == 0 else self.cut_short()

    def be_stopped(self) -> None:
        self.target = max(SHORTEST, self.target) + self.draw.randrange(4)
        kind = self.draw.choice(("SIGINT", "SIGTERM", "SIGINT twice"))
        ended = self.start(fault=kind)
        # Before the loop, where there is nothing to save, the system's own way of ending holds.
        self.expect({0, EXIT_INTERRUPTED, EXIT_TERMINATED, -signal.SIGTERM}, ended)
        self.finished() if ended.code == 0 else self.cut_short()

    def run_out_of_disk(self) -> None:
        self.target = max(SHORTEST, self.target) + self.draw.randrange(4)
        ended = self.start(fault=self.draw.choice(("ENOSPC", "EIO", "EROFS")))
        self.expect({0, EXIT_FAILED}, ended)
        self.finished() if ended.code == 0 else self.cut_short()

    def clean(self) -> None:
        """Start from scratch; or only ask what would be removed, which changes nothing."""
        what = self.draw.choice((["clean"], ["clean", "all"]))
        if self.draw.random() < 0.3:
            before = self.snapshot()
            self.expect(0, self.command("train", *what, "--dry-run", "--run", "mine"))
            assert self.snapshot() == before
            return
        self.target = SHORTEST + self.draw.randrange(3)
        self.expect(0, self.start(*what, "--yes"))
        self.saved, self.has_model = 0, False
        self.finished()

    def be_killed_while_it_is_cleaned(self) -> None:
        """No half is left: the next training starts from scratch, or resumes."""
        self.target = max(SHORTEST, self.target)
        ended = self.start("clean", "--yes", fault="kill", at=self.draw.randrange(30))
        self.expect({0, -signal.SIGKILL}, ended)
        self.saved, self.has_model = 0, False
        self.finished() if ended.code == 0 else self.cut_short()

    def ask(self) -> None:
        """`ys run` and `ys eval` answer where there is a model, and change nothing."""
        before = self.snapshot()
        command = self.draw.choice((["run", "mine", "--prompt", "The"], ["eval", "mine", "corpus"]))
        ended = self.command(*command)
        self.expect(0 if (self.run / "model.safetensors").exists() else EXIT_NO_MODEL, ended)
        assert bool(ended.stdout) is (ended.code == 0)
        assert self.snapshot() == before

    def edit(self) -> None:
        """Change what may change; a learning rate changes the result, intervals do not."""
        if self.draw.random() < 0.3:
            self.changes["train.learning_rate"] = self.draw.choice(("1e-3", "2e-3"))
            self.is_pure = False
        name = self.draw.choice(sorted(HARMLESS))
        self.changes[name] = self.draw.choice(HARMLESS[name])
        self.train()

    def edit_what_is_fixed(self) -> None:
        if not checkpoints(self.run):
            return
        before = self.snapshot()
        change = self.draw.choice(FORBIDDEN)
        ended = self.start("--set", change)
        self.expect(EXIT_USAGE, ended)
        assert change.partition("=")[0] in ended.last_line
        assert self.snapshot() == before

    def go_back(self) -> None:
        """--resume-step: a checkpoint that there is; from one that is not there nothing changes."""
        steps = [int(path.name.removeprefix("step-")) for path in checkpoints(self.run)]
        self.target = max(SHORTEST, self.target)
        if not steps or self.draw.random() < 0.3:
            before = self.snapshot()
            self.expect(EXIT_USAGE, self.start("--resume-step", "77"))
            assert self.snapshot() == before
            return
        step = self.draw.choice(steps)
        self.target = max(self.target, step)
        self.saved = step
        self.expect(0, self.start("--resume-step", str(step)))
        self.finished()

    def let_the_corpus_grow(self) -> None:
        path = self.folder / "corpus" / f"new-{len(self.corpus)}.txt"
        path.write_text(f"Number {len(self.corpus)} came later, and saw the sea.")
        self.corpus = texts_of(self.folder)
        self.is_pure = False
        self.train()

    def start(self, *words_: str, fault: str = "", at: int | None = None) -> Ended:
        self.is_finished = False
        at = self.draw.randrange(MOST_OPERATIONS) if at is None else at
        verb, *every = words(Path("corpus"), self.target, self.changes)
        clean = [word for word in words_ if word in ("clean", "all")]
        return self.command(verb, *clean, *every, *words_[len(clean) :], fault=fault, at=at)

    def command(self, *words_: str, fault: str = "", at: int = -1) -> Ended:
        survivors = str(self.folder.with_name(f"after-{self.cuts}"))
        how: dict[str, Any] = {"below": str(self.folder), "at": at, "kind": fault}
        how = {"fault": how | {"survivors": survivors}} if fault else {}
        ended = self.forks.run(*words_, folder=self.folder, **how)
        common = settings(Path("corpus"), ())
        shown = [word for word in words_ if word != "--set" and word not in common]
        self.history.append(f"  {' '.join(shown)} {fault} {at if fault else ''} -> {ended.code}")
        return ended

    def expect(self, codes: int | set[int], ended: Ended) -> None:
        assert ended.code in (codes if isinstance(codes, set) else {codes}), ended.stderr[-3000:]
        assert "Traceback" not in ended.stderr, ended.stderr[-3000:]
        assert "damaged" not in ended.stderr, ended.stderr[-3000:]

    def finished(self) -> None:
        """A training finished."""
        self.is_finished, self.has_model = True, True
        assert not [path for path in self.run.rglob(".*") if path.name != ".ys-lock"]
        steps = self.steps_on_disk()
        assert steps == max(self.saved, self.target)
        assert column(self.run, "step") == [*range(1, steps + 1)]
        if self.is_pure:
            assert_same_training(self.run, self.wholes.run(steps))
        if self.draw.random() < 0.3:
            (self.run / "notes.txt").write_text("mine")

    def cut_short(self) -> None:
        """A training did not finish: what was saved is still there."""
        assert self.steps_on_disk() >= self.saved

    def steps_on_disk(self) -> int:
        found = [read_checkpoint(path).progress["step"] for path in checkpoints(self.run)]
        return max(found, default=0)

    def check(self) -> None:
        """What holds after every command."""
        self.saved = self.steps_on_disk()
        assert texts_of(self.folder) == self.corpus
        assert (self.folder / "runs" / "other" / "mine.txt").read_text() == "not a run"
        if not self.run.exists():
            assert not self.has_model
            return
        names = {name for name in os.listdir(self.run) if not name.endswith(".tmp")}
        assert names <= ALLOWED_NAMES
        rows = column(self.run, "step")
        assert rows == [*range(1, len(rows) + 1)]
        assert len(rows) >= self.saved
        if self.has_model:  # a model published just before a kill is ahead of the rows
            assert load_run(self.run).step <= (len(rows) if self.is_finished else self.target)

    def snapshot(self) -> dict[str, bytes]:
        """Every file but the lock, which names its last owner."""
        every = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in every if path.name != ".ys-lock"}


def texts_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "corpus").iterdir()}


COMMANDS_OF_A_LIFE: tuple[tuple[Callable[[Life], None], int], ...] = (
    (Life.train, 3),
    (Life.resume_by_name, 2),
    (Life.be_killed, 5),
    (Life.be_stopped, 3),
    (Life.run_out_of_disk, 2),
    (Life.clean, 2),
    (Life.be_killed_while_it_is_cleaned, 1),
    (Life.ask, 2),
    (Life.edit, 1),
    (Life.edit_what_is_fixed, 2),
    (Life.go_back, 2),
    (Life.let_the_corpus_grow, 1),
)


def drawn(draw: random.Random) -> Iterator[Callable[[Life], None]]:
    commands, weights = zip(*COMMANDS_OF_A_LIFE, strict=True)
    yield from draw.choices(commands, weights, k=COMMANDS)
    yield Life.train


NUMBERED = [
    pytest.param(number, marks=[] if number in IN_THE_ORDINARY_SUITE else [pytest.mark.slow])
    for number in range(SEQUENCES)
]


@pytest.mark.parametrize("number", NUMBERED)
def test_whatever_is_done_to_a_run_it_is_never_lost(
    tmp_path: Path, forks: ForkServer, wholes: Wholes, number: int
) -> None:
    draw = random.Random(number)
    life = Life(draw, tmp_path / "life", forks, wholes)
    write_corpus(life.folder / "corpus", sentences(40))
    write_corpus(life.folder / "runs" / "other", [])
    (life.folder / "runs" / "other" / "mine.txt").write_text("not a run")
    life.corpus = texts_of(life.folder)
    for command in drawn(draw):
        life.history.append(command.__name__)
        try:
            command(life)
            life.check()
        except AssertionError as error:
            raise AssertionError("\n".join([*life.history, repr(error)])) from error


def test_every_command_is_drawn_in_the_ordinary_suite() -> None:
    every = {c for number in IN_THE_ORDINARY_SUITE for c in drawn(random.Random(number))}
    assert every == {command for command, _ in COMMANDS_OF_A_LIFE}
