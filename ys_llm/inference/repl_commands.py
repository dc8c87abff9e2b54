"""The commands of a conversation: what each does, its help, and how its argument is completed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ys_llm.config.schema import GenerateConfig
from ys_llm.config.strict_reader import field_helps, parse_dataclass, to_plain
from ys_llm.config.yaml_io import parse_yaml
from ys_llm.errors import UserError
from ys_llm.inference import repl_reports as reports
from ys_llm.inference.conversation import Conversation
from ys_llm.inference.memories import memory_names
from ys_llm.inference.prefix_cache import MEGABYTE
from ys_llm.inference.session import Snapshot, Typed
from ys_llm.inference.session_file import saved_states, state_path

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_LEAVING = ("exit", "quit", "bye")
_NEAR = 0.5  # of difflib's similarity, above which a command may be meant


@dataclass(frozen=True)
class Command:
    """A command: `words` are what its argument may be completed with."""

    name: str
    usage: str
    help: str
    run: Callable[[Conversation, str], None]
    words: Callable[[Conversation, str], Sequence[str]] = lambda _, __: ()


def is_leaving(text: str) -> bool:
    """Whether a line ends the conversation."""
    return text.strip().removeprefix("/") in _LEAVING


def command_of(text: str) -> tuple[Command, str] | None:
    """The command of a line with its argument; None where it is a prompt.

    UserError for a command that does not exist, with the one that may be meant.
    """
    found = _COMMAND.fullmatch(text.rstrip())
    if found is None:
        return None
    name, argument = found[1], (found[2] or "").strip()
    for command in COMMANDS:
        if command.name == name:
            return command, argument
    near = difflib.get_close_matches(name, [c.name for c in COMMANDS], n=1, cutoff=_NEAR)
    fix = f"Did you mean /{near[0]}?" if near else "/help shows what there is."
    raise UserError(f"there is no command /{name}", fix)


def completions(conversation: Conversation, text: str) -> Iterator[tuple[str, int]]:
    """Words that a line may go on with, and how many characters each replaces."""
    if not text.startswith("/"):
        return
    name, is_complete, argument = text[1:].partition(" ")
    if not is_complete:
        yield from ((f"/{c.name}", len(text)) for c in COMMANDS if c.name.startswith(name))
        return
    for command in COMMANDS:
        if command.name == name:
            words = command.words(conversation, argument)
            yield from ((word, len(argument)) for word in words if word.startswith(argument))


def _help(conversation: Conversation, argument: str) -> None:
    how = (
        "What you type goes on with the text, and the model goes on with that."
        if conversation.is_text
        else "What you type is your turn of the conversation; the model's turn follows."
        if conversation.engine.loaded.chats
        else "Each prompt is answered on its own: the model was trained on single prompts."
    )
    print(how)
    print("The commands below act on the text so far, and on the model's state after it.")
    print('"""  begins and ends a prompt of several lines; Ctrl-C stops an answer; Ctrl-D leaves')
    width = max(len(command.usage) for command in COMMANDS)
    for command in COMMANDS:
        print(f"{command.usage:{width}}  {command.help}")


def _set(conversation: Conversation, argument: str) -> None:
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    if not name:
        return reports.show(conversation)
    if name == "carry":
        conversation.carries = _is_on(text.strip())
    elif name == "undo_mb":
        conversation.session.ring.resize(_number(text) * MEGABYTE)
    else:
        value = parse_yaml(text, name="/set").values
        changed = {**to_plain(conversation.sampling), name: value}
        conversation.sampling = parse_dataclass(GenerateConfig, changed, where="/set")


def _is_on(text: str) -> bool:
    if text not in ("on", "off"):
        raise UserError(f"/set carry {text}: expected on or off", "Type /set carry on")
    return text == "on"


def _number(text: str, *, least: int = 0) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise UserError(f"expected a whole number from {least}, found {text.strip()!r}")
    return int(text)


def _seed(conversation: Conversation, argument: str) -> None:
    if argument:
        _set(conversation, f"seed {'null' if argument == 'random' else argument}")
    elif conversation.last_seed is not None:
        print(f"the last answer had seed {conversation.last_seed}")
    else:
        print("nothing was answered yet")


def _new(conversation: Conversation, argument: str) -> None:
    session = conversation.session
    with session.step():
        session.at = Snapshot()


def _continue(conversation: Conversation, argument: str) -> None:
    conversation.go_on(argument)


def _regenerate(conversation: Conversation, argument: str) -> None:
    conversation.again()


def _edit(conversation: Conversation, argument: str) -> None:
    typed = conversation.session.at.typed
    if typed is None or typed.kind not in ("prompt", "text", "more"):
        raise UserError("the last step was no prompt", "Type one.")
    if argument:
        conversation.again(Typed(typed.kind, argument))
    else:
        conversation.next_line = f"/edit {typed.text}"
        print(f"type /edit and the better prompt; it was: {reports.short(typed.text)}")


def _undo(conversation: Conversation, argument: str) -> None:
    number, _, unit = argument.partition(" ")
    n = _number(number or "1", least=1)
    if unit in ("token", "tokens"):
        conversation.take_back(n)
    elif unit in ("", "step", "steps"):
        conversation.session.undo(n)
    else:
        raise UserError(f"/undo {argument} is not understood", "Type /undo 2, or /undo 5 tokens")
    reports.where(conversation)


