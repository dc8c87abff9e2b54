"""`ys run` in a real terminal: an editor, resizes, pastes, and Ctrl-C at every stage."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.tmux import Terminal

from ys_llm.config.schema import Config, ModelConfig
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference.repl_commands import COMMANDS
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import save_model

ROOT = Path(__file__).resolve().parents[2]
FACTS = {
    "step": 7,
    "tokens": 700,
    "parameters": 4321,
    "val_bits_per_byte": 1.5,
    "has_records": True,
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux"),
]
SIGN = "\n>"  # at the beginning of a line
Begin = Callable[..., Terminal]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `ys run` finds a run."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("terminal")
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    config = Config(run="small", model=ModelConfig(d_model=32, n_layers=2, d_mlp=64))
    model = Model(config.model, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():  # letters alone, so that the screen shows every token
        model.output.weight[: 2 + ord("a")] = 0
        model.output.weight[2 + ord("z") + 1 :] = 0
        model.output.weight[2 + ord("a") : 2 + ord("z") + 1] *= 50
    run = folder / "runs" / "small"
    run.mkdir(parents=True)
    tokenizer.save(run / "tokenizer.json")
    save_model(run, config, model, tokenizer, FACTS)
    return folder


@pytest.fixture
def begin(folder: Path, tmp_path: Path) -> Iterator[Begin]:
    """Start `ys run` with these words, in a terminal of its own."""
    opened: list[Terminal] = []

    def start(*words: str, **environment: str) -> Terminal:
        settings = {"YS_STATE_DIR": str(tmp_path / "kept"), "PYTHONPATH": str(ROOT)} | environment
        ys = [sys.executable, "-m", "ys_llm", *(words or ("run", "small", "--max-tokens", "20"))]
        command = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder), *ys]
        if term := settings.pop("TERM", ""):  # tmux sets its own
            command = ["env", f"TERM={term}", *command]
        terminal = Terminal(tmp_path / f"tmux{len(opened)}", command, settings)
        opened.append(terminal)
        return terminal

    yield start
    for terminal in opened:
        terminal.close()


def test_every_command_answers_in_one_session(begin: Begin, folder: Path) -> None:
    book = folder / "book.txt"
    book.write_text("the cat sat on the mat. " * 2000)
    terminal = begin("run", "small", "--max-tokens", "10")
    terminal.wait_for(SIGN)
    terminal.write("the cat")
    terminal.wait_for("answer 10 tokens")
    for line, shown in {
        "/help": "/surprise TEXT",
        "/set temperature 0.7": "> /set temperature 0.7",
        "/show": "temperature        0.7",
        "/seed": "the last answer had seed",
        "/regenerate": "answer 10 tokens",
        "/edit the hat": "prompt 9 tokens",
        "/continue and": "prompt 4 tokens",
        "/state": "1.global_summary",
        "/why": "entropy",
        "/surprise the cat": "a byte, after",
        "/save fox": "fox.safetensors",
        "/fork hen": "* hen",
        "/switch main": "tokens: the hat",
        "/branches": "* main",
        "/mute global": "muted: 1.global_summary, 2.global_summary",
        "/unmute": "muted: nothing",
        "/adapter": "adapters: none; there are none",
        f"/feed {book}": "48,000 tokens in",
        "/undo": "tokens: the hat",
        "/undo 2 tokens": "tokens: the hat",
        "/new": "> /new",
        "/load fox": "tokens: the hat",
        "/fokr": "Did you mean /fork?",
    }.items():
        seen = terminal.screen().count(shown)
        terminal.write(line)
        terminal.wait_for(shown, times=seen + 1)
    terminal.type("C-d")
    assert terminal.wait_for_end() == 0
    typed = terminal.screen().split("> /")[1:]
    assert {command.name for command in COMMANDS} <= {line.split()[0] for line in typed}


def test_lines_are_edited_completed_and_remembered(begin: Begin) -> None:
    terminal = begin()
    terminal.wait_for(SIGN)
    terminal.type("-l", "/bran")
    terminal.type("Tab")
    terminal.wait_for("/branches")
    terminal.type("Enter")
    terminal.wait_for("* main")
    terminal.write('"""the cat')
    terminal.write("")
    terminal.write('sat"""')
    terminal.wait_for("prompt 14 tokens")  # with two line breaks
    terminal.type("C-d")
    assert terminal.wait_for_end() == 0
    again = begin()
    again.wait_for(SIGN)
    again.type("Up")
    again.wait_for('sat"""')
    again.type("C-c")
    again.type("Up", "Up", "Up", "Up")  # over the three lines of the last prompt
    again.wait_for("> /branches")


