"""`ys run` as its user meets it: text on stdout, timings on stderr, one object as JSON."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from support.forked import ForkServer

from ys_llm.config.schema import Config, GenerateConfig, ModelConfig
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference import repl, repl_input
from ys_llm.inference.conversation import Conversation as Conversing
from ys_llm.inference.engine import Engine
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.inference.repl import run_batch, run_interactive, run_json, run_once
from ys_llm.inference.repl_input import pieces_of
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun
from ys_llm.system import signals

TraceFunction = Callable[[FrameType, str, Any], Any]
SAMPLING = GenerateConfig(temperature=1.0, max_tokens=12, seed=4)


@pytest.fixture(scope="module")
def loaded() -> LoadedRun:
    torch.manual_seed(1)
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    config = ModelConfig(d_model=32, n_layers=2, d_mlp=64, options={"three_tier": {"d_state": 32}})
    model = Model(config, vocab_size=tokenizer.vocab_size).eval()
    return LoadedRun(
        path=Path("runs/small"),
        config=Config(run="small", model=config),
        model=model,
        tokenizer=tokenizer,
        step=7,
        has_records=True,
    )


def answer(loaded: LoadedRun, prompt: str, *, raw: bool = False) -> str:
    return Engine(loaded).answer(prompt, SAMPLING, raw=raw).text


def typed(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """An `input` at which these lines are typed; an exception is Ctrl-C, or the end."""
    left = iter([*lines, EOFError])

    def read(prompt: str = "") -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_the_text_goes_to_stdout_and_the_timings_to_stderr(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(loaded, "the cat", SAMPLING, raw=True)
    out, err = capsys.readouterr()
    assert out == answer(loaded, "the cat", raw=True) + "\n"
    assert "prompt 8 tokens in" in err
    assert "answer 12 tokens in" in err
    assert "tokens/s" in err


def test_a_prompt_in_pieces_is_the_same_prompt(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(loaded, iter(["the", " c", "at"]), SAMPLING)
    in_pieces = capsys.readouterr().out
    run_once(loaded, "the cat", SAMPLING)
    assert capsys.readouterr().out == in_pieces


def test_prompt_after_prompt_each_from_a_fresh_state(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", typed("the mat", "", "   ", "the cat", "exit", "never"))
    run_interactive(loaded, SAMPLING)
    expected = [answer(loaded, prompt) for prompt in ("the mat", "the cat")]
    assert capsys.readouterr().out == "".join(text + "\n" for text in expected)


def test_the_timings_tell_what_came_from_the_cache(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "the cat sat on the mat " * 6
    monkeypatch.setattr("builtins.input", typed(prompt, prompt + "and", prompt))
    run_interactive(loaded, SAMPLING, cache=PrefixCache(1 << 20))
    out, err = capsys.readouterr()
    first, second, third = err.splitlines()
    assert first.startswith("[prompt 140 tokens in ")  # 138 characters, <end> and <start>
    assert second.startswith("[read 15 of 143 prompt tokens in ")
    assert ", 128 from the cache; answer 12 tokens in " in second
    assert third.startswith("[read 0 of 140 prompt tokens in ")
    expected = [answer(loaded, text) for text in (prompt, prompt + "and", prompt)]
    assert out == "".join(text + "\n" for text in expected)


def test_what_the_prompts_of_a_file_have_in_common_is_read_once(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    common = "the cat sat on the mat " * 6
    prompts = [common + word for word in ("sat", "mat", "cat")]
    run_batch(loaded, prompts, SAMPLING, cache=PrefixCache(1 << 20))
    cached = capsys.readouterr()
    run_batch(loaded, prompts, SAMPLING)
    plain = capsys.readouterr()
    assert cached.out == plain.out
    assert cached.err.startswith("[read 173 of 429 prompt tokens, 256 from the cache; answers 36 ")
    assert plain.err.startswith("[read 429 of 429 prompt tokens, 0 from the cache; ")


def test_ctrl_c_at_the_prompt_does_not_leave(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", typed("the mat", KeyboardInterrupt, "the cat"))
    run_interactive(loaded, SAMPLING)
    expected = [answer(loaded, "the mat"), "", answer(loaded, "the cat")]
    assert capsys.readouterr().out == "".join(text + "\n" for text in expected)


@pytest.mark.parametrize(
    "lines",
    [
        ['"""', "the mat", "", "the cat", '"""'],
        ['"""the mat', "", 'the cat"""'],
        ['  """the mat', "", "the cat", '"""  '],
    ],
)
def test_three_quotes_begin_and_end_a_prompt_of_several_lines(
    loaded: LoadedRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
) -> None:
    monkeypatch.setattr("builtins.input", typed(*lines))
    run_interactive(loaded, SAMPLING, raw=True)
    assert capsys.readouterr().out == answer(loaded, "the mat\n\nthe cat", raw=True) + "\n"


ENDLESS = "the cat"  # its answer ends when it is interrupted
SESSION = """
import select, signal, sys, threading, time
if sys.argv[1] != "with prompt_toolkit":
    sys.modules["prompt_toolkit"] = None
