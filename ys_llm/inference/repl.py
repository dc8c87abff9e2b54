"""`ys run`: an interactive session, one prompt, or a file of prompts.

Answers go to stdout, timings to stderr.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TextIO

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.tokenizer import StreamDecoder
from ys_llm.inference.engine import Engine
from ys_llm.inference.generate import Prefilled
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.runs.model_files import LoadedRun
from ys_llm.system.signals import interrupts_in_turn, signals_noticed

_PIECE_CHARS = 1 << 16  # read from stdin at a time
_PASTE_SECONDS = 0.05  # between two lines of one paste
_MARK = '"""'  # begins and ends a prompt of several lines


def pieces_of(file: TextIO) -> Iterator[str]:
    """The text of an open file in pieces of bounded size."""
    while piece := file.read(_PIECE_CHARS):
        yield piece


def run_interactive(
    loaded: LoadedRun,
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    cache: PrefixCache | None = None,
) -> None:
    """Read prompts with `input()` and stream each answer to stdout, timings to stderr.

    No prompt knows what came before it. `raw` continues a prompt as a text instead of answering
    it. `exit`, `quit` or the end of the input leaves; `/why` shows what of the last answer was
    copied, and from where. Ctrl-C stops an answer, or drops what was typed. Lines that arrive
    together, as when a paragraph is pasted, are one prompt, and so is all between two marks of
    three quotes. An empty line is no prompt.
    """
    _edit_lines()
    engine = Engine(loaded, cache)
    last: tuple[str, list[int]] | None = None
    with interrupts_in_turn() as interrupts:
        while True:
            try:
                with interrupts:
                    prompt, is_last = _read_prompt()
                    if prompt.strip() in ("exit", "quit"):
                        return
                    if prompt.strip() == "/why":
                        _explain(engine, last, raw=raw)
                    elif prompt.strip():
                        last = prompt, []
                        _stream_answer(engine, [prompt], sampling, raw=raw, made=last[1])
                if is_last:
                    return
            except EOFError:
                return
            except KeyboardInterrupt:
                print(flush=True)
            except UnicodeDecodeError:
                print("ys: this line is not UTF-8 text and was skipped", file=sys.stderr)


def _edit_lines() -> None:
    """Give `input` history and line editing, and pastes in one piece, where that exists."""
    with suppress(ImportError):
        import readline

        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")


def _read_prompt() -> tuple[str, bool]:
    """The next prompt: a line, the lines that arrived with it, or a text between two marks.

    Also whether the end of the input arrived with it. Raises EOFError where only the end came.
    """
    lines = [_input_line("> ")]
    if not lines[0].lstrip().startswith(_MARK):
        try:
            while _n_waiting(_PASTE_SECONDS) is not None:
                lines.append(_input_line(""))
        except EOFError:
            return "\n".join(lines), True
        return "\n".join(lines), False
    text = lines[0].lstrip().removeprefix(_MARK)
    while not text.rstrip().endswith(_MARK):
        text += "\n" + _input_line("... ")
    return text.rstrip().removesuffix(_MARK).removeprefix("\n").removesuffix("\n"), False


def _input_line(sign: str) -> str:
    """A line from stdin; the prompt `sign` is shown on a terminal only, never in piped output."""
    if not sys.stdin.isatty():
        return input()
    if _n_waiting(0) == 0:  # Ctrl-D, typed during an answer: readline would take it for another key
        os.read(sys.stdin.fileno(), 1)
        raise EOFError
    with signals_noticed():
        if sys.stdout.isatty():
            return input(sign)
        print(sign, end="", file=sys.stderr, flush=True)
        return input()


def _n_waiting(seconds: float) -> int | None:
    """How many bytes a terminal has to read within so many seconds: 0 at its end, None if none."""
    with suppress(OSError, ValueError):  # stdin has no descriptor
        file = sys.stdin.fileno()
        if sys.stdin.isatty() and select.select([file], [], [], seconds)[0]:
            return int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, bytes(4)), sys.byteorder)
    return None


