"""`ys log`, and going on from what a session has kept: `--state` and `--from-log`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ys_llm.cli.main import main
from ys_llm.config.schema import Config, GenerateConfig, ModelConfig
from ys_llm.config.user_state import log_folder, state_dir
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference.conversation import Conversation
from ys_llm.inference.engine import Engine
from ys_llm.inference.session_log import NewTurn, SessionLog
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import load_run, save_model

FACTS = {
    "step": 7,
    "tokens": 700,
    "parameters": 4321,
    "val_bits_per_byte": 1.5,
    "has_records": True,
}
SAMPLING = ("--seed", "4", "--max-tokens", "9", "--temperature", "0")
Shown = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, and one for what the user has done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YS_STATE_DIR", str(tmp_path / "kept"))
    monkeypatch.delenv("YS_LOG", raising=False)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Path:
    torch.manual_seed(1)
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    config = Config(run="small", model=ModelConfig(d_model=16, n_layers=1, d_mlp=24))
    path = folder / "runs" / "small"
    path.mkdir(parents=True)
    tokenizer.save(path / "tokenizer.json")
    save_model(path, config, Model(config.model, vocab_size=258), tokenizer, FACTS)
    return path


@pytest.fixture
def keep(folder: Path) -> Callable[..., int]:
    def turn(typed: str, answer: str, parent: int | None = None) -> int:
        log = SessionLog(folder / "kept")
        session = log.new_session(run="small", path=str(folder / "runs/small"), tokenizer="t")
        new = NewTurn(
            parent=parent,
            kind="prompt",
            typed=typed,
            answer=answer,
            ids=(3, 4),
            n_tokens=9,
            muted=(),
            sampling={"seed": 4},
        )
        return log.add(session, new)

    return turn


def test_turns_are_listed_searched_and_shown(keep: Callable[..., int], capsys: Shown) -> None:
    for typed, answer in (("Tell of a fox.", "Once\nthere"), ("Hello", "A squirrel"), ("x", "y")):
        keep(typed, answer)
    assert main(["log"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert lines[0].endswith("small       Tell of a fox. -> Once there")
    assert main(["log", "--most", "1"]) == 0
    assert capsys.readouterr().out.startswith("     3  ")
    assert main(["log", "search", "squir"]) == 0
    assert "Hello -> A squirrel" in capsys.readouterr().out
    assert main(["log", "search", "hedgehog"]) == 0
    assert capsys.readouterr() == ("", "nothing was found\n")
    assert main(["log", "1"]) == 0
    out = capsys.readouterr().out
    assert "> Tell of a fox.\nOnce\nthere\n" in out and "seed=4" in out


def test_what_is_stored_cannot_command_the_terminal(
    keep: Callable[..., int], capsys: Shown
) -> None:
    keep("\x1b]0;title\x07 \u202etxt", "\x1b[2Jgone\x9b1A")
    for words in (["log"], ["log", "1"], ["log", "search", "gone"]):
        assert main(words) == 0
        assert not set(capsys.readouterr().out) & set("\x1b\x07\x9b\u202e")


def test_without_a_log_it_is_told_what_to_type(
    folder: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["log"]) == 1
    assert capsys.readouterr().err.startswith(f"ys: there is no log of sessions in {folder}/kept")
    monkeypatch.setenv("YS_LOG", "0")
    assert main(["log"]) == 1
    assert "unset YS_LOG" in capsys.readouterr().err
    assert not (folder / "kept").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["log", "search"],
        ["log", "12", "13"],
        ["log", "find", "x"],
        ["log", "--most", "0"],
        ["run", "--state", "x", "--json", "--prompt", "x"],
        ["run", "--state", "x", "--prompts", "x"],
        ["run", "--from-log", "1", "--prompt", "x"],
        ["run", "--from-log", "1", "--state", "x"],
    ],
)
def test_wrong_usage_is_refused(words: list[str], folder: Path, capsys: Shown) -> None:
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 2
    assert "usage: ys" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["0", "off", "No", "FALSE"])
def test_one_setting_keeps_nothing(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.delenv("YS_LOG", raising=False)
    assert log_folder() is not None
    monkeypatch.setenv("YS_LOG", setting)
    assert log_folder() is None


def test_the_folder_of_the_user_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("YS_STATE_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_dir() == tmp_path / ".local" / "state" / "ys"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_dir() == tmp_path / "state" / "ys"
    monkeypatch.setenv("YS_STATE_DIR", "here")
    assert state_dir() == Path("here").absolute()


def test_a_prompt_is_read_after_a_saved_state(run: Path, capsys: Shown) -> None:
    sampling = GenerateConfig(temperature=0.0, max_tokens=9, seed=4)
    conversation = Conversation(Engine(load_run(run)), sampling, raw=True)
    conversation.say("the cat")
    path = conversation.save("fox")
    capsys.readouterr()
    conversation.say(" sat")
    expected = capsys.readouterr().out
    for state in ("fox", str(path)):
        words = ["run", "small", "--raw", "--state", state, "--prompt", " sat", *SAMPLING]
        assert main(words) == 0
        assert capsys.readouterr().out == expected
    assert main(["run", "small", "--state", "hen", "--prompt", "x"]) == 1
    assert capsys.readouterr().err == "ys: there is no saved state hen. Choose one of: fox\n"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["run", "small", "--state", "fox", "--prompt", "x"]) == 1
    assert "fox.safetensors is not a whole saved state" in capsys.readouterr().err
