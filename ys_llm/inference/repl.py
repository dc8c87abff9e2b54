"""`ys run`: an interactive session, one prompt, or a file of prompts.

Answers go to stdout, timings to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ys_llm.config.schema import GenerateConfig
from ys_llm.errors import UserError
from ys_llm.inference.conversation import Conversation
from ys_llm.inference.engine import Engine
from ys_llm.inference.pictures import speed
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.inference.repl_commands import command_of, completions, is_leaving
from ys_llm.inference.repl_input import Line, reader_of
from ys_llm.inference.session_file import SUFFIX, state_path
from ys_llm.inference.session_log import SessionLog
from ys_llm.runs.model_files import LoadedRun
from ys_llm.system.signals import interrupts_in_turn


@dataclass(frozen=True)
class Beginning:
    """Where a conversation begins, and where it is kept.

    `state` is the name or the file of a saved one, `turn` a number of the log; at most one of them.
    `kept_in` is the folder for the log and for the lines that were typed; None keeps neither.
    `system` is what a conversation begins with; with `chats` every prompt is a turn of it.
    """

    state: str | None = None
    turn: int | None = None
    kept_in: Path | None = None
    system: str = ""
    chats: bool = False


def run_interactive(
    loaded: LoadedRun,
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    cache: PrefixCache | None = None,
    beginning: Beginning | None = None,
) -> None:
    """Read prompts and commands (`/help`), stream each answer to stdout, timings to stderr.

    `raw` goes on with a text instead of answering prompts. `exit`, `quit` or the end of the input
    leaves. Ctrl-C stops an answer, or drops what was typed. An empty line is no prompt.
    """
    beginning = beginning or Beginning()
    conversation = Conversation(Engine(loaded, cache), sampling, raw=raw)
    _begin(conversation, beginning)
    reader = reader_of(beginning.kept_in, lambda text: completions(conversation, text))
    with interrupts_in_turn() as interrupts:
        while True:
            try:
                with interrupts:
                    begun, conversation.next_line = conversation.next_line, ""
                    line = reader.read(begun)
                    if is_leaving(line.text):
                        return
                    _obey(conversation, line)
                if line.is_last:
                    return
            except EOFError:
                return
            except KeyboardInterrupt:
                print(flush=True)
            except UserError as error:
                print(f"ys: {error}", file=sys.stderr, flush=True)
            except UnicodeDecodeError:
                print("ys: this line is not UTF-8 text and was skipped", file=sys.stderr)


def _begin(conversation: Conversation, beginning: Beginning) -> None:
    """Open the log, and go to where the conversation begins."""
    conversation.system = beginning.system
    if beginning.chats:
        conversation.carries = True
    if beginning.kept_in is not None:
        try:
            conversation.log = SessionLog(beginning.kept_in)
        except UserError as error:
            print(f"ys: {error}", file=sys.stderr)
    if beginning.turn is not None:
        if conversation.log is None:
            problem = "the log of sessions is off, or cannot be read"
            raise UserError(problem, "Type: unset YS_LOG")
        conversation.replay(conversation.log.text_of(beginning.turn))
    elif beginning.state is not None:
        conversation.load(state_file(conversation.run, beginning.state))


def run_turns(
    loaded: LoadedRun,
    turns: Iterable[str],
    sampling: GenerateConfig,
    *,
    cache: PrefixCache | None = None,
    beginning: Beginning,
) -> None:
    """Reply to one turn after the other; lines that are commands are obeyed, empty ones are not."""
    conversation = Conversation(Engine(loaded, cache), sampling)
    _begin(conversation, beginning)
    for turn in turns:
        _obey(conversation, Line(turn))


def state_file(run: Path, state: str) -> Path:
    """The file of a saved state, by its name or its path."""
    if "/" in state or state.endswith(SUFFIX):
        return Path(state)
    return state_path(run, state)


def _obey(conversation: Conversation, line: Line) -> None:
    """Do what a line says: a command, or a prompt."""
    found = None if line.is_quoted else command_of(line.text)
    if found is not None:
        command, argument = found
        command.run(conversation, argument)
    elif line.text.strip():
        conversation.say(line.text)


def run_once(
    loaded: LoadedRun,
    prompt: str | Iterable[str],
    sampling: GenerateConfig,
    *,
    raw: bool = False,
    cache: PrefixCache | None = None,
    state: str | None = None,
) -> None:
    """Complete one prompt (a text, or its pieces in order) as text on stdout.

    It is read after the text of `state`, the name or the file of a saved one. Memory does not grow
    with the length of the prompt.
    """
    conversation = Conversation(Engine(loaded, cache), sampling, raw=raw)
    if state is not None:
        conversation.load(state_file(loaded.path, state))
    conversation.answer_once([prompt] if isinstance(prompt, str) else prompt)


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
    answers = speed(n_tokens, time.perf_counter() - began)
    read = (
        f"read {n_prompt - n_cached:,} of {n_prompt:,} prompt tokens, {n_cached:,} from the cache"
    )
    print(f"[{read}; answers {answers}]", file=sys.stderr, flush=True)