def run_once(
    loaded: LoadedRun,
    prompt: str | Iterable[str],
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    cache: PrefixCache | None = None,
) -> None:
    """Complete one prompt (a text, or its pieces in order) as text on stdout.

    Memory does not grow with the length of the prompt.
    """
    pieces = [prompt] if isinstance(prompt, str) else prompt
    _stream_answer(Engine(loaded, cache), pieces, sampling, raw=raw)


def run_json(
    loaded: LoadedRun,
    prompt: str | Iterable[str],
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    logprobs: int | None = None,
    cache: PrefixCache | None = None,
) -> None:
    """Complete one prompt as an `Answer` in JSON on stdout; `max_tokens` 0 only scores it."""
    text = prompt if isinstance(prompt, str) else "".join(prompt)
    answer = Engine(loaded, cache).answer(text, sampling, raw=raw, logprobs=logprobs)
    print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)


def run_batch(
    loaded: LoadedRun,
    prompts: Iterable[str],
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    cache: PrefixCache | None = None,
    max_batch: int = 16,
) -> None:
    """Complete prompts together: an `Answer` in JSON a line on stdout, in the prompts' order."""
    began, n_tokens, n_prompt, n_cached = time.perf_counter(), 0, 0, 0
    engine = Engine(loaded, cache)
    for answer in engine.answer_batch(prompts, sampling, raw=raw, max_batch=max_batch):
        n_tokens += answer.answer_tokens
        n_prompt += answer.prompt_tokens
        n_cached += answer.cached_tokens
        print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)
    speed = _speed(n_tokens, time.perf_counter() - began)
    read = (
        f"read {n_prompt - n_cached:,} of {n_prompt:,} prompt tokens, {n_cached:,} from the cache"
    )
    print(f"[{read}; answers {speed}]", file=sys.stderr, flush=True)


def _explain(engine: Engine, last: tuple[str, list[int]] | None, *, raw: bool) -> None:
    """Print the tokens of the last answer that were copied for the most part, with their source."""
    if engine.loaded.model.copy_tier is None:
        return print("this model has no copy tier (model.copy.window): nothing was copied")
    if last is None:
        return print("nothing was answered yet")
    prompt, ids = last
    tokens = engine.copied(prompt, ids, raw=raw)
    shown = [(text, copied) for text, copied in tokens if copied.share > 0.5]
    print(f"{len(shown)} of {len(tokens)} tokens were copied for the most part")
    for text, copied in shown:
        source = copied.sources[0]
        known = f"token {source.position}: {source.text!r}"
        origin = "far above" if source.position is None else known
        print(f"{copied.share:6.0%}  {text!r} from {origin}")


def _stream_answer(
    engine: Engine,
    pieces: Iterable[str],
    sampling: GenerateConfig,
    *,
    raw: bool,
    made: list[int] | None = None,
) -> None:
    """Read, answer and print; `made` receives the tokens of the answer."""
    made = [] if made is None else made
    began = time.perf_counter()
    prefilled = engine.read(pieces, raw=raw)
    read_seconds = time.perf_counter() - began
    began, text = time.perf_counter(), StreamDecoder(engine.loaded.tokenizer)
    for token in engine.generate(prefilled, sampling):
        made.append(token.id)
        print(text.push(token.id), end="", flush=True)
    print(text.flush(), flush=True)
    read = _reading_speed(prefilled, read_seconds)
    answer = f"answer {_speed(len(made), time.perf_counter() - began)}"
    print(f"[{read}; {answer}]", file=sys.stderr, flush=True)


def _reading_speed(read: Prefilled, seconds: float) -> str:
    if not read.n_cached:
        return f"prompt {_speed(read.n_tokens, seconds)}"
    of = f"read {read.n_tokens - read.n_cached:,} of {read.n_tokens:,} prompt tokens"
    return f"{of} in {seconds:.2f} s, {read.n_cached:,} from the cache"


def _speed(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens:,} tokens in {seconds:.2f} s, {n_tokens / max(seconds, 1e-9):,.0f} tokens/s"
