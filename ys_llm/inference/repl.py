"""`ys run`: prompt after prompt, or one prompt from the command line or from stdin."""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TextIO

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.tokenizer import StreamDecoder
from ys_llm.inference.generate import Prefilled, Step, generate, generate_many, prefill, prompt_ids
from ys_llm.runs.model_files import LoadedRun

_PIECE_CHARS = 1 << 16  # read from stdin at a time


def pieces_of(file: TextIO) -> Iterator[str]:
    """The text of an open file in pieces of bounded size."""
    while piece := file.read(_PIECE_CHARS):
        yield piece


def run_interactive(loaded: LoadedRun, sampling: GenerateConfig, *, plain: bool) -> None:
    """Read prompts with `input()` and stream each answer to stdout, timings to stderr.

    Every prompt starts from a fresh state; it is answered as a record, or with `plain` (and where
    the training data held no records) gone on with as a text. `exit`, `quit` or the end of the
    input leaves; Ctrl-C stops an answer, and leaves where no answer is being written. An empty
    line is no prompt.
    """
    with suppress(ImportError):  # gives input() its history and line editing, where it exists
        import readline  # noqa: F401
    while True:
        try:
            prompt = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        except UnicodeDecodeError:
            print("ys: this line is not UTF-8 text and was not read", file=sys.stderr)
            continue
        if prompt.strip() in ("exit", "quit"):
            return
        if prompt.strip():
            try:
                _stream_answer(loaded, [prompt], sampling, plain=plain)
            except KeyboardInterrupt:
                print(flush=True)


def run_once(
    loaded: LoadedRun,
    prompt: str | Iterable[str],
    sampling: GenerateConfig,
    *,
    as_json: bool = False,
    logprobs: int = 0,
    plain: bool = False,
) -> None:
    """Complete one prompt (a text, or its pieces in order) on stdout.

    As text, memory is constant in the length of the prompt. As JSON, one object is printed with
    the ids, texts and log-probabilities of prompt and answer, and the `logprobs` best
    alternatives of each token; `max_tokens` 0 only scores the prompt. `plain` as in
    `run_interactive`.
    """
    pieces = [prompt] if isinstance(prompt, str) else prompt
    if as_json:
        answer = _json_answer(loaded, pieces, sampling, logprobs=logprobs, plain=plain)
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    else:
        _stream_answer(loaded, pieces, sampling, plain=plain)


def run_batch(
    loaded: LoadedRun, prompts: Iterable[str], sampling: GenerateConfig, *, plain: bool = False
) -> None:
    """Complete prompts side by side: one JSON object a line on stdout, in the prompts' order.

    Each holds `prompt`, `text`, `finish_reason`, `tokens` (how many), and the `seed` (drawn here
    where none is given) with which `run_once` gives this prompt the same answer.
    """
    tokenizer, plain = loaded.tokenizer, plain or not loaded.has_records
    seed = secrets.randbelow(1 << 31) if sampling.seed is None else sampling.seed
    sampling = dataclasses.replace(sampling, seed=seed)
    asked: deque[str] = deque()

    def read() -> Iterator[Prefilled]:
        for prompt in prompts:
            asked.append(prompt)
            yield prefill(loaded.model, prompt_ids(tokenizer, [prompt], plain=plain))

    began, n_tokens, next_out = time.perf_counter(), 0, 0
    done: dict[int, list[Step]] = {}
    end_id = tokenizer.end_id
    for number, steps in generate_many(loaded.model, read(), sampling=sampling, end_id=end_id):
        done[number], n_tokens = steps, n_tokens + len(steps)
        while next_out in done:
            answer = _plain_answer(loaded, done.pop(next_out))
            answer = {"prompt": asked.popleft(), **answer, "seed": seed}
            print(json.dumps(answer, ensure_ascii=False), flush=True)
            next_out += 1
    seconds = time.perf_counter() - began
    print(f"[prompts read, answers {_speed(n_tokens, seconds)}]", file=sys.stderr, flush=True)


