"""A conversation of `ys run`: sessions by the names of their branches, settings, and the log.

A prompt is a turn of one conversation where the model was fine-tuned on conversations. It is
answered on its own by a model that was trained on prompts and answers: that has never seen several.
With `carries` a prompt is read after all that came before it. A run without prompts in its training
data, or `--raw`, continues texts: what is typed goes on with the text, and the model with that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.tokenizer import StreamDecoder
from ys_llm.errors import UserError
from ys_llm.inference.engine import Engine, seeded
from ys_llm.inference.memories import memories_called, shown
from ys_llm.inference.pictures import bar, reading_speed, speed
from ys_llm.inference.prefix_file import Fingerprint, fingerprint_of
from ys_llm.inference.repl_input import pieces_of
from ys_llm.inference.run_adapters import RunAdapters
from ys_llm.inference.session import ReadCount, Session, Typed
from ys_llm.inference.session_file import load_session, save_session, state_path
from ys_llm.inference.session_log import LoggedTurn, NewTurn, SessionLog
from ys_llm.system.terminal import printable

FIRST_BRANCH = "main"
_BAR_SECONDS = 0.1  # between two pictures of a bar


class Conversation:
    """See the top of this file; answers go to stdout, timings to stderr."""

    def __init__(self, engine: Engine, sampling: GenerateConfig, *, raw: bool = False) -> None:
        self.engine, self.sampling, self.adapters = engine, sampling, RunAdapters(engine)
        self.is_text = raw or not engine.loaded.has_records
        self.carries = self.is_text or engine.loaded.chats
        self.system = ""  # what a conversation begins with
        self.branches, self.branch = {FIRST_BRANCH: Session(engine)}, FIRST_BRANCH
        self.last_seed: int | None = None
        self.next_line = ""  # what the next prompt begins with
        self.log: SessionLog | None = None
        self._log_session: int | None = None

    @property
    def session(self) -> Session:
        """That of the present branch."""
        return self.branches[self.branch]

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What states depend on."""
        return fingerprint_of(self.engine.loaded)

    def use_adapters(self, names: list[str]) -> None:
        """Go on with the sum of these adapters; what was read before stays as it was read."""
        self.adapters.use(names)
        vars(self).pop("fingerprint", None)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.engine.loaded.path

    def say(self, text: str) -> None:
        """Read what was typed, and answer it or go on with it."""
        kind, anew = "text" if self.is_text else "prompt", not self.carries
        system = "" if self.session.at.n_tokens and not anew else self.system
        with self._turn(Typed(kind, text), anew=anew, system=system):
            began = time.perf_counter()
            whole = self.joined(text) if self.is_text and not anew else text
            read = self._read(whole, anew=anew, system=system)
            self._write(reading_speed(read, time.perf_counter() - began))

    def _read(self, text: str, *, anew: bool, system: str) -> ReadCount:
        """Read a text, or a prompt; a model without roles has a system text as a paragraph."""
        if system and not self.engine.loaded.chats:
            text, system = f"{system}\n\n{text}", ""
        return self.session.read([text], is_prompt=not self.is_text, anew=anew, system=system)

    def answer_once(self, pieces: Iterable[str]) -> None:
        """Read a prompt that comes in pieces, and answer it or go on with it."""
        began = time.perf_counter()
        read = self.session.read(pieces, is_prompt=not self.is_text)
        self._write(reading_speed(read, time.perf_counter() - began))

    def go_on(self, text: str) -> None:
        """Go on with the text as it stands, and with this text at its end."""
        if not text and self.session.at.now is None:
            raise UserError("there is no text to go on with", "Type one.")
        with self._turn(Typed("more", text)):
            began = time.perf_counter()
            read = self.session.read([self.joined(text)]) if text else ReadCount(0)
            self._write(reading_speed(read, time.perf_counter() - began))

    def again(self, typed: Typed | None = None) -> None:
        """Take the last step back and do it again, or what was `typed` instead."""
        last, before = self.session.at.typed, self.session.fork()
        redo: dict[str, Callable[[str], None]] = {
            "prompt": self.say,
            "text": self.say,
            "more": self.go_on,
        }
        if last is None or last.kind not in redo:
            raise UserError("the last step was no answer", "Type a prompt.")
        self.session.undo()
        undone = self.session.at
        try:
            redo[last.kind](last.text if typed is None else typed.text)
        except BaseException:
            if self.session.at is undone:  # nothing came in place of it
                self.branches[self.branch] = before
            raise

    def feed(self, path: Path) -> ReadCount:
        """Read a file after the text as it stands, in memory that does not grow with its length."""
        try:
            with path.open(encoding="utf-8", newline="") as file:
                size = path.stat().st_size
                with self._turn(Typed("file", str(path.absolute()))):
                    began = time.perf_counter()
                    with bar(path.name, size, every=_BAR_SECONDS) as note:
                        read = self.session.read(note(pieces_of(file)))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text", "Save it as UTF-8.") from error
        except OSError as error:
            problem = f"{path} cannot be read: {error.strerror or error}"
            raise UserError(problem, "Give a text file.") from error
        print(f"[read {speed(read.n_tokens, time.perf_counter() - began)}]", file=sys.stderr)
        self.carries = True
        return read

    def save(self, name: str) -> Path:
        """Save the state under a name; its path."""
        path = state_path(self.run, name)
        save_session(self.session, path, self.fingerprint)
        return path

    def load(self, path: Path) -> None:
        """Go on from a saved state; what is typed next is read after its text."""
        at, muted = load_session(path, self.engine.loaded.model, self.fingerprint)
        with self._turn(Typed("loaded", str(path.absolute())), anew=True):
            self.session.at, self.session.muted = at, muted
        self.carries = True

    def replay(self, turns: list[LoggedTurn]) -> None:
        """Read the text that logged turns made, and go on from there."""
        tokenizer, last = self.engine.loaded.tokenizer, turns[-1]
        if last.tokenizer != tokenizer.fingerprint:
            problem = f"turn {last.id} was written with another tokenizer"
            raise UserError(problem, f"Go on with the run it is of: {last.run}.")
        for turn in turns:
            self.session.muted = frozenset(turn.muted)
            with self.session.step():
                self._reread(turn)
                if turn.ids:
                    self.session.write(turn.ids)
            if self.session.at.n_tokens != turn.n_tokens:
                problem = f"what turn {turn.id} has read is not what it was: {turn.typed}"
                raise UserError(problem, "Go on from an earlier turn.")
            typed = Typed(turn.kind, turn.typed)
            self.session.at = replace(self.session.at, typed=typed, log_id=turn.id)
        self.carries = True

    def _reread(self, turn: LoggedTurn) -> None:
        session, anew = self.session, turn.parent is None
        if turn.kind == "loaded":
            session.at, _ = load_session(
                Path(turn.typed), self.engine.loaded.model, self.fingerprint
            )
        elif turn.kind == "file":
            with Path(turn.typed).open(encoding="utf-8", newline="") as file:
                session.read(pieces_of(file), anew=anew)
        elif turn.kind == "prompt":
            self._read(turn.typed, anew=anew, system=turn.system)
        elif turn.typed:
            session.read([turn.typed if anew else self.joined(turn.typed)], anew=anew)

    def take_back(self, n_tokens: int) -> None:
        """Take back the last tokens of the answer, in the log too."""
        before = self.session.at
        self.session.undo_tokens(n_tokens)
        if self.log is not None and before.log_id is not None and before.typed is not None:
            last = self.log.turn(before.log_id)
            self._note(before.typed, last.parent, last.system)

    def mute(self, names: list[str], *, is_muted: bool) -> None:
        """Mute memories, or hear them again."""
        model, session = self.engine.loaded.model, self.session
        for found in [memories_called(model, name) for name in names]:
            session.muted = session.muted | found if is_muted else session.muted - found

    def joined(self, text: str) -> str:
        """The text as it goes on with what is there: a space before a word, where there is none."""
        before = self.engine.loaded.tokenizer.decode(self.session.at.tail[-8:])
        is_apart = not before or before[-1].isspace() or not text[:1].isalnum()
        return text if is_apart else f" {text}"

    @contextmanager
    def _turn(self, typed: Typed, *, anew: bool = False, system: str = "") -> Iterator[None]:
        session, before = self.session, self.session.at
        parent = None if anew else before.log_id
        with session.step():
            try:
                yield
            finally:
                if session.at is not before:
                    session.at = replace(session.at, typed=typed)
                    self._note(typed, parent, system)

    def _note(self, typed: Typed, parent: int | None, system: str) -> None:
        """Log what was done; a log that cannot be written is not tried again."""
        if self.log is None:
            return
        loaded, at = self.engine.loaded, self.session.at
        ids = at.answer.ids if at.answer else ()
        try:
            if self._log_session is None:
                named = {"run": loaded.config.run, "path": str(loaded.path.absolute())}
                tokenizer = loaded.tokenizer.fingerprint
                self._log_session = self.log.new_session(**named, tokenizer=tokenizer)
            turn = NewTurn(
                parent=parent,
                kind=typed.kind,
                typed=typed.text,
                answer=loaded.tokenizer.decode(ids),
                ids=ids,
                n_tokens=at.n_tokens,
                muted=sorted(self.session.muted),
                sampling=asdict(replace(self.sampling, seed=self.last_seed)),
                system=system,
            )
            number = self.log.add(self._log_session, turn)
            self.session.at = replace(at, log_id=number)
        except UserError as error:
            self.log = None
            print(f"ys: {error}", file=sys.stderr)

    def _write(self, read: str) -> None:
        """Generate, print, and tell how long that took."""
        sampling = seeded(self.sampling)
        self.last_seed, n_tokens = sampling.seed, 0
        began, text = time.perf_counter(), StreamDecoder(self.engine.loaded.tokenizer)
        with closing(self.session.generate(sampling)) as tokens:  # type: ignore[type-var]
            for token in tokens:
                n_tokens += 1
                show(text.push(token.id))
        show(text.flush() + "\n")
        seconds = time.perf_counter() - began
        print(f"[{read}answer {speed(n_tokens, seconds)}]", file=sys.stderr, flush=True)

    def muted_names(self) -> str:
        """The muted memories, as they are typed; "" without one."""
        return shown(self.session.muted)


def show(text: str) -> None:
    """Print a part of an answer; at a terminal without control characters."""
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
