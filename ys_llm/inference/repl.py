"""`ys run`: an interactive session, one prompt, or a file of prompts.

Answers go to stdout, timings to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TextIO

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.tokenizer import StreamDecoder
from ys_llm.inference.engine import Engine
from ys_llm.runs.model_files import LoadedRun

_PIECE_CHARS = 1 << 16  # read from stdin at a time


def pieces_of(file: TextIO) -> Iterator[str]:
    """The text of an open file in pieces of bounded size."""
    while piece := file.read(_PIECE_CHARS):
        yield piece


def run_interactive(loaded: LoadedRun, sampling: GenerateConfig, *, raw: bool = False) -> None:
    """Read prompts with `input()` and stream each answer to stdout, timings to stderr.

    Every prompt starts from a fresh state. `raw` continues a prompt as a text instead of answering
    it. `exit`, `quit` or the end of the input leaves; Ctrl-C stops an answer, and leaves where
    none is being generated. An empty line is no prompt.
    """
    with suppress(ImportError):  # gives input() history and line editing, where it exists
        import readline  # noqa: F401
    engine = Engine(loaded)
    while True:
        try:
            prompt = _input_line()
        except (EOFError, KeyboardInterrupt):
            return
        except UnicodeDecodeError:
            print("ys: this line is not UTF-8 text and was skipped", file=sys.stderr)
            continue
        if prompt.strip() in ("exit", "quit"):
            return
        if prompt.strip():
            try:
                _stream_answer(engine, [prompt], sampling, raw=raw)
            except KeyboardInterrupt:
                print(flush=True)


def _input_line() -> str:
    """A line from stdin; the prompt `> ` is shown on a terminal only, never in piped output."""
    if not sys.stdin.isatty():
        return input()
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()


def run_once(
    loaded: LoadedRun, prompt: str | Iterable[str], sampling: GenerateConfig, *, raw: bool = False
) -> None:
    """Complete one prompt (a text, or its pieces in order) as text on stdout.

    Memory does not grow with the length of the prompt.
    """
    pieces = [prompt] if isinstance(prompt, str) else prompt
    _stream_answer(Engine(loaded), pieces, sampling, raw=raw)


def run_json(
    loaded: LoadedRun,
    prompt: str | Iterable[str],
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    logprobs: int | None = None,
) -> None:
    """Complete one prompt as an `Answer` in JSON on stdout; `max_tokens` 0 only scores it."""
    text = prompt if isinstance(prompt, str) else "".join(prompt)
    answer = Engine(loaded).answer(text, sampling, raw=raw, logprobs=logprobs)
    print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)


def run_batch(
    loaded: LoadedRun,
    prompts: Iterable[str],
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    max_batch: int = 16,
) -> None:
    """Complete prompts together: an `Answer` in JSON a line on stdout, in the prompts' order."""
    began, n_tokens = time.perf_counter(), 0
    answers = Engine(loaded).answer_batch(prompts, sampling, raw=raw, max_batch=max_batch)
    for answer in answers:
        n_tokens += answer.answer_tokens
        print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)
    speed = _speed(n_tokens, time.perf_counter() - began)
    print(f"[prompts read, answers {speed}]", file=sys.stderr, flush=True)


def _stream_answer(
    engine: Engine, pieces: Iterable[str], sampling: GenerateConfig, *, raw: bool
) -> None:
    began = time.perf_counter()
    prefilled = engine.read(pieces, raw=raw)
    read_seconds = time.perf_counter() - began
    began, n_tokens = time.perf_counter(), 0
    text = StreamDecoder(engine.loaded.tokenizer)
    for token in engine.generate(prefilled, sampling):
        n_tokens += 1
        print(text.push(token.id), end="", flush=True)
    print(text.flush(), flush=True)
    read = f"prompt {_speed(prefilled.n_tokens, read_seconds)}"
    answer = f"answer {_speed(n_tokens, time.perf_counter() - began)}"
    print(f"[{read}; {answer}]", file=sys.stderr, flush=True)


def _speed(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens:,} tokens in {seconds:.2f} s, {n_tokens / max(seconds, 1e-9):,.0f} tokens/s"