def test_a_window_may_change_its_size_at_any_time(begin: Begin) -> None:
    terminal = begin("run", "small", "--max-tokens", "3000")
    terminal.wait_for(SIGN)
    terminal.type("-l", "the cat sat on the mat and then the cat sat on the hat")
    for columns in (30, 10, 120, 80):
        terminal.resize(columns, 20)
    terminal.type("Enter")
    for columns in (20, 100):
        terminal.resize(columns, 10)
    terminal.wait_for("answer 3,000 tokens")
    terminal.write("/show")
    terminal.wait_for("branch             main")


def test_a_paste_of_100_000_characters_is_one_prompt(begin: Begin) -> None:
    terminal = begin()
    terminal.wait_for(SIGN)
    terminal.paste("the cat sat on the mat.\n" * 4167)
    terminal.type("Enter")
    terminal.wait_for("prompt 100,010 tokens", seconds=120)
    terminal.wait_for("answer 20 tokens")
    terminal.write("/undo")
    terminal.wait_for("at the beginning")


def test_ctrl_c_stops_what_is_done_and_keeps_the_session(begin: Begin, folder: Path) -> None:
    book = folder / "long.txt"
    book.write_text("the cat sat on the mat. " * 400_000)
    terminal = begin("run", "small", "--max-tokens", "1000000")
    terminal.wait_for(SIGN)
    terminal.type("-l", "half a line")
    terminal.type("C-c")
    terminal.wait_for(SIGN, times=2)
    terminal.write("the cat")
    terminal.wait_for_match("cat\n[a-z]{9}")
    terminal.type("C-c")
    terminal.wait_for(SIGN, times=3)
    terminal.write("/show")
    terminal.wait_for("can be undone      1 steps")
    terminal.write(f"/feed {book}")
    terminal.wait_for("%")
    terminal.type("C-c")
    terminal.write("/set undo_mb 9")
    terminal.write("/show")
    terminal.wait_for("can be undone      1 steps", times=2)
    for _ in range(5):
        terminal.type("C-c")
    terminal.write("exit")
    assert terminal.wait_for_end() == 0


def test_characters_may_come_byte_by_byte(begin: Begin) -> None:
    terminal = begin()
    terminal.wait_for(SIGN)
    terminal.send_bytes(*"/surprise é€😀".encode())
    terminal.type("Enter")
    screen = terminal.wait_for("a byte, after 0 tokens")
    assert "/surprise é€😀" in screen


@pytest.mark.parametrize("term", ["dumb", "tmux-256color"])
def test_a_plain_terminal_and_no_colour_get_no_escapes(begin: Begin, term: str) -> None:
    terminal = begin(TERM=term, NO_COLOR="1")
    terminal.wait_for(SIGN)
    terminal.write("/surprise the cat")
    terminal.wait_for("a byte, after 0 tokens")
    assert "\x1b[48" not in terminal.screen(colours=True)
    terminal.write("the cat")
    terminal.wait_for("answer 20 tokens")
    terminal.type("C-d")
    assert terminal.wait_for_end() == 0


def test_colours_show_what_surprises(begin: Begin) -> None:
    terminal = begin()
    terminal.wait_for(SIGN)
    terminal.write("/surprise THE CAT")
    terminal.wait_for("a byte, after 0 tokens")
    assert "\x1b[30m\x1b[48;5;" in terminal.screen(colours=True)


def test_a_killed_session_goes_on_from_its_saved_state_and_from_its_log(begin: Begin) -> None:
    terminal = begin("run", "small", "--max-tokens", "20", "--seed", "3")
    terminal.wait_for(SIGN)
    terminal.write("the cat")
    terminal.wait_for("answer 20 tokens")
    terminal.write("/save killed")
    terminal.wait_for("saved ")
    terminal.write("/continue")
    answer = said(terminal.wait_for("tokens/s", times=3))
    terminal.close()
    for words in (["--state", "killed"], ["--from-log", "1"]):
        again = begin("run", "small", "--max-tokens", "20", "--seed", "3", *words)
        again.wait_for(SIGN)
        again.write("/continue")
        assert said(again.wait_for("tokens/s")) == answer
        assert "prompt" not in again.screen()  # nothing was read
    listed = begin("log", "search", "cat")
    listed.wait_for("the cat -> ")


def said(screen: str) -> str:
    """The answer to the last `/continue`."""
    return screen.split("> /continue\n")[-1].split("[answer")[0].strip()