def _fork(conversation: Conversation, argument: str) -> None:
    state_path(conversation.run, argument)  # refuses what is no name
    if argument in conversation.branches:
        raise UserError(f"there is a branch {argument}", f"Type /switch {argument}")
    conversation.branches[argument] = conversation.session.fork()
    conversation.branch = argument
    _branches(conversation, "")


def _branches(conversation: Conversation, argument: str) -> None:
    width = max(map(len, conversation.branches))
    for name, session in conversation.branches.items():
        mark = "*" if name == conversation.branch else " "
        said = reports.ending(conversation, session.at)
        print(f"{mark} {name:{width}} {session.at.n_tokens:8,} tokens  {said}")


def _switch(conversation: Conversation, argument: str) -> None:
    if argument not in conversation.branches:
        known = ", ".join(conversation.branches)
        raise UserError(f"there is no branch {argument!r}", f"Choose one of: {known}")
    conversation.branch = argument
    reports.where(conversation)


def _save(conversation: Conversation, argument: str) -> None:
    print(f"saved {conversation.save(argument)}")


def _load(conversation: Conversation, argument: str) -> None:
    conversation.load(state_path(conversation.run, argument))
    reports.where(conversation)


def _mute(conversation: Conversation, argument: str) -> None:
    if not argument:
        names = ", ".join(memory_names(conversation.engine.loaded.model))
        print(f"muted: {conversation.muted_names() or 'nothing'}; there are {names}")
        return
    conversation.mute(argument.split(), is_muted=True)
    print(f"muted: {conversation.muted_names()}")


def _unmute(conversation: Conversation, argument: str) -> None:
    muted = [argument] if argument else conversation.muted_names().split(", ")
    conversation.mute(" ".join(filter(None, muted)).split(), is_muted=False)
    print(f"muted: {conversation.muted_names() or 'nothing'}")


def _adapter(conversation: Conversation, argument: str) -> None:
    if argument:
        conversation.use_adapters([] if argument == "none" else argument.split())
    known = ", ".join(conversation.adapters.names()) or "none"
    print(f"adapters: {' + '.join(conversation.adapters.active) or 'none'}; there are {known}")


def _feed(conversation: Conversation, argument: str) -> None:
    carried = conversation.carries
    conversation.feed(Path(argument).expanduser())
    if not carried:
        print("what you type now is read after this text; /set carry off to begin anew each time")


def _states(conversation: Conversation, argument: str) -> Sequence[str]:
    return saved_states(conversation.run)


def _memories(conversation: Conversation, argument: str) -> Sequence[str]:
    before = argument.rpartition(" ")[0]
    names = memory_names(conversation.engine.loaded.model)
    return [f"{before} {name}".strip() for name in names]


def _settings(conversation: Conversation, argument: str) -> Sequence[str]:
    return [f"{name} " for name in (*field_helps(GenerateConfig), "carry", "undo_mb")]


def _paths(conversation: Conversation, argument: str) -> Sequence[str]:
    """Files and folders whose paths begin so."""
    folder, _, name = argument.rpartition("/")
    begin = f"{folder}/" if "/" in argument else ""
    try:
        found = sorted(Path(begin or ".").expanduser().iterdir())[:1000]
    except OSError:
        return ()
    shown = [path for path in found if path.name.startswith(name)]
    return [f"{begin}{path.name}{'/' * path.is_dir()}" for path in shown]


def _branch_names(conversation: Conversation, argument: str) -> Sequence[str]:
    return list(conversation.branches)


COMMANDS = (
    Command("help", "/help", "show this", _help),
    Command(
        "continue", "/continue [TEXT]", "go on with the text as it stands, after TEXT", _continue
    ),
    Command("new", "/new", "begin another text: nothing is read yet", _new),
    Command("regenerate", "/regenerate", "answer the last prompt again", _regenerate),
    Command("edit", "/edit [TEXT]", "change the last prompt, and answer that", _edit),
    Command("undo", "/undo [N [tokens]]", "go back N steps, or take back N tokens", _undo),
    Command("fork", "/fork NAME", "begin a branch here; the text so far is that of both", _fork),
    Command("branches", "/branches", "list the branches, * the present one", _branches),
    Command("switch", "/switch NAME", "go to another branch", _switch, _branch_names),
    Command("save", "/save NAME", "keep the state in the run's folder", _save, _states),
    Command("load", "/load NAME", "go on from a kept state; nothing is read again", _load, _states),
    Command(
        "adapter",
        "/adapter [NAME...|none]",
        "compute with adapters of this run, summed, or without",
        _adapter,
        lambda conversation, _: ["none", *conversation.adapters.names()],
    ),
    Command("feed", "/feed FILE", "read a file after the text as it stands", _feed, _paths),
    Command("set", "/set NAME VALUE", "set temperature, max_tokens, carry, ...", _set, _settings),
    Command("show", "/show", "show the settings, the text, and what can be undone", reports.show),
    Command("seed", "/seed [N|random]", "tell the last seed, or set the next ones", _seed),
    Command("state", "/state", "draw the memories: norm, numbers, latest change", reports.state),
    Command(
        "mute",
        "/mute NAME...",
        "let a memory contribute nothing, as global, 2 or 2.main",
        _mute,
        _memories,
    ),
    Command("unmute", "/unmute [NAME...]", "hear it again; all without a name", _unmute, _memories),
    Command(
        "why", "/why", "tell the candidates for the last token, and what was copied", reports.why
    ),
    Command(
        "surprise",
        "/surprise TEXT",
        "colour a text by how little the model expected it",
        reports.surprise,
    ),
)