def _plain_answer(loaded: LoadedRun, steps: list[Step]) -> dict[str, Any]:
    stopped = bool(steps) and steps[-1].id == loaded.tokenizer.end_id
    return {
        "text": loaded.tokenizer.decode(step.id for step in steps),
        "finish_reason": "stop" if stopped else "length",
        "tokens": len(steps),
    }


def _stream_answer(
    loaded: LoadedRun, pieces: Iterable[str], sampling: GenerateConfig, *, plain: bool
) -> None:
    tokenizer = loaded.tokenizer
    plain = plain or not loaded.has_records
    began = time.perf_counter()
    prefilled = prefill(loaded.model, prompt_ids(tokenizer, pieces, plain=plain))
    read = time.perf_counter()
    decoder, n_tokens = StreamDecoder(tokenizer), 0
    for step in generate(loaded.model, prefilled, sampling=sampling, end_id=tokenizer.end_id):
        n_tokens += 1
        print(decoder.push(step.id), end="", flush=True)
    print(decoder.flush(), flush=True)
    _print_timings(prefilled, read - began, n_tokens, time.perf_counter() - read)


def _print_timings(
    prefilled: Prefilled, read_seconds: float, n_tokens: int, made_seconds: float
) -> None:
    read = f"prompt {_speed(prefilled.n_tokens, read_seconds)}"
    print(f"[{read}; answer {_speed(n_tokens, made_seconds)}]", file=sys.stderr, flush=True)


def _speed(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens:,} tokens in {seconds:.2f} s, {n_tokens / max(seconds, 1e-9):,.0f} tokens/s"


def _json_answer(
    loaded: LoadedRun,
    pieces: Iterable[str],
    sampling: GenerateConfig,
    *,
    logprobs: int,
    plain: bool,
) -> dict[str, Any]:
    tokenizer = loaded.tokenizer
    plain = plain or not loaded.has_records
    # Drawn here where none is given, so that every answer names the seed that makes it again.
    seed = secrets.randbelow(1 << 31) if sampling.seed is None else sampling.seed
    sampling = dataclasses.replace(sampling, seed=seed)
    asked: list[Step] = []
    prefilled = prefill(
        loaded.model,
        prompt_ids(tokenizer, pieces, plain=plain),
        observe=asked.append,
        n_candidates=logprobs,
    )
    answered = list(
        generate(
            loaded.model,
            prefilled,
            sampling=sampling,
            end_id=tokenizer.end_id,
            n_candidates=logprobs,
        )
    )
    stopped = bool(answered) and answered[-1].id == tokenizer.end_id
    opening = _described(loaded, [Step(tokenizer.end_id, 0.0, ())], logprobs)
    opening["logprobs"] = [None]  # nothing comes before <end>, so nothing predicts it
    prompt = _described(loaded, asked, logprobs)
    return {
        "run": loaded.config.run,
        "step": loaded.step,
        "seed": seed,
        "prompt": {name: opening[name] + prompt[name] for name in prompt},
        "answer": {
            "text": tokenizer.decode(step.id for step in answered),
            **_described(loaded, answered, logprobs),
            "finish_reason": "stop" if stopped else "length",
        },
    }


def _described(loaded: LoadedRun, steps: list[Step], logprobs: int) -> dict[str, list[Any]]:
    """Parallel lists: one entry per token in each. `top` only where alternatives were asked for."""
    text = loaded.tokenizer.token_text
    described: dict[str, list[Any]] = {
        "ids": [step.id for step in steps],
        "texts": [text(step.id) for step in steps],
        "logprobs": [step.logprob for step in steps],
    }
    if logprobs:
        described["top"] = [
            [{"id": c.id, "text": text(c.id), "logprob": c.logprob} for c in step.candidates]
            for step in steps
        ]
    return described