if sys.argv[1] == "without readline":
    sys.modules["readline"] = None
from ys_llm.inference import repl
if len(sys.argv) > 3:  # Ctrl-C reaches a thread that does not wait for input
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
class Conversation:
    next_line = ""
    def __init__(self, *_, **__):
        pass
    def say(self, text):
        print("answering", ascii(text), flush=True)
        while text == sys.argv[2]:
            pass
        if text == "wait":  # until something is typed
            select.select([0], [], [])
repl.Engine, repl.Conversation = lambda *_: None, Conversation
repl.run_interactive(None, None)
print("left", flush=True)
"""


class Conversation:
    """`run_interactive` at a pseudo-terminal, with answers that repeat the prompt."""

    def __init__(self, forks: ForkServer, folder: Path, how: str, *more: str) -> None:
        self.how = how
        self._ended: int | None = None
        # An editor draws the prompt; before that it asks for pastes to be marked.
        self.sign = "\x1b[?2004h" if how == "with prompt_toolkit" else "> "
        ours, theirs = os.openpty()
        self._terminal, self._shown, self._screen = ours, "", ""
        self._process = forks.start(
            *(how, ENDLESS, *more),
            folder=folder,
            code=SESSION,
            terminal=os.ttyname(theirs),
            environment={"TERM": "xterm", "LC_ALL": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        self._theirs = theirs

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> None:
        """Read what is shown until it contains `text`; what came before does not count again."""
        ends = time.monotonic() + 60
        while text not in self._shown:
            if not (new := self._read(ends - time.monotonic())):
                pytest.fail(f"{text!r} was not shown. The screen:\n{self._screen}")
            self._shown += new
            self._screen += new
        self._shown = self._shown.split(text, 1)[1]

    def _read(self, seconds: float) -> str:
        """What is shown next; "" where nothing is, for so long or because the session ended."""
        if seconds <= 0 or not select.select([self._terminal], [], [], seconds)[0]:
            return ""
        with suppress(OSError):  # EIO: the other end is closed
            return os.read(self._terminal, 4096).decode(errors="replace")
        return ""

    def close(self) -> None:
        """End the session if it still runs."""
        if self._ended is None:
            self._process.send(signal.SIGKILL)
        self.wait()
        os.close(self._theirs)
        os.close(self._terminal)

    def wait(self) -> int:
        """The exit code of the session, once it has ended."""
        if self._ended is None:
            self._ended = self._process.wait().code
        return self._ended


@pytest.fixture(params=["with prompt_toolkit", "with readline", "without readline"])
def talk(
    request: pytest.FixtureRequest, forks: ForkServer, tmp_path: Path
) -> Iterator[Conversation]:
    with closing(Conversation(forks, tmp_path, request.param)) as conversation:
        yield conversation


def test_a_conversation_at_a_terminal(talk: Conversation) -> None:
    talk.wait_for(talk.sign)
    talk.type("one\n")
    talk.wait_for("answering 'one'")
    talk.wait_for(talk.sign)
    talk.type("\x03")  # just after an answer
    talk.wait_for(talk.sign)
    talk.type("a word\x03")
    talk.wait_for(talk.sign)
    talk.type(f"{ENDLESS}\n")
    talk.wait_for(f"answering '{ENDLESS}'")
    talk.type("\x03")
    talk.wait_for(talk.sign)
    talk.type("a\n\nparagraph\n")  # a paste into a terminal that does not mark pastes
    talk.wait_for(r"answering 'a\n\nparagraph'")
    talk.wait_for(talk.sign)
    if talk.how != "without readline":
        talk.type("\x1b[200~two\nlines\x1b[201~\n")
        talk.wait_for(r"answering 'two\nlines'")
        talk.wait_for(talk.sign)
    talk.type("\x04")
    talk.wait_for("left")
    assert talk.wait() == 0


with_an_editor = pytest.mark.parametrize(
    "talk", ["with prompt_toolkit", "with readline"], indirect=True
)


@with_an_editor
def test_ctrl_d_during_an_answer_leaves_after_it(talk: Conversation) -> None:
    talk.wait_for(talk.sign)
    talk.type("wait\n")
    talk.wait_for("answering 'wait'")
    talk.type("\x04")
    talk.wait_for("left")


@with_an_editor
def test_a_prompt_that_arrives_with_ctrl_d_is_answered_before_leaving(talk: Conversation) -> None:
    talk.wait_for(talk.sign)
    talk.type("one\n\x04")
    talk.wait_for("answering 'one'")
    talk.wait_for("left")


@pytest.mark.parametrize("how", ["with readline", "without readline"])
def test_ctrl_c_that_does_not_interrupt_the_waiting_for_input_is_noticed_soon(
    how: str, forks: ForkServer, tmp_path: Path
) -> None:
    """As when it comes between the prompt sign and the system call that waits."""
    with closing(Conversation(forks, tmp_path, how, "unnoticed")) as talk:
        talk.wait_for(talk.sign)
        talk.type("\x03")
        talk.wait_for(talk.sign)
        talk.type("one\n")
        talk.wait_for("answering 'one'")


@pytest.mark.parametrize("last", ["exit", "quit", " exit ", EOFError])
def test_the_conversation_can_be_left(
    loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch, last: str | type[BaseException]
) -> None:
    reader = typed(last, "not read")
    monkeypatch.setattr("builtins.input", reader)
    run_interactive(loaded, SAMPLING, raw=True)
    assert reader("") == "not read"


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    def interrupt(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", typed("the mat", "the cat"))
    hook = loaded.model.register_forward_pre_hook(interrupt)
    try:
        run_interactive(loaded, SAMPLING)
    finally:
        hook.remove()
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert answer(loaded, "the mat").startswith(first)
    assert rest == answer(loaded, "the cat") + "\n"


OURS = {repl.__file__, repl_input.__file__, signals.__file__}


class Session:
    """`run_interactive` with the prompts "one", "two" and "exit", and Ctrl-C at one moment.

    Moments are counted from the first prompt to the last: every instruction that Python executes
    of the conversation's own code.
    """

    def __init__(self, moment: int) -> None:
        self.moment, self.reached, self.answered = moment, 0, list[str]()
        self._left = ["one", "two", "exit"]

    def read(self, sign: str = "") -> str:
        if not self._left:
            raise EOFError
        return self._left.pop(0)

    def answer(self, text: str) -> None:
        self.answered.append(text)

    def trace(self, frame: FrameType, event: str, arg: object) -> TraceFunction | None:
        if frame.f_code.co_filename not in OURS:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and 0 < len(self._left) < 3:
            self.reached += 1
            if self.reached == self.moment:
                signal.raise_signal(signal.SIGINT)
        return self.trace

    def run(self, loaded: LoadedRun) -> None:
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            run_interactive(loaded, SAMPLING)
        finally:
            sys.settrace(before)


def test_ctrl_c_at_no_moment_leaves_the_conversation(
    loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = 0
    while True:
        moment += 1
        session = Session(moment)
        monkeypatch.setattr("builtins.input", session.read)
        monkeypatch.setattr(Conversing, "say", lambda _, text, to=session: to.answer(text))
        session.run(loaded)
        assert not session._left, f"left at moment {moment}"
        if session.reached < moment:
            break
        assert session.answered in (["one", "two"], ["two"], ["one"], [])
    assert moment > 50
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_again_while_one_is_handled_waits_for_the_next_prompt(
    loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(*words: str, **_: object) -> None:
        shown.append(" ".join(words))
        if len(shown) < 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(repl, "print", show, raising=False)
    reader = typed(KeyboardInterrupt, "exit", "not read")
    monkeypatch.setattr("builtins.input", reader)
    run_interactive(loaded, SAMPLING)
    assert shown == [""] * 4
    assert reader("") == "not read"


def test_json_is_the_answer_in_one_object(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(loaded, iter(["the", " cat"]), SAMPLING, logprobs=2)
    out, err = capsys.readouterr()
    assert json.loads(out) == Engine(loaded).answer("the cat", SAMPLING, logprobs=2).to_json()
    assert err == ""


def test_each_line_of_a_batch_has_the_shape_of_one_answer(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(loaded, "the cat", SAMPLING)
    single = json.loads(capsys.readouterr().out)
    run_batch(loaded, ["the mat", "the cat"], SAMPLING)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the mat", "the cat"]
    assert list(lines[1]) == list(single)
    assert f"answers {sum(line['answer_tokens'] for line in lines)} tokens in" in err


@pytest.mark.parametrize(
    ("terminals", "on_stdout", "on_stderr"),
    [({"stdin", "stdout"}, "> ", ""), ({"stdin"}, "", "> "), ({"stdout"}, "", ""), (set(), "", "")],
)
def test_the_prompt_sign_is_never_in_piped_output(
    loaded: LoadedRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminals: set[str],
    on_stdout: str,
    on_stderr: str,
) -> None:
    def read(prompt: str = "") -> str:
        print(prompt, end="")  # where Python's own `input` writes it
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setenv("TERM", "dumb")
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda name=name: name in terminals)
    run_interactive(loaded, SAMPLING)
    out, err = capsys.readouterr()
    assert (out, err) == (on_stdout, on_stderr)


def test_a_file_is_read_in_bounded_pieces() -> None:
    def sizes(text: str) -> Iterator[int]:
        return map(len, pieces_of(io.StringIO(text)))

    assert sum(sizes("x" * 200_000)) == 200_000
    assert max(sizes("x" * 200_000)) <= 1 << 16
    assert "".join(pieces_of(io.StringIO("a\r\nb"))) == "a\r\nb"
    assert list(sizes("")) == []
